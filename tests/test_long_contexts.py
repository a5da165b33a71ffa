"""Contexts that are longer than a row, for models that write: windows, what is learnt, and which answer is given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptx_nb.engine import examples, models
from gptx_nb.engine.jobs import Writing
from gptx_nb.engine.roles import RoleTable
from gptx_nb.engine.tasks import long_contexts
from gptx_nb.engine.tasks.long_contexts import Windows
from gptx_nb.engine.tasks.reading import MOST_WINDOWS
from gptx_nb.engine.tasks.templates import Segment
from gptx_nb.engine.tasks.writing import TASKS
from gptx_nb.engine.writer import How, Writer
from gptx_nb.errors import RecipeError
from gptx_nb.recipe import Recipe
from gptx_nb.sources import stage


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """The embedded model and its tokenizer."""
    base = models.find("tiny")
    return models.load_causal(base), models.load_tokenizer(base)


@given(text=st.text("ab c", max_size=300), most=st.integers(8, 40), stride=st.none() | st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_windows_hold_all_of_a_context_in_order(tiny_model: Path, text: str, most: int, stride: int | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)  # a token a byte
    found, whole = long_contexts.parts(
        tokenizer, {"question": "q", "context": text}, "context", Windows(most, stride), fixed=4
    )
    parts = [each["context"] for each in found]
    text = text.strip()
    if len(parts) == 1:
        assert found[0]["context"].strip() == text
        return
    assert all(each["question"] == "q" for each in found)
    assert all(len(part) == most - 4 for part in parts)
    if not whole:
        assert len(parts) == MOST_WINDOWS
        return
    step = min(stride or max(1, int((most - 4) * 0.75)), most - 4)
    assert parts[:-1] == [text[at * step :][: most - 4] for at in range(len(parts) - 1)]
    assert parts[-1] == text[-(most - 4) :]
    assert len(text) <= step * (len(parts) - 1) + most - 4


def long(answer: str, place: int) -> str:
    sentences = [f"Room {number} is empty and nobody looks after it." for number in range(12)]
    sentences.insert(place, f"The key is in the {answer} box.")
    return " ".join(sentences)


def job(tasks: str, rows: list[dict[str, Any]], **more: Any) -> Writing:
    recipe = Recipe(data="here", long_texts="windows", task=tasks, **more)
    report = {"source": "here", "roles": {}, "task_why": ""}
    numbers = {"train": list(range(1, len(rows) + 1)), "validation": []}
    return Writing(RoleTable(tasks, rows, None, {}, report, numbers), recipe)


def test_the_window_with_the_answer_is_learnt_from(tiny: Any) -> None:
    rows = [{"question": "Where is the key?", "context": long("red", 11), "answer": "red"}]
    made = job("question-answering", rows)
    made.encode(tiny[1], 64)
    (row,) = made.token_rows[0]
    assert len(row) <= 64
    read = str(tiny[1].decode(row))
    assert "The key is in the red box." in read
    assert "Room 0 is" not in read
    (note,) = made.told(tiny[1])["notes"]
    assert re.fullmatch(
        r"1 context is longer than 64 tokens: the window with the answer is learnt from, and all windows, [3-9]\.0 of "
        r"each, are asked when the model answers, each for the time of an answer",
        note,
    )
    made.encode(tiny[1], 512)
    assert len(made.token_rows[0]) == 1  # not beside what was made for the other length
    assert made.told(tiny[1])["notes"] == []
    assert made.beside()["gptx_task.json"]["facts"] == {"windows": {"max_length": 512, "stride": None}}


def test_where_contexts_are_cut_it_is_said_what_windows_would_cost(tiny: Any) -> None:
    rows = [{"question": "Where is the key?", "context": long("red", 11), "answer": "red"}]
    made = job("question-answering", rows)
    made.recipe = made.recipe.model_copy(update={"long_texts": "cut"})
    made.encode(tiny[1], 64)
    note, lost = made.told(tiny[1])["notes"]
    assert re.fullmatch(
        r"1 row has its answer only where the context is not read \(.*, row 1\): the model learns to guess\. Set a "
        r"larger `max_length:`, if the model allows it, or leave such rows out",
        lost,
    )
    assert re.fullmatch(
        r"1 context \(.*, row 1\) is cut to fit into 64 tokens\. `long_texts: windows` reads all of them, and takes "
        r"the time of an answer for each window of a context when the model answers",
        note,
    )
    facts = made.beside()["gptx_task.json"]["facts"]
    assert facts == {"max_length": 64}
    writer = Writer(*tiny, "question-answering", facts, tuned=True)  # which is asked as it has learnt
    asked = writer.write([{"question": "Where?", "context": long("red", 11)}], How(temperature=0.0, max_new_tokens=4))
    assert (writer.context, asked.cut_at) == (64, [0])
    made.encode(tiny[1], 512)
    assert made.beside()["gptx_task.json"]["facts"] == {}


@pytest.mark.parametrize(
    ("answers", "read", "cut", "lost"),
    [
        (["red"], "the key is red", 0, False),
        (["red"], "the key is red", 3, True),
        (["red", "key"], "the key is red", 3, False),  # another right one is still there
        (["red"], "the key is", 0, True),  # the window has it not
        (["blue"], "the key", 0, False),  # it stands nowhere: the question is no matter of finding
    ],
)
def test_an_answer_is_lost_where_it_stands_only_in_what_is_not_read(
    answers: list[str], read: str, cut: int, lost: bool
) -> None:
    task = TASKS["question-answering"]
    example = {"question": "?", "context": "the key is red", "answer": answers[0], "references": answers}
    assert task.loses_answer(example, {**example, "context": read}, cut) is lost
    assert not task.loses_answer({"question": "?", "answer": "red"}, {"question": "?"}, 0)
    assert not task.loses_answer({**example, "choices": ["red", "blue"]}, {"context": ""}, 0)  # they are scored


def test_of_all_windows_the_likeliest_answer_is_given(tiny: Any) -> None:
    model, tokenizer = tiny
    facts = {"windows": Windows(48).to_json()}
    writer = Writer(model, tokenizer, "question-answering", facts, tuned=False)
    plain = Writer(model, tokenizer, "question-answering", {}, tuned=False)
    asked = {"question": "Where is the key?", "context": long("red", 6)}
    how = How(temperature=0.0, max_new_tokens=6)
    (answer,) = writer.write([asked], how).written
    bare = plain.encoder.prompt(plain.prompt({**asked, "context": ""}))
    assert bare is not None
    parts, whole = long_contexts.parts(tokenizer, asked, "context", Windows(48), fixed=len(bare.ids) + 6)
    assert whole
    assert len(parts) > 3
    each = [one[0] for one in plain.write(parts, how).written]
    weighed = []
    for part, one in zip(parts, each, strict=True):
        (row,) = plain.rows({**part, "answer": one.text}) if one.text else (None,)
        nats = plain.nats([row])[0] if row is not None else (1e9, 1)
        weighed.append(nats[0] / nats[1])
    assert answer[0] == each[weighed.index(min(weighed))]
    short = {**asked, "context": "The key is red."}
    assert writer.write([short], how).written == plain.write([short], how).written


def test_each_choice_is_weighed_by_the_window_in_which_it_is_likeliest(tiny: Any) -> None:
    model, tokenizer = tiny
    writer = Writer(model, tokenizer, "question-answering", {"windows": Windows(48).to_json()}, tuned=False)
    plain = Writer(model, tokenizer, "question-answering", {}, tuned=False)
    asked = {"question": "Where is the key?", "context": long("red", 6), "choices": ["red", "dark blue"]}
    short = {**asked, "context": "The key is red."}
    found, cut_at = writer.choose([asked, short])
    assert cut_at == []
    parts, whole = plain._parts(
        asked, (), Windows(48), max(plain.encoder.size([Segment(f" {c}")]) for c in asked["choices"])
    )
    assert whole
    assert len(parts) > 3
    rows = [
        plain.encoder.encode([*plain.prompt(part), Segment(f" {choice}", target=True)])
        for part in parts
        for choice in asked["choices"]
    ]
    nats = plain.nats([row for row in rows if row is not None])[:, 0].reshape(len(parts), 2).min(axis=0)
    logs = -nats / [3, 9] * 6.0
    expected = np.exp(logs) / np.exp(logs).sum()
    assert found[0] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found[1] == pytest.approx(plain.choose([short])[0][0], abs=1e-4)


def test_summaries_of_windows_are_summarised_until_they_are_one() -> None:
    rounds: list[list[str]] = []

    def split(example: Any) -> list[dict[str, Any]]:
        words = example["document"].split()
        return [{"document": " ".join(words[at : at + 4])} for at in range(0, len(words), 4)]

    def write(parts: Any) -> list[str]:
        rounds.append([each["document"] for each in parts])
        return [each["document"].split()[0] for each in parts]

    document = " ".join(str(number) for number in range(32))
    left, number = long_contexts.summarised(split, write, {"document": document})
    assert (number, left) == (2, {"document": "0\n16"})
    assert [len(each) for each in rounds] == [8, 2]
    same, number = long_contexts.summarised(split, lambda parts: [p["document"] for p in parts], {"document": document})
    assert (number, same) == (0, {"document": "0 1 2 3"})


def test_a_long_document_is_summarised_whole(tiny: Any) -> None:
    writer = Writer(*tiny, "summarization", {"windows": Windows(64).to_json()}, tuned=False)
    asked: list[int] = []
    nats = Writer.write

    def counted(self: Writer, examples_: Any, *more: Any, **named: Any) -> Any:
        asked.append(len(examples_))
        return nats(self, examples_, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "write", counted)
        found = writer.write([{"document": long("red", 3)}], How(temperature=0.0, max_new_tokens=4))
    assert (len(found.written), found.cut_at) == (1, [])
    assert asked[1] > 2  # all windows
    assert asked[-1] == 1  # and what they became


@pytest.mark.parametrize(
    ("task", "way"), [("translation", "windows"), ("question-answering", "head+tail"), ("chat", "windows")]
)
def test_tasks_that_read_no_windows_say_which_do(tmp_path: Path, task: str, way: str) -> None:
    frame = pd.DataFrame({"en": ["a"], "fr": ["b"], "question": ["c"], "answer": ["d"], "messages": ["[]"]})
    recipe = Recipe(data="df", task=task, long_texts=way, columns=None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError) as caught:
        examples.load(recipe, stage(recipe, frame, None, tmp_path), tmp_path)
    assert str(caught.value) == (
        f"long_texts: {way} is not for {task}. Classifiers read head+tail and windows, question-answering and "
        "summarization windows. Else a context is cut where it is too long, and counted, and whole texts to learn from "
        "are read in as many rows as they need; leave it out"
    )
