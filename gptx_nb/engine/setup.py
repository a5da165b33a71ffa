"""From recipe and table to all that training needs: device, model, rows, settings - and the plan that says why.

Reads the base model; writes no file and trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import device as devices
from gptx_nb.engine import memory, models, plan, tuning
from gptx_nb.engine.data import Table
from gptx_nb.engine.device import Device
from gptx_nb.engine.predict import use_all_cores
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Settings, make_optimizer
from gptx_nb.recipe import Recipe

MOST_EVALUATIONS = 20  # of one run: scoring should stay a small part of its time


@dataclass(frozen=True)
class Setup:
    """What training needs. `resolved` is the recipe with every open setting filled in; `decided` goes to plan.json."""

    device: Device
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    learner: task.Learner
    settings: Settings
    steps_per_epoch: int
    max_length: int
    resolved: Recipe
    decided: dict[str, Any]
    estimate: memory.Estimate | None  # None: it could not be made


def prepare(recipe: Recipe, table: Table, note: Callable[[str], None]) -> Setup:
    """Load the base model, make tokens of the table, and decide what the recipe leaves open.

    `note` is told what a user should know while this goes on. Raises UsageError for a base model or device that is not
    there or does not fit.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    device = devices.choose(recipe.device, recipe.dtype)
    base = models.find(recipe.model, recipe.revision, note)
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, table.labels, recipe.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tuned = tuning.prepare(model, recipe.tune, recipe.seed)

    context = models.context(base.config)
    max_length, length_reason = plan.max_length(recipe, context)
    rows, cut = task.encode(tokenizer, table.train.texts, max_length)
    held_rows: list[list[int]] = []
    if table.validation is not None:
        held_rows, held_cut = task.encode(tokenizer, table.validation.texts, max_length)
        cut += held_cut
    steps_per_epoch = -(-len(rows) // recipe.batch_size)
    epochs, epochs_reason = plan.epochs(recipe, len(rows), steps_per_epoch)
    steps = max(1, round(epochs * steps_per_epoch))
    learning_rate, rate_reason = plan.learning_rate(recipe, parameters)
    settings = Settings(
        steps=steps,
        learning_rate=learning_rate,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        eval_every=max(steps_per_epoch, -(-steps // MOST_EVALUATIONS)),
        save_every_seconds=recipe.checkpoint_every,
    )

    torch.nn.Module.to(model, device.device)  # transformers' own `to` is typed wrongly
    learner = task.Learner(
        model,
        tuned,
        rows,
        table.train.labels,
        held_rows,
        pad_id=tokenizer.pad_token_id,
        device=device.device,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    decided = {
        **plan.machine(device),
        **plan.tuning(tuned, learner.padded_because),
        "model": {
            "name": base.name,
            "where": base.where,
            "parameters": parameters,
            "licence": base.licence,
            "context": context,
        },
        "learning_rate": {"choice": learning_rate, "reason": rate_reason},
        "epochs": {"choice": epochs, "reason": epochs_reason},
        "steps": steps,
        "batch_size": recipe.batch_size,
        "max_length": {"choice": max_length, "reason": length_reason},
        **plan.examples(table, tokenizer, rows, held_rows, cut),
    }
    estimate: memory.Estimate | None = None
    try:
        estimate = estimate_memory(model, learner, settings, device)
        decided["memory"], warnings = plan.memory(estimate, memory.available(device.device))
    except Exception as error:  # a model that tensors without values cannot run may well train
        shown = " ".join(str(error).split())[:200]
        decided["memory"] = {"choice": "unknown", "reason": f"no estimate: {type(error).__name__}: {shown}"}
        warnings = []
    decided["notes"] += warnings
    resolved = recipe.model_copy(
        update={
            "text": table.report["text"],
            "label": table.report["label"],
            "labels": table.labels,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "max_length": max_length,
        }
    )
    return Setup(device, model, tokenizer, learner, settings, steps_per_epoch, max_length, resolved, decided, estimate)


def estimate_memory(
    model: PreTrainedModel, learner: task.Learner, settings: Settings, device: Device
) -> memory.Estimate:
    """Estimate the peak of the run."""
    micro, several = learner.largest()
    return memory.estimate(
        model,
        micro,
        loss_of=learner.whole_loss,
        make_optimizer=lambda each: make_optimizer(each, settings),
        device=device.device,
        dtype=device.dtype,
        several=several,
    )
