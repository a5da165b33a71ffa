"""The loss on target tokens: that of transformers with all else masked, packed or padded, in parts or whole."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptx_nb.engine import packing, tuning
from gptx_nb.engine.tasks import language_modeling, targets
from gptx_nb.engine.tasks.encoding import Encoded

ROWS = [
    Encoded([0, 5, 6, 7, 8, 0], [False, False, False, True, True, True]),
    Encoded([0, 9, 10], [False, False, True]),
    Encoded([0, 5, 11, 12, 13, 14, 15, 16], [False, True, False, False, True, False, False, False]),
    Encoded([0, 3], [False, True]),
]


def model_of(**settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_layer=2, n_embd=32, n_head=2, n_positions=32, **still, **settings)
    )


def learner(model: GPT2LMHeadModel, method: str = "full", **settings: Any) -> targets.Learner:
    tuned = tuning.prepare(model, method)
    given = {"pad_id": 0, "device": torch.device("cpu"), "batch_size": 4, "seed": 0, **settings}
    return targets.Learner(model, tuned, ROWS, ROWS[:2], **given)


def masked_loss(model: torch.nn.Module) -> torch.Tensor:
    """The mean over all targets as transformers computes it, a row at a time."""
    sums, count = [], 0
    for row in ROWS:
        labels = torch.tensor([[id if target else -100 for id, target in zip(row.ids, row.loss, strict=True)]])
        number = sum(row.loss)
        sums.append(model(input_ids=torch.tensor([row.ids]), labels=labels).loss * number)
        count += number
    return torch.stack(sums).sum() / count


def step_loss(model: GPT2LMHeadModel, one: targets.Learner) -> torch.Tensor:
    step = one.step(0)
    assert sum(step.weights) == pytest.approx(1)
    losses = [one.loss(model, micro) * weight for micro, weight in zip(step.micro, step.weights, strict=True)]
    return torch.stack(losses).sum()


@pytest.mark.parametrize("scaled", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("budget", [2048, 8])
def test_the_loss_and_its_gradient_are_those_of_transformers(scaled: bool, budget: int) -> None:
    settings = {"scale_attn_by_inverse_layer_idx": scaled}
    plain, model = model_of(**settings), model_of(**settings)
    one = learner(model, token_budget=budget)
    assert (one.padded_because is not None) == scaled == (packing.why_not(model) is not None)
    expected = masked_loss(plain)
    expected.backward()
    found = step_loss(model, one)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_a_frozen_part_that_is_kept_gives_the_same_loss() -> None:
    model = model_of()
    one = learner(model, "top:1")
    assert one.frozen is not None
    whole = one.whole_loss(model, one.longest().micro[0])
    one.prepare(lambda: torch.autocast("cpu", enabled=False))
    assert step_loss(model, one).item() == pytest.approx(whole.item(), rel=1e-5)


def test_less_memory_gives_the_same_loss_until_there_is_no_way_left() -> None:
    model = model_of()
    one = learner(model, streams=2)
    expected = step_loss(model, one).item()
    ways = []
    while (how := one.need_less_memory()) is not None:
        ways.append(how)
        assert step_loss(model, one).item() == pytest.approx(expected, rel=1e-5)
    assert ways[-2:] == ["one micro-batch at a time", "activations computed twice"]


def test_ranks_share_a_step() -> None:
    model = model_of()
    one = learner(model)
    whole = one.step(0)
    parts = [one.step(0, rank, 2) for rank in range(2)]
    assert sum(sum(part.weights) for part in parts) == pytest.approx(1)
    assert sum(part.here for part in parts) == whole.tokens
    losses = [one.loss(model, m) * w for part in parts for m, w in zip(part.micro, part.weights, strict=True)]
    assert torch.stack(losses).sum().item() == pytest.approx(step_loss(model, one).item(), rel=1e-5)


def test_held_rows_are_scored_row_by_row() -> None:
    model = model_of()
    one = learner(model)
    found = one.held_nats()
    assert found[:, 1].tolist() == [3, 1]
    row = ROWS[0]
    logits = model_of().eval()(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    expected = -sum(logits[at - 1, row.ids[at]].item() for at, target in enumerate(row.loss) if target)
    assert found[0, 0] == pytest.approx(expected, rel=1e-4)
    assert found.dtype == np.float64


def test_logits_that_are_more_than_a_product_are_computed_by_the_models_own_head() -> None:
    plain, model = model_of(), model_of()
    assert language_modeling.own_logits(model) is None
    for each in (plain, model):
        each.lm_head.bias = torch.nn.Parameter(torch.arange(32.0) / 10)
    assert language_modeling.own_logits(model) == "with a bias"
    one = learner(model)
    assert step_loss(model, one).item() == pytest.approx(masked_loss(plain).item(), rel=1e-5)
