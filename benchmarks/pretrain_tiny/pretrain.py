"""Pretrain the embedded base model `tiny` with the engine's own loop. Stop it at any time; the same command goes on.

    python benchmarks/pretrain_tiny/pretrain.py WORK --steps 2400

WORK is what `prepare.py` wrote. Leaves `checkpoints/`, `log.jsonl` and, at the end, `model/`: a plain Hugging Face
folder in bfloat16, which is what the package ships as `gptx_nb/models/tiny`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gptx_nb.engine import checkpoints
from gptx_nb.engine.tasks import language_modeling
from gptx_nb.engine.train import Settings, make_optimizer, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="rows a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work: Path = arguments.work

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    tokens = np.memmap(work / "train.tokens", dtype="<u2", mode="r")
    held_out = np.memmap(work / "validation.tokens", dtype="<u2", mode="r")
    held_out_bytes = json.loads((work / "corpus.json").read_text(encoding="utf-8"))["validation"]["bytes"]

    torch.manual_seed(arguments.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=arguments.length,
            n_embd=arguments.width,
            n_layer=arguments.layers,
            n_head=arguments.width // 64,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one kernel
            # One pass over more text than the model can hold: dropout would only slow it.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    settings = Settings(
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        warmup=0.02,
        decay="cosine",
        weight_decay=0.1,
        betas=(0.9, 0.95),
        seed=arguments.seed,
        eval_every=500,
        save_every_seconds=120,
    )
    optimizer = make_optimizer(model, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    first_step = 0
    newest = checkpoints.latest(work / "checkpoints")
    if newest:
        first_step = checkpoints.load(newest, model, optimizer)["step"]
        print(f"goes on from step {first_step}", flush=True)
    log = (work / "log.jsonl").open("a", encoding="utf-8")

    def record(entry: dict[str, Any]) -> None:
        log.write(json.dumps(entry) + "\n")
        log.flush()
        if entry["step"] % 50 == 0:
            rate = entry["tokens"] / entry["seconds"]
            left = (settings.steps - entry["step"]) * entry["seconds"] / 60
            print(
                f"step {entry['step']}/{settings.steps}  loss {entry['loss']:.3f}  {rate:.0f} tokens/s  {left:.0f} min",
                flush=True,
            )

    def evaluate(step: int) -> None:
        last = step == settings.steps
        score = language_modeling.bits_per_byte(
            model, held_out, length=arguments.length, text_bytes=held_out_bytes, limit=None if last else 100
        )
        log.write(json.dumps({"step": step, "bits_per_byte": score, "rows": "all" if last else 100}) + "\n")
        print(f"step {step}: {score:.3f} bits per byte on held-out documents", flush=True)

    def save(step: int) -> None:
        checkpoints.save(work / "checkpoints", model, optimizer, {"step": step})
        checkpoints.prune(work / "checkpoints", keep=2)

    started = time.monotonic()
    train(
        model,
        optimizer,
        settings,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        batch_at=lambda step: language_modeling.rows_at(
            step, tokens, length=arguments.length, rows=arguments.rows, micro_rows=arguments.rows, seed=arguments.seed
        ),
        loss_of=language_modeling.loss,
        first_step=first_step,
        record=record,
        evaluate=evaluate,
        save=save,
        should_stop=lambda: False,
    )
    print(f"trained for {(time.monotonic() - started) / 60:.1f} minutes")
    model.to(torch.bfloat16).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


if __name__ == "__main__":
    main()
