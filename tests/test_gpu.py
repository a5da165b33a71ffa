"""What is computed otherwise on an NVIDIA GPU gives what is computed elsewhere; skipped where there is none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from memory_cells import Cell, measured
from test_generate import ALIKE, RAGGED, tokens
from test_generate import small as writer
from test_packing import PAD, ROWS, small
from transformers import PreTrainedModel

import gptx_nb
from gptx_nb.engine import (
    arithmetic,
    compiling,
    graphs,
    memory,
    norms,
    packing,
    precision,
    predict,
    products,
    tuning,
    varlen,
)
from gptx_nb.engine import device as devices
from gptx_nb.engine.generate import generate
from gptx_nb.engine.tasks import language_modeling
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Settings, make_optimizer, train
from gptx_nb.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use is here")

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
BF16 = torch.bfloat16
SETTINGS = Settings(steps=6, learning_rate=1e-3)
KINDS = ["gpt2", "llama", "qwen3", "phi"]
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def moved(model: PreTrainedModel, to: torch.device, dtype: torch.dtype | None = None) -> PreTrainedModel:
    torch.nn.Module.to(model, to, dtype)
    return model


def still(kind: str) -> PreTrainedModel:
    return small(kind, **(NO_DROPOUT if kind == "gpt2" else {}))


def learner_of(model: PreTrainedModel, device: torch.device, method: str = "full", budget: int = 4096) -> task.Learner:
    labels, tuned = [0, 1, 2, 0, 1, 2], tuning.prepare(model, method)
    options: dict[str, Any] = {"pad_id": PAD, "device": device, "batch_size": 6, "seed": 0, "token_budget": budget}
    return task.Learner(model, tuned, ROWS, labels, ROWS[:3], **options)


def losses(
    model: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
    *,
    method: str = "full",
    compiled: bool = False,
    recorded: bool = False,
    seed: int = 0,
) -> list[float]:
    moved(model, device)
    learner = learner_of(model, device, method)
    moved(model, device)  # low-rank updates
    norms.use(model)
    lowered = precision.Lowered(model, dtype) if dtype is BF16 else None
    optimizer = lowered.optimizer(1e-3, 0.01, (0.9, 0.999)) if lowered else make_optimizer(model, SETTINGS)
    learner.prepare(lambda: arithmetic_of(model, device, dtype))
    if compiled:
        compiling.use(model)
    steps = None
    if recorded:
        parameters = [each for each in model.parameters() if each.requires_grad]
        steps = graphs.Steps(parameters, lambda each: learner.loss(model, each), device, packing.even)
    found: list[float] = []
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    train(
        model,
        optimizer,
        replace(SETTINGS, seed=seed),
        device=device,
        dtype=dtype,
        batch_at=learner.step,
        loss_of=learner.loss,
        record=lambda entry: found.append(entry["loss"]),
        evaluate=nothing,
        save=nothing,
        should_stop=lambda: False,
        recorded=steps,
    )
    assert steps is None or steps.on
    if compiled:
        compiling.leave(model)
    return found


def arithmetic_of(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> Any:
    from gptx_nb.engine.train import arithmetic as of

    return of(model, device, dtype)


@pytest.mark.parametrize("kind", packing.PACKABLE)
def test_packed_texts_give_the_logits_of_a_cpu(kind: str) -> None:
    model = small(kind, **({"sliding_window": None} if kind == "mistral" else {}))
    alone = np.stack([task.logits(model, [row], pad_id=PAD, device=CPU, labels=3)[0] for row in ROWS])
    assert packing.use(moved(model, GPU)) is None
    norms.use(model)
    together = task.logits(model, ROWS, pad_id=PAD, device=GPU, labels=3, packed=True)
    assert np.abs(together - alone).max() < 1e-3
    moved(model, GPU, BF16)
    lower = task.logits(model, ROWS, pad_id=PAD, device=GPU, labels=3, packed=True)
    assert np.abs(lower - alone).max() < 0.1 * np.abs(alone).max(), "bfloat16 has three digits"


@pytest.mark.skipif(not varlen.is_there(GPU) if torch.cuda.is_available() else True, reason="no such kernels here")
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_kernels_for_texts_of_several_lengths_give_what_each_gives_alone(heads: int) -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 130, 64]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=GPU)
    query, key, value = (
        torch.randn(sum(lengths), count, 64, device=GPU, dtype=BF16, requires_grad=True) for count in (4, heads, heads)
    )
    found = varlen.attend(query, key, value, starts, max(lengths), 0.1)
    above = torch.randn_like(found)
    gradients = torch.autograd.grad(found, (query, key, value), above)
    wide = [each.detach().float().requires_grad_() for each in (query, key, value)]
    parts = []
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (each[first:end].transpose(0, 1)[None] for each in wide)
        k, v = (each.repeat_interleave(4 // heads, dim=1) for each in (k, v))
        alone = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.1)
        parts.append(alone[0].transpose(0, 1))
    expected = torch.cat(parts)
    assert torch.allclose(found.float(), expected, atol=0.03)
    for mine, its in zip(gradients, torch.autograd.grad(expected, wide, above.float()), strict=True):
        assert torch.allclose(mine.float(), its, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("method", ["full", "lora", "top:1", "head"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_training_gives_the_losses_of_a_cpu(kind: str, method: str) -> None:
    expected = losses(still(kind), CPU, torch.float32, method=method)
    assert losses(still(kind), GPU, torch.float32, method=method) == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert losses(still(kind), GPU, BF16, method=method) == pytest.approx(expected, rel=0.1, abs=0.1)
    assert losses(still(kind), GPU, torch.float16, method=method) == pytest.approx(expected, rel=0.1, abs=0.1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_compiled_layers_learn_the_same(kind: str) -> None:
    for dtype, off in ((torch.float32, 2e-3), (BF16, 0.1)):
        expected = losses(still(kind), GPU, dtype)
        found = losses(still(kind), GPU, dtype, compiled=True)
        assert found == pytest.approx(expected, rel=off, abs=off)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_recorded_steps_learn_the_same(kind: str, method: str) -> None:
    expected = losses(still(kind), GPU, BF16, method=method)
    for compiled in (False, True):
        found = losses(still(kind), GPU, BF16, method=method, compiled=compiled, recorded=True)
        assert found == pytest.approx(expected, rel=0.05, abs=0.05)


def test_what_drops_out_of_a_recorded_step_is_decided_by_its_seed() -> None:
    first, second = (losses(small("gpt2"), GPU, BF16, recorded=True) for _ in range(2))
    assert first == second
    assert first != losses(small("gpt2"), GPU, BF16, recorded=True, seed=1)


def test_code_that_looks_at_values_cannot_be_recorded() -> None:
    model = moved(still("llama"), GPU, BF16)
    learner = learner_of(model, GPU)

    def loss_of(tensors: graphs.Tensors) -> torch.Tensor:
        loss = learner.loss(model, tensors)
        assert float(loss.detach()) > 0, "which waits for the device"
        return loss

    recorded = graphs.Steps(list(model.parameters()), loss_of, GPU, packing.even)
    for _ in range(4):
        recorded.begin()
        (tensors,) = learner.step(0).micro
        found = recorded.add(tensors, 1.0)
        expected = learner.loss(model, {name: each.to(GPU) for name, each in tensors.items()})
        assert float(found) == pytest.approx(float(expected.detach()), rel=0.05)
    assert not recorded.on


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_a_row_do_not_see_each_other(kind: str) -> None:
    model = moved(writer(kind), GPU, BF16)
    rows = np.random.default_rng(0).integers(2, 90, (3, 49))
    rows[:, [7, 8, 30]] = 0  # what opens a document
    rows[0, 0] = 0
    tensors = {name: each.to(GPU) for name, each in language_modeling.tensors_of(rows, 0, True).items()}
    assert language_modeling.use(model) is None
    found = language_modeling.loss(model, tensors)
    masked = {name: each for name, each in tensors.items() if name != "starts"}
    assert float(found) == pytest.approx(float(language_modeling.loss(model, masked)), rel=0.02)


def test_a_large_vocabulary_costs_what_it_does_in_float32() -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(700, 64, device=GPU), torch.randn(5000, 64, device=GPU)
    targets = torch.randint(5000, (700,), device=GPU)
    results = []
    for dtype, compiled in ((torch.float32, False), (BF16, False), (torch.float32, True), (BF16, True)):
        given = [each.to(dtype).requires_grad_() for each in (states, weight)]
        loss = language_modeling.ChunkedCrossEntropy.apply(*given, targets, None, compiled)
        results.append((float(loss), *torch.autograd.grad(loss, given)))
    wide = [each.clone().requires_grad_() for each in (states, weight)]
    expected = torch.nn.functional.cross_entropy(wide[0] @ wide[1].T, targets)
    gradients = torch.autograd.grad(expected, wide)
    for (loss, *found), off in zip(results, (1e-3, 0.03, 1e-3, 0.03), strict=True):
        assert loss == pytest.approx(float(expected), rel=off)
        for mine, its in zip(found, gradients, strict=True):
            assert float((mine.float() - its).norm() / its.norm()) < off


@pytest.mark.parametrize("kind", packing.PACKABLE)
def test_what_is_written_is_what_a_cpu_writes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = writer(kind)
    expected = [tokens(generate(model, prompts, max_new_tokens=20)) for prompts in (RAGGED, ALIKE)]
    moved(model, GPU)
    replayed: list[int] = []
    replay = graphs.Recorded.__call__

    def counted(self: graphs.Recorded, given: graphs.Tensors) -> torch.Tensor:
        replayed.append(given["rows"].shape[1])
        return replay(self, given)

    monkeypatch.setattr(graphs.Recorded, "__call__", counted)
    for prompts, made in zip((RAGGED, ALIKE), expected, strict=True):
        assert tokens(generate(model, prompts, max_new_tokens=20)) == made
        assert tokens(generate(model, prompts, max_new_tokens=20, rows=2)) == made
        assert tokens(generate(model, prompts, max_new_tokens=20, share_prefix=False)) == made
    assert replayed, "what is launched again and again was recorded"


def test_rows_leave_what_is_recorded() -> None:
    model = moved(writer("llama"), GPU)
    whole = tokens(generate(model, RAGGED, max_new_tokens=20))
    ends = {whole[0][6], whole[2][11]}
    made = tokens(generate(model, RAGGED, max_new_tokens=20, end_ids=ends))
    for row, found in zip(whole, made, strict=True):
        assert found == row[: next((place for place, token in enumerate(row) if token in ends), 20)]


def test_products_in_bfloat16_write_nearly_what_float32_does() -> None:
    model = moved(writer("llama"), GPU)
    chosen = devices.choose()
    assert chosen.device.type == "cuda"
    assert str(arithmetic.of_answers(chosen, written=True))
    products.prepare(model, BF16)
    assert all(len(row) == 20 for row in tokens(generate(model, RAGGED, max_new_tokens=20)))


GRID = [
    Cell("gpt2", 256, 8, "full", "float32", "packed", 128, 16, 4096, 1, device="cuda"),
    Cell("gpt2", 512, 8, "full", "bfloat16", "packed", 256, 64, 16384, 1, device="cuda"),
    Cell("llama", 512, 8, "full", "bfloat16", "packed", 512, 32, 16384, 1, device="cuda"),
    Cell("llama", 512, 12, "lora", "bfloat16", "packed", 128, 64, 16384, 1, device="cuda"),
    Cell("gpt2", 256, 8, "top:2", "float32", "padded", 512, 4, 4096, 1, device="cuda"),
    Cell("llama", 256, 8, "full", "bfloat16", "packed", 256, 32, 8192, 1, task="writing", device="cuda"),
    Cell("gpt2", 512, 8, "full", "bfloat16", "packed", 256, 64, 16384, 1, task="pretraining", device="cuda"),
]


@pytest.mark.parametrize("cell", GRID, ids=str)
def test_the_estimate_is_within_15_percent_of_the_peak_of_a_run(cell: Cell) -> None:
    for found in measured(cell):
        assert abs(found.error) <= 0.15, f"{found.estimate / 1e6:.0f} MB estimated, {found.peak / 1e6:.0f} MB measured"


def test_a_few_texts_are_answered_as_many_are(home: Path) -> None:
    run = gptx_nb.finetune("labels", data=REVIEWS, model="tiny", tune="head", epochs=1, baselines=False)
    assert run.model is not None
    classifier = predict.Classifier.load(run.model, devices.choose(), BF16)
    texts = [f"a {word} film" for word in ("good", "bad", "lovely", "dull", "very very good")]
    expected = classifier.predict(texts)
    for _ in range(4):
        assert np.abs(np.array([classifier.predict([text])[0] for text in texts]) - expected).max() < 0.02
    assert classifier._recorded is not None
    assert classifier._recorded._recorded, "what is asked again and again was recorded"


REVIEWS = pd.DataFrame(
    {"text": [f"{('good', 'bad')[row % 2]} film {row} " * 8 for row in range(96)], "label": ["yes", "no"] * 48}
)


@pytest.mark.parametrize("tune", ["full", "lora", "head"])
def test_a_run_trains_scores_and_answers(tune: str, home: Path) -> None:
    run = gptx_nb.finetune("here", data=REVIEWS, model="tiny", tune=tune, epochs=4)
    assert run.state() == "finished"
    plan = run.plan() or {}
    assert plan["device"]["choice"].startswith("cuda")
    assert plan["dtype"]["choice"] == "bfloat16"
    answers = gptx_nb.predict("here", ["good film", "bad film"])
    assert [each.label for each in answers] == ["yes", "no"]
    gptx_nb.free()


def test_where_memory_runs_out_a_step_takes_less_and_learns_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> tuple[dict[int, float], list[str]]:
        run = gptx_nb.finetune(
            name, data=REVIEWS, model="tiny", tune="full", epochs=3, batch_size=96, head="plain", baselines=False,
            keep="last", dtype="float32", validation=0,
        )  # fmt: skip
        steps = {each["step"]: each["loss"] for each in run.history() if each["kind"] == "step"}
        return steps, [each["text"] for each in run.history() if each["kind"] == "note"]

    plain, _ = trained("plenty")
    free = torch.cuda.mem_get_info(GPU)[1]
    monkeypatch.setenv("GPTX_TEST_GPU_SHARE", str(700e6 / free))
    folder = home.parent / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\nif share := os.environ.get('GPTX_TEST_GPU_SHARE'):\n    import torch\n"
        "    torch.cuda.set_per_process_memory_fraction(float(share), 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    little, notes = trained("little")
    assert any("memory ran out" in note for note in notes), notes
    assert little == pytest.approx(plain, rel=0.05), "tiny drops out by chance, which depends on the rows beside it"


@pytest.mark.parametrize("task", ["text-generation", "question-answering"])
def test_a_run_that_writes(task: str, home: Path) -> None:
    if task == "text-generation":
        data = pd.DataFrame({"prompt": [f"say {row}" for row in range(64)], "completion": ["well"] * 64})
    else:
        data = pd.DataFrame({"question": [f"what is {row}" for row in range(64)], "answer": ["well"] * 64})
    run = gptx_nb.finetune("writes", data=data, task=task, model="tiny", epochs=6, max_length=64)
    assert run.state() == "finished"
    assert gptx_nb.predict("writes", ["say 7"])[0].text.strip().startswith("well")
    gptx_nb.free()


def test_a_model_is_pretrained(home: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The sun rose on day {day}, and all was well." for day in range(2000)))
    run = gptx_nb.pretrain(
        "new", data=str(text), size="tiny", context=128, tokenizer="tiny", document="paragraph", tokens=200_000
    )
    assert run.state() == "finished"
    plan = run.plan() or {}
    assert plan["device"]["choice"].startswith("cuda")


def test_eight_bits_and_four(home: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'gptx-nb[bitsandbytes]'")
    eight = gptx_nb.finetune("eight", data=REVIEWS, model="tiny", optimizer="adamw-8bit", tune="full", epochs=4)
    four = gptx_nb.finetune("four", data=REVIEWS, model="tiny", quantize="4bit", tune="lora", epochs=4)
    for run in (eight, four):
        assert run.state() == "finished"
        assert (run.scores() or {})["scores"]["accuracy"]["value"] >= 0.9


def test_memory_that_is_free_is_the_devices() -> None:
    free = memory.available(GPU)
    assert free is not None
    block = torch.empty(2**28, device=GPU)
    assert memory.available(GPU) <= free
    assert replace(devices.choose(), name="x").memory_total == torch.cuda.mem_get_info(GPU)[1]
    del block


def test_recipes_name_the_device() -> None:
    assert Recipe(data="df", device="cuda:0").device == "cuda:0"
