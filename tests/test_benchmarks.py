"""What the benchmarks make of what they measure, on small tables; the measuring itself takes too long here."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import gptx_nb
from gptx_nb import inference
from gptx_nb.engine.transfer import goodness
from gptx_nb.recipe import make_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of public sets, in little: labels that a word tells, and documents with a sentence as their summary."""
    words = {"glad": "positive", "sad": "negative"}
    rows = [{"text": f"{word} {at} film", "label_text": label} for at in range(40) for word, label in words.items()]
    for name, frame in (("sst2", pd.DataFrame(rows)),):
        (tmp_path / name).mkdir()
        frame.head(64).to_csv(tmp_path / name / "train.csv", index=False)
        frame.tail(16).to_csv(tmp_path / name / "test.csv", index=False)
    (tmp_path / "scitldr").mkdir()
    documents = [{"document": f"Cats {at} sleep. They eat fish.", "summaries": [f"cats {at} sleep"]} for at in range(8)]
    for part in ("train", "test"):
        pd.DataFrame(documents).to_json(tmp_path / "scitldr" / f"{part}.jsonl", orient="records", lines=True)
    return tmp_path


@pytest.fixture
def process(home: Path) -> Iterator[None]:
    yield
    inference.free()


def test_a_task_is_measured_untrained_with_examples_and_tuned(
    data: Path, process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks

    asked: Any = SimpleNamespace(
        test=16, shots=2, examples=64, tune="full", epochs=12.0, minutes=0.0, set=[("long_texts", "head+tail")]
    )
    found = {way: tasks.measure(data, "sst2", "tiny", way, asked) for way in tasks.WAYS}
    rows = {way: tasks.row(each) for way, each in found.items()}
    assert rows["tuned"]["accuracy"] >= 0.9
    assert [rows[way]["examples"] for way in tasks.WAYS] == [0, 2, 64]
    assert all(row["test rows"] == 16 for row in rows.values())
    assert found["tuned"]["training_s"] > 0
    assert rows["tuned"]["way"] == "tuned, long_texts: head+tail"
    gptx_nb.free()


def test_of_each_label_there_is_a_row_and_a_summary_has_the_lead_sentence_beside_it(data: Path) -> None:
    import tasks

    assert set(tasks.table(data, tasks.SETS["sst2"], "train", 2)["label"]) == {"positive", "negative"}
    test = tasks.table(data, tasks.SETS["scitldr"], "test", 8)
    assert tasks.lead(test)["rougeL"]["value"] == 1.0


def test_a_text_without_rows_is_cut_at_blank_lines() -> None:
    import tasks

    speeches = [f"Speaker {number}:\n{'word ' * 60}" for number in range(20)]
    found = tasks.pieces("\n\n".join(speeches))
    assert "\n\n".join(found).split() == "\n\n".join(speeches).split()
    assert all(len(each) >= tasks.PIECE for each in found[:-1])
    assert all(each.startswith("Speaker") for each in found)


def test_a_sweep_says_how_far_the_default_is_below_its_best() -> None:
    import defaults

    setting = {"model": "tiny", "examples": 100, "draw": 0, "tune": "full", "batch": None, "warmup": None}
    found = [
        {**setting, "set": name, "rate": rate, "epochs": None, "accuracy": accuracy}
        for name, rate, accuracy in (("a", None, 0.7), ("b", None, 0.8), ("a", 2.0, 0.9), ("b", 2.0, 0.7))
    ]
    (row,) = defaults.best_of([*found, {**setting, "set": "a", "rate": 4.0, "epochs": None, "accuracy": 0.99}])
    assert row["settings"] == 2, "what was run once is not compared"
    assert (row["best"], row["default"]) == (pytest.approx(0.8), pytest.approx(0.75))
    assert row["below"] == pytest.approx(0.05)
    (row,) = defaults.best_of(
        [*found, *({**setting, "set": "c", "rate": rate, "epochs": None, "accuracy": 0.6} for rate in (None,))]
    )
    assert (row["sets"], row["default"]) == ("a, b", pytest.approx(0.75)), "on the sets that both were run on"
    written = [
        {**setting, "set": name, "rate": rate, "epochs": None, "nats": nats}
        for rate, nats in ((None, 2.0), (2.0, 1.5))
        for name in ("c", "d")
    ]
    _, row = defaults.best_of([*found, *written])
    assert (row["score"], row["best"], row["below"]) == ("-nats a token", pytest.approx(-1.5), pytest.approx(0.5))


def test_a_sweep_trains_models_that_write_on_some_rows_and_scores_others(data: Path) -> None:
    import defaults

    held = defaults.WrittenSet(data, "scitldr", 8)
    recipe = make_recipe({"model": "tiny", "epochs": 1, "keep": "last", "baselines": False, **held.settings})
    job = defaults.job_of(held, slice(0, 3), slice(3, None), recipe)
    assert (job.report["train"], job.report["validation"]) == (3, 5)
    (loss,) = goodness(recipe, job) or [0.0]
    assert -12 < loss < -1
    with pytest.raises(SystemExit, match="8 rows, and examples of all draws and rows to score take 9"):
        defaults.WrittenSet(data, "scitldr", 9)


def test_draws_have_a_spread_but_where_all_are_the_same() -> None:
    import fewshot

    found = [
        {"set": "a", "method": "words", "examples": count, "draw": draw, "accuracy": accuracy}
        for count, accuracies in ((16, (0.6, 0.8)), (1000, (0.9, 0.9)))
        for draw, accuracy in enumerate(accuracies)
    ]
    (row,) = fewshot.rows_of(found)
    assert row == {"set": "a", "method": "words", "16": "0.700 ± 0.141", "1,000": "0.900"}


def test_results_that_are_kept_are_whole() -> None:
    files = sorted((BENCHMARKS / "results").glob("*.json"))
    assert files
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found, file.name
