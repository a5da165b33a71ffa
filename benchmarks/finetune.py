"""Fine-tune a classifier: how fast, how good, in how much memory, beside what one would otherwise run?

    python benchmarks/finetune.py SST2_FOLDER [--model smollm2-135m] [--examples 2000] [--epochs 1] [--repeats 3]
        [--variants documented,best,ours,ours-head,ours-top4,ours-lora] [--out finetune]

SST2_FOLDER holds train and validation tables (.csv or .csv.xz) with columns `text` and `label`. --model is a name that
`gptx_nb.engine.models.find` knows, or `gpt2-random`: GPT-2 124M with random weights and the tokenizer of `tiny`.
--out writes finetune.json (every run) and finetune.md (the table).

    documented   the Trainer recipe of the transformers documentation for text classification: float32, batches of 16
                 padded to their longest text, learning rate 2e-5, weight decay 0.01
    best         the same Trainer with bfloat16 where the device has it, texts grouped by length, a larger batch, and
                 a learning rate and warm-up as ours has them
    ours         this engine, every weight, packed rows; ours-lora: low-rank updates
    ours-head, ours-top4
                 this engine, the frozen part computed once; five times the epochs

Batch and learning rate of a variant can be set, so that settings are compared in one run: `ours@32`, `best@64:1e-4`.

Every run is a process of its own; variants take turns within a repeat, and a ratio is the median over the repeats of
the ratio within one. All variants begin with the same weights in float32, see the same examples, and use every core.
Threads of ours wait for work as runs of gptx_nb do (`launch.waiting`), the others' as torch has it. The seed is the
number of the repeat.

- Training is what the clock sees: batches, steps, and the frozen part's single pass. Preparation is loading the model
  and tokenising. Imports and scoring are left out for all; nobody saves.
- Scores are of the last weights on all of validation, computed in float32 in the same way for all.
- Time to the documented score: ours is scored some times on the way, with the clock stopped; the first time its
  accuracy (loss) is at least as good as the median documented one counts, with preparation on both sides. Accuracy on
  some hundred texts is grainy and may pass early by luck; loss is the steadier of the two.
- Memory is the highest resident size of the process while it trains, on a GPU the most that torch has allocated.
- Share of peak: useful FLOPs a second, over the most that a product of square matrices reaches in any of the runs, in
  bfloat16 where the device has it. Useful are 6 FLOPs for each trained weight of the decoder's matrices and each real
  token (2 forward, 4 backward), 4 for a frozen weight that a gradient passes, 2 (once) for one in the frozen part, but
  for those that ours spares in the last layer (`last_layer`): others compute them.
  Padding, embeddings, attention's own products, norms and the optimiser count nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from report import report
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from gptx_nb.engine import device as devices
from gptx_nb.engine import last_layer, models, plan, setup, tuning
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.device import Device
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.predict import use_all_cores
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import arithmetic, train
from gptx_nb.launch import waiting
from gptx_nb.recipe import Recipe

MAX_LENGTH = 512
SCORINGS = 8  # of ours, on the way


@dataclass(frozen=True)
class Variant:
    """`method`: what `tuning.prepare` takes; None: the Trainer, and `plain` as documented. `rate`: None: `rate_of`."""

    method: str | None
    batch: int
    plain: bool = False
    rate: float | None = None
    epochs: int = 1  # times --epochs


VARIANTS = {
    "documented": Variant(None, 16, plain=True, rate=2e-5),
    "best": Variant(None, 64),
    "ours": Variant("full", 64),
    "ours-head": Variant("head", 64, epochs=5),
    "ours-top4": Variant("top:4", 64, epochs=5),
    "ours-lora": Variant("lora", 64),
}


@dataclass(frozen=True)
class Measured:
    """What one run gives. Seconds, bytes; `curve` has (training seconds so far, accuracy, loss)."""

    batch: int
    rate: float
    epochs: float
    preparation: float
    training: float
    examples: int  # seen in training, each epoch's counted
    accuracy: float
    loss: float
    memory: int
    peak_flops: float
    useful_flops: float
    curve: list[tuple[float, float, float]]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Texts:
    texts: list[str]
    labels: list[int]


def named(text: str) -> Variant:
    """Return the variant that `text` names: `best`, `best@32` or `best@32:1e-4`."""
    found = re.fullmatch(r"([\w-]+)(?:@(\d+)(?::([\d.e+-]+))?)?", text)
    if found is None or found[1] not in VARIANTS:
        raise SystemExit(
            f"--variants: {text} is none of {', '.join(VARIANTS)}, each with @BATCH or @BATCH:RATE or bare"
        )
    variant = VARIANTS[found[1]]
    if found[2]:
        variant = replace(variant, batch=int(found[2]))
    return replace(variant, rate=float(found[3])) if found[3] else variant


def read(folder: Path, name: str, examples: int | None = None) -> Texts:
    """Read a table of `folder`, or `examples` of its rows, always the same ones; labels become 0, 1, ..."""
    frame = pd.read_csv(next(path for path in sorted(folder.iterdir()) if path.name.startswith(f"{name}.csv")))
    numbers = {label: number for number, label in enumerate(sorted(frame["label"].unique()))}
    if examples is not None and examples < len(frame):
        frame = frame.sample(examples, random_state=0)
    return Texts(frame["text"].astype(str).tolist(), [numbers[label] for label in frame["label"]])


def machine(device: Device) -> dict[str, Any]:
    return {
        "device": device.name,
        "cores": devices.cores(),
        "arithmetic": f"{str(device.dtype).removeprefix('torch.')}: {device.dtype_reason}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(terse=True),
    }


def load(name: str, labels: int, seed: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the classifier in float32 and its tokenizer; the same seed gives the same head."""
    base = models.find(name)
    tokenizer = models.load_tokenizer(base)
    return models.load_classifier(base, tokenizer, [str(label) for label in range(labels)], seed), tokenizer


def rate_of(variant: Variant, model: torch.nn.Module) -> float:
    """Return the variant's own learning rate, or gptx_nb's for every weight."""
    if variant.rate is not None:
        return variant.rate
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return plan.learning_rate(Recipe(data="benchmark", batch_size=variant.batch), parameters)[0]


def with_trainer(variant: Variant, arguments: argparse.Namespace, device: Device) -> Measured:
    import datasets
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    datasets.disable_progress_bars()
    learn = read(arguments.folder, "train", arguments.examples)
    held = read(arguments.folder, "validation")
    started = time.perf_counter()
    with random_gpt2(arguments) as name:
        model, tokenizer = load(name, len(set(held.labels)), arguments.seed)
    table = datasets.Dataset.from_dict({"text": learn.texts, "label": learn.labels})
    encoded = table.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=MAX_LENGTH), batched=True
    ).remove_columns("text")
    rate = rate_of(variant, model)
    chosen: dict[str, Any] = (
        {} if variant.plain else {"train_sampling_strategy": "group_by_length", "warmup_steps": 0.1}
    )
    if not variant.plain and device.dtype is not torch.float32:
        chosen["bf16" if device.dtype is torch.bfloat16 else "fp16"] = True
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                learning_rate=rate,
                per_device_train_batch_size=variant.batch,
                num_train_epochs=arguments.epochs * variant.epochs,
                weight_decay=0.01,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=device.device.type == "cuda",
                use_cpu=device.device.type == "cpu",
                seed=arguments.seed,
                **chosen,
            ),
            train_dataset=encoded,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer=tokenizer),
        )
        forget_high_water(device)
        prepared = time.perf_counter()
        trainer.train()
    synchronise(device)
    ended = time.perf_counter()
    memory = high_water(device)

    epochs = arguments.epochs * variant.epochs
    lengths = sum(len(row) for row in encoded["input_ids"])
    rows, _ = task.encode(tokenizer, held.texts, MAX_LENGTH)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its autocast; scores are float32 for all
    scored = task.logits(
        model, rows, pad_id=model.config.pad_token_id, device=device.device, labels=model.config.num_labels
    )
    accuracy, loss = score(scored, held.labels)
    return Measured(
        batch=variant.batch,
        rate=rate,
        epochs=epochs,
        preparation=prepared - started,
        training=ended - prepared,
        examples=round(epochs * len(learn.texts)),
        accuracy=accuracy,
        loss=loss,
        memory=memory,
        peak_flops=devices.matrix_peak(device.device, device.dtype),
        useful_flops=tuning.flops_per_token(model) * lengths * epochs,
        curve=[],
        machine=machine(device),
    )


def with_engine(variant: Variant, arguments: argparse.Namespace, device: Device) -> Measured:
    assert variant.method is not None
    learn = read(arguments.folder, "train", arguments.examples)
    held = read(arguments.folder, "validation")
    labels = [str(label) for label in range(len(set(held.labels)))]
    table = Table(
        Examples(learn.texts, learn.labels),
        Examples(held.texts, held.labels),
        labels,
        {"text": "text", "label": "label", "warnings": []},
    )
    with random_gpt2(arguments) as name:
        recipe = Recipe(
            data="benchmark",
            model=name,
            tune=variant.method,
            epochs=arguments.epochs * variant.epochs,
            batch_size=variant.batch,
            learning_rate=variant.rate,
            max_length=MAX_LENGTH,
            seed=arguments.seed,
        )
        started = time.perf_counter()
        made = setup.prepare(recipe, Classification(table, recipe), lambda note: None)
    model, learner = made.model, made.learner
    steps = made.settings.steps
    settings = replace(made.settings, eval_every=max(1, steps // SCORINGS), save_every_seconds=float("inf"))
    clock, memory = Clock(device), 0
    prepared = time.perf_counter()
    clock.start()
    learner.prepare(lambda: arithmetic(model, device.device, device.dtype))
    clock.stop()
    ours = learner.tokens / (learner.tokens + sum(max(1, len(row)) for row in learner.held_rows))
    clock.seconds *= ours  # what is frozen was computed for the scored texts, too
    begun = time.perf_counter()
    as_held = made.hold()
    made.preflight(lambda step, error: None, as_held)
    prepared += time.perf_counter() - begun
    forget_high_water(device)
    curve: list[tuple[float, float, float]] = []

    def evaluate(step: int) -> None:
        nonlocal memory
        clock.stop()
        memory = max(memory, high_water(device))
        if step == steps:
            made.whole()  # the last score is of the weights that are saved
        curve.append((clock.seconds, *score(learner.held_logits(), held.labels)))
        forget_high_water(device)
        clock.start()

    clock.start()
    train(
        model,
        made.optimizer,
        settings,
        device=device.device,
        dtype=device.dtype,
        batch_at=learner.step,
        loss_of=learner.loss,
        record=lambda entry: None,
        evaluate=evaluate,
        save=lambda step: None,
        should_stop=lambda: False,
        recorded=as_held.recorded,
    )
    seconds, accuracy, loss = curve[-1]
    frozen = 0.0 if learner.frozen is None else 2.0 * matrices(model, trained=False)
    spared = last_layer.spared(model.base_model, learner.asked) if variant.method == "head" else None
    if spared is not None:
        frozen -= 2.0 * (1 - learner.asked) * sum(each.numel() for each in spared.parameters() if each.ndim >= 2)
    flops = tuning.flops_per_token(model, learner.asked) * arguments.epochs * variant.epochs + frozen
    return Measured(
        batch=variant.batch,
        rate=settings.learning_rate,
        epochs=arguments.epochs * variant.epochs,
        preparation=prepared - started,
        training=seconds,
        examples=round(arguments.epochs * variant.epochs * len(learn.texts)),
        accuracy=accuracy,
        loss=loss,
        memory=memory,
        peak_flops=devices.matrix_peak(device.device, device.dtype),
        useful_flops=flops * learner.tokens,
        curve=curve,
        machine=machine(device),
    )


def matrices(model: Any, *, trained: bool) -> int:
    """Return how many weights the matrices have in those layers of the decoder that are trained, or not."""
    return sum(
        weight.numel()
        for layer in tuning.layers_of(model)
        for weight in layer.parameters()
        if weight.ndim >= 2 and any(each.requires_grad for each in layer.parameters()) == trained
    )


@contextlib.contextmanager
def random_gpt2(arguments: argparse.Namespace) -> Iterator[str]:
    """Give the name of the model, or for `gpt2-random` a folder with it, which is gone afterwards."""
    if arguments.model != "gpt2-random":
        yield arguments.model
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = models.load_tokenizer(models.find("tiny"))
        torch.manual_seed(arguments.seed)
        GPT2LMHeadModel(GPT2Config(pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield folder


class Clock:
    """Seconds between `start` and `stop`, added up, with nothing left to do on the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.seconds = 0.0

    def start(self) -> None:
        synchronise(self._device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        synchronise(self._device)
        self.seconds += time.perf_counter() - self._started


def score(logits: np.ndarray, labels: list[int]) -> tuple[float, float]:
    """Return accuracy and mean cross entropy in nats."""
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.tensor(labels))
    return float((logits.argmax(axis=1) == labels).mean()), float(loss)


def synchronise(device: Device) -> None:
    if device.device.type == "cuda":
        torch.cuda.synchronize(device.device)


def high_water(device: Device) -> int:
    """Return the most memory in use so far, or since `forget_high_water`, in bytes."""
    if device.device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.device)
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_high_water(device: Device) -> None:
    """Begin anew, so that scoring's memory is not counted (Linux and CUDA; elsewhere it is)."""
    if device.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device.device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def one(arguments: argparse.Namespace) -> Measured:
    """Measure the variant --one in this process."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    variant, device = named(arguments.one), devices.choose()
    if variant.method is None:
        return with_trainer(variant, arguments, device)
    return with_engine(variant, arguments, device)


def surroundings(variant: str) -> dict[str, str]:
    """Return the environment of a variant's process: how threads wait for work is ours to say for `ours`."""
    return {**os.environ, **(waiting(os.environ) if variant.startswith("ours") else {})}


def in_a_process(variant: str, seed: int, arguments: argparse.Namespace) -> Measured:
    command = [sys.executable, __file__, str(arguments.folder), "--one", variant, "--seed", str(seed)]
    for name in ("model", "examples", "epochs"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings(variant))
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def median(measured: list[Measured], value: Callable[[Measured], float]) -> float:
    return statistics.median(value(each) for each in measured)


def time_to_score(measured: list[Measured], documented: list[Measured]) -> dict[str, float | None]:
    """Return the seconds until the documented score was reached, None for never, and how much sooner that was."""
    accuracy, loss = median(documented, lambda each: each.accuracy), median(documented, lambda each: each.loss)
    its = median(documented, lambda each: each.preparation + each.training)

    def until(is_good: Callable[[float, float], bool]) -> float | None:
        found = statistics.median(
            each.preparation + next((at for at, *scores in each.curve if is_good(*scores)), float("inf"))
            for each in measured
        )
        return found if found < float("inf") else None

    to_accuracy, to_loss = until(lambda found, _: found >= accuracy), until(lambda _, found: found <= loss)
    return {
        "s to documented accuracy": to_accuracy,
        "× sooner (accuracy)": to_accuracy and its / to_accuracy,
        "s to documented loss": to_loss,
        "× sooner (loss)": to_loss and its / to_loss,
    }


def summarise(runs: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """Return a row a variant: medians over the repeats, and ratios to the peers within each repeat.

    Shares are of one peak, the highest that any of the runs measured: what it could do at no other moment is no limit.
    """
    peak = max(each.peak_flops for measured in runs.values() for each in measured)

    def times(name: str, peer: str, value: Callable[[Measured], float]) -> float | None:
        if peer not in runs or name == peer:
            return None
        return statistics.median(value(mine) / value(its) for mine, its in zip(runs[name], runs[peer], strict=True))

    rows = []
    documented = runs.get("documented")
    for name, measured in runs.items():
        row: dict[str, Any] = {
            "variant": name,
            "batch": measured[0].batch,
            "learning rate": measured[0].rate,
            "epochs": measured[0].epochs,
            "examples/s": median(measured, lambda each: each.examples / each.training),
            "× documented": times(name, "documented", lambda each: each.examples / each.training),
            "× best": times(name, "best", lambda each: each.examples / each.training),
            "examples/s with preparation": median(
                measured, lambda each: each.examples / (each.preparation + each.training)
            ),
            "total s": median(measured, lambda each: each.preparation + each.training),
            "accuracy": median(measured, lambda each: each.accuracy),
            "loss": median(measured, lambda each: each.loss),
            "memory, MB": median(measured, lambda each: each.memory / 1e6),
            "share of peak": median(measured, lambda each: each.useful_flops / each.training / peak),
        }
        if documented and measured[0].curve:
            row |= time_to_score(measured, documented)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(one(arguments))))
        return

    names = arguments.variants.split(",")
    for name in names:
        named(name)
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for seed in range(arguments.repeats):
        for name in names:
            measured = in_a_process(name, seed, arguments)
            runs[name].append(measured)
            speed = measured.examples / measured.training
            print(
                f"repeat {seed + 1}, {name}: {speed:.1f} examples/s, accuracy {measured.accuracy:.3f}, "
                f"loss {measured.loss:.3f}",
                flush=True,
            )
    about = {
        **runs[names[0]][0].machine,
        "peak": f"{max(each.peak_flops for measured in runs.values() for each in measured) / 1e9:,.0f} GFLOP/s",
        "repeats": arguments.repeats,
    }
    report(
        f"Fine-tuning {arguments.model} on {arguments.examples:,} texts of {arguments.folder.name}",
        about,
        summarise(runs),
        {name: [asdict(each) for each in measured] for name, measured in runs.items()},
        arguments.out,
    )


if __name__ == "__main__":
    main()
