"""What a recipe would do, told by a process of the engine before anything is started."""

import html
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

import gptx_nb
from gptx_nb import rehearsals
from gptx_nb.engine import batches
from gptx_nb.errors import DataError, UsageError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.recipe import make_recipe

ROWS = [("Great, I love it 😀", "yes"), ("Awful.", "no")] * 6


def test_a_rehearsal_tells_of_the_table_first_then_of_tokens_memory_and_time_and_leaves_nothing(
    home: Path, tiny_model: Path
) -> None:
    tables: list[dict[str, Any]] = []
    recipe = make_recipe({"model": str(tiny_model), "head": "words", "epochs": 2, "validation": 0.25})
    found = rehearsals.rehearse(recipe, ROWS, on_table=tables.append)
    (table,) = tables
    assert table["columns"] == ["text", "label"]
    assert table["rows"][0] == ["Great, I love it 😀", "yes"]
    assert (table["count"], len(table["rows"]), table["error"]) == (12, 5, None)
    assert table["report"]["labels"] == {"no": 6, "yes": 6}
    assert found["plan"]["epochs"] == {"choice": 2.0, "reason": "asked for in the recipe"}
    assert "at the peak" in found["plan"]["memory"]["reason"]
    assert "measured on the longest rows" in found["plan"]["time"]["reason"]
    assert sum(count for _, _, count in found["lengths"]) == 12
    first = next(each for each in found["examples"] if each["label"] == "yes")
    assert "".join(text for text, _ in first["pieces"]) == "Great, I love it 😀\nCategory:"  # within its prompt
    assert "😀" in [text for text, _ in first["pieces"]]
    assert not any(predicted for _, predicted in first["pieces"])
    assert not (home / "runs").exists()


def test_of_several_devices_each_is_told_its_share(home: Path, tiny_model: Path) -> None:
    recipe = make_recipe({"model": str(tiny_model), "head": "plain", "epochs": 2, "device": "cpu", "devices": 2})
    plan = rehearsals.rehearse(recipe, ROWS)["plan"]
    assert plan["devices"]["choice"] == 2
    assert plan["memory"]["reason"].startswith("at the peak in each of 2 processes: ")
    assert " a second in each of 2 processes, measured" in plan["time"]["reason"]
    shared = rehearsals.rehearse(recipe.model_copy(update={"sharding": "on"}), ROWS)["plan"]
    assert shared["sharding"]["choice"] == "on"
    assert shared["time"]["reason"] == "not tried: it takes 2 processes to hold the model"


@pytest.mark.parametrize("tune", ["head", "top:1"])
def test_what_is_computed_once_is_timed_and_not_kept(home: Path, tiny_model: Path, tune: str) -> None:
    recipe = make_recipe({"model": str(tiny_model), "head": "plain", "tune": tune, "device": "cpu"})
    plan = rehearsals.rehearse(recipe, ROWS)["plan"]
    assert plan["time"]["choice"].startswith("at least ")
    assert plan["time"]["reason"].endswith("; this is the part that is computed once, and training on it comes to it")


def test_of_a_task_that_writes_the_answer_alone_is_to_be_predicted(home: Path, tiny_model: Path) -> None:
    rows = [{"question": f"Is {number} odd?", "answer": "Yes." if number % 2 else "No."} for number in range(12)]
    recipe = make_recipe({"model": str(tiny_model), "validation": 0})
    found = rehearsals.rehearse(recipe, rows)
    pieces = found["examples"][0]["pieces"]
    told = "".join(text for text, predicted in pieces if predicted)
    first = batches.step_rows(0, rows=12, batch_size=16, seed=recipe.seed)[0][0]
    assert told.strip().startswith(rows[first]["answer"])
    assert rows[first]["question"] in "".join(text for text, predicted in pieces if not predicted)


def test_what_is_wrong_with_a_table_is_told_together_with_its_first_rows(home: Path) -> None:
    tables: list[dict[str, Any]] = []
    recipe = make_recipe({"label": "stars"})
    with pytest.raises(DataError, match="has no column 'stars'"):
        rehearsals.rehearse(recipe, ROWS, on_table=tables.append)
    assert tables[0]["columns"] == ["text", "label"]
    assert "has no column 'stars'" in tables[0]["error"]


def test_a_rehearsal_that_nobody_wants_any_more_is_ended(home: Path) -> None:
    with pytest.raises(rehearsals.Withdrawn):
        rehearsals.rehearse(make_recipe({}), ROWS, withdrawn=lambda: True)


def test_pretraining_is_not_rehearsed(home: Path) -> None:
    with pytest.raises(UsageError, match="reads and cleans all its texts first"):
        rehearsals.rehearse(make_recipe({"data": "texts.txt"}, "", PretrainRecipe))


def test_the_first_batch_is_that_of_the_first_step_and_what_is_learnt_is_bold(
    home: Path, tiny_model: Path, plain_shell: InteractiveShell
) -> None:
    rows = [{"question": f"Is {number} odd?", "answer": "Yes." if number % 2 else "No."} for number in range(40)]
    plain_shell.user_ns["df"] = pd.DataFrame(rows)
    cell = f"data: df\nmodel: {tiny_model}\nvalidation: 0\nbatch_size: 4\nseed: 3"
    found = plain_shell.run_cell_magic("gpt_batch", "odd", cell)
    assert isinstance(found, gptx_nb.FirstBatch)
    first, _ = batches.step_rows(0, rows=40, batch_size=4, seed=3)
    texts = ["".join(text for text, _ in row["pieces"]) for row in found.rows]
    assert [text.split("\n")[0] for text in texts] == [f"Question: Is {at} odd?" for at in first]
    learnt = ["".join(text for text, target in row["pieces"] if target) for row in found.rows]
    assert [text.strip().removesuffix("<|endoftext|>") for text in learnt] == [rows[at]["answer"] for at in first]
    assert f"{html.escape(learnt[0])}</span>" in found._repr_html_()
    assert repr(found).startswith("the first batch: 4 rows\n1. (")
    assert not (home / "runs").exists()

    long = [{"question": f"{'unfortunately ' * 90}{number}", "answer": f"No, {number}."} for number in range(6)]
    shown = repr(gptx_nb.first_batch(long, model="tiny", batch_size=2))
    assert re.search(r" … .*⟦ No, \d\.", shown)

    labelled = gptx_nb.first_batch(ROWS, model=str(tiny_model), head="plain", batch_size=100)
    assert (labelled.size, {row["label"] for row in labelled.rows}) == (12, {"yes", "no"})
    assert "<th" in labelled._repr_html_()
    with pytest.raises(DataError, match="no column"):
        gptx_nb.first_batch(pd.DataFrame({"a": [1.5, 2.5], "b": [1, 2]}), model=str(tiny_model))
