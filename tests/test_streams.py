"""Micro-batches side by side, weights in bfloat16 with masters, a cut vocabulary: the same as the plain loop."""

import math
import time
from typing import Any

import pytest
import torch
from test_packing import CPU, PAD, ROWS, small

from gptx_nb.engine import batches, checkpoints, dropout, precision, streams, tuning, vocabulary
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Batch, Settings, gradient, make_optimizer, make_scaler, train

LABELS = [0, 1, 2, 0, 1, 2]
SETTINGS = Settings(steps=8, learning_rate=1e-3, weight_decay=0.1)


def learner_of(model: Any, *, streams: int = 1, token_budget: int = 2048, cut: Any = None) -> task.Learner:
    rows = [cut.tokens(row) for row in ROWS] if cut else ROWS
    return task.Learner(
        model,
        tuning.prepare(model, "full"),
        rows,
        LABELS,
        rows,
        pad_id=cut.tokens([PAD])[0] if cut else PAD,
        device=CPU,
        batch_size=6,
        seed=0,
        streams=streams,
        token_budget=token_budget,
    )


def trained(
    learner: task.Learner, model: Any, optimizer: Any, dtype: torch.dtype = torch.float32, **other: Any
) -> list[float]:
    losses: list[float] = []
    train(
        model,
        optimizer,
        SETTINGS,
        device=CPU,
        dtype=dtype,
        batch_at=learner.step,
        record=lambda entry: losses.append(entry["loss"]),
        evaluate=lambda step: None,
        save=lambda step: None,
        should_stop=lambda: False,
        **{"loss_of": learner.loss, **other},
    )
    return losses


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_several_streams_learn_what_one_does(kind: str) -> None:
    def run(count: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        model = small(kind)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # its draws belong to micro-batches, of which there are more here
        if kind == "gpt2":
            model.config.attn_pdrop = 0.0
        learner = learner_of(model, streams=count)
        assert len(learner.step(0).micro) == min(count, 2), "one row has half of all tokens"
        model.train()
        gradient(model, learner.step(0), learner.loss, CPU, torch.float32, make_scaler(CPU, torch.float32), (0, 0))
        first = {name: each.grad.clone() for name, each in model.named_parameters()}
        model.zero_grad()
        return trained(learner, model, make_optimizer(model, SETTINGS)), first

    one, gradients = run(1)
    for count in (2, 3):
        several, others = run(count)
        assert several == pytest.approx(one, abs=1e-5)
        assert all(torch.allclose(others[name], gradients[name], atol=1e-6) for name in gradients)
    assert one[-1] < one[0]


@pytest.mark.parametrize("lowered", [False, True])
def test_streams_give_the_same_bits_every_time_with_dropout_too(lowered: bool) -> None:
    def run() -> tuple[list[float], dict[str, torch.Tensor]]:
        model = small("gpt2")
        dropout.use(model)
        assert any(isinstance(module, dropout.Dropout) and module.p > 0 for module in model.modules())
        learner = learner_of(model, streams=3, token_budget=12)
        optimizer: Any = make_optimizer(model, SETTINGS)
        dtype = torch.float32
        if lowered:
            dtype = torch.bfloat16
            optimizer = precision.Lowered(model, dtype).optimizer(1e-3, 0.1, (0.9, 0.999))
        return trained(learner, model, optimizer, dtype), model.state_dict()

    losses, weights = run()
    for _ in range(3):
        again, others = run()
        assert again == losses
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_draw_of_dropout_depends_on_its_numbers_alone() -> None:
    states = torch.ones(40, 1000)
    dropout.seed(1, 2, 3)
    drawn = dropout.drop(states, 0.25, 4)
    assert abs(float((drawn == 0).float().mean()) - 0.25) < 0.02
    assert float(drawn.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(dropout.drop(states, 0.25, 4), drawn)
    assert not torch.equal(dropout.drop(states, 0.25, 5), drawn)
    dropout.seed(1, 3, 3)
    assert not torch.equal(dropout.drop(states, 0.25, 4), drawn)


def test_rows_are_shared_out_evenly_and_each_once() -> None:
    rows = [[1] * length for length in (3, 9, 1, 30, 12, 7, 7, 2, 18, 11)]
    for count in (2, 3, 4):
        for budget in (1000, 20):
            groups = batches.by_length(rows, token_budget=budget, packed=True, streams=count)
            assert sorted(index for group in groups for index in group) == list(range(len(rows)))
            assert all(len(group) == 1 or sum(len(rows[i]) for i in group) <= budget for group in groups)
            if budget == 1000:
                assert len(groups) == count
                tokens = [sum(len(rows[index]) for index in group) for group in groups]
                assert max(tokens) <= 100 / count + 30, "no more than half the longest row away"
    assert batches.by_length([[1]], token_budget=10, packed=True, streams=4) == [[0]]


@pytest.mark.parametrize("way", ["as on a CPU", "as on a GPU"])
def test_a_step_on_masters_equals_adamw_on_float32_weights(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "as on a GPU":
        monkeypatch.setattr(optimizers, "_on_cpu", lambda tensors: False)
        monkeypatch.setattr(optimizers, "AT_ONCE", 1000)
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(700, 600), torch.nn.LayerNorm(600))  # more than one block
    lower = torch.nn.Sequential(torch.nn.Linear(700, 600), torch.nn.LayerNorm(600))
    lower.load_state_dict(plain.state_dict())
    reference = optimizers.adamw(plain, 1e-2, 0.1, (0.9, 0.999))
    lowered = precision.Lowered(lower, torch.bfloat16)
    ours = lowered.optimizer(1e-2, 0.1, (0.9, 0.999))
    for _ in range(4):
        for mine, its in zip(lower.parameters(), plain.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.float()
        exact = math.sqrt(sum(float(each.grad.double().square().sum()) for each in plain.parameters()))
        assert optimizers.clip(ours, list(lower.parameters()), 1.0) == pytest.approx(exact, rel=1e-4)
        optimizers.clip(reference, list(plain.parameters()), 1.0)
        ours.step()
        reference.step()
    assert all(parameter.dtype is torch.bfloat16 for parameter in lower.parameters())
    assert all(
        torch.equal(each, whole.bfloat16()) for each, whole in zip(lower.parameters(), lowered.masters, strict=True)
    )
    lowered.restore()
    for mine, its in zip(lower.parameters(), plain.parameters(), strict=True):
        assert (mine - its).abs().max() < 1e-6


def test_all_that_a_fused_step_reads_is_on_the_device_of_the_weights() -> None:
    weights = [torch.nn.Parameter(torch.empty(3, 4, device="meta", dtype=torch.bfloat16))]
    masters = [torch.empty(3, 4, device="meta")]
    ours = optimizers.MasterAdamW(weights, masters, 1e-3, 0.1, (0.9, 0.999))
    assert {each.device.type for each in ours.state[weights[0]].values()} == {"meta"}


def test_lowered_weights_learn_what_autocast_does_within_rounding() -> None:
    plain, lower = small("llama"), small("llama")
    expected = trained(learner_of(plain), plain, make_optimizer(plain, SETTINGS), torch.bfloat16)
    lowered = precision.Lowered(lower, torch.bfloat16)
    learner = learner_of(lower)
    found = trained(learner, lower, lowered.optimizer(1e-3, 0.1, (0.9, 0.999)), torch.bfloat16)
    assert found == pytest.approx(expected, abs=0.03)
    assert found[-1] < found[0] - 0.05


def test_a_weight_that_stays_is_itself_again_even_if_bfloat16_cannot_hold_it() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).requires_grad_(False)
    model[1].weight.data.copy_(model[1].weight.bfloat16())
    before = [each.clone() for each in model.parameters()]
    lowered = precision.Lowered(model, torch.bfloat16)
    assert lowered.beside == before[0].nbytes + before[1].nbytes + before[3].nbytes, "what is exact is not kept twice"
    lowered.restore()
    assert all(torch.equal(each, old) for each, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_checkpoint_is_gone_on_from_with_and_without_masters(tmp_path: Any, before: bool, after: bool) -> None:
    def fresh(lower: bool) -> tuple[Any, Any]:
        model = small("llama")
        if not lower:
            return model, make_optimizer(model, SETTINGS)
        return model, precision.Lowered(model, torch.bfloat16).optimizer(1e-3, 0.1, (0.9, 0.999))

    model, optimizer = fresh(before)
    trained(learner_of(model), model, optimizer, torch.bfloat16)
    checkpoints.save(tmp_path, model, optimizer, {"step": 8})
    again, other = fresh(after)
    checkpoints.load(tmp_path / "000008", again, other)
    learnt, loaded = optimizers.masters(optimizer), optimizers.masters(other)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(loaded.get(two, two), learnt.get(one, one)), "the float32 values"
        assert torch.equal(two.bfloat16(), one.bfloat16())
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[one][key], other.state[two][key])
        assert ("master" in other.state[two]) == after
    trained(learner_of(again), again, other, torch.bfloat16)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_cut_vocabulary_learns_what_the_whole_one_does(kind: str) -> None:
    whole, model = small(kind).eval(), small(kind).eval()
    for each in (whole, model):
        for module in each.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        each.config.attn_pdrop = 0.0
    expected = trained(learner_of(whole), whole, make_optimizer(whole, SETTINGS))
    cut = vocabulary.Cut(model, ROWS, [PAD])
    assert cut.used < cut.all
    found = trained(learner_of(model, cut=cut), model, make_optimizer(model, SETTINGS))
    assert found == pytest.approx(expected, abs=1e-5)
    cut.restore(SETTINGS, SETTINGS.steps)
    for name, tensor in whole.state_dict().items():
        assert (model.state_dict()[name] - tensor).abs().max() < 1e-5, name
    before = small(kind).get_input_embeddings().weight
    assert not torch.equal(model.get_input_embeddings().weight, before), "weight decay reaches every row"


def test_a_step_that_runs_out_of_memory_is_taken_again_in_smaller_parts() -> None:
    def run(limit: int | None) -> tuple[list[float], list[str]]:
        model = small("llama")
        learner = learner_of(model, token_budget=256)
        events: list[str] = []

        def loss(model: Any, tensors: Any) -> torch.Tensor:
            if limit and tensors["labels"].numel() > limit:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")
            return learner.loss(model, tensors)

        def less(step: int, error: BaseException) -> Batch | None:
            how = learner.need_less_memory()
            events.append(f"{step}: {how}")
            return learner.step(step) if how else None

        losses = trained(learner, model, make_optimizer(model, SETTINGS), loss_of=loss, with_less_memory=less)
        return losses, events

    plain, none = run(None)
    losses, events = run(4)
    assert none == []
    assert events, "memory ran out"
    assert all(event.startswith("0: ") for event in events), "and never again"
    assert len(losses) == SETTINGS.steps
    assert losses == pytest.approx(plain, abs=1e-5)


def test_what_can_take_no_less_memory_says_so() -> None:
    learner = learner_of(small("llama"), streams=2, token_budget=256)
    ways = []
    while how := learner.need_less_memory():
        ways.append(how)
    assert ways == [
        "128 tokens at once",
        "64 tokens at once",
        "32 tokens at once",
        "16 tokens at once",
        "one micro-batch at a time",
        "activations computed twice",
    ]


def test_activation_checkpointing_draws_the_same_dropout_again() -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = small("gpt2")
        dropout.use(model)
        learner = learner_of(model)
        if checkpointing:
            while learner.need_less_memory():
                pass
            learner.token_budget = 2048
        model.train()
        gradient(model, learner.step(0), learner.loss, CPU, torch.float32, make_scaler(CPU, torch.float32), (0, 0))
        return [parameter.grad.clone() for parameter in model.parameters()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, again, atol=1e-6)


def test_threads_are_as_many_as_before_after_work_was_shared_out() -> None:
    before = torch.get_num_threads()
    assert streams.each(lambda number: math.factorial(number), [3, 4, 5]) == [6, 24, 120]
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        streams.each(lambda number: 1 / number, [1, 0])
    assert torch.get_num_threads() == before


def test_small_work_takes_the_number_of_threads_that_it_is_quickest_with(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    threads = streams.Threads()
    monkeypatch.setattr(threads, "HOLDS", 9)
    seconds = {4: 0.02, 2: 0.002, 1: 0.02}
    taken = []
    try:
        for _ in range(10):
            with threads.quickest("step", 16):
                taken.append(torch.get_num_threads())
                time.sleep(seconds[taken[-1]])
            assert torch.get_num_threads() == 4
        assert sorted(taken[:6]) == [1, 1, 2, 2, 4, 4]
        assert taken[6:9] == [2, 2, 2]
        assert taken[9] == 4, "after a while it is measured again"
        with threads.quickest("another", 16):
            assert torch.get_num_threads() == 4, "nothing is known of it"
            with threads.quickest("step", 16):  # as from another thread
                assert torch.get_num_threads() == 4
        with pytest.raises(ValueError, match="in the work"), threads.quickest("step", 16):
            raise ValueError("in the work")
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        with threads.quickest("step", 16):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
