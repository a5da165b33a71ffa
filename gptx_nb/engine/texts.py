"""Any source -> documents of plain text, one after another and in pieces: a corpus, or a file, may exceed memory.

Plain text (.txt, .md), JSON lines, CSV, TSV and Parquet, each also packed (.gz, .xz, .bz2, .zst), folders of them, and
names on the Hugging Face Hub. Text must be UTF-8: a wrong byte is named with its place, not guessed around.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from gptx_nb.engine import hub
from gptx_nb.errors import DataError, nearest
from gptx_nb.sources import Source
from gptx_nb.text_files import PACKED, PLAIN, ROWS, files_of, kind_of

Document = Literal["file", "line", "paragraph"]

PIECE = 1_000_000  # characters of a document that are held at once
NAMES = ("text", "content", "document", "body", "article")  # of the column that holds the text


Piece = tuple[bool, str]  # whether it begins a document, and its text


class _NoTextColumn(DataError):
    """A table of a folder is left out for this."""


def documents(
    source: Source,
    run_folder: Path,
    *,
    setting: str,
    column: str | None,
    document: Document,
    subset: str | None,
    left_out: Counter[str],
) -> Iterator[Piece]:
    """Yield the texts of `source`, raw, in pieces. Raises DataError: missing, unreadable, not UTF-8, no text column.

    `left_out` is told how many rows have no text, and which files of a folder are not read.
    """
    if source.kind == "hub":
        yield from _of_rows(_of_hub(source, setting, column, subset), left_out)
        return
    assert source.path is not None
    path = run_folder / source.path
    if not path.is_dir():
        yield from _of_file(path, source.shown, setting, column, document, left_out)
        return
    read, without, first = 0, 0, None
    for file in files_of(path, source.shown, setting, left_out):
        shown = f"{source.shown.rstrip('/')}/{file.relative_to(path)}"
        try:
            yield from _of_file(file, shown, setting, column, document, left_out)
            read += 1
        except _NoTextColumn as error:
            first, without = first or (file.name, error), without + 1
    if first and not read:
        raise first[1]
    if first:
        left_out[f"tables without a text column ({first[0]}{', …' if without > 1 else ''})"] += without


def _of_rows(rows: Iterable[str], left_out: Counter[str]) -> Iterator[Piece]:
    for text in rows:
        if text.strip():
            yield from in_pieces([text])
        else:
            left_out["rows without text"] += 1


def one_by_one(pieces: Iterable[Piece]) -> Iterator[Iterator[str]]:
    """Yield documents, each an iterator of its pieces that ends before the next document is asked for."""
    number = 0

    def number_of(piece: Piece) -> int:
        nonlocal number
        number += piece[0]
        return number

    for _, document in itertools.groupby(pieces, key=number_of):
        yield (text for _, text in document)


# A character that no earlier one is composed with (Unicode NFC) or belongs to (as "\n" to "\r"): ASCII, punctuation.
_SAFE = re.compile("(?<!\r)[\x00-\x7f\u2000-\u206f\u3000-\u3020\uff01-\uff0f]")


def in_pieces(parts: Iterable[str]) -> Iterator[Piece]:
    """Yield one document, given in parts, in pieces of PIECE characters and a few more, which are cleaned one by one.

    A text without a place to cut, as one in letters of another script without any mark, is one piece.
    """
    waiting: list[str] = []
    size, begins = 0, True
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size <= PIECE:
            continue
        text, start = "".join(waiting), 0
        while found := _SAFE.search(text, start + PIECE):
            yield begins, text[start : found.start()]
            begins, start = False, found.start()
        waiting, size = [text[start:]], len(text) - start
    yield begins, "".join(waiting)


def size_of(source: Source, run_folder: Path, shown_setting: str) -> int | None:
    """Return about how many bytes of text `source` has: those of its files, four times as many where packed."""
    if source.path is None:
        return None
    path = run_folder / source.path
    each = files_of(path, source.shown, shown_setting) if path.is_dir() else [path]
    return sum(file.stat().st_size * (4 if file.suffix.lower() in (*PACKED, ".parquet") else 1) for file in each)


# ---- files ----------------------------------------------------------------------------------------------------------


def _of_file(
    path: Path, shown: str, setting: str, column: str | None, document: Document, left_out: Counter[str]
) -> Iterator[Piece]:
    kind = kind_of(path)
    if not kind:
        raise DataError(
            f"{setting}: {shown} is no text that can be read: {', '.join((*PLAIN, *ROWS))} can (.gz, .xz, .bz2, .zst "
            "too)"
        )
    try:
        if kind == ".parquet":
            yield from _of_rows(_of_parquet(path, shown, setting, column), left_out)
            return
        with _opened(path) as file:
            if kind in PLAIN:
                yield from _of_plain(file, shown, setting, document)
                return
            rows = (
                _of_json_lines(file, shown, setting, column)
                if kind in (".jsonl", ".ndjson")
                else _of_delimited(file, shown, setting, column, "\t" if kind == ".tsv" else ",")
            )
            yield from _of_rows(rows, left_out)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, _zstandard_error()) as error:
        raise DataError(f"{setting}: {shown} cannot be unpacked: {error}. Is it complete? Get it again") from None
    except OSError as error:
        raise DataError(f"{setting}: {shown} cannot be read: {error.strerror or error}") from None


def _opened(path: Path) -> IO[bytes]:
    """Open a file to read its bytes as they were before it was packed."""
    ways: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _zstandard}
    opened: IO[bytes] = ways.get(path.suffix.lower(), open)(path, "rb")
    return opened


def _zstandard(path: Path, mode: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{path.name} is packed with Zstandard. Type `%pip install zstandard` and run the cell again"
        ) from None
    return io.BufferedReader(_Zstandard(path, zstandard.ZstdDecompressor()))


class _Zstandard(io.RawIOBase):
    """A file of one or more Zstandard frames, unpacked. The library's own reader takes a cut frame for a whole one."""

    def __init__(self, path: Path, decompressor: Any) -> None:
        self._file = path.open("rb")
        self._new_frame = decompressor.decompressobj
        self._frame: Any = None  # the one that is being read, where one is
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, target: Any, /) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(1 << 20)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("Compressed file ended before the end of its last frame was reached")
                return 0
            self._frame = self._frame or self._new_frame()
            self._ready, self._packed = self._frame.decompress(self._packed), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(target), len(self._ready))
        target[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _zstandard_error() -> type[Exception]:
    """What unpacking by zstandard raises, where that is loaded."""
    loaded: Any = sys.modules.get("zstandard")
    return EOFError if loaded is None else loaded.ZstdError


def _lines(file: IO[bytes], shown: str, setting: str, most: int = -1) -> Iterator[str]:
    """Yield lines with their ends, those of more than `most` bytes in several parts.

    Raises DataError naming the place of the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    place, number = 0, 1
    while True:
        part = file.readline(most)
        if not place:
            mark = codecs.BOM_UTF8 if part.startswith(codecs.BOM_UTF8) else b""
            place, part = len(mark), part.removeprefix(mark)
        waiting = len(decoder.getstate()[0])  # the beginning of a character that the last part ended with
        try:
            text = decoder.decode(part, final=not part or most < 0)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{setting}: {shown} is not UTF-8 at byte {place - waiting + error.start:,} "
                f"(0x{error.object[error.start]:02x}, line {number:,}). "
                f"{_what_it_may_be(error.object, file.read(4096), place)}"
            ) from None
        if not part:
            return
        place += len(part)
        number += part.endswith(b"\n")
        yield text


_WIDE = {  # what a file begins with -> its encoding; the longest first, as one begins like another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Bytes that stand for no letter in any of the usual encodings of one byte a letter.
_NO_LETTERS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def _what_it_may_be(line: bytes, following: bytes, place: int) -> str:
    """Say how `line`, which begins at byte `place` and is not UTF-8, becomes it, or that this is no text."""
    wide = None if place else next((name for mark, name in _WIDE.items() if line.startswith(mark)), None)
    if wide is None and _NO_LETTERS.search(line + following):
        return "It looks like no text at all: give a file of plain text"
    if wide:
        return f"It begins like {wide}: save it as UTF-8, as with `iconv -f {wide} -t UTF-8`"
    return "Save it as UTF-8, as with `iconv -f WINDOWS-1252 -t UTF-8` for a text of one byte a letter"


def _of_plain(file: IO[bytes], shown: str, setting: str, document: Document) -> Iterator[Piece]:
    def numbered() -> Iterator[tuple[int, str]]:
        """Parts of lines, each with the number of its document."""
        number, whole = 0, True
        for part in _lines(file, shown, setting, most=PIECE):
            if document == "line" or (document == "paragraph" and not part.strip()):
                number += whole  # of a line that comes in parts, none but the first begins a document
            whole = part.endswith("\n")
            yield number, part

    for _, parts in itertools.groupby(numbered(), key=lambda each: each[0]):
        yield from in_pieces(text for _, text in parts)


def _of_json_lines(file: IO[bytes], shown: str, setting: str, column: str | None) -> Iterator[str]:
    name = column
    for number, line in enumerate(_lines(file, shown, setting), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{setting}: {shown}, line {number:,} is no JSON: {error}. Repair or remove it") from None
        if isinstance(row, str):
            yield row
            continue
        if not isinstance(row, dict):
            raise DataError(f"{setting}: {shown}, line {number:,} holds a {type(row).__name__}, not an object")
        name = name or _column(list(row), shown, setting, row)
        if name not in row and number == 1:
            _column_missing(name, list(row), shown)
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{setting}: {shown}, line {number:,}: {name!r} holds a {type(value).__name__}, and a text is wanted"
            )
        yield value or ""


def _of_delimited(file: IO[bytes], shown: str, setting: str, column: str | None, delimiter: str) -> Iterator[str]:
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        rows = csv.reader(_lines(file, shown, setting), delimiter=delimiter)
        head = next(rows, [])
        if not head:
            return
        name = column or _column(head, shown, setting, None)
        if name not in head:
            _column_missing(name, head, shown)
        place = head.index(name)
        for row in rows:
            if row:
                yield row[place] if place < len(row) else ""
    except csv.Error as error:
        raise DataError(f"{setting}: {shown} cannot be read as a table: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _of_parquet(path: Path, shown: str, setting: str, column: str | None) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        head = list(file.schema_arrow.names)
        name = column or _column(head, shown, setting, None)
        if name not in head:
            _column_missing(name, head, shown)
        for batch in file.iter_batches(batch_size=1000, columns=[name]):
            for value in batch.column(0).to_pylist():
                yield _text_of(value, shown, setting, name)
    except pa.ArrowInvalid as error:
        raise DataError(f"{setting}: {shown} is no Parquet file that can be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{setting}: {shown}: a text of {name!r} is not UTF-8 at its byte {error.start:,} "
            f"(0x{error.object[error.start]:02x}). Write the file again from texts in UTF-8"
        ) from None


def _text_of(value: Any, shown: str, setting: str, name: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise DataError(f"{setting}: {shown}: {name!r} holds a {type(value).__name__}, and a text is wanted")


def _column(head: list[str], shown: str, setting: str, row: dict[str, Any] | None) -> str:
    """Return the name of the column that holds the text: one of the usual names, or the only one there is."""
    lowered = {name.lower(): name for name in reversed(head)}
    for usual in NAMES:
        if usual in lowered:
            return lowered[usual]
    texts = head if row is None else [name for name in head if isinstance(row[name], str)]
    if len(texts) == 1:
        return texts[0]
    raise _NoTextColumn(
        f"{setting}: {shown} has the columns {', '.join(head[:12])}, and which one holds the text? Type for example "
        f"`text: {head[-1]}`"
    )


def _column_missing(name: str, head: list[str], shown: str) -> None:
    raise _NoTextColumn(f"text: {shown} has no column {name!r}.{nearest(name, head)} Columns: {', '.join(head[:12])}")


# ---- the Hub --------------------------------------------------------------------------------------------------------


def _of_hub(source: Source, setting: str, column: str | None, subset: str | None) -> Iterator[str]:
    import datasets

    name, split = source.shown, source.options.get("split") or "train"
    found = 0
    try:
        with hub.only_cached_without_answer():
            stream = datasets.load_dataset(name, subset, split=split, streaming=True)
        head = list(stream.column_names or next(iter(stream)))
        wanted = column or _column(head, name, setting, None)
        if wanted not in head:
            _column_missing(wanted, head, name)
        for row in stream:
            yield _text_of(row.get(wanted), name, setting, wanted)
            found += 1
    except DataError:
        raise
    except Exception as error:  # of datasets, its readers and the Hub's client, which differ between versions
        reason = "HF_HUB_OFFLINE is set and it is not in the Hub cache" if hub.offline() else hub.trouble()
        first = str(error).strip().splitlines()
        why = reason or (first[0][:200] if first else type(error).__name__)
        if found:
            raise DataError(
                f"{setting}: {name} broke off after {found:,} texts from the Hugging Face Hub: {why}"
            ) from None
        raise DataError(
            f"{setting}: {name!r} is no variable, file or folder here, and could not be had from the Hugging Face Hub: "
            f"{why}. Check the name, or give texts of yours, as in `{setting}: books/`"
        ) from None


# ---- cleaning -------------------------------------------------------------------------------------------------------

_LINE_ENDS = re.compile(r"\r\n?|\x0b|\x0c|\u2028|\u2029|\x85")
# Half of a surrogate pair, as "\\ud83d" in JSON cut in two, is no character either, and UTF-8 cannot hold it.
_CONTROL = re.compile(r"[\ud800-\udfff\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_TRAILING = re.compile(r"[ \t\u00a0]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(pieces: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """Yield a document's text in Unicode's composed form, with plain line ends and without what nobody sees.

    Control characters, blanks at the ends of lines, and blank lines beyond one go. `counts` is told how many documents
    each changed. A piece that is yielded ends with a letter: blanks after it come with the next, or go.
    """
    changed: set[str] = set()
    blanks, begun = "", False
    for piece in pieces:
        for what, change in _CHANGES:
            made = change(piece)
            if made != piece:
                changed.add(what)
            piece = made
        joined = blanks + piece
        text = _BLANK_LINES.sub("\n\n", _TRAILING.sub("", joined))
        if not begun:
            text = text.lstrip()
        if text != joined:
            changed.add(_BLANKS)
        body = text.rstrip()
        blanks = text[len(body) :]
        if body:
            begun = True
            yield body
    if blanks:
        changed.add(_BLANKS)
    counts.update(changed)


def _composed(text: str) -> str:
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


_CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("composed anew (Unicode NFC)", _composed),
    ("given plain line ends", lambda each: _LINE_ENDS.sub("\n", each)),
    ("freed of control characters", lambda each: _CONTROL.sub("", each)),
)
_BLANKS = "freed of needless blanks"
