"""What is said where a run had too little memory: what to type, so that it needs less. Reads files; trains nothing."""

from __future__ import annotations

from typing import Any

from gptx_nb import files
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.run_files import RunFiles


def advice(recipe: AnyRecipe, levers: dict[str, Any] | None, writes: bool) -> str:
    """Return what to type, where an attempt that did so much to take less (see worker/levers.py) had too little.

    `levers` None: it had not come so far, or was begun by an older version. `writes`: the model has no head.
    """
    if levers and levers["left"]:
        at_once = levers["token_budget"]
        return f"it computed {at_once:,} tokens at once. Type `tokens_at_once: {max(16, at_once // 2)}`"
    if not levers:
        tried = "before the first step was tried"
    else:
        tried = f"with {', '.join(levers['ways'])}" if levers["ways"] else "even for one row at a time"
    if isinstance(recipe, PretrainRecipe):
        return f"{tried}. Type a smaller context or size"
    shorter = f"`max_length: {max(8, recipe.max_length // 2)}`" if recipe.max_length else "a smaller max_length"
    less = {"full": "`tune: lora`", "head": "a smaller model"}
    other = less.get(recipe.tune, "a smaller model" if writes else "`tune: head`")
    return f"{tried}. Type {shorter} or {other}"


def in_a_row(run: RunFiles, attempt: int) -> int:
    """Return how many attempts, one after another up to `attempt`, were begun for want of memory in the one before."""
    count = 1
    while attempt > 1 and (files.read_json(run.outcome_file(attempt - 1)) or {}).get("again"):
        attempt, count = attempt - 1, count + 1
    return count
