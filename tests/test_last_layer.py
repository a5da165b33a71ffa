"""What is spared of a decoder's last layer changes nothing of what is asked for."""

from typing import Any

import pytest
import torch
from test_packing import PAD, ROWS, small

from gptx_nb.engine import dropout as dropouts
from gptx_nb.engine import last_layer, packing, tuning

KINDS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "starcoder2")


def plain(kind: str) -> Any:
    settings: dict[str, Any] = {"sliding_window": None} if kind in ("mistral", "starcoder2") else {}
    if kind == "gpt2":
        settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if kind == "starcoder2":
        settings |= {"residual_dropout": 0.0, "attention_dropout": 0.0}
    model = small(kind, **settings)
    assert packing.use(model) is None
    return model


def asked_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tokens = tensors["input_ids"].shape[1]
    return {**tensors, "few": torch.tensor([3, 0, tokens - 1]), "many": torch.arange(tokens - 1)}


def gradients(model: Any, states: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    (states * torch.randn(states.shape)).sum().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("places", ["last", "few", "many"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_asked_for_and_their_gradients_are_those_of_the_whole_layer(kind: str, places: str) -> None:
    model = plain(kind).train()
    tensors = asked_of(packing.pack(ROWS, PAD))
    rows: list[int] = []
    mlp = tuning.layers_of(model)[-1].mlp
    mlp.register_forward_hook(lambda _, given, made: rows.append(made.shape[1]))
    whole = packing.states(model, tensors)[tensors[places]]
    expected = gradients(model, whole)
    found = packing.states_at(model.base_model, tensors, places)
    packing.states_at(model.base_model, tensors, places, spare=False)
    assert rows.pop() == 55
    assert rows == [55, len(tensors[places])]
    assert torch.allclose(found, whole, atol=1e-5)
    of_found = gradients(model, found)
    assert of_found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(of_found[name], gradient, atol=1e-4, rtol=1e-4), name


def test_a_model_of_another_form_and_a_layer_with_hooks_are_computed_whole() -> None:
    assert not last_layer.spares(small("phi").base_model)
    decoder: Any = plain("llama").base_model
    assert last_layer.spares(decoder)
    tensors = packing.pack(ROWS, PAD)
    seen: list[int] = []
    hook = decoder.layers[-1].register_forward_hook(lambda _, given, made: seen.append(made.shape[1]))
    packing.states_at(decoder, tensors, "last")
    assert seen == [55], "who hooks a layer sees it called"
    hook.remove()
    assert last_layer.spares(decoder)


def test_it_is_computed_again_where_activations_are_not_kept() -> None:
    model = plain("llama").train()
    tensors = packing.pack(ROWS, PAD)
    expected = gradients(model, packing.states_at(model.base_model, tensors, "last"))
    model.activation_checkpointing_enable({"use_reentrant": False})
    rows: list[int] = []
    tuning.layers_of(model)[-1].mlp.register_forward_hook(lambda _, given, made: rows.append(made.shape[1]))
    found = gradients(model, packing.states_at(model.base_model, tensors, "last"))
    assert rows == [len(ROWS)] * 2
    assert all(torch.allclose(found[name], gradient, atol=1e-6) for name, gradient in expected.items())


def test_what_chance_drops_is_dropped_in_the_same_places() -> None:
    model: Any = small("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3).train()
    packing.use(model)
    dropouts.use(model)
    tensors = asked_of(packing.pack(ROWS, PAD))
    for places in ("last", "few", "many"):
        dropouts.seed(1, 2, 3)
        expected = packing.states(model, tensors)[tensors[places]]
        found = packing.states_at(model.base_model, tensors, places)
        assert torch.allclose(found, expected, atol=1e-5)
    dropouts.seed(1, 2, 4)
    assert not torch.allclose(packing.states_at(model.base_model, tensors, "many"), found, atol=0.1)


def test_what_is_cut_among_processes_is_computed_whole() -> None:
    decoder: Any = plain("llama").base_model
    with last_layer.whole():
        assert not last_layer.spares(decoder)
    assert last_layer.spares(decoder)


def test_the_decoder_is_left_as_it_is() -> None:
    decoder: Any = plain("gpt2").base_model
    before = list(decoder.h)
    names = [name for name, _ in decoder.named_parameters()]
    packing.states_at(decoder, packing.pack(ROWS, PAD), "last")
    assert list(decoder.h) == before
    assert [name for name, _ in decoder.named_parameters()] == names


def test_what_is_spared_is_no_work() -> None:
    model = plain("llama")
    tuning.prepare(model, "full")
    mlp = 6 * 3 * 32 * 48
    whole = tuning.flops_per_token(model)
    assert tuning.flops_per_token(model, asked=0.25) == whole - 0.75 * mlp
    assert tuning.flops_per_token(model, asked=0.6) == whole
    tuning.prepare(model, "head")
    assert tuning.flops_per_token(model, asked=0.25) == 0
