"""Waiting for what another process does."""

import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Wait until `true()` is; the limit is far above what it takes, as tests run on machines that do much else."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)
