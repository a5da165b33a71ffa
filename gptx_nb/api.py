"""The Python twins of the magics: finetune, pretrain, predict, watch, stop, runs, load, device, free.

Each returns a plain object, so that a script reads like a notebook, and shows at most a line of progress. Only `load`
imports an ML library here; training and prediction run in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from gptx_nb import inference, launch
from gptx_nb.errors import BY_NAME, DeviceError, RunFailed, RunNotFound
from gptx_nb.predictions import Predictions
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.progress import StatusLine, called, trouble
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.runs import Run, RunStore

Watcher = Callable[[Run], None]

DEVICE_SECONDS = 180.0  # a cold disk takes its time to hand out torch


def finetune(
    name: str, data: object | None = None, *, validation: object | None = None, wait: bool = True, **settings: Any
) -> Run:
    """Train the run `name`, or attach to it, resume it, or find it finished (see launch.train); return it.

    `data` and `validation` are what a recipe takes there, or a DataFrame, Series, datasets.Dataset or list. The other
    settings are those of a recipe. With `wait`, return when the run has ended; without, once training has begun.
    Raises UsageError for a mistake, after which nothing was started, and RunFailed where the run broke off.
    """
    return _train(name, Recipe, {**settings, "data": data, "validation": validation}, wait)


def pretrain(
    name: str, data: object | None = None, *, validation: object | None = None, wait: bool = True, **settings: Any
) -> Run:
    """Pretrain the run `name` on plain text, as `finetune` trains on a table; return it.

    The settings are those of a `%%gpt_pretrain` cell, except that `from`, which is no name in Python, is `from_`. The
    result is a base model: `finetune(..., model="run:NAME")`.
    """
    if "from_" in settings:
        settings["from"] = settings.pop("from_")
    return _train(name, PretrainRecipe, {**settings, "data": data, "validation": validation}, wait)


def _train(name: str, kind: type[AnyRecipe], settings: dict[str, Any], wait: bool) -> Run:
    recipe, objects = with_objects(settings, kind)
    line = StatusLine()
    try:
        return launch.train(name, recipe, **objects, wait=wait, progress=line).run
    finally:
        line.close()


def with_objects(settings: dict[str, Any], kind: type[AnyRecipe] = Recipe) -> tuple[AnyRecipe, dict[str, Any]]:
    """Return the recipe for `settings`, and apart from it the tables among them that are objects and not names."""
    objects: dict[str, Any] = {}
    plain = {name: value for name, value in settings.items() if value is not None}
    for name in ("data", "validation"):
        if name in plain and not isinstance(plain[name], str | int | float):
            objects[name] = plain.pop(name)
    return make_recipe(plain, "", kind), objects


def predict(name: str, texts: Any, version: int | None = None) -> Predictions:
    """Classify a text, a list, a Series or a DataFrame's text column with the run `name`; waits while it trains.

    Raises RunNotFound, RunFailed for a run without a model, DataError for what is no text.
    """
    run = RunStore().find(name, version)
    line = StatusLine()
    try:
        wait_for_model(run, line)
        return inference.predict(run, texts, line.texts)
    finally:
        line.close()


def wait_for_model(run: Run, watcher: Watcher | None = None) -> None:
    """Return once `run` has a model; the inference process warms up meanwhile. Raises RunFailed if it gets none."""
    if not run.active:
        require_model(run)
        return
    inference.warm()
    try:
        launch.wait(run, watcher)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(going_on(run)) from None
    require_model(run)


def require_model(run: Run) -> None:
    """Raise RunFailed, with cause, log and what to type next, if `run` ended without a model."""
    launch.raise_if_bad(run)
    if not run.model.is_dir():
        raise RunFailed(f"run {called(run)} has no model: it is {run.state()}. {trouble(run)}".rstrip())


def going_on(run: Run) -> str:
    """Return what to say when somebody stops waiting for `run`."""
    return (
        f"Stopped waiting. Run {called(run)} goes on: `%gpt_watch {run.name}` shows it, `%gpt_stop {run.name}` ends it."
    )


def watch(name: str, version: int | None = None) -> Run:
    """Wait until the run `name` has ended, with a line of progress; return it however it ended."""
    run = RunStore().find(name, version)
    line = StatusLine()
    try:
        launch.wait(run, line)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(going_on(run)) from None
    finally:
        line.close()
    return run


def stop(name: str, version: int | None = None) -> str:
    """Ask the run `name` to save and stop, wait for that, and return in one line what came of it."""
    line = StatusLine()
    try:
        return launch.stop(RunStore().find(name, version), progress=line)
    finally:
        line.close()


def runs() -> list[Run]:
    """Return every version of every run, by name, then oldest first."""
    return RunStore().runs()


def load(name: str, version: int | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a finished run as plain transformers objects, in this process and on the CPU.

    Imports torch and transformers. Raises RunNotFound where the run has no model yet.
    """
    run = RunStore().find(name, version)
    if run.active:
        raise RunNotFound(f"run {called(run)} has no model yet: it is {run.state()}. See `%gpt_watch {run.name}`")
    require_model(run)
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForCausalLM if run.kind is PretrainRecipe else AutoModelForSequenceClassification
    return kind.from_pretrained(run.model), AutoTokenizer.from_pretrained(run.model)


def device() -> dict[str, Any]:
    """Return the device that a run would train on, and why, as a short-lived process of the engine finds it.

    {"device", "reason", "dtype", "dtype_reason", "name", "memory_total", "memory_free": bytes or None, "cores",
    "torch": version, "matrix_peak": FLOPs a second of its fastest matrix product, measured now}. Raises DeviceError.
    """
    command = [sys.executable, "-P", "-m", "gptx_nb.worker", "--device"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=launch.environment(),
            timeout=DEVICE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"torch has not answered for {DEVICE_SECONDS:g} seconds. Try `%gpt_device` again") from None
    lines = done.stdout.strip().splitlines()
    try:
        facts: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        facts = {}
    if done.returncode != 0 or "device" not in facts:
        if "error" in facts:
            raise BY_NAME.get(facts["error"], DeviceError)(facts["message"])
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise RunFailed(f"the engine could not be asked for its device (exit status {done.returncode}):\n{tail}")
    return facts


def free() -> str:
    """End the inference process, which keeps models warm, and return in one line what came of it.

    Its memory, on a GPU too, is free then. Runs go on; the next prediction starts a new process.
    """
    return "The inference process has ended." if inference.free() else "There is no inference process."
