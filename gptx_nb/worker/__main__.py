"""Carries one attempt of a run from its table to its model. Talks to nobody: everything goes to the run's directory.

    python -m gptx_nb.worker RUN_DIR ATTEMPT
    python -m gptx_nb.worker --rank RUN_DIR ATTEMPT   one of several that train together; the first one starts them
    python -m gptx_nb.worker --evaluate FOLDER        scores a model on a table (gptx_nb/evaluations.py)
    python -m gptx_nb.worker --merge FOLDER TARGET    makes a plain model of an adapter
    python -m gptx_nb.worker --unfinished RUN_DIR     makes a model of the weights that it saved last
    python -m gptx_nb.worker --rehearse FOLDER        says what a recipe would take (gptx_nb/rehearsals.py)
    python -m gptx_nb.worker --device                 prints what this machine computes on, as JSON

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
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from gptx_nb import files, memory_words, pretraining_words, writing_words
from gptx_nb.errors import DISK_FULL, RunFailed, UsageError
from gptx_nb.line import LIMIT, Demand, Line, limit
from gptx_nb.main_memory import out_of_memory_kills
from gptx_nb.metrics import MetricsWriter
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.process import Process
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run
from gptx_nb.sources import check_unchanged
from gptx_nb.worker.levers import Levers

if TYPE_CHECKING:
    import torch

    from gptx_nb.engine.batches import Step
    from gptx_nb.engine.distributed import Failure, Ranks
    from gptx_nb.engine.examples import AnyTable
    from gptx_nb.engine.jobs import Job, Learner
    from gptx_nb.engine.pretrain import Pretraining
    from gptx_nb.engine.setup import Setup

R = TypeVar("R", Recipe, PretrainRecipe)

FINISHED, FAILED, MISTAKE, STOPPED = 0, 1, 2, 3
NICE = 5
LOOK = 0.5  # seconds between looks at the line
IN_LINE = "in line"  # last word of a rank whose run has to wait


def main(arguments: list[str]) -> int:
    if arguments == ["--device"]:
        from gptx_nb.engine import arithmetic, device

        chosen = device.choose()
        peak = device.matrix_peak(chosen.device, chosen.dtype, seconds=0.05)
        answers = str(arithmetic.of_answers(chosen))
        told = {"matrix_peak": peak, "copy_speed": device.copy_speed(chosen.device), "answers": answers}
        print(json.dumps({**chosen.to_json(), **told}))
        return FINISHED
    if arguments[0] == "--evaluate":
        from gptx_nb.worker import evaluation

        return evaluation.carry_out(Path(arguments[1]))
    if arguments[0] == "--merge":
        from gptx_nb.worker import merging

        return merging.carry_out(Path(arguments[1]), Path(arguments[2]))
    if arguments[0] == "--unfinished":
        from gptx_nb.worker import unfinished

        return unfinished.carry_out(Run(Path(arguments[1])))
    if arguments[0] == "--rehearse":
        from gptx_nb.worker import rehearsal

        return rehearsal.carry_out(Path(arguments[1]))
    ranks: Ranks | None = None
    if arguments[0] == "--rank":
        from gptx_nb.engine.distributed import Ranks

        ranks, arguments = Ranks(), arguments[1:]
    rank = ranks.rank if ranks else 0
    run, attempt = Run(Path(arguments[0])), int(arguments[1])
    os.nice(max(0, NICE - os.nice(0)))  # the notebook answers first; one that waited in line is nice already
    metrics = MetricsWriter(run.of_rank(run.metrics_file(attempt), rank))
    line = Line(run, attempt)
    words: dict[str, Any]
    carried = Attempt(run, attempt, metrics, line, ranks)
    try:
        stopped = carried.carry_out()
        status = STOPPED if stopped else FINISHED
        words = {"reason": "stopped" if stopped else "finished", "error": None, "message": None}
    except _Waits:
        status = FINISHED
        words = {"reason": IN_LINE, "error": None, "message": None}
    except _RanksFailed as error:
        words = error.words
        status = MISTAKE if words["reason"] == "mistake" else FAILED
    except UsageError as error:
        status = MISTAKE
        words = {"reason": "mistake", "error": type(error).__name__, "message": str(error)}
    except Exception as error:
        if not files.disk_is_full(error):  # that is no bug, and its words say all there is
            traceback.print_exc()
        status = FAILED
        words = _last_words(error, run, carried.levers)
    metrics.close()
    if not run.request_file.is_file():  # removed meanwhile: a word for nobody would bring its folder back
        line.leave()
        return FAILED
    if ranks is not None:  # what it all comes to is for the process that started the ranks to say
        files.write_json(run.words_file(attempt, rank), {**words, "time": time.time()})
        return FINISHED if status == STOPPED else status
    line.leave()
    files.write_json(run.end_file(attempt), words)
    if status == FINISHED:  # and said so: from here on only the model is needed
        for folder in (run.checkpoints, run.best, run.asked):
            files.remove_folder(folder)
    return status


class _Waits(Exception):
    """This rank ends, as the run waits in line."""


class _RanksFailed(Exception):
    """A rank has ended badly; `words` say which one, and how."""

    def __init__(self, words: dict[str, Any]) -> None:
        super().__init__(words["message"])
        self.words = words


def _last_words(error: Exception, run: Run, levers: Levers) -> dict[str, Any]:
    from gptx_nb.engine.device import is_out_of_memory

    if is_out_of_memory(error):
        advice = memory_words.advice(run.recipe(), levers.state, writing_words.is_writing(run.report()))
        message = f"the device has too little memory: {advice}"
        return {"reason": "out of memory", "error": type(error).__name__, "message": message}
    if files.disk_is_full(error):
        free = pretraining_words.size(shutil.disk_usage(run.folder).free)
        message = f"no room is left on the disk of {run.folder}: {free} are free, and more is needed. Free some first"
        return {"reason": "failed", "error": DISK_FULL, "message": message}
    return {"reason": "failed", "error": type(error).__name__, "message": str(error) or type(error).__name__}


def _begin_anew() -> NoReturn:
    """Run this process's program from its beginning: all memory is given back, on a GPU too."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _cause(
    failures: Sequence[Failure], words: Sequence[dict[str, Any] | None], starved: int | None = None
) -> dict[str, Any]:
    """Return the last words of a run whose ranks have `failures`: those of the rank that failed first.

    One that was killed could say nothing; what others then said is that it had gone. `starved`: how many processes the
    system has killed for want of memory meanwhile.
    """
    said = [(each["time"], rank, each) for rank, each in enumerate(words) if each and each["error"]]
    for failure in failures:
        # torchrun ends the others by SIGTERM: who was ended by that is to blame only where nobody else is.
        if failure.status < 0 and words[failure.rank] is None and (failure.status != -signal.SIGTERM or not said):
            reason = "out of memory" if starved and failure.status == -signal.SIGKILL else "killed"
            return {"reason": reason, "error": "RunFailed", "message": str(failure)}
    if not said:
        message = str(failures[0]) if failures else "all ranks were ended before they had saved"
        return {"reason": "killed", "error": "RunFailed", "message": message}
    _, rank, first = min(said, key=lambda each: each[:2])
    whose = "" if first["reason"] == "mistake" else f"rank {rank}: "
    return {"reason": first["reason"], "error": first["error"], "message": f"{whose}{first['message']}"}


class Attempt:
    """One attempt, from top to bottom in `carry_out`."""

    def __init__(self, run: Run, attempt: int, metrics: MetricsWriter, line: Line, ranks: Ranks | None) -> None:
        self.run = run
        self.ranks = ranks
        self.rank, self.count = (ranks.rank, ranks.count) if ranks else (0, 1)
        self.line = line
        self.attempt = attempt
        self.metrics = metrics
        self.terminated = False
        self.levers = Levers(run, attempt, self.rank, self.note)
        # A machine that shuts down, or a queue that ends a job, sends this first: save and stop, as if asked. A rank
        # that waits for others cannot answer, and is ended by it.
        if ranks is None:
            signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_terminate(self, *_: object) -> None:
        self.terminated = True

    def phase(self, name: str, **more: Any) -> None:
        self.metrics.append({"kind": "phase", "phase": name, **more, "time": time.time()})

    def note(self, text: str) -> None:
        self.metrics.append({"kind": "note", "text": text, "time": time.time()})

    def devices_for(self, recipe: AnyRecipe) -> int:
        """Return how many devices train together."""
        if recipe.devices == 1:
            return 1
        from gptx_nb.engine import device

        return device.count(recipe.devices, recipe.device)

    def on_its_device(self, recipe: R) -> R:
        """Return `recipe` for the device of this rank."""
        if self.ranks is None:
            return recipe
        from gptx_nb.engine import device

        return recipe.model_copy(update={"device": device.of_rank(recipe.device, self.rank)})

    def all_should_stop(self) -> bool:
        """Whether this rank or another one should stop: they do so at the same step."""
        mine = self.should_stop()
        return self.ranks.agree(mine) if self.ranks else mine

    def should_stop(self) -> bool:
        if self.run.claim_file(self.attempt + 1).exists():
            raise RunFailed(
                f"attempt {self.attempt + 1} goes on with this run: this one, on {platform.node()}, gave no sign of "
                "life for so long that it was taken for dead"
            )
        self.run.raise_if_deleted()
        return self.terminated or self.run.stop_file.exists()

    def carry_out(self) -> bool:
        """Return whether the run was stopped before its last step."""
        run, ranks = self.run, self.ranks
        if ranks is None and self._waits_in_line():
            return True
        recipe = run.recipe()
        if isinstance(recipe, PretrainRecipe):
            from gptx_nb.worker import pretraining

            return pretraining.carry_out(self, recipe)
        if ranks is None:
            self.phase("data")
        table = self._table(recipe)
        if self._is_trained() and recipe.baseline is not None and table.validation is not None:
            return self._compare_with_scratch(recipe, table)
        if ranks is None and (count := self.devices_for(recipe)) > 1:
            return self.lead(count)
        early, scored = self._train(recipe, table)
        if early or recipe.baseline is None or not scored:
            return early
        return self._compare_with_scratch(recipe, table)

    def _train(self, recipe: Recipe, table: AnyTable) -> tuple[bool, bool]:
        """Train, score and save; return whether it was stopped before its last step, and whether it has scores."""
        run, ranks = self.run, self.ranks
        self.phase("model")
        from gptx_nb.engine import checkpoints, distributed, jobs, memory, plan, setup
        from gptx_nb.engine.device import Use
        from gptx_nb.engine.train import Batch, arithmetic, make_scaler, train

        job = jobs.of(table, recipe)
        made = setup.prepare(
            self.on_its_device(recipe),
            job,
            self.note,
            ranks=ranks or distributed.ALONE,
            save_memory=lambda learner, device: self.levers.begin(learner, device, recipe.tokens_at_once),
        )
        model, learner, settings, device = made.model, made.learner, made.settings, made.device
        if self.rank == 0:
            # What was chosen stays as the first attempt that began to train has put it.
            before = run.plan() if run.recipe_file.exists() else None
            decided = plan.resumed(made.decided, before)
            files.write_json(run.plan_file, {**decided, **plan.machine(device, self.count)})
        self.take_place(made)
        if self.rank == 0 and not run.recipe_file.exists():
            files.write_text(run.recipe_file, made.resolved.model_copy(update={"device": recipe.device}).to_yaml())
        if ranks is not None:
            self.join(ranks, device.device)
        checkpoint = checkpoints.latest(run.checkpoints)
        starts_here = job.has_a_before and self.rank == 0 and checkpoint is None and not run.before_file.exists()
        held = made.hold(ranks, checkpoint)
        scaler = make_scaler(device.device, device.dtype)
        best: dict[str, Any] = {"score": None, "step": None}
        first_step = 0
        if checkpoint is not None:
            progress = held.load(checkpoint, scaler)
            first_step, best = progress["step"], progress["best"]

        here = 0  # tokens of the latest step that this process has computed
        use = Use(device.device)

        def batch_at(step: int) -> Step:
            nonlocal here
            batch = held.even(learner.step(step, self.rank, self.count))
            here = batch.here
            return batch

        def record(entry: dict[str, Any]) -> None:
            epoch = entry["step"] / made.steps_per_epoch
            taken = {"here": here, "memory": memory.taken(device.device), "use": use()}
            self.metrics.append({"kind": "step", **entry, "epoch": epoch, **taken, "time": time.time()})

        def evaluate_at(step: int) -> None:
            nonlocal best
            if not job.is_scored:
                return
            held.collect()
            if self.rank:
                return
            with held.scored():
                found, rank = job.evaluation(model, made.tokenizer, learner)
            self.metrics.append({"kind": "evaluation", "step": step, **found, "time": time.time()})
            if best["score"] is None or rank > best["score"]:
                best = {"score": rank, "step": step}
                if recipe.keep == "best":
                    checkpoints.save_best(run.best, step, model, held.optimizer)
                    checkpoints.prune_best(run.best, run.checkpoints, step)

        def save(step: int) -> None:
            if not held.save(run.checkpoints, {"step": step, "best": best}, scaler):
                return
            checkpoints.prune(run.checkpoints, keep=2)
            checkpoints.prune_best(run.best, run.checkpoints, best["step"])

        def with_less_memory(step: int, error: BaseException) -> Batch | None:
            if made.sharded or not self.levers.pull(step):  # of shards, the others are in the midst of the pass
                return None
            return learner.step(step, self.rank, self.count) if step >= 0 else made.trial()

        if starts_here:
            self.phase("base")
            with held.scored():
                before = job.before(model, made.tokenizer, learner)
            files.write_json(run.before_file, before)
        self._keep_frozen_part(learner, lambda: arithmetic(model, device.device, device.dtype))
        self.phase("preflight")
        trial = made.preflight(with_less_memory, held, first_step=first_step)
        if self.rank == 0:
            files.write_json(run.plan_file, {**(run.plan() or {}), **trial})
        start = {"step": first_step, "steps": settings.steps, "device": str(device.device)}
        self.metrics.append({"kind": "start", **start, "time": time.time()})
        self.phase("training")
        end = train(
            held.model,
            held.optimizer,
            # Dropout differs from rank to rank, as it does from row to row.
            replace(settings, seed=settings.seed + 7919 * self.rank),
            device=device.device,
            dtype=held.dtype,
            batch_at=batch_at,
            loss_of=held.loss(learner.loss),
            first_step=first_step,
            record=record,
            evaluate=evaluate_at,
            save=save,
            should_stop=self.all_should_stop,
            scaler=scaler,
            reduce=held.reduce,
            with_less_memory=with_less_memory,
            due=held.due,
            recorded=held.recorded,
        )
        held.collect()
        held.end()
        if ranks is not None:
            ranks.leave()
            if self.rank:
                run.of_rank(run.frozen_part, self.rank).unlink(missing_ok=True)
                return end.early, False

        self.phase("scoring")
        kept_step = end.step
        made.whole()
        if recipe.keep == "best" and best["step"] is not None:
            checkpoints.load_best(run.best, best["step"], model)
            kept_step = best["step"]
        with held.scored(exactly=True):
            scores, why = self.scores(job, lambda: job.scores(model, made.tokenizer, learner))
        self._write_scores(recipe, job, scores, kept_step, why)

        self.phase("saving")
        # A run that was stopped has left a model of its own; this one takes its place. Readers keep what they opened.
        if run.model.exists():
            files.remove_folder(run.model)
        jobs.save(job, run.model, made.finish(kept_step), made.tokenizer, made.max_length, made.adapter_of)
        run.frozen_part.unlink(missing_ok=True)
        return end.early, scores is not None

    def _is_trained(self) -> bool:
        """Whether an earlier attempt has trained to the end."""
        earlier = self.run.outcome(self.attempt - 1) if self.attempt > 1 else None
        ended = earlier is not None and earlier["reason"] == "finished"
        return self.run.model.is_dir() and (ended or self.run.transfer_file.exists())

    def _compare_with_scratch(self, recipe: Recipe, table: AnyTable) -> bool:
        """Measure the transfer gain, seed by seed, into the scores; return whether it was stopped on the way.

        Every accuracy is written down as soon as it is known: what goes on after a crash does not train it again.
        """
        from gptx_nb.engine.data import Table
        from gptx_nb.engine.transfer import ARMS, Gain, accuracy

        assert isinstance(table, Table)  # others are refused when they are read
        run = self.run
        scores = run.scores() or {}
        known = files.read_json(run.transfer_file) or {arm: {} for arm in ARMS}
        known["pretrained"][str(recipe.seed)] = scores["validation"]["accuracy"]  # this very run
        files.write_json(run.transfer_file, known)
        seeds = [str(recipe.seed + number) for number in range(recipe.baseline_seeds)]
        for number, seed in enumerate(seeds):
            for arm in ARMS:
                if seed in known[arm]:
                    continue
                weights = "random weights" if arm == "scratch" else "the base model"
                self.phase("transfer", done=f"seed {number + 1} of {len(seeds)}, from {weights}")
                self.levers.release()  # two models would be held at once
                found = accuracy(
                    recipe.model_copy(update={"seed": int(seed)}),
                    table,
                    scratch=arm == "scratch",
                    should_stop=self.should_stop,
                    record=lambda entry: None,
                    save_memory=lambda learner, device: self.levers.follow(learner, device, recipe.tokens_at_once),
                    needs_less=self.levers.pull,
                )
                if found is None:
                    return True
                known[arm][seed] = found
                files.write_json(run.transfer_file, known)
        gain = Gain(*([known[arm][seed] for seed in seeds] for arm in ARMS))
        files.write_json(run.scores_file, {**scores, "transfer": gain.to_json()})
        return False

    def _waits_in_line(self) -> bool:
        """Wait until the attempt may train, if it has taken a place in line; return whether it was stopped there."""
        place = self.line.mine()
        while place is not None and not place.trains and not self.line.its_turn():
            if self.should_stop():
                return True
            time.sleep(LOOK)
        return False

    def take_place(self, made: Setup | Pretraining) -> None:
        """Return once the attempt may train. Where it has to wait in line, this process begins anew, and holds nothing.

        A process that runs another program keeps its number and its start: it stays the worker of this attempt.
        """
        from gptx_nb.engine import memory

        ranks = self.ranks
        demands = memory.demand(made.estimate, made.device.device, made.in_main_memory, made.recording)
        if ranks is not None:  # one place for all: of several devices, a run must not hold some and wait for others
            told = ranks.gather("demands", {name: asdict(each) for name, each in demands.items()})
            if ranks.rank:
                if ranks.hear("place") == "waits":
                    raise _Waits
                return
            demands = memory.together([{name: Demand(**each) for name, each in one.items()} for one in told])
        verdict = self.line.take(demands, Process.of(ranks.parent if ranks else os.getpid()))
        if verdict.answer == "too large" and (most := limit()) is not None and verdict.needs > most:
            sizes = f"needs {verdict.needs / 1e9:.1f} GB, and {LIMIT} allows {most / 1e9:.1f} GB"
            self.note(f"the run {sizes}: it starts although it does not fit")
        if verdict.answer == "waits":
            self.phase(
                "queue",
                needs=verdict.needs,
                free=verdict.free,
                beside=[each.name for each in verdict.beside],
                behind=[each.name for each in verdict.behind],
            )
        if ranks is not None:
            ranks.tell("place", verdict.answer)
        if verdict.answer == "waits":
            if ranks is not None:
                raise _Waits
            _begin_anew()

    def lead(self, count: int) -> bool:
        """Let `count` ranks carry the attempt out; return whether it was stopped. Raises _RanksFailed."""
        from gptx_nb.engine import distributed

        for rank in range(count):
            files.remove_file(self.run.words_file(self.attempt, rank))
        kills = out_of_memory_kills()
        failures = distributed.launch(count, "gptx_nb.worker", ["--rank", str(self.run.folder), str(self.attempt)])
        starved = None if kills is None else (out_of_memory_kills() or 0) - kills
        words = [files.read_json(self.run.words_file(self.attempt, rank)) for rank in range(count)]
        first = words[0]
        if failures or first is None:
            raise _RanksFailed(_cause(failures, words, starved))
        if first["reason"] == IN_LINE:
            _begin_anew()
        return bool(first["reason"] == "stopped")

    def join(self, ranks: Ranks, device: torch.device) -> None:
        import torch

        from gptx_nb.engine.device import cores

        if device.type == "cpu":
            torch.set_num_threads(max(1, cores() // ranks.count))
        ranks.join(device)
        signal.signal(signal.SIGTERM, self._on_terminate)  # from here on, they stop together

    def _keep_frozen_part(self, learner: Learner, autocast: Callable[[], Any]) -> None:
        """Compute once what no epoch changes, and say where it is kept."""
        import torch

        from gptx_nb.engine import device, plan

        if learner.frozen is None:
            return
        self.phase("frozen")
        size = learner.frozen.bytes
        memory_free, disk_free = device.memory(torch.device("cpu"))[1], shutil.disk_usage(self.run.folder).free

        def choose() -> tuple[str, str]:
            return plan.place_of_frozen_part(size * self.count, memory_free, disk_free)  # each rank keeps it

        # Once for all: what is free changes as the first of them begins.
        place, reason = self.ranks.once("frozen part", choose) if self.ranks else choose()
        self.note(f"frozen part kept in {place}: {reason}" if place != "nowhere" else f"frozen part: {reason}")
        file = self.run.of_rank(self.run.frozen_part, self.rank)
        if place == "nowhere":
            learner.frozen = None
            return
        while True:
            try:
                return learner.prepare(autocast, file if place == "disk" else None)
            except (RuntimeError, MemoryError) as error:
                if not device.is_out_of_memory(error):
                    raise
                # numpy's error, not torch's: there is no room for the whole, however small the parts.
                if isinstance(error, MemoryError) and place == "memory" and size * self.count <= disk_free:
                    place = "disk"
                    self.note("frozen part kept on disk: memory ran out as it was computed")
                elif not self.levers.pull(-1):
                    raise

    def _table(self, recipe: Recipe) -> AnyTable:
        """Read the snapshot, or make it from the source in the first attempt."""
        from gptx_nb.engine import examples

        if self.run.report_file.exists():
            return examples.load_snapshot(self.run.data, recipe)
        sources = self.run.sources()
        try:
            table = examples.load(recipe, sources, self.run.folder)
        finally:  # whatever was found in a table that changed meanwhile, that it has changed is what to say
            for source, setting in ((sources["train"], "data"), (sources["validation"], "validation")):
                if source:
                    check_unchanged(source, setting, self.run.folder)
        examples.save_snapshot(table, self.run.data)
        del table  # from here on its texts are read from the snapshot, as in every later attempt
        return examples.load_snapshot(self.run.data, recipe)

    def scores(self, job: Job, score: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any] | None, str | None]:
        """Return what `score` gives, or None and why: hours of training are not lost for want of a score."""
        from gptx_nb.engine.device import is_out_of_memory

        if not job.is_scored:
            return None, job.why_unscored
        try:
            found = score()
        except Exception as error:
            if is_out_of_memory(error):  # another attempt takes less
                raise
            traceback.print_exc()
            return None, f"The scoring broke off ({str(error) or type(error).__name__}): the model is kept, unscored."
        for note in found.get("notes", ()):
            self.note(note)
        return found, None

    def _write_scores(
        self, recipe: Recipe, job: Job, scores: dict[str, Any] | None, kept_step: int, why: str | None
    ) -> None:
        steps = [record for record in self.run.history() if record.get("kind") == "step"]
        seconds = sum(record["seconds"] for record in steps)
        compare = recipe.baselines and job.is_scored
        before = files.read_json(self.run.before_file) or {}
        files.write_json(
            self.run.scores_file,
            {
                "task": job.report.get("task", "text-classification"),
                "validation": scores,
                "base": before.get("scores"),
                "few_shot": before.get("few_shot"),
                "baselines": job.baselines() if compare else {},
                "best_step": kept_step,
                "note": why,
                "remarks": [*before.get("remarks", ()), *(scores or {}).get("remarks", ())],
                "seconds": seconds,
                "tokens_per_second": sum(record["tokens"] for record in steps) / seconds if seconds else None,
            },
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
