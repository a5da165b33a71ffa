"""Scoring runs and base models on any table: the Python function, the magic, the command line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.interactiveshell import InteractiveShell
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptx_nb
from gptx_nb import launch, progress
from gptx_nb.engine import answers, shots
from gptx_nb.engine.writer import How, Writer
from gptx_nb.errors import DataError, UsageError
from gptx_nb.evaluations import Evaluation
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run
from gptx_nb.worker.__main__ import Attempt
from gptx_nb.worker.evaluation import _short

COLOURS = ("red", "blue", "green", "black")
QUESTIONS = pd.DataFrame([(f"{c}?", c[::-1]) for c in COLOURS] * 6, columns=["question", "answer"])
REVIEWS = pd.DataFrame({"text": ["good one", "bad one"] * 10, "label": ["yes", "no"] * 10})


def tuned(name: str, model: Path, frame: pd.DataFrame, **settings: Any) -> Run:
    small = {"model": str(model), "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    return launch.train(name, make_recipe({**small, "validation": 0, **settings}), data=frame, wait=True).run


def test_a_run_that_writes_and_its_base_model_are_scored_on_any_table(
    home: Path, tiny_model: Path, tmp_path: Path, plain_shell: InteractiveShell
) -> None:
    tuned("back", tiny_model, QUESTIONS, epochs=20)
    other = QUESTIONS.rename(columns={"question": "q", "answer": "a"})
    found = gptx_nb.evaluate("back", other, columns={"question": "q", "answer": "a"})
    assert (found.task, found.rows, found["exact_match"]) == ("question-answering", 24, 1.0)
    assert found.scores["exact_match"]["examples"] == 24
    assert found.samples[0] == {"asked": "red?", "right": "der", "answer": "der"}
    assert "exact match" in repr(found)
    assert "<td" in found._repr_html_()
    assert found.to_frame().loc["f1", "value"] == 1.0

    with pytest.raises(UsageError, match="a model that writes gives no labels"):
        gptx_nb.evaluate("back", REVIEWS, task="text-classification")

    base = gptx_nb.evaluate(str(tiny_model), QUESTIONS, shots=2, most=5, max_new_tokens=4)
    assert (base.rows, base.shots, base.scores["f1"]["examples"]) == (22, 2, 5)
    assert base["perplexity"] > 10 * found["perplexity"]
    shown, known, ended, answered = base.notes
    assert re.fullmatch(r"shown to the model: rows \d+ and \d+, drawn from equal parts of the table by seed 0", shown)
    assert re.fullmatch(r"\d+ scored rows equal a row that was shown: the score looks better than it is", known)
    assert answered == "5 of 22 rows were answered, evenly spread"
    assert ended.startswith("5 of 5 answers ended at the most tokens that an answer may have")

    shown = [{"question": "mauve?", "answer": "evuam"}, {"question": "teal?", "answer": "laet"}]
    base = gptx_nb.evaluate(str(tiny_model), QUESTIONS, shots=shown, most=5, max_new_tokens=4)
    assert (base.rows, base.shots, base.notes[0]) == (24, 2, "shown to the model: 2 rows that were given")
    with pytest.raises(UsageError, match="shots: 'two' does not fit: a whole number from 0"):
        gptx_nb.evaluate(str(tiny_model), QUESTIONS, shots="two")

    shell = plain_shell
    shell.user_ns["other"] = other
    shown = shell.run_line_magic("gpt_eval", "back other --columns '{question: q, answer: a}' --most 4")
    assert shown.scores["f1"]["examples"] == 4
    with pytest.raises(IPythonUsageError, match="takes the name of a run or base model and a table"):
        shell.run_line_magic("gpt_eval", "back")
    with pytest.raises(IPythonUsageError, match=r"unknown flag '--shot'. Did you mean '--shots'\?"):
        shell.run_line_magic("gpt_eval", "back other --shot 2")

    QUESTIONS.to_csv(tmp_path / "test.csv", index=False)
    command = [sys.executable, "-m", "gptx_nb.views.cli", "eval", "back", str(tmp_path / "test.csv"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["scores"]["exact_match"]["value"] == 1.0


def test_translations_are_scored_in_both_directions_unless_columns_or_shots_name_one(
    home: Path, tiny_model: Path
) -> None:
    pairs = pd.DataFrame({"en": [f"red {at}" for at in range(8)], "fr": [f"rouge {at}" for at in range(8)]})
    few = {"most": 6, "max_new_tokens": 2}
    both = gptx_nb.evaluate(str(tiny_model), pairs, **few)
    assert (both.task, both.rows) == ("translation", 16)
    found = {name: each["examples"] for name, each in both.scores.items() if name.startswith("chrf")}
    assert found == {"chrf English to French": 3, "chrf French to English": 3}
    assert any(note.startswith("both directions are scored, so each row counts twice") for note in both.notes)
    back = gptx_nb.evaluate(str(tiny_model), pairs, columns={"source": "fr", "target": "en"}, **few)
    assert (back.rows, [name for name in back.scores if name.startswith("chrf")]) == (8, ["chrf French to English"])
    shown = gptx_nb.evaluate(str(tiny_model), pairs, shots=2, **few)
    assert (shown.rows, [name for name in shown.scores if name.startswith("chrf")]) == (6, ["chrf English to French"])


def test_columns_that_are_named_turn_a_runs_translation_round(home: Path, tiny_model: Path) -> None:
    pairs = pd.DataFrame({"en": [f"red {at}" for at in range(8)], "fr": [f"rouge {at}" for at in range(8)]})
    tuned("pairs", tiny_model, pairs, epochs=1)
    back = gptx_nb.evaluate("pairs", pairs, columns={"source": "fr", "target": "en"}, most=4, max_new_tokens=2)
    assert (back.rows, [name for name in back.scores if name.startswith("chrf")]) == (8, ["chrf French to English"])
    both = gptx_nb.evaluate("pairs", pairs, most=4, max_new_tokens=2)
    assert {name: each["examples"] for name, each in both.scores.items() if name.startswith("chrf")} == {
        "chrf English to French": 2,
        "chrf French to English": 2,
    }


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("one two three four five six", "one two three"),
        ("word " * 40, "word word word word word word word word"),
        ("人工智能正在改变世界", "人工智能正"),
        ("a", "a"),
        ("very long", "very"),
    ],
)
def test_a_text_is_continued_from_its_first_half_at_most(text: str, beginning: str) -> None:
    assert answers._beginning(text) == beginning


def test_of_each_direction_as_many_examples_are_chosen() -> None:
    examples = [{"from": ("en", "fr")[at % 2], "to": ("fr", "en")[at % 2]} for at in range(200)]
    for most in (2, 5, 50):
        places = answers.chosen(examples, most)
        assert len(places) == most
        assert places == sorted(places)
        ways = [examples[at]["from"] for at in places]
        assert abs(ways.count("en") - ways.count("fr")) <= 1
    assert answers.chosen([{"text": "a"}] * 9, 3) == [0, 3, 6]
    assert answers.chosen(examples[:3], 2) == [0, 1]
    few = [*examples[:100:2], *examples[1:4:2]]  # 50 one way, 2 back
    assert [len([at for at in answers.chosen(few, 20) if (few[at]["from"] == way)]) for way in ("en", "fr")] == [18, 2]


def test_a_classifier_is_scored_with_intervals_and_a_confusion_matrix(home: Path, tiny_model: Path) -> None:
    tuned("labels", tiny_model, REVIEWS, epochs=10)
    found = gptx_nb.evaluate("labels", REVIEWS.rename(columns={"text": "review", "label": "sentiment"}))
    assert (found["accuracy"], found.labels, found.confusion) == (1.0, ["no", "yes"], [[10, 0], [0, 10]])
    assert set(found.scores) == {"accuracy", "macro_f1", "calibration_error"}
    told = [(each["label"], each["f1"]["value"], each["f1"]["examples"], each["support"]) for each in found.per_label]
    assert told == [("no", 1.0, 10, 10), ("yes", 1.0, 10, 10)]
    assert "label no: precision 1.000" in repr(found)
    assert "most often taken for" not in found._repr_html_()
    assert sum(each["answers"] for each in found.reliability) == 20
    assert all(each["low"] <= each["confidence"] <= each["high"] for each in found.reliability)
    gap = sum(each["answers"] * abs(each["accuracy"] - each["confidence"]) for each in found.reliability) / 20
    assert gap == pytest.approx(found["calibration_error"], abs=1e-9)
    assert "probability of the answer" in found._repr_html_()
    alike = gptx_nb.evaluate("labels", REVIEWS[REVIEWS["label"] == "yes"])  # each row of a table may have one label
    assert (alike["accuracy"], alike.confusion) == (1.0, [[0, 0], [0, 10]])
    strange = pd.DataFrame({"text": ["a", "b"], "label": ["maybe", "no"]})
    known = (
        r"the label 'maybe' of row 1 is not among the labels: no, yes\. The run knows no others: correct such rows or l"
    )
    with pytest.raises(DataError, match=known):
        gptx_nb.evaluate("labels", strange)
    with pytest.raises(UsageError, match="prompt: for a base model that gives labels, and this run has learnt its lab"):
        gptx_nb.evaluate("labels", REVIEWS, prompt="{text}\nFine:")
    with pytest.raises(UsageError, match="this run gives labels"):
        gptx_nb.evaluate("labels", REVIEWS, shots=2)


def test_a_run_that_splits_labels_is_scored_on_its_own_table_as_it_has_learnt(
    home: Path, tiny_model: Path, plain_shell: InteractiveShell
) -> None:
    sets = pd.DataFrame({"text": ["a rose", "the sky", "both"] * 6, "label": ["red", "blue", "red;blue"] * 6})
    tuned("sets", tiny_model, sets, epochs=1, label_separator=";")
    scored = gptx_nb.evaluate("sets", sets)
    assert set(scored.scores) == {"micro_f1", "macro_f1", "subset_accuracy", "calibration_error"}
    assert [each["label"] for each in scored.per_label] == ["blue", "red"]
    plain_shell.user_ns["other"] = sets.replace("red;blue", "red/blue").rename(columns={"label": "colours"})
    with pytest.raises(
        IPythonUsageError, match=r"'red/blue' of row 3 .* or say what stands between labels with `--lab"
    ):
        plain_shell.run_line_magic("gpt_eval", "sets other --label colours")
    found = plain_shell.run_line_magic("gpt_eval", "sets other --label colours --label-separator /")
    assert (found.rows, found.labels) == (18, ["blue", "red"])


def test_a_base_model_is_shown_an_example_of_each_label_of_a_sorted_table_with_named_columns(
    home: Path, tiny_model: Path, plain_shell: InteractiveShell
) -> None:
    plain_shell.user_ns["df"] = REVIEWS.sort_values("label").rename(columns={"text": "review", "label": "verdict"})
    columns = "--columns '{text: review, label: verdict}'"
    found = plain_shell.run_line_magic("gpt_eval", f"{tiny_model} df {columns} --shots 2")
    assert (found.task, found.rows, found.shots) == ("text-classification", 18, 2)
    assert list(map(sum, found.confusion)) == [9, 9]

    shown = REVIEWS.rename(columns={"text": "review", "label": "verdict"})[:2]
    given = gptx_nb.evaluate(str(tiny_model), plain_shell.user_ns["df"], shots=shown)
    assert (given.rows, given.shots, given.labels) == (20, 2, found.labels)

    plain_shell.user_ns["df"] = REVIEWS.replace({"yes": "a", "no": "b"})
    with pytest.raises(IPythonUsageError, match=r"the label 'a' is no word .* as in `label_words: {a: good, b: bad}`"):
        plain_shell.run_line_magic("gpt_eval", f"{tiny_model} df")
    asked = """--label-words '{a: good, b: bad}' --prompt "{text}\\nAll in all:\""""
    found = plain_shell.run_line_magic("gpt_eval", f"{tiny_model} df {asked}")
    assert found.notes[0] == r"prompt '{text}\nAll in all:', words ' good', ' bad'"


def test_shots_are_drawn_all_over_the_table_by_a_seed_and_are_short(tiny_model: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    writer = Writer(model, tokenizer, "question-answering", {}, tuned=False)
    # Of each three rows two would fill the context of 128 tokens, and the third is no more than its share.
    table = [{"question": "q" * (1 if at % 3 == 0 else 90), "answer": str(at)} for at in range(90)]
    drawn = shots.draw(writer, table, 3, 0)
    assert [place // 30 for place in drawn.places] == [0, 1, 2]
    assert all(place % 3 == 0 for place in drawn.places)
    assert drawn == shots.draw(writer, table, 3, 0)
    assert len({tuple(shots.draw(writer, table, 3, seed).places) for seed in range(5)}) > 1
    assert sum(shots.draw(writer, table, 3, seed).passed for seed in range(5)) > 0
    # Where a part has no row so short, its shortest is taken.
    assert shots.draw(writer, [table[1], {"question": "q" * 80, "answer": "x"}], 1, 0).places == [1]
    told = shots.Shots([0, 4], 7, 1)
    assert told.told([1, 5], "a.csv") == (
        "rows 1 and 5 of a.csv, drawn from equal parts of the table by seed 7; 1 longer row was passed over"
    )
    assert told.told([0, 0]).startswith("2 rows, drawn")


def test_rows_that_are_shown_are_not_scored_and_the_seed_draws_others(
    home: Path, tiny_model: Path, plain_shell: InteractiveShell
) -> None:
    plain_shell.user_ns["df"] = pd.DataFrame([(f"{at}?", f"{at}") for at in range(8)], columns=["question", "answer"])
    told = []
    for seed in (0, 1):
        found = plain_shell.run_line_magic("gpt_eval", f"{tiny_model} df --shots 2 --seed {seed} --max-new-tokens 1")
        rows = [int(each) - 1 for each in re.findall(r"\d+", found.notes[0])[:2]]
        assert len({*rows, *(int(each["right"]) for each in found.samples)}) == 7  # 2 that are shown, 5 of the others
        assert (found.rows, found.scores["f1"]["examples"]) == (6, 6)
        told.append(rows)
    assert told[0] != told[1]


def test_a_row_that_a_chat_template_refuses_is_named(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No.') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(base)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    refused = [{"role": "system", "content": "s"}, *talk]
    for number in (0, 1):
        with pytest.raises(
            DataError, match=r"^row 2: the model's chat template does not take a conversation: No\. Cha"
        ):
            gptx_nb.evaluate(str(base), [{"messages": talk}, {"messages": refused}], task="chat", shots=number)
    writer = Writer(AutoModelForCausalLM.from_pretrained(base), tokenizer, "chat", {}, tuned=False)
    with pytest.raises(DataError, match=r"^row 9: the model's chat template does not take a conversation: No\. Change"):
        writer.write([{"messages": talk[:1]}, {"messages": refused[:2]}], numbers=[8, 9])


def test_what_cannot_be_scored_is_told(home: Path, tiny_model: Path) -> None:
    base = str(tiny_model)
    with pytest.raises(UsageError, match="shots: 24 of 24 rows leave none to score"):
        gptx_nb.evaluate(base, QUESTIONS, shots=24)
    with pytest.raises(UsageError, match="texts to continue in their style have no answers to show"):
        gptx_nb.evaluate(base, REVIEWS[["text"]], shots=2)
    with pytest.raises(UsageError, match=r"unknown task 'sumarization'. Did you mean 'summarization'\?"):
        gptx_nb.evaluate(base, QUESTIONS, task="sumarization")
    with pytest.raises(UsageError, match="unknown setting 'epochs'"):
        gptx_nb.evaluate(base, QUESTIONS, epochs=3)
    with pytest.raises(DataError, match="its columns do not fit summarization, which needs document and summary"):
        gptx_nb.evaluate(base, QUESTIONS, task="summarization")


def test_rows_that_are_too_long_are_left_out_of_scoring_and_named(home: Path, tiny_model: Path) -> None:
    held = pd.DataFrame({"question": ["red?", "blue?", "x" * 70, "y" * 200], "answer": ["der", None, "x", "y"]})
    run = launch.train(
        "closed",
        make_recipe({"model": str(tiny_model), "device": "cpu", "data": "df", "validation": "held", "epochs": 1}),
        data=QUESTIONS,
        validation=held,
        wait=True,
    ).run
    scores = run.scores()
    assert scores is not None
    assert (scores["validation"]["rows"], scores["validation"]["written"], scores["base"]["written"]) == (2, 1, 1)
    told = "\n".join(progress.result_lines(run))
    assert "note: 1 row (held (DataFrame), row 4) is left out of scoring: the answer and what asks for it take" in told
    assert "note: 1 row (held (DataFrame), row 3) is left unanswered: with room for an answer, what asks for it" in told

    found = gptx_nb.evaluate("closed", held)
    assert (found.rows, found.scores["exact_match"]["examples"], found.scores["perplexity"]["examples"]) == (3, 1, 2)
    assert found.notes[0] == (
        "1 row (row 4) is left out of perplexity: the answer and what asks for it take more than 128 tokens"
    )
    assert found.notes[1].startswith("2 rows (the first: row 3) are left unanswered: with room for an answer, what")


def test_texts_that_would_fill_what_a_model_sees_are_not_shown() -> None:
    sizes, truth = [9, 1, 30, 20, 1], [0, 0, 1, 1, 0]
    assert _short(sizes, truth, 10) == [0, 1, 3, 4]  # of the other label the shortest
    assert _short(sizes, truth, 100) == [0, 1, 2, 3, 4]


def test_tests_that_were_not_run_are_told() -> None:
    found = {"left_out": [], "cut_at": [], "written": 3, "untested": 2}
    (note,) = answers.notes(found, str, "128 tokens that the model sees")
    assert note.startswith("2 answered rows have tests, which were not run: `allow_code: true` runs what was written")


def test_a_model_is_kept_without_a_score_where_scoring_breaks_off() -> None:
    def fails() -> dict[str, Any]:
        raise ValueError("no such thing")

    def starves() -> dict[str, Any]:
        raise MemoryError

    job: Any = SimpleNamespace(is_scored=True)
    attempt = Attempt.__new__(Attempt)
    told = "The scoring broke off (no such thing): the model is kept, unscored."
    assert attempt.scores(job, fails) == (None, told)
    assert progress.verdict({"validation": None, "note": told}) == told
    with pytest.raises(MemoryError):  # another attempt takes less
        attempt.scores(job, starves)


def test_what_is_cut_and_what_cannot_be_answered_is_counted_and_named(tiny_model: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    writer = Writer(model, tokenizer, "question-answering", {}, tuned=False)
    asked = [
        {"question": "Who?", "context": "long " * 60, "answer": "I"},
        {"question": "Who? " * 30, "context": "short", "answer": "I"},
        {"question": "Who?", "context": "short", "answer": "I"},
    ]
    brief = How(temperature=0.0, max_new_tokens=2)
    for examples in (asked, [{**each, "choices": ["I", "you"]} for each in asked]):
        found = answers.written(writer, examples, how=brief)
        assert (found["written"], found["left_out"], found["cut_at"]) == (2, [1], [0])
        assert len(answers.samples(writer, examples, 3, 2)) == 2
    assert answers.notes(found, lambda at: f"row {at + 5}", writer.reads) == [
        "1 row (row 6) is left unanswered: with room for an answer, what asks for it takes more than the 128 tokens "
        "that the model sees",
        "1 of 2 answered rows had their contexts cut to fit into the 128 tokens that the model sees, with room for the "
        "answer (row 5)",
    ]


def test_an_untrained_model_is_asked_how_the_texts_of_a_pair_stand_to_each_other(home: Path, tiny_model: Path) -> None:
    rows = [("A man sleeps.", "A man is awake.", "contradiction"), ("A dog runs.", "An animal moves.", "entailment")]
    table = pd.DataFrame(rows * 4, columns=["premise", "hypothesis", "label"])
    found = gptx_nb.evaluate(str(tiny_model), table)
    assert (found.task, found.rows) == ("text-classification", 8)
    assert "Relation:" in found.notes[0]


def test_of_many_labels_the_most_frequent_and_the_worst_mistakes_are_shown() -> None:
    labels = [f"label {at}" for at in range(30)]
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "examples": 90, "how": "F1", "best": 1.0, "more_is_better": True}
    figures = {"precision": score, "recall": score, "f1": score}
    per_label = [{"label": label, **figures, "support": at} for at, label in enumerate(labels)]
    confusion = [[0] * 30 for _ in labels]
    confusion[3][7], confusion[8][1] = 11, 4
    found = Evaluation("x", "text-classification", 90, {}, labels=labels, confusion=confusion, per_label=per_label)
    page = found._repr_html_()
    assert "label (20 of 30)" in page
    assert "label 9<" not in page
    assert "0.500 (0.400 to 0.600)" in page
    rows = re.findall("label 3</td>.*?label 7</td>.*?>11<.*?label 8</td>.*?label 1</td>.*?>4<", page, re.S)
    assert len(rows) == 1
