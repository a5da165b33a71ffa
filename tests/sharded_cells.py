"""Models that several processes share, beside the same ones in one process, for tests/test_sharding.py.

    distributed.launch(2, "sharded_cells", [FOLDER])

trains each cell in two processes, in shards, and in the first one alone as a whole; FOLDER/CELL.json has what came of
it. A cell is a kind of model with what is special about it.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from memory_cells import PAD
from test_packing import CPU, NO_DROPOUT, ROWS, small
from test_streams import SETTINGS
from transformers import GPT2LMHeadModel

from gptx_nb.engine import checkpoints, memory, packing, precision, tuning
from gptx_nb.engine.distributed import Ranks
from gptx_nb.engine.sharding import Sharded, Whole
from gptx_nb.engine.tasks import targets
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.tasks.encoding import Encoded
from gptx_nb.engine.train import make_optimizer, train

HALF, STEPS, RATE = 3, 6, 1e-4
SCALE = 2.0**20  # too much for float16 at first: steps are left out
# Three rows a step make micro-batches of different numbers: with 20 tokens at once one process has more than the other.
CELLS: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama"},
    "gpt2": {"kind": "gpt2"},
    "padded": {"kind": "llama", "padded": True},
    "lora": {"kind": "llama", "tune": "lora"},
    "twice": {"kind": "gpt2", "twice": True},
    "bfloat16": {"kind": "llama", "dtype": torch.bfloat16},
    "float16": {"kind": "llama", "dtype": torch.float16},
    "writing": {"kind": "gpt2", "writes": True},
}
Way = Whole | Sharded


class Trial:
    """One cell, in shards or whole."""

    def __init__(self, cell: dict[str, Any], ranks: Ranks | None, checkpoint: Path | None = None) -> None:
        self.ranks = ranks
        self.dtype: torch.dtype = cell.get("dtype", torch.float32)
        packing.PACKABLE = () if cell.get("padded") else PACKABLE
        model = small(cell["kind"], **(NO_DROPOUT if cell["kind"] == "gpt2" else {}))
        if cell.get("writes"):
            model = GPT2LMHeadModel(model.config)  # its output layer is its embedding
        tuned = tuning.prepare(model, cell.get("tune", "full"))
        options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": 3, "seed": 0, "token_budget": 20}
        self.learner: task.Learner | targets.Learner
        if cell.get("writes"):
            examples = [Encoded(row, [False, *[True] * (len(row) - 1)]) for row in ROWS if len(row) > 1]
            self.learner = targets.Learner(model, tuned, examples, examples, **options)
        else:
            self.learner = task.Learner(model, tuned, ROWS, [0, 1, 2, 0, 1, 2], ROWS, **options)
        if cell.get("twice"):
            memory.checkpoint_activations(model)
        self.model = model
        # Of AdamW's steps, a share of the rate is as large for gradients that are nothing but rounding.
        self.settings = replace(SETTINGS, steps=STEPS, learning_rate=RATE, save_every_seconds=0.0)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=self.dtype is torch.float16)
        self.way: Way
        if ranks is not None:
            self.way = Sharded(model, self.settings, device=CPU, dtype=self.dtype, ranks=ranks, checkpoint=checkpoint)
            self.way.even(self.learner.longest())
        else:
            lowered = precision.Lowered(model, self.dtype) if self.dtype is torch.bfloat16 else None
            made = lowered.optimizer(RATE, 0.1, (0.9, 0.999)) if lowered else make_optimizer(model, self.settings)
            self.way = Whole(model, made, self.dtype, None)
            self.lowered = lowered
        self.first = self.way.load(checkpoint, self.scaler)["step"] if checkpoint is not None else 0

    def train(self, folder: Path) -> list[dict[str, Any]]:
        """Train to the end; after HALF of the steps there is a checkpoint in `folder`."""
        records: list[dict[str, Any]] = []
        rank, count = (self.ranks.rank, self.ranks.count) if self.ranks else (0, 1)

        def save(step: int) -> None:
            if step == HALF:
                self.way.save(folder, {"step": step}, self.scaler)

        train(
            self.way.model,
            self.way.optimizer,
            self.settings,
            device=CPU,
            dtype=self.way.dtype,
            batch_at=lambda step: self.way.even(self.learner.step(step, rank, count)),
            loss_of=self.way.loss(self.learner.loss),
            first_step=self.first,
            record=records.append,
            evaluate=lambda step: None,
            save=save,
            should_stop=lambda: False,
            scaler=self.scaler,
            reduce=self.way.reduce,
            due=self.way.due,
        )
        self.way.collect()
        return records

    def weights(self) -> dict[str, torch.Tensor]:
        if self.ranks is None and self.lowered is not None:
            self.lowered.restore()
        return {name: each.detach().clone() for name, each in self.model.named_parameters()}


PACKABLE = packing.PACKABLE


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def told(cell: dict[str, Any], ranks: Ranks, folder: Path) -> dict[str, Any]:
    shared = Trial(cell, ranks)
    ours = shared.train(folder / "shared")
    kept = checkpoints.latest(folder / "shared")
    ranks.meet(f"kept {folder.name}")
    kept = kept or checkpoints.latest(folder / "shared")
    again = Trial(cell, ranks, kept)
    again.train(folder / "again")
    shards = {name: tuple(each.to_local().shape) for name, each in shared.way.optimizer.shards.items()}  # type: ignore[union-attr]
    if ranks.rank:
        return {}
    first = Trial(cell, None).weights()
    whole = Trial(cell, None)
    theirs = whole.train(folder / "whole")
    later = Trial(cell, None, kept)
    later.train(folder / "later")
    local = sum(torch.Size(shape).numel() for shape in shards.values())
    trained = sum(each.numel() for each in whole.model.parameters() if each.requires_grad)
    return {
        "losses": [[each["loss"] for each in records] for records in (ours, theirs)],
        "norms": [[each["gradient_norm"] for each in records] for records in (ours, theirs)],
        "apart": apart(shared.weights(), whole.weights()),
        "moved": apart(first, whole.weights()),
        "resumed": apart(shared.weights(), again.weights()),
        "resumed as a whole": apart(shared.weights(), later.weights()),
        "share": local / trained,
        "from": again.first,
        "left out": [
            sum(not math.isfinite(record["gradient_norm"]) for record in records) for records in (ours, theirs)
        ],
    }


def main(folder: Path) -> None:
    ranks = Ranks()
    torch.set_num_threads(1)
    ranks.join(CPU)
    for name, cell in CELLS.items():
        found = told(cell, ranks, folder / name)
        if not ranks.rank:
            (folder / f"{name}.json").write_text(json.dumps(found))
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
