"""The training loop on the embedded base model: exact resume, padding, tied weights."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gptx_nb.engine import checkpoints, device, models, tuning
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Settings, make_optimizer, train

TEXTS = ["This movie is amazing!", "I hate it.", "The service was really bad, and it came late.", "Good"]
LABELS = [1, 0, 0, 1]


def run(
    folder: Path,
    *,
    stop_after: int | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
    method: str = "full",
) -> tuple[list[float], dict[str, Any]]:
    base = models.find("tiny")
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, ["negative", "positive"], seed=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1  # the embedded model has none; only dropout shows whether the generators are seeded anew
    tuned = tuning.prepare(model, method, seed=1)
    settings = Settings(steps=6, learning_rate=1e-3)
    optimizer = make_optimizer(model, settings)
    rows, _ = task.encode(tokenizer, TEXTS, 64)
    learner = task.Learner(
        model,
        tuned,
        rows,
        LABELS,
        [],
        pad_id=tokenizer.pad_token_id,
        device=torch.device("cpu"),
        batch_size=2,
        seed=0,
    )
    learner.prepare(contextlib.nullcontext)
    newest = checkpoints.latest(folder) if resume else None
    # A first scale that is too large: every step until it fits is left out.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17) if dtype is torch.float16 else None
    first = checkpoints.load(newest, model, optimizer, scaler)["step"] if newest else 0
    losses: list[float] = []
    train(
        model,
        optimizer,
        settings,
        device=torch.device("cpu"),
        dtype=dtype,
        batch_at=learner.step,
        loss_of=learner.loss,
        first_step=first,
        record=lambda entry: losses.append(entry["loss"]),
        evaluate=lambda step: None,
        save=lambda step: checkpoints.save(folder, model, optimizer, {"step": step}, scaler) and None,
        should_stop=lambda: stop_after is not None and len(losses) == stop_after,
        scaler=scaler,
    )
    return losses, model.state_dict()


@pytest.mark.parametrize(
    ("dtype", "method"),
    [(torch.float32, "full"), (torch.float16, "full"), (torch.float32, "lora"), (torch.float32, "top:1")],
    ids=str,
)
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not_to_the_last_bit(
    tmp_path: Path, dtype: torch.dtype, method: str
) -> None:
    whole, weights = run(tmp_path / "whole", dtype=dtype, method=method)
    first, _ = run(tmp_path / "cut", stop_after=3, dtype=dtype, method=method)
    second, resumed = run(tmp_path / "cut", resume=True, dtype=dtype, method=method)
    assert first + second == whole
    _, barely = run(tmp_path / "barely", stop_after=1, dtype=dtype, method=method)
    assert not torch.equal(weights["score.weight"], barely["score.weight"]), "steps were taken"
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_a_checkpoint_holds_what_training_changes_and_nothing_else(tmp_path: Path) -> None:
    for method in ("full", "head"):
        run(tmp_path / method, stop_after=2, method=method)
    head = load_file(tmp_path / "head" / "000002" / checkpoints.MODEL)
    assert set(head) == {"score.weight"}
    assert len(load_file(tmp_path / "full" / "000002" / checkpoints.MODEL)) > 50


def test_a_harmed_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path, stop_after=2)
    (tmp_path / "000002" / checkpoints.MODEL).write_bytes(b"harm")
    assert checkpoints.latest(tmp_path) is None


def test_a_batch_of_mixed_lengths_equals_one_text_at_a_time() -> None:
    base = models.find("tiny")
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, ["a", "b", "c"], seed=0)
    texts = [*TEXTS, "it says <|endoftext|>", "<|endoftext|>", ""]
    rows, cut_at = task.encode(tokenizer, texts, 64)
    device = torch.device("cpu")
    together = task.logits(model, rows, pad_id=tokenizer.pad_token_id, device=device, labels=3)
    alone = [task.logits(model, [row], pad_id=tokenizer.pad_token_id, device=device, labels=3)[0] for row in rows]
    assert cut_at == []
    assert np.abs(together - np.stack(alone)).max() < 1e-4


def test_the_use_of_a_cpu_is_the_share_of_its_cores_that_the_process_took() -> None:
    use = device.Use(torch.device("cpu"))
    assert use() is None  # there is nothing to tell yet
    use._every = 0.0
    use._looked, use._took = time.monotonic() - 10, time.process_time() - 5
    assert use() == pytest.approx(0.5 / device.cores(), rel=0.1)
