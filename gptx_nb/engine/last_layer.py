"""A decoder whose last layer is computed in full only for the tokens whose states are asked for.

A classifier reads the state of each text's last token, a model that learns to write those before its targets. The
other tokens' keys and values are needed in the last layer, but what follows its attention, two thirds to three
quarters of the layer's products, serves nobody, forward or back. What is asked for is the same but for rounding.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch

from gptx_nb.engine import dropout

# Layers that add attention(norm(x)) and then mlp(norm(x)) to x, by the names of these four. Each is tested.
_LLAMA = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
KNOWN = {
    "GPT2Block": ("ln_1", "attn", "ln_2", "mlp"),
    **{f"{name}DecoderLayer": _LLAMA for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Starcoder2")},
}

MOST = 0.5  # share of the tokens that are asked for: for more, what is put back into its place takes what is spared

_now = threading.local()


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Let this thread compute last layers whole for a while, as where a model is cut among processes."""
    _now.whole = True
    try:
        yield
    finally:
        _now.whole = False


def spares(decoder: Any) -> bool:
    """Whether `decoder` can do without a part of its last layer; one with forward hooks is computed whole.

    Only on a CPU: a GPU is given rows that are filled up, of which one place may be asked for several times.
    """
    last = layers(decoder)[-1]
    if getattr(_now, "whole", False) or next(last.parameters()).device.type != "cpu":
        return False
    return type(last).__name__ in KNOWN and not last._forward_hooks and not last._forward_pre_hooks


def spared(decoder: Any, asked: float) -> torch.nn.Module | None:
    """Return what is computed for a share `asked` of the tokens alone, those whose states are asked for."""
    if asked > MOST or not spares(decoder):
        return None
    last = layers(decoder)[-1]
    mlp: torch.nn.Module = getattr(last, KNOWN[type(last).__name__][-1])
    return mlp


def only(decoder: Any, places: torch.Tensor) -> Any:
    """Return a decoder with the same layers that gives right states for the tokens `places` alone, of one row.

    `places`: int64, none twice. It is `decoder` itself where that `spares` nothing.
    """
    if not spares(decoder):
        return decoder
    found = copy.copy(decoder)
    every = layers(decoder)
    found._modules = {
        name: torch.nn.ModuleList([*every[:-1], _Last(every[-1], places)]) if part is every else part
        for name, part in decoder._modules.items()
    }
    return found


def layers(decoder: Any) -> torch.nn.ModuleList:
    """Return the layers of `decoder`."""
    found: torch.nn.ModuleList = decoder.h if hasattr(decoder, "h") else decoder.layers
    return found


class _Last(torch.nn.Module):
    """A layer, for packed texts without a cache: (1, tokens, width) to the same, right at `places`."""

    def __init__(self, layer: torch.nn.Module, places: torch.Tensor) -> None:
        super().__init__()
        self._layer, self._places = [layer], places  # in a list, as it is no part of this module

    def forward(self, hidden: torch.Tensor, *_: Any, **more: Any) -> torch.Tensor:
        layer: Any = self._layer[0]
        if layer.training and layer.gradient_checkpointing:  # as transformers' layers do
            again: torch.Tensor = layer._gradient_checkpointing_func(functools.partial(self._compute, **more), hidden)
            return again
        return self._compute(hidden, **more)

    def _compute(self, hidden: torch.Tensor, **more: Any) -> torch.Tensor:
        layer, places = self._layer[0], self._places
        lean: Any = getattr(layer, "lean", None)
        if lean is not None and lean.serves and not layer.training:
            computed: torch.Tensor = lean(hidden, asked=places, **more)
            return computed
        before, attention, between, mlp = (getattr(layer, name) for name in KNOWN[type(layer).__name__])
        mixed = attention(before(hidden), **{**more, "past_key_values": None, "attention_mask": None})[0]
        asked = mixed.index_select(1, places) + hidden.index_select(1, places)
        normed = between(asked)
        with dropout.at(places, hidden.shape[1]):  # chance, too, is as in the whole layer
            asked = asked + mlp(normed)
        return hidden.to(asked.dtype).index_copy(1, places, asked)
