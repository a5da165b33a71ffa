"""Which examples of a table a model that writes is shown with their answers, and how that is said.

They are drawn by a seed from equal parts of the table, as rows that stand together are often alike, and rows that would
fill what the model sees are passed over. Shots of a classifier are `head_start.one_of_each`. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.writer import Writer

MOST_TRIED = 32  # rows of a part whose length is looked at
MOST_NAMED = 12


@dataclass(frozen=True)
class Shots:
    """The `places` of the examples that are shown, in the table's order, and how they were found."""

    places: list[int]
    seed: int
    passed: int  # rows that were drawn, and are too long

    def told(self, rows: Sequence[int], source: str = "") -> str:
        """Say which they are by their `rows` (from 1; 0 where that is not known)."""
        of = f" of {source}" if source else ""
        which = f"{_listed(rows)}{of}" if all(rows) else f"{len(rows):,} rows{of}"
        longer = "1 longer row was" if self.passed == 1 else f"{self.passed:,} longer rows were"
        return f"{which}, drawn from equal parts of the table by seed {self.seed}" + (
            f"; {longer} passed over" if self.passed else ""
        )


def draw(writer: Writer, examples: Sequence[Example], count: int, seed: int) -> Shots:
    """Return `count` of `examples`, of which there are as many, that `writer` is to be shown.

    Together they take at most half of what it sees, where a part of the table has a row so short; else its shortest.
    Raises DataError where a chat template does not take one.
    """
    random = np.random.default_rng((seed, 7))
    places, passed = [], 0
    for part in range(count):
        begin, end = (len(examples) * edge // count for edge in (part, part + 1))
        sizes: dict[int, int] = {}
        for place in (begin + random.permutation(end - begin)[:MOST_TRIED]).tolist():
            sizes[place] = writer.size_shown(examples[place])
            if 2 * count * sizes[place] <= writer.context:
                break
        best = min(sizes, key=lambda place: sizes[place])
        places.append(best)
        passed += sum(size > sizes[best] for size in sizes.values())
    return Shots(places, seed, passed)


def _listed(rows: Sequence[int]) -> str:
    named = [f"{row:,}" for row in rows[:MOST_NAMED]]
    if len(rows) == 1:
        return f"row {named[0]}"
    if len(rows) > MOST_NAMED:
        return f"rows {', '.join(named)} and {len(rows) - MOST_NAMED:,} more"
    return f"rows {', '.join(named[:-1])} and {named[-1]}"
