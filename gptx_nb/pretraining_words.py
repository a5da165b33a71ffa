"""What a pretraining run found and came to, in plain words: what progress.py says of fine-tuning. Draws nothing."""

from __future__ import annotations

from typing import Any


def corpus_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, words) of the texts: where from, what was left out, what is held back."""
    counts = report["train"], report["validation"]
    found = [
        ("texts", f"{report['source']}: {_documents(report['documents'])}, {size(report['bytes'])}"),
        ("columns", report.get("why") or ""),
        ("left out", ", ".join(f"{count:,} {why}" for why, count in report["dropped"].items() if count)),
        ("cleaned", ", ".join(f"{count:,} {what}" for what, count in report["cleaned"].items() if count)),
        ("to learn from", _counted(counts[0])),
        ("held back", f"{_counted(counts[1])}; {report['validation_note']}"),
        ("tokenizer", report["tokenizer"]),
    ]
    return [(what, words) for what, words in found if words]


def _counted(part: dict[str, int]) -> str:
    return f"{_documents(part['documents'])}, {size(part['bytes'])}, {part['tokens']:,} tokens"


def _documents(count: int) -> str:
    return f"{count:,} document{'s' if count != 1 else ''}"


def size(count: float) -> str:
    """A number of bytes of text: 528 MB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def scored(validation: dict[str, Any]) -> str:
    """Say how well held-back documents are predicted, and how sure that is."""
    bits, count = f"{validation['bits_per_byte']:.3f} bits a byte", validation["documents"]
    held = f"{count:,} held-back document{'s' if count != 1 else ''}"
    if validation.get("low") is None:
        return f"{bits} on {held} of {size(validation['text_bytes'])} in all, too little to say how sure that is"
    return f"{bits} ({validation['low']:.3f} to {validation['high']:.3f}) on {held}"


def verdict(scores: dict[str, Any], name: str) -> str:
    """Say in one line what came of it, and what to do with it."""
    validation = scores.get("validation")
    learnt = f"{scores['tokens']:,} tokens learnt from"
    said = (
        f"{scored(validation)}; {learnt}." if validation else f"{learnt[0].upper()}{learnt[1:]}; nothing was held back."
    )
    return f"{said} Fine-tune from it with `model: run:{name}`."
