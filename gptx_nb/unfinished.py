"""The model of a run that still trains, or that broke off: the weights that it saved last, as a plain model to ask.

A short-lived process of the engine makes it beside the run's own files, once a step; training is not touched. It goes
when the run has finished.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from gptx_nb import launch
from gptx_nb.errors import BY_NAME, RunFailed, RunNotFound
from gptx_nb.runs import Run

SECONDS = 600.0  # a large model on a busy disk takes its time


def latest(run: Run) -> int:
    """Make sure that there is a model of the latest weights, and return after which step they were saved.

    It is `run.unfinished(step)`. Raises RunNotFound where none were saved yet, RunFailed where the process broke off.
    """
    if not any(folder.is_dir() and any(folder.iterdir()) for folder in (run.checkpoints, run.best)):
        raise RunNotFound(
            f"{run.name} v{run.version} has no model yet: it is {run.state()}, and has saved no weights. It does when "
            "it is first scored, or after `checkpoint_every` seconds"
        )
    command = [sys.executable, "-P", "-m", "gptx_nb.worker", "--unfinished", str(run.folder)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=launch.environment(),
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"the weights were not made a model within {SECONDS:g} seconds. Ask again later") from None
    lines = done.stdout.strip().splitlines()
    try:
        told: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        told = {}
    if "error" in told:
        raise BY_NAME.get(told["error"], RunFailed)(told["message"])
    if done.returncode != 0 or "step" not in told:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise RunFailed(f"the saved weights could not be made a model (exit status {done.returncode}):\n{tail}")
    return int(told["step"])
