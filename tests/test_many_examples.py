"""What examples take in a process that trains: flat numbers and an open file, whichever way a task keeps its rows."""

from __future__ import annotations

import gc
import itertools
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptx_nb.engine import batches, examples, jobs, models, tuning, vocabulary
from gptx_nb.engine.data import Table
from gptx_nb.engine.ragged import Ragged
from gptx_nb.engine.stored import ROWS_AT_ONCE, Stored
from gptx_nb.engine.tasks import reading
from gptx_nb.engine.tasks.encoding import Encoded, EncodedRows
from gptx_nb.engine.tasks.reading import TokenRows, Windowed
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.sources import stage

NUMBERS = st.lists(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 300), max_size=9), max_size=9)


@given(NUMBERS)
def test_flat_rows_are_the_rows_that_were_given(rows: list[list[int]]) -> None:
    kept = Ragged(rows)
    assert kept == rows
    assert kept.lengths.tolist() == [len(row) for row in rows]
    assert kept[1:-1] == rows[1:-1]
    if rows:
        assert (kept[-1], kept[0]) == (rows[-1], rows[0])


def test_a_flat_row_takes_two_bytes_a_token_and_refuses_what_is_no_number_of_a_token() -> None:
    assert Ragged([[50_256] * 32] * 100).nbytes == 100 * (32 * 2 + 8) + 8
    with pytest.raises(OverflowError):
        Ragged([[3, -1]])
    with pytest.raises(IndexError):
        Ragged([[3]])[1]


def test_rows_in_windows_come_back_as_they_were() -> None:
    rows: list[reading.Row] = [[1, 2], Windowed([[3], [4, 5]]), [], Windowed([[6, 7], [8], [9]])]
    for given_rows in (rows, rows[:1], [*rows[::2]], rows[1:], []):
        kept = TokenRows(given_rows)
        assert list(kept) == given_rows
        assert [*kept[1:]] == given_rows[1:]
        assert kept.lengths.tolist() == [len(row) for row in given_rows]
        assert kept.windows == reading.flat(given_rows)
        assert kept.windows_each.tolist() == [len(reading.windows_of(row)) for row in given_rows]
    doubled = TokenRows(rows).renumbered(lambda row: [2 * token for token in row])
    assert doubled[1] == Windowed([[6], [8, 10]])


def test_encoded_rows_come_back_as_they_were() -> None:
    rows = [Encoded([5, 6, 70_000], [False, True, False], 4), Encoded([7], [False]), Encoded([8, 9], [False, True])]
    kept = EncodedRows(rows)
    assert list(kept) == rows
    assert kept[-1] == rows[-1]
    assert kept[1:] == rows[1:]
    assert kept.read_lengths.tolist() == [len(row.read) for row in rows] == [1, 1, 1]
    assert kept.targets.tolist() == [1, 0, 1]


@given(st.lists(st.integers(0, 4), max_size=20), st.integers(1, 6))
def test_of_rows_that_are_equally_long_the_first_come_first(lengths: list[int], most: int) -> None:
    plain = sorted(range(len(lengths)), key=lambda index: -lengths[index])[:most]
    assert batches.longest_first(np.array(lengths, dtype=np.int64), most) == plain


# ---- texts in the snapshot ------------------------------------------------------------------------------------------


def staged(folder: Path, count: int, task: str) -> tuple[Recipe, Any]:
    texts = [
        f"{at} a film that is one of {at % 7} with more words than it needs, and no end to them" for at in range(count)
    ]
    frame = pd.DataFrame({"text": texts, "label": ["bad" if at % 2 else "good" for at in range(count)]})
    if task == "summarization":
        frame = pd.DataFrame({"document": texts, "summary": [text[:20] for text in texts]})
    recipe = make_recipe({"data": "df", "task": task, "validation": 0.01})
    folder.mkdir()
    return recipe, examples.load(recipe, stage(recipe, frame, None, folder), folder)


@pytest.mark.parametrize("task", ["text-classification", "summarization"])
def test_a_snapshot_is_read_row_by_row_as_one_of_an_older_version_is(tmp_path: Path, task: str) -> None:
    count = 2 * ROWS_AT_ONCE + 9
    recipe, table = staged(tmp_path / "run", count, task)
    folder = tmp_path / "run"
    examples.save_snapshot(table, folder)
    assert pq.ParquetFile(folder / "train.parquet").num_row_groups == 2
    assert examples.load_snapshot(folder, recipe) == table
    pq.write_table(pq.read_table(folder / "train.parquet"), folder / "train.parquet")  # as versions before did
    assert pq.ParquetFile(folder / "train.parquet").num_row_groups == 1
    again = examples.load_snapshot(folder, recipe)
    assert again == table, "the fingerprint is the same"
    kept: Any = again.train.texts if isinstance(again, Table) else again.train
    plain: Any = table.train.texts if isinstance(table, Table) else table.train
    assert isinstance(kept, Stored)
    older = pq.read_table(folder / "train.parquet").drop_columns(["row"])
    pq.write_table(older, folder / "older.parquet")
    (folder / "older.parquet").replace(folder / "train.parquet")
    unnumbered = examples.load_snapshot(folder, recipe)
    numbers = unnumbered.train.numbers if isinstance(unnumbered, Table) else unnumbered.numbers["train"]
    assert not any(numbers), "of a version that did not keep them"
    shutil.rmtree(folder)  # a run that is removed meanwhile still has its rows
    assert (kept[-1], kept[5:9], kept[ROWS_AT_ONCE]) == (plain[-1], plain[5:9], plain[ROWS_AT_ONCE])
    with pytest.raises(IndexError):
        kept[count]


def taken(folder: Path, count: int, task: str, model: Path) -> tuple[int, int]:
    """Return the bytes that so many examples take, of a snapshot that is read and encoded, and their tokens."""
    recipe, table = staged(folder, count, task)
    examples.save_snapshot(table, folder)
    del table
    gc.collect()
    base = models.find(str(model))
    tokenizer = models.load_tokenizer(base)
    tracemalloc.start()
    try:
        job = jobs.of(examples.load_snapshot(folder, recipe), recipe)
        learnt = job.load_model(base, tokenizer, 0)
        tuned = tuning.prepare(learnt, "full")
        job.encode(tokenizer, 128)
        if not job.shares_vocabulary:
            job.renumber(vocabulary.Cut(learnt, itertools.chain(*job.token_rows), [0]))
        options = {"pad_id": 0, "device": torch.device("cpu"), "batch_size": 8, "seed": 0}
        learner = job.learner(learnt, tuned, **options)
        assert learner.step(0).tokens < learner.longest().tokens < learner.tokens
        gc.collect()
        return tracemalloc.get_traced_memory()[0], learner.tokens
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("task", ["text-classification", "summarization"])
def test_an_example_takes_the_bytes_of_its_tokens(tmp_path: Path, tiny_model: Path, task: str) -> None:
    few, many = 300, 1_300
    less, fewer = taken(tmp_path / "few", few, task, tiny_model)
    more, tokens = taken(tmp_path / "many", many, task, tiny_model)
    # A list has 8 bytes a token, and there were two or three of them, beside the text.
    assert (more - less) / (many - few) < 3 * (tokens - fewer) / (many - few) + 64
