"""Which learning rate, batch, epochs to take where a recipe sets none: the sweep behind engine/defaults.py.

    python benchmarks/defaults.py DATA_FOLDER [--sets sst2,trec] [--model tiny] [--methods full,lora,top:4,head]
        [--rates 0.25,0.5,1,2,4] [--batches 16,64] [--epochs 1,3] [--warmups 0.1] [--examples 1000] [--held 500]
        [--draws 1] [--seconds 280] [--out defaults]

DATA_FOLDER is that of benchmarks/fewshot.py; --sets are folders of it with labelled texts, or sets that a model writes
answers to, by their names in benchmarks/tasks.py (e2e, tatoeba, …). --rates are times the rate that the package takes
by itself. Every run trains as `%%gpt_finetune` does, on the same examples, and is scored with its last weights on other
rows of the training table, the same ones: what is chosen here has seen no test row. A batch of 0 is the package's own;
with --rates "" only the package's own settings are run. Of several --draws each learns from other examples. A sweep is
made of pieces: with --out, what stands in OUT.json is not run again, and after --seconds no run is begun.

The table gives, for each method, the best setting by mean score over the sets, what the package takes by itself
("default"), and how far that is below the best. A score is accuracy or, of a model that writes, the loss on the held
rows' answers (nats a token), negative.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import tasks
from fewshot import MAX_LENGTH, Set, numbers
from report import report

from gptx_nb import sources
from gptx_nb.catalog import CATALOG
from gptx_nb.engine import examples as tables
from gptx_nb.engine import jobs, plan
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.transfer import goodness
from gptx_nb.recipe import Recipe, make_recipe


def shares(text: str) -> list[float]:
    return [float(each) for each in text.split(",") if each]


class WrittenSet:
    """A set whose answers a model writes: `rows` of its training table, in an order of their own."""

    def __init__(self, folder: Path, name: str, rows: int) -> None:
        self.name, self.which = name, tasks.SETS[name]
        self.rows = tasks.table(folder, self.which, "train", rows).sample(frac=1, random_state=0)
        if len(self.rows) < rows:
            raise SystemExit(f"{name}: {len(self.rows)} rows, and examples of all draws and rows to score take {rows}")
        self.settings = {"task": self.which.task, "max_length": self.which.max_length}


def job_of(data: Set | WrittenSet, learnt: slice, held: slice, recipe: Recipe) -> jobs.Job:
    """Return what `recipe` is to train on: rows to learn from and rows to be scored on."""
    if isinstance(data, Set):
        texts, labels = data.train
        train, kept = (Examples(texts[part], labels[part].tolist()) for part in (learnt, held))
        about = {"text": "text", "label": "label", "warnings": [], "source": data.name}
        return jobs.Classification(Table(train, kept, data.labels, about), recipe)
    with tempfile.TemporaryDirectory() as scratch:
        where = sources.stage(recipe, data.rows[learnt], data.rows[held], Path(scratch))
        return jobs.of(tables.load(recipe, where, Path(scratch)), recipe)


def run(data: Set | WrittenSet, asked: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once by the settings in `asked`, where None leaves one to the package; return them with the score."""
    count, labelled = arguments.examples, isinstance(data, Set)
    recipe = make_recipe(
        {
            "model": arguments.model,
            "tune": asked["tune"],
            "batch_size": asked["batch"] or None,
            "epochs": asked["epochs"],
            "keep": "last",  # the rows it is scored on choose nothing
            "baselines": False,
            **({} if asked["warmup"] is None else {"warmup": asked["warmup"]}),
            **({"data": "benchmark", "max_length": MAX_LENGTH} if isinstance(data, Set) else data.settings),
        }
    )
    if asked["rate"] is not None:
        size = round(CATALOG[arguments.model].parameters * 1e6)
        batch, _ = plan.batch_size(recipe, count, size, labelled)
        own, _ = plan.learning_rate(recipe.model_copy(update={"batch_size": batch}), size, labelled)
        recipe = recipe.model_copy(update={"learning_rate": asked["rate"] * own})
    learnt, held = slice(asked["draw"] * count, (asked["draw"] + 1) * count), slice(arguments.draws * count, None)
    job = job_of(data, learnt, held, recipe)
    started = time.perf_counter()
    found = goodness(recipe, job)
    assert found is not None
    score = {"accuracy": found[0]} if labelled else {"nats": -found[0]}
    return {**asked, **score, "seconds": round(time.perf_counter() - started)}


def score_of(each: dict[str, Any]) -> float:
    return float(each["accuracy"] if "accuracy" in each else -each["nats"])


SETTINGS = ("rate", "batch", "epochs", "warmup")


def best_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a model, number of examples and method: its best setting, and how far the default is below it.

    A setting counts where it was run on two sets or draws at least; the default's accuracy is that on the same ones.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[Any, float]]] = {}
    for each in found:
        kind = "accuracy" if "accuracy" in each else "nats"
        group = groups.setdefault((each["model"], each["examples"], each["tune"], kind), {})
        group.setdefault(tuple(each[name] for name in SETTINGS), {})[each["set"], each["draw"]] = score_of(each)
    rows = []
    for (model, examples, tune, kind), settings in groups.items():
        own = settings[None, None, None, None]
        whole = {key: each for key, each in settings.items() if len(each) > 1 and own.keys() >= each.keys()}
        below = {key: statistics.mean(each[at] - own[at] for at in each) for key, each in whole.items()}
        if not below:
            continue
        best = max(below, key=lambda key: below[key])
        rows.append(
            {
                "model": model,
                "examples": examples,
                "tune": tune,
                "score": kind if kind == "accuracy" else "-nats a token",
                "settings": len(whole),
                "sets": ", ".join(sorted({name for name, _ in whole[best]})),
                "best": statistics.mean(whole[best].values()),
                **dict(zip(SETTINGS, best, strict=True)),
                "default": statistics.mean(own[at] for at in whole[best]),
                "below": below[best],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default="sst2,trec")
    parser.add_argument("--model", default="tiny", choices=CATALOG)
    parser.add_argument("--methods", default="full,lora,top:4,head")
    parser.add_argument("--rates", type=shares, default=[0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--batches", type=numbers, default=[16, 64])
    parser.add_argument("--epochs", type=shares, default=[1.0, 3.0])
    parser.add_argument("--warmups", type=shares, default=[0.1])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--held", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=280.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kept = arguments.out.with_suffix(".json") if arguments.out else None
    found: list[dict[str, Any]] = json.loads(kept.read_text())["every"] if kept and kept.exists() else []
    for each in found:
        each.setdefault("draw", 0)  # of a time when there was one
        each.setdefault("draws", 1)  # which rows are held hangs on it
    done = [{name: each[name] for name in each if name not in ("accuracy", "nats", "seconds")} for each in found]
    own = (None, None, None, None)
    grid = [own, *itertools.product(arguments.rates, arguments.batches, arguments.epochs, arguments.warmups)]
    rows = arguments.draws * arguments.examples + arguments.held
    writing = [name for name, which in tasks.SETS.items() if which.task != "text-classification"]
    data = [
        WrittenSet(arguments.folder, name, rows) if name in writing else Set(arguments.folder / name, rows, 1)
        for name in arguments.sets.split(",")
    ]
    begun = time.perf_counter()
    draws = range(arguments.draws)
    for setting, method, each, draw in itertools.product(grid, arguments.methods.split(","), data, draws):
        about = {"set": each.name, "model": arguments.model, "examples": arguments.examples, "held": arguments.held}
        asked = {
            **about,
            "draw": draw,
            "draws": arguments.draws,
            "tune": method,
            **dict(zip(("rate", "batch", "epochs", "warmup"), setting, strict=True)),
        }
        if asked in done or time.perf_counter() - begun > arguments.seconds:
            continue
        found.append(run(each, asked, arguments))
        print(json.dumps(found[-1]), flush=True)
        if kept:  # each run takes minutes: what is measured stays, whatever ends the sweep
            kept.write_text(json.dumps({"every": found}, indent=2) + "\n", encoding="utf-8")
    report("Defaults against a sweep", {"rate": "times the package's own"}, best_of(found), found, arguments.out)


if __name__ == "__main__":
    main()
