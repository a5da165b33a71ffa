"""Short texts one after another in a single row: no padding is computed but inside attention.

A text sees only itself: positions begin anew with each, and attention is taken text by text. It is the models' own
code that runs; only its attention is ours, registered by name with transformers (`AttentionInterface`). Inside it, the
texts of a row are laid side by side, each filled up to the longest by repeating its last token: under a causal mask no
token looks at what follows it, so the filling changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from gptx_nb.engine import dropout as dropouts

Tensors = dict[str, torch.Tensor]

ATTENTION = "gptx_packed"
PLACE = 2**20  # from here on attention draws its dropout: no model has so many modules

# Decoders whose attention is plain and causal, and whose code hands what we give it on to the attention. Each is tested
# to give the logits of one text at a time.
PACKABLE = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi", "phi3", "starcoder2")


def pack(rows: Sequence[Sequence[int]], empty: int) -> Tensors:
    """Put token rows into one; a row without tokens gets the token `empty`, so that it has a last one.

    {"input_ids", "position_ids" (1, tokens); "spread" (texts * longest,): for each place of the side-by-side layout
    the token that stands there; "gather" (tokens,): the way back; "last" (texts,): each text's last token}, all int64.
    """
    filled = [list(row) or [empty] for row in rows]
    lengths = torch.tensor([len(row) for row in filled])
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths
    last = starts + lengths - 1
    text_of = torch.repeat_interleave(torch.arange(len(filled)), lengths)
    position = torch.arange(int(lengths.sum())) - starts[text_of]
    return {
        "input_ids": torch.tensor([token for row in filled for token in row])[None],
        "position_ids": position[None],
        "spread": torch.minimum(starts[:, None] + torch.arange(longest), last[:, None]).reshape(-1),
        "gather": text_of * longest + position,
        "last": last,
    }


def use(model: PreTrainedModel) -> str | None:
    """Give `model` our attention, if it can do with it; else return why not, and leave it as it is."""
    reason = why_not(model)
    if reason is None:
        model.set_attn_implementation(ATTENTION)
    return reason


def why_not(model: PreTrainedModel) -> str | None:
    """Say why texts cannot be packed for `model`, or None if they can."""
    config = model.config
    if config.model_type not in PACKABLE or not getattr(model, "_supports_attention_backend", False):
        return f"the attention of {config.model_type} models cannot be replaced"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return f"its attention sees {window} tokens only"
    if any(getattr(config, name, False) for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")):
        return "its attention is scaled in a way of its own"
    return None


def states(model: PreTrainedModel, tensors: Tensors) -> torch.Tensor:
    """Return the last hidden states (tokens, width) of the model's decoder for what `pack` has made.

    The model must have been given our attention (see `use`).
    """
    return decode(model.base_model, tensors)


def decode(decoder: Any, tensors: Tensors, **more: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states (tokens, width) of `decoder`; `more` is handed on to each of its layers."""
    output = decoder(
        input_ids=tensors["input_ids"],
        position_ids=tensors["position_ids"],
        use_cache=False,
        spread=tensors["spread"],
        gather=tensors["gather"],
        texts=tensors["last"].shape[0],
        **more,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden.squeeze(0)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    spread: torch.Tensor,
    gather: torch.Tensor,
    texts: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of (1, heads, tokens, size) within each text; `key` and `value` may have fewer heads."""
    heads, shared = query.shape[1], key.shape[1]
    groups = heads // shared
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def side_by_side(states: torch.Tensor) -> torch.Tensor:  # (heads, texts, longest, size)
        return states.squeeze(0).index_select(1, spread).view(states.shape[1], texts, -1, states.shape[3])

    q, k, v = side_by_side(query), side_by_side(key), side_by_side(value)
    longest, size = q.shape[2:]
    if query.device.type == "cpu":
        # On rows this short two batched products and a softmax beat the CPU's fused kernel. Heads that share a key
        # stand below each other, so that it need not be repeated.
        q = q.view(shared, groups, texts, longest, size).transpose(1, 2).reshape(shared, texts, groups * longest, size)
        scores = torch.matmul(q * scale, k.transpose(2, 3))
        above = torch.ones(longest, longest, dtype=torch.bool).triu_(1)
        scores.view(shared, texts, groups, longest, longest).masked_fill_(above, float("-inf"))
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        if dropout > 0:
            weights = dropouts.drop(weights, dropout, PLACE + int(getattr(module, "layer_idx", None) or 0))
        mixed = torch.matmul(weights, v).view(shared, texts, groups, longest, size).transpose(1, 2)
    else:
        q, k, v = (each.transpose(0, 1) for each in (q, k, v))
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scale
        ).transpose(0, 1)
    packed = mixed.reshape(heads, texts * longest, size).index_select(1, gather)  # (heads, tokens, size)
    return packed.transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, _attention)
