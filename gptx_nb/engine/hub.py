"""Whether the Hugging Face Hub answers. Its own client tries a host that is not there for half a minute."""

from __future__ import annotations

import contextlib
import functools
import os
import urllib.error
import urllib.request
from collections.abc import Iterator


def offline() -> bool:
    """Say whether the user has forbidden the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@functools.cache
def trouble() -> str | None:
    """Say why the Hub does not answer, or None if it does. Asked once a process, and answered within five seconds."""
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return None
    except urllib.error.HTTPError:
        return None  # it is there, and does not like the question
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{constants.ENDPOINT} does not answer ({reason})"


@contextlib.contextmanager
def only_cached_without_answer() -> Iterator[None]:
    """Let `datasets` look into its cache only where the Hub does not answer."""
    import datasets
    from huggingface_hub import constants

    if offline() or trouble() is None:
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
