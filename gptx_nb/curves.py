"""A run's curves as float32 numbers: whole, and what was added. For views that draw; decides and draws nothing.

    [n, m, n steps of (step, loss, learning rate, gradient norm, tokens a second), m scores of (step, loss, score)]

in the byte order of browsers, little endian; what is not known is NaN. A resumed attempt takes back what it repeats:
what was added says after which step it follows.
"""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterable, Sequence

from gptx_nb.metrics import Record
from gptx_nb.progress import Progress

MOST = 20_000  # steps that are kept whole; of more, the means of neighbours are shown
SCORES = {  # what a score is called in a record and on a chart; the first that there is, is drawn
    "accuracy": "accuracy",
    "bits_per_byte": "bits a byte",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "f1": "F1",
    "macro_f1": "macro F1",
    "perplexity": "perplexity",
}

Point = tuple[float, float]  # step and value


class Curves:
    """The curves of `seen`, which somebody else refreshes."""

    def __init__(self, seen: Progress) -> None:
        self._seen = seen
        self._steps: list[Record] = []  # those that were told
        self._scores: list[Record] = []

    def whole(self) -> bytes:
        """Return everything; from here on `added` tells what comes after."""
        self._steps, self._scores = list(self._seen.steps), list(self._seen.evaluations)
        return _packed(_thinned([_step(each) for each in self._steps]), [_score(each) for each in self._scores])

    def added(self) -> tuple[float | None, bytes] | None:
        """Return what came since the last call; None if nothing did.

        (last step that stays: None where nothing is taken back, numbers)
        """
        steps, scores = self._seen.steps, self._seen.evaluations
        same = _in_common(self._steps, steps), _in_common(self._scores, scores)
        if same == (len(steps), len(scores)) and same == (len(self._steps), len(self._scores)):
            return None
        taken_back = [each["step"] for each in (*self._steps[same[0] :], *self._scores[same[1] :])]
        new_steps, new_scores = steps[same[0] :], scores[same[1] :]
        follows = min((step - 1 for step in taken_back), default=None)
        if follows is not None:  # a line of time has one end: both begin anew behind it
            new_steps = [each for each in steps if each["step"] > follows]
            new_scores = [each for each in scores if each["step"] > follows]
        self._steps[same[0] :], self._scores[same[1] :] = steps[same[0] :], scores[same[1] :]
        return follows, _packed([_step(each) for each in new_steps], [_score(each) for each in new_scores])


def score_name(evaluations: Sequence[Record]) -> str | None:
    """Return which of `SCORES` the records hold."""
    return next((name for name in SCORES for record in evaluations if record.get(name) is not None), None)


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """Return at most `limit` points: means of neighbours."""
    if len(points) <= limit:
        return list(points)
    found = []
    for number in range(limit):
        part = points[number * len(points) // limit : (number + 1) * len(points) // limit]
        found.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return found


def _in_common(before: Sequence[Record], now: Sequence[Record]) -> int:
    """Return how many records at the beginning are the same. Only the end is ever taken back, so it is looked at."""
    at = min(len(before), len(now))
    while at and before[at - 1] is not now[at - 1]:
        at -= 1
    return at


def _step(record: Record) -> tuple[float, ...]:
    seconds, tokens = record.get("seconds"), record.get("tokens")
    speed = tokens / seconds if tokens and seconds else None
    named = (record.get(name) for name in ("loss", "learning_rate", "gradient_norm"))
    return _numbers((record["step"], *named, speed))


def _score(record: Record) -> tuple[float, ...]:
    name = score_name([record])
    return _numbers((record["step"], record.get("validation_loss"), record.get(name) if name else None))


def _numbers(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)


def _thinned(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return at most `MOST` rows: the step of the last of some neighbours, and their means."""
    stride = -(-len(rows) // MOST)
    if stride <= 1:
        return rows
    parts = [rows[at : at + stride] for at in range(0, len(rows), stride)]
    return [(part[-1][0], *(_mean(column) for column in list(zip(*part, strict=True))[1:])) for part in parts]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _packed(steps: list[tuple[float, ...]], scores: list[tuple[float, ...]]) -> bytes:
    numbers = array.array("f", [len(steps), len(scores)])
    for row in (*steps, *scores):
        numbers.extend(row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
