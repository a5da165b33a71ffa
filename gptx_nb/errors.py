"""Every error a user can meet.

    GptxError(Exception)
    ├── UsageError(ValueError)            the user's own input: one message, no traceback, exit status 2
    │   ├── RecipeError                   a setting: unknown key, wrong type, out of bounds, bad YAML
    │   ├── DataError                     a table: missing, unreadable, wrong column, too little to learn from
    │   ├── ModelError                    a base model: missing, not reachable, not a GPT
    │   ├── DeviceError                   a device that was asked for and is not there
    │   └── RunNotFound(LookupError)      no run of that name or version
    └── RunFailed(RuntimeError)           a run ended badly; names the run, the cause and the log

A `UsageError` says where it is, what was got, what fits and what to type next. Anything else is a bug and keeps its
traceback. `difflib` supplies the nearest name for a misspelt one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GptxError(Exception):
    """Base of every error that gptx_nb raises on purpose."""


class UsageError(GptxError, ValueError):
    """The user's input does not fit. The message stands alone: views show it without a traceback."""


class RecipeError(UsageError):
    """A setting is unknown, of the wrong type, out of bounds, or the YAML cannot be read."""


class DataError(UsageError):
    """A table is missing, unreadable, lacks a column, or holds too little to learn from."""


class ModelError(UsageError):
    """A base model is missing, cannot be reached, or is not a GPT."""


class DeviceError(UsageError):
    """A device was asked for that this machine does not have."""


class RunNotFound(UsageError, LookupError):
    """No run has that name or version."""


class RunFailed(GptxError, RuntimeError):
    """A run ended without a model."""


# What a worker writes into its last words, and what a view raises again from them.
BY_NAME: dict[str, type[GptxError]] = {
    kind.__name__: kind
    for kind in (UsageError, RecipeError, DataError, ModelError, DeviceError, RunNotFound, RunFailed)
}


DISK_FULL = "DiskFull"  # the error in the last words of a worker that could not write


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word nearest to `word`, or an empty text if none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
