"""RMS norms some rows at a time give what the models' own give, and gradients that are nearer to the true ones."""

import importlib

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gptx_nb.engine import norms

MODULES = {name: name.removesuffix("RMSNorm").lower() for name in norms.KNOWN}
EPSILON = 1e-5
WIDTH = 96


def norm_of(name: str, width: int = WIDTH) -> torch.nn.Module:
    module = importlib.import_module(f"transformers.models.{MODULES[name]}.modeling_{MODULES[name]}")
    made: torch.nn.Module = getattr(module, name)(width, EPSILON)
    torch.nn.init.normal_(made.weight, mean=1.0, std=0.3)  # type: ignore[arg-type]
    return made


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.mark.parametrize("name", norms.KNOWN)
@pytest.mark.parametrize("rows", [1, 17, 64], ids=lambda rows: f"{rows} rows")
def test_what_comes_out_is_the_same_to_the_last_bit(
    name: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "AT_ONCE", 5 * WIDTH)  # the last block is not full
    torch.manual_seed(0)
    norm = norm_of(name).to(dtype)
    states = (torch.randn(2, rows, 3, WIDTH) * 4).to(dtype).transpose(1, 2)  # not one row after another in memory
    expected = norm(states)
    norms.use(norm)
    assert type(norm) is norms.RMSNorm
    found = norm(states)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    mixed = norm(states.float())  # weights in bfloat16 beside states in float32, as under autocast
    assert torch.equal(mixed, norm_like(norm, states.float()))


@pytest.mark.parametrize("name", norms.KNOWN)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_where_nothing_is_learnt_it_is_as_near_as_float32_can_be(name: str, scale: float) -> None:
    torch.manual_seed(0)
    norm = norm_of(name)
    states = (torch.randn(2, 17, 3, WIDTH) * scale).transpose(1, 2)
    wide = states.double()
    expected = norm.weight.double() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    with torch.no_grad():
        own = (norm(states) - expected).abs().max()
        norms.use(norm)
        found = norm(states)
    assert found.shape == states.shape
    assert (found - expected).abs().max() <= 2 * own


def norm_like(norm: norms.RMSNorm, states: torch.Tensor) -> torch.Tensor:
    wide = states.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * scaled.to(states.dtype)


def test_gradients_are_at_least_as_near_as_the_models_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "AT_ONCE", 7 * WIDTH)
    torch.manual_seed(0)
    plain = norm_of("LlamaRMSNorm").to(dtype)
    states = torch.randn(3, 40, WIDTH).to(dtype).requires_grad_()
    above = torch.randn(3, 40, WIDTH).to(dtype)

    def gradients(norm: torch.nn.Module, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(norm(states), (states, norm.weight), above.to(states.dtype))  # type: ignore[arg-type]

    own = gradients(plain, states)
    wide = states.double()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    weight = plain.weight.double().detach().requires_grad_()  # type: ignore[operator]
    true = torch.autograd.grad(weight * (wide * scale), (states, weight), above.double())
    norms.use(plain)
    for ours, theirs, right in zip(gradients(plain, states), own, true, strict=True):
        assert ours.dtype == theirs.dtype
        error, their_error = (float((each.double() - right).norm() / right.norm()) for each in (ours, theirs))
        assert error <= max(their_error * 1.1, 1e-6)


def test_a_norm_of_another_kind_stays_as_it_is() -> None:
    config = AutoConfig.for_model(
        "gemma",
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = AutoModelForCausalLM.from_config(config)
    norms.use(model)
    assert not any(isinstance(each, norms.RMSNorm) for each in model.modules())
