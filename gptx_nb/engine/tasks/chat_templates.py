"""Conversations as segments, written by the model's own chat template, or by one that is chosen for a base model.

A template is a text in Jinja that is kept with the tokenizer, so that whoever loads the model writes conversations as
it has learnt them. What people wrote in a conversation never becomes one of the template's special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from gptx_nb.engine.tasks.templates import END, Segment
from gptx_nb.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]

# OpenAI's ChatML, for models whose vocabulary has its marks.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Zephyr's (Tunstall et al. 2023, arXiv:2310.16944): marks that are spelled, the model's own end token behind answers.
SPELLED = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CHATML_MARKS = {"<|im_start|>", "<|im_end|>"}
NAMED = {"chatml": CHATML, "zephyr": SPELLED}
_HELD = re.compile("\ue000(\\d+)\ue001")  # stands for a special token that someone has typed


def choose(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Give `tokenizer` a chat template if it has none; return a name for it and the reason, both to be shown."""
    if tokenizer.chat_template:
        return "the model's own", "it was tuned with it"
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) >= CHATML_MARKS:
        tokenizer.chat_template = CHATML
        return "ChatML", "the base model has no chat template, and its vocabulary has ChatML's marks"
    tokenizer.chat_template = SPELLED
    return (
        "<|user|> … <|assistant|> …",
        f"the base model has no chat template; an answer ends with {tokenizer.eos_token}",
    )


def told(tokenizer: PreTrainedTokenizerBase, asked: str | None = None) -> str:
    """Give `tokenizer` the template that is `asked` for, or choose as `choose` does; return which and why, in words.

    Raises DataError for a template that is none, leaves out what is said, or needs marks that the vocabulary lacks.
    """
    if asked is None:
        return "chat template: {} ({})".format(*choose(tokenizer))
    if asked == "chatml" and not set(tokenizer.get_vocab()) >= CHATML_MARKS:
        raise DataError(
            f"chat_template: the model's vocabulary has no {' and '.join(sorted(CHATML_MARKS)[::-1])}, which chatml "
            "writes. Type `chat_template: zephyr`"
        )
    tokenizer.chat_template = NAMED.get(asked, asked)
    said = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "It is."}]
    try:
        example = conversation(tokenizer, said)[0]
    except (DataError, ModelError) as error:
        reason = str(error).partition("does not take a conversation: ")[2].partition(". Change what it refuses")[0]
        why = reason or str(error).partition(". Type another")[0]
        raise DataError(f"chat_template: {why}. Correct it, or type `chat_template: zephyr`") from None
    for turn in said:
        if turn["content"] not in "".join(each.text for each in example):
            raise DataError(
                f"chat_template: it leaves out what the {turn['role']} says. Write `message['content']` for each of "
                "`messages`"
            )
    if not "".join(each.text for each in example if each.target).lstrip().startswith(said[1]["content"]):
        raise DataError(
            "chat_template: what it writes before an answer is missing where one is asked for. End it with "
            "{% if add_generation_prompt %}, what stands before an answer, and {% endif %}"
        )
    name = asked if asked in NAMED else "a text of its own"
    lost = "; it leaves out what a system message says" if _loses_system(tokenizer, said) else ""
    return f"chat template: {name} (asked for in the recipe; the base model is asked in it, too){lost}"


def _loses_system(tokenizer: PreTrainedTokenizerBase, said: Messages) -> bool:
    rule = {"role": "system", "content": "Be brief."}
    try:
        example = conversation(tokenizer, [rule, *said])[0]
    except DataError:
        return False  # it refuses one, and says so where there is one
    return rule["content"] not in "".join(each.text for each in example)


def check(messages: Any, asked: bool = False) -> None:
    """Raise DataError unless `messages` are turns of user and assistant by turns, with a system message at most first.

    The last is the assistant's, or where an answer is `asked` for, the user's.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError("a conversation is a list of turns, as in [{role: user, content: Hello}, …], and this is none")
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or "role" not in turn:
            raise DataError(f"turn {number} of a conversation is no pair of role and content: {str(turn)[:60]}")
    roles = [turn["role"] for turn in messages]
    talk = roles[1:] if roles[0] == "system" else roles
    for number, role in enumerate(talk, 1 + len(roles) - len(talk)):
        wanted = "user" if (number - len(roles) + len(talk)) % 2 else "assistant"
        if role != wanted:
            first = number == 1 + len(roles) - len(talk)
            mend = "Leave that turn out" if first and role == "assistant" else "Join turns of the same speaker"
            raise DataError(
                f"turn {number} of a conversation is of {str(role)[:40]!r}, and {wanted!r} is due: user and assistant "
                f"speak by turns, the user first, after one system message at most. {mend}"
            )
    if not talk or (talk[-1] == "user") != asked:
        wanted, got = ("user", "assistant") if asked else ("assistant", "user")
        mend = "Leave that turn out" if asked or talk[:-1] else "Add the answer, or leave the row out"
        raise DataError(f"the last turn of a conversation is of the {got}, and the {wanted}'s is needed there. {mend}")


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[list[Segment]]:
    """Return a conversation as examples whose targets are the assistant's turns, each with its end token.

    That is one example, unless the template writes earlier turns otherwise once others follow (some leave out earlier
    thoughts): then one for each of the assistant's turns.
    """
    examples, _ = _read(_Held(tokenizer, messages), [at for at, each in enumerate(messages) if _answers(each)])
    return examples


def question(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[Segment]:
    """Return the prompt that asks for the answer to the last of `messages`, for `Encoder.prompt`.

    Earlier answers are pieces of their own here too, so that they have the tokens that they had in training.
    """
    held = _Held(tokenizer, messages)
    earlier, known = _read(held, [at for at, each in enumerate(messages) if _answers(each)])
    asked = held.written(len(messages), asking=True)
    if len(earlier) == 1 and asked.startswith(known):
        return [*earlier[0], *held.segments(asked[len(known) :])]
    return held.segments(asked)


def _answers(turn: dict[str, str]) -> bool:
    return turn["role"] == "assistant"


def _read(held: _Held, answers: list[int]) -> tuple[list[list[Segment]], str]:
    """Return the examples up to the last of `answers` (places among the messages), and the text that they stand for."""
    befores = [held.written(at, asking=True) for at in answers]
    afters = [held.written(at + 1, asking=False) for at in answers]
    for before, after in zip(befores, afters, strict=True):
        if not after.startswith(before):
            raise DataError(
                "the model's chat template writes an answer otherwise than it asks for one, so it cannot be learnt "
                "from. Type another `chat_template:`, as in `chat_template: zephyr`, or choose another base model"
            )
    together = all(before.startswith(after) for after, before in zip(afters, befores[1:], strict=False))
    parts = []
    for number, (before, after) in enumerate(zip(befores, afters, strict=True)):
        known = afters[number - 1] if together and number else ""
        parts.append([*held.segments(before[len(known) :]), *_target(held, after[len(before) :])])
    whole = [[each for part in parts for each in part]] if together else parts
    return whole, afters[-1] if afters else ""


def _target(held: _Held, text: str) -> list[Segment]:
    """Return an answer as it was written: up to its last special token, which ends it, and what follows that."""
    ends = [match.end() for match in held.special.finditer(text)]
    if not ends:  # the template has no end token: the model's own is put there
        return [*held.segments(text.rstrip("\n"), target=True), END, *held.segments(text[len(text.rstrip("\n")) :])]
    return [*held.segments(text[: ends[-1]], target=True), *held.segments(text[ends[-1] :])]


def end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens at which an answer ends: the end token, and the one that the chat template ends a turn with."""
    found = {tokenizer.eos_token_id}
    example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for segment in conversation(tokenizer, example)[0]:
        marks = _special(tokenizer).findall(segment.text) if segment.target else []
        found |= {tokenizer.convert_tokens_to_ids(mark) for mark in marks[-1:]}
    return {each for each in found if each is not None}


class _Held:
    """Messages whose special tokens, where someone has typed such, are held back while the template writes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> None:
        self.special = _special(tokenizer)
        self._typed: list[str] = []
        self._tokenizer = tokenizer
        self._messages = [{**turn, "content": self._hold(turn["content"])} for turn in messages]

    def written(self, turns: int, *, asking: bool) -> str:
        """Return the first `turns` messages as the template writes them, `asking` for an answer or not."""
        try:
            written = self._tokenizer.apply_chat_template(
                self._messages[:turns], tokenize=False, add_generation_prompt=asking
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:160].rstrip(".!")
            raise DataError(
                f"the model's chat template does not take a conversation: {reason}. Change what it refuses (often a "
                "system message), or type another `chat_template:`, as in `chat_template: zephyr`, or choose another "
                "base model"
            ) from None
        return str(written)

    def segments(self, text: str, target: bool = False) -> list[Segment]:
        """Return `text` of the template, what is held back put in its place as spelled text."""
        parts = []
        for number, part in enumerate(_HELD.split(text)):
            typed = number % 2 == 1
            if part:
                parts.append(Segment(self._typed[int(part)] if typed else part, target=target, special=not typed))
        return parts

    def _hold(self, content: str) -> str:
        def hold(match: re.Match[str]) -> str:
            self._typed.append(match[0])
            return f"\ue000{len(self._typed) - 1}\ue001"

        return re.sub(f"{_HELD.pattern}|{self.special.pattern}", hold, content)


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    known |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(re.escape(each) for each in sorted(known, key=len, reverse=True)) or r"(?!)")
