"""Which task a table is for, and which column plays which role in it: from names and a few values, with the reason.

It reads no table and refuses none: what does not fit gives no guess. Names decide, contents only where they must (a
list of turns, a list of choices, how long texts are). Text and label alone are `data.find_columns`' business, which
looks at every value; here they are only told from the other tasks.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptx_nb.engine.tasks.templates import LANGUAGES
from gptx_nb.text_pairs import PAIRS, plain_name

Columns = Mapping[str, Sequence[Any]]

# Names by role, the likeliest first.
DOCUMENT = (
    "document",
    "article",
    "dialogue",
    "report",
    "abstract",
    "body",
    "content",
    "source",
    "passage",
    "text",
    "文章",
    "文档",
    "正文",
    "原文",
    "内容",
    "文本",
)
SUMMARY = ("summary", "summaries", "highlights", "tldr", "headline", "abstract_summary", "gist", "摘要", "总结", "概要")
CONTEXT = (
    *("context", "passage", "paragraph", "document", "background", "support"),
    *("上下文", "背景", "文章", "段落", "文档"),
)
QUESTION = ("question", "query", "problem", "term", "问题", "题目", "问")
ANSWER = (
    "answer",
    "answers",
    "response",
    "final_answer",
    "solution",
    "correct_answer",
    "definition",
    "target",
    "答案",
    "回答",
    "答",
)
CHOICES = ("choices", "options", "endings", "candidates", "alternatives", "选项")
RIGHT_CHOICE = ("answer", "correct_answer", "answer_key", "label", "target", "答案", "正确答案")
MESSAGES = ("messages", "conversation", "conversations", "turns", "dialog", "dialogue", "chat", "对话")
PROMPT = ("prompt", "source", "input", "mr", "提示", "提示词", "输入")
COMPLETION = (
    "completion",
    "response",
    "continuation",
    "target",
    "output",
    "answer",
    "回答",
    "输出",
    "补全",
    "续写",
    "回复",
)
# The two sides of a translation, where names say no more; and names that others use too, so the task has to be given.
SIDES = (("原文", "译文"), ("源文", "译文"), ("源语言", "目标语言"), ("源文本", "目标文本"), ("原句", "译句"))
ASKED_SIDES = (
    *(("source", "target"), ("src", "tgt"), ("src", "trg"), ("source_text", "target_text"), ("src_text", "tgt_text")),
    *(("source_sentence", "target_sentence"), ("original", "translation")),
)
CODE = ("code", "snippet", "canonical_solution", "solution", "program")
WORDS = ("intent", "rewritten_intent", "docstring", "description", "text", "prompt", "instruction", "question")
TESTS = ("test", "tests", "test_list")
LABEL = (
    "label",
    "labels",
    "class",
    "category",
    "label_text",
    "label_name",
    "gold_label",
    "sentiment",
    "target",
    "标签",
    "类别",
    "分类",
)
PAIR_LABEL = (
    *(*LABEL, "is_duplicate", "is_paraphrase", "entailment_judgment", "entailment", "judgment", "judgement"),
    *("verdict", "relation", "stance", "关系", "结论"),
)
TEXT = ("text", "content", "line", "document", "sentence", "verse", "poem", "文本", "内容", "评论")

_CHINESE_STEMS = {
    "英": "en", "中": "zh", "汉": "zh", "法": "fr", "德": "de", "日": "ja", "韩": "ko", "俄": "ru", "西班牙": "es",
    "意大利": "it", "葡萄牙": "pt", "阿拉伯": "ar", "荷兰": "nl", "越南": "vi", "泰": "th", "印尼": "id",
    "土耳其": "tr",
}  # fmt: skip
_LANGUAGE_NAMES = {
    **{name.lower(): code for code, name in LANGUAGES.items()},
    **{stem + ending: code for stem, code in _CHINESE_STEMS.items() for ending in "语文"},
}
_KNOWN_CODES = {*LANGUAGES, "eng", "deu", "fra", "spa", "ita", "rus", "zho", "jpn", "cmn"}
_OPTION = re.compile(r"(?:choice|option|ending|distractor|选项)s?_?([a-j]|\d)")
_LETTER = re.compile(r"[^\W\d_]")
_WORDED = re.compile(r"[^\W\d_]{2}\s+[^\W\d_]{2}|^[^\W\d_]?[^\W\d_A-Z]{3,}\W*$")  # two words, or one that is no code
_LONGER = 1.5  # a document is that many times as long as what it is asked for


@dataclass(frozen=True)
class Guess:
    """A `task`, the column of each role, and why. Of several columns for a role (`choices`) all are listed."""

    task: str
    roles: dict[str, str | list[str]]
    why: str


def guesses(columns: Columns) -> list[Guess]:
    """Return what the table of `columns`, each with a few of its values, may be for: the likeliest first."""
    table = Table(columns)
    found = (find(table) for find in _FINDERS)
    return [guess for guess in found if guess is not None]


def guess(columns: Columns, task: str | None = None) -> Guess | None:
    """Return the likeliest guess, of `task` if one is given; None if there is none."""
    found = next((each for each in guesses(columns) if task in (None, each.task)), None)
    return _sides(Table(columns), ASKED_SIDES) if found is None and task == "translation" else found


def messages_of(value: Any) -> list[dict[str, str]] | None:
    """Return a conversation as a list of {role, content}, from the shapes that tables have; None for anything else.

    Roles may be called role, from or speaker, contents content, value or text. Of two other speakers (`agent_1`,
    `agent_2`) the first is the user; a tool, or a third speaker, keeps its name, for whoever has to refuse it.
    """
    value = parsed(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    turns = []
    speakers: dict[str, str] = {}
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        who = next((turn[key] for key in ("role", "from", "speaker") if isinstance(turn.get(key), str)), None)
        said = next((turn[key] for key in ("content", "value", "text") if isinstance(turn.get(key), str)), None)
        if who is None or said is None:
            return None
        turns.append((who.strip().lower(), said))
    for who, _ in turns:
        role = _ROLES.get(who)
        if role == "system" and ("assistant" not in {_ROLES.get(each) for each, _ in turns} and len(turns) > 1):
            role = "assistant" if turns[0][0] != who else "system"  # in dialogue corpora the system answers
        if role is None:
            role = next((each for each in ("user", "assistant") if each not in speakers.values()), who)
        speakers.setdefault(who, role)
    return [{"role": speakers[who], "content": said} for who, said in turns]


# Who calls tools, or answers for them.
TOOLS = (
    *("tool", "function", "ipython", "observation", "tool_call", "tool_response", "function_call"),
    *("function_response", "function_return"),
)
_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "agent"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **{tool: tool for tool in TOOLS},
}


def parsed(value: Any) -> Any:
    """Return the list or object that a cell of a CSV holds as text, in JSON or as Python prints it, or the cell."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return found if isinstance(found, list | dict) else value
    return value


class Table:
    """The columns by plain name, and what their values are like."""

    def __init__(self, columns: Columns) -> None:
        self.columns = {name: [each for each in values if not _empty(each)] for name, values in columns.items()}
        self._plain = {name: plain_name(name) for name in columns}

    def called(self, names: Sequence[str], but: Sequence[str] = ()) -> str | None:
        """Return the column whose name is the first of `names` that there is."""
        return next(
            (column for name in names for column, plain in self._plain.items() if plain == name and column not in but),
            None,
        )

    def values(self, column: str) -> Sequence[Any]:
        return self.columns[column]

    def texts(self, column: str | None) -> bool:
        """Say whether a column holds texts, or lists of texts (several references)."""
        return column is not None and all(
            isinstance(each, str) or (isinstance(each, list) and all(isinstance(part, str) for part in each))
            for each in self.columns[column]
        )

    def length(self, column: str) -> float:
        """Return the mean number of characters."""
        values = self.columns[column]
        return sum(len(str(each)) for each in values) / max(1, len(values))

    def plain(self) -> dict[str, str]:
        return self._plain


def _empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _found(task: str, why: str, **roles: str | list[str] | None) -> Guess:
    return Guess(task, {role: column for role, column in roles.items() if column is not None}, why)


def _chat(table: Table) -> Guess | None:
    named = [
        column for name in MESSAGES if (column := table.called((name,))) and any(map(_turns, table.values(column)))
    ]
    others = (name for name, values in table.columns.items() if values and all(messages_of(each) for each in values))
    column = next(iter([*named, *others]), None)
    if column is None:
        return None
    return _found("chat", f"column {column!r} holds turns with a role and a content each", messages=column)


def _turns(value: Any) -> bool:
    """Say whether a value is meant for a conversation, however well it is one: its mistakes are told with their row."""
    value = parsed(value)
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _code(table: Table) -> Guess | None:
    code = table.called(CODE)
    if code is None or not table.texts(code):
        return None
    prompt = table.called(("prompt",))
    starts = prompt is not None and any("def " in str(each) or "class " in str(each) for each in table.values(prompt))
    words = None if starts else table.called(WORDS, but=(code,))
    if not starts and words is None:
        return None
    tests = table.called(TESTS)
    sure = tests is not None or table.called(("code", "snippet", "canonical_solution", "program")) is not None
    if not sure:
        return None
    asked = f"{prompt!r} begins it" if starts else f"{words!r} says what it shall do"
    why = f"column {code!r} is code by its name, and {asked}"
    entry_point = table.called(("entry_point",))
    asked_in = {"prompt": prompt if starts else None, "text": words}
    return _found("code-generation", why, code=code, **asked_in, tests=tests, entry_point=entry_point)


def _multiple_choice(table: Table) -> Guess | None:
    question, answer = table.called(QUESTION), table.called(RIGHT_CHOICE)
    if question is None or answer is None:
        return None
    listed = table.called(CHOICES)
    choices: str | list[str] | None = None
    if listed is not None and all(_is_choices(each) for each in table.values(listed)):
        choices = listed
    else:
        single = [name for name, plain in table.plain().items() if _OPTION.fullmatch(plain)]
        letters = [name for name, plain in table.plain().items() if len(plain) == 1 and plain in "abcdefghij"]
        wrong = [name for name in single if plain_name(name).startswith("distractor")]
        choices = next((each for each in ([*wrong, answer] if wrong else [], single, letters) if len(each) > 1), None)
    if choices is None:
        return None
    context = table.called(CONTEXT)
    why = f"{question!r} has its answers to choose from in {choices!r}, and {answer!r} is the right one, by name"
    return _found("question-answering", why, question=question, choices=choices, answer=answer, context=context)


def choice_names(columns: Sequence[str]) -> list[str]:
    """Return what the columns call their choices (`A`, `option_1`: "A", "1"); none if they do not."""
    plain = [plain_name(name) for name in columns]
    named = [each if len(each) == 1 else found[1] if (found := _OPTION.fullmatch(each)) else "" for each in plain]
    return [each.upper() for each in named] if all(named) else []


def _is_choices(value: Any) -> bool:
    """Say whether a value may be choices. A text is taken too, as none shall vanish: it is read, or refused, by row."""
    value = parsed(value)
    return isinstance(value, Mapping | str) or (isinstance(value, list | tuple) and len(value) > 1)


def _question(table: Table) -> Guess | None:
    question = table.called(QUESTION)
    answer = table.called(ANSWER, but=(question or "",))
    if question is None or answer is None:
        return None
    context = table.called(CONTEXT, but=(question, answer))
    where = f", which stands in {context!r}" if context else ""
    why = f"{question!r} is asked and {answer!r} is the answer{where}, by name"
    return _found("question-answering", why, question=question, context=context, answer=answer)


def _summary(table: Table) -> Guess | None:
    summary = table.called(SUMMARY)
    document = table.called(DOCUMENT, but=(summary or "",))
    if summary is None or document is None or not (table.texts(summary) and table.texts(document)):
        return None
    is_sure = table.plain()[summary] in SUMMARY[:2] and table.plain()[document] in DOCUMENT[:3]
    if table.length(document) < (1 if is_sure else _LONGER) * table.length(summary):
        return None
    return _found(
        "summarization",
        f"{summary!r} is shorter than {document!r}, and so called",
        document=document,
        summary=summary,
    )


def _translation(table: Table) -> Guess | None:
    coded = {
        name: code
        for name, plain in table.plain().items()
        if (code := language_code(plain)) and is_written(table, name, plain)
    }
    if len(coded) < 2:
        return _sides(table, SIDES)
    first, second = list(coded)[:2]
    more = f"; {', '.join(map(repr, list(coded)[2:]))} left out" if len(coded) > 2 else ""
    why = f"columns {first!r} and {second!r} are called after languages{more}"
    return Guess("translation", {"source": first, "target": second}, why)


def _sides(table: Table, pairs: Sequence[tuple[str, str]]) -> Guess | None:
    """Return the translation whose columns are called after its sides, not after languages."""
    for names in pairs:
        source, target = (table.called((name,)) for name in names)
        if source and target and table.texts(source) and table.texts(target):
            return _found("translation", f"{target!r} translates {source!r}, by name", source=source, target=target)
    return None


def side(table: Table, role: str, but: Sequence[str] = ()) -> str | None:
    """Return the column that is called after the side `role` (source or target) of a translation."""
    at = ("source", "target").index(role)
    return table.called([role, *(pair[at] for pair in (*SIDES, *ASKED_SIDES))], but)


def languages_of(values: Sequence[Any]) -> list[str]:
    """Return the keys of a column of objects that hold a text for each of several languages, else nothing."""
    objects = [parsed(each) for each in values if not _empty(each)]
    if not objects or not all(isinstance(each, Mapping) for each in objects):
        return []
    keys = list(dict.fromkeys(key for each in objects for key in each))
    texts = all(_empty(text) or isinstance(text, str) for each in objects for text in each.values())
    return keys if len(keys) > 1 and texts and all(language_code(plain_name(key)) for key in keys) else []


def is_written(table: Table, name: str, plain: str) -> bool:
    """Say whether a column called after a language holds texts in it. `id` and `no` may be numbers or codes of rows."""
    if not table.texts(name):
        return False
    pattern = _WORDED if plain in ("id", "no") else _LETTER
    values = table.values(name)
    return 2 * sum(pattern.search(str(each)) is not None for each in values) > len(values)


def language_code(plain: str) -> str | None:
    """Return the code of the language that a column is called after: fr, fra, pt_br, french, sentence_fr."""
    if plain in _LANGUAGE_NAMES:
        return _LANGUAGE_NAMES[plain]
    parts = plain.split("_")
    if parts[0] in _KNOWN_CODES and (len(parts) == 1 or (len(parts) == 2 and len(parts[1]) == 2)):
        return parts[0]
    last = parts[-1]
    if len(parts) > 1 and parts[0] in ("text", "sentence", "src", "source", "tgt", "target", "translation"):
        return last if last in _KNOWN_CODES else _LANGUAGE_NAMES.get(last)
    return None


def _instruction(table: Table) -> Guess | None:
    instruction = table.called(("instruction", "instructions", "指令"))
    output = table.called(("output", "response", "completion", "answer", "输出", "回答", "回复"))
    if instruction is None or output is None:
        return None
    given = table.called(("input", "context", "输入"), but=(output,))
    why = f"{instruction!r} is answered by {output!r}, by name" + (f", with {given!r} beside it" if given else "")
    return _found("chat", why, instruction=instruction, input=given, output=output)


def _text_pair(table: Table) -> Guess | None:
    label = table.called(PAIR_LABEL)
    for first, second in PAIRS:
        one, other = table.called((first,)), table.called((second,))
        if one and other and label:
            why = f"{one!r} and {other!r} are a pair by their names, and {label!r} is its label"
            return _found("text-classification", why, text=one, text_pair=other, label=label)
    return None


def _completion(table: Table) -> Guess | None:
    meaning = table.called(("mr", "meaning_representation"))
    completion = table.called(COMPLETION) or (
        table.called(("text", "ref", "reference", "references")) if meaning else None
    )
    prompt = table.called(PROMPT, but=(completion or "",))
    if prompt is None or completion is None:
        return None
    if prompt in table.columns and not (table.texts(prompt) and table.texts(completion)):
        return None
    why = f"{prompt!r} is continued by {completion!r}, by name"
    return _found("text-generation", why, prompt=prompt, completion=completion)


def _label(table: Table) -> Guess | None:
    label = table.called(LABEL)
    text = table.called((*TEXT, "review", "comment", "message", "question", "title"), but=(label or "",))
    if label is None or text is None:
        return None
    return _found("text-classification", f"{text!r} has its label in {label!r}, by name", text=text, label=label)


def _text(table: Table) -> Guess | None:
    text = table.called(TEXT)
    if text is None and len(table.columns) == 1:
        text = next(iter(table.columns))
    if text is None or not table.values(text) or not all(isinstance(each, str) for each in table.values(text)):
        return None
    only = "the only column" if len(table.columns) == 1 else "by its name; no column is its label or answer"
    return _found("text-generation", f"{text!r} is a text to learn the style of ({only})", text=text)


# Special shapes first: a table with choices has a question and an answer too.
_FINDERS: tuple[Callable[[Table], Guess | None], ...] = (
    _chat, _text_pair, _code, _multiple_choice, _summary, _question, _instruction, _translation, _label, _completion,
    _text,
)  # fmt: skip
