"""How much does pretraining help? `tiny` against the same architecture from random weights and against TF-IDF.

    python benchmarks/pretrain_tiny/transfer.py SST2_FOLDER [--examples 1000] [--seeds 5] [--out transfer.json]

SST2_FOLDER holds train, validation and test tables (.csv or .csv.xz) with columns `text` and `label`. Each seed
draws its own examples from train. Both arms have the same budget and choose learning rate and epoch by validation
accuracy from the same list; what is reported is the accuracy on test, which nothing was chosen by.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from gptx_nb.engine import device as devices
from gptx_nb.engine import evaluate, models, tuning
from gptx_nb.engine.data import Examples
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Settings, make_optimizer, train

LEARNING_RATES = (5e-4, 1e-3)
EPOCHS = 4
BATCH = 16


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(next(path for path in sorted(folder.iterdir()) if path.name.startswith(f"{name}.csv")))


def one(pretrained: bool, seed: int, rate: float, parts: dict[str, Examples], labels: int) -> tuple[float, float]:
    """Return (best validation accuracy, test accuracy of those weights)."""
    base = models.find("tiny")
    tokenizer = models.load_tokenizer(base)
    model: Any = models.load_classifier(base, tokenizer, [str(label) for label in range(labels)], seed)
    if not pretrained:
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32)
    chosen = devices.choose()
    model.to(chosen.device)
    rows = {name: task.encode(tokenizer, part.texts, 512)[0] for name, part in parts.items()}
    learner = task.Learner(
        model,
        tuning.prepare(model, "full"),
        rows["train"],
        parts["train"].labels,
        rows["validation"],
        pad_id=tokenizer.pad_token_id,
        device=chosen.device,
        batch_size=BATCH,
        seed=seed,
    )
    steps_per_epoch = -(-len(rows["train"]) // BATCH)
    settings = Settings(
        steps=EPOCHS * steps_per_epoch,
        learning_rate=rate,
        seed=seed,
        eval_every=steps_per_epoch,
        save_every_seconds=1e9,
    )
    best = (0.0, 0.0)

    def accuracy(logits: np.ndarray, name: str) -> float:
        return float((logits.argmax(axis=1) == np.array(parts[name].labels)).mean())

    def score(step: int) -> None:
        nonlocal best
        validation = accuracy(learner.held_logits(), "validation")
        if validation > best[0]:
            test = task.logits(
                model,
                rows["test"],
                pad_id=tokenizer.pad_token_id,
                device=chosen.device,
                labels=labels,
                packed=learner.padded_because is None,
            )
            best = (validation, accuracy(test, "test"))

    train(
        model,
        make_optimizer(model, settings),
        settings,
        device=chosen.device,
        dtype=chosen.dtype,
        batch_at=learner.step,
        loss_of=learner.loss,
        record=lambda entry: None,
        evaluate=score,
        save=lambda step: None,
        should_stop=lambda: False,
    )
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    whole = {name: table(arguments.folder, name) for name in ("train", "validation", "test")}
    labels = int(whole["train"]["label"].nunique())
    results: dict[str, list[float]] = {"tiny": [], "random weights": [], "TF-IDF": [], "majority": []}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        frames = {**whole, "train": whole["train"].sample(arguments.examples, random_state=seed)}
        parts = {name: Examples(frame["text"].tolist(), frame["label"].tolist()) for name, frame in frames.items()}
        for name, pretrained in (("tiny", True), ("random weights", False)):
            results[name].append(max(one(pretrained, seed, rate, parts, labels) for rate in LEARNING_RATES)[1])
        baselines = evaluate.baselines(parts["train"], parts["test"])
        results["TF-IDF"].append(baselines["tfidf"]["accuracy"])
        results["majority"].append(baselines["majority"]["accuracy"])
        print(f"seed {seed}: " + ", ".join(f"{name} {scores[-1]:.3f}" for name, scores in results.items()), flush=True)
    for name, scores in results.items():
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"{name}: mean {statistics.mean(scores):.3f}, standard deviation {spread:.3f}")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"examples": arguments.examples, "test accuracy": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
