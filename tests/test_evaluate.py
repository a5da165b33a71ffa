"""Scores and baselines against figures worked out by hand."""

import numpy as np
import pytest

from gptx_nb.engine import evaluate
from gptx_nb.engine.data import Examples
from gptx_nb.engine.scores.labels import single_label


def test_scores_are_those_of_the_confusion_matrix() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32))
    found = evaluate.scores(["no", "yes"], [0, 0, 1, 1], logits)
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[1, 1], [0, 2]]
    assert found["per_class"][0] == {
        "label": "no",
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "rows": 2,
    }
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean(), rel=1e-5)


def test_every_score_of_a_run_and_of_its_baselines_has_an_interval_and_its_number_of_examples() -> None:
    truth, shares = [0, 1] * 20, np.array([[0.9, 0.1], [0.1, 0.9]] * 15 + [[0.1, 0.9], [0.9, 0.1]] * 5)
    found = evaluate.measured(["no", "yes"], truth, np.log(shares))
    assert {name: round(each["value"], 6) for name, each in found.items()} == {
        "accuracy": 0.75, "macro_f1": 0.75, "calibration_error": 0.15,
    }  # fmt: skip
    held = Examples(["good film", "bad film"] * 20, truth)
    for each in (found, evaluate.baselines(held, held)["majority"]["scores"]):
        for score in each.values():
            assert (score["low"] <= score["value"] <= score["high"], score["examples"]) == (True, 40)
            assert score["low"] < score["high"]
    assert evaluate.baselines(held, held)["majority"]["macro_f1"] == pytest.approx(1 / 3)


def test_figures_by_label_are_those_of_the_scores_and_have_intervals() -> None:
    truth, said = [0, 1] * 20, [0, 1] * 15 + [1, 0, 1, 1, 1] * 2
    found = evaluate.scores(["no", "yes"], truth, np.eye(2)[said])["per_class"]
    told = evaluate.by_label(single_label(["no", "yes"], truth, said).per_label)
    for mine, theirs in zip(told, found, strict=True):
        for name, score in mine.pop("scores").items():
            assert score["value"] == mine[name]
            assert score["low"] <= score["value"] <= score["high"]
            assert score["low"] < score["high"]
        assert mine == {
            name: each if name in ("label", "rows") else pytest.approx(each) for name, each in theirs.items()
        }


def test_a_label_that_no_row_has_is_without_an_interval() -> None:
    told = evaluate.by_label(single_label(["no", "yes"], [0] * 9, [0] * 9).per_label)[1]
    assert (told["recall"], told["rows"]) == (0, 0)
    assert told["scores"]["recall"]["low"] is told["scores"]["recall"]["high"] is None


def test_a_few_rows_are_shown_always_the_same_with_the_share_of_their_label() -> None:
    held = Examples([f"text {at}" for at in range(8)], [at % 2 for at in range(8)])
    logits = np.log(np.array([[0.9, 0.1]] * 8))
    found = evaluate.samples(["bad", "good"], held, logits)
    assert [each["text"] for each in found] == ["text 0", "text 2", "text 4", "text 6"]
    assert found[0] == {"text": "text 0", "label": "bad", "said": "bad", "share": 0.9}
    assert evaluate.samples(["bad", "good"], Examples(["one"], [1]), logits[:1])[0]["share"] == 0.1


def test_baselines_are_scored_on_the_same_rows() -> None:
    train = Examples(["good film", "good book", "bad film", "good meal"], [1, 1, 0, 1])
    validation = Examples(["bad book", "good song"], [0, 1])
    found = evaluate.baselines(train, validation)
    assert found["majority"]["accuracy"] == 0.5
    assert set(found) == {"majority", "tfidf"}


def test_texts_without_a_single_word_leave_only_the_majority() -> None:
    train = Examples(["! ?", "? !", "! !"], [0, 1, 1])
    assert set(evaluate.baselines(train, Examples(["? ?"], [1]))) == {"majority"}


def test_texts_without_spaces_are_counted_by_character() -> None:
    train = Examples(["很好的书", "很差的书", "很好的店", "很差的店"] * 3, [1, 0, 1, 0] * 3)
    assert evaluate.baselines(train, Examples(["很好的饭", "很差的饭"], [1, 0]))["tfidf"]["accuracy"] == 1.0
