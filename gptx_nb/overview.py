"""All runs below one home as plain JSON, for views that look again and again: in short, in full, and what was added.

A run that has ended is read once and again only when its files have changed; a run that goes on is read on. Recipe and
plan are taken as they lie on the disk, so runs of every kind, and of other versions, are listed. Only real folders with
a run's name count: a link leads nowhere.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptx_nb import fields, files, inference, metrics, pretraining_words, progress, samples, writing_words
from gptx_nb.errors import RunNotFound
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import Progress
from gptx_nb.recipe import NAME
from gptx_nb.run_files import home
from gptx_nb.runs import ACTIVE, Run

VERSION = re.compile(r"[1-9][0-9]{0,8}")
POINTS = 60  # of a sparkline
SMALL = 32_768  # bytes of a metrics file that is read whole for one
PLACE = 2048  # bytes that are read at each place of a larger one
MOST_STEPS = 4000  # in the history of one run
SETTLED = 2.0  # seconds after which the time of a file tells it from its next state
# A run that is removed or written to at this moment, or was damaged: it is passed over, and the others are told.
UNREADABLE = (LookupError, OSError, ValueError, TypeError, AttributeError)
LESS_IS_BETTER = {"bits_per_byte", "loss"}
STEP_KEYS = ("kind", "step", "epoch", "loss", "learning_rate", "gradient_norm", "tokens", "seconds", "time", "memory")


@dataclass
class _Seen:
    run: Run
    marks: tuple[int, ...]  # times of its files when it was read
    settled: bool
    summary: dict[str, Any]
    revision: int
    progress: Progress | None = None  # while it goes on


class Overview:
    """Every run below `root`. `refresh` looks at the disk; the rest tells what was seen then. Safe for threads."""

    def __init__(self, root: Path | None = None) -> None:
        self.home = root or home()
        self.epoch = uuid.uuid4().hex[:8]  # revisions of an earlier server say nothing here
        self.revision = 0
        self._seen: dict[str, _Seen] = {}
        self._gone: dict[str, int] = {}
        self._lock = threading.Lock()

    def refresh(self) -> Overview:
        """Look at the disk, and return self."""
        with self._lock:
            there = dict(_folders(self.home / "runs"))
            for identity, folder in there.items():
                with contextlib.suppress(*UNREADABLE):
                    self._look(identity, folder)
            for identity in self._seen.keys() - there.keys():
                del self._seen[identity]
                self.revision += 1
                self._gone[identity] = self.revision
        return self

    def since(self, revision: str = "") -> dict[str, Any]:
        """Return what has changed since `revision`, which an earlier answer gave; everything where it says nothing.

        {"revision", "whole": whether it is everything, "runs": [summary, ...], "gone": [id, ...]}
        """
        epoch, _, number = revision.partition("-")
        known = epoch == self.epoch and number.isdecimal() and len(number) < 16
        after = int(number) if known else 0
        with self._lock:
            return {
                "revision": f"{self.epoch}-{self.revision}",
                "whole": not known,
                "runs": [seen.summary for seen in self._seen.values() if seen.revision > after],
                "gone": [identity for identity, at in self._gone.items() if at > after] if known else [],
            }

    def states(self) -> dict[str, tuple[str, str]]:
        """Return (state, doing) by id."""
        with self._lock:
            return {identity: (seen.summary["state"], seen.summary["doing"]) for identity, seen in self._seen.items()}

    def run(self, identity: str) -> Run:
        """Return the run `NAME/VERSION`; RunNotFound unless it is in the listing."""
        with self._lock:
            seen = self._seen.get(identity)
        if seen is None:
            raise RunNotFound("there is no such run")
        return seen.run

    def _look(self, identity: str, folder: Path) -> None:
        before = self._seen.get(identity)
        if before is not None and before.settled and not before.summary["active"] and before.marks == _marks(before):
            return
        run = before.run if before else Run(folder)
        followed = before.progress if before else None
        now = time.time_ns()
        seen = _Seen(run, (), False, {}, 0, followed)
        seen.marks = _marks(seen)
        seen.settled = now - max(seen.marks) > SETTLED * 1e9
        seen.summary, seen.progress = summary(run, followed)
        if before is not None and before.summary == seen.summary:
            seen.revision = before.revision
        else:
            self.revision += 1
            seen.revision = self.revision
        self._seen[identity] = seen
        self._gone.pop(identity, None)


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Return (id, folder) of every run below `root`; links, and what is called otherwise, are passed over."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(root) as names:
        for name in names:
            if not NAME.fullmatch(name.name) or not name.is_dir(follow_symlinks=False):
                continue
            with (
                contextlib.suppress(OSError),
                os.scandir(name.path) as versions,
            ):  # one that cannot be read hides itself
                for version in versions:
                    if VERSION.fullmatch(version.name) and version.is_dir(follow_symlinks=False):
                        yield f"{name.name}/{version.name}", Path(version.path)


def _marks(seen: _Seen) -> tuple[int, ...]:
    """Return the times of what changes with a run that does not go on: a new attempt, a file, a sign of life."""
    folder = str(seen.run.folder)
    attempt = seen.summary.get("attempts") or 1
    found = [os.stat(folder).st_mtime_ns]
    for name in ("claims", f"process-{attempt}.json"):
        try:
            found.append(os.stat(f"{folder}/{name}").st_mtime_ns)
        except FileNotFoundError:
            found.append(0)
    return tuple(found)


# ---- one run --------------------------------------------------------------------------------------------------------


def identity(run: Run) -> str:
    """Return what a run is called in addresses: NAME/VERSION."""
    return f"{run.name}/{run.version}"


def summary(run: Run, followed: Progress | None = None) -> tuple[dict[str, Any], Progress | None]:
    """Return a run in short, and its Progress while it goes on, for the next time.

    share: how much of the training is done, 0 to 1; score as `score_name` says, or None, and whether more is better;
    times in seconds.
    """
    request = run.request()
    recipe = request.get("recipe") or {}
    seen = followed
    state = run.state()
    if state in ACTIVE:
        seen = (seen or Progress(run)).refresh()
        state = seen.state
    plan, scores = run.plan() or {}, run.scores() or {}
    score = _score(scores)
    device = plan.get("device") or {}
    found = {
        "id": identity(run),
        "name": run.name,
        "version": run.version,
        "kind": request.get("kind", "finetune"),
        "task": recipe.get("task"),
        "model": _base_name(run, recipe),
        "state": state,
        "active": state in ACTIVE,
        "attempts": run.attempts(),
        "device": device.get("choice"),
        "device_name": device.get("name"),
        "score": score[1] if score else None,
        "score_name": score[0] if score else None,
        "score_rises": score[2] if score else True,
        "created": request.get("created"),
        "seconds": scores.get("seconds"),
    }
    if seen is not None and state in ACTIVE:
        found |= {
            "doing": seen.doing,
            "step": seen.step,
            "total": seen.total,
            "share": seen.share,
            "loss": seen.loss,
            "seconds_left": seen.seconds_left,
            "tokens_per_second": seen.tokens_per_second,
            "facts": seen.facts(),
            "sparkline": sparkline([step["loss"] for step in seen.steps if step.get("loss") is not None]),
        }
        return _json(found), seen
    losses, step, total = _losses(run)
    found |= {
        "doing": state,
        "step": step,
        "total": total,
        "share": 1.0 if state == "finished" else min(1.0, step / total) if total else 0.0,
        "loss": losses[-1] if losses else None,
        "seconds_left": None,
        "tokens_per_second": scores.get("tokens_per_second"),
        "facts": [],
        "sparkline": sparkline(losses),
    }
    return _json(found), None


def details(run: Run) -> dict[str, Any]:
    """Return a run in full: its summary, recipe, choices with their reasons, scores, and what went wrong."""
    request, scores = run.request(), run.scores()
    short, _ = summary(run)
    found: dict[str, Any] = _json(
        {
            **short,
            "folder": str(run.folder),
            "bytes": sum(path.lstat().st_size for path in run.folder.rglob("*") if path.is_file()),
            "recipe": request.get("recipe") or {},
            "cell": cell(run),
            "choices": _told(progress.choices, run),
            "preflight": _told(progress.preflight_lines, run),
            "remarks": _told(progress.facts, run),
            "warnings": _told(progress.warnings, run),
            "score_rows": _told(progress.score_rows, run),
            "score_table": _told(_table, run),
            "answers": _told(_answers, run),
            "verdict": _verdict(run),
            "writes": inference.writes(run),
            "samples": _told(_samples, run),
            "trouble": progress.trouble(run) if short["state"] not in ACTIVE else "",
            "scores": scores,
            "log": str(run.log_file(max(1, run.attempts()))),
        }
    )
    return found


def cell(run: Run) -> str:
    """Return the cell that asks for `run`: settings that differ from their defaults, as they were asked for."""
    asked = run.request().get("recipe") or {}
    try:
        return fields.cell(run.name, asked, run.kind)
    except KeyError:  # of a kind that this version does not know
        return ""


def history(run: Run, cursor: str = "") -> dict[str, Any]:
    """Return the records after `cursor`, which is empty or what the last call returned: {"records", "cursor"}.

    A `start` record takes back the steps after its own. Of a long history, as many steps as a chart can show.
    """
    attempt, offset = _cursor(cursor)
    found: list[metrics.Record] = []
    attempts = run.attempts()
    while attempt <= attempts:
        records, offset = metrics.read(run.metrics_file(attempt), offset)
        found += records
        if attempt == attempts:
            break
        attempt, offset = attempt + 1, 0
    steps = sum(record.get("kind") == "step" for record in found)
    stride = -(-steps // MOST_STEPS) if steps else 1
    kept, count = [], 0
    for record in found:
        if record.get("kind") == "step":
            count += 1
            if count % stride and count != steps:
                continue
            record = {name: record[name] for name in STEP_KEYS if name in record}
        kept.append(record)
    return {"records": _json(kept), "cursor": f"{attempt}:{offset}"}


def log_tail(run: Run, most: int = 65_536) -> str:
    """Return the end of the latest attempt's log; empty where there is none, or a link in its place."""
    try:
        descriptor = os.open(run.log_file(max(1, run.attempts())), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return ""
    with open(descriptor, "rb") as handle:
        length = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, length - most))
        text = handle.read(most).decode("utf-8", errors="replace")
    return text if length <= most else text.partition("\n")[2]


def sparkline(values: Sequence[float], points: int = POINTS) -> list[float]:
    """Return at most `points` numbers: means of neighbours, to four digits."""
    if len(values) > points:
        edges = [number * len(values) // points for number in range(points + 1)]
        values = [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]
    return [float(f"{value:.4g}") for value in values]


def _losses(run: Run) -> tuple[list[float], int, int | None]:
    """Return losses in order, the last step and the number of steps of a run that has ended.

    Of a long file some sixty places are read: enough for a sparkline, and the same time for every length.
    """
    steps: list[tuple[int, float | None]] = []
    total: int | None = None
    for attempt in range(1, run.attempts() + 1):
        for record in _some(run.metrics_file(attempt)):
            if record.get("kind") == "start":
                total = record.get("steps") or total
                steps = [each for each in steps if each[0] <= record.get("step", 0)]
            elif record.get("kind") == "step":
                steps.append((int(record["step"]), record.get("loss")))
    return [loss for _, loss in steps if loss is not None], steps[-1][0] if steps else 0, total


def _some(path: Path) -> Iterator[metrics.Record]:
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        return
    if length <= SMALL:
        yield from metrics.read(path)[0]
        return
    with open(path, "rb") as handle:
        # The beginning tells the number of steps, the end the last one.
        yield from _first(handle.read(PLACE).splitlines(keepends=True), "start")
        for start in range(0, length - PLACE, length // POINTS):
            handle.seek(start)
            lines = handle.read(PLACE).splitlines(keepends=True)
            yield from _first(lines[1 if start else 0 :], "step")
        handle.seek(length - PLACE)
        yield from _first(handle.read(PLACE).splitlines(keepends=True)[:0:-1], "step")


def _first(lines: Sequence[bytes], kind: str) -> Iterator[metrics.Record]:
    """Return the first whole record of that kind, if there is one."""
    for line in lines:
        if (record := metrics.decode(line)) is not None and record.get("kind") == kind:
            yield record
            return


def _score(scores: dict[str, Any]) -> tuple[str, float | None, bool] | None:
    """Return the name of a run's own score, its value, and whether more is better; None where it has none."""
    validation = scores.get("validation")
    if not validation:
        return None
    if writing_words.is_writing(scores):
        with contextlib.suppress(KeyError, TypeError):  # of another version
            name, found = writing_words.main(validation)
            return writing_words.called(name), found["value"], found["more_is_better"]
        return None
    names = ("micro_f1",) if validation.get("multi_label") else ("accuracy", "bits_per_byte", "macro_f1", "loss")
    known = next((each for each in names if isinstance(validation.get(each), int | float)), None)
    return (writing_words.called(known), validation[known], known not in LESS_IS_BETTER) if known else None


def _answers(run: Run) -> list[tuple[str, str, str, str]]:
    """Return (what was asked, what is right, the tuned model's answer, the base model's) of a few held-out rows."""
    scores = run.scores()
    return writing_words.samples(scores) if scores and writing_words.is_writing(scores) else []


def _table(run: Run) -> list[list[str]]:
    """Return a head and rows: what the held-out rows gave, beside baselines or the untuned model; empty without any."""
    scores = run.scores()
    if writing_words.is_writing(scores):
        head, rows = writing_words.table(scores or {}, progress.model_name(run))
    else:
        head = ["on the held-out rows", "accuracy", "macro F1"]
        rows = [list(row) for row in progress.score_cells(run)]
    return [head, *rows] if rows else []


def _verdict(run: Run) -> str:
    scores = run.scores()
    try:
        if scores and run.kind is PretrainRecipe:
            return pretraining_words.verdict(scores, run.name)
        said = [progress.verdict(scores)] if scores else []
        if scores and scores.get("transfer"):
            said.append(progress.transfer_gain(scores["transfer"]))
        return " ".join(said)
    except (KeyError, TypeError):  # scores of another kind of run
        return ""


def _samples(run: Run) -> Sequence[tuple[str, ...]]:
    """Return (beginning, continuation) as a pretrained model wrote them last."""
    return samples.latest(Progress(run).refresh().evaluations).rows if run.kind is PretrainRecipe else []


def _told(tell: Any, run: Run) -> list[Any]:
    """Return what `tell` says of a run; nothing where the run is of another kind, or another version, than it knows."""
    try:
        return list(tell(run))
    except (KeyError, TypeError, AttributeError):
        return []


def _base_name(run: Run, recipe: dict[str, Any]) -> str | None:
    try:
        return progress.model_name(run)
    except (KeyError, TypeError):  # of a kind that this version does not know
        model = recipe.get("model")
        return model if isinstance(model, str) else None


def _cursor(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,5}):([0-9]{1,15})", text)
    return (int(found[1]), int(found[2])) if found else (1, 0)


def _json(value: Any) -> Any:
    return files.finite(value)
