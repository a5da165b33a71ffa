"""A model kept as an adapter: small, loaded with its base, the same answers; a base that fits no more is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import gptx_nb
from gptx_nb import adapters, launch
from gptx_nb.engine import device, jobs, models, setup
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.predict import Classifier
from gptx_nb.engine.writer import Writer
from gptx_nb.errors import ModelError, RecipeError, UsageError
from gptx_nb.recipe import make_recipe

TEXTS = ["a good film", "a bad film, and a long one too", "fine", "poor"]
CPU = device.choose("cpu", "float32")


def recipe(model: Path, **more: Any) -> Any:
    asked = {"model": str(model), "data": "df", "tune": "lora", "save": "adapter", "head": "plain", "device": "cpu"}
    return make_recipe({**asked, "dtype": "float32", "baselines": False, "epochs": 2, "batch_size": 2, **more})


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """A base model of the test's own, to be changed and moved."""
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def kept(base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Save one model, tuned with lora, as an adapter and merged."""
    data = Examples(TEXTS, [0, 1, 0, 1])
    table = Table(data, data, ["bad", "good"], {"label": "label", "text": "text", "columns": []})
    job = Classification(table, recipe(base))
    made = setup.prepare(recipe(base), job, lambda note: None)
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name or name == "score.weight":
            torch.nn.init.normal_(parameter, std=0.1)
    folders = tmp_path / "adapter", tmp_path / "merged"
    jobs.save(job, folders[0], made.finish(1), made.tokenizer, made.max_length, made.adapter_of)
    jobs.save(job, folders[1], setup.tuning.merge(made.model), made.tokenizer, made.max_length)
    return folders


def test_an_adapter_answers_as_the_merged_model_does(base: Path, tmp_path: Path) -> None:
    adapter, merged = kept(base, tmp_path)
    answers = [torch.tensor(Classifier.load(folder, CPU).predict(TEXTS)) for folder in (adapter, merged)]
    assert torch.allclose(*answers, atol=1e-5)
    plain = torch.tensor(Classifier.load(merged, CPU).predict(["something else"]))
    assert (answers[1] - plain).abs().max() > 1e-3, "and the answers depend on the text"
    assert {file.suffix for file in adapter.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert not (adapter / "model.safetensors").exists()


def test_an_adapter_is_read_without_gptx_nb(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter, merged = kept(base, tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    bare = AutoModelForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(adapter))
    again = PeftModel.from_pretrained(bare, str(adapter)).eval()
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, whole(ids).logits, atol=1e-5)


def test_a_base_that_is_gone_or_has_changed_is_told(base: Path, tmp_path: Path) -> None:
    adapter, _ = kept(base, tmp_path)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"is an adapter of .*, and the base model's folder .* is gone\. Put it"):
        Classifier.load(adapter, CPU)
    (tmp_path / "elsewhere").rename(base)
    Classifier.load(adapter, CPU)
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"have changed since it was tuned.* run its cell again with `save: merged`"):
        Classifier.load(adapter, CPU)


def test_an_adapter_is_a_base_model_like_the_merged_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTX_CACHE", str(tmp_path / "cache"))
    adapter, merged = kept(base, tmp_path)
    told: list[str] = []
    found, whole = models.find(str(adapter), None, told.append), models.find(str(merged))
    assert told == ["merging the adapter with its base (once)"]
    assert found.where.startswith(f"{adapter}, merged with its base in {tmp_path / 'cache' / 'merged-'}")
    weights = [dict(models.load_causal(each).named_parameters()) for each in (found, whole)]
    before = dict(models.load_causal(models.find(str(base))).named_parameters())
    assert all(torch.allclose(each, weights[1][name], atol=1e-6) for name, each in weights[0].items())
    assert max(float((each - before[name]).abs().max()) for name, each in weights[0].items()) > 1e-3
    heads = [models.load_classifier(each, models.load_tokenizer(each), ["a", "b"], 0) for each in (found, whole)]
    assert all(map(torch.allclose, heads[0].parameters(), heads[1].parameters()))
    base.rename(tmp_path / "elsewhere")  # it has been merged, and is needed no more
    assert models.find(str(adapter), None, told.append).path == found.path
    assert len(told) == 1


def test_an_adapter_whose_base_is_gone_is_no_base_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTX_CACHE", str(tmp_path / "cache"))
    adapter, _ = kept(base, tmp_path)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"is an adapter of .*, and the base model's folder .* is gone\. Put it"):
        models.find(str(adapter))
    assert not (tmp_path / "cache").exists()


def test_an_adapter_that_lacks_a_tensor_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter, _ = kept(base, tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the adapter lacks "):
        Classifier.load(adapter, CPU)


def test_only_lora_makes_an_adapter() -> None:
    with pytest.raises(RecipeError, match="save: adapter keeps what lora has tuned; type `tune: lora` too"):
        make_recipe({"data": "df", "save": "adapter"})


def test_a_run_is_kept_as_an_adapter_and_written_with(home: Path, base: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["say a", "say b", "say c", "say d"] * 3, "answer": ["a", "b", "c", "d"] * 3})
    asked = recipe(base, task="text-generation", head="auto", columns={"prompt": "prompt", "completion": "answer"})
    run = launch.train("adapted", asked, data=frame, wait=True).run
    assert run.state() == "finished"
    assert json.loads((run.model / adapters.BASE_FILE).read_text())["path"] == str(base)
    assert not (run.model / "model.safetensors").exists()
    writer = Writer.load(run.model, CPU)
    model, tokenizer = gptx_nb.load("adapted")
    ids = tokenizer("say a", return_tensors="pt").input_ids
    merged: Any = writer._model
    with torch.no_grad():
        ours, theirs = (each.eval()(ids, use_cache=False).logits for each in (model, merged))
    assert torch.allclose(ours, theirs, atol=1e-5)

    whole = gptx_nb.merge("adapted")
    assert whole == run.folder / "merged"
    assert (run.model / adapters.BASE_FILE).is_file(), "the run keeps its adapter"
    plain = AutoModelForCausalLM.from_pretrained(whole).eval()
    with torch.no_grad():
        assert torch.allclose(plain(ids, use_cache=False).logits, theirs, atol=1e-5)
    assert {file.name for file in run.model.iterdir()} - {file.name for file in whole.iterdir()} == {
        adapters.BASE_FILE,
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    shutil.rmtree(base)
    assert Writer.load(whole, CPU)._model is not None, "it needs no base"
    with pytest.raises(UsageError, match=r"merge: .*merged is there already\. Name another folder, or remove it"):
        gptx_nb.merge("adapted")
    with pytest.raises(ModelError, match=r"and the base model's folder .* is gone"):
        gptx_nb.merge("adapted", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_goes_on_from_one_that_is_kept_as_an_adapter(
    home: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTX_CACHE", str(tmp_path / "cache"))
    frame = pd.DataFrame({"text": TEXTS * 3, "label": ["good", "bad", "good", "bad"] * 3})
    launch.train("first", recipe(base), data=frame, wait=True)
    second = launch.train("second", recipe(Path("run:first"), tune="full", save="merged"), data=frame, wait=True)
    assert second.run.state() == "finished"
    plan = second.run.plan() or {}
    assert plan["model"]["where"].startswith("run first version 1 <- ")
    assert "merged with its base in " in plan["model"]["where"]
    with pytest.raises(UsageError, match=r"run second.* is no adapter: its model is whole already, in "):
        gptx_nb.merge("second")
