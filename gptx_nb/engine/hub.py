"""Whether the Hugging Face Hub answers. Its own client tries a host that is not there for half a minute."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator


def offline() -> bool:
    """Say whether the user has forbidden the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@functools.cache
def trouble() -> str | None:
    """Say why the Hub does not answer, or None if it does. Asked once a process, and answered within five seconds.

    The Hub's own client asks, so that certificates and proxies are those of the downloads that follow.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5, follow_redirects=False)
    except Exception as error:  # the library below differs between versions of the client, and its errors with it
        return f"{constants.ENDPOINT} does not answer ({str(error) or type(error).__name__})"
    return None  # even where it does not like the question


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
