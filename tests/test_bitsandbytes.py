"""AdamW in 8 bits, lora beside 4 bits. Their GPU kernels have not been run: bitsandbytes has others for a CPU."""

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_packing import CPU, PAD, ROWS, small
from test_streams import SETTINGS, learner_of, trained

from gptx_nb.engine import checkpoints, quantized, setup, tuning
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.tasks import text_classification
from gptx_nb.engine.train import make_optimizer
from gptx_nb.errors import DeviceError, ModelError, RecipeError
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


def in_4_bits(model: torch.nn.Module) -> None:
    """Quantise `model` as on a GPU: where a CPU has AVX-512 BF16, bitsandbytes has a layout of its own for answers.

    That one needs widths of multiples of 64, and cannot be trained.
    """
    quantized.to_4bit(model, torch.float32)
    torch.nn.Module.to(model, CPU)
    for each in model.modules():
        if "Linear4bit" in type(each).__name__:
            each.support_avx512bf16_for_cpu = False


def test_what_lora_leaves_is_kept_in_4_bits_and_learns_nearly_the_same(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'gptx-nb[bitsandbytes]'")
    found = []
    for bits in (32, 4):
        model = small("llama")
        plain = copy.deepcopy(model)
        if bits == 4:
            in_4_bits(model)
            assert {each.weight.dtype for each in model.modules() if "Linear4bit" in type(each).__name__} == {
                torch.uint8
            }
        tuned = tuning.prepare(model, "lora")
        learner = text_classification.Learner(
            model, tuned, ROWS, [0, 1, 2, 0, 1, 2], ROWS, pad_id=PAD, device=CPU, batch_size=6, seed=0
        )
        found.append(trained(learner, model, optimizers.adamw(model, 1e-2, 0.0, BETAS)))
    assert found[1] == pytest.approx(found[0], rel=0.2)
    drops = [losses[0] - losses[-1] for losses in found]
    assert drops[0] > 0.05, "it learns"
    assert drops[1] == pytest.approx(drops[0], rel=0.3)
    held = torch.from_numpy(learner.held_logits())

    config, tensors = tuning.adapter(model, "base", None)
    config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / tuning.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    whole = tuning.with_adapter(plain, tmp_path)
    logits = torch.from_numpy(text_classification.logits(whole, ROWS, pad_id=PAD, device=CPU, labels=3))
    assert (logits - held).abs().max() < 0.3 * held.abs().max(), "the base is the one that was not quantised"


def test_memory_of_what_is_in_4_bits_is_estimated_and_the_model_left_as_it_was() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'gptx-nb[bitsandbytes]'")
    estimates = []
    for bits in (32, 4):
        model = small("llama")
        if bits == 4:
            in_4_bits(model)
        tuned = tuning.prepare(model, "lora")
        learner = text_classification.Learner(
            model, tuned, ROWS, [0, 1, 2, 0, 1, 2], ROWS, pad_id=PAD, device=CPU, batch_size=6, seed=0
        )
        before = learner.held_logits()
        estimates.append(setup.estimate_memory(model, learner, SETTINGS, torch.float32, CPU, 0))
        assert (learner.held_logits() == before).all()
    assert estimates[1].weights < 0.75 * estimates[0].weights
    assert estimates[1].gradients == estimates[0].gradients


def test_where_4_bits_do_not_fit_a_message_says_so() -> None:
    with pytest.raises(RecipeError, match="type `tune: lora` and `save: adapter` too"):
        make_recipe({"data": "df", "quantize": "4bit", "tune": "lora"})
    with pytest.raises(DeviceError, match=r"quantize: 4bit saves memory of NVIDIA GPUs, and this run trains on cpu\."):
        quantized.require(CPU)
    if importlib.util.find_spec("bitsandbytes"):
        with pytest.raises(ModelError, match="the layers of a gpt2 model cannot be put into 4 bits"):
            quantized.to_4bit(small("gpt2"), torch.float32)
    else:
        with pytest.raises(RecipeError, match=r"4bit needs bitsandbytes, which is not installed\. Type `%pip install"):
            quantized.require(torch.device("cuda"))
