"""A decoder whose last layer is computed in full only for the tokens whose states are asked for.

A classifier reads the state of each text's last token, a model that learns to write those before its targets. The
other tokens' keys and values are needed in the last layer, but what follows its attention, two thirds to three
quarters of the layer's products, serves nobody, forward or back. What is asked for is the same but for rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

# Layers that add attention(norm(x)) and then mlp(norm(x)) to x, by the names of these four. Each is tested.
_LLAMA = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
KNOWN = {
    "GPT2Block": ("ln_1", "attn", "ln_2", "mlp"),
    **{f"{name}DecoderLayer": _LLAMA for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Starcoder2")},
}

MOST = 0.5  # share of the tokens: for more, what is put back into its place takes about what is spared


def spares(decoder: Any) -> bool:
    """Whether `decoder` can do without a part of its last layer; a layer that somebody hooks is computed whole."""
    last = layers(decoder)[-1]
    on_cpu = next(last.parameters()).device.type == "cpu"  # a GPU launches more and computes less: not tried
    return on_cpu and type(last).__name__ in KNOWN and not last._forward_hooks and not last._forward_pre_hooks


def spared(decoder: Any, asked: float) -> torch.nn.Module | None:
    """Return what is computed for a share `asked` of the tokens alone, those whose states are asked for."""
    if asked > MOST or not spares(decoder):
        return None
    last = layers(decoder)[-1]
    mlp: torch.nn.Module = getattr(last, KNOWN[type(last).__name__][-1])
    return mlp


def only(decoder: Any, places: torch.Tensor, tokens: int) -> Any:
    """Return a decoder with the same layers that gives right states for the tokens `places` alone, of one row.

    `places`: int64, none twice; `tokens`: how many the row has. It is `decoder` itself where nothing is spared.
    """
    if len(places) > MOST * tokens or not spares(decoder):
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
        layer, places = self._layer[0], self._places
        lean: Any = getattr(layer, "lean", None)
        if lean is not None and lean.serves and not layer.training:
            computed: torch.Tensor = lean(hidden, asked=places, **more)
            return computed
        before, attention, between, mlp = (getattr(layer, name) for name in KNOWN[type(layer).__name__])
        mixed = attention(before(hidden), **{**more, "past_key_values": None, "attention_mask": None})[0]
        asked = mixed.index_select(1, places) + hidden.index_select(1, places)
        asked = asked + mlp(between(asked))
        return hidden.to(asked.dtype).index_copy(1, places, asked)
