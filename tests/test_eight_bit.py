"""AdamW with 8-bit states. Its GPU kernels have not been run here; bitsandbytes has the same arithmetic for a CPU."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_packing import CPU, small
from test_streams import SETTINGS, learner_of, trained

from gptx_nb.engine import checkpoints, setup
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.train import make_optimizer
from gptx_nb.errors import DeviceError, RecipeError
from gptx_nb.recipe import make_recipe

BETAS = (0.9, 0.999)


def test_it_learns_nearly_what_adamw_does_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'gptx-nb[bitsandbytes]'")
    losses = []
    for make in (optimizers.adamw, optimizers.adamw_8bit):
        model = small("gpt2", n_inner=1024)  # matrices of fewer values stay float32
        optimizer = make(model, 1e-3, 0.1, BETAS)
        losses.append(trained(learner_of(model), model, optimizer))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert torch.uint8 in {state["state1"].dtype for state in optimizer.state.values()}

    checkpoints.save(tmp_path, model, optimizer, {"step": 8})
    again = small("gpt2", n_inner=1024)
    other = optimizers.adamw_8bit(again, 1e-3, 0.1, BETAS)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    checkpoints.load(found, again, other)
    more = [trained(learner_of(each), each, made) for each, made in ((model, optimizer), (again, other))]
    assert more[0] == more[1], "to the last bit"


def test_its_memory_is_estimated_without_it() -> None:
    def taken(optimizer: torch.optim.Optimizer) -> int:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        kept = [value for state in optimizer.state.values() for key, value in state.items() if "qmap" not in key]
        return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))

    layer = torch.nn.Linear(512, 300)
    assert taken(optimizers.SizesOf8bit(layer)) == 2 * (512 * 300 + 4 * 600) + 2 * 4 * 300
    assert taken(optimizers.adamw(layer, 1e-3, 0.1, BETAS)) > 3.8 * taken(optimizers.SizesOf8bit(layer))
    if importlib.util.find_spec("bitsandbytes"):
        assert taken(optimizers.adamw_8bit(layer, 1e-3, 0.1, BETAS)) == taken(optimizers.SizesOf8bit(layer))

    model = small("llama")
    settings = replace(SETTINGS, optimizer="adamw-8bit")
    assert setup.estimate_memory(model, learner_of(model), settings, torch.float32, CPU, 0).optimiser > 0


def test_it_is_for_a_gpu() -> None:
    data = Examples(["good", "bad"], [0, 1])
    table = Table(data, data, ["a", "b"], {"label": "label", "text": "text", "columns": []})
    asked = make_recipe({"data": "df", "optimizer": "adamw-8bit", "device": "cpu"})
    with pytest.raises(
        DeviceError, match=r"adamw-8bit saves memory of NVIDIA GPUs, and this run trains on cpu\. Leave"
    ):
        setup.prepare(asked, Classification(table, asked), lambda note: None)


def test_where_bitsandbytes_is_missing_a_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RecipeError, match=r"is not installed\. Type `%pip install 'gptx-nb\[bitsandbytes\]'`"):
        make_optimizer(small("llama"), replace(SETTINGS, optimizer="adamw-8bit"))
