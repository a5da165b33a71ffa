"""Where texts have several labels: does a classifier do better from these labels' words or from a new head?

    python benchmarks/several_labels.py DATA_FOLDER [--sets goemotions_ekman,ag_news] [--model smollm2-135m]
        [--examples 200] [--test 200] [--draws 1] [--starts plain,words,auto] [--set NAME=VALUE] [--out several_labels]

DATA_FOLDER is that of benchmarks/fewshot.py, whose texts have one label each. An example here is two of them, one after
the other, with the labels of both. Every start learns from the same examples, with the package's own settings else; the
last weights are scored on the same pairs of test texts. What stands in OUT.json is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fewshot import MAX_LENGTH, Set
from report import report
from tasks import setting

import gptx_nb


def pairs(texts: list[str], labels: list[str], count: int, draw: int) -> pd.DataFrame:
    """Return `count` texts of two drawn ones, each with the labels of both."""
    drawn = np.random.default_rng((draw, count)).permutation(len(texts))[: 2 * count].reshape(-1, 2).tolist()
    rows = [(f"{texts[one]}\n{texts[other]}", sorted({labels[one], labels[other]})) for one, other in drawn]
    return pd.DataFrame(rows, columns=["text", "labels"])


def measure(data: Set, start: str, draw: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Return what one start gives on one draw: scores, what was begun with, and the seconds of training."""
    train, test = (
        pairs(texts, [data.labels[label] for label in labels], count, number)
        for (texts, labels), count, number in ((data.train, asked.examples, draw), (data.test, asked.test, 0))
    )
    settings = {"max_length": MAX_LENGTH, "keep": "last", "baselines": start == "auto", "seed": draw, **dict(asked.set)}
    run = gptx_nb.finetune(
        f"{data.name}-{start}-{draw}", train, validation=test, model=asked.model, head=start, **settings
    )
    scores, plan = run.scores() or {}, run.plan() or {}
    found = scores["validation"]
    told = {name: found[name] for name in ("micro_f1", "macro_f1", "accuracy")}
    others = {name: (each or {}).get("micro_f1") for name, each in (scores.get("baselines") or {}).items()}
    base = (scores.get("base") or {}).get("micro_f1")
    return {**told, "head": plan["head"], "seconds": scores["seconds"], "baselines": others, "base": base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default="goemotions_ekman,ag_news")
    parser.add_argument("--model", default="smollm2-135m")
    for flag, usual in (("--examples", 200), ("--test", 200), ("--draws", 1)):
        parser.add_argument(flag, type=int, default=usual)
    parser.add_argument("--starts", default="plain,words,auto")
    parser.add_argument("--set", action="append", type=setting, default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    kept = asked.out.with_suffix(".json") if asked.out else None
    every: list[dict[str, Any]] = json.loads(kept.read_text())["every"] if kept and kept.exists() else []
    about = {"model": asked.model, "examples": asked.examples, "test": asked.test, "settings": dict(asked.set)}
    with tempfile.TemporaryDirectory(prefix="gptx_nb-several-") as home:
        os.environ.setdefault("GPTX_HOME", home)
        for name in asked.sets.split(","):
            data = Set(asked.folder / name, 10_000, 10_000)
            for draw in range(asked.draws):
                for start in asked.starts.split(","):
                    key = {**about, "set": name, "start": start, "draw": draw}
                    if not any(key.items() <= each.items() for each in every):
                        every.append({**key, **measure(data, start, draw, asked)})
                        print(json.dumps(every[-1]), flush=True)
                        mine = [each for each in every if about.items() <= each.items()]
                        report("Several labels a text", about, rows_of(mine), every, asked.out)


def rows_of(every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a set, number of examples and start: the mean of micro F1 over the draws."""
    keys = dict.fromkeys((each["set"], each["examples"], each["start"]) for each in every)
    rows = []
    for key in keys:
        mine = [each for each in every if (each["set"], each["examples"], each["start"]) == key]
        scores = {name: statistics.mean(each[name] for each in mine) for name in ("micro_f1", "macro_f1")}
        begun = ", ".join(dict.fromkeys(each["head"]["choice"] for each in mine))
        rows.append(
            {"set": key[0], "examples": key[1], "head": key[2], "begun with": begun, "draws": len(mine), **scores}
        )
    return rows


if __name__ == "__main__":
    main()
