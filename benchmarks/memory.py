"""Hold the estimate of a run's memory against the peak of a process that really trains: a table of both.

    python benchmarks/memory.py

Each model has random weights and trains two steps on the CPU, in a process of its own. Linux only: elsewhere the peak
of a process cannot be reset.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from gptx_nb.engine import dropout, memory, packing, precision, setup, tuning
from gptx_nb.engine.tasks.text_classification import Learner
from gptx_nb.engine.train import Settings, make_optimizer, train

CPU = torch.device("cpu")
SETTINGS = Settings(steps=2, learning_rate=1e-4)
PAD = 1

# model, width, layers, method, dtype, packed or padded, longest text, texts, tokens in a micro-batch, streams
GRID: list[tuple[Any, ...]] = [
    ("llama", 256, 10, "full", "bfloat16", "packed", 512, 4, 4096, 1),
    ("gpt2", 640, 11, "full", "float32", "padded", 32, 32, 4096, 1),
    ("llama", 640, 11, "full", "bfloat16", "packed", 32, 32, 512, 2),
    ("llama", 640, 11, "full", "float32", "packed", 128, 16, 1024, 2),
    ("llama", 640, 11, "lora", "bfloat16", "packed", 128, 8, 1024, 2),
    ("gpt2", 256, 10, "lora", "float32", "padded", 32, 64, 4096, 1),
    ("gpt2", 256, 10, "top:2", "float32", "padded", 512, 4, 4096, 1),
    ("llama", 640, 11, "top:2", "bfloat16", "packed", 128, 16, 1024, 2),
    ("gpt2", 640, 11, "head", "bfloat16", "packed", 128, 32, 1024, 2),
    ("gpt2", 640, 11, "full", "bfloat16", "packed", 256, 16, 1024, 2),
]


def model_of(kind: str, width: int, layers: int, *, checkpointing: bool = False) -> PreTrainedModel:
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
    made: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    if checkpointing:
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return made


def learner_of(model: PreTrainedModel, method: str, longest: int, texts: int, budget: int, streams: int) -> Learner:
    """A learner without a frozen part, so that every step runs the whole model."""
    rows = [[5] * (longest - index % 4 * longest // 8) for index in range(texts)]
    tuned = tuning.prepare(model, method)
    options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": texts, "seed": 0, "token_budget": budget}
    learner = Learner(model, tuned, rows, [0] * texts, [], streams=streams, **options)
    learner.frozen = None
    return learner


def measure(kind: str, width: int, layers: int, method: str, arithmetic: str, layout: str, *sizes: int) -> None:
    """Estimate, train two steps, and print both."""
    if layout == "padded":
        packing.PACKABLE = ()
    dtype = getattr(torch, arithmetic)
    model = model_of(kind, width, layers)
    learner = learner_of(model, method, *sizes)
    dropout.use(model)
    held = memory.held(model, CPU)
    lowered = precision.Lowered(model, dtype) if dtype is torch.bfloat16 else None
    held += lowered.beside if lowered else 0
    made = setup.estimate_memory(model, learner, SETTINGS, dtype, CPU, held)
    optimizer = lowered.optimizer(1e-4, 0.01, (0.9, 0.999)) if lowered else make_optimizer(model, SETTINGS)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    train(
        model,
        optimizer,
        SETTINGS,
        device=CPU,
        dtype=dtype,
        batch_at=learner.step,
        loss_of=learner.loss,
        record=nothing,
        evaluate=nothing,
        save=nothing,
        should_stop=lambda: False,
    )
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": peak, "parts": made.parts(), "total": made.total}))


def main() -> None:
    print(f"{'':58}{'estimate':>9}{'peak':>7} MB")
    for cell in GRID:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": memory.TUNABLE}
        command = [sys.executable, __file__, json.dumps(cell)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        numbers = f"{found['total'] / 1e6:9.0f}{found['peak'] / 1e6:7.0f}{found['total'] / found['peak'] - 1:+8.1%}"
        print(f"{' '.join(map(str, cell)):58}{numbers}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*json.loads(sys.argv[1]))
    else:
        main()
