"""What the data engine makes of tables, good and bad. Real files, real readers; every message is asserted."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptx_nb.engine import data, hub
from gptx_nb.engine.data import Table
from gptx_nb.errors import DataError
from gptx_nb.recipe import make_recipe
from gptx_nb.sources import Source, stage

ROWS = [(f"sentence number {at} says something", "good" if at % 2 else "bad") for at in range(40)]


def file_source(path: Path, **options: Any) -> Source:
    kind = "folder" if path.is_dir() else "file"
    return Source(kind=kind, shown=path.name, fingerprint="0", path=str(path), options=options)


def load(path: Path, own: Path | None = None, **settings: Any) -> Table:
    recipe = make_recipe({"data": str(path), **settings})
    sources = {"train": file_source(path), "validation": file_source(own) if own else None}
    return data.load(recipe, sources, path.parent)


def text_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def csv(path: Path, rows: Iterable[Iterable[Any]] = ROWS, header: tuple[str, ...] = ("text", "label")) -> Path:
    pd.DataFrame(list(rows), columns=list(header)).to_csv(path, index=False)
    return path


def refusal(path: Path, own: Path | None = None, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, own, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 420
    return message


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet", "t.csv.gz", "t.csv.xz", "t.jsonl.bz2"]
)
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    path = tmp_path / name
    kind = name.split(".")[1]
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind in ("jsonl", "json"):
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    table = load(path)
    assert table.labels == ["bad", "good"]
    assert table.report["labels"] == {"bad": 20, "good": 20}
    assert table.report["fingerprint"] == load(csv(tmp_path / "same.csv")).report["fingerprint"]


def test_texts_with_newlines_quotes_commas_nul_and_many_scripts_come_through_unchanged(tmp_path: Path) -> None:
    texts = [
        'a "quoted", text',
        "two\nlines",
        "zero\0byte",
        "很好，推荐",
        "naïve 🙂",
        "NA",
        "None",
        "nan",
        "\u2028separator",
        "x" * 200_000,
    ]
    rows = [(text, "ab"[at % 2]) for at, text in enumerate(texts)]
    assert load(csv(tmp_path / "t.csv", rows), validation=0).train.texts == texts
    lines = "\n".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
    assert load(text_file(tmp_path / "t.jsonl", lines), validation=0).train.texts == texts


def test_latin_1_is_read_and_said(tmp_path: Path) -> None:
    content = "text,label\ncafé fermé à midi,bad\ntrès bon,good\n".encode("latin-1")
    table = load(text_file(tmp_path / "t.csv", content))
    assert table.train.texts == ["café fermé à midi", "très bon"]
    assert table.report["encoding"] == "cp1252"
    assert table.report["warnings"][0] == (
        "t.csv is not UTF-8 (line 2); it was read as cp1252 (Latin-1): check its accents, or save it as UTF-8"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_utf_16_and_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    table = load(text_file(tmp_path / "t.csv", "text,label\nça va bien,good\npas du tout,bad\n".encode(encoding)))
    assert table.report["columns"] == ["text", "label"]
    assert table.train.texts[0] == "ça va bien"
    assert table.report["encoding"] == encoding
    if encoding == "utf-16":
        assert table.report["warnings"] == ["t.csv is UTF-16, and was read as that"]


def test_another_encoding_is_refused_instead_of_garbled(tmp_path: Path) -> None:
    content = "text,label\n酒店很好,正面\n房间太旧,负面\n".encode("gb18030")
    assert refusal(text_file(tmp_path / "t.csv", content)) == (
        "t.csv, line 2: byte 0xbe is neither UTF-8 nor Latin-1. Save the file as UTF-8, for example: "
        "iconv -f GB18030 -t UTF-8 old.csv > new.csv (if it was written in GB18030)"
    )


def test_one_damaged_byte_in_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    content = "text,label\nça été très beau,good\n".encode() + b"broken \xff,bad\n"
    assert refusal(text_file(tmp_path / "t.csv", content)) == (
        "t.csv, line 3: byte 0xff is not UTF-8, though the rest is. Correct that line, or save the file again as UTF-8"
    )


def test_semicolons_are_noticed(tmp_path: Path) -> None:
    table = load(text_file(tmp_path / "t.csv", "text;label\nso, so;good\nno, no;bad\n"))
    assert table.train.texts == ["so, so", "no, no"]
    assert table.report["warnings"] == ["t.csv: columns are separated by a semicolon"]


def test_a_tsv_with_bare_quotes_keeps_them(tmp_path: Path) -> None:
    table = load(text_file(tmp_path / "t.tsv", 'text\tlabel\n"hello there\tham\nfine"\tspam\n'))
    assert table.train.texts == ['"hello there', 'fine"']
    assert table.report["warnings"] == ["t.tsv: quotes are part of the texts (no field is quoted)"]


def test_a_tsv_with_real_quoting_is_unquoted(tmp_path: Path) -> None:
    table = load(text_file(tmp_path / "t.tsv", 'text\tlabel\n"say ""hi"""\tham\n"two\nlines"\tspam\n'))
    assert table.train.texts == ['say "hi"', "two\nlines"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'text,label\nfine,good\n"never closed,bad\nmore,good\n',
            't.csv, line 3: a quote (") is opened and never closed. Close it, or write "" for a quote inside a '
            "quoted text",
        ),
        (
            'text,label\n"never closed,bad\n"fine, really",good\n',
            't.csv, lines 2 to 3: a quote (") is not closed where its field ends. Close it, or write "" for a quote '
            "inside a quoted text",
        ),
        (
            "text,label\nfine,good\nwell, yes,bad\n",
            "t.csv, line 3 has 3 fields, the header has 2 (text, label). Put a text with a comma in it in quotes",
        ),
        (
            "text,label\nfine,good\nhm\n",
            "t.csv, line 3 has 1 field, the header has 2 (text, label). Separate the fields by a comma",
        ),
        ("", "t.csv is empty. Add a header line such as `text,label`, and rows below it"),
        (",,\n\n", "t.csv is empty. Add a header line such as `text,label`, and rows below it"),
        ("text,label\n", "t.csv has no rows. Add examples below its header, or name another table with `data:`"),
        (
            "text\nfine\nbad\n",
            "t.csv has one column, 'text', and needs two: a text and its label. Add a column of labels; in a CSV, "
            "separate them by commas",
        ),
        ("text,label,label\na,b,c\n", "t.csv: column 'label' stands in the header twice. Rename one of them"),
        (
            "I liked it,positive\nI did not,negative\nwhat a film,positive\n",
            "t.csv, line 1: 'positive' looks like a row, not like a column's name. Put a header line such as "
            "`text,label` on "
            "top; if it is the header, name the columns with `text:` and `label:`",
        ),
        (
            "I liked it very much indeed,positive\nI did not,negative\n",
            "t.csv, line 1: 'I liked it very much indeed' looks like a row, not like a column's name. Put a "
            "header line "
            "such as `text,label` on top; if it is the header, name the columns with `text:` and `label:`",
        ),
    ],
)
def test_a_csv_with_a_mistake_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    assert refusal(text_file(tmp_path / "t.csv", content)) == message


def test_rows_behind_a_quote_left_open_are_not_swallowed(tmp_path: Path) -> None:
    lines = [f"{text},{label}" for text, label in ROWS]
    swallowing = [*lines[:2], '"an open one,good', *lines[2:37], 'a late end",bad', *lines[38:]]
    message = (
        "t.csv, lines 4 to 40: a quote (\") is opened in line 4 and takes in rows such as 'an open one,good'. Close "
        "it where its text ends. If all that is one text, save the table as .jsonl"
    )
    assert refusal(text_file(tmp_path / "t.csv", "\n".join(["text,label", *swallowing]))) == message
    # The label first, Windows' line ends, semicolons, and no other row that would know the labels.
    turned = ['good;"an open one', *(f"{label};{text}" for text, label in ROWS[:6]), 'bad;a late end"', "fair;well"]
    assert refusal(text_file(tmp_path / "u.csv", "\r\n".join(["label;text", *turned]))) == (
        "u.csv, lines 2 to 9: a quote (\") is opened in line 2 and takes in rows such as 'bad;sentence number 0 says "
        "something'. Close it where its text ends. If all that is one text, save the table as .jsonl"
    )


def test_texts_of_several_lines_are_not_taken_for_rows(tmp_path: Path) -> None:
    poem = "la la, la la\nla la, la la\ngood, and bad\n,\nDear Ann,\nit cost 1,5"
    lines = [f'"{text}",{label}' for text, label in [*ROWS, (poem, "good")]]
    table = load(text_file(tmp_path / "t.csv", "\n".join(["text,label", *lines])), validation=0)
    assert table.train.texts[-1] == poem
    assert table.report["warnings"] == []


def test_one_line_of_a_text_that_looks_like_a_row_is_told(tmp_path: Path) -> None:
    lines = [f"{text},{label}" for text, label in ROWS]
    path = text_file(tmp_path / "t.csv", "\n".join(["text,label", '"open,good', 'end",bad', *lines]))
    assert load(path, validation=0).report["warnings"] == [
        "t.csv, lines 2 to 3: one text holds 'open,good'. Is a quote (\") left open there?"
    ]


def test_a_long_question_is_a_header_once_the_recipe_names_it(tmp_path: Path) -> None:
    rows = [(text, label) for text, label in ROWS]
    path = csv(tmp_path / "form.csv", rows, ("What did you think of our service?", "verdict"))
    assert "looks like a row" in refusal(path)
    assert load(path, text="What did you think of our service?").report["text"] == "What did you think of our service?"


def test_numbered_columns_of_pandas_are_a_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame([(text, at % 2) for at, (text, _) in enumerate(ROWS)]).to_csv(path, index=False)
    report = load(path).report
    assert (report["text"], report["label"]) == ("0", "1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.jsonl",
            b'{"text": "a", "label": "b"}\n{"text": "a", "label"}\n',
            "t.jsonl, line 2: not JSON (Expecting ':' delimiter, column 22). Each line holds one object, as in "
            '{"text": "Good", "label": "positive"}',
        ),
        (
            "t.jsonl",
            b'{"text": "a", "label": "b"}\n\n"just a text"\n',
            't.jsonl, line 3: got "just a text", and needs an object such as {"text": "Good", "label": "positive"}',
        ),
        (
            "t.json",
            b'[{"text": "a", "label": "b"},\n{"text" "a"}]',
            "t.json, line 2: not JSON (Expecting ':' delimiter, column 9). The file holds a list of objects, as in "
            '{"text": "Good", "label": "positive"}',
        ),
        (
            "t.jsonl",
            b"[" * 100_000,
            "t.jsonl, line 1: not JSON (maximum recursion depth exceeded while decoding a JSON array from a "
            "unicode string). "
            'Each line holds one object, as in {"text": "Good", "label": "positive"}',
        ),
        (
            "t.xlsx",
            b"PK",
            "t.xlsx ends in '.xlsx'; .csv, .tsv, .jsonl, .ndjson, .json, .parquet can be read (.gz, .xz and .bz2 "
            "too). "
            "Save the sheet as CSV UTF-8 and name that file",
        ),
        (
            "reviews",
            b"text,label",
            "reviews has no ending; .csv, .tsv, .jsonl, .ndjson, .json, .parquet can be read (.gz, .xz and .bz2 "
            "too). "
            "Save it as one of these",
        ),
        (
            "t.csv.gz",
            b"text,label",
            "t.csv.gz cannot be unpacked: Not a gzipped file (b'te'). Is it complete? Get or pack the file again",
        ),
        (
            "t.csv.bz2",
            b"BZh9",
            "t.csv.bz2 cannot be unpacked: Compressed data ended before the end-of-stream marker was reached. Is it "
            "complete? Get or pack the file again",
        ),
    ],
)
def test_other_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert refusal(text_file(tmp_path / name, content)) == message


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame(ROWS, columns=["text", "label"]).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    message = refusal(path)
    assert message.startswith("t.parquet is not a whole Parquet file: ")
    assert message.endswith(". Write it again, as with df.to_parquet(...)")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gone.csv"
    assert refusal(path) == f"gone.csv: there is no file {path}. Check the name, or give its whole path"


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "stuff"
    folder.mkdir()
    text_file(folder / "readme.txt", "hello")
    assert refusal(folder) == ("stuff is a folder without a table in it. Name the file, as in `data: stuff/train.csv`")


def test_a_folder_of_tables_is_a_data_set_with_splits(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    csv(folder / "train.csv", [*ROWS, ("NA", "good")])
    csv(folder / "dev.csv", ROWS[:5])
    table = load(folder, folder, validation="set")
    assert (table.report["source"], table.report["train"], table.report["validation"]) == ("set/train.csv", 41, 5)
    assert table.report["validation_note"] == "5 rows of set/dev.csv"


def test_a_folders_own_validation_split_is_used_unless_a_share_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    csv(folder / "train.csv")
    csv(folder / "test.csv", ROWS[:7])
    assert load(folder).report["validation_note"] == "8 of 40 examples held back (validation: 0.2), by label, seed 0"
    csv(folder / "validation.csv", [("something new", "good"), ("something else", "bad")])
    report = load(folder).report
    assert (report["train"], report["validation"]) == (40, 2)
    assert report["validation_note"] == "2 rows of set/validation.csv, the data set's own split 'validation'"
    assert load(folder, validation=0.1).report["validation"] == 4
    assert load(folder, split="validation", validation=0.2).report["validation"] == 0
    csv(folder / "validation.csv", [("something new", "goods")])
    assert refusal(folder) == (
        "set brings its own split 'validation' for scoring. set/validation.csv: the label 'goods' of row 1 is not "
        "among the training table's labels: bad, good. Did you mean 'good'? Add it there, or correct the rows. Or "
        "hold back a share of the rows to learn from, as in `validation: 0.1`"
    )


def test_a_saved_data_sets_own_validation_split_is_used(tmp_path: Path) -> None:
    import datasets

    parts = {"train": ROWS, "validation": ROWS[:6]}
    made = {
        name: datasets.Dataset.from_list([{"text": text, "label": label} for text, label in rows])
        for name, rows in parts.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "set"))
    report = load(tmp_path / "set").report
    assert (report["train"], report["validation"]) == (40, 6)
    assert report["validation_note"] == "6 rows of set, the data set's own split 'validation'"
    assert load(tmp_path / "set", validation=0.25).report["validation"] == 10


def test_a_folder_with_other_file_names_is_read_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set" / "data").mkdir(parents=True)
    csv(tmp_path / "set" / "data" / "train-00000-of-00001.csv")
    assert load(tmp_path / "set").report["labels"] == {"bad": 20, "good": 20}
    text_file(tmp_path / "set" / "data" / "train-00000-of-00001.csv", b"\xff\xfe\x00")
    message = refusal(tmp_path / "set")
    assert message.startswith("set cannot be read as a data set: ")
    assert message.endswith("Name the file, as in `data: set/train.csv`")


def test_a_saved_data_set_gives_label_names_in_its_own_order_and_has_splits(tmp_path: Path) -> None:
    import datasets

    names = datasets.ClassLabel(names=["poor", "decent", "excellent"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": [f"text {at}" for at in range(30)], "label": [2, 0, -1] * 10}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(str(tmp_path / "set"))
    table = load(tmp_path / "set")
    assert table.labels == ["poor", "excellent"]
    assert table.report["dropped"] == {"no label": 10}
    assert refusal(tmp_path / "set", split="tests") == (
        "set has no split 'tests'. Did you mean 'test'? Splits: train, test. Choose one, as in `split: train`"
    )
    whole.to_parquet(str(tmp_path / "set.parquet"))
    assert load(tmp_path / "set.parquet").labels == ["poor", "excellent"]


def test_a_name_that_is_nothing_here_says_so_when_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from gptx_nb.engine import data\n"
        "from gptx_nb.errors import DataError\n"
        "from gptx_nb.recipe import make_recipe\n"
        "from gptx_nb.sources import Source\n"
        "source = Source(kind='hub', shown='no-one/dff', fingerprint='0', path=None, options={})\n"
        "try:\n"
        "    data.load(make_recipe({'data': 'no-one/dff'}), {'train': source}, pathlib.Path('.'))\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout == (
        "'no-one/dff' is no variable here and no file, and the Hub cannot be reached. Check the name, or give a "
        "file, as in "
        "`data: reviews.csv`\n"
    )


def test_a_validation_table_that_is_nothing_here_is_named_as_such(tmp_path: Path) -> None:
    source = Source(kind="hub", shown="nosuch", fingerprint="0", path=None, options={})
    sources = {"train": file_source(csv(tmp_path / "t.csv")), "validation": source}
    with pytest.raises(DataError) as caught:
        data.load(make_recipe({"data": "t.csv", "validation": "nosuch"}), sources, tmp_path)
    assert str(caught.value) == (
        "validation: 'nosuch' is no variable here and no file, and the Hub cannot be reached. Check the name, or give "
        "a file, as in `validation: held-out.csv`"
    )


def test_an_empty_validation_table_says_which_setting_to_change(tmp_path: Path) -> None:
    own = text_file(tmp_path / "v.csv", "text,label\n")
    assert refusal(csv(tmp_path / "t.csv"), own, validation=str(own)) == (
        "v.csv has no rows. Add examples below its header, or name another table with `validation:`"
    )


def test_a_data_set_without_a_split_for_scoring_says_what_to_give(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"text": text, "label": label} for text, label in ROWS])
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(str(tmp_path / "set"))
    assert refusal(csv(tmp_path / "t.csv"), tmp_path / "set", validation="set") == (
        "set has no split 'validation'. Splits: a, b. Give a file with rows for scoring, as in "
        "`validation: held-out.csv`"
    )


@pytest.mark.parametrize("rows", [[], pd.DataFrame(), pd.DataFrame({"text": [], "label": []}), {}])
def test_an_object_without_rows_is_told_to_be_filled_not_to_get_a_header(tmp_path: Path, rows: Any) -> None:
    recipe = make_recipe({"data": "rows"})
    sources = stage(recipe, rows, None, tmp_path)
    with pytest.raises(DataError) as caught:
        data.load(recipe, sources, tmp_path)
    assert str(caught.value) == (
        f"rows ({type(rows).__name__}) has no rows. Put texts and labels in it, or name another table with `data:`"
    )


def test_an_empty_file_of_json_lines_is_told_without_a_header(tmp_path: Path) -> None:
    assert refusal(text_file(tmp_path / "t.jsonl", "\n")) == (
        "t.jsonl has no rows. Put texts and labels in it, or name another table with `data:`"
    )


def test_reading_files_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv")
    program = (
        "import pathlib, sys\n"
        "from gptx_nb.engine import data\n"
        "from gptx_nb.recipe import make_recipe\n"
        "from gptx_nb.sources import Source\n"
        f"source = Source(kind='file', shown='t.csv', fingerprint='0', path={str(path)!r}, options={{}})\n"
        "table = data.load(make_recipe({'data': 't.csv'}), {'train': source}, pathlib.Path('.'))\n"
        f"data.save_snapshot(table, pathlib.Path({str(tmp_path / 'data')!r}))\n"
        "print([name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])\n"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout == "[]\n"


# ---- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["text", "Sentence", "review", "comment", "content", "message", "question", "headline", "reviewText"]
)
@pytest.mark.parametrize(
    "label", ["label", "labels", "Category", "class", "sentiment", "target", "intent", "topic", "product_category"]
)
def test_columns_are_found_by_name(tmp_path: Path, text: str, label: str) -> None:
    rows = [(at, name, sentence, "2024-05-01") for at, (sentence, name) in enumerate(ROWS)]
    report = load(csv(tmp_path / "t.csv", rows, ("id", label, text, "date"))).report
    assert (report["text"], report["label"]) == (text, label)
    assert report["why"] == f"text is column {text!r} (by its name); label is column {label!r} (by its name)"


def test_names_are_preferred_to_the_numbers_they_stand_for(tmp_path: Path) -> None:
    rows = [(text, int(name == "good"), name) for text, name in ROWS]
    path = csv(tmp_path / "t.csv", rows, ("text", "label", "label_text"))
    table = load(path)
    assert table.labels == ["bad", "good"]
    assert table.report["why"] == (
        "text is column 'text' (by its name); label is column 'label_text' (it names the numbers in 'label')"
    )
    assert load(path, label="label").labels == ["0", "1"]
    assert load(path, labels=["negative", "positive"]).report["label"] == "label"
    assert load(path, labels=["good", "bad"]).labels == ["good", "bad"]


def test_columns_are_found_by_content(tmp_path: Path) -> None:
    rows = [(at, "shop" + str(at), name, text, at * 3.5) for at, (text, name) in enumerate(ROWS)]
    report = load(csv(tmp_path / "t.csv", rows, ("nr", "place", "grade", "words", "price"))).report
    assert report["why"] == (
        "text is column 'words' (it holds the longest texts); label is column 'grade' (2 different values)"
    )
    report = load(csv(tmp_path / "two.csv", [(name, text) for text, name in ROWS], ("a", "b"))).report
    assert report["why"] == (
        "text is column 'b' (it holds the longest texts); label is column 'a' (the only other column)"
    )


def test_of_several_text_columns_the_one_called_text_or_the_longest_is_taken(tmp_path: Path) -> None:
    rows = [(text[:8], text, name) for text, name in ROWS]
    report = load(csv(tmp_path / "t.csv", rows, ("title", "body", "label"))).report
    assert report["text"] == "body"
    assert "(by its name; the longest of title, body)" in report["why"]
    assert load(csv(tmp_path / "u.csv", rows, ("text", "body", "label"))).report["text"] == "text"


def test_the_recipe_names_columns_and_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "t.csv", [(text, name, name, text) for text, name in ROWS], ("text", "label", "mood", "notes")
    )
    report = load(path, text="notes", label="mood").report
    assert report["why"] == "text is column 'notes' (set); label is column 'mood' (set)"
    assert refusal(path, text="note") == (
        "t.csv has no column 'note' (text: note). Did you mean 'notes'? Columns: text, label, mood, notes"
    )
    assert refusal(path, label="Moody") == (
        "t.csv has no column 'Moody' (label: Moody). Did you mean 'mood'? Columns: text, label, mood, notes"
    )
    assert refusal(path, text="mood", label="mood") == (
        "text and label are the same column, 'mood'. Columns: text, label, mood, notes. Name two of them"
    )


def test_two_likely_label_columns_are_a_question(tmp_path: Path) -> None:
    rows = [(text, name, "xyz"[at % 3]) for at, (text, name) in enumerate(ROWS)]
    assert refusal(csv(tmp_path / "t.csv", rows, ("words", "grade", "region"))) == (
        "t.csv: grade, region could each be the label. Choose one, as in `label: grade`"
    )


def test_no_likely_label_column_is_told(tmp_path: Path) -> None:
    rows = [(text, f"a{at}", f"b{at}") for at, (text, _) in enumerate(ROWS)]
    assert refusal(csv(tmp_path / "t.csv", rows, ("words", "x", "y"))) == (
        "t.csv: no column looks like a label (few different values). Columns: words, x, y. Name one, as in `label: x`"
    )


def test_lists_that_are_all_the_same_and_objects_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    text_file(path, "\n".join(json.dumps({"text": text, "labels": [1, 2]}) for text, _ in ROWS))
    assert refusal(path) == (
        "t.jsonl: every row has all the labels, 1, 2, so nothing tells them apart. Add rows that have some of them "
        "only, or choose another column, as with `label:`"
    )
    text_file(path, "\n".join(json.dumps({"text": text, "labels": {"a": 1}}) for text, _ in ROWS))
    assert refusal(path) == (
        "t.jsonl: column 'labels' holds objects, and needs one text or label a row. Columns: text, labels. Choose with "
        "`text:` and `label:`"
    )


# ---- rows and labels ------------------------------------------------------------------------------------------------


def test_rows_without_text_or_label_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [*ROWS, (None, "good"), ("", "good"), (" \n", "bad"), ("no label", None), ("blank label", "  ")]
    pd.DataFrame(rows, columns=["text", "label"]).to_parquet(path)
    report = load(path).report
    assert (report["rows"], report["used"]) == (45, 40)
    assert report["dropped"] == {"empty text": 3, "no label": 2}


def test_nan_texts_and_labels_are_dropped(tmp_path: Path) -> None:
    path = text_file(
        tmp_path / "t.jsonl",
        '{"text": NaN, "label": "a"}\n{"text": "x", "label": NaN}\n{"text": "y", "label": "a"}\n'
        '{"text": "z", "label": "b"}',
    )
    assert load(path).report["dropped"] == {"empty text": 1, "no label": 1}


def test_a_table_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    path = text_file(tmp_path / "t.jsonl", '{"text": null, "label": "a"}\n{"text": "x", "label": null}')
    assert refusal(path) == (
        "t.jsonl: no row can be used (1 with empty text and 1 with no label; text is column 'text', label is column "
        "'label'). Columns: text, label. Choose with `text:` and `label:`"
    )


def test_a_few_number_texts_are_used_and_counted(tmp_path: Path) -> None:
    path = text_file(
        tmp_path / "t.jsonl",
        "\n".join(json.dumps({"text": text, "label": label}) for text, label in [*ROWS, (12, "good"), (3.5, "bad")]),
    )
    table = load(path, validation=0)
    assert table.train.texts[-2:] == ["12", "3.5"]
    assert table.report["warnings"] == ["2 texts are numbers, and used as text"]


def test_mostly_number_texts_are_a_wrong_column(tmp_path: Path) -> None:
    rows = [(at, text, name) for at, (text, name) in enumerate(ROWS)]
    path = csv(tmp_path / "t.csv", rows, ("nr", "words", "label"))
    assert refusal(path, text="nr") == (
        "t.csv: 40 of 40 texts in column 'nr' are numbers: is it the wrong column? Columns: nr, words, label. "
        "Name another, as in `text: words`"
    )
    path = csv(tmp_path / "u.csv", [(at, name) for at, (_, name) in enumerate(ROWS)])
    assert refusal(path) == (
        "u.csv: 40 of 40 texts in column 'text' are numbers: is it the wrong column? Columns: text, label. Give a "
        "table with a column of texts"
    )


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 0], ["0", "1"]),
        ([1.0, 0.0, None], ["0", "1"]),
        ([True, False], ["false", "true"]),
        ([10, 9, 2], ["2", "9", "10"]),
        ([1.5, -1.0], ["-1.0", "1.5"]),
        ([" b ", "a", "b"], ["a", "b"]),
        (["007", "7"], ["007", "7"]),
    ],
)
def test_labels_become_texts_in_a_stable_order(tmp_path: Path, values: list[Any], labels: list[str]) -> None:
    path = tmp_path / "t.parquet"
    rows = [(f"text {at}", values[at % len(values)]) for at in range(12)]
    pq.write_table(pa.table({"text": [row[0] for row in rows], "label": [row[1] for row in rows]}), path)
    assert load(path).labels == labels


def test_whole_floats_in_a_csv_are_whole_numbers(tmp_path: Path) -> None:
    assert load(csv(tmp_path / "t.csv", [(f"text {at}", float(at % 2)) for at in range(12)])).labels == ["0", "1"]


@pytest.mark.parametrize("ordered", [False, True])
def test_a_categorical_of_pandas_keeps_its_order(tmp_path: Path, ordered: bool) -> None:
    grades = pd.Categorical(["hi", "lo", "mid"] * 5, categories=["lo", "none", "mid", "hi"], ordered=ordered)
    frame = pd.DataFrame({"text": [f"text {at}" for at in range(15)], "label": grades})
    recipe = make_recipe({"data": "df"})
    assert data.load(recipe, stage(recipe, frame, None, tmp_path), tmp_path).labels == ["lo", "mid", "hi"]


def test_a_dictionary_that_nobody_put_in_order_gives_sorted_labels(tmp_path: Path) -> None:
    labels = pa.array(["hi", "lo", "mid"] * 5).dictionary_encode()
    pq.write_table(pa.table({"text": [f"text {at}" for at in range(15)], "label": labels}), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").labels == ["hi", "lo", "mid"]


def test_the_recipe_orders_and_names_labels(tmp_path: Path) -> None:
    numbers = csv(tmp_path / "n.csv", [(text, int(name == "good")) for text, name in ROWS])
    table = load(numbers, labels=["negative", "positive"])
    assert table.labels == ["negative", "positive"]
    assert table.report["labels"] == {"negative": 20, "positive": 20}
    assert dict(zip(table.train.texts, table.train.labels, strict=True))[ROWS[1][0]] == 1
    named = csv(tmp_path / "w.csv")
    assert load(named, labels=["good", "bad"]).labels == ["good", "bad"]
    table = load(named, labels=["good", "bad", "unsure"])
    assert table.report["warnings"] == ["no row has the label unsure"]
    assert refusal(named, labels=["god", "evil"]) == (
        "w.csv: the label 'bad' of 20 rows (first: row 1; 1 more such label) is not among the labels: god, evil. Add "
        "it there, or correct the rows"
    )
    assert refusal(named, labels=["bad", "goods"]) == (
        "w.csv: the label 'good' of 20 rows (first: row 2) is not among the labels: bad, goods. Did you mean "
        "'goods'? Add it there, or correct the rows"
    )


def test_one_label_only_is_refused(tmp_path: Path) -> None:
    assert refusal(csv(tmp_path / "t.csv", [(text, "good") for text, _ in ROWS])) == (
        "t.csv: every row has the label 'good' (column 'label'); at least two labels are needed. Add rows with another"
    )
    more = text_file(tmp_path / "more.csv", "text,label,verdict\na b,x,good\nc d,x,bad\n")
    assert refusal(more, label="label").endswith("Add rows with another, or choose the column, as in `label: verdict`")


def test_a_column_of_nearly_as_many_values_as_rows_is_no_label(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", [(text, f"words {at}") for at, (text, _) in enumerate(ROWS)])
    assert refusal(path) == (
        "t.csv: column 'label' has 40 different labels in 40 rows; it looks like text, not like a label. Columns: "
        "text, label. Name the right one with `label:`"
    )
    path = csv(tmp_path / "u.csv", [(text, at * 0.37) for at, (text, _) in enumerate(ROWS)])
    assert "it looks like numbers, not like a label" in refusal(path)


def test_many_classes_of_few_rows_are_learnt_where_the_column_is_named(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", [(text, f"class {at % 25}") for at, (text, _) in enumerate(ROWS)])
    assert "has 25 different labels in 40 rows; it looks like text" in refusal(path)
    assert len(load(path, label="label").labels) == 25
    path = csv(tmp_path / "u.csv", [(text, f"words {at}") for at, (text, _) in enumerate(ROWS)])
    assert "has 40 different labels in 40 rows" in refusal(path, label="label")


def test_a_label_that_no_held_row_has_is_told(tmp_path: Path) -> None:
    rows = [(f"text {at}", label) for at, label in enumerate("aaaaaabbcc")]
    told = load(csv(tmp_path / "t.csv", rows), validation=0.2).report["warnings"]
    assert [each for each in told if "no row that is held back has" in each] == [
        "no row that is held back has c, so it is learned from and not scored. A larger `validation:`, or a table of "
        "its own, scores more"
    ]
    assert not load(csv(tmp_path / "u.csv", [(f"text {at}", "ab"[at % 2]) for at in range(20)])).report["warnings"]


def test_repeats_and_disputed_texts_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0], (ROWS[1][0], "bad"), (ROWS[2][0], "good")]
    assert load(csv(tmp_path / "t.csv", rows)).report["warnings"] == [
        "3 rows repeat a text of t.csv",
        "2 texts stand there with different labels: no model can learn both",
    ]


def test_half_a_surrogate_pair_is_mended_and_told(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in [("bad \ud800 one", "a"), ("fine", "b")]]
    table = load(text_file(tmp_path / "t.jsonl", "\n".join(lines)))
    assert table.train.texts[0] == "bad \ufffd one"
    assert table.report["warnings"] == ["1 text with broken Unicode (half a character) mended with \ufffd"]


def test_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there are no examples. Type some below `examples:`, or name a table with `data:`"
    ):
        data.load(make_recipe({}), {"train": None, "validation": None}, tmp_path)


# ---- split ----------------------------------------------------------------------------------------------------------


def test_the_split_is_by_label_and_always_the_same(tmp_path: Path) -> None:
    rows = [(f"text {at}", "rare" if at % 10 == 0 else "common") for at in range(200)]
    table = load(csv(tmp_path / "t.csv", rows))
    assert table.validation is not None
    assert Counter(table.labels[at] for at in table.validation.labels) == {"common": 36, "rare": 4}
    assert len(table.train) == 160
    assert table.report["validation_note"] == "40 of 200 examples held back (validation: 0.2), by label, seed 0"
    assert load(tmp_path / "t.csv").report["fingerprint"] == table.report["fingerprint"]
    shuffled = load(csv(tmp_path / "u.csv", rows[::-1]))
    assert shuffled.validation is not None
    assert set(shuffled.validation.texts) == set(table.validation.texts)
    other = load(tmp_path / "t.csv", seed=1)
    assert other.validation is not None
    assert set(other.validation.texts) != set(table.validation.texts)


def test_every_label_keeps_a_row_to_learn_from_and_a_single_row_is_never_held_back(tmp_path: Path) -> None:
    rows = [*ROWS, ("the only one", "single"), ("first of two", "pair"), ("second of two", "pair")]
    table = load(csv(tmp_path / "t.csv", rows), validation=0.9)
    assert set(table.train.labels) == {0, 1, 2, 3}
    assert table.validation is not None
    assert table.labels.index("single") not in table.validation.labels
    assert "one row only, so learned from and not scored: single" in table.report["warnings"]


def test_identical_texts_never_stand_on_both_sides(tmp_path: Path) -> None:
    rows = [(f"text {at % 30}", "good" if at % 3 else "bad") for at in range(120)]
    table = load(csv(tmp_path / "t.csv", rows), validation=0.4)
    assert table.validation is not None
    assert not set(table.train.texts) & set(table.validation.texts)
    assert len(table.train) + len(table.validation) == 120


def test_a_label_that_only_shares_texts_with_others_is_still_learned_from() -> None:
    texts = [f"text {at}" for at in range(20)] + ["text 3"]
    labels = [0] * 20 + [1]
    for seed in range(30):
        kept, held, _ = data.split(texts, labels, 0.5, seed)
        assert {labels[row] for row in kept} == {0, 1}
        assert not {texts[row] for row in kept} & {texts[row] for row in held}


@pytest.mark.parametrize(
    ("rows", "share", "note"),
    [
        (ROWS[:9], 0.2, "9 examples are too few to hold some back for scoring (10 are enough)"),
        (ROWS, 0, "validation: 0, so no example is held back and there is no score"),
        (ROWS, 0.01, "no example is held back: 0.01 of 40, with one left to learn from for each label, is none"),
    ],
)
def test_without_validation_the_report_says_why(tmp_path: Path, rows: list[Any], share: float, note: str) -> None:
    table = load(csv(tmp_path / "t.csv", rows), validation=share)
    assert table.validation is None
    assert (table.report["train"], table.report["validation"]) == (len(rows), 0)
    assert table.report["validation_note"] == note


def test_an_own_validation_table_is_used_and_leaks_are_counted(tmp_path: Path) -> None:
    own = csv(tmp_path / "v.csv", [("something new", "good"), ROWS[0], ROWS[1]])
    table = load(csv(tmp_path / "t.csv"), own, validation=str(own))
    assert len(table.train) == 40
    assert table.validation is not None
    assert table.validation.labels == [1, 0, 1]
    assert table.report["validation_note"] == "3 rows of v.csv"
    assert table.report["warnings"] == [
        "2 of 3 validation rows are in the training table too: the score will look better than it is"
    ]


def test_an_own_validation_table_must_have_the_same_columns_and_labels(tmp_path: Path) -> None:
    train = csv(tmp_path / "t.csv")
    own = csv(tmp_path / "v.csv", ROWS, ("texts", "label"))
    assert refusal(train, own, validation=str(own)) == (
        "validation: v.csv has no column 'text', the text of the training table. Did you mean 'texts'? Columns: "
        "texts, label. Rename it in one of the tables"
    )
    own = csv(tmp_path / "w.csv", [*ROWS, ("new", "goods")])
    assert refusal(train, own, validation=str(own)) == (
        "w.csv: the label 'goods' of row 41 is not among the training table's labels: bad, good. Did you mean "
        "'good'? Add it "
        "there, or correct the rows"
    )


def test_an_own_validation_table_of_numbers_gets_the_recipes_names(tmp_path: Path) -> None:
    numbers = [(text, float(name == "good")) for text, name in ROWS]
    own = csv(tmp_path / "v.csv", [("new", 1), ("other", 0)])
    table = load(csv(tmp_path / "t.csv", numbers), own, validation=str(own), labels=["negative", "positive"])
    assert table.validation is not None
    assert table.validation.labels == [1, 0]


# ---- report and snapshot --------------------------------------------------------------------------------------------


def test_the_report_tells_everything(tmp_path: Path) -> None:
    report = load(csv(tmp_path / "t.csv")).report
    assert report["columns"] == ["text", "label"]
    assert report["examples"] == [{"text": text, "label": label} for text, label in ROWS[:3]]
    assert (report["rows"], report["used"], report["train"], report["validation"]) == (40, 40, 32, 8)
    assert report["dropped"] == {}
    assert report["encoding"] == "utf-8"
    assert report["warnings"] == []
    assert len(report["fingerprint"]) == 64


def test_seventy_seven_labels_survive_the_snapshot(tmp_path: Path) -> None:
    rows = [(f"zero\0byte, line\n{at} 很好 🙂", f"intent {at % 77} é") for at in range(770)]
    lines = "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows)
    table = load(text_file(tmp_path / "t.jsonl", lines))
    data.save_snapshot(table, tmp_path / "data")
    assert len(table.labels) == 77
    assert data.load_snapshot(tmp_path / "data") == table
    frame = pd.read_parquet(tmp_path / "data" / "train.parquet")
    assert list(frame.columns) == ["text", "label", "label_name", "row"]
    assert [rows[number - 1] for number in frame["row"]] == list(zip(frame["text"], frame["label_name"], strict=True))
    assert frame["label_name"].tolist() == [table.labels[at] for at in table.train.labels]


def test_a_snapshot_is_the_same_bytes_each_time_and_outlives_its_source(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv")
    for name in ("a", "b"):
        data.save_snapshot(load(path), tmp_path / name)
    path.unlink()
    for name in ("train.parquet", "validation.parquet", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert data.load_snapshot(tmp_path / "a").report["train"] == 32


def test_a_snapshot_without_validation_has_no_file_for_it(tmp_path: Path) -> None:
    data.save_snapshot(load(csv(tmp_path / "t.csv")), tmp_path / "data")
    data.save_snapshot(load(tmp_path / "t.csv", validation=0), tmp_path / "data")
    assert not (tmp_path / "data" / "validation.parquet").exists()
    assert data.load_snapshot(tmp_path / "data").validation is None


def test_a_changed_or_missing_snapshot_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(
        DataError, match=r"holds no complete snapshot of the examples. Run the cell again under another name"
    ):
        data.load_snapshot(folder)
    data.save_snapshot(load(csv(tmp_path / "t.csv")), folder)
    (folder / "train.parquet").write_bytes((folder / "validation.parquet").read_bytes())
    with pytest.raises(DataError, match=r"has been changed since it was made. Run the cell again under another name"):
        data.load_snapshot(folder)
    (folder / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"cannot be read: .* Run the cell again under another name"):
        data.load_snapshot(folder)
    (folder / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"cannot be read: .* Run the cell again under another name"):
        data.load_snapshot(folder)


def test_a_staged_table_is_found_below_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with lzma.open(tmp_path / "source" / "train.jsonl.xz", "wt") as handle:
        handle.write("\n".join(json.dumps(list(row)) for row in ROWS))
    source = Source(kind="examples", shown="examples", fingerprint="0", path="source/train.jsonl.xz", options={})
    table = data.load(make_recipe({}), {"train": source, "validation": None}, tmp_path)
    assert table.labels == ["bad", "good"]


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "trouble", lambda: "it does not answer")
    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    source = Source(kind="hub", shown="no-one/dff", fingerprint="0", path=None, options={})
    with pytest.raises(DataError, match="the Hub cannot be reached"):
        data.load(make_recipe({"data": "no-one/dff"}), {"train": source}, tmp_path)
    assert time.monotonic() - started < 10
    assert (False, before) == (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
