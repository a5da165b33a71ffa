"""Rehearsals: what a recipe would learn from, how the model would see it, what it would take. Nothing is trained.

A short-lived process of the engine reads the table, tells of it, then loads the base model, makes tokens, estimates
memory, tries one step, and ends. No run is made, and nothing is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptx_nb import files, launch, sources
from gptx_nb.errors import BY_NAME, GptxError, RunFailed, UsageError
from gptx_nb.recipe import Recipe, Settings

POLL = 0.1  # seconds

Json = dict[str, Any]
TABLE, RESULT, REQUEST = "table.json", "result.json", "request.json"


class Withdrawn(GptxError):
    """Nobody wants to know any more."""


def rehearse(
    recipe: Settings,
    data: object | None = None,
    validation: object | None = None,
    *,
    on_table: Callable[[Json], None] = lambda told: None,
    withdrawn: Callable[[], bool] = lambda: False,
) -> Json:
    """Return what the engine would do with `recipe` and its table; `data` and `validation` as for `launch.train`.

    `on_table` is called as soon as the table is read, within a second or two: {"columns": names, "rows": the first ones
    as texts, "report": as data/report.json, or None, "error": what is wrong with it, or None}. The result is {"plan":
    as plan.json, "lengths": [shortest, longest, rows] of tokens, "batch": those of the "batch_rows" rows of the first
    step that are shown, "examples": the first few of them}. Such a row is {"pieces": [[text, whether it is to be
    predicted], ...], "label", "tokens"}. Raises UsageError for a mistake, RunFailed where the process broke off.
    """
    if not isinstance(recipe, Recipe):
        raise UsageError("pretraining reads and cleans all its texts first: what it takes is told when it has begun")
    recipe = launch.settled(recipe)
    with tempfile.TemporaryDirectory(prefix="gptx_nb-rehearsal-") as scratch:
        folder = Path(scratch)
        staged = sources.stage(recipe, data, validation, folder)
        request = {
            "recipe": recipe.model_dump(mode="json"),
            "source": {name: source.to_json() if source else None for name, source in staged.items()},
        }
        files.write_json(folder / REQUEST, request)
        return _ask(folder, on_table, withdrawn)


def _ask(folder: Path, on_table: Callable[[Json], None], withdrawn: Callable[[], bool]) -> Json:
    command = [sys.executable, "-P", "-m", "gptx_nb.worker", "--rehearse", str(folder)]
    told = False
    with open(folder / "log.txt", "wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=launch.environment(),
            start_new_session=True,
        )
        try:
            ended = False
            while not ended:
                ended = child.poll() is not None
                if not told and (table := files.read_json(folder / TABLE)) is not None:
                    told = True
                    on_table(table)
                if withdrawn():
                    raise Withdrawn("withdrawn")
                time.sleep(0 if ended else POLL)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
    try:
        result: Json = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        tail = "\n".join((folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-6:])
        raise RunFailed(f"the rehearsal broke off (exit status {child.returncode}):\n{tail}") from None
    if "error" in result:
        raise BY_NAME.get(result["error"], RunFailed)(result["message"])
    return result
