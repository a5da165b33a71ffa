"""A run's curves as a matplotlib figure, in the colours of the live view: for saved notebooks, and for who publishes.

Every colour has a contrast of 3 to white and to black, and the ground is clear: one image reads in both themes.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gptx_nb.curves import SCORES, Point, score_name, thinned
from gptx_nb.metrics import Record
from gptx_nb.progress import NAMES, Progress, called
from gptx_nb.runs import Run

# As in extension/src/chart/index.ts.
GREY, BLUE, ORANGE, GREEN, PURPLE, TEAL = "#808080", "#2e86de", "#e67e22", "#27a567", "#b368d9", "#1aa3a3"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#d9534f", "#8a8f2a", TEAL, "#a0764c")
POINTS = 300
FROM_ZERO_TO_ONE = ("accuracy", "exact_match", "rouge_l", "f1", "macro_f1")

# It says so when it builds its font cache; nothing may print from a thread.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def figure(run: Run) -> Figure:
    """Return loss, score, learning rate, gradient norm and speed of `run` by step."""
    seen, scores = Progress(run).refresh(), run.scores()
    drawn = Figure(figsize=(9, 4.6), dpi=144, layout="constrained")
    parts: Any = drawn.subfigures(2, 1, height_ratios=(3, 2))
    above, below = parts
    _losses_and_score(above, seen, scores)
    places = below.subplots(1, 3)
    for axes, name, title, colour in zip(
        places,
        ("learning_rate", "gradient_norm", "speed"),
        ("learning rate", "gradient norm", "tokens/s"),
        (GREEN, PURPLE, TEAL),
        strict=True,
    ):
        _line(axes, _points(seen.steps, name), colour)
        axes.set_ylim(bottom=0)
        _dress(axes, title, _last_step(seen))
    return _on_clear_ground(drawn)


def small(seen: Progress, scores: dict[str, Any] | None) -> bytes | None:
    """Return loss and score by step as a PNG for a cell's output; None without two steps."""
    if len(_points(seen.steps, "loss")) < 2:
        return None
    drawn = Figure(figsize=(7, 2.3), dpi=144, layout="constrained")
    _losses_and_score(drawn, seen, scores)
    return _png(drawn)


def _png(drawn: Figure) -> bytes:
    content = io.BytesIO()
    _on_clear_ground(drawn).savefig(content, format="png")
    return content.getvalue()


def compared(runs: Sequence[Run]) -> bytes:
    """Return the losses and scores of several runs over each other, as a PNG for a cell's output."""
    seen = [Progress(run).refresh() for run in runs]
    names = dict.fromkeys(name for each in seen if (name := score_name(each.evaluations)))
    drawn = Figure(figsize=(9, 2.6), dpi=120, layout="constrained")
    loss, held_out, *scores = drawn.subplots(1, 2 + len(names), squeeze=False)[0]
    last = max(_last_step(each) for each in seen)
    for run, each, colour in zip(runs, seen, PALETTE, strict=False):
        label = called(run)
        _line(loss, _smoothed(_points(each.steps, "loss")), colour, label)
        _dots(held_out, _points(each.evaluations, "validation_loss"), label, colour)
        for axes, name in zip(scores, names, strict=True):
            _dots(axes, _points(each.evaluations, name), label, colour)
    for axes, title in zip((loss, held_out), ("loss, smoothed", "held-out loss"), strict=True):
        axes.set_ylim(bottom=0)
        _dress(axes, title, last)
    for axes, name in zip(scores, names, strict=True):
        _dress(axes, f"{SCORES[name]} on what was held out", last)
    return _png(drawn)


def _smoothed(points: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """Return exponential means, corrected for their beginning, as the live chart draws them."""
    mean, found = 0.0, []
    for count, (step, value) in enumerate(points, 1):
        mean = weight * mean + (1 - weight) * value
        found.append((step, mean / (1 - weight**count)))
    return found


def _losses_and_score(drawn: Any, seen: Progress, scores: dict[str, Any] | None) -> None:
    name = score_name(seen.evaluations)
    places = drawn.subplots(1, 2 if name else 1, squeeze=False)[0]
    _line(places[0], _points(seen.steps, "loss"), BLUE, "learning")
    _dots(places[0], _points(seen.evaluations, "validation_loss"), "held out")
    places[0].set_ylim(bottom=0)
    _dress(places[0], "loss", _last_step(seen))
    if name is None:
        return
    _dots(places[1], _points(seen.evaluations, name), "this model")
    if name == "accuracy":
        baselines = (scores or {}).get("baselines") or {}
        for who, style in (("tfidf", "--"), ("majority", ":")):
            if who in baselines:
                words = {"tfidf": "TF-IDF", "majority": "majority"}.get(who, NAMES[who])
                places[1].axhline(baselines[who]["accuracy"], color=GREY, linewidth=1.2, linestyle=style, label=words)
    if name in FROM_ZERO_TO_ONE:
        places[1].set_ylim(0, 1.03)
    _dress(places[1], f"{SCORES[name]} on what was held out", _last_step(seen))


def _points(records: Sequence[Record], name: str) -> list[Point]:
    found = []
    for record in records:
        value = record.get(name)
        if name == "speed":
            tokens, seconds = record.get("tokens"), record.get("seconds")
            value = tokens / seconds if tokens and seconds else None
        if value is not None:
            found.append((record["step"], value))
    return found


def _last_step(seen: Progress) -> float:
    return max([each["step"] for each in (*seen.steps[-1:], *seen.evaluations[-1:])], default=1)


def _line(axes: Axes, points: Sequence[Point], colour: str, label: str = "") -> None:
    kept = thinned(points, POINTS)
    axes.plot([step for step, _ in kept], [value for _, value in kept], color=colour, linewidth=1.4, label=label)


def _dots(axes: Axes, points: Sequence[Point], label: str, colour: str = ORANGE) -> None:
    if points:
        kept = thinned(points, POINTS)
        x, y = [step for step, _ in kept], [value for _, value in kept]
        axes.plot(x, y, "o-", color=colour, linewidth=1.2, markersize=4, label=label)


def _dress(axes: Axes, title: str, last: float) -> None:
    axes.set_title(title, color=GREY, fontsize=9)
    axes.set_xlim(0, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("step", color=GREY, fontsize=8)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.patch.set_alpha(0)
    if len(axes.lines) > 1:
        axes.legend(fontsize=7, frameon=False, labelcolor=GREY)
    for side, spine in axes.spines.items():
        spine.set_color(GREY)
        spine.set_visible(side in ("left", "bottom"))


def _on_clear_ground(drawn: Figure) -> Figure:
    FigureCanvasAgg(drawn)
    drawn.patch.set_alpha(0)
    for part in drawn.subfigs:
        part.patch.set_alpha(0)
    return drawn
