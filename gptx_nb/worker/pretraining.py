"""Carries one attempt of a pretraining run from its texts to its model. Files, phases and stopping are the attempt's.

data/tokenizer/        trained on the texts, or the one that was asked for
data/train/, data/validation/
                       token shards (engine/shards.py), whole or not there at all
data/embeddings.safetensors
                       where a new model's embeddings begin, if asked for
data/report.json       documents, bytes and tokens; what was cleaned, dropped and held back. Written last
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx_nb import files, pretraining_words
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.sources import check_unchanged

if TYPE_CHECKING:
    from torch import Tensor

    from gptx_nb.engine.corpus import Corpus
    from gptx_nb.engine.pretrain import Pretraining
    from gptx_nb.engine.train import Batch
    from gptx_nb.runs import Run
    from gptx_nb.worker.__main__ import Attempt

SAMPLE_TOKENS = 48
MOST_BEGINNING = 60  # characters of a document that a sample begins with


def carry_out(attempt: Attempt, recipe: PretrainRecipe) -> bool:
    """Return whether the run was stopped before its last step."""
    run, ranks, rank = attempt.run, attempt.ranks, attempt.rank
    try:
        corpus = _corpus(attempt, recipe)
    except _Stopped:
        return True
    if ranks is None and (count := attempt.devices_for(recipe)) > 1:
        return attempt.lead(count)

    attempt.phase("model")
    from gptx_nb.engine import checkpoints, distributed, memory, models, plan, pretrain
    from gptx_nb.engine.device import Use
    from gptx_nb.engine.tasks import language_modeling as task
    from gptx_nb.engine.train import arithmetic, make_scaler, train

    made = pretrain.prepare(
        attempt.on_its_device(recipe),
        corpus,
        attempt.note,
        _embeddings(run.data),
        ranks=ranks or distributed.ALONE,
        save_memory=lambda learner, device: attempt.levers.begin(learner, device, recipe.tokens_at_once),
    )
    model, learner, settings, device = made.model, made.learner, made.settings, made.device
    if rank == 0:
        made.decided["notes"] += _require_room(run, made)
        # What was chosen stays as the first attempt that began to train has put it.
        before = run.plan() if run.recipe_file.exists() else None
        decided = plan.resumed(made.decided, before)
        files.write_json(run.plan_file, {**decided, **plan.machine(device, attempt.count)})
    attempt.take_place(made)
    if rank == 0 and not run.recipe_file.exists():
        files.write_text(run.recipe_file, made.resolved.model_copy(update={"device": recipe.device}).to_yaml())
    if ranks is not None:
        attempt.join(ranks, device.device)
    checkpoint = checkpoints.latest(run.checkpoints)
    held = made.hold(ranks, checkpoint)
    scaler = make_scaler(device.device, device.dtype)
    first_step = held.load(checkpoint, scaler)["step"] if checkpoint is not None else 0

    here = 0  # tokens of the latest step that this process has computed
    use = Use(device.device)

    def batch_at(step: int) -> Batch:
        nonlocal here
        batch = held.even(learner.step(step, rank, attempt.count))
        here = batch.here
        return batch

    def record(entry: dict[str, Any]) -> None:
        attempt.metrics.append(
            {
                "kind": "step",
                **entry,
                "epoch": entry["step"] * learner.tokens_per_step / corpus.train.tokens,
                "here": here,
                "memory": memory.taken(device.device),
                "use": use(),
                "time": time.time(),
            }
        )

    def score(most_rows: int | None) -> dict[str, Any]:
        with held.scored(), arithmetic(model, device.device, device.dtype):
            return task.score(
                model,
                corpus.validation,
                length=learner.length,
                token_budget=learner.token_budget,
                most_rows=most_rows,
            ).to_json()

    prompts = recipe.samples or corpus.beginnings(2, MOST_BEGINNING)

    def evaluate_at(step: int) -> None:
        held.collect()
        if rank:
            return
        found = score(made.evaluation_rows)
        with held.scored(), arithmetic(model, device.device, device.dtype):
            texts = task.samples(model, made.tokenizer, prompts, SAMPLE_TOKENS)
        shown = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
        attempt.metrics.append({"kind": "evaluation", "step": step, **found, "samples": shown, "time": time.time()})

    def save(step: int) -> None:
        if held.save(run.checkpoints, {"step": step}, scaler):
            checkpoints.prune(run.checkpoints, keep=2)

    def with_less_memory(step: int, error: BaseException) -> Batch | None:
        if made.sharded or not attempt.levers.pull(step):  # of shards, the others are in the midst of the pass
            return None
        return learner.step(step, rank, attempt.count) if step >= 0 else learner.trial()

    attempt.phase("preflight")
    trial = made.preflight(with_less_memory, held, first_step=first_step)
    if rank == 0:
        files.write_json(run.plan_file, {**(run.plan() or {}), **trial})
    start = {"step": first_step, "steps": settings.steps, "device": str(device.device)}
    attempt.metrics.append({"kind": "start", **start, "time": time.time()})
    attempt.phase("training")
    end = train(
        held.model,
        held.optimizer,
        replace(settings, seed=settings.seed + 7919 * rank),  # dropout differs from rank to rank
        device=device.device,
        dtype=held.dtype,
        batch_at=batch_at,
        loss_of=held.loss(learner.loss),
        first_step=first_step,
        record=record,
        evaluate=evaluate_at,
        save=save,
        should_stop=attempt.all_should_stop,
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
        if rank:
            return end.early

    attempt.phase("scoring")
    _write_scores(attempt, score(None), learner.tokens_per_step, end.step, pretrain.matrix_parameters(model))
    attempt.phase("saving")
    # A run that was stopped has left a model of its own; this one takes its place. Readers keep what they opened.
    if run.model.exists():
        files.remove_folder(run.model)
    models.save(run.model, made.finish(), made.tokenizer, made.context)
    return end.early


class _Stopped(Exception):
    """The run was stopped while its texts were prepared, of which nothing is left."""


def _corpus(attempt: Attempt, recipe: PretrainRecipe) -> Corpus:
    """Open the token shards, or make them from the texts in the first attempt."""
    from gptx_nb.engine import corpus

    run = attempt.run
    if run.report_file.exists():
        return corpus.load(run.data)

    def say(done: str) -> None:
        if attempt.should_stop():
            raise _Stopped
        attempt.phase("corpus", done=done)

    attempt.phase("corpus")
    from gptx_nb.engine import pretrain

    sources = run.sources()
    given = pretrain.tokenizer_for(recipe, attempt.note)
    try:
        corpus.prepare(recipe, sources, run.folder, run.data, given, say)
    finally:  # whatever was found in a text that changed meanwhile, that it has changed is what to say
        for source, setting in ((sources["train"], "data"), (sources["validation"], "validation")):
            if source:
                check_unchanged(source, setting, run.folder)
    return corpus.load(run.data)


def _embeddings(folder: Path) -> Tensor | None:
    """Return where a new model's embeddings begin, if they were counted."""
    from safetensors.torch import load_file

    from gptx_nb.engine.corpus import EMBEDDINGS

    file = folder / EMBEDDINGS
    return load_file(file)["embeddings"] if file.exists() else None


def _require_room(run: Run, made: Pretraining) -> list[str]:
    """Return what is to be said of the room for checkpoints; raises DataError where not one and the model fit.

    Two are kept, and there are three while the next is written. What is on the disk already needs no more room.
    """
    from gptx_nb.engine import checkpoints, corpus

    weights = 4 * sum(parameter.numel() for parameter in made.model.parameters())
    checkpoint = 3 * weights  # as AdamW's two moments have their sizes; Muon's one is less
    there = len(checkpoints.every(run.checkpoints))
    corpus.require_room(run.folder, weights + checkpoint * max(0, 1 - there), "the model and a checkpoint of it")
    needed, free = weights + checkpoint * max(0, 3 - there), shutil.disk_usage(run.folder).free
    if needed <= free:
        return []
    return [
        f"three checkpoints and the model need {pretraining_words.size(needed)} on the disk of {run.folder}, and "
        f"{pretraining_words.size(free)} are free: training that takes long breaks off there unless some are freed"
    ]


def _write_scores(
    attempt: Attempt, validation: dict[str, Any], tokens_per_step: int, steps: int, matrix_parameters: int
) -> None:
    run = attempt.run
    taken = [record for record in run.history() if record.get("kind") == "step"]
    seconds = sum(record["seconds"] for record in taken)
    tokens = steps * tokens_per_step
    files.write_json(
        run.scores_file,
        {
            "validation": validation,
            "tokens": tokens,
            "flops": 6 * matrix_parameters * tokens,  # what training from scratch takes (Kaplan et al. 2020)
            "seconds": seconds,
            "tokens_per_second": sum(record["tokens"] for record in taken) / seconds if seconds else None,
        },
    )
