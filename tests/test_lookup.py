"""Tokens are guessed from what a text says already, and change nothing of what is written."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_generate import ALIKE, RAGGED, small, tokens

from gptx_nb.engine import generate as generation
from gptx_nb.engine import products
from gptx_nb.engine.generate import Sampling, generate
from gptx_nb.engine.lookup import FIRST, MOST, Lookup

LONG = 24


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    assert Lookup([5, 6, 7, 8, 9, 5, 6]).guess(2) == [7, 8]
    assert Lookup([5, 6, 7, 8, 9, 5, 6]).guess(1) == [7], "no more than there is room for"
    assert Lookup([5, 6, 7, 8, 9, 5, 6]).guess(0) == []
    assert Lookup([5, 6, 7, 8]).guess(4) == Lookup([]).guess(4) == Lookup([5]).guess(4) == []
    assert Lookup([6, 7, 1, 6, 7, 2, 6, 7]).guess(1) == [2], "the last time counts"
    assert Lookup([5, 6, 7, 1, 9, 6, 7, 2, 5, 6, 7]).guess(1) == [1], "three tokens in a row tell more than two"


def test_a_text_that_goes_round_is_guessed_to_go_on() -> None:
    text = Lookup([1, 2, 3, 1, 2])
    for _ in range(3):
        text.learn(len(text.guess(8)), len(text.guess(8)))
    assert text.guess(8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert Lookup([4, 4, 4]).guess(2) == [4, 4]


def test_as_many_tokens_are_guessed_as_have_been_right() -> None:
    text = Lookup([1, 2] * 8)
    counts = []
    for right in (None, None, None, 3, 0, 0, None):
        guess = text.guess(100)
        counts.append(len(guess))
        text.learn(len(guess), len(guess) if right is None else right)
    assert counts == [FIRST, 4, 8, MOST, 3, 1, 1]
    assert len(text.guess(100)) == 2
    text.learn(0, 0)
    assert len(text.guess(100)) == 2, "nothing guessed, nothing learnt"


def test_tokens_that_are_added_are_looked_up_as_those_of_the_beginning() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        text = draw.integers(0, 4, 40).tolist()
        grown = Lookup(text[:7])
        for place in range(7, 40, 3):
            grown.add(text[place : place + 3])
            assert grown.guess(5) == Lookup(text[: place + 3]).guess(5)


class Planted(Lookup):
    """Guesses what stands in one of `texts`, by how it begins; each token is wrong with a third of a chance."""

    texts: ClassVar[list[list[int]]] = []
    right = wrong = 0

    def guess(self, most: int) -> list[int]:
        text = next(each for each in self.texts if each[: len(self._tokens)] == self._tokens)
        draw = np.random.default_rng(self._tokens)
        following = text[len(self._tokens) :][: max(0, min(most, int(draw.integers(0, 6))))]
        found = [token if draw.random() > 1 / 3 else (token + 1) % 90 for token in following]
        Planted.right, Planted.wrong = self.right + (found == following), self.wrong + (found != following)
        return found


@pytest.mark.parametrize("prompts", [RAGGED, ALIKE], ids=["ragged", "alike"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("sampling", [None, Sampling(0.8, top_k=20, seed=3)], ids=["greedy", "sampled"])
def test_guesses_right_or_wrong_change_no_token(
    kind: str, prompts: list[list[int]], sampling: Sampling | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(kind)
    context = model.config.max_position_embeddings
    to_the_end = tokens(generate(model, prompts, max_new_tokens=context, sampling=sampling, look_up=False))
    assert [len(prompt) + len(new) for prompt, new in zip(prompts, to_the_end, strict=True)] == [context] * len(prompts)
    expected = generate(model, prompts, max_new_tokens=LONG, sampling=sampling, look_up=False)
    whole = tokens(expected)
    monkeypatch.setattr(generation, "LOOK_UP_ROWS", 8)
    monkeypatch.setattr(generation, "Lookup", Planted)
    monkeypatch.setattr(Planted, "texts", [prompt + new for prompt, new in zip(prompts, to_the_end, strict=True)])
    monkeypatch.setattr(Planted, "right", 0)
    monkeypatch.setattr(Planted, "wrong", 0)
    told: list[tuple[int, int]] = []
    for rows in (None, 2, 1):
        told.clear()
        found = generate(
            model, prompts, max_new_tokens=LONG, sampling=sampling, rows=rows,
            on_token=lambda row, token: told.append((row, token)),
        )  # fmt: skip
        assert found == expected
        assert [[token for row, token in told if row == number] for number in range(len(prompts))] == whole
    assert Planted.right > 20
    assert Planted.wrong > 20
    ends = {whole[0][6], whole[2][11]}
    assert generate(model, prompts, max_new_tokens=LONG, sampling=sampling, end_ids=ends) == generate(
        model, prompts, max_new_tokens=LONG, sampling=sampling, end_ids=ends, look_up=False
    )
    stopped = generate(model, prompts, max_new_tokens=LONG, sampling=sampling, stop=lambda new: len(new) == 5)
    assert [each.tokens for each in stopped] == [row[:5] for row in whole]
    assert tokens(generate(model, prompts, max_new_tokens=context, sampling=sampling)) == to_the_end


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each reading."""
    found: list[int] = []
    before = generation._Reader.read

    def read(self: Any, cache: Any, first: int, rows: Any, tokens: list[list[int]], **more: Any) -> Any:
        found.append(sum(map(len, tokens)))
        return before(self, cache, first, rows, tokens, **more)

    monkeypatch.setattr(generation._Reader, "read", read)
    return found


def tied(kind: str = "llama") -> Any:
    model = small(kind)
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


def test_a_text_that_repeats_itself_takes_fewer_readings(readings: list[int]) -> None:
    model = tied()
    for layer in model.get_decoder().layers:  # its layers say little, so it says its last token again
        for parameter in layer.parameters():
            parameter.data.mul_(0.1 if parameter.ndim > 1 else 1)
    plain = generate(model, [[5, 6, 7]], max_new_tokens=LONG, look_up=False)
    assert len(readings) == LONG
    assert len(set(plain[0].tokens[4:])) < 4, "or the test says nothing"
    readings.clear()
    assert generate(model, [[5, 6, 7]], max_new_tokens=LONG) == plain
    assert len(readings) < LONG / 2
    readings.clear()
    generate(model, [[5, 6, 7]] * 5, max_new_tokens=LONG, share_prefix=False)
    assert readings == [15, *[5] * (LONG - 1)], "with many rows nothing is guessed"


needs_layout = pytest.mark.skipif(
    not products._can_lay_out(torch.bfloat16), reason="this CPU lays out no weights in bfloat16"
)


def head_of(weight: torch.Tensor) -> products.Product:
    layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight = torch.nn.Parameter(weight)
    return products.Product([layer], torch.float32)


@needs_layout
@pytest.mark.parametrize("is_rounded", [True, False])
def test_the_largest_logit_is_that_of_float32(is_rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    every: list[int] = []
    forward = products.Product.forward

    def counting(self: products.Product, states: torch.Tensor) -> torch.Tensor:
        every.append(len(states))
        return forward(self, states)

    monkeypatch.setattr(products.Product, "forward", counting)
    for spread in (1.0, 0.001, 0.0):  # far apart; so near that more than a few could be the largest; all the same
        weight = torch.randn(1, 48) + spread * torch.randn(500, 48)
        weight = weight.bfloat16().float() if is_rounded else weight
        weight[300] = weight[20]  # of equal ones the first counts
        states = torch.cat([torch.randn(40, 48), weight[20:21] * 3, weight[300:301]])
        logits = states @ weight.T
        every.clear()
        with torch.inference_mode():
            found = products._Largest(head_of(weight), weight)(states)
        chosen = logits.gather(1, found[:, None])[:, 0]
        assert torch.allclose(chosen, logits.max(dim=-1).values, rtol=1e-6, atol=1e-5)
        if spread == 1:
            assert found.tolist() == logits.argmax(-1).tolist()
            assert found[-2:].tolist() == [20, 20]
            assert sum(every) < 10
        else:
            assert sum(every) == len(states), "all logits of those rows"


@needs_layout
@pytest.mark.parametrize("prompts", [RAGGED, ALIKE], ids=["ragged", "alike"])
def test_a_model_whose_head_is_its_embedding_writes_the_same_by_the_largest_alone(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tied()
    products.prepare(model, torch.bfloat16, writes=True)
    head = model.get_output_embeddings()
    monkeypatch.setattr(products._Largest, "FEW", 4)
    with monkeypatch.context() as patched:
        patched.setattr(products, "largest", lambda head, states: None)
        expected = generate(model, prompts, max_new_tokens=LONG)
        drawn = generate(model, prompts, max_new_tokens=LONG, sampling=Sampling(0.7))
    asked: list[int] = []
    head.register_forward_hook(lambda module, given, found: asked.append(len(found)))
    assert generate(model, prompts, max_new_tokens=LONG) == expected
    assert sum(asked) < LONG * len(prompts) / 4, "few rows need all logits"
    assert generate(model, prompts, max_new_tokens=LONG, sampling=Sampling(0.7)) == drawn
    assert products.size(model) == products.size(tied_plain()) + model.get_input_embeddings().weight.numel() * 2


def tied_plain() -> Any:
    model = tied()
    products.prepare(model, torch.bfloat16)
    return model


@needs_layout
def test_where_the_largest_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(2, small("llama").config.hidden_size)

    def looks(model: Any, dtype: torch.dtype = torch.bfloat16, *, writes: bool = True) -> bool:
        products.prepare(model, dtype, writes=writes)
        return products.largest(model.get_output_embeddings(), states) is not None

    assert looks(tied())
    assert not looks(tied(), writes=False)
    assert not looks(tied(), torch.float32)
    assert not looks(small("llama")), "its weights would be kept twice"
    assert products.largest(tied().get_output_embeddings(), states) is None, "as it was loaded"
    biased = tied()
    biased.lm_head.bias = torch.nn.Parameter(torch.ones(biased.config.vocab_size))
    assert not looks(biased)
    monkeypatch.setattr(products, "_can_lay_out", lambda dtype: dtype is torch.float32)
    assert not looks(tied())


@needs_layout
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_that_are_none_are_told(number: str) -> None:
    model = tied()
    products.prepare(model, torch.bfloat16, writes=True)
    states = torch.randn(3, model.config.hidden_size)
    states[1] = float(number)
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        products.largest(model.get_output_embeddings(), states)
