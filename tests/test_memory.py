"""The estimate of memory: its parts, what lowers it, what fits, and how near it is to what runs really take."""

from pathlib import Path
from typing import Any

import pytest
import torch
from memory_cells import CLEAR, Cell, learner_of, measured, model_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptx_nb import main_memory
from gptx_nb.engine import memory, setup, streams
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.memory import Estimate
from gptx_nb.engine.optimizer import Optimizer
from gptx_nb.engine.tasks.text_classification import Learner
from gptx_nb.engine.train import Settings, make_optimizer
from gptx_nb.recipe import Recipe

CPU = torch.device("cpu")
SETTINGS = Settings(steps=2, learning_rate=1e-4)

# Lengths, methods and layouts, on models wide enough for weights and activations to matter beside the libraries.
GRID = [
    Cell("gpt2", 256, 8, "full", "float32", "packed", 128, 16, 512, 2),
    Cell("gpt2", 256, 8, "lora", "float32", "padded", 32, 64, 4096, 1),
    Cell("gpt2", 256, 8, "top:2", "float32", "padded", 512, 4, 4096, 1),
    Cell("gpt2", 256, 8, "head", "float32", "packed", 128, 16, 4096, 1),
    Cell("gpt2", 128, 8, "lora", "bfloat16", "packed", 256, 4, 512, 2),
    Cell("llama", 256, 8, "top:4", "float32", "packed", 512, 4, 1024, 2),
    Cell("llama", 128, 8, "full", "bfloat16", "packed", 128, 8, 1024, 1),
    Cell("llama", 512, 8, "full", "float32", "packed", 64, 6, 256, 1, processes=2),
    Cell("gpt2", 512, 8, "full", "float32", "padded", 64, 6, 256, 1, processes=2, sharded=True),
    Cell("llama", 512, 8, "lora", "bfloat16", "packed", 32, 4, 128, 1, processes=2, sharded=True),
    Cell("llama", 512, 12, "lora", "float32", "packed", 64, 4, 128, 1, bits=4),
    Cell("gpt2", 128, 2, "top:1", "float32", "packed", 128, 4000, 4096, 1, kept=True),
    Cell("llama", 256, 8, "full", "float32", "packed", 128, 16, 1024, 1, task="writing"),
    Cell("gpt2", 256, 8, "full", "float32", "packed", 128, 16, 1024, 1, task="pretraining", optimizer="muon"),
    Cell("gpt2", 512, 8, "full", "float32", "packed", 32, 8, 256, 1, optimizer="adamw-8bit"),
]


def optimizer_of(model: torch.nn.Module) -> Optimizer:
    return make_optimizer(model, SETTINGS)


def estimate(model: PreTrainedModel, learner: Learner, dtype: torch.dtype = torch.float32) -> Estimate:
    micro = learner.step(0).micro
    largest = max(micro, key=lambda tensors: tensors["input_ids"].numel())
    options: dict[str, Any] = {"loss_of": learner.loss, "make_optimizer": optimizer_of, "device": CPU, "dtype": dtype}
    return memory.estimate(model, largest, several=len(micro) > 1, **options)


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak of a process can be measured on Linux only")
@pytest.mark.parametrize("cell", GRID, ids=str)
def test_the_estimate_is_within_15_percent_of_the_peak_of_a_run(cell: Cell) -> None:
    if cell.bits == 4 or cell.optimizer == "adamw-8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'gptx-nb[bitsandbytes]'")
    for found in measured(cell):
        assert abs(found.error) <= 0.15, f"{found.estimate / 1e6:.0f} MB estimated, {found.peak / 1e6:.0f} MB measured"


def test_parts_are_what_they_are_known_to_be_and_the_model_is_left_as_it_was() -> None:
    model = model_of("gpt2", 64, 2)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = estimate(model, learner_of(model, "full", 32, 4, 4096))
    weights = sum(each.numel() for each in model.parameters()) * 4
    assert made.weights == weights
    assert 2 * weights <= made.optimiser <= 2.01 * weights
    assert made.total == sum(made.parts().values())
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert " at the peak: " in str(made)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_saves_memory_is_estimated_lower(kind: str, dtype: torch.dtype) -> None:
    def to_come(method: str = "full", budget: int = 4096, checkpointing: bool = False) -> int:
        model = model_of(kind, 128, 4)
        if checkpointing:
            memory.checkpoint_activations(model)
        return estimate(model, learner_of(model, method, 64, 32, budget), dtype).to_come

    full = to_come()
    assert to_come(budget=512) < 0.7 * full
    assert to_come(checkpointing=True) < 0.8 * full
    assert to_come("top:1") < 0.6 * full
    assert to_come("head") < to_come("top:1")


def test_logits_of_a_model_that_writes_are_told_apart() -> None:
    model = AutoModelForCausalLM.from_config(model_of("gpt2", 64, 2).config)
    micro = {"input_ids": torch.ones(4, 32, dtype=torch.int64), "labels": torch.ones(4, 32, dtype=torch.int64)}
    options: dict[str, Any] = {"make_optimizer": optimizer_of, "device": CPU, "dtype": torch.float32, "process": 0}
    made = memory.estimate(model, micro, loss_of=lambda each, tensors: each(**tensors).loss, **options)
    one = 4 * 32 * 8000 * 4  # bytes: texts, tokens, vocabulary, float32
    assert 2 * one <= made.logits <= 4 * one, "logits, and what the loss and its gradient make of them"
    assert "logits" in str(made)
    assert estimate(model_of("gpt2", 64, 2), learner_of(model_of("gpt2", 64, 2), "full", 32, 4, 4096)).logits == 0


def test_a_model_without_weights_is_estimated_like_one_with_them() -> None:
    def parts(kind: str) -> dict[str, int]:
        with torch.device(kind):
            model = model_of("llama", 128, 2)
        made = estimate(model, learner_of(model, "lora", 64, 8, 4096))
        return {name: size for name, size in made.parts().items() if name != "process"}

    assert parts("meta") == parts("cpu")


def of(tokens: int) -> Estimate:
    return Estimate(0, 0, 0, activations=tokens * 1000, working=0, allocator=0, process=10**9)


def test_the_nearest_recipe_that_fits_is_said_as_it_is_typed() -> None:
    cost = {"full": 8, "lora": 4, "head": 1}

    def nearest(free: int, tune: str = "full") -> str | None:
        return memory.nearest_recipe(
            lambda method, length: of(cost[method] * length), tune=tune, max_length=512, free=free
        )

    assert nearest(3_000_000) == "max_length: 256"
    assert nearest(700_000) == "tune: lora, max_length: 128"
    assert nearest(620_000, "lora") == "max_length: 128"
    assert nearest(400_000) == "tune: head, max_length: 256"
    assert nearest(1_000) is None


def test_a_plan_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the film was good " * 90, "the film was bad " * 80] * 8
    table = Table(Examples(texts, [1, 0] * 8), None, ["bad", "good"], {"text": "t", "label": "l", "warnings": []})
    recipe = Recipe(data="here", device="cpu", dtype="float32", head="plain")
    monkeypatch.setattr(streams, "number_for", lambda *given: 2)  # whatever cores there are

    def prepared(free: int) -> tuple[str, list[list[int]], Estimate]:
        monkeypatch.setattr(memory, "available", lambda device: free)
        job = Classification(table, recipe)
        made = setup.prepare(recipe, job, lambda note: None)
        assert made.estimate is not None
        return "".join(made.decided["notes"]), job.token_rows[0], made.estimate

    said, rows, needs = prepared(10**12)
    assert said == ""
    for share, words in (
        (0.7, "Type `tokens_at_once: 361`, which would fit"),
        (
            0.4,
            "With activations computed twice it would fit, at the same result: a run goes over to that by itself where",
        ),
        (0.25, "Type `tune: lora`, which would fit"),
    ):
        said, still, _ = prepared(int(share * needs.to_come))
        assert f"GB of memory are free. {words}" in said
        assert still == rows
    assert prepared(1000)[0].endswith("Take a smaller model: shorter rows are not enough")


def test_a_plan_that_does_not_fit_leaves_what_the_base_model_is_scored_on(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the film was good " * 30, "the film was bad " * 20] * 8
    held = Examples(texts[:4], [1, 0] * 2)
    table = Table(Examples(texts, [1, 0] * 8), held, ["bad", "good"], {"text": "t", "label": "l", "warnings": []})
    recipe = Recipe(data="here", device="cpu", dtype="float32", head="words")

    def scores(free: int) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(memory, "available", lambda device: free)
        job = Classification(table, recipe)
        made = setup.prepare(recipe, job, lambda note: None)
        assert made.estimate is not None
        return job.before(made.model, made.tokenizer, made.learner)["scores"], "".join(made.decided["notes"])

    enough, starved = scores(10**12), scores(10**6)
    assert "GB of memory are free" in starved[1]
    assert starved[0] == enough[0]


def groups(machine: Path, cgroup: str, files: dict[str, str]) -> tuple[int | None, int | None]:
    (machine / "proc/self").mkdir(parents=True)
    (machine / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 800 kB\nHugePages_Total: 0\n")
    (machine / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = machine / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return main_memory.total_and_free(machine)


def test_a_control_group_above_limits_the_memory_that_is_free(tmp_path: Path) -> None:
    v2 = {
        "user/memory.max": "600000\n",
        "user/memory.current": "300000\n",
        "user/memory.stat": "anon 1\ninactive_file 100000\n",
        "user/job/memory.max": "max\n",
        "user/job/memory.current": "1\n",
        "user/job/memory.stat": "anon 1\n",
    }
    assert groups(tmp_path / "v2", "0::/user/job\n", v2) == (600_000, 400_000)
    v1 = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "5\n",
        "memory/memory.stat": "cache 1\n",
        "memory/job/memory.limit_in_bytes": "500000\n",
        "memory/job/memory.usage_in_bytes": "300000\n",
        "memory/job/memory.stat": "total_inactive_file 50000\n",
    }
    assert groups(tmp_path / "v1", "3:cpu:/\n2:cpuset,memory:/job\n0::/\n", v1) == (500_000, 250_000)
    assert groups(tmp_path / "outside", "0::/not/seen/here\n", {}) == (1_024_000, 819_200)


def test_free_memory_of_this_machine_is_told() -> None:
    free = memory.available(CPU)
    assert free is None or free > 0
