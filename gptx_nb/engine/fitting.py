"""Which settings would fit, where a run needs more memory than there is: estimated on models without weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import dropout, memory, norms, tuning
from gptx_nb.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptx_nb.engine.jobs import Job, Learner

PATIENCE = 30.0  # seconds; each estimate takes a few, and the run is to start nevertheless


@dataclass(frozen=True)
class Advice:
    """What to do where memory is too little: `settings` to type, None where there are none, and a sentence."""

    settings: str | None
    sentence: str


def nearest(
    recipe: Recipe,
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    free: int,
    device: torch.device,
    estimate_of: Callable[[PreTrainedModel, Learner], memory.Estimate],
) -> Advice:
    """Return what changes least of `recipe` and fits `free` bytes.

    `model` is the one that does not fit, of which its architecture is taken, `longest` its longest row in tokens. The
    job's rows are encoded anew for each length: encode them again for what then trains.
    """
    begun = time.monotonic()

    def smallest(method: str, length: int, *, twice: bool = False) -> memory.Estimate | None:
        if time.monotonic() - begun > PATIENCE or (method == "head" and job.shares_vocabulary):
            return None
        with torch.device("meta"):
            bare = type(model)(model.config)
        torch.nn.Module.to(bare, dtype=next(model.parameters()).dtype)
        tuned = tuning.prepare(bare, method, recipe.seed)
        dropout.use(bare)
        norms.use(bare)
        job.encode(tokenizer, length)
        learner = job.learner(
            bare,
            tuned,
            pad_id=tokenizer.pad_token_id,
            device=device,
            batch_size=1,
            seed=recipe.seed,
            token_budget=length,
            streams=1,
        )
        while twice and learner.need_less_memory() is not None:  # as the run does where memory has run out
            pass
        return estimate_of(bare, learner)

    same = smallest(recipe.tune, longest)
    if same is not None and same.fits(free):  # with one row at a time, and the same result
        return _to_type(f"tokens_at_once: {longest}")
    same = smallest(recipe.tune, longest, twice=True)
    if same is not None and same.fits(free):
        return Advice(
            None,
            "With activations computed twice it would fit, at the same result: a run goes over to that by itself where "
            "memory runs out",
        )
    found = memory.nearest_recipe(smallest, tune=recipe.tune, max_length=longest, free=free)
    if found is not None:
        return _to_type(found)
    if time.monotonic() - begun > PATIENCE:
        return Advice(
            None,
            "Type shorter rows (`max_length`), `tune: lora`, or a smaller model: which fits takes too long to find out",
        )
    return Advice(None, "Take a smaller model: shorter rows are not enough")


def _to_type(settings: str) -> Advice:
    return Advice(settings, f"Type `{settings}`, which would fit")
