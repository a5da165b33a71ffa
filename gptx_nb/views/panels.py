"""What a run looks like in a notebook: live while it trains, then a table and a plot that read without a kernel.

A view is a function of the run's files: HTML, text and, at the end, a PNG. Where the page draws widgets, a live one is
a widget (live.py). One thread of this module keeps the live ones up to date; it never prints. Once a run has ended its
view is plain HTML: tables and an image, no script, no style sheet, no network. Colours are JupyterLab's own where there
are any, so that a light and a dark theme both read; else those of the page around. Everything that comes from a table
or a log is escaped.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import html
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from gptx_nb import first_batches, multi_label_words, pretraining_words, progress, samples, writing_words
from gptx_nb.curves import thinned
from gptx_nb.errors import RunNotFound
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import Progress, counted, one_line
from gptx_nb.recipe import Recipe
from gptx_nb.runs import ACTIVE, Run
from gptx_nb.views import markup

if TYPE_CHECKING:
    from gptx_nb.views.live import RunWidget

Bundle = dict[str, Any]  # a text by its MIME type

EVERY = 0.3  # seconds between updates of a live view
SHOWN_LABELS = 12
SHOWN_PAIRS = 10
CURVE_POINTS = 120
SHOWN_NOTES = 20
REASON = 800  # characters: a reason may quote a prompt and the words of many labels
LINES, LINE = 80, 600  # of the plain text, and characters of one
SHOWN_RECIPE = 6_000  # characters
MOST = 60_000  # characters of tables and words: with the image, twice in it, a notebook stays under 200 kB

_BADGES = {
    "finished": "var(--jp-success-color1,#388e3c)",
    "failed": "var(--jp-error-color1,#d32f2f)",
    "interrupted": "var(--jp-error-color1,#d32f2f)",
    "stopped": "var(--jp-warn-color1,#f57c00)",
}


def _title(run: Run, state: str, rest: str = "") -> str:
    colour = _BADGES.get(state, markup.ACCENT)
    mark = f'<span style="color:{colour}">●</span>'
    extra = f' <span style="{markup.MUTED}">· {html.escape(rest)}</span>' if rest else ""
    return markup.line(f"{mark} <b>{html.escape(run.name)}</b> v{run.version} · {html.escape(state)}{extra}")


# ---- before training ------------------------------------------------------------------------------------------------


def preflight(run: Run) -> str:
    """Show what was found out before training: columns and why, three examples, class counts, lengths, split, notes."""
    report, plan = run.report(), run.plan()
    if run.kind is PretrainRecipe:
        return _corpus(run, report)
    parts = []
    if report is not None:
        shown = report.get("source") or "examples"
        parts.append(markup.line(f"{markup.escaped(shown)}: {html.escape(progress.rows_used(report))}"))
        parts.append(markup.line(f"Columns: {markup.escaped(progress.mapping(report), 600)}"))
        parts.append(markup.line(f"Split: {markup.escaped(progress.split_sizes(report, plan), 600)}"))
        if plan is None and not writing_words.is_writing(report):
            parts.append(
                markup.table(
                    ("text", "label"),
                    [(markup.escaped(e["text"]), markup.escaped(e["label"])) for e in report["examples"]],
                )
            )
    if writing_words.is_writing(report):
        return "".join([*parts, _written(run, report or {}, plan)])
    if plan is not None:
        parts.append(markup.line(f"Length: {html.escape(progress.lengths(plan))}"))
        parts.append(
            markup.table(
                ("text, as the model reads it", "label", "tokens"),
                [
                    (markup.escaped(each["text"]), markup.escaped(each["label"]), f"{each['tokens']:,}")
                    for each in plan["rendered"]
                ],
                right=(2,),
            )
        )
    if report is not None:
        parts.append(_class_counts(report["labels"]))
    return "".join(parts) + _remarks(run)


def _written(run: Run, report: dict[str, Any], plan: dict[str, Any] | None) -> str:
    """Show the task and why, and three examples as the model sees them: what carries no loss is greyed."""
    parts = [markup.line(f"Task: {markup.escaped(report['task'])} ({markup.escaped(report['task_why'], 400)})")]
    if plan is not None:
        said = f"{progress.lengths(plan)}; {writing_words.targets(plan)}"
        parts.append(markup.line(f"Length: {html.escape(said)}"))
        rows = [(first_batches.drawn(each["pieces"], 240), f"{each['tokens']:,}") for each in plan["rendered"]]
        parts.append(
            markup.table(("first rows as the model sees them: it learns what is bold", "tokens"), rows, right=(1,))
        )
    return "".join(parts) + _remarks(run)


def answers(scores: dict[str, Any]) -> str:
    """Show what the tuned model and the base model answered, beside what is right."""
    rows = [tuple(markup.escaped(text, 240) for text in each) for each in writing_words.samples(scores)]
    if not any(each[3] for each in rows):
        rows = [each[:3] for each in rows]
    return markup.table(("asked", "right", "tuned", "base")[: len(rows[0])], rows) if rows else ""


def _corpus(run: Run, report: dict[str, Any] | None) -> str:
    """Show what was found out about the texts that a run is pretrained on."""
    rows = (
        [(markup.escaped(what), markup.escaped(words, 600)) for what, words in pretraining_words.corpus_lines(report)]
        if report
        else []
    )
    return (markup.table(("", ""), rows) if rows else "") + _remarks(run)


def _remarks(run: Run) -> str:
    """Show what was found out about data and plan, facts before warnings."""
    return "".join([*map(markup.fact, progress.facts(run)), *map(markup.note, progress.warnings(run))])


def _samples(seen: Progress) -> str:
    """Show what the model says of a few fixed held-out rows, as of its latest score."""
    found = samples.latest(seen.evaluations)
    rows = [tuple(markup.escaped(cell, 240) for cell in row) for row in found.rows]
    return markup.table(found.head, rows, right=(3,)) if rows else ""


def _class_counts(counts: dict[str, int]) -> str:
    most = max(counts.values(), default=1) or 1
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    rows = [(markup.escaped(name, 60), f"{count:,}", markup.bar(count / most)) for name, count in ranked[:SHOWN_LABELS]]
    return markup.table(("label", "rows", ""), rows, right=(1,)) + _more(len(ranked), SHOWN_LABELS, "label")


def _more(count: int, shown: int, thing: str) -> str:
    return markup.line(f"… {counted(count - shown, f'more {thing}')}", markup.MUTED) if count > shown else ""


def _choices(run: Run) -> str:
    return markup.table(
        ("setting", "value", "why"),
        [
            (markup.escaped(name), markup.escaped(value), markup.escaped(why, REASON))
            for name, value, why in progress.choices(run)
        ],
    )


# ---- while it trains ------------------------------------------------------------------------------------------------


def live(run: Run, seen: Progress, note: str = "", *, briefly: bool = False) -> Bundle:
    """Return the view of a run that goes on; `briefly`: without data and choices, for who waits for something else."""
    parts = [_title(run, seen.doing)]
    if note:
        parts.append(markup.line(markup.prose(note), markup.MUTED))
    parts.append(f'<div style="margin:4px 0">{markup.bar(seen.share, "min(420px,100%)", 10)}</div>')
    if facts := seen.facts():
        parts.append(markup.line(html.escape(" · ".join(facts)), "font-variant-numeric:tabular-nums"))
    if rows := seen.rank_rows():
        cells = [tuple(map(html.escape, row)) for row in rows]
        parts.append(markup.table(("rank", "device", "tokens/s", "memory"), cells, right=(2, 3)))
    parts.append(_curve(seen))
    parts.append(_samples(seen))
    parts += [markup.note(each) for each in seen.notes[-3:]]
    name = html.escape(run.name)
    parts.append(
        markup.line(
            f"It goes on without this notebook. <code>%gpt_stop {name}</code> saves and stops it; "
            f"<code>%gpt_watch {name}</code> shows it anywhere.",
            markup.MUTED,
        )
    )
    if not briefly:
        parts.append(markup.folded("Texts" if run.kind is PretrainRecipe else "Data", preflight(run), unfolded=True))
        parts.append(markup.folded("What was chosen, and why", _choices(run)))
    return {"text/plain": seen.line(), "text/html": f'<div style="{markup.FRAME}">{"".join(parts)}</div>'}


def waiting(name: str, doing: str) -> Bundle:
    """Return the view of a run that is not there yet."""
    words = f"<b>{html.escape(name)}</b> · {markup.prose(doing)}"
    return {"text/plain": f"{name}  {doing}", "text/html": f'<div style="{markup.FRAME}">{words}</div>'}


def _curve(seen: Progress) -> str:
    """Draw the loss of the steps as a line and of the validation rows as dots."""
    points = thinned(
        [(step["step"], step["loss"]) for step in seen.steps if step.get("loss") is not None], CURVE_POINTS
    )
    if len(points) < 2:
        return ""
    dots = [(e["step"], e["validation_loss"]) for e in seen.evaluations if e.get("validation_loss") is not None]
    low = min(value for _, value in points + dots)
    high = max(value for _, value in points + dots)
    width, height, last = 420, 80, max(seen.total or 0, points[-1][0])

    def at(step: float, value: float) -> str:
        x = width * step / last
        y = 4 + (height - 8) * (1 - (value - low) / ((high - low) or 1))
        return f"{x:.1f},{y:.1f}"

    line = " ".join(at(*point) for point in points)
    circles = "".join(
        '<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*at(*dot).split(","), markup.DOT)
        for dot in thinned(dots, CURVE_POINTS)
    )
    legend = f"Loss, from {progress.number(points[0][1])} to {progress.number(points[-1][1])}"
    if dots:
        learning = f'<span style="color:{markup.ACCENT}">—</span> learning'
        legend += f': {learning}, <span style="color:{markup.DOT}">●</span> held-out rows'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="loss by step" '
        f'style="max-width:100%;border-bottom:1px solid {markup.BORDER};display:block;margin-top:4px">'
        f'<polyline fill="none" stroke="{markup.ACCENT}" stroke-width="1.5" points="{line}"/>{circles}</svg>'
        + markup.line(legend, f"{markup.MUTED};font-size:90%")
    )


# ---- when it has ended ----------------------------------------------------------------------------------------------


def ended(run: Run, note: str = "") -> Bundle:
    """Return the view of a run that has ended: the same for ever, and readable without kernel, script and network."""
    seen = Progress(run).refresh()
    scores = run.scores() if seen.state == "finished" else None
    rest = progress.headline(run).split("  ")[2:]
    parts = [_title(run, seen.state, " · ".join(rest))]
    if note:
        parts.append(markup.line(markup.prose(note), markup.MUTED))
    if why := progress.trouble(run):
        parts.append(_trouble(why))
        if seen.steps:
            parts.append(markup.line(html.escape(" · ".join(seen.facts())), markup.MUTED))
    pretrained = run.kind is PretrainRecipe
    if scores is not None:
        said = pretraining_words.verdict(scores, run.name) if pretrained else progress.verdict(scores)
        parts.append(markup.line(markup.prose(said), "font-weight:600;margin:4px 0"))
        head, cells = (
            writing_words.table(scores, progress.model_name(run)) if writing_words.is_writing(scores) else ([], [])
        )
        if cells:
            shown = [tuple(map(markup.escaped, each)) for each in cells]
            parts.append(markup.table(head, shown, right=range(1, len(head))))
        if scores.get("transfer"):
            parts.append(markup.line(html.escape(progress.transfer_gain(scores["transfer"])), "margin:4px 0"))
        rows = [(markup.escaped(who), *figures) for who, *figures in progress.score_cells(run)]
        if rows:
            parts.append(markup.table(("on the held-out rows", "accuracy", "macro F1"), rows, right=(1, 2)))
        if said := progress.calibration(scores.get("validation")):
            parts.append(markup.line(html.escape(said)))
        parts += [markup.line(markup.escaped(each, 400), markup.MUTED) for each in progress.remarks(scores)]
    lines = [line if len(line) <= LINE else f"{line[:LINE]}…" for line in progress.result_lines(run)]
    if len(lines) > LINES:
        lines[LINES:] = [f"… {counted(len(lines) - LINES, 'more line')}"]
    bundle: Bundle = {"text/plain": "\n".join(lines)}
    from gptx_nb.views import figures  # matplotlib takes its time, and is needed at the end only

    image = figures.small(seen, scores)
    if image is not None:
        bundle["image/png"] = base64.b64encode(image).decode("ascii")
        parts.append(
            f'<img alt="Loss and score by step" style="max-width:100%;width:700px" '
            f'src="data:image/png;base64,{bundle["image/png"]}">'
        )
    if pretrained:
        parts.append(_samples(seen))
    elif writing_words.is_writing(scores):
        parts.append(answers(scores or {}))
    elif scores is not None and scores.get("validation"):
        validation = scores["validation"]
        parts.append(_per_class(validation))
        if validation.get("multi_label"):
            parts += [markup.line(html.escape(line)) for line in multi_label_words.lines(validation)]
        else:
            parts.append(confusion(validation))
    notes = list(dict.fromkeys(seen.notes))
    parts += [markup.note(each) for each in notes[:SHOWN_NOTES]]
    parts.append(_more(len(notes), SHOWN_NOTES, "note"))
    if scores is not None and not pretrained:
        name = html.escape(run.name)
        parts.append(
            markup.line(
                f'Ask it: <code>%gpt_predict {name} "…"</code> or <code>gptx_nb.predict("{name}", texts)</code>'
            )
        )
    folded = [
        markup.folded("Texts" if pretrained else "Data", preflight(run)),
        markup.folded("Recipe, and what was chosen", _choices(run) + _recipe(run)),
    ]
    bundle["text/html"] = f'<div style="{markup.FRAME}">{"".join(parts)}{_small(folded, run)}</div>'
    return bundle


def _small(folded: Sequence[str], run: Run) -> str:
    """Leave out what would make the notebook large, and say where it is."""
    kept, left = [], MOST
    for part in folded:
        left -= len(part)
        if left < 0:
            where = f"Too long for a notebook, and left out; see <code>{html.escape(str(run.folder))}</code>"
            part = markup.line(where, markup.MUTED)
        kept.append(part)
    return "".join(kept)


def _trouble(why: str) -> str:
    first, *rest = why.splitlines()
    parts = [markup.line(markup.prose(first[0].upper() + first[1:]), "margin:4px 0")]
    if len(rest) > 1:
        shown = "\n".join(one_line(line, 400) for line in rest[:-1])
        parts.append(
            f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere;color:inherit;background:none;font-size:90%;'
            f'border-left:3px solid {markup.BORDER};padding:0 0 0 8px;margin:4px 0">{html.escape(shown)}</pre>'
        )
    if rest:
        parts.append(markup.line(markup.prose(rest[-1])))
    return "".join(parts)


def _per_class(validation: dict[str, Any]) -> str:
    rows = [
        (
            markup.escaped(each["label"], 60),
            *(progress.measured(each, name) for name in ("precision", "recall", "f1")),
            str(each["rows"]),
        )
        for each in validation["per_class"][:SHOWN_LABELS]
    ]
    table = markup.table(("label", "precision", "recall", "F1", "rows"), rows, right=(1, 2, 3, 4))
    return markup.heading("By label") + table + _more(len(validation["per_class"]), SHOWN_LABELS, "label")


def confusion(validation: dict[str, Any]) -> str:
    """Show which label was taken for which: all of them, or of many labels the most frequent mistakes."""
    labels, counts = validation["labels"], validation["confusion"]
    if len(labels) > SHOWN_LABELS:
        wrong = progress.mistakes(validation)
        rows = [
            (markup.escaped(true, 60), markup.escaped(said, 60), str(count))
            for true, said, count in wrong[:SHOWN_PAIRS]
        ]
        table = markup.table(("label", "taken for", "rows"), rows, right=(2,)) if rows else markup.line("None.")
        return markup.heading("Most frequent mistakes") + table + _more(len(wrong), SHOWN_PAIRS, "pair")
    head = ["label ↓ taken for →", *(markup.escaped(label, 24) for label in labels)]
    lines = []
    for true, row in enumerate(counts):
        cells = [f"<b>{count}</b>" if said == true else str(count) for said, count in enumerate(row)]
        lines.append([markup.escaped(labels[true], 40), *cells])
    return markup.heading("Confusion matrix") + markup.table(head, lines, right=range(1, len(labels) + 1))


def _recipe(run: Run) -> str:
    recipe = run.recipe()
    lines = (recipe.model_copy(update={"examples": None}) if isinstance(recipe, Recipe) else recipe).to_yaml()
    shown = "\n".join(line for line in lines.splitlines() if not line.endswith(": null"))
    if len(shown) > SHOWN_RECIPE:
        shown = f"{shown[:SHOWN_RECIPE]}\n… (the whole of it: {run.recipe_file})"
    where = markup.line(f"Files: <code>{html.escape(str(run.folder))}</code>; the model: <code>model</code> in it")
    return (
        f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere;color:inherit;background:none;font-size:90%;'
        f'margin:4px 0">{html.escape(shown)}</pre>{where}'
    )


# ---- objects that show themselves -----------------------------------------------------------------------------------


def bundle_of(run: Run, note: str = "") -> Bundle:
    """Return the view of `run` as it is now."""
    seen = Progress(run).refresh()
    return live(run, seen, note) if seen.state in ACTIVE else ended(run, note)


class RunView:
    """A run that shows itself as it is at that moment. `run` is the run."""

    def __init__(self, run: Run, note: str = "") -> None:
        self.run = run
        self.note = note

    def __repr__(self) -> str:
        return str(self._repr_mimebundle_()["text/plain"])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        if self.run.active:
            seen = Progress(self.run).refresh()
            shown = live(self.run, seen, self.note)
            lines = [self.note, *progress.preflight_lines(self.run), shown["text/plain"]]
            return {**shown, "text/plain": "\n".join(line for line in lines if line)}
        return ended(self.run, self.note)


class LiveView(RunView):
    """One output of a notebook that follows a run and becomes static when the run ends.

    It is shown before there is a run: `show`, then `look` while a cell waits, then `follow` to leave it to the thread.
    """

    def __init__(self, name: str, *, briefly: bool = False) -> None:
        self.name = name
        self.note = ""
        self._briefly = briefly
        self.done = False
        self._seen: Progress | None = None
        self._handle: DisplayHandle | None = None
        self._widget: RunWidget | None = None  # while it is shown as one
        self._bundle: Bundle = {}
        self._looked = 0.0
        self._cell: int | None = None
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()  # the thread and a cell that ends may refresh at once

    def show(self, doing: str = "starting") -> LiveView:
        """Make the output, in the cell that runs now."""
        self._bundle = waiting(self.name, doing)
        if not self._briefly:
            self._make_widget()
        self._cell = _cell()
        # ipykernel keeps the cell that an output belongs to in a context variable, which no other thread has.
        self._context = contextvars.copy_context()
        self._handle = display(self._bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        return self

    def _make_widget(self) -> None:
        from gptx_nb.views import live

        if live.draws_widgets():
            self._widget = live.RunWidget(self.name)
            # What is saved meanwhile reads without a kernel too; the end takes its place.
            words = waiting(self.name, f"seen live here; `%gpt_watch {self.name}` shows it")
            self._bundle = {**words, **self._widget.bundle}

    def look(self, run: Run) -> None:
        """Show how far `run` is, unless that was done a moment ago."""
        if time.monotonic() - self._looked >= EVERY:
            self.refresh(run)

    def refresh(self, run: Run) -> None:
        """Show how far `run` is; what is shown of an ended run is final."""
        if self._seen is None or self._seen.run != run:
            self.run = run
            self._seen = Progress(run)
        self._looked = time.monotonic()
        seen = self._widget.step(run, self.note) if self._widget else self._seen.refresh()
        if seen.state in ACTIVE and self._widget and not self._widget.is_not_drawn:
            return
        if seen.state in ACTIVE:
            self._put(live(run, seen, self.note, briefly=self._briefly))
        else:
            self._put(ended(run, self.note))
            self.done = True

    def say(self, doing: str) -> None:
        """Show some words in place of a run."""
        self._put(waiting(self.name, doing))

    def follow(self) -> LiveView:
        """Leave it to the thread to keep this up to date."""
        if not self.done:
            _FOLLOWER.add(self)
        return self

    def step(self) -> None:
        """Refresh from the thread; a bug is shown in place of the run, with its traceback."""
        try:
            with self._lock:
                self._context.run(self.refresh, self.run)
        except (FileNotFoundError, RunNotFound):  # removed from disk
            self._context.run(self.say, "was removed")
            self.done = True
        except Exception:
            text = traceback.format_exc()
            shown = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
            self.done = True
            self._context.run(self._put, shown)

    def settle(self) -> bool:
        """Where the run has ended, show that as part of the cell that runs now; return whether it has ended."""
        with self._lock:
            if not self.done:
                if self.run.outcome() is None and self.run.folder.is_dir():
                    return False
                self.done = True  # nothing is left for the thread
                with contextlib.suppress(FileNotFoundError, RunNotFound):  # removed from disk
                    self._put(ended(self.run, self.note))
            if self._handle is not None:
                self._handle.update(self._bundle, raw=True)  # type: ignore[no-untyped-call]
        return True

    def _put(self, bundle: Bundle) -> None:
        """Show `bundle`, in place of the widget if there is one."""
        if self._handle is not None and bundle != self._bundle:
            self._bundle = bundle
            self._handle.update(bundle, raw=True)  # type: ignore[no-untyped-call]
        if self._widget is not None:
            self._widget.close()
            self._widget = None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        return bundle_of(self.run, self.note)

    def _ipython_display_(self) -> None:
        """Show it again, unless it is the result of the cell that shows it already."""
        if self._cell is not None and self._cell == _cell():
            return
        again = LiveView(self.name)
        again.note = self.note
        again.show()
        again.refresh(self.run)
        again.follow()


def _cell() -> int | None:
    shell = get_ipython()
    return shell.execution_count if shell is not None else None


class _Follower:
    """The one thread that keeps all live views up to date, as long as there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: list[LiveView] = []
        self._unsettled: list[LiveView] = []
        self._thread: threading.Thread | None = None

    def add(self, view: LiveView) -> None:
        with self._lock:
            self._views.append(view)
            self._unsettled.append(view)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gptx-live", daemon=True)
                self._thread.start()

    def settle(self) -> None:
        """Show the end of runs once more, as part of the cell that runs now."""
        with self._lock:
            views, self._unsettled = self._unsettled, []
        left = [view for view in views if not view.settle()]
        with self._lock:
            self._unsettled = left + self._unsettled

    def _run(self) -> None:
        while True:
            time.sleep(EVERY)
            with self._lock:
                self._views = [view for view in self._views if not view.done]
                views = list(self._views)
                if not views:
                    self._thread = None
                    return
            for view in views:
                view.step()


_FOLLOWER = _Follower()


def settle(*_: object) -> None:
    """At the end of a cell, show once more how runs of earlier cells have ended.

    Clients without a browser (nbclient, and so `jupyter nbconvert --execute` and papermill) drop what a thread displays
    for an earlier cell; what the running cell displays they put into its place. Else they would save a run for ever
    in training.
    """
    _FOLLOWER.settle()


class RunTable(Sequence[dict[str, Any]]):
    """All runs, newest first; each is a dict (see progress.run_row)."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> Any:
        return self._rows[at]

    def __repr__(self) -> str:
        return progress.runs_text(self._rows)

    def _repr_html_(self) -> str:
        if not self._rows:
            return f'<div style="{markup.FRAME}">{markup.prose(progress.NO_RUNS)}</div>'
        rows = [[html.escape(cell) for cell in progress.run_cells(row)] for row in self._rows]
        right = [progress.COLUMNS.index(name) for name in progress.NUMERIC]
        return f'<div style="{markup.FRAME}">{markup.table(progress.COLUMNS, rows, right)}</div>'


class DeviceView:
    """The device that a run would use, and why. `facts` is what gptx_nb.device() returns."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def __repr__(self) -> str:
        return progress.text_table(("", ""), progress.device_lines(self.facts)).lstrip()

    def _repr_html_(self) -> str:
        rows = [
            (f"<b>{html.escape(what)}</b>", html.escape(words)) for what, words in progress.device_lines(self.facts)
        ]
        return f'<div style="{markup.FRAME}">{markup.table(("", ""), rows)}</div>'
