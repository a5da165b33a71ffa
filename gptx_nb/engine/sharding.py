"""How the processes of a run hold the model: each the whole of it, or each a shard of every tensor (FSDP2).

    Whole     every process has all weights, gradients and the optimiser's state; gradients are summed once a step (DDP)
    Sharded   each has its part of them, and layers are gathered while they are computed with: for a model that is too
              large for one device (Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard)

Either one gives the training loop what it asks for, and gives the first process the plain model whenever it is to be
scored or saved: so nothing else has to know, and a run may go on in the other way from the same checkpoint.

A shard's arithmetic is that of the plain optimiser: AdamW goes value by value, so each process steps its own values.
The float32 shards are the masters; where products are in bfloat16, layers are gathered in it. What needs whole matrices
(Muon) or has states of another shape (8 bits) is refused by the recipe. The collective steps of a pass have to meet, so
every process computes as many micro-batches as the one with most; those that are made up weigh nothing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import PreTrainedModel

from gptx_nb.engine import checkpoints, compiling, memory, tuning
from gptx_nb.engine import device as devices
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.batches import Step
from gptx_nb.engine.device import Device
from gptx_nb.engine.graphs import Steps
from gptx_nb.engine.optimizer import Chain, Optimizer
from gptx_nb.engine.train import Settings, make_optimizer

if TYPE_CHECKING:
    from gptx_nb.engine.distributed import Alone, Ranks
    from gptx_nb.pretraining import AnyRecipe

Tensors = dict[str, torch.Tensor]
LossOf = Callable[[torch.nn.Module, Tensors], torch.Tensor]
Reduce = Callable[[list[torch.nn.Parameter], torch.Tensor], torch.Tensor]
DTensor = Any  # torch.distributed.tensor's, which is imported where it is needed

PREPARED = 6  # bytes that preparing a run takes for a parameter: float32, and bfloat16 beside it


def place(recipe: AnyRecipe, parameters: int, device: torch.device, count: int) -> torch.device:
    """Return where one of `count` processes has the weights until it is known whether they are cut.

    That is main memory, where they are to be cut or `device` may have no room for so many `parameters`.
    """
    if count == 1 or recipe.sharding == "off" or recipe.why_not_sharded() is not None:
        return device
    free = memory.available(device)
    large = free is not None and PREPARED * parameters > free
    return torch.device("cpu") if recipe.sharding == "on" or large else device


def dtype_at(place: torch.device, device: Device) -> torch.dtype:
    """Return in which dtype a model that is to train on `device` looks at its examples while it is at `place`.

    A CPU need not have the units that the device has: without them bfloat16 takes many times as long as float32.
    """
    if place == device.device or device.dtype is torch.float32:
        return device.dtype
    return devices.fast_dtype(place)


def chosen(
    recipe: AnyRecipe, ranks: Ranks | Alone, device: torch.device, held: bool, estimate: memory.Estimate | None
) -> bool:
    """Return whether the processes share the model: the same to all of them.

    `held`: the weights are on `device`. `estimate`: of a process that has the whole model.
    """
    if ranks.count == 1 or recipe.sharding == "off" or recipe.why_not_sharded() is not None:
        return False
    free = memory.available(device)
    sharing = ranks.count if device.type == "cpu" else 1
    fits = held if estimate is None else estimate.fits(None if free is None else free // sharing)
    return any(ranks.gather("sharding", recipe.sharding == "on" or not fits))


def memory_of(model: PreTrainedModel, dtype: torch.dtype, device: torch.device, rank: int, count: int) -> memory.Shards:
    """Return what process `rank` of `count` holds of a model that they share."""
    plain = rank == 0 and device.type == "cpu"  # it is in main memory always
    return memory.Shards.of(model, tuning.layers_of(model), dtype, count, plain, scores=rank == 0)


def told(recipe: AnyRecipe, ranks: int, sharded: bool) -> dict[str, Any]:
    """Return what the plan says of how the processes hold the model; nothing where there is one."""
    if ranks == 1:
        return {}
    if sharded:
        why = "asked for in the recipe" if recipe.sharding == "on" else "the whole does not fit each of them"
        return {"sharding": {"choice": "on", "reason": f"each of {ranks} has a part of every tensor (FSDP2): {why}"}}
    why = "the whole fits"
    if recipe.sharding == "off":
        why = "asked for in the recipe"
    elif (reason := recipe.why_not_sharded()) is not None:
        why = f"shards do not go with {reason.partition('. Type')[0].partition('. Leave')[0]}"
    return {"sharding": {"choice": "off", "reason": f"each of {ranks} has the whole model (DDP): {why}"}}


class Whole:
    """Every process has the whole model; or there is but one."""

    def __init__(self, model: PreTrainedModel, optimizer: Optimizer, dtype: torch.dtype, ranks: Ranks | None) -> None:
        self.model: torch.nn.Module = model
        self._plain = model
        self.optimizer = optimizer
        self.dtype = dtype  # of autocast, or of the weights
        self.reduce: Reduce | None = ranks.sum_gradients if ranks else None
        self.recorded: Steps | None = None  # what launches passes on a GPU at once, where that is quicker
        self._saves = ranks is None or ranks.rank == 0

    def loss(self, loss_of: LossOf) -> LossOf:
        """Return what gives the loss of a micro-batch."""
        return loss_of

    def even(self, step: Step) -> Step:
        """Return `step` as this process computes it."""
        return step

    def due(self, now: bool) -> bool:
        """Return whether a checkpoint is saved `now`."""
        return now

    def allocate(self) -> None:
        """Take the memory that the optimiser's first step would take; gradients are there."""
        optimizers.allocate(self.optimizer)

    def collect(self) -> None:
        """Bring what was trained to the plain model."""

    @contextlib.contextmanager
    def scored(self, *, exactly: bool = False) -> Iterator[None]:
        """Have the plain model where it can be computed with, in float32 if `exactly`; in the first process alone."""
        yield

    def load(self, checkpoint: Path, scaler: torch.amp.GradScaler) -> dict[str, Any]:
        """Go on from `checkpoint`; return its progress."""
        return checkpoints.load(checkpoint, self._plain, self.optimizer, scaler)

    def save(self, folder: Path, progress: dict[str, Any], scaler: torch.amp.GradScaler) -> bool:
        """Write a checkpoint; return whether this process did."""
        if self._saves:
            checkpoints.save(folder, self._plain, self.optimizer, progress, scaler)
        return self._saves

    def end(self) -> None:
        """Give back what only training needs."""
        if self.recorded is not None:
            self.recorded.drop()
            self.recorded = None
            optimizers.forget(self.optimizer)
            torch.cuda.empty_cache()
        if compiling.is_used(self._plain):
            compiling.leave(self._plain)


class Sharded:
    """Each process has a shard of every tensor. To be made when the processes have joined; `model` is on the CPU.

    In the first process `model` stays as it is and gets the trained values with `collect`; in the others it becomes the
    shards, and is of no use by itself.
    """

    recorded = None

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Settings,
        *,
        device: torch.device,
        dtype: torch.dtype,
        ranks: Ranks,
        checkpoint: Path | None = None,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._ranks, self._device, self._plain = ranks, device, model
        self._scaled = dtype is torch.float16
        lowered = torch.bfloat16 if dtype is torch.bfloat16 else None
        self.dtype = torch.float32 if lowered else dtype  # what is gathered has its dtype already
        self._scoring_dtype = lowered or torch.float32
        if checkpoint is not None:
            checkpoints.load_weights(checkpoint / checkpoints.MODEL, model)
        memory.without_holes()  # gathering leaves more of them than it gains
        shards = copy.deepcopy(model) if ranks.rank == 0 else model
        self._part = _Part(shards)
        _shard(self._part, init_device_mesh(device.type, (ranks.count,)), lowered)
        self.model: torch.nn.Module = shards
        self.optimizer: ShardedOptimizer = ShardedOptimizer(shards, settings)

    def loss(self, loss_of: LossOf) -> LossOf:
        def of(_: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
            result: torch.Tensor = self._part(loss_of, tensors)
            return result

        return of

    def even(self, step: Step) -> Step:
        """Return `step` with as many micro-batches as any process has; `step.micro` must not be empty in the trial."""
        most = self._ranks.most(len(step.micro))
        if step.micro:
            self._spare = min(step.micro, key=lambda tensors: tensors["input_ids"].numel())
        more = most - len(step.micro)
        return replace(step, micro=step.micro + [self._spare] * more, weights=step.weights + [0.0] * more)

    def due(self, now: bool) -> bool:
        return self._ranks.agree(now)

    def reduce(self, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Hand the shards' gradients, which are summed already, to the optimiser; return the sum of the losses."""
        self.optimizer.take()
        if self._scaled and self._ranks.agree(not self.optimizer.is_finite()):
            self.optimizer.spoil()  # one process has seen an overflow: all leave out the step
        summed = loss.detach().clone().reshape(1)
        dist.all_reduce(summed)
        return summed[0]

    def allocate(self) -> None:
        self.optimizer.take()
        optimizers.allocate(self.optimizer)

    def collect(self) -> None:
        kept = dict(self._plain.named_parameters()) if self._ranks.rank == 0 else {}
        for name, parameter in self.optimizer.shards.items():
            whole = parameter.detach().full_tensor()
            if kept:
                kept[name].data.copy_(whole)

    @contextlib.contextmanager
    def scored(self, *, exactly: bool = False) -> Iterator[None]:
        if self._ranks.rank:
            yield
            return
        dtype = torch.float32 if exactly and self._has_room_for_float32() else self._scoring_dtype
        parameters: list[torch.Tensor] = list(self._plain.parameters())
        tensors = [*parameters, *self._plain.buffers()]
        kept = [each.data for each in tensors]
        for number, each in enumerate(tensors):  # buffers (rotary frequencies) stay as exact as they are
            lowers = number < len(parameters) and each.is_floating_point()
            each.data = each.data.to(self._device, dtype if lowers else None)
        try:
            yield
        finally:
            for each, data in zip(tensors, kept, strict=True):
                each.data = data
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _has_room_for_float32(self) -> bool:
        free = memory.available(self._device)
        needed = sum(each.numel() * 4 for each in self._plain.parameters())
        return self._device.type == "cpu" or free is None or 1.2 * needed < free

    def load(self, checkpoint: Path, scaler: torch.amp.GradScaler) -> dict[str, Any]:
        """Go on from `checkpoint`, whose weights were there before the model was cut."""
        self.optimizer.load(load_file(checkpoint / checkpoints.OPTIMIZER))
        return checkpoints.load_progress(checkpoint, scaler)

    def save(self, folder: Path, progress: dict[str, Any], scaler: torch.amp.GradScaler) -> bool:
        self.collect()
        kept = self.optimizer.gathered()
        if self._ranks.rank == 0:
            checkpoints.save(folder, self._plain, self.optimizer, progress, scaler, kept)
        return self._ranks.rank == 0

    def end(self) -> None:
        self.model = self._plain
        del self._part, self.optimizer
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class _Part(torch.nn.Module):
    """What is gathered as one and stays gathered for a pass: all but the layers. Its call gives the loss."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_of: LossOf, tensors: Tensors) -> torch.Tensor:
        return loss_of(self.model, tensors)


def _shard(part: _Part, mesh: Any, lowered: torch.dtype | None) -> None:
    """Cut every tensor of `part` along its first axis, in place; layers and the rest are gathered in turn."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    model: Any = part.model
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in tuning.layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(part, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are shares of the step's: they are summed, not averaged
            module.set_force_sum_reduction_for_comms(True)


class ShardedOptimizer(Chain):
    """AdamW on the values that this process has. `shards` are the model's trained tensors by name, cut."""

    def __init__(self, model: torch.nn.Module, settings: Settings) -> None:
        self.shards: dict[str, DTensor] = {name: each for name, each in model.named_parameters() if each.requires_grad}
        # Plain tensors that share their memory with the shards.
        self._mine = {name: torch.nn.Parameter(each.to_local().detach()) for name, each in self.shards.items()}
        holder = torch.nn.ParameterList(each for each in self._mine.values() if each.numel())
        made = make_optimizer(holder, settings)
        assert isinstance(made, torch.optim.Optimizer)
        super().__init__(made)

    def take(self) -> None:
        """Let each plain tensor have its shard's gradient; none counts as zero."""
        for name, shard in self.shards.items():
            mine = self._mine[name]
            mine.grad = torch.zeros_like(mine) if shard.grad is None else shard.grad.to_local()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for shard in self.shards.values():
            shard.grad = None
        for mine in self._mine.values():
            mine.grad = None

    def clip(self, most: float) -> float:
        """Return the L2 norm of the gradient over all processes, and make it at most `most`."""
        gradients = self._gradients()
        squares = torch.stack([each.float().pow(2).sum() for each in gradients]).sum()
        dist.all_reduce(squares)
        norm = squares.sqrt()
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
        return float(norm)

    def is_finite(self) -> bool:
        return all(bool(each.isfinite().all()) for each in self._gradients())

    def spoil(self) -> None:
        """Make the gradient infinite, so that the scaler leaves out the step."""
        self._gradients()[0].view(-1)[0] = float("inf")

    def _gradients(self) -> list[torch.Tensor]:
        return [each.grad for each in self._mine.values() if each.grad is not None and each.numel()]

    def gathered(self) -> Tensors:
        """Return what `optimizer.state` returns of a whole model; every process has to ask."""
        from torch.distributed import tensor as tensors

        kept: Tensors = {}
        inner = self.parts[0]
        for name, shard in self.shards.items():
            mine = self._mine[name]
            for key in ("exp_avg", "exp_avg_sq"):
                local = inner.state[mine][key] if mine in inner.state else torch.zeros_like(mine)
                whole = tensors.DTensor.from_local(
                    local,
                    shard.device_mesh,
                    [tensors.Shard(0)],
                    run_check=False,
                    shape=shard.shape,
                    stride=shard.stride(),
                ).full_tensor()
                kept[f"{key}.{name}"] = whole.to("cpu").contiguous()
            steps = [values["step"] for values in inner.state.values()]
            kept[f"step.{name}"] = steps[0].detach().to("cpu").clone() if steps else torch.zeros(())
        return kept

    def load(self, kept: Tensors) -> None:
        """Put back this process's part of what `gathered` has returned."""
        for name, shard in self.shards.items():
            mine = self._mine[name]
            if not mine.numel():
                continue
            rank, count = shard.device_mesh.get_local_rank(), shard.device_mesh.size()
            state = self.parts[0].state[mine]
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = kept[f"{key}.{name}"].chunk(count)[rank].to(mine.device).clone()
            state["step"] = kept[f"step.{name}"].to(mine.device).clone()
