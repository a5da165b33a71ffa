"""Client of the inference process: texts in, `Predictions` or `Generations` out. The process starts on demand.

One process a home directory keeps models warm for all kernels and threads of this user on this machine (`gptx_nb.serve`
is its code). They meet in a directory that only the user can enter:

    lock           held by the process as long as it lives: there is never a second one
    socket         where it listens: HTTP/1.1 on a Unix socket
    token          what every request has to carry
    process.json   evidence of the process; removed when it ends in order, so that what is left behind tells of a crash

Nothing here imports torch or pandas: tables are asked for their columns, not looked into. The process needs Unix
sockets and file locks, which Linux and macOS have.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import math
import numbers
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gptx_nb
from gptx_nb import files, launch, text_pairs
from gptx_nb.catalog import RUN
from gptx_nb.errors import BY_NAME, DataError, GptxError, RunFailed, RunNotFound, UsageError, nearest
from gptx_nb.generations import Generation, Generations
from gptx_nb.predictions import Predictions
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.process import Process
from gptx_nb.run_files import home
from gptx_nb.runs import Run
from gptx_nb.sources import plain

Progress = Callable[[int, int], None]  # texts done, texts in all

TASK_FILE = "gptx_task.json"  # beside a model that writes: its task, and what its prompts look like
CLASSIFIER_FILE = "gptx_classifier.json"  # beside a classifier: how it reads texts, and from when on it gives a label
IDLE_SECONDS = 600.0
# A request holds at most this much, so that progress shows, an interrupt ends it soon, and clients take turns.
CHUNK_TEXTS = 128
CHUNK_PROMPTS = 64
MOST_BESIDE = 64  # texts that tell what a base model says of every text
LONGEST_BESIDE = 4_000  # characters of one of them
CHUNK_CHARACTERS = 200_000
LARGEST_BODY = 32 * 2**20  # bytes
LONGEST_TEXT = LARGEST_BODY // 16  # characters; one takes at most twelve bytes as JSON
LARGEST_LOG = 2**20  # bytes; a larger one is put aside when the next process starts
START_SECONDS = 60.0  # until the process listens; it does so before it imports torch
FREE_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """The file names of one home's inference process."""

    home: Path
    folder: Path

    @classmethod
    def of(cls, root: Path | None = None) -> Place:
        """Return the place for `root`, by default for the home in use. Nothing is created.

        Of each version another, as a process of one is not asked by the other: what they say may differ.
        """
        root = (root or home()).resolve()
        whose = os.fsencode(root) + b"\0" + gptx_nb.__version__.encode()
        # A Unix socket's name has about 100 bytes, and locks work on local disks: hence not below the home.
        name = f"gptx_nb-{os.getuid()}/{hashlib.sha256(whose).hexdigest()[:16]}"
        folder = Path(tempfile.gettempdir()) / name
        return cls(root, folder if len(os.fsencode(folder)) < 90 else Path("/tmp") / name)

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def process(self) -> Path:
        return self.folder / "process.json"

    @property
    def log(self) -> Path:
        return self.home / "inference.log"

    def make(self) -> None:
        """Make the directory, for this user only. Raises UsageError if another user has put one there."""
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise UsageError(
                    f"{folder} is not a folder of yours alone, so predictions cannot be kept private. Remove it, or "
                    "set TMPDIR to a folder of yours"
                )

    def remove_files(self) -> None:
        """Remove what a process leaves here. For who holds the lock."""
        for path in (self.process, self.socket, self.token):
            path.unlink(missing_ok=True)

    def evidence(self) -> Process | None:
        """Return the process that wrote itself down here, alive or not."""
        try:
            value = files.read_json(self.process)
        except (ValueError, OSError):
            return None
        return Process.from_json(value) if value else None


_READ = {"head+tail": "head and tail", "windows": "first part"}  # of a text that is too long to be read whole


# ---- predicting -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """What was asked about: the texts in order, and the index of the Series or DataFrame they came from, or None."""

    texts: list[str]
    index: Any = None


def predict(run: Run, texts: Any, progress: Progress | None = None, step: int | None = None) -> Predictions:
    """Classify a text, a list, a Series, or a DataFrame's text column with the model of `run`.

    `step`: with the model that it had then, if one was made (see gptx_nb/unfinished.py).
    `progress(done, all)` is called after each part. Raises DataError for what is no text, RunNotFound for a run that
    has no model yet, ModelError for a model that cannot be loaded, RunFailed if the inference process crashed; the
    next call starts a new one.
    """
    label = f"{run.name}/{run.version}"
    config = files.read_json((run.model if step is None else run.unfinished(step)) / "config.json")
    if config is None:
        raise RunNotFound(f"run {label} has no model yet: it is {run.state()}. See `%gpt_watch {run.name}`")
    known = files.read_json(run.model / CLASSIFIER_FILE) or {}
    read = _READ.get(str((known.get("reading") or {}).get("way")), "beginning")
    if (pair := pair_of(run)) is not None:
        asked = read_pairs(texts, pair, f"run {label} reads")
    else:
        asked = read_texts(texts, run.recipe().text, f"run {label}")
    # transformers leaves its default out of the file: two labels of these names.
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = [named[str(number)] for number in range(len(named))]
    several = config.get("problem_type") == "multi_label_classification"
    threshold: float | list[float] | None = 0.5 if several else None
    probabilities: list[list[float]] = []
    cut_at: list[int] = []
    chunks = list(_chunks(asked.texts, label))
    if chunks:
        with contextlib.closing(_Client(Place.of(run.folder.parents[2]))) as client:
            for chunk in chunks:
                body = {"folder": str(run.folder), "step": step, "texts": chunk}
                answer = client.ask("/v1/classify", body, f"predicting with {label}")
                labels, threshold = answer["labels"], answer["threshold"]
                cut_at += [len(probabilities) + at for at in answer["cut_at"]]
                probabilities += answer["probabilities"]
                if progress:
                    progress(len(probabilities), len(asked.texts))
    return Predictions(label, labels, asked.texts, probabilities, cut_at, asked.index, threshold, read)


def pair_of(run: Run) -> tuple[str, str] | None:
    """Return the columns of the two texts that the classifier of `run` reads; None where it reads one, or none yet."""
    columns = (files.read_json(run.model / CLASSIFIER_FILE) or {}).get("columns") or run.report() or {}
    return (columns["text"], columns["text_pair"]) if columns.get("text_pair") is not None else None


def extremes(run: Run, count: int = 5) -> dict[str, Any]:
    """Return the held-out rows that the model of `run` does best and worst on.

    {"rows": how many were looked at, "best" and "worst": [{"text", "right", "said", "share": the probability of what is
    right}]}. Raises as `predict` does.
    """
    if not (run.model / "config.json").is_file():
        raise RunNotFound(f"run {run.name}/{run.version} has no model yet: it is {run.state()}")
    with contextlib.closing(_Client(Place.of(run.folder.parents[2]))) as client:
        body = {"folder": str(run.folder), "count": count}
        return client.ask("/v1/extremes", body, f"looking at the rows of {run.name}/{run.version}")


@dataclass(frozen=True)
class Labels:
    """What a base model is to tell apart. `words` stand for labels behind `prompt`; `shots` are texts with labels.

    `pair`: each text is two, which have these names in a table; those of `shots` are joined (see `text_pairs`).
    """

    names: tuple[str, ...]
    prompt: str | None = None
    words: Mapping[str, str] | None = None
    shots: tuple[tuple[str, str], ...] = ()
    pair: tuple[str, str] | None = None


def label(who: Run | str, texts: Any, labels: Labels, progress: Progress | None = None) -> Predictions:
    """Let a base model, or the run that made one, give each text one of `labels`, without any training.

    The texts are those that `predict` takes, for pairs of texts too. Some of them tell how likely each label is
    whatever a text says, which is taken out. Raises as `predict` does.
    """
    name = f"{who.name}/{who.version}" if isinstance(who, Run) else who
    root = who.folder.parents[2] if isinstance(who, Run) else None
    asked = read_pairs(texts, labels.pair, f"{name} is asked about") if labels.pair else read_texts(texts, None, name)
    step = -(-len(asked.texts) // MOST_BESIDE) or 1
    body: dict[str, Any] = {
        "base": f"{RUN}{name}" if isinstance(who, Run) else who,
        "labels": list(labels.names),
        "prompt": labels.prompt,
        "label_words": dict(labels.words) if labels.words else None,
        "shots": [list(each) for each in labels.shots],
        "pair": labels.pair is not None,
        "beside": [
            text_pairs.shortened(text, LONGEST_BESIDE) if labels.pair else text[:LONGEST_BESIDE]
            for text in asked.texts[::step]
        ],
    }
    shares: list[list[float]] = []
    cut_at: list[int] = []
    chunks = list(_chunks(asked.texts, name))
    if chunks:
        with contextlib.closing(_Client(Place.of(root))) as client:
            for chunk in chunks:
                answer = client.ask("/v1/label", {**body, "texts": chunk}, f"predicting with {name}")
                cut_at += [len(shares) + at for at in answer["cut_at"]]
                shares += answer["probabilities"]
                if progress:
                    progress(len(shares), len(asked.texts))
    return Predictions(name, labels.names, asked.texts, shares, cut_at, asked.index)


@dataclass(frozen=True)
class Wishes:
    """How texts are written; None leaves it to the task. See `engine.writer.How` for what each does."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int = 0
    beams: int = 1

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "temperature": (0, 100), "top_p": (0, 1), "top_k": (1, 1_000_000), "max_new_tokens": (1, 1_000_000),
            "n": (1, 1_000), "seed": (0, 2**31 - 1), "beams": (1, 64),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            whole = name not in ("temperature", "top_p")
            kind = "a whole number" if whole else "a number"
            wrong = not isinstance(value, int if whole else int | float) or isinstance(value, bool)
            if value is not None and (wrong or not least <= value <= most or (name == "top_p" and value == 0)):
                above = "above" if name == "top_p" else "from"
                raise UsageError(f"{name}: {value!r} does not fit: {kind} {above} {least:g} to {most:,g}")
        if self.beams > 1:
            drawn = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k") if getattr(self, name)}
            if drawn:
                name, value = next(iter(drawn.items()))
                raise UsageError(
                    f"beams: the likeliest continuations are searched, and {name} {value:g} draws at random. Leave one "
                    "out"
                )
            if self.n > self.beams:
                raise UsageError(
                    f"n: {self.n} answers of {self.beams} beams cannot be had. Type `beams: {self.n}` or fewer answers"
                )
        elif self.n > 1 and self.temperature == 0:
            raise UsageError("n: several answers are drawn at random, and temperature 0 gives the same one each time")


def writes(run: Run, step: int | None = None) -> bool:
    """Say whether the model of `run` writes texts, and gives no labels."""
    return run.kind is PretrainRecipe or ((run.model if step is None else run.unfinished(step)) / TASK_FILE).exists()


def generate(
    who: Run | str,
    prompts: Any,
    wishes: Wishes | None = None,
    *,
    task: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    shots: Sequence[Mapping[str, Any]] = (),
    step: int | None = None,
    progress: Progress | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Generations:
    """Let the model of a run, or the base model that `who` names, write an answer to each of `prompts`.

    `prompts`: a text, a row by role, a conversation, a list of those, a Series, or a DataFrame. `from_` and `to` are
    the languages of a translation. `on_text` is called with each piece of a single answer as it is written. Raises as
    `predict` does.
    """
    wishes = wishes or Wishes()
    label = f"{who.name}/{who.version}" if isinstance(who, Run) else who
    root = who.folder.parents[2] if isinstance(who, Run) else None
    asked, index = read_prompts(prompts, label)
    target = {"folder": str(who.folder), "step": step} if isinstance(who, Run) else {"base": who}
    how = {name: value for name, value in asdict(wishes).items() if value is not None}
    more = {"task": task, "from": from_, "to": to}
    rows: list[Generation] = []
    cut_at: list[int] = []
    found_task, template = task or "", ""
    if asked:
        with contextlib.closing(_Client(Place.of(root))) as client:
            for start in range(0, len(asked), CHUNK_PROMPTS):
                chunk = asked[start : start + CHUNK_PROMPTS]
                body = {**target, "rows": chunk, "first": start + 1, "how": how, "shots": list(shots), **more}
                single = on_text if len(asked) == 1 and wishes.n == 1 else None
                answer = client.read_lines("/v1/generate", body, f"writing with {label}", single)
                rows += [_generation(each) for each in answer["rows"]]
                cut_at += [start + at for at in answer["cut_at"]]
                found_task, template = answer["task"], answer.get("template", "")
                if progress:
                    progress(len(rows), len(asked))
    return Generations(label, found_task, rows, cut_at, index, template)


def _generation(told: dict[str, Any]) -> Generation:
    if "choices" not in told:
        return Generation(told["asked"], told["texts"], told["ended"], told["tokens"])
    ranked = sorted(zip(told["choices"], told["shares"], strict=True), key=lambda pair: -pair[1])
    return Generation(told["asked"], [ranked[0][0]], ["end"], 0, dict(ranked))


def read_prompts(value: Any, label: str) -> tuple[list[str | dict[str, Any]], Any]:
    """Return prompts as texts and objects by column, and the index of a Series or DataFrame."""
    known = getattr(value, "columns", getattr(value, "column_names", None))
    if isinstance(value, Mapping):
        return [_row(value, 1)], None
    if _is_talk(value):
        return [_prompt(value, 1)], None
    if known is not None and not callable(known) and len(known):  # one column too: its name says what it holds
        if hasattr(value, "iloc"):
            listed = value.to_dict("records")
        else:  # polars, pyarrow, or rows by themselves
            listed = getattr(value, "to_dicts", getattr(value, "to_pylist", lambda: list(value)))()
        index = getattr(value, "index", None)
        return [_row(each, number) for number, each in enumerate(listed, 1)], None if callable(index) else index
    listed = value if isinstance(value, list | tuple) else getattr(value, "tolist", lambda: None)()
    if isinstance(listed, list):  # of what comes from a file each may be an array
        listed = [each.tolist() if hasattr(each, "tolist") else each for each in listed]
    if isinstance(listed, list | tuple) and any(isinstance(each, Mapping) or _is_talk(each) for each in listed):
        found = [_prompt(each, number) for number, each in enumerate(listed, 1)]
        index = getattr(value, "index", None)
        return found, None if callable(index) else index
    texts = read_texts(value, None, label)
    return list(texts.texts), texts.index


def _is_talk(value: Any) -> bool:
    """Say whether `value` is a conversation: a list of turns."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(each, Mapping) and "role" in each for each in value)
        and all(set(each) <= {"role", "content", "name"} for each in value)
    )


def _prompt(value: Any, number: int) -> str | dict[str, Any]:
    """Return one prompt of several: a text, a row by column, or a conversation."""
    if _is_talk(value):
        return {"messages": [_row(each, number) for each in value]}
    return _row(value, number) if isinstance(value, Mapping) else _as_text(value, f"row {number}", "Leave it out")


def _row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    def whole(value: Any, column: str) -> Any:
        if isinstance(value, str | int | bool) or value is None:
            return value
        if isinstance(value, Mapping):
            return {str(key): whole(each, column) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [whole(each, column) for each in value]
        if isinstance(value, float):
            return None if math.isnan(value) else value
        if isinstance(value, bytes | bytearray):
            raise DataError(f"row {number}, column {column!r}, holds {_kind(value)}, and needs texts. Decode it first")
        listed: Callable[[], Any] | None = getattr(value, "tolist", None)
        # As tables to learn from are read.
        return whole(listed(), column) if callable(listed) else plain(value)

    return {str(name): whole(value, str(name)) for name, value in row.items()}


def read_texts(value: Any, column: str | None, label: str) -> Texts:
    """Return the texts in `value`; `column` is the text column that `label` ("run a/1") learned from, for a DataFrame.

    Numbers become text; None and NaN raise DataError, which names the row.
    """
    if isinstance(value, str):
        return Texts([_as_text(value, "the text", "")])
    advice = "Give a text, a list of texts, a Series, or a DataFrame"
    if value is None or isinstance(value, bytes | bytearray | Mapping | Set | numbers.Number):
        raise DataError(f"{_kind(value)} holds no texts to predict. {advice}")
    known = getattr(value, "columns", getattr(value, "column_names", None))
    if known is not None and not callable(known):
        return _read_column(value, [str(each) for each in known], column, label)
    index = None
    if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        known = list(dict.fromkeys(str(name) for each in value for name in each))  # rows, as those of a .jsonl file
        return _read_column({name: [each.get(name) for each in value] for name in known}, known, column, label)
    if isinstance(value, list | tuple):
        items = list(value)
    elif (listed := getattr(value, "tolist", None) or getattr(value, "to_list", None)) is not None:
        items = listed()
        found = getattr(value, "index", None)
        index = None if callable(found) else found
        if not isinstance(items, list):  # an array without dimensions
            items = [items]
    elif isinstance(value, Iterable):
        items = list(value)
    else:
        raise DataError(f"{_kind(value)} holds no texts to predict. {advice}")
    return Texts(_as_texts(items, index, ""), index)


def read_pairs(value: Any, columns: tuple[str, str], needs: str) -> Texts:
    """Return the pairs in `value` as texts (see `text_pairs`); `needs` says who needs them: "run a/1 reads".

    A pair is an object with both `columns`, two texts, or a text with a blank line between them; a table has both.
    """
    first, second = columns
    advice = f"Give {{{first!r}: …, {second!r}: …}}, a list of such, or a DataFrame with both columns"
    known = getattr(value, "columns", getattr(value, "column_names", None))
    if known is not None and not callable(known):
        names = [str(each) for each in known]
        for name in columns:
            if name not in names:
                raise DataError(f"the table has no column {name!r}, and {needs} pairs of texts. {advice}")
        held, beside = (_read_column(value, names, name, needs) for name in columns)
        return Texts([text_pairs.join(*both) for both in zip(held.texts, beside.texts, strict=True)], held.index)
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) for each in value)
    if pair or isinstance(value, str | Mapping):
        rows: list[Any] = [value]
    elif isinstance(value, list | tuple):
        rows = list(value)
    else:
        raise DataError(f"{_kind(value)} holds no pairs of texts, which {needs}. {advice}")
    texts = []
    for number, row in enumerate(rows, 1):
        at = f"row {number} of {len(rows)}"
        both = text_pairs.split(row) if isinstance(row, str) else row
        if isinstance(both, Mapping):
            both = [both[name] for name in columns] if set(columns) <= set(both) else None
        if not isinstance(both, list | tuple) or len(both) != 2:
            raise DataError(f"{at} is no pair of texts, which {needs}. {advice}")
        one, other = (_as_text(each, f"{name} of {at}", "") for each, name in zip(both, columns, strict=True))
        texts.append(text_pairs.join(one, other))
    return Texts(texts)


def _read_column(table: Any, known: list[str], column: str | None, label: str) -> Texts:
    if column is None:
        named = (each for each in text_pairs.TEXT_NAMES if each in known)
        column = known[0] if len(known) == 1 else next(named, "text")
    if column not in known:
        shown = ", ".join(known[:12]) + (f", … {len(known) - 12} more" if len(known) > 12 else "")
        raise DataError(
            f"the table has no column {column!r}, which {label} reads its texts from.{nearest(column, known)} "
            f"Columns: {shown or 'none'}. Give the texts themselves, as in df[{known[0] if known else 'text'!r}]"
        )
    if known.count(column) > 1:
        raise DataError(f"the table has {known.count(column)} columns called {column!r}. Rename all but one")
    values = table[column]
    listed = getattr(values, "tolist", None) or getattr(values, "to_list", None)
    items = listed() if listed is not None else list(values)
    index = getattr(table, "index", None)
    index = None if callable(index) else index
    return Texts(_as_texts(items, index, f" of column {column!r}"), index)


def _as_texts(items: list[Any], index: Any, where: str) -> list[str]:
    texts = []
    for number, item in enumerate(items):
        if type(item) is str and item.isascii():  # the usual case, quickly
            texts.append(item)
            continue
        at = f"row {number + 1} of {len(items)}{where}"
        if index is not None:
            at += f" (index {index[number]!r})"
        texts.append(_as_text(item, at, "Leave such rows out, as with .dropna(), or fill them, as with .fillna('')"))
    return texts


def _as_text(item: Any, at: str, advice: str) -> str:
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{at} holds half a character (a lone surrogate, at place {error.start + 1}). "
                "Mend it with text.encode('utf-8', 'replace').decode()"
            ) from None
        return str(item)
    if item is None or type(item).__name__ in ("NAType", "NaTType") or (isinstance(item, float) and math.isnan(item)):
        raise DataError(f"{at} is {'None' if item is None else 'missing (NaN)'}, not a text. {advice}")
    if isinstance(item, numbers.Number):
        return str(item)
    raise DataError(f"{at} is {_kind(item)}, not a text. Make it one, as with str(…)")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _chunks(texts: list[str], label: str) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for number, text in enumerate(texts, 1):
        if len(text) > LONGEST_TEXT:
            raise DataError(
                f"row {number} of {len(texts)} has {len(text):,} characters; at most {LONGEST_TEXT:,} can be sent. "
                f"Run {label} reads only the beginning: cut it, as in text[:100_000]"
            )
        if chunk and (len(chunk) == CHUNK_TEXTS or characters + len(text) > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


# ---- the process ----------------------------------------------------------------------------------------------------


def warm(root: Path | None = None) -> None:
    """Start the process if there is none, and return at once. It imports torch and loads a model when it is asked to.

    Cheap enough to be called again and again, so that it stays warm while a run goes on.
    """
    place = Place.of(root)
    if not _listens(place):
        _spawn(place)


def start(root: Path | None = None) -> dict[str, Any]:
    """Start the process if there is none, wait until it answers, and return what `ping` returns."""
    with contextlib.closing(_Client(Place.of(root))) as client:
        return client.ask("/v1/health", None, "starting")


def ping(root: Path | None = None) -> dict[str, Any] | None:
    """Return {"pid", "models", "bytes", "idle", "limit"} (seconds idle, seconds until it ends itself), or None."""
    place = Place.of(root)
    if not _listens(place):
        return None
    with contextlib.closing(_Client(place)) as client:
        try:
            return client.ask("/v1/health", None, "answering", begin=False)
        except RunFailed:
            return None


def free(root: Path | None = None) -> bool:
    """End the process, and with it all memory it holds; return whether there was one. Takes at most 5 seconds.

    What it is computing for others is dropped; they start a new one.
    """
    place = Place.of(root)
    process = place.evidence() if _locked(place) else None
    if process is None:
        child = _children.get(place.folder)
        if child is None or child.poll() is not None:
            return False
        # Started a moment ago and not at its place yet.
        process = Process.of(child.pid)
    # Asked first, so that it ends in order; one that does not listen any more is ended by force.
    deadline = time.monotonic() + FREE_SECONDS
    if _listens(place):
        with contextlib.closing(_Client(place, timeout=1.0)) as client, contextlib.suppress(GptxError):
            client.ask("/v1/free", {}, "ending", begin=False)
    for word, until in ((None, 2.0), (signal.SIGTERM, 1.0), (signal.SIGKILL, 0.0)):
        if word is not None and process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, word)
        while process.alive() and time.monotonic() < deadline - until:
            time.sleep(0.02)
    if process.alive():
        raise RunFailed(
            f"the inference process {process.pid} could not be ended in {FREE_SECONDS:g} s. Log: {place.log}"
        )
    child = _children.get(place.folder)
    if child is not None and child.pid == process.pid:
        child.wait(1.0)  # not even its dead body is left
    with _lock(place, fcntl.LOCK_EX) as held:
        if held:  # else a new one is there already
            place.remove_files()
    return True


def idle_seconds() -> float:
    """Return after how many seconds without work the process ends: $GPTX_IDLE_SECONDS, else 600."""
    given = os.environ.get("GPTX_IDLE_SECONDS")
    if not given:
        return IDLE_SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"GPTX_IDLE_SECONDS is {given!r}; it has to be a number of seconds above 0, as in 600")
    return seconds


@contextlib.contextmanager
def _lock(place: Place, kind: int) -> Iterator[bool]:
    """Hold the place's lock if no process holds it; say whether it is held now."""
    place.make()
    descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _locked(place: Place) -> bool:
    """Say whether a process holds the place. It may not listen yet, or not any more."""
    if not place.lock.exists():
        return False
    # Shared: two clients that look at the same time do not see each other.
    with _lock(place, fcntl.LOCK_SH) as free:
        return not free


def _listens(place: Place) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(place.socket))
        except BlockingIOError:  # its queue of callers is full: it listens
            return True
        except OSError:
            return False
    return True


_children: dict[Path, subprocess.Popen[bytes]] = {}  # the latest one that this process has started, by place
_starting = threading.Lock()


def _spawn(place: Place) -> tuple[subprocess.Popen[bytes], bool]:
    """Start the process, unless one that was started here still is; return it and whether it is new.

    One that finds another at its place ends at once with status 0.
    """
    with _starting:
        running = _children.get(place.folder)
        if running is not None and running.poll() is None:
            return running, False  # another thread has just started it, or it is about to end
        idle_seconds()  # a wrong value shall be seen here and not in a log
        place.make()
        place.home.mkdir(parents=True, exist_ok=True)
        if place.log.exists() and place.log.stat().st_size > LARGEST_LOG:
            os.replace(place.log, place.log.with_suffix(".log.old"))
        with open(place.log, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "gptx_nb.serve", str(place.home), str(place.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**launch.environment(), "GPTX_HOME": str(place.home)},
                start_new_session=True,  # a kernel's interrupt or end does not reach it
            )
        _children[place.folder] = child
        # Collects the exit status as soon as there is one: a zombie would look like a process left behind.
        threading.Thread(target=child.wait, name="gptx-inference-reaper", daemon=True).start()
        return child, True


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Client:
    """One connection to the process, which is started, and started again after an orderly end, as needed."""

    def __init__(self, place: Place, timeout: float | None = None) -> None:
        self._place = place
        self._timeout = timeout  # seconds; None: as long as it takes, since a crash closes the connection
        self._connection: _Connection | None = None
        self._token = ""
        self._process: Process | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, path: str, body: dict[str, Any] | None, doing: str, *, begin: bool = True) -> dict[str, Any]:
        """Send `body` (None: GET) and return the answer. `begin`: start the process where there is none."""
        for _ in range(4):  # it may end in order (idle, freed) and start anew in between; more often is no accident
            try:
                if self._connection is None:
                    self._connect(begin)
                status, answer = self._exchange(path, body)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if begin and not self._crashed():
                    continue
                raise RunFailed(self._crash(doing, error)) from error
            except BaseException:  # an interrupt: the answer still comes and must not be read by the next request
                self.close()
                raise
            if status == 403:  # another process has taken the place since the token was read
                self.close()
                continue
            if status != 200:
                kind = BY_NAME.get(str(answer.get("kind")), RunFailed)
                message = str(answer.get("error"))
                raise kind(f"{message}. Log: {self._place.log}" if kind is RunFailed else message)
            return answer
        raise RunFailed(f"the inference process keeps ending or refuses this client. Log: {self._place.log}")

    def read_lines(
        self, path: str, body: dict[str, Any], doing: str, on_text: Callable[[str], None] | None
    ) -> dict[str, Any]:
        """Send `body`, hand the pieces of text on as they come, and return the last line of the answer.

        Whatever ends the reading, an interrupt too, closes the connection, and that ends the writing.
        """
        for _ in range(4):
            begun = False
            try:
                if self._connection is None:
                    self._connect(True)
                assert self._connection is not None
                headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
                self._connection.request("POST", path, json.dumps(body).encode("ascii"), headers)
                response = self._connection.getresponse()
                if response.status == 403:  # another process has taken the place since the token was read
                    continue
                answer: dict[str, Any] = {}
                while line := response.readline():
                    answer = json.loads(line)
                    if "text" in answer and on_text is not None:
                        begun = True
                        on_text(answer["text"])
                if "rows" not in answer and "error" not in answer:
                    raise ConnectionResetError("the answer broke off")
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not begun and not self._crashed():
                    continue
                raise RunFailed(self._crash(doing, error)) from error
            finally:
                self.close()
            if "error" in answer:
                kind = BY_NAME.get(str(answer.get("kind")), RunFailed)
                message = str(answer["error"])
                raise kind(f"{message}. Log: {self._place.log}" if kind is RunFailed else message)
            return answer
        raise RunFailed(f"the inference process keeps ending or refuses this client. Log: {self._place.log}")

    def _exchange(self, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        assert self._connection is not None
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is None:
            self._connection.request("GET", path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            self._connection.request("POST", path, json.dumps(body).encode("ascii"), headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.will_close:
            self.close()
        answer = json.loads(content)
        return response.status, answer

    def _connect(self, begin: bool) -> None:
        self._place.make()  # also makes sure that nobody else has put a listener there
        deadline = time.monotonic() + START_SECONDS
        child: subprocess.Popen[bytes] | None = None
        new = False
        while True:
            connection = _Connection(self._place.socket, self._timeout)
            try:
                connection.connect()
                # Read after connecting: a token of a process that has gone in the meantime is refused, and read anew.
                self._token = self._place.token.read_text(encoding="ascii")
                self._process = self._place.evidence()
            except OSError:
                connection.close()
                if not begin:
                    raise
            else:
                self._connection = connection
                return
            if child is None or child.poll() is not None:
                if child is not None and new and child.returncode != 0:
                    raise RunFailed(
                        f"the inference process did not start ({_ending(child.returncode)}). "
                        f"Log: {self._place.log}{_tail(self._place.log)}"
                    )
                if not _locked(self._place):  # else another client's process is about to listen
                    child, new = _spawn(self._place)
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"the inference process does not answer after {START_SECONDS:g} s. Log: {self._place.log}"
                )
            time.sleep(0.02)

    def _crashed(self) -> bool:
        """Say whether the process that was talked to is gone without having put its files away.

        It may also have ended in order, or go on and have closed a connection that was silent for long.
        """
        process = self._process
        deadline = time.monotonic() + 2.0
        while process is not None and process.alive() and time.monotonic() < deadline and not _listens(self._place):
            time.sleep(0.02)
        return process is not None and not process.alive() and self._place.evidence() == process

    def _crash(self, doing: str, error: Exception) -> str:
        child = _children.get(self._place.folder)
        process = self._process
        if child is not None and process is not None and child.pid == process.pid:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
        ended = child is not None and process is not None and child.pid == process.pid and child.returncode is not None
        how = _ending(child.returncode) if child is not None and ended else str(error) or type(error).__name__
        return (
            f"the inference process ended while {doing} ({how}). The next prediction starts a new one. "
            f"Log: {self._place.log}{_tail(self._place.log)}"
        )


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed, as happens when memory runs out"
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def _tail(log: Path, lines: int = 6) -> str:
    try:
        with open(log, "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - 8_192))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in text.splitlines()[-lines:])
