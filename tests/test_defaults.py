"""Passes and learning rate where a recipe sets none: by tuning method, size of the model and number of examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gptx_nb.engine import plan, setup
from gptx_nb.recipe import Recipe

TINY, LARGE = 7_484_928, 134_515_008


@pytest.mark.parametrize(
    ("rows", "parameters", "has_head", "tune", "passes"),
    [
        (3, TINY, True, "full", 60),  # what few examples teach is soon learnt
        (100, TINY, True, "full", 30),
        (300, TINY, True, "full", 14),
        (1_000, TINY, True, "full", 8),
        (100_000, TINY, True, "full", 3),
        (1_000, TINY, False, "full", 3),  # measured for classifiers only
        (1_000, TINY, True, "lora", 3),
        (1_000, LARGE, True, "full", 3),
        (100, LARGE, True, "full", 9),
        (100, TINY, True, "head", 29),
    ],
)
def test_passes(rows: int, parameters: int, has_head: bool, tune: str, passes: int) -> None:
    recipe = Recipe(data="df", tune=tune)
    batch, _ = plan.batch_size(recipe, rows, parameters, has_head)
    chosen, reason = plan.epochs(recipe, rows, -(-rows // batch), parameters, has_head)
    assert chosen == passes
    small = has_head and parameters == TINY and tune == "full"
    assert ("a model of 7.5 million parameters learns from 250" in reason) == (small and passes not in (3, 60))
    asked = recipe.model_copy(update={"epochs": 2.5})
    assert plan.epochs(asked, rows, 1, parameters, has_head) == (2.5, "asked for in the recipe")


def test_many_labels_take_twice_the_passes_of_a_small_model() -> None:
    recipe = Recipe(data="df", tune="full")
    assert plan.epochs(recipe, 1_000, 32, TINY, True, 19)[0] == 8
    passes, reason = plan.epochs(recipe, 1_000, 32, TINY, True, 77)
    assert passes == 16
    assert "learns from 500, with 77 labels, in at most 30 epochs" in reason
    assert plan.epochs(recipe, 1_000, 32, LARGE, True, 77)[0] == 3


def test_small_classifiers_take_twice_the_steps_size_alone_would_give() -> None:
    recipe = Recipe(data="df")
    assert plan.learning_rate(recipe, TINY)[0] == pytest.approx(
        2 * plan.learning_rate(recipe, TINY, False)[0], rel=0.05
    )
    assert plan.learning_rate(recipe, LARGE) == plan.learning_rate(recipe, LARGE, False)
    larger = recipe.model_copy(update={"batch_size": 64})
    assert plan.learning_rate(larger, TINY)[0] == pytest.approx(2 * plan.learning_rate(recipe, TINY)[0], rel=0.05)


@pytest.mark.parametrize("writes", [False, True])
def test_only_a_classifier_is_trained_so(writes: bool) -> None:
    job: Any = SimpleNamespace(label_count=2, rows=1_000, shares_vocabulary=writes)
    chosen = setup._choose(Recipe(data="df"), job, TINY)
    assert chosen.resolved["epochs"] == (3 if writes else 8)
    assert chosen.resolved["warmup"] == chosen.settings.warmup == 0.1
    assert setup._choose(Recipe(data="df", warmup=0.0), job, TINY).settings.warmup == 0
    assert chosen.resolved["learning_rate"] == plan.learning_rate(Recipe(data="df", batch_size=32), TINY, not writes)[0]
