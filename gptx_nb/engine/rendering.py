"""Tokens as people read them: each with its text, and whether the model has to predict it. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

HALF = "\N{REPLACEMENT CHARACTER}"  # what a part of a character is decoded to
LONGEST = 8  # tokens that one character takes


def pieces(ids: Sequence[int], loss: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """Return (text, whether it is to be predicted) token by token; tokens that share a character are one piece."""
    found: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[start:end])))
        if HALF in text and end < len(ids) and end - start < LONGEST and loss[end] == loss[start]:
            continue
        found.append((text, bool(loss[start])))
        start = end
    return found


def histogram(lengths: Sequence[int], bins: int = 24) -> list[tuple[int, int, int]]:
    """Return (shortest, longest, how many) of each of at most `bins` equal steps of length, gaps among them."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // bins))
    edges = range(low, high + 1, width)
    counts = [0] * len(edges)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [(edge, min(high, edge + width - 1), count) for edge, count in zip(edges, counts, strict=True)]
