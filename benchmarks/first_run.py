"""Measure the first run as a user meets it: imports, an answering kernel, cell to prediction, nothing left behind.

    python benchmarks/first_run.py [--repeats 3] [--out first_run.json]

Everything happens in real kernels and in a home of its own. Prints medians over the repeats:

- seconds for `import gptx_nb` and `%load_ext gptx_nb` together, in a fresh kernel;
- seconds from running the three-sentence cell to its prediction, cold: no process of ours is running;
- milliseconds until the kernel answers `1+1` while a run trains;
- whether torch is loaded in the kernel after all that;
- processes (and GPU memory, where there is a GPU) left five seconds after the inference process was freed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

CELL = """%%gpt_finetune demo
task: text-classification
examples:
  - [This movie is amazing!, positive]
  - [I hate this product., negative]
  - [The service was really bad., negative]
"""
ASK = '%gpt_predict demo "This is a great product, I love it!"'
LONG = """%%gpt_finetune busy
data: busy
epochs: 100
"""
TABLE = """
import pandas as pd
words = {"a good": "yes", "a bad": "no", "a fine": "yes", "a poor": "no"}
rows = [(f"{word} {thing} {n}", label) for word, label in words.items() for thing in ("film", "book") for n in range(9)]
busy = pd.DataFrame(rows, columns=["text", "label"])
"""


def run(client: BlockingKernelClient, code: str, timeout: float = 300) -> tuple[float, str]:
    """Run a cell; return the seconds it took and its text. Raises RuntimeError where it fails."""
    texts: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "error":
            raise RuntimeError("\n".join(content["traceback"]))
        if message["msg_type"] == "stream":
            texts.append(content["text"])
        elif "data" in content:
            texts.append(content["data"].get("text/plain", ""))

    started = time.perf_counter()
    client.execute_interactive(code, timeout=timeout, output_hook=keep)
    return time.perf_counter() - started, "\n".join(texts)


def ours(home: Path) -> list[str]:
    """Return the command lines of processes that work for this home."""
    listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if "gptx_nb." in line and str(home) in line]


def gpu_memory() -> dict[str, str]:
    """Return pid -> memory of the processes on NVIDIA GPUs; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(", ", 1) for line in lines if line.strip())


def once() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["GPTX_HOME"] = str(home)
        before = gpu_memory()
        manager: KernelManager
        client: BlockingKernelClient
        manager, client = start_new_kernel()
        try:
            run(client, "1 + 1")
            loading, _ = run(client, "import gptx_nb\n%load_ext gptx_nb")
            training, _ = run(client, CELL)
            asking, answer = run(client, ASK)

            run(client, TABLE)
            run(client, LONG)
            answers = [run(client, "1 + 1")[0] for _ in range(40) if not time.sleep(0.1)]
            _, state = run(client, "[run.state() for run in gptx_nb.runs() if run.name == 'busy']")
            _, torch = run(client, "import sys; 'torch' in sys.modules")
            run(client, "%gpt_stop busy")
            run(client, "from gptx_nb import inference; inference.free()")
            time.sleep(5)
            left = ours(home)
            gpu = {pid: size for pid, size in gpu_memory().items() if pid not in before}
        finally:
            manager.shutdown_kernel(now=True)
            client.stop_channels()
    return {
        "import and load_ext, s": loading,
        "three-sentence cell to prediction, s": training + asking,
        "answer": " ".join(answer.split()),
        "1+1 while training, ms": statistics.median(answers) * 1000,
        "1+1 while training, slowest, ms": max(answers) * 1000,
        "state while asked": state,
        "torch in the kernel": torch.strip(),
        "processes left": len(left),
        "GPU processes left": len(gpu),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = [once() for _ in range(arguments.repeats)]
    summary = {}
    for name, first in measured[0].items():
        values = [each[name] for each in measured]
        summary[name] = statistics.median(values) if isinstance(first, int | float) else values
        print(f"{name}: {summary[name]}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"median": summary, "every": measured}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
