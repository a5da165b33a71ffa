"""Where memory runs out: the step, or the next attempt, takes less and learns the same; what cannot is told in words.

Real workers are killed: by the kernel, in a control group with too little memory, and by a signal at a known step.
"""

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.numpy import load_file

from gptx_nb import launch
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run

ROWS = 96
LONG = pd.DataFrame(
    {
        "text": [f"{['good', 'bad'][row % 2]} film {row} " * 20 for row in range(ROWS)],
        "label": ["positive", "negative"] * (ROWS // 2),
    }
)


def recipe(model: Path, **more: Any) -> Recipe:
    settings = {"model": str(model), "data": "df", "epochs": 4.0, "batch_size": 32, "device": "cpu", "dtype": "float32"}
    return Recipe.model_validate({**settings, "head": "plain", "baselines": False, "keep": "last", **more})


def losses(run: Run) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in run.history() if record["kind"] == "step"}


def notes(run: Run) -> list[str]:
    return [record["text"] for record in run.history() if record["kind"] == "note"]


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A new control group for memory, below this process's own."""
    for root, controllers in ((Path("/sys/fs/cgroup/memory"), None), (Path("/sys/fs/cgroup"), "cgroup.controllers")):
        group = root / f"gptx-{uuid.uuid4().hex[:8]}"
        if controllers and not (root / controllers).exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        if any((group / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
            yield group
            for _ in range(100):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    return
                time.sleep(0.05)
            return
        group.rmdir()
    pytest.skip("no control group for memory can be made here")


def within(group: Path, name: str, other: str) -> Path:
    """A file of a control group, by its name in version 1 or 2."""
    return next(group / each for each in (name, other) if (group / each).exists())


def test_a_worker_that_the_kernel_kills_is_followed_by_one_that_takes_less(
    home: Path, tiny_model: Path, control_group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = launch._supervisor_command
    inside = ["sh", "-c", f'echo $$ > {control_group}/cgroup.procs; exec "$@"', "sh"]
    monkeypatch.setattr(launch, "_supervisor_command", lambda run, attempt: [*inside, *command(run, attempt)])
    asked = recipe(tiny_model, tokens_at_once=65_536, batch_size=96, epochs=3.0)
    whole = launch.train("whole", asked, data=LONG, wait=True).run
    plan = whole.plan()
    assert plan is not None
    to_come = sum(plan["memory"]["parts"].values()) - plan["memory"]["parts"]["process"]
    most = int(within(control_group, "memory.max_usage_in_bytes", "memory.peak").read_text())
    within(control_group, "memory.limit_in_bytes", "memory.max").write_text(str(most - int(0.4 * to_come)))

    run = launch.train("starved", asked, data=LONG, wait=True).run
    assert run.state() == "finished"
    first = run.outcome(1)
    assert first is not None
    assert (first["reason"], first["signal"], first["out_of_memory_kills"]) == ("out of memory", signal.SIGKILL, 1)
    assert run.attempts() > 1
    print(notes(run))
    said = next(note for note in notes(run) if note.startswith("memory ran out in attempt 1: going on with "))
    assert "tokens at once" in said
    assert "the result stays the same. `tokens_at_once: " in said
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (run, whole))
    assert max(float(abs(ours[name] - theirs[name]).max()) for name in theirs) < 1e-4
