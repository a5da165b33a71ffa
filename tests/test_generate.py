"""Prompts continued together give what each gives alone with transformers, for every kind of model that is packed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_packing import GPT2, SIZES
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptx_nb.engine import generate as generation
from gptx_nb.engine import graphs, packing, products, streams
from gptx_nb.engine.generate import Continuation, Sampling, draw, generate

CONTEXT: int = SIZES["max_position_embeddings"]
START = np.random.default_rng(7).integers(2, 90, 20).tolist()
# Lengths of one, of many, and two alike; then the same behind a common beginning.
RAGGED = [np.random.default_rng(n).integers(2, 90, n).tolist() for n in (5, 1, 31, 12, 5)]
ALIKE = [START + prompt for prompt in RAGGED]


def small(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "mistral":
        settings = {"sliding_window": None, **settings}
    size = GPT2 if kind == "gpt2" else SIZES
    config = AutoConfig.for_model(kind, **size, bos_token_id=0, eos_token_id=0, pad_token_id=1, **settings)
    config.tie_word_embeddings = False  # or it says its last token again
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():  # wide apart, so that no two tokens are nearly as likely
        if parameter.ndim > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.4 if parameter.ndim > 1 else 0.05)
    model.generation_config.eos_token_id = None
    return model


def alone(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    """What transformers itself writes after one prompt."""
    made = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=new, do_sample=False
    )
    return made[0, len(prompt) :].tolist()


def tokens(made: list[Continuation]) -> list[list[int]]:
    return [each.tokens for each in made]


@pytest.mark.parametrize("kind", packing.PACKABLE)
def test_prompts_continued_together_give_what_transformers_gives_for_each_alone(kind: str) -> None:
    model = small(kind)
    before = model.config._attn_implementation
    for prompts in (RAGGED, ALIKE):
        expected = [alone(model, prompt, 12) for prompt in prompts]
        assert len({tuple(row) for row in expected}) > 3  # a model that always writes the same would pass
        assert tokens(generate(model, prompts, max_new_tokens=12)) == expected
        assert tokens(generate(model, prompts, max_new_tokens=12, share_prefix=False)) == expected
        assert tokens(generate(model, prompts, max_new_tokens=12, rows=2)) == expected  # the others wait
        assert [tokens(generate(model, [prompt], max_new_tokens=12))[0] for prompt in prompts] == expected
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("prompts", [RAGGED, ALIKE], ids=["ragged", "alike"])
def test_a_row_leaves_at_its_end_token_and_the_others_go_on(prompts: list[list[int]], rows: int | None) -> None:
    model = small("llama")
    whole = [alone(model, prompt, 12) for prompt in prompts]
    ends = {whole[0][3], whole[2][6]}
    made = generate(model, prompts, max_new_tokens=12, end_ids=ends, rows=rows)
    lengths = []
    for row, continuation in zip(whole, made, strict=True):
        length = next((place for place, token in enumerate(row) if token in ends), 12)
        assert continuation == Continuation(row[:length], "end" if length < 12 else "length")
        lengths.append(length)
    assert len(set(lengths)) > 2  # they leave at different steps


class Plainly:
    """Does again what a recording on a GPU would launch again."""

    def __init__(self, work: Any, given: graphs.Tensors, pool: Any) -> None:
        self._work = work
        work(given)

    def __call__(self, given: graphs.Tensors) -> torch.Tensor:
        RECORDED.append(given["rows"].shape[1])
        found: torch.Tensor = self._work(given)
        return found


RECORDED: list[int] = []  # rows of each


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_is_recorded_for_more_rows_than_there_are_gives_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(kind)
    for prompts, rows in ((RAGGED, None), (ALIKE, None), (RAGGED, 3)):
        whole = tokens(generate(model, prompts, max_new_tokens=24))
        ends = {whole[0][6], whole[3][11]}
        expected = generate(model, prompts, max_new_tokens=24, end_ids=ends)
        RECORDED.clear()
        with monkeypatch.context() as patched:
            patched.setattr(graphs, "serve", lambda device: True)
            patched.setattr(graphs, "Recorded", Plainly)
            patched.setattr(generation, "GRAPH_WIDTH", 16)
            how: Any = {"max_new_tokens": 24, "rows": rows, "look_up": False}  # on a GPU nothing is
            assert tokens(generate(model, prompts, **how)) == whole
            assert generate(model, prompts, end_ids=ends, **how) == expected
        assert set(RECORDED) & {4, 5} if rows is None else 3 in RECORDED


def test_a_model_that_cannot_be_recorded_writes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("llama")
    expected = tokens(generate(model, RAGGED, max_new_tokens=12))
    tried: list[int] = []

    def fails(work: Any, given: graphs.Tensors, pool: Any) -> None:
        tried.append(given["rows"].shape[1])
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "serve", lambda device: True)
    monkeypatch.setattr(graphs, "Recorded", fails)
    assert tokens(generate(model, RAGGED, max_new_tokens=12, look_up=False)) == expected
    assert len(tried) == 1, "and is not tried again"


def test_a_common_beginning_is_read_once() -> None:
    model = small("llama")
    read: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, given, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    generate(model, ALIKE, max_new_tokens=1)
    shared, read_tokens = len(START), sum(read)
    assert read_tokens == shared + sum(map(len, RAGGED))
    read.clear()
    generate(model, ALIKE, max_new_tokens=1, share_prefix=False)
    assert sum(read) == sum(map(len, ALIKE))
    read.clear()
    generate(model, RAGGED, max_new_tokens=4, end_ids=range(90))  # whatever comes first is an end
    assert sum(read) == sum(map(len, RAGGED))  # no step was taken for rows that had ended


def test_prompts_that_are_all_the_same_keep_a_token_of_their_own() -> None:
    model = small("gpt2")
    prompt = ALIKE[2]
    assert tokens(generate(model, [prompt] * 3, max_new_tokens=5)) == [alone(model, prompt, 5)] * 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_long_prompt_is_read_piece_by_piece(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(kind)
    expected = [alone(model, prompt, 6) for prompt in ALIKE]
    monkeypatch.setattr(generation, "CPU_READ_TOKENS", 7)
    monkeypatch.setattr(generation, "CPU_CACHE_TOKENS", 100)  # rows wait for memory, too
    assert tokens(generate(model, ALIKE, max_new_tokens=6)) == expected
    assert tokens(generate(model, ALIKE, max_new_tokens=6, share_prefix=False)) == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_writing_stops_where_the_context_ends_and_says_so(kind: str) -> None:
    model = small(kind)
    prompts = [list(range(2, 2 + length)) for length in (CONTEXT - 3, CONTEXT, CONTEXT + 9, 5)]
    made = generate(model, prompts, max_new_tokens=10)
    assert [(len(each.tokens), each.ended) for each in made] == [
        (3, "context"),
        (0, "context"),
        (0, "context"),
        (10, "length"),
    ]


def test_a_model_that_cannot_be_packed_goes_one_prompt_at_a_time_and_says_why() -> None:
    model = small("mistral", sliding_window=16)
    assert generation.why_alone(model) == "its attention sees 16 tokens only"
    assert generation.why_alone(small("llama")) is None
    assert tokens(generate(model, ALIKE, max_new_tokens=8)) == [alone(model, prompt, 8) for prompt in ALIKE]


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.5, top_k=20), Sampling(1.5, top_p=0.8)])
def test_a_sampled_row_does_not_depend_on_the_rows_beside_it(sampling: Sampling) -> None:
    model = small("llama")
    together = tokens(generate(model, ALIKE, max_new_tokens=10, sampling=sampling))
    assert tokens(generate(model, ALIKE, max_new_tokens=10, sampling=sampling, rows=2)) == together
    assert tokens(generate(model, ALIKE[:3], max_new_tokens=10, sampling=sampling)) == together[:3]
    assert together != tokens(generate(model, ALIKE, max_new_tokens=10))  # it is not greedy
    twins = tokens(generate(model, [ALIKE[0]] * 2, max_new_tokens=10, sampling=sampling))
    assert twins[0] != twins[1]  # each row has chances of its own
    other = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed=1)
    assert tokens(generate(model, ALIKE, max_new_tokens=10, sampling=other)) != together


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.7),
        Sampling(1.3, top_k=5),
        Sampling(1.0, top_p=0.6),
        Sampling(2.0, top_k=12, top_p=0.7),
        Sampling(5.0, top_p=0.95),
    ],
)
@pytest.mark.parametrize("first", [4, 256])
def test_tokens_are_drawn_as_often_as_transformers_would(
    sampling: Sampling, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "FIRST_CANDIDATES", first)  # 4: it has to put the whole vocabulary in order
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(3)) * 2
    expected = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    count = 2000
    uniforms = ((np.arange(count) + 0.5) / count).tolist()
    drawn = draw(logits.expand(count, -1), sampling, uniforms)
    frequencies = np.bincount(drawn, minlength=40) / count
    assert np.abs(frequencies - expected.softmax(-1)[0].numpy()).max() < 2 / count


def test_tokens_are_told_as_they_come_and_a_row_can_be_stopped() -> None:
    model = small("llama")
    whole = [alone(model, prompt, 8) for prompt in RAGGED]
    told: dict[int, list[int]] = {}
    made = generate(
        model,
        RAGGED,
        max_new_tokens=8,
        stop=lambda new: new[-1] == whole[1][2],
        on_token=lambda row, token: told.setdefault(row, []).append(token),
    )
    assert made[1] == Continuation(whole[1][: whole[1].index(whole[1][2]) + 1], "stop")
    assert [told[row] for row in range(len(RAGGED))] == tokens(made)


def test_what_cannot_be_continued_is_refused() -> None:
    model = small("llama")
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(model, [[3], []], max_new_tokens=2)
    with pytest.raises(ValueError, match="top_p is 0, and it must be above 0"):
        Sampling(1.0, top_p=0)
    assert generate(model, [], max_new_tokens=2) == []
    assert generate(model, [[3]], max_new_tokens=0) == [Continuation([], "length")]
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="no finite numbers"):
        generate(model, [[3]], max_new_tokens=2)


@pytest.mark.parametrize("laid_out", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "phi3", "starcoder2"])
def test_prepared_products_give_the_same(kind: str, laid_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not laid_out:
        monkeypatch.setattr(products, "_can_lay_out", lambda dtype: False)
    expected = [alone(small(kind), prompt, 12) for prompt in ALIKE]
    model = small(kind)
    products.prepare(model, torch.float32)
    assert tokens(generate(model, ALIKE, max_new_tokens=12)) == expected
    ids = torch.tensor([ALIKE[2]])
    exact = small(kind)(ids).logits
    rounded = small(kind)
    products.prepare(rounded, torch.bfloat16)
    error = (rounded(ids).logits - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 0.05  # bfloat16 is at work, and no more than rounding


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_under_autocast_keys_and_values_are_kept_as_the_model_makes_them(kind: str) -> None:
    model = small(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = generate(model, [[5, 6, 7, 8], [5, 6, 9]], max_new_tokens=4)
    assert [len(each.tokens) for each in found] == [4, 4]


def test_keys_and_values_take_no_more_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("llama")
    config = model.config
    a_token = (
        8 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    )
    monkeypatch.setattr(generation.devices, "memory", lambda device: (None, 2000 * a_token))
    assert generation._cache_tokens(model, 4096) == 1000
    assert generation._cache_tokens(model, 500) == 500
    monkeypatch.setattr(generation.devices, "memory", lambda device: (None, None))
    assert generation._cache_tokens(model, 4096) == 4096


def test_each_step_but_no_prompt_takes_the_threads_that_it_is_quickest_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    class Counting(streams.Threads):
        @contextlib.contextmanager
        def quickest(self, kind: str, size: int) -> Iterator[None]:
            asked.append((kind, size))
            yield

    monkeypatch.setattr(streams, "threads_of", lambda model: Counting())
    generate(small("llama"), [[1, 2, 3], [4, 5]], max_new_tokens=4)
    assert asked == [("step", 2)] * 3, "the first token is the prompts'"
