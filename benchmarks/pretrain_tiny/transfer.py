"""How much does pretraining help? `tiny` beside the same architecture from random weights, and beside TF-IDF.

    python benchmarks/pretrain_tiny/transfer.py DATA [--sets sst2 trec] [--examples 100 1000] [--seeds 5] [--test 2000]

DATA holds a folder for each set, with train and test tables (.csv.xz) that have the columns `text` and `label_text`.
Each seed draws its own examples from train, at least one of every label, and the order in which they are learnt. All is
as the tool does it by itself, with the settings that it chooses; the weights of the last step are scored on --test rows
of the test table, the same for all, so that nothing is chosen by them. transfer.json beside this file is written after
each seed, and what it holds is not measured again, unless `tiny` has other weights or learns by other defaults, or
--test is another; the table of the model card is printed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import transformers

import gptx_nb
from gptx_nb import files
from gptx_nb.engine import data, defaults, evaluate, transfer
from gptx_nb.recipe import make_recipe
from gptx_nb.sources import stage

HERE = Path(__file__).parent
MODEL = Path(gptx_nb.__file__).parent / "models" / "tiny"
SETS = ("sst2", "ag_news", "trec", "sms_spam", "goemotions_ekman", "banking77")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--examples", nargs="+", type=int, default=(100, 1000))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE / "transfer.json")
    given = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    weights = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    measured_with = {"weights": weights, "test": given.test, "defaults": learns_by()}
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    known = {name: kept.get(name) for name in measured_with} == measured_with
    if kept and not known:
        print("transfer.json is of other weights of tiny, test rows or defaults: all is measured anew")
    found: dict[str, dict[str, list[float]]] = kept["accuracy"] if known else {}
    for seed in range(given.seeds):
        for count in given.examples:
            for name in given.sets:
                scores = found.setdefault(f"{name}, {count} examples", {})
                if len(scores.get("tiny", ())) > seed:
                    continue
                for arm, accuracy in measured(given.data / name, count, seed, given.test).items():
                    scores.setdefault(arm, []).append(round(accuracy, 4))
                print(name, count, seed, {arm: each[-1] for arm, each in scores.items()}, flush=True)
                files.write_json(given.out, {**measured_with, "accuracy": found})
    print(card(found))


def learns_by() -> dict[str, float]:
    """Return what decides how long and how fast `tiny` learns."""
    row = defaults.of("full", defaults.SMALL - 1, True)
    numbers = {"rate": row.rate, "steps": row.steps, "more_steps": row.more_steps}
    return {**numbers, "most_epochs": defaults.MOST_EPOCHS}


def measured(folder: Path, count: int, seed: int, test: int) -> dict[str, float]:
    """Return accuracies on `test` rows after learning from `count` examples drawn by `seed`."""
    tables = {name: pd.read_csv(folder / f"{name}.csv.xz")[["text", "label_text"]] for name in ("train", "test")}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tables["test"].sample(min(test, len(tables["test"])), random_state=0).to_csv(place / "test.csv", index=False)
        settings = {"model": "tiny", "label": "label_text", "keep": "last", "seed": seed}
        recipe = make_recipe({**settings, "validation": str(place / "test.csv")})
        run = place / "run"
        run.mkdir()
        sources = stage(recipe, drawn(tables["train"], count, seed), recipe.validation, run)
        table = data.load(recipe, sources, run)
        assert table.validation is not None
        arms = {
            arm: transfer.accuracy(recipe, table, scratch=scratch_arm)
            for arm, scratch_arm in (("tiny", False), ("random weights", True))
        }
        known: dict[str, Any] = evaluate.baselines(table.train, table.validation)
    arms |= {"TF-IDF": known["tfidf"]["accuracy"], "commonest label": known["majority"]["accuracy"]}
    return {arm: accuracy for arm, accuracy in arms.items() if accuracy is not None}


def drawn(table: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return `count` rows, the first of every label among them."""
    mixed = table.sample(frac=1, random_state=seed)
    first = mixed.drop_duplicates("label_text")
    return pd.concat([first, mixed.drop(first.index)])[:count].reset_index(drop=True)


def card(found: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table: means over seeds, the gain over random weights with its interval, seeds ahead."""
    lines = [
        "| Set | tiny | random weights | gain (95 % interval) | seeds ahead | TF-IDF | commonest label |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, scores in found.items():
        gain = transfer.Gain(scores["tiny"], scores["random weights"])
        mean = {arm: sum(each) / len(each) for arm, each in scores.items()}
        ahead = sum(each > 0 for each in gain.differences)
        margin = "one seed" if gain.margin is None else f"± {gain.margin:.3f}"
        lines.append(
            f"| {name} | {mean['tiny']:.3f} | {mean['random weights']:.3f} | {gain.mean:+.3f} {margin} "
            f"| {ahead} of {len(gain.differences)} | {mean['TF-IDF']:.3f} | {mean['commonest label']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
