"""Make the matrix products of a model that only answers faster: weights in bfloat16, and laid out once for the CPU.

Only the products are in bfloat16: what is added up from layer to layer, norms, positions and attention stay float32.
So less is rounded than in a model that is wholly in bfloat16, and nothing more than in training under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def prepare(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace the linear layers of `model`, in place, by ones that compute in `dtype` (float32 or bfloat16).

    They take and give float32. The output head (of a language model or a classifier) stays float32: its logits are
    compared with each other, and bfloat16 has 3 digits. Their weights can no longer be trained or saved.
    """
    head = model.get_output_embeddings() or getattr(model, "score", None)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear or type(layer) is Conv1D:
                setattr(parent, name, Product(layer, torch.float32 if layer is head else dtype))


class Product(torch.nn.Module):
    """What a `torch.nn.Linear` or GPT-2's `Conv1D` computes, in `dtype`: float32 (..., in) to float32 (..., out)."""

    def __init__(self, layer: torch.nn.Linear | Conv1D, dtype: torch.dtype) -> None:
        super().__init__()
        weight: torch.Tensor = layer.weight.detach()
        if isinstance(layer, Conv1D):
            weight = weight.T
        weight = weight.to(dtype).contiguous()
        self.dtype, self.nbytes = dtype, weight.nbytes
        self._bias = None if layer.bias is None else layer.bias.detach().float()
        # torch lays weights out in blocks when it compiles a model for inference ("freezing"), with these two
        # operators: measured here at 1.2 to 1.9 times the speed of plain ones for 1 to 16 rows. They are not public,
        # so there is a way without them.
        self._is_laid_out = weight.device.type == "cpu" and _can_lay_out(dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._is_laid_out else weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        given: Any = states.to(self.dtype)
        if self._is_laid_out:
            product = torch.ops.mkldnn._linear_pointwise(given, self._weight, None, "none", [], "")
        else:
            product = torch.nn.functional.linear(given, self._weight)
        result: torch.Tensor = product.float()
        return result if self._bias is None else result + self._bias


def _can_lay_out(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight, states = torch.ones(2, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype)
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = torch.ops.mkldnn._linear_pointwise(states, laid_out, None, "none", [], "")
    except (AttributeError, RuntimeError):  # another version of torch, or a CPU without the units
        return False
    return bool(torch.equal(found, torch.full((1, 2), 3, dtype=dtype)))
