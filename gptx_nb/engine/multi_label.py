"""Scores of texts that have any number of labels, the threshold from which on a label is given, and the baselines.

Where the recipe leaves the threshold open, it is the one of the best micro F1 on the rows held back; or there is one
for each label, of its best F1, where these do better on rows that had no part in choosing them. So that no row is
scored with a threshold that it helped to choose, each half has the other's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gptx_nb.engine import evaluate
from gptx_nb.engine.data import Examples
from gptx_nb.engine.scores import labels as label_scores

FEWEST_ROWS = 20  # held back, for a threshold to be chosen
CANDIDATES = np.arange(1, 20) / 20
USUAL = 0.5
LIKELY = 0.5  # of the likeliest label's share: an untrained model, which knows no threshold, gives labels from here on
FEWEST_OF_A_LABEL = 10  # rows held back with a label, for a threshold of its own

Threshold = float | list[float]  # one for all labels, or one for each in their order


def flags(rows: Sequence[Sequence[int]], labels: int) -> np.ndarray:
    """Return booleans (texts, labels): which labels each text has."""
    found = np.zeros((len(rows), labels), dtype=bool)
    for at, row in enumerate(rows):
        found[at, row] = True
    return found


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return each label's probability by itself: the logistic function of its logit."""
    shares: np.ndarray = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -60, 60)))
    return shares


def choose(shares: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold of the best micro F1; of equally good ones the nearest to 0.5."""

    def merit(threshold: float) -> tuple[float, float]:
        return f1(shares >= threshold, truth), -abs(threshold - USUAL)

    return float(max(map(float, CANDIDATES), key=merit))


def choose_each(shares: np.ndarray, truth: np.ndarray, common: float) -> list[float]:
    """Return each label's threshold of its best F1; `common` for a label of few rows."""
    return [
        choose(shares[:, [at]], truth[:, [at]]) if truth[:, at].sum() >= FEWEST_OF_A_LABEL else common
        for at in range(truth.shape[1])
    ]


def f1(given: np.ndarray, truth: np.ndarray) -> float:
    """Return the micro F1 of which labels are given (texts, labels)."""
    both = float(given.sum() + truth.sum())
    return 2.0 * float((given & truth).sum()) / both if both else 0.0


def given(shares: np.ndarray, truth: np.ndarray, threshold: float | None) -> tuple[np.ndarray, Threshold, str]:
    """Return which labels are given (texts, labels), the threshold for texts to come, and why it is that."""
    if threshold is not None:
        return shares >= threshold, threshold, "asked for in the recipe"
    if len(shares) < FEWEST_ROWS or not truth.any():
        return shares >= USUAL, USUAL, f"fewer than {FEWEST_ROWS} rows are held back, too few to choose one"
    found, each = np.zeros_like(truth), np.zeros_like(truth)
    for first in (0, 1):  # every other row
        other = shares[1 - first :: 2], truth[1 - first :: 2]
        common = choose(*other)
        found[first::2] = shares[first::2] >= common
        each[first::2] = shares[first::2] >= choose_each(*other, common)
    best, halves = choose(shares, truth), "for the scores, each half of them had the other's"
    if f1(each, truth) > f1(found, truth):
        ours, theirs = f1(each, truth), f1(found, truth)
        why = f"each label's best F1 on the held-out rows: micro F1 {ours:.2f}, {theirs:.2f} with one for all"
        return each, choose_each(shares, truth, best), f"{why}; {halves}"
    return found, best, f"the best micro F1 on the held-out rows; {halves}"


def scores(
    labels: list[str], rows: Sequence[Sequence[int]], logits: np.ndarray, threshold: float | None = None
) -> dict[str, Any]:
    """Return micro and macro F1, how often all labels are right, mean binary cross entropy (nats), and the threshold.

    `rows` are each text's labels, `logits` (texts, labels). `accuracy`: the share of texts whose labels are all right.
    """
    truth, shares = flags(rows, len(labels)), probabilities(logits)
    answers, chosen, why = given(shares, truth, threshold)
    found = label_scores.multi_label(labels, truth, answers)
    wide = logits.astype(np.float64)
    loss = np.logaddexp(0, wide) - wide * truth
    return {
        "rows": len(rows),
        "multi_label": True,
        "accuracy": found.subset_accuracy.value,
        "micro_f1": found.micro_f1.value,
        "macro_f1": found.macro_f1.value,
        "scores": {
            "micro_f1": found.micro_f1.to_json(),
            "macro_f1": found.macro_f1.to_json(),
            "subset_accuracy": found.subset_accuracy.to_json(),
            "calibration_error": label_scores.calibration_by_label(truth, shares).to_json(),
        },
        "loss": float(loss.mean()),
        "labels": labels,
        "threshold": chosen,
        "threshold_why": why,
        "per_class": evaluate.by_label(found.per_label),
    }


def by_share(shares: np.ndarray) -> np.ndarray:
    """Return which labels (texts, labels) a model gives that shares 1 among them: the likeliest, and those near it."""
    found: np.ndarray = shares >= LIKELY * shares.max(axis=1, keepdims=True)
    return found


def untrained(labels: list[str], rows: Sequence[Sequence[int]], shares: np.ndarray) -> dict[str, Any]:
    """Score a base model's shares (texts, labels) of the labels' words on texts with these labels."""
    return _measured(labels, flags(rows, len(labels)), by_share(shares))


def _measured(labels: list[str], truth: np.ndarray, answers: np.ndarray) -> dict[str, Any]:
    found = label_scores.multi_label(labels, truth, answers)
    return {
        "accuracy": found.subset_accuracy.value,
        "micro_f1": found.micro_f1.value,
        "macro_f1": found.macro_f1.value,
        "scores": {name: getattr(found, name).to_json() for name in ("micro_f1", "macro_f1", "subset_accuracy")},
    }


def samples(labels: list[str], held: Examples, logits: np.ndarray, threshold: Threshold) -> list[dict[str, Any]]:
    """Return what is said of a few rows, always the same ones: [{"asked", "right", "answer"}]."""
    said = probabilities(logits) >= threshold

    def named(numbers: Iterable[int]) -> str:
        return ", ".join(labels[number] for number in numbers) or "none"

    return [
        {
            "asked": held.texts[at][: evaluate.SAMPLE_LETTERS],
            "right": named(held.labels[at]),
            "answer": named(np.flatnonzero(said[at])),
        }
        for at in evaluate.places(len(held.texts))
    ]


def baselines(train: Examples, validation: Examples, labels: int) -> dict[str, dict[str, Any]]:
    """Score the commonest set of labels, and TF-IDF + logistic regression for each label, on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    truth = flags(validation.labels, labels)

    def score(answers: np.ndarray) -> dict[str, Any]:
        return _measured([str(at) for at in range(labels)], truth, answers)

    commonest = list(Counter(map(tuple, train.labels)).most_common(1)[0][0])
    result = {"majority": score(np.repeat(flags([commonest], labels), len(truth), axis=0))}
    # Any run of non-space counts as a word where there are few letters-and-digits words (Chinese has no spaces).
    spaced = np.mean([" " in text.strip() for text in train.texts]) > 0.5
    options: dict[str, Any] = {"ngram_range": (1, 2)} if spaced else {"analyzer": "char", "ngram_range": (1, 3)}
    vectors = TfidfVectorizer(sublinear_tf=True, **options)
    try:
        table = vectors.fit_transform(train.texts)
    except ValueError:  # no word in any text ("!!!", "???"): nothing to count
        return result
    asked, learnt = vectors.transform(validation.texts), flags(train.labels, labels)
    answers = np.zeros_like(truth)
    for at in range(labels):
        if learnt[:, at].all() or not learnt[:, at].any():
            answers[:, at] = learnt[:, at].all()
            continue
        answers[:, at] = LogisticRegression(C=10, max_iter=1000).fit(table, learnt[:, at]).predict(asked)
    result["tfidf"] = score(answers)
    return result
