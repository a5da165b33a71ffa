"""The held-out rows that a model does best and worst on, by the probability that it gives to what is right.

Of labels that is the right label's; of answers the geometric mean of their tokens'. Knows no run and no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptx_nb.engine.data import label_name
from gptx_nb.engine.examples import AnyTable
from gptx_nb.engine.predict import Classifier
from gptx_nb.engine.roles import RoleTable
from gptx_nb.engine.tasks.encoding import Encoded
from gptx_nb.engine.writer import Writer

MOST_ROWS = 1_000  # of more, so many, evenly spread
Json = dict[str, Any]


def find(table: AnyTable, model: Classifier | Writer, count: int) -> Json:
    """Return {"rows": how many were looked at, "best": [...], "worst": [...]}, `count` of each at most, none in both.

    A row is {"text", "right", "said" (of labels, else empty), "share"}, the worst first among the worst.
    """
    if isinstance(table, RoleTable):
        assert isinstance(model, Writer)
        found = _answers(_spread(table.validation or []), model)
    else:
        assert isinstance(model, Classifier)
        found = _labels(table, model)
    found.sort(key=lambda row: row["share"])
    half = min(count, -(-len(found) // 2))
    worst = found[:half]
    return {"rows": len(found), "worst": worst, "best": found[half:][::-1][:count]}


def _labels(table: Any, model: Classifier) -> list[Json]:
    if table.validation is None:
        return []
    places = _spread(range(len(table.validation)))
    texts = [table.validation.texts[at] for at in places]
    right = [table.validation.labels[at] for at in places]
    rows = []
    given = np.broadcast_to(model.threshold or 0.5, len(model.labels))
    said: int | list[int]
    found = model.classify(texts).probabilities
    for text, label, shares in zip(texts, right, found, strict=True):
        if isinstance(label, int):
            said, share = max(range(len(shares)), key=shares.__getitem__), shares[label]
        else:  # any number of labels: as sure as it is of the one that it is least sure of
            said = [at for at, each in enumerate(shares) if each >= given[at]]
            share = min(each if at in label else 1 - each for at, each in enumerate(shares))
        names = (label_name(model.labels, each) for each in (label, said))
        rows.append({"text": text, **dict(zip(("right", "said"), names, strict=True)), "share": share})
    return rows


def _answers(examples: Sequence[Json], writer: Writer) -> list[Json]:
    fitting: list[tuple[Json, list[Encoded]]] = []
    for example in examples:
        rows = [row for row in writer.rows(example) if row is not None and any(row.loss)]
        if rows:
            fitting.append((example, rows))
    nats = iter(writer.nats([row for _, rows in fitting for row in rows]))
    found = []
    for example, rows in fitting:
        spent = sum(next(nats) for _ in rows)
        share = math.exp(-float(spent[0]) / max(1.0, float(spent[1])))
        right = next(iter(writer.task.accepted(example)), "")
        found.append({"text": writer.task.shown(example), "right": right, "said": "", "share": share})
    return found


def _spread(rows: Sequence[Any]) -> list[Any]:
    """Return at most MOST_ROWS of `rows`, evenly spread."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [rows[number * len(rows) // MOST_ROWS] for number in range(MOST_ROWS)]
