"""Tokens are guessed from what a text says already, and never change what is written."""

from collections.abc import Iterator

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


class Planted:
    """Guesses what stands in `texts`, each token wrong with a third of a chance."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts, self._draw = texts, np.random.default_rng(0)
        self.right = self.wrong = 0

    def __call__(self, row: generation._Row, max_new_tokens: int, limit: int) -> list[int]:
        if row.lookup is None:
            return []
        room = min(max_new_tokens, limit - len(row.prompt)) - len(row.new) - 1
        following = self.texts[row.number][len(row.new) :][: min(room, int(self._draw.integers(0, 6)))]
        found = [token if self._draw.random() > 1 / 3 else (token + 1) % 90 for token in following]
        same = found == following
        self.right, self.wrong = self.right + same, self.wrong + (not same)
        return found


@pytest.mark.parametrize("prompts", [RAGGED, ALIKE], ids=["ragged", "alike"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("sampling", [None, Sampling(0.8, top_k=20, seed=3)], ids=["greedy", "sampled"])
def test_guesses_right_or_wrong_change_no_token(
    kind: str, prompts: list[list[int]], sampling: Sampling | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(kind)
    expected = generate(model, prompts, max_new_tokens=LONG, sampling=sampling, look_up=False)
    whole = tokens(expected)
    planted = Planted(whole)
    monkeypatch.setattr(generation, "LOOK_UP_ROWS", 8)
    monkeypatch.setattr(generation._Row, "guess", lambda *given: planted(*given))
    told: list[tuple[int, int]] = []
    for rows in (None, 2, 1):
        told.clear()
        found = generate(
            model, prompts, max_new_tokens=LONG, sampling=sampling, rows=rows,
            on_token=lambda row, token: told.append((row, token)),
        )  # fmt: skip
        assert found == expected
        assert [[token for row, token in told if row == number] for number in range(len(prompts))] == whole
    assert planted.right > 20
    assert planted.wrong > 20
    ends = {whole[0][6], whole[2][11]}
    assert generate(model, prompts, max_new_tokens=LONG, sampling=sampling, end_ids=ends) == generate(
        model, prompts, max_new_tokens=LONG, sampling=sampling, end_ids=ends, look_up=False
    )
    stopped = generate(model, prompts, max_new_tokens=LONG, sampling=sampling, stop=lambda new: len(new) == 5)
    assert [each.tokens for each in stopped] == [row[:5] for row in whole]
    room = model.config.max_position_embeddings - max(map(len, prompts)) + 7
    assert tokens(generate(model, prompts, max_new_tokens=room, sampling=sampling)) == tokens(
        generate(model, prompts, max_new_tokens=room, sampling=sampling, look_up=False)
    ), "at the end of the context, too"


@pytest.fixture
def readings() -> Iterator[list[int]]:
    """The tokens of each reading."""
    found: list[int] = []
    before = generation._Reader.read

    def read(self: generation._Reader, *given: object, **named: object) -> generation._Found:
        found.append(sum(map(len, given[3])))  # type: ignore[call-overload]
        return before(self, *given, **named)  # type: ignore[arg-type]

    generation._Reader.read = read  # type: ignore[method-assign]
    yield found
    generation._Reader.read = before  # type: ignore[method-assign]


def test_a_text_that_repeats_itself_takes_fewer_readings(readings: list[int]) -> None:
    model = small("llama")
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
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


@needs_layout
@pytest.mark.parametrize("is_rounded", [True, False])
def test_the_largest_logit_is_that_of_float32(is_rounded: bool) -> None:
    torch.manual_seed(0)
    for spread in (1.0, 0.01, 0.0):  # far apart; so near that more than a few could be the largest; all the same
        weight = torch.randn(1, 48) + spread * torch.randn(500, 48)
        weight = weight.bfloat16().float() if is_rounded else weight
        weight[300] = weight[20]  # of equal ones the first counts
        states = torch.cat([torch.randn(40, 48), weight[20:21] * 3, weight[300:301]])
        logits = states @ weight.T
        found = products._Largest(weight)(states)
        best = logits.max(dim=-1).values
        chosen = logits.gather(1, found[:, None])[:, 0]
        assert torch.allclose(chosen, best, rtol=1e-6, atol=1e-5)
        if spread == 1:
            assert found.tolist() == logits.argmax(-1).tolist()
            assert found[-2:].tolist() == [20, 20]


@needs_layout
def test_a_model_whose_head_is_its_embedding_finds_the_largest_and_tells_numbers_that_are_none() -> None:
    model = small("llama")
    assert products.largest(model.get_output_embeddings(), torch.randn(2, 32)) is None, "as it is"
    products.prepare(model, torch.bfloat16)
    assert products.largest(model.get_output_embeddings(), torch.randn(2, 32)) is None, "its weights are its own"
    tied = small("llama")
    tied.get_output_embeddings().weight = tied.get_input_embeddings().weight
    products.prepare(tied, torch.bfloat16)
    head = tied.get_output_embeddings()
    states = torch.randn(6, tied.config.hidden_size)
    found = products.largest(head, states)
    assert found is not None
    assert found.tolist() == head(states).argmax(-1).tolist()
    with products.exactly(tied):
        assert products.largest(head, states) is None
    states[2] = float("nan")
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        products.largest(head, states)
    states[2] = float("inf")
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        products.largest(head, states)
