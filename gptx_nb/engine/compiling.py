"""Compile a model's layers (torch.compile): a layer's forty kernels each way become a handful.

Most of them read and write what the next one reads again. The same code serves all layers, so one of them is compiled.
Scoring, whose rows have other shapes, goes on uncompiled (`plainly`).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import PreTrainedModel

from gptx_nb.engine import tuning


def use(model: PreTrainedModel, dynamic: bool | None = True) -> None:
    """Let the layers of `model`, in place, be compiled when they are first called; `dynamic`: for rows of any length.

    Raises whatever the compiler raises, when they are called.
    """
    for layer in tuning.layers_of(model):
        layer.compile(dynamic=dynamic)


def leave(model: PreTrainedModel) -> None:
    """Undo `use`."""
    for layer in tuning.layers_of(model):
        layer._compiled_call_impl = None
    torch.compiler.reset()


def plainly() -> contextlib.AbstractContextManager[Any]:
    """Return what lets compiled layers compute as they are written, meanwhile."""
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
