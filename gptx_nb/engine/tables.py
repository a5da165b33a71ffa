"""Reads one table, wherever it lies, into columns of plain Python values. It does not know which column means what.

CSV and TSV are read by the standard library, so every cell stays the text that was typed and every mistake has a line;
JSON lines likewise; Parquet through pyarrow; folders and names on the Hugging Face Hub through `datasets`, which is
imported only then. Whatever cannot be read is one DataError that says what to type next.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptx_nb.engine import hub
from gptx_nb.errors import DataError, nearest
from gptx_nb.text_files import kind_of

if TYPE_CHECKING:
    import pyarrow as pa

    from gptx_nb.sources import Source

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
}
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
OWN_VALIDATION = ("validation", "valid", "val", "dev")  # splits that are there for scoring while a model is made
VALIDATION_SPLITS = (*OWN_VALIDATION, "test")
MOST_NOTES = 3  # on files of one folder
_LINE_END = re.compile(r"\r\n|\r|\n")
_SENTENCE_WORDS = 5  # a header of so many words is more likely a row


@dataclass
class Sheet:
    """A table as it was read. All columns have `rows` values: str, int, float, bool, None, or something nested."""

    shown: str
    columns: dict[str, list[Any]]
    rows: int
    orders: dict[str, list[Any]] = field(default_factory=dict)  # label names in the order that the table declares
    encoding: str | None = None  # of text files
    notes: list[str] = field(default_factory=list)
    own_validation: str | None = None  # the split of the same data set that is there for scoring


def read(
    source: Source,
    run_folder: Path,
    *,
    subset: str | None,
    split: str | None,
    named: Collection[str],
    setting: Literal["data", "validation"] = "data",
    plain_text: bool = False,
) -> Sheet:
    """Read the table that `source` points at; paths that are not absolute lie below `run_folder`.

    `subset` and `split` choose within a data set; `split` None takes the first of validation, valid, val, dev, test, or
    the only one. `named` are the columns that the user named: where they are in the header, it certainly is one.
    `setting` is the one that named the table. `plain_text`: a .txt file will do, each line of which is a row's "text",
    and so will a folder of such files, each of which is one row.
    Raises DataError: missing, unreadable, not a table, empty.
    """
    if source.kind == "hub":
        return _read_dataset(source.shown, source.path or source.shown, None, subset, split, setting)
    if source.path is None:
        raise DataError(f"{source.shown} has no file to read. Name one, as in `{setting}: reviews.csv`")
    path = run_folder / source.path
    shown = source.shown
    own_validation = None
    if path.is_dir() and plain_text and subset is None and _documents_of(path):
        return _read_documents(shown, path, split, setting)
    if path.is_dir():
        file = _file_of_split(path, split) if subset is None else None
        if file is None:
            return _read_dataset(shown, str(path), path, subset, split, setting)
        own_validation = _own_validation(split, [each for each in OWN_VALIDATION if _file_of_split(path, each)])
        path, shown = file, f"{shown.rstrip('/')}/{file.name}"
    sheet = _read_file(shown, path, named, plain_text)
    if not sheet.columns or not sheet.rows:
        how = "Add examples below its header" if {".csv", ".tsv"} & set(path.suffixes) else "Put texts and labels in it"
        raise DataError(f"{shown} has no rows. {how}, or name another table with `{setting}:`")
    sheet.own_validation = own_validation
    return sheet


def _read_file(shown: str, path: Path, named: Collection[str], plain_text: bool = False) -> Sheet:
    kind = _kind(path)
    if kind not in TABLES and not (plain_text and kind == ".txt"):
        advice = (
            "Save the sheet as CSV UTF-8 and name that file"
            if kind in (".xlsx", ".xls", ".ods")
            else "Save it as one of these"
        )
        got = f"ends in {kind!r}" if kind else "has no ending"
        raise DataError(f"{shown} {got}; {', '.join(TABLES)} can be read (.gz, .xz and .bz2 too). {advice}")
    content = _content(shown, path)
    if kind == ".parquet":
        return _read_parquet(shown, content)
    text, encoding, notes = decode(shown, content)
    if kind == ".txt":
        lines = [line for line in _LINE_END.split(text) if line.strip()]
        sheet = Sheet(shown, {"text": lines}, len(lines))
    elif kind in (".csv", ".tsv"):
        sheet = _read_delimited(shown, text, "\t" if kind == ".tsv" else ",", named)
    else:
        sheet = _read_json(shown, text, whole=kind == ".json" and text.lstrip().startswith("["))
    sheet.encoding = encoding
    sheet.notes[:0] = notes
    return sheet


def _kind(path: Path) -> str:
    """Return the ending that says what is in a file, without that of its packing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _content(shown: str, path: Path) -> bytes:
    """Return what is in a file, unpacked."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{shown}: there is no file {path}. Check the name, or give its whole path") from None
    except OSError as error:
        raise DataError(
            f"{shown} cannot be opened: {error.strerror or error}. Check the file and its permissions"
        ) from None
    unpack = PACKED.get(path.suffix.lower())
    if unpack is None:
        return content
    try:
        return unpack(content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{shown} cannot be unpacked: {error}. Is it complete? Get or pack the file again") from None


# ---- text files -----------------------------------------------------------------------------------------------------


def decode(shown: str, content: bytes) -> tuple[str, str, list[str]]:
    """Return the text in `content`, the name of its encoding, and what to tell the user about it.

    UTF-8 and UTF-16 are certain; anything else is taken for Windows-1252, a superset of Latin-1, only where its bytes
    look like that: accents that stand alone. Raises DataError for other encodings and for damaged UTF-8.
    """
    for mark, encoding, name in (
        (b"\xef\xbb\xbf", "utf-8-sig", "UTF-8 with a byte order mark"),
        (b"\xff\xfe\x00\x00", "utf-32", "UTF-32"),
        (b"\x00\x00\xfe\xff", "utf-32", "UTF-32"),
        (b"\xff\xfe", "utf-16", "UTF-16"),
        (b"\xfe\xff", "utf-16", "UTF-16"),
    ):
        if content.startswith(mark):
            try:
                text = content.decode(encoding)
            except UnicodeDecodeError:
                raise DataError(f"{shown} starts like {name} and then breaks off. Save it again, as UTF-8") from None
            return text, encoding, [] if encoding == "utf-8-sig" else [f"{shown} is {name}, and was read as that"]
    head = content[:4096]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        # Every second byte of Western text in UTF-16 is zero; a stray zero in UTF-8 text is rare.
        if len(head) >= 8 and head[first::2].count(0) > 0.4 * len(head[first::2]) and not head[1 - first :: 2].count(0):
            note = f"{shown} is UTF-16 without a byte order mark, and was read as that"
            try:
                return content.decode(encoding), encoding, [note]
            except UnicodeDecodeError:
                break
    try:
        return content.decode("utf-8"), "utf-8", []
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
    forgiving = content.decode("utf-8", errors="replace")
    right = sum(1 for character in forgiving if ord(character) > 127 and character != "\ufffd")
    if right > forgiving.count("\ufffd"):
        raise DataError(
            f"{shown}, line {line}: byte 0x{byte:02x} is not UTF-8, though the rest is. Correct that line, or save "
            "the file again as UTF-8"
        )
    alone = len(re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", content))
    high = len(re.findall(rb"[\x80-\xff]", content))
    if alone * 2 < high:
        raise DataError(
            f"{shown}, line {line}: byte 0x{byte:02x} is neither UTF-8 nor Latin-1. Save the file as UTF-8, for "
            "example: iconv -f GB18030 -t UTF-8 old.csv > new.csv (if it was written in GB18030)"
        )
    try:
        text, encoding = content.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:  # five bytes are not assigned there
        text, encoding = content.decode("latin-1"), "latin-1"
    advice = "check its accents, or save it as UTF-8"
    return text, encoding, [f"{shown} is not UTF-8 (line {line}); it was read as {encoding} (Latin-1): {advice}"]


def _read_delimited(shown: str, text: str, usual: str, named: Collection[str]) -> Sheet:
    # Some fields are longer than csv's limit of 131,072 characters; the limit is the C library's `long`.
    csv.field_size_limit(2**31 - 1)
    notes = []
    delimiter = _delimiter(text, usual)
    if delimiter != usual:
        notes.append(f"{shown}: columns are separated by {DELIMITERS[delimiter]}")
    if not text.strip().strip(f'{delimiter}" \r\n\t'):
        raise DataError(f"{shown} is empty. Add a header line such as `text,label`, and rows below it")
    try:
        records = list(_records(shown, text, delimiter, csv.QUOTE_MINIMAL))
        _check_widths(shown, records, delimiter)
        swallowed = any("\n" in cell and "\t" in cell for _, cells in records for cell in cells)
    except DataError:
        if delimiter != "\t":
            raise
        swallowed = True
    if delimiter == "\t" and swallowed:
        # Many TSV files hold quotes as they are. Their lines all have the same number of fields when read like that.
        plain = list(_records(shown, text, delimiter, csv.QUOTE_NONE))
        _check_widths(shown, plain, delimiter)
        records = plain
        notes.append(f"{shown}: quotes are part of the texts (no field is quoted)")
    else:
        notes += _check_quotes(shown, records, delimiter)
    header_line, header = records[0]
    rows = [cells for _, cells in records[1:]]
    names = _names(shown, header, rows)
    _check_header(shown, header_line, header, rows, named)
    columns = {name: [cells[at] for cells in rows] for at, name in enumerate(names) if name}
    return Sheet(shown, columns, len(rows), notes=notes)


def _delimiter(text: str, usual: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    widths = {each: len(next(csv.reader([first], delimiter=each))) for each in DELIMITERS}
    if widths[usual] > 1:
        return usual
    best = max(widths, key=lambda each: widths[each])
    return best if widths[best] > 1 else usual


def _records(shown: str, text: str, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line in which each record begins, and its cells; lines without any text are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            advice = 'Close it, or write "" for a quote inside a quoted text'
            if "unexpected end" in str(error):
                raise DataError(f'{shown}, line {first}: a quote (") is opened and never closed. {advice}') from None
            lines = f"line {first}" if reader.line_num <= first else f"lines {first} to {reader.line_num}"
            raise DataError(f'{shown}, {lines}: a quote (") is not closed where its field ends. {advice}') from None
        if any(cell.strip() for cell in cells):
            yield first, cells


def _check_widths(shown: str, records: list[tuple[int, list[str]]], delimiter: str) -> None:
    _, header = records[0]
    for line, cells in records[1:]:
        if len(cells) != len(header):
            held = f"{len(cells)} field{'s' * (len(cells) != 1)}"
            advice = (
                f"Put a text with {DELIMITERS[delimiter]} in it in quotes"
                if len(cells) > len(header)
                else f"Separate the fields by {DELIMITERS[delimiter]}"
            )
            raise DataError(
                f"{shown}, line {line} has {held}, the header has {len(header)} ({_some(header)}). {advice}"
            )


def _check_quotes(shown: str, records: list[tuple[int, list[str]]], delimiter: str) -> list[str]:
    """Raise DataError where a cell of several lines is rows behind a quote left open; return a warning if it may be."""
    known: list[set[str]] = []
    doubtful: list[str] = []
    for begin, cells in records[1:]:
        for at, cell in enumerate(cells):
            lines = _LINE_END.split(cell)
            if len(lines) == 1 or delimiter not in cell:
                continue
            known = known or [set(column) for column in zip(*(each for _, each in records[1:]), strict=True)]
            rows = _rows_within(cells, at, lines, delimiter, known)
            first = begin + sum(len(_LINE_END.findall(each)) for each in cells[:at])
            where = f"{shown}, lines {first} to {first + len(lines) - 1}"
            if len(rows) > 1 and len(rows) * 2 >= len(lines):
                raise DataError(
                    f'{where}: a quote (") is opened in line {first} and takes in rows such as {rows[0][:60]!r}. Close '
                    "it where its text ends. If all that is one text, save the table as .jsonl"
                )
            if rows:
                doubtful.append(f'{where}: one text holds {rows[0][:60]!r}. Is a quote (") left open there?')
    return [doubtful[0] + (f" ({len(doubtful) - 1} more like that)" if len(doubtful) > 1 else "")] if doubtful else []


def _rows_within(cells: list[str], at: int, lines: list[str], delimiter: str, known: list[set[str]]) -> list[str]:
    """Return those `lines` of cell `at` that look like rows: as many fields as a row, and a field that comes again.

    A comma within a sentence has a space behind it, which one between fields has not.
    """
    fitting: list[tuple[str, list[tuple[int, str]]]] = []
    for number, line in enumerate(lines):
        fields = line.split(delimiter)
        before = at if number == 0 else 0
        after = len(cells) - at - 1 if number == len(lines) - 1 else 0
        whole = before + len(fields) + after == len(cells)
        if whole and len(fields) > 1 and not any(each.startswith(" ") for each in fields[1:]):
            fitting.append((line, list(enumerate(fields, before))))
    times = Counter(place for _, places in fitting for place in places)
    return [
        line
        for line, places in fitting
        if any(value and (value in known[column] or times[column, value] > 1) for column, value in places)
    ]


def _names(shown: str, header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the columns' names, with '' for a column that has neither name nor content."""
    names: list[str] = []
    for at, cell in enumerate(header):
        name = cell.strip()
        if not name and any(cells[at].strip() for cells in rows):
            name = f"column {at + 1}"
        if name and name in names:
            raise DataError(f"{shown}: column {name!r} stands in the header twice. Rename one of them")
        names.append(name)
    return names


def _check_header(shown: str, line: int, header: list[str], rows: list[list[str]], named: Collection[str]) -> None:
    """Raise DataError where the first line looks like a row."""
    cells = [cell.strip() for cell in header]
    if any(cell in named for cell in cells) or cells == [str(at) for at in range(len(cells))]:
        return  # the user knows the names, or pandas numbered the columns
    for at, cell in enumerate(cells):
        below = [row[at].strip() for row in rows]
        values = set(below)
        sentence = len(cell.split()) >= _SENTENCE_WORDS or len(cell) > 60
        # A value, not a name: it comes again below, in a column of few values. Once in a long table: a second header.
        few = len(below) <= 20 or (len(values) * 2 <= len(below) and below.count(cell) > 1)
        again = cell in values and few and cell.lower() not in ("text", "label")
        if cell and (sentence or again):
            raise DataError(
                f"{shown}, line {line}: {cell[:60]!r} looks like a row, not like a column's name. Put a header line "
                "such as `text,label` on top; if it is the header, name the columns with `text:` and `label:`"
            )


def _read_json(shown: str, text: str, *, whole: bool) -> Sheet:
    place = "entry" if whole else "line"
    if whole:
        records = list(enumerate(_parsed(shown, text, None), 1))
    else:
        # Not splitlines(): JSON allows U+2028 and its kin inside a text.
        lines = enumerate(text.split("\n"), 1)
        records = [(number, _parsed(shown, line, number)) for number, line in lines if line.strip()]
    names: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    for number, value in records:
        if isinstance(value, list) and len(value) == 2:
            value = {"text": value[0], "label": value[1]}
        if not isinstance(value, dict):
            raise DataError(
                f"{shown}, {place} {number}: got {json.dumps(value, ensure_ascii=False)[:60]}, and needs an object "
                'such as {"text": "Good", "label": "positive"}'
            )
        names.update(dict.fromkeys(value))
        rows.append(value)
    return Sheet(shown, {name: [row.get(name) for row in rows] for name in names}, len(rows))


def _parsed(shown: str, text: str, line: int | None) -> Any:
    """Return the value in `text`, which is line number `line`, or the whole file where that is None."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line}" if line else f"line {error.lineno}"
        reason = f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists thousands deep
        place = f"line {line}" if line else "line 1"
        reason = str(error).partition(":")[0]
    advice = "Each line holds one object" if line else "The file holds a list of objects"
    raise DataError(f'{shown}, {place}: not JSON ({reason}). {advice}, as in {{"text": "Good", "label": "positive"}}')


# ---- Parquet and data sets ------------------------------------------------------------------------------------------


def _read_parquet(shown: str, content: bytes) -> Sheet:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise DataError(
            f"{shown} is not a whole Parquet file: {reason}. Write it again, as with df.to_parquet(...)"
        ) from None
    return _from_arrow(shown, table)


def _from_arrow(shown: str, table: pa.Table) -> Sheet:
    """Turn an Arrow table into columns.

    `datasets` notes in the schema which numbers stand for which label names, pandas which columns are categorical: a
    dictionary that nobody declared holds its values in the order of the rows, which means nothing.
    """
    import pyarrow as pa

    metadata = table.schema.metadata or {}
    features = (json.loads(metadata.get(b"huggingface", b"{}")).get("info") or {}).get("features") or {}
    described = json.loads(metadata.get(b"pandas", b"{}")).get("columns") or []
    categorical = {each.get("name") for each in described if each.get("pandas_type") == "categorical"}
    columns: dict[str, list[Any]] = {}
    orders: dict[str, list[Any]] = {}
    for at, name in enumerate(table.column_names):
        if re.fullmatch(r"__index_level_\d+__", name):
            continue
        if name in columns:
            raise DataError(f"{shown}: two columns are called {name!r}. Rename one of them")
        column = table.column(at)
        values = column.to_pylist()
        if pa.types.is_dictionary(column.type) and (name in categorical or column.type.ordered):
            orders[name] = list(dict.fromkeys(each for part in column.chunks for each in part.dictionary.to_pylist()))
        feature = features.get(name)
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if names:
            values = _named(values, names)
            orders[name] = list(names)
        columns[name] = values
    return Sheet(shown, columns, table.num_rows, orders)


def _named(numbers: list[Any], names: list[str]) -> list[str | None]:
    """Return the names that `numbers` stand for, None for -1: so data sets mark a row without a label."""
    return [names[at] if isinstance(at, int) and 0 <= at < len(names) else None for at in numbers]


def _read_dataset(
    shown: str, name: str, folder: Path | None, subset: str | None, split: str | None, setting: str
) -> Sheet:
    import datasets

    try:
        if folder and ((folder / "dataset_dict.json").exists() or (folder / "state.json").exists()):
            loaded = datasets.load_from_disk(name)
        elif folder and not _holds_tables(folder):
            raise DataError(
                f"{shown} is a folder without a table in it. Name the file, as in "
                f"`{setting}: {shown.rstrip('/')}/train.csv`"
            )
        else:
            with contextlib.nullcontext() if folder else hub.only_cached_without_answer():
                loaded = datasets.load_dataset(name, name=subset)
    except DataError:
        raise
    except Exception as error:  # a library's boundary: hubs, file formats and networks fail in dozens of classes
        raise _explained(shown, folder, error, setting) from error
    own_validation = None
    if isinstance(loaded, dict):
        own_validation = _own_validation(split, list(loaded))
        loaded = loaded[_split(shown, list(loaded), split, setting)]
    sheet = _from_arrow(shown, loaded.with_format("arrow")[:] if len(loaded) else loaded.data.table.slice(0, 0))
    if not sheet.rows:
        part = ", or another part of it with `split:`" if setting == "data" else ""
        raise DataError(f"{shown} has no rows. Name another table with `{setting}:`{part}")
    sheet.own_validation = own_validation
    # What the rows were read with says more than the schema of a slice.
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.ClassLabel) and column not in sheet.orders:
            sheet.columns[column] = _named(sheet.columns[column], feature.names)
            sheet.orders[column] = list(feature.names)
    return sheet


def _file_of_split(folder: Path, split: str | None) -> Path | None:
    """Return the one table in `folder` that is called like the split, as `train.csv`, which needs no `datasets`."""
    tables = [path for path in folder.iterdir() if any(suffix in TABLES for suffix in path.suffixes)]
    for each in (split,) if split else VALIDATION_SPLITS:
        found = [path for path in tables if path.name.partition(".")[0] == each]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _own_validation(split: str | None, splits: Collection[str]) -> str | None:
    """Return which of a data set's `splits` is there for scoring what was learned from `split`, if one is."""
    return None if split in OWN_VALIDATION else next((each for each in OWN_VALIDATION if each in splits), None)


def _holds_tables(folder: Path) -> bool:
    return any(path.is_file() and any(each in TABLES for each in path.suffixes) for path in folder.rglob("*"))


def _documents_of(folder: Path) -> list[Path]:
    """Return the .txt files below `folder` by name, where it holds no table and no saved data set."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return []
    seen = [
        path
        for path in sorted(folder.rglob("*.*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if any(kind_of(path) in TABLES or _kind(path) in TABLES for path in seen):
        return []
    return [path for path in seen if _kind(path) == ".txt" and not path.name.lower().startswith("readme")]


def _read_documents(shown: str, folder: Path, split: str | None, setting: str) -> Sheet:
    """Read each file as one row; of the folders `train`, `validation` and the like in it the one of that split."""
    parts = [each for each in ("train", *VALIDATION_SPLITS) if (folder / each).is_dir()]
    own_validation = None
    if parts:
        own_validation = _own_validation(split, [each for each in OWN_VALIDATION if each in parts])
        part = _split(shown, parts, split, setting)
        folder, shown = folder / part, f"{shown.rstrip('/')}/{part}"
    elif split not in (None, "train"):
        raise DataError(
            f"split: {shown} has no folder {split!r} in it, and holds all texts together. Leave `split` out, or name "
            f"another folder with `{setting}:`"
        )
    texts: list[str] = []
    notes: list[str] = []
    for file in _documents_of(folder):
        name = f"{shown.rstrip('/')}/{file.relative_to(folder)}"
        text, _, told = decode(name, _content(name, file))
        texts.append(text.strip())
        notes += told
    if not any(texts):
        raise DataError(f"{shown} has no text: its .txt files are empty. Put texts in them, or name another folder")
    if len(notes) > MOST_NOTES:
        notes = [*notes[:MOST_NOTES], f"so it is with {len(notes) - MOST_NOTES:,} more files of {shown}"]
    return Sheet(shown, {"text": list(texts)}, len(texts), notes=notes, own_validation=own_validation)


def _split(shown: str, splits: list[str], wanted: str | None, setting: str) -> str:
    if wanted is None:
        for each in VALIDATION_SPLITS:
            if each in splits:
                return each
        wanted = VALIDATION_SPLITS[0]
        if len(splits) == 1:
            return splits[0]
    if wanted in splits:
        return wanted
    hint = nearest(wanted, splits)
    advice = (
        f"Choose one, as in `split: {splits[0]}`"
        if setting == "data"
        else f"Give a file with rows for scoring, as in `{setting}: held-out.csv`"
    )
    raise DataError(f"{shown} has no split {wanted!r}.{hint} Splits: {_some(splits)}. {advice}")


def _explained(shown: str, folder: Path | None, error: Exception, setting: str) -> DataError:
    """Say in one line why `datasets` could not load, and what to type next."""
    where, example = ("", "reviews.csv") if setting == "data" else (f"{setting}: ", "held-out.csv")
    names = {kind.__name__ for kind in type(error).__mro__}
    message = " ".join(str(error).split())
    if "Config name is missing" in message or "BuilderConfig" in message:
        known = re.findall(r"'([^']+)'", message.partition("[")[2].partition("]")[0])
        hint = f"Choose one, as in `subset: {known[0]}`" if known else "Choose one with `subset:`"
        return DataError(f"{shown} has the subsets {_some(known) or '(see its page)'}. {hint}")
    if folder:
        return DataError(
            f"{shown} cannot be read as a data set: {message[:160]}. Name the file, as in `{setting}: "
            f"{shown.rstrip('/')}/train.csv`"
        )
    if "GatedRepoError" in names or "gated" in message.lower():
        return DataError(f"{shown} needs an agreement on its page at huggingface.co, and a token: run `hf auth login`")
    if "DatasetNotFoundError" in names or "RepositoryNotFoundError" in names or "doesn't exist" in message:
        return DataError(
            f"{where}{shown!r} is no variable here, no file, and no data set on the Hub. Check the name, or give a "
            f"file, as in `{setting}: {example}`"
        )
    if names & {"ConnectionError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"}:
        return DataError(
            f"{where}{shown!r} is no variable here and no file, and the Hub cannot be reached. Check the name, or give "
            f"a file, as in `{setting}: {example}`"
        )
    return DataError(
        f"{where}{shown} cannot be loaded from the Hub: {type(error).__name__}: {message[:160]}. Give a file instead, "
        f"as in `{setting}: {example}`"
    )


def _some(names: Iterable[str], limit: int = 12) -> str:
    listed = [name.strip()[:40] for name in names]
    return ", ".join(listed[:limit]) + (f", … {len(listed) - limit} more" if len(listed) > limit else "")
