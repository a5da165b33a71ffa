"""A context that is longer than a row, for a model that writes: windows over all of it instead of its beginning.

    question-answering   every window is asked, and the answer that is likeliest a token is given; what is learnt from
                         is the window in which the answer stands
    summarization        every window is summarised, and so are the summaries together, until they are one; what is
                         learnt from is the document's beginning

Windows overlap by a quarter, so that what one ends in the midst of stands whole in the next. Knows no model:
`engine.writer` writes and weighs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptx_nb.engine.tasks.reading import CHARACTERS_A_TOKEN, MOST_WINDOWS, STRIDE
from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.tasks.writing import LONG


@dataclass(frozen=True)
class Windows:
    """At most `max_length` tokens a row, as in training; `stride` tokens from a window to the next."""

    max_length: int
    stride: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "stride": self.stride}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Windows | None:
        """Return the windows that a model's facts tell of, if they do."""
        told = facts.get("windows")
        return None if told is None else cls(**told)


def parts(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    role: str,
    how: Windows,
    *,
    fixed: int,
) -> tuple[list[dict[str, Any]], bool]:
    """Return `example` once for each window of its `role`, and whether all of that is in them.

    `fixed` tokens of each row are for all else: what is asked, and the answer. The example itself is returned where
    its text fits, or where nothing would be left for it.
    """
    text, room = str(example[role]).strip(), how.max_length - fixed
    if room < 1:
        return [dict(example)], True
    step = min(how.stride or max(1, int(room * STRIDE)), room)
    most = room + (MOST_WINDOWS - 1) * step
    read = text[: most * CHARACTERS_A_TOKEN]
    plain: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    places = tokenizer(read, return_offsets_mapping=True, **plain)["offset_mapping"]
    if len(places) <= room and len(read) == len(text):
        return [dict(example)], True
    starts = range(0, len(places) - room + step, step)
    kept = starts[:MOST_WINDOWS]
    found = []
    for start in (min(each, max(0, len(places) - room)) for each in kept):
        end = min(start + room, len(places)) - 1
        found.append({**example, role: read[places[start][0] : places[end][1]]})
    return found, len(kept) == len(starts) and len(read) == len(text)


def with_answer(windows: Sequence[dict[str, Any]], role: str, answers: Sequence[str]) -> dict[str, Any]:
    """Return the window in which an answer stands, farthest from both of its ends; where none does, the first one."""

    def around(window: dict[str, Any]) -> int:
        text = window[role]
        places = [(text.find(answer), len(answer)) for answer in answers]
        return max((min(at, len(text) - at - size) for at, size in places if at >= 0), default=-1)

    return max(windows, key=around)


def summarised(
    split: Callable[[Example], list[dict[str, Any]]], write: Callable[[Sequence[Example]], list[str]], example: Example
) -> tuple[Example, int]:
    """Return what is left to summarise when all windows of a document have been, and how often that took a round.

    `split` gives the windows of an example, `write` summaries. A round whose summaries are no shorter than what they
    sum up is the last one: then the first window of them is left.
    """
    role, rounds = LONG["summarization"], 0
    while len(windows := split(example)) > 1:
        joined = "\n".join(each for each in write(windows) if each)
        if not joined or len(joined) >= len(str(example[role])):
            return windows[0], rounds
        example, rounds = {**example, role: joined}, rounds + 1
    return example, rounds
