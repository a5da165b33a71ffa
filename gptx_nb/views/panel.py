"""`%gpt_panel`: configure, watch, ask and compare in one widget. extension/src/panel draws; core decides.

The page asks: {"kind": "ask", "id", "what", ...}; the answer is {"kind": "answer", "id", "value"}, or "error" and the
"field" that it is about; before it may come {"kind": "part", "id", "value"}. Every question is answered in a thread of
its own, so that the kernel stays free; threads send, and never print. What names a variable of the notebook is looked
up before that, in the kernel's own thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from gptx_nb import asking, comparison, drafts, fields, files, inference, launch, overview, pasted, progress, rehearsals
from gptx_nb.errors import GptxError, RunNotFound, UsageError
from gptx_nb.pretraining import KINDS, AnyRecipe
from gptx_nb.recipe import check_name, make_recipe
from gptx_nb.runs import ACTIVE, Run, RunStore
from gptx_nb.views import live, markup, panels

Json = dict[str, Any]
Tell = Callable[[Json], None]
Work = Callable[[Tell], Json]

EVERY = 0.2  # seconds between looks at the run that is watched
REST = 2.0  # the same once it has ended: it may be deleted, taken back, or go on
SETTING = re.compile(r"(?:unknown setting ')?(\w+)")


class Notebook(Protocol):
    """What a panel needs of the notebook that it is in. Called in the kernel's own thread alone."""

    def tables(self) -> list[Json]: ...  # {"name", "kind", "rows", "columns"} of each variable that holds one
    def cells(self) -> list[str]: ...  # those that ask for a run, the latest first
    def read(self, cell: str) -> tuple[type[AnyRecipe], str, Json]: ...  # its kind, name and settings, as they stand
    def wish(self, name: str, settings: Json, kind: type[AnyRecipe]) -> tuple[AnyRecipe, Json]: ...  # and its tables


def _without_batch(told: Json) -> Json:
    """Leave out the rows that the panel does not show: they may be many thousand pieces."""
    return {name: value for name, value in told.items() if not name.startswith("batch")}


class PanelWidget(live.RunWidget):
    """The panel. `run` is the one that is watched, if there is one."""

    def __init__(self, notebook: Notebook, run: Run | None = None) -> None:
        super().__init__(run.name if run else "")
        self.view = "panel"
        self.run = run
        self._opened = run
        # What stands in the form, if that was changed; of an earlier kernel, unless a run was asked for.
        self._draft: Json | None = drafts.latest() if run is None else None
        self._notebook = notebook
        self._withdrawn: set[str] = set()
        self._context = contextvars.copy_context()
        self._changed = threading.Event()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        if run is not None:
            self.watch(run)

    def watch(self, run: Run) -> None:
        """Follow `run` from now on."""
        self.run = run
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="gptx-panel", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._is_closed = True
        self._changed.set()
        super().close()

    def _follow(self) -> None:
        """Keep the watched run up to date; look seldom once it has ended, until another one is watched."""
        while not self._is_closed:
            self._changed.clear()
            run, ended = self.run, True
            if run is not None:
                with contextlib.suppress(RunNotFound):  # deleted: the page has been told
                    ended = self._context.run(self.step, run).state not in ACTIVE
            self._changed.wait(EVERY if not ended else REST if run else None)

    # ---- questions --------------------------------------------------------------------------------------------------

    def _hear(self, widget: object, content: Json, buffers: list[bytes]) -> None:
        super()._hear(widget, content, buffers)
        self._changed.set()  # what came into sight again wants to be drawn
        identity = str(content.get("id"))
        if content.get("kind") == "withdraw":
            self._withdrawn.add(identity)
        elif content.get("kind") == "draft":
            self._keep(content.get("draft"))
        elif content.get("kind") == "ask":
            self._answer(identity, content)

    def _keep(self, draft: object) -> None:
        if isinstance(draft, dict):
            self._draft = draft
            with contextlib.suppress(OSError):  # a full disk does not keep anybody from typing
                drafts.keep(draft)

    def _answer(self, identity: str, asked: Json) -> None:
        def said(kind: str, **more: Any) -> None:
            if identity not in self._withdrawn:
                self.send({"kind": kind, "id": identity, **files.finite(more)})

        def tell(value: Json) -> None:
            if identity in self._withdrawn:
                raise rehearsals.Withdrawn("withdrawn")
            said("part", value=value)

        def answer() -> None:
            try:
                said("answer", value=work(tell))
            except rehearsals.Withdrawn:
                return
            except Exception as error:
                said("answer", **refusal(error))

        try:
            work = self._work(identity, str(asked.get("what")), asked)
        except Exception as error:
            said("answer", **refusal(error))
            return
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(answer,), name="gptx-answer", daemon=True).start()

    def _work(self, identity: str, what: str, asked: Json) -> Work:
        """Return what answers a question, in whatever thread; what it needs of the notebook is taken now."""
        if what in ("cell", "rehearse", "start"):
            kind, name, settings = _wanted(asked)
            if what == "cell":
                told = {"cell": fields.cell(name, settings, kind), "command": fields.command(name, settings, kind)}
                return lambda tell: told
            recipe, objects = self._notebook.wish(name, settings, kind)
            if what == "rehearse":
                return lambda tell: _without_batch(
                    rehearsals.rehearse(recipe, **objects, on_table=tell, withdrawn=lambda: identity in self._withdrawn)
                )
            check_name(name)
            return lambda tell: self._start(name, recipe, objects)
        if what == "open":
            return self._open(asked)
        if what == "tables":
            tables = self._notebook.tables()
            return lambda tell: {"tables": tables}
        if what == "paste":
            return lambda tell: {"path": str(pasted.keep(str(asked.get("text") or "")))}
        if what == "runs":
            return lambda tell: {"runs": [overview.summary(run)[0] for run in _latest_first()]}
        if what == "watch":
            return lambda tell: self._watch(_run(asked))
        if what == "put":
            return lambda tell: _put(asked, tell)
        if what == "extremes":
            return lambda tell: inference.extremes(_run(asked))
        if what == "compare":
            runs = [RunStore().find(str(each)) for each in asked.get("runs") or []][: comparison.MOST]
            return lambda tell: comparison.compare(runs)
        raise UsageError(
            f"the kernel's gptx_nb has no answer to {what!r}. Restart the kernel, and run %gpt_panel again"
        )

    def _open(self, asked: Json) -> Work:
        """Return the form's settings, and what it is opened with.

        That is a cell or a run, if one is named; else what was typed last, the run that the panel was shown with, or
        the only table of the notebook.
        """
        tables, cells = self._notebook.tables(), self._notebook.cells()
        only = {"data": tables[0]["name"]} if len(tables) == 1 else {}
        opened: Json = {"kind": "finetune", "name": "", "recipe": only}
        if isinstance(cell := asked.get("cell"), str):
            kind, name, settings = self._notebook.read(cell)
            opened = {"kind": kind.kind, "name": name, "recipe": settings}
        elif self._draft is not None and not asked.get("run"):
            opened = self._draft
        elif run := (_run(asked) if asked.get("run") else self._opened_run()):
            request = run.request()
            opened = {"kind": run.kind.kind, "name": run.name, "recipe": request["recipe"]}
        kinds = {name: fields.form_spec(kind) for name, kind in KINDS.items()}
        return lambda tell: {"kinds": kinds, "tables": tables, "cells": cells, "opened": opened}

    def _opened_run(self) -> Run | None:
        """The run that the form opens with, unless it was deleted."""
        return self._opened if self._opened and self._opened.request_file.is_file() else None

    def _start(self, name: str, recipe: AnyRecipe, objects: Json) -> Json:
        launched = launch.train(name, recipe, **objects)
        self._opened, self._draft = launched.run, None  # what a page that is loaded again finds in its form
        drafts.forget()
        self.watch(launched.run)
        return {"id": _id(launched.run), "action": launched.action, "note": launched.note}

    def _watch(self, run: Run) -> Json:
        self.watch(run)
        return {"id": _id(run)}


def _put(asked: Json, tell: Tell) -> Json:
    """Put a question to a run's model or to its base."""
    who: asking.Who = "base" if asked.get("who") == "base" else "tuned"
    return asking.ask(_run(asked), str(asked.get("text") or ""), who, lambda piece: tell({"text": piece}))


def _wanted(asked: Json) -> tuple[type[AnyRecipe], str, Json]:
    kind = KINDS.get(str(asked.get("run_kind")))
    settings = asked.get("recipe")
    if kind is None or not isinstance(settings, dict):
        raise UsageError(f"there are these kinds of runs: {', '.join(KINDS)}")
    name = str(asked.get("name") or "").strip()
    if not name:
        raise UsageError("name: the run needs one, for example reviews")
    try:
        check_name(name)
    except UsageError as error:
        raise UsageError(f"name: {error}") from None
    make_recipe(settings, "", kind)
    return kind, name, settings


def _run(asked: Json) -> Run:
    return RunStore().find(str(asked.get("run") or ""))


def _id(run: Run) -> str:
    return f"{run.name}/{run.version}"


def _latest_first() -> list[Run]:
    def made(run: Run) -> float:
        try:
            return float(run.request().get("created") or 0)
        except RunNotFound:
            return 0.0

    return sorted(RunStore().runs(), key=made, reverse=True)


def refusal(error: Exception) -> Json:
    """Return what is said of an error: a mistake in its own words, with its setting; a bug with its traceback."""
    if not isinstance(error, GptxError):
        return {"error": "".join(traceback.format_exception(error)[-4:]).strip(), "field": None}
    found = SETTING.match(str(error))
    known = {setting.name for kind in KINDS.values() for setting in fields.settings(kind)} | {"name"}
    return {"error": str(error), "field": found[1] if found and found[1] in known else None}


class PanelView:
    """What `%gpt_panel` returns: the widget where it can be drawn, and everywhere the runs as a plain table."""

    def __init__(self, notebook: Notebook, run: Run | None = None) -> None:
        self._widget = PanelWidget(notebook, run) if live.draws_widgets() else None

    def __repr__(self) -> str:
        return str(self._repr_mimebundle_()["text/plain"])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Json:
        table = panels.RunTable(progress.run_rows(RunStore().runs()))
        words = "The panel is drawn by a notebook with widgets. Here are the runs; `%gpt_watch NAME` shows one."
        plain = {
            "text/plain": f"{words}\n{table!r}",
            "text/html": f"<div>{markup.prose(words)}</div>{table._repr_html_()}",
        }
        return {**plain, **(self._widget.bundle if self._widget else {})}
