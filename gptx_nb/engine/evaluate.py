"""Score predictions, and the two baselines that a GPT must beat to be worth it. Scores are shares from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptx_nb.engine.data import Examples
from gptx_nb.engine.scores.intervals import Score
from gptx_nb.engine.scores.labels import LabelScores, SingleLabel, calibration, single_label

SAMPLES = 4  # held-out rows that people may look at while a model learns
SAMPLE_LETTERS = 200


def scores(labels: list[str], truth: Sequence[int], logits: np.ndarray) -> dict[str, Any]:
    """Return accuracy, macro F1, mean cross entropy (nats), per-class figures and the confusion matrix.

    `logits` is (rows, labels). Row i, column j of the confusion matrix counts texts of label i that were called j.
    Macro F1 is the mean over the labels that occur in `truth` or in the answers (scikit-learn).
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    guess = logits.argmax(axis=1)
    every = list(range(len(labels)))
    precision, recall, f1, rows = precision_recall_fscore_support(truth, guess, labels=every, zero_division=0)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return {
        "rows": len(truth),
        "accuracy": float(np.mean(guess == np.asarray(truth))),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
        "loss": float(-log_probabilities[np.arange(len(truth)), truth].mean()),
        "labels": labels,
        "per_class": [
            {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
            for label, p, r, f, n in zip(labels, precision, recall, f1, rows, strict=True)
        ],
        "confusion": confusion_matrix(truth, guess, labels=every).tolist(),
    }


def intervals(labels: list[str], truth: Sequence[int], guess: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return accuracy and macro F1 as Scores: each with its 95 % bootstrap interval and its number of examples."""
    return _intervals(single_label(labels, truth, guess.tolist()))


def _intervals(found: SingleLabel) -> dict[str, dict[str, Any]]:
    return {"accuracy": found.accuracy.to_json(), "macro_f1": found.macro_f1.to_json()}


def by_label(found: Sequence[LabelScores]) -> list[dict[str, Any]]:
    """Return the per-class figures of `scores`; each has "scores" besides, with their 95 % bootstrap intervals.

    An interval that no draw of the examples says anything of is None.
    """

    def known(score: Score) -> dict[str, Any]:
        return {name: None if value != value else value for name, value in score.to_json().items()}  # NaN is no JSON

    return [
        {
            "label": each.label,
            **{name: getattr(each, name).value for name in ("precision", "recall", "f1")},
            "rows": each.support,
            "scores": {name: known(getattr(each, name)) for name in ("precision", "recall", "f1")},
        }
        for each in found
    ]


def measured(labels: list[str], truth: Sequence[int], logits: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return `intervals` of what `logits` (rows, labels) say, and the expected calibration error as a Score."""
    return _measured(single_label(labels, truth, logits.argmax(axis=1).tolist()), truth, logits)


def in_full(labels: list[str], truth: Sequence[int], logits: np.ndarray) -> dict[str, Any]:
    """Return `scores`, with what was `measured` as "scores", and with intervals `by_label`."""
    found = single_label(labels, truth, logits.argmax(axis=1).tolist())
    told = scores(labels, truth, logits)
    return {**told, "scores": _measured(found, truth, logits), "per_class": by_label(found.per_label)}


def _measured(found: SingleLabel, truth: Sequence[int], logits: np.ndarray) -> dict[str, dict[str, Any]]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = calibration(truth, shares).error
    return {**_intervals(found), "calibration_error": error.to_json()}


def places(rows: int) -> Sequence[int]:
    """Return which of so many held-out rows people may look at: from all over the table."""
    return [at * rows // SAMPLES for at in range(SAMPLES)] if rows > SAMPLES else range(rows)


def samples(labels: list[str], held: Examples, logits: np.ndarray) -> list[dict[str, Any]]:
    """Return what is said of a few rows, always the same ones: [{"text", "label", "said", "share" of the label}]."""
    found = []
    for at in places(len(held.texts)):
        shares = np.exp(logits[at] - logits[at].max())
        shares /= shares.sum()
        said, true = labels[int(shares.argmax())], held.labels[at]
        share = round(float(shares[true]), 4)
        found.append({"text": held.texts[at][:SAMPLE_LETTERS], "label": labels[true], "said": said, "share": share})
    return found


def baselines(train: Examples, validation: Examples) -> dict[str, dict[str, Any]]:
    """Score a majority guess and TF-IDF (words and pairs) + logistic regression on the same rows (scikit-learn).

    {name: {"accuracy", "macro_f1", "scores": `intervals`}}
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    labels = [str(at) for at in range(1 + max(*train.labels, *validation.labels))]

    def score(guess: np.ndarray) -> dict[str, Any]:
        found = intervals(labels, validation.labels, guess)
        return {**{name: each["value"] for name, each in found.items()}, "scores": found}

    majority = int(np.bincount(train.labels).argmax())
    result = {"majority": score(np.full(len(validation.labels), majority))}
    # Any run of non-space counts as a word where there are few letters-and-digits words (Chinese has no spaces).
    spaced = np.mean([" " in text.strip() for text in train.texts]) > 0.5
    vectors = (
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        if spaced
        else TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    )
    pipeline = make_pipeline(vectors, LogisticRegression(C=10, max_iter=1000))
    try:
        pipeline.fit(train.texts, train.labels)
    except ValueError:  # no word in any text ("!!!", "???"): nothing to count
        return result
    result["tfidf"] = score(pipeline.predict(validation.texts))
    return result
