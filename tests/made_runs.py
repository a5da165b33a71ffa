"""Run directories written by hand, as a worker would have left them: for views, which know files only."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from gptx_nb import files
from gptx_nb.metrics import MetricsWriter
from gptx_nb.process import Process
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run, RunStore

SCRIPT = "<script>window.hacked = 1</script><img src=x onerror=window.hacked=1>"

REPORT: dict[str, Any] = {
    "source": "reviews.csv",
    "columns": ["review", "sentiment", "stars"],
    "text": "review",
    "label": "sentiment",
    "why": "text is column 'review' (the longest texts); label is column 'sentiment' (2 different values)",
    "rows": 244,
    "used": 240,
    "dropped": {"empty text": 3, "no label": 1},
    "labels": {"negative": 118, "positive": 122},
    "train": 192,
    "validation": 48,
    "validation_note": "48 of 240 examples held back (validation: 0.2), by label, seed 0",
    "examples": [{"text": "Nice.", "label": "positive"}, {"text": "Awful.", "label": "negative"}],
    "encoding": "utf-8",
    "warnings": ["2 texts stand there twice"],
}

PLAN: dict[str, Any] = {
    "device": {"choice": "cpu", "reason": "no GPU that torch can use is here", "name": "a CPU with 2 cores"},
    "dtype": {"choice": "bfloat16", "reason": "this CPU has AMX"},
    "model": {
        "name": "tiny",
        "where": "ships inside gptx_nb",
        "parameters": 5_400_000,
        "licence": "Apache-2.0",
        "context": 512,
    },
    "learning_rate": {"choice": 0.0005, "reason": "by the model's size"},
    "epochs": {"choice": 5, "reason": "3, or more where that would be fewer than 60 steps"},
    "steps": 60,
    "batch_size": 16,
    "max_length": {"choice": 512, "reason": "the model's context, at most 512"},
    "labels": ["negative", "positive"],
    "train_rows": 192,
    "validation_rows": 48,
    "tokens": {"min": 3, "median": 14, "p95": 40, "max": 61, "cut": 0},
    "rendered": [
        {"text": "The zip broke on the first day and nobody answers.", "label": "negative", "tokens": 12},
        {"text": "I love it!", "label": "positive", "tokens": 4},
        {"text": "Arrived late, works well otherwise.", "label": "positive", "tokens": 8},
    ],
    "notes": [],
}

SCORES: dict[str, Any] = {
    "validation": {
        "rows": 48,
        "accuracy": 0.8125,
        "macro_f1": 0.811,
        "loss": 0.44,
        "labels": ["negative", "positive"],
        "per_class": [
            {"label": "negative", "precision": 0.83, "recall": 0.79, "f1": 0.81, "rows": 24},
            {"label": "positive", "precision": 0.8, "recall": 0.83, "f1": 0.81, "rows": 24},
        ],
        "confusion": [[19, 5], [4, 20]],
    },
    "baselines": {
        "majority": {"accuracy": 0.5, "macro_f1": 0.33},
        "tfidf": {"accuracy": 0.83, "macro_f1": 0.83},
    },
    "best_step": 48,
    "note": None,
    "seconds": 12.4,
    "tokens_per_second": 3100,
}


def make(
    name: str = "reviews",
    *,
    steps: int = 0,
    phase: str | None = None,
    outcome: dict[str, Any] | None = None,
    report: dict[str, Any] | None = REPORT,
    plan: dict[str, Any] | None = PLAN,
    scores: dict[str, Any] | None = None,
    log: str = "",
    data: str = "df",
) -> Run:
    """Make the next version of `name`; without an `outcome` it is trained by this process, that is: it goes on."""

    def fill(folder: Path) -> None:
        request = {
            "recipe": make_recipe({"data": data}).model_dump(mode="json"),
            "source": {"train": None, "validation": None},
            "digest": "0",
            "code": "0",
            "created": 1_790_000_000.0,
        }
        files.write_json(folder / "request.json", request)

    run = RunStore().create(name, fill)
    me = json.dumps(Process.of(os.getpid()).to_json()).encode()
    files.create_exclusive(run.claim_file(1), me)
    files.write_bytes(run.process_file(1), me)
    if report is not None:
        files.write_json(run.report_file, report)
    if plan is not None:
        files.write_json(run.plan_file, plan)
    if scores is not None:
        files.write_json(run.scores_file, scores)
        run.model.mkdir()
    if log:
        files.write_text(run.log_file(1), log)
    if phase:
        writer = MetricsWriter(run.metrics_file(1))
        writer.append({"kind": "start", "step": 0, "steps": 60, "time": time.time()})
        writer.append({"kind": "phase", "phase": phase, "time": time.time()})
        for step in range(1, steps + 1):
            writer.append(step_record(step))
            if step % 12 == 0:
                writer.append(evaluation_record(step))
        writer.close()
    if outcome is not None:
        files.write_json(run.outcome_file(1), {"exit_status": None, "signal": None, **outcome})
    return run


def step_record(step: int) -> dict[str, Any]:
    loss = 0.25 + 0.5 * math.exp(-step / 20) + 0.05 * math.sin(step)
    return {
        "kind": "step",
        "step": step,
        "epoch": step / 12,
        "loss": loss,
        "learning_rate": 5e-4,
        "gradient_norm": 1.0,
        "tokens": 620,
        "seconds": 0.2,
        "time": 1_790_000_000.0 + 0.25 * step,
    }


def evaluation_record(step: int) -> dict[str, Any]:
    return {
        "kind": "evaluation",
        "step": step,
        "validation_loss": 0.3 + 0.4 * math.exp(-step / 24),
        "accuracy": 0.9 - 0.4 * math.exp(-step / 16),
        "macro_f1": 0.8,
        "time": 1_790_000_000.0 + 0.25 * step,
    }


FINISHED: dict[str, Any] = {"reason": "finished", "exit_status": 0}
STOPPED: dict[str, Any] = {"reason": "stopped", "exit_status": 3}
FAILED: dict[str, Any] = {"reason": "out of memory", "signal": 9, "error": None, "message": None}
KILLED: dict[str, Any] = {"reason": "killed", "signal": 15}
