"""The transfer gain: what pretraining was worth, seed by seed, and how sure that is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from gptx_nb import launch, progress
from gptx_nb.engine import models, transfer
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.tasks import text_classification
from gptx_nb.engine.transfer import Gain
from gptx_nb.recipe import Recipe
from gptx_nb.views import panels
from gptx_nb.worker.levers import Levers

REVIEWS = pd.DataFrame(
    {
        "text": [
            f"{word} {thing} {number}" for number in range(6) for thing in ("film", "book") for word in ("good", "bad")
        ],
        "label": ["positive", "negative"] * 12,
    }
)


def recipe(model: Path, **settings: Any) -> Recipe:
    small = {"batch_size": 6, "device": "cpu", "dtype": "float32", "baselines": False, "epochs": 2.0, "validation": 0.5}
    return Recipe(model=str(model), data="df", **{**small, **settings})


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    from scipy import stats

    ours, theirs = [0.80, 0.84, 0.79, 0.83], [0.70, 0.78, 0.74, 0.71]
    gain = Gain(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = gain.to_json()
    assert found["gain"] == pytest.approx(0.0825)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert Gain([0.8], [0.7]).to_json()["low"] is None


def test_it_is_told_with_its_spread_and_as_chance_where_it_is() -> None:
    sure = {"scratch": [0.7, 0.7, 0.7], "gain": 0.081, "low": 0.05, "high": 0.112}
    said = "Transfer gain: +8.1 points over random weights (95 % interval +5.0 to +11.2, 3 seeds)"
    assert progress.transfer_gain(sure) == f"{said}."
    assert progress.transfer_gain({**sure, "low": -0.01}).endswith("; that can be chance.")
    assert "with one seed" in progress.transfer_gain({"scratch": [0.7], "gain": 0.1, "low": None, "high": None})


def test_random_weights_have_the_same_shape_and_nothing_of_the_base_model() -> None:
    base = models.find("tiny")
    tokenizer = models.load_tokenizer(base)
    ours, theirs = (models.load_classifier(base, tokenizer, ["a", "b"], 0, scratch=each) for each in (False, True))
    assert {name: each.shape for name, each in ours.named_parameters()} == {
        name: each.shape for name, each in theirs.named_parameters()
    }
    assert ours.config.to_dict() == {**theirs.config.to_dict(), **_where(ours)}
    assert not torch.equal(ours.transformer.wte.weight, theirs.transformer.wte.weight)
    again = models.load_classifier(base, tokenizer, ["a", "b"], 0, scratch=True)
    assert torch.equal(again.transformer.wte.weight, theirs.transformer.wte.weight)


def _where(model: Any) -> dict[str, Any]:
    return {
        key: model.config.to_dict()[key] for key in ("_name_or_path", "architectures") if key in model.config.to_dict()
    }


def test_a_run_measures_it_and_goes_on_where_it_was(
    home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = launch.train("reviews", recipe(tiny_model), data=REVIEWS, wait=True)
    assert "transfer" not in (plain.run.scores() or {})
    weights = (plain.run.model / "model.safetensors").read_bytes()

    asked = recipe(tiny_model, baseline="scratch", baseline_seeds=2)
    compared = launch.train("reviews", asked, data=REVIEWS, wait=True)
    assert (compared.action, compared.run) == ("resumed", plain.run)
    assert (plain.run.model / "model.safetensors").read_bytes() == weights  # trained no second time
    scores = plain.run.scores()
    assert scores is not None
    found = scores["transfer"]
    assert len(found["pretrained"]) == len(found["scratch"]) == 2
    assert found["pretrained"][0] == scores["validation"]["accuracy"]
    assert found["low"] <= found["gain"] <= found["high"]
    assert "Transfer gain: " in "\n".join(progress.result_lines(plain.run))
    assert "same architecture, random weights (2 seeds)" in panels.ended(plain.run)["text/html"]
    before = plain.run.transfer_file.stat().st_mtime_ns

    assert launch.train("reviews", asked, data=REVIEWS).action == "shown"
    third = launch.train("reviews", recipe(tiny_model, baseline="scratch"), data=REVIEWS, wait=True)
    assert third.action == "resumed"
    assert plain.run.transfer_file.stat().st_mtime_ns > before
    more = (plain.run.scores() or {})["transfer"]
    assert more["scratch"][:2] == found["scratch"]
    assert len(more["scratch"]) == 3


def test_a_comparison_that_runs_out_of_memory_goes_on_with_less(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(REVIEWS) // 2
    texts, labels = REVIEWS["text"].tolist(), [int(each == "positive") for each in REVIEWS["label"]]
    train, held = Examples(texts[:half], labels[:half]), Examples(texts[half:], labels[half:])
    table = Table(train, held, ["negative", "positive"], {"text": "text", "label": "label", "warnings": []})
    learners: list[Any] = []
    failed: list[int] = []
    asked: list[int] = []
    loss = text_classification.Learner.loss

    def short_of_memory(self: Any, *given: Any) -> torch.Tensor:
        if len(learners) == 1 and not failed:
            failed.append(1)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return loss(self, *given)

    def needs_less(step: int) -> bool:
        asked.append(step)
        return learners[-1].need_less_memory() is not None

    monkeypatch.setattr(text_classification.Learner, "loss", short_of_memory)
    steps: list[dict[str, Any]] = []
    found = transfer.accuracy(
        recipe(tiny_model, keep="last"), table, scratch=True, should_stop=lambda: False, record=steps.append,
        save_memory=lambda learner, device: learners.append(learner), needs_less=needs_less,
    )  # fmt: skip
    assert found is not None
    assert failed == [1]
    assert asked == [0]
    assert [each["step"] for each in steps] == [1, 2, 3, 4]


def test_what_one_learner_of_an_attempt_has_needed_the_next_begins_with(home: Path, tiny_model: Path) -> None:
    run = launch.train("reviews", recipe(tiny_model), data=REVIEWS, wait=True).run
    said: list[str] = []
    levers = Levers(run, 2, 0, said.append)

    class Learning:
        def __init__(self) -> None:
            self.token_budget = 64

        def longest(self, *_: Any) -> Any:
            return SimpleNamespace(micro=[{"input_ids": torch.zeros(1, self.token_budget)}])

        def need_less_memory(self) -> str | None:
            if self.token_budget == 16:
                return None
            self.token_budget //= 2
            return f"{self.token_budget} tokens at once"

    one, two, three = (Learning() for _ in range(3))
    cpu = torch.device("cpu")
    levers.follow(one, cpu, None)  # type: ignore[arg-type]
    assert levers.pull(3)
    levers.follow(two, cpu, None)  # type: ignore[arg-type]
    assert (one.token_budget, two.token_budget) == (32, 32)
    assert levers.pull(0)
    assert not levers.pull(0)
    levers.follow(three, cpu, None)  # type: ignore[arg-type]
    assert three.token_budget == 16
    assert len(said) == 2
