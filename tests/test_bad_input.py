"""Mistakes in a table for any task: each is one message that says which row, and what to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from gptx_nb import progress, writing_words
from gptx_nb.engine import examples, jobs
from gptx_nb.errors import DataError, RecipeError
from gptx_nb.recipe import make_recipe
from gptx_nb.sources import stage


def table_of(tmp_path: Path, data: object, validation: object = None, **settings: Any) -> Any:
    asked = make_recipe({"data": "df", **settings})
    return examples.load(asked, stage(asked, data, validation, tmp_path), tmp_path)


def encoded(tmp_path: Path, model: Path, data: object, template: str | None = None, **settings: Any) -> Any:
    asked = make_recipe({"data": "df", "validation": 0, **settings})
    job = jobs.of(table_of(tmp_path, data, **{"validation": 0, **settings}), asked)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if template is not None:
        tokenizer.chat_template = template
    job.encode(tokenizer, 64)
    return job.told(tokenizer)


def test_targets_that_are_all_masked_are_refused_with_their_lengths(tmp_path: Path, tiny_model: Path) -> None:
    frame = pd.DataFrame({"prompt": ["Go on:"] * 4, "completion": ["word " * 50] * 4})
    with pytest.raises(DataError) as caught:
        encoded(tmp_path, tiny_model, frame)
    assert str(caught.value) == (
        "df (DataFrame), row 1 and all others: no example can be learnt from. Of 4, the longest target has 251 tokens "
        "and the rest of its prompt 1, and a row has 64 at most. Set a larger `max_length:`, if the model allows it, "
        "or shorten the targets"
    )


def test_a_label_that_the_validation_table_lacks_is_told_and_one_that_it_adds_is_refused(tmp_path: Path) -> None:
    train = pd.DataFrame({"text": ["one", "two", "three"] * 4, "label": ["a", "b", "c"] * 4})
    less = table_of(tmp_path, train, pd.DataFrame({"text": ["four", "five"], "label": ["a", "b"]}))
    assert (
        "no validation row has the label c: it is learnt, and not scored. Add such rows to the validation table, or "
        "take the rows out of the training table"
    ) in less.report["warnings"]
    with pytest.raises(DataError, match=r"the label 'd' of row 2 is not among the training table's labels: a, b, c\."):
        table_of(tmp_path, train, pd.DataFrame({"text": ["four", "five"], "label": ["a", "d"]}))


def test_a_conversation_that_does_not_alternate_is_named_by_its_row(tmp_path: Path) -> None:
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(DataError, match=r"row 3: turn 2 of a conversation is of 'user', .* Join turns of the same"):
        table_of(tmp_path, [{"messages": good}] * 2 + [{"messages": [good[0], *good]}])


def test_a_template_that_fails_names_the_conversation_and_what_to_change(tmp_path: Path, tiny_model: Path) -> None:
    turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Yes"}]
    system = [{"role": "system", "content": "Be brief."}]
    refuses = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system here.') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = [{"messages": turns}, {"messages": [*system, *turns]}]
    with pytest.raises(DataError) as caught:
        encoded(tmp_path, tiny_model, rows, refuses)
    assert str(caught.value) == (
        "df (list), row 2 ('system: Be brief. user: Hello there'): the model's chat template does not take a "
        "conversation: No system here. Change what it refuses (often a system message), or type another "
        "`chat_template:`, as in `chat_template: zephyr`, or choose another base model"
    )


def test_a_template_that_asks_otherwise_than_it_answers_names_the_conversation_too(
    tmp_path: Path, tiny_model: Path
) -> None:
    turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Yes"}]
    written = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match=r"row 1 .* writes an answer otherwise than it asks .* `chat_template: zephyr`"):
        encoded(tmp_path, tiny_model, [{"messages": turns}] * 2, written + "{% if add_generation_prompt %}?{% endif %}")


def test_a_chat_template_is_for_chats_and_a_name_or_a_text(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"chat_template: 'chat\.jinja' does not fit: use chatml, zephyr, or a text in"
    ):
        make_recipe({"chat_template": "chat.jinja"})
    asked = {"data": "df", "chat_template": "zephyr", "validation": 0}
    labelled = [{"text": "Good", "label": "a"}, {"text": "Bad", "label": "b"}]
    written = [{"prompt": "1", "completion": "2"}]
    for rows in (labelled * 4, written * 4):
        recipe = make_recipe(asked)
        with pytest.raises(RecipeError, match="chat_template: it writes conversations, and the task is text-"):
            examples.load(recipe, stage(recipe, rows, None, tmp_path), tmp_path)
    recipe = make_recipe(asked)
    talks = [{"messages": [talk("user", "Hi"), talk("assistant", "Ho")]}] * 4
    job = jobs.of(examples.load(recipe, stage(recipe, talks, None, tmp_path), tmp_path), recipe)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    job.encode(tokenizer, 128)
    told = job.told(tokenizer)
    assert told["remarks"][0] == (
        "chat template: zephyr (asked for in the recipe; the base model is asked in it, too); it is saved with the "
        "model"
    )
    shown = "".join(text for text, _ in told["rendered"][0]["pieces"])
    assert shown.startswith("<|user|>\nHi\n<|assistant|>\nHo")


@pytest.mark.parametrize("part", ["train", "validation", "a table of its own"])
def test_a_template_that_fails_names_the_row_of_its_table_wherever_the_split_has_put_it(
    tmp_path: Path, tiny_model: Path, part: str
) -> None:
    own = part == "a table of its own"
    asked = make_recipe({"data": "df", "task": "chat", "validation": "held" if own else 0.25})
    talks = [{"messages": [talk("user", f"Say {said}"), talk("assistant", f"{said}")]} for said in range(1, 41)]
    held, unused = (talks[19::-1] if own else None), [{"messages": None}]
    rows = [*unused, *(talks[20:] if own else talks)]
    table = examples.load(asked, stage(asked, rows, held, tmp_path), tmp_path)
    chosen = (table.train if part == "train" else table.validation)[3]
    said = chosen["messages"][-1]["content"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] == 'Say " + said + "' %}{{ raise_exception('No.') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    job = jobs.of(table, asked)
    named = f"held (list), row {21 - int(said)}" if own else f"df (list), row {int(said) + 1}"
    with pytest.raises(DataError, match=re.escape(f"{named} ('Say {said}'): the model's chat template does not")):
        job.encode(tokenizer, 64)


def talk(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_validation_table_that_does_not_fit_at_all_is_told_and_parts_are_counted_apart(
    tmp_path: Path, tiny_model: Path
) -> None:
    short, long = {"question": "red?", "answer": "der"}, {"question": "?", "answer": "word " * 50}
    asked = make_recipe({"data": "df", "validation": "held"})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def told(held: list[dict[str, str]]) -> Any:
        table = examples.load(asked, stage(asked, [short, long, short, long], held, tmp_path), tmp_path)
        job = jobs.of(table, asked)
        job.encode(tokenizer, 64)
        plan = {**job.told(tokenizer), "max_length": {"choice": 64}}
        return job, plan, progress.split_sizes(table.report, plan), writing_words.targets(plan)

    job, plan, sizes, targets = told([long, short, long])
    assert job.is_scored
    assert sizes == "4 to learn from; scoring: 3 rows of held (list), 2 of them left out as they do not fit"
    assert targets.endswith("; 2 left out of learning as they do not fit")
    why = "the answer and what asks for it take more than 64 tokens"
    assert f"2 rows (the first: df (list), row 2) are left out of learning: {why}" in plan["notes"]
    assert f"2 rows (the first: held (list), row 1) are left out of scoring: {why}" in plan["notes"]

    job, plan, *_ = told([long, long])
    assert not job.is_scored
    assert (
        plan["notes"][-1]
        == job.why_unscored
        == (
            "no row held back fits, so there is no score (2 rows of held (list)). Shorten their texts, or set a larger "
            "`max_length:`, if the model allows it"
        )
    )


def test_texts_beyond_the_context_are_cut_from_the_context_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    frame = pd.DataFrame(
        {"context": ["long " * 100, "short"], "question": ["What?", "Who?"], "answer": ["this", "that"]}
    )
    told = encoded(tmp_path, tiny_model, frame)
    assert (told["tokens"]["cut"], told["tokens"]["left_out"], told["tokens"]["max"]) == (1, 0, 64)
    learnt = ["".join(text for text, target in each["pieces"] if target) for each in told["rendered"]]
    assert learnt == [" this<|endoftext|>", " that<|endoftext|>"]


def test_chinese_columns_are_found_and_a_cut_shows_whole_characters(tmp_path: Path, tiny_model: Path) -> None:
    frame = pd.DataFrame({"编号": [1, 2, 3, 4], "评论": ["很好的产品" * 8, "不好"] * 2, "标签": ["好", "坏"] * 2})
    table = table_of(tmp_path, frame)
    assert (table.report["text"], table.report["label"], table.labels) == ("评论", "标签", ["坏", "好"])
    asked = table_of(tmp_path, pd.DataFrame({"问题": ["谁?"] * 4, "答案": ["我"] * 4}))
    assert asked.report["roles"] == {"question": "问题", "answer": "答案"}
    told = encoded(tmp_path, tiny_model, frame)  # a byte a token: 64 end within a character
    assert told["rendered"][0]["text"] == ("很好的产品" * 8)[:21]
