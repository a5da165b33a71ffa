"""Tables as they are loaded, not only guessed: what a row becomes, and the messages for what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gptx_nb.engine import examples, roles
from gptx_nb.engine.roles import RoleTable
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


@pytest.mark.parametrize(
    "cells", [("1", "2", "3"), ("a1", "a2", "a3"), ("tr-1", "tr-2", "tr-3"), ("AAAA", "AAAB", "B")]
)
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


def test_columns_that_are_no_languages_are_told_with_what_to_type(tmp_path: Path) -> None:
    for names, told in (
        (("source", "target"), "df.rename(columns={'source': 'en', 'target': 'fr'})"),
        (("原文", "译文"), "df.rename(columns={'原文': 'en', '译文': 'fr'})"),
    ):
        table = load(tmp_path, [dict(zip(names, ("Go.", "Va !"), strict=True))] * 2, task="translation")
        assert table.train[0] == {"source": "Go.", "target": "Va !", "from": names[0], "to": names[1]}
        assert table.report["warnings"][0] == (
            f"{names[0]!r} and {names[1]!r} are not called after languages, so the model is not told which it is. Say "
            f"so, as in `{told}`, or in the file's first line"
        )
    named = {"source": "en", "target": "dialect"}
    table = load(tmp_path, [{"en": "Go.", "dialect": "Geh"}] * 2, task="translation", columns=named)
    assert table.report["warnings"][0].startswith("'dialect' is not called after a language, so the model is not told")
    assert "columns={'dialect': 'fr'}" in table.report["warnings"][0]
    table = load(tmp_path, [{"en": "Go.", "de": "Geh"}] * 2)
    assert [each for each in table.report["warnings"] if "not called after" in each] == []


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


# ---- conversations --------------------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"role": "assistant", "content": None, "tool_calls": []}, r"turn 2 of a conversation is .* Tool calls cannot"),
        ({"content": "Ho"}, r"turn 2 of a conversation is \{'content': 'Ho'\}, and needs a role and a text, as in"),
        (
            {"role": "assistant", "content": "Ho", "tool_calls": [{"id": "f"}]},
            r"turn 2 of a conversation calls a tool,",
        ),
        ({"role": "tool", "content": "7"}, r"turn 2 of a conversation is of 'tool', and only texts of system, user"),
        ({"role": "function", "content": "7"}, r"turn 2 .* 'function', .*\. Leave out the rows that use tools, or"),
        ({"role": "critic", "content": "No"}, r"turn 3 of a conversation is of 'assistant', and 'user' is due"),
    ],
)
def test_one_conversation_that_cannot_be_meant_is_told_with_its_row_and_turn(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    rows = [{"text": f"No. {at}", "label": "a", "messages": TALK} for at in range(4)]
    with pytest.raises(DataError, match=r"row 3: " + message):
        load(tmp_path, [*rows[:2], {**rows[2], "messages": [TALK[0], wrong, TALK[1]]}, rows[3]])


def test_a_developer_is_the_system_and_a_third_speaker_is_nobody_else(tmp_path: Path) -> None:
    talk = [{"role": "developer", "content": "Be brief."}, *TALK]
    assert load(tmp_path, [{"messages": talk}]).train == [{"messages": [{**talk[0], "role": "system"}, *TALK]}]
    three = [*TALK, {"role": "critic", "content": "No"}, TALK[1]]
    with pytest.raises(DataError, match=r"row 1: turn 3 of a conversation is of 'critic', and 'user' is due"):
        load(tmp_path, [{"messages": three}])


@pytest.mark.parametrize("written", [json.dumps, str], ids=["JSON", "as pandas writes a list"])
def test_conversations_and_choices_as_texts_of_a_csv_are_read(tmp_path: Path, written: Any) -> None:
    frame = pd.DataFrame({"messages": [written(TALK)] * 2})
    assert load_csv(tmp_path, frame.to_csv(index=False)).train[0] == {"messages": TALK}
    frame = pd.DataFrame({"question": ["Who?"] * 2, "choices": [written(["x", "y"])] * 2, "answer": ["x", "y"]})
    assert load_csv(tmp_path, frame.to_csv(index=False)).train[1]["choices"] == ["x", "y"]


def test_an_empty_turn_of_the_assistant_is_left_out_and_counted_with_its_row(tmp_path: Path) -> None:
    silent = [TALK[0], {"role": "assistant", "content": " "}]
    report = load(tmp_path, [{"messages": each} for each in (TALK, silent, silent)]).report
    assert (report["used"], report["dropped"]) == (1, {"an empty turn of the assistant": 2})
    assert report["warnings"] == ["row 2 is left out, the first with an empty turn of the assistant"]


def test_turns_that_nobody_answers_are_left_out_and_the_conversations_counted(tmp_path: Path) -> None:
    left = [*TALK, {"role": "user", "content": "And then?"}]
    table = load(tmp_path, [{"messages": each} for each in (TALK, left, left)])
    assert table.train == [{"messages": TALK}] * 3
    assert table.report["warnings"] == [
        "2 conversations end with turns that nobody answers, which are left out; the first is row 2"
    ]


def test_texts_called_messages_are_no_conversations(tmp_path: Path) -> None:
    rows = [(f"Win {at}", ("spam", "ham")[at % 2]) for at in range(8)]
    assert load(tmp_path, pd.DataFrame(rows, columns=["messages", "label"])).labels == ["ham", "spam"]


# ---- other names and shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "task", "example"),
    [
        (
            {"translation": {"en": "Go.", "fr": "Va !"}},
            "translation",
            {"source": "Go.", "target": "Va !", "from": "en", "to": "fr"},
        ),
        ({"英文": "Go.", "中文": "走"}, "translation", {"source": "Go.", "target": "走", "from": "en", "to": "zh"}),
        ({"日语": "行け", "汉语": "走"}, "translation", {"source": "行け", "target": "走", "from": "ja", "to": "zh"}),
        ({"原文": "Go.", "译文": "走"}, "translation", {"source": "Go.", "target": "走", "from": "原文", "to": "译文"}),
        (
            {"原文": "很长很长的一篇文章", "摘要": "短"},
            "summarization",
            {"document": "很长很长的一篇文章", "summary": "短"},
        ),
        (
            {"指令": "翻译", "输入": "Go.", "输出": "走"},
            "chat",
            {"messages": [{"role": "user", "content": "翻译\n\nGo."}, {"role": "assistant", "content": "走"}]},
        ),
        ({"提示": "从前", "回答": "有座山"}, "text-generation", {"prompt": "从前", "completion": "有座山"}),
        ({"问": "谁?", "答": "我"}, "question-answering", {"question": "谁?", "answer": "我"}),
        (
            {"问题": "谁?", "选项": ["我", "你"], "答案": "B"},
            "question-answering",
            {"question": "谁?", "choices": ["我", "你"], "answer": "你"},
        ),
        (
            {"question": "Who?", "options": {"A": "Ann", "B": "Bob"}, "answer": "A"},
            "question-answering",
            {"question": "Who?", "choices": ["Ann", "Bob"], "answer": "Ann"},
        ),
        (
            {"question": "Who?", "options": "Ann\nBob", "answer": "B"},
            "question-answering",
            {"question": "Who?", "choices": ["Ann", "Bob"], "answer": "Bob"},
        ),
    ],
)
@pytest.mark.parametrize("named", [False, True], ids=["found", "asked for"])
def test_names_in_chinese_and_shapes_of_public_sets_are_found(
    tmp_path: Path, row: dict[str, Any], task: str, example: dict[str, Any], named: bool
) -> None:
    table = load(tmp_path, [row, row], **({"task": task} if named else {}))
    assert (table.task, table.train[0]) == (task, example)


def test_translations_as_objects_are_read_in_a_validation_table_too_and_as_text(tmp_path: Path) -> None:
    asked, rows = make_recipe({"data": "df"}), [{"translation": {"en": "Go.", "fr": "Va !"}}]
    texts = [{"translation": json.dumps({"en": "Stop.", "fr": None})}, {"translation": str({"en": "Run.", "fr": "Va"})}]
    table = examples.load(asked, stage(asked, rows, texts, tmp_path), tmp_path)
    assert isinstance(table, RoleTable)
    assert table.validation is not None
    assert [each["source"] for each in table.validation] == ["Run.", "Va"]
    assert table.report["validation_table"]["dropped"] == {"empty target": 1}


@pytest.mark.parametrize("names", [("question1", "question2", "is_duplicate"), ("句子1", "句子2", "标签")])
def test_a_pair_of_texts_with_its_label_is_found(tmp_path: Path, names: tuple[str, str, str]) -> None:
    rows = [(f"How {at}?", f"Why {at}?", at % 2) for at in range(8)]
    table = load(tmp_path, pd.DataFrame(rows, columns=list(names)))
    assert (table.report["text"], table.report["text_pair"], table.report["label"]) == names


def test_a_prompt_names_languages_in_english(tmp_path: Path) -> None:
    example = load(tmp_path, [{"英文": "Go.", "中文": "走"}]).train[0]
    assert "".join(part.text for part in templates.translation(example)) == "English: Go.\nChinese: 走"


def test_choices_that_are_one_text_are_refused_and_never_vanish(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "options": "A) Ann B) Bob", "answer": "A"}]
    with pytest.raises(DataError, match=r"row 1: choices are 'A\) Ann B\) Bob', and a list is needed, as in \[\"yes\""):
        load(tmp_path, rows)
    columns = {"question": "question", "answer": "answer"}
    assert "choices" not in load(tmp_path, rows, task="question-answering", columns=columns).train[0]


# ---- several labels in one text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["/", "、", "，", "；", " "])
def test_several_labels_in_one_text_are_refused_with_the_separator_to_type(tmp_path: Path, separator: str) -> None:
    one, two = ("1", "12") if separator == " " else ("joy", "fear")
    rows = pd.DataFrame({"text": [f"Text {at}" for at in range(6)], "label": [one, two, f"{one}{separator}{two}"] * 2})
    with pytest.raises(DataError, match=f"row 3: .* looks like several labels in one text. .*: '{separator}'`"):
        load(tmp_path, rows)
    table = load(tmp_path, rows, label_separator=separator)
    assert [sorted(table.labels[each] for each in label) for label in table.train.labels[:3]] == [
        [one],
        [two],
        sorted((one, two)),
    ]


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        (["en/formal", "en/informal", "fr/formal", "fr/informal"], "/"),  # paths, perhaps
        (["joy;fear", "joy", "anger"], ";"),
        (["sci/tech", "business", "and/or"], None),
        (["news", "news/sport", "news/world", "news/art"], None),
        (["New York, NY", "Buffalo, NY", "Fresno, CA", "Boston, MA"], None),
        (["very good", "good", "very bad", "bad"], None),
        (["1", "2", "3"], None),
    ],
)
def test_labels_that_may_be_several_are_read_as_one_with_a_warning(
    tmp_path: Path, labels: list[str], warned: str | None
) -> None:
    rows = [(f"Text {at}", label) for at, label in enumerate(labels * 3)]
    table = load(tmp_path, pd.DataFrame(rows, columns=["text", "label"]))
    assert (table.multi_label, set(table.labels)) == (False, set(labels))
    told = [each for each in table.report["warnings"] if "look like several" in each]
    assert [each[each.index("If they") :] for each in told] == (
        [f"If they are several, type `label_separator: '{warned}'`"] if warned else []
    )


# ---- answers that are numbers ---------------------------------------------------------------------------------------


def numbered(*answers: object) -> list[dict[str, Any]]:
    return [{"question": f"Q{at}?", "choices": ["a", "b", "c", "d"], "answer": each} for at, each in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "right"), [((1, 4, 2), ["a", "d", "b"]), ((0, 3, 1), ["a", "d", "b"]), (("1", "B", "4.0"), list("abd"))]
)
def test_answers_count_from_1_where_one_is_the_last_and_none_is_0(
    tmp_path: Path, answers: tuple[object, ...], right: list[str]
) -> None:
    table = load(tmp_path, pd.DataFrame(numbered(*answers)))
    assert [each["answer"] for each in table.train] == right
    assert any("count from 1" in each for each in table.report["warnings"]) == (0 not in answers)


def test_answers_that_may_count_from_0_or_from_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: the answer 1 is a number, and no row shows whether they count from 0"):
        load(tmp_path, numbered(1, 2, 3))
    with pytest.raises(DataError, match=r"row 2: the answer '4' is none of the choices: .* its place from 0"):
        load(tmp_path, numbered(0, 4))
    columns = [{"question": "Q?", "option_1": "a", "option_2": "b", "answer": each} for each in (1, 0)]
    with pytest.raises(DataError, match=r"row 2: the answer '0' is none of the choices: a, b"):
        load(tmp_path, columns)


def test_another_table_counts_as_the_one_that_was_learnt_from_unless_it_shows_its_own(tmp_path: Path) -> None:
    asked = make_recipe({"data": "df"})
    for answers, right in (((1, 2), ["a", "b"]), ((0, 2), ["a", "c"])):
        table = examples.load(asked, stage(asked, numbered(1, 4), numbered(*answers), tmp_path), tmp_path)
        assert [each["answer"] for each in table.validation or []] == right  # type: ignore[index, call-overload]


def test_a_translation_of_the_other_direction_is_scored_in_that_direction(tmp_path: Path) -> None:
    learnt = {"from": "en", "to": "fr"}
    asked = make_recipe({"data": "df"})

    def read(name: str, row: dict[str, str]) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        source = stage(asked, pd.DataFrame([row] * 2), 0.0, folder)["train"]
        assert source is not None
        found: dict[str, Any] = roles.read_examples("translation", None, learnt, source, folder, asked)[0][0]
        return found

    assert read("back", {"fr": "Va !", "en": "Go."}) == {"from": "fr", "to": "en", "source": "Va !", "target": "Go."}
    assert read("same", {"en": "Go.", "fr": "Va !"}) == {"from": "en", "to": "fr", "source": "Go.", "target": "Va !"}
