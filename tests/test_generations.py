"""Asking models that write: runs of every kind and base models, through the real inference process."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.interactiveshell import InteractiveShell
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptx_nb
from gptx_nb import api, inference, launch
from gptx_nb.engine import generate
from gptx_nb.engine.generate import Continuation
from gptx_nb.engine.writer import How, Writer, _Stops
from gptx_nb.errors import DataError, RunNotFound, UsageError
from gptx_nb.generations import Generation, Generations
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run
from gptx_nb.views import routes

COLOURS = ("red", "blue", "green", "black")


def tuned(name: str, model: Path, frame: pd.DataFrame, **settings: Any) -> Run:
    small = {"model": str(model), "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    recipe = make_recipe({**small, "epochs": 15, "validation": 0, **settings})
    return launch.train(name, recipe, data=frame, wait=True).run


@pytest.fixture
def process(home: Path) -> Iterator[Path]:
    yield home
    inference.free()


def test_a_usual_stop_is_none_before_an_answer_has_begun() -> None:
    stops = _Stops(asked=(), usual=("\n",))
    assert [stops.place(text) for text in ("", "\n", " \n\n", "\n\nyes", "\n\nyes\nno", "yes\n")] == [
        *[None] * 4, 5, 3
    ]  # fmt: skip
    assert stops.place("\nno", begun=True) == 0
    asked = _Stops(asked=("\n", "no"), usual=())
    assert [asked.place(text) for text in ("\nyes", "yes, no", "yes")] == [0, 5, None]
    assert (asked.longest, _Stops((), ()).longest) == (2, 0)


def writing(tokens: list[int]) -> Callable[..., list[Continuation]]:
    """Return what continues every prompt by `tokens`, up to where it is told to stop."""

    def continued(model: Any, prompts: Any, *, stop: Any, on_token: Any, **more: Any) -> list[Continuation]:
        new: list[int] = []
        for token in tokens:
            new.append(token)
            if on_token:
                on_token(0, token)
            if stop(new):
                return [Continuation(new, "stop")] * len(prompts)
        return [Continuation(new, "length")] * len(prompts)

    return continued


def test_a_model_that_begins_with_a_line_end_answers_all_the_same(tiny_model: Path, monkeypatch: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    monkeypatch.setattr(generate, "generate", writing(tokenizer("\n\nBlue.\nRed?")["input_ids"]))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    writer = Writer(model, tokenizer, "question-answering", {}, tuned=False)
    for given, text in ((How(), "Blue."), (How(stop=("l",)), "B"), (How(stop=("\n",)), "")):
        said: list[str] = []
        answers = writer.write([{"question": "What?"}], given, on_text=said.append)
        assert (answers.written[0][0].text, "".join(said)) == (text, text)


def test_half_a_character_at_the_end_of_what_may_be_written_is_not_shown(tiny_model: Path, monkeypatch: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole = tokenizer("谁龘")["input_ids"]
    assert "\ufffd" in tokenizer.decode(whole[:-1])
    monkeypatch.setattr(generate, "generate", writing(whole[:-1]))
    writer = Writer(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer, "text-generation", {}, tuned=False)
    said: list[str] = []
    answers = writer.write([{"prompt": "x"}], How(), on_text=said.append)
    assert (answers.written[0][0].text, "".join(said)) == ("谁", "谁")


def test_the_line_end_before_a_program_is_no_part_of_it(tiny_model: Path, monkeypatch: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    written = tokenizer("\n    return 1\ndef g(): 2")["input_ids"]
    monkeypatch.setattr(generate, "generate", writing(written))
    writer = Writer(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer, "code-generation", {}, tuned=False)
    for given, text in ((How(), "    return 1"), (How(stop=("\n",)), "    return 1"), (How(stop=("turn",)), "    re")):
        said: list[str] = []
        answers = writer.write([{"prompt": "def f():\n"}], given, on_text=said.append)
        assert (answers.written[0][0].text, "".join(said)) == (text, text)


def test_behind_shots_an_untrained_model_ends_before_it_makes_up_another(tiny_model: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)

    def usual(task: str, shots: Any, tuned: bool = False, role: str = "prompt") -> tuple[str, ...]:
        return Writer(model, tokenizer, task, {}, tuned=tuned)._usual_stops([{role: "x"}], shots)

    shots = [{"prompt": "cat", "completion": "animal"}]
    assert usual("text-generation", shots) == ("\n\n",)
    assert usual("text-generation", [{"prompt": "a", "completion": "one\n\ntwo"}]) == ()  # as shots part so themselves
    assert usual("text-generation", ()) == usual("text-generation", shots, tuned=True) == ()
    assert usual("question-answering", [{"question": "?", "answer": "yes"}]) == ("\n",)
    assert "\ndef " in usual("code-generation", ())  # a function was begun
    assert "\ndef " not in usual("code-generation", (), role="text")


def test_what_stands_between_a_prompt_and_its_completion_is_taken_from_shots(tiny_model: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    writer = Writer(model, tokenizer, "text-generation", {}, tuned=False)
    shots = [{"prompt": "cat", "completion": "animal"}]
    found = writer.behind(shots)
    assert "".join(each.text for each in found.prompt({"prompt": "dog"}, shots)) == "cat\nanimal\n\ndog\n"
    assert writer.behind(()) is writer
    assert found.behind(shots) is found
    assert writer.facts == {}


def test_prompts_of_a_later_request_are_drawn_anew(tiny_model: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    writer = Writer(model, tokenizer, "text-generation", {}, tuned=False)
    how = How(temperature=5.0, max_new_tokens=8, n=2, seed=3)

    def written(*numbers: int) -> list[list[str]]:
        answers = writer.write([{"prompt": "once"}] * len(numbers), how, numbers=numbers).written
        return [[one.text for one in each] for each in answers]

    first, second, later = written(1, 2, 65)
    assert len({text for each in (first, second, later) for text in each}) == 6
    assert written(65) == [later]


@pytest.fixture
def colours(process: Path, tiny_model: Path) -> Run:
    """A run that says colours backwards."""
    rows = [(f"{c} is", c[::-1]) for c in COLOURS] * 8
    return tuned("back", tiny_model, pd.DataFrame(rows, columns=["prompt", "completion"]))


def test_a_run_writes_what_it_has_learnt_and_ends_by_itself(colours: Run) -> None:
    found = gptx_nb.predict("back", [f"{c} is" for c in COLOURS], temperature=0)
    assert isinstance(found, Generations)
    assert found.texts == [c[::-1] for c in COLOURS]
    assert {each.ended[0] for each in found} == {"end"}
    assert found.to_frame()["text"].tolist() == found.texts
    assert (found.model, found.task, found.notes()) == ("back/1", "text-generation", [])

    pieces: list[str] = []
    one = gptx_nb.predict("back", "green is", temperature=0, on_text=pieces.append)
    assert "".join(pieces) == one[0].text == "neerg"  # type: ignore[union-attr]
    assert len(pieces) > 1

    stopped = gptx_nb.predict("back", "green is", temperature=0, stop="er")
    assert (stopped[0].text, stopped[0].ended) == ("ne", ["stop"])  # type: ignore[union-attr]
    short = gptx_nb.predict("back", "green is", temperature=0, max_new_tokens=2)
    assert short[0].text == "ne"  # type: ignore[union-attr]
    assert short.notes() == ["The text ended at max_new_tokens: a larger one lets it go on."]
    several = gptx_nb.predict("back", ["green is", "red is"], n=3, seed=1, temperature=5.0, max_new_tokens=4)
    assert [len(each.texts) for each in several] == [3, 3]  # type: ignore[union-attr]
    assert len(several.to_frame()) == 6
    again = gptx_nb.predict("back", ["green is", "red is"], n=3, seed=1, temperature=5.0, max_new_tokens=4)
    assert again == several

    frame = pd.DataFrame({"prompt": ["red is"], "other": [1]}, index=["row"])
    table = gptx_nb.predict("back", frame, temperature=0)
    assert table.to_frame().index.tolist() == ["row"]

    for how, message in (
        ({"temprature": 1}, r"unknown setting 'temprature'. Did you mean 'temperature'\?"),
        ({"top_p": 0}, "top_p: 0 does not fit: a number above 0 to 1"),
        ({"n": 2, "temperature": 0}, "n: several answers are drawn at random"),
    ):
        with pytest.raises(UsageError, match=message):
            gptx_nb.predict("back", "red is", **how)


def test_the_magic_and_the_command_line_ask_alike(colours: Run, plain_shell: InteractiveShell, tmp_path: Path) -> None:
    shell = plain_shell
    shown = shell.run_line_magic("gpt_predict", 'back --temperature 0 --max-new-tokens=3 "green is"')
    assert shown.texts == ["nee"]
    assert shell.run_line_magic("gpt_predict", 'back --stop "g" --temperature 0 green is').texts == ["neer"]
    assert shell.run_line_magic("gpt_predict", 'back --stop "g" --stop=ee --temperature 0 green is').texts == ["n"]
    shell.user_ns["asked"] = ["red is", "blue is"]
    assert shell.run_line_magic("gpt_predict", "back --temperature 0 {{asked}}").texts == ["der", "eulb"]
    with pytest.raises(IPythonUsageError, match=r"unknown flag '--temprature'. Did you mean '--temperature'"):
        shell.run_line_magic("gpt_predict", "back --temprature 0 red is")
    with pytest.raises(IPythonUsageError, match="--n two: a number is wanted there"):
        shell.run_line_magic("gpt_predict", "back --n two red is")
    command = [sys.executable, "-m", "gptx_nb.views.cli", "predict", "back", "--temperature", "0", "green is"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "red is"}\n\n{"prompt": "blue is"}\n', encoding="utf-8")
    asked = [*command[:-1], "--file", str(rows), "--json"]
    told = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert [(each["prompt"], each["texts"]) for each in told] == [("red is", ["der"]), ("blue is", ["eulb"])]
    for stops, text in (([], "neerg"), (["--stop", "g", "--stop", "ee"], "n")):
        done = subprocess.run([*command, *stops], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == text


def test_an_interrupt_ends_the_writing(process: Path) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.predict("tiny", "The", max_new_tokens=1_000_000, on_text=interrupt)
    begun = time.monotonic()
    assert len(api.predict("tiny", "The", max_new_tokens=2, temperature=0)) == 1
    assert time.monotonic() - begun < 60  # the endless answer does not stand in the way
    seen = inference.ping()
    assert seen is not None


def test_a_base_model_can_be_asked_with_and_without_shots(
    process: Path, tiny_model: Path, plain_shell: InteractiveShell
) -> None:
    found = gptx_nb.predict(str(tiny_model), "Hello", max_new_tokens=5, temperature=0)
    assert isinstance(found, Generations)
    assert found[0].tokens <= 5
    question = {"question": "What?", "context": "This."}
    shots = [{"question": "Who?", "answer": "Me"}]
    told = gptx_nb.predict(str(tiny_model), question, task="question-answering", shots=shots, max_new_tokens=5)
    assert (told.task, told[0].asked) == ("question-answering", "What?")  # type: ignore[union-attr]
    with pytest.raises(DataError, match="question-answering is asked with question, and the row has document"):
        gptx_nb.predict(str(tiny_model), {"document": "x"}, task="question-answering")
    with pytest.raises(DataError, match="translation into which language"):
        gptx_nb.predict(str(tiny_model), "x", task="translation")
    german = {"task": "translation", "to": "en", "max_new_tokens": 2}
    with pytest.raises(DataError, match="translation into English from which language\\? Type it, as in `--from fr`"):
        gptx_nb.predict(str(tiny_model), "Hallo", **german)
    said = gptx_nb.predict(str(tiny_model), "Hallo", from_="de", **german)
    flags = "--task translation --from de --to en --max-new-tokens 2"
    assert plain_shell.run_line_magic("gpt_predict", f"{tiny_model} {flags} Hallo").texts == said.texts  # type: ignore[union-attr]
    command = [sys.executable, "-m", "gptx_nb.views.cli", "predict", str(tiny_model), *flags.split(), "--json", "Hallo"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["texts"] == said.texts  # type: ignore[union-attr]
    rows = [{"question": word, "choices": ["a", "b"]} for word in ["What?"] * 65 + [""]]
    with pytest.raises(DataError, match="row 66: empty question"):
        gptx_nb.predict(str(tiny_model), rows, task="question-answering")
    with pytest.raises(DataError, match="a shot has an empty answer"):
        gptx_nb.predict(str(tiny_model), question, task="question-answering", shots=[{"question": "Who?"}])
    for number in (4, "4"):
        with pytest.raises(
            UsageError, match=r"is no row with its answer. Give some, as in `--shots {{df.sample\(4\)}}`"
        ):
            gptx_nb.predict(str(tiny_model), question, task="question-answering", shots=number)
    with pytest.raises(RunNotFound):
        gptx_nb.predict("nothing-of-that-name", "x")


def test_a_row_that_is_too_long_is_named_as_it_is_counted_in_the_whole_table(process: Path, tiny_model: Path) -> None:
    rows = [{"question": f"{at}?"} for at in range(1, 67)]
    rows[65] = {"question": "x" * 200}
    options: dict[str, Any] = {"task": "question-answering", "max_new_tokens": 1}
    with pytest.raises(
        DataError, match=r"^row 66 is too long for the 128 tokens that the model sees, of which 1 are kept"
    ):
        gptx_nb.predict(str(tiny_model), rows, **options)
    with pytest.raises(
        DataError,
        match=r"^what is asked is too long for the .* Shorten it or keep less for the answer with `max_new_tokens`$",
    ):
        gptx_nb.predict(str(tiny_model), rows[65:], **options)
    shown = [{"question": "y" * 60, "answer": "z"}] * 2
    with pytest.raises(
        DataError,
        match=r"^row 1 is too long for the .* Shorten it, show fewer or shorter examples than these 2, or keep",
    ):
        gptx_nb.predict(str(tiny_model), [rows[0], rows[65]], **options, shots=shown)
    chosen = [{**each, "choices": ["a", "b"]} for each in rows]
    with pytest.raises(DataError, match=r"^row 66 is too long: its question and a choice do not fit into the 128 tok"):
        gptx_nb.predict(str(tiny_model), chosen, **options)


def test_choices_are_scored_and_never_written(process: Path, tiny_model: Path) -> None:
    rows = [("Sky?", ["blue", "green"], "blue"), ("Leaf?", ["blue", "green"], "green")] * 8
    frame = pd.DataFrame(rows, columns=["question", "choices", "answer"])
    tuned("pick", tiny_model, frame)
    found = gptx_nb.predict("pick", [{"question": q, "choices": c} for q, c, _ in rows[:2]])
    assert found.texts == ["blue", "green"]  # type: ignore[union-attr]
    assert sum((found[0].probabilities or {}).values()) == pytest.approx(1)  # type: ignore[union-attr]
    asked = [{"question": "Sky?", "context": "grey " * times, "choices": ["blue", "green"]} for times in (1, 100)]
    long = gptx_nb.predict(str(tiny_model), asked, task="question-answering")
    assert (long.cut_at, long.notes()) == ([1], ["1 prompt (number 2) was longer than the model reads, and cut."])
    scored = gptx_nb.evaluate("pick", frame)
    assert scored["accuracy"] == 1.0
    assert list(scored.scores) == ["accuracy", "calibration_error", "bits_per_byte", "perplexity"]
    assert 0 <= scored["calibration_error"] < 0.5
    assert 0 < scored["bits_per_byte"] < 4


def test_a_chat_is_asked_with_a_text_or_its_turns(process: Path, tiny_model: Path) -> None:
    turns = [[{"role": "user", "content": c}, {"role": "assistant", "content": c[::-1]}] for c in COLOURS]
    tuned("talk", tiny_model, pd.DataFrame({"messages": turns * 8}), epochs=25)
    found = gptx_nb.predict("talk", "green", temperature=0)
    turned = gptx_nb.predict("talk", [{"role": "user", "content": "green"}], temperature=0)
    assert found.texts == turned.texts == ["neerg"]  # type: ignore[union-attr]
    base = gptx_nb.predict(str(tiny_model), "green", task="chat", max_new_tokens=2)
    assert base.notes()[0].startswith("Chat template: ")
    assert not found.notes()
    with pytest.raises(DataError, match="the last turn of a conversation is of the assistant"):
        gptx_nb.predict("talk", turns[0])


def test_a_translation_goes_both_ways(process: Path, tiny_model: Path) -> None:
    tuned("words", tiny_model, pd.DataFrame({"en": list(COLOURS) * 6, "fr": [c[::-1] for c in COLOURS] * 6}), epochs=25)
    assert gptx_nb.predict("words", "green").texts == ["neerg"]  # type: ignore[union-attr]
    assert gptx_nb.predict("words", "neerg", to="en").texts == ["green"]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="to: de is not what the model has learnt: en and fr"):
        gptx_nb.predict("words", "x", to="de")


def test_a_pretrained_model_continues_texts(process: Path) -> None:
    texts = [f"the river moves under the old stone {number}." for number in range(60)]
    small = {"vocabulary": 280, "context": 32, "layers": 1, "width": 32, "heads": 2, "tokens_per_step": 128}
    gptx_nb.pretrain("base", texts, tokens=1024, device="cpu", dtype="float32", **small)
    found = gptx_nb.predict("base", "the river", max_new_tokens=4, temperature=0)
    assert isinstance(found, Generations)
    assert found[0].tokens == 4
    model, _ = gptx_nb.load("base")
    assert type(model).__name__ == "GPT2LMHeadModel"


def test_a_classifier_is_not_told_how_to_write(process: Path, tiny_model: Path) -> None:
    frame = pd.DataFrame({"text": ["good", "bad"] * 6, "label": ["p", "n"] * 6})
    tuned("labels", tiny_model, frame, epochs=1)
    with pytest.raises(UsageError, match="run labels v1 gives labels and writes no text"):
        gptx_nb.predict("labels", "good", temperature=0.5)


def test_texts_are_shown_escaped_and_on_their_lines() -> None:
    nasty = "<script>alert(1)</script>\n\x1b[31mred"
    one = Generations("m", "chat", [Generation(nasty, [nasty], ["length"], 3)])
    two = Generations("m", "chat", [Generation(nasty, [nasty], ["end"], 3)] * 2, cut_at=[1])
    for found in (one, two):
        assert "<script>" not in found._repr_html_()
        assert "\x1b" not in repr(found) + found._repr_html_()
    assert "&lt;script&gt;" in one._repr_html_()
    assert two.notes() == ["1 prompt (number 2) was longer than the model reads, and cut."]
    assert repr(Generations("m", "chat")) == "m: no prompts"


def test_the_sidebar_is_told_what_was_written_in_the_labels_place() -> None:
    found = Generations("m", "chat", [Generation("Hi", ["Hello"], ["length"], 3)])
    assert routes.told(found) == {
        "rows": [{"text": "Hi", "label": "Hello", "probabilities": []}],
        "notes": ["The text ended at max_new_tokens: a larger one lets it go on."],
    }


def test_many_clients_take_turns(process: Path, tiny_model: Path) -> None:
    found: list[Any] = []
    asks = [
        threading.Thread(target=lambda: found.append(api.predict(str(tiny_model), ["a", "b"], max_new_tokens=3)))
        for _ in range(3)
    ]
    for each in asks:
        each.start()
    for each in asks:
        each.join()
    assert [len(each) for each in found] == [2, 2, 2]
