"""Where examples come from: rows of this process are written out as they are, files are known by their bytes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptx_nb.errors import DataError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.sources import Source, check_unchanged, stage

ROWS = [("Good, very", "positive"), ("Bad", "negative"), ("Schön \u2028 🙂", "positive")]
FRAME = pd.DataFrame(ROWS, columns=["text", "label"])


def staged(folder: Path, data: object = None, validation: object = None, **settings: Any) -> dict[str, Source | None]:
    return stage(make_recipe(settings), data, validation, folder)


def train(folder: Path, data: object = None, **settings: Any) -> Source:
    source = staged(folder, data, **settings)["train"]
    assert source is not None
    return source


def read(source: Source | None, folder: Path) -> list[dict[str, Any]]:
    assert source is not None
    assert source.path is not None
    path = folder / source.path
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


AS_ROWS = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize(
    "data",
    [
        FRAME,
        FRAME.set_axis([7, 8, 9]),
        pd.Series([label for _, label in ROWS], index=[text for text, _ in ROWS]),
        ROWS,
        [list(row) for row in ROWS],
        AS_ROWS,
        np.array(ROWS, dtype=object),
        {"text": [text for text, _ in ROWS], "label": pd.Series([label for _, label in ROWS])},
        datasets.Dataset.from_list(AS_ROWS),
        pa.Table.from_pylist(AS_ROWS),
    ],
    ids=["frame", "index", "series", "pairs", "lists", "dicts", "array", "columns", "dataset", "arrow"],
)
def test_rows_from_memory_are_written_as_they_are(tmp_path: Path, data: object) -> None:
    source = train(tmp_path, data)
    assert source.kind == "frame"
    assert read(source, tmp_path) == AS_ROWS
    assert Source.from_json(json.loads(json.dumps(source.to_json()))) == source


def test_examples_typed_into_the_cell_are_written_as_rows(tmp_path: Path) -> None:
    source = train(tmp_path, examples=[list(row) for row in ROWS])
    assert source.kind == "examples"
    assert read(source, tmp_path) == AS_ROWS


def test_the_fingerprint_is_of_the_rows_at_that_moment(tmp_path: Path) -> None:
    frame = FRAME.copy()
    before = train(tmp_path / "1", frame)
    again = train(tmp_path / "2", frame.copy())
    frame.loc[0, "label"] = "negative"
    after = train(tmp_path / "3", frame)
    assert before.fingerprint == again.fingerprint != after.fingerprint
    assert read(before, tmp_path / "1") == AS_ROWS


def test_columns_that_parquet_refuses_are_written_as_json_lines(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["one", 2, None], "label": ["a", 1.5, float("nan")]})
    source = train(tmp_path, frame)
    assert source.path == "source/train.jsonl"
    assert read(source, tmp_path) == [
        {"text": "one", "label": "a"},
        {"text": 2, "label": 1.5},
        {"text": None, "label": None},
    ]


def test_missing_values_and_numpy_numbers_in_lists_are_kept_as_json_has_them(tmp_path: Path) -> None:
    rows = [
        ("a", np.int64(1)),
        (pd.NA, np.float32(0.5)),
        ("b", float("nan")),
        ("half an emoji \ud83d", np.float32("nan")),
    ]
    assert [tuple(row.values()) for row in read(train(tmp_path, rows), tmp_path)] == [
        ("a", 1),
        (None, 0.5),
        ("b", None),
        ("half an emoji ?", None),
    ]


def test_a_dataset_dict_gives_the_wanted_split_and_its_own_validation(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(AS_ROWS)
    both = datasets.DatasetDict({"train": rows, "validation": rows.select([0])})
    sources = staged(tmp_path, both)
    assert len(read(sources["train"], tmp_path)) == 3
    assert len(read(sources["validation"], tmp_path)) == 1
    assert staged(tmp_path, both, validation=None, **{"split": "validation"})["validation"] is None
    with pytest.raises(DataError, match=r"no split 'test'.* Splits: train, validation.* `split: train`"):
        staged(tmp_path, both, split="test")


def test_a_share_other_than_the_default_is_split_off_a_dataset_dict_too(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(AS_ROWS)
    recipe = Recipe(validation=0.3)
    assert (
        stage(recipe, datasets.DatasetDict({"train": rows, "validation": rows}), None, tmp_path)["validation"] is None
    )


def test_names_of_classes_travel_with_a_dataset(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}], features=features)
    source = train(tmp_path, rows)
    assert source.path is not None
    assert datasets.Features.from_arrow_schema(pq.read_schema(tmp_path / source.path)) == features


def test_a_validation_table_may_be_an_object_or_a_file(tmp_path: Path) -> None:
    recipe = Recipe(validation="held")
    own = stage(recipe, FRAME, FRAME.head(1), tmp_path)["validation"]
    assert own is not None
    assert own.shown == "held (DataFrame)"
    assert own.path == "source/validation.parquet"
    path = tmp_path / "held.csv"
    path.write_text("text,label\na,b\n")
    other = stage(Recipe(validation=str(path)), FRAME, None, tmp_path)["validation"]
    assert other is not None
    assert (other.kind, other.path) == ("file", str(path))


def test_a_file_stays_where_it_is_and_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text("text,label\na,b\n")
    source = train(tmp_path, data="reviews.csv")
    assert (source.kind, source.shown, source.path) == ("file", "reviews.csv", str(tmp_path / "reviews.csv"))
    assert train(tmp_path, Path("reviews.csv")).fingerprint == source.fingerprint
    Path("reviews.csv").write_text("text,label\na,c\n")
    assert train(tmp_path, data="reviews.csv").fingerprint != source.fingerprint
    assert not (tmp_path / "source").exists()


def test_a_folder_is_known_by_the_names_and_bytes_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na,b\n")
    first = train(tmp_path, data=str(folder))
    (folder / ".cache").write_text("x")
    (folder / "film.mp4").write_bytes(b"x")
    assert train(tmp_path, data=str(folder)) == first
    (folder / "train.csv").rename(folder / "test.csv")
    assert train(tmp_path, data=str(folder)).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["set/train.csv", "set"])
def test_a_table_that_is_no_longer_what_its_fingerprint_says_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    Path("set/train.csv").write_text("text,label\na,b\n")
    source = train(tmp_path, data=name)
    check_unchanged(source, "data", tmp_path)
    Path("set/train.csv").write_text("text,label\na,c\n")
    with pytest.raises(DataError, match=f"^data: {name} was changed while it was read. Run the cell again"):
        check_unchanged(source, "data", tmp_path)
    for other in (train(tmp_path, FRAME), train(tmp_path, data="imdb")):
        check_unchanged(other, "data", tmp_path)


def test_a_folder_of_very_many_files_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptx_nb.sources.MOST_FILES", 3)
    folder = tmp_path / "disk"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.csv").touch()
    with pytest.raises(DataError, match=r"data: .*disk holds more than 3 files, and is no data set's folder\. Name"):
        train(tmp_path, data=str(folder))


def texts_of(folder: Path, data: object) -> Source:
    source = stage(PretrainRecipe(), data, None, folder)["train"]
    assert source is not None
    return source


def test_a_folder_of_texts_is_known_by_what_is_read_of_it_however_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptx_nb.sources.MOST_FILES", 3)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.text").write_text("a text")
    first = texts_of(tmp_path, str(folder))
    (folder / "README.md").write_text("about them")
    (folder / "table.xlsx").write_text("not read")
    assert texts_of(tmp_path, str(folder)) == first
    check_unchanged(first, "data", tmp_path)
    (folder / "3.text").write_text("another text")
    assert texts_of(tmp_path, str(folder)).fingerprint != first.fingerprint
    with pytest.raises(DataError, match="was changed while it was read"):
        check_unchanged(first, "data", tmp_path)
    moved = shutil.copytree(folder, tmp_path / "moved")  # and so with other times
    assert texts_of(tmp_path, str(moved)).fingerprint == texts_of(tmp_path, str(folder)).fingerprint
    monkeypatch.setattr("gptx_nb.sources.FEW_FILES", 3)
    many = texts_of(tmp_path, str(moved))
    assert texts_of(tmp_path, str(moved)) == many
    os.utime(moved / "3.text", (1, 1))
    assert texts_of(tmp_path, str(moved)) != many
    monkeypatch.setattr("gptx_nb.text_files.MOST_FILES", 3)
    with pytest.raises(DataError, match=r"texts holds more than 3 files\. Put texts together, as JSON lines"):
        texts_of(tmp_path, str(folder))


@pytest.mark.parametrize(
    "data",
    [
        pd.Series(["one", None, "two"], index=[3, 4, 5]),
        np.array(["one", None, "two"], dtype=object),
        ["one", float("nan"), "two"],
    ],
    ids=["series", "array", "list"],
)
def test_texts_alone_are_taken_from_series_arrays_and_lists(tmp_path: Path, data: object) -> None:
    assert [row["text"] for row in read(texts_of(tmp_path, data), tmp_path)] == ["one", None, "two"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("It was a dark night. " * 300, r"data: 'It was a dark night\. It was a dark night'… is a text, not a place"),
        ("一个句子" * 300, r"is a text, not a place: .* Give a list, as in `data=\[text\]`"),
        ("A short text.", r"'A short text\.' is a text, not a place"),
        ((each for each in "ab"), r"this generator gives its rows only once\. .*`data=list\(rows\)`"),
        (["one", 5], r"data: row 2 is int '5', and no text"),
        (5, r"this int is no table\. Give a DataFrame, a list of texts, a "),
    ],
)
def test_what_holds_no_texts_is_told_with_what_fits(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path, data)


@pytest.mark.parametrize("name", ["stanfordnlp/sst2", "imdb", "someone/reviews.v2"])
def test_other_names_are_looked_for_on_the_hub(tmp_path: Path, name: str) -> None:
    source = train(tmp_path, data=name, subset="small")
    assert (source.kind, source.path) == ("hub", None)
    assert source.options == {"subset": "small", "split": "train"}
    assert train(tmp_path, data=name, subset="small", split="test").fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("review.csv", r"^data: there is no file 'review.csv' in /.*\. Did you mean 'reviews.csv'\?$"),
        ("zzz.parquet", r"^data: there is no file 'zzz.parquet' in /.*\. Tables there: other.jsonl, reviews.csv\.$"),
        ("./x", r"there is no file './x'"),
        ("nowhere/at/all.csv", r"there is no folder /.*/nowhere/at\. Check the path; /.* is there$"),
    ],
)
def test_a_missing_file_is_told_with_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text("")
    Path("other.jsonl").write_text("")
    with pytest.raises(DataError, match=message) as caught:
        train(tmp_path, data=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.Series(["a", "b"]), "data: a Series has one column, and two are needed"),
        (["a", "b"], "data: row 1 is str 'a', and needs to be a pair of text and label"),
        ([("a", "b"), ("a", "b", "c")], "data: row 2 is 3 parts"),
        ({"text": ["a"], "label": ["b", "c"]}, "the columns differ in length: text has 1, label has 2"),
        ({"text": "a"}, "a dict must hold columns, and 'text' holds str"),
        (42, "data: this int is no table. Give a DataFrame"),
        (FRAME.set_axis(["text", "text"], axis=1), "more than one column 'text'"),
        (datasets.Dataset.from_list(AS_ROWS).to_iterable_dataset(), "is a stream without an end"),
    ],
)
def test_what_is_no_table_is_refused_with_what_fits(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        train(tmp_path, data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_is_written_without_a_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, datasets.Dataset.from_list(AS_ROWS))
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_no_data_at_all_is_answered_with_both_ways_to_give_some(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train(tmp_path)
    assert "`data: reviews.csv`" in str(caught.value)
    assert "- [This movie is amazing!, positive]" in str(caught.value)


def test_data_and_examples_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both data and examples"):
        train(tmp_path, FRAME, examples=[["a", "b"]])
