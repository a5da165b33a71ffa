"""What is chosen before training where the recipe leaves it open, each choice with its reason; and the plan's parts.

A run's plan is plain data for plan.json. Chooses no device (device.py does) and writes no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptx_nb.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gptx_nb.engine.data import Table
    from gptx_nb.engine.device import Device

FEWEST_STEPS = 60  # a small set is gone through until this many steps are done (Mosbach et al. 2021, arXiv:2006.04884)
MOST_LENGTH = 512  # tokens; longer rows are taken where the recipe asks for them


def machine(device: Device) -> dict[str, Any]:
    """Return what the plan says of device and arithmetic, which a later attempt may have otherwise."""
    return {
        "device": {"choice": str(device.device), "reason": device.reason, "name": device.name},
        "dtype": {"choice": str(device.dtype).removeprefix("torch."), "reason": device.dtype_reason},
    }


def examples(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    held_rows: list[list[int]],
    cut: int,
) -> dict[str, Any]:
    """Return what the plan says of the encoded examples: numbers, lengths, the first three as the model sees them."""
    lengths = sorted(len(row) for row in [*rows, *held_rows])
    return {
        "labels": table.labels,
        "train_rows": len(rows),
        "validation_rows": len(held_rows),
        "tokens": {
            "min": lengths[0],
            "median": lengths[len(lengths) // 2],
            "p95": lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))],
            "max": lengths[-1],
            "cut": cut,
        },
        "rendered": [
            {
                "text": tokenizer.decode(rows[index]),
                "label": table.labels[table.train.labels[index]],
                "tokens": len(rows[index]),
            }
            for index in range(min(3, len(rows)))
        ],
        "notes": [*table.report.get("warnings", [])],
    }


def max_length(recipe: Recipe, context: int) -> tuple[int, str]:
    """Return the longest text in tokens, and why, for a model that sees `context` tokens."""
    if recipe.max_length is None:
        length = min(context, MOST_LENGTH)
        return (
            length,
            "the model's context" if length == context else f"the model sees {context:,}; longer rows cost time",
        )
    if recipe.max_length > context:
        return context, f"{recipe.max_length:,} was asked for, and the model sees {context:,}"
    return recipe.max_length, "asked for in the recipe"


def epochs(recipe: Recipe, rows: int, steps_per_epoch: int) -> tuple[float, str]:
    """Return the number of passes over the examples, and why."""
    if recipe.epochs is not None:
        return recipe.epochs, "asked for in the recipe"
    needed = -(-FEWEST_STEPS // steps_per_epoch)
    if needed <= 3:
        return 3.0, "the usual number"
    return float(
        needed
    ), f"{rows} examples make {steps_per_epoch} step(s) an epoch; fewer than {FEWEST_STEPS} teach little"


def learning_rate(recipe: Recipe, parameters: int) -> tuple[float, str]:
    """Return the peak learning rate, and why."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate, "asked for in the recipe"
    millions = parameters / 1e6
    rate = float(f"{1.2e-3 / max(1.0, millions) ** 0.5:.1e}")
    return rate, f"for {millions:,.1f} million parameters: 0.0012 / sqrt(millions)"
