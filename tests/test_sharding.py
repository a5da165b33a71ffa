"""Processes that share a model (FSDP2): equal to one that has the whole, before and after a checkpoint, to the end."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded_cells
from safetensors.torch import load_file
from test_distributed import REVIEWS, furthest_apart, nothing_is_left, processes_of, recipe, steps, still_model, until  # noqa: F401
from test_out_of_memory import FULL

from gptx_nb import launch
from gptx_nb.engine import checkpoints, distributed, memory, setup, sharding
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.distributed import Alone
from gptx_nb.engine.jobs import Classification
from gptx_nb.errors import RecipeError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import Progress, choices
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.runs import Run
from gptx_nb.views import panels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are looked up in /proc")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every cell, trained in two processes and in one."""
    folder = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(sharded_cells.__file__).parent), *sys.path]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        before = dict(os.environ)
        assert distributed.launch(2, "sharded_cells", [str(folder)]) == []
        assert dict(os.environ) == before, "what ranks inherit is not left behind in who started them"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in sharded_cells.CELLS}


@pytest.mark.parametrize("name", sharded_cells.CELLS)
def test_shards_learn_what_the_whole_learns(name: str, cells: dict[str, dict[str, Any]]) -> None:
    found = cells[name]
    lowered = name == "bfloat16"  # of which a sum of two parts is rounded otherwise than that of one
    assert found["losses"][0] == pytest.approx(found["losses"][1], abs=1e-3 if lowered else 1e-5)
    assert found["norms"][0] == pytest.approx(found["norms"][1], rel=1e-3 if lowered else 2e-5, nan_ok=True)
    assert found["apart"] < (1e-4 if lowered else 1e-5)
    assert found["moved"] > 2e-4, "weights were trained"
    assert found["share"] == pytest.approx(0.5, abs=0.01), "each process has half of the trained values"


@pytest.mark.parametrize("name", sharded_cells.CELLS)
def test_a_checkpoint_goes_on_in_shards_or_as_a_whole(name: str, cells: dict[str, dict[str, Any]]) -> None:
    found = cells[name]
    assert found["from"] == sharded_cells.HALF
    assert found["resumed"] == 0, "to the last bit"
    assert found["resumed as a whole"] < 1e-5


def test_a_step_that_overflows_is_left_out_by_all_processes(cells: dict[str, dict[str, Any]]) -> None:
    ours, theirs = cells["float16"]["left out"]
    assert ours == theirs
    assert 0 < ours < sharded_cells.STEPS


def losses(run: Run) -> list[float]:
    return [each["loss"] for each in run.history() if each["kind"] == "step"]


# In rank 1 of the second attempt memory runs out in the third step, amid a pass for which the other rank waits.
STARVED = f"""
import os, sys
if os.environ.get("RANK") == "1" and "--rank" in sys.orig_argv and sys.orig_argv[-1] == "2":
    from gptx_nb.engine.sharding import Sharded, ShardedOptimizer
    take, loss, steps = ShardedOptimizer.take, Sharded.loss, []
    def taken(self):
        steps.append(1)
        return take(self)
    def starved(self, loss_of):
        def of(model, tensors):
            if len(steps) == 2:
                raise RuntimeError({FULL!r})
            return loss_of(model, tensors)
        return loss(self, of)
    ShardedOptimizer.take, Sharded.loss = taken, starved
"""


def test_a_run_in_shards_that_was_killed_and_then_ran_out_of_memory_ends_as_one_run_with_a_plain_model(
    home: Path,
    still_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = recipe(still_model, learning_rate=1e-4, head="words", keep="last", epochs=4.0)
    one = launch.train("one", asked, data=REVIEWS, wait=True).run
    shared = asked.model_copy(update={"devices": 2, "sharding": "on", "checkpoint_every": 0.01})
    two = launch.train("two", shared, data=REVIEWS).run
    until(lambda: checkpoints.latest(two.checkpoints))  # one a step
    os.kill(processes_of(two)[1], signal.SIGKILL)
    launch.wait(two, timeout=120)
    assert two.state() == "interrupted"
    (tmp_path / "sitecustomize.py").write_text(STARVED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    again = launch.train("two", shared, data=REVIEWS, wait=True)
    assert (again.action, two.state(), two.attempts()) == ("resumed", "finished", 3)
    starved = two.outcome(2) or {}
    assert (starved["reason"], starved["again"]) == ("out of memory", True)
    assert starved["message"].startswith("rank 1: the device has too little memory")
    said = [each["text"] for each in two.history() if each["kind"] == "note"]
    assert "memory ran out in attempt 2: going on with " in " ".join(said)
    assert steps(two) == list(range(1, steps(two)[-1] + 1))

    ours, theirs = (load_file(run.model / "model.safetensors") for run in (two, one))
    assert set(ours) == set(theirs)
    assert furthest_apart(ours, theirs) < 1e-5
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    scores = [(run.scores() or {})["validation"] for run in (one, two)]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], abs=1e-5)
    told = {name: (choice, reason) for name, choice, reason in choices(two)}
    assert told["sharding"] == ("on", "each of 2 has a part of every tensor (FSDP2): asked for in the recipe")
    assert told["memory"][1].startswith("at the peak in each of 2 processes: ")
    assert " a second in each of 2 processes, measured on the longest rows" in told["time"][1]
    seen = Progress(two).refresh()
    assert [rank for rank, _, _, _ in seen.rank_rows()] == ["0", "1"]
    assert ">rank</th>" in panels.live(two, seen)["text/html"]


def prepared(model: Path, ranks: Alone, **settings: Any) -> setup.Setup:
    data = Examples(["a good film", "a bad film"] * 4, [1, 0] * 4)
    table = Table(data, data, ["bad", "good"], {"label": "label", "text": "text", "columns": [], "warnings": []})
    asked = recipe(model, devices=ranks.count, head="plain", **settings)
    return setup.prepare(asked, Classification(table, asked), lambda note: None, ranks=ranks)


def test_a_model_is_shared_where_the_whole_does_not_fit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(tiny_model, Alone(2))
    assert not whole.sharded
    assert whole.decided["sharding"] == {
        "choice": "off",
        "reason": "each of 2 has the whole model (DDP): the whole fits",
    }
    assert whole.estimate is not None
    needs = whole.estimate.to_come
    monkeypatch.setattr(memory, "available", lambda device: 2 * needs)  # for both; each keeps a margin
    shared = prepared(tiny_model, Alone(2))
    assert shared.sharded, shared.decided["memory"]["reason"]
    assert shared.decided["sharding"]["reason"].endswith("(FSDP2): the whole does not fit each of them")
    assert shared.estimate is not None
    assert shared.estimate.gradients < 0.6 * whole.estimate.gradients
    assert not prepared(tiny_model, Alone(2), sharding="off").sharded
    head = prepared(tiny_model, Alone(2), tune="head")
    assert not head.sharded
    assert not prepared(tiny_model, Alone(1)).sharded


def test_what_does_not_go_with_shards_is_told_before_anything_starts() -> None:
    def refused(kind: type[Recipe] | type[PretrainRecipe] = Recipe, **settings: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            make_recipe({"data": "df", "sharding": "on", "devices": 2, **settings}, "", kind)
        return str(caught.value)

    assert refused(devices=1).endswith("shares a model among several devices. Type `devices: all` too")
    assert "does not go with tune: head, which keeps what the frozen layers give. Type `tune: lora`" in refused(
        tune="head"
    )
    assert "does not go with optimizer: adamw-8bit, which steps whole tensors" in refused(optimizer="adamw-8bit")
    assert refused(PretrainRecipe, optimizer="muon").endswith("that no device has then. Type `optimizer: adamw`")
    quantized = refused(tune="lora", save="adapter", quantize="4bit")
    assert quantized.endswith("quantize: 4bit, whose weights cannot be cut. Leave one of them out")


def test_where_shards_cannot_be_had_the_plan_says_why() -> None:
    asked = make_recipe({"data": "df", "tune": "top:2", "devices": 2})
    assert sharding.told(asked, 2, False)["sharding"]["reason"] == (
        "each of 2 has the whole model (DDP): shards do not go with tune: top:2, which keeps what the frozen layers "
        "give"
    )
    assert sharding.told(asked, 1, False) == {}
