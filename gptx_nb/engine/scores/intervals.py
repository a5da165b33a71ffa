"""A score with its number of examples and a 95 % interval, by the percentile bootstrap over examples (Efron 1979).

Every score here is a function of sums over examples (right answers, n-grams that match, nats, …). So the examples are
drawn anew as counts, all draws at once, and only their sums are put through the function: nothing is scored twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

DRAWS = 1_000
SEED = 12_345
LEVEL = 0.95
_CELLS = 2**24  # draws x rows that exist at once, 8 bytes each

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Score:
    """`value`, and the interval from `low` to `high` that holds it in 95 % of repetitions with other examples.

    `examples` were scored. `best` is what a perfect model gets, and where more is not better, `more_is_better` says so.
    `how` names the method, with everything that another needs to get the same number. Values that are not defined (no
    example at all) are NaN.
    """

    value: float
    low: float
    high: float
    examples: int
    how: str
    best: float = 1.0
    more_is_better: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        value, low, high = (
            f"{each:.3f}" if self.best <= 1 else f"{each:.1f}" for each in (self.value, self.low, self.high)
        )
        return f"{value} ({low} to {high}, {self.examples:,} examples)"


def score(statistics: np.ndarray, value_of: Function, how: str, **facts: Any) -> Score:
    """Score examples by their `statistics` (examples, numbers), of which `value_of` takes the sums.

    `value_of` takes (…, numbers) and returns (…). `facts` are `best` and `more_is_better` of the Score.
    """
    table = np.asarray(statistics, dtype=np.float64)
    examples = len(table)
    if not examples:
        return Score(float("nan"), float("nan"), float("nan"), 0, how, **facts)
    value = float(value_of(table.sum(axis=0)))
    low, high = interval(value_of(resampled(table, np.ones(examples))))
    return Score(value, low, high, examples, how, **facts)


def mean(values: np.ndarray | list[float] | list[bool], how: str, **facts: Any) -> Score:
    """Score by the mean of one value an example."""
    column = np.asarray(values, dtype=np.float64)
    ones = np.ones_like(column)
    return score(np.stack([column, ones], axis=1), lambda sums: sums[..., 0] / sums[..., 1], how, **facts)


def resampled(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sums (draws, numbers) of `table` (rows, numbers) for each draw of as many examples, with repeats.

    `weights` (rows,): how many examples each row stands for; rows that are the same may thus be given once.
    """
    return np.concatenate([counts @ table for counts in draws(weights)])


def draws(weights: np.ndarray) -> list[np.ndarray]:
    """Return how often each row is drawn, as float64 (draws, rows) in several parts, always the same for a size."""
    generator = np.random.default_rng(SEED)
    examples = int(weights.sum())
    at_once = max(1, min(DRAWS, _CELLS // max(1, len(weights))))
    sizes = [min(at_once, DRAWS - first) for first in range(0, DRAWS, at_once)]
    shares = weights / weights.sum()
    return [generator.multinomial(examples, shares, size=size).astype(np.float64) for size in sizes]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of `values`, which are one a draw; draws in which they are not defined are left out."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
