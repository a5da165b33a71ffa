"""Dropout that is a pure function of seed, step, micro-batch and place in the model.

torch draws from one generator for all threads, so that with several streams (see streams.py) chance would depend on
which is quicker. Here each draw has a seed of its own: the same whichever thread draws, before or after a resume, and
again when activation checkpointing computes a layer a second time. It is also drawn 4 values at a time, so the rate is
a multiple of 1/65536.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
from collections.abc import Iterator

import torch

_now = threading.local()


def use(model: torch.nn.Module) -> None:
    """Let each `torch.nn.Dropout` of `model`, in place, draw in this way; on a CPU, where streams are."""
    for number, module in enumerate(model.modules()):
        if type(module) is torch.nn.Dropout:
            module.__class__ = Dropout
            module.number = number  # type: ignore[assignment]


def seed(*numbers: int) -> None:
    """Set what this thread draws from here on, as by (seed, step, micro-batch)."""
    _now.numbers = numbers


@contextlib.contextmanager
def at(places: torch.Tensor, tokens: int) -> Iterator[None]:
    """Let what this thread drops of (1, places, width) for a while be what it would there of (1, `tokens`, width)."""
    _now.among = places, tokens
    try:
        yield
    finally:
        _now.among = None


def drop(states: torch.Tensor, rate: float, place: int) -> torch.Tensor:
    """Return `states` with a share `rate` of its values zero and the others larger; `place` tells layers apart.

    Before a thread has called `seed`, as on a GPU, torch draws.
    """
    if states.device.type != "cpu":
        return torch.nn.functional.dropout(states, rate)
    numbers = getattr(_now, "numbers", None)
    if numbers is None:
        return torch.nn.functional.dropout(states, rate)
    mixed = hashlib.blake2b(repr((*numbers, place)).encode("ascii"), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(mixed, "little") >> 1)
    places, tokens = getattr(_now, "among", None) or (None, 1)
    shape = states.shape if places is None else (tokens, states.shape[-1])
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    dropped = round(rate * 65536)
    kept = drawn.view(torch.int16)[:count].view(shape) >= dropped - 32768
    if places is not None:
        kept = kept[places][None]
    return states * (kept * (65536 / (65536 - dropped))).to(states.dtype)


class Dropout(torch.nn.Dropout):
    """A `torch.nn.Dropout` that draws with `drop`."""

    number: int

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return states
        return drop(states, self.p, self.number)
