"""A run whose memory is estimated and then measured, for tests/test_memory.py and benchmarks/memory.py: a cell.

    python tests/memory_cells.py '["gpt2", 256, 8, "full", "float32", "packed", 128, 16, 1024, 2]'

estimates such a run, trains two steps of it in this very process, and prints both as JSON. The model has random
weights. On a CPU Linux only: elsewhere the peak of a process cannot be reset. On a GPU the peak is that of its tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLEAR = Path("/proc/self/clear_refs")
PAD = 1


@dataclass(frozen=True)
class Cell:
    """`longest` in tokens, `at_once`: most tokens of a micro-batch."""

    model: str
    width: int
    layers: int
    tune: str
    dtype: str
    rows: str  # packed or padded
    longest: int
    texts: int
    at_once: int
    streams: int
    processes: int = 1
    sharded: bool = False
    bits: int = 32
    kept: bool = False  # the frozen part, of rows that make many steps
    task: str = "classification"  # or "writing", "pretraining"
    optimizer: str = "adamw"
    device: str = "cpu"

    def __str__(self) -> str:
        words = [str(value) for value in [*vars(self).values()][:10]]
        more = [f"{self.processes} processes"] * (self.processes > 1) + ["shards"] * self.sharded
        more += [f"{self.bits} bits"] * (self.bits != 32) + ["kept"] * self.kept
        usual = {"classification", "adamw", "cpu"}
        last = (each for each in (self.task, self.optimizer, self.device) if each not in usual)
        return " ".join([*words, *more, *last])


@dataclass(frozen=True)
class Measured:
    """In bytes."""

    estimate: int
    peak: int

    @property
    def error(self) -> float:
        return self.estimate / self.peak - 1


def measured(cell: Cell) -> list[Measured]:
    """Return estimate and peak of each of the cell's processes, started as a worker is."""
    from gptx_nb.launch import environment

    done = subprocess.run(
        [sys.executable, __file__, json.dumps([*vars(cell).values()])],
        capture_output=True,
        text=True,
        env={**environment(), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{cell}: {done.stderr}")
    return [Measured(**each) for each in json.loads(done.stdout.splitlines()[-1])]


def model_of(kind: str, width: int, layers: int, classifies: bool = True) -> Any:
    """A classifier or a language model of random weights, GPT-2 or Llama."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": PAD}
    if kind == "gpt2":
        size = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 512}
    else:
        size = {
            "hidden_size": width,
            "intermediate_size": 8 * width // 3,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "num_key_value_heads": width // 128,
        }
    config = AutoConfig.for_model(kind, vocab_size=8000, num_labels=2, **size, **ends)
    return (AutoModelForSequenceClassification if classifies else AutoModelForCausalLM).from_config(config)


def learner_of(
    model: Any,
    method: str,
    longest: int,
    texts: int,
    budget: int,
    streams: int = 1,
    kept: bool = False,
    device: str = "cpu",
) -> Any:
    """A learner; without a frozen part that is `kept`, every step runs the whole model on all texts."""
    import torch

    from gptx_nb.engine import tuning
    from gptx_nb.engine.tasks.text_classification import Learner

    rows = [[5] * (longest - index % 4 * longest // 8) for index in range(texts)]
    tuned = tuning.prepare(model, method)
    options: dict[str, Any] = {"pad_id": PAD, "device": torch.device(device), "batch_size": 16 if kept else texts}
    learner = Learner(model, tuned, rows, [0] * texts, [], seed=0, token_budget=budget, streams=streams, **options)
    if not kept:
        learner.frozen = None
    return learner


def writer_of(model: Any, cell: Cell) -> Any:
    """A learner of answers: the last quarter of each row."""
    import torch

    from gptx_nb.engine import tuning
    from gptx_nb.engine.tasks.encoding import Encoded
    from gptx_nb.engine.tasks.targets import Learner

    lengths = [cell.longest - index % 4 * cell.longest // 8 for index in range(cell.texts)]
    rows = [Encoded([5] * length, [at >= 3 * length // 4 for at in range(length)]) for length in lengths]
    tuned = tuning.prepare(model, cell.tune)
    options: dict[str, Any] = {"pad_id": PAD, "device": torch.device(cell.device), "batch_size": cell.texts, "seed": 0}
    return Learner(model, tuned, rows, [], token_budget=cell.at_once, streams=cell.streams, **options)


def reader_of(model: Any, cell: Cell, folder: Path) -> Any:
    """A learner of plain text in rows of `longest` tokens, `texts` of which are a step."""
    from gptx_nb.engine import shards
    from gptx_nb.engine.tasks.language_modeling import Learner

    shards.write(folder, ((True, [5] * 300, 900) for _ in range(200)), end=0, vocabulary=8000)
    options: dict[str, Any] = {"length": cell.longest, "tokens_per_step": cell.longest * cell.texts, "seed": 0}
    return Learner(model, shards.Shards(folder), token_budget=cell.at_once, streams=cell.streams, **options)


def measure(cell: Cell, ranks: Any = None) -> Measured:
    """Estimate, and train two steps; `ranks`: the processes that do so together."""
    import torch

    from gptx_nb.engine import dropout, memory, packing, precision, pretrain, quantized, setup
    from gptx_nb.engine.sharding import Sharded, Whole
    from gptx_nb.engine.train import Settings, arithmetic, make_optimizer, train

    if cell.rows == "padded":
        packing.PACKABLE = ()
    device, dtype = torch.device(cell.device), getattr(torch, cell.dtype)
    settings = Settings(steps=2, learning_rate=1e-4, optimizer=cell.optimizer)
    model = model_of(cell.model, cell.width, cell.layers, cell.task == "classification")
    if cell.bits == 4:
        quantized.to_4bit(model, dtype)
        model.to(device)  # which quantises
    torch.nn.Module.to(model, device)
    learner: Any
    if cell.task == "writing":
        learner = writer_of(model, cell)
    elif cell.task == "pretraining":
        learner = reader_of(model, cell, Path(tempfile.mkdtemp()) / "shards")
    else:
        sizes = cell.longest, cell.texts, cell.at_once, cell.streams
        learner = learner_of(model, cell.tune, *sizes, kept=cell.kept, device=cell.device)
    torch.nn.Module.to(model, device)  # low-rank updates, too
    dropout.use(model)
    if cell.optimizer == "adamw-8bit":
        import bitsandbytes  # noqa: F401 (its code is in main memory; what is estimated is a GPU's)
    held = memory.held(model, device)
    lowered = precision.Lowered(model, dtype) if dtype is torch.bfloat16 else None
    held += lowered.beside if lowered else 0
    rank, count = (ranks.rank, ranks.count) if ranks else (0, 1)
    estimated = pretrain.estimate_memory if cell.task == "pretraining" else setup.estimate_memory
    estimate = estimated(model, learner, settings, dtype, device, held, count, sharded=cell.sharded, rank=rank)
    if ranks:
        ranks.join(device)
    way: Whole | Sharded
    if cell.sharded:
        if lowered:
            lowered.restore()
        way = Sharded(model, settings, device=device, dtype=dtype, ranks=ranks)
        del model
    else:
        optimizer = lowered.optimizer(1e-4, 0.01, (0.9, 0.999)) if lowered else make_optimizer(model, settings)
        way = Whole(model, optimizer, dtype, ranks)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        CLEAR.write_text("5", encoding="ascii")  # the peak counts from here
    if cell.task != "pretraining":
        learner.prepare(lambda: arithmetic(model, device, dtype))
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    train(
        way.model,
        way.optimizer,
        settings,
        device=device,
        dtype=way.dtype,
        batch_at=lambda step: way.even(learner.step(step, rank, count)),
        loss_of=way.loss(learner.loss),
        reduce=way.reduce,
        record=nothing,
        evaluate=nothing,
        save=nothing,
        should_stop=lambda: False,
    )
    if device.type == "cuda":
        return Measured(estimate.total, torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return Measured(estimate.total, peak)


def main(arguments: list[str]) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    cell = Cell(*json.loads(arguments[0]))
    if cell.processes == 1:
        print(json.dumps([vars(measure(cell))]))
        return
    from gptx_nb.engine import distributed

    if len(arguments) > 1:  # one of them
        import torch

        torch.set_num_threads(1)
        ranks = distributed.Ranks()
        found = ranks.gather("measured", vars(measure(cell, ranks)))
        ranks.leave()
        if ranks.rank == 0:
            Path(arguments[1]).write_text(json.dumps(found), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(Path(__file__).parent))
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        file = Path(folder) / "measured.json"
        failures = distributed.launch(cell.processes, "memory_cells", [arguments[0], str(file)])
        if failures:
            raise RuntimeError(", ".join(map(str, failures)))
        print(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
