"""Causal language modelling: the chunked loss is the plain one, rows are visited once, a run goes on exactly."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptx_nb.engine import checkpoints
from gptx_nb.engine.tasks import language_modeling
from gptx_nb.engine.train import Settings, learning_rate_at, make_optimizer, train

VOCABULARY = 300
Weights = dict[str, torch.Tensor]


def small_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config)


def text(count: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, count).astype("<u2")


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


def test_the_models_own_loss_is_met() -> None:
    model = small_model().eval()
    ids = torch.from_numpy(text(128).astype(np.int64)).view(4, 32)
    assert language_modeling.loss(model, {"input_ids": ids}).item() == pytest.approx(
        model(input_ids=ids, labels=ids).loss.item(), abs=1e-5
    )


def test_an_epoch_visits_every_row_once_and_the_next_one_starts_elsewhere() -> None:
    tokens = np.arange(33 * 10, dtype="<u2")

    def starts(step: int) -> list[int]:
        made = language_modeling.rows_at(step, tokens, length=32, rows=3, micro_rows=2, seed=5)
        assert made.tokens == 3 * 32
        assert made.weights == [2 / 3, 1 / 3]
        return [int(row[0]) for part in made.micro for row in part["input_ids"]]

    first = [start for step in range(3) for start in starts(step)]
    assert len({start // 32 for start in first}) == 9
    assert first != [start for step in range(3, 6) for start in starts(step)]
    assert starts(1) == first[3:6]


def test_bits_per_byte_of_a_model_that_knows_nothing_are_those_of_guessing() -> None:
    model = small_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    score = language_modeling.bits_per_byte(model, text(1025), length=32, text_bytes=4 * 1025)
    assert score == pytest.approx(math.log2(VOCABULARY) / 4, rel=1e-4)


def test_wsd_rises_stays_and_falls_to_zero() -> None:
    settings = Settings(steps=100, learning_rate=1.0, warmup=0.1, decay="wsd", cooldown=0.2)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(rates[10:81]) == {1.0}
    assert rates[81:] == pytest.approx([(100 - step) / 20 for step in range(81, 100)])


def run(folder: Path, optimizer_name: str, stop_after: int | None = None) -> tuple[list[float], Weights]:
    model, tokens = small_model(), text()
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
        batch_at=lambda step: language_modeling.rows_at(step, tokens, length=32, rows=4, micro_rows=4, seed=0),
        loss_of=language_modeling.loss,
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
