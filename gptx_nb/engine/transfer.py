"""How much did pretraining help? The same examples and the same budget, from the base model and from random weights.

Each seed draws the new weights and the order of the examples; the rows that are scored stay the same. What the two
differ in, seed by seed, is the transfer gain, with a 95 % interval of its mean (paired, Student's t).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gptx_nb.engine import setup
from gptx_nb.engine.data import Table
from gptx_nb.engine.jobs import Classification, Job, Learner
from gptx_nb.engine.train import arithmetic, make_scaler, train
from gptx_nb.recipe import Recipe

ARMS = ("pretrained", "scratch")
# Student's t for 95 %, by degrees of freedom from 1.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Gain:
    """Accuracies by seed, in one order, and the mean of their differences."""

    pretrained: list[float]
    scratch: list[float]

    @property
    def differences(self) -> list[float]:
        return [ours - theirs for ours, theirs in zip(self.pretrained, self.scratch, strict=True)]

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def margin(self) -> float | None:
        """Half the width of the interval; None with one seed."""
        count = len(self.differences)
        if count < 2:
            return None
        return _T95[min(count - 1, len(_T95)) - 1] * statistics.stdev(self.differences) / math.sqrt(count)

    def to_json(self) -> dict[str, Any]:
        margin = self.margin
        return {
            "pretrained": self.pretrained,
            "scratch": self.scratch,
            "gain": self.mean,
            "low": None if margin is None else self.mean - margin,
            "high": None if margin is None else self.mean + margin,
        }


def accuracy(recipe: Recipe, table: Table, **how: Any) -> float | None:
    """Train a classifier once, as `goodness` does; return its accuracy on the rows held back, or None if stopped."""
    assert table.validation is not None
    found = goodness(recipe, Classification(table, recipe), **how)
    return None if found is None else found[0]


def goodness(
    recipe: Recipe,
    job: Job,
    *,
    scratch: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    record: Callable[[dict[str, Any]], None] = lambda entry: None,
    save_memory: Callable[[Learner, torch.device], None] | None = None,
    needs_less: Callable[[int], bool] = lambda step: False,
) -> list[float] | None:
    """Train once by `recipe`, from random weights if `scratch`; return by what `job` finds weights good.

    Greater is better: accuracy (micro F1 with several labels a text) and then the loss, negative, of a classifier, the
    loss alone of a model that writes; on the rows held back, and of the weights which the recipe keeps. None:
    `should_stop` said so. `record` is told of every step. `save_memory` may let the learner take less memory before it
    begins. Where memory runs out at a step, `needs_less(step)` says whether the learner takes less from now on; the
    step then begins again.
    """
    made = setup.prepare(recipe, job, lambda text: None, scratch=scratch, save_memory=save_memory)
    learner, device = made.learner, made.device
    if learner.frozen is not None:
        learner.prepare(lambda: arithmetic(made.model, device.device, device.dtype))
    found: list[list[float]] = []

    def score(step: int) -> None:
        if recipe.keep == "last" and step < made.settings.steps:
            return
        with arithmetic(made.model, device.device, device.dtype):
            found.append(job.evaluation(made.model, made.tokenizer, learner)[1])

    end = train(
        made.model,
        made.optimizer,
        made.settings,
        device=device.device,
        dtype=device.dtype,
        batch_at=learner.step,
        loss_of=learner.loss,
        record=record,
        evaluate=score,
        save=lambda step: None,
        should_stop=should_stop,
        scaler=make_scaler(device.device, device.dtype),
        with_less_memory=lambda step, error: learner.step(step) if needs_less(step) else None,
        recorded=made.recorder(tried=False),
    )
    if end.early:
        return None
    return max(found) if recipe.keep == "best" else found[-1]
