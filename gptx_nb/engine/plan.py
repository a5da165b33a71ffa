"""What is chosen before training where the recipe leaves it open, each choice with its reason; and the plan's parts.

A run's plan is plain data for plan.json. Chooses no device (device.py does) and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptx_nb.engine import defaults
from gptx_nb.engine.data import label_name
from gptx_nb.engine.tasks.reading import windows_of
from gptx_nb.engine.tuning import LORA_RANK
from gptx_nb.recipe import LABELS, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gptx_nb.engine.data import Table
    from gptx_nb.engine.device import Device
    from gptx_nb.engine.memory import Estimate
    from gptx_nb.engine.tasks.reading import Row, TokenRows
    from gptx_nb.engine.tuning import Tuning

MOST_LENGTH = 512  # tokens; longer rows are taken where the recipe asks for them
LONG = 300.0  # seconds of training, from which on a quicker method is proposed
WORTH_IT = 0.5  # of the time of a run; what saves less is not worth what it learns less
TOP_LAYERS = 4
TOP = f"top:{TOP_LAYERS}"
# Validation accuracy (benchmarks/results/finetune-smollm2-135m.json).
MEASURED_ON = "with smollm2-135m, on 1,000 sentences of SST-2,"
MEASURED = {"full": 0.86, "head": 0.81, TOP: 0.84}
# Test accuracy, means of five and three draws (benchmarks/results/fewshot-smollm2-135m.json).
FEW = 32  # examples
MEASURED_ON_FEW = (
    "with smollm2-135m, 16 sentences of SST-2 taught it .86 and every weight .80, 16 questions of TREC .69 and .59 "
    "(but 16 of 77 intents .20 and .27)"
)
FEWEST = 8  # examples, below which a head is ahead: it is at 4; at 8 it is level with low-rank updates
# Three draws each, scored on 400 other rows of the training tables (docs/scores.md).
MEASURED_ON_FOUR = (
    "of SST-2 and TREC, smollm2-135m with a head held to the labels' words gets .82 and .34 right after 4 examples, "
    ".80 and .31 with low-rank updates, .79 and .30 with every weight"
)
# Parts that hang on what this attempt runs on, and beside what.
OF_AN_ATTEMPT = (
    *("devices", "device", "dtype", "sharding", "rows", "memory", "proposal", "launches", "compile", "time", "limit"),
    "notes",
)
MEMORY_SHARE, DISK_SHARE = 0.25, 0.5  # of what is free, for the frozen part


def machine(device: Device, ranks: int = 1) -> dict[str, Any]:
    """Return what the plan says of device and arithmetic, which a later attempt may have otherwise."""
    several = (
        f"each of {ranks} processes takes a share of every step's rows" if ranks > 1 else "asked for in the recipe"
    )
    return {
        "devices": {"choice": ranks, "reason": several},
        "device": {"choice": str(device.device), "reason": device.reason, "name": device.name},
        "dtype": {"choice": str(device.dtype).removeprefix("torch."), "reason": device.dtype_reason},
    }


def resumed(decided: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """Return the plan of a later attempt: as decided `before`, but for what it has measured or will measure itself."""
    return {**decided, **{name: each for name, each in (before or {}).items() if name not in OF_AN_ATTEMPT}}


def examples(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    rows: TokenRows,
    held_rows: TokenRows,
    first: Sequence[Row],
    cut: int,
    first_cut: tuple[str | None, str] | None,
) -> dict[str, Any]:
    """Return what the plan says of the encoded examples: numbers, lengths, the `first` few as the model sees them.

    Those have the tokenizer's numbers; `rows` may have others. `cut` rows are cut, `first_cut` is which row the
    first of them is, if known, and how it begins.
    """
    lengths = np.sort(np.concatenate([rows.lengths, held_rows.lengths])).tolist()
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
            "first_cut": first_cut[1] if first_cut else None,
            "first_cut_row": first_cut[0] if first_cut else None,
        },
        "rendered": [
            {
                "text": str(tokenizer.decode(windows_of(row)[0])).strip("\ufffd"),  # a cut splits a character
                "label": label_name(table.labels, table.train.labels[index]),
                "tokens": len(row),
            }
            for index, row in enumerate(first)
        ],
        "notes": [*table.report.get("warnings", [])],
    }


def tuning(tuned: Tuning, padded_because: str | None, has_head: bool = True) -> dict[str, Any]:
    """Return what the plan says of the part that is trained, and of how rows go together."""
    head = " and the head" if has_head else ""
    what = {
        "full": "every weight",
        "lora": f"low-rank updates of every layer's matrices, rank {LORA_RANK}{head and ','}{head}",
        "head": "the head alone" + ("" if padded_because else "; all else is computed once for every row"),
    }.get(tuned.method, f"the last {tuned.layers - tuned.frozen_layers} of {tuned.layers} layers{head}")
    return {
        "tune": {"choice": tuned.method, "reason": f"{what}: {tuned.trained:,} weights"},
        "rows": {
            "choice": "padded" if padded_because else "packed",
            "reason": padded_because or "texts one after another in a row, without padding",
        },
    }


def memory(
    estimate: Estimate, free: int | None, advice: Callable[[int], str], sharing: int = 1, beside: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Return what the plan says of memory, in bytes, and a warning where there may be too little.

    `advice` says what to type where only so many bytes are free; it is asked where that is too little. `estimate` is of
    one process; `sharing` of them have to do with what is free. `beside`: bytes of main memory that a run on another
    device keeps for its frozen part.
    """
    parts = str(estimate).partition(": ")[2]
    known = f"; {free / 1e9:.1f} GB are free" if free is not None else ""
    several = f" in each of {sharing} processes" if sharing > 1 else ""
    warnings = []
    if free is not None and not estimate.fits(free // sharing):
        warnings.append(
            f"training needs about {sharing * estimate.to_come / 1e9:.1f} GB more, and {free / 1e9:.1f} GB of memory "
            f"are free. {advice(free // sharing)}"
        )
    said = {
        "choice": f"{sharing * estimate.total / 1e9:.1f} GB",
        "reason": f"at the peak{several}: {parts}{known}",
    }
    if beside:
        said["reason"] += f"; {beside / 1e9:.1f} GB of main memory besides, for the frozen part"
    return {**said, "parts": estimate.parts(), "free": free, "main_memory": beside}, warnings


def speed(
    tokens: int,
    seconds: float,
    step_tokens: int,
    flops_per_token: float,
    peak: float,
    copies: float,
    ranks: int = 1,
    tried: str = "the longest rows",
    more: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return what the plan says of time: `tokens` in all, after a trial of `step_tokens` that took `seconds`.

    `tried` says what that trial was, `more` how many seconds come to it, by what takes them.

    `peak`: FLOPs a second of this device's fastest matrix product. `copies`: bytes a second that a copy
    reads and writes in its memory. `ranks`: processes that train at once, each so fast.
    """
    each = f" in each of {ranks} processes" if ranks > 1 else ""
    rate = step_tokens / seconds
    total = tokens / ranks / rate + sum((more or {}).values())
    added = [f"{_duration(took)} for {what}" for what, took in (more or {}).items() if took >= 0.5]
    found: dict[str, dict[str, Any]] = {
        "time": {
            "choice": _duration(total),
            "reason": f"{tokens:,} tokens at {rate:,.0f} a second{each}, measured on {tried}"
            + (f", and {' and '.join(added)}" if added else ""),
            "seconds": total,
        }
    }
    if flops_per_token:  # the head alone is no work
        share = rate * flops_per_token / peak
        found["limit"] = {
            "choice": f"{peak / 1e9:,.0f} GFLOP/s",
            "reason": f"the fastest matrix product here; training reaches {share:.0%} of it. Memory moves "
            f"{copies / 1e9:,.0f} GB/s",
            "share": share,
            "bytes_per_second": copies,
        }
    return found


def optimiser_time(trained: int, steps: int, copies: float) -> dict[str, float]:
    """Return the seconds that `steps` steps of AdamW take for so many `trained` weights, for `speed`.

    They move bytes, at the speed of a copy: gradients are read to clip and to use them, weights and two moments are
    read and written, each of 4 bytes.
    """
    return {"the optimiser's steps": 32 * trained * steps / copies}


def proposal_for_few(recipe: Recipe, rows: int, parameters: int) -> dict[str, dict[str, Any]]:
    """Return what the plan proposes instead of every weight where examples are few; nothing elsewhere.

    Low-rank updates can forget less of what a model with so many `parameters` knows, and a head alone nothing.
    """
    if recipe.tune != "full" or recipe.task != "text-classification" or rows >= FEW or parameters < defaults.SMALL:
        return {}
    if rows < FEWEST and recipe.head != "plain":
        return {"proposal": {"choice": "tune: head", "reason": f"{rows:,} examples are few: {MEASURED_ON_FOUR}"}}
    return {"proposal": {"choice": "tune: lora", "reason": f"{rows:,} examples are few: {MEASURED_ON_FEW}"}}


def proposal(
    recipe: Recipe, seconds: float, layers: int, kept: Mapping[str, int] | None, free: int | None
) -> dict[str, dict[str, Any]]:
    """Return what the plan proposes to train instead of every weight, where that takes long; nothing elsewhere.

    `recipe` is resolved; training by it takes `seconds`, for a model of so many `layers`. `kept`: the bytes that a
    method keeps of its frozen part, by which so many rows may be too many for the memory that is `free`; None: padded
    rows, whose frozen part is computed in every epoch. A pass forward is taken for a third of a step. What a method
    costs in accuracy is said where it was measured (MEASURED).
    """
    if recipe.tune != "full" or recipe.context is not None or seconds < LONG or recipe.epochs is None:
        return {}
    once = 1 / (3 * recipe.epochs if kept is not None else 3)  # of the time of a run
    shares = {"head": once} if recipe.task in LABELS else {}
    if layers > TOP_LAYERS:
        shares[TOP] = TOP_LAYERS / layers + (1 - TOP_LAYERS / layers) * once
    fitting = {name for name in shares if kept is None or stays_in_memory(kept[name], free)}
    quicker = [name for name in shares if name in fitting and shares[name] <= WORTH_IT]  # what learns more comes later
    if not quicker:
        return {}
    short = [name for name in quicker if shares[name] * seconds < LONG]
    method = short[-1] if short else min(quicker, key=lambda name: shares[name])
    if kept is None:
        why = "as nothing else is learnt"
    else:
        why = f"as {'all else is' if method == 'head' else 'what lies below is'} computed once for every row"
    reason = f"{_duration(seconds * shares[method])} instead of {_duration(seconds)}, {why}"
    if recipe.task == "text-classification":
        reason += f"; {MEASURED_ON} it got {MEASURED[method]:.2f} right, every weight {MEASURED['full']:.2f}"
    return {"proposal": {"choice": f"tune: {method}", "reason": reason}}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


def stays_in_memory(size: int, free: int | None) -> bool:
    """Whether `size` bytes of the frozen part are kept in main memory, of which so much is `free`."""
    return free is None or size <= free * MEMORY_SHARE


def step_tokens(tokens: int, steps: int, budget: int) -> dict[str, dict[str, Any]]:
    """Return what the plan says of a batch in tokens: `tokens` of an epoch in so many `steps`, by `budget` at once."""
    mean = round(tokens / steps)
    return {"tokens_per_step": {"choice": mean, "reason": f"on average; computed by at most {budget:,} at once"}}


def place_of_frozen_part(size: int, memory_free: int | None, disk_free: int) -> tuple[str, str]:
    """Return where `size` bytes of the frozen part are kept, "memory", "disk" or "nowhere", and why."""
    if stays_in_memory(size, memory_free):
        return "memory", f"{size / 1e6:,.0f} MB, at most {MEMORY_SHARE:.0%} of what is free"
    if size <= disk_free * DISK_SHARE:
        return "disk", f"{size / 1e6:,.0f} MB, too much for memory"
    return "nowhere", f"{size / 1e6:,.0f} MB, too much for memory and disk: it is computed anew in every epoch"


def max_length(recipe: Recipe, context: int) -> tuple[int, str]:
    """Return the longest text in tokens, and why, for a model that sees `context` tokens."""
    if recipe.max_length is None and recipe.context is not None:
        return context, "the context that the recipe asks for"
    if recipe.max_length is None:
        length = min(context, MOST_LENGTH)
        return (
            length,
            "the model's context" if length == context else f"the model sees {context:,}; longer rows cost time",
        )
    if recipe.max_length > context:
        return context, f"{recipe.max_length:,} was asked for, and the model sees {context:,}"
    return recipe.max_length, "asked for in the recipe"


def epochs(
    recipe: Recipe, rows: int, steps_per_epoch: int, parameters: int, has_head: bool = True, labels: int = 2
) -> tuple[float, str]:
    """Return the number of passes over the examples of a model of so many `parameters`, and why.

    A small set is gone through more often (Mosbach et al. 2021, arXiv:2006.04884). `has_head`: it becomes a classifier,
    of so many `labels`.
    """
    if recipe.epochs is not None:
        return recipe.epochs, "asked for in the recipe"
    chosen = defaults.of(recipe.tune, parameters, has_head)
    needed = -(-chosen.steps // steps_per_epoch)
    many = labels >= defaults.MANY
    more_steps = chosen.more_steps * (defaults.TIMES_FOR_MANY if many else 1)
    more = min(defaults.MOST_EPOCHS, -(-more_steps // steps_per_epoch))
    if max(needed, more) <= chosen.epochs:
        return chosen.epochs, "the usual number"
    made = f"{rows:,} examples make {steps_per_epoch} step(s) an epoch"
    if needed >= more:
        return float(needed), f"{made}; fewer than {chosen.steps} teach little"
    of_so_many = f"a model of {parameters / 1e6:.1f} million parameters learns from {more_steps}"
    of_so_many += f", with {labels:,} labels" if many else ""
    return float(more), f"{made}; {of_so_many}, in at most {defaults.MOST_EPOCHS} epochs"


def batch_size(recipe: Recipe, rows: int, parameters: int, has_head: bool = True) -> tuple[int, str]:
    """Return the number of examples a step for a model of so many `parameters`, and why.

    `has_head`: it becomes a classifier.
    """
    if recipe.batch_size is not None:
        return recipe.batch_size, "asked for in the recipe"
    chosen = defaults.of(recipe.tune, parameters, has_head)
    size = chosen.batch
    while size < chosen.most_batch and rows >= 2 * size * chosen.steps_an_epoch:
        size *= 2
    if size == chosen.batch:
        return size, "the usual size for a small set"
    return size, f"{rows:,} examples still make {-(-rows // size)} steps an epoch; larger steps keep the device busier"


def learning_rate(recipe: Recipe, parameters: int, has_head: bool = True) -> tuple[float, str]:
    """Return the peak learning rate for a model of so many `parameters`, and why.

    It grows with the root of the batch, as the noise of a gradient falls with it (Malladi et al. 2022,
    arXiv:2205.10287). `has_head`: it becomes a classifier.
    """
    if recipe.learning_rate is not None:
        return recipe.learning_rate, "asked for in the recipe"
    chosen = defaults.of(recipe.tune, parameters, has_head)
    if not chosen.by_size:
        return chosen.rate, "as measured, on states that stay: the model's size does not matter"
    batch, millions = recipe.batch_size or 16, parameters / 1e6
    times = (batch / 16) ** 0.5 if chosen.by_batch else 1.0
    more = f", times {times:.2g} for batches of {batch}" if times != 1 else ""
    rate = float(f"{times * chosen.rate / max(1.0, millions) ** 0.5:.1e}")
    return rate, f"for {millions:,.1f} million parameters: {chosen.rate:g} / sqrt(millions){more}"


def warmup(recipe: Recipe, parameters: int, has_head: bool = True) -> tuple[float, str]:
    """Return the share of the steps in which the learning rate of a model of so many `parameters` rises, and why.

    `has_head`: it becomes a classifier.
    """
    if recipe.warmup is not None:
        return recipe.warmup, "asked for in the recipe"
    return defaults.of(recipe.tune, parameters, has_head).warmup, "steadies the first steps"
