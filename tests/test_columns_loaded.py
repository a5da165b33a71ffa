"""Tables as they are loaded, not only guessed: what a row becomes, and the messages for what cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gptx_nb.engine import examples
from gptx_nb.engine.tasks import templates
from gptx_nb.errors import DataError
from gptx_nb.recipe import make_recipe
from gptx_nb.sources import stage


def load(folder: Path, data: object, **settings: Any) -> Any:
    asked = make_recipe({"data": "df", "validation": 0, **settings})
    return examples.load(asked, stage(asked, data, None, folder), folder)


def load_csv(folder: Path, text: str, **settings: Any) -> Any:
    (folder / "table.csv").write_text(text, encoding="utf-8")
    asked = make_recipe({"data": str(folder / "table.csv"), "validation": 0, **settings})
    return examples.load(asked, stage(asked, None, None, folder), folder)


# ---- a column for each choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"task": "question-answering"}], ids=["found", "asked for"])
@pytest.mark.parametrize(
    ("columns", "answer"),
    [(("A", "B"), "B"), (("option_1", "option_2"), "2"), (("ending0", "ending1"), "1"), (("选项A", "选项B"), "b")],
)
def test_a_column_for_each_choice_is_loaded(
    tmp_path: Path, columns: tuple[str, str], answer: str, settings: dict[str, Any]
) -> None:
    rows = [{"question": f"Who? {at}", columns[0]: "Ann", columns[1]: "Bob", "answer": answer} for at in range(4)]
    table = load(tmp_path, rows, **settings)
    assert table.report["roles"]["choices"] == list(columns)
    assert table.train[0] == {"question": "Who? 0", "choices": ["Ann", "Bob"], "answer": "Bob"}


def test_an_empty_choice_leaves_the_letters_of_the_others_alone(tmp_path: Path) -> None:
    rows = {"question": ["Who?"] * 2, "A": ["Ann", "x"], "B": [None, "y"], "C": ["Cy", "z"], "answer": ["C", "C"]}
    table = load(tmp_path, pd.DataFrame(rows))
    assert table.train[0] == {"question": "Who?", "choices": ["Ann", "Cy"], "answer": "Cy"}
    with pytest.raises(DataError, match=r"row 1: the answer 'B' is none of the choices: Ann, Cy\. Give its text"):
        load(tmp_path, pd.DataFrame({**rows, "answer": ["B", "C"]}))


def test_the_right_answer_is_one_of_the_choices_beside_distractors_and_not_always_the_last(tmp_path: Path) -> None:
    rows = [
        {"question": f"Q{at}?", "distractor1": "m", "distractor2": "n", "correct_answer": right, "support": "Because."}
        for at, right in enumerate(("a", "z"))
    ]
    first, second = load(tmp_path, rows).train
    assert (first["choices"], first["answer"]) == (["a", "m", "n"], "a")
    assert (second["choices"], second["answer"]) == (["m", "n", "z"], "z")
    assert first["context"] == "Because."


# ---- languages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [("1", "2", "3"), ("a1", "a2", "a3"), ("tr-1", "tr-2", "tr-3"), ("AAAA", "AAAB", "B")])
@pytest.mark.parametrize("name", ["id", "no"])
def test_a_column_of_row_numbers_is_no_language(tmp_path: Path, name: str, cells: tuple[str, ...]) -> None:
    table = load_csv(tmp_path, f"{name},en,fr\n" + "".join(f"{each},Go {each}.,Va {each} !\n" for each in cells))
    assert (table.task, table.report["roles"]) == ("translation", {"source": "en", "target": "fr"})


@pytest.mark.parametrize(("name", "language"), [("id", "Indonesian"), ("no", "Norwegian")])
@pytest.mark.parametrize("cells", [("Hei verden", "God dag."), ("hus", "Katten")], ids=["sentences", "words"])
def test_a_column_of_texts_called_id_or_no_is_a_language(
    tmp_path: Path, name: str, language: str, cells: tuple[str, ...]
) -> None:
    table = load_csv(tmp_path, f"{name},en\n" + "".join(f"{each},Some words {each}\n" for each in cells))
    assert table.report["roles"] == {"source": name, "target": "en"}
    assert templates.language(table.facts["from"]) == language


# ---- several labels a text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"task": "text-classification"}], ids=["found", "asked for"])
@pytest.mark.parametrize("file", [False, True], ids=["frame", "csv"])
def test_columns_of_true_and_false_are_labels_as_those_of_0_and_1_are(
    tmp_path: Path, file: bool, settings: dict[str, Any]
) -> None:
    feelings = pd.Series(["joy", "fear", "anger", "joy"])
    frame = pd.DataFrame({"text": [f"This is text {at}" for at in range(4)]}).join(pd.get_dummies(feelings))
    table = load_csv(tmp_path, frame.to_csv(index=False), **settings) if file else load(tmp_path, frame, **settings)
    assert (table.multi_label, table.labels) == (True, ["anger", "fear", "joy"])
    assert table.train.labels == [[2], [1], [0], [2]]
