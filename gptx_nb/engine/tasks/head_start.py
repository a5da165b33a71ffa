"""What a classifier begins with: the words of its labels within a prompt, or a new head on the plain text; and why.

Where the recipe leaves it open, both are tried on some of the examples, with the base model as it is: how many are
right by the labels' words alone, and how many by a head that is learnt, cross-validated, from the states within the
prompt and without it. Trains no model; label_words.py has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine.data import Table
from gptx_nb.engine.tasks import label_words
from gptx_nb.engine.tasks.label_words import PROMPT_FILE, Wording
from gptx_nb.errors import DataError, nearest
from gptx_nb.recipe import Recipe

FOLDS = 4
ENOUGH = 32  # examples from which on cross-validation is trusted; of fewer, the words know more
MOST_TEXTS, A_LABEL = 128, 4  # texts that calibration and choice look at: so many, or so many a label
TRUST = 2.0  # spread of the words' logits, where a learnt head is added to them
SHRINK = 100.0  # of a learnt head, in examples


@dataclass(frozen=True)
class Start:
    """`wording` and `head` (labels, width) to begin with, or None for a new head on the plain text; the reason why."""

    wording: Wording | None
    head: torch.Tensor | None
    reason: str

    def told(self) -> dict[str, Any]:
        """Return the plan's part about it."""
        if self.wording is None:
            return {"head": {"choice": "plain", "reason": self.reason}}
        shown = f"{self.reason}. Prompt {self.wording.prompt!r}, words {_listed(self.wording.words)}"
        return {"head": {"choice": "words", "reason": shown}}

    def notes(self) -> list[str]:
        """Return what a user should know who takes the saved model elsewhere."""
        if self.wording is None:
            return []
        return [f"texts are read within the prompt {self.wording.prompt!r}, also by `%gpt_predict`. A transformers "
                f"pipeline has to be given them so; {PROMPT_FILE} beside the model has it"]  # fmt: skip

    def resolved(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the settings of a recipe that begins in the same way."""
        if self.wording is None:
            return {"head": "plain", "prompt": None, "label_words": None}
        words = {label: word.strip() for label, word in zip(labels, self.wording.words, strict=True)}
        return {"head": "words", "prompt": self.wording.prompt, "label_words": words}


@dataclass(frozen=True)
class Base:
    """A model as it is, with its tokenizer. `output` gives its output layer (vocabulary, width).

    States are computed in `dtype`, texts cut at `max_length` tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    output: Callable[[], torch.Tensor]
    max_length: int
    dtype: torch.dtype = torch.float32

    def tokens_of(self, wording: Wording) -> int:
        """Return how many tokens the prompt takes."""
        return len(label_words.encode(self.tokenizer, wording, [""], 10**6)[0][0])

    def states(self, texts: Sequence[str], wording: Wording | None) -> torch.Tensor:
        """Return the states (texts, width) that a head sees of `texts`, within a prompt if there is one."""
        rows, _ = label_words.encode(self.tokenizer, wording, texts, self.max_length)
        pad: Any = self.tokenizer.pad_token_id
        return label_words.states(self.model, rows, pad_id=pad, dtype=self.dtype)

    def head(self, wording: Wording, seen: torch.Tensor) -> torch.Tensor:
        """Return the head (labels, width) from the words, calibrated by the states `seen` within the prompt."""
        rows = label_words.word_rows(self.output(), self.tokenizer, wording.words)
        return label_words.head(rows, seen, self.states(label_words.SAY_NOTHING, wording))


def choose(base: Base, table: Table, recipe: Recipe) -> Start:
    """Return what a classifier of `table` begins with, by the recipe's `head`, or as the examples show.

    Raises DataError where words are asked for and the labels have none.
    """
    if recipe.head == "plain":
        return Start(None, None, "asked for in the recipe")
    wording = _wording(table, recipe)
    asked = recipe.head == "words" or recipe.prompt is not None or recipe.label_words is not None
    if isinstance(wording, str):
        if asked:
            raise DataError(
                f"head: {wording}. Say what the labels mean, as in `label_words: {{{table.labels[0]}: good, "
                f"{table.labels[1]}: bad}}`, or type `head: plain`"
            )
        return Start(None, None, f"a new head, as {wording}")
    if not asked and (taken := base.tokens_of(wording)) * 2 > base.max_length:
        return Start(None, None, f"a new head, as a prompt would take {taken} of a text's {base.max_length} tokens")
    train = table.train
    places = sample(len(train), max(MOST_TEXTS, A_LABEL * len(table.labels)), recipe.seed)
    texts, truth = [train.texts[place] for place in places], np.array([train.labels[place] for place in places])
    seen = base.states(texts, wording)
    head = base.head(wording, seen)
    if asked:
        return Start(wording, head, "asked for in the recipe")
    given = TRUST * (seen @ head.T)
    by_words = float((given.argmax(dim=1).numpy() == truth).mean())
    usable = np.bincount(truth)[truth] >= FOLDS
    count = "1 example" if len(truth) == 1 else f"{len(truth):,} examples"
    if usable.sum() < ENOUGH or len(set(truth[usable])) < 2:
        return Start(
            wording, head, f"{count} teach less than the labels' words, which get {by_words:.2f} of them right"
        )
    known = torch.from_numpy(usable)
    within = _cross_validated(seen[known], truth[usable], given[known], recipe.seed)
    bare = base.states([text for text, use in zip(texts, usable, strict=True) if use], None)
    plain = _cross_validated(bare, truth[usable], torch.zeros(len(bare), given.shape[1]), recipe.seed)
    said = (
        f"with the model as it is, of {count} {by_words:.2f} right by the labels' words alone, {within:.2f} by a head "
        f"learnt within the prompt, {plain:.2f} by one learnt on the plain text ({FOLDS}-fold cross-validation)"
    )
    return Start(wording, head, said) if max(by_words, within) >= plain else Start(None, None, said)


def _wording(table: Table, recipe: Recipe) -> Wording | str:
    for label in recipe.label_words or {}:
        if label not in table.labels:
            raise DataError(
                f"label_words: {label!r} is none of the labels: {_listed(table.labels)}.{nearest(label, table.labels)} "
                "Write it as it stands there"
            )
    return label_words.wording(
        table.labels,
        label_column=str(table.report.get("label", "")),
        text_column=str(table.report.get("text", "")),
        prompt=recipe.prompt,
        words=recipe.label_words,
    )


def sample(count: int, most: int, seed: int) -> list[int]:
    """Return at most `most` places of `count`, drawn by `seed`, in order."""
    return sorted(np.random.default_rng((seed, 5)).permutation(count)[:most].tolist())


def learnt(
    states: torch.Tensor, labels: torch.Tensor, offset: torch.Tensor, new: torch.Tensor, new_offset: torch.Tensor
) -> torch.Tensor:
    """Return logits (texts, labels) for the states `new` from logistic regression on `states` and their `labels`.

    What is learnt is added to the offsets, the logits (texts, labels) that each text has to begin with, and is shrunk
    towards nothing: with few examples the offsets decide.
    """
    mean, spread = states.mean(dim=0), states.std(dim=0, correction=0) + 1e-6
    scaled = (states - mean) / spread
    weight = torch.zeros(states.shape[1], offset.shape[1], requires_grad=True)
    bias = torch.zeros(offset.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits = scaled @ weight + bias + offset
        total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        total = total + SHRINK / 2 * (weight.square().sum() + bias.square().sum())
        total.backward()
        return total

    solver.step(loss)
    with torch.no_grad():
        return ((new - mean) / spread) @ weight + bias + new_offset


def _cross_validated(states: torch.Tensor, truth: np.ndarray, offset: torch.Tensor, seed: int) -> float:
    """Return the accuracy of `learnt` on rows that it has not seen, of labels with enough rows."""
    fold = np.empty(len(truth), dtype=int)
    rng = np.random.default_rng((seed, 6))
    for label in np.unique(truth):  # each label's rows are dealt out to the folds
        rows = rng.permutation(np.flatnonzero(truth == label))
        fold[rows] = np.arange(len(rows)) % FOLDS
    right = 0
    labels = torch.from_numpy(truth)
    for number in range(FOLDS):
        held = torch.from_numpy(fold == number)
        found = learnt(states[~held], labels[~held], offset[~held], states[held], offset[held])
        right += int((found.argmax(dim=1) == labels[held]).sum())
    return right / len(truth)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words[:8]) + (f", … {len(words) - 8} more" if len(words) > 8 else "")
