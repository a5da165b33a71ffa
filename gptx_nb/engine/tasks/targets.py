"""How a language model learns to write answers: the loss is on the target tokens of each row, and on nothing else.

One learner serves every task of `writing`. Only the states from which a target is predicted meet the output layer, and
its cross entropy is taken in chunks (`language_modeling.cross_entropy`), so that no large vocabulary fills
memory. Rows are packed where the model's attention allows that, else padded and masked by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gptx_nb.engine import batches, distributed, last_layer, memory, packing
from gptx_nb.engine import streams as parallel
from gptx_nb.engine.tasks.encoding import Encoded, EncodedRows
from gptx_nb.engine.tasks.language_modeling import cross_entropy, logits
from gptx_nb.engine.tuning import FrozenPart, Tuning

Tensors = dict[str, torch.Tensor]

LEAST_TOKENS = 16  # at once
HELD_TOKENS = 4096  # of rows held back, at once


class Learner:
    """What a step holds, its loss, and the loss on rows held back. The interface is `text_classification.Learner`'s.

    A step's loss is the mean over its target tokens, so that a long answer weighs as much a token as a short one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tuned: Tuning,
        rows: Sequence[Encoded],
        held_rows: Sequence[Encoded],
        *,
        pad_id: int,
        device: torch.device,
        batch_size: int,
        seed: int,
        token_budget: int = 2048,
        streams: int = 1,
    ) -> None:
        self._model = model
        self._rows, self.held_rows = EncodedRows.of(rows), EncodedRows.of(held_rows)
        self._lengths = self._rows.read_lengths
        self._pad_id, self._device = pad_id, device
        self._batch_size, self._seed, self.token_budget = batch_size, seed, token_budget
        self.streams = streams
        self._twice = False
        self.padded_because = packing.use(model)
        # For all steps alike, so that none takes more memory than the one with the most tokens.
        self._spares = self.asked <= last_layer.MOST
        self.frozen: FrozenPart | None = None
        if tuned.has_frozen_part and self.padded_because is None:
            read = (row.read for part in (self._rows, self.held_rows) for row in part)
            self.frozen = FrozenPart(model, tuned, read, empty=pad_id)

    def prepare(self, autocast: Callable[[], AbstractContextManager[Any]], file: Path | None = None) -> None:
        """Compute the frozen part, if there is one, into memory or `file`; `autocast` gives the arithmetic."""
        if self.frozen is not None:
            self.frozen.compute(self._device, autocast, self.token_budget, file, self.streams)

    def step(self, step: int, rank: int = 0, ranks: int = 1) -> batches.Step:
        """Return the batch of one step, in as many micro-batches as the token budget asks for.

        Of several ranks, each gets its share of the rows; their weights sum to 1 over all ranks.
        """
        chosen, _ = batches.step_rows(step, rows=len(self._rows), batch_size=self._batch_size, seed=self._seed)
        lengths: list[int] = self._lengths[chosen].tolist()
        places = range(len(chosen)) if ranks == 1 else distributed.share(lengths, rank, ranks)
        targets = int(self._rows.targets[chosen].sum())
        micro, weights = [], []
        for members in self._groups([chosen[place] for place in places]):
            micro.append(self._tensors(members))
            weights.append(micro[-1]["targets"].numel() / targets)
        return batches.Step(micro, sum(lengths), weights, self.streams, sum(lengths[place] for place in places))

    def longest(self, ranks: int = 1) -> batches.Step:
        """Return the step that takes most memory, the one with the longest rows, for `whole_loss`: a rank's share."""
        most = -(-self._batch_size // ranks)
        longest = batches.longest_first(self._lengths, most)
        groups = self._groups(longest)
        packed = self.padded_because is None
        micro = [tensors_of([self._rows[index] for index in members], self._pad_id, packed) for members in groups]
        targets = sum(each["targets"].numel() for each in micro)
        weights = [each["targets"].numel() / targets for each in micro]
        return batches.Step(micro, int(self._lengths[longest].sum()), weights, self.streams)

    def loss(self, model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
        """Return the mean cross entropy, in nats, of the target tokens."""
        if self.frozen is None or "kept" not in tensors:
            return self.whole_loss(model, tensors)
        kept = tensors["kept"].to(next(self._model.parameters()).dtype)
        states = packing.states_at(self.frozen.upper, tensors, "at", spare=self._spares, kept=kept)
        return cross_entropy(self._model, states, tensors["targets"], tensors.get("counts"))

    def whole_loss(self, model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
        """Return the loss as the whole model gives it, without a frozen part that is kept."""
        return loss(model, tensors, spare=self._spares)

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return int(self._lengths.sum())

    @property
    def asked(self) -> float:
        """The share of the tokens whose last states are asked for."""
        return int(self._rows.targets.sum()) / max(1, self.tokens) if self.padded_because is None else 1.0

    writes = True

    @property
    def held_tokens(self) -> int:
        """Tokens of all rows held back."""
        return int(self.held_rows.ids.lengths.sum())

    def need_less_memory(self) -> str | None:
        """Let steps take less memory from here on, at the same result; return in what way, or None if there is none."""
        if self.token_budget > LEAST_TOKENS and any(each["rows"].numel() > 1 for each in self.longest().micro):
            self.token_budget //= 2
            return f"{self.token_budget:,} tokens at once"
        if self.streams > 1:
            self.streams = 1
            return "one micro-batch at a time"
        if not self._twice and self._model.supports_gradient_checkpointing:
            memory.checkpoint_activations(self._model)
            self._twice = True
            return "activations computed twice"
        return None

    def held_nats(self) -> np.ndarray:
        """Return float64 (rows held back, 2): the nats of each row's targets, and their number."""
        budget = min(HELD_TOKENS, 4 * self.token_budget)  # a way forward keeps a part of what a step keeps
        return nats(
            self._model,
            self.held_rows,
            pad_id=self._pad_id,
            packed=self.padded_because is None,
            token_budget=budget,
            streams=self.streams,
        )

    def _groups(self, chosen: list[int]) -> list[list[int]]:
        packed = self.padded_because is None
        groups = batches.by_lengths(
            self._lengths[chosen].tolist(), token_budget=self.token_budget, packed=packed, streams=self.streams
        )
        return [[chosen[place] for place in group] for group in groups]

    def _tensors(self, members: list[int]) -> Tensors:
        rows = [self._rows[index] for index in members]
        tensors = tensors_of(rows, self._pad_id, self.padded_because is None)
        return tensors if self.frozen is None else {**tensors, **self.frozen.tensors(members)}


def tensors_of(rows: Sequence[Encoded], pad_id: int, packed: bool) -> Tensors:
    """Return the tensors of a micro-batch: what `packing.pack` or `batches.pad` gives for what is read, and int64

    "at" (targets,): the place among all tokens, padding included, whose state predicts a target; "targets" (targets,):
    the tokens; "rows" (rows,): how many targets each row has.
    """
    given = [row.read for row in rows]
    tensors = packing.pack(given, pad_id) if packed else batches.pad(given, pad_id)
    width = 0 if packed else tensors["input_ids"].shape[1]
    at, targets, start = [], [], 0
    for row, tokens in zip(rows, given, strict=True):
        places = [place for place, target in enumerate(row.loss) if target]
        at += [start + place - 1 for place in places]
        targets += [row.ids[place] for place in places]
        start += len(tokens) if packed else width
    counts = [sum(row.loss) for row in rows]
    return {**tensors, "at": torch.tensor(at), "targets": torch.tensor(targets), "rows": torch.tensor(counts)}


def loss(model: torch.nn.Module, tensors: Tensors, *, spare: bool = True) -> torch.Tensor:
    """Return the mean cross entropy, in nats, of the target tokens of what `tensors_of` has made.

    `spare` as `packing.states_at` has it.
    """
    return cross_entropy(model, _states(model, tensors, spare), tensors["targets"], tensors.get("counts"))


def _states(model: Any, tensors: Tensors, spare: bool = True) -> torch.Tensor:
    """Return the states (targets, width) from which the targets are predicted."""
    if "spread" in tensors:
        return packing.states_at(model.base_model, tensors, "at", spare=spare)
    output = model.get_decoder()(
        input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
    )
    return output.last_hidden_state.flatten(0, 1)[tensors["at"]]  # type: ignore[no-any-return]


def nats(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    packed: bool,
    token_budget: int = HELD_TOKENS,
    streams: int | None = None,
) -> np.ndarray:
    """Return float64 (rows, 2): how many nats each row's targets take, and how many tokens they are.

    `streams` are computed at once, by default as many as there are.
    """
    found = np.zeros((len(rows), 2))
    device = model.device
    streams = streams or parallel.number_for(device)
    lengths = [len(row.read) for row in rows]
    groups = batches.by_lengths(lengths, token_budget=token_budget, packed=packed, streams=streams)

    def work(mine: list[list[int]]) -> None:
        with torch.inference_mode():
            for group in mine:
                tensors = tensors_of([rows[index] for index in group], pad_id, packed)
                counts = tensors["rows"].numpy()
                on_device = {name: each.to(device) for name, each in tensors.items()}
                each = _each_nats(model, _states(model, on_device), on_device["targets"]).cpu().double().numpy()
                sums = np.add.reduceat(each, np.concatenate([[0], counts.cumsum()[:-1]])) if len(each) else counts
                found[group] = np.stack([sums, counts], axis=1)

    was_training = model.training
    model.eval()
    parallel.each(work, [groups[stream::streams] for stream in range(min(streams, len(groups)))])
    model.train(was_training)
    return found


def _each_nats(model: Any, states: torch.Tensor, targets: torch.Tensor, at_once: int = 256) -> torch.Tensor:
    """Return the nats (targets,) of each target, a chunk of logits at a time."""
    parts = [
        torch.nn.functional.cross_entropy(
            logits(model, states[start : start + at_once]), targets[start : start + at_once], reduction="none"
        )
        for start in range(0, len(targets), at_once)
    ]
    return torch.cat(parts) if parts else states.new_zeros(0)
