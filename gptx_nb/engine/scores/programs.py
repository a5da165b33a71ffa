"""Scores of written programs: how often one of k passes its tests. It runs nothing (`sandbox` does)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptx_nb.engine.scores.intervals import Score, mean
from gptx_nb.errors import UsageError


def pass_at(k: int, passed: Sequence[Sequence[bool]]) -> Score:
    """Return pass@k: how likely one of `k` programs for a problem passes, mean over problems.

    `passed` has a list for each problem: which of its n programs passed. The estimate is without bias (Chen et al.
    2021, arXiv:2107.03374): 1 - C(n - c, k) / C(n, k), for c that passed.
    Raises UsageError where a problem has fewer than k programs.
    """
    if k < 1:
        raise UsageError(f"pass@{k} is not defined. Ask for k of 1 or more")
    fewest = min(map(len, passed), default=k)
    if fewest < k:
        raise UsageError(
            f"pass@{k} needs at least {k} programs for each problem, and one has {fewest}. Ask for more answers, as in "
            f"`n: {k}`, or for pass@{fewest}"
        )
    return mean([_pass_at(k, len(each), sum(each)) for each in passed], f"pass@{k}, unbiased estimator")


def _pass_at(k: int, programs: int, right: int) -> float:
    """Return 1 - C(programs - right, k) / C(programs, k) as a product, which does not overflow."""
    if programs - right < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(programs - right + 1, programs + 1)))
