"""A layer in few operations gives what the models' own code gives."""

from typing import Any

import numpy as np
import pytest
import torch
from test_generate import ALIKE, alone, tokens
from test_generate import small as writing
from test_packing import CPU, PAD, ROWS, small

from gptx_nb.engine import lean, packing, products, tuning
from gptx_nb.engine.generate import generate
from gptx_nb.engine.tasks import text_classification as task

KINDS = ("llama", "mistral", "qwen2")
BF16 = torch.bfloat16


def classifier(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    model = small(kind, **({"sliding_window": None} if kind == "mistral" else {}), **settings).eval()
    products.prepare(model, dtype)
    assert packing.use(model) is None
    return model


def logits(model: Any) -> np.ndarray:
    return task.logits(model, ROWS, pad_id=PAD, device=CPU, labels=3, packed=True)


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what gets the number of tokens of each lean pass through a layer."""
    seen: list[int] = []
    plain = lean.Lean.__call__
    monkeypatch.setattr(
        lean.Lean,
        "__call__",
        lambda self, hidden, **more: (seen.append(hidden.shape[1]), plain(self, hidden, **more))[1],
    )
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_texts_get_the_same_logits(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(kind, dtype)
    expected = logits(model)
    lean.use(model)
    seen = calls_of(monkeypatch)
    down: Any = tuning.layers_of(model)[-1].mlp.down_proj
    rows: list[int] = []
    multiply = down._multiply
    monkeypatch.setattr(down, "_multiply", lambda states: (rows.append(len(states)), multiply(states))[1])
    found = logits(model)
    assert sum(rows) == len(ROWS), "of the last layer, a text's last token"
    assert sum(seen) == 55 * len(tuning.layers_of(model)), "every token, in as many streams as there are cores"
    apart = np.abs(found - expected).max()
    assert apart < (1e-5 if dtype is torch.float32 else 0.05 * np.abs(expected).max())
    with products.exactly(model):
        assert np.abs(logits(model) - logits(classifier(kind))).max() < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 12},
        {"hidden_act": "gelu"},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 2.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
            }
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_settings_of_a_llama_give_the_same_logits(settings: dict[str, Any]) -> None:
    model = classifier("llama", **settings)
    expected = logits(model)
    lean.use(model)
    assert np.abs(logits(model) - expected).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_continued_as_by_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = writing(kind)
    every = [[list(range(2, 2 + length)) for length in (5, 1, 9)] + [[7, 8, 9, 10] * 4], ALIKE]
    expected = [[alone(model, prompt, 12) for prompt in prompts] for prompts in every]
    products.prepare(model, torch.float32)
    lean.use(model)
    seen = calls_of(monkeypatch)
    for prompts, written in zip(every, expected, strict=True):
        for more in ({}, {"share_prefix": False}, {"look_up": False}, {"rows": 2}):
            assert tokens(generate(model, prompts, max_new_tokens=12, **more)) == written
    assert min(seen) <= 2 < max(seen), "prompts are read and single tokens"


def test_what_it_does_not_know_is_left_as_it_is() -> None:
    for kind in ("gpt2", "qwen3", "phi3"):
        model = classifier(kind)
        before = [type(layer) for layer in tuning.layers_of(model)]
        lean.use(model)
        assert [type(layer) for layer in tuning.layers_of(model)] == before
    unprepared = small("llama")
    lean.use(unprepared)
    assert not hasattr(tuning.layers_of(unprepared)[0], "lean"), "its products are not joint"


def test_other_attention_and_training_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("llama")
    lean.use(model)
    lean.use(model)
    seen = calls_of(monkeypatch)
    packed = packing.pack(ROWS, PAD)
    expected = packing.states(model, packed)
    assert len(seen) == len(tuning.layers_of(model))
    model.train()
    assert torch.allclose(packing.states(model, packed), expected, atol=1e-5)
    model.eval().set_attn_implementation("sdpa")
    ids = torch.tensor([ROWS[2]])
    own = model.base_model(input_ids=ids, use_cache=True).last_hidden_state
    starts = packed["starts"].tolist()
    assert torch.allclose(own[0], expected[starts[2] : starts[3]], atol=1e-5)
    assert len(seen) == len(tuning.layers_of(model)), "neither of these was lean"
