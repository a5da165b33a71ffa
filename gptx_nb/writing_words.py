"""What a run whose model writes answers was made from and came to, in plain words: for progress.py. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

OPENS, CLOSES = "⟦", "⟧"  # around what is to be predicted
NAMES = {
    "rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "f1": "token F1", "exact_match": "exact match",
    "chrf": "chrF", "bleu": "BLEU", "accuracy": "accuracy", "pass@1": "pass@1", "perplexity": "perplexity",
    "bits_per_byte": "bits a byte", "macro_f1": "macro F1", "calibration_error": "calibration error",
    "micro_f1": "micro F1", "subset_accuracy": "all labels right",
}  # fmt: skip


def is_writing(told: Mapping[str, Any] | None) -> bool:
    """Say whether a report or scores are of a task whose model writes."""
    return bool((told or {}).get("task", "text-classification") != "text-classification")


def called(name: str) -> str:
    """Return the name of a score as people know it: `chrf English to French` is `chrF, English to French`."""
    kind, _, direction = name.partition(" ")
    return NAMES.get(kind, kind) + (f", {direction}" if direction else "")


def rendered(plan: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the first examples as the model sees them, what carries loss in ⟦…⟧, and their tokens."""
    return [
        ("".join(f"{OPENS}{text}{CLOSES}" if target else text for text, target in each["pieces"]), each["tokens"])
        for each in plan["rendered"]
    ]


def targets(plan: Mapping[str, Any]) -> str:
    """Say how many tokens carry loss."""
    tokens, counts = plan["target_tokens"], plan["tokens"]
    left_out = counts.get("left_out", 0) - counts.get("left_out_of_scoring", 0)
    return (
        f"loss on {tokens['min']:,} to {tokens['max']:,} of them, median {tokens['median']:,}: the answer and its end"
        + (f"; {left_out:,} left out of learning as they do not fit" if left_out else "")
    )


def values(scored: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return every score by name, the task's own first, perplexity and the like last."""
    found = dict(scored["scores"])
    found |= {name: scored[name] for name in ("bits_per_byte", "perplexity") if scored.get(name)}
    return found


def shown(score: Mapping[str, Any]) -> str:
    """A score and its interval: 0.412 (0.380 to 0.451)."""
    value, low, high = (score[name] for name in ("value", "low", "high"))
    if value is None or math.isnan(value):
        return "-"
    digits = 3 if score["best"] <= 1 and value < 10 else 1
    between = f" ({low:.{digits}f} to {high:.{digits}f})" if low is not None and high is not None else ""
    return f"{value:.{digits}f}{between}"


def table(scores: Mapping[str, Any], model: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each score of the tuned model, and of the base model as it was."""
    ours, base = scores.get("validation"), scores.get("base")
    if not ours:
        return [], []
    few = scores.get("few_shot")
    beside = [(f"base ({model})", values(base))] if base else []
    if few:
        beside.append((f"base, shown {few['shots']} examples ({few['written']} rows)", values(few)))
    head = ["on the held-out rows", "tuned", *(who for who, _ in beside), "rows"]
    rows = []
    for name, score in values(ours).items():
        others = [shown(found[name]) if name in found else "-" for _, found in beside]
        rows.append([called(name), shown(score), *others, f"{score['examples']:,}"])
    return head, rows


def main(scored: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the task's own score and its name."""
    name = scored.get("main") or ("bits_per_byte" if scored.get("bits_per_byte") else "perplexity")
    return name, values(scored)[name]


def headline(validation: Mapping[str, Any]) -> str:
    name, score = main(validation)
    return f"{called(name)} {shown(score).partition(' ')[0]} on {score['examples']:,} held-out rows"


def verdict(scores: Mapping[str, Any]) -> str:
    """Say in one line what tuning has brought."""
    ours, base = scores.get("validation"), scores.get("base")
    if not ours:
        return scores.get("note") or "No rows were held back, so there is no score: try it before you trust it."
    name, score = main(ours)
    what = f"{called(name)} {shown(score)} on {score['examples']:,} held-out rows"
    before = values(base).get(name) if base and base.get("main") == ours.get("main") else None
    if before is None:  # it was scored by an older version, or on something else
        return f"{what}."
    gain = score["value"] - before["value"]
    better = gain > 0 if score["more_is_better"] else gain < 0
    apart = score["low"] > before["high"] if score["more_is_better"] else score["high"] < before["low"]
    against = f"{what}; the base model has {shown(before)}."
    if score["examples"] < 10:
        return f"Only {score['examples']} rows scored, which says little: {against}"
    if not better:
        return f"No better than the base model as it is: {against}"
    return f"Better than the base model: {against}" if apart else f"Ahead of the base model, maybe by chance: {against}"


def samples(scores: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (what was asked, right answer, the tuned model's, the base model's or nothing)."""
    ours, base = scores.get("validation") or {}, scores.get("base") or {}
    before = [each["answer"] for each in base.get("samples") or []]
    return [
        (each["asked"], each["right"], each["answer"], before[at] if at < len(before) else "")
        for at, each in enumerate(ours.get("samples") or [])
    ]
