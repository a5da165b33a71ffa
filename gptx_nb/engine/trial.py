"""How long a pass takes, before anything counts on it, whether it fits beside the optimiser, and how it is quickest.

Nothing is learnt; writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptx_nb.engine import compiling
from gptx_nb.engine import device as devices
from gptx_nb.engine.device import Device
from gptx_nb.engine.graphs import Steps
from gptx_nb.engine.sharding import LossOf, Sharded, Whole
from gptx_nb.engine.train import Batch, gradient, make_scaler

LEAST = 60.0  # seconds that training is expected to take, or compiling cannot repay itself
GAIN = 1.1  # times as fast, or a way is not worth what it changes in the last digits
QUICK = 0.3  # seconds; on a CPU, a first pass that takes less is taken again, as its start weighs too much


def enough(took: Sequence[float], device: torch.device, sharded: bool) -> bool:
    """Whether passes that `took` such seconds tell the speed of `device`: the quickest of them.

    The first one on a GPU loads kernels, and chooses among them. Of shards, every process needs as many passes.
    """
    if device.type != "cpu":
        return len(took) == 3
    return len(took) == 2 or (len(took) == 1 and took[0] >= QUICK and not sharded)


def seconds_of(
    held: Whole | Sharded,
    batch: Batch,
    loss_of: LossOf,
    device: Device,
    seed: int,
    with_less_memory: Callable[[int, BaseException], Batch | None],
    recorded: Steps | None = None,
) -> tuple[float, Batch]:
    """Return the seconds that the gradient of `batch` takes, forward and backward, and the batch that was tried.

    What the optimiser keeps of each parameter is made beside the gradient, as its first step would make it.

    Where memory runs out, `with_less_memory(-1, error)` gives the one to try instead, as in training. `recorded`: what
    launches passes on a GPU at once, from the third on.
    """
    held.model.train()
    took: list[float] = []
    while not enough(took, device.device, isinstance(held, Sharded)):
        begun = time.perf_counter()
        scaler = make_scaler(device.device, device.dtype)
        try:
            losses = gradient(held.model, batch, loss_of, device.device, held.dtype, scaler, (seed, -1), recorded)
            float(torch.stack(losses).sum())  # waits for the device
            took.append(time.perf_counter() - begun)
            held.allocate()
        except (RuntimeError, MemoryError) as error:
            less = with_less_memory(-1, error) if devices.is_out_of_memory(error) else None
            if less is None:
                raise
            if recorded is not None:
                recorded.drop()
            batch, took = less, []
        finally:
            held.optimizer.zero_grad(set_to_none=True)
    return min(took), batch


@dataclass(frozen=True)
class Way:
    """How training passes go on a GPU: `seconds` a pass of `batch`. `told` is the plan's part."""

    seconds: float
    batch: Batch
    told: dict[str, Any]


def quickest(
    held: Whole,
    model: Any,
    batch: Batch,
    loss_of: LossOf,
    device: Device,
    seed: int,
    with_less_memory: Callable[[int, BaseException], Batch | None],
    *,
    steps: int,
    record: Callable[[], Steps | None],
    dynamic: bool | None,
) -> Way:
    """Find out by measurement in which way passes like `batch`, an ordinary one, are quickest; leave `held` in it.

    Plainly; or launched at once, by what `record()` makes, None where that cannot be done; or compiled besides, where
    `steps` steps take long enough. `dynamic` as `compiling.use` has it.
    """

    def seconds(recorded: Steps | None) -> float:
        nonlocal batch
        took, batch = seconds_of(held, batch, loss_of, device, seed, with_less_memory, recorded)
        return took

    best, told = seconds(None), dict[str, Any]()
    held.recorded = record()
    if held.recorded is not None:
        launched = seconds(held.recorded)
        gain = best / launched
        if held.recorded.on and gain >= GAIN:
            best = launched
            told["launches"] = {"choice": "recorded", "reason": f"measured: {gain:.1f} times as fast as one by one"}
        else:
            held.recorded.drop()
            held.recorded = None
    if best * steps < LEAST:
        return Way(best, batch, told)
    before, held.recorded = held.recorded, None if held.recorded is None else record()
    begun = time.perf_counter()
    compiling.use(model, dynamic)
    try:
        compiled = seconds(held.recorded)
        gain = best / compiled
        reason = f"measured: {gain:.1f} times as fast, after {time.perf_counter() - begun:.0f} s"
    except Exception as error:  # no compiler is here, or it cannot do with this model: it trains as it is
        shown = " ".join(str(error).split())[:200]
        gain, compiled, reason = 0.0, best, f"torch.compile failed: {type(error).__name__}: {shown}"
    if gain >= GAIN:
        if before is not None:
            before.drop()
        told["compile"] = {"choice": "layers", "reason": reason}
        return Way(compiled, batch, told)
    compiling.leave(model)
    if held.recorded is not None:
        held.recorded.drop()
    held.recorded = before
    told["compile"] = {"choice": "no", "reason": reason}
    return Way(best, batch, told)
