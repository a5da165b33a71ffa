"""Short texts one after another in a single row: no padding is computed but inside attention.

A text sees only itself: positions begin anew with each, and attention is taken text by text. It is the models' own
code that runs; only its attention is ours, registered by name with transformers (`AttentionInterface`). Where there
are kernels for it (`varlen`), they take the row as it is. Elsewhere the texts of a row are laid side by side, each
filled up to the longest by repeating its last token: under a causal mask no token looks at what follows it, so the
filling changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from gptx_nb.engine import dropout as dropouts
from gptx_nb.engine import last_layer, varlen
from gptx_nb.engine.products import ATTENDS_IN

Tensors = dict[str, torch.Tensor]

ATTENTION = "gptx_packed"
PLACE = 2**20  # from here on attention draws its dropout: no model has so many modules

# Tokens of the longest text of a row from which on a CPU's fused kernel is quicker than `_Short`: without a backward
# pass, and with one. (Measured with AMX: 9 heads of 64, in bfloat16 and float32.)
FUSED, FUSED_BACKWARD = 64, 384

LONGEST = 128  # tokens: kernels that are told "starts" are told the longest text as a multiple of so many

# Decoders whose attention is plain and causal, and whose code hands what we give it on to the attention. Each is tested
# to give the logits of one text at a time.
PACKABLE = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi", "phi3", "starcoder2")


def pack(rows: Sequence[Sequence[int]], empty: int) -> Tensors:
    """Put token rows into one; a row without tokens gets the token `empty`, so that it has a last one.

    {"input_ids", "position_ids" (1, tokens); "spread" (texts * longest,): for each place of the side-by-side layout
    the token that stands there; "gather" (tokens,): the way back; "last" (texts,): each text's last token}, all int64;
    and "starts" (texts + 1,) int32: each text's first token, and the number of tokens.
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
        "starts": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
    }


def even(tensors: Tensors) -> Tensors:
    """Return what `pack` has made in one of few shapes, for what is done the same way again and again; results stay.

    Tokens are filled up with those of texts that nobody asks for, to a quarter more at most, and what stands by token
    ("at", "targets") by -100, which counts for nothing; "counts" says which do. Only for kernels that take "starts":
    the layout side by side is not filled up.
    """
    ids, starts, texts = tensors["input_ids"], tensors["starts"], len(tensors["last"])
    tokens, wanted = ids.shape[1], _round(ids.shape[1])
    longest = -(-len(tensors["spread"]) // texts // LONGEST) * LONGEST
    # As many texts as the most that could have to be filled up come to, so that the shape tells nothing else.
    begins = torch.arange(tokens, wanted, longest, dtype=torch.int32)
    more = torch.full((-(-wanted // 4 // longest) + 2,), wanted, dtype=torch.int32)
    more[: len(begins)] = begins
    filled = {
        **tensors,
        "input_ids": torch.nn.functional.pad(ids, (0, wanted - tokens), value=int(ids[0, 0])),
        "position_ids": torch.nn.functional.pad(tensors["position_ids"], (0, wanted - tokens)),
        "starts": torch.cat([starts[:-1], more]),
        "spread": starts.new_zeros(texts * longest),
        "gather": starts.new_zeros(0),
    }
    if "targets" in tensors:
        count = len(tensors["targets"])
        lacking = _round(count) - count
        filled["targets"] = torch.nn.functional.pad(tensors["targets"], (0, lacking), value=-100)
        filled["at"] = torch.nn.functional.pad(tensors["at"], (0, lacking))
        filled["counts"] = (filled["targets"] >= 0).float()
    return filled


def _round(count: int) -> int:
    """Return one of four numbers between two powers of two: the next one that is not less than `count`."""
    step = max(64, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


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


def states_at(decoder: Any, tensors: Tensors, places: str, *, spare: bool = True, **more: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states (places, width) of the tokens that `tensors[places]` names.

    `decoder` is `model.base_model`; `more` as `decode` has it. `spare`: its last layer need not be computed for others
    (`last_layer`). On a CPU no token may be named twice.
    """
    at = tensors[places]
    return decode(last_layer.only(decoder, at) if spare else decoder, tensors, **more)[at]


def decode(decoder: Any, tensors: Tensors, **more: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states (tokens, width) of `decoder`; `more` is handed on to each of its layers."""
    output = decoder(
        input_ids=tensors["input_ids"],
        position_ids=tensors["position_ids"],
        use_cache=False,
        spread=tensors["spread"],
        gather=tensors["gather"],
        texts=tensors["last"].shape[0],
        starts=tensors["starts"] if varlen.is_there(tensors["starts"].device) else None,
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
    starts: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of (1, heads, tokens, size) within each text; `key` and `value` may have fewer heads.

    `starts`: where there are kernels that take it.
    """
    given, kind = query.dtype, query.device.type
    # On the way back there is no autocast, so what it would cast is cast here.
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else given
    dtype = getattr(module, ATTENDS_IN, autocast)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dtype is not given:  # scaled while it is wide; else the scores are, in float32
        query, scale = query * scale, 1.0
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if starts is not None and varlen.fits(query):
        q, k, v = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))
        return varlen.attend(q, k, v, starts, len(spread) // texts, scale, dropout)[None].to(given), None
    learns = torch.is_grad_enabled() and query.requires_grad
    short = kind == "cpu" and (dropout or len(spread) // texts < (FUSED_BACKWARD if learns else FUSED))
    if texts == 1 and not learns and not dropout:  # nothing to lay side by side, which takes longer than the products
        if short and dtype is not torch.float32:  # as beside others, to the last bit: softmax rounds its weights
            q, k, v = (each.transpose(0, 1) for each in (query, key, value))
            mixed = _products(q, k, v, scale, 0.0, PLACE)[0]
            return _beside(mixed, query.shape[1], query.shape[2]).permute(1, 2, 0, 3).to(given), None
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and kind != "cpu":  # no fused kernel of CUDA's takes groups in float32
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        alone = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=key.shape[1] < query.shape[1]
        )
        return alone.transpose(1, 2).to(given), None
    if short:
        place = PLACE + int(getattr(module, "layer_idx", None) or 0)
        mixed = _Short.apply(query, key, value, spread, gather, texts, scale, dropout, place)
        return mixed.transpose(1, 2).to(given), None
    q, k, v = (_side_by_side(each, spread, texts).transpose(0, 1) for each in (query, key, value))
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and (learns or kind != "cpu"):  # without a backward pass a CPU's kernel is quicker with the groups
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    beside = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=k.shape[1] < q.shape[1]
    )
    return _in_a_row(beside.transpose(0, 1), gather).transpose(1, 2).to(given), None


class _Short(torch.autograd.Function):
    """On short texts two batched products and a softmax beat the CPU's fused kernel.

    The way back is written out: what fills a text up gets no gradient, so tokens are taken from their places as they
    were put there, and nothing is added up; and no mask is needed, as hidden weights are 0. Of the weights only those
    in the dtype of the values are kept. (With AMX, 724 tokens: 0.75 times the time of the plain functions.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spread: torch.Tensor,
        gather: torch.Tensor,
        texts: int,
        scale: float,
        dropout: float,
        place: int,
    ) -> torch.Tensor:
        q, k, v = (_side_by_side(each, spread, texts) for each in (query, key, value))
        longest = q.shape[2]
        mixed, q, weights, kept = _products(q, k, v, scale, dropout, place)
        ctx.save_for_backward(q, k, v, weights, kept, gather)
        ctx.scale, ctx.heads = scale, query.shape[1]
        return _in_a_row(_beside(mixed, ctx.heads, longest), gather)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, weights, kept, gather = ctx.saved_tensors
        shared, texts, longest, size = k.shape
        above = gradient.new_zeros(ctx.heads, texts * longest, size).index_copy_(1, gather, gradient[0])
        g = _below(above.view(ctx.heads, texts, longest, size), shared)
        dropped = weights if kept is None else weights * kept
        of_v = torch.matmul(dropped.transpose(2, 3), g)
        of_weights = torch.matmul(g, v.transpose(2, 3))
        of_weights = (of_weights if kept is None else of_weights * kept).float()
        of_scores = torch._softmax_backward_data(of_weights, weights.float(), -1, torch.float32)
        of_scores = of_scores.mul_(ctx.scale).to(q.dtype)
        of_q = _beside(torch.matmul(of_scores, k), ctx.heads, longest)
        of_k = torch.matmul(of_scores.transpose(2, 3), q)
        return *(_in_a_row(each, gather) for each in (of_q, of_k, of_v)), *[None] * 6


def _products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float, place: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return what texts side by side give, heads that share a key below each other; q so, weights, and what was kept.

    `q`, `k` and `v` are (heads, texts, longest, size).
    """
    longest = q.shape[2]
    q = _below(q, k.shape[0])
    scores = torch.matmul(q, k.transpose(2, 3)).float().mul_(scale)
    above = torch.ones(longest, longest, dtype=torch.bool).triu_(1)
    scores.view(*scores.shape[:2], -1, longest, longest).masked_fill_(above, float("-inf"))
    weights = scores.softmax(dim=-1).to(v.dtype)
    kept = dropouts.drop(torch.ones_like(weights), dropout, place) if dropout else None
    return torch.matmul(weights if kept is None else weights * kept, v), q, weights, kept


def _side_by_side(states: torch.Tensor, spread: torch.Tensor, texts: int) -> torch.Tensor:
    """(1, heads, tokens, size) to (heads, texts, longest, size)."""
    return states.squeeze(0).index_select(1, spread).view(states.shape[1], texts, -1, states.shape[3])


def _in_a_row(beside: torch.Tensor, gather: torch.Tensor) -> torch.Tensor:
    """(heads, texts, longest, size) to (1, heads, tokens, size)."""
    return beside.flatten(1, 2).index_select(1, gather)[None]


def _below(states: torch.Tensor, shared: int) -> torch.Tensor:
    """Put heads that share a key below each other, so that it need not be repeated.

    (heads, texts, longest, size) to (shared, texts, groups * longest, size).
    """
    heads, texts, longest, size = states.shape
    apart = states.view(shared, heads // shared, texts, longest, size).transpose(1, 2)
    return apart.reshape(shared, texts, -1, size)


def _beside(states: torch.Tensor, heads: int, longest: int) -> torch.Tensor:
    """Undo `_below`."""
    shared, texts, _, size = states.shape
    apart = states.view(shared, texts, heads // shared, longest, size).transpose(1, 2)
    return apart.reshape(heads, texts, longest, size)


AttentionInterface.register(ATTENTION, _attention)
