"""A run while it trains, as a widget: curves that grow, numbers beside them, buttons. Draws nothing itself.

extension/src/panel draws. Everything comes from the run's files. What is new is sent as increments; a page that is
loaded again asks the kernel for the state, and gets the whole history. A view that nobody sees is sent nothing.
Buttons act through the run's directory: by the server where the page can reach it, else by a message to the kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from gptx_nb import launch, overview, pretraining_words, progress, samples, writing_words
from gptx_nb.curves import SCORES, Curves, score_name
from gptx_nb.errors import GptxError, RunNotFound, UsageError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import Progress
from gptx_nb.runs import ACTIVE, Run

SCRIPT = Path(__file__).parent / "static" / "panel.js"
WIDGET = "application/vnd.jupyter.widget-view+json"
ALIVE = 90.0  # seconds for which a view counts as seen after its last word; it says so every 30
DRAWN = 15.0  # seconds in which a page that draws widgets says so, while the kernel is free to hear it
SHOWN_NOTES = 3
SHOWN_LABELS = 12
NOTHING = "–"
OF_THE_MOMENT = ("time left", "tokens/s", "device use")

Json = dict[str, Any]
_busy = False  # whether a cell runs
_idle_since = 0.0


def draws_widgets() -> bool:
    """Say whether what asks this kernel now draws widgets.

    A front end names the cell that it runs; Colab has its own ways. Clients without a page (nbclient, a console) name
    none.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or not SCRIPT.is_file():
        return False
    return "google.colab" in sys.modules or "cellId" in (kernel.get_parent().get("metadata") or {})


def cell_begins(*_: object) -> None:
    global _busy
    _busy = True


def cell_ends(*_: object) -> None:
    global _busy, _idle_since
    _busy, _idle_since = False, time.monotonic()


# ---- what is shown --------------------------------------------------------------------------------------------------


def head(run: Run, seen: Progress, note: str = "") -> Json:
    """Return the small part that changes all the time, as plain JSON."""
    return {
        "name": run.name,
        "version": run.version,
        "folder": str(run.folder),
        "state": seen.state,
        "active": seen.state in ACTIVE,
        "doing": seen.doing,
        "why": seen.waits_for or (seen.prepared if seen.state == "running" else ""),
        "share": seen.share,
        "total": seen.total,
        "numbers": numbers(seen),
        "note": note,
        "notes": [progress.one_line(each, 400) for each in seen.notes[-SHOWN_NOTES:]],
        "ranks": [list(row) for row in seen.rank_rows()],
        "samples": sample_table(seen),
        "score_name": SCORES.get(score_name(seen.evaluations) or "", "score"),
        "can": can(seen),
    }


def deleted(told: Json) -> Json:
    """Return the head of a run that is not on the disk any more: what was seen last, and no buttons."""
    last = [(name, NOTHING if name in OF_THE_MOMENT else value) for name, value in told["numbers"]]
    why = "it is not on the disk any more; what stands here was seen before"
    ended = {"state": "deleted", "active": False, "doing": "deleted", "why": why, "note": "", "can": []}
    return {**told, **ended, "numbers": last}


def can(seen: Progress) -> list[str]:
    """Return which buttons do something."""
    if seen.state in ("running", "starting", "elsewhere"):
        return ["stop", "kill", "clone"] if seen.state == "running" else ["stop", "clone"]
    if seen.state == "stopping":
        return ["kill", "clone"]
    return ["clone"] if seen.state == "finished" else ["resume", "clone"]


def numbers(seen: Progress) -> list[tuple[str, str]]:
    """Return every number in words, in the same order from the first moment on, so that nothing jumps."""
    step = seen.steps[-1] if seen.steps else {}
    last = seen.evaluations[-1] if seen.evaluations else {}
    name = score_name(seen.evaluations)
    left = seen.seconds_left if seen.state == "running" else None
    training = seen.state in ACTIVE and seen.phase == "training"

    def told(value: float | None, words: Callable[[float], str]) -> str:
        return NOTHING if value is None else words(value)

    return [
        ("step", f"{seen.step:,} of {seen.total:,}" if seen.total else f"{seen.step:,}" if seen.step else NOTHING),
        ("time left", told(left, progress.duration)),
        ("loss", told(seen.loss, progress.number)),
        ("held-out loss", told(last.get("validation_loss"), progress.number)),
        (SCORES[name] if name else "score", told(last.get(name) if name else None, lambda value: f"{value:.3f}")),
        ("learning rate", told(step.get("learning_rate"), lambda value: f"{value:.2e}")),
        ("gradient norm", told(step.get("gradient_norm"), lambda value: f"{value:.3g}")),
        ("tokens/s", told(seen.tokens_per_second if training else None, lambda value: f"{value:,.0f}")),
        ("device use", told(step.get("use") if training else None, lambda value: f"{value:.0%}")),
        ("memory", told(step.get("memory"), progress.size)),
    ]


def sample_table(seen: Progress) -> Json | None:
    """Return what the model says of a few fixed rows now; of labels, with the course of the right one's probability."""
    found = samples.latest(seen.evaluations)
    if not found.rows:
        return None
    rows = [[progress.one_line(cell, 240) for cell in row] for row in found.rows]
    if found.courses:  # their last column is a probability
        right = [len(found.head) - 1]
        return {"title": found.title, **_table(list(found.head), rows, right), "courses": found.courses}
    return {"title": found.title, **_table(list(found.head), rows)}


def about(run: Run) -> list[Json]:
    """Return what was found out before training, and what was chosen, as tables."""
    report, plan = run.report(), run.plan()
    if run.kind is PretrainRecipe:
        told = pretraining_words.corpus_lines(report) if report else []
        rows = [[what, progress.one_line(words, 400)] for what, words in told]
        found: list[Json] = [{"title": "Texts", "tables": [_table(["", ""], rows)] if rows else [], "lines": []}]
    elif writing_words.is_writing(report):
        found = [_written(report or {}, plan)]
    else:
        found = [_data(report, plan)]
    found[0]["lines"] += [progress.one_line(each, 400) for each in progress.facts(run)]
    found[0]["lines"] += [f"⚠ {progress.one_line(each, 400)}" for each in progress.warnings(run)]
    if choices := progress.choices(run):
        rows = [[progress.one_line(cell, 300) for cell in row] for row in choices]
        found.append({"title": "What was chosen, and why", "tables": [_table(["setting", "value", "why"], rows)]})
    return [part for part in found if part["tables"] or part.get("lines")]


def _data(report: Json | None, plan: Json | None) -> Json:
    lines, tables = [], []
    if report is not None:
        lines = _found(report)
    if plan is not None:
        lines.append(f"Length: {progress.lengths(plan)}")
        rows = [
            [progress.one_line(each["text"], 300), progress.one_line(each["label"]), f"{each['tokens']:,}"]
            for each in plan["rendered"]
        ]
        tables.append(_table(["text, as the model reads it", "label", "tokens"], rows, right=[2]))
    if report is not None:
        tables.append(class_counts(report["labels"]))
    return {"title": "Data", "lines": [progress.one_line(line, 600) for line in lines], "tables": tables}


def _written(report: Json, plan: Json | None) -> Json:
    lines, tables = [*_found(report, plan), f"Task: {report['task']} ({report['task_why']})"], []
    if plan is not None:
        lines.append(f"Length: {progress.lengths(plan)}; {writing_words.targets(plan)}")
        rows = [[progress.one_line(text, 400), f"{tokens:,}"] for text, tokens in writing_words.rendered(plan)]
        named = f"first rows as the model sees them; it learns what is in {writing_words.OPENS}{writing_words.CLOSES}"
        tables.append(_table([named, "tokens"], rows, right=[1]))
    return {"title": "Data", "lines": [progress.one_line(line, 600) for line in lines], "tables": tables}


def _found(report: Json, plan: Json | None = None) -> list[str]:
    return [
        f"{report.get('source') or 'examples'}: {progress.rows_used(report)}",
        f"Columns: {progress.mapping(report)}",
        f"Split: {progress.split_sizes(report, plan)}",
    ]


def class_counts(counts: dict[str, int]) -> Json:
    """Return how many rows each label has, the commonest first, with a bar."""
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    most = max(counts.values(), default=1) or 1
    table = _table(
        ["label", "rows", ""],
        [[progress.one_line(name, 60), f"{count:,}", ""] for name, count in ranked[:SHOWN_LABELS]],
        right=[1],
    )
    table["bars"] = [count / most for _, count in ranked[:SHOWN_LABELS]]
    left = len(ranked) - SHOWN_LABELS
    return table | ({"more": f"… {progress.counted(left, 'more label')}"} if left > 0 else {})


def _table(names: list[str], rows: list[list[str]], right: list[int] | None = None) -> Json:
    return {"head": names, "rows": rows, "right": right or []}


# ---- what is sent ---------------------------------------------------------------------------------------------------


class Feed:
    """One run for one widget: what there is to tell of it since the last time."""

    def __init__(self, run: Run, note: str = "") -> None:
        self.run = run
        self.note = note
        self.seen = Progress(run)
        self.curves = Curves(self.seen)
        self.is_deleted = False
        self._made = _made(run)
        self._told: Json = {}
        self._about: list[Json] = []

    def is_of(self, run: Run) -> bool:
        """Whether this is the feed of `run`, and not of one that was deleted and whose name and version it has."""
        return self.run == run and _made(run) in (None, self._made)

    def look(self) -> Feed:
        try:
            self.seen.refresh()
        except FileNotFoundError:
            if _made(self.run) is not None:
                raise
        self.is_deleted = _made(self.run) is None
        return self

    def whole(self) -> tuple[Json, bytes]:
        """Return everything; `news` goes on from there."""
        self._told = self._head()
        return self._told, self.curves.whole()

    def news(self) -> tuple[Json, list[bytes]] | None:
        """Return a message and its buffers; None where nothing is new."""
        now, added = self._head(), self.curves.added()
        changed = {name: value for name, value in now.items() if name not in self._told or self._told[name] != value}
        if added is None and not changed:
            return None
        self._told = now
        follows, content = added if added else (None, b"")
        return {"kind": "more", "head": changed, "after": follows}, [content] if added else []

    def about(self) -> list[Json]:
        """Return what was found out before training; of a run that was deleted, what was known of it before."""
        with contextlib.suppress(FileNotFoundError, RunNotFound):
            self._about = about(self.run)
        return self._about

    def _head(self) -> Json:
        now = head(self.run, self.seen, self.note)
        return deleted(now) if self.is_deleted else now


def _made(run: Run) -> int | None:
    """Return when the run was made, in nanoseconds, or None where it is not on the disk any more."""
    try:
        return run.request_file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


class RunWidget(anywidget.AnyWidget):
    """The live view of one run. Whoever has it calls `step` from time to time, and `close` at the end."""

    _esm = SCRIPT
    view = traitlets.Unicode("run").tag(sync=True)
    head = traitlets.Dict().tag(sync=True)
    about: Any = traitlets.List().tag(sync=True)
    history = traitlets.Bytes().tag(sync=True)
    number = traitlets.Int(0).tag(sync=True)  # of the last increment that `history` holds

    def __init__(self, name: str) -> None:
        self._feed: Feed | None = None
        self._looks: dict[str, float] = {}  # when each view that is seen has said so
        self._was_heard = False
        self._made = time.monotonic()
        self._count = 0  # of increments
        self._missed = True  # what is new was not sent: everything has to be
        self._files: tuple[bool, bool] | None = None
        # The thread that follows a run and the kernel's own, which answers a page, take turns.
        self._lock = threading.RLock()
        cell_begins()  # the one that shows this
        waiting = {"name": name, "doing": "starting", "active": True, "state": "starting", "can": []}
        super().__init__(head=waiting)
        self.on_msg(self._hear)

    @property
    def bundle(self) -> Json:
        return {WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self.model_id}}

    @property
    def is_not_drawn(self) -> bool:
        """Whether the page seems to draw no widgets: nobody has spoken, although the kernel was free to hear it."""
        return not (_busy or self._was_heard) and time.monotonic() - max(_idle_since, self._made) > DRAWN

    def step(self, run: Run, note: str = "") -> Progress:
        """Look at `run`, and send what is new to whoever sees it. Where it was deleted, send that: RunNotFound."""
        with self._lock:
            if self._feed is None or not self._feed.is_of(run):
                self._feed, self._missed, self._files = Feed(run), True, None
            self._feed.note = note
            seen = self._feed.look().seen
            if not self._is_seen():
                self._missed = True
            elif self._missed or (self._files != _files(run) and not self._feed.is_deleted):
                self._send_whole(self._feed)
            elif news := self._feed.news():
                message, buffers = news
                self._count += 1
                self.send({**message, "number": self._count}, buffers)
            if self._feed.is_deleted:
                run.raise_if_deleted()
            return seen

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """Return the state for a page; one that asks for all of it, as after a reload, gets the whole history."""
        with self._lock:
            state = super().get_state(key, drop_defaults)
            if key is None and self._feed is not None:
                now, history = self._feed.whole()
                state |= {"head": now, "about": self._feed.about(), "history": history, "number": self._count}
            return state

    def _send_whole(self, feed: Feed) -> None:
        self._missed = False
        with self.hold_sync():
            self._files = _files(feed.run)
            self.about = feed.about()
            self.head, self.history = feed.whole()
            self.number = self._count

    def _is_seen(self) -> bool:
        # While a cell runs no word of a page arrives: it may have come into sight since.
        now = time.monotonic()
        return _busy or not self._was_heard or any(now - at < ALIVE for at in self._looks.values())

    def _hear(self, _: object, content: Json, buffers: list[bytes]) -> None:
        """Take a message of the page."""
        kind = content.get("kind")
        if kind == "seen":
            self._was_heard = True
            self._looks.pop(str(content.get("view")), None)
            if content.get("seen"):
                self._looks[str(content.get("view"))] = time.monotonic()
        elif kind == "lost":
            self._missed = True
        elif kind == "act" and self._feed is not None:
            if content.get("action") == "clone":
                self._clone(self._feed.run)
            else:
                act(self._feed.run, str(content.get("action")), self._acted)

    def _clone(self, run: Run) -> None:
        try:
            run.raise_if_deleted()
            self.send({"kind": "cell", "cell": overview.cell(run)})
        except (GptxError, OSError) as error:
            self._acted(str(error))

    def _acted(self, said: str) -> None:
        self.send({"kind": "acted", "said": said})


def _files(run: Run) -> tuple[bool, bool]:
    """Return which of the files that `about` reads are there."""
    return run.report_file.exists(), run.plan_file.exists()


def act(run: Run, action: str, answer: Callable[[str], None]) -> None:
    """Do what a button says, and answer in one line once that is known."""
    try:
        run.raise_if_deleted()
        if action == "stop":
            run.request_stop()
            answer("It saves and stops at its next step.")
        elif action == "kill":
            answer(launch.kill(run))
        elif action == "resume":
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(_resume, run, answer), name="gptx-resume", daemon=True).start()
        else:
            raise UsageError(f"there is no button {action!r}")
    except (GptxError, OSError) as error:  # without an answer the page would take the kernel for busy
        answer(str(error))


def _resume(run: Run, answer: Callable[[str], None]) -> None:
    try:
        answer(launch.resume(run).note)
    except GptxError as error:
        answer(str(error))
