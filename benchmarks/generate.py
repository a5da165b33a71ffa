"""Continue many prompts, and one: this package beside `model.generate`.

    python benchmarks/generate.py SST2_FOLDER [--model smollm2-135m] [--prompts 16] [--new-tokens 64] [--repeats 3]
        [--variants documented,bfloat16,ours,ours-float32] [--threads N] [--out generate]

SST2_FOLDER holds a test table (.csv or .csv.xz) with a column `text`; prompts are the beginnings of its texts, 4 to 48
tokens long. --model is a name that `gptx_nb.engine.models.find` knows. --out writes generate.json (every run) and
generate.md (the table).

    documented     `model.generate` as the transformers documentation has it: float32, the prompts padded on the left,
                   greedy, its default cache
    bfloat16       the same with the model in bfloat16
    ours           `gptx_nb.engine.generate`, products in the arithmetic that the package chooses for answers here
    ours-float32   the same, all in float32

Every run is a process of its own and uses every core; threads of ours wait for work as processes of gptx_nb do
(`launch.waiting`), the others' as torch has it. Variants take turns within a repeat, and a ratio is the median over the
repeats of the ratio within one. No text ends early: end tokens are ordinary ones here. Loading and one short round are
left out. One prompt at a time: the median of the first three. Same tokens: the share of the tokens before the first
that differs from the documented way's, in the mean over the prompts; after a near-tie that falls the other way two
texts have nothing to do with each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from finetune import forget_high_water, high_water, machine, read, surroundings, synchronise
from report import report
from transformers import AutoModelForCausalLM

from gptx_nb.engine import arithmetic, lean, models, products
from gptx_nb.engine import device as devices
from gptx_nb.engine.generate import generate
from gptx_nb.engine.predict import use_all_cores

VARIANTS = ("documented", "bfloat16", "ours", "ours-float32")
SINGLES = 3  # prompts that are continued one at a time


@dataclass(frozen=True)
class Measured:
    """Seconds for all prompts at once, and the median of one at a time; bytes at the highest; each prompt's tokens."""

    many: float
    one: float
    memory: int
    tokens: list[list[int]]
    machine: dict[str, Any]


def prompts_of(tokenizer: Any, folder: Path, number: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    rows = (tokenizer(text)["input_ids"] for text in read(folder, "test").texts)
    long = [row for row in rows if len(row) >= 48]
    return [row[: int(draw.integers(4, 49))] for row in long[:number]]


def measure(arguments: argparse.Namespace) -> Measured:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = devices.choose()
    base = models.find(arguments.model)
    tokenizer = models.load_tokenizer(base)
    tokenizer.padding_side = "left"
    dtype = torch.bfloat16 if arguments.one == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, **base.options).to(device.device)
    model.generation_config.eos_token_id = None
    if arguments.one == "ours":
        products.prepare(model, arithmetic.of_answers(device, written=True).dtype, writes=True)
        lean.use(model)
    elif arguments.one == "ours-float32":
        products.prepare(model, torch.float32)

    def peer(prompts: list[list[int]], new: int) -> list[list[int]]:
        padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(device.device)
        made = model.generate(**padded, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        return [row[padded["input_ids"].shape[1] :] for row in made.tolist()]

    def ours(prompts: list[list[int]], new: int) -> list[list[int]]:
        return [made.tokens for made in generate(model, prompts, max_new_tokens=new)]

    way: Callable[[list[list[int]], int], list[list[int]]] = ours if arguments.one.startswith("ours") else peer
    prompts = prompts_of(tokenizer, arguments.folder, arguments.prompts)

    def seconds(prompts: list[list[int]]) -> tuple[float, list[list[int]]]:
        synchronise(device)
        started = time.perf_counter()
        made = way(prompts, arguments.new_tokens)
        synchronise(device)
        assert all(len(row) == arguments.new_tokens for row in made)
        return time.perf_counter() - started, made

    way(prompts, 4)
    forget_high_water(device)
    many, made = seconds(prompts)
    one = statistics.median(seconds([prompt])[0] for prompt in prompts[:SINGLES])
    return Measured(many, one, high_water(device), made, machine(device))


def in_a_process(variant: str, arguments: argparse.Namespace) -> Measured:
    command = [sys.executable, __file__, str(arguments.folder), "--one", variant]
    for name in ("model", "prompts", "new_tokens", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings(variant))
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def same(found: list[list[int]], expected: list[list[int]]) -> float:
    """Return the mean share of tokens before the first that differs."""
    first = (
        next((place for place, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b), len(its))
        for mine, its in zip(found, expected, strict=True)
    )
    return statistics.mean(place / len(its) for place, its in zip(first, expected, strict=True))


def summarise(runs: dict[str, list[Measured]], tokens: int, new: int) -> list[dict[str, Any]]:
    """Return a row a variant; `tokens` are written in all, `new` a prompt."""
    documented = runs.get("documented")

    def times(name: str, value: Callable[[Measured], float]) -> float | None:
        if documented is None:
            return None
        return statistics.median(value(its) / value(mine) for its, mine in zip(documented, runs[name], strict=True))

    return [
        {
            "variant": name,
            "tokens/s": tokens / statistics.median(each.many for each in measured),
            "× documented": times(name, lambda each: each.many),
            "one prompt, tokens/s": new / statistics.median(each.one for each in measured),
            "× documented (one prompt)": times(name, lambda each: each.one),
            "memory, MB": statistics.median(each.memory for each in measured) / 1e6,
            "same tokens as documented": documented and same(measured[0].tokens, documented[0].tokens),
        }
        for name, measured in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(measure(arguments))))
        return
    names = arguments.variants.split(",")
    if unknown := set(names) - set(VARIANTS):
        raise SystemExit(f"--variants: {', '.join(sorted(unknown))} is none of {', '.join(VARIANTS)}")
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for repeat in range(arguments.repeats):
        for name in names:
            measured = in_a_process(name, arguments)
            runs[name].append(measured)
            speed = arguments.prompts * arguments.new_tokens / measured.many
            print(f"repeat {repeat + 1}, {name}: {speed:.1f} tokens/s, one prompt {measured.one:.2f} s", flush=True)
    about = {
        **runs[names[0]][0].machine,
        "threads": arguments.threads or devices.cores(),
        "repeats": arguments.repeats,
    }
    report(
        f"Continuing {arguments.prompts} prompts by {arguments.new_tokens} tokens with {arguments.model}",
        about,
        summarise(runs, arguments.prompts * arguments.new_tokens, arguments.new_tokens),
        {name: [asdict(each) for each in measured] for name, measured in runs.items()},
        arguments.out,
    )


if __name__ == "__main__":
    main()
