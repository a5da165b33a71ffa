"""Classify many texts of mixed lengths, and one at a time: this package beside `transformers.pipeline`.

    python benchmarks/predict.py SST2_FOLDER [--model smollm2-135m] [--texts 2000] [--singles 50] [--repeats 3]
        [--out predict]

SST2_FOLDER holds a test table (.csv or .csv.xz) with a column `text`. Of the texts 7 in 10 are single ones, 2 in 10 are
joins of 2 to 5, 1 in 10 of 6 to 16. --model is as in finetune.py. --out writes predict.json and predict.md.

    ours           `gptx_nb.engine.predict.Classifier`, in the arithmetic that it chooses here; labels are float32's
    pipeline       `pipeline("text-classification")` as documented: one text a batch
    pipeline-16    the same with batch_size=16

All read the same saved folder, the pipelines in float32, in one process, use every core and take turns within a
repeat; ratios are medians over the repeats of the ratio within one. Loading is left out. One text at a time: the first
--singles texts, one call each, after a call that is not counted. The head is drawn at random and then scaled, so that
the probabilities spread as a trained classifier's do and a difference would show; the largest is reported, against the
pipeline as documented.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from finetune import MAX_LENGTH, WAITING, load, machine, read, synchronise
from report import report

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


def save_classifier(name: str, folder: Path, texts: list[str]) -> list[int]:
    """Save a classifier whose logits of `texts` differ by about 2 into `folder`; return the texts' lengths in tokens.

    No text is longer than the classifier sees: both ways cut there.
    """
    model, tokenizer = load(name, 2, seed=0)
    length = min(MAX_LENGTH, models.context(model.config))
    some = tokenizer(texts[:16], padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=some["input_ids"], attention_mask=some["attention_mask"]).logits
        model.score.weight.mul_(2 / (logits[:, 1] - logits[:, 0]).std())
    models.save(folder, model, tokenizer, length)
    return [min(length, len(row)) for row in tokenizer(texts, verbose=False)["input_ids"]]


def ways(folder: Path, device: devices.Device) -> dict[str, Classify]:
    """Return the ways to classify, each with its model loaded."""
    classifier = Classifier.load(folder, device)

    def peer(**options: Any) -> Classify:
        pipe: Any = transformers.pipeline("text-classification", model=str(folder), device=device.device, **options)

        def classify(texts: list[str]) -> np.ndarray:
            answers = pipe(texts, top_k=None, truncation=True)
            by_label = ({each["label"]: each["score"] for each in answer} for answer in answers)
            return np.array([[scores[label] for label in classifier.labels] for scores in by_label])

        return classify

    return {
        "ours": lambda texts: np.array(classifier.predict(texts)),
        "pipeline": peer(),
        "pipeline-16": peer(batch_size=16),
    }


def measure(arguments: argparse.Namespace) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    device = devices.choose()
    texts = mixed(read(arguments.folder, "test").texts, arguments.texts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        lengths = sorted(save_classifier(arguments.model, folder, texts))
        classify = ways(folder, device)

    def seconds(name: str, some: list[str]) -> tuple[float, np.ndarray]:
        synchronise(device)
        started = time.perf_counter()
        found = classify[name](some)
        return time.perf_counter() - started, found

    many: dict[str, list[float]] = {name: [] for name in classify}
    single: dict[str, list[float]] = {name: [] for name in classify}
    found: dict[str, np.ndarray] = {}
    for name in classify:
        seconds(name, texts[:4])
    for repeat in range(arguments.repeats):
        for name in classify:
            took, found[name] = seconds(name, texts)
            many[name].append(took)
            print(f"repeat {repeat + 1}, {name}: {len(texts) / took:.1f} texts/s", flush=True)
        turns: dict[str, list[float]] = {name: [] for name in classify}
        for text in texts[: arguments.singles]:
            for name, taken in turns.items():
                taken.append(seconds(name, [text])[0])
        for name, taken in turns.items():
            single[name].append(statistics.median(taken))

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
        for name in classify
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
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if WAITING in os.environ:
        measure(arguments)
    else:  # it is read when torch is loaded, so it takes a new process
        environment = {**os.environ, WAITING: "passive"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
