"""How fast models of several sizes are pretrained here, and how much of the machine's fastest matrix product that is.

    python benchmarks/pretraining.py [--sizes tiny,mini,compact,small] [--architecture gpt2] [--optimizer adamw]
        [--steps 4] [--repeats 3] [--tokens-per-step 8192] [--out pretraining]

What is learnt are random tokens, 16,384 different ones, in rows of 512: the arithmetic is that of any text. The loop is
the package's own, its optimiser's steps included, without scoring; on a GPU it goes in the way that a run's plan finds
quickest, which is found out before the clock. All sizes are measured by turns. FLOPs are six for
each token and weight of a matrix (attention's own products count nothing); the peak is the highest that was measured
in between.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from report import report

from gptx_nb import pretraining
from gptx_nb.engine import corpus, models, pretrain, shards
from gptx_nb.engine import device as devices
from gptx_nb.engine.train import train
from gptx_nb.recipe import make_recipe

VOCABULARY = 16_384  # of `tiny`, whose tokenizer stands for it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,mini,compact,small")
    parser.add_argument("--architecture", default="gpt2")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chosen = devices.choose()
    sizes = given.sizes.split(",")
    every: dict[str, list[dict[str, float]]] = {size: [] for size in sizes}
    peak = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        texts = random_texts(Path(scratch))
        for _ in range(given.repeats):
            for size in sizes:
                peak = max(peak, devices.matrix_peak(chosen.device, chosen.dtype, seconds=0.1))
                every[size].append(measured(texts, size, given))
                print(size, every[size][-1], flush=True)
    rows = []
    for size in sizes:
        speed = statistics.median(each["tokens_per_second"] for each in every[size])
        found = {"size": size, "layers x width": f"{pretraining.SIZES[size][0]} x {pretraining.SIZES[size][2]}"}
        flops = every[size][0]["flops_per_token"]
        rows.append({**found, "weights, M": flops / 6e6, "tokens/s": speed, "share of peak": speed * flops / peak})
    about = {
        "machine": chosen.name,
        "dtype": str(chosen.dtype).removeprefix("torch."),
        "peak": f"{peak / 1e9:,.0f} GFLOP/s",
        "architecture": given.architecture,
        "optimizer": given.optimizer,
        "repeats": given.repeats,
    }
    report("Pretraining on random tokens", about, rows, every, given.out)


def random_texts(folder: Path) -> corpus.Corpus:
    """Return documents of random tokens, as long as those of an encyclopaedia."""
    tokenizer = models.load_tokenizer(models.find("tiny"))
    assert len(tokenizer) == VOCABULARY
    random, end = np.random.default_rng(0), int(tokenizer.eos_token_id)
    others = np.setdiff1d(np.arange(VOCABULARY), [end])
    for part, documents in (("train", 400), ("validation", 20)):
        pieces = ((True, random.choice(others, 1500).tolist(), 6000) for _ in range(documents))
        shards.write(folder / part, pieces, end=end, vocabulary=VOCABULARY)
    report = {"dropped": {}}
    train, validation = (shards.Shards(folder / part) for part in ("train", "validation"))
    return corpus.Corpus(folder, train, validation, tokenizer, report)


def measured(texts: corpus.Corpus, size: str, given: argparse.Namespace) -> dict[str, float]:
    """Return tokens a second, the first step left out, and FLOPs a token."""
    settings: dict[str, Any] = {
        "data": "random",
        "size": size,
        "architecture": given.architecture,
        "optimizer": given.optimizer,
        "tokens_per_step": given.tokens_per_step,
        "tokens": given.tokens_per_step * 1000,
    }
    recipe = make_recipe(settings, "", pretraining.PretrainRecipe)
    made = pretrain.prepare(recipe, texts, lambda note: None)
    steps: list[dict[str, Any]] = []
    held = made.hold()
    made.preflight(lambda step, error: None, held)
    train(
        made.model,
        made.optimizer,
        dataclasses.replace(made.settings, steps=given.steps + 1, eval_every=None, save_every_seconds=1e9),
        device=made.device.device,
        dtype=made.device.dtype,
        batch_at=made.learner.step,
        loss_of=made.learner.loss,
        record=steps.append,
        evaluate=lambda step: None,
        save=lambda step: None,
        should_stop=lambda: False,
        recorded=held.recorded,
    )
    seconds = sum(each["seconds"] for each in steps[1:])
    tokens = sum(each["tokens"] for each in steps[1:])
    return {"tokens_per_second": tokens / seconds, "flops_per_token": 6 * pretrain.matrix_parameters(made.model)}


if __name__ == "__main__":
    main()
