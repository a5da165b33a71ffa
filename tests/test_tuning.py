"""What is trained, and the frozen part that is computed once: equal to computing it anew."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_packing import CPU, PAD, ROWS, small
from transformers import AutoModelForSequenceClassification

from gptx_nb import launch
from gptx_nb.engine import models, packing, plan, trial, tuning
from gptx_nb.engine.batches import Step
from gptx_nb.engine.device import choose
from gptx_nb.engine.memory import Estimate
from gptx_nb.engine.sharding import Whole
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Settings, make_optimizer
from gptx_nb.recipe import make_recipe

WORDS = {"lovely": "good", "great": "good", "awful": "bad", "poor": "bad"}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
KINDS = ["gpt2", "llama", "qwen3", "phi"]


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_each_method_trains_what_it_says(kind: str) -> None:
    everything = trained_names(small(kind))

    def trained(method: str) -> set[str]:
        model = small(kind)
        made = tuning.prepare(model, method)
        assert made.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
        return trained_names(model)

    assert trained("full") == everything
    assert trained("head") == {"score.weight"}
    top = trained("top:1")
    assert {name for name in top if ".0." in name or "embed" in name or "wte" in name} == set()
    assert {name for name in everything if ".1." in name} <= top
    assert {"score.weight"} < top
    assert {name for name in trained("top:9") if ".0." in name or ".1." in name} == {
        name for name in everything if ".0." in name or ".1." in name
    }
    low_rank = trained("lora") - {"score.weight"}
    assert low_rank
    assert all("lora_" in name for name in low_rank)


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_updates_begin_at_nothing_and_are_merged_into_a_plain_model(kind: str, tmp_path: Path) -> None:
    model = small(kind).eval()
    plain = set(model.state_dict())
    before = task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3)
    tuning.prepare(model, "lora")
    assert np.abs(task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3) - before).max() < 1e-5
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3)
    assert np.abs(changed - before).max() > 1e-2
    merged = tuning.merge(model)
    assert set(merged.state_dict()) == plain
    assert np.abs(task.logits(merged, ROWS, pad_id=PAD, device=CPU, labels=3) - changed).max() < 1e-4
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    assert np.abs(task.logits(again, ROWS, pad_id=PAD, device=CPU, labels=3) - changed).max() < 1e-4


def steps(model: Any, logits: Any) -> list[float]:
    """Train six rows for five steps with what `logits` gives; return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(logits(), LABELS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["head", "top:1"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_training_on_the_kept_frozen_part_equals_training_without(
    kind: str, method: str, on_disk: bool, tmp_path: Path
) -> None:
    model = small(kind)  # gpt2 has dropout: in the frozen part it must be off, in the trained one it is turned off here
    tuning.prepare(model, method)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    packing.use(model)
    tensors = packing.pack(ROWS, PAD)
    expected = steps(model, lambda: model.score(packing.states(model, tensors)[tensors["last"]]))

    model = small(kind)
    made = tuning.prepare(model, method)
    packing.use(model)
    kept = tuning.FrozenPart(model, made, ROWS, empty=PAD)
    kept.compute(CPU, contextlib.nullcontext, 16, file=tmp_path / "kept" if on_disk else None)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    everyone = range(len(ROWS))
    found = steps(model, lambda: kept.logits(kept.tensors(everyone)))
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0]
    rows = len(ROWS) if method == "head" else 55
    assert kept.bytes == rows * 32 * 4
    # Any order and choice of rows.
    some = kept.logits(kept.tensors([4, 2])).detach()
    whole = kept.logits(kept.tensors(everyone)).detach()
    assert torch.allclose(some, whole[[4, 2]], atol=1e-5)


def test_dropout_is_off_in_the_frozen_part_and_on_in_the_trained_one() -> None:
    model = small("gpt2")
    tuning.prepare(model, "top:1")
    lower, upper = tuning.layers_of(model)
    assert {module.p for module in lower.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert {module.p for module in upper.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    assert model.transformer.drop.p == 0.0


@pytest.mark.parametrize("method", ["lora", "top:2", "head"])
def test_a_run_trains_the_part_that_its_recipe_names_and_saves_a_plain_model(home: Path, method: str) -> None:
    examples = [[f"{word} {noun}", label] for word, label in WORDS.items() for noun in ("film", "day", "book", "meal")]
    recipe = make_recipe({"examples": examples, "tune": method, "epochs": 3, "validation": 0.25})
    run = launch.train("part", recipe, wait=True).run
    plan = run.plan()
    assert plan is not None
    assert plan["tune"]["choice"] == method
    assert plan["rows"]["choice"] == "packed"
    weights = plan["memory"]["parts"]["weights"] / plan["model"]["parameters"]
    if plan["dtype"]["choice"] == "bfloat16":  # and float32 beside those that are trained
        assert 2 <= weights <= (4.8 if method == "top:2" else 2.2)
    else:
        assert weights == pytest.approx(4, rel=0.05)
    batch = plan["tokens_per_step"]["choice"]
    assert batch <= plan["batch_size"]["choice"] * plan["tokens"]["max"]
    assert batch * plan["steps"] >= 3 * plan["train_rows"] * plan["tokens"]["min"], "three epochs"
    if method != "head":
        assert plan["limit"]["bytes_per_second"] > 1e8
        assert plan["limit"]["reason"].endswith(f". Memory moves {plan['limit']['bytes_per_second'] / 1e9:,.0f} GB/s")
    notes = [record["text"] for record in run.history() if record.get("kind") == "note"]
    assert any("frozen part kept in memory" in note for note in notes) == (method != "lora")
    assert not run.frozen_part.exists()

    base = AutoModelForSequenceClassification.from_pretrained(models.find("tiny").path, num_labels=2)
    trained = AutoModelForSequenceClassification.from_pretrained(run.model)
    before, after = base.state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    layers = {name.split(".")[2] for name in changed if ".h." in name}
    assert layers == {"lora": {"0", "1", "2", "3"}, "top:2": {"2", "3"}, "head": set()}[method]
    assert "transformer.wte.weight" not in changed
    assert trained.config.id2label == {0: "bad", 1: "good"}


def test_a_plan_says_what_memory_is_needed_and_warns_where_it_may_be_too_little() -> None:
    needs = Estimate(
        weights=10**9, gradients=10**9, optimiser=2 * 10**9, activations=10**9, working=0, allocator=0, process=10**9
    )
    said, warnings = plan.memory(needs, 8 * 10**9, lambda free: f"Free more than {free}")
    assert (said["choice"], warnings) == ("6.0 GB", [])
    assert said["reason"].startswith("at the peak: optimiser 2.0 GB, ")
    assert said["reason"].endswith("; 8.0 GB are free")
    _, warnings = plan.memory(needs, 4 * 10**9, lambda free: f"Free more than {free}")
    assert warnings == ["training needs about 4.0 GB more, and 4.0 GB of memory are free. Free more than 4000000000"]
    assert plan.memory(needs, None, lambda free: "")[1] == []


def test_what_a_way_forward_takes_of_a_step_is_counted_in_matrix_products() -> None:
    def share(method: str, step_spared: bool = False, forward_spared: bool = False) -> float:
        model = small("gpt2")
        tuning.prepare(model, method)
        return tuning.forward_share(model, step_spared=step_spared, forward_spared=forward_spared)

    layers = len(tuning.layers_of(small("gpt2")))
    assert share("full") == pytest.approx(2 / 6)
    assert share("head") == 1, "nothing goes back"
    assert share("head", True, True) == pytest.approx(1 / 3)
    assert share("top:1") == pytest.approx(2 * layers / (2 * layers + 4))
    assert share("top:1", True, True) == pytest.approx(2 / 6)
    assert share("top:1", True) == pytest.approx(2 * layers / 6), "a model that writes is scored as a whole"


def test_the_time_of_a_run_has_optimiser_and_scoring_in_it() -> None:
    more = {**plan.optimiser_time(10**6, 100, 3.2e9), "scoring 3 times": 9.0}
    assert more["the optimiser's steps"] == pytest.approx(1.0)
    told = plan.speed(100_000, 2.0, 1000, 1e6, 1e9, 1e9, more=more)["time"]
    assert told["seconds"] == pytest.approx(200 + 1 + 9)
    assert told["reason"] == (
        "100,000 tokens at 500 a second, measured on the longest rows, and about 1 s for the optimiser's steps and "
        "about 9 s for scoring 3 times"
    )
    two = plan.speed(100_000, 2.0, 1000, 1e6, 1e9, 1e9, ranks=2)["time"]
    assert (two["seconds"], two["choice"]) == (100, "about 2 min")


def test_a_gpu_is_timed_when_it_is_warm_and_a_slow_pass_of_a_cpu_once() -> None:
    def passes(device: str, seconds: float, sharded: bool = False) -> int:
        took: list[float] = []
        while not trial.enough(took, torch.device(device), sharded):
            took.append(seconds)
        return len(took)

    assert [passes("cuda", 5.0), passes("mps", 0.01), passes("cuda", 5.0, sharded=True)] == [3, 3, 3]
    assert [passes("cpu", 5.0), passes("cpu", 0.01), passes("cpu", 5.0, sharded=True)] == [1, 2, 2]


def test_a_trial_tells_the_time_of_the_batch_that_fitted() -> None:
    model = small("gpt2")
    large, fitting = (Step([{"input_ids": torch.ones(1, size).long()}], size, [1.0]) for size in (8, 4))
    asked = []

    def loss_of(_: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        asked.append(tensors["input_ids"].numel())
        if asked == [8, 8]:
            asked.append(0)
            raise MemoryError
        return model.score.weight.sum()

    held = Whole(model, make_optimizer(model, Settings(steps=1, learning_rate=1.0)), torch.float32, None)
    before = model.score.weight.clone()
    _, tried = trial.seconds_of(held, large, loss_of, choose("cpu", "float32"), 0, lambda step, _: fitting)
    assert (tried, asked) == (fitting, [8, 8, 0, 4, 4]), "what the larger one took does not count"
    assert torch.equal(model.score.weight, before)
    assert model.score.weight.grad is None


def test_a_frozen_part_that_no_memory_holds_is_kept_on_disk_or_computed_anew() -> None:
    gigabyte = 10**9
    assert plan.place_of_frozen_part(gigabyte, 8 * gigabyte, 0)[0] == "memory"
    assert plan.place_of_frozen_part(3 * gigabyte, 8 * gigabyte, 9 * gigabyte)[0] == "disk"
    assert plan.place_of_frozen_part(3 * gigabyte, 8 * gigabyte, 5 * gigabyte)[0] == "nowhere"


def test_low_rank_updates_are_proposed_for_few_examples() -> None:
    asked = make_recipe({"data": "df", "tune": "full", "task": "text-classification"})
    found = plan.proposal_for_few(asked, 16, 135_000_000)["proposal"]
    assert found["choice"] == "tune: lora"
    assert found["reason"].startswith("16 examples are few: with smollm2-135m, 16 sentences of SST-2 taught it .86")
    assert not plan.proposal_for_few(asked, 32, 135_000_000)
    fewest = plan.proposal_for_few(asked, 4, 135_000_000)["proposal"]
    assert fewest["choice"] == "tune: head"
    assert fewest["reason"].startswith("4 examples are few: of SST-2 and TREC, smollm2-135m with a head held to")
    plain = asked.model_copy(update={"head": "plain"})
    assert plan.proposal_for_few(plain, 4, 135_000_000)["proposal"]["choice"] == "tune: lora", "it has no words to keep"
    assert not plan.proposal_for_few(asked, 16, 7_000_000), "a small model has little to forget"
    assert not plan.proposal_for_few(asked.model_copy(update={"tune": "lora"}), 16, 135_000_000)
    assert not plan.proposal_for_few(asked.model_copy(update={"task": "chat"}), 16, 135_000_000)


def test_a_plan_promises_nothing_that_is_computed_once_to_a_padded_model() -> None:
    head = tuning.Tuning("head", trained=10, frozen_layers=2, layers=2)
    assert plan.tuning(head, None)["tune"]["reason"] == (
        "the head alone; all else is computed once for every row: 10 weights"
    )
    assert plan.tuning(head, "as gpt_neox is")["tune"]["reason"] == "the head alone: 10 weights"
    asked = make_recipe({"data": "df", "task": "chat", "epochs": 3})
    found = plan.proposal(asked, 900, 30, None, 0)["proposal"]
    assert (found["choice"], found["reason"]) == (
        "tune: top:4",
        "about 6 min instead of about 15 min, as nothing else is learnt",
    )


def test_a_plan_proposes_what_takes_less_time_and_says_what_it_costs() -> None:
    asked = make_recipe({"data": "df", "task": "text-classification", "epochs": 3})
    small = {"head": 10**6, "top:4": 10**8}

    def proposed(recipe: Any, seconds: float, layers: int = 30, free: int | None = 10**10) -> str:
        found = plan.proposal(recipe, seconds, layers, small, free)
        return f"{found['proposal']['choice']}: {found['proposal']['reason']}" if found else ""

    assert proposed(asked, 100) == "", "short enough"
    assert proposed(asked, 900) == (
        "tune: top:4: about 3 min instead of about 15 min, as what lies below is computed once for every row; with "
        "smollm2-135m, on 1,000 sentences of SST-2, it got 0.84 right, every weight 0.86"
    )
    assert proposed(asked, 36_000).startswith(
        "tune: head: about 67 min instead of about 10.0 h, as all else is computed"
    )
    assert proposed(asked, 900, free=10**8).startswith("tune: head: "), "so many tokens are too many to keep"
    assert proposed(asked, 900, layers=4).startswith("tune: head: "), "top:4 would be all of it"
    written = asked.model_copy(update={"task": "chat"})
    assert proposed(written, 36_000) == (
        "tune: top:4: about 2.3 h instead of about 10.0 h, as what lies below is computed once for every row"
    ), "a head is for labels, and chat was not measured"
    assert proposed(asked.model_copy(update={"tune": "lora"}), 36_000) == "", "the user has chosen"
