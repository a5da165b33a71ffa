"""Scoring runs and base models on any table: the Python function, the magic, the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.interactiveshell import InteractiveShell

import gptx_nb
from gptx_nb import launch
from gptx_nb.errors import DataError, UsageError
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run

COLOURS = ("red", "blue", "green", "black")
QUESTIONS = pd.DataFrame([(f"{c}?", c[::-1]) for c in COLOURS] * 6, columns=["question", "answer"])
REVIEWS = pd.DataFrame({"text": ["good one", "bad one"] * 10, "label": ["yes", "no"] * 10})


def tuned(name: str, model: Path, frame: pd.DataFrame, **settings: Any) -> Run:
    small = {"model": str(model), "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    return launch.train(name, make_recipe({**small, "validation": 0, **settings}), data=frame, wait=True).run


def test_a_run_that_writes_and_its_base_model_are_scored_on_any_table(
    home: Path, tiny_model: Path, tmp_path: Path, plain_shell: InteractiveShell
) -> None:
    tuned("back", tiny_model, QUESTIONS, epochs=20)
    other = QUESTIONS.rename(columns={"question": "q", "answer": "a"})
    found = gptx_nb.evaluate("back", other, columns={"question": "q", "answer": "a"})
    assert (found.task, found.rows, found["exact_match"]) == ("question-answering", 24, 1.0)
    assert found.scores["exact_match"]["examples"] == 24
    assert found.samples[0] == {"asked": "red?", "right": "der", "answer": "der"}
    assert "exact match" in repr(found)
    assert "<td" in found._repr_html_()
    assert found.to_frame().loc["f1", "value"] == 1.0

    with pytest.raises(UsageError, match="a model that writes gives no labels"):
        gptx_nb.evaluate("back", REVIEWS, task="text-classification")

    base = gptx_nb.evaluate(str(tiny_model), QUESTIONS, shots=2, most=5, max_new_tokens=4)
    assert (base.rows, base.shots, base.scores["f1"]["examples"]) == (22, 2, 5)
    assert base["perplexity"] > 10 * found["perplexity"]
    assert base.notes == ["5 of 22 rows were answered, evenly spread"]

    shell = plain_shell
    shell.user_ns["other"] = other
    shown = shell.run_line_magic("gpt_eval", "back other --columns '{question: q, answer: a}' --most 4")
    assert shown.scores["f1"]["examples"] == 4
    with pytest.raises(IPythonUsageError, match="takes the name of a run or base model and a table"):
        shell.run_line_magic("gpt_eval", "back")
    with pytest.raises(IPythonUsageError, match=r"unknown flag '--shot'. Did you mean '--shots'\?"):
        shell.run_line_magic("gpt_eval", "back other --shot 2")

    QUESTIONS.to_csv(tmp_path / "test.csv", index=False)
    command = [sys.executable, "-m", "gptx_nb.views.cli", "eval", "back", str(tmp_path / "test.csv"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["scores"]["exact_match"]["value"] == 1.0


def test_a_classifier_is_scored_with_intervals_and_a_confusion_matrix(home: Path, tiny_model: Path) -> None:
    tuned("labels", tiny_model, REVIEWS, epochs=10)
    found = gptx_nb.evaluate("labels", REVIEWS.rename(columns={"text": "review", "label": "sentiment"}))
    assert (found["accuracy"], found.labels, found.confusion) == (1.0, ["no", "yes"], [[10, 0], [0, 10]])
    assert set(found.scores) == {"accuracy", "macro_f1", "calibration_error"}
    strange = pd.DataFrame({"text": ["a", "b"], "label": ["maybe", "no"]})
    with pytest.raises(DataError, match="the label 'maybe' of 1 row is not among the labels: no, yes"):
        gptx_nb.evaluate("labels", strange)
    with pytest.raises(UsageError, match="this run gives labels"):
        gptx_nb.evaluate("labels", REVIEWS, shots=2)


def test_what_cannot_be_scored_is_told(home: Path, tiny_model: Path) -> None:
    base = str(tiny_model)
    with pytest.raises(UsageError, match="shots: 24 of 24 rows leave none to score"):
        gptx_nb.evaluate(base, QUESTIONS, shots=24)
    with pytest.raises(UsageError, match=r"unknown task 'sumarization'. Did you mean 'summarization'\?"):
        gptx_nb.evaluate(base, QUESTIONS, task="sumarization")
    with pytest.raises(UsageError, match="unknown setting 'epochs'"):
        gptx_nb.evaluate(base, QUESTIONS, epochs=3)
    with pytest.raises(DataError, match="its columns do not fit summarization, which needs document and summary"):
        gptx_nb.evaluate(base, QUESTIONS, task="summarization")
