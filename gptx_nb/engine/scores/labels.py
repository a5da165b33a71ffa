"""Scores of labels: one of several, or several at once. Precision, recall and F1 are those of scikit-learn.

What is not defined counts as 0, as there with `zero_division=0`: the precision of a label that is never given, and the
recall of one that has no example. Macro averages are over the labels that occur in the truth or in the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptx_nb.engine.scores.intervals import Score, draws, interval, mean, score

BINS = 15  # of Guo et al. 2017, arXiv:1706.04599


@dataclass(frozen=True)
class LabelScores:
    """How well one label is told from the others; `support` is its number of examples."""

    label: str
    precision: Score
    recall: Score
    f1: Score
    support: int

    def to_json(self) -> dict[str, Any]:
        figures = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {
            "label": self.label,
            **{name: each.to_json() for name, each in figures.items()},
            "support": self.support,
        }


@dataclass(frozen=True)
class SingleLabel:
    """Scores of texts that have one label each. Row i, column j of `confusion` counts texts of i that were called j."""

    accuracy: Score
    macro_f1: Score
    per_label: list[LabelScores]
    confusion: list[list[int]]


@dataclass(frozen=True)
class MultiLabel:
    """Scores of texts that have any number of labels. `subset_accuracy`: all labels of a text are right."""

    micro_f1: Score
    macro_f1: Score
    subset_accuracy: Score
    per_label: list[LabelScores]


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence is above `low` and at most `high`: their number, mean confidence, share right."""

    low: float
    high: float
    answers: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, and the bins of a reliability diagram; bins without answers are left out."""

    error: Score
    bins: list[Bin]


def single_label(labels: list[str], truth: Sequence[int], answers: list[int]) -> SingleLabel:
    """Score `answers` against `truth`, both indices of `labels`, one a text."""
    true, given = np.asarray(truth, dtype=np.int64), np.asarray(answers, dtype=np.int64)
    size = len(labels)
    confusion = np.bincount(true * size + given, minlength=size * size).reshape(size, size)
    # A draw of examples is a draw of the matrix's cells: as many columns as there are cells in use.
    rows, columns = np.nonzero(confusion)
    drawn = _drawn(confusion[rows, columns])
    sums = _Counts(
        right=_by_label(drawn[:, rows == columns], rows[rows == columns], size),
        given=_by_label(drawn, columns, size),
        true=_by_label(drawn, rows, size),
    )
    counts = _Counts(np.diag(confusion).astype(float), confusion.sum(axis=0), confusion.sum(axis=1))
    return SingleLabel(
        accuracy=mean(true == given, "accuracy"),
        macro_f1=_macro_f1(counts, sums, len(true)),
        per_label=_per_label(labels, counts, sums),
        confusion=confusion.tolist(),
    )


def multi_label(labels: list[str], truth: np.ndarray, answers: np.ndarray) -> MultiLabel:
    """Score `answers` against `truth`, both boolean of shape (texts, labels)."""
    true, given = np.asarray(truth, dtype=bool), np.asarray(answers, dtype=bool)
    right = true & given
    texts, size = true.shape
    table = np.concatenate([right, given, true], axis=1).astype(np.float64)
    drawn = np.concatenate([part @ table for part in draws(np.ones(texts))]) if texts else np.zeros((0, 3 * size))
    sums = _Counts(*np.split(drawn, 3, axis=1))
    counts = _Counts(*np.split(table.sum(axis=0), 3))
    by_text = np.stack([right.sum(axis=1), given.sum(axis=1), true.sum(axis=1)], axis=1)
    return MultiLabel(
        micro_f1=score(by_text, lambda each: _Counts(*np.moveaxis(each, -1, 0)).f1(0.0), "micro F1"),
        macro_f1=_macro_f1(counts, sums, texts),
        subset_accuracy=mean((true == given).all(axis=1), "all labels of a text right"),
        per_label=_per_label(labels, counts, sums),
    )


def calibration(truth: Sequence[int], probabilities: np.ndarray) -> Calibration:
    """Return the expected calibration error of `probabilities` (texts, labels), 15 bins of equal width (Guo et al.).

    It is the mean difference of confidence and accuracy. With few examples chance alone makes it larger than it is, in
    draws of the examples more so; the interval therefore always reaches down to the value.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    confidence = table.max(axis=1, initial=0.0)
    right = table.argmax(axis=1) == np.asarray(truth, dtype=np.int64) if len(table) else np.zeros(0, dtype=bool)
    place = _bins(confidence)
    found = calibration_of(confidence.tolist(), right.tolist())
    bins = [
        Bin(
            at / BINS, (at + 1) / BINS, int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())
        )
        for at in range(BINS)
        if (inside := place == at).any()
    ]
    return Calibration(found, bins)


def calibration_of(confidence: Sequence[float], right: Sequence[bool]) -> Score:
    """Return the expected calibration error of answers that are `right` or not, each with its `confidence`."""
    sure = np.asarray(confidence, dtype=np.float64)
    gaps = np.asarray(right, dtype=np.float64) - sure
    return _error(gaps[:, None], _bins(sure)[:, None], f"expected calibration error, {BINS} bins")


def calibration_by_label(truth: np.ndarray, probabilities: np.ndarray) -> Score:
    """Return the expected calibration error of labels that a text has or has not; both are (texts, labels).

    Each label of each text is one answer, yes or no, with the confidence in it; texts are drawn for the interval.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    confidence = np.maximum(table, 1 - table)
    right = (table >= 0.5) == np.asarray(truth, dtype=bool)
    return _error(right - confidence, _bins(confidence), f"expected calibration error of every label, {BINS} bins")


def _bins(confidence: np.ndarray) -> np.ndarray:
    place: np.ndarray = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return place


def _error(gaps: np.ndarray, place: np.ndarray, how: str) -> Score:
    """Return the error from what is right less the confidence, and its bin; both are (texts, answers)."""
    texts, answers = gaps.shape
    table = np.zeros((texts, BINS + 1))
    np.add.at(table, (np.arange(texts)[:, None], place), gaps)
    table[:, BINS] = answers
    found = score(
        table,
        lambda sums: np.abs(sums[..., :BINS]).sum(axis=-1) / sums[..., BINS],
        how,
        best=0.0,
        more_is_better=False,
    )
    return Score(**{**found.to_json(), "low": min(found.low, found.value), "high": max(found.high, found.value)})


@dataclass(frozen=True)
class _Counts:
    """Answers that are right, given and true, by label in the last dimension (if any)."""

    right: np.ndarray
    given: np.ndarray
    true: np.ndarray

    def precision(self, undefined: float) -> np.ndarray:
        return _ratio(self.right, self.given, undefined)

    def recall(self, undefined: float) -> np.ndarray:
        return _ratio(self.right, self.true, undefined)

    def f1(self, undefined: float) -> np.ndarray:
        return _ratio(2 * self.right, self.given + self.true, undefined)


def _ratio(above: np.ndarray, below: np.ndarray, undefined: float) -> np.ndarray:
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    ratio: np.ndarray = np.divide(above, below, out=np.full_like(above, undefined), where=below > 0)
    return ratio


def _drawn(weights: np.ndarray) -> np.ndarray:
    return np.concatenate(draws(weights)) if len(weights) else np.zeros((0, 0))


def _by_label(drawn: np.ndarray, label_of: np.ndarray, size: int) -> np.ndarray:
    """Return the sums (draws, labels) of `drawn` (draws, cells), whose columns belong to `label_of` (cells,)."""
    sums = np.zeros((size, len(drawn)))
    np.add.at(sums, label_of, drawn.T)
    return sums.T


def _macro_f1(counts: _Counts, drawn: _Counts, examples: int) -> Score:
    if not examples:
        return Score(float("nan"), float("nan"), float("nan"), 0, "macro F1")
    # A draw without any example of a label says nothing about that label.
    low, high = interval(_mean_of_known(drawn.f1(float("nan"))))
    return Score(float(np.nanmean(counts.f1(float("nan")))), low, high, examples, "macro F1")


def _mean_of_known(table: np.ndarray) -> np.ndarray:
    """Return each row's mean over what is known, NaN where nothing is."""
    known = ~np.isnan(table)
    return _ratio(np.where(known, table, 0.0).sum(axis=1), known.sum(axis=1), float("nan"))


def _per_label(labels: list[str], counts: _Counts, drawn: _Counts) -> list[LabelScores]:
    kinds = ("precision", "recall", "f1")
    values = {kind: getattr(counts, kind)(0.0) for kind in kinds}
    spread = {kind: getattr(drawn, kind)(float("nan")) for kind in kinds}

    def of(kind: str, at: int) -> Score:
        low, high = interval(spread[kind][:, at])
        return Score(float(values[kind][at]), low, high, int(counts.true[at]), kind)

    return [
        LabelScores(label, of("precision", at), of("recall", at), of("f1", at), int(counts.true[at]))
        for at, label in enumerate(labels)
    ]
