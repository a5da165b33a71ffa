"""The training loop, readable from top to bottom. It knows neither tasks nor files: both come in as functions.

Every step is a pure function of the weights, the optimiser state and (seed, step): `batch_at(step)` gives its batch,
and the generators are seeded anew. So a run that goes on from a checkpoint repeats a run that was never cut, bit for
bit on a CPU.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gptx_nb.engine import compiling, dropout
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine import streams as parallel
from gptx_nb.engine.device import is_out_of_memory
from gptx_nb.engine.graphs import Steps
from gptx_nb.engine.optimizer import Optimizer

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know. Learning rates are per step; `warmup` and `decay` are fractions of all steps."""

    steps: int
    learning_rate: float
    warmup: float = 0.1
    decay: str = "linear"  # to zero: "linear", "cosine", or "wsd": constant, then linear in the last `cooldown`
    cooldown: float = 0.2
    optimizer: str = "adamw"  # or "adamw-8bit", "muon"
    weight_decay: float = 0.01
    clip: float = 1.0  # largest L2 norm of the whole gradient
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eval_every: int | None = None  # steps; None: only at the end
    save_every_seconds: float = 120.0


class Batch(Protocol):
    """What `batch_at` returns: the micro-batches of one optimiser step."""

    @property
    def micro(self) -> list[Tensors]: ...
    @property
    def tokens(self) -> int: ...
    @property
    def weights(self) -> list[float]: ...  # each micro-batch's share of the step's mean loss; sums to 1
    @property
    def streams(self) -> int: ...  # how many of them are computed at once


@dataclass(frozen=True)
class Stop:
    """How the loop ended: `step` steps are done; `early` when it was asked to stop."""

    step: int
    early: bool


def learning_rate_at(step: int, settings: Settings) -> float:
    """Return the learning rate of `step` (0 is the first): linear warm-up, then the decay that `settings` names.

    "wsd" (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) lets a run that is still stable be made longer.
    """
    warmup = round(settings.warmup * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    if settings.decay == "wsd":
        left = min(1.0, (settings.steps - step) / max(1.0, settings.cooldown * settings.steps))
    elif settings.decay == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * done))
    else:
        left = 1 - done
    return settings.learning_rate * left


def make_optimizer(model: torch.nn.Module, settings: Settings) -> Optimizer:
    """Return the optimiser of `settings` for the float32 parameters of `model` that are trained."""
    make: dict[str, Callable[..., Optimizer]] = {
        "adamw": optimizers.adamw,
        "adamw-8bit": optimizers.adamw_8bit,
        "muon": optimizers.muon,
    }
    return make[settings.optimizer](model, settings.learning_rate, settings.weight_decay, settings.betas)


def arithmetic(
    model: torch.nn.Module, device: torch.device, dtype: torch.dtype
) -> contextlib.AbstractContextManager[Any]:
    """Return what lets matrix products be computed in `dtype`: nothing where the weights have it, else autocast."""
    if dtype is torch.float32 or next(model.parameters()).dtype is dtype:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return what scales the loss in float16, so that small gradients do not vanish; elsewhere it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)


def train(
    model: torch.nn.Module,
    optimizer: Optimizer,
    settings: Settings,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[torch.nn.Module, Tensors], torch.Tensor],
    first_step: int = 0,
    record: Callable[[dict[str, Any]], None],
    evaluate: Callable[[int], None],
    save: Callable[[int], None],
    should_stop: Callable[[], bool],
    scaler: torch.amp.GradScaler | None = None,
    reduce: Callable[[list[torch.nn.Parameter], torch.Tensor], torch.Tensor] | None = None,
    with_less_memory: Callable[[int, BaseException], Batch | None] | None = None,
    due: Callable[[bool], bool] = bool,
    recorded: Steps | None = None,
) -> Stop:
    """Run steps `first_step` to `settings.steps` and return how it ended.

    `loss_of(model, tensors)` gives the mean loss of one micro-batch. `record` receives a dictionary a step, `evaluate`
    is called with the number of steps done at the set distance and at the end, `save` whenever a checkpoint is due.
    Weights are float32 and `dtype` is used by autocast, float16 with loss scaling, unless they have it already (see
    precision.py). What `scaler` has learned about the scale is part of a checkpoint; None: a new one. Where memory runs
    out, `with_less_memory(step, error)` gives the same batch in a way that takes less, or None if there is none; the
    step then begins again, and nothing of it was lost. Where several processes share a step,
    `reduce(parameters, loss)` sums their gradients in place and returns the sum of their losses, and `due(now)` says
    whether a checkpoint is due where all of them save it. `recorded`: what launches passes on a GPU at once.
    """
    scaler = scaler or make_scaler(device, dtype)
    stepping: Any = optimizer  # a Chain serves too
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    saved_at = time.monotonic()

    for step in range(first_step, settings.steps):
        if should_stop():
            save(step)
            return Stop(step, early=True)

        started = time.perf_counter()
        seed_step(settings.seed, step)
        rate = learning_rate_at(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate

        batch = batch_at(step)
        while True:
            try:
                losses = gradient(model, batch, loss_of, device, dtype, scaler, (settings.seed, step), recorded)
                break
            except (RuntimeError, MemoryError) as error:
                if recorded is not None and recorded.on and is_out_of_memory(error):
                    recorded.drop()  # what it holds may be enough
                    optimizers.forget(optimizer)
                else:
                    less = with_less_memory(step, error) if with_less_memory and is_out_of_memory(error) else None
                    if less is None:
                        raise
                    batch = less
            optimizer.zero_grad(set_to_none=True)
            _give_back_memory(device)
        # A process without rows adds nothing; its scaler has to have seen something, though.
        step_loss = torch.stack(losses).sum() if losses else scaler.scale(torch.zeros((), device=device))
        if reduce is not None:
            step_loss = reduce(parameters, step_loss)
        scaler.unscale_(stepping)
        norm = optimizers.clip(optimizer, parameters, settings.clip)
        scaler.step(stepping)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        loss_value = float(step_loss)
        seconds = time.perf_counter() - started
        record(
            {
                "step": step + 1,
                "loss": loss_value,
                "learning_rate": rate,
                "gradient_norm": float(norm),
                "tokens": batch.tokens,
                "seconds": seconds,
            }
        )
        if not math.isfinite(loss_value):
            raise FloatingPointError(
                f"the loss became {loss_value} at step {step + 1}: a smaller learning_rate "
                f"(now {settings.learning_rate:g}) usually avoids this"
            )

        done = step + 1
        if done == settings.steps or (settings.eval_every and done % settings.eval_every == 0):
            with compiling.plainly():
                evaluate(done)
            model.train()
        if done < settings.steps and due(time.monotonic() - saved_at >= settings.save_every_seconds):
            save(done)
            saved_at = time.monotonic()

    return Stop(settings.steps, early=False)


def gradient(
    model: torch.nn.Module,
    batch: Batch,
    loss_of: Callable[[torch.nn.Module, Tensors], torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler,
    seeds: tuple[int, int],
    recorded: Steps | None = None,
) -> list[torch.Tensor]:
    """Add the (scaled) gradient of `batch` to the model's parameters; return each micro-batch's share of the mean loss.

    The shares stay on the device until the step is done: reading one makes a GPU wait.
    """
    if recorded is not None and recorded.on:
        recorded.begin()
        return [recorded.add(tensors, weight) for tensors, weight in zip(batch.micro, batch.weights, strict=True)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = [torch.empty(())] * len(batch.micro)

    def loss_at(number: int) -> torch.Tensor:
        dropout.seed(*seeds, number)
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.micro[number].items()}
        with arithmetic(model, device, dtype):
            loss = loss_of(model, tensors) * batch.weights[number]
        losses[number] = loss.detach()
        scaled: torch.Tensor = scaler.scale(loss)
        return scaled

    parallel.backward([functools.partial(loss_at, number) for number in range(len(losses))], parameters, batch.streams)
    return losses


def _give_back_memory(device: torch.device) -> None:
    """Free what an interrupted step has left: cycles of Python objects, and blocks that CUDA's allocator keeps."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one step (dropout is the only user), so that no generator state need be saved."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)
