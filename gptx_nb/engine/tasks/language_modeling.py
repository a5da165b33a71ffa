"""Causal language modelling on packed rows: what pretraining minimises, and how it is scored.

The cross entropy is taken over chunks of positions, so that a large vocabulary never fills memory (positions x
vocabulary float32 values at once would be gigabytes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
# Logits that exist at once, float32.
CPU_LOGITS = 4 * 2**20
GPU_LOGITS = 128 * 2**20


@dataclass(frozen=True)
class Rows:
    """One optimiser step's rows. `micro`: [{"input_ids": (rows, length) int64}], equally weighted."""

    micro: list[Tensors]
    tokens: int
    streams: int = 1

    @property
    def weights(self) -> list[float]:
        rows = [tensors["input_ids"].shape[0] for tensors in self.micro]
        return [count / sum(rows) for count in rows]


def rows_at(step: int, tokens: np.ndarray, *, length: int, rows: int, micro_rows: int, seed: int) -> Rows:
    """Cut `rows` rows of `length` tokens for `step` from the one-dimensional array `tokens` (it may be memory-mapped).

    An epoch visits every full row once, in an order that only `seed` and the epoch decide; each epoch's rows start at
    another offset, so that row borders move.
    """
    per_epoch = (len(tokens) - 1) // length - 1
    if per_epoch < 1:
        raise ValueError(f"{len(tokens)} tokens are fewer than two rows of {length}")
    chosen = []
    for index in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(index, per_epoch)
        generator = np.random.default_rng((seed, epoch))
        offset = int(generator.integers(length))
        order = _order(seed, epoch, per_epoch)
        start = offset + int(order[place]) * length
        chosen.append(np.asarray(tokens[start : start + length], dtype=np.int64))
    stacked = torch.from_numpy(np.stack(chosen))
    return Rows([{"input_ids": part} for part in stacked.split(micro_rows)], tokens=stacked.numel())


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    if (seed, epoch, count) not in _orders:
        _orders.clear()  # one epoch's order is enough to keep
        _orders[seed, epoch, count] = np.random.default_rng((seed, epoch, 1)).permutation(count)
    return _orders[seed, epoch, count]


def loss(model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
    """Return the mean cross entropy, in nats a token, of predicting each next token of `input_ids` (rows, length)."""
    ids = tensors["input_ids"]
    causal: Any = model  # transformers gives every causal model these two methods
    decoder = causal.get_decoder()
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    mean: torch.Tensor = ChunkedCrossEntropy.apply(
        states, causal.get_output_embeddings().weight, ids[:, 1:].reshape(-1)
    )
    return mean


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of a linear output layer, a chunk of positions at a time.

    `apply(states (n, width), weight (vocabulary, width), targets (n,) int64)` gives a float32 scalar. Gradients are
    made in the forward pass, while a chunk's logits are at hand: no chunk is kept and none is computed twice (the
    method of Liger Kernel's fused linear cross entropy, Hsu et al. 2024, arXiv:2410.10989). Matrix products are in the
    dtype of `states`; what is summed over the vocabulary or over chunks is float32.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(states.device.type, enabled=False):
            weight_in = weight.to(states.dtype)
            wants_gradient = any(ctx.needs_input_grad[:2])
            state_gradient = torch.empty_like(states) if wants_gradient else None
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_gradient else None
            total = states.new_zeros((), dtype=torch.float32)
            size = chunk_size(states.device, len(weight))
            for start in range(0, len(targets), size):
                chunk, target = states[start : start + size], targets[start : start + size, None]
                logits = (chunk @ weight_in.T).float()
                normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
                total += (normaliser - logits.gather(1, target)).sum()
                if state_gradient is not None and weight_gradient is not None:
                    # d loss / d logits = softmax - one-hot
                    error = logits.sub_(normaliser).exp_().scatter_add_(1, target, torch.full_like(normaliser, -1.0))
                    error = error.to(states.dtype)
                    state_gradient[start : start + size] = error @ weight_in
                    weight_gradient += error.T @ chunk
            count = max(1, len(targets))
            if state_gradient is not None and weight_gradient is not None:
                ctx.save_for_backward(state_gradient / count, (weight_gradient / count).to(weight.dtype))
            return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        state_gradient, weight_gradient = ctx.saved_tensors
        return state_gradient * gradients[0], weight_gradient * gradients[0], None


def chunk_size(device: torch.device, vocabulary: int) -> int:
    """Return how many positions' logits exist at once.

    On a CPU as many as its caches hold: measured on two cores with 16,384 tokens in the vocabulary, 256 positions take
    half the time of 2,048. A GPU wants large products.
    """
    values = CPU_LOGITS if device.type == "cpu" else GPU_LOGITS
    return max(64, values // vocabulary)


def bits_per_byte(
    model: torch.nn.Module,
    tokens: np.ndarray,
    *,
    length: int,
    text_bytes: int,
    rows: int = 16,
    limit: int | None = None,
) -> float:
    """Score `tokens`, the encoding of `text_bytes` bytes of text, in rows of `length` without overlap: bits a byte.

    `limit` scores only the first `limit` rows, with the bytes taken in proportion.
    """
    device = next(model.parameters()).device
    count = (len(tokens) - 1) // length
    count = min(count, limit) if limit else count
    nats = 0.0
    model.eval()
    with torch.inference_mode():
        for first in range(0, count, rows):
            part = np.stack([tokens[r * length : (r + 1) * length] for r in range(first, min(first + rows, count))])
            ids = torch.from_numpy(part.astype(np.int64)).to(device)
            nats += float(loss(model, {"input_ids": ids})) * ids.shape[0] * (length - 1)
    scored_bytes = text_bytes * count * (length - 1) / len(tokens)
    return nats / math.log(2) / scored_bytes
