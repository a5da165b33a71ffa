"""Carries one attempt of a run from its table to its model. Talks to nobody: everything goes to the run's directory.

    python -m gptx_nb.worker RUN_DIR ATTEMPT
    python -m gptx_nb.worker --device          prints what this machine computes on, as JSON

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
from gptx_nb.metrics import MetricsWriter
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run
from gptx_nb.sources import check_unchanged

if TYPE_CHECKING:
    from gptx_nb.engine.data import Table
    from gptx_nb.engine.tasks.text_classification import Learner

FINISHED, FAILED, MISTAKE, STOPPED = 0, 1, 2, 3


def main(arguments: list[str]) -> int:
    if arguments == ["--device"]:
        from gptx_nb.engine import device

        print(json.dumps(device.choose().to_json()))
        return FINISHED
    run, attempt = Run(Path(arguments[0])), int(arguments[1])
    os.nice(5)  # the notebook answers first
    metrics = MetricsWriter(run.metrics_file(attempt))
    words: dict[str, Any]
    try:
        stopped = _Attempt(run, attempt, metrics).carry_out()
        status = STOPPED if stopped else FINISHED
        words = {"reason": "stopped" if stopped else "finished", "error": None, "message": None}
    except UsageError as error:
        status = MISTAKE
        words = {"reason": "mistake", "error": type(error).__name__, "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        status = FAILED
        words = _last_words(error, run)
    metrics.close()
    files.write_json(run.end_file(attempt), words)
    if status == FINISHED:  # and said so: from here on only the model is needed
        for folder in (run.checkpoints, run.best):
            files.remove_folder(folder)
    return status


def _last_words(error: Exception, run: Run) -> dict[str, Any]:
    from gptx_nb.engine.device import is_out_of_memory

    if is_out_of_memory(error):
        recipe = run.recipe()
        shorter = f"`max_length: {recipe.max_length // 2}`" if recipe.max_length else "a smaller max_length"
        other = {"full": "`tune: lora`", "head": "a smaller model"}.get(recipe.tune, "`tune: head`")
        message = f"the device has too little memory, even for one text at a time. Type {shorter} or {other}"
        return {"reason": "out of memory", "error": type(error).__name__, "message": message}
    if files.disk_is_full(error):
        message = f"no room is left on the disk of {run.folder}. Free some first"
        return {"reason": "failed", "error": "OSError", "message": message}
    return {"reason": "failed", "error": type(error).__name__, "message": str(error) or type(error).__name__}


class _Attempt:
    """One attempt, from top to bottom in `carry_out`."""

    def __init__(self, run: Run, attempt: int, metrics: MetricsWriter) -> None:
        self.run = run
        self.attempt = attempt
        self.metrics = metrics
        self.terminated = False
        # A machine that shuts down, or a queue that ends a job, sends this first: save and stop, as if asked.
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_terminate(self, *_: object) -> None:
        self.terminated = True

    def phase(self, name: str) -> None:
        self.metrics.append({"kind": "phase", "phase": name, "time": time.time()})

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
        recipe = run.recipe()
        self.phase("data")
        table = self._table(recipe)

        self.phase("model")
        from gptx_nb.engine import checkpoints, evaluate, models, plan, setup
        from gptx_nb.engine.train import Batch, arithmetic, make_scaler, train

        made = setup.prepare(recipe, table, self.note)
        model, learner, settings, device = made.model, made.learner, made.settings, made.device
        if not run.recipe_file.exists():
            files.write_text(run.recipe_file, made.resolved.to_yaml())
        optimizer = made.optimizer
        scaler = make_scaler(device.device, device.dtype)
        best: dict[str, Any] = {"score": None, "step": None}
        first_step = 0
        if checkpoint := checkpoints.latest(run.checkpoints):
            progress = checkpoints.load(checkpoint, model, optimizer, scaler)
            first_step, best = progress["step"], progress["best"]
        # A later attempt may have another device; all else was decided by the first.
        files.write_json(run.plan_file, {**made.decided, **(run.plan() or {}), **plan.machine(device)})

        def score() -> dict[str, Any]:
            assert table.validation is not None
            return evaluate.scores(table.labels, table.validation.labels, learner.held_logits())

        def record(entry: dict[str, Any]) -> None:
            epoch = entry["step"] / made.steps_per_epoch
            self.metrics.append({"kind": "step", **entry, "epoch": epoch, "time": time.time()})

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
                    checkpoints.save_best(run.best, step, model, made.masters())
                    checkpoints.prune_best(run.best, run.checkpoints, step)

        def save(step: int) -> None:
            checkpoints.save(run.checkpoints, model, optimizer, {"step": step, "best": best}, scaler)
            checkpoints.prune(run.checkpoints, keep=2)
            checkpoints.prune_best(run.best, run.checkpoints, best["step"])

        def with_less_memory(step: int, error: BaseException) -> Batch | None:
            if (how := learner.need_less_memory()) is None:
                return None
            when = f"at step {step + 1}" if step >= 0 else "before the first step"
            self.note(
                f"memory ran out {when}: going on with {how}; the result stays the same. "
                f"`tokens_at_once: {learner.token_budget}` begins so"
            )
            return learner.step(step) if step >= 0 else made.trial()

        self._keep_frozen_part(learner, lambda: arithmetic(model, device.device, device.dtype))
        self.phase("preflight")
        trial = made.preflight(with_less_memory)
        files.write_json(run.plan_file, {**(run.plan() or {}), **trial})
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
            with_less_memory=with_less_memory,
        )

        self.phase("scoring")
        kept_step = end.step
        made.whole()
        if recipe.keep == "best" and best["step"] is not None:
            checkpoints.load_best(run.best, best["step"], model)
            kept_step = best["step"]
        self._write_scores(recipe, table, score() if table.validation is not None else None, kept_step)

        self.phase("saving")
        # A run that was stopped has left a model of its own; this one takes its place. Readers keep what they opened.
        if run.model.exists():
            files.remove_folder(run.model)
        models.save(run.model, made.finish(kept_step), made.tokenizer, made.max_length)
        run.frozen_part.unlink(missing_ok=True)
        return end.early

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
