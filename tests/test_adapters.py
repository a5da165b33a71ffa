"""A model kept as an adapter: small, loaded with its base, the same answers; a base that fits no more is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import gptx_nb
from gptx_nb import adapters, launch
from gptx_nb.engine import device, jobs, models, setup
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.predict import Classifier
from gptx_nb.engine.writer import Writer
from gptx_nb.errors import ModelError, RecipeError
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


def test_an_adapter_is_no_base_model(base: Path, tmp_path: Path) -> None:
    adapter, _ = kept(base, tmp_path)
    with pytest.raises(ModelError, match="is kept as an adapter, and a base model has to be whole"):
        models.find(str(adapter))


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


def test_a_run_is_kept_as_an_adapter_and_written_with(home: Path, base: Path) -> None:
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
