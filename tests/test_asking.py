"""What a model that writes is asked, of every shape of table: the prompts and choices that training reads from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gptx_nb.engine import models, roles
from gptx_nb.engine.device import choose
from gptx_nb.engine.roles import RoleTable
from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.writer import Writer
from gptx_nb.errors import DataError
from gptx_nb.inference import read_prompts
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
NEWS = pd.DataFrame({"article": ["It rains all day in the town.", "The sun is out again at last."], "highlights": "Rain"})
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
    "choices as JSON": (
        ARC.assign(choices='["blue", "green"]', answerKey=[0, 1]),
        {"task": "question-answering", "columns": {"choices": "choices", "answer": "answerKey"}},
    ),
    "choices that are numbers": (ARC.assign(choices=[[3, 4]] * 2, answerKey=[3, 4]), {}),
    "SQuAD": (SQUAD, {}),
    "a context that is left out": (
        SQUAD,
        {"task": "question-answering", "columns": {"question": "question", "answer": "answers"}},
    ),
    "languages": (PAIRS, {}),
    "summaries": (NEWS, {}),
    "instructions": (TOLD, {}),
    "prompts": (PAIRS.rename(columns={"en": "prompt", "fr": "completion"}), {}),
    "programs": (pd.DataFrame({"prompt": ["def f():", "def g():"], "canonical_solution": ["    return 1"] * 2}), {}),
}


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    base = models.find("tiny")
    return models.load_causal(base), models.load_tokenizer(base)


def prepared(folder: Path, frame: pd.DataFrame, settings: dict[str, Any]) -> RoleTable:
    """Return what a run would learn from."""
    recipe = Recipe.model_validate({"data": "df", "validation": 0, **settings})
    sources = {"train": stage(recipe, folder, data=frame), "validation": None}
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
    assert same(run, asking.examples(rows_of(frame.drop(columns=target))), learnt) or "left out" in shape
    assert asking.shots(rows_of(frame)) == learnt


@pytest.mark.parametrize("shape", [shape for shape, (_, settings) in SHAPES.items() if not settings])
def test_a_base_model_reads_a_table_and_shots_as_training_would(
    tmp_path: Path, tiny: tuple[Any, Any], shape: str
) -> None:
    frame, settings = SHAPES[shape]
    table = prepared(tmp_path, frame, settings)
    learnt = [each for each in table.train if each.get("from") in (None, "en")]
    base = writer(tiny, table, tuned=False)
    asking = base.asking(None, to=table.facts.get("to"))
    assert same(base, asking.examples(rows_of(frame)), learnt)
    assert same(base, asking.examples(rows_of(frame.drop(columns=str(table.report["roles"][base.task.target])))), learnt)
    assert asking.shots(rows_of(frame)) == learnt
