"""How a text becomes rows of tokens for a classifier: cut, its head and tail, or windows over all of it.

    cut         the first tokens
    head+tail   the first quarter and the last three (Sun et al. 2019, arXiv:1905.05583: 128 and 382 of 512)
    windows     all of it, in rows that overlap; the mean of their logits is the text's, in training as in prediction

Of a pair of texts the longer one is cut, so that the second is never lost behind the first. Text never becomes a
special token: a review that says "<|endoftext|>" is spelled, else it would read as padding. What is decided here is
saved with the model, so that a prediction reads as training did.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gptx_nb import files, text_pairs
from gptx_nb.engine.ragged import Ragged
from gptx_nb.inference import CLASSIFIER_FILE

CHARACTERS_A_TOKEN = 40  # at most; a book need not become tokens to be cut to a page
HEAD = 0.25  # of a row, where head and tail are read
STRIDE = 0.75  # of a row, from the beginning of a window to the next one's
AT_ONCE = 1000  # texts; what the tokenizer knows of each, for a moment, takes ten times its tokens
MOST_WINDOWS = 32  # of a text, all of which are computed together; what is beyond is cut, and counted


@dataclass(frozen=True)
class Reading:
    """At most `max_length` tokens a row. `stride` is in tokens; `pair`: two texts that `text_pairs` has joined."""

    max_length: int
    way: Literal["cut", "head+tail", "windows"] = "cut"
    stride: int | None = None
    pair: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_folder(cls, folder: Path, max_length: int) -> Reading:
        """Return how the classifier in `folder` reads; a plain one sees the first `max_length` tokens."""
        told = (files.read_json(folder / CLASSIFIER_FILE) or {}).get("reading") or {}
        return cls(**{**told, "max_length": min(max_length, told.get("max_length", max_length))})

    @property
    def step(self) -> int:
        """Tokens from the beginning of a window to that of the next."""
        return min(self.stride or max(1, int(self.max_length * STRIDE)), self.max_length)

    def cost(self, rows: TokenRows, cut: int, uncut: int, held: TokenRows | None = None) -> dict[str, str] | None:
        """Return what the plan says of long texts: how they are read, and what that costs; None where there are none.

        `cut` texts were not read whole; all of them would have about `uncut` tokens. `held` are rows held back.
        """
        parts = (rows, held if held is not None else TokenRows())
        windows = np.concatenate([part.windows_each for part in parts])
        longer = int((windows > 1).sum()) if self.way == "windows" else cut
        if not longer:
            return None
        tokens = sum(int(part.lengths.sum()) for part in parts)
        what = f"{longer:,} of {len(windows):,} texts are longer than {self.max_length:,} tokens"
        if self.way == "windows":
            number = int(windows[windows > 1].sum())
            times = tokens / max(1, sum(len(windows_of(row)[0]) for part in parts for row in part))
            left = f"; of {cut:,} only the first {MOST_WINDOWS} windows are read" if cut else ""
            what += f", and are read in {number:,} windows, {self.step:,} tokens from one to the next{left}"
            return {
                "choice": self.way,
                "reason": f"{what}: {times:.1f} times the tokens, and about the time, of cutting",
            }
        times = (tokens + max(0, uncut - tokens) / STRIDE) / max(1, tokens)
        read = "the pair's longer text is" if self.pair else "the rest is" if self.way == "cut" else "their middle is"
        more = (
            "" if self.pair else f". `long_texts: windows` reads all, for about {times:.1f} times the tokens and time"
        )
        return {"choice": self.way, "reason": f"{what}; {read} cut{more}"}


@dataclass(frozen=True)
class Windowed:
    """A text in several rows; its length is that of all of them."""

    windows: list[list[int]]

    def __len__(self) -> int:
        return sum(map(len, self.windows))


Row = list[int] | Windowed


class TokenRows(Sequence[Row]):
    """A row a text, in little memory: `windows` of all texts, one after another, and where each text's begin."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.windows = Ragged()
        self._starts: array[int] | None = None  # None: each text is one window
        for row in rows:
            self.append(row)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> TokenRows:
        """Return `rows` themselves where they are such already."""
        return rows if isinstance(rows, TokenRows) else cls(rows)

    def append(self, row: Row) -> None:
        """Put `row` behind the others."""
        windows = windows_of(row)
        if len(windows) != 1 and self._starts is None:
            self._starts = array("Q", range(len(self.windows) + 1))
        for window in windows:
            self.windows.append(window)
        if self._starts is not None:
            self._starts.append(len(self.windows))

    @property
    def starts(self) -> np.ndarray:
        """int64 (texts + 1,): which of all windows is each text's first."""
        return np.arange(len(self) + 1) if self._starts is None else np.array(self._starts, dtype=np.int64)

    @property
    def windows_each(self) -> np.ndarray:
        """int64 (texts,): how many windows each text has."""
        return np.diff(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """int64 (texts,): tokens of each text, those of all its windows."""
        ends = np.concatenate([[0], np.cumsum(self.windows.lengths)])
        return np.diff(ends[self.starts])

    @property
    def nbytes(self) -> int:
        """What the rows take, in bytes (see Ragged)."""
        return self.windows.nbytes + (0 if self._starts is None else 8 * len(self._starts))

    def renumbered(self, tokens: Callable[[list[int]], list[int]]) -> TokenRows:
        """Return the same rows with other numbers for their tokens, which `tokens` knows."""
        return TokenRows(renumbered(row, tokens) for row in self)

    def __len__(self) -> int:
        return len(self.windows) if self._starts is None else len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        if self._starts is None:
            return self.windows[index]
        at = range(len(self))[index]
        windows = self.windows[self._starts[at] : self._starts[at + 1]]
        return windows[0] if len(windows) == 1 else Windowed(windows)

    def __iter__(self) -> Iterator[Row]:
        return (self[at] for at in range(len(self)))


@dataclass(frozen=True)
class Rows:
    """A row a text; the places of the texts that were cut, and about how many `tokens` all have uncut."""

    rows: TokenRows
    cut_at: list[int]
    tokens: int


def windows_of(row: Row) -> list[list[int]]:
    """Return the rows of tokens that a text is computed in."""
    return row.windows if isinstance(row, Windowed) else [row]


def flat(rows: Sequence[Row]) -> list[list[int]]:
    """Return the windows of all texts, one after another."""
    return [window for row in rows for window in windows_of(row)]


def renumbered(row: Row, tokens: Callable[[list[int]], list[int]]) -> Row:
    """Return a row with other numbers for its tokens, which `tokens` knows."""
    return Windowed([tokens(window) for window in row.windows]) if isinstance(row, Windowed) else tokens(row)


def places(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return what `pooled` needs: int64 {"text_of" (windows,): each window's text; "windows" (texts,): their numbers}.

    Nothing where each text is one window.
    """
    if not any(isinstance(row, Windowed) for row in rows):
        return {}
    windows = torch.tensor([len(windows_of(row)) for row in rows])
    return {"text_of": torch.repeat_interleave(torch.arange(len(rows)), windows), "windows": windows}


def pooled(logits: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits (texts, labels), each the mean over its windows, of `logits` (all windows, labels)."""
    if "windows" not in tensors:
        return logits
    windows = tensors["windows"]
    sums = logits.new_zeros(len(windows), logits.shape[1]).index_add(0, tensors["text_of"], logits)
    return sums / windows[:, None].to(logits.dtype)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], reading: Reading) -> Rows:
    """Return each text's tokens, as `reading` has them read."""
    before, after = _framed(tokenizer)
    room = max(1, reading.max_length - len(before) - len(after))
    rows = TokenRows()
    cut_at: list[int] = []
    tokens = 0
    for at, (text, ids) in enumerate(zip(texts, _spelled(tokenizer, texts, reading, room), strict=True)):
        longer = len(text) > len(ids.read)
        length = round(len(ids.ids) * len(text) / len(ids.read)) if longer else len(ids.ids)
        tokens += length + len(before) + len(after)
        if len(ids.ids) <= room and not longer:
            rows.append([*before, *ids.ids, *after])
            continue
        found, whole = parts(tokenizer, text, ids.ids, longer, room, reading)
        cut_at += [] if whole else [at]
        rows.append(in_frame(before, found, after))
    return Rows(rows, cut_at, tokens)


def in_frame(before: list[int], parts: Sequence[list[int]], after: list[int]) -> Row:
    """Return the row of a text's `parts`, each between the tokens `before` and `after`."""
    framed = [[*before, *part, *after] for part in parts]
    return framed[0] if len(framed) == 1 else Windowed(framed)


@dataclass(frozen=True)
class _Spelled:
    """The tokens of as much of a text as may be read, and that part."""

    ids: list[int]
    read: str


def readable(text: str, reading: Reading, room: int) -> str:
    """Return as much of `text` as may be read in rows that have `room` tokens for it."""
    most = room + (MOST_WINDOWS - 1) * reading.step if reading.way == "windows" else room
    limit = most * CHARACTERS_A_TOKEN
    if reading.way == "head+tail" and len(text) > 2 * limit:
        return text[:limit] + text[-limit:]
    return text if reading.way == "head+tail" or reading.pair else text[:limit]


def _spelled(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], reading: Reading, room: int
) -> Iterator[_Spelled]:
    for at in range(0, len(texts), AT_ONCE):
        read = [readable(text, reading, room) for text in texts[at : at + AT_ONCE]]
        yield from map(_Spelled, _ids(tokenizer, read), read)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, truncation=False, verbose=False
    )["input_ids"]
    return found


def _framed(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and behind a text."""
    whole = tokenizer("a", split_special_tokens=True, verbose=False)["input_ids"]
    bare = _ids(tokenizer, ["a"])[0]
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []


def parts(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], longer: bool, room: int, reading: Reading
) -> tuple[list[list[int]], bool]:
    """Return the rows of a text that is longer than `room` tokens, and whether nothing of it was left out."""
    if reading.pair and (both := text_pairs.split(text)) is not None:
        return [_pair(tokenizer, *both, room)], False
    if reading.way == "head+tail":
        head = max(1, int(room * HEAD))
        return [[*ids[:head], *ids[len(ids) - (room - head) :]]], False
    if reading.way == "cut":
        return [ids[:room]], False
    starts = list(range(0, len(ids) - room + reading.step, reading.step))
    kept = starts[:MOST_WINDOWS]
    # The last window ends where the text does, so that none is a short one.
    parts = [ids[at : at + room] for at in (min(start, max(0, len(ids) - room)) for start in kept)]
    return parts, len(kept) == len(starts) and not longer


def _pair(tokenizer: PreTrainedTokenizerBase, first: str, second: str, room: int) -> list[int]:
    """Return both texts' tokens, of which the longer one's are cut first; the blank line belongs to the second."""
    limit = room * CHARACTERS_A_TOKEN
    one, other = _ids(tokenizer, [first[:limit], text_pairs.SEPARATOR + second[:limit]])
    fewer = min(len(one), len(other), room // 2)
    left = min(len(one), max(fewer, room - len(other)))
    return [*one[:left], *other[: room - left]]
