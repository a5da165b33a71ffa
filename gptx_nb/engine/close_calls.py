"""Which labels of a model in bfloat16 could be others in float32, so that those texts are computed again.

By how far rounding moves logits depends on the model, and grows with how sharp its head is: there is no one number for
all. So a model is tried on a few texts in both arithmetics, and what was moved most there, times `SURE`, counts as what
rounding may move any text. Knows neither texts nor models: logits in, places of rows out.
"""

from __future__ import annotations

import numpy as np

from gptx_nb.engine.multi_label import Threshold

SURE = 3.0  # times the largest move of the texts that a model is tried on
# What a model is tried on: short and long, sure and doubtful, of several kinds and languages.
TRIED = (
    "Great!",
    "It broke after two days, and nobody answers my letters.",
    "I cannot say that I liked it, though some of it was quite well done.",
    "Where is the nearest station?",
    "WINNER!! Call 09061701461 now to claim your prize of 900 pounds.",
    "The central bank left its rate unchanged on Thursday, as most economists had expected.",
    "ok see you at 7",
    "A new battery stores twice the energy of earlier ones, researchers report, and costs a third less to make.",
    "我很喜欢这本书。",
    "My card has not arrived yet.",
    "Sie hat das Spiel in der letzten Minute gewonnen.",
    "The film begins slowly. Then, in its second half, everything that seemed to be an accident turns out to have been "
    "planned, and what was a comedy becomes something else. I left the cinema without a word.",
    "def add(a, b): return a + b",
    "not bad at all",
    "Why did nobody tell me about the change of the timetable before I bought the ticket?",
    "...",
)


def bound(exact: np.ndarray, rounded: np.ndarray, threshold: Threshold | None) -> float:
    """Return by how much rounding may move what decides a label, from logits (texts, labels) in both arithmetics.

    That is the difference of two logits, or with a `threshold` each logit by itself.
    """
    with np.errstate(invalid="ignore"):  # infinite: found out by the first text that is asked
        moves = rounded.astype(np.float64) - exact
    largest = np.ptp(moves, axis=1) if threshold is None else np.abs(moves)
    return SURE * float(largest.max())


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
