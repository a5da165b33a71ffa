"""Causal language modelling: the chunked loss is the plain one, no token is lost, no document seen from another."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from gptx_nb import pretraining_words
from gptx_nb.engine import checkpoints, shards
from gptx_nb.engine.batches import Step
from gptx_nb.engine.optimizer import Muon, orthogonal
from gptx_nb.engine.shards import Shards
from gptx_nb.engine.tasks import language_modeling
from gptx_nb.engine.tasks.language_modeling import Learner
from gptx_nb.engine.train import Settings, learning_rate_at, make_optimizer, train

VOCABULARY = 300
Weights = dict[str, torch.Tensor]


def small_model(dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, **dropped)
    return GPT2LMHeadModel(config)


def gpt2() -> GPT2LMHeadModel:
    return small_model(dropout=0.0)


END = 0


def shards_of(folder: Path, documents: list[list[int]], vocabulary: int = VOCABULARY) -> Shards:
    """Write `documents`, tokens each, of four bytes a token."""
    if not folder.exists():
        rows = ((True, document, 4 * len(document)) for document in documents)
        shards.write(folder, rows, end=END, vocabulary=vocabulary)
    return Shards(folder)


def documents(count: int = 40, longest: int = 90) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, VOCABULARY, random.integers(1, longest)).tolist() for _ in range(count)]


def learner_of(model: PreTrainedModel, read: Shards, **more: Any) -> Learner:
    given = {"length": 32, "tokens_per_step": 4 * 32, "seed": 0, "token_budget": 64, **more}
    return Learner(model, read, **given)


@pytest.mark.parametrize("at_once", [1, 100 * VOCABULARY, 10**9])
def test_the_chunked_loss_and_its_gradients_are_those_of_plain_cross_entropy(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_modeling, "CPU_LOGITS", at_once)
    states = torch.randn(250, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    targets = torch.randint(VOCABULARY, (250,), generator=torch.Generator().manual_seed(3))
    plain = torch.nn.functional.cross_entropy(states @ weight.T, targets)
    expected = torch.autograd.grad(plain, [states, weight])
    chunked = language_modeling.ChunkedCrossEntropy.apply(states, weight, targets)
    found = torch.autograd.grad(chunked, [states, weight])
    assert torch.allclose(chunked, plain, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_loss_in_bfloat16_is_close_to_that_in_float32() -> None:
    states = torch.randn(250, 32, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(2))
    targets = torch.randint(VOCABULARY, (250,), generator=torch.Generator().manual_seed(3))
    exact = language_modeling.ChunkedCrossEntropy.apply(states, weight, targets)
    rough = language_modeling.ChunkedCrossEntropy.apply(states.bfloat16(), weight, targets)
    assert rough.dtype is torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-2)


def test_under_autocast_the_gradients_are_computed_in_its_dtype_and_given_in_that_of_the_states() -> None:
    states = torch.randn(250, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    targets = torch.randint(VOCABULARY, (250,), generator=torch.Generator().manual_seed(3))
    exact = torch.autograd.grad(language_modeling.ChunkedCrossEntropy.apply(states, weight, targets), [states, weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = language_modeling.ChunkedCrossEntropy.apply(states, weight, targets)
    rough = torch.autograd.grad(loss, [states, weight])
    for ours, wanted in zip(rough, exact, strict=True):
        assert ours.dtype is torch.float32
        error = ((ours - wanted).norm() / wanted.norm()).item()
        assert 1e-4 < error < 2e-2


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_score_under_autocast_has_the_logits_of_float32(off: Callable[[], Any]) -> None:
    model = small_model().eval()
    states = torch.randn(250, 32, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(VOCABULARY, (250,), generator=torch.Generator().manual_seed(3))
    with off():
        exact = language_modeling.cross_entropy(model, states, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(language_modeling.cross_entropy(model, states, targets), exact)


def test_the_models_own_loss_is_met_where_a_row_is_one_document() -> None:
    model = small_model().eval()
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (4, 33))
    tensors = language_modeling.tensors_of(rows, END, own_attention=True)
    assert "documents" not in tensors
    theirs = model(input_ids=torch.from_numpy(rows[:, :-1]), labels=None).logits
    expected = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.from_numpy(rows[:, 1:]).flatten())
    language_modeling.use(model)
    assert language_modeling.loss(model, tensors).item() == pytest.approx(expected.item(), abs=1e-5)


def test_logits_that_are_more_than_a_product_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_modeling, "CPU_LOGITS", 1)  # 64 positions at once
    model = small_model(dropout=0.0)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(float(VOCABULARY)) / 100)
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (3, 33))
    tensors = language_modeling.tensors_of(rows, END, own_attention=True)
    parameters = list(model.parameters())
    logits = model(input_ids=tensors["input_ids"]).logits
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["targets"].flatten())
    expected = torch.autograd.grad(plain, parameters)
    language_modeling.use(model)
    loss = language_modeling.loss(model, tensors)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **size))


def neox() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, **size))


@pytest.mark.parametrize("make", [gpt2, llama, neox])
@pytest.mark.parametrize("plain", [256, 0], ids=["plain products", "fused"])
def test_no_token_sees_another_document(
    make: Callable[[], PreTrainedModel], plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients of rows with several documents are those of every piece of a document alone."""
    monkeypatch.setattr(language_modeling, "PLAIN", plain)
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (3, 33))
    rows[0, [5, 6, 20]] = END
    rows[1, [0, 31, 32]] = END

    def gradients(loss: torch.Tensor, model: PreTrainedModel) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    alone = make()
    total = torch.zeros(())
    for row in rows:
        borders = [0, *[place for place in range(1, 32) if row[place] == END], 32]
        for begin, end in itertools.pairwise(borders):
            logits = alone(input_ids=torch.from_numpy(row[None, begin:end])).logits[0]
            targets = torch.from_numpy(row[begin + 1 : end + 1])
            total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = total / (3 * 32)

    model = make()
    reason = language_modeling.use(model)
    assert (reason is None) == (make is not neox)
    found = language_modeling.loss(model, language_modeling.tensors_of(rows, END, own_attention=reason is None))
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for ours, theirs in zip(gradients(found, model), gradients(expected, alone), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("length", [7, 32, 50])
def test_every_token_is_a_target_in_every_epoch(length: int, tmp_path: Path) -> None:
    read = shards_of(tmp_path / "shards", documents())
    every = Counter(read.read(0, read.tokens).tolist())
    rows = read.rows(length)
    learner = learner_of(small_model(), read, length=length, tokens_per_step=length)
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for step in range(epoch * rows, (epoch + 1) * rows):
            for micro in learner.step(step).micro:
                seen.update(micro["targets"].flatten().tolist())
        assert every <= seen
        assert seen.total() == rows * length < every.total() + length


def test_the_order_depends_on_seed_and_epoch_alone_and_ranks_share_it(tmp_path: Path) -> None:
    read = shards_of(tmp_path / "shards", documents())
    learner = learner_of(small_model(), read)
    again = learner_of(small_model(), read)
    other = learner_of(small_model(), read, seed=1)

    def rows(step: Step) -> list[list[int]]:
        return [row for micro in step.micro for row in micro["input_ids"].tolist()]

    later = rows(learner.step(learner._shards.rows(32)))
    assert rows(learner.step(3)) == rows(again.step(3)) != rows(other.step(3))
    assert later != rows(learner.step(0))
    shares = [learner.step(3, rank, 3) for rank in range(3)]
    assert sorted(row for share in shares for row in rows(share)) == sorted(rows(learner.step(3)))
    assert sum(weight for share in shares for weight in share.weights) == pytest.approx(1)
    assert sum(share.here for share in shares) == shares[0].tokens == 128


def test_bits_per_byte_of_a_model_that_knows_nothing_are_those_of_guessing(tmp_path: Path) -> None:
    model = small_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    read = shards_of(tmp_path / "shards", documents())
    score = language_modeling.score(model, read, length=32, token_budget=64)
    per_token = read.text_bytes / (read.tokens - 1)
    assert score.bits_per_byte == pytest.approx(math.log2(VOCABULARY) / per_token, rel=1e-4)
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.bits_per_byte * 1.0001
    assert score.high >= score.bits_per_byte * 0.9999
    assert (score.tokens, score.text_bytes, score.documents) == (read.tokens - 1, read.text_bytes, 40)


def test_the_score_of_some_rows_is_near_that_of_all_and_less_sure(tmp_path: Path) -> None:
    read = shards_of(tmp_path / "shards", documents(400))
    model = small_model()
    language_modeling.use(model)
    whole = language_modeling.score(model, read, length=32, token_budget=64)
    part = language_modeling.score(model, read, length=32, token_budget=64, most_rows=20)
    assert part.tokens <= 20 * 32
    assert part.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.05)
    assert part.low is not None
    assert part.high is not None
    assert whole.low is not None
    assert whole.high is not None
    assert part.high - part.low > whole.high - whole.low
    few = language_modeling.score(model, read, length=32, token_budget=64, most_rows=9)
    assert few.low is few.high is None
    assert re.fullmatch(
        r"[0-9.]+ bits a byte on 400 held-back documents of 1 kB in all, too little to say how sure that is",
        pretraining_words.scored(few.to_json()),
    )
    assert pretraining_words.scored(whole.to_json()).endswith(f" to {whole.high:.3f}) on 400 held-back documents")


def test_a_step_that_needs_less_memory_learns_the_same(tmp_path: Path) -> None:
    model = gpt2()
    learner = learner_of(model, shards_of(tmp_path / "shards", documents()), token_budget=128, streams=2)
    parameters = list(model.parameters())

    def gradient() -> list[torch.Tensor]:
        step = learner.step(0)
        pairs = zip(step.micro, step.weights, strict=True)
        total = sum(learner.loss(model, micro) * weight for micro, weight in pairs)
        return list(torch.autograd.grad(total, parameters))  # type: ignore[arg-type]

    expected = gradient()
    said = []
    while how := learner.need_less_memory():
        said.append(how)
        for ours, before in zip(gradient(), expected, strict=True):
            assert torch.allclose(ours, before, atol=1e-6)
    assert said == [
        "64 tokens at once",
        "32 tokens at once",
        "one micro-batch at a time",
        "activations computed twice",
    ]


def test_wsd_rises_stays_and_falls_to_zero() -> None:
    settings = Settings(steps=100, learning_rate=1.0, warmup=0.1, decay="wsd", cooldown=0.2)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(rates[10:81]) == {1.0}
    assert rates[81:] == pytest.approx([(100 - step) / 20 for step in range(81, 100)])


def run(folder: Path, optimizer_name: str, stop_after: int | None = None) -> tuple[list[float], Weights]:
    model = small_model()
    learner = learner_of(model, shards_of(folder.parent / "shards", documents()))
    settings = Settings(steps=6, learning_rate=1e-2, decay="cosine", optimizer=optimizer_name)
    optimizer = make_optimizer(model, settings)
    newest = checkpoints.latest(folder)
    losses: list[float] = []
    train(
        model,
        optimizer,
        settings,
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_at=learner.step,
        loss_of=learner.loss,
        first_step=checkpoints.load(newest, model, optimizer)["step"] if newest else 0,
        record=lambda entry: losses.append(entry["loss"]),
        evaluate=lambda step: None,
        save=lambda step: checkpoints.save(folder, model, optimizer, {"step": step}) and None,
        should_stop=lambda: len(losses) == stop_after,
    )
    return losses, model.state_dict()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_pretraining_that_was_cut_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, weights = run(tmp_path / "whole", name)
    first, _ = run(tmp_path / "cut", name, stop_after=3)
    second, resumed = run(tmp_path / "cut", name)
    assert first + second == whole
    assert all(torch.equal(resumed[key], weights[key]) for key in weights)


def test_muon_takes_the_matrices_between_hidden_states_and_leaves_the_rest_to_adamw() -> None:
    model = small_model()
    hidden, rest = make_optimizer(model, Settings(steps=1, learning_rate=1e-2, optimizer="muon")).parts
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_muon = {names[parameter] for group in hidden.param_groups for parameter in group["params"]}
    by_adamw = {names[parameter] for group in rest.param_groups for parameter in group["params"]}
    assert by_muon == {name for name in names.values() if ".h." in name and ".ln_" not in name and "weight" in name}
    assert by_muon | by_adamw == set(names.values())
    assert by_adamw.isdisjoint(by_muon)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muons_step_is_that_of_torch(shape: tuple[int, int]) -> None:
    """Torch computes in bfloat16, so that its steps differ by a rounding."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.full(shape, 0.01)) for _ in range(2))
    steps = [
        Muon([ours], 0.01, 0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), steps, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - 0.01).norm()
    assert (ours - theirs).norm() < 0.03 * moved


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_an_orthogonal_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix, torch.float32))
    assert values.max() < 1.25
    assert values.median() > 0.65


def test_what_is_compiled_gives_the_losses_and_gradients_of_what_is_not() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 40), torch.randint(40, (7, 1))
    one, other = logits.clone(), logits.clone()
    expected = language_modeling._nats(one, targets, True)
    assert torch.allclose(language_modeling._in_one(other, targets, True), expected, atol=1e-5)
    assert torch.allclose(other, one, atol=1e-6)
