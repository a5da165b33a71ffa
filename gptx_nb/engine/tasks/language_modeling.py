"""Causal language modelling on packed rows: what pretraining minimises, and how it is scored.

A row is a stretch of the shards, cut without regard to documents; every token but none twice is a target in an epoch.
No token sees another document: attention and positions begin anew with each (Zhao et al. 2024, arXiv:2402.13991). What
opens a document, the end-of-text token, is also what its predecessor has to end with, so both are learnt.

The cross entropy is taken over chunks of positions, so that a large vocabulary never fills memory (positions x
vocabulary float32 values at once would be gigabytes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import compiling, generate, memory, packing, streams, varlen
from gptx_nb.engine import dropout as dropouts
from gptx_nb.engine.batches import Step
from gptx_nb.engine.shards import Shards

Tensors = dict[str, torch.Tensor]

ATTENTION = "gptx_documents"
# Bytes of logits that exist at once. (A GPU has them in float32 besides, to turn them into gradients.)
CPU_LOGITS, GPU_LOGITS = 32 * 2**20, 256 * 2**20
CPU_BLOCK = 2**18  # values that a CPU's core turns into gradients at a time, in its cache
STARTS = 64  # documents
RESAMPLES = 1_000  # of the bootstrap
LEAST_ROWS = 10  # that a bootstrap says something about


class Learner:
    """How a language model learns from shards: what a step holds, and its loss.

    A step is `tokens_per_step` tokens in rows of `length`, in micro-batches of at most `token_budget` tokens (a row at
    the least), `streams` of which are computed at once. An epoch visits every row once, in an order that `seed` and the
    epoch decide; each begins at another place, so that the borders of rows move.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shards: Shards,
        *,
        length: int,
        tokens_per_step: int,
        seed: int,
        token_budget: int,
        streams: int = 1,
    ) -> None:
        self._model, self._shards, self._seed = model, shards, seed
        self.length, self.token_budget, self.streams = length, token_budget, streams
        self._rows = max(1, tokens_per_step // length)
        self._twice = False
        self.masked_because = use(model)

    @property
    def tokens_per_step(self) -> int:
        return self._rows * self.length

    def step(self, step: int, rank: int = 0, ranks: int = 1) -> Step:
        """Return the rows of one step: of several ranks, each gets every `ranks`-th."""
        mine = range(step * self._rows + rank, (step + 1) * self._rows, ranks)
        return self._step([self._row(index) for index in mine], self._rows)

    def trial(self) -> Step:
        """Return a micro-batch for each stream, as large as they get."""
        at_once = self.streams * min(self._micro_rows(), -(-self._rows // self.streams))
        return self._step([self._row(index) for index in range(at_once)], at_once)

    def loss(self, model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
        """Return the mean cross entropy, in nats a token."""
        return loss(model, tensors)

    def longest(self) -> Step:
        """Return what takes most memory: all rows are as long."""
        return self.trial()

    def need_less_memory(self) -> str | None:
        """Let steps take less memory from here on, at the same result; return in what way, or None if there is none."""
        if self._micro_rows() > 1:
            self.token_budget = self.length * (self._micro_rows() // 2)
            return f"{self.token_budget:,} tokens at once"
        if self.streams > 1:
            self.streams = 1
            return "one micro-batch at a time"
        if not self._twice and self._model.supports_gradient_checkpointing:
            memory.checkpoint_activations(self._model)
            self._twice = True
            return "activations computed twice"
        return None

    def _micro_rows(self) -> int:
        return max(1, self.token_budget // self.length)

    def _row(self, index: int) -> np.ndarray:
        """Return the tokens of a row and the one behind it, (length + 1,)."""
        per_epoch = self._shards.rows(self.length)
        epoch, place = divmod(index, per_epoch)
        order, offset = _order(self._seed, epoch, per_epoch, self._shards.tokens)
        return self._shards.read(offset + int(order[place]) * self.length, self.length + 1)

    def _step(self, rows: list[np.ndarray], all_rows: int) -> Step:
        size = max(1, min(self._micro_rows(), -(-len(rows) // self.streams)))
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        micro = [tensors_of(np.stack(group), self._shards.end, self.masked_because is None) for group in groups]
        weights = [len(group) / all_rows for group in groups]
        return Step(micro, all_rows * self.length, weights, self.streams, len(rows) * self.length)


_orders: dict[tuple[int, int, int], tuple[np.ndarray, int]] = {}


def _order(seed: int, epoch: int, rows: int, tokens: int) -> tuple[np.ndarray, int]:
    """Return the order of an epoch's rows, and where the first of them begins."""
    if (seed, epoch, rows) not in _orders:
        _orders.clear()  # one epoch's order is enough to keep
        generator = np.random.default_rng((seed, epoch))
        _orders[seed, epoch, rows] = generator.permutation(rows), int(generator.integers(tokens))
    return _orders[seed, epoch, rows]


def tensors_of(rows: np.ndarray, end: int, own_attention: bool) -> Tensors:
    """Return the tensors of a micro-batch from rows of tokens, each with the one behind it, (rows, length + 1) int64.

    {"input_ids", "targets", "position_ids": (rows, length)}, and where a document begins within a row "documents" with
    the number of each token's document in its row or, for a model with another attention than ours, "attention_mask"
    (rows, 1, length, length), true where a token may look. For ours also "starts" int32: where each document begins
    if all rows are one, and the number of tokens, again and again up to a multiple of STARTS: few shapes are quick.
    """
    ids = rows[:, :-1]
    opens = ids == end
    places = np.arange(ids.shape[1])
    last = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
    found = {
        "input_ids": torch.from_numpy(np.ascontiguousarray(ids)),
        "targets": torch.from_numpy(np.ascontiguousarray(rows[:, 1:])),
        "position_ids": torch.from_numpy(places - last),
    }
    if own_attention:
        begins = opens.copy()
        begins[:, 0] = True
        first = np.flatnonzero(begins)
        found["starts"] = torch.full((-(-(len(first) + 1) // STARTS) * STARTS,), ids.size, dtype=torch.int32)
        found["starts"][: len(first)] = torch.from_numpy(first)
    if opens[:, 1:].any():
        documents = torch.from_numpy(opens.cumsum(axis=1))
        if own_attention:
            found["documents"] = documents
        else:
            found["attention_mask"] = _may_look(documents)
    return found


def _may_look(documents: torch.Tensor) -> torch.Tensor:
    """Return (rows, 1, length, length): whether a token may look at another one, at or before it in its document."""
    same = documents[:, :, None] == documents[:, None, :]
    return same.tril_()[:, None]


def use(model: PreTrainedModel) -> str | None:
    """Give `model` our attention, if it can do with it; else return why not, and leave it as it is."""
    reason = packing.why_not(model)
    if reason is None:
        model.set_attn_implementation(ATTENTION)
    return reason


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of (rows, heads, length, size) within each document; keys may have fewer heads.

    `starts`: where there are kernels that take it.
    """
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if starts is not None and varlen.fits(query) and key.dtype is value.dtype is query.dtype:
        rows, _heads, length, _size = query.shape
        q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
        return varlen.attend(q, k, v, starts, length, scale, dropout).unflatten(0, (rows, length)), None
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type == "cpu" and (dropout > 0 or query.shape[2] <= PLAIN):
        # On rows this short two batched products and a softmax beat the CPU's fused kernel, which drops nothing either.
        length = query.shape[2]
        may_look = torch.ones(length, length, dtype=torch.bool).tril_() if documents is None else _may_look(documents)
        scores = torch.matmul(query * scale, key.transpose(2, 3)).masked_fill_(~may_look, float("-inf"))
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        if dropout > 0:
            weights = dropouts.drop(weights, dropout, packing.PLACE + int(getattr(module, "layer_idx", None) or 0))
        mixed = torch.matmul(weights, value)
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if documents is None else _may_look(documents),
            dropout_p=dropout,
            is_causal=documents is None,
            scale=scale,
        )
    return mixed.transpose(1, 2).contiguous(), None


# Tokens a row; beyond, what stands between all pairs of them no longer fits a core's cache. (With AMX in bfloat16,
# forward and back, plain products took 0.3 times as long as the fused kernel at 128 tokens, 0.8 at 256, 1.6 at 512.)
PLAIN = 256

AttentionInterface.register(ATTENTION, _attention)


def states(model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
    """Return the last hidden states (rows, length, width) for what `tensors_of` has made."""
    causal: Any = model  # transformers gives every causal model this method
    given: Tensors = {name: tensors[name] for name in ("documents", "attention_mask") if name in tensors}
    if "starts" in tensors and varlen.is_there(tensors["starts"].device):
        given["starts"] = tensors["starts"]
    output = causal.get_decoder()(
        input_ids=tensors["input_ids"], position_ids=tensors["position_ids"], use_cache=False, **given
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def loss(model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
    """Return the mean cross entropy, in nats a token, of predicting `targets` (rows, length)."""
    return cross_entropy(model, states(model, tensors).flatten(0, 1), tensors["targets"].flatten())


def cross_entropy(
    model: Any, states: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross entropy, in nats, of predicting `targets` (n,) from `states` (n, width).

    `counts` (n,) float32: 0 for a target that does not count, whatever it is, else 1; None: all do.
    """
    output = model.get_output_embeddings()
    if own_logits(model) is None:
        weight = output.weight
        if not torch.is_grad_enabled():  # which the function cannot see, and would make gradients for nobody
            states, weight = states.detach(), weight.detach()
        mean: torch.Tensor = ChunkedCrossEntropy.apply(states, weight, targets, counts, compiling.is_used(model))
        return mean
    if counts is not None:
        targets = targets.where(counts > 0, -100)  # which torch leaves out

    def nats(some: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        # A score has the logits of its states' dtype, as above.
        with torch.autocast(some.device.type, enabled=learns and torch.is_autocast_enabled(some.device.type)):
            return torch.nn.functional.cross_entropy(logits(model, some), theirs, reduction="sum")

    learns = torch.is_grad_enabled()
    # Logits of a chunk are computed again on the way back: those of all positions would fill memory.
    size = chunk_size(states.device, len(output.weight), torch.float32)
    parts: list[Any] = [
        checkpoint(nats, some, theirs, use_reentrant=False, preserve_rng_state=False)
        for some, theirs in zip(states.split(size), targets.split(size), strict=True)
    ]
    total: torch.Tensor = torch.stack(parts).sum() / (max(1, len(targets)) if counts is None else counts.sum())
    return total


def own_logits(model: Any) -> str | None:
    """Say what a model's logits are beside a product of states and a matrix, or None where they are just that."""
    if getattr(model.config, "final_logit_softcapping", None):
        return "capped"
    return "with a bias" if getattr(model.get_output_embeddings(), "bias", None) is not None else None


def logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, vocabulary), float32, of last hidden states (n, width)."""
    found: torch.Tensor = model.get_output_embeddings()(states).float()
    if own_logits(model) == "capped":
        most = model.config.final_logit_softcapping
        found = torch.tanh(found / most) * most
    return found


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of a linear output layer, a chunk of positions at a time.

    `apply(states (n, width), weight (vocabulary, width), targets (n,) int64, counts, compiled)` gives a float32 scalar;
    `counts` is None or says with 0 and 1, (n,) float32, which targets count; `compiled`: see `compiling`. Gradients are
    made in the forward pass, while a chunk's logits are at hand: no chunk is kept and none is computed twice (the
    method of Liger Kernel's fused linear cross entropy, Hsu et al. 2024, arXiv:2410.10989). Matrix products are in the
    dtype of `states`, or where a gradient is wanted under autocast for bfloat16 in that; what is summed over the
    vocabulary or over chunks is float32. (In float16 the sum over positions could overflow, before any scaling.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        counts: torch.Tensor | None = None,
        compiled: bool = False,
    ) -> torch.Tensor:
        device = states.device
        wants_gradient = any(ctx.needs_input_grad[:2])
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        dtype = torch.bfloat16 if wants_gradient and autocast is torch.bfloat16 else states.dtype
        with torch.autocast(device.type, enabled=False):
            states_in, weight_in = states.to(dtype), weight.to(dtype)
            if counts is not None:
                targets, kept = targets.clamp_min(0), counts[:, None].to(dtype)
                states_in = states_in * kept  # so what does not count adds nothing to the weight's gradient
            state_gradient = torch.empty_like(states_in) if wants_gradient else None
            weight_gradient: torch.Tensor | None = None
            total = torch.zeros((), device=device)
            size = chunk_size(device, len(weight), dtype)
            for start in range(0, len(targets), size):
                chunk, target = states_in[start : start + size], targets[start : start + size, None]
                logits = chunk @ weight_in.T
                nats_of = compiling.of(_in_one) if compiled else _nats
                parts = [nats_of(some, theirs, wants_gradient) for some, theirs in _blocks(logits, target)]
                nats = parts[0] if len(parts) == 1 else torch.cat(parts)
                total += nats.sum() if counts is None else torch.dot(nats, counts[start : start + size])
                if state_gradient is not None:
                    torch.mm(logits, weight_in, out=state_gradient[start : start + size])
                    product = (logits.T @ chunk).float()
                    weight_gradient = product if weight_gradient is None else weight_gradient.add_(product)
                del logits  # before the next ones are there
            count: Any = max(1, len(targets)) if counts is None else counts.sum()
            if state_gradient is not None:
                if counts is not None:
                    state_gradient *= kept
                if weight_gradient is None:  # no position
                    weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
                # Divided in the dtype of the states: in float16 so small a gradient vanishes.
                of_states = state_gradient.to(states.dtype) / count
                ctx.save_for_backward(of_states, weight_gradient.div_(count).to(weight.dtype))
            mean: torch.Tensor = total / count
            return mean

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        state_gradient, weight_gradient = ctx.saved_tensors
        return state_gradient * gradients[0], weight_gradient * gradients[0], None, None, None


def _blocks(logits: torch.Tensor, targets: torch.Tensor) -> zip[tuple[torch.Tensor, ...]]:
    """Return so many rows after another as a core's cache holds in float32; on a GPU all at once."""
    rows = max(1, CPU_BLOCK // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    return zip(logits.split(rows), targets.split(rows), strict=True)


def _nats(logits: torch.Tensor, targets: torch.Tensor, turned: bool) -> torch.Tensor:
    """Return (n,) the cross entropies of `logits` (n, vocabulary) and `targets` (n, 1), in float32.

    `turned`: the logits become their gradient, softmax minus one-hot, in place; else they may become anything.
    """
    if logits.device.type != "cpu":  # few passes over its memory: bfloat16 is read and float32 written at once
        wide = torch.log_softmax(logits, dim=1, dtype=torch.float32)
        nats = -wide.gather(1, targets)[:, 0]
        if turned:
            logits.copy_(wide.exp_().scatter_add_(1, targets, wide.new_full(targets.shape, -1.0)))
        return nats
    wide = logits.float()
    largest = wide.amax(1, keepdim=True)
    of_target = wide.sub_(largest).gather(1, targets)
    sums = wide.exp_().sum(1, keepdim=True)
    if turned:
        wide.mul_(sums.reciprocal()).scatter_add_(1, targets, torch.full_like(sums, -1.0))
        if wide is not logits:
            logits.copy_(wide)
    return (sums.log() - of_target)[:, 0]


def _in_one(logits: torch.Tensor, targets: torch.Tensor, turned: bool) -> torch.Tensor:
    """As `_nats`, of operations that a compiler makes one of: logits are read twice, and written once."""
    likely = torch.log_softmax(logits.float(), dim=1)
    if turned:
        numbers = torch.arange(logits.shape[1], device=logits.device)
        logits.copy_(likely.exp() - (numbers == targets).float())
    return -likely.gather(1, targets)[:, 0]


def chunk_size(device: torch.device, vocabulary: int, dtype: torch.dtype) -> int:
    """Return how many positions' logits, of `dtype`, exist at once: as many as pay for a pass over the weights."""
    values = CPU_LOGITS if device.type == "cpu" else GPU_LOGITS
    return max(64, values // dtype.itemsize // vocabulary)


@dataclass(frozen=True)
class Score:
    """How well held-back documents are predicted, with a 95 % interval (percentile bootstrap over rows).

    Fewer rows than LEAST_ROWS say nothing about that: `low` and `high` are None.
    """

    bits_per_byte: float
    low: float | None
    high: float | None
    validation_loss: float  # nats a token
    tokens: int
    text_bytes: int
    documents: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score(
    model: PreTrainedModel, shards: Shards, *, length: int, token_budget: int, most_rows: int | None = None
) -> Score:
    """Score `shards` in rows of `length` tokens without overlap; `most_rows`: so many of them, evenly spread.

    Bits a byte count the end of every document as well. Where only some rows are scored, bytes are taken in proportion
    to tokens.
    """
    device = next(model.parameters()).device
    count = shards.tokens - 1  # what opens the first document is not predicted
    starts = list(range(0, count, length))
    chosen = starts if most_rows is None or most_rows >= len(starts) else starts[:: -(-len(starts) // most_rows)]
    size = max(1, token_budget // length)
    own = model.config._attn_implementation == ATTENTION
    groups = [chosen[first : first + size] for first in range(0, len(chosen), size)]

    def nats(group: list[int]) -> list[tuple[float, int]]:
        found = []
        with torch.inference_mode():
            for start in group:
                row = shards.read(start, min(length, count - start) + 1)
                tensors = tensors_of(row[None], shards.end, own)
                mean = loss(model, {name: each.to(device) for name, each in tensors.items()})
                found.append((float(mean) * (len(row) - 1), len(row) - 1))
        return found

    was_training = model.training
    model.eval()
    rows = np.array([each for found in _side_by_side(model, nats, groups, device) for each in found])
    model.train(was_training)
    bytes_per_token = shards.text_bytes / count
    total, tokens = rows.sum(axis=0)
    per_nat = 1 / math.log(2) / bytes_per_token
    low = high = None
    if len(rows) >= LEAST_ROWS:
        rng = np.random.default_rng(0)  # one resample at a time: of much text all together would fill memory
        sums = np.array([rows[rng.integers(len(rows), size=len(rows))].sum(axis=0) for _ in range(RESAMPLES)])
        low, high = (float(each) for each in np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5]) * per_nat)
    return Score(
        bits_per_byte=float(total / tokens * per_nat),
        low=low,
        high=high,
        validation_loss=float(total / tokens),
        tokens=int(tokens),
        text_bytes=round(tokens * bytes_per_token),
        documents=shards.documents,
    )


def _side_by_side(
    model: PreTrainedModel, nats: Any, groups: list[list[int]], device: torch.device
) -> list[list[tuple[float, int]]]:
    """Call `nats` with each group, on every core at once; autocast, which belongs to a thread, goes with it."""
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    def work(mine: list[list[int]]) -> list[list[tuple[float, int]]]:
        with torch.autocast(device.type, dtype=dtype, enabled=enabled):
            return [nats(group) for group in mine]

    number = min(streams.number_for(device), len(groups))
    shares = streams.each(work, [groups[stream::number] for stream in range(number)])
    return [shares[place % number][place // number] for place in range(len(groups))]


def samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int
) -> list[str]:
    """Return how `model` continues each prompt: text of at most `new_tokens` tokens, drawn with a fixed seed."""
    end: int = tokenizer.eos_token_id
    rows = [[end, *tokenizer(prompt, split_special_tokens=True)["input_ids"]] for prompt in prompts]
    sampling = generate.Sampling(temperature=0.8, top_k=40, seed=0)
    was_training = model.training
    model.eval()
    found = generate.generate(model, rows, max_new_tokens=new_tokens, end_ids=[end], sampling=sampling)
    model.train(was_training)
    return [str(tokenizer.decode(each.tokens)) for each in found]
