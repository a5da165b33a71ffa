"""Tokens in, new tokens out, for many prompts at once: a plain library that knows no run and no tokenizer.

Prompts are read without padding, several in one row (see `packing`), and every row then grows at its own length: a row
that has ended leaves the batch at once, and a waiting prompt takes its place (Yu et al. 2022, Orca: iteration-level
scheduling). What all prompts begin with is read once and kept once (Juravsky et al. 2024, Hydragen, arXiv:2402.05099).
It is the model's own code that runs; only its attention is ours, which keeps keys and values in memory that is laid
out before the first token. On a CPU, where a step of few rows waits for the weights, each of them reads some guessed
tokens with its last one, and keeps those that it would have written (see `lookup`).

A row's text depends on its prompt, its number and the seed, and not on the rows beside it, but for the rounding of
sums: where two tokens are all but equally likely, rounding may decide.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from gptx_nb.engine import device as devices
from gptx_nb.engine import graphs, packing, products, streams
from gptx_nb.engine.lookup import Lookup
from gptx_nb.engine.models import context

ATTENTION = "gptx_cached"

# Rows that grow together. On a CPU products gain little from more than 32 rows; a GPU wants work.
CPU_ROWS = 32
GPU_ROWS = 256
# Tokens that the kept keys and values have room for: rows x the most tokens a row may come to.
CPU_CACHE_TOKENS = 2**16
GPU_CACHE_TOKENS = 2**19
# Of the kept keys, what a recorded reading looks at is a multiple of so many tokens.
GRAPH_WIDTH = 128
# Rows that grow together up to which tokens are guessed: what is read in vain takes longer the more rows there are, and
# a step ends with its slowest row (smollm2-135m, two cores with AMX, beginnings of sentences, always the likeliest
# token: 1 row 1.5 times as fast, 2 rows 1.2 times, 4 rows 1.15 times, 8 rows 1.02 times, 16 rows 0.9 times).
LOOK_UP_ROWS = 4
# Prompt tokens that are read at once.
CPU_READ_TOKENS = 1024
GPU_READ_TOKENS = 8192
# A shared beginning is worth its own products if it spares the reading of this many tokens.
PREFIX_SPARES = 32
# Candidates that are looked at before the whole vocabulary is sorted.
FIRST_CANDIDATES = 256

Ended = Literal["end", "stop", "length", "context"]


@dataclass(frozen=True)
class Continuation:
    """What was written after one prompt: the new `tokens`, without the token that ended them.

    `ended`: by an end token ("end"), by `stop`, at `max_new_tokens` ("length"), or because the model can see no
    more tokens ("context").
    """

    tokens: list[int]
    ended: Ended


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the most likely one at `temperature` 0, else at random.

    Logits are divided by `temperature`; then all but the `top_k` most likely tokens are dropped, and of the rest all
    that are not in the smallest set whose probabilities sum to at least `top_p` (Holtzman et al. 2019,
    arXiv:1904.09751). The order is that of transformers.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}, and it cannot be below 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, and at least 1 token must be left")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, and it must be above 0 and at most 1")


GREEDY = Sampling()


def why_alone(model: PreTrainedModel) -> str | None:
    """Say why `generate` takes one prompt at a time for `model`, with the model's own cache; None if it does not."""
    return packing.why_not(model)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Collection[int] = (),
    sampling: Sampling | None = None,
    draws: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    rows: int | None = None,
    share_prefix: bool = True,
    look_up: bool = True,
) -> list[Continuation]:
    """Continue every prompt (a row of tokens, at least one) and return the continuations in the order of the prompts.

    `model` is a causal language model, in evaluation mode or not: dropout is off meanwhile. `max_new_tokens` counts
    the tokens of one row. `draws` number the rows' random numbers, by default as the prompts, so that prompts of
    several calls get different ones. `stop` is given a row's new tokens after each, and ends the row by returning True.
    `on_token(row, token)` is called for each new token but end tokens, with the row's number among the prompts. At
    most `rows` rows grow at once (None: as many as suits the device). `share_prefix`: read what all prompts begin with
    only once, where that pays. `look_up`: guess tokens from each row's own text, where that pays (on a CPU).

    A prompt that fills the model's context gets no tokens, and `ended` says "context".
    Raises ValueError for a prompt without tokens and FloatingPointError for logits that are not finite, be it behind a
    guess.
    """
    sampling = sampling or GREEDY
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} has no tokens")
    limit = context(model.config)
    drawn = range(len(prompts)) if draws is None else draws
    batch = [
        _Row(number, list(prompt), sampling, draw)
        for (number, prompt), draw in zip(enumerate(prompts), drawn, strict=True)
    ]
    alive = [row for row in batch if not row.is_full(max_new_tokens, limit)]

    def take(rows: Sequence[_Row], found: _Found) -> None:
        """Add a token to each of `rows` by what was `found` for it, and end those that are at their end."""
        tokens = found.draw(sampling, [row.uniform() for row in rows] if sampling.temperature else None)
        for row, token in zip(rows, tokens, strict=True):
            if token in end_ids:
                row.ended = "end"
                continue
            row.new.append(token)
            if on_token:
                on_token(row.number, token)
            if stop and stop(row.new):
                row.ended = "stop"
            else:
                row.is_full(max_new_tokens, limit)

    was_training = model.training
    model.eval()
    try:
        if why_alone(model):
            for row in alive:
                _grow_alone(model, row, take)
        elif alive:
            with _attention_of(model):
                reader = _Reader(model, greedy=not sampling.temperature)
                _grow_together(model, alive, take, max_new_tokens, limit, rows, share_prefix, look_up, reader)
    finally:
        model.train(was_training)
    return [Continuation(row.new, row.ended or "length") for row in batch]


class _Row:
    """One prompt on its way."""

    def __init__(self, number: int, prompt: list[int], sampling: Sampling, draw: int = 0) -> None:
        self.number, self.prompt = number, prompt
        self.new: list[int] = []
        self.ended: Ended | None = None
        self.kept = 0  # tokens whose keys and values are kept, without the shared prefix
        self.lookup: Lookup | None = None  # once tokens are guessed
        self._looked_up = 0  # of the new tokens, how many it has
        self._random = np.random.default_rng((sampling.seed, draw)) if sampling.temperature else None

    def uniform(self) -> float:
        assert self._random is not None
        return float(self._random.random())

    def is_full(self, max_new_tokens: int, limit: int) -> bool:
        """Say whether no token can follow, and note why. The last token of a context is never read, only written."""
        if len(self.new) >= max_new_tokens:
            self.ended = "length"
        elif len(self.prompt) + len(self.new) >= limit:
            self.ended = "context"
        return self.ended is not None

    def guess(self, max_new_tokens: int, limit: int) -> list[int]:
        """Return tokens that may follow: fewer than there is room for, as one more follows the last of them."""
        if self.lookup is None:
            self.lookup = Lookup(self.prompt)
        self.lookup.add(self.new[self._looked_up :])
        self._looked_up = len(self.new)
        return self.lookup.guess(min(max_new_tokens, limit - len(self.prompt)) - len(self.new) - 1)


class _Found:
    """What may follow some tokens: the likeliest ones where no others are written, else all logits."""

    def __init__(self, *, tokens: list[int] | None = None, logits: torch.Tensor | None = None) -> None:
        """`logits` (rows, vocabulary), float32."""
        self._tokens, self._logits = tokens, logits

    def at(self, places: list[int]) -> _Found:
        if self._tokens is not None:
            return _Found(tokens=[self._tokens[place] for place in places])
        assert self._logits is not None
        return _Found(logits=self._logits[places])

    def draw(self, sampling: Sampling, uniforms: Sequence[float] | None) -> list[int]:
        """Return a token for each row, as the function `draw` does."""
        if self._tokens is not None:
            return self._tokens
        assert self._logits is not None
        return draw(self._logits, sampling, uniforms)


Take = Callable[[Sequence[_Row], _Found], None]


def _grow_alone(model: Any, row: _Row, take: Take) -> None:
    """Continue one row with the model's own attention and cache."""
    cache = DynamicCache(config=model.config)
    tokens = row.prompt
    while row.ended is None:
        ids = torch.tensor([tokens], device=model.device)
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        take([row], _Found(logits=logits.float()))
        tokens = row.new[-1:]


def _grow_together(
    model: PreTrainedModel,
    alive: list[_Row],
    take: Take,
    max_new_tokens: int,
    limit: int,
    most_rows: int | None,
    share_prefix: bool,
    look_up: bool,
    reader: _Reader,
) -> None:
    on_cpu = model.device.type == "cpu"
    look_up = look_up and on_cpu
    shared = _shared_length([row.prompt for row in alive]) if share_prefix else 0
    # The last token that is written is never read, so its keys take no room.
    room = min(max(len(row.prompt) for row in alive) + max_new_tokens - 1, limit) - shared
    fitting = max(1, _cache_tokens(model, CPU_CACHE_TOKENS if on_cpu else GPU_CACHE_TOKENS) // max(1, room))
    slots = min(len(alive), most_rows or (CPU_ROWS if on_cpu else GPU_ROWS), fitting)
    cache = _Cache(model, slots, room, reader.prefix(alive[0].prompt[:shared]) if shared else None)

    # Prompts of similar length are read together, as inside attention the longest of them sets the width.
    waiting = sorted(alive, key=lambda row: len(row.prompt), reverse=True)
    growing: list[_Row] = []  # row i has slot i of the cache
    while waiting or growing:
        while waiting and len(growing) < slots:
            entering = _next_to_read(waiting, slots - len(growing), reader.tokens, shared)
            found = reader.read(cache, len(growing), entering, [row.prompt[shared:] for row in entering])
            growing += entering
            take(entering, found)
            _retire(growing, cache)
        if growing:
            are_few = look_up and len(growing) <= LOOK_UP_ROWS
            guesses = [row.guess(max_new_tokens, limit) if are_few else [] for row in growing]
            given = [[row.new[-1], *guess] for row, guess in zip(growing, guesses, strict=True)]
            _take_guessed(growing, guesses, reader.read(cache, 0, growing, given, every=True), take)
            _retire(growing, cache)


def _take_guessed(rows: Sequence[_Row], guesses: Sequence[list[int]], found: _Found, take: Take) -> None:
    """Let each row have the token that follows its last one and, while that is the one it had guessed, the next too.

    `found` are those behind each row's last token and each of its guesses, row by row. What is kept of guesses that
    were wrong is forgotten.
    """
    if not any(guesses):
        take(rows, found)
        return
    before = [len(row.new) for row in rows]
    starts = itertools.accumulate((1 + len(guess) for guess in guesses[:-1]), initial=0)
    going = list(zip(rows, guesses, starts, strict=True))
    depth = 0
    while going:
        take([row for row, _, _ in going], found.at([place + depth for _, _, place in going]))
        going = [
            (row, guess, place)
            for row, guess, place in going
            if row.ended is None and depth < len(guess) and row.new[-1] == guess[depth]
        ]
        depth += 1
    for row, guess, length in zip(rows, guesses, before, strict=True):
        are_same = (guessed == token for guessed, token in zip(guess, row.new[length:], strict=False))
        right = sum(itertools.takewhile(bool, are_same))
        row.kept -= len(guess) - right
        if row.lookup is not None:
            row.lookup.learn(len(guess), right)


def _cache_tokens(model: PreTrainedModel, most: int) -> int:
    """Return for how many tokens keys and values may be kept: in half of what is free, and no more than `most`."""
    free, config = devices.memory(model.device)[1], model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * 4 * config.num_hidden_layers * heads * size  # bytes, in float32
    return most if free is None else min(most, free // 2 // a_token)


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, or 0 if reading them once spares little.

    Each prompt keeps at least one token of its own, as its last token's hidden state is what the next one follows from.
    """
    if len(prompts) < 2:
        return 0
    # In order, all others lie between these two, so they share as much.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(map(len, prompts)) - 1
    length = next((place for place in range(most) if first[place] != last[place]), most)
    return length if length * (len(prompts) - 1) >= PREFIX_SPARES else 0


def _next_to_read(waiting: list[_Row], slots: int, tokens: int, shared: int) -> list[_Row]:
    """Take the rows off `waiting` that are read next: at most `slots`, with at most `tokens` tokens or one row."""
    widest = len(waiting[0].prompt) - shared
    count = max(1, min(len(waiting), slots, tokens // widest))
    taken = waiting[:count]
    del waiting[:count]
    return taken


def _retire(growing: list[_Row], cache: _Cache) -> None:
    """Take the ended rows out of `growing`, and move the last rows' slots into the gaps."""
    for slot in reversed(range(len(growing))):
        if growing[slot].ended is None:
            continue
        growing[slot].lookup = None  # keeps no memory
        moved = growing.pop()
        if slot < len(growing):
            growing[slot] = moved
            cache.move(len(growing), slot, moved.kept)


class _Cache:
    """Keys and values of `slots` rows with `room` tokens each, and those of the prefix that all rows share.

    `keys`, `values` are made at the first use, one a layer: (slots, key heads, room, size), in the dtype of the keys.
    `prefix` is a cache of one row, full to its end.
    """

    def __init__(self, model: PreTrainedModel, slots: int, room: int, prefix: _Cache | None = None) -> None:
        self.slots, self.room, self.prefix = slots, room, prefix
        layers: int = model.config.num_hidden_layers
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers

    @property
    def prefix_length(self) -> int:
        return self.prefix.room if self.prefix else 0

    def layer(self, number: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the memory of a layer, of the same kind as its `key` and `value` (1, key heads, tokens, size).

        Under autocast these differ: what turns keys by their places is float32, and values are lower.
        """
        keys, values = self.keys[number], self.values[number]
        if keys is None or values is None:
            shape = (self.slots, key.shape[1], self.room, key.shape[3])
            # Zeros, as what attention masks is multiplied by 0, which does not undo a NaN.
            keys, values = key.new_zeros(shape), value.new_zeros(shape)
            self.keys[number], self.values[number] = keys, values
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` to slot `target`."""
        for memory in (*self.keys, *self.values):
            if memory is not None:
                memory[target, :, :length] = memory[source, :, :length]


@dataclass(frozen=True)
class _Places:
    """Where the tokens of one reading go: rows first..end of the cache, each with up to `longest` new tokens.

    "slot", "place" (tokens,): slot and place in it of each token. "spread" (rows * longest,): which token stands in
    each place of the side-by-side layout, and "gather" (tokens,): the way back; None where each row has one token.
    "hidden" (rows, 1, longest, width): True where attention must not look.
    """

    cache: _Cache
    first: int
    end: int
    longest: int
    width: int
    slot: torch.Tensor
    place: torch.Tensor
    spread: torch.Tensor | None
    gather: torch.Tensor | None
    hidden: torch.Tensor | None

    # The same in every layer, and found out in the first:

    def rows_in(self, memory: torch.Tensor) -> torch.Tensor:
        """Return which rows of `memory` (slots, key heads, room, size), seen as one of size, are each token's."""
        found: torch.Tensor | None = self.__dict__.get("_rows")
        if found is None:
            _, heads, room, _ = memory.shape
            found = ((self.slot[:, None] * heads + torch.arange(heads)) * room + self.place[:, None]).reshape(-1)
            self.__dict__["_rows"] = found
        return found

    @functools.cached_property
    def mask(self) -> torch.Tensor | None:
        """What is added to scores: -inf where attention must not look, else 0."""
        if self.hidden is None:
            return None
        return torch.zeros(self.hidden.shape).masked_fill_(self.hidden, float("-inf"))


class _Reader:
    """Lets the model read tokens, at most `tokens` at once but for rows of one, and keeps their keys and values.

    `greedy`: only the likeliest tokens are asked for.
    """

    def __init__(self, model: Any, *, greedy: bool = False) -> None:
        self._device: torch.device = model.device
        self._greedy = greedy
        self.tokens = CPU_READ_TOKENS if self._device.type == "cpu" else GPU_READ_TOKENS
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._graphs = graphs.Graphs(model) if graphs.serve(self._device) else None
        self._threads = streams.threads_of(model) if self._device.type == "cpu" else None

    def prefix(self, tokens: list[int]) -> _Cache:
        """Return the keys and values of `tokens`."""
        cache = _Cache(self._decoder, 1, len(tokens))
        self._states(cache, 0, [_Row(0, tokens, GREEDY)], [tokens])
        return cache

    def read(
        self, cache: _Cache, first: int, rows: Sequence[_Row], tokens: list[list[int]], *, every: bool = False
    ) -> _Found:
        """Read each row's next tokens into the slots from `first`; return what may follow the last one of each row.

        `every`: what may follow each token, not only the last ones. On an NVIDIA GPU the next reading may overwrite
        it.
        """
        is_step = all(row.new for row in rows)
        if self._graphs is not None and first == 0 and all(len(each) == 1 for each in tokens):
            found = self._replayed(self._graphs, cache, rows, [token for each in tokens for token in each])
            if found is not None:
                return _Found(logits=found)
        count = sum(map(len, tokens))
        about = count if count == len(rows) else 1 << (count - 1).bit_length()  # guesses make it another each time
        with self._threads.quickest("step", about) if self._threads and is_step else contextlib.nullcontext():
            states = self._states(cache, first, rows, tokens, every)
        # One large product: for all threads.
        if self._greedy and (likeliest := products.largest(self._head, states)) is not None:
            return _Found(tokens=likeliest.tolist())
        logits: torch.Tensor = self._head(states).float()
        return _Found(tokens=draw(logits, GREEDY)) if self._greedy else _Found(logits=logits)

    def _replayed(
        self, recorded: graphs.Graphs, cache: _Cache, rows: Sequence[_Row], tokens: list[int]
    ) -> torch.Tensor | None:
        """Read one token a row as it was recorded; None: it is not, for so many rows of such a length.

        A recording serves up to twice as many rows as there are: the others write to slots that nothing is kept in.
        """
        count = min(cache.slots, 1 << (len(rows) - 1).bit_length())
        width = min(cache.room, -(-(max(row.kept for row in rows) + 1) // GRAPH_WIDTH) * GRAPH_WIDTH)
        idle = [0] * (count - len(rows))
        places = [row.kept for row in rows] + idle

        def given() -> graphs.Tensors:
            """ "rows" (4, count): tokens, positions, slots, places."""
            positions = [place + cache.prefix_length for place in places]
            return {"rows": torch.tensor([tokens + idle, positions, list(range(count)), places]).to(self._device)}

        def work(given: graphs.Tensors) -> torch.Tensor:
            ids, positions, slots, at = given["rows"]
            hidden = (torch.arange(width, device=self._device) > at[:, None])[:, None, None]
            where = _Places(cache, 0, count, 1, width, slots, at, None, None, hidden)
            output = self._decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, places=where)
            logits: torch.Tensor = self._head(output.last_hidden_state[0])
            return logits.float()

        replay = recorded.get((id(cache), count, width), work, given)
        if replay is None:
            return None
        found = replay(given())[: len(rows)]
        for row in rows:
            row.kept += 1
        return found

    def _states(
        self, cache: _Cache, first: int, rows: Sequence[_Row], tokens: list[list[int]], every: bool = False
    ) -> torch.Tensor:
        """Return the hidden states (rows, width) of each row's last token, or of `every` one (tokens, width)."""
        if len(rows) == 1 and not every:
            # A long prompt is read piece by piece, or attention would take the square of it.
            pieces = range(0, len(tokens[0]), self.tokens)
            for start in pieces[:-1]:
                self._step(cache, first, rows, [tokens[0][start : start + self.tokens]])
            tokens = [tokens[0][pieces[-1] :]]
        return self._step(cache, first, rows, tokens, every)

    def _step(
        self, cache: _Cache, first: int, rows: Sequence[_Row], tokens: list[list[int]], every: bool = False
    ) -> torch.Tensor:
        lengths = torch.tensor([len(each) for each in tokens])
        kept = torch.tensor([row.kept for row in rows])
        longest, width = int(lengths.max()), int((kept + lengths).max())
        row_of = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        starts = lengths.cumsum(0) - lengths
        within = torch.arange(int(lengths.sum())) - starts[row_of]
        last = starts + lengths - 1
        place = kept[row_of] + within
        spread = gather = None
        if longest > 1:
            spread = torch.minimum(starts[:, None] + torch.arange(longest), last[:, None]).reshape(-1)
            gather = row_of * longest + within
        seen = kept[:, None] + torch.arange(longest)  # the place of each query
        hidden = (torch.arange(width) > seen[..., None])[:, None]

        def there(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device)

        output = self._decoder(
            input_ids=there(torch.tensor([token for each in tokens for token in each])[None]),
            position_ids=there(place[None] + cache.prefix_length),
            use_cache=False,
            places=_Places(
                cache,
                first,
                first + len(rows),
                longest,
                width,
                there(first + row_of),
                there(place),
                None if spread is None else there(spread),
                None if gather is None else there(gather),
                there(hidden) if bool(hidden.any()) else None,
            ),
        )
        for row, length in zip(rows, lengths.tolist(), strict=True):
            row.kept += length
        states: torch.Tensor = output.last_hidden_state[0]
        return states if every or longest == 1 else states[there(last)]


@contextlib.contextmanager
def _attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Give `model` our attention for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    places: _Places,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of (1, heads, tokens, size) on what is kept of each token's row, itself and the shared prefix.

    `key` and `value` may have fewer heads than `query`: then several queries look at the same, side by side, and
    nothing is copied. Scores and their softmax are float32.
    """
    cache, rows = places.cache, places.end - places.first
    keys, values = cache.layer(module.layer_idx, key, value)
    key_heads, size = keys.shape[1], keys.shape[3]
    scale = size**-0.5 if scaling is None else scaling
    on_cpu = keys.device.type == "cpu"
    if on_cpu:
        at = places.rows_in(keys)
        for memory, new in ((keys, key), (values, value)):
            memory.view(-1, size).index_copy_(0, at, new[0].transpose(0, 1).reshape(-1, size))
    else:
        keys[places.slot, :, places.place] = key[0].transpose(0, 1)
        values[places.slot, :, places.place] = value[0].transpose(0, 1)
    if on_cpu and places.spread is None and cache.prefix is None:
        # The queries that look at the same keys stand below each other, as if they were several tokens.
        q = query[0].transpose(0, 1).reshape(rows, key_heads, -1, size)
        k, v = (memory[places.first : places.end, :, : places.width] for memory in (keys, values))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=places.mask, scale=scale)
        return mixed.reshape(1, rows, -1, size), None

    # (rows, heads, longest, size) -> (rows, key heads, group * longest, size)
    q = query[0] * scale
    if places.spread is None:
        q = q.transpose(0, 1)
    else:
        q = q.index_select(1, places.spread).view(q.shape[0], rows, -1, size).transpose(0, 1)
    q = q.reshape(rows, key_heads, -1, size)
    kept = slice(places.first, places.end)
    scores = torch.matmul(q, keys[kept, :, : places.width].transpose(2, 3)).float()
    if places.hidden is not None:
        by_query = scores.view(rows, -1, places.longest, places.width)
        by_query.masked_fill_(places.hidden, float("-inf"))
    if cache.prefix is None:
        mixed = torch.matmul(scores.softmax(-1).to(values.dtype), values[kept, :, : places.width])
    else:
        prefix_keys, prefix_values = cache.prefix.layer(module.layer_idx, key, value)
        together = q.transpose(0, 1).reshape(key_heads, -1, size)  # all rows look at the same keys: one product
        before = torch.matmul(together, prefix_keys[0].transpose(1, 2)).float()
        before = before.view(key_heads, rows, -1, before.shape[-1]).transpose(0, 1)
        weights = torch.cat([before, scores], dim=-1).softmax(-1).to(values.dtype)
        of_prefix, of_row = weights.split([before.shape[-1], places.width], dim=-1)
        mixed = torch.matmul(of_row, values[kept, :, : places.width])
        shared = torch.matmul(of_prefix.transpose(0, 1).reshape(key_heads, -1, of_prefix.shape[-1]), prefix_values[0])
        mixed = mixed + shared.view(key_heads, rows, -1, size).transpose(0, 1)
    mixed = mixed.reshape(rows, -1, places.longest, size)
    if places.gather is None:
        return mixed.transpose(1, 2).reshape(1, rows, -1, size), None
    return mixed.permute(0, 2, 1, 3).flatten(0, 1).index_select(0, places.gather)[None], None


AttentionInterface.register(ATTENTION, _attention)


def draw(logits: torch.Tensor, sampling: Sampling, uniforms: Sequence[float] | None = None) -> list[int]:
    """Return a token for each row of float32 `logits` (rows, vocabulary).

    `uniforms` has a number from [0, 1) for each row, needed where `sampling.temperature` is above 0: the token is the
    one at which the summed probabilities, most likely first, pass it.
    Raises FloatingPointError for logits that are not finite.
    """
    best, token = logits.max(dim=-1)
    products.check_finite(best)
    if not sampling.temperature:
        greedy: list[int] = token.tolist()
        return greedy
    assert uniforms is not None
    size = logits.shape[-1]
    scaled = logits / sampling.temperature
    if sampling.top_k:
        candidates = min(sampling.top_k, size)
        total = None  # what is left sums to 1
    else:
        candidates = min(FIRST_CANDIDATES, size)
        total = scaled.logsumexp(-1, keepdim=True)
    chosen = []
    # On the CPU from here: row by row, each would wait for a GPU several times, and Apple's has no float64.
    ordered, tokens = (each.cpu() for each in scaled.topk(candidates, dim=-1))
    total = total if total is None else total.cpu()
    for row, uniform in enumerate(uniforms):
        normaliser = ordered[row].logsumexp(-1) if total is None else total[row]
        sums = (ordered[row] - normaliser).double().exp().cumsum(-1)
        wanted = 1.0 if sampling.top_p is None else sampling.top_p
        found = tokens[row]
        if total is not None and float(sums[-1]) < (uniform if sampling.top_p is None else wanted):
            # Rarely so flat: then the whole vocabulary is put in order.
            everything, found = scaled[row].cpu().sort(descending=True, stable=True)
            sums = (everything - normaliser).double().exp().cumsum(-1)
        if sampling.top_p is not None:
            # The smallest set that sums to top_p: up to the first sum that reaches it.
            kept = min(int((sums < wanted).sum()) + 1, len(sums))
            sums = sums[:kept]
            uniform = uniform * float(sums[-1])
        place = min(int((sums <= uniform).sum()), len(sums) - 1)
        chosen.append(int(found[place]))
    return chosen
