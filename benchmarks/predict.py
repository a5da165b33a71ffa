"""Classify many texts of mixed lengths, and one at a time: this package beside `transformers.pipeline`.

    python benchmarks/predict.py SST2_FOLDER [--model smollm2-135m] [--texts 2000] [--singles 50] [--repeats 3]
        [--examples 1000] [--ways ours,pipeline,pipeline-16] [--out predict]

SST2_FOLDER holds train and test tables (.csv or .csv.xz) with columns `text` and `label`. Of the texts 7 in 10 are
single ones, 2 in 10 are joins of 2 to 5, 1 in 10 of 6 to 16. --model is as in finetune.py. --out
writes predict.json and predict.md.

    ours           `gptx_nb.engine.predict.Classifier`, in the arithmetic that it chooses here; labels are float32's
    pipeline       `pipeline("text-classification")` as documented: one text a batch
    pipeline-16    the same with batch_size=16

All read the same saved folder, the pipelines in float32. Each is a process of its own that uses every core; threads of
ours wait for work as processes of gptx_nb do (`launch.waiting`), the others' as torch has it. They take turns within a
repeat; ratios are medians over the repeats of the ratio within one. Loading is left out. One text at a time: the first
--singles texts, one call each, after a call that is not counted. The classifier is fine-tuned before, on --examples
sentences of the train table: how many labels are computed again in float32 depends on how sure it is. The largest
difference of a probability is reported, against the pipeline as documented.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from finetune import MAX_LENGTH, machine, read, surroundings, synchronise
from report import report

import gptx_nb
from gptx_nb.engine import arithmetic, models
from gptx_nb.engine import device as devices
from gptx_nb.engine.predict import Classifier, use_all_cores

Classify = Callable[[list[str]], np.ndarray]  # the probabilities (texts, labels)


def mixed(texts: list[str], number: int) -> list[str]:
    """Return `number` texts, joined from `texts` as the head of this file says; always the same ones."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(number):
        fewest, most = ((1, 1), (2, 5), (6, 16))[draw.choice(3, p=(0.7, 0.2, 0.1))]
        chosen = draw.choice(len(texts), size=int(draw.integers(fewest, most + 1)))
        made.append(" ".join(texts[index] for index in chosen))
    return made


def classifier_of(name: str, sentences: pd.DataFrame) -> Path:
    """Fine-tune `name` on `sentences` (columns text, label) in $GPTX_HOME; return the saved folder."""
    run = gptx_nb.finetune(
        f"predict-{name}",
        data=sentences,
        model=name,
        task="text-classification",
        head="plain",  # the pipelines know no prompt
        tune="full",
        epochs=1,
        max_length=MAX_LENGTH,
        baselines=False,
        keep="last",
    )
    return run.model


WAYS = ("ours", "pipeline", "pipeline-16")


def loaded(name: str, folder: Path, device: devices.Device) -> Classify:
    """Return one of `WAYS`, with its model loaded. Columns of probabilities are in the order of our labels."""
    classifier = Classifier.load(folder, device)
    if name == "ours":
        return lambda texts: np.array(classifier.predict(texts))
    labels = classifier.labels
    classifier.close()
    options: dict[str, Any] = {"batch_size": 16} if name == "pipeline-16" else {}
    pipe: Any = transformers.pipeline("text-classification", model=str(folder), device=device.device, **options)

    def classify(texts: list[str]) -> np.ndarray:
        answers = pipe(texts, top_k=None, truncation=True)
        by_label = ({each["label"]: each["score"] for each in answer} for answer in answers)
        return np.array([[scores[label] for label in labels] for scores in by_label])

    return classify


def serve(name: str, folder: Path, asked: Connection) -> None:
    """Answer in this process: texts come, seconds and probabilities go, until None comes."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    device = devices.choose()
    classify = loaded(name, folder, device)
    while (texts := asked.recv()) is not None:
        synchronise(device)
        started = time.perf_counter()
        found = classify(texts)
        asked.send((time.perf_counter() - started, found))


class Served:
    """One of `WAYS` in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._asked, there = context.Pipe()
        self._process = context.Process(target=serve, args=(name, folder, there), daemon=True)
        before = set(os.environ)
        os.environ.update(surroundings(name))  # how threads wait is read when torch is loaded
        self._process.start()
        for added in set(os.environ) - before:
            del os.environ[added]
        there.close()  # or the end of the process would not be seen

    def __call__(self, texts: list[str]) -> tuple[float, np.ndarray]:
        time.sleep(0.05)  # threads of another way spin on for a while
        self._asked.send(texts)
        seconds, found = self._asked.recv()
        return seconds, found

    def end(self) -> None:
        self._asked.send(None)
        self._process.join()


def measure(arguments: argparse.Namespace) -> None:
    device = devices.choose()
    texts = mixed(read(arguments.folder, "test").texts, arguments.texts)
    learnt = read(arguments.folder, "train", arguments.examples)
    names = ("negative", "positive")
    sentences = pd.DataFrame({"text": learnt.texts, "label": [names[label] for label in learnt.labels]})
    tokenizer = models.load_tokenizer(models.find(arguments.model))
    lengths = sorted(min(MAX_LENGTH, len(row)) for row in tokenizer(texts, verbose=False)["input_ids"])
    many: dict[str, list[float]] = {name: [] for name in arguments.ways.split(",")}
    single: dict[str, list[float]] = {name: [] for name in many}
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["GPTX_HOME"] = scratch
        folder = classifier_of(arguments.model, sentences)
        ways = {name: Served(name, folder) for name in many}
        for way in ways.values():
            way(texts[:4])
        for repeat in range(arguments.repeats):
            for name, way in ways.items():
                took, found[name] = way(texts)
                many[name].append(took)
                print(f"repeat {repeat + 1}, {name}: {len(texts) / took:.1f} texts/s", flush=True)
            turns: dict[str, list[float]] = {name: [] for name in ways}
            for text in texts[: arguments.singles]:
                for name, way in ways.items():
                    turns[name].append(way([text])[0])
            for name, taken in turns.items():
                single[name].append(statistics.median(taken))
        for way in ways.values():
            way.end()

    def times_ours(figures: dict[str, list[float]], name: str) -> float:
        return statistics.median(its / ours for its, ours in zip(figures[name], figures["ours"], strict=True))

    rows = [
        {
            "way": name,
            "texts/s": len(texts) / statistics.median(many[name]),
            "tokens/s": sum(lengths) / statistics.median(many[name]),
            "ours is × as fast": times_ours(many, name),
            "one text, ms": statistics.median(single[name]) * 1000,
            "ours is × as fast (one text)": times_ours(single, name),
            "labels that differ, %": 100 * float((found[name].argmax(1) != found["pipeline"].argmax(1)).mean()),
            "largest difference of a probability": float(np.abs(found[name] - found["pipeline"]).max()),
        }
        for name in many
    ]
    about = {
        **machine(device),
        "arithmetic": f"float32; ours {arithmetic.of_answers(device)}",
        "tokens a text": f"{lengths[len(lengths) // 2]} (median), {lengths[len(lengths) * 95 // 100]} (95 %), "
        f"{lengths[-1]} (most)",
        "repeats": arguments.repeats,
    }
    title = f"Classifying {len(texts):,} texts made from {arguments.folder.name} with {arguments.model}"
    report(title, about, rows, {"seconds": many, "seconds for one text": single}, arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--singles", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--ways", default=",".join(WAYS), help="the first two are compared with")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if {"ours", "pipeline"} - set(named := arguments.ways.split(",")) or set(named) - set(WAYS):
        parser.error(f"--ways: ours,pipeline and, where wanted, {WAYS[2]}; not {arguments.ways}")
    measure(arguments)


if __name__ == "__main__":
    main()
