"""What a run whose texts have several labels came to, in plain words: for progress.py. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptx_nb.writing_words import shown


def headline(validation: Mapping[str, Any]) -> str:
    return f"micro F1 {validation['micro_f1']:.2f} on {validation['rows']:,} held-out rows"


def verdict(
    validation: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]], base: Mapping[str, Any] | None = None
) -> str:
    """Say in one line what the score is worth beside the baselines, and beside the base model if that does as well."""
    said = _beside_baselines(validation, baselines)
    if not base or base["rows"] != validation["rows"] or base["micro_f1"] < validation["micro_f1"]:
        return said
    return f"{said} The base model does as well untrained: {base['micro_f1']:.2f}."


def _beside_baselines(validation: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]) -> str:
    score = validation["scores"]["micro_f1"]
    ours, rows = f"micro F1 {shown(score)} on {validation['rows']:,} rows", validation["rows"]
    if rows < 10:
        return f"Only {rows} rows held back, which says little: {ours}."
    majority, words = (baselines.get(name, {}).get("micro_f1") for name in ("majority", "tfidf"))
    if majority is not None and score["value"] <= majority:
        return f"No better than always giving the commonest labels, {majority:.2f}: {ours}."
    if words is None:
        return f"{ours}."
    if words > score["high"]:
        return f"TF-IDF does better, {words:.2f}: {ours}. This GPT is not worth it here."
    if words >= score["low"]:
        return f"TF-IDF does about as well, {words:.2f}: {ours}."
    return f"Better than TF-IDF, {words:.2f}: {ours}."


def lines(validation: Mapping[str, Any]) -> list[str]:
    """Return what the table of accuracy and macro F1 does not say."""
    return [
        "accuracy counts a text whose labels are all right; "
        f"micro F1 counts each label: {shown(validation['scores']['micro_f1'])}",
        f"a label is given from a probability of {least(validation['labels'], validation['threshold'])} on: "
        f"{validation['threshold_why']}",
    ]


def least(labels: Sequence[str], threshold: float | Sequence[float]) -> str:
    """Return the probability from which on a label is given, as text: one, or `its own` with each label's."""
    if isinstance(threshold, float | int):
        return f"{threshold:g}"
    shown = [f"{label} {share:g}" for label, share in zip(labels, threshold, strict=True)]
    more = f", … {len(shown) - 8} more" if len(shown) > 8 else ""
    return f"its own ({', '.join(shown[:8])}{more})"
