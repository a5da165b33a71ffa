"""Pretrain the embedded base model `tiny` with the engine's own loop. Stop it at any time; the same command goes on.

    python benchmarks/pretrain_tiny/pretrain.py WORK --steps 2400

WORK is what `prepare.py` wrote. Leaves `checkpoints/`, `log.jsonl` and, at the end, `model/`: a plain Hugging Face
folder in bfloat16, which is what the package ships as `gptx_nb/models/tiny`.

The learning rate stays constant for 70 of 100 steps (schedule "wsd"): while it does, the same command with more or
fewer `--steps` makes the run longer or shorter. Rows have 256 tokens in that time, which costs less than the whole
context, and 512 in the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gptx_nb.engine import checkpoints
from gptx_nb.engine import device as devices
from gptx_nb.engine.tasks import language_modeling
from gptx_nb.engine.train import Settings, make_optimizer, train

CONTEXT = 512
SHORT = 256  # tokens a row before the cooldown


def new_model(work: Path, width: int, layers: int, vocabulary: int, end: int) -> GPT2LMHeadModel:
    """GPT-2 with random weights, but for the token embeddings, which begin where the corpus's co-occurrences say."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=CONTEXT,
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one kernel
            # Less than one pass over the text: dropout would only slow it.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    vectors = load_file(work / "embeddings.safetensors")["embeddings"][:, :width]
    vectors = vectors - vectors.mean(dim=0)
    length = model.config.initializer_range * math.sqrt(width)  # that of a random row
    model.transformer.wte.weight.data.copy_(length * torch.nn.functional.normalize(vectors))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work: Path = arguments.work

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    tokens = np.memmap(work / "train.tokens", dtype="<u2", mode="r")
    held_out = np.memmap(work / "validation.tokens", dtype="<u2", mode="r")
    held_out_bytes = json.loads((work / "corpus.json").read_text(encoding="utf-8"))["validation"]["bytes"]

    torch.manual_seed(arguments.seed)
    model = new_model(work, arguments.width, arguments.layers, len(tokenizer), tokenizer.eos_token_id)
    settings = Settings(
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        warmup=0.02,
        decay="wsd",
        cooldown=0.3,
        optimizer="muon",
        weight_decay=0.1,
        betas=(0.9, 0.95),
        seed=arguments.seed,
        eval_every=200,
        save_every_seconds=120,
    )
    optimizer = make_optimizer(model, settings)
    chosen = devices.choose()
    model.to(chosen.device)
    if chosen.device.type == "cpu":
        # Rows this short are quicker in plain matrix products than in the fused kernel.
        model.set_attn_implementation("eager")
    print(f"{chosen.name}: {chosen.dtype}, {chosen.dtype_reason}; {torch.get_num_threads()} threads", flush=True)

    first_step = 0
    newest = checkpoints.latest(work / "checkpoints")
    if newest:
        first_step = checkpoints.load(newest, model, optimizer)["step"]
        print(f"goes on from step {first_step}", flush=True)
    log = (work / "log.jsonl").open("a", encoding="utf-8")

    def batch_at(step: int) -> language_modeling.Rows:
        length = SHORT if step < (1 - settings.cooldown) * settings.steps else CONTEXT
        rows = arguments.tokens // length
        # Twice as long rows are half as many: the position in the shuffled corpus is about the same.
        return language_modeling.rows_at(
            step, tokens, length=length, rows=rows, micro_rows=max(1, rows // 2), seed=arguments.seed
        )

    def record(entry: dict[str, Any]) -> None:
        log.write(json.dumps(entry) + "\n")
        log.flush()
        if entry["step"] % 20 == 0:
            rate = entry["tokens"] / entry["seconds"]
            left = (settings.steps - entry["step"]) * entry["seconds"] / 60
            print(
                f"step {entry['step']}/{settings.steps}  loss {entry['loss']:.3f}  {rate:.0f} tokens/s  {left:.0f} min",
                flush=True,
            )

    def evaluate(step: int) -> None:
        last = step == settings.steps
        length = CONTEXT if step > (1 - settings.cooldown) * settings.steps else SHORT
        score = language_modeling.bits_per_byte(
            model, held_out, length=length, text_bytes=held_out_bytes, limit=None if last else 100
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
        device=chosen.device,
        dtype=chosen.dtype,
        batch_at=batch_at,
        loss_of=language_modeling.loss,
        first_step=first_step,
        record=record,
        evaluate=evaluate,
        save=save,
        should_stop=lambda: False,
    )
    print(f"trained for {(time.monotonic() - started) / 60:.1f} minutes")
    model.set_attn_implementation("sdpa")
    # A thousand examples are gone through several times: GPT-2's own dropout, for fine-tuning.
    for part in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, part, 0.1)
    model.to(torch.bfloat16).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


if __name__ == "__main__":
    main()
