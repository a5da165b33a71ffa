"""Cells of a run's snapshot, read from its Parquet file when they are asked for: a run holds none of its texts.

A file is written in groups of `ROWS_AT_ONCE` rows, of which the latest one that was read is kept. It stays open, so
that a run whose folder is removed meanwhile still reads. Knows nothing of what the cells mean.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

Cell = TypeVar("Cell")

ROWS_AT_ONCE = 512


class Stored(Sequence[Cell], Generic[Cell]):
    """The cells of the column `name` of a Parquet file; `decode` makes one of what the file holds.

    Raises OSError, ValueError (as pyarrow's errors are) or KeyError for a file without them.
    """

    def __init__(self, path: Path, name: str, decode: Callable[[Any], Cell]) -> None:
        import pyarrow.parquet as pq

        self._name, self._decode = name, decode
        self._file = pq.ParquetFile(path.open("rb"))
        if name not in self._file.schema_arrow.names:
            raise KeyError(name)
        about = self._file.metadata
        sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        self._starts: list[int] = [0, *itertools.accumulate(sizes)]
        self._latest: tuple[int, Any] = (-1, None)  # a group's number, and its cells
        self._reads = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Cell: ...
    @overload
    def __getitem__(self, index: slice) -> list[Cell]: ...
    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))
        if isinstance(index, slice):
            return [self[at] for at in places[index]]
        at = places[index]
        group = bisect_right(self._starts, at) - 1
        return self._decode(self._cells(group)[at - self._starts[group]].as_py())

    def __iter__(self) -> Iterator[Cell]:
        for group in range(len(self._starts) - 1):
            cells = self._cells(group)
            for at in range(0, len(cells), ROWS_AT_ONCE):  # older snapshots are one group
                yield from map(self._decode, cells.slice(at, ROWS_AT_ONCE).to_pylist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _cells(self, group: int) -> Any:
        with self._reads:
            if self._latest[0] != group:
                self._latest = group, self._file.read_row_group(group, columns=[self._name]).column(0)
            return self._latest[1]
