"""Rows of whole numbers, each of its own length, in little more memory than the numbers take.

As Python's lists a row of tokens takes 8 bytes a token and 56 besides; here 2 bytes a token, 4 where a number needs
them, and 8 besides. A row is a list again when it is asked for. Knows nothing of tokens or files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

_WIDER = {"B": "H", "H": "I", "I": "Q"}  # the next type of numbers, where one does not fit: 1, 2, 4, 8 bytes


class Ragged(Sequence[list[int]]):
    """Rows of numbers, none below 0; `append` is quick, and so is any row."""

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self._numbers: array[int] = array("B")
        self._ends: array[int] = array("Q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[int]) -> None:
        """Put `row` behind the others. Raises OverflowError for a number below 0."""
        while True:
            kind = self._numbers.typecode
            try:
                more: array[int] = array(kind, row)
                break
            except OverflowError:
                if kind not in _WIDER or min(row) < 0:
                    raise
                self._numbers = array(_WIDER[kind], self._numbers)
        self._numbers.extend(more)
        self._ends.append(len(self._numbers))

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,): how many numbers each row has."""
        return np.diff(np.array(self._ends, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """What the rows take, in bytes, but for what is kept free to grow into: a sixteenth."""
        return sum(each.itemsize * len(each) for each in (self._numbers, self._ends))

    def bounds(self, index: int) -> slice:
        """Return where the numbers of a row stand among all of them."""
        at = range(len(self))[index]
        return slice(self._ends[at], self._ends[at + 1])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        return self._numbers[self.bounds(index)].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
