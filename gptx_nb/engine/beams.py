"""Beam search: of many continuations that grow side by side, the likeliest a token. A plain library, as `generate` is.

A continuation's score is its log-probability divided by its number of tokens, end token included; the search ends when
no beam can still pass the worst of the finished ones, judged by its score so far. Both are as transformers has them
(`length_penalty=1`, `early_stopping=False`), which the tests compare with. One prompt at a time; the model's own
attention and cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from gptx_nb.engine import packing
from gptx_nb.engine.generate import ATTENTION, Continuation, Ended
from gptx_nb.engine.models import context

OWN = "sdpa"  # transformers' usual attention, in place of ours, which lays rows out otherwise


@dataclass(frozen=True)
class _Beam:
    tokens: list[int]
    nats: float  # log-probability

    def finished(self, ended: Ended, length: int) -> tuple[float, Continuation]:
        return self.nats / max(1, length), Continuation(self.tokens, ended)


@torch.inference_mode()
def search(
    model: PreTrainedModel,
    prompt: Sequence[int],
    *,
    beams: int,
    answers: int = 1,
    max_new_tokens: int,
    end_ids: Collection[int] = (),
    stop: Callable[[list[int]], bool] | None = None,
) -> list[Continuation]:
    """Continue `prompt` with `beams` beams; return the `answers` best, the best first.

    `stop` is given a beam's new tokens after each, and finishes it by returning True. Raises ValueError for a prompt
    without tokens or more answers than beams, FloatingPointError for logits that are not finite.
    """
    if not len(prompt) or answers > beams:
        raise ValueError(f"a prompt of {len(prompt)} tokens, {answers} answers of {beams} beams")
    room = min(max_new_tokens, context(model.config) - len(prompt))
    if room < 1:
        return [Continuation([], "context")] * answers
    was_training = model.training
    model.eval()
    try:
        with _own_attention(model):
            found = _grow(model, list(prompt), beams, room, end_ids, stop)
    finally:
        model.train(was_training)
    whole: Ended = "length" if room == max_new_tokens else "context"
    best = sorted(found, key=lambda pair: -pair[0])[:answers]
    return [Continuation(each.tokens, whole if each.ended == "length" else each.ended) for _, each in best]


def _grow(
    model: Any,
    prompt: list[int],
    beams: int,
    room: int,
    end_ids: Collection[int],
    stop: Callable[[list[int]], bool] | None,
) -> list[tuple[float, Continuation]]:
    cache = DynamicCache(config=model.config)
    growing = [_Beam([], 0.0)]
    finished: list[tuple[float, Continuation]] = []
    ids = torch.tensor([prompt], device=model.device)
    for length in range(1, room + 1):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        if not bool(torch.isfinite(logits.max(dim=-1).values).all()):
            raise FloatingPointError("the model gives no finite numbers")
        before = torch.tensor([beam.nats for beam in growing], device=logits.device)
        sums = before[:, None] + logits.log_softmax(-1)
        # Each beam may end, and as many as there are shall go on.
        wanted = min((1 + max(1, len(end_ids))) * beams, sums.numel())
        nats, places = sums.flatten().topk(wanted)
        follow: list[tuple[int, _Beam]] = []
        for rank, (value, place) in enumerate(zip(nats.tolist(), places.tolist(), strict=True)):
            parent, token = divmod(place, sums.shape[1])
            beam = _Beam([*growing[parent].tokens, token], value)
            if token in end_ids:
                if rank < beams:  # else one that goes on is likelier
                    finished.append(_Beam(beam.tokens[:-1], value).finished("end", length))
            elif len(follow) < beams:
                if stop is not None and stop(beam.tokens):
                    finished.append(beam.finished("stop", length))
                else:
                    follow.append((parent, beam))
        finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
        growing = [beam for _, beam in follow]
        if not growing or (len(finished) == beams and growing[0].nats / length <= finished[-1][0]):
            return finished
        if length < room:
            parents: Any = torch.tensor([parent for parent, _ in follow], device=logits.device)
            cache.reorder_cache(parents)
            ids = torch.tensor([[beam.tokens[-1]] for beam in growing], device=logits.device)
    return finished + [beam.finished("length", room) for beam in growing]


@contextlib.contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Give `model` transformers' attention for a while, if it has ours."""
    before = model.config._attn_implementation
    ours = before in (ATTENTION, packing.ATTENTION)
    if ours:
        model.set_attn_implementation(OWN)
    try:
        yield
    finally:
        if ours:
            model.set_attn_implementation(before)
