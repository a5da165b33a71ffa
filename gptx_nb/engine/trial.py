"""How long a pass of the longest rows takes, before anything counts on it, and whether it fits beside the optimiser.

Nothing is learnt; writes no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from gptx_nb.engine import device as devices
from gptx_nb.engine.device import Device
from gptx_nb.engine.sharding import LossOf, Sharded, Whole
from gptx_nb.engine.train import Batch, gradient, make_scaler

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
) -> tuple[float, Batch]:
    """Return the seconds that the gradient of `batch` takes, forward and backward, and the batch that was tried.

    What the optimiser keeps of each parameter is made beside the gradient, as its first step would make it.

    Where memory runs out, `with_less_memory(-1, error)` gives the one to try instead, as in training.
    """
    held.model.train()
    took: list[float] = []
    while not enough(took, device.device, isinstance(held, Sharded)):
        begun = time.perf_counter()
        scaler = make_scaler(device.device, device.dtype)
        try:
            losses = gradient(held.model, batch, loss_of, device.device, held.dtype, scaler, (seed, -1))
            float(torch.stack(losses).sum())  # waits for the device
            took.append(time.perf_counter() - begun)
            held.allocate()
        except (RuntimeError, MemoryError) as error:
            less = with_less_memory(-1, error) if devices.is_out_of_memory(error) else None
            if less is None:
                raise
            batch, took = less, []
        finally:
            held.optimizer.zero_grad(set_to_none=True)
    return min(took), batch
