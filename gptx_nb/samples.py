"""What a model says of a few fixed held-out rows while it learns, as a table for every view. Draws nothing.

The worker writes the rows into its evaluations: `samples` of a record is a list of {"text", "label", "said", "share" of
the right label} (labels), {"asked", "right", "answer"} (answers) or {"prompt", "text"} (texts that go on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gptx_nb.metrics import Record

OF_ROWS = "What it says of held-out rows now"
MOST_POINTS = 30  # of a row's course


@dataclass(frozen=True)
class Samples:
    """A table: names of its columns, a row a text; of labels also the course of the right one's probability."""

    title: str = ""
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = field(default_factory=list)
    courses: list[list[float]] = field(default_factory=list)


def latest(evaluations: Sequence[Record]) -> Samples:
    """Return what was said of the rows at the latest evaluation that says something; an empty table if none does."""
    told = [record["samples"] for record in evaluations if record.get("samples")]
    if not told:
        return Samples()
    last = told[-1]
    if "prompt" in last[0]:
        texts = [(each["prompt"], each["text"]) for each in last]
        return Samples("How it goes on now", ("beginning", "goes on"), texts)
    if "asked" in last[0]:
        rows = [(each["asked"], each["right"], each["answer"]) for each in last]
        return Samples(OF_ROWS, ("asked", "right", "answered"), rows)
    said = [(each["text"], each["label"], each["said"], f"{each['share']:.2f}") for each in last]
    same = [each for each in told if len(each) == len(last)]
    stride = -(-len(same) // MOST_POINTS)
    kept = same[::-1][::stride][::-1]  # the latest is always among them
    courses = [[float(each[at]["share"]) for each in kept] for at in range(len(last))]
    return Samples(OF_ROWS, ("held-out row", "label", "says", "probability of its label"), said, courses)
