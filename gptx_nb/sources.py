"""Where a run's examples come from, and what they were at that moment. Reads bytes, never a table: engine/data.py does.

Rows that live in this process (a DataFrame, a list, examples typed into the cell) are written out as they are; files
stay where they are and are known by the SHA-256 of their bytes, data sets on the Hub by their name. Nothing here
imports pandas, polars or datasets: such objects bring their own methods along.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from gptx_nb import digests, files
from gptx_nb.errors import DataError, nearest
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.text_files import files_of

# What ends like this is a file, even where there is none; a name on the Hub may hold dots as well.
FILE_ENDINGS = (
    *(".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xlsx", ".xls"),
    *(".ods", ".gz", ".xz", ".bz2", ".zip", ".zst", ".pkl", ".npz", ".npy", ".sqlite", ".db", ".yaml", ".yml", ".html"),
    *(".md", ".text"),
)
_MISSING = ("NAType", "NaTType")  # pandas' own words for a missing value
MOST_FILES = 10_000  # in a data set's folder
FEW_FILES = digests.MOST  # of texts, whose bytes are read to know them again

NO_EXAMPLES = (
    "there is nothing to learn from. Name a table, as in `data: reviews.csv` or `data: df`, or type examples:\n"
    "examples:\n"
    "  - [This movie is amazing!, positive]\n"
    "  - [I hate this product., negative]"
)
NO_TEXTS = "there is nothing to learn from. Name texts, as in `data: books/`, `data: articles.jsonl` or `data: df`"


@dataclass(frozen=True)
class Source:
    """One table's origin. `path` is absolute, or relative to the run's folder for rows that came from memory."""

    kind: Literal["examples", "frame", "file", "folder", "hub"]
    shown: str
    fingerprint: str
    path: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Source:
        return cls(**value)


def stage(recipe: AnyRecipe, data: object | None, validation: object | None, folder: Path) -> dict[str, Source | None]:
    """Return {"train": Source, "validation": Source or None}; rows from memory are written to `folder`/source/.

    `data` and `validation` are objects of the caller (DataFrame, Series, datasets.Dataset or DatasetDict, polars
    DataFrame, pyarrow.Table, list, dict of columns, path); where one is None, the recipe's text decides. A share as
    `recipe.validation` gives no validation source. Raises DataError.
    """
    examples = None if isinstance(recipe, PretrainRecipe) else recipe.examples
    if data is not None and examples is not None:
        raise DataError("both data and examples are given; keep one of them")
    own = validation if validation is not None else recipe.validation
    train: Source
    if examples is not None:
        train = _typed(examples, folder)
    elif data is None and recipe.data is None:
        raise DataError(NO_TEXTS if isinstance(recipe, PretrainRecipe) else NO_EXAMPLES)
    else:
        given = data if data is not None else recipe.data
        if _is_dataset_dict(given):
            splits: Mapping[str, object] = given  # type: ignore[assignment]
            given = _split(splits, recipe.split)
            share = type(recipe).model_fields["validation"].default
            if "validation" in splits and own == share and recipe.split != "validation":
                own = splits["validation"]
        train = _source(_as_rows(given, recipe, "data"), "data", recipe.data, recipe, folder, "train")
    if isinstance(own, float | int):
        return {"train": train, "validation": None}
    if _is_dataset_dict(own):
        own = _split(own, "validation")  # type: ignore[arg-type]
    shown = recipe.validation if isinstance(recipe.validation, str) else None
    own = _as_rows(own, recipe, "validation")
    return {"train": train, "validation": _source(own, "validation", shown, recipe, folder, "validation")}


def _as_rows(given: object, recipe: AnyRecipe, setting: str) -> object:
    """Return `given`; where texts alone are wanted, a list, Series or array of them as rows."""
    if isinstance(given, Iterator):
        raise DataError(
            f"{setting}: this {type(given).__name__} gives its rows only once. Give a list of them, as in "
            f"`{setting}=list(rows)`"
        )
    pretraining = isinstance(recipe, PretrainRecipe)
    if not pretraining and recipe.task != "text-generation":  # type: ignore[union-attr]
        return given
    values: Any = given
    if pretraining and (hasattr(given, "to_list") or (hasattr(given, "tolist") and getattr(given, "ndim", 0) == 1)):
        values = values.to_list() if hasattr(given, "to_list") else values.tolist()
    if not isinstance(values, list | tuple):
        return given
    for number, each in enumerate(values, 1):
        if pretraining and not isinstance(each, str | Mapping | list | tuple) and not _is_missing(each):
            raise DataError(f"{setting}: row {number} is {type(each).__name__} {str(each)[:40]!r}, and no text")
    return [{"text": each} if isinstance(each, str) or _is_missing(each) else each for each in values]


def _is_missing(value: object) -> bool:
    return value is None or type(value).__name__ in _MISSING or (isinstance(value, float) and value != value)


def _source(given: object, setting: str, shown: str | None, recipe: AnyRecipe, folder: Path, stem: str) -> Source:
    if isinstance(given, str | os.PathLike):
        return _named(given, setting, recipe)
    return _write(given, setting, shown, folder / "source", stem, texts=isinstance(recipe, PretrainRecipe))


# ---- what lies elsewhere --------------------------------------------------------------------------------------------


def _named(given: str | os.PathLike[str], setting: str, recipe: AnyRecipe) -> Source:
    """Return the source for a path or a name on the Hub."""
    text = os.fspath(given)
    if isinstance(given, str) and _is_a_text(text):
        wanted = "[text]" if isinstance(recipe, PretrainRecipe) else "[(text, label), ...]"
        raise DataError(
            f"{setting}: {text[:40]!r}{'…' if len(text) > 40 else ''} is a text, not a place: there is no file or "
            f"folder of that name. Give a list, as in `{setting}={wanted}`"
        )
    path = Path(text).expanduser().absolute()
    if path.is_dir() and isinstance(recipe, PretrainRecipe):
        return Source("folder", text, _fingerprint_texts(path, text, setting), str(path), {"holds": "texts"})
    if path.is_dir():
        return Source("folder", text, _fingerprint_folder(path, setting), str(path))
    if path.exists():
        return Source("file", text, _fingerprint_file(path, setting), str(path))
    if isinstance(given, os.PathLike) or _looks_like_path(text):
        raise DataError(_missing(text, path, setting))
    options: dict[str, Any] = {} if recipe.subset is None else {"subset": recipe.subset}
    if setting == "data":
        options["split"] = recipe.split
    asked = {"hub": text, **options}
    return Source(
        "hub", text, hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8")).hexdigest(), None, options
    )


def check_unchanged(source: Source, setting: str, run_folder: Path) -> None:
    """Raise DataError where the bytes of `source` are no longer those that were there when the cell was run.

    To be asked after reading: what was read before that is then known to be what the fingerprint says.
    """
    if source.path is None:
        return
    path = run_folder / source.path
    if source.options.get("holds") == "texts":
        now = _fingerprint_texts(path, source.shown, setting)
    else:
        now = _fingerprint_folder(path, setting) if source.kind == "folder" else _fingerprint_file(path, setting)
    if now != source.fingerprint:
        raise DataError(f"{setting}: {source.shown} was changed while it was read. Run the cell again once it is saved")


def _is_a_text(text: str) -> bool:
    """Say whether what is given as a place holds the text itself: no file is called so, and no name on the Hub."""
    if "\n" in text or len(text) > 4096 or any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        return True
    return " " in text and not _looks_like_path(text) and not Path(text).exists()


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or "\\" in text
        or text.count("/") > 1
        or text.lower().endswith(FILE_ENDINGS)
    )


def _missing(text: str, path: Path, setting: str) -> str:
    folder = path.parent
    while not folder.is_dir():
        if folder.parent == folder:
            break
        folder = folder.parent
    if folder != path.parent:
        return f"{setting}: {text!r} is not there: there is no folder {path.parent}. Check the path; {folder} is there"
    names = sorted(each.name for each in islice(folder.iterdir(), 2000) if not each.name.startswith("."))
    tables = [name for name in names if name.lower().endswith(FILE_ENDINGS)]
    hint = nearest(path.name, names)
    if not hint and tables:
        hint = f" Tables there: {', '.join(tables[:8])}{', …' if len(tables) > 8 else ''}."
    return f"{setting}: there is no file {text!r} in {folder}.{hint or ' Check the name, or give its whole path.'}"


def _fingerprint_file(path: Path, setting: str) -> str:
    try:
        return digests.sha256(path)
    except FileNotFoundError:
        raise DataError(
            f"{setting}: {path} is not there any more: it was moved or deleted. Check the path, and run the cell again"
        ) from None
    except OSError as error:
        advice = ". Check its permissions" if isinstance(error, PermissionError) else ""
        raise DataError(f"{setting}: {path} cannot be opened: {error.strerror or error}{advice}") from None


def _fingerprint_folder(folder: Path, setting: str) -> str:
    """Return a SHA-256 over the names and bytes of all tables below `folder`, and what describes them.

    Hidden files are left out. A folder of very many files is somebody's disk, not a data set, and is refused unread.
    """
    found: list[Path] = []
    looked_at = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        looked_at += len(folders) + len(names)
        if looked_at > MOST_FILES:
            raise DataError(
                f"{setting}: {folder} holds more than {MOST_FILES:,} files, and is no data set's folder. Name the one "
                f"in it, or a file, as in `{setting}: {folder / 'train.csv'}`"
            )
        found += [
            Path(place, name)
            for name in names
            if not name.startswith(".") and name.lower().endswith((*FILE_ENDINGS, "readme.md"))
        ]
    digest = hashlib.sha256()
    for path in sorted(found):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{_fingerprint_file(path, setting)}\n".encode())
    return digest.hexdigest()


def _fingerprint_texts(folder: Path, shown: str, setting: str) -> str:
    """Return a SHA-256 over the names and bytes of the texts below `folder`.

    Of more than FEW_FILES it is over names, sizes and times: to open each of a million takes longer than is waited for.
    """
    found = list(files_of(folder, shown, setting))
    digest = hashlib.sha256()
    for path in found:
        if len(found) <= FEW_FILES:
            what = _fingerprint_file(path, setting)
        else:
            known = path.stat()
            what = f"{known.st_size} {known.st_mtime_ns}"
        digest.update(f"{path.relative_to(folder).as_posix()}\0{what}\n".encode())
    return digest.hexdigest()


# ---- what lives in this process -------------------------------------------------------------------------------------


def _typed(examples: Sequence[Sequence[str] | Mapping[str, str]], folder: Path) -> Source:
    target = folder / "source" / "train.jsonl"
    _write_lines(_rows(examples, "examples"), target)
    return _staged("examples", "examples", target)


def _write(given: object, setting: str, shown: str | None, folder: Path, stem: str, *, texts: bool = False) -> Source:
    """Write the rows of `given` to `folder`/`stem`.parquet or .jsonl, exactly as they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = type(given).__name__
    parquet, lines = folder / f"{stem}.parquet", folder / f"{stem}.jsonl"
    target = lines
    label = f"{shown} ({kind})" if shown else f"this {kind}"
    if hasattr(given, "to_frame") and hasattr(given, "reset_index"):  # pandas.Series
        given = _frame_of_series(given, setting)
    if hasattr(given, "set_axis") and hasattr(given, "to_json"):  # pandas.DataFrame
        target = _write_frame(given, setting, parquet, lines)
    elif hasattr(given, "write_parquet"):  # polars.DataFrame
        given.write_parquet(parquet)
        target = parquet
    elif hasattr(given, "features") and not hasattr(given, "__len__"):  # datasets.IterableDataset
        raise DataError(
            f"{setting}: {label} is a stream without an end that is known here. Take a part of it, as in "
            "`datasets.Dataset.from_list(list(stream.take(1000)))`"
        )
    elif hasattr(given, "to_parquet") and hasattr(given, "features"):  # datasets.Dataset
        with _without_bars(given):
            given.to_parquet(str(parquet))
        target = parquet
    elif hasattr(given, "to_pylist") and hasattr(given, "schema"):  # pyarrow.Table
        _write_lines(given.to_pylist(), lines)
    elif hasattr(given, "collect") and hasattr(given, "lazy"):  # polars.LazyFrame
        raise DataError(f"{setting}: {label} has not been computed. Give its rows: call .collect() on it")
    elif isinstance(given, Mapping):
        _write_lines(_rows_of_columns(given, setting), lines)
    elif isinstance(given, list | tuple):
        _write_lines(_rows(given, setting), lines)
    elif hasattr(given, "tolist") and hasattr(given, "shape"):  # numpy.ndarray
        _write_lines(_rows(given.tolist(), setting), lines)
    else:
        rows = "texts" if texts else "(text, label) pairs"
        raise DataError(
            f"{setting}: {label} is no table. Give a DataFrame, a list of {rows}, a datasets.Dataset, or the name of a "
            "file"
        )
    return _staged("frame", label, target)


def _staged(kind: Literal["examples", "frame"], shown: str, target: Path) -> Source:
    return Source(kind, shown, files.sha256(target), f"source/{target.name}")


def _frame_of_series(series: Any, setting: str) -> Any:
    """Return a DataFrame of a Series of labels whose index holds the texts."""
    first = next(iter(series.index), None)
    texts = first if isinstance(first, tuple) else (first,)
    if first is not None and not any(isinstance(each, str) for each in texts):
        raise DataError(
            f"{setting}: a Series has one column, and two are needed: a text and its label. Give a DataFrame, as in "
            '`pd.DataFrame({"text": texts, "label": labels})`, or a Series of labels whose index holds the texts'
        )
    frame = series.reset_index()
    if len(frame.columns) == 2:  # unnamed ones are called `index` and 0
        frame = frame.set_axis([series.index.name or "text", series.name or "label"], axis=1)
    return frame


def _write_frame(frame: Any, setting: str, parquet: Path, lines: Path) -> Path:
    """Write a pandas DataFrame without its index; as JSON lines where a column mixes types, which Parquet refuses."""
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{setting}: the table has more than one column {twice[0]!r}. Give each a name of its own")
    frame = frame.set_axis(names, axis=1)
    try:
        frame.to_parquet(parquet, index=False)
    except Exception as error:  # pyarrow has no common base for what it cannot store
        if isinstance(error, OSError) and error.errno is not None:
            raise
        parquet.unlink(missing_ok=True)
        frame.to_json(lines, orient="records", lines=True, force_ascii=False, date_format="iso", double_precision=15)
        return lines
    return parquet


@contextlib.contextmanager
def _without_bars(given: object) -> Iterator[None]:
    """Keep the progress bars of the package that `given` comes from out of the user's cell."""
    package = sys.modules[type(given).__module__.partition(".")[0]]
    shown = hasattr(package, "are_progress_bars_disabled") and not package.are_progress_bars_disabled()
    if shown:
        package.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            package.enable_progress_bars()


def _is_dataset_dict(given: object) -> bool:
    """Say whether `given` is like datasets.DatasetDict: a dict of tables by the names of their splits."""
    return isinstance(given, dict) and bool(given) and all(_is_table(each) for each in given.values())


def _is_table(given: object) -> bool:
    marks = (("set_axis", "columns"), ("write_parquet",), ("features", "column_names"), ("to_pylist", "schema"))
    return any(all(hasattr(given, name) for name in group) for group in marks)


def _split(splits: Mapping[str, object], wanted: str) -> object:
    if wanted not in splits:
        known = [str(name) for name in splits]
        raise DataError(
            f"the data has no split {wanted!r}.{nearest(wanted, known)} Splits: {', '.join(known)}. "
            f"Choose one, as in `split: {known[0]}`"
        )
    return splits[wanted]


def _rows_of_columns(columns: Mapping[Any, Any], setting: str) -> list[dict[str, Any]]:
    values = {str(name): column for name, column in columns.items()}
    for name, column in values.items():
        if isinstance(column, str) or not isinstance(column, Iterable):
            raise DataError(
                f"{setting}: a dict must hold columns, and {name!r} holds {type(column).__name__}. For example: "
                '{"text": [...], "label": [...]}'
            )
    lists = {name: list(column) for name, column in values.items()}
    if len({len(column) for column in lists.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(column)}" for name, column in lists.items())
        raise DataError(f"{setting}: the columns differ in length: {lengths}. Give as many labels as texts")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _rows(rows: Iterable[object], setting: str) -> list[dict[str, Any]]:
    """Return every row as a dict; pairs become {"text": ..., "label": ...}."""
    found = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, Mapping):
            found.append({str(name): value for name, value in row.items()})
        elif isinstance(row, list | tuple) and len(row) == 2:
            found.append({"text": row[0], "label": row[1]})
        else:
            got = f"{len(row)} parts" if isinstance(row, list | tuple) else f"{type(row).__name__} {str(row)[:40]!r}"
            raise DataError(
                f"{setting}: row {number} is {got}, and needs to be a pair of text and label, as in "
                '("Great!", "positive")'
            )
    return found


def _write_lines(rows: Iterable[Mapping[str, Any]], target: Path) -> None:
    text = "".join(json.dumps(files.finite(row), ensure_ascii=False, default=plain) + "\n" for row in rows)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Half of an emoji (a lone surrogate) cannot be stored: it becomes a question mark.
    target.write_bytes(text.encode("utf-8", errors="replace"))


def plain(value: object) -> Any:
    """Return a value that JSON has no word for as one it has: NumPy's numbers and arrays, dates, anything as text."""
    if type(value).__name__ in _MISSING:
        return None
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    return files.finite(convert()) if callable(convert) else str(value)
