"""Which labels of a model in bfloat16 could be others in float32, so that those texts are computed again.

By how far rounding moves logits depends on the model, and grows with how sharp its head is: there is no one number for
all. So a model is tried on a few texts in both arithmetics, and what moved them there, times `SURE`, counts as what
rounding may move any text. Texts that are computed again show whether that was enough, else more are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedTokenizerBase

from gptx_nb.engine.multi_label import Threshold

# Times the root mean square of the moves of the texts that a model is tried on. With a tuned tiny,
# of 800 joined SST-2 sentences the one that was moved most is at 5.4 times, and 6 are computed again; of 800 questions
# of banking77, with 77 labels, at 1.6 times, and 52 (products rounded as bfloat16 does, in
# float32, weights to the nearest number).
SURE = 8.0
TRIED = 24  # texts; few and short, as they are computed twice before the first answer
LENGTHS = (4, 25)  # tokens; from, and below


def texts_to_try(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return texts of random tokens, always the same: most models are in doubt of them, and rounded the more for it."""
    draw = np.random.default_rng(0)
    special = set(tokenizer.all_special_ids)
    known = np.array([each for each in range(tokenizer.vocab_size) if each not in special])
    return [str(tokenizer.decode(draw.choice(known, int(draw.integers(*LENGTHS))).tolist())) for _ in range(TRIED)]


def bound(exact: np.ndarray, rounded: np.ndarray, threshold: Threshold | None) -> float:
    """Return by how much rounding may move what decides a label, from logits (texts, labels) in both arithmetics."""
    with np.errstate(invalid="ignore"):  # infinite: found out by the first text that is asked
        return SURE * float(np.sqrt(np.square(_moves(exact, rounded, threshold)).mean()))


def _moves(exact: np.ndarray, rounded: np.ndarray, threshold: Threshold | None) -> np.ndarray:
    """Return (texts,) how far the difference of two logits is moved at most; with a `threshold`, any one logit."""
    moves = rounded.astype(np.float64) - exact
    found: np.ndarray = np.ptp(moves, axis=1) if threshold is None else np.abs(moves).max(axis=1)
    return found


def settle(
    logits: np.ndarray, threshold: Threshold | None, moved: float, exactly: Callable[[list[int]], np.ndarray]
) -> np.ndarray:
    """Return `logits` (texts, labels) with exact ones in the rows whose labels may change where logits are `moved`.

    `exactly` gives them for the places of some rows. Where one of these turns out to have been moved by more than half
    of what was thought, more rows are looked at.
    """
    found, done, largest = logits.copy(), set[int](), 0.0
    while True:
        again = [int(at) for at in unsure(logits, threshold, moved) if at not in done]
        if again:
            found[again] = exactly(again)
            done.update(again)
            largest = max(largest, float(_moves(found[again], logits[again], threshold).max()))
        if not 2 * largest > moved:  # nor where one of them is no number
            return found
        moved = 2 * (moved or largest)


def unsure(logits: np.ndarray, threshold: Threshold | None, moved: float) -> np.ndarray:
    """Return the places of the rows of `logits` (texts, labels) whose labels may change where logits are `moved`."""
    wide = logits.astype(np.float64)
    if threshold is None:
        if wide.shape[1] < 2:
            return np.zeros(0, dtype=int)
        two = np.partition(wide, -2, axis=1)[:, -2:]
        return np.flatnonzero(two[:, 1] - two[:, 0] <= moved)
    with np.errstate(divide="ignore"):  # a threshold of 0 or 1 has no logit near it
        at = np.array(threshold, dtype=np.float64)
        near = np.abs(wide - np.log(at / (1 - at)))
    return np.flatnonzero((near <= moved).any(axis=1))
