"""Prompts: how an example of each task reads to a base model, as segments of text. It knows no tokenizer.

An example is a dict by role ("question", "answer", …). A prompt ends without a space and its target begins with one, as
words do in text that a GPT has seen: so their tokens are the same together and apart. Without its target ("answer" and
the like left out) an example gives the prompt alone, by the same code: what is learnt is what is asked later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Example = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """A piece of an example. Loss is on `target` alone.

    `cut`: where the whole is too long, this piece may lose its "end" or its "start". `special`: written by a chat
    template, so that its special tokens are meant; in all other text they are spelled. `mark`: no text, but the token
    that starts or ends a text.
    """

    text: str = ""
    target: bool = False
    cut: Literal["start", "end"] | None = None
    special: bool = False
    mark: Literal["start", "end"] | None = None


APART = "\n\n"  # what stands between examples that are shown
START = Segment(mark="start")
END = Segment(target=True, mark="end")


def _answered(prompt: list[Segment], target: Any) -> list[Segment]:
    """Return `prompt` with its target and the end token, which the model learns too, or alone where there is none."""
    return prompt if target is None else [*prompt, Segment(f" {_clean(target)}", target=True), END]


def _clean(value: Any) -> str:
    return str(value).strip()


def text(example: Example) -> list[Segment]:
    """A text to continue in its style: all of it is target, and the start token stands before it. Role: text.

    Where "prompt" is given instead, a text that begins with it is asked for.
    """
    if "text" in example:
        return [START, Segment(str(example["text"]), target=True), END]
    return [START, Segment(str(example.get("prompt", "")).rstrip(" "), cut="start")]


def completion(example: Example, joint: str = "") -> list[Segment]:
    """Roles: prompt, completion. `joint` stands between the two (see `joint_of`); both are taken as they are.

    Spaces at the prompt's end move to the target, where tokens have them.
    """
    asked = str(example["prompt"]) + joint
    prompt = [Segment(asked.rstrip(" ") or asked, cut="start")]
    spaces = asked[len(asked.rstrip(" ")) :] if asked.strip(" ") else ""
    if example.get("completion") is None:
        return prompt
    return [*prompt, Segment(spaces + str(example["completion"]), target=True), END]


def joint_of(prompts: Sequence[str], completions: Sequence[str]) -> str:
    """Return what should stand between prompts and completions: a new line, unless most bring white space there."""
    spaced = sum(asked[-1:].isspace() or given[:1].isspace() for asked, given in zip(prompts, completions, strict=True))
    return "" if 2 * spaced > len(prompts) else "\n"


def summarization(example: Example) -> list[Segment]:
    """Roles: document, summary. The prompt is GPT-2's own (Radford et al. 2019, section 3.6)."""
    document = Segment(_clean(example["document"]), cut="end")
    return _answered([document, Segment("\n\nTL;DR:")], example.get("summary"))


def question_answering(example: Example) -> list[Segment]:
    """Roles: question, answer; "context" where the answer stands in a text, "choices" where it is one of a list."""
    prompt = []
    if example.get("context") is not None:
        prompt += [Segment(_clean(example["context"]), cut="end"), Segment("\n\n")]
    asked = f"Question: {_clean(example['question'])}\n"
    if choices := example.get("choices"):
        asked += "Choices:\n" + "".join(f"- {_clean(choice)}\n" for choice in choices)
    return _answered([*prompt, Segment(asked + "Answer:")], example.get("answer"))


def translation(example: Example) -> list[Segment]:
    """Roles: source, target, and the languages "from" and "to": a code such as `fr`, or a name.

    The other direction is the same example with both pairs swapped (`reversed_translation`).
    """
    prompt = [
        Segment(f"{language(example['from'])}: "),
        Segment(_clean(example["source"]), cut="end"),
        Segment(f"\n{language(example['to'])}:"),
    ]
    return _answered(prompt, example.get("target"))


def reversed_translation(example: Example) -> dict[str, Any]:
    """Return `example` as one of the other direction."""
    swapped = {"from": "to", "to": "from", "source": "target", "target": "source"}
    return {swapped.get(role, role): value for role, value in example.items()}


def code_generation(example: Example, *, line_asked: bool = False) -> list[Segment]:
    """Roles: code, and "prompt" (the beginning of a program, kept as it is) or "text" (what it shall do, in words).

    Words become a comment, as they would stand in a program. The line end behind a program's beginning goes with the
    code, as tokens of a line end have its indentation in them; `line_asked`: it is asked, as it was until 0.5.
    """
    joint = ""
    if example.get("prompt") is not None:
        given = begun(example)
        joint = "" if line_asked else given[-1:]
        prompt = Segment(given.removesuffix(joint), cut="start")
    else:
        lines = _clean(example["text"]).splitlines() or [""]
        prompt = Segment("".join(f"# {line}\n" for line in lines), cut="end")
    if example.get("code") is None:
        return [prompt]
    return [prompt, Segment(joint + str(example["code"]).strip("\n"), target=True), END]


def begun(example: Example) -> str:
    """Return the beginning of a program that an example gives, whose last line is whole; none gives no text."""
    given = str(example.get("prompt") or "")
    return given if given.endswith("\n") or not given else given + "\n"


def messages_of_instruction(example: Example) -> list[dict[str, str]]:
    """Return roles instruction, input (may be missing or empty) and output as a conversation."""
    asked = _clean(example["instruction"])
    if given := _clean(example.get("input") or ""):
        asked += f"\n\n{given}"
    turns = [{"role": "user", "content": asked}]
    if example.get("output") is not None:
        turns.append({"role": "assistant", "content": _clean(example["output"])})
    return turns


def with_shots(shots: Sequence[Sequence[Segment]], prompt: Sequence[Segment]) -> list[Segment]:
    """Return `prompt` behind other examples with their answers, without loss on those.

    Shots are never cut: a shot that is broken off shows a wrong pattern.
    """
    before: list[Segment] = []
    for shot in shots:
        before += [replace(each, target=False, cut=None) for each in shot if each.mark is None]
        before.append(Segment(APART))
    starts = [each for each in prompt if each.mark == "start"]
    return [*starts, *before, *(each for each in prompt if each.mark != "start")]


# Names by ISO 639-1 code, in English: that is what base models have read.
LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


def language(code: str) -> str:
    """Return the English name of a language by its code (`fr`, `pt_BR`), or `code` itself with a capital."""
    plain = code.strip().lower().replace("-", "_").partition("_")[0]
    return LANGUAGES.get(plain) or code.strip()[:1].upper() + code.strip()[1:]
