"""How long a pass takes, before anything counts on it, whether it fits beside the optimiser, and how it is quickest.

Nothing is learnt; writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from gptx_nb.engine import compiling, graphs, memory, varlen
from gptx_nb.engine import device as devices
from gptx_nb.engine.device import Device
from gptx_nb.engine.graphs import Steps, Tensors
from gptx_nb.engine.sharding import LossOf, Sharded, Whole
from gptx_nb.engine.train import Batch, arithmetic, gradient, make_scaler

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
            if not devices.is_out_of_memory(error):
                raise
            if recorded is not None and recorded.on:
                recorded.drop()  # what it holds may be enough
            else:
                less = with_less_memory(-1, error)
                if less is None:
                    raise
                batch = less
            took = []
        finally:
            held.optimizer.zero_grad(set_to_none=True)
    return min(took), batch


def recording(model: PreTrainedModel, device: Device, estimate: memory.Estimate | None) -> int:
    """Return the bytes that recordings of the training passes of a packed `model` take at most; 0: none are made."""
    serves = (
        device.dtype is torch.bfloat16
        and varlen.serves(device.device, torch.bfloat16, model.config)
        and not graphs.looks_at_values(model.config)
    )
    return memory.of_recording(estimate, device.memory_total) if serves else 0


def recorder(
    model: PreTrainedModel, loss_of: LossOf, device: Device, size: int, even: Callable[[Tensors], Tensors]
) -> Steps | None:
    """Return what launches training passes at once; None where `size`, in bytes, is 0 or more than is free.

    `even` brings micro-batches into few shapes (`graphs.Steps`).
    """
    free = memory.available(device.device)
    if not size or (free is not None and free < size):
        return None

    def loss(tensors: Tensors) -> torch.Tensor:
        with arithmetic(model, device.device, device.dtype):
            return loss_of(model, tensors)

    return Steps([each for each in model.parameters() if each.requires_grad], loss, device.device, even)


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

    Plainly; or launched at once, by what `record()` makes, None where that cannot be done; or, on an NVIDIA GPU,
    compiled besides, where the `steps` that are left take long enough. `dynamic` as `compiling.use` has it.
    """

    def seconds(less: Callable[[int, BaseException], Batch | None] = with_less_memory) -> float:
        nonlocal batch
        took, batch = seconds_of(held, batch, loss_of, device, seed, less, held.recorded)
        return took

    def drop() -> None:
        if held.recorded is not None:
            held.recorded.drop()
            held.recorded = None

    def quicker(
        best: float, less: Callable[[int, BaseException], Batch | None] = with_less_memory
    ) -> tuple[float, float]:
        """Return the seconds of the way that `held` is in now, and how many times as quick as `best` that is."""
        before, took = batch, seconds(less)
        fits = batch is before and (held.recorded is None or held.recorded.on)
        return took, best / took if fits else 0.0

    best, told = seconds(), dict[str, Any]()
    held.recorded = record()
    if held.recorded is not None:
        took, gain = quicker(best)
        if gain >= GAIN:
            best = took
            told["launches"] = {"choice": "recorded", "reason": f"measured: {gain:.1f} times as fast as one by one"}
        else:
            drop()
            best = seconds()  # of the batch that fits
    if best * steps < LEAST or not graphs.serve(device.device):
        return Way(best, batch, told)
    launched = held.recorded is not None
    drop()  # before there are others
    held.recorded = record() if launched else None
    compiling.use(model, dynamic)
    begun = time.perf_counter()
    try:
        took, gain = quicker(best, lambda step, error: None)  # a way that needs more memory is not worth less of it
        reason = f"measured: {gain:.1f} times as fast, after {time.perf_counter() - begun:.0f} s"
    except Exception as error:  # no compiler is here, or it cannot do with this model: it trains as it is
        shown = " ".join(str(error).split())[:200]
        took, gain, reason = best, 0.0, f"torch.compile failed: {type(error).__name__}: {shown}"
    told["compile"] = {"choice": "layers" if gain >= GAIN else "no", "reason": reason}
    if gain >= GAIN:
        best = took
    else:
        drop()
        compiling.leave(model)
        held.recorded = record() if launched else None
        best = seconds()
    if held.recorded is None or not held.recorded.on:
        drop()
        told.pop("launches", None)
    return Way(best, batch, told)
