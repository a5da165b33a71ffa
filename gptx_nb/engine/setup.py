"""From recipe and table to all that training needs: device, model, rows, settings - and the plan that says why.

Reads the base model; writes no file and trains nothing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import device as devices
from gptx_nb.engine import (
    distributed,
    dropout,
    fitting,
    graphs,
    last_layer,
    longer_context,
    memory,
    models,
    norms,
    packing,
    plan,
    precision,
    quantized,
    sharding,
    streams,
    trial,
    tuning,
    vocabulary,
)
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.batches import Step
from gptx_nb.engine.device import Device
from gptx_nb.engine.distributed import ALONE, Alone, Ranks
from gptx_nb.engine.jobs import Job, Learner
from gptx_nb.engine.optimizer import MasterAdamW, Optimizer, SizesOf8bit
from gptx_nb.engine.predict import use_all_cores
from gptx_nb.engine.sharding import Sharded, Whole
from gptx_nb.engine.train import Batch, Settings, make_optimizer
from gptx_nb.errors import ModelError
from gptx_nb.recipe import Recipe

# Tokens of a micro-batch. A CPU gains nothing from more than its caches hold; a GPU wants work.
CPU_TOKENS, GPU_TOKENS = 1_024, 16_384
MOST_EVALUATIONS = 20  # of one run: scoring should stay a small part of its time


@dataclass(frozen=True)
class Setup:
    """What training needs. `resolved` is the recipe with every open setting filled in; `decided` goes to plan.json."""

    device: Device
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    learner: Learner
    settings: Settings
    lowered: precision.Lowered | None
    cut: vocabulary.Cut | None
    steps_per_epoch: int
    max_length: int
    resolved: Recipe
    decided: dict[str, Any]
    estimate: memory.Estimate | None  # None: it could not be made
    adapter_of: models.Base | None  # None: a whole model is saved
    ranks: int = 1
    sharded: bool = False  # each of the ranks is to have a part of the model, which is in main memory until then

    @cached_property
    def optimizer(self) -> Optimizer:
        """The optimiser of the whole model."""
        return _optimizer(self.model, self.lowered, self.settings)

    @property
    def in_main_memory(self) -> int:
        """What is kept of a frozen part in main memory, in bytes, whatever the device; 0 where it is on disk."""
        return _kept(self.learner, self.ranks)

    def hold(self, ranks: Ranks | None = None, checkpoint: Path | None = None) -> Whole | Sharded:
        """Return how this process holds the model while it trains; `ranks` have joined. `checkpoint`: to go on from."""
        device, dtype = self.device.device, self.device.dtype
        if self.sharded and ranks is not None:
            return Sharded(self.model, self.settings, device=device, dtype=dtype, ranks=ranks, checkpoint=checkpoint)
        return Whole(self.model, self.optimizer, dtype, ranks)

    def trial(self) -> Step:
        """Return a step that takes most memory: the micro-batches with the longest rows, one for each stream."""
        if self._is_frozen_part_kept:
            return self.learner.step(0)
        step = self.learner.longest()
        micro = step.micro[-step.streams :]
        tokens = sum(int(each.get("attention_mask", torch.ones_like(each["input_ids"])).sum()) for each in micro)
        return Step(micro, tokens, step.weights[-step.streams :], step.streams)

    def preflight(
        self,
        with_less_memory: Callable[[int, BaseException], Batch | None],
        held: Whole | Sharded | None = None,
        *,
        first_step: int = 0,
        compiles: bool = True,
    ) -> dict[str, Any]:
        """Compute the gradient of `trial`, and make what the optimiser keeps; return what the plan says of speed.

        Nothing is learnt from it. Where memory runs out, `with_less_memory(-1, error)` is asked as in training. `held`:
        as this process holds the model, and goes on in the way that was found quickest; None: the whole of it.
        It begins with `first_step`. `compiles`: whether to try that out, too, which takes as long as a minute.
        """
        held = held or self.hold()
        loss_of = held.loss(self.learner.loss if self._is_frozen_part_kept else self.learner.whole_loss)
        quicker: dict[str, Any] = {}
        seconds, step = trial.seconds_of(
            held, held.even(self.trial()), loss_of, self.device, self.settings.seed, with_less_memory
        )
        rate = step.tokens / seconds  # of long rows, as those that are scored are taken together
        once = self.learner.frozen is not None and not self._is_frozen_part_kept
        tried = "one step" if self._is_frozen_part_kept else "the longest rows"
        if self.device.device.type != "cpu" and not once and not self._is_frozen_part_kept:
            # For a few short rows a GPU takes as long as its kernels take to be launched, which long rows hide.
            usual = held.even(self.learner.step(0))
            common = loss_of, self.device, self.settings.seed, with_less_memory
            tried = "one step"
            if isinstance(held, Whole):
                way = trial.quickest(
                    held,
                    self.model,
                    usual,
                    *common,
                    steps=compiles * (self.settings.steps - first_step) // self.ranks,
                    record=self.recorder,
                    dynamic=True,
                )
                seconds, step, quicker = way.seconds, way.batch, way.told
            else:
                seconds, step = trial.seconds_of(held, usual, *common)
        tokens = (
            self.learner.tokens if once else round(self.learner.tokens * self.settings.steps / self.steps_per_epoch)
        )
        peak = devices.matrix_peak(self.device.device, self.device.dtype, seconds=0.02)
        asked = 1.0 if self.sharded else self.learner.asked  # the last layer of shards is computed whole
        flops, copies = tuning.flops_per_token(self.model, asked), devices.copy_speed(self.device.device)
        more = {} if once else self._beside_the_passes(rate, copies)
        told = plan.speed(
            self.learner.tokens if once else tokens, seconds, step.tokens, flops, peak, copies, self.ranks, tried, more
        )
        if self.learner.writes and self.learner.held_tokens:
            told["time"]["reason"] += "; the answers that it writes to be scored come to it"
        if self.resolved.baseline == "scratch":
            trainings = 2 * self.resolved.baseline_seeds - 1
            told["time"]["reason"] += f"; {trainings} more trainings to compare it with random weights come to it"
        if once:  # a rehearsal, which does not keep it
            told["time"]["choice"] = f"at least {told['time']['choice'].removeprefix('about ')}"
            told["time"]["reason"] += "; this is the part that is computed once, and training on it comes to it"
        return {**told, **quicker, **self._proposal(told["time"]["seconds"] - sum(more.values()))}

    @property
    def recording(self) -> int:
        """The bytes that recordings of training passes take at most; 0 where none are made.

        Shapes repeat only where rows are packed and are not laid side by side.
        """
        learner = self.learner
        if self.sharded or learner.padded_because is not None or learner.frozen is not None:
            return 0
        return trial.recording(self.model, self.device, self.estimate) if self.resolved.quantize == "none" else 0

    def recorder(self, *, tried: bool = True) -> graphs.Steps | None:
        """Return what launches training passes at once; None where that cannot be done, or memory is scarce.

        `tried`: plain passes have taken their memory already.
        """
        size = self.recording
        if size and self.estimate is not None and not tried:
            size += self.estimate.to_come
        return trial.recorder(self.model, self.learner.loss, self.device, size, packing.even)

    def _beside_the_passes(self, rate: float, copies: float) -> dict[str, float]:
        """Return the seconds of optimiser and scoring, where passes go through so many tokens a second.

        The answers that a model writes at the end are not among them: how long they get is not known.
        """
        trained = sum(each.numel() for each in self.model.parameters() if each.requires_grad)
        trained //= self.ranks if self.sharded else 1
        steps, every = self.settings.steps, self.settings.eval_every or self.settings.steps
        times = -(-steps // every) + 1  # and once more at the end, with the weights that are kept
        kept = self._is_frozen_part_kept  # a model that writes is scored as a whole nevertheless
        share = tuning.forward_share(self.model, step_spared=kept, forward_spared=kept and not self.learner.writes)
        scoring = times * self.learner.held_tokens * share / rate
        return {**plan.optimiser_time(trained, steps, copies), f"scoring {times} times": scoring}

    @property
    def _is_frozen_part_kept(self) -> bool:
        return self.learner.frozen is not None and self.learner.frozen.is_kept

    def _proposal(self, seconds: float) -> dict[str, Any]:
        if "proposal" in self.decided:  # what is there does not fit
            return {}
        epoch, rows, width = self.learner.tokens, self.decided["train_rows"], self.model.config.hidden_size
        if few := plan.proposal_for_few(self.resolved, rows, self.decided["model"]["parameters"]):
            return few
        kept = None
        if self.learner.padded_because is None:
            each = {"head": 4 * rows * width, plan.TOP: 4 * epoch * width}  # as `tuning.FrozenPart` keeps them
            kept = {method: size * self.ranks for method, size in each.items()}
        layers, free = len(tuning.layers_of(self.model)), devices.memory(torch.device("cpu"))[1]
        return plan.proposal(self.resolved, seconds, layers, kept, free)

    def whole(self) -> None:
        """Make the weights float32 again. Rows of the embedding that were cut off come back with `finish`."""
        if self.lowered is not None:
            self.lowered.restore()

    def finish(self, steps: int) -> PreTrainedModel:
        """Return the model after `steps` steps, as it is saved: a plain one, but for an adapter's updates."""
        self.whole()
        if self.cut is not None:
            self.cut.restore(self.settings, steps)
        return self.model if self.adapter_of is not None else tuning.merge(self.model)


def prepare(
    recipe: Recipe,
    job: Job,
    note: Callable[[str], None],
    *,
    scratch: bool = False,
    ranks: Ranks | Alone = ALONE,
    save_memory: Callable[[Learner, torch.device], None] | None = None,
) -> Setup:
    """Load the base model, make tokens of the job's examples, and decide what the recipe leaves open.

    `note` is told what a user should know while this goes on. `scratch`: the base model's architecture with random
    weights, for comparison. `ranks`: the processes that train together. `save_memory` may let the learner take less
    memory, before that is estimated. Raises UsageError for a base model or device that is not there or does not fit.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    device = devices.choose(recipe.device, recipe.dtype)
    if recipe.optimizer == "adamw-8bit":
        optimizers.require_8bit(device.device)
    if recipe.quantize == "4bit":
        quantized.require(device.device)
    start = _load(recipe, job, note, device, scratch, ranks.count)
    model, tokenizer = start.model, start.tokenizer
    looks_in = sharding.dtype_at(start.place, device)
    job.begin(start.base, model, tokenizer, start.max_length, device.dtype, looks_in, ranks.once)
    tuned = longer_context.train_positions(model, tuning.prepare(model, recipe.tune, recipe.seed), recipe)
    job.encode(tokenizer, start.max_length)
    chosen = _choose(recipe, job, start.parameters)
    cut, pad_id = _cut_vocabulary(recipe, job, model, tokenizer.pad_token_id)
    torch.nn.Module.to(model, start.place)  # what has come to it since
    held = memory.held(model, device.device)
    dropout.use(model)
    norms.use(model)
    # The 8-bit optimiser has no masters: its weights stay float32, and are computed with in bfloat16.
    lowers = device.dtype is torch.bfloat16 and recipe.optimizer == "adamw"
    lowered = precision.Lowered(model, device.dtype) if lowers else None
    held += lowered.beside if lowered else 0
    learner = job.learner(
        model,
        tuned,
        pad_id=pad_id,
        device=device.device,
        batch_size=chosen.batch_size,
        seed=recipe.seed,
        token_budget=recipe.tokens_at_once or (CPU_TOKENS if device.device.type == "cpu" else GPU_TOKENS),
        streams=streams.number_for(device.device, ranks.count),
    )
    if save_memory is not None:
        save_memory(learner, device.device)
    made = Setup(
        device,
        model,
        tokenizer,
        learner,
        chosen.settings,
        lowered,
        cut,
        chosen.steps_per_epoch,
        start.max_length,
        recipe.model_copy(update={**job.resolved(), **chosen.resolved, "max_length": start.max_length}),
        {
            **plan.machine(device),
            **plan.tuning(tuned, learner.padded_because, not job.shares_vocabulary),
            **start.told(),
            **chosen.told,
            **plan.step_tokens(learner.tokens, chosen.steps_per_epoch, learner.token_budget),
            **job.told(tokenizer),
        },
        None,
        start.base if recipe.save == "adapter" else None,
        ranks.count,
    )
    made.decided["remarks"] = [*made.decided["remarks"], *start.remarks()]
    return _with_estimate(made, recipe, job, held, start.place, ranks)


@dataclass(frozen=True)
class _Start:
    """A base model with what is known of it. `context` and `max_length` are in tokens."""

    base: models.Base
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    context: int
    context_reason: str | None  # None: it is the model's own
    max_length: int
    length_reason: str
    place: torch.device  # where its weights are

    def told(self) -> dict[str, Any]:
        """Return the plan's part about it."""
        told: dict[str, Any] = {
            "model": {
                "name": self.base.name,
                "where": self.base.where,
                "parameters": self.parameters,
                "licence": self.base.licence,
                "context": self.context,
            },
            "max_length": {"choice": self.max_length, "reason": self.length_reason},
        }
        if self.context_reason is not None:
            told["context"] = {"choice": self.context, "reason": self.context_reason}
        return told

    def remarks(self) -> list[str]:
        return [] if self.context_reason is None else [f"context: {self.context:,} tokens; {self.context_reason}"]


def _load(recipe: Recipe, job: Job, note: Callable[[str], None], device: Device, scratch: bool, count: int) -> _Start:
    base = models.find(recipe.model, recipe.revision, note)
    if recipe.save == "adapter" and base.gguf:
        raise ModelError(
            f"save: an adapter is loaded with a base model's folder, and {base.name} is a .gguf file. Type "
            "`save: merged`"
        )
    tokenizer = models.load_tokenizer(base)
    model = job.load_model(base, tokenizer, recipe.seed, scratch=scratch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    context_reason = longer_context.extend(model, recipe)
    context = models.context(model.config)
    max_length, length_reason = plan.max_length(recipe, context)
    if recipe.quantize == "4bit":
        quantized.to_4bit(model, device.dtype)
    place = sharding.place(recipe, parameters, device.device, count)
    torch.nn.Module.to(model, place)  # transformers' own `to` is typed wrongly
    return _Start(base, model, tokenizer, parameters, context, context_reason, max_length, length_reason, place)


@dataclass(frozen=True)
class _Chosen:
    """How a job's rows are gone through. `resolved`: settings of the recipe; `told`: the plan's part."""

    settings: Settings
    batch_size: int
    steps_per_epoch: int
    resolved: dict[str, Any]
    told: dict[str, Any]


def _choose(recipe: Recipe, job: Job, parameters: int) -> _Chosen:
    has_head = not job.shares_vocabulary
    batch_size, batch_reason = plan.batch_size(recipe, job.rows, parameters, has_head)
    recipe = recipe.model_copy(update={"batch_size": batch_size})
    steps_per_epoch = -(-job.rows // batch_size)
    epochs, epochs_reason = plan.epochs(recipe, job.rows, steps_per_epoch, parameters, has_head, job.label_count)
    steps = max(1, round(epochs * steps_per_epoch))
    learning_rate, rate_reason = plan.learning_rate(recipe, parameters, has_head)
    warmup, warmup_reason = plan.warmup(recipe, parameters, has_head)
    settings = Settings(
        steps=steps,
        learning_rate=learning_rate,
        warmup=warmup,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        eval_every=max(steps_per_epoch, -(-steps // MOST_EVALUATIONS)),
        save_every_seconds=recipe.checkpoint_every,
    )
    told = {
        "learning_rate": {"choice": learning_rate, "reason": rate_reason},
        "warmup": {"choice": warmup, "reason": warmup_reason},
        "epochs": {"choice": epochs, "reason": epochs_reason},
        "steps": steps,
        "batch_size": {"choice": batch_size, "reason": batch_reason},
    }
    resolved = {"batch_size": batch_size, "epochs": epochs, "learning_rate": learning_rate, "warmup": warmup}
    return _Chosen(settings, batch_size, steps_per_epoch, resolved, told)


def _cut_vocabulary(recipe: Recipe, job: Job, model: PreTrainedModel, pad_id: int) -> tuple[vocabulary.Cut | None, int]:
    """Leave out rows of the embedding that no text needs, where that is exact; return what was cut, and the new pad."""
    # A padded model looks for its padding by number.
    if recipe.tune != "full" or job.shares_vocabulary or packing.why_not(model) is not None:
        return None, pad_id
    rows, held_rows = job.token_rows
    cut = vocabulary.Cut(model, itertools.chain(rows, held_rows), [pad_id, *job.more_tokens])
    job.renumber(cut)
    return cut, cut.tokens([pad_id])[0]


def _optimizer(model: PreTrainedModel, lowered: precision.Lowered | None, settings: Settings) -> Optimizer:
    if lowered is None:
        return make_optimizer(model, settings)
    return lowered.optimizer(settings.learning_rate, settings.weight_decay, settings.betas)


def _with_estimate(
    made: Setup, recipe: Recipe, job: Job, held: int, place: torch.device, ranks: Ranks | Alone
) -> Setup:
    """Return `made` with an estimate of its memory, told in its plan, and a warning where there may be too little.

    Where the whole model is too much for one of several devices, they are to share it.
    """
    device = made.device.device
    sharded = False

    def estimate_of(model: PreTrainedModel, learner: Learner) -> memory.Estimate:
        return estimate_memory(
            model,
            learner,
            made.settings,
            made.device.dtype,
            device,
            held,
            ranks.count,
            sharded=sharded,
            rank=ranks.rank,
        )

    def advice(free: int) -> str:
        longest = max(int(rows.lengths.max()) for rows in job.token_rows if len(rows))
        found = fitting.nearest(
            recipe, job, made.model, made.tokenizer, longest=longest, free=free, device=device, estimate_of=estimate_of
        )
        job.encode(made.tokenizer, made.max_length)
        if made.cut is not None:
            job.renumber(made.cut)
        if found.settings is not None:
            proposed.append(found.settings)
        return found.sentence

    proposed: list[str] = []
    decided, warnings, estimate = dict(made.decided), list[str](), None
    ranks.meet("loaded")  # what is free tells something only once all of them hold their weights
    try:
        estimate = estimate_of(made.model, made.learner)
        sharded = sharding.chosen(recipe, ranks, device, place == device, estimate)
        if sharded:
            made.learner.streams = 1  # the passes of all ranks have to meet
            estimate = estimate_of(made.model, made.learner)
        sharing = ranks.count if device.type == "cpu" else 1
        beside = _kept(made.learner, ranks.count) if device.type != "cpu" else 0
        decided["memory"], warnings = plan.memory(estimate, memory.available(device), advice, sharing, beside)
    except Exception as error:  # a model that tensors without values cannot run may well train
        shown = " ".join(str(error).split())[:200]
        decided["memory"] = {"choice": "unknown", "reason": f"no estimate: {type(error).__name__}: {shown}"}
        if not sharded:
            sharded = sharding.chosen(recipe, ranks, device, place == device, None)
    if sharded:
        made = _in_main_memory(made)
    decided |= sharding.told(recipe, ranks.count, sharded)
    decided["notes"] = [*decided["notes"], *warnings]
    if proposed:
        decided["proposal"] = {
            "choice": proposed[0],
            "reason": "changes least of what would fit into the memory there is",
        }
    return replace(made, decided=decided, estimate=estimate, sharded=sharded)


def _in_main_memory(made: Setup) -> Setup:
    """Return `made` with float32 weights where they can be cut from."""
    made.whole()
    made.learner.streams = 1
    torch.nn.Module.to(made.model, "cpu")
    return replace(made, lowered=None)


def _kept(learner: Learner, ranks: int) -> int:
    """Return the bytes of a frozen part that each of `ranks` keeps in main memory.

    0: there is none, or it is on disk or nowhere.
    """
    size = learner.frozen.bytes if learner.frozen is not None else 0
    return size if plan.stays_in_memory(size * ranks, memory.available(memory.MAIN)) else 0


def estimate_memory(
    model: PreTrainedModel,
    learner: Learner,
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    held_before: int,
    ranks: int = 1,
    *,
    sharded: bool = False,
    rank: int = 0,
) -> memory.Estimate:
    """Estimate the peak of the run, in one of `ranks` processes that share every step's rows; `sharded`: the model too.

    `held_before`: what the process holds beside the weights, in bytes.
    """
    step = learner.longest(ranks)
    together = min(step.streams, len(step.micro))

    def make(each: torch.nn.Module) -> Optimizer:
        if settings.optimizer == "adamw-8bit":
            return SizesOf8bit(each)
        trained = [parameter for parameter in each.parameters() if parameter.requires_grad]
        if trained[0].dtype is torch.float32:
            return make_optimizer(each, settings)
        masters = [torch.empty_like(parameter, dtype=torch.float32) for parameter in trained]
        return MasterAdamW(trained, masters, settings.learning_rate, settings.weight_decay, settings.betas)

    with quantized.without_values(model), last_layer.whole() if sharded else contextlib.nullcontext():
        return memory.estimate(
            model,
            max(step.micro, key=lambda tensors: tensors["input_ids"].numel()),
            loss_of=learner.whole_loss,
            make_optimizer=make,
            device=device,
            dtype=dtype,
            several=len(step.micro) > together,
            streams=together,
            process=held_before,
            summed=distributed.BUCKET * 4 if ranks > 1 and not sharded else 0,
            shards=sharding.memory_of(model, dtype, device, rank, ranks) if sharded else None,
            frozen=_kept(learner, ranks) if device.type == "cpu" else 0,
        )
