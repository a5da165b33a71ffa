"""Two texts as one input: joined by a blank line, which then stands nowhere else but between them.

The training table, a prediction and an evaluation join their pairs here, so that the model sees all of them alike.
"""

from __future__ import annotations

import re

SEPARATOR = "\n\n"
_BLANK = re.compile(r"\n\s*\n")


def join(first: str, second: str) -> str:
    """Return both texts as one; blank lines within the first become plain line ends."""
    return _BLANK.sub("\n", first).strip("\n") + SEPARATOR + second.strip("\n")


def split(text: str) -> tuple[str, str] | None:
    """Return the two texts that `join` has made one; None where no blank line stands in `text`."""
    first, separator, second = text.partition(SEPARATOR)
    return (first, second) if separator else None
