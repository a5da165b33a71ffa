"""Fine-tune a GPT on your own table from one notebook cell, and ask it in the next.

`%load_ext gptx_nb` brings the magics; the functions here are their twins for plain Python. Everything is imported when
it is first used: importing the package is quick and silent, and brings no ML library along.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from gptx_nb.api import (
        compare,
        device,
        evaluate,
        finetune,
        first_batch,
        free,
        load,
        merge,
        predict,
        pretrain,
        runs,
        stop,
        watch,
    )
    from gptx_nb.comparison import Comparison
    from gptx_nb.errors import (
        DataError,
        DeviceError,
        GptxError,
        ModelError,
        RecipeError,
        RunFailed,
        RunNotFound,
        UsageError,
    )
    from gptx_nb.evaluations import Evaluation
    from gptx_nb.first_batches import FirstBatch
    from gptx_nb.generations import Generation, Generations
    from gptx_nb.predictions import Prediction, Predictions
    from gptx_nb.pretraining import PretrainRecipe
    from gptx_nb.recipe import Recipe
    from gptx_nb.runs import Run

__version__ = "0.7.0"

__all__ = [
    "Comparison",
    "DataError",
    "DeviceError",
    "Evaluation",
    "FirstBatch",
    "Generation",
    "Generations",
    "GptxError",
    "ModelError",
    "Prediction",
    "Predictions",
    "PretrainRecipe",
    "Recipe",
    "RecipeError",
    "Run",
    "RunFailed",
    "RunNotFound",
    "UsageError",
    "__version__",
    "compare",
    "device",
    "evaluate",
    "finetune",
    "first_batch",
    "free",
    "load",
    "load_ipython_extension",
    "merge",
    "predict",
    "pretrain",
    "runs",
    "stop",
    "unload_ipython_extension",
    "watch",
]

_HOMES = {
    **dict.fromkeys(
        (
            *("compare", "device", "evaluate", "finetune", "first_batch", "free", "load"),
            *("merge", "predict", "pretrain", "runs", "stop", "watch"),
        ),
        "gptx_nb.api",
    ),
    **dict.fromkeys(
        (
            *("DataError", "DeviceError", "GptxError", "ModelError", "RecipeError"),
            *("RunFailed", "RunNotFound", "UsageError"),
        ),
        "gptx_nb.errors",
    ),
    "Comparison": "gptx_nb.comparison",
    "Evaluation": "gptx_nb.evaluations",
    "FirstBatch": "gptx_nb.first_batches",
    **dict.fromkeys(("Generation", "Generations"), "gptx_nb.generations"),
    **dict.fromkeys(("Prediction", "Predictions"), "gptx_nb.predictions"),
    "PretrainRecipe": "gptx_nb.pretraining",
    "Recipe": "gptx_nb.recipe",
    "Run": "gptx_nb.runs",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """This package, in which `gptx_nb.runs` stays the function.

    There is a module of that name too, and importing it anywhere would put it in the function's place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "runs" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register the magics: what `%load_ext gptx_nb` calls."""
    from gptx_nb.views.magics import load

    load(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take the magics away again: what `%unload_ext gptx_nb` calls."""
    from gptx_nb.views.magics import unload

    unload(ipython)
