"""Weights that stay as they are in 4 bits, for lora where a model is too large for a GPU otherwise (QLoRA).

NormalFloat-4 with doubly quantised scales (Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes. The updates
and the head are trained in full precision. Predictions are made with the base model as it is, so that the run's own
scores, which the quantised one gives, may differ a little from those of what is saved.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gptx_nb.engine import tuning
from gptx_nb.errors import DeviceError, ModelError, RecipeError


def require(device: torch.device) -> None:
    """Raise UsageError where nothing is gained by it, or bitsandbytes is not installed."""
    if device.type != "cuda":
        raise DeviceError(
            f"quantize: 4bit saves memory of NVIDIA GPUs, and this run trains on {device.type}. Leave it out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            "quantize: 4bit needs bitsandbytes, which is not installed. Type `%pip install 'gptx-nb[bitsandbytes]'` in "
            "a cell, and run this one again; or leave it out"
        )


def to_4bit(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let the matrices of every layer be quantised as soon as `model` goes to a device; products are in `dtype`.

    Embeddings, norms and the head stay. Raises ModelError for GPT-2, whose layers are of a kind of their own.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    layers = tuning.layers_of(model)
    if any(isinstance(module, Conv1D) for module in layers.modules()):
        raise ModelError(
            f"quantize: the layers of a {model.config.model_type} model cannot be put into 4 bits. Take another base, "
            "such as `model: smollm2-360m`, or leave quantize out"
        )
    for name, module in list(layers.named_modules()):
        if isinstance(module, torch.nn.Linear):
            bias = module.bias is not None
            small = Linear4bit(
                module.in_features, module.out_features, bias, compute_dtype=dtype, quant_type="nf4", device="meta"
            )
            small.weight = Params4bit(module.weight.detach(), quant_type="nf4", module=small)
            small.bias = module.bias
            parent, _, child = name.rpartition(".")
            setattr(layers.get_submodule(parent), child, small)


@contextlib.contextmanager
def without_values(model: torch.nn.Module) -> Iterator[None]:
    """Let what is in 4 bits compute with the shapes that bitsandbytes' kernels have, so that memory can be estimated.

    Its own tensors cannot be without values.
    """
    quantised: list[Any] = [each for each in model.modules() if type(each).__name__ == "Linear4bit"]
    for module in quantised:
        state = getattr(module.weight, "quant_state", None)
        kept = torch.float32 if state is None else state.dtype  # what its values were
        module.forward = functools.partial(_shapes_of, module, kept)
    try:
        yield
    finally:
        for module in quantised:
            del module.forward


def _shapes_of(module: Any, kept: torch.dtype, states: torch.Tensor) -> torch.Tensor:
    shape = (module.out_features, module.in_features)
    product: torch.Tensor = _Product.apply(states.to(module.compute_dtype), shape, kept)
    return (product if module.bias is None else product + module.bias.to(product.dtype)).to(states.dtype)


class _Product(torch.autograd.Function):
    """A product with a weight that is made whole for it, forward and back, and is kept in 4 bits only."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, shape: tuple[int, int], kept: torch.dtype) -> torch.Tensor:
        ctx.shape, ctx.kept = shape, kept
        return states @ _whole(states, shape, kept).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0] @ _whole(gradients[0], ctx.shape, ctx.kept), None, None


def _whole(like: torch.Tensor, shape: tuple[int, int], kept: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=kept, device=like.device).to(like.dtype)
