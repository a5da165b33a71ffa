"""Every task of a model that writes, as a run: from the table to the scores, in real worker processes."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptx_nb import launch, progress
from gptx_nb.engine import examples as reading
from gptx_nb.engine import jobs, roles
from gptx_nb.engine.tables import read
from gptx_nb.engine.writer import Writer
from gptx_nb.errors import DataError, RecipeError
from gptx_nb.inference import TASK_FILE
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.runs import Run
from gptx_nb.sources import stage
from gptx_nb.views import panels

COLOURS = ("red", "blue", "green", "black", "white", "brown")
THINGS = ("car", "door", "hat", "cup", "fish", "tree", "book", "boat")


def facts() -> list[tuple[str, str, str]]:
    """(sentence, question, answer): what is asked stands in the sentence."""
    return [(f"The {t} is {c}.", f"What is the {t}?", c) for c in COLOURS for t in THINGS]


def questions() -> pd.DataFrame:
    return pd.DataFrame(facts(), columns=["context", "question", "answer"])


def tables() -> dict[str, pd.DataFrame]:
    rows = facts()
    return {
        "text-generation": pd.DataFrame({"text": [sentence for sentence, _, _ in rows]}),
        "chat": pd.DataFrame(
            {
                "messages": [
                    [{"role": "user", "content": f"{s} {q}"}, {"role": "assistant", "content": a}] for s, q, a in rows
                ]
            }
        ),
        "summarization": pd.DataFrame(
            {"document": [f"{s} It is so." for s, _, _ in rows], "summary": [r[2] for r in rows]}
        ),
        "question-answering": questions(),
        "translation": pd.DataFrame({"en": [s for s, _, _ in rows], "fr": [f"Le {a}" for _, _, a in rows]}),
        "code-generation": pd.DataFrame(
            {
                "text": [f"Return {at}." for at in range(48)],
                "code": [f"def f():\n    return {at}" for at in range(48)],
                "test_list": [[f"assert f() == {at}"] for at in range(48)],
            }
        ),
    }


def recipe(model: Path, **settings: Any) -> Recipe:
    small = {"model": str(model), "epochs": 1, "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    return make_recipe({**small, **settings})


def tuned(name: str, model: Path, data: object, **settings: Any) -> Run:
    return launch.train(name, recipe(model, **settings), data=data, wait=True).run


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.history() if record.get("kind") == "step"]


# ---- which task, which columns --------------------------------------------------------------------------------------


def table_of(tmp_path: Path, data: object, **settings: Any) -> Any:
    asked = make_recipe({"data": "df", **settings})
    return reading.load(asked, stage(asked, data, None, tmp_path), tmp_path)


@pytest.mark.parametrize("task", tables())
def test_the_task_of_a_table_is_found_by_its_columns_and_told(tmp_path: Path, task: str) -> None:
    table = table_of(tmp_path, tables()[task])
    assert isinstance(table, roles.RoleTable)
    assert (table.task, table.report["task_why"] != "") == (task, True)


def test_a_table_with_a_label_is_still_for_text_classification(tmp_path: Path) -> None:
    for columns in (["text", "label"], ["review", "sentiment"], ["text", "topic"], ["question", "intent"]):
        frame = pd.DataFrame([(f"text {at}", ("a", "b")[at % 2]) for at in range(20)], columns=columns)
        assert not isinstance(table_of(tmp_path, frame), roles.RoleTable), columns


@pytest.mark.parametrize("columns", [("text", "emotion"), ("text", "intent"), ("文本", "情感"), ("内容", "情绪")])
def test_few_rows_with_a_label_by_name_are_for_text_classification(tmp_path: Path, columns: tuple[str, str]) -> None:
    for labels in (["glad", "angry", "calm"], ["glad", "angry", "calm", "sad", "tired", "glad", "calm", "angry"]):
        rows = [(f"What happened on day {at}.", label) for at, label in enumerate(labels)]
        table = table_of(tmp_path, pd.DataFrame(rows, columns=columns))
        assert not isinstance(table, roles.RoleTable), labels
        assert table.labels == sorted(set(labels))
    lists = pd.DataFrame([(f"Day {at}.", [("glad", "sad")[at % 2]]) for at in range(20)], columns=["text", "emotions"])
    assert table_of(tmp_path, lists).multi_label
    answers = [(f"Text {at}.", f"What follows the text with number {at}, word by word.") for at in range(4)]
    assert isinstance(table_of(tmp_path, pd.DataFrame(answers, columns=["text", "topic"])), roles.RoleTable)


def test_a_document_called_so_may_be_as_short_as_its_summary(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"document": [f"Number {at}." for at in range(12)], "summary": [f"It is {at}" for at in range(12)]}
    )
    assert table_of(tmp_path, frame).task == "summarization"
    assert table_of(tmp_path, frame, task="summarization").task == "summarization"


def test_a_text_with_a_label_and_a_headline_is_still_for_text_classification(tmp_path: Path) -> None:
    rows = [(f"Head {at}", f"A longer text about {at}, and what it is.", ("a", "b")[at % 2]) for at in range(40)]
    frame = pd.DataFrame(rows, columns=["headline", "text", "label"])
    assert not isinstance(table_of(tmp_path, frame), roles.RoleTable)
    for columns in (["question", "answer", "label"], ["prompt", "completion", "label"], ["en", "fr", "label"]):
        assert isinstance(table_of(tmp_path, pd.DataFrame(rows, columns=columns)), roles.RoleTable), columns


def test_columns_are_named_by_role_and_the_rest_is_guessed(tmp_path: Path) -> None:
    frame = questions().rename(columns={"question": "q", "answer": "a", "context": "body"})
    table = table_of(
        tmp_path, frame, task="question-answering", columns={"question": "q", "context": "body", "answer": "a"}
    )
    assert table.report["roles"] == {"question": "q", "context": "body", "answer": "a"}
    with pytest.raises(DataError, match=r"its columns do not fit question-answering, which needs question and answer"):
        table_of(tmp_path, frame, task="question-answering")
    with pytest.raises(DataError, match=r"no role 'questions'. Did you mean 'question'\?"):
        table_of(tmp_path, frame, task="question-answering", columns={"questions": "q"})
    with pytest.raises(DataError, match=r"no column 'Q' \(columns: \{question: Q\}\)"):
        table_of(tmp_path, frame, task="question-answering", columns={"question": "Q"})


def test_columns_may_be_typed_in_one_line() -> None:
    assert make_recipe({"data": "df", "columns": "{question: q, answer: 2}"}).columns == {
        "question": "q",
        "answer": "2",
    }
    with pytest.raises(
        RecipeError, match=r"columns: 'q' does not fit: columns by role are wanted, as in \{question: q"
    ):
        make_recipe({"data": "df", "columns": "q"})


def test_pairs_are_what_is_asked_and_its_answer(tmp_path: Path) -> None:
    pairs = [(f"Long document number {at}.", f"No. {at}") for at in range(12)]
    table = table_of(tmp_path, pairs, task="summarization")
    assert table.train[0].keys() == {"document", "summary"}


def test_questions_on_one_text_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        [(f"Text {at // 4}.", f"Question {at}?", f"answer {at}") for at in range(80)],
        columns=["context", "question", "answer"],
    )
    table = table_of(tmp_path, frame)
    assert table.validation is not None
    assert not {each["context"] for each in table.train} & {each["context"] for each in table.validation}


def test_answers_come_in_the_shapes_that_tables_have(tmp_path: Path) -> None:
    squad = [
        {"context": "A b.", "question": f"Q{at}?", "answers": {"text": ["b", "a b"], "answer_start": [2, 0]}}
        for at in range(4)
    ]
    assert table_of(tmp_path, squad).train[0]["references"] == ["b", "a b"]
    listed = [{"question": f"Q{at}?", "answers": [{"text": "b", "answer_start": 2}]} for at in range(4)]
    assert table_of(tmp_path, listed).train[0]["answer"] == "b"
    arc = [
        {"question": f"Q{at}?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
        for at in range(4)
    ]
    assert table_of(tmp_path, arc).train[0]["answer"] == "y"


def test_a_meaning_and_its_text_or_the_lines_of_a_file_are_for_text_generation(tmp_path: Path) -> None:
    frame = pd.DataFrame({"mr": [f"name[{at}]" for at in range(20)], "text": [f"There is {at}." for at in range(20)]})
    assert table_of(tmp_path, frame).report["roles"] == {"prompt": "mr", "completion": "text"}
    (tmp_path / "poem.txt").write_text("One line.\n\nAnother line.\n")
    asked = make_recipe({"data": str(tmp_path / "poem.txt")})
    table = reading.load(asked, stage(asked, None, None, tmp_path), tmp_path)
    assert table.train == [{"text": "One line."}, {"text": "Another line."}]  # type: ignore[comparison-overlap]


def test_a_folder_of_text_files_is_a_table_of_documents(tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    (letters / "1890").mkdir(parents=True)
    (letters / "b.txt").write_text("Dear Ann,\n\nIt rains.\n")
    (letters / "1890" / "a.txt.gz").write_bytes(gzip.compress("Chère Anne,\nil pleut.".encode()))
    (letters / "README.txt").write_text("Where these letters come from")
    (letters / ".draft.txt").write_text("Not yet")
    (letters / "empty.txt").write_text("\n")
    asked = make_recipe({"data": str(letters)})
    table = reading.load(asked, stage(asked, None, None, tmp_path), tmp_path)
    assert table.task == "text-generation"
    found = [dict(each) for each in table.train]
    assert found == [{"text": "Chère Anne,\nil pleut."}, {"text": "Dear Ann,\n\nIt rains."}]
    assert table.report["dropped"] == {"empty text": 1}
    (letters / "broken.txt").write_bytes(b"fine\nbut \xc3\x28 not \xe2\x82\xac this\n" * 3)
    with pytest.raises(DataError, match=r"letters/broken\.txt, line 2: byte 0xc3 is neither UTF-8 nor Latin-1"):
        reading.load(asked, stage(asked, None, None, tmp_path), tmp_path)
    (letters / "broken.txt").unlink()
    (letters / ".index.csv").write_text("text,label\na,b\n")  # hidden, as what editors leave
    (letters / "1890" / "c.txt").write_bytes("Café".encode("latin-1"))
    source = stage(asked, None, None, tmp_path)["train"]
    assert source is not None
    sheet = read(source, tmp_path, subset=None, split="train", named=[], plain_text=True)
    assert sheet.columns["text"][0] == "Chère Anne,\nil pleut."
    assert len(sheet.notes) == 1
    classifying = make_recipe({"data": str(letters / "1890"), "task": "text-classification"})
    sources = stage(classifying, None, None, tmp_path)
    with pytest.raises(DataError, match=r"is a folder without a table in it"):
        reading.load(classifying, sources, tmp_path)


def test_a_folder_of_text_files_may_have_parts(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        (tmp_path / "tales" / part).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "tales" / part / f"{number}.txt").write_text(f"{part} {number}")
    asked = make_recipe({"data": str(tmp_path / "tales")})
    table = reading.load(asked, stage(asked, None, None, tmp_path), tmp_path)
    assert [dict(each)["text"] for each in table.train] == [f"train {number}" for number in range(3)]
    assert table.validation is not None
    assert [dict(each)["text"] for each in table.validation] == [f"validation {number}" for number in range(3)]
    for folder, message in (("tales", r"has no split 'dev'"), ("tales/train", r"has no folder 'dev' in it")):
        other = make_recipe({"data": str(tmp_path / folder), "split": "dev", "task": "text-generation"})
        sources = stage(other, None, None, tmp_path)
        with pytest.raises(DataError, match=message):
            reading.load(other, sources, tmp_path)


def test_bad_rows_are_told_with_their_number(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes"},
    ]
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(DataError, match=r"row 2: turn 2 of a conversation is of 'user', and 'assistant' is due"):
        table_of(tmp_path, [{"messages": good}, {"messages": turns}])
    with pytest.raises(DataError, match=r"row 1: the answer 'z' is none of the choices: x, y"):
        table_of(tmp_path, [{"question": "Q?", "choices": ["x", "y"], "answer": "z"}])
    frame = pd.DataFrame({"document": ["A long text here", None], "summary": ["Short", "Short"]})
    assert table_of(tmp_path, frame).report["dropped"] == {"empty document": 1}


def test_settings_that_make_no_sense_for_a_model_that_writes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"tune: head trains a new classification head, and question-answering has none"
    ):
        table_of(tmp_path, questions(), tune="head")
    with pytest.raises(RecipeError, match=r"baseline: scratch compares classifiers, by accuracy"):
        table_of(tmp_path, questions(), baseline="scratch")
    with pytest.raises(RecipeError, match=r"label: chat has no labels"):
        table_of(tmp_path, tables()["chat"], task="chat", label="messages")
    with pytest.raises(RecipeError, match=r"prompt: question-answering has no labels that words could stand for"):
        table_of(tmp_path, questions(), prompt="{text} It was")


def test_the_snapshot_gives_the_same_examples(tmp_path: Path) -> None:
    table = table_of(tmp_path, tables()["chat"])
    reading.save_snapshot(table, tmp_path)
    again = reading.load_snapshot(tmp_path, make_recipe({"data": "df"}))
    assert again == table
    (tmp_path / "report.json").write_text(json.dumps({**table.report, "fingerprint": "0"}))
    with pytest.raises(DataError, match="has been changed since it was made"):
        reading.load_snapshot(tmp_path, make_recipe({"data": "df"}))


def test_every_answer_of_a_long_conversation_is_learnt_in_one_of_its_parts(tmp_path: Path, tiny_model: Path) -> None:
    talk = [{"role": role, "content": f"{role} {at}"} for at in range(6) for role in ("user", "assistant")]
    system = [{"role": "system", "content": "Be brief."}]
    table = table_of(tmp_path, [{"messages": talk[:2]}, {"messages": [*system, *talk]}], validation=0)
    job = jobs.of(table, make_recipe({"data": "df"}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    job.encode(tokenizer, 128)
    short, *parts = (tokenizer.decode(row) for row in job.token_rows[0])
    assert short.startswith("<|user|>\nuser 0")
    assert len(parts) == 3
    assert all(part.startswith("<|system|>\nBe brief.\n<|user|>\n") for part in parts)
    assert [part.count(f"assistant {at}") for at in range(6) for part in parts if f"assistant {at}" in part] == [1] * 6
    told = job.told(tokenizer)
    assert (told["tokens"]["cut"], told["tokens"]["left_out"]) == (1, 0)
    assert any("row 2) is longer than 128 tokens: each is learnt in parts" in each for each in told["remarks"])


def test_an_answer_that_fits_into_no_part_of_its_conversation_is_counted(tmp_path: Path, tiny_model: Path) -> None:
    turns = [("Hello", "Yes"), ("And now", "word " * 200), ("Then", "No")]
    talk = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    job = jobs.of(
        table_of(tmp_path, [{"messages": talk}, {"messages": talk[:2]}], validation=0), make_recipe({"data": "df"})
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    job.encode(tokenizer, 64)
    told = job.told(tokenizer)
    assert any("row 1) has answers of more than 64 tokens" in each and "not learnt" in each for each in told["notes"])
    assert any("every answer that fits in one of them" in each for each in told["remarks"])


def test_answers_may_be_as_long_as_those_that_were_learnt(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for words in (1, 30, 100):
        frame = pd.DataFrame({"question": ["Who?"] * 3, "answer": ["Ann", "Bo", "no " * words]})
        job = jobs.of(table_of(tmp_path, frame, validation=0), make_recipe({"data": "df"}))
        job.encode(tokenizer, 512)
        told = json.loads(json.dumps(job.beside()[TASK_FILE]))
        writer = Writer(
            AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer, told["task"], told["facts"], tuned=True
        )
        told_of = job.told(tokenizer)["target_tokens"]["max"]
        assert writer.usual_new_tokens == min(4 * 48, max(48, told_of)), words
        assert (writer.usual_new_tokens > 48) == (words > 1)


# ---- a run of each task ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tables())
def test_a_run_of_each_task_learns_and_is_scored_beside_the_base_model(task: str, home: Path, tiny_model: Path) -> None:
    run = tuned(task, tiny_model, tables()[task], allow_code=True)
    assert losses(run)[-1] < losses(run)[0]
    scores = run.scores()
    assert scores is not None
    assert scores["validation"]["loss"] < scores["base"]["loss"]
    assert ("base, shown " in "\n".join(progress.result_lines(run))) == bool(scores["few_shot"])
    assert not scores["few_shot"] or scores["few_shot"]["main"] == scores["base"]["main"]
    recipe_kept = run.recipe()
    assert isinstance(recipe_kept, Recipe)
    assert recipe_kept.task == task
    told = json.loads((run.model / "gptx_task.json").read_text())
    assert told["task"] == task
    lines = "\n".join([*progress.preflight_lines(run), *progress.result_lines(run)])
    assert f"task: {task}" in lines
    assert "⟦" in lines
    assert "loss on" in lines
    evaluations = [each for each in run.history() if each["kind"] == "evaluation"]
    assert [set(each) for each in evaluations[0]["samples"]] == [{"asked", "right", "answer"}] * 2
    html = panels.bundle_of(run)["text/html"]
    assert "it learns what is bold" in html
    assert "on the held-out rows" in html
    model = AutoModelForCausalLM.from_pretrained(run.model)
    assert model.config.vocab_size == AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    template = AutoTokenizer.from_pretrained(run.model).chat_template
    assert (template is not None) == (task == "chat")
    main = {"code-generation": "pass@1", "text-generation": None}.get(task, scores["validation"]["main"])
    assert scores["validation"]["main"] == main


def test_a_model_learns_to_answer_and_where_to_end(home: Path, tiny_model: Path) -> None:
    frame = pd.DataFrame({"prompt": [f"{c} is" for c in COLOURS] * 8, "completion": [c[::-1] for c in COLOURS] * 8})
    run = tuned("copy", tiny_model, frame, epochs=12, validation=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.model), AutoTokenizer.from_pretrained(run.model)
    given = tokenizer("red is\n", return_tensors="pt")
    out = model.generate(**given, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert tokenizer.decode(out[0, given["input_ids"].shape[1] :]) == "der<|endoftext|>"


@pytest.mark.parametrize("tune", ["lora", "top:1"])
def test_parts_of_a_model_can_be_tuned_to_write(tune: str, home: Path, tiny_model: Path) -> None:
    run = tuned("part", tiny_model, questions(), tune=tune, epochs=2)
    assert losses(run)[-1] < losses(run)[0]
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    assert before.keys() == after.keys()
    assert torch.equal(before["transformer.wte.weight"], after["transformer.wte.weight"])
    assert not torch.equal(before["transformer.h.1.mlp.c_fc.weight"], after["transformer.h.1.mlp.c_fc.weight"])


def test_a_run_that_was_stopped_goes_on_to_the_same_model(home: Path, tiny_model: Path) -> None:
    whole = tuned("whole", tiny_model, questions(), epochs=40, baselines=False)
    asked = recipe(tiny_model, epochs=40, baselines=False)
    run = launch.train("cut", asked, data=questions(), wait=False).run
    while len(losses(run)) < 10:
        time.sleep(0.01)
    run.request_stop()
    launch.wait(run)
    assert run.state() == "stopped"
    run = launch.train("cut", asked, data=questions(), wait=True).run
    assert losses(run)[-1] == losses(whole)[-1]


def test_two_processes_learn_what_one_does(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)  # without dropout, which differs from rank to rank
    model.config.resid_pdrop = model.config.embd_pdrop = model.config.attn_pdrop = 0.0
    model.save_pretrained(tmp_path / "still")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "still")
    one = tuned("one", tmp_path / "still", questions(), baselines=False)
    two = tuned("two", tmp_path / "still", questions(), baselines=False, devices=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_nothing_to_learn_from_is_told_with_the_lengths(home: Path, tiny_model: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a"] * 12, "completion": ["word " * 100] * 12})
    with pytest.raises(DataError, match=r"no example can be learnt from. Of 12, the longest target has 50\d tokens"):
        tuned("long", tiny_model, frame, validation=0)


# ---- a real set -----------------------------------------------------------------------------------------------------

PAIRS = Path(__file__).parents[2] / "shared" / "data" / "tatoeba_en_fr_short"


@pytest.mark.skipif(not PAIRS.is_dir(), reason=f"the public set of translations is not at {PAIRS}")
def test_one_pass_over_a_hundred_real_translations_makes_unseen_ones_far_likelier(home: Path) -> None:
    learnt, held = (
        pd.read_json(PAIRS / f"{part}.jsonl.xz", lines=True, nrows=rows)
        for part, rows in (("train", 100), ("validation", 8))
    )
    own = {"model": "tiny", "device": "cpu", "data": "df", "validation": "held", "epochs": 1, "seed": 0}
    run = launch.train("real", make_recipe(own), data=learnt, validation=held, wait=True).run
    scores = run.scores()
    assert scores is not None
    before, after = (scores[who]["perplexity"] for who in ("base", "validation"))
    assert before["examples"] == after["examples"] == 16  # both directions
    assert after["high"] < before["low"] / 2
    shown = next(line for line in progress.result_lines(run) if line.startswith("The base model was shown rows"))
    assert shown.endswith(" of df (DataFrame), drawn from equal parts of the table by seed 0.")
