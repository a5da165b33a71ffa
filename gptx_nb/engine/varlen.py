"""Causal attention within each text of a row, by torch's flash kernels for texts of several lengths (NVIDIA GPUs).

Nothing is padded and nothing laid side by side: a kernel is told where texts begin (FlashAttention-2, Dao 2023,
arXiv:2307.08691). Takes bfloat16 and float16, on Ampere and newer. It is the operator beneath torch's own
`torch.nn.attention.varlen`: that one goes through Python on both ways, which takes longer than the kernels do for short
texts (1.2 ms a layer, of 4 ms in all), and it knows no dropout.
"""

from __future__ import annotations

from typing import Any

import torch

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 192  # larger ones have no way back with dropout on many GPUs


def is_there(device: torch.device) -> bool:
    """Whether `device` and this torch have the kernels."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def fits(query: torch.Tensor) -> bool:
    """Whether the kernels take what has the dtype and the last axis of `query`."""
    size = query.shape[-1]
    return query.dtype in DTYPES and size <= LARGEST_HEAD and size % 8 == 0


def serves(device: torch.device, dtype: torch.dtype, config: Any) -> bool:
    """Whether the attention of a model with `config`, computed in `dtype` on `device`, can do with the kernels."""
    if not is_there(device):
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return fits(torch.empty(0, size, dtype=dtype))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return (tokens, heads, size) for `query` of that shape; `key` and `value` may have fewer heads.

    `starts` (texts + 1,) int32: the first token of each text, and the number of tokens. `longest`: no text has more.
    `dropout`: the share of weights that is left out.
    """
    found: Any = torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, dropout, True, False, scale=scale
    )
    mixed: torch.Tensor = found[0]
    return mixed
