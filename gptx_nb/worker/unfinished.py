"""Makes a plain model of the weights that a run saved last, for `gptx_nb.unfinished`. Prints the step as JSON.

The model is set up as for training, as weights are saved by name and may lack what is frozen or was cut off; on the
CPU and in float32, so that the device is left to those who train.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from gptx_nb import files
from gptx_nb.errors import RunNotFound, UsageError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.runs import Run

NICE = 5
LOOKS = 5  # for weights that are not pruned under one's hands


def carry_out(run: Run) -> int:
    """Return the exit status: 0, or 2 where there is nothing to make a model of."""
    os.nice(NICE)
    try:
        step = _make(run)
    except UsageError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 2
    print(json.dumps({"step": step}))
    return 0


def _make(run: Run) -> int:
    run.asked.mkdir(exist_ok=True)
    step, weights = _kept(run)
    target = run.unfinished(step)
    try:
        if not target.is_dir():
            with contextlib.suppress(FileExistsError):  # another question was quicker
                _save(run, step, weights, target)
    finally:
        files.remove_file(weights)
    for older in run.asked.iterdir():
        if older.name.isdigit() and int(older.name) < step:
            files.remove_folder(older)
    return step


def _kept(run: Run) -> tuple[int, Path]:
    """Give the newest weights a second name, so that training may prune them meanwhile; return their step and that."""
    from gptx_nb.engine import checkpoints

    for _ in range(LOOKS):
        with contextlib.suppress(FileNotFoundError):  # pruned at this moment: there are newer ones
            found = checkpoints.newest(run.checkpoints, run.best)
            if found is None:
                raise RunNotFound(f"{run.name} v{run.version} has saved no whole weights yet. Ask again in a moment")
            step, weights = found
            mine = run.asked / f".{step:06d}.{os.getpid()}.safetensors"
            files.link(weights, mine)
            return step, mine
    raise RunNotFound(f"{run.name} v{run.version} saves weights faster than they can be read. Ask again in a moment")


def _save(run: Run, step: int, weights: Path, target: Path) -> None:
    from gptx_nb.engine import checkpoints, corpus, examples, jobs, models, pretrain, setup

    recipe = run.recipe()
    here = {"device": "cpu", "dtype": "float32", "devices": 1}
    if isinstance(recipe, PretrainRecipe):
        begun = pretrain.prepare(recipe.model_copy(update=here), corpus.load(run.data), lambda text: None, None)
        checkpoints.load_weights(weights, begun.model)
        models.save(target, begun.finish(), begun.tokenizer, begun.context)
        return
    job = jobs.of(examples.load_snapshot(run.data, recipe), recipe)
    made = setup.prepare(recipe.model_copy(update={**here, "save": "merged"}), job, lambda text: None)
    checkpoints.load_weights(weights, made.model)
    jobs.save(job, target, made.finish(step), made.tokenizer, made.max_length)
