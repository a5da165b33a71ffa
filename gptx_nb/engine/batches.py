"""Put examples into batches: which rows a step takes, which of them go together, how they are padded.

`step_rows` is a pure function of (seed, step), so that a resumed run takes the same rows. Padding is on the right and
masked by position: GPT-2 counts positions from the left, and its classification head looks for the last token that is
not padding.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One optimiser step: `micro` batches of {"input_ids", "attention_mask" (rows, length), "labels" (rows,)}.

    `tokens` are those of the whole step; `here` of them are in `micro`, the others in those of other ranks.
    """

    micro: list[Tensors]
    tokens: int
    weights: list[float]
    streams: int = 1  # micro-batches that are computed at once
    here: int = 0


def step_rows(step: int, *, rows: int, batch_size: int, seed: int) -> tuple[list[int], int]:
    """Return the row numbers of `step` and its epoch (from 0). Every epoch takes each row once, in a new order."""
    steps_per_epoch = -(-rows // batch_size)
    epoch, place = divmod(step, steps_per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(rows)
    return order[place * batch_size : (place + 1) * batch_size].tolist(), epoch


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> Tensors:
    """Stack token rows: {"input_ids", "attention_mask"} of shape (rows, longest) int64, padded on the right.

    A row without tokens gets one padding token that counts as real, so that there is a last token to classify.
    """
    filled = [list(row) or [pad_id] for row in rows]
    longest = max(len(row) for row in filled)
    ids = torch.full((len(filled), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(filled):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def by_length(rows: Sequence[Sized], *, token_budget: int, packed: bool = False, streams: int = 1) -> list[list[int]]:
    """Group the numbers of `rows` as `by_lengths` does."""
    lengths = [len(row) for row in rows]
    return by_lengths(lengths, token_budget=token_budget, packed=packed, streams=streams)


def longest_first(lengths: np.ndarray, most: int) -> list[int]:
    """Return the numbers of the `most` longest rows; of equal ones, the first come first."""
    found: list[int] = np.argsort(-lengths, kind="stable")[:most].tolist()
    return found


def by_lengths(lengths: Sequence[int], *, token_budget: int, packed: bool = False, streams: int = 1) -> list[list[int]]:
    """Group row numbers, shortest first, so that a group's tokens stay within `token_budget`.

    Padding counts. A packed group has none but inside attention, where it may take as much again: else one long text
    among many short ones would fill memory. With several `streams` there are as many groups for each, of about as many
    tokens, as far as rows can be shared out; stream s takes every group whose number is s modulo `streams`.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    total = sum(max(1, length) for length in lengths)
    shares = streams * -(-total // (streams * token_budget)) if streams > 1 else 1
    groups: list[list[int]] = []
    before, share_of_last, tokens = 0, -1, 0
    for index in order:
        length = max(1, lengths[index])
        share = (2 * before + length) * shares // (2 * total)  # by the middle of the row
        padded = (len(groups[-1]) + 1) * length if groups else length
        fits = tokens + length <= token_budget and padded <= 2 * token_budget if packed else padded <= token_budget
        if groups and fits and share == share_of_last:
            groups[-1].append(index)
            tokens += length
        else:
            groups.append([index])
            tokens = length
        share_of_last = share
        before += length
    return groups
