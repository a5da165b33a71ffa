"""A run while it trains, as a widget: curves that grow, numbers beside them, buttons. Draws nothing itself.

extension/src/panel draws. Everything comes from the run's files. What is new is sent as increments; the whole history
stands in a synced trait, so that a page that is loaded again has all of it. A view that nobody sees is sent nothing.
Buttons act through the run's directory: by the server where the page can reach it, else by a message to the kernel.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from gptx_nb import launch, pretraining_words, progress
from gptx_nb.curves import SCORES, Curves, score_name
from gptx_nb.errors import GptxError, UsageError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import Progress
from gptx_nb.runs import ACTIVE, Run

SCRIPT = Path(__file__).parent / "static" / "panel.js"
WIDGET = "application/vnd.jupyter.widget-view+json"
WHOLE_EVERY = 2.0  # seconds between whole histories
SHOWN_NOTES = 3
SHOWN_LABELS = 12
NOTHING = "–"

Json = dict[str, Any]
_busy = False  # whether a cell runs


def draws_widgets() -> bool:
    """Say whether what asks this kernel now draws widgets.

    A front end names the cell that it runs. Clients without a page (nbclient, a console) name none.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return SCRIPT.is_file() and kernel is not None and "cellId" in (kernel.get_parent().get("metadata") or {})


def cell_begins(*_: object) -> None:
    global _busy
    _busy = True


def cell_ends(*_: object) -> None:
    global _busy
    _busy = False


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
        "samples": [list(each) for each in pretraining_words.samples(seen.evaluations)],
        "score_name": SCORES.get(score_name(seen.evaluations) or "", "score"),
        "can": can(seen),
    }


def can(seen: Progress) -> list[str]:
    """Return which buttons do something."""
    if seen.state in ("running", "starting", "elsewhere"):
        return ["stop", "kill"] if seen.state == "running" else ["stop"]
    if seen.state == "stopping":
        return ["kill"]
    return [] if seen.state == "finished" else ["resume"]


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
        ("loss", told(seen.loss, progress.number)),
        ("held-out loss", told(last.get("validation_loss"), progress.number)),
        (SCORES[name] if name else "score", told(last.get(name) if name else None, lambda value: f"{value:.3f}")),
        ("learning rate", told(step.get("learning_rate"), lambda value: f"{value:.2e}")),
        ("gradient norm", told(step.get("gradient_norm"), lambda value: f"{value:.3g}")),
        ("tokens/s", told(seen.tokens_per_second if training else None, lambda value: f"{value:,.0f}")),
        ("memory", told(step.get("memory"), progress.size)),
        ("time left", told(left, progress.duration)),
    ]


def about(run: Run) -> list[Json]:
    """Return what was found out before training, and what was chosen, as tables."""
    report, plan = run.report(), run.plan()
    found = []
    if run.kind is PretrainRecipe:
        rows = [list(row) for row in pretraining_words.corpus_lines(report)] if report else []
        found.append({"title": "Texts", "tables": [_table(["", ""], rows)] if rows else [], "lines": []})
    else:
        found.append(_data(report, plan))
    found[0]["lines"] += [f"⚠ {progress.one_line(each, 400)}" for each in progress.warnings(run)]
    if choices := progress.choices(run):
        rows = [[progress.one_line(cell, 300) for cell in row] for row in choices]
        found.append({"title": "What was chosen, and why", "tables": [_table(["setting", "value", "why"], rows)]})
    return [part for part in found if part["tables"] or part.get("lines")]


def _data(report: Json | None, plan: Json | None) -> Json:
    lines, tables = [], []
    if report is not None:
        lines = [
            f"{report.get('source') or 'examples'}: {progress.rows_used(report)}",
            f"Columns: {progress.mapping(report)}",
            f"Split: {progress.split_sizes(report)}",
        ]
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
        self._told: Json = {}

    def look(self) -> Feed:
        self.seen.refresh()
        return self

    def head(self) -> Json:
        return head(self.run, self.seen, self.note)

    def news(self) -> tuple[Json, list[bytes]] | None:
        """Return a message and its buffers; None where nothing is new."""
        now, added = self.head(), self.curves.added()
        if added is None and now == self._told:
            return None
        self._told = now
        follows, content = added if added else (None, b"")
        return {"kind": "more", "head": now, "after": follows}, [content] if added else []


class RunWidget(anywidget.AnyWidget):
    """The live view of one run. Whoever has it calls `step` from time to time, and `close` at the end."""

    _esm = SCRIPT
    view = traitlets.Unicode("run").tag(sync=True)
    head = traitlets.Dict().tag(sync=True)
    about = traitlets.List().tag(sync=True)
    history = traitlets.Bytes().tag(sync=True)
    number = traitlets.Int(0).tag(sync=True)  # of the last increment that `history` holds

    def __init__(self, name: str) -> None:
        waiting = {"name": name, "doing": "starting", "active": True, "state": "starting", "can": []}
        super().__init__(head=waiting)
        cell_begins()  # the one that shows this
        self._feed: Feed | None = None
        self._looks: dict[str, bool] = {}  # whether each view is seen
        self._count = 0  # of increments
        self._whole = 0.0
        self._missed = False
        self._files: tuple[bool, bool] | None = None
        self._lock = threading.Lock()
        self.on_msg(self._hear)

    @property
    def bundle(self) -> Json:
        return {WIDGET: {"version_major": 2, "version_minor": 0, "model_id": self.model_id}}

    def step(self, run: Run, note: str = "") -> Progress:
        """Look at `run`, and send what is new to whoever sees it."""
        with self._lock:
            if self._feed is None or self._feed.run != run:
                self._feed, self._whole, self._files = Feed(run), 0.0, None
            self._feed.note = note
            seen = self._feed.look().seen
            if not self._is_seen():
                self._missed = True
            elif self._missed or time.monotonic() - self._whole >= WHOLE_EVERY:
                self._send_whole(self._feed)
            elif news := self._feed.news():
                self._tell(*news)
            return seen

    def _tell(self, message: Json, buffers: list[bytes]) -> None:
        self._count += 1
        self.send({**message, "number": self._count}, buffers)

    def _send_whole(self, feed: Feed) -> None:
        self._whole, self._missed = time.monotonic(), False
        files = feed.run.report_file.exists(), feed.run.plan_file.exists()
        with self.hold_sync():
            if files != self._files:
                self._files, self.about = files, about(feed.run)
            self.head = feed.head()
            self.history = feed.curves.whole()
            self.number = self._count

    def _is_seen(self) -> bool:
        # While a cell runs no word of a page arrives: it may have come into sight since.
        return _busy or not self._looks or any(self._looks.values())

    def _hear(self, _: object, content: Json, buffers: list[bytes]) -> None:
        """Take a message of the page."""
        if content.get("kind") == "seen":
            self._looks[str(content.get("view"))] = bool(content.get("seen"))
        elif content.get("kind") == "lost":
            self._missed = True
        elif content.get("kind") == "act" and self._feed is not None:
            act(self._feed.run, str(content.get("action")), lambda said: self.send({"kind": "acted", "said": said}))


def act(run: Run, action: str, answer: Callable[[str], None]) -> None:
    """Do what a button says, and answer in one line once that is known."""
    try:
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
    except GptxError as error:
        answer(str(error))


def _resume(run: Run, answer: Callable[[str], None]) -> None:
    try:
        answer(launch.resume(run).note)
    except GptxError as error:
        answer(str(error))
