"""Train only the embedding's rows that the examples use: the others get no gradient, and need no optimiser state.

A fine-tuning set uses a tenth of a vocabulary whose embedding is a fifth to a half of a small model's weights. Cut off
before training and put back after it, the rest is what it would have become: with AdamW, smaller by weight decay alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from gptx_nb.engine.train import Settings, learning_rate_at


class Cut:
    """The input embedding of `model`, until `restore`, with only the rows of the tokens in `rows` and `others`."""

    def __init__(self, model: PreTrainedModel, rows: Iterable[Sequence[int]], others: Iterable[int]) -> None:
        self._model = model
        whole = model.get_input_embeddings()
        assert isinstance(whole, torch.nn.Embedding)
        self._whole = whole
        weight = whole.weight
        used = set(others)
        for row in rows:
            used.update(row)
        self._used = torch.tensor(sorted(used))
        self._places = {int(token): place for place, token in enumerate(self._used)}
        padding = whole.padding_idx
        small = torch.nn.Embedding(
            len(self._used),
            weight.shape[1],
            padding_idx=None if padding is None else self._places.get(padding),
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            small.weight.copy_(weight[self._used.to(weight.device)])
        model.set_input_embeddings(small)

    @property
    def used(self) -> int:
        return len(self._used)

    @property
    def all(self) -> int:
        return int(self._whole.weight.shape[0])

    def tokens(self, row: Sequence[int]) -> list[int]:
        """Return `row` with the numbers that its tokens have now."""
        return [self._places[token] for token in row]

    def original(self, row: Sequence[int]) -> list[int]:
        """Return `row` with the numbers that its tokens had before."""
        found: list[int] = self._used[torch.tensor(row, dtype=torch.int64)].tolist()
        return found

    def restore(self, settings: Settings, steps: int) -> None:
        """Put the whole embedding back, as it is after `steps` steps: with what was learnt, the rest decayed."""
        kept = 1.0
        for step in range(steps):
            kept *= 1 - learning_rate_at(step, settings) * settings.weight_decay
        with torch.no_grad():
            small = self._model.get_input_embeddings()
            assert isinstance(small, torch.nn.Embedding)
            learnt = small.weight
            self._whole.weight.mul_(kept)
            self._whole.weight[self._used.to(learnt.device)] = learnt.to(self._whole.weight.dtype)
        self._model.set_input_embeddings(self._whole)
