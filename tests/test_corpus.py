"""From texts to shards: nothing is lost that should stay, nothing stays that should not, and mistakes are named."""

import bz2
import errno
import gzip
import io
import itertools
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import zstandard
from hubs import Hub
from pyarrow import parquet
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gptx_nb import pretraining_words
from gptx_nb.engine import corpus, duplicates, memory, shards, texts
from gptx_nb.engine.corpus import Corpus
from gptx_nb.engine.shards import Shards
from gptx_nb.errors import DataError, ModelError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.recipe import make_recipe
from gptx_nb.sources import check_unchanged, stage

WORDS = ("the", "river", "stone", "light", "of", "and", "under", "moves", "slowly", "bright", "old", "house", "wind")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "corpus"


def writing(number: int, words: int = 60) -> str:
    """A text of its own for each number."""
    chosen = random.Random(number)
    return " ".join(chosen.choice(WORDS) for _ in range(words)) + f" {number}."


TEXTS = [writing(number) for number in range(200)]


def prepare(
    folder: Path,
    data: object,
    say: Callable[[str], None] = lambda done: None,
    *,
    given: Any = None,
    own: object = None,
    **settings: Any,
) -> Corpus:
    """Prepare `data`, with `own` texts held back, in a run's folder as the worker does; `given` is a tokenizer."""
    recipe = make_recipe({"vocabulary": 300, "context": 32, **settings}, "", PretrainRecipe)
    run = folder / "run"
    run.mkdir(exist_ok=True, parents=True)
    sources = stage(recipe, data, own, run)
    corpus.prepare(recipe, sources, run, run / "data", given, say)
    return corpus.load(run / "data")


def documents_of(read: Shards, tokenizer: Any) -> list[str]:
    row = read.read(0, read.tokens)
    borders = np.flatnonzero(row == read.end)
    assert borders[0] == 0
    assert borders[-1] == read.tokens - 1
    return [tokenizer.decode(row[begin + 1 : end]) for begin, end in itertools.pairwise(borders)]


# ---- sources --------------------------------------------------------------------------------------------------------


def lines_of(column: str = "text") -> str:
    return "".join(json.dumps({"id": number, column: text}) + "\n" for number, text in enumerate(TEXTS))


def test_every_kind_of_source_gives_the_same_documents(tmp_path: Path) -> None:
    lines = lines_of().encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(lines))
    with zstandard.open(tmp_path / "a.jsonl.zst", "wb") as packed:
        packed.write(lines[:5000])
    with (tmp_path / "a.jsonl.zst").open("ab") as packed:
        packed.write(zstandard.compress(lines[5000:]))  # a second frame
    table = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    (tmp_path / "paragraphs.md").write_text("\n\n".join(TEXTS))
    many = tmp_path / "many"
    (many / "deeper").mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (many / ("deeper" if number % 2 else ".") / f"{number:03}.txt").write_text(text)
    (many / ".hidden.txt").write_text("not this")
    (many / "README.md").write_text("nor this, which is about the others")
    sources: list[tuple[object, dict[str, Any]]] = [
        *((str(path), {}) for path in sorted(tmp_path.glob("a.*"))),
        (str(tmp_path / "lines.txt"), {"document": "line"}),
        (str(tmp_path / "paragraphs.md"), {"document": "paragraph"}),
        (str(many), {}),
        (table, {}),
        (TEXTS, {}),
    ]
    for number, (source, settings) in enumerate(sources):
        made = prepare(tmp_path / str(number), source, **settings)
        found = documents_of(made.train, made.tokenizer) + documents_of(made.validation, made.tokenizer)
        assert sorted(found) == sorted(TEXTS), source
        assert made.report["documents"] == made.train.documents + made.validation.documents == len(TEXTS)


def test_a_plain_file_is_one_document_unless_said_otherwise_and_its_end_is_held_back(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n".join(TEXTS))
    made = prepare(tmp_path, str(tmp_path / "book.txt"))
    assert made.train.documents == made.validation.documents == 1
    whole = "\n".join(documents_of(each, made.tokenizer)[0] for each in (made.train, made.validation))
    assert whole == "\n".join(TEXTS)
    assert made.report["validation_note"].startswith("the end of the longest document")
    assert made.report["documents"] == 1


def test_the_column_with_the_text_is_found_or_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of("story"))
    assert prepare(tmp_path / "1", str(tmp_path / "a.jsonl")).report["documents"] == len(TEXTS)
    rows = [{"left": text, "right": text[::-1]} for text in TEXTS]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"has the columns left, right, and which one holds the text\? .*`text: right`"):
        prepare(tmp_path / "2", str(tmp_path / "b.jsonl"))
    assert prepare(tmp_path / "3", str(tmp_path / "b.jsonl"), text="left").report["documents"] == len(TEXTS)
    with pytest.raises(DataError, match=r"has no column 'lft'\. Did you mean 'left'\?"):
        prepare(tmp_path / "4", str(tmp_path / "b.jsonl"), text="lft")


# ---- cleaning, duplicates, split ------------------------------------------------------------------------------------


def test_what_nobody_sees_goes_and_is_counted() -> None:
    counts: Counter[str] = Counter()
    dirty = "\ufeffCafe\u0301 \r\nnext\x00 line  \r\n\r\n\r\n\r\nlast\x0bend \u200b"
    assert "".join(texts.clean([dirty], counts)) == "Café\nnext line\n\nlast\nend \u200b"
    assert set(counts.values()) == {1}
    assert len(counts) == 4
    assert "".join(texts.clean(["plain\n\ttext"], counts)) == "plain\n\ttext"
    assert set(counts.values()) == {1}


def test_equal_and_nearly_equal_documents_are_dropped(tmp_path: Path) -> None:
    long = [writing(number, 400) for number in range(20)]
    near = [text.replace(" river ", " RIVER, ", 2) for text in long[:5]]
    shouted = [text.upper() for text in long[5:8]]
    made = prepare(tmp_path / "near", [*long, *near, *shouted])
    assert made.report["dropped"] == {"near duplicates": 5, "duplicates": 3}
    made = prepare(tmp_path / "equal", [*long, *near, *shouted], near_duplicates=False)
    assert made.report["dropped"] == {"duplicates": 3}


def letters_of(text: str) -> duplicates.Letters:
    made = duplicates.Letters()
    made.add(text)
    return made


def test_what_is_kept_of_a_document_is_some_hundred_bytes_and_finds_what_was_seen() -> None:
    rows, known = duplicates._Rows(3), np.random.default_rng(0).integers(0, 2**64, (5_000, 3), dtype=np.uint64)
    known[100:200, 1] = known[:100, 1]  # the first row with a key stays
    for row in known:
        rows.add(row)
    for number, row in enumerate(known):
        assert rows.find(row) == ({number - 100, number} if 100 <= number < 200 else {number})
    assert rows.find(known[0] + np.uint64(1)) == set()
    seen = duplicates.Seen(near=True)
    for number in range(2_100):
        assert seen.why(letters_of(writing(number, 30))) is None
    assert (seen._equal.bytes + seen._bands.bytes) / 2_100 <= 300
    assert seen.why(letters_of(writing(17, 30).upper())) == "duplicates"
    assert seen.why(letters_of(writing(2_000, 30) + "!")) == "near duplicates"


def test_beyond_what_memory_is_for_only_equal_documents_are_found_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (duplicates, corpus):
        monkeypatch.setattr(place, "MOST_NEAR", 150)
    made = prepare(tmp_path, [*TEXTS, TEXTS[3] + "!", TEXTS[190] + "!", TEXTS[191]])
    assert made.report["dropped"] == {"near duplicates": 1, "duplicates": 1}
    assert made.report["warnings"] == [
        "documents that nearly equal another one were looked for among the first 150 only: to know more takes more "
        "than a gigabyte of memory"
    ]


def test_a_signature_estimates_how_alike_two_texts_are() -> None:
    random_bytes = np.random.default_rng(0)
    for length in (400, 6_000, 60_000):
        for shared in (0.0, 0.5, 0.9):
            found, exact = [], []
            for _ in range(20):
                common = random_bytes.integers(97, 123, int(length * shared), dtype=np.uint8).tobytes()
                one, other = (
                    common + random_bytes.integers(97, 123, length - len(common), dtype=np.uint8).tobytes()
                    for _ in range(2)
                )
                found.append(float(np.mean(duplicates.signature(one) == duplicates.signature(other))))
                sets = [
                    {each[place : place + duplicates.WINDOW] for place in range(len(each) - duplicates.WINDOW + 1)}
                    for each in (one, other)
                ]
                exact.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
            assert np.mean(found) == pytest.approx(np.mean(exact), abs=0.06), (length, shared)


def test_what_is_held_back_depends_on_the_content_alone_and_is_not_learnt_from(tmp_path: Path) -> None:
    made = prepare(tmp_path / "1", TEXTS, validation=0.2)
    turned = prepare(tmp_path / "2", [*TEXTS[::-1], *TEXTS[:30]], validation=0.2)
    held = [set(documents_of(each.validation, each.tokenizer)) for each in (made, turned)]
    assert held[0] == held[1]
    assert 20 <= len(held[0]) <= 60
    assert held[0].isdisjoint(documents_of(made.train, made.tokenizer))


def test_texts_of_ones_own_are_held_back_and_what_equals_them_is_not_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:10]))
    made = prepare(tmp_path, TEXTS, validation=str(tmp_path / "own.jsonl"))
    assert documents_of(made.validation, made.tokenizer) == TEXTS[:10]
    assert sorted(documents_of(made.train, made.tokenizer)) == sorted(TEXTS[10:])
    assert made.report["dropped"]["duplicates"] == 10


def test_texts_of_ones_own_that_are_an_object_take_nothing_from_those_to_learn_from(tmp_path: Path) -> None:
    made = prepare(tmp_path, TEXTS[10:], own=TEXTS[:10])  # the recipe's own share stays one in a hundred
    assert documents_of(made.validation, made.tokenizer) == TEXTS[:10]
    assert sorted(documents_of(made.train, made.tokenizer)) == sorted(TEXTS[10:])


def test_texts_that_all_equal_those_held_back_leave_nothing_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of())
    same = str(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"data: nothing is left of .*a\.jsonl: its texts \(200\) equal or nearly eq"):
        prepare(tmp_path, same, own=same)


def test_the_end_of_the_longest_document_is_held_back_of_few(tmp_path: Path) -> None:
    every = [TEXTS[0], "\n".join(TEXTS[10:60]), *TEXTS[1:4]]
    made = prepare(tmp_path, every, validation=0)
    kept, held = (documents_of(each, made.tokenizer) for each in (made.train, made.validation))
    assert [*kept[:-1], f"{kept[-1]}\n{held[0]}"] == [TEXTS[0], *TEXTS[1:4], every[1]]
    assert made.report["documents"] == 5
    lines = dict(pretraining_words.corpus_lines(made.report))
    assert lines["held back"].startswith("1 document, ")
    assert "5 documents, " in lines["texts"]


# ---- folders --------------------------------------------------------------------------------------------------------


def test_what_is_left_out_of_a_folder_and_of_its_tables_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"text": each} for each in TEXTS[:75]] + [{"content": each} for each in TEXTS[75:150]] + [{"text": None}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.csv").write_text(f"id,text\n1,{TEXTS[150]}\n2\n")
    (folder / "meta.csv").write_text("id,year,place\n1,1900,here\n")
    for name in ("page.html", "other.html", "paper.pdf", "README.md"):
        (folder / name).write_text("nothing")
    made = prepare(tmp_path, str(folder))
    assert made.report["documents"] == 76
    assert made.report["dropped"] == {
        "rows without text": 77,
        "tables without a text column (meta.csv)": 1,
        ".html files": 2,
        ".pdf files": 1,
        "README files": 1,
    }
    told = dict(pretraining_words.corpus_lines(made.report))["left out"].split(", ")
    assert {"77 rows without text", "2 .html files", "1 tables without a text column (meta.csv)"} <= set(told)
    (folder / "a.jsonl").unlink()
    (folder / "b.csv").unlink()
    with pytest.raises(DataError, match=r"meta\.csv has the columns id, year, place, and which one holds the text\?"):
        prepare(tmp_path / "alone", str(folder))


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(TEXTS))
    (folder / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"^data: .*/set/b\.txt is a link to a file that is not there\. Mend or remove"):
        prepare(tmp_path, str(folder))


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_text_never_becomes_a_special_token_and_every_script_is_spelled(tmp_path: Path) -> None:
    odd = [
        "It says <|endoftext|> here, in plain letters.",
        "一个句子没有未知的词，也没有空格。",
        "😀 emoji and ​ nothing else",
    ]
    made = prepare(tmp_path, [*odd, *TEXTS], validation=0.0)
    found = documents_of(made.train, made.tokenizer) + documents_of(made.validation, made.tokenizer)
    assert set(odd) <= set(found)


def test_long_documents_are_tokenised_in_pieces_as_they_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(f"{part}  two  blanks\tand a tab " + part for part in TEXTS[:20])
    tokenizer = corpus.train_tokenizer(iter(TEXTS), 400)
    monkeypatch.setattr(corpus, "PIECE", 37)
    pieces = list(corpus._pieces([text]))
    assert len(pieces) > 100
    assert "".join(pieces) == text
    rows = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    assert [token for row in rows for token in row] == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("vocabulary", [300, 70_000])
def test_shards_give_back_every_token_whatever_their_size(
    vocabulary: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 1000)
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(1, vocabulary, size).tolist() for size in numbers.integers(0, 700, 60)]
    shards.write(tmp_path / "s", ((True, row, len(row)) for row in rows), end=0, vocabulary=vocabulary)
    read = Shards(tmp_path / "s")
    expected = [token for row in rows for token in [0, *row]] + [0]
    assert read.read(0, read.tokens).tolist() == expected
    assert len(list((tmp_path / "s").glob("*.bin"))) > 10
    ring = expected * 2
    for start in numbers.integers(0, read.tokens, 50):
        assert read.read(int(start), 900).tolist() == ring[start : start + 900]


def test_shards_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    shards.write(tmp_path / "s", [(True, [1, 2, 3], 3)], end=0, vocabulary=10)
    file = tmp_path / "s" / "tokens-000.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens-000.bin has 8 bytes, and 10 were written"):
        Shards(tmp_path / "s")


def test_a_sample_for_the_tokenizer_is_from_the_whole_corpus(tmp_path: Path) -> None:
    with (tmp_path / "spool").open("wb") as file:
        size = sum(corpus._put(file, True, text) for text in TEXTS)
    sample = list(corpus._sample(tmp_path / "spool", size, 2_000))
    assert 1_500 < sum(map(len, sample)) < 2_500
    assert TEXTS.index(sample[-1]) > 150


# ---- the Hub --------------------------------------------------------------------------------------------------------

# Reads all texts of each data set and prints how many there are or what went wrong.
READER = """
import sys
from collections import Counter
import datasets
from gptx_nb.engine import texts
from gptx_nb.errors import DataError
from gptx_nb.sources import Source
datasets.config.STREAMING_READ_MAX_RETRIES, datasets.config.STREAMING_READ_RETRY_INTERVAL = 1, 0
for name in sys.argv[1:]:
    try:
        found = texts.documents(
            Source("hub", name, ""), None, setting="data", column=None, document="file", subset=None,
            left_out=Counter(),
        )
        print(sum(1 for text in found), "texts")
    except DataError as error:
        print(error)
"""


def test_a_data_set_of_the_hub_is_streamed_and_what_goes_wrong_there_is_one_line(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    with Hub(lines_of()) as hub:
        environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", READER, "me/texts", "me/broken", "me/nothing"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    whole, broken, absent = done.stdout.splitlines()
    assert whole == "200 texts"
    assert re.match(r"data: 'me/broken' .* from the Hugging Face Hub: .+", broken)
    assert re.match(
        r"data: 'me/nothing' is no variable, file or folder here, and could not be had from the Hugging Face Hub: .*\. "
        r"Check the name, or give texts of yours, as in `data: books/`",
        absent,
    )


# ---- mistakes -------------------------------------------------------------------------------------------------------


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in (folder / "run").iterdir() if path.name not in ("source",)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_that_is_not_utf8_is_named_with_its_place(packed: bool, tmp_path: Path) -> None:
    content = ("good line\n" * 5).encode() + b"caf\xe9 au lait\n"
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=r"a\.txt\S* is not UTF-8 at byte 53 \(0xe9, line 6\)"):
        prepare(tmp_path, str(path))
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("caf\xe9 au lait".encode("windows-1252"), "iconv -f WINDOWS-1252 -t UTF-8` for a text of one byte a letter"),
        (
            "a text of two bytes a letter".encode("utf-16"),
            "It begins like UTF-16: save it as UTF-8, as with `iconv -f U",
        ),
        ("a text of four".encode("utf-32"), "It begins like UTF-32: save it as UTF-8, as with `iconv -f UTF-32 -t UTF"),
        (np.random.default_rng(0).bytes(5_000), "It looks like no text at all: give a file of plain text"),
    ],
)
def test_what_is_not_utf8_is_told_how_it_becomes_it(content: bytes, advice: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, str(tmp_path / "a.txt"))
    assert advice in str(caught.value)
    assert ("WINDOWS-1252" in str(caught.value)) == ("one byte" in advice)


def test_a_file_that_has_gone_is_not_called_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    sources = stage(make_recipe({"data": str(path)}, "", PretrainRecipe), None, None, tmp_path)
    path.unlink()
    assert sources["train"] is not None
    with pytest.raises(DataError, match=r"a\.txt is not there any more: it was moved or deleted\. Check the path"):
        check_unchanged(sources["train"], "data", tmp_path)


def latin1_parquet() -> bytes:
    """A Parquet file whose texts claim to be UTF-8."""
    raw = pa.array([b"caf\xe9 au lait"])
    made = io.BytesIO()
    parquet.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 1, raw.buffers())}), made)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"data: .*a\.txt holds no text of 16 characters or more\. Name texts"),
        ("a.jsonl", b'{"text": "short"}\n', r"holds no text of 16 characters or more"),
        ("a.jsonl", b'{"text": "long enough to count"}\n{broken\n', r"line 2 is no JSON"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: 'text' holds a int, and a text is wanted"),
        ("a.jsonl", b"[1, 2]\n", r"line 1 holds a list, not an object"),
        ("a.txt.gz", b"not gzip at all", r"cannot be unpacked|cannot be read"),
        ("a.txt.zst", zstandard.compress(b"long enough to count")[:-3], r"cannot be unpacked: .* Is it complete\?"),
        ("a.txt.zst", b"not Zstandard at all", r"cannot be unpacked: .* Is it complete\?"),
        ("a.jsonl", b"[" * 100_000, r"line 1 is no JSON"),
        ("a.parquet", b"not parquet", r"is no Parquet file"),
        ("a.parquet", latin1_parquet(), r"a text of 'text' is not UTF-8 at its byte 3 \(0xe9\)"),
    ],
)
def test_texts_that_cannot_be_read_are_told_and_nothing_is_left(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, str(tmp_path / name))
    assert left_behind(tmp_path) == []


def test_a_folder_without_texts_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no texts: files that end in \.txt"):
        prepare(tmp_path, str(tmp_path / "empty"))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10_000))
    with pytest.raises(DataError, match=r"the cleaned texts need about [0-9]+ kB, and 10 kB are free on the disk"):
        prepare(tmp_path, str(tmp_path / "a.jsonl"))
    assert left_behind(tmp_path) == []


def test_a_disk_that_fills_meanwhile_is_told_with_what_is_free_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines_of().encode()))  # nobody knows how much it unpacks to
    put, usage = corpus._put, shutil.disk_usage(tmp_path)

    def fills(file: Any, begins: bool, text: str) -> int:
        if file.tell() > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(file, begins, text)

    monkeypatch.setattr(corpus, "_put", fills)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=24_000_000))
    with pytest.raises(
        DataError,
        match=r"data: the texts of .*a\.jsonl\.xz, cleaned and as tokens, need more than the 24 MB that are free on "
        r"the disk of .*/run\. Free some, or set GPTX_HOME",
    ):
        prepare(tmp_path, str(tmp_path / "a.jsonl.xz"))
    assert left_behind(tmp_path) == []


def test_too_little_text_for_a_row_is_told_with_the_context_that_fits(tmp_path: Path) -> None:
    made = prepare(tmp_path, TEXTS[:3])
    with pytest.raises(DataError, match=r"fewer than two rows of 4,096\. Give more text, or type `context: \d+`"):
        made.train.require_rows(4096, made.report["dropped"])
    equal = prepare(tmp_path / "equal", [TEXTS[0]] * 500)
    with pytest.raises(DataError, match=r"tokens once documents are left out \(499 duplicates\), fewer than two rows"):
        equal.train.require_rows(4096, equal.report["dropped"])
    assert equal.report["validation_note"].endswith("a share of 0.01 holds no whole one back")
    none_held = prepare(tmp_path / "none", TEXTS, validation=0)
    assert none_held.report["validation_note"].endswith("`validation: 0` holds no whole one back")
    with pytest.raises(DataError, match=r"fewer than two rows of 4,096\. Give more text$"):
        prepare(tmp_path / "short", ["Hardly any text."]).train.require_rows(4096, {})


def test_a_share_that_would_hold_all_documents_back_takes_an_end_of_one(tmp_path: Path) -> None:
    made = prepare(tmp_path, TEXTS[:3], validation=0.9)
    assert made.report["validation_note"].endswith("a share of 0.9 holds all back")
    assert made.train.documents == 3
    assert made.validation.documents == 1
    (end,) = documents_of(made.validation, made.tokenizer)
    begun = documents_of(made.train, made.tokenizer)
    longest = max(TEXTS[:3], key=len)
    assert longest.endswith(end)
    assert sorted(each for each in TEXTS[:3] if each != longest) == sorted(each for each in begun if each in TEXTS)
    assert made.report["documents"] == 3


def test_neighbours_that_need_more_memory_than_is_free_are_refused_before_texts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1_000_000)
    with pytest.raises(DataError, match=r"takes 1 MB of memory for a vocabulary of 300 tokens, and 1 MB are free"):
        prepare(tmp_path, TEXTS, vocabulary=300, embeddings="cooccurrence")
    monkeypatch.setattr(memory, "available", lambda device: 1_000_000_000)
    with pytest.raises(DataError, match=r"or take a smaller vocabulary, as in `vocabulary: 7168`"):
        prepare(tmp_path, TEXTS, vocabulary=16_384, embeddings="cooccurrence")
    assert left_behind(tmp_path) == []


def test_beginnings_are_long_ones_or_where_there_are_none_short_ones(tmp_path: Path) -> None:
    rain = "For the rain it raineth every day.\n" * 30
    verse = [f"To {name}\n\n{rain}" for name in ("Ann", "Bob", "Cid")]
    made = prepare(tmp_path, TEXTS, own=verse, near_duplicates=False)
    assert sorted(made.beginnings(9, 60)) == ["To Ann", "To Bob", "To Cid"]


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = corpus.train_tokenizer(iter(TEXTS), 300)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="it has no end-of-text token"):
        corpus.end_of(tokenizer)


def known_words(lower: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, which knows some of them only or writes all of them small."""
    words = ["<end>", "[UNK]", *(WORDS if lower else WORDS[:6])]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lower:
        made.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="[UNK]")


@pytest.mark.parametrize("setting", ["tokenizer", "from"])
@pytest.mark.parametrize("lower", [False, True])
def test_a_tokenizer_that_loses_text_is_refused_with_how_much_it_loses(
    lower: bool, setting: str, tmp_path: Path
) -> None:
    default = PretrainRecipe.model_fields["vocabulary"].default
    texts = [f"The {text}" for text in TEXTS] if lower else TEXTS
    with pytest.raises(ModelError) as caught:
        prepare(tmp_path, texts, given=known_words(lower), **{setting: "words", "vocabulary": default})
    said = rf"{setting}: the tokenizer does not give these texts back: [0-9.]+% of their characters are lost or changed"
    assert re.match(said, str(caught.value))
    assert f"as in `{setting}: tiny`" in str(caught.value)
    assert left_behind(tmp_path) == []
    with pytest.raises(ModelError, match=r": 8\.00% of .* changed \('The river Under the stone' becomes 'the river un"):
        corpus.require_lossless(known_words(lower=True), ["The river Under the stone"], setting)


def test_a_given_tokenizer_that_spells_every_text_is_taken(tmp_path: Path) -> None:
    given = corpus.train_tokenizer(iter(TEXTS), 300)
    corpus.require_lossless(given, ["  Ünseen, <|endoftext|> 一个 \n\n  end.  "], "tokenizer")
    assert prepare(tmp_path, TEXTS, given=given).report["tokenizer"].startswith("300 tokens, as given")


def test_a_disk_that_is_too_small_for_the_tokens_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of())
    size = (tmp_path / "a.jsonl").stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=size * 1.2))
    with pytest.raises(DataError, match=r"the token shards need about \d+ kB, and \d+ kB are free on the disk of "):
        prepare(tmp_path, str(tmp_path / "a.jsonl"), given=corpus.train_tokenizer(iter([]), 260))
    assert left_behind(tmp_path) == []


def test_tokens_of_a_large_vocabulary_are_counted_with_four_bytes() -> None:
    given = corpus.train_tokenizer(iter([]), 260)  # a token a byte
    assert corpus.bytes_of_tokens(given, ["a" * 999]) == pytest.approx(2, rel=0.01)
    given.add_tokens([f"<{number}>" for number in range(2**16)])
    assert corpus.bytes_of_tokens(given, ["a" * 999]) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("at", ["read", "tokens"])
def test_preparing_that_is_broken_off_leaves_nothing_and_begins_anew(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "EVERY", 0.0)

    def say(done: str) -> None:
        if at in done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, TEXTS, say)
    assert left_behind(tmp_path) == []
    (tmp_path / "run" / ".data.0badcafe").mkdir()  # of one that was killed
    assert prepare(tmp_path, TEXTS).report["documents"] == len(TEXTS)
    assert left_behind(tmp_path) == ["data"]


# ---- long documents -------------------------------------------------------------------------------------------------

AWKWARD = (" ", "  ", "\n", "\r\n", "\r", "\n \n\n", "\t\n", "\u3000", "\x00", "\x0b", "e\u0301", "\u1112\u1161\u11ab",
           "\u0338", "word", "。", "<", "A", "\u2028", "\ufeff", "é", "1")  # fmt: skip


def in_one_piece(text: str) -> tuple[str, Counter[str]]:
    counts = Counter[str]()
    return "".join(texts.clean([text], counts)), counts


def test_a_text_in_pieces_is_cleaned_as_it_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PIECE", 3)
    cut = 0
    for number in range(2_000):
        chosen = random.Random(number)
        text = "".join(chosen.choice(AWKWARD) for _ in range(20))
        pieces = [piece for _, piece in texts.in_pieces([text[:20], text[20:]])]
        assert "".join(pieces) == text
        counts = Counter[str]()
        assert ("".join(texts.clean(pieces, counts)), counts) == in_one_piece(text), repr(text)
        cut += len(pieces)
    assert cut > 10_000


def test_a_long_file_is_read_cleaned_and_tokenised_in_pieces_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{writing(number)}  \r\n" for number in range(300)]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.txt").write_text("".join(lines), newline="")
    (tmp_path / "lines" / "b.txt").write_text(" ".join(lines).replace("\r\n", ""))  # one line, and the same letters
    (tmp_path / "lines" / "c.txt").write_text("Caf\u00e9, " + " ".join(writing(number) for number in range(300, 400)))
    whole = prepare(tmp_path / "whole", str(tmp_path / "lines"))
    largest = Counter[str]()

    def watch(where: Any, name: str, size_of: Callable[..., int]) -> None:
        known = getattr(where, name)

        def watched(*given: Any, **named: Any) -> Any:
            largest[name] = max(largest[name], size_of(*given))
            return known(*given, **named)

        monkeypatch.setattr(where, name, watched)

    watch(corpus, "_put", lambda file, begins, text: len(text))
    watch(duplicates.Letters, "add", lambda self, text: len(text))
    watch(corpus, "_cut", lambda text, start: len(text))
    watch(corpus, "_content", lambda file, place, size: size)
    monkeypatch.setattr(texts, "PIECE", 700)
    monkeypatch.setattr(corpus, "PIECE", 500)
    # A sample of pieces trains another tokenizer than one of whole documents.
    monkeypatch.setattr(corpus, "train_tokenizer", lambda sample, vocabulary: whole.tokenizer)
    pieces = prepare(tmp_path / "pieces", str(tmp_path / "lines"))
    assert pieces.report == whole.report
    assert whole.report["dropped"] == {"duplicates": 1}
    for one, other in ((pieces.train, whole.train), (pieces.validation, whole.validation)):
        assert one.read(0, one.tokens).tolist() == other.read(0, other.tokens).tolist()
    assert set(largest) == {"_put", "add", "_cut", "_content"}
    assert max(largest.values()) < 2_000, largest


def test_the_end_that_is_held_back_of_a_long_text_goes_over_several_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(f"{writing(number)} \u00e9\u00e8" for number in range(400))
    monkeypatch.setattr(texts, "PIECE", 100)
    for name, content in (("lines", text), ("one-line", text.replace("\n", " "))):
        (tmp_path / f"{name}.txt").write_text(content)
        made = prepare(tmp_path / name, str(tmp_path / f"{name}.txt"))
        kept, held = (documents_of(each, made.tokenizer)[0] for each in (made.train, made.validation))
        assert [kept, held] == [content[: len(kept)], content[-len(held) :]]
        assert len(kept) + len(held) >= len(content) - 1
        assert len(content.encode()) // 100 - 3 <= len(held.encode()) <= len(content.encode()) // 100 + 200
        assert made.report["validation"]["bytes"] == len(held.encode())
        assert made.report["train"]["bytes"] == len(kept.encode())


def test_a_wrong_byte_in_a_long_line_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PIECE", 64)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfline\n" + "é".encode() * 5_000 + b"\xe9 au lait")
    with pytest.raises(DataError, match=r"is not UTF-8 at byte 10,008 \(0xe9, line 2\)"):
        prepare(tmp_path, str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes("é".encode() * 5_000 + b"\xc3")  # ends within a character
    with pytest.raises(DataError, match=r"is not UTF-8 at byte 10,000 \(0xc3, line 1\)"):
        prepare(tmp_path, str(tmp_path / "b.txt"))


# ---- size -----------------------------------------------------------------------------------------------------------

CHILD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_corpus import prepare
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = prepare(folder, sys.argv[2])
print(made.report["bytes"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_corpus_need_not_fit_into_memory(tmp_path: Path) -> None:
    """Four times the text takes far less than four times the memory: what is held is a batch."""
    held = []
    for times in (1, 4):
        path = tmp_path / f"{times}.jsonl"
        with path.open("w") as file:
            for number in range(3_000 * times):
                file.write(json.dumps({"text": writing(number, 500)}) + "\n")
        command = [sys.executable, "-c", CHILD, str(tmp_path / f"run-{times}"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        size, grown = map(int, done.stdout.split())
        assert size > 7_500_000 * times
        held.append(grown)
    assert held[1] < held[0] + 15_000_000, held


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the corpus is not at {SHARED}")
def test_a_real_corpus_comes_through(tmp_path: Path) -> None:
    with lzma.open(SHARED / "validation.jsonl.xz", "rt", encoding="utf-8") as lines:
        expected = [json.loads(line)["text"] for line in lines]
    made = prepare(tmp_path, str(SHARED / "validation.jsonl.xz"), vocabulary=2048, validation=0.05)
    assert made.report["documents"] == len(expected)
    assert made.report["bytes"] > 0.99 * sum(len(text.encode()) for text in expected)
    cleaned = {"".join(texts.clean([text], Counter())) for text in expected}
    assert set(documents_of(made.train, made.tokenizer)) | set(documents_of(made.validation, made.tokenizer)) == cleaned
    assert len(made.beginnings(2, 60)) == 2
