"""A Llama's layer in few operations, for a model that only answers, on a CPU.

Of a few tokens the models' own code spends as much time between its operations as in them: a layer has some seventy,
most of them on values that fit into a core's nearest cache. Here a layer has about thirty: queries and keys are turned
together, as they come out of one product; what a product gives in bfloat16 is added to the states as it is. The numbers
are the same but for rounding, tested for each kind of `KNOWN`. (smollm2-135m, two cores with AMX: 16 rows are written
at 1.13 times the speed, one at 1.1 times; a single text is classified in 0.83 times the time, many in 0.93 times.)

It serves where attention is one of ours, over packed texts or over what was kept of each row; called in any other way,
a layer is the model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gptx_nb.engine import generate, norms, packing, products

# Layers that compute x + attention(norm(x)), then y + down(act(gate(norm(y))) * up(norm(y))), and whose attention turns
# the whole of queries and keys by their places, and does nothing else with them.
KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")

# Attention that takes the heads of all tokens in one row, and is told by other means what sees what.
OURS = (packing.ATTENTION, generate.ATTENTION)
_OF_OTHERS = ("attention_mask", "position_ids", "past_key_values", "use_cache")  # which ours does not ask for


def use(model: PreTrainedModel) -> None:
    """Let each known layer of `model`, in place, compute in this way; call `products.prepare` before.

    A model that is not on a CPU, or whose layers are others, is left as it is.
    """
    if model.device.type != "cpu":
        return
    for layer in list(model.modules()):
        if type(layer).__name__ not in KNOWN or not type(layer).__module__.startswith("transformers."):
            continue
        parts: Any = layer
        joint = products.joint_of(parts.self_attn, products.ATTENTION)
        gated = products.joint_of(parts.mlp, products.GATED)
        if joint is not None and gated is not None:
            parts.lean = Lean(parts, joint, gated)
            parts.__class__ = _lean_kind(type(layer))


class Lean:
    """The forward pass of one layer. It is no module, as what it computes with belongs to the layer."""

    def __init__(self, layer: Any, joint: products.Product, gated: products.Product) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._attention, self._joint, self._out = attention, joint, attention.o_proj
        self._gated, self._activation, self._down = gated, mlp.act_fn, mlp.down_proj
        self._before, self._between = layer.input_layernorm, layer.post_attention_layernorm
        self._size: int = attention.head_dim
        self._queries = joint.sizes[0] // self._size  # heads
        self._turned = (joint.sizes[0] + joint.sizes[1]) // self._size  # heads of queries and keys

    @property
    def serves(self) -> bool:
        """Whether the model's attention is one of ours at the moment."""
        return self._attention.config._attn_implementation in OURS

    def __call__(
        self,
        hidden: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        asked: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """(1, tokens, width) to the same, both float32; right at the tokens `asked` alone, where these are given.

        `position_embeddings`: cosines and sines (1, tokens, size). `more` is handed on to attention.
        """
        cos, sin = position_embeddings
        states = hidden[0]
        heads = self._joint(_normed(states, self._before)).view(len(states), -1, self._size)
        turned = heads[:, : self._turned]
        turned = torch.addcmul(turned * cos[0, :, None], turned.roll(self._size // 2, -1), _signed(sin)[0, :, None])
        query, key, value = turned[:, : self._queries], turned[:, self._queries :], heads[:, self._turned :]
        attend: Any = ALL_ATTENTION_FUNCTIONS[self._attention.config._attn_implementation]
        mixed: torch.Tensor = attend(
            self._attention,
            *(each.transpose(0, 1)[None] for each in (query, key, value)),
            None,
            scaling=self._attention.scaling,
            **{name: each for name, each in more.items() if name not in _OF_OTHERS},
        )[0]
        mixed = mixed.reshape(len(states), -1)
        if asked is not None:
            states, mixed = states.index_select(0, asked), mixed.index_select(0, asked)
        states = states + self._out.lower(mixed)
        gate, up = self._gated(_normed(states, self._between)).split(self._gated.sizes, dim=-1)
        states += self._down.lower(self._activation(gate).mul_(up))
        return states[None] if asked is None else hidden.index_copy(1, asked, states[None])


def _normed(states: torch.Tensor, norm: Any) -> torch.Tensor:
    return norms.normed(states, norm.weight, norm.variance_epsilon)


def _signed(sin: Any) -> torch.Tensor:
    """Return `sin` with its first half negated, by which a vector that is rolled by half is turned.

    It stands with `sin`, which all layers are given.
    """
    found: torch.Tensor | None = getattr(sin, "signed", None)
    if found is None:
        half = sin.shape[-1] // 2
        found = sin.signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return found


_kinds: dict[type, type] = {}


def _lean_kind(kind: type) -> type:
    """Return a `kind` of layer that computes in this way where it can."""
    if kind in _kinds:
        return _kinds[kind]

    def forward(self: Any, hidden_states: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if self.lean.serves and not self.training and not given:
            result: torch.Tensor = self.lean(hidden_states, **more)
            return result
        plain: torch.Tensor = kind.forward(self, hidden_states, *given, **more)  # type: ignore[attr-defined]
        return plain

    return _kinds.setdefault(kind, type(kind.__name__, (kind,), {"forward": forward}))
