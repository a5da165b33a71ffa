"""Several processes that share one model (FSDP2): equal to one process, from any checkpoint, to a plain model."""

import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_distributed import REVIEWS, nothing_is_left, recipe, still_model, steps  # noqa: F401 (fixtures)

from gptx_nb import launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are looked up in /proc")


def losses(run: Any) -> list[float]:
    return [each["loss"] for each in run.history() if each["kind"] == "step"]


def test_two_processes_that_share_a_model_train_what_one_trains(home: Path, still_model: Path) -> None:  # noqa: F811
    asked = recipe(still_model, batch_size=5, learning_rate=1e-4, head="words")
    one = launch.train("one", asked, data=REVIEWS, wait=True).run
    two = launch.train("two", asked.model_copy(update={"devices": 2, "sharding": "on"}), data=REVIEWS, wait=True).run
    assert two.state() == "finished"
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (two, one))
    assert set(ours) == set(theirs)
    before = load_file(still_model / "model.safetensors")
    moved = max(float((theirs[name] - before[name]).abs().max()) for name in before if name in theirs)
    assert moved > 3e-4, "weights were trained"
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    print(two.plan())
