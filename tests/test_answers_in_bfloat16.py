"""Answers of a model whose products are in bfloat16: labels and choices are float32's, texts are written, nothing more
is kept than float32 takes. It is forced here: what a device chooses by itself depends on what it measures.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_generate import ALIKE, small
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import gptx_nb
from gptx_nb import progress
from gptx_nb.engine import arithmetic, close_calls, packing, products, sharding, streams
from gptx_nb.engine import device as devices
from gptx_nb.engine.device import choose
from gptx_nb.engine.generate import generate
from gptx_nb.engine.lean import Lean
from gptx_nb.engine.predict import Classifier
from gptx_nb.engine.tasks import label_words
from gptx_nb.engine.tasks.label_words import Wording
from gptx_nb.engine.tasks.reading import Reading
from gptx_nb.engine.writer import How, Writer
from gptx_nb.engine.zero_shot import ZeroShot

TINY = Path(gptx_nb.__file__).parent / "models" / "tiny"
CPU = choose("cpu", "float32")
CONTEXT = 64
WORDS = ["the", "a", "film", "was", "not", "very", "good", "bad", "dull", "bright", "slow", "and", "or", "but", "story"]
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
ASKED = Wording("Review: {text}\nSentiment:", (" bad", " good", " so so"))
# How texts are read, and what they may have.
KINDS = {
    "packed": {},
    "padded": {},
    "dithered": {},
    "in windows": {"reading": Reading(16, "windows", 12)},
    "within a prompt": {"wording": ASKED},
    "any number of labels": {"threshold": 0.4},
    "a threshold for each label": {"threshold": [0.3, 0.5, 0.6]},
}


def texts(count: int, most: int = 20) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, most))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = AutoTokenizer.from_pretrained(TINY)
    found.model_max_length = CONTEXT
    return found


def undecided(tokenizer: Any, kind: str, asked: list[str], sharpness: float = 4.0) -> dict[torch.dtype, Classifier]:
    """Return a classifier in each arithmetic, whose head looks where states differ little: many calls are close."""
    torch.manual_seed(0)
    several = "label" in kind
    problem = {"problem_type": "multi_label_classification"} if several else {}
    options: Any = KINDS[kind]
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=3, **SIZES, **problem)
    model = LlamaForSequenceClassification(config).eval()
    if kind == "dithered":  # tuned a little, from weights of bfloat16
        for each in model.parameters():
            each.data = each.data.to(torch.bfloat16).float() * (1 + 1e-3)
    rows = label_words.read(tokenizer, options.get("wording"), asked, options.get("reading") or Reading(CONTEXT)).rows
    states = label_words.states(model, rows, pad_id=0)
    mean = states.mean(dim=0)
    _, spread, directions = torch.linalg.svd(states - mean - (states @ mean)[:, None] * mean / mean.dot(mean))
    head = directions[-6:-3] / spread[-6:-3, None] * sharpness * len(asked) ** 0.5
    head = head - (head @ mean)[:, None] * mean / mean.dot(mean)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        again = LlamaForSequenceClassification(config)
        again.load_state_dict(model.state_dict())
        again.score.weight.data.copy_(head)
        found[dtype] = Classifier(again, tokenizer, CPU, dtype=dtype, **options)
        assert isinstance(getattr(again.model.layers[0], "lean", None), Lean)
        dithered = [each for each in again.modules() if getattr(each, "_thresholds", None) is not None]
        assert bool(dithered) == (kind == "dithered" and dtype is torch.bfloat16)
    return found


def labels_of(classifier: Classifier, shares: list[list[float]]) -> np.ndarray:
    found = np.array(shares)
    return found.argmax(axis=1) if classifier.threshold is None else found >= np.array(classifier.threshold)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_float32_where_rounding_would_change_some(
    tokenizer: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "padded":
        monkeypatch.setattr(packing, "PACKABLE", ())
    asked = texts(600)
    # Of windows rounding moves more: with a head as sharp as for the others, all texts would be computed again.
    exact, rounded = undecided(tokenizer, kind, asked, 1.0 if kind == "in windows" else 4.0).values()
    expected, found = exact.predict(asked), rounded.predict(asked)
    assert (labels_of(rounded, found) == labels_of(exact, expected)).all()
    moved = np.abs(np.array(found) - expected).max(axis=1)
    assert (moved > 1e-4).sum() > 30, "nothing was computed in bfloat16"
    assert (moved < 1e-5).sum() > 30, "nothing was computed again"
    monkeypatch.setattr(close_calls, "unsure", lambda *_: np.zeros(0, dtype=int))
    alone = labels_of(rounded, rounded.predict(asked))
    assert (alone != labels_of(exact, expected)).sum() >= 3, "without computing again, no label would be another one"


@pytest.mark.parametrize("kind", ["packed", "in windows", "any number of labels"])
def test_few_texts_are_computed_exactly(tokenizer: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = texts(120)
    exact, rounded = undecided(tokenizer, kind, asked, 1.0).values()
    counted: list[int] = []
    exactly = rounded._exactly
    monkeypatch.setattr(rounded, "_exactly", lambda rows: (counted.append(len(rows)), exactly(rows))[1])
    found, expected = np.array(rounded.predict(asked)), np.array(exact.predict(asked))
    assert (labels_of(rounded, found) == labels_of(exact, expected)).all()  # type: ignore[arg-type]
    assert 0 < sum(counted) < len(asked)


def test_a_text_by_itself_is_given_to_one_thread_or_more_and_answered_the_same(tokenizer: Any) -> None:
    asked = texts(40)
    rounded = undecided(tokenizer, "packed", asked)[torch.bfloat16]
    before, found = torch.get_num_threads(), {}
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found[number] = [[rounded.predict([text])[0] for text in asked] for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    measured = rounded._threads._seconds
    assert {kind for kind, *_ in measured} == {"plain", "exact"}  # type: ignore[misc]
    assert any(len(each) == 2 for numbers in measured.values() for each in numbers.values())
    assert all(set(numbers) == {2, 1} for numbers in measured.values())
    assert np.abs(np.array(found[2]) - found[1]).max() < 1e-5


def test_a_sharper_head_takes_a_wider_look(tokenizer: Any) -> None:
    asked = texts(300)
    for sharpness in (1.0, 100.0):  # of the sharp one, rounding moves probabilities by more than any fixed bound
        exact, rounded = undecided(tokenizer, "packed", asked, sharpness).values()
        assert (labels_of(rounded, rounded.predict(asked)) == labels_of(exact, exact.predict(asked))).all()


def test_one_label_and_no_text_are_answered(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **SIZES))
    classifier = Classifier(model, tokenizer, CPU, dtype=torch.bfloat16)
    assert classifier.classify([]).probabilities == []
    assert classifier.predict(["good"]) == [[1.0]]


def test_close_calls_are_within_the_bound_of_another_label() -> None:
    logits = np.array([[0.0, 1.0, 3.0], [2.9, 0.0, 3.0], [-1.0, -9.0, -1.2]], dtype=np.float32)
    assert close_calls.unsure(logits, None, 0.3).tolist() == [1, 2]
    assert close_calls.unsure(logits, 0.5, 0.3).tolist() == [0, 1]
    assert close_calls.unsure(logits, [0.5, 0.5, 0.95], 0.3).tolist() == [0, 1]  # the logit of 0.95 is 2.94
    assert close_calls.unsure(logits, [1.0, 1.0, 0.0], 0.3).tolist() == []
    moves = np.array([[0.1, -0.1, 0.0], [-0.1, 0.1, 0.02]], dtype=np.float32)
    assert close_calls.bound(logits[:2], logits[:2] + moves, None) == pytest.approx(0.2 * close_calls.SURE, abs=1e-4)
    assert close_calls.bound(logits[:2], logits[:2] + moves, 0.5) == pytest.approx(0.1 * close_calls.SURE, abs=1e-4)


def test_more_is_computed_again_where_rounding_moved_more_than_was_thought() -> None:
    rounded = np.array([[0.0, 0.05], [0.0, 0.15], [0.0, 0.35], [0.0, 0.9]], dtype=np.float32)
    exact = np.array([[0.09, 0.0], [0.0, 0.15], [0.38, 0.35], [1.0, 0.9]], dtype=np.float32)
    asked: list[list[int]] = []

    def exactly(places: list[int]) -> np.ndarray:
        asked.append(places)
        return exact[places]

    found = close_calls.settle(rounded, None, 0.1, exactly)
    assert asked == [[0], [1], [2]], "the last is not within twice of what moved the others"
    assert (found == np.concatenate([exact[:3], rounded[3:]])).all()
    asked.clear()
    assert (close_calls.settle(rounded, None, 0.3, exactly)[:2] == exact[:2]).all()
    assert asked == [[0, 1]], "what is moved by less than half of it is no surprise"


def test_a_base_model_gives_the_labels_that_it_gives_in_float32(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = texts(300)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=2, **SIZES))
        output = torch.randn(len(tokenizer), SIZES["hidden_size"])
        found.append(ZeroShot(model, tokenizer, output, CPU, dtype))
        assert isinstance(getattr(model.model.layers[0], "lean", None), Lean)
    exact, rounded = found
    expected = np.array(exact.classify(asked, ASKED, asked[::5]).probabilities)
    shares = np.array(rounded.classify(asked, ASKED, asked[::5]).probabilities)
    assert (shares.argmax(1) == expected.argmax(1)).all()
    assert np.abs(shares - expected).max() > 1e-4, "nothing was computed in bfloat16"
    monkeypatch.setattr(close_calls, "unsure", lambda *_: np.zeros(0, dtype=int))
    alone = np.array(rounded.classify(asked, ASKED, asked[::5]).probabilities)
    assert (alone.argmax(1) != expected.argmax(1)).any(), "without computing again, no label would be another one"


def test_what_bfloat16_leaves_out_gives_float32_to_the_last_bit() -> None:
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), dtype=torch.int64).int()
    bits[:4] = torch.tensor([0x3F808000, 0x3F818000, 0xBF808000 - 2**32, 0x00008000])  # midway between two numbers
    whole = bits.view(torch.float32)
    whole = whole[whole.isfinite()]
    rounded, rest = products.split(whole)
    assert rest is not None
    assert rest.dtype is torch.int16
    assert torch.equal(products.joined(rounded, rest).view(torch.int32), whole.view(torch.int32))
    near = (rounded.float() - whole).abs() <= (whole.to(torch.bfloat16).float() - whole).abs()
    assert bool((near | rounded.isinf()).all()), "it is not the nearest number of bfloat16"
    halves = whole.to(torch.bfloat16).float()
    rounded, rest = products.split(halves)
    assert rest is None
    assert torch.equal(products.joined(rounded, rest).view(torch.int32), halves.view(torch.int32))


def test_weights_that_began_at_numbers_of_bfloat16_do_not_go_back_there() -> None:
    torch.manual_seed(0)
    base = torch.randn(256, 384).mul_(0.1).to(torch.bfloat16).float()
    learnt = torch.randn(256, 1) * torch.randn(1, 384) * 1e-5  # less than half of what lies between two numbers
    whole = base + learnt
    thresholds = products.thresholds_for(whole)
    assert thresholds is not None
    rounded, rest = products.split(whole, thresholds)
    assert rest is not None
    assert rest.dtype is torch.int16
    assert torch.equal(products.joined(rounded, rest, thresholds), whole)
    assert torch.equal(products.joined(rounded, rest, thresholds, torch.empty(whole.numel() * 2)), whole)

    def kept(rounded: torch.Tensor) -> float:
        """Return how much of what was learnt is in the rounded weights: 1 is all."""
        return float(((rounded.float() - base) * learnt).sum() / learnt.square().sum())

    assert kept(whole.to(torch.bfloat16)) < 0.3
    assert abs(kept(rounded) - 1) < 0.2
    assert bool(((rounded.float() - whole).abs() <= whole.abs() / 2**7).all()), "some went past the next number"


def test_any_float32_goes_to_the_nearest_number_and_numbers_of_bfloat16_stay() -> None:
    torch.manual_seed(0)
    assert products.thresholds_for(torch.randn(256, 384)) is None
    halves = torch.randn(256, 384).to(torch.bfloat16).float()
    thresholds = products.thresholds_for(halves)
    rounded, rest = products.split(halves, thresholds)
    assert rest is None
    assert torch.equal(products.joined(rounded, rest, thresholds), halves)


def test_weights_that_began_at_numbers_of_float16_are_dithered_too() -> None:
    torch.manual_seed(0)
    base = torch.randn(256, 384).half().float()
    assert products.thresholds_for(base + torch.randn(256, 1) * torch.randn(1, 384) * 1e-5) is not None


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001, 0x7F800000])
def test_a_weight_that_is_no_number_stays_none(bits: int) -> None:
    whole = torch.full((3, 5), 0.1)
    whole.view(torch.int32)[1, 2] = bits
    assert not bool(products.split(whole, products.thresholds_for(whole))[0].isfinite().all())


def test_a_layer_of_an_odd_size_is_exact_for_a_while() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    layer.weight.data = (layer.weight.data.to(torch.bfloat16).float() * 1.001).contiguous()
    states = torch.randn(7, 5)
    expected = layer(states)
    product = products.Product([layer], torch.bfloat16)
    thresholds = tuple(torch.randint(-(2**15), 2**15, size).short() for size in ((3, 1), (1, 5)))
    rounded, rest = products.split(layer.weight.detach(), thresholds)  # type: ignore[arg-type]
    room = torch.empty(products.joined_in(15, thresholds))  # type: ignore[arg-type]
    assert torch.equal(products.joined(rounded, rest, thresholds, room), layer.weight)  # type: ignore[arg-type]
    product.exact = True
    assert (product(states) - expected).abs().max() < 1e-6


def test_dithered_numbers_of_any_size_and_sign_come_back_to_the_last_bit() -> None:
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (300, 400), dtype=torch.int64).int()
    bits[0, :6] = torch.tensor([0, -(2**31), 1, -(2**31) + 1, 0x7F7FFFFF, -0x00800001], dtype=torch.int32)
    bits = torch.where(bits.view(torch.float32).isfinite(), bits, 0)
    draw = torch.Generator().manual_seed(1)
    thresholds = tuple(torch.randint(-(2**15), 2**15, size, generator=draw).short() for size in ((300, 1), (1, 400)))
    rounded, rest = products.split(bits.view(torch.float32), thresholds)  # type: ignore[arg-type]
    found = products.joined(rounded, rest, thresholds)  # type: ignore[arg-type]
    assert torch.equal(found.view(torch.int32), bits)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_products_in_bfloat16_are_exact_for_a_while_and_take_no_more_memory(kind: str) -> None:
    ids = torch.tensor([ALIKE[2]])
    exact, rounded = small(kind), small(kind)
    expected = small(kind)(ids).logits
    products.prepare(exact, torch.float32)
    products.prepare(rounded, torch.bfloat16)
    assert products.size(rounded) == products.size(exact)
    before = rounded(ids).logits
    with products.exactly(rounded):
        assert (rounded(ids).logits - expected).abs().max() < 1e-4
    assert torch.equal(rounded(ids).logits, before)
    assert (before - expected).abs().max() > 1e-3
    saved = small(kind).to(torch.bfloat16).float()  # as most base models are
    products.prepare(saved, torch.bfloat16)
    assert products.size(saved) < products.size(exact)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_with_dithered_weights_is_exact_for_a_while_and_takes_no_more_memory(kind: str) -> None:
    ids = torch.tensor([ALIKE[2]])

    def tuned() -> Any:
        model = small(kind).to(torch.bfloat16).float()
        for each in model.parameters():
            each.data *= 1 + 1e-3
        return model

    expected, exact, dithered = tuned()(ids).logits, tuned(), tuned()
    products.prepare(exact, torch.float32)
    products.prepare(dithered, torch.bfloat16)
    every = [each for each in dithered.modules() if isinstance(each, products.Product)]
    assert sum(each._thresholds is not None for each in every) >= len(every) - 1, "but the head, which stays float32"
    before = dithered(ids).logits
    with products.exactly(dithered):
        assert (dithered(ids).logits - expected).abs().max() < 1e-4
    assert torch.equal(dithered(ids).logits, before)
    assert products.size(dithered) == products.size(exact)


def test_arithmetic_of_answers_is_by_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = choose("cpu", "bfloat16")
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda device: pytest.fail("measured without units for it"))
    monkeypatch.setattr(devices, "_cpu_flags", set)
    assert str(arithmetic.of_answers(choose("cpu"))) == "float32: this CPU has no bfloat16 units"
    assert str(arithmetic.of_answers(asked)) == "float32: this device has no bfloat16 units"
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"amx_bf16"})
    assert str(arithmetic.of_answers(choose("cpu", "float32"))) == "float32: asked for in the recipe"
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda device: 1.2)
    told = "float32: products in bfloat16 are measured at only 1.2 times its speed"
    assert str(arithmetic.of_answers(choose("cpu"), written=True)) == told
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda device: 2.2)
    told = "bfloat16: measured at 2.2 times the speed of float32"
    assert str(arithmetic.of_answers(choose("cpu"), written=True)) == told
    told = "float32: products in bfloat16 are measured at only 2.2 times its speed"
    assert str(arithmetic.of_answers(choose("cpu"))) == told
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda device: 6.0)
    told = "bfloat16: measured at 6.0 times the speed of float32; labels are float32's"
    assert str(arithmetic.of_answers(choose("cpu"))) == told


def test_the_device_tells_of_the_arithmetic_of_answers_where_it_is_another_one() -> None:
    facts = choose("cpu", "bfloat16").to_json()
    told = {**facts, "answers": "float32: products in bfloat16 are measured at only 1.2 times its speed"}
    assert dict(progress.device_lines(told))["of answers"] == told["answers"]
    same = {**facts, "answers": "bfloat16: asked for in the recipe"}
    assert "of answers" not in dict(progress.device_lines(same))


def test_a_device_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[torch.dtype] = []

    def seconds(device: torch.device, work: Any, seconds: float) -> float:
        work()
        took.append(work.func.dtype)
        if took[-1] is torch.float32:
            return 4.0
        return 2.0 if len(took) > arithmetic.TURNS else 8.0  # a machine that does something else for a while

    monkeypatch.setattr(arithmetic, "CPU_SHAPE", (8, 16))
    monkeypatch.setattr(devices, "least_seconds", seconds)
    arithmetic.bfloat16_gain.cache_clear()
    try:
        assert [arithmetic.bfloat16_gain(torch.device("cpu")) for _ in range(3)] == [2.0] * 3
        assert len(took) == 2 * arithmetic.TURNS * streams.number_for(torch.device("cpu"))
    finally:
        arithmetic.bfloat16_gain.cache_clear()


def test_a_model_loads_in_what_was_measured(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda device: 6.0)
    labels = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), **SIZES))
    assert Classifier(labels, tokenizer, choose("cpu")).dtype is torch.bfloat16
    words = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES))
    assert Writer.of(words, tokenizer, choose("cpu"), None).dtype is torch.bfloat16


def writers(tokenizer: Any) -> list[Writer]:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES))
        found.append(Writer.of(model, tokenizer, CPU, None, "question-answering", dtype))
        assert isinstance(getattr(model.model.layers[0], "lean", None), Lean)
    return found


def test_text_is_written_in_bfloat16_to_its_end(tokenizer: Any) -> None:
    _, rounded = writers(tokenizer)
    asked = [{"question": each} for each in texts(5)]
    answers = rounded.write(asked, How(max_new_tokens=6)).written
    assert [(each.tokens, each.ended) for (each,) in answers if each.ended != "stop"]
    assert all(each.tokens <= 6 for (each,) in answers)
    searched = rounded.write(asked[:1], How(max_new_tokens=6, beams=2)).written
    assert searched[0][0].tokens <= 6
    prompt = rounded.encoder.prompt(rounded.prompt(asked[0]))
    assert prompt is not None
    (first,) = generate(rounded._model, [prompt.ids], max_new_tokens=8)
    end = first.tokens[3]
    (ended,) = generate(rounded._model, [prompt.ids], max_new_tokens=8, end_ids={end})
    assert ended.ended == "end"
    assert ended.tokens == first.tokens[: first.tokens.index(end)]


def test_choices_and_likelihoods_are_those_of_float32(tokenizer: Any) -> None:
    exact, rounded = writers(tokenizer)
    ids = torch.tensor([[3, 4, 5, 6]])
    differ = (rounded._model(ids).logits - exact._model(ids).logits).abs().max()
    assert differ > 1e-3, "it does not write in bfloat16"
    asked = [{"question": each, "choices": ["good", "bad", "so so"]} for each in texts(40)]
    expected, found = (np.array(each.choose(asked)[0]) for each in (exact, rounded))
    assert np.abs(found - expected).max() < 1e-4


def test_a_model_in_main_memory_looks_at_examples_in_what_the_cpu_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(choose("cpu", "bfloat16"), device=torch.device("cuda", 0))
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "_cpu_flags", set)
    assert sharding.dtype_at(gpu.device, gpu) is torch.bfloat16
    assert sharding.dtype_at(cpu, gpu) is torch.float32
    monkeypatch.setattr(devices, "_cpu_flags", lambda: {"amx_bf16"})
    assert sharding.dtype_at(cpu, gpu) is torch.bfloat16
    assert sharding.dtype_at(cpu, replace(gpu, dtype=torch.float32)) is torch.float32


@pytest.mark.parametrize("moved", [0.0, float("nan")])
def test_a_trial_that_moved_nothing_or_gave_no_number_ends(moved: float) -> None:
    rounded, exact = np.array([[1.0, 1.0], [3.0, 0.0]]), np.array([[1.0, 1.1], [3.0, 0.0]])
    found = close_calls.settle(rounded, None, moved, lambda places: exact[places])
    assert np.array_equal(found, exact if moved == 0 else rounded)
