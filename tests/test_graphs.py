"""What is launched at once on a GPU learns what is learnt one by one; here with a CPU in its place."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import CPU, GPT2, NO_DROPOUT, PAD, ROWS, SIZES, small
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gptx_nb.engine import compiling, graphs, memory, packing, precision, setup, transfer, trial, tuning, varlen
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.sharding import Whole
from gptx_nb.engine.tasks import targets
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.tasks.encoding import Encoded
from gptx_nb.engine.train import Settings, make_optimizer, train
from gptx_nb.recipe import make_recipe

LABELS = [0, 1, 2, 0, 1, 2]
WRITTEN = [
    Encoded(row, [place > 0 and place % 3 > 0 for place in range(len(row))]) for row in (row or [3, 4] for row in ROWS)
    if len(row) > 1
]  # fmt: skip


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """What the kernels of a GPU give, text by text."""
    if isinstance(starts, FakeTensor):  # of the estimate of memory, which knows shapes alone
        return query + 0 * (key.sum() + value.sum())
    found, ends = [], starts.tolist()
    for first, end in itertools.pairwise(ends):
        assert 0 <= end - first <= longest
        q, k, v = (each[first:end].transpose(0, 1)[None] for each in (query, key, value))
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        found.append(mixed[0].transpose(0, 1))
    assert ends[-1] == len(query)
    return torch.cat(found)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(varlen, "is_there", lambda device: True)
    monkeypatch.setattr(varlen, "fits", lambda query: True)
    monkeypatch.setattr(varlen, "attend", one_by_one)
    return


class Again:
    """Does again what a recording on a GPU would launch again: adds gradients to those that are there."""

    pool = None
    made = 0

    def __init__(self, loss_of: Any, moved: dict[str, torch.Tensor], pool: Any) -> None:
        self._loss_of = loss_of
        Again.made += 1

    def __call__(self, tensors: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
        loss: torch.Tensor = self._loss_of(tensors) * weight
        loss.backward()
        return loss.detach()


def classifier(kind: str) -> PreTrainedModel:
    return small(kind, **(NO_DROPOUT if kind == "gpt2" else {})).train()


def learner_of(model: PreTrainedModel, budget: int = 10_000) -> task.Learner:
    options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": 4, "seed": 0, "token_budget": budget}
    return task.Learner(model, tuning.prepare(model, "full"), ROWS, LABELS, ROWS[:3], **options)


def writer(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {**GPT2, **NO_DROPOUT} if kind == "gpt2" else SIZES
    config = AutoConfig.for_model(kind, **size, bos_token_id=0, eos_token_id=0, pad_token_id=PAD)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).train()
    return model


def losses(model: PreTrainedModel, learner: Any, recorded: graphs.Steps | None) -> list[float]:
    made, found = Settings(steps=9, learning_rate=1e-3), list[float]()
    nothing: Any = lambda *_: None  # noqa: E731
    train(
        model,
        make_optimizer(model, made),
        made,
        device=CPU,
        dtype=torch.float32,
        batch_at=learner.step,
        loss_of=learner.loss,
        record=lambda entry: found.append(entry["loss"]),
        evaluate=nothing,
        save=nothing,
        should_stop=lambda: False,
        recorded=recorded,
    )
    return found


def steps_of(model: PreTrainedModel, learner: Any) -> graphs.Steps:
    return graphs.Steps(list(model.parameters()), lambda each: learner.loss(model, each), CPU, packing.even)


@pytest.mark.parametrize("budget", [12, 10_000])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_recorded_steps_learn_the_same(kind: str, budget: int, kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(kind)
    expected = losses(model, learner_of(model, budget), None)
    monkeypatch.setattr(graphs, "_Step", Again)
    before, model = Again.made, classifier(kind)
    learner = learner_of(model, budget)
    assert losses(model, learner, steps_of(model, learner)) == pytest.approx(expected, rel=1e-3)
    assert Again.made > before
    assert len({round(each, 4) for each in expected}) > 5, "batches differ"


def test_recorded_steps_of_a_model_that_writes_learn_the_same(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def learner_for(model: PreTrainedModel) -> targets.Learner:
        options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": 4, "seed": 0, "token_budget": 10_000}
        return targets.Learner(model, tuning.prepare(model, "full"), WRITTEN, WRITTEN[:2], **options)

    model = writer("llama")
    expected = losses(model, learner_for(model), None)
    monkeypatch.setattr(graphs, "_Step", Again)
    before, model = Again.made, writer("llama")
    learner = learner_for(model)
    assert losses(model, learner, steps_of(model, learner)) == pytest.approx(expected, rel=1e-3)
    assert Again.made > before


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=40))
def test_few_shapes_hold_any_texts(lengths: list[int]) -> None:
    tensors = packing.pack([[5] * length for length in lengths], 1)
    found = packing.even(tensors)
    tokens, wanted = tensors["input_ids"].shape[1], found["input_ids"].shape[1]
    assert tokens <= wanted <= max(tokens + 63, 1.25 * tokens + 1)
    assert found["position_ids"].shape == found["input_ids"].shape
    starts = found["starts"].numpy()
    assert starts[: len(lengths) + 1].tolist() == tensors["starts"].tolist(), "the texts are where they were"
    assert starts[-1] == wanted
    each = np.diff(starts)
    longest = len(found["spread"]) // len(lengths)
    assert (each >= 0).all()
    assert max(1, *lengths) <= each.max() <= longest < max(1, *lengths) + packing.LONGEST


def test_a_shape_tells_nothing_but_texts_tokens_and_the_longest() -> None:
    def shapes(lengths: list[int]) -> list[tuple[int, ...]]:
        return [tuple(each.shape) for each in packing.even(packing.pack([[5] * each for each in lengths], 1)).values()]

    assert shapes([20, 30, 25]) == shapes([40, 1, 50])
    assert len({tuple(shapes([20 + more] * 64)) for more in range(10)}) <= 4


def test_a_pass_that_cannot_be_recorded_is_taken_plainly(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = classifier("llama")
    expected = losses(model, learner_of(model), None)
    monkeypatch.setattr(graphs, "_Step", fails)
    model = classifier("llama")
    learner = learner_of(model)
    recorded = steps_of(model, learner)
    assert losses(model, learner, recorded) == pytest.approx(expected, rel=1e-3)
    assert not recorded.on


@pytest.mark.parametrize(
    ("plain", "launched", "compiled", "steps", "told"),
    [
        (1.0, 0.2, 0.1, 10, {"launches": "recorded"}),  # too short to compile
        (1.0, 0.2, 0.1, 1000, {"launches": "recorded", "compile": "layers"}),
        (1.0, 0.2, 0.19, 1000, {"launches": "recorded", "compile": "no"}),
        (1.0, 0.95, 0.5, 1000, {"compile": "layers"}),
        (1.0, None, 0.5, 1000, {"compile": "layers"}),
        (1.0, 0.2, None, 1000, {"launches": "recorded", "compile": "no"}),
    ],
)
def test_a_run_goes_on_in_the_way_that_is_quickest(
    plain: float,
    launched: float | None,
    compiled: float | None,
    steps: int,
    told: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = classifier("llama")
    held = Whole(model, make_optimizer(model, Settings(steps=1, learning_rate=1.0)), torch.float32, None)

    def seconds_of(held: Whole, batch: Any, *rest: Any) -> tuple[float, Any]:
        if any(layer._compiled_call_impl is not None for layer in tuning.layers_of(model)):
            if compiled is None:
                raise RuntimeError("no compiler is here")
            return compiled, batch
        return (plain if rest[-1] is None else launched) or 0.0, batch

    monkeypatch.setattr(trial, "seconds_of", seconds_of)
    monkeypatch.setattr(graphs, "serve", lambda device: True)
    made: list[graphs.Steps] = []

    def record() -> graphs.Steps | None:
        if launched is None:
            return None
        made.append(steps_of(model, None))
        return made[-1]

    options: dict[str, Any] = {"steps": steps, "record": record, "dynamic": True}
    batch, device = SimpleNamespace(micro=[]), SimpleNamespace(device=CPU)
    way = trial.quickest(held, model, batch, None, device, 0, None, **options)  # type: ignore[arg-type]
    assert {name: each["choice"] for name, each in way.told.items()} == told
    quickest = compiled if told.get("compile") == "layers" else launched if "launches" in told else plain
    assert way.seconds == quickest
    layers = tuning.layers_of(model)
    assert all((layer._compiled_call_impl is not None) == (told.get("compile") == "layers") for layer in layers)
    assert (held.recorded is not None) == ("launches" in told)
    assert [each for each in made if each.on] == ([held.recorded] if held.recorded else []), "nothing else keeps memory"
    if told.get("compile") == "no" and compiled is None:
        assert "no compiler is here" in way.told["compile"]["reason"]


def test_memory_that_recordings_hold_is_given_back_before_a_step_takes_less(
    kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier("llama")
    expected = losses(model, learner_of(model), None)
    model = classifier("llama")
    learner = learner_of(model)
    recorded = steps_of(model, learner)

    class Full(Again):
        def __call__(self, tensors: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "_Step", Full)
    # Nothing could take less, and nothing has to.
    assert losses(model, learner, recorded) == pytest.approx(expected, rel=1e-3)
    assert not recorded.on
    assert recorded._gradients == {}


def test_what_a_run_has_recorded_and_compiled_ends_with_its_training() -> None:
    model = classifier("llama")
    held = Whole(model, make_optimizer(model, Settings(steps=1, learning_rate=1.0)), torch.float32, None)
    held.recorded = recorded = steps_of(model, None)
    compiling.use(model)
    held.end()
    assert held.recorded is None
    assert not recorded.on
    assert not compiling.is_used(model)
    assert all(layer._compiled_call_impl is None for layer in tuning.layers_of(model))


class Tape:
    """Stands for a CUDA graph: replaying it does again what was recorded."""

    def __init__(self, work: Any) -> None:
        self.work, self.replays = work, 0

    def replay(self) -> None:
        self.replays += 1
        self.work()


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    made: list[Tape] = []

    def recorded(device: torch.device, work: Any, pool: Any = None) -> tuple[Tape, Any]:
        found: list[Any] = []

        def again() -> None:
            result = work()
            if not found:
                return
            for there, new in zip(found, result if isinstance(result, tuple) else (result,), strict=True):
                if isinstance(there, torch.Tensor):
                    there.copy_(new)

        made.append(Tape(again))
        if getattr(work, "__name__", "") == "_step_groups":  # what it changes is changed by the replay alone
            return made[-1], None
        result = work()  # what it writes is made, and the replay writes it again
        found += result if isinstance(result, tuple) else [result]
        return made[-1], result

    monkeypatch.setattr(graphs, "_recorded", recorded)
    return made


def test_work_is_recorded_while_its_tensors_stay_where_they_are(taped: list[Tape]) -> None:
    done: list[str] = []
    again = graphs.Again()
    for key in ["here"] * 5 + ["there"] * 2 + ["here"] * 4:
        again(key, CPU, lambda key=key: done.append(key))  # type: ignore[misc]
    assert len(taped) == 2, "moved once, it is recorded anew"
    assert [tape.replays for tape in taped] == [3, 2]
    for number in range(4 * graphs.MOST_TRIED):
        again(number // 3, CPU, lambda: None)
    assert len(taped) <= 2 + graphs.MOST_TRIED, "what moves all the time is done plainly"


def test_an_optimiser_whose_steps_are_recorded_steps_the_same(
    taped: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stepped(recorded: bool) -> tuple[list[torch.Tensor], list[float]]:
        torch.manual_seed(0)
        layer = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 4))
        lowered = precision.Lowered(layer, torch.bfloat16)
        optimizer = lowered.optimizer(1e-2, 0.1, (0.9, 0.999))
        gradients = [torch.zeros_like(each) for each in layer.parameters()]
        norms = []
        with monkeypatch.context() as patched:
            if recorded:
                patched.setattr(optimizers, "_on_cpu", lambda tensors: False)
                patched.setattr(graphs, "serve", lambda device: True)
            for step in range(8):
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2 / (step + 1)
                for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                    parameter.grad = gradient.normal_(generator=torch.Generator().manual_seed(step))
                norms.append(float(optimizer.clip(0.5)))
                optimizer.step()
        return lowered.masters, norms

    expected, norms = stepped(recorded=False)
    found, found_norms = stepped(recorded=True)
    assert len(taped) == 2, "the norm and the step"
    assert all(tape.replays > 3 for tape in taped)
    assert found_norms == pytest.approx(norms, rel=1e-5)
    for mine, its in zip(found, expected, strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


def test_work_that_cannot_be_recorded_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "_recorded", fails)
    again, done = graphs.Again(), list[int]()
    for number in range(6):
        again("here", CPU, lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == [0, 1, 2, 3, 4, 5]


def test_the_recordings_that_are_kept_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    class Copy:
        def __init__(self, work: Any, given: Any, pool: Any) -> None:
            self.given = given

    monkeypatch.setattr(graphs, "Recorded", Copy)
    kept = graphs.Graphs(classifier("llama"))
    for key in range(2 * graphs.MOST):
        for _ in range(graphs.BEFORE):
            assert kept.get(key, lambda given: given["a"], dict) is None
        assert kept.get(key, lambda given: given["a"], dict) is not None
    assert len(kept._recorded) == graphs.MOST
    assert kept.get(0, lambda given: given["a"], dict) is None, "which is counted anew"


def test_a_run_is_recorded_where_its_device_serves(
    kernels: None, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(varlen, "serves", lambda device, dtype, config: True)
    monkeypatch.setattr(graphs, "_Step", Again)
    texts = [f"{('good', 'bad')[at % 2]} film {at}" for at in range(64)]
    rows = Examples(texts, [at % 2 for at in range(64)])
    table = Table(rows, rows, ["yes", "no"], {"text": "text", "label": "label", "warnings": []})
    asked: dict[str, Any] = {"dtype": "bfloat16", "device": "cpu", "tune": "full", "head": "plain", "epochs": 3.0}
    recipe = make_recipe({"data": "df", "model": str(tiny_model), "baselines": False, "learning_rate": 0.01, **asked})
    before = Again.made
    found = transfer.accuracy(recipe, table)
    assert found is not None
    assert found >= 0.9
    assert Again.made > before
    frozen = recipe.model_copy(update={"tune": "head"})
    made = setup.prepare(frozen, Classification(table, frozen), lambda note: None)
    assert made.recording == 0, "what is kept of a frozen part has passes of its own"
    assert made.recorder() is None


def test_the_kernels_have_shapes_for_an_estimate_of_memory() -> None:
    with FakeTensorMode():
        query, key, value = (
            torch.empty(64, heads, 64, dtype=torch.bfloat16, requires_grad=True) for heads in (9, 3, 3)
        )
        for dropout in (0.0, 0.1):
            found = varlen.attend(query, key, value, torch.zeros(9, dtype=torch.int32), 16, 0.1, dropout)
            assert found.shape == query.shape
            found.sum().backward()
        assert key.grad is not None
        assert key.grad.shape == key.shape


def test_recordings_are_made_where_the_device_has_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = memory.Estimate(100, 10, 20, activations=300, working=40, allocator=0, process=5, logits=50)
    size = memory.of_recording(estimate, 10_000)
    assert size == 10 + 300 + 40 + 50
    needs = round(105 + (estimate.to_come + size) * (1 + memory.MARGIN))
    assert memory.of_recording(estimate, needs + 1) == size
    assert memory.of_recording(estimate, needs - 1) == 0
    assert memory.of_recording(None, 10_000) == memory.of_recording(estimate, None) == 0
    monkeypatch.setenv("GPTX_MEMORY_LIMIT", str(needs - 1))
    assert memory.of_recording(estimate, 10_000) == 0


def test_positions_that_stretch_with_the_text_are_not_recorded() -> None:
    assert not graphs.looks_at_values(classifier("llama").config)
    assert not graphs.looks_at_values(classifier("gpt2").config)
    assert graphs.looks_at_values(SimpleNamespace(rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert graphs.looks_at_values(SimpleNamespace(rope_parameters={"full_attention": {"rope_type": "longrope"}}))


def test_compiled_layers_are_plain_ones_where_something_is_scored() -> None:
    model = classifier("llama")
    compiling.use(model)
    expected = task.logits(classifier("llama"), ROWS, pad_id=PAD, device=CPU, labels=3)
    with compiling.plainly():
        found = task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3)
    assert np.abs(found - expected).max() < 1e-6
    compiling.leave(model)
