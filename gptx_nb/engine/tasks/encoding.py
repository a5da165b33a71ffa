"""Segments to tokens, and which of them carry loss. What is too long is cut from the context, never from the target.

A prompt's tokens are the same whether its target follows or not: neighbouring pieces of a prompt become tokens
together, a target by itself, as a continuation. Text never becomes a special token, but for what a chat template has
written itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any, overload

import numpy as np
from transformers import PreTrainedTokenizerBase

from gptx_nb.engine.ragged import Ragged
from gptx_nb.engine.tasks.templates import Segment
from gptx_nb.errors import DataError, ModelError

# A token spells at most a few dozen characters: a book need not become tokens to be cut to a page.
_CHARACTERS_A_TOKEN = 40
# What a text may be made to continue, where a tokenizer writes a space before everything that begins.
_ANCHORS = ("\n", ":", "…", "0")


@dataclass(frozen=True)
class Encoded:
    """`ids` of an example and, for each, whether it is to be predicted. `cut` characters of its context were left out.

    The first token is never predicted: nothing stands before it.
    """

    ids: list[int]
    loss: list[bool]
    cut: int = 0

    @property
    def read(self) -> list[int]:
        """The tokens that the model has to read: all before its last target."""
        last = max((place for place, target in enumerate(self.loss) if target), default=len(self.ids))
        return self.ids[:last]

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text of the targets, without the token that ends it."""
        targets = [token for token, target in zip(self.ids, self.loss, strict=True) if target]
        return str(tokenizer.decode(targets, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class EncodedRows(Sequence[Encoded]):
    """Encoded examples in little memory: 3 bytes a token, 5 where numbers need them, and 16 an example."""

    def __init__(self, rows: Iterable[Encoded] = ()) -> None:
        self.ids = Ragged()
        self._loss = array("B")  # of all rows, one after another
        self._cut, self._read, self._targets = array("I"), array("I"), array("I")
        self.extend(rows)

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> EncodedRows:
        """Return `rows` themselves where they are such already."""
        return rows if isinstance(rows, EncodedRows) else cls(rows)

    def extend(self, rows: Iterable[Encoded]) -> None:
        """Put `rows` behind the others."""
        for row in rows:
            self.ids.append(row.ids)
            self._loss.extend(row.loss)
            self._cut.append(row.cut)
            self._read.append(len(row.read))
            self._targets.append(sum(row.loss))

    @property
    def read_lengths(self) -> np.ndarray:
        """int64 (rows,): how many tokens of each the model has to read."""
        return np.array(self._read, dtype=np.int64)

    @property
    def targets(self) -> np.ndarray:
        """int64 (rows,): how many tokens of each are to be predicted."""
        return np.array(self._targets, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """What the rows take, in bytes (see Ragged)."""
        own = (self._loss, self._cut, self._read, self._targets)
        return self.ids.nbytes + sum(each.itemsize * len(each) for each in own)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        loss = [bool(each) for each in self._loss[self.ids.bounds(index)]]
        return Encoded(self.ids[index], loss, self._cut[index])

    def __iter__(self) -> Iterator[Encoded]:
        return (self[at] for at in range(len(self)))


@dataclass(frozen=True)
class Rows:
    """The examples that fit, and the numbers of what was `cut` in its context or `left_out` for its target's length."""

    rows: list[Encoded]
    cut: int
    left_out: int


class Encoder:
    """Makes tokens of segments with one tokenizer, at most `max_length` a row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end token (eos_token), so the model could not learn where to stop")
        self.max_length = max_length
        self._tokenizer = tokenizer
        self.end_id: int = tokenizer.eos_token_id
        self.start_id: int = self.end_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._starts_itself = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._writes_space = self._spell("a") != self._after("\n", "a")

    def encode(self, segments: Sequence[Segment]) -> Encoded | None:
        """Return the tokens of an example, or None where its target and the fixed parts of its prompt do not fit."""
        return self._fit(list(segments), self.max_length)

    def prompt(self, segments: Sequence[Segment], room: int = 0) -> Encoded | None:
        """Return the tokens of a prompt, with `room` for as many new ones; None where its fixed parts do not fit.

        Earlier answers in it may be marked as targets, as they were in training; nothing carries loss here.
        """
        found = self._fit(list(segments), self.max_length - room)
        return found and replace(found, loss=[False] * len(found.ids))

    def windows(self, segments: Sequence[Segment]) -> list[Encoded]:
        """Return the tokens of a text that is all target in as many rows as it needs: nothing of it is cut.

        Rows after the first begin with the last token of the row before, which carries no loss there.
        """
        ids, loss = self._tokens(segments)
        step = self.max_length - 1
        starts = range(0, max(1, len(ids) - 1), step)
        return [Encoded(ids[at : at + self.max_length], [False, *loss[at + 1 : at + self.max_length]]) for at in starts]

    def rows(self, examples: Iterable[Sequence[Segment]], shown: str = "the table") -> Rows:
        """Return the tokens of all examples; raises DataError where no target fits and nothing would be learnt."""
        fitting, left_out, longest = [], 0, (0, 0)
        for segments in examples:
            found = self.encode(segments)
            if found is not None and any(found.loss):
                fitting.append(found)
            else:
                left_out += 1
                longest = max(longest, self._lengths(segments))
        if not fitting:
            target, fixed = longest
            raise DataError(
                f"{shown}: no example can be learnt from. Of {left_out}, the longest target has {target:,} tokens and "
                f"the rest of its prompt {fixed:,}, and a row has {self.max_length:,} at most. Set a larger "
                "`max_length:`, if the model allows it, or shorten the targets"
            )
        return Rows(fitting, sum(row.cut > 0 for row in fitting), left_out)

    def size(self, segments: Sequence[Segment]) -> int:
        """Return the number of tokens of an example of which nothing is cut."""
        return len(self._tokens(segments)[0])

    def _lengths(self, segments: Sequence[Segment]) -> tuple[int, int]:
        """Return the number of tokens of the target and of what cannot be cut besides."""
        ids, loss = self._tokens([each for each in segments if not each.cut])
        return sum(loss), len(ids) - sum(loss)

    def _fit(self, segments: list[Segment], room: int) -> Encoded | None:
        cut, asked = 0, any(each.text for each in takewhile(lambda each: not each.target, segments))
        for at, each in enumerate(segments):
            if each.cut and len(each.text) > room * _CHARACTERS_A_TOKEN:
                segments[at] = _kept(each, max(0, room * _CHARACTERS_A_TOKEN))
                cut += len(each.text) - len(segments[at].text)
        ids, loss = self._tokens(segments, asked)
        for at, each in enumerate(segments):
            while each.cut and len(ids) > room and segments[at].text:
                shorter = self._shorter(segments[at], len(ids) - room)
                cut += len(segments[at].text) - len(shorter.text)
                segments[at] = shorter
                ids, loss = self._tokens(segments, asked)
        return Encoded(ids, loss, cut) if len(ids) <= room else None

    def _shorter(self, segment: Segment, tokens: int) -> Segment:
        """Return `segment` without its last (or first) `tokens` tokens, and at least a character less."""
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        places = self._tokenizer(segment.text, return_offsets_mapping=True, **plain)["offset_mapping"]
        left = len(places) - tokens
        if left <= 0:
            return replace(segment, text="")
        size = places[left - 1][1] if segment.cut == "end" else len(segment.text) - places[tokens][0]
        return _kept(segment, min(size, len(segment.text) - 1))

    def _tokens(self, segments: Sequence[Segment], asked: bool = False) -> tuple[list[int], list[bool]]:
        """Return ids and loss. `asked`: something stood before the target, be it all cut; so it begins nothing."""
        ids: list[int] = []
        loss: list[bool] = []

        def add(tokens: list[int], target: bool) -> None:
            ids.extend(tokens)
            loss.extend([target] * len(tokens))

        pieces = [each for each in segments if each.text or each.mark]
        bare = not pieces or pieces[0].target  # the first token could not be learnt: nothing would stand before it
        if bare or (self._starts_itself and pieces[0].mark != "start" and not pieces[0].special):
            add([self.start_id], False)
        for (target, special, mark), group in groupby(pieces, lambda each: (each.target, each.special, each.mark)):
            if mark:
                add([self.start_id if mark == "start" else self.end_id], target)
                continue
            text = "".join(each.text for each in group)
            begins = not any(id != self.start_id for id in ids) and not (target and asked)
            spell = self._continued if self._writes_space and not begins else self._spell
            add(spell(text, special), target)
        return ids, loss

    def _spell(self, text: str, special: bool = False) -> list[int]:
        tokens: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )["input_ids"]
        return tokens

    def continued(self, text: str) -> list[int]:
        """Return the tokens of `text` as it continues another."""
        return self._continued(text, False) if self._writes_space else self._spell(text)

    def _continued(self, text: str, special: bool) -> list[int]:
        """Return the tokens of `text` as it continues another, without the space that would begin a text."""
        for anchor in _ANCHORS:
            if (tokens := self._after(anchor, text, special)) is not None:
                return tokens
        return self._spell(text, special)

    def _after(self, anchor: str, text: str, special: bool = False) -> list[int] | None:
        before, whole = self._spell(anchor), self._spell(anchor + text, special)
        return whole[len(before) :] if whole[: len(before)] == before else None


def _kept(segment: Segment, characters: int) -> Segment:
    kept = segment.text[:characters] if segment.cut == "end" else segment.text[len(segment.text) - characters :]
    return replace(segment, text=kept)
