"""Carries out what `gptx_nb.rehearsals` has asked for: reads request.json, writes table.json, then result.json."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx_nb import files
from gptx_nb.errors import UsageError
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.rehearsals import REQUEST, RESULT, TABLE
from gptx_nb.sources import Source

if TYPE_CHECKING:
    from gptx_nb.engine.batches import Step

SHOWN_ROWS = 5
SHOWN_CHARACTERS = 400
SHOWN_EXAMPLES, SHOWN_BATCH = 3, 64
NICE = 5


def carry_out(folder: Path) -> int:
    """Return the exit status: 0, 2 for the user's mistake, 1 for a bug."""
    os.nice(NICE)
    asked: dict[str, Any] = files.read_json(folder / REQUEST) or {}
    recipe = make_recipe({name: value for name, value in asked["recipe"].items() if value is not None})
    sources = {name: Source.from_json(value) if value else None for name, value in asked["source"].items()}
    try:
        told = _rehearse(recipe, sources, folder)
    except UsageError as error:
        files.write_json(folder / RESULT, {"error": type(error).__name__, "message": str(error)})
        return 2
    except Exception as error:
        traceback.print_exc()
        shown = f"{type(error).__name__}: {error}"
        files.write_json(folder / RESULT, {"error": "RunFailed", "message": f"the rehearsal broke off: {shown}"})
        return 1
    files.write_json(folder / RESULT, told)
    return 0


def _rehearse(recipe: Recipe, sources: dict[str, Source | None], folder: Path) -> dict[str, Any]:
    from gptx_nb.engine import examples

    first = _first_rows(recipe, sources["train"], folder)
    try:
        table = examples.load(recipe, sources, folder)
    except UsageError as error:
        files.write_json(folder / TABLE, {**first, "report": None, "error": str(error)})
        raise
    files.write_json(folder / TABLE, {**first, "report": table.report, "error": None})

    # Only here: a mistake in the table is told before these seconds pass.
    from gptx_nb.engine import batches, device, distributed, jobs, memory, plan, rendering, setup

    job = jobs.of(table, recipe)
    notes: list[str] = []
    count = 1 if recipe.devices == 1 else device.count(recipe.devices, recipe.device)
    made = setup.prepare(recipe, job, notes.append, ranks=distributed.Alone(count))
    rows, held = job.token_rows
    decided = {
        **made.decided,
        **plan.machine(made.device, count),
        "notes": [*made.decided["notes"], *notes],
    }
    free = memory.available(made.device.device)
    if free is not None and made.device.device.type == "cpu":
        free //= count  # they share it
    if made.sharded:
        decided["time"] = {"choice": "unknown", "reason": f"not tried: it takes {count} processes to hold the model"}
    elif made.estimate is not None and free is not None and not made.estimate.fits(free):
        decided["time"] = {"choice": "unknown", "reason": "not tried: it does not fit into what is free"}
    else:

        def with_less_memory(step: int, error: BaseException) -> Step | None:
            return made.trial() if made.learner.need_less_memory() else None

        decided |= made.preflight(with_less_memory, compiles=False)
    size, seed = decided["batch_size"]["choice"], recipe.seed
    places, _ = batches.step_rows(0, rows=job.rows, batch_size=size, seed=seed)
    batch = job.seen(made.tokenizer, places[:SHOWN_BATCH])
    return {
        "plan": decided,
        "lengths": rendering.histogram([*rows.lengths.tolist(), *held.lengths.tolist()]),
        "examples": batch[:SHOWN_EXAMPLES],
        "batch": batch,
        "batch_rows": len(places),
    }


def _first_rows(recipe: Recipe, source: Source | None, folder: Path) -> dict[str, Any]:
    """Return the columns and the first rows of a table, as texts."""
    from gptx_nb.engine import tables

    assert source is not None
    named = [name for name in (recipe.text, recipe.label) if name]
    options = {
        "subset": source.options.get("subset", recipe.subset),
        "split": source.options.get("split", recipe.split),
    }
    sheet = tables.read(source, folder, named=named, plain_text=True, **options)
    rows = [[_shown(values[at]) for values in sheet.columns.values()] for at in range(min(SHOWN_ROWS, sheet.rows))]
    return {"columns": list(sheet.columns), "rows": rows, "count": sheet.rows}


def _shown(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
