"""Text classification: one label a text or several, read off the last token of a causal language model.

The head is transformers' own (`AutoModelForSequenceClassification`): a linear layer on the hidden state of the last
token that is not padding (Radford et al. 2018), so that the saved model is a plain one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import batches, distributed, graphs, memory, packing
from gptx_nb.engine import streams as parallel
from gptx_nb.engine.tasks import reading
from gptx_nb.engine.tasks.reading import Row, TokenRows
from gptx_nb.engine.tuning import FrozenPart, Tuning

Tensors = dict[str, torch.Tensor]

LEAST_TOKENS = 16  # at once
RECORDED_TOKENS = 1024  # at once: more keep a GPU busy for as long as they take to be launched, or nearly


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[list[list[int]], list[int]]:
    """Return each text's tokens, at most `max_length`, and which texts were cut (see `reading`)."""
    found = reading.encode(tokenizer, texts, reading.Reading(max_length))
    return list(found.rows.windows), found.cut_at


@dataclass(frozen=True)
class Pull:
    """Holds a head to the one that it began with (L2-SP, Li et al. 2018, arXiv:1802.01483).

    A few examples teach chance as well as sense, and a head that begins at its labels' words would forget them. `head`
    (labels, width); `weights` (width,) say how much a step off it costs in each direction, in nats for all examples
    together.
    """

    head: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Pull:
        """Return the same on `device`, where it is asked for at every step."""
        return Pull(self.head.to(device), self.weights.to(device))

    def loss(self, head: torch.Tensor, examples: int) -> torch.Tensor:
        """Return what the distance of `head`, on the same device, costs for each of so many examples, in nats."""
        begun, weights = self.head, self.weights
        return ((head.float() - begun).square() * weights).sum() / (2 * examples)


class Learner:
    """How a classifier learns from rows of tokens: what a step holds, its loss, and the answers for rows held back.

    Rows are packed where the model's attention allows that, else padded. A part that `tuning` has frozen is computed
    once for every row; `prepare` does that. A step has a micro-batch for each of `streams`, where it has so many rows,
    of at most `token_budget` tokens; both may be changed between steps.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tuned: Tuning,
        rows: Sequence[Row],
        labels: Sequence[int] | Sequence[list[float]] | np.ndarray,
        held_rows: Sequence[Row],
        *,
        pad_id: int,
        device: torch.device,
        batch_size: int,
        seed: int,
        token_budget: int = 2048,
        streams: int = 1,
        pull: Pull | None = None,
    ) -> None:
        self._model, self._pull = model, None if pull is None else pull.to(device)
        self._rows, self.held_rows = TokenRows.of(rows), TokenRows.of(held_rows)
        self._labels = np.asarray(labels)
        if self._labels.dtype != np.int64:
            self._labels = self._labels.astype(np.float32)
        self._pad_id, self._device = pad_id, device
        self._batch_size, self._seed, self.token_budget = batch_size, seed, token_budget
        self.streams = streams
        self._twice = False
        self.padded_because = packing.use(model)
        self.frozen: FrozenPart | None = None
        if tuned.has_frozen_part and self.padded_because is None:
            windows = itertools.chain(self._rows.windows, self.held_rows.windows)
            self.frozen = FrozenPart(model, tuned, windows, empty=pad_id)
            held_starts = len(self._rows.windows) + self.held_rows.starts
            self._starts = np.concatenate([self._rows.starts[:-1], held_starts])  # of each text's windows among all

    def prepare(self, autocast: Callable[[], AbstractContextManager[Any]], file: Path | None = None) -> None:
        """Compute the frozen part, if there is one, into memory or `file`; `autocast` gives the arithmetic."""
        if self.frozen is not None:
            self.frozen.compute(self._device, autocast, self.token_budget, file, self.streams)

    def step(self, step: int, rank: int = 0, ranks: int = 1) -> batches.Step:
        """Return the batch of one step, in as many micro-batches as the token budget asks for.

        Of several ranks, each gets its share of the rows; their weights sum to 1 over all ranks.
        """
        chosen, _ = batches.step_rows(step, rows=len(self._rows), batch_size=self._batch_size, seed=self._seed)
        lengths = [max(1, len(self._rows[index])) for index in chosen]
        places = range(len(chosen)) if ranks == 1 else distributed.share(lengths, rank, ranks)
        micro, weights = [], []
        for members in self._groups(self._rows, [chosen[place] for place in places]):
            tensors = self._tensors(self._rows, members, first=0)
            tensors["labels"] = torch.from_numpy(self._labels[members])
            micro.append(tensors)
            weights.append(len(members) / len(chosen))
        here = sum(lengths[place] for place in places)
        return batches.Step(micro, sum(lengths), weights, self.streams, here)

    def loss(self, model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
        """Return the mean cross entropy, in nats, of the labels, and what holds the head."""
        found = label_loss(self._logits(model, tensors), tensors["labels"])
        if self._pull is None:
            return found
        classifier: Any = model
        return found + self._pull.loss(classifier.score.weight, len(self._rows))

    def longest(self, ranks: int = 1) -> batches.Step:
        """Return the step that takes most memory, the one with the longest rows, for `whole_loss`.

        Of several ranks, each has its share of them. Filling a frozen part takes more than training on it.
        """
        most = -(-self._batch_size // ranks)
        longest = batches.longest_first(self._rows.lengths, most)
        micro = []
        groups = self._groups(self._rows, longest)
        for members in groups:
            micro.append(_tensors([self._rows[index] for index in members], self._pad_id, self.padded_because is None))
            micro[-1]["labels"] = torch.from_numpy(self._labels[members])
        tokens = sum(max(1, len(self._rows[index])) for index in longest)
        return batches.Step(micro, tokens, [len(members) / len(longest) for members in groups], self.streams)

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return int(np.maximum(1, self._rows.lengths).sum())

    @property
    def asked(self) -> float:
        """The share of the tokens whose last states are asked for."""
        return len(self._rows.windows) / max(1, self.tokens) if self.padded_because is None else 1.0

    writes = False

    @property
    def held_tokens(self) -> int:
        """Tokens of all rows held back."""
        return int(self.held_rows.windows.lengths.sum())

    def need_less_memory(self) -> str | None:
        """Let steps take less memory from here on, at the same result; return in what way, or None if there is none."""
        if any(len(tensors["labels"]) > 1 for tensors in self.longest().micro) and self.token_budget > LEAST_TOKENS:
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

    def whole_loss(self, model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
        """Return the loss as the whole model gives it, without a frozen part that is kept."""
        return label_loss(_logits(model, tensors), tensors["labels"])

    def held_logits(self) -> np.ndarray:
        """Return float32 logits of shape (rows held back, labels)."""
        classifier: Any = self._model
        return _answers(
            self._model,
            self._groups(self.held_rows, list(range(len(self.held_rows)))),
            lambda members: self._logits(
                self._model, _on(self._device, self._tensors(self.held_rows, members, first=len(self._rows)))
            ),
            labels=classifier.score.out_features,
            streams=self.streams,
        )

    def _groups(self, rows: Sequence[Row], chosen: list[int]) -> list[list[int]]:
        packed = self.padded_because is None
        groups = batches.by_length(
            [rows[index] for index in chosen], token_budget=self.token_budget, packed=packed, streams=self.streams
        )
        return [[chosen[place] for place in group] for group in groups]

    def _tensors(self, rows: Sequence[Row], members: list[int], first: int) -> Tensors:
        if self.frozen is not None:
            starts = self._starts
            ranges = (range(int(starts[first + index]), int(starts[first + index + 1])) for index in members)
            kept = list(itertools.chain.from_iterable(ranges))
            return {**self.frozen.tensors(kept), **reading.places([rows[index] for index in members])}
        return _tensors([rows[index] for index in members], self._pad_id, self.padded_because is None)

    def _logits(self, model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
        if self.frozen is None:
            return _logits(model, tensors)
        return reading.pooled(self.frozen.logits(tensors), tensors)


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss, in nats, of `logits` (texts, labels).

    `labels` are int64 (texts,), one a text: cross entropy; or float32 (texts, labels), 1 for each label that a text
    has: binary cross entropy, as transformers takes it for `multi_label_classification`.
    """
    if labels.is_floating_point():
        return torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
    return torch.nn.functional.cross_entropy(logits.float(), labels)


def _tensors(rows: Sequence[Row], pad_id: int, packed: bool) -> Tensors:
    windows = reading.flat(rows)
    return {**(packing.pack(windows, pad_id) if packed else batches.pad(windows, pad_id)), **reading.places(rows)}


def _logits(model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
    if "spread" not in tensors:
        padded: torch.Tensor = model(
            input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
        ).logits
        return reading.pooled(padded, tensors)
    classifier: Any = model  # transformers gives every decoder's classifier a `score`
    scored: torch.Tensor = classifier.score(packing.states_at(classifier.base_model, tensors, "last"))
    return reading.pooled(scored, tensors)


def logits(
    model: torch.nn.Module,
    rows: Sequence[Row],
    *,
    pad_id: int,
    device: torch.device,
    labels: int,
    packed: bool = False,
    token_budget: int = 8192,
    recorded: graphs.Graphs | None = None,
) -> np.ndarray:
    """Return float32 logits of shape (texts, labels), in the order of `rows`; batches are made by length.

    `labels` is the number of labels. `recorded`: what launches the passes of a few packed texts at once, on a GPU.
    """
    streams = parallel.number_for(device)

    def logits_of(group: list[int]) -> torch.Tensor:
        tensors = _tensors([rows[index] for index in group], pad_id, packed)
        if recorded is not None and tensors["input_ids"].numel() <= RECORDED_TOKENS:
            tensors = packing.even(tensors)
            key = tuple((name, tuple(each.shape)) for name, each in tensors.items())
            replay = recorded.get(key, lambda given: _logits(model, given), lambda: _on(device, tensors))
            if replay is not None:
                return replay(tensors)
        return _logits(model, _on(device, tensors))

    return _answers(
        model,
        batches.by_length(rows, token_budget=token_budget, packed=packed, streams=streams),
        logits_of,
        labels=labels,
        streams=streams,
    )


def _answers(
    model: torch.nn.Module,
    groups: list[list[int]],
    logits_of: Callable[[list[int]], torch.Tensor],
    *,
    labels: int,
    streams: int,
) -> np.ndarray:
    """Return float32 logits of shape (rows, labels) for the rows that `groups` number."""
    result = np.zeros((sum(map(len, groups)), labels), dtype=np.float32)

    def answer(mine: list[list[int]]) -> None:
        with torch.inference_mode():
            for group in mine:
                result[group] = logits_of(group).float().cpu().numpy()

    was_training = model.training
    model.eval()
    parallel.each(answer, [groups[stream::streams] for stream in range(min(streams, len(groups)))])
    model.train(was_training)
    return result


def _on(device: torch.device, tensors: Tensors) -> Tensors:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
