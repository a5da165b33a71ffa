"""From a pretraining recipe and token shards to all that training needs: device, model, rows, settings - and the plan.

Trains nothing and writes no file. How text becomes shards is corpus.py's, how rows become a loss is
tasks/language_modeling.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gptx_nb.engine import device as devices
from gptx_nb.engine import dropout, graphs, memory, models, norms, plan, precision, sharding, streams, trial
from gptx_nb.engine.corpus import Corpus
from gptx_nb.engine.device import Device
from gptx_nb.engine.distributed import ALONE, BUCKET, Alone, Ranks
from gptx_nb.engine.optimizer import MasterAdamW, Optimizer
from gptx_nb.engine.predict import use_all_cores
from gptx_nb.engine.sharding import Sharded, Whole
from gptx_nb.engine.tasks import language_modeling as task
from gptx_nb.engine.train import Batch, Settings, make_optimizer
from gptx_nb.errors import DataError, ModelError
from gptx_nb.pretraining import MOST_PASSES, PretrainRecipe

# Tokens of a micro-batch: what a core's caches hold, or what makes a GPU busy.
CPU_TOKENS, GPU_TOKENS = 2_048, 32_768
EVALUATIONS = 20  # of one run
EVALUATION_TOKENS = 0.1  # of those that are learnt from between two of them: scoring is a small part of the time
LEAST_EVALUATION = 8_192  # tokens
# Tokens. Little text needs many small steps: 336,548 tokens of plays, learnt once by a gpt2 of 4 layers of 128, gave
# 3.07 bits a byte in steps of 8,192, 2.60 in steps of 2,048, 2.54 in steps of 1,024, each in about the same time.
LEAST_STEP, LARGEST_STEP = 1_024, 524_288
RATE_TIMES_WIDTH = 0.7  # 0.0027 at 256, 0.0009 at 768: the usual rates of GPT-2's sizes, which fall with the width
CONTINUED = 0.1  # times that rate, where a model goes on learning (Gururangan et al. 2020 take about as much)


@dataclass(frozen=True)
class Pretraining:
    """What training needs. `resolved` is the recipe with every open setting filled in; `decided` goes to plan.json."""

    device: Device
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    learner: task.Learner
    settings: Settings
    lowered: precision.Lowered | None
    context: int  # of the model that is saved
    evaluation_rows: int  # that are scored while it trains
    resolved: PretrainRecipe
    decided: dict[str, Any]
    estimate: memory.Estimate | None  # None: it could not be made
    ranks: int = 1
    sharded: bool = False  # each of the ranks is to have a part of the model, which is in main memory until then

    @cached_property
    def optimizer(self) -> Optimizer:
        """The optimiser of the whole model."""
        settings = self.settings
        if self.lowered is None:
            return make_optimizer(self.model, settings)
        return self.lowered.optimizer(settings.learning_rate, settings.weight_decay, settings.betas)

    in_main_memory = 0  # nothing is frozen

    def hold(self, ranks: Ranks | None = None, checkpoint: Path | None = None) -> Whole | Sharded:
        """Return how this process holds the model while it trains; `ranks` have joined. `checkpoint`: to go on from."""
        device, dtype = self.device.device, self.device.dtype
        if self.sharded and ranks is not None:
            return Sharded(self.model, self.settings, device=device, dtype=dtype, ranks=ranks, checkpoint=checkpoint)
        return Whole(self.model, self.optimizer, dtype, ranks)

    def preflight(
        self,
        with_less_memory: Callable[[int, BaseException], Batch | None],
        held: Whole | Sharded | None = None,
        *,
        first_step: int = 0,
    ) -> dict[str, Any]:
        """Compute the gradient of one micro-batch a stream; return what the plan says of speed. Nothing is learnt.

        `held`: as this process holds the model, and goes on in the way that was found quickest; None: the whole of it.
        It begins with `first_step`.
        """
        held = held or self.hold()
        step, loss_of = held.even(self.learner.trial()), held.loss(self.learner.loss)
        seconds, tried = trial.seconds_of(held, step, loss_of, self.device, self.settings.seed, with_less_memory)
        tokens = self.settings.steps * self.learner.tokens_per_step
        rate = tried.tokens / seconds  # one by one, as rows are scored
        quicker: dict[str, Any] = {}
        if self.device.device.type != "cpu" and isinstance(held, Whole):
            common = loss_of, self.device, self.settings.seed, with_less_memory
            left = (self.settings.steps - first_step) * self.learner.tokens_per_step
            passes = -(-left // tried.tokens // self.ranks)
            way = trial.quickest(held, self.model, tried, *common, steps=passes, record=self.recorder, dynamic=None)
            seconds, tried, quicker = way.seconds, way.batch, way.told
        peak = devices.matrix_peak(self.device.device, self.device.dtype, seconds=0.02)
        flops, copies = 6 * matrix_parameters(self.model), devices.copy_speed(self.device.device)
        steps, every = self.settings.steps, self.settings.eval_every or self.settings.steps
        held_tokens = min(self.evaluation_rows * self.learner.length, self.decided["corpus"]["validation_tokens"])
        scored = held_tokens * -(-steps // every)
        weights = sum(each.numel() for each in self.model.parameters()) // (self.ranks if self.sharded else 1)
        more = {
            **(plan.optimiser_time(weights, steps, copies) if self.settings.optimizer != "muon" else {}),
            "scoring while it trains": scored / rate / 3,  # forward: a third of a pass
        }
        told = plan.speed(tokens, seconds, tried.tokens, flops, peak, copies, self.ranks, more=more)
        return {**told, **quicker}

    @property
    def recording(self) -> int:
        """The bytes that recordings of training passes take at most; 0 where none are made."""
        if self.sharded or self.learner.masked_because is not None:
            return 0
        return trial.recording(self.model, self.device, self.estimate)

    def recorder(self) -> graphs.Steps | None:
        """Return what launches training passes at once; None where that cannot be done, or memory is scarce."""
        return trial.recorder(self.model, self.learner.loss, self.device, self.recording, lambda tensors: tensors)

    def restore(self) -> None:
        """Make the weights float32 again."""
        if self.lowered is not None:
            self.lowered.restore()

    def finish(self) -> PreTrainedModel:
        """Return the plain model as it is saved."""
        self.restore()
        self.model.set_attn_implementation("sdpa")
        config: Any = self.model.config
        if config.model_type == "gpt2" and self.resolved.base is None:
            # A few thousand examples are gone through several times: GPT-2's own dropout, for fine-tuning.
            config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.1
        config.use_cache = True
        return self.model


def matrix_parameters(model: torch.nn.Module) -> int:
    """Return how many weights each token is multiplied with: those of all matrices, an output layer that is tied too.

    Six FLOPs each and token (Kaplan et al. 2020); attention's own products count nothing.
    """
    causal: Any = model
    output = causal.get_output_embeddings()
    inside = {
        id(each) for module in model.modules() if isinstance(module, torch.nn.Embedding) for each in module.parameters()
    }
    matrices = sum(each.numel() for each in model.parameters() if each.ndim == 2 and id(each) not in inside)
    return matrices + (output.weight.numel() if id(output.weight) in inside else 0)


def new_model(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a model with random weights, drawn from the recipe's seed, in float32. Embeddings and output are tied."""
    layers, heads, width = recipe.shape()
    ids = {
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # Rows of the vocabulary in multiples of 64: matrix units want round numbers.
    vocabulary = -(-len(tokenizer) // 64) * 64
    torch.manual_seed(recipe.seed)
    if recipe.architecture == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                # Gated layers have three matrices where GPT-2 has two: two thirds of the width are as many weights.
                intermediate_size=-(-8 * width // 3 // 64) * 64,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                max_position_embeddings=recipe.context,
                tie_word_embeddings=True,
                **ids,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=recipe.context,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one kernel
            resid_pdrop=recipe.dropout,
            embd_pdrop=recipe.dropout,
            attn_pdrop=recipe.dropout,
            **ids,
        )
    )


def tokenizer_for(recipe: PretrainRecipe, note: Callable[[str], None]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that the recipe names, itself or by its base model; None: one is to be trained.

    Raises ModelError where it is not there or does not fit its model.
    """
    if recipe.base is not None:
        try:
            base = models.find(recipe.base, recipe.revision, note)
            tokenizer = models.load_tokenizer(base)
        except ModelError as error:
            raise ModelError(models.asked_as("from", error)) from None
        sees = models.context(base.config)
        if sees < recipe.context != PretrainRecipe.model_fields["context"].default:
            raise ModelError(
                f"context: {recipe.context:,} tokens are asked for, and {base.name} sees {sees:,} at once. Type "
                f"`context: {sees}`, or leave it out"
            )
        if len(tokenizer) > base.config.vocab_size:
            raise ModelError(
                f"from: the tokenizer of {base.name} has {len(tokenizer):,} tokens, and the model knows "
                f"{base.config.vocab_size:,}. They do not belong together: give the folder of a model with its own"
            )
        return tokenizer
    return None if recipe.tokenizer is None else models.find_tokenizer(recipe.tokenizer, note)


def prepare(
    recipe: PretrainRecipe,
    corpus: Corpus,
    note: Callable[[str], None],
    embeddings: torch.Tensor | None = None,
    *,
    ranks: Ranks | Alone = ALONE,
    save_memory: Callable[[task.Learner, torch.device], None] | None = None,
) -> Pretraining:
    """Make or load the model, and decide what the recipe leaves open.

    `embeddings` (vocabulary, axes): where a new model's embeddings begin. `ranks`: the processes that
    train together. `save_memory` may let the learner take less memory, before that is estimated. Raises UsageError
    for a base model or device that is not there, or text that is too short.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    device = devices.choose(recipe.device, recipe.dtype)
    begun = _begin(recipe, corpus, note, embeddings)
    model = begun.model
    corpus.train.require_rows(begun.length, corpus.report["dropped"])
    chosen = _choose(recipe, corpus, begun)
    place = sharding.place(recipe, begun.parameters, device.device, ranks.count)
    torch.nn.Module.to(model, place)
    held_before = memory.held(model, device.device)
    dropout.use(model)
    norms.use(model)
    lowers = device.dtype is torch.bfloat16 and recipe.optimizer == "adamw"
    lowered = precision.Lowered(model, device.dtype) if lowers else None
    learner = task.Learner(
        model,
        corpus.train,
        length=begun.length,
        tokens_per_step=chosen.tokens_per_step,
        seed=recipe.seed,
        token_budget=recipe.tokens_at_once or (CPU_TOKENS if device.device.type == "cpu" else GPU_TOKENS),
        streams=streams.number_for(device.device, ranks.count),
    )
    if save_memory is not None:
        save_memory(learner, device.device)
    made = Pretraining(
        device,
        model,
        corpus.tokenizer,
        learner,
        chosen.settings,
        lowered,
        begun.context,
        chosen.evaluation_rows,
        recipe.model_copy(update=chosen.resolved),
        {**plan.machine(device), **begun.told(), **chosen.told, "corpus": _told_of(corpus), "notes": []},
        None,
        ranks.count,
    )
    made = _with_estimate(made, recipe, held_before, place, ranks)
    made.decided["notes"] += chosen.notes
    return made


@dataclass(frozen=True)
class _Begun:
    """A model as it begins, with what is known of it. `context` and `length` (of a row) are in tokens."""

    model: PreTrainedModel
    name: str
    where: str
    licence: str | None
    chain: list[str]
    context: int
    length: int
    parameters: int

    def told(self) -> dict[str, Any]:
        """Return the plan's part about it."""
        return {
            "model": {
                "name": self.name,
                "where": self.where,
                "parameters": self.parameters,
                "licence": self.licence,
                "context": self.context,
                "chain": self.chain,
            },
            "max_length": {
                "choice": self.length,
                "reason": "tokens a row; a row holds the ends and beginnings of documents",
            },
        }


def _begin(
    recipe: PretrainRecipe, corpus: Corpus, note: Callable[[str], None], embeddings: torch.Tensor | None
) -> _Begun:
    """Make a new model, or load the one that goes on learning."""
    if recipe.base is None:
        model = new_model(recipe, corpus.tokenizer)
        if embeddings is not None:
            begin_at(model, embeddings)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        context = recipe.context
        return _Begun(model, _called(recipe), "drawn at random", None, [], context, context, parameters)
    base = models.find(recipe.base, recipe.revision, note)
    model = models.load_causal(base)
    _drop(model, recipe.dropout, base.name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    context = models.context(base.config)
    length, chain = min(recipe.context, context), models.chain(recipe.base)
    return _Begun(model, base.name, base.where, base.licence, chain, context, length, parameters)


def _drop(model: PreTrainedModel, share: float, name: str) -> None:
    """Let a model that has dropout drop `share`. Raises ModelError where it has none and some is asked for."""
    places = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    if share and not places:
        raise ModelError(f"dropout: {name} ({model.config.model_type}) drops nothing. Leave it out")
    for place in places:
        place.p = share
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(model.config, key):
            setattr(model.config, key, share)


@dataclass(frozen=True)
class _Chosen:
    """How the texts are gone through. `resolved`: settings of the recipe; `told`: the plan's part."""

    settings: Settings
    tokens_per_step: int
    evaluation_rows: int
    resolved: dict[str, Any]
    told: dict[str, Any]
    notes: list[str]


def _choose(recipe: PretrainRecipe, corpus: Corpus, begun: _Begun) -> _Chosen:
    total = recipe.tokens or max(1, round((recipe.epochs or 1.0) * corpus.train.tokens))
    have = corpus.train.tokens
    if total > (most := MOST_PASSES * have):
        raise DataError(
            f"tokens: {total:,} are {total / have:,.0f} passes over texts of {have:,} tokens, and {MOST_PASSES:,} are "
            f"the most. Give more text, or type `tokens: {most}`"
        )
    per_step, step_reason = tokens_per_step(recipe, total, begun.length)
    steps = max(1, round(total / per_step))
    learning_rate, rate_reason = rate(recipe, begun.model)
    settings = Settings(
        steps=steps,
        learning_rate=learning_rate,
        warmup=recipe.warmup,
        decay=recipe.schedule,
        cooldown=recipe.cooldown,
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.95),  # GPT-3's: the gradient's size is remembered for tens of steps, not for a thousand
        seed=recipe.seed,
        eval_every=recipe.evaluate_every or max(1, -(-steps // EVALUATIONS)),
        save_every_seconds=recipe.checkpoint_every,
    )
    passes = total / corpus.train.tokens
    told = {
        "learning_rate": {"choice": learning_rate, "reason": rate_reason},
        "epochs": {"choice": passes, "reason": f"{total:,} tokens of {corpus.train.tokens:,}"},
        "steps": steps,
        "tokens_per_step": {"choice": per_step, "reason": step_reason},
    }
    notes = []
    if passes > 4:
        notes.append(
            f"the texts are gone through {passes:.1f} times; beyond four times little more is learnt from them "
            "(Muennighoff et al. 2023)"
        )
    between = settings.eval_every * per_step if settings.eval_every else total
    evaluation_rows = max(1, round(max(LEAST_EVALUATION, EVALUATION_TOKENS * between) / begun.length))
    resolved = {"tokens": None, "epochs": passes, "learning_rate": learning_rate, "tokens_per_step": per_step}
    return _Chosen(settings, per_step, evaluation_rows, resolved, told, notes)


def _told_of(corpus: Corpus) -> dict[str, int]:
    return {
        "train_tokens": corpus.train.tokens,
        "train_documents": corpus.train.documents,
        "validation_tokens": corpus.validation.tokens,
        "validation_documents": corpus.validation.documents,
    }


def _with_estimate(
    made: Pretraining, recipe: PretrainRecipe, held: int, place: torch.device, ranks: Ranks | Alone
) -> Pretraining:
    """Return `made` with an estimate of its memory, told in its plan, and a warning where there may be too little.

    Where the whole model is too much for one of several devices, they are to share it.
    """
    device = made.device.device
    decided, estimate, sharded = dict(made.decided), None, False
    ranks.meet("loaded")  # what is free tells something only once all of them hold their weights
    try:
        estimate = _estimate(made, held, ranks)
        sharded = sharding.chosen(recipe, ranks, device, place == device, estimate)
        if sharded:
            made.learner.streams = 1  # the passes of all ranks have to meet
            estimate = _estimate(made, held, ranks, sharded=True)
        decided["memory"], warnings = plan.memory(
            estimate,
            memory.available(device),
            lambda free: "A smaller size or context needs less",
            ranks.count if device.type == "cpu" else 1,
        )
        decided["notes"] = [*decided["notes"], *warnings]
    except Exception as error:  # a model that tensors without values cannot run may well train
        shown = " ".join(str(error).split())[:200]
        decided["memory"] = {"choice": "unknown", "reason": f"no estimate: {type(error).__name__}: {shown}"}
        if not sharded:
            sharded = sharding.chosen(recipe, ranks, device, place == device, None)
    if sharded:
        made.restore()
        made.learner.streams = 1
        torch.nn.Module.to(made.model, "cpu")
        made = replace(made, lowered=None)
    decided |= sharding.told(recipe, ranks.count, sharded)
    return replace(made, decided=decided, estimate=estimate, sharded=sharded)


def begin_at(model: PreTrainedModel, vectors: torch.Tensor) -> None:
    """Let the token embeddings of `model` begin at `vectors` (tokens, axes), at the usual length.

    Axes beyond its width are left out; where there are fewer, the rest of an embedding begins at zero.
    """
    causal: Any = model
    weight = causal.get_input_embeddings().weight.data
    usual = weight.norm(dim=1).mean()
    cut = vectors[:, : weight.shape[1]]
    cut = cut - cut.mean(dim=0)
    weight[: len(cut)] = 0
    weight[: len(cut), : cut.shape[1]] = usual * torch.nn.functional.normalize(cut)


def tokens_per_step(recipe: PretrainRecipe, total: int, length: int) -> tuple[int, str]:
    """Return tokens a step, in whole rows of `length`, and why."""
    if recipe.tokens_per_step is not None:
        return max(1, round(recipe.tokens_per_step / length)) * length, "asked for in the recipe, in whole rows"
    wanted = min(LARGEST_STEP, max(LEAST_STEP, 2 ** round(max(1, total // 1000).bit_length() - 1)))
    return max(1, wanted // length) * length, f"about a thousandth of all, at least {LEAST_STEP:,}"


def rate(recipe: PretrainRecipe, model: PreTrainedModel) -> tuple[float, str]:
    """Return the peak learning rate, and why."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate, "asked for in the recipe"
    config: Any = model.config
    found = RATE_TIMES_WIDTH / config.hidden_size
    reason = f"for a width of {config.hidden_size:,}: {RATE_TIMES_WIDTH} / width"
    if recipe.base is not None:
        return float(f"{found * CONTINUED:.1e}"), f"{reason}, times {CONTINUED} as the model has learnt already"
    return float(f"{found:.1e}"), reason


def _called(recipe: PretrainRecipe) -> str:
    layers, heads, width = recipe.shape()
    return f"new {recipe.architecture}, {layers} layers of {width} with {heads} heads"


def _estimate(made: Pretraining, held: int, ranks: Ranks | Alone, *, sharded: bool = False) -> memory.Estimate:
    """Estimate the peak of this process; `held`: what it holds beside the weights, in bytes."""
    found = made.model, made.learner, made.settings, made.device.dtype, made.device.device
    return estimate_memory(*found, held, ranks.count, sharded=sharded, rank=ranks.rank)


def estimate_memory(
    model: PreTrainedModel,
    learner: task.Learner,
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    held: int,
    ranks: int = 1,
    *,
    sharded: bool = False,
    rank: int = 0,
) -> memory.Estimate:
    """Estimate the peak of one of `ranks` processes, as `setup.estimate_memory` does for fine-tuning."""
    step = learner.trial()

    def make(each: torch.nn.Module) -> Optimizer:
        trained = [parameter for parameter in each.parameters() if parameter.requires_grad]
        if trained[0].dtype is torch.float32:
            return make_optimizer(each, settings)
        masters = [torch.empty_like(parameter, dtype=torch.float32) for parameter in trained]
        return MasterAdamW(trained, masters, settings.learning_rate, settings.weight_decay, settings.betas)

    return memory.estimate(
        model,
        step.micro[0],
        loss_of=learner.loss,
        make_optimizer=make,
        device=device,
        dtype=dtype,
        several=len(learner.step(0, 0, ranks).micro) > len(step.micro),
        streams=len(step.micro),
        process=held,
        summed=BUCKET * 4 if ranks > 1 and not sharded else 0,
        shards=sharding.memory_of(model, dtype, device, rank, ranks) if sharded else None,
    )
