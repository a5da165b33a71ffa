"""Runs side by side: in Python, in a notebook, on the command line."""

import base64
import json
import re
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from made_runs import FINISHED, SCORES, SCRIPT, STOPPED, make

import gptx_nb
from gptx_nb import comparison, files
from gptx_nb.errors import RunNotFound, UsageError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.recipe import make_recipe
from gptx_nb.views import cli


@pytest.fixture
def two(home: Path) -> None:
    scores = {**SCORES, "baselines": {}}
    make(steps=24, phase="saving", outcome=FINISHED, scores=SCORES)
    make(steps=12, phase="saving", outcome=FINISHED, scores=scores, data=SCRIPT)


def test_scores_and_what_differs_stand_side_by_side(two: None) -> None:
    found = gptx_nb.compare("reviews/1", "reviews/2")
    table = found.to_frame()
    assert list(table.columns) == ["reviews v1", "reviews v2"]
    assert list(table.loc["accuracy"]) == ["0.812", "0.812"]
    assert list(table.loc["accuracy, TF-IDF + logistic regression"]) == ["0.830", ""]
    assert list(table.loc["data"]) == ["df", SCRIPT]
    assert repr(found).splitlines()[0].split() == ["reviews", "v1", "reviews", "v2"]
    assert "reviews v1: TF-IDF does as well" in repr(found)


def test_in_a_notebook_it_is_plain_html_with_an_image(two: None, plain_shell: InteractiveShell) -> None:
    shown = plain_shell.run_cell("%gpt_compare reviews/1 reviews").result._repr_mimebundle_()
    assert re.search(r'text-align:right[^<]*">0\.812</td>', shown["text/html"])  # numbers stand under each other
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert "<script" not in shown["text/html"]
    assert "Confusion matrix" in shown["text/html"]
    assert "&lt;script&gt;window.hacked = 1" in shown["text/html"]
    assert sum(len(part) for part in shown.values()) < 200_000


def test_the_command_prints_the_same(two: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "reviews/1", "reviews/2"]) == 0
    assert "what differs in the recipes" in capsys.readouterr().out
    assert cli.main(["compare", "reviews/1", "reviews/2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == ["reviews v1", "reviews v2"]
    assert ["data", "df", SCRIPT] in told["settings"]


def test_runs_that_have_not_come_far_are_compared_too(home: Path) -> None:
    make(phase="data")
    make(steps=3, phase="training", outcome=STOPPED)
    found = gptx_nb.compare("reviews/1", "reviews/2")
    assert found.scores[0] == ["state", "reading the data", "stopped"]


def test_of_runs_of_two_kinds_what_was_asked_for_is_told_and_not_every_default(home: Path) -> None:
    make(steps=3, phase="training", outcome=STOPPED)
    other = make("story", steps=3, phase="training", outcome=STOPPED)
    recipe = make_recipe({"data": "tales.txt", "context": 64, "seed": 1}, "", PretrainRecipe).model_dump(mode="json")
    files.write_json(other.request_file, {**other.request(), "kind": "pretrain", "recipe": recipe})
    assert gptx_nb.compare("reviews", "story").settings == [
        ["kind of run", "fine-tuning", "pretraining"],
        ["data", "df", "tales.txt"],
        ["seed", "0", "1"],
        ["context", "", "64"],
    ]


def test_of_many_labels_the_most_frequent_mistakes_are_told(home: Path) -> None:
    labels = [f"label {number}" for number in range(13)]
    taken = [[9 if true == said else int(said == (true + 1) % 13) for said in range(13)] for true in range(13)]
    taken[4][7] = 1234
    validation = {**SCORES["validation"], "labels": labels, "confusion": taken}
    run = make(steps=3, phase="saving", outcome=FINISHED, scores={**SCORES, "validation": validation})
    (told,) = comparison.compare([run])["runs"]
    assert told["mistakes"][:2] == [["label 4", "label 7", "1,234"], ["label 0", "label 1", "1"]]
    assert (len(told["mistakes"]), told["more_mistakes"]) == (10, 4)


def test_a_mistake_is_one_message(two: None) -> None:
    with pytest.raises(UsageError, match=r"^1 run: name 2 to 8, as in `%gpt_compare reviews/1 reviews/2`"):
        gptx_nb.compare("reviews/1", "reviews/1")
    with pytest.raises(RunNotFound, match=r"run 'reviews' has no version 7; it has 1, 2"):
        gptx_nb.compare("reviews/1", "reviews/7")
