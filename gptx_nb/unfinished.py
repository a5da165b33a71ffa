"""The model of a run that still trains, or that broke off: the weights that it saved last, as a plain model to ask.

A short-lived process of the engine makes it beside the run's own files, once a step; training is not touched. It goes
when the run has finished.
"""

from __future__ import annotations

from gptx_nb import errands
from gptx_nb.errors import RunFailed, RunNotFound
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
    told = errands.ask(
        "--unfinished",
        str(run.folder),
        seconds=SECONDS,
        late=RunFailed(f"the weights were not made a model within {SECONDS:g} seconds. Ask again later"),
        broke_off="the saved weights could not be made a model",
    )
    return int(told["step"])
