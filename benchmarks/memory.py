"""Hold the estimate of a run's memory against the peak of a process that really trains: a table of both.

    python benchmarks/memory.py

Larger models than those of tests/test_memory.py, whose cells are made in the same way (tests/memory_cells.py). Linux
only: elsewhere the peak of a process cannot be reset.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from memory_cells import Cell, measured

# model, width, layers, method, dtype, packed or padded, longest text, texts, tokens in a micro-batch, streams
GRID = [
    Cell("llama", 256, 10, "full", "bfloat16", "packed", 512, 4, 4096, 1),
    Cell("gpt2", 640, 11, "full", "float32", "padded", 32, 32, 4096, 1),
    Cell("llama", 640, 11, "full", "bfloat16", "packed", 32, 32, 512, 2),
    Cell("llama", 640, 11, "full", "float32", "packed", 128, 16, 1024, 2),
    Cell("llama", 640, 11, "lora", "bfloat16", "packed", 128, 8, 1024, 2),
    Cell("gpt2", 256, 10, "lora", "float32", "padded", 32, 64, 4096, 1),
    Cell("gpt2", 256, 10, "top:2", "float32", "padded", 512, 4, 4096, 1),
    Cell("llama", 640, 11, "top:2", "bfloat16", "packed", 128, 16, 1024, 2),
    Cell("gpt2", 640, 11, "head", "bfloat16", "packed", 128, 32, 1024, 2),
    Cell("gpt2", 640, 11, "full", "bfloat16", "packed", 256, 16, 1024, 2),
]


def main() -> None:
    print(f"{'':58}{'estimate':>9}{'peak':>7} MB")
    for cell in GRID:
        for found in measured(cell):
            numbers = f"{found.estimate / 1e6:9.0f}{found.peak / 1e6:7.0f}{found.error:+8.1%}"
            print(f"{cell!s:58}{numbers}", flush=True)


if __name__ == "__main__":
    main()
