"""Carries one attempt of a run from its table to its model. Talks to nobody: everything goes to the run's directory.

    python -m gptx_nb.worker RUN_DIR ATTEMPT
    python -m gptx_nb.worker --device          prints what this machine computes on, as JSON

A run that does not fit beside those that train already waits in line (gptx_nb/line.py). It holds no model meanwhile:
the process begins anew, waits before torch is imported, and prepares itself once more when its turn has come.

Exit status 0: finished; 3: stopped as asked, saved; 2: the user's mistake, told in end-N.json; 1: a bug or a lack of
memory, told in end-N.json and with its traceback in the log. The data are checked before torch is imported, so that a
mistake in the table is told within a second or two.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx_nb import files
from gptx_nb.errors import RunFailed, UsageError
from gptx_nb.line import LIMIT, Line, limit
from gptx_nb.metrics import MetricsWriter
from gptx_nb.process import Process
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run
from gptx_nb.sources import check_unchanged

if TYPE_CHECKING:
    from gptx_nb.engine.data import Table
    from gptx_nb.engine.setup import Setup
    from gptx_nb.engine.tasks.text_classification import Learner

FINISHED, FAILED, MISTAKE, STOPPED = 0, 1, 2, 3
NICE = 5
LOOK = 0.5  # seconds between looks at the line


def main(arguments: list[str]) -> int:
    if arguments == ["--device"]:
        from gptx_nb.engine import device

        print(json.dumps(device.choose().to_json()))
        return FINISHED
    run, attempt = Run(Path(arguments[0])), int(arguments[1])
    os.nice(max(0, NICE - os.nice(0)))  # the notebook answers first; one that waited in line is nice already
    metrics = MetricsWriter(run.metrics_file(attempt))
    words: dict[str, Any]
    line = Line(run, attempt)
    try:
        stopped = _Attempt(run, attempt, metrics, line).carry_out()
        status = STOPPED if stopped else FINISHED
        words = {"reason": "stopped" if stopped else "finished", "error": None, "message": None}
    except UsageError as error:
        status = MISTAKE
        words = {"reason": "mistake", "error": type(error).__name__, "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        status = FAILED
        words = _last_words(error, run)
    line.leave()
    metrics.close()
    files.write_json(run.end_file(attempt), words)
    if status == FINISHED:  # and said so: from here on only the model is needed
        for folder in (run.checkpoints, run.best):
            files.remove_folder(folder)
    return status


def _last_words(error: Exception, run: Run) -> dict[str, Any]:
    from gptx_nb.engine.predict import is_out_of_memory

    if is_out_of_memory(error):
        recipe = run.recipe()
        message = (
            f"the device has too little memory for batch_size: {recipe.batch_size}. Type "
            f"`batch_size: {max(1, recipe.batch_size // 2)}`, or a smaller max_length"
        )
        return {"reason": "out of memory", "error": type(error).__name__, "message": message}
    if files.disk_is_full(error):
        message = f"no room is left on the disk of {run.folder}. Free some first"
        return {"reason": "failed", "error": "OSError", "message": message}
    return {"reason": "failed", "error": type(error).__name__, "message": str(error) or type(error).__name__}


class _Attempt:
    """One attempt, from top to bottom in `carry_out`."""

    def __init__(self, run: Run, attempt: int, metrics: MetricsWriter, line: Line) -> None:
        self.run = run
        self.line = line
        self.attempt = attempt
        self.metrics = metrics
        self.terminated = False
        # A machine that shuts down, or a queue that ends a job, sends this first: save and stop, as if asked.
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_terminate(self, *_: object) -> None:
        self.terminated = True

    def phase(self, name: str, **more: Any) -> None:
        self.metrics.append({"kind": "phase", "phase": name, **more, "time": time.time()})

    def note(self, text: str) -> None:
        self.metrics.append({"kind": "note", "text": text, "time": time.time()})

    def should_stop(self) -> bool:
        if self.run.claim_file(self.attempt + 1).exists():
            raise RunFailed(
                f"attempt {self.attempt + 1} goes on with this run: this one, on {platform.node()}, gave no sign of "
                "life for so long that it was taken for dead"
            )
        return self.terminated or self.run.stop_file.exists()

    def carry_out(self) -> bool:
        """Return whether the run was stopped before its last step."""
        run = self.run
        if self._waits_in_line():
            return True
        recipe = run.recipe()
        self.phase("data")
        table = self._table(recipe)

        self.phase("model")
        from gptx_nb.engine import checkpoints, evaluate, memory, models, plan, setup, tuning
        from gptx_nb.engine.train import autocast, make_optimizer, make_scaler, train

        made = setup.prepare(recipe, table, self.note)
        model, learner, settings, device = made.model, made.learner, made.settings, made.device
        # A later attempt may have another device; all else was decided by the first that began to train.
        before = run.plan() if run.recipe_file.exists() else None
        files.write_json(run.plan_file, {**made.decided, **(before or {}), **plan.machine(device)})
        self._take_place(made)
        if not run.recipe_file.exists():
            files.write_text(run.recipe_file, made.resolved.to_yaml())
        optimizer = make_optimizer(model, settings)
        scaler = make_scaler(device.device, device.dtype)
        best: dict[str, Any] = {"score": None, "step": None}
        first_step = 0
        if checkpoint := checkpoints.latest(run.checkpoints):
            progress = checkpoints.load(checkpoint, model, optimizer, scaler)
            first_step, best = progress["step"], progress["best"]

        def score() -> dict[str, Any]:
            assert table.validation is not None
            return evaluate.scores(table.labels, table.validation.labels, learner.held_logits())

        def record(entry: dict[str, Any]) -> None:
            epoch = entry["step"] / made.steps_per_epoch
            held = memory.taken(device.device)
            self.metrics.append({"kind": "step", **entry, "epoch": epoch, "memory": held, "time": time.time()})

        def evaluate_at(step: int) -> None:
            nonlocal best
            if table.validation is None:
                return
            found = score()
            self.metrics.append(
                {
                    "kind": "evaluation",
                    "step": step,
                    "validation_loss": found["loss"],
                    "accuracy": found["accuracy"],
                    "macro_f1": found["macro_f1"],
                    "time": time.time(),
                }
            )
            # Among equal accuracies the surer one: a small validation set has many ties.
            rank = [found["accuracy"], -found["loss"]]
            if best["score"] is None or rank > best["score"]:
                best = {"score": rank, "step": step}
                if recipe.keep == "best":
                    checkpoints.save_best(run.best, step, model)
                    checkpoints.prune_best(run.best, run.checkpoints, step)

        def save(step: int) -> None:
            checkpoints.save(run.checkpoints, model, optimizer, {"step": step, "best": best}, scaler)
            checkpoints.prune(run.checkpoints, keep=2)
            checkpoints.prune_best(run.best, run.checkpoints, best["step"])

        self._keep_frozen_part(learner, lambda: autocast(device.device, device.dtype))
        self.metrics.append({"kind": "start", "step": first_step, "steps": settings.steps, "time": time.time()})
        self.phase("training")
        end = train(
            model,
            optimizer,
            settings,
            device=device.device,
            dtype=device.dtype,
            batch_at=learner.step,
            loss_of=learner.loss,
            first_step=first_step,
            record=record,
            evaluate=evaluate_at,
            save=save,
            should_stop=self.should_stop,
            scaler=scaler,
        )

        self.phase("scoring")
        kept_step = end.step
        if recipe.keep == "best" and best["step"] is not None:
            checkpoints.load_best(run.best, best["step"], model)
            kept_step = best["step"]
        self._write_scores(recipe, table, score() if table.validation is not None else None, kept_step)

        self.phase("saving")
        # A run that was stopped has left a model of its own; this one takes its place. Readers keep what they opened.
        if run.model.exists():
            files.remove_folder(run.model)
        models.save(run.model, tuning.merge(model), made.tokenizer, made.max_length)
        run.frozen_part.unlink(missing_ok=True)
        return end.early

    def _waits_in_line(self) -> bool:
        """Wait until the attempt may train, if it has taken a place in line; return whether it was stopped there."""
        place = self.line.mine()
        while place is not None and not place.trains and not self.line.its_turn():
            if self.should_stop():
                return True
            time.sleep(LOOK)
        return False

    def _take_place(self, made: Setup) -> None:
        """Return once the attempt may train. Where it has to wait in line, this process begins anew, and holds nothing.

        A process that runs another program keeps its number and its start: it stays the worker of this attempt.
        """
        from gptx_nb.engine import memory

        demands = memory.demand(made.estimate, made.device.device)
        verdict = self.line.take(demands, Process.of(os.getpid()))
        if verdict.answer == "too large" and (most := limit()) is not None and verdict.needs > most:
            self.note(
                f"it needs {verdict.needs / 1e9:.1f} GB, and {LIMIT} allows {most / 1e9:.1f} GB: it starts anyway"
            )
        if verdict.answer == "waits":
            self.phase(
                "queue",
                needs=verdict.needs,
                free=verdict.free,
                beside=[each.name for each in verdict.beside],
                behind=[each.name for each in verdict.behind],
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def _keep_frozen_part(self, learner: Learner, autocast: Callable[[], Any]) -> None:
        """Compute once what no epoch changes, and say where it is kept."""
        import torch

        from gptx_nb.engine import plan
        from gptx_nb.engine.device import memory

        if learner.frozen is None:
            return
        self.phase("frozen")
        size = learner.frozen.bytes
        memory_free, disk_free = memory(torch.device("cpu"))[1], shutil.disk_usage(self.run.folder).free
        place, reason = plan.place_of_frozen_part(size, memory_free, disk_free)
        self.note(f"frozen part kept in {place}: {reason}" if place != "nowhere" else f"frozen part: {reason}")
        if place == "nowhere":
            learner.frozen = None
        else:
            learner.prepare(autocast, self.run.frozen_part if place == "disk" else None)

    def _table(self, recipe: Recipe) -> Table:
        """Read the snapshot, or make it from the source in the first attempt."""
        from gptx_nb.engine import data

        if self.run.report_file.exists():
            return data.load_snapshot(self.run.data)
        sources = self.run.sources()
        try:
            table = data.load(recipe, sources, self.run.folder)
        finally:  # whatever was found in a table that changed meanwhile, that it has changed is what to say
            for source, setting in ((sources["train"], "data"), (sources["validation"], "validation")):
                if source:
                    check_unchanged(source, setting, self.run.folder)
        data.save_snapshot(table, self.run.data)
        return table

    def _write_scores(self, recipe: Recipe, table: Table, scores: dict[str, Any] | None, kept_step: int) -> None:
        from gptx_nb.engine import evaluate

        steps = [record for record in self.run.history() if record.get("kind") == "step"]
        seconds = sum(record["seconds"] for record in steps)
        compare = recipe.baselines and table.validation is not None
        files.write_json(
            self.run.scores_file,
            {
                "validation": scores,
                "baselines": _baselines(evaluate.baselines, table) if compare else {},
                "best_step": kept_step,
                "note": None if scores else table.report["validation_note"],
                "seconds": seconds,
                "tokens_per_second": sum(record["tokens"] for record in steps) / seconds if seconds else None,
            },
        )


def _baselines(score: Callable[..., dict[str, dict[str, float]]], table: Table) -> dict[str, dict[str, float]]:
    assert table.validation is not None
    return score(table.train, table.validation)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
