"""Compile a model's layers (torch.compile): a layer's forty kernels each way become a handful.

Most of them read and write what the next one reads again. The same code serves all layers, so one of them is compiled.
Scoring, whose rows have other shapes, goes on uncompiled (`plainly`).
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel

from gptx_nb.engine import tuning

Given = ParamSpec("Given")
Result = TypeVar("Result")

_used: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def use(model: PreTrainedModel, dynamic: bool | None = True) -> None:
    """Let the layers of `model`, in place, be compiled when they are first called; `dynamic`: for rows of any length.

    Raises whatever the compiler raises, when they are called.
    """
    for layer in tuning.layers_of(model):
        layer.compile(dynamic=dynamic)
    _used.add(model)


def leave(model: PreTrainedModel) -> None:
    """Undo `use`."""
    for layer in tuning.layers_of(model):
        layer._compiled_call_impl = None
    _used.discard(model)
    torch.compiler.reset()


def is_used(model: torch.nn.Module) -> bool:
    """Whether the layers of `model` are compiled, and what is computed beside them should be."""
    return model in _used


@functools.cache
def of(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return `function` compiled, when it is first called, for tensors of any shape."""
    compiled: Callable[Given, Result] = torch.compile(function, dynamic=True)
    return compiled


def plainly() -> contextlib.AbstractContextManager[Any]:
    """Return what lets compiled layers compute as they are written, meanwhile."""
    if not _used:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
