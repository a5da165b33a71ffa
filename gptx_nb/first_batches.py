"""The first batch of a recipe as the model sees it, with what carries no loss greyed. Nothing is trained."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptx_nb import rehearsals, writing_words
from gptx_nb.predictions import _CELL, _FRAME, _printable
from gptx_nb.recipe import Settings

SHOWN_CHARACTERS = 1_000  # of a row, in plain text
MUTED, LEARNT = "opacity:.75", "font-weight:600"


@dataclass(frozen=True)
class FirstBatch:
    """What the first step learns from: `rows` are as many of its `size` rows as are shown.

    One is {"pieces": [[text, whether it is to be predicted], ...], "label": of a classifier's row, or None, "tokens"}.
    """

    rows: list[dict[str, Any]]
    size: int

    def _head(self) -> str:
        shown = f", {len(self.rows):,} of them shown" if len(self.rows) < self.size else ""
        return f"the first batch: {self.size:,} rows{shown}"

    def __repr__(self) -> str:
        lines = [self._head()]
        for number, row in enumerate(self.rows, 1):
            opens, closes = writing_words.OPENS, writing_words.CLOSES
            parts = [(_line_of(_shortened(text, SHOWN_CHARACTERS)), learnt) for text, learnt in joined(row["pieces"])]
            text = "".join(f"{opens}{part}{closes}" if learnt else part for part, learnt in parts)
            label = f" -> {_printable(row['label'])}" if row["label"] is not None else ""
            lines.append(f"{number}. ({row['tokens']:,} tokens) {text}{label}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        labelled = any(row["label"] is not None for row in self.rows)
        learns = "its label is learnt" if labelled else "what is bold is learnt, what is grey is only read"
        head = [f"row as the model sees it: {learns}", *(["label"] if labelled else []), "tokens"]
        lines = [_line(head, "th")]
        for row in self.rows:
            label = [html.escape(_printable(str(row["label"])))] if labelled else []
            lines.append(_line([drawn(row["pieces"]), *label, f"{row['tokens']:,}"], "td"))
        table = f'<table style="border-collapse:collapse;margin:0 0 8px;color:inherit">{"".join(lines)}</table>'
        return f'<div style="{_FRAME}"><div>{html.escape(self._head())}</div>{table}</div>'


def of(recipe: Settings, data: object | None = None, validation: object | None = None) -> FirstBatch:
    """Return the rows of the first step of `recipe`; what is given, and what is raised, as by `rehearsals.rehearse`."""
    told = rehearsals.rehearse(recipe, data, validation)
    return FirstBatch(told["batch"], told["batch_rows"])


def joined(pieces: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
    """Return pieces that stand together and are all learnt, or are none, as one."""
    found: list[tuple[str, bool]] = []
    for text, learnt in pieces:
        if found and found[-1][1] == learnt:
            found[-1] = (found[-1][0] + text, learnt)
        else:
            found.append((text, learnt))
    return found


def drawn(pieces: Sequence[Sequence[Any]], most: int = SHOWN_CHARACTERS) -> str:
    """Return pieces as HTML: what is learnt is bold, the rest grey; of long ones the middle is left out."""
    shown = []
    for text, learnt in joined(pieces):
        lines = "<br>".join(html.escape(_line_of(each)) for each in _shortened(text, most).split("\n"))
        shown.append(f'<span style="{LEARNT if learnt else MUTED}">{lines}</span>')
    return "".join(shown)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 5 // 8]} … {text[-most // 3 :]}"


def _line_of(text: str) -> str:
    """Make one line of `text`, without control characters; joiners move nothing, and belong to emoji and Persian."""
    return "".join(each if each.isprintable() or each in "\u200c\u200d" else " " for each in text)


def _line(cells: Sequence[str], tag: str) -> str:
    # dir=auto: Arabic and Hebrew texts start at the right.
    return "<tr>" + "".join(f'<{tag} dir="auto" style="{_CELL}">{cell}</{tag}>' for cell in cells) + "</tr>"
