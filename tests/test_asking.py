"""What a model that writes is asked, of every shape of table: the prompts and choices that training reads from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gptx_nb import api
from gptx_nb.engine import models, roles
from gptx_nb.engine.device import choose
from gptx_nb.engine.roles import RoleTable
from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.writer import Writer
from gptx_nb.errors import DataError, UsageError
from gptx_nb.inference import read_prompts, read_texts
from gptx_nb.recipe import Recipe
from gptx_nb.sources import stage

ARC = pd.DataFrame(
    {
        "question": ["Sky?", "Leaf?"],
        "choices": [{"text": ["blue", "green"], "label": ["1", "2"]}] * 2,
        "answerKey": ["1", "2"],
    }
)
LETTERS = pd.DataFrame({"question": ["Sky?", "Leaf?"], "A": ["blue", "red"], "B": [1, 2], "answer": ["A", "B"]})
SQUAD = pd.DataFrame(
    {
        "id": ["a", "b"],
        "context": ["The sky is blue.", "The leaf is green."],
        "question": ["The sky?", "The leaf?"],
        "answers": [{"text": ["blue"], "answer_start": [11]}, {"text": ["green", "a green"], "answer_start": [12, 12]}],
    }
)
PAIRS = pd.DataFrame({"en": ["Go.", "Come."], "fr": ["Va !", "Viens !"]})
NEWS = pd.DataFrame(
    {"article": ["It rains all day in the town.", "The sun is out again at last."], "highlights": "Rain"}
)
TOLD = pd.DataFrame({"instruction": ["Add.", "Sort."], "input": ["1 and 2", None], "output": ["3", "a b"]})
TALK = pd.DataFrame(
    {"conversations": [[{"from": "human", "value": word}, {"from": "gpt", "value": "Ho"}] for word in ("Hi", "Hey")]}
)
SHAPES: dict[str, tuple[pd.DataFrame, dict[str, Any]]] = {
    "choices as ARC has them": (ARC, {}),
    "a column a choice": (LETTERS, {}),
    "columns of choices that are named": (
        LETTERS.rename(columns={"A": "first", "B": "second"}).assign(answer=[0, 1]),
        {"task": "question-answering", "columns": {"choices": ["first", "second"]}},
    ),
    "choices as JSON": (ARC.assign(choices='["blue", "green"]', answerKey=[0, 1]), {}),
    "choices that are numbers": (ARC.assign(choices=[[3, 4]] * 2, answerKey=[3, 4]), {}),
    "SQuAD": (SQUAD, {}),
    "languages": (PAIRS, {}),
    "an object of languages": (pd.DataFrame({"translation": PAIRS.to_dict("records")}), {}),
    "summaries": (NEWS, {}),
    "instructions": (TOLD, {"task": "chat"}),
    "prompts": (PAIRS.rename(columns={"en": "prompt", "fr": "completion"}), {}),
    "programs": (pd.DataFrame({"prompt": ["def f():", "def g():"], "canonical_solution": ["    return 1"] * 2}), {}),
}
NAMED = "columns of choices that are named"  # by the recipe alone


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    base = models.find("tiny")
    return models.load_causal(base), models.load_tokenizer(base)


def prepared(folder: Path, frame: pd.DataFrame, settings: dict[str, Any]) -> RoleTable:
    """Return what a run would learn from."""
    recipe = Recipe.model_validate({"data": "df", "validation": 0, **settings})
    sources = stage(recipe, frame, None, folder)
    task, why = roles.task_of(recipe, sources, folder)
    return roles.load(task, why, recipe, sources, folder)


def writer(tiny: tuple[Any, Any], table: RoleTable, *, tuned: bool) -> Writer:
    model, tokenizer = tiny
    told = {"task": table.task, "facts": table.facts} if tuned else None
    return Writer.of(model, tokenizer, choose("cpu"), told, table.task)


def rows_of(frame: pd.DataFrame) -> list[Any]:
    return read_prompts(frame, "run")[0]


def same(asked: Writer, examples: list[Example], learnt: list[Example]) -> bool:
    assert [each.get("choices") for each in examples] == [each.get("choices") for each in learnt]
    return [asked.prompt(each) for each in examples] == [asked.prompt(each) for each in learnt]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_is_asked_what_it_has_learnt(tmp_path: Path, tiny: tuple[Any, Any], shape: str) -> None:
    frame, settings = SHAPES[shape]
    table = prepared(tmp_path, frame, settings)
    learnt = [each for each in table.train if each.get("from") in (None, "en")]
    run = writer(tiny, table, tuned=True)
    asking = run.asking(table.report["roles"])
    assert same(run, asking.examples(rows_of(frame)), learnt)
    target = str(table.report["roles"].get(run.task.target))
    assert same(run, asking.examples(rows_of(frame.drop(columns=target, errors="ignore"))), learnt)
    assert asking.shots(rows_of(frame)) == learnt


@pytest.mark.parametrize("shape", [each for each in SHAPES if each != NAMED])
def test_a_base_model_reads_a_table_and_shots_as_training_would(
    tmp_path: Path, tiny: tuple[Any, Any], shape: str
) -> None:
    frame, settings = SHAPES[shape]
    table = prepared(tmp_path, frame, settings)
    learnt = [each for each in table.train if each.get("from") in (None, "en")]
    base = writer(tiny, table, tuned=False)
    asking = base.asking(None, to=table.facts.get("to"))
    assert same(base, asking.examples(rows_of(frame)), learnt)
    target = str(table.report["roles"][base.task.target])
    assert same(base, asking.examples(rows_of(frame.drop(columns=target, errors="ignore"))), learnt)
    assert asking.shots(rows_of(frame)) == learnt


def test_a_talk_is_read_with_the_names_of_its_columns(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    table = prepared(tmp_path, TALK, {})
    open_talks = pd.DataFrame({"conversations": [talk[:1] for talk in TALK["conversations"]]})
    for tuned in (True, False):
        asked = writer(tiny, table, tuned=tuned)
        asking = asked.asking(table.report["roles"])
        assert same(asked, asking.examples(rows_of(open_talks)), table.train)
        assert asking.shots(rows_of(TALK)) == table.train
        assert asking.examples(rows_of(pd.DataFrame({"text": ["Hi", "Hey"]}))) == asking.examples(["Hi", "Hey"])
    with pytest.raises(DataError, match=r"row 2: the last turn of a conversation is of the assistant"):
        asking.examples([*rows_of(open_talks)[:1], *rows_of(TALK)[1:]])
    with pytest.raises(DataError, match="chat is asked with messages or instruction, and the row has prompt"):
        asking.examples([{"prompt": "Hi"}])


def test_shots_of_a_talk_stand_behind_its_system_message(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    table = prepared(tmp_path, TALK, {})
    asked = writer(tiny, table, tuned=False)
    first = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    asked._tokenizer.chat_template = first + str(asked._tokenizer.chat_template)
    try:
        shot, talk = table.train
        opened = {"messages": [{"role": "system", "content": "Be brief."}, *talk["messages"]]}
        text = "".join(each.text for each in asked.prompt(opened, [shot]))
        assert text.index("Be brief.") < text.index("Hi") < text.index("Ho") < text.index("Hey")
        alone, behind = (row for shots in ([], [shot]) for row in asked.rows(opened, shots))
        assert alone is not None
        assert behind is not None
        assert asked.text_of(behind) == asked.text_of(alone)  # the shot's answer is not scored
        assert "Hi" in asked._decode(behind.ids)
    finally:
        asked._tokenizer.chat_template = None


@pytest.mark.parametrize("template", ["", "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"])
def test_answers_behind_shots_are_scored_whatever_the_template(
    tmp_path: Path, tiny: tuple[Any, Any], template: str
) -> None:
    asked = writer(tiny, prepared(tmp_path, TALK, {}), tuned=False)
    turns = [{"role": role, "content": f"{role} {at}"} for at in range(2) for role in ("user", "assistant")]
    asked._tokenizer.chat_template = template + str(asked._tokenizer.chat_template)
    try:
        rows = asked.rows({"messages": turns}, [{"messages": turns[:2]}])
        told = [asked.text_of(row) for row in rows if row is not None]
        assert told == [asked.text_of(row) for row in asked.rows({"messages": turns}) if row is not None]
        assert len(rows) == (2 if template else 1)
    finally:
        asked._tokenizer.chat_template = None


def test_a_translation_back_takes_the_other_column(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    table = prepared(tmp_path, PAIRS, {})
    run = writer(tiny, table, tuned=True)
    back = [each for each in table.train if each["from"] == "fr"]
    for languages in ({"to": "en"}, {"source": "fr"}, {"source": "French", "to": "English"}):
        asking = run.asking(table.report["roles"], **languages)
        assert same(run, asking.examples(rows_of(PAIRS)), back)
        assert asking.shots(rows_of(PAIRS)) == back
    asked = {"source": "Va !", "from": "fr", "to": "en"}
    for row in ("Va !", {"fr": "Va !"}, {"source": "Va !"}, {"text": "Va !"}, *rows_of(PAIRS[["fr"]][:1])):
        assert asking.examples([row]) == [asked]
    with pytest.raises(DataError, match=r"translation is asked with source \(column 'fr'\), and the row has en"):
        asking.examples(rows_of(PAIRS[["en"]]))
    with pytest.raises(DataError, match="from: en, to: en is not what the model has learnt: en and fr"):
        run.asking(table.report["roles"], "en", "en").examples(["Va !"])


def test_a_base_model_is_told_the_languages_or_reads_them(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    base = writer(tiny, prepared(tmp_path, PAIRS, {}), tuned=False)
    found = base.asking(source="de", to="en").examples(["Hallo"])
    assert [each.text for each in base.prompt(found[0])] == ["German: ", "Hallo", "\nEnglish:"]
    assert base.asking(to="en").examples([{"de": "Hallo"}]) == found
    assert base.asking(to="en").shots([{"en": "Hello", "de": "Hallo"}]) == [{**found[0], "target": "Hello"}]
    for source, target in (("原文", "译文"), ("源语言", "目标语言"), ("src", "tgt"), ("source", "target")):
        asking = base.asking(source="de", to="en")  # columns that are called after the sides, not after languages
        assert asking.examples([{source: "Hallo"}]) == asking.examples([{source: "Hallo", target: ""}]) == found
        assert asking.shots([{source: "Hallo", target: "Hello"}]) == [{**found[0], "target": "Hello"}]
    assert base.asking(to="fr").examples(["Hello"]) == [{"source": "Hello", "from": "en", "to": "fr"}]
    for row, to in (("Hallo", "en"), ({"en": "a", "de": "b", "fr": "c"}, "fr")):
        with pytest.raises(DataError, match=r"from which language\? Type it, as in `--from (fr|en)`"):
            base.asking(to=to).examples([row])
    with pytest.raises(DataError, match="translation into which language"):
        base.asking().examples(["Hallo"])


def test_a_context_that_training_left_out_is_left_out_of_its_table(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    named = {"task": "question-answering", "columns": {"question": "question", "answer": "answers"}}
    table = prepared(tmp_path, SQUAD, named)
    asking = writer(tiny, table, tuned=True).asking(table.report["roles"])
    assert asking.examples(rows_of(SQUAD)) == [{"question": "The sky?"}, {"question": "The leaf?"}]
    typed = {"question": "The sea?", "context": "The sea is grey."}
    assert asking.examples([typed]) == [typed]


def test_one_column_keeps_its_name_in_every_kind_of_table() -> None:
    rows = [{"fr": "Va !"}, {"fr": "Viens !"}]
    for table in (pd.DataFrame(rows, index=["a", "b"]), pa.Table.from_pylist(rows), datasets.Dataset.from_list(rows)):
        assert read_prompts(table, "run")[0] == rows
    assert list(read_prompts(pd.DataFrame(rows, index=["a", "b"]), "run")[1]) == ["a", "b"]


def test_several_conversations_and_a_table_as_it_is_can_be_asked() -> None:
    one, other = [{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Bye"}]
    assert read_prompts(one, "run") == ([{"messages": one}], None)
    assert read_prompts([one, other], "run") == ([{"messages": one}, {"messages": other}], None)
    series = pd.Series([one, other], index=["a", "b"])
    found, index = read_prompts(series, "run")
    assert (found, list(index)) == ([{"messages": one}, {"messages": other}], ["a", "b"])
    arrays = pd.Series([np.array(one, dtype=object)])  # as a file of columns has them
    assert read_prompts(arrays, "run")[0] == [{"messages": one}]
    nested = pd.DataFrame({"prompt": ["a"], "dates": [np.array([pd.Timestamp("2026-01-02")], dtype=object)]})
    assert read_prompts(nested, "run")[0] == [{"prompt": "a", "dates": ["2026-01-02 00:00:00"]}]
    assert read_prompts(["text", {"prompt": "row"}], "run")[0] == ["text", {"prompt": "row"}]
    frame = pd.DataFrame({"prompt": ["a"], "when": [pd.Timestamp("2026-01-02")], "none": [pd.NaT]})
    assert read_prompts(frame, "run")[0] == [{"prompt": "a", "when": "2026-01-02 00:00:00", "none": None}]
    with pytest.raises(DataError, match="row 1, column 'prompt', holds a value of type bytes, and needs texts"):
        read_prompts([{"prompt": b"a"}], "run")


def test_texts_for_a_model_without_columns_are_found_by_name() -> None:
    reviews = pd.DataFrame({"stars": [1], "review": ["Fine!"]})
    assert read_texts(reviews, None, "smollm2-135m").texts == ["Fine!"]
    assert read_texts(reviews.to_dict("records"), "review", "run r/1").texts == ["Fine!"]  # rows of a file
    with pytest.raises(DataError, match="the table has no column 'text', which smollm2-135m reads its texts from"):
        read_texts(pd.DataFrame({"a": ["x"], "b": ["y"]}), None, "smollm2-135m")


def test_a_task_that_there_is_none_of_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'sumarization'\. Did you mean 'summarization'\?"):
        api.gives_labels("gpt2", "sumarization")


def test_a_choice_that_cannot_be_meant_names_its_row(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    table = prepared(tmp_path, ARC, {})
    run = writer(tiny, table, tuned=True)
    good = {"question": "Sky?", "choices": ["blue", "green"]}
    for bad in ([], ["blue"], None):
        with pytest.raises(DataError, match="row 66: fewer than two choices"):
            run.asking(table.report["roles"]).examples([good, {**good, "choices": bad}], first=65)
    with pytest.raises(DataError, match="row 2: choices are 'blue', and a list is needed"):
        run.asking(table.report["roles"]).examples([good, {**good, "choices": "blue"}])
    with pytest.raises(DataError, match="row 2: empty question"):
        run.asking(table.report["roles"]).examples([good, {**good, "question": None}])
    assert run.asking(table.report["roles"]).examples([good])[0]["choices"] == ["blue", "green"]
    columns = {"question": "question", "choices": ["A", "B", "C"], "answer": "answer"}
    asked = run.asking(columns).examples([{"question": "Sky?", "A": None, "B": "blue", "C": 7}])
    assert asked == [{"question": "Sky?", "choices": ["blue", "7"]}]
    other = [{"question": "Sky?", "options": ["blue", 7]}]  # found anew, where the run's own are not there
    assert run.asking(columns).examples(other) == asked
    with pytest.raises(DataError, match="the choices are columns A, B, C, and the rows have no 'C'"):
        run.asking(columns).examples([{"question": "Sky?", "A": "blue", "B": "green"}])


def test_short_shots_are_read_by_the_names_of_their_columns(tmp_path: Path, tiny: tuple[Any, Any]) -> None:
    base = writer(tiny, prepared(tmp_path, NEWS, {}), tuned=False)
    shot = {"article": "A cat sat.", "highlights": "Cat sits."}
    assert base.asking().shots([shot]) == [{"document": "A cat sat.", "summary": "Cat sits."}]
    assert base.asking().examples([{"article": "A cat sat."}]) == [{"document": "A cat sat."}]
