"""Which task a table is for: obvious tables, the shapes that public sets have, and tables that are for none."""

from __future__ import annotations

import csv
import json
import lzma
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gptx_nb.engine.tasks.columns import guess, guesses, messages_of

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
LONG, SHORT = "A long text that goes on for a while and says many things.", "Short."
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("row", "task", "roles"),
    [
        ({"text": LONG, "label": "a"}, "text-classification", {"text": "text", "label": "label"}),
        (
            {"premise": LONG, "hypothesis": SHORT, "label": 1},
            "text-classification",
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        (
            {"sentence1": LONG, "sentence2": SHORT, "gold_label": "neutral"},
            "text-classification",
            {"text": "sentence1", "text_pair": "sentence2", "label": "gold_label"},
        ),
        (
            {"question": "Who?", "context": LONG, "answer": "Ann"},
            "question-answering",
            {"question": "question", "context": "context", "answer": "answer"},
        ),
        (
            {"Question": "Who?", "Answer": "Ann"},
            "question-answering",
            {"question": "Question", "answer": "Answer"},
        ),
        (
            {"question": "Who?", "choices": ["Ann", "Bob"], "answer": "Ann"},
            "question-answering",
            {"question": "question", "choices": "choices", "answer": "answer"},
        ),
        (
            {"question": "Who?", "choices": {"text": ["Ann", "Bob"], "label": ["A", "B"]}, "answerKey": "A"},
            "question-answering",
            {"question": "question", "choices": "choices", "answer": "answerKey"},
        ),
        (
            {"question": "Who?", "A": "Ann", "B": "Bob", "answer": "A"},
            "question-answering",
            {"question": "question", "choices": ["A", "B"], "answer": "answer"},
        ),
        (
            {"question": "Who?", "option_1": "Ann", "option_2": "Bob", "answer": "Ann"},
            "question-answering",
            {"question": "question", "choices": ["option_1", "option_2"], "answer": "answer"},
        ),
        ({"document": LONG, "summary": SHORT}, "summarization", {"document": "document", "summary": "summary"}),
        ({"article": LONG, "highlights": SHORT}, "summarization", {"document": "article", "summary": "highlights"}),
        ({"dialogue": LONG, "summaries": [SHORT]}, "summarization", {"document": "dialogue", "summary": "summaries"}),
        ({"text": LONG, "summary": SHORT}, "summarization", {"document": "text", "summary": "summary"}),
        ({"en": "Go.", "fr": "Va !"}, "translation", {"source": "en", "target": "fr"}),
        ({"English": "Go.", "Chinese": "走"}, "translation", {"source": "English", "target": "Chinese"}),
        ({"text_en": "Go.", "text_zh": "走"}, "translation", {"source": "text_en", "target": "text_zh"}),
        ({"pt_BR": "Vai.", "eng": "Go."}, "translation", {"source": "pt_BR", "target": "eng"}),
        ({"原文": "走。", "译文": "Go."}, "translation", {"source": "原文", "target": "译文"}),
        ({"源语言": "走。", "目标语言": "Go."}, "translation", {"source": "源语言", "target": "目标语言"}),
        ({"文档": LONG, "摘要": SHORT}, "summarization", {"document": "文档", "summary": "摘要"}),
        (
            {"问题": "谁？", "上下文": LONG, "答案": "我"},
            "question-answering",
            {"question": "问题", "context": "上下文", "answer": "答案"},
        ),
        ({"提示": "从前", "回答": "有座山"}, "text-generation", {"prompt": "提示", "completion": "回答"}),
        ({"提示": "从前", "续写": "有座山"}, "text-generation", {"prompt": "提示", "completion": "续写"}),
        ({"messages": TURNS}, "chat", {"messages": "messages"}),
        ({"id": 1, "anything": TURNS}, "chat", {"messages": "anything"}),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "chat",
            {"instruction": "instruction", "input": "input", "output": "output"},
        ),
        (
            {"prompt": "Once", "completion": " upon"},
            "text-generation",
            {"prompt": "prompt", "completion": "completion"},
        ),
        ({"text": LONG}, "text-generation", {"text": "text"}),
        ({"zeile": LONG}, "text-generation", {"text": "zeile"}),
        ({"intent": "add", "snippet": "a + b"}, "code-generation", {"text": "intent", "code": "snippet"}),
        (
            {"prompt": "def f(x):\n", "canonical_solution": "  return x", "test": "assert f(1)", "entry_point": "f"},
            "code-generation",
            {"prompt": "prompt", "code": "canonical_solution", "tests": "test", "entry_point": "entry_point"},
        ),
    ],
)
def test_obvious_columns_are_found(row: dict[str, Any], task: str, roles: dict[str, Any]) -> None:
    found = guess({name: [value, value] for name, value in row.items()})
    assert found is not None
    assert (found.task, found.roles) == (task, roles)
    for column in row:
        if column in roles.values() and column not in ("test", "entry_point"):
            assert repr(column) in found.why


@pytest.mark.parametrize(
    ("first", "second", "label"),
    [("claim", "evidence", "verdict"), ("前提", "假设", "关系"), ("premise", "hypothesis", "relation")],
)
def test_a_pair_is_found_by_its_label_too(first: str, second: str, label: str) -> None:
    found = guess({first: ["Snow is white."], second: ["It was seen to be white."], label: ["supported"]})
    assert found is not None
    assert found.roles == {"text": first, "text_pair": second, "label": label}


def test_the_reason_is_told() -> None:
    found = guess({"en": ["Go."], "de": ["Geh."], "fr": ["Va !"]})
    assert found is not None
    assert found.why == "columns 'en' and 'de' are called after languages; 'fr' left out"
    found = guess({"question": ["Who?"], "context": [LONG], "answers": [["Ann"]]})
    assert found is not None
    assert found.why == "'question' is asked and 'answers' is the answer, which stands in 'context', by name"


def test_a_task_that_is_asked_for_is_looked_for() -> None:
    columns = {"text": [LONG], "label": ["a"]}
    assert [each.task for each in guesses(columns)] == ["text-classification", "text-generation"]
    found = guess(columns, "text-generation")
    assert found is not None
    assert found.roles == {"text": "text"}
    assert guess(columns, "translation") is None
    for names in (("source", "target"), ("Src", "Tgt")):  # other pairs are called so too
        sides = {names[0]: ["Go."], names[1]: ["Va !"]}
        found = guess(sides, "translation")
        assert found is not None
        assert found.roles == {"source": names[0], "target": names[1]}
        assert "translation" not in [each.task for each in guesses(sides)]
    assert guess({"source": [1], "target": [2]}, "translation") is None


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1, 2], "b": [3, 4]},
        {"en": ["only one language"], "number": [1]},
        {},
    ],
)
def test_what_fits_nothing_gives_no_guess(columns: dict[str, list[Any]]) -> None:
    assert guess(columns) is None


def test_no_summary_is_longer_than_its_document() -> None:
    assert guess({"document": [SHORT], "summary": [LONG]}, "summarization") is None


def test_conversations_come_in_many_shapes() -> None:
    assert messages_of(TURNS) == TURNS
    assert messages_of([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]) == TURNS
    assert messages_of([{"speaker": "agent_1", "text": "Hi"}, {"speaker": "agent_2", "text": "Ho"}]) == TURNS
    # In corpora of dialogues the system is the one who answers; before an assistant it is who sets the scene.
    assert messages_of([{"speaker": "user", "text": "Hi"}, {"speaker": "system", "text": "Ho"}]) == TURNS
    scene = {"role": "system", "content": "Be kind."}
    assert messages_of([scene, *TURNS]) == [scene, *TURNS]
    for other in ("Hi", [], ["Hi"], [{"role": "user"}], [{"text": "Hi"}], None, [1]):
        assert messages_of(other) is None


EXPECTED = {
    "sst2": "text-classification", "banking77": "text-classification", "chnsenticorp": "text-classification",
    "trec": "text-classification", "imdb_5800": "text-classification", "squad_xquad_en": "question-answering",
    "adversarial_qa": "question-answering", "cmrc2018_zh": "question-answering", "nq_open": "question-answering",
    "open_trivia": "question-answering", "gsm8k": "question-answering", "openstax_glossary": "question-answering",
    "multi30k_en_de_fr": "translation", "tatoeba_en_zh": "translation", "tatoeba_en_fr_short": "translation",
    "dialogsum_800": "summarization", "scitldr": "summarization", "openstax_summaries": "summarization",
    "humaneval": "code-generation", "mbpp": "code-generation", "conala": "code-generation", "topical_chat": "chat",
    "sgd_dialogues": "chat", "chatterbot_en_zh": "chat", "instructions_small": "chat",
    "chinese_poems": "text-generation",
}  # fmt: skip


@pytest.mark.skipif(not DATA.is_dir(), reason="the public sets are not here (shared/data)")
@pytest.mark.parametrize("name", EXPECTED)
def test_the_columns_of_public_sets_are_found(name: str) -> None:
    path = next((DATA / name).glob("test.*.xz"))
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = list(islice(map(json.loads, lines) if ".jsonl" in path.name else csv.DictReader(lines), 20))
    found = guess({column: [row.get(column) for row in rows] for column in rows[0]})
    assert found is not None
    assert found.task == EXPECTED[name]
