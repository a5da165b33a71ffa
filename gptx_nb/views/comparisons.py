"""Runs side by side in a notebook: curves over each other, scores, what differs in the recipes. Plain HTML."""

from __future__ import annotations

import base64
import html
from typing import Any

from gptx_nb import progress, writing_words
from gptx_nb.comparison import Comparison
from gptx_nb.progress import Progress
from gptx_nb.runs import Run
from gptx_nb.views import markup, panels

Bundle = dict[str, Any]


class ComparisonView:
    """What `%gpt_compare` returns. `comparison` is what gptx_nb.compare() returns."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def __repr__(self) -> str:
        return repr(self.comparison)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        found = self.comparison
        bundle: Bundle = {"text/plain": repr(found)}
        numbers = range(1, len(found.head))
        parts = [markup.table(found.head, [_cells(row) for row in found.scores], numbers)]
        if any(Progress(run).refresh().steps for run in found.runs):
            from gptx_nb.views import figures  # matplotlib takes its time

            bundle["image/png"] = base64.b64encode(figures.compared(found.runs)).decode("ascii")
            parts.append(
                '<img alt="Losses and scores by step" style="max-width:100%;width:900px" '
                f'src="data:image/png;base64,{bundle["image/png"]}">'
            )
        parts.append(markup.heading("What differs in the recipes"))
        differ = markup.table(found.head, [_cells(row) for row in found.settings])
        parts.append(differ if found.settings else markup.line("Nothing: their recipes are the same."))
        for run in found.runs:
            inside = self._one(run)
            parts.append(markup.folded(progress.called(run), inside))
        bundle["text/html"] = f'<div style="{markup.FRAME}">{"".join(parts)}</div>'
        return bundle

    def _one(self, run: Run) -> str:
        """Show what one run came to: in words, whom it took for whom or what it answered."""
        said = [text for who, text in self.comparison.verdicts if who == progress.called(run)]
        parts = [markup.line(html.escape(text)) for text in said]
        scores = run.scores() or {}
        validation = scores.get("validation") or {}
        if writing_words.is_writing(scores):
            parts.append(panels.answers(scores))
        elif validation.get("confusion"):
            parts.append(panels.confusion(validation))
        return "".join(parts)


def _cells(row: list[str]) -> list[str]:
    return [html.escape(progress.one_line(cell, 200)) for cell in row]
