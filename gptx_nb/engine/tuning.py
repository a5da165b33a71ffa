"""Which part of a model is trained: all of it, low-rank updates beside it, its top layers, or its head alone.

    full     every weight
    lora     low-rank updates of the matrices in every layer (Hu et al. 2021, arXiv:2106.09685), and the head
    top:K    the last K layers, the final norm and the head
    head     the head alone

With `top:K` and `head` what lies below is the same in every epoch. `FrozenPart` computes it once for every text and
keeps it, so that an epoch costs only the part that is trained. Dropout in the frozen part is off, as nothing learns
there.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gptx_nb.engine import batches, last_layer, packing
from gptx_nb.engine import streams as parallel
from gptx_nb.engine.ragged import Ragged
from gptx_nb.errors import ModelError

Tensors = dict[str, torch.Tensor]

LORA_RANK = 16
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # peft's name
TOP = re.compile(r"top:([1-9]\d*)")


@dataclass(frozen=True)
class Tuning:
    """What was made trainable: `trained` weights. The lowest `frozen_layers` of the `layers` need no gradient."""

    method: str
    trained: int
    frozen_layers: int
    layers: int

    @property
    def has_frozen_part(self) -> bool:
        """Whether everything below some layer is the same in every epoch."""
        return self.method == "head" or self.frozen_layers > 0


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the decoder's layers."""
    return last_layer.layers(model.base_model)


def flops_per_token(model: PreTrainedModel, asked: float = 1.0) -> float:
    """Return what training needs for a token at least: the matrix products of the layers that a gradient passes.

    6 FLOPs for each trained weight (2 forward, 4 backward) and 4 for one that a gradient only passes. Attention's own
    products, norms, embeddings and the optimiser count nothing. `asked`: the share of the tokens whose last states are
    asked for, as `last_layer` has it.
    """
    total = 0.0
    for layer in layers_of(model):
        matrices = _matrices(layer)
        if any(each.requires_grad for each in matrices):
            total += _flops(matrices)
    spared = last_layer.spared(model.base_model, asked) if total else None
    return total if spared is None else total - (1 - asked) * _flops(_matrices(spared))


def _flops(matrices: list[torch.nn.Parameter]) -> float:
    return float(sum((6 if each.requires_grad else 4) * each.numel() for each in matrices))


def _matrices(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [each for each in module.parameters() if each.ndim >= 2]


def forward_share(model: PreTrainedModel, *, step_spared: bool, forward_spared: bool) -> float:
    """Return what a way forward takes of a step's matrix products, as `flops_per_token` counts them.

    `step_spared`, `forward_spared`: the frozen part is not computed in the step, in the way forward.
    """
    passed, all_layers = 0.0, 0.0
    for layer in layers_of(model):
        matrices = _matrices(layer)
        size = 2.0 * sum(each.numel() for each in matrices)
        all_layers += size
        passed += size if any(each.requires_grad for each in matrices) else 0
    step = (passed if step_spared else all_layers) + flops_per_token(model) - passed
    forward = passed if forward_spared else all_layers
    return forward / step if step else 1 / 3


def prepare(model: PreTrainedModel, method: str, seed: int = 0) -> Tuning:
    """Make the part of `model` that `method` names trainable, in place. New weights come from `seed`.

    A classifier's head is always trained. A language model's output layer belongs to its embedding: it is trained with
    every weight, or not at all.
    """
    layers = layers_of(model)
    frozen = 0
    if method == "lora":
        _add_low_rank(model, seed)
    elif method != "full":
        model.requires_grad_(False)
        if match := TOP.fullmatch(method):
            frozen = max(0, len(layers) - int(match[1]))
            for part in (*layers[frozen:], _final_norm(model)):
                part.requires_grad_(True)
        else:
            frozen = len(layers)
        for module in (model.base_model, *layers[:frozen]):
            _without_dropout(module, deep=module is not model.base_model or frozen == len(layers))
    head: Any = getattr(model, "score", None)
    if head is not None:
        head.requires_grad_(True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Tuning(method, trained, frozen, len(layers))


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model` as a plain one: low-rank updates are added to their matrices, everything else stays."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
            parent_name, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(attribute, None)
    return model


def adapter(model: PreTrainedModel, base: str, revision: str | None) -> tuple[Any, Tensors]:
    """Return what peft writes of `model` as an adapter of `base`: its configuration, and its tensors by their names.

    Raises ModelError where more is trained than an adapter holds.
    """
    from peft import get_peft_model_state_dict

    held: Any = model
    tensors = {name: each.detach() for name, each in get_peft_model_state_dict(held).items()}
    head = {name: each.detach() for name, each in model.named_parameters() if name.startswith("score.")}
    trained = {name for name, each in model.named_parameters() if each.requires_grad and "lora_" not in name}
    if more := sorted(trained - set(head)):
        raise ModelError(f"save: an adapter cannot hold {more[0]}, which is trained too. Type `save: merged`")
    config = copy.copy(held.peft_config["default"])
    config.task_type = "SEQ_CLS" if head else "CAUSAL_LM"
    config.modules_to_save = ["score"] if head else None
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    return config, {f"base_model.model.{name}": each.cpu().contiguous() for name, each in {**tensors, **head}.items()}


def with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return `model`, a base without updates, merged with the adapter in `folder`.

    Raises ValueError for an adapter that lacks a tensor.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    held: Any = model
    conversions = getattr(model, "_weight_conversions", None)
    held.load_adapter(str(folder), use_safetensors=True)
    held._weight_conversions = conversions  # else the adapter's names for tensors would be saved with them
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as kept:
        there = {name.removeprefix("base_model.model.") for name in kept.keys()}  # noqa: SIM118 (no mapping)
    if missing := {name for name in get_peft_model_state_dict(held) if name not in there}:
        raise ValueError(f"the adapter lacks {min(missing)}")
    head: Any = getattr(model, "score", None)
    if hasattr(head, "modules_to_save"):
        held.score = head.modules_to_save["default"]
    return merge(model)


def _add_low_rank(model: PreTrainedModel, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inside = {
        name.rpartition(".")[2]: module
        for layer in layers_of(model)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    model.requires_grad_(False)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules=sorted(inside),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in inside.values()),
    )
    inject_adapter_in_model(config, model)


def _final_norm(model: PreTrainedModel) -> torch.nn.Module:
    decoder: Any = model.base_model
    for name in ("ln_f", "norm", "final_layernorm"):
        if hasattr(decoder, name):
            found: torch.nn.Module = getattr(decoder, name)
            return found
    raise ValueError(f"{type(decoder).__name__} has no final norm that is known here")


def _without_dropout(module: torch.nn.Module, *, deep: bool) -> None:
    for each in module.modules() if deep else module.children():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0


class _Kept(torch.nn.Module):
    """Stands for all frozen layers: gives what they gave."""

    def forward(self, hidden: torch.Tensor, *_: Any, kept: torch.Tensor, **__: Any) -> torch.Tensor:
        return kept


class FrozenPart:
    """What the frozen part of a packed model gives for each of `rows`, computed once.

    For `head` that is one vector a text, the final state of its last token; for `top:K` a vector a token, what enters
    the first trained layer. float32, in memory, or in `file` where one is given.
    """

    def __init__(self, model: PreTrainedModel, tuning: Tuning, rows: Iterable[Sequence[int]], *, empty: int) -> None:
        self._whole = tuning.frozen_layers == tuning.layers
        self._rows = Ragged(row or [empty] for row in rows)
        self._empty = empty
        self._model = model
        self._tuning = tuning
        self._width: int = model.config.hidden_size
        counts = np.ones(len(self._rows), dtype=np.int64) if self._whole else self._rows.lengths
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._kept: np.ndarray | None = None
        self.upper = None if self._whole else _upper(model, tuning)

    @property
    def bytes(self) -> int:
        """What it takes to keep, in bytes."""
        return int(self._starts[-1]) * self._width * 4

    @property
    def is_kept(self) -> bool:
        """Whether `compute` has been called."""
        return self._kept is not None

    def compute(
        self,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        token_budget: int,
        file: Path | None = None,
        streams: int = 1,
    ) -> None:
        """Run the frozen part over every row; `autocast()` gives the context manager for the arithmetic."""
        shape = (int(self._starts[-1]), self._width)
        kept = np.memmap(file, dtype=np.float32, mode="w+", shape=shape) if file else np.empty(shape, dtype=np.float32)
        caught = threading.local()  # what a thread's forward pass has come to
        hook = None
        if not self._whole:
            first_trained = layers_of(self._model)[self._tuning.frozen_layers]

            def catch(_: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
                caught.states = (positional[0] if positional else named["hidden_states"]).detach()
                raise _Caught

            hook = first_trained.register_forward_pre_hook(catch, with_kwargs=True)

        def states_of(packed: Tensors) -> torch.Tensor:
            on_device = {name: tensor.to(device) for name, tensor in packed.items()}
            with torch.no_grad(), autocast():
                if self._whole:
                    return packing.states_at(self._model.base_model, on_device, "last")
                with contextlib.suppress(_Caught):
                    packing.states(self._model, on_device)
                states: torch.Tensor = caught.states.squeeze(0)
                del caught.states
                return states

        def fill(groups: list[list[int]]) -> None:
            for group in groups:
                values = states_of(packing.pack([self._rows[index] for index in group], self._empty))
                at = 0
                for index in group:
                    start, end = self._starts[index], self._starts[index + 1]
                    kept[start:end] = values[at : at + end - start].float().cpu().numpy()
                    at += end - start

        was_training = self._model.training
        self._model.eval()
        try:
            lengths = self._rows.lengths.tolist()
            groups = batches.by_lengths(lengths, token_budget=token_budget, packed=True, streams=streams)
            parallel.each(fill, [groups[stream::streams] for stream in range(min(streams, len(groups)))])
        finally:
            if hook is not None:
                hook.remove()
            self._model.train(was_training)
        self._kept = kept

    def tensors(self, chosen: Sequence[int]) -> Tensors:
        """Return a micro-batch of the rows `chosen`, in that order: what `logits` takes.

        For `head` {"kept": (texts, width) float32}; else what `packing.pack` gives and {"kept": (1, tokens, width)}.
        """
        assert self._kept is not None
        parts = [self._kept[self._starts[index] : self._starts[index + 1]] for index in chosen]
        kept = torch.from_numpy(np.concatenate(parts))
        if self._whole:
            return {"kept": kept}
        return {**packing.pack([self._rows[index] for index in chosen], self._empty), "kept": kept[None]}

    def logits(self, tensors: Tensors) -> torch.Tensor:
        """Return the logits (texts, labels) of a micro-batch that `tensors` has made."""
        head: Any = self._model.get_submodule("score")
        kept = tensors["kept"].to(head.weight.dtype)
        states = kept if self.upper is None else packing.states_at(self.upper, tensors, "last", kept=kept)
        scored: torch.Tensor = head(states)
        return scored


class _Caught(Exception):
    """The frozen part has given what was wanted; the rest need not run."""


def _upper(model: PreTrainedModel, tuning: Tuning) -> Any:
    """Return the decoder with one stand-in for its frozen layers; the trained ones and the norm are the model's own."""
    decoder: Any = copy.copy(model.base_model)
    decoder._modules = dict(decoder._modules)
    trained = layers_of(model)[tuning.frozen_layers :]
    name = "h" if hasattr(decoder, "h") else "layers"
    decoder._modules[name] = torch.nn.ModuleList([_Kept(), *trained])
    return decoder
