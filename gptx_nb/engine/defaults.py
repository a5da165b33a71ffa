"""What a recipe that sets nothing trains with: one table by tuning method, and where each row was measured.

`plan.py` takes learning rate, warm-up, batch and number of steps from here. The source of a row is
`benchmarks/defaults.py`, whose tables are in benchmarks/results; "not swept" means that the row is an older choice that
no sweep has confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL = 50_000_000  # parameters of a model below which a classifier needs more and larger steps
MOST_EPOCHS = 30  # for `more_steps`
MANY, TIMES_FOR_MANY = 20, 2  # labels, of which each has fewer examples: from so many on, so many times `more_steps`


@dataclass(frozen=True)
class Default:
    """How a part of a model is trained.

    `rate` is the peak learning rate at batches of 16. Where `by_size`, that is for a model of a million parameters, and
    falls with the root of their number. It grows with the root of the batch where `by_batch`. Examples are gone through
    `epochs` times; a small set until `steps` are done, and on to `more_steps` (twice as many where there are MANY
    labels) in at most MOST_EPOCHS passes. A step has `batch` examples, doubled up to `most_batch` as long as an epoch
    has `steps_an_epoch` steps left. The rate rises in a share of `warmup` of all steps.
    """

    rate: float
    by_size: bool
    by_batch: bool
    steps: int
    source: str
    more_steps: int = 0
    epochs: float = 3.0
    batch: int = 16
    most_batch: int = 64
    steps_an_epoch: int = 30
    warmup: float = 0.1


DEFAULTS = {
    "full": Default(1.2e-3, True, True, 60, "SST-2 and TREC, smollm2-135m (results/defaults-smollm2-135m.md)"),
    "full, small": Default(
        2.4e-3, True, True, 60, "sst2, trec, banking77 with 100 and 1,000 examples, tiny (docs/scores.md)", 250
    ),
    "lora": Default(6e-3, True, True, 60, "SST-2 and TREC, smollm2-135m (results/defaults-smollm2-135m.md)"),
    "top": Default(4.8e-3, True, True, 200, "rates and passes on 300 of SST-2 and of TREC, smollm2-135m"),
    "top, other": Default(1.2e-3, True, True, 60, "not swept: models that write, and small ones"),
    "head": Default(3e-3, False, False, 200, "3e-4 to 1e-2, 60 and 200 steps, on SST-2 and TREC, smollm2-135m"),
}


def of(tune: str, parameters: int, has_head: bool) -> Default:
    """Return the row of a tuning method (`full`, `lora`, `head`, `top:4`) for a model of so many `parameters`.

    `has_head`: it becomes a classifier.
    """
    method = tune.partition(":")[0]
    small = parameters < SMALL
    if method == "full" and has_head and small:
        return DEFAULTS["full, small"]
    return DEFAULTS["top, other" if method == "top" and (small or not has_head) else method]
