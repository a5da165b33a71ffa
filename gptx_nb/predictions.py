"""Predictions: what a classifier said about texts, and how that is shown. Nothing here computes or talks to a process.

pandas is imported by `to_frame` only.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from gptx_nb.multi_label_words import least

SHOWN_ROWS = 20
SHOWN_LABELS = 10
SHOWN_CHARACTERS = 160
NO_LABEL = "(none)"


@dataclass(frozen=True)
class Prediction:
    """What was said about one text. `probabilities` has every label, the likeliest first; they sum to 1.

    Where a text may have several labels each probability stands by itself, `labels` are those above the threshold, and
    `label` is all of them in one text.
    """

    text: str
    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.labels:
            return ", ".join(f"{name} ({self.probabilities[name]:.3f})" for name in self.labels)
        return f"{self.label} ({self.probability:.3f})"


class Predictions(Sequence[Prediction]):
    """One `Prediction` a text, in the order of the texts.

    `run` names the run and version that answered, `classes` are the model's label names in its own order, `texts` the
    texts, `probabilities` a row a text and a column a class. `labels` is the likeliest class of each text. `cut_at` are
    the places, from 0, of texts that exceed what the model reads, and `row_index` is the index of the Series or
    DataFrame that the texts came from, or None. `threshold`: the probability from which on a class is given, or one for
    each class, where a text may have several; `labels` then has a list of classes for each text. `read`: what is read
    of too long a text.
    """

    def __init__(
        self,
        run: str,
        classes: Sequence[str],
        texts: Sequence[str],
        probabilities: Sequence[Sequence[float]],
        cut_at: Sequence[int] = (),
        row_index: Any = None,
        threshold: float | Sequence[float] | None = None,
        read: str = "beginning",
    ) -> None:
        self.run = run
        self.classes = list(classes)
        self.texts = list(texts)
        self.probabilities = [list(row) for row in probabilities]
        self.cut_at = list(cut_at)
        self.row_index = row_index
        self.threshold = threshold
        self.read = read
        if len(self.texts) != len(self.probabilities):
            raise ValueError(f"{len(self.texts)} texts and {len(self.probabilities)} rows of probabilities")

    @property
    def labels(self) -> list[Any]:
        """The likeliest class of each text; of texts that may have several, a list of those above the threshold."""
        if self.threshold is not None:
            return [list(each.labels) for each in self]
        return [self.classes[_likeliest(row)] for row in self.probabilities]

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prediction]: ...
    def __getitem__(self, place: int | slice) -> Prediction | list[Prediction]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        row = self.probabilities[place]
        best = _likeliest(row)
        ranked = sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1])
        if self.threshold is None:
            return Prediction(self.texts[place], self.classes[best], row[best], dict(ranked))
        needed = self.threshold if isinstance(self.threshold, Sequence) else [self.threshold] * len(row)
        wanted = dict(zip(self.classes, needed, strict=True))
        given = tuple(name for name, share in ranked if share >= wanted[name])
        return Prediction(self.texts[place], ", ".join(given) or NO_LABEL, row[best], dict(ranked), given)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: text, label, probability, and a column `p(<label>)` for every label.

        A Series or DataFrame that was asked about gives it its index.
        """
        import pandas

        columns: dict[str, Any] = {
            "text": pandas.Series(self.texts, dtype="str"),
            "label": pandas.Series(self.labels, dtype="str" if self.threshold is None else "object"),
            "probability": pandas.Series([max(row) for row in self.probabilities], dtype="float64"),
        }
        for column, name in enumerate(self.classes):
            columns[f"p({name})"] = pandas.Series([row[column] for row in self.probabilities], dtype="float64")
        frame = pandas.DataFrame(columns)
        if self.row_index is not None:
            frame.index = pandas.Index(self.row_index)
        return frame

    def notes(self) -> list[str]:
        """Return what a reader should know besides the table."""
        if self.threshold is not None:
            said = f"A text has every label whose probability is at least {least(self.classes, self.threshold)}."
            return [said, *self._cut_notes()]
        return self._cut_notes()

    def _cut_notes(self) -> list[str]:
        return (
            [too_long(self.texts, self.cut_at, f"{'its' if len(self) == 1 else 'the'} {self.read}")]
            if self.cut_at
            else []
        )

    # ---- display ----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if not len(self):
            return f"{self.run}: no texts"
        if len(self) == 1:
            one = self[0]
            width = max(_columns(_printable(name)) for name in list(one.probabilities)[:SHOWN_LABELS])
            lines = [_short(_printable(one.text), 100) or "(empty text)"]
            for name, value in list(one.probabilities.items())[:SHOWN_LABELS]:
                mark = "*" if name in one.labels else " "
                lines.append(f"{mark} {_padded(_printable(name), width)}  {value:.3f}  {_blocks(value)}".rstrip())
            lines += _more(len(self.classes), SHOWN_LABELS, "label", "labels")
        else:
            shown = [self[place] for place in range(min(SHOWN_ROWS, len(self)))]
            width = max(_columns("label"), *(_columns(_printable(each.label)) for each in shown))
            lines = [f"{_padded('label', width)}  probability  text"]
            for each in shown:
                label = _padded(_printable(each.label), width)
                lines.append(f"{label}  {each.probability:11.3f}  {_short(_printable(each.text), 80)}".rstrip())
            lines += _more(len(self), SHOWN_ROWS, "row", "rows")
        return "\n".join(lines + self.notes())

    def _repr_html_(self) -> str:
        if not len(self):
            return f'<div style="{_FRAME}">{html.escape(self.run)}: no texts</div>'
        if len(self) == 1:
            one = self[0]
            rows = [
                f'<tr><td style="{_CELL}">{_marked(name, one.labels)}</td>{_bar(value)}</tr>'
                for name, value in list(one.probabilities.items())[:SHOWN_LABELS]
            ]
            text = _escaped(one.text) or '<span style="opacity:.6">(empty text)</span>'
            head = f'<div dir="auto" style="margin-bottom:4px;overflow-wrap:anywhere">{text}</div>'
            below = _more(len(self.classes), SHOWN_LABELS, "label", "labels")
        else:
            rows = [
                f'<tr><td dir="auto" style="{_CELL}overflow-wrap:anywhere">{_escaped(each.text)}</td>'
                f'<td style="{_CELL}">{_escaped(each.label)}</td>{_bar(each.probability)}</tr>'
                for each in (self[place] for place in range(min(SHOWN_ROWS, len(self))))
            ]
            names = "".join(
                f'<th style="{_CELL}font-weight:600">{name}</th>' for name in ("text", "label", "probability")
            )
            rows.insert(0, f"<tr>{names}</tr>")
            head = ""
            below = _more(len(self), SHOWN_ROWS, "row", "rows")
        foot = "".join(f'<div style="opacity:.75">{html.escape(line)}</div>' for line in below + self.notes())
        table = f'<table style="border-collapse:collapse;margin:0;color:inherit">{"".join(rows)}</table>'
        return f'<div style="{_FRAME}">{head}{table}{foot}</div>'


def too_long(texts: Sequence[str], places: Sequence[int], read: str, *, numbered: bool = True) -> str:
    """Say that the texts of `places` are longer than the model reads, of which only `read` was used, and which.

    `numbered`: the user counts the texts as they stand here.
    """
    if len(texts) == 1:
        return f"The text is longer than the model reads; only {read} was used."
    number = f"number {places[0] + 1}, which begins " if numbered else ""
    first = f"{number}{_short(_printable(texts[places[0]]), 40)!r}"
    many = len(places)
    which = f"1 text ({first}) is" if many == 1 else f"{many:,} texts (the first: {first}) are"
    return f"{which} longer than the model reads; only {read} was used."


# JupyterLab's own colours where there are any, so that light and dark both read; else those of the page around.
_FRAME = (
    "color:var(--jp-ui-font-color1,inherit);font-family:var(--jp-ui-font-family,inherit);"
    "font-size:var(--jp-ui-font-size1,inherit);max-width:60em"
)
_CELL = (
    "text-align:left;vertical-align:top;padding:2px 10px 2px 0;background:none;color:inherit;"
    "border:0;border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.35));"
)


def _bar(value: float) -> str:
    """Two cells: the number, and a bar as wide as the share."""
    return (
        f'<td style="{_CELL}white-space:nowrap"><span style="font-variant-numeric:tabular-nums">{value:.3f}</span> '
        '<span style="display:inline-block;width:80px;height:8px;margin-left:6px;'
        'background:var(--jp-border-color2,rgba(128,128,128,.35))">'
        f'<span style="display:block;width:{100 * value:.1f}%;height:8px;background:var(--jp-brand-color1,#1976d2)">'
        "</span></span></td>"
    )


def _marked(name: str, given: tuple[str, ...]) -> str:
    return f"<b>{_escaped(name)}</b>" if name in given else _escaped(name)


def _likeliest(row: list[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _escaped(text: str) -> str:
    return html.escape(_short(_printable(text), SHOWN_CHARACTERS))


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _printable(text: str) -> str:
    """One line without control characters: a text must not move a terminal's cursor or break a table."""
    # Joiners are not "printable", yet Persian, Indic scripts and emoji are wrong without them; they move nothing.
    return "".join(
        letter if letter.isprintable() or letter in "\u200c\u200d" else " " for letter in text[: 2 * SHOWN_CHARACTERS]
    ).strip()


def _columns(text: str) -> int:
    """The width of `text` in a terminal, in columns."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _columns(text))


def _blocks(value: float) -> str:
    return "█" * round(20 * value)


def _more(count: int, shown: int, one: str, many: str) -> list[str]:
    left = count - shown
    return [f"… {left:,} more {one if left == 1 else many}"] if left > 0 else []
