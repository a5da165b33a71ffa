"""What a recipe that sets nothing trains with: one table by tuning method, and where each row was measured.

`plan.py` takes learning rate, batch and number of steps from here. The source of a row is `benchmarks/defaults.py`, run
as it says; "not swept" means that the row is an older choice which no sweep has confirmed yet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Default:
    """How a part of a model is trained.

    `rate` is the peak learning rate at batches of 16. Where `by_size`, that is for a model of a million parameters, and
    falls with the root of their number. It grows with the root of the batch where `by_batch`. A small set is gone
    through until `steps` are done.
    """

    rate: float
    by_size: bool
    by_batch: bool
    steps: int
    source: str


DEFAULTS = {
    "full": Default(1.2e-3, True, True, 60, "batch 64 at 8e-5 against 16 at 2e-5 on 2,000 of SST-2, smollm2-135m"),
    "lora": Default(6e-3, True, True, 60, "5e-4 on 2,000 of SST-2, smollm2-135m"),
    "top": Default(1.2e-3, True, True, 60, "not swept"),
    "head": Default(3e-3, False, False, 200, "3e-4 to 1e-2, 60 and 200 steps, on SST-2 and TREC, smollm2-135m"),
}


def of(tune: str) -> Default:
    """Return the row of a tuning method: `full`, `lora`, `head`, `top:4`."""
    return DEFAULTS[tune.partition(":")[0]]
