"""Generations: what a model wrote in answer to prompts, and how that is shown. Nothing here computes.

pandas is imported by `to_frame` only. All text is shown escaped: a model may write anything.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from gptx_nb.predictions import _CELL, _FRAME, SHOWN_ROWS, _bar, _columns, _more, _padded, _printable, _short

SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class Generation:
    """What was written in answer to one prompt: `texts`, as many as were asked for, the first of which is `text`.

    `ended` says of each how: "end" of itself, at a "stop" text, at its greatest "length", or at the end of the model's
    "context". Where choices were given, `probabilities` has each of them, the likeliest first, which is then the text.
    """

    asked: str
    texts: list[str]
    ended: list[str]
    tokens: int
    probabilities: dict[str, float] | None = None

    @property
    def text(self) -> str:
        return self.texts[0]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Generations(Sequence[Generation]):
    """One `Generation` a prompt, in the order of the prompts.

    `model` names who wrote. `cut_at` are the places, from 0, of prompts that were longer than the model reads.
    `row_index` is the index of the Series or DataFrame that the prompts came from, or None. `template`: which chat
    template was chosen for a base model, and why.
    """

    model: str
    task: str
    rows: list[Generation] = field(default_factory=list)
    cut_at: list[int] = field(default_factory=list)
    row_index: Any = None
    template: str = ""

    @property
    def texts(self) -> list[str]:
        """The first text for each prompt."""
        return [each.text for each in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Generation: ...
    @overload
    def __getitem__(self, place: slice) -> list[Generation]: ...
    def __getitem__(self, place: int | slice) -> Generation | list[Generation]:
        return self.rows[place]

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: prompt, text, ended, and a row for each of several texts to a prompt.

        A Series or DataFrame that was asked about gives it its index.
        """
        import pandas

        found = [
            (place, each.asked, text, ended)
            for place, each in enumerate(self.rows)
            for text, ended in zip(each.texts, each.ended, strict=True)
        ]
        columns = {"prompt": [row[1] for row in found], "text": [row[2] for row in found]}
        frame = pandas.DataFrame({name: pandas.Series(values, dtype="str") for name, values in columns.items()})
        frame["ended"] = pandas.Series([row[3] for row in found], dtype="str")
        if self.row_index is not None:
            frame.index = pandas.Index(self.row_index).take([row[0] for row in found])
        return frame

    def notes(self) -> list[str]:
        """Return what a reader should know besides the texts."""
        found = [f"{self.template[:1].upper()}{self.template[1:]}."] if self.template else []
        if self.cut_at and len(self.rows) == 1:
            found.append("The prompt was longer than the model reads, and cut.")
        elif self.cut_at:
            many, first = len(self.cut_at), self.cut_at[0] + 1
            were = (
                f"1 prompt (number {first}) was" if many == 1 else f"{many:,} prompts (the first: number {first}) were"
            )
            found.append(f"{were} longer than the model reads, and cut.")
        ends = [ended for each in self.rows for ended in each.ended]
        if long := ends.count("length"):
            what = "The text" if len(ends) == 1 else f"{long:,} of {len(ends):,} texts"
            found.append(f"{what} ended at max_new_tokens: a larger one lets it go on.")
        if full := ends.count("context"):
            what = "The text" if len(ends) == 1 else f"{full:,} of {len(ends):,} texts"
            found.append(f"{what} ended where the model sees no further.")
        return found

    # ---- display ----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if not self.rows:
            return f"{self.model}: no prompts"
        if len(self.rows) == 1:
            one = self.rows[0]
            lines: list[str] = []
            for number, text in enumerate(one.texts, 1):
                lines += [f"[{number}]"] if len(one.texts) > 1 else []
                lines += _lines(text) or ["(nothing)"]
            for name, share in list((one.probabilities or {}).items()):
                lines.append(f"  {share:.3f}  {_short(_printable(name), 100)}")
        else:
            shown = self.rows[:SHOWN_ROWS]
            width = max(_columns(_short(_printable(each.asked), 50)) for each in shown)
            lines = []
            for each in shown:
                for number, text in enumerate(each.texts):
                    asked = _short(_printable(each.asked), 50) if not number else ""
                    lines.append(f"{_padded(asked, width)}  {_short(_printable(text), 100)}".rstrip())
            lines += _more(len(self.rows), SHOWN_ROWS, "row", "rows")
        return "\n".join(lines + self.notes())

    def _repr_html_(self) -> str:
        if not self.rows:
            return f'<div style="{_FRAME}">{html.escape(self.model)}: no prompts</div>'
        foot = self.notes()
        if len(self.rows) == 1:
            one = self.rows[0]
            body = "".join(
                f'<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0 6px">'
                f"{_escaped(text) or '<span style=opacity:.6>(nothing)</span>'}</div>"
                for text in one.texts
            )
            rows = "".join(
                f'<tr><td style="{_CELL}">{_escaped(name)}</td>{_bar(share)}</tr>'
                for name, share in (one.probabilities or {}).items()
            )
            body += f'<table style="border-collapse:collapse;margin:0;color:inherit">{rows}</table>' if rows else ""
        else:
            foot = _more(len(self.rows), SHOWN_ROWS, "row", "rows") + foot
            cell = f'<td dir="auto" style="{_CELL}white-space:pre-wrap;overflow-wrap:anywhere">'
            lines = [
                f"<tr>{cell}{_cut(each.asked)}</td>{cell}{'<br>'.join(_cut(text) for text in each.texts)}</td></tr>"
                for each in self.rows[:SHOWN_ROWS]
            ]
            names = "".join(f'<th style="{_CELL}font-weight:600">{name}</th>' for name in ("prompt", "text"))
            body = (
                f'<table style="border-collapse:collapse;margin:0;color:inherit"><tr>{names}</tr>'
                f"{''.join(lines)}</table>"
            )
        below = "".join(f'<div style="opacity:.75">{html.escape(line)}</div>' for line in foot)
        return f'<div style="{_FRAME}">{body}{below}</div>'


def _lines(text: str) -> list[str]:
    """Return the lines of `text` without control characters: it must not move a terminal's cursor."""
    lines = (line.expandtabs(4) for line in text.splitlines())
    # Joiners are not "printable", yet Persian, Indic scripts and emoji are wrong without them; they move nothing.
    return ["".join(mark if mark.isprintable() or mark in "\u200c\u200d" else " " for mark in line) for line in lines]


def _escaped(text: str) -> str:
    return html.escape("\n".join(_lines(text)))


def _cut(text: str) -> str:
    return html.escape(_short("\n".join(_lines(text[: 2 * SHOWN_CHARACTERS])), SHOWN_CHARACTERS))
