"""Texts packed into one row give what each gives alone, for every kind of model that is packed."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from gptx_nb.engine import batches, packing, tuning
from gptx_nb.engine import dropout as dropouts
from gptx_nb.engine.tasks import text_classification as task

CPU = torch.device("cpu")
PAD = 1
# Lengths of one, of many, and none at all.
ROWS = [np.random.default_rng(n).integers(2, 90, n).tolist() for n in (5, 1, 31, 0, 12, 5)]

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # fewer than heads: their keys are shared
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def small(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": PAD}
    config = AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else SIZES), **ends, num_labels=3, **settings)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():  # so that no head gives nearly nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", packing.PACKABLE)
def test_packed_texts_give_the_logits_of_one_text_at_a_time(kind: str) -> None:
    model = small(kind, **({"sliding_window": None} if kind == "mistral" else {}))
    alone = [task.logits(model, [row], pad_id=PAD, device=CPU, labels=3)[0] for row in ROWS]
    assert packing.use(model) is None
    together = task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3, packed=True)
    apart = task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3, packed=True, token_budget=8)
    assert np.abs(together - np.stack(alone)).max() < 1e-4
    assert np.abs(apart - np.stack(alone)).max() < 1e-4
    assert np.abs(np.diff(together, axis=0)).min(axis=1).max() > 1e-2  # texts differ in what they give


def learner_of(model: PreTrainedModel, token_budget: int) -> task.Learner:
    return task.Learner(
        model,
        tuning.prepare(model, "full"),
        ROWS,
        [0, 1, 2, 0, 1, 2],
        ROWS[:3],
        pad_id=PAD,
        device=CPU,
        batch_size=6,
        seed=0,
        token_budget=token_budget,
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("token_budget", [10, 10_000])
def test_a_packed_step_has_the_loss_and_gradients_of_a_padded_one(
    kind: str, token_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(kind, **(NO_DROPOUT if kind == "gpt2" else {})).train()

    def step(learner: task.Learner) -> tuple[float, dict[str, torch.Tensor], int]:
        made = learner.step(0)
        model.zero_grad()
        total = 0.0
        for tensors, weight in zip(made.micro, made.weights, strict=True):
            loss = learner.loss(model, tensors) * weight
            loss.backward()
            total += loss.item()
        assert sum(made.weights) == pytest.approx(1)
        return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, made.tokens

    monkeypatch.setattr(packing, "PACKABLE", ())
    padded = learner_of(model, token_budget)
    assert padded.padded_because
    expected_loss, expected, expected_tokens = step(padded)
    monkeypatch.undo()
    packed = learner_of(model, token_budget)
    assert packed.padded_because is None
    found_loss, found, found_tokens = step(packed)
    assert found_loss == pytest.approx(expected_loss, abs=1e-5)
    assert found_tokens == expected_tokens == 55
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name


def test_activation_checkpointing_recomputes_packed_attention() -> None:
    model = small("llama").train()
    learner = learner_of(model, 10_000)
    (tensors,) = learner.step(0).micro
    learner.loss(model, tensors).backward()
    expected = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    learner.loss(model, tensors).backward()
    assert torch.allclose(model.get_input_embeddings().weight.grad, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("gemma2", {}, "the attention of gemma2 models cannot be replaced"),
        ("mistral", {"sliding_window": 16}, "its attention sees 16 tokens only"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "its attention is scaled in a way of its own"),
    ],
)
def test_a_model_whose_attention_is_not_plain_is_left_as_it_is(
    kind: str, settings: dict[str, Any], reason: str
) -> None:
    model = small(kind, **settings)
    before = model.config._attn_implementation
    assert packing.use(model) == reason
    assert model.config._attn_implementation == before


def test_a_saved_model_does_not_ask_for_our_attention(tmp_path: Any) -> None:
    model = small("llama")
    packing.use(model)
    model.save_pretrained(tmp_path)
    assert packing.ATTENTION not in (tmp_path / "config.json").read_text()


def test_groups_keep_to_the_budget_and_lose_no_row() -> None:
    rows = [[0] * length for length in (7, 3, 9, 1, 5, 20)]
    padded = batches.by_length(rows, token_budget=12)
    assert padded == [[3, 1], [4], [0], [2], [5]]
    packed = batches.by_length(rows, token_budget=12, packed=True)
    assert packed == [[3, 1, 4], [0], [2], [5]]
    # Attention lays texts side by side, each as long as the longest: one long text does not widen many short ones.
    long_one = [[0] * length for length in (*[2] * 20, 60)]
    assert batches.by_length(long_one, token_budget=100, packed=True) == [list(range(20)), [20]]


def attended(dropout: float, backward: bool) -> list[torch.Tensor]:
    """What attention of 6 heads over 3 gives for `ROWS`, and its gradients; the same states at each call."""
    torch.manual_seed(0)
    tensors = packing.pack(ROWS, PAD)
    tokens = tensors["input_ids"].shape[1]
    states = [torch.randn(1, heads, tokens, 8, requires_grad=backward) for heads in (6, 3, 3)]
    dropouts.seed(1, 2, 3)
    with contextlib.nullcontext() if backward else torch.inference_mode():
        found, _ = packing._attention(
            torch.nn.Module(),
            *states,
            None,
            **{name: tensors[name] for name in ("spread", "gather")},
            texts=len(ROWS),
            dropout=dropout,
        )
    above = torch.randn(found.shape)
    return [found, *(torch.autograd.grad(found, states, above) if backward else ())]


def by_hand(dropout: float) -> list[torch.Tensor]:
    """The same text by text, with torch's own way back; `dropout` drops what `attended` drops."""
    torch.manual_seed(0)
    lengths = [max(1, len(row)) for row in ROWS]
    states = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (6, 3, 3)]
    dropouts.seed(1, 2, 3)
    longest = max(lengths)
    kept = torch.ones(3, len(ROWS), 2 * longest, longest)
    kept = dropouts.drop(kept, dropout, packing.PLACE).view(3, len(ROWS), 2, longest, longest)
    found, start = [], 0
    for number, length in enumerate(lengths):
        q, k, v = (each[0, :, start : start + length] for each in states)
        k, v = (each.repeat_interleave(2, dim=0) for each in (k, v))
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        found.append((weights * kept[:, number, :, :length, :length].flatten(0, 1)) @ v)
        start += length
    whole = torch.cat(found, dim=1).transpose(0, 1)[None]
    above = torch.randn(whole.shape)
    return [whole, *torch.autograd.grad(whole, states, above)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_and_its_gradients_are_those_of_each_text_alone(dropout: float) -> None:
    for found, expected in zip(attended(dropout, True), by_hand(dropout), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_fused_kernel_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = attended(0.0, True)
    monkeypatch.setattr(packing, "FUSED_BACKWARD", 1)
    monkeypatch.setattr(packing, "_Short", None)  # not called any more
    for found, wanted in zip(attended(0.0, True), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    monkeypatch.setattr(packing, "FUSED", 1)
    assert torch.allclose(attended(0.0, False)[0], expected[0], atol=1e-5)
