"""What a run costs as the work grows: with the number of examples, and with their length.

    python benchmarks/growth.py SST2_FOLDER [--model tiny] [--examples 1000,10000,100000] [--lengths 32,128,512]
        [--epochs 1] [--out growth]

SST2_FOLDER holds a training table (.csv or .csv.xz) with columns `text` and `label`; its sentences are joined until a
text has as many tokens as asked for. Every row of the table is one run of the package, as a user starts it: `--epochs`,
every weight, and nothing else that costs time (no baselines, a plain head, 100 rows held out). Numbers of examples are
tried at the first length, lengths with the first number of examples.

- Before the first step: seconds from the call until training begins: the snapshot of the table, a process, tokens, the
  plan.
- Seconds for 1,000 tokens: of training, in the median over the steps. Equal in all rows where time is linear in tokens.
- Memory: the most that the process held after a step, beside what the plan said before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from report import report

HELD_OUT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--examples", type=numbers, default=[1000, 10_000, 100_000])
    parser.add_argument("--lengths", type=numbers, default=[32, 128, 512])
    parser.add_argument("--epochs", type=float, default=1, help="a small part of one measures memory in little time")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    from gptx_nb.engine import device, models

    chosen = device.choose()
    file = next(path for path in sorted(given.folder.iterdir()) if path.name.startswith("train.csv"))
    table = pd.read_csv(file)
    tokenizer = models.load_tokenizer(models.find(given.model))
    cells = [
        *((count, given.lengths[0]) for count in given.examples),
        *((given.examples[0], length) for length in given.lengths[1:]),
    ]
    rows = []
    for count, length in cells:
        made = examples(table, tokenizer, count + HELD_OUT, length)
        with tempfile.TemporaryDirectory() as home:
            os.environ["GPTX_HOME"] = home
            rows.append({"examples": count, "tokens a text": length, **run(given.model, made, length, given.epochs)})
        print(rows[-1], flush=True)
    about = {"device": chosen.name, "arithmetic": str(chosen.dtype).removeprefix("torch."), "model": given.model}
    report("What a run costs as the work grows", about, rows, rows, given.out)


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def examples(table: pd.DataFrame, tokenizer: Any, count: int, length: int) -> pd.DataFrame:
    """Return `count` texts of `length` tokens: sentences from the table one after the other, cut at the end."""
    order = table.sample(frac=1.0, random_state=0)
    sentences: Iterator[tuple[str, Any]] = itertools.cycle(zip(order["text"], order["label"], strict=True))
    made = []
    for number in range(count):
        text, label = next(sentences)
        text = f"{number} {text}"  # no text is there twice
        while len(tokens := tokenizer(text)["input_ids"]) < length:
            text = f"{text} {next(sentences)[0]}"
        made.append((tokenizer.decode(tokens[:length]), ("negative", "positive")[label]))
    return pd.DataFrame(made, columns=["text", "label"])


def run(model: str, made: pd.DataFrame, length: int, epochs: float) -> dict[str, Any]:
    import gptx_nb

    begun = time.time()
    trained = gptx_nb.finetune(
        "growth",
        model=model,
        data=made.iloc[HELD_OUT:],
        validation=made.iloc[:HELD_OUT],
        task="text-classification",
        head="plain",
        baselines=False,
        keep="last",
        epochs=epochs,
        max_length=length,
        wait=True,
    )
    history = trained.history()
    steps = [record for record in history if record["kind"] == "step"]
    start = next(record["time"] for record in history if record["kind"] == "start")
    parts = (trained.plan() or {})["memory"]["parts"]
    return {
        "before the first step, s": start - begun,
        "training, s": sum(step["seconds"] for step in steps),
        "s for 1,000 tokens": 1000 * statistics.median(step["seconds"] / step["tokens"] for step in steps),
        "memory, MB": max(step["memory"] for step in steps) / 1e6,
        "planned, MB": sum(parts.values()) / 1e6,
    }


if __name__ == "__main__":
    main()
