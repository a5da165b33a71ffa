"""The tasks whose model writes an answer: which roles an example has, how it reads, and what a right answer is.

Each task is one entry of `TASKS`. It says how a cell of a table becomes the value of a role, how an example becomes
segments (`templates`, `chat_templates`), which answers are accepted, and which scores are its own. Tables are read in
`roles`, tokens made in `encoding`, answers written in `engine.writer`, scores taken in `answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptx_nb.engine.tasks import chat_templates, templates
from gptx_nb.engine.tasks.columns import TOOLS, messages_of, parsed
from gptx_nb.engine.tasks.templates import Example, Segment
from gptx_nb.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Facts = Mapping[str, Any]  # what holds for a whole table: "joint" of prompts and completions, languages "from" and "to"

SegmentsOf = Callable[[Example, Facts, "PreTrainedTokenizerBase"], list[list[Segment]]]
PromptOf = Callable[[Example, Facts, "PreTrainedTokenizerBase"], list[Segment]]


# Which role of which task may be longer than a row, and read in windows (`long_contexts`).
LONG = {"question-answering": "context", "summarization": "document"}


class Missing(Exception):
    """A row lacks what this says: it is left out, and counted."""


@dataclass(frozen=True)
class WritingTask:
    """One task. `shapes` are the sets of roles that a table may have, each with those that may be missing.

    `asked` and `target` are the two roles that a plain pair has. `read` makes an example of a row by role; it raises
    Missing for a row to leave out, DataError for one that cannot be meant. `segments` gives the rows to learn from,
    `prompt` what asks for an answer, `accepted` the right answers. `scores` name the scores, the first is the task's
    own. Where `one_right_answer`, the likeliest answer is wanted, else one that is drawn. At `base_stop` the answer of
    a model ends that was not tuned for the task, and so has not learnt where.
    """

    name: str
    shapes: tuple[tuple[frozenset[str], frozenset[str]], ...]
    asked: str
    target: str
    segments: SegmentsOf
    prompt: PromptOf
    scores: tuple[str, ...]
    max_new_tokens: int
    one_right_answer: bool
    base_stop: tuple[str, ...]
    read: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda row: row)

    def shape(self, roles: Mapping[str, Any]) -> bool:
        """Say whether `roles` are all that this task needs, and no others."""
        return any(needed <= set(roles) <= needed | optional for needed, optional in self.shapes)

    @property
    def needs(self) -> str:
        """The roles in words: `question and answer (context, choices)`."""
        each = []
        for needed, optional in self.shapes:
            more = f" ({', '.join(sorted(optional))})" if optional else ""
            each.append(" and ".join(sorted(needed, key=lambda role: (role == self.target, role))) + more)
        return ", or ".join(each)

    def whole_text(self, example: Example) -> bool:
        """Say whether all of the example is target: it is then cut into as many rows as it needs."""
        return self.name == "text-generation" and "text" in example

    def accepted(self, example: Example) -> list[str]:
        """Return the right answers of an example, none where there is nothing to compare with."""
        if self.name == "chat":
            return [example["messages"][-1]["content"]]
        if "references" in example:
            return list(example["references"])
        return [str(example[self.target])] if example.get(self.target) is not None else []

    def loses_answer(self, example: Example, read: Example, cut: int) -> bool:
        """Say whether an answer stands in an example's context, but not in that of `read` without its `cut` end."""
        if self.name != "question-answering" or "context" not in example or "choices" in example:
            return False
        context, left = str(example["context"]), str(read["context"]).strip()
        answers = [each for each in self.accepted(example) if each in context]
        return bool(answers) and not any(each in left[: len(left) - cut] for each in answers)

    def without_target(self, example: Example) -> dict[str, Any]:
        """Return what an example asks."""
        if self.name == "chat":
            messages = example["messages"]
            return {"messages": messages[:-1] if messages[-1]["role"] == "assistant" else messages}
        left_out = {self.target, "references", "tests", "entry_point"}
        return {role: value for role, value in example.items() if role not in left_out}

    def shorter(self, example: Example) -> dict[str, Any] | None:
        """Return a conversation without its oldest exchange; None for what has no such thing to lose."""
        messages = list(example.get("messages") or ())
        opening = messages[:1] if messages and messages[0]["role"] == "system" else []
        talk = messages[len(opening) :]
        return {**example, "messages": [*opening, *talk[2:]]} if len(talk) > 2 else None

    def rest(self, example: Example, part: Example) -> dict[str, Any] | None:
        """Return what a conversation has before `part`, its end; None where there is nothing."""
        messages, kept = list(example["messages"]), list(part["messages"])
        opening = messages[:1] if messages[0]["role"] == "system" else []
        before = messages[len(opening) : len(messages) - len(kept) + len(opening)]
        return {**example, "messages": [*opening, *before]} if before else None

    def shown(self, example: Example) -> str:
        """Return in one text what an example asks, for people."""
        if self.name == "chat":
            turns = self.without_target(example)["messages"]
            return turns[-1]["content"] if len(turns) == 1 else "\n".join(f"{t['role']}: {t['content']}" for t in turns)
        first = next((role for role in (self.asked, "text", "prompt") if role in example), self.target)
        return str(example.get(first, ""))


# ---- from cells to roles --------------------------------------------------------------------------------------------


def _text(row: Mapping[str, Any], role: str) -> str:
    value = row.get(role)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise Missing(f"empty {role}")
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{role} is {_kind(value)}, and a text is needed there")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def _texts(*roles: str, optional: Sequence[str] = ()) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(row: dict[str, Any]) -> dict[str, Any]:
        found = {role: _text(row, role) for role in roles if role in row}
        for role in optional:
            if row.get(role) not in (None, ""):
                found[role] = _text(row, role)
        return found

    return read


def _with_references(target: str, *others: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Read texts, and a target that may be a list of accepted texts, of which the first is learnt."""

    def read(row: dict[str, Any]) -> dict[str, Any]:
        found = {role: _text(row, role) for role in others if role in row}
        accepted = _references(row.get(target), target)
        found[target] = accepted[0]
        if len(accepted) > 1:
            found["references"] = accepted  # type: ignore[assignment]
        return found

    return read


def _references(value: Any, role: str) -> list[str]:
    value = parsed(value)
    if isinstance(value, Mapping):  # SQuAD: {"text": [...], "answer_start": [...]}
        value = value.get("text", value.get("value"))
    listed = [_text_in(each) for each in (value if isinstance(value, list) else [value])]
    found = list(dict.fromkeys(_text({role: each}, role) for each in listed if each is not None and each != ""))
    if not found:
        raise Missing(f"empty {role}")
    return found


def _question(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"question": _text(row, "question")}
    if row.get("context") not in (None, ""):
        found["context"] = _text(row, "context")
    if "choices" not in row:
        return {**found, **_with_references("answer")(row)}
    choices, names = choices_of(row["choices"])
    found["choices"] = [each for each in choices if each]
    found["answer"] = choices[_right(row.get("answer"), choices, names, row.get("counted_from"))]
    return found


def _text_in(answer: Any) -> Any:
    """Return the text of an answer that is told with its place: {"text": …, "answer_start": …}."""
    return answer["text"] if isinstance(answer, Mapping) and isinstance(answer.get("text"), str) else answer


def choices_of(value: Any) -> tuple[list[str], list[str]]:
    """Return the choices, "" for an empty one, and what they are called: "A", "B", … unless the table says more."""
    value = parsed(value)
    names: list[str] = []
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # ARC: {"text": [...], "label": [...]}
        names = [str(each) for each in value.get("label") or ()]
        value = value["text"]
    elif isinstance(value, Mapping):  # MedQA: {"A": …, "B": …}
        names, value = list(value), list(value.values())
    elif isinstance(value, str) and value.strip():
        value = [each for each in value.splitlines() if each.strip()]
        if len(value) < 2:
            raise DataError(
                f'choices are {value[0][:60]!r}, and a list is needed, as in ["yes", "no"], a line for each, or a '
                "column for each. To do without them, name the others, as in `columns: {question: …, answer: …}`"
            )
    choices = ["" if each is None or each != each else str(each).strip() for each in value or ()]
    if sum(map(bool, choices)) < 2:
        raise Missing("fewer than two choices")
    return choices, names if len(names) == len(choices) else [chr(ord("A") + at) for at in range(len(choices))]


def _called(said: str, choices: list[str], names: list[str]) -> int | None:
    """Return the place of the choice that is called so, by its text or its name."""
    lower = [each.lower() for each in names]
    return next((known.index(said) for known in (choices, names, lower) if said and said in known), None)


def counted_from(rows: Iterable[Mapping[str, Any]]) -> int | None:
    """Return whether answers that are numbers count their choices from 0 or from 1; None where no row makes it sure."""
    last = False
    for row in rows:
        try:
            choices, names = choices_of(row["choices"])
        except (Missing, DataError):  # told when the row is read
            continue
        said = str(row.get("answer")).strip().removesuffix(".0")
        if _called(said, choices, names) is None and said.isdecimal():
            if int(said) == 0:
                return 0
            last = last or int(said) == len(choices)
    return 1 if last else None


def _right(answer: Any, choices: list[str], names: list[str], first: int | None) -> int:
    """Return the place of the right choice; an answer that is its number counts from `first`."""
    if answer is None or answer != answer or str(answer).strip() == "":
        raise Missing("empty answer")
    said = str(answer).strip()
    at = _called(said, choices, names)
    number = said.removesuffix(".0")
    if at is None and number.isdecimal() and not names[0].isdecimal() and int(number) <= len(choices):
        if first is None:
            raise DataError(
                f"the answer {said} is a number, and no row shows whether they count from 0 or from 1. Give the "
                "answers' texts or letters"
            )
        at = int(number) - first
    if at is not None and 0 <= at < len(choices) and choices[at]:
        return at
    raise DataError(
        f"the answer {said[:40]!r} is none of the choices: {', '.join(filter(None, choices))[:120]}. Give its text, "
        f"its letter, or its place from {first or 0}"
    )


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    if "messages" not in row:
        texts = {role: _text(row, role) for role in ("instruction", "output")}
        given = row.get("input")
        given = "" if given is None or given != given else str(given)
        return {"messages": templates.messages_of_instruction({**texts, "input": given})}
    value = parsed(row["messages"])
    if value is None or value == []:
        raise Missing("no messages")
    messages = messages_of(value)
    if messages is None:
        raise DataError(wrong_turn(value))
    for number, (turn, given) in enumerate(zip(messages, value, strict=True), 1):
        calls = given.get("tool_calls") or given.get("function_call")
        if turn["role"] in TOOLS or calls:
            raise DataError(
                f"turn {number} of a conversation {'calls a tool' if calls else 'is of ' + repr(turn['role'])}, and "
                "only texts of system, user and assistant can be learnt. Leave out the rows that use tools, or write "
                "what a tool says into the user's turn"
            )
    while messages and messages[-1]["role"] != "assistant":  # nobody answers these
        messages.pop()
    if not messages:
        raise Missing("no answer of the assistant")
    chat_templates.check(messages)
    if any(turn["role"] == "assistant" and not turn["content"].strip() for turn in messages):
        raise Missing("an empty turn of the assistant")
    return {"messages": messages}


def wrong_turn(value: Any) -> str:
    """Say what keeps `value` from being a conversation: its first turn without a role or a text."""
    for number, turn in enumerate(value if isinstance(value, list) else (), 1):
        if messages_of([turn]) is None:
            tools = ". Tool calls cannot be learnt: leave out rows that have some" if "tool_calls" in str(turn) else ""
            return (
                f"turn {number} of a conversation is {str(turn)[:60]}, and needs a role and a text, as in "
                f"{{role: user, content: Hello}}{tools}"
            )
    return "messages are no list of turns, as in [{role: user, content: Hello}, …]"


def _code(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"code": _text(row, "code")}
    found |= {role: _text(row, role) for role in ("prompt", "text") if role in row}
    tests = parsed(row.get("tests"))
    if tests is not None and tests == tests and tests != "":
        found["tests"] = "\n".join(map(str, tests)) if isinstance(tests, list) else str(tests)
    if row.get("entry_point"):
        found["entry_point"] = str(row["entry_point"])
    return found


# ---- from roles to segments -----------------------------------------------------------------------------------------

Plain = Callable[[Example], list[Segment]]


def _one(plain: Plain) -> SegmentsOf:
    return lambda example, facts, tokenizer: [plain(example)]


def _asks(plain: Plain, target: str) -> PromptOf:
    return lambda example, facts, tokenizer: plain({k: v for k, v in example.items() if k != target})


def _continued(example: Example, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> list[list[Segment]]:
    if "text" in example:
        return [templates.text(example)]
    return [templates.completion(example, facts.get("joint", ""))]


def _beginning(example: Example, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    if facts.get("joint") is None:  # a style was learnt from whole texts
        return templates.text({"prompt": example.get("prompt", "")})
    return templates.completion({"prompt": example.get("prompt", "")}, facts["joint"])


def _programmed(example: Example, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> list[list[Segment]]:
    return [templates.code_generation(example, line_asked=facts.get("line") == "asked")]


def _begun(example: Example, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    return _programmed({**example, "code": None}, facts, tokenizer)[0]


def _talk(example: Example, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> list[list[Segment]]:
    return chat_templates.conversation(tokenizer, example["messages"])


def _asked_in_talk(example: Example, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    messages = example["messages"]
    return chat_templates.question(tokenizer, messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def _roles(*names: str) -> frozenset[str]:
    return frozenset(names)


TASKS: dict[str, WritingTask] = {
    task.name: task
    for task in (
        WritingTask(
            "text-generation",
            ((_roles("text"), _roles()), (_roles("prompt", "completion"), _roles())),
            "prompt", "completion", _continued, _beginning, ("rougeL", "exact_match"), 64, False, (),
            _texts("text", "prompt", "completion"),
        ),
        WritingTask(
            "chat",
            ((_roles("messages"), _roles()), (_roles("instruction", "output"), _roles("input"))),
            "instruction", "output", _talk, _asked_in_talk, ("rougeL", "chrf"), 128, False, ("\n<|",), _conversation,
        ),
        WritingTask(
            "summarization",
            ((_roles("document", "summary"), _roles()),),
            "document", "summary", _one(templates.summarization), _asks(templates.summarization, "summary"),
            ("rougeL", "rouge1", "rouge2"), 96, True, ("\n",), _with_references("summary", "document"),
        ),
        WritingTask(
            "question-answering",
            ((_roles("question", "answer"), _roles("context", "choices")),),
            "question", "answer", _one(templates.question_answering), _asks(templates.question_answering, "answer"),
            ("f1", "exact_match"), 48, True, ("\n",), _question,
        ),
        WritingTask(
            "translation",
            ((_roles("source", "target"), _roles()),),
            "source", "target", _one(templates.translation), _asks(templates.translation, "target"),
            ("chrf", "bleu"), 96, True, ("\n",), _with_references("target", "source"),
        ),
        WritingTask(
            "code-generation",
            ((_roles("prompt", "code"), _roles("tests", "entry_point")),
             (_roles("text", "code"), _roles("tests", "entry_point"))),
            "text", "code", _programmed, _begun,
            ("chrf", "exact_match"), 192, True, ("\n# ", "\nif __name__", "\nprint("), _code,
        ),
    )
}  # fmt: skip
