"""Choose the arithmetic of answers on a device, with its reason: bfloat16 where a product in it is measured faster.

What is measured is a product as answers have it (`products`), with what turns float32 states into bfloat16 and back.
A device without units for bfloat16 is not asked.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from dataclasses import dataclass

import torch

from gptx_nb.engine import device as devices
from gptx_nb.engine import streams
from gptx_nb.engine.device import Device
from gptx_nb.engine.products import Product

FASTER = 1.5  # times; below, the way into bfloat16 and back eats up what is gained
# For labels on a CPU, which puts all weights together anew to compute a text again in float32: for one close call
# as for many.
LABELS_FASTER = 2.5
# Seconds spent on each dtype at a time, and how often: by turns, as what else a machine does may last, and would be
# counted against one of them. A large product on a slow CPU takes longer.
SECONDS, TURNS = 0.01, 5
CPU_SHAPE, GPU_SHAPE = (1024, 1024), (4096, 2048)  # rows of states, and their width


@dataclass(frozen=True)
class Arithmetic:
    """The dtype of matrix products, and why it is that."""

    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}: {self.reason}"


def of_answers(device: Device, *, written: bool = False) -> Arithmetic:
    """Return in which arithmetic answers are computed on `device`: in float32, if that is its own.

    What is `written` is never computed again; labels are, where rounding could change them.
    """
    if device.dtype is torch.float32:
        return Arithmetic(torch.float32, device.dtype_reason)
    if devices.fast_dtype(device.device) is not torch.bfloat16:
        return Arithmetic(torch.float32, "this device has no bfloat16 units")
    times = bfloat16_gain(device.device)
    if times < (FASTER if written or device.device.type != "cpu" else LABELS_FASTER):
        return Arithmetic(torch.float32, f"products in bfloat16 are measured at only {times:.1f} times its speed")
    same = "" if written else "; labels are float32's"
    return Arithmetic(torch.bfloat16, f"measured at {times:.1f} times the speed of float32{same}")


@functools.cache
def bfloat16_gain(device: torch.device) -> float:
    """Return how many times as fast as in float32 `device` computes a product in bfloat16; measured once a process."""
    rows, width = CPU_SHAPE if device.type == "cpu" else GPU_SHAPE
    states = torch.randn(rows, width, device=device)
    layer = torch.nn.Linear(width, width, bias=False, device=device)

    ways = [functools.partial(Product([layer], dtype), states) for dtype in (torch.float32, torch.bfloat16)]

    def gain(stream: int) -> float:
        least = [math.inf, math.inf]
        with torch.inference_mode():
            for _, number in itertools.product(range(TURNS), range(len(ways))):
                least[number] = min(least[number], devices.least_seconds(device, ways[number], SECONDS))
        return least[0] / least[1]

    # Each core computes alone, as where texts are answered.
    return statistics.median(streams.each(gain, range(streams.number_for(device))))
