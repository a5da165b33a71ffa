"""What a classifier begins with: the words of its labels within a prompt, or a new head on the plain text; and why.

Where the recipe leaves it open, both are tried on some of the examples, with the base model as it is: how many are
right by the labels' words alone, and how many by a head that is learnt, cross-validated, from the states within the
prompt and without it. Of texts that may have several labels it is how well these are ranked (`_right`). A small model
knows little of words and begins at them only where they are clearly ahead (benchmarks/head_starts.py). A large one does
so where they are not behind. Where its layers are trained, too, and the words tell labels apart by themselves, they may
be behind, but not far: looking at the model as it is, cross-validation does not tell how much further it gets from
them. Trains no model; label_words.py has the arithmetic.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import evaluate, multi_label
from gptx_nb.engine.data import Table
from gptx_nb.engine.tasks import label_words, reading
from gptx_nb.engine.tasks.label_words import PROMPT_FILE, SHARPNESS, Wording
from gptx_nb.engine.tasks.reading import Reading, Row
from gptx_nb.engine.tasks.text_classification import Pull, label_loss
from gptx_nb.errors import DataError, nearest
from gptx_nb.recipe import Recipe

FOLDS = 4
LEAST_SHOTS, MOST_SHOTS = 4, 8  # shown to the base model as it is; one of each label, if there is room
MOST_ZERO, MOST_FEW = 400, 100  # rows held back that it is scored on
MOST_BESIDE = 50  # examples that calibrate it where others stand before each text
LOOK = 200  # texts that tell whether they are questions
ENOUGH = 32  # examples from which on cross-validation is trusted; of fewer, the words know more
# Parameters from which on a model knows what words mean. smollm2-135m does (0.84 of SST-2 without an example); tiny, of
# 7.5 million, does not: over four sets at 100 examples its words are no better than a new head (docs/scores.md).
KNOWING = 50_000_000
# Standard errors by which the words of a smaller one have to be ahead of a plain head, and those of a larger one that
# may be behind it, ahead of the commonest label; one is chance in one of six.
DOUBTED = 2.0
# Standard errors by which words may be behind where a larger one's layers are trained. Two are too few: of one draw of
# trec they were behind by that, and smollm2-135m, tuned from them, was ahead by .16 (docs/scores.md).
HOPELESS = 4.0
MOST_TEXTS, A_LABEL = 128, 4  # texts that calibration and choice look at: so many, or so many a label
SHRINK = 30.0  # of what is learnt; best of 3 to 300 on SST-2 and TREC with smollm2-135m, taken together
FIRM = 300.0  # where the words alone get TRUST of the way from chance to all right (docs/scores.md)
TRUST = 0.5
RANKED = ", label ranking average precision"


@dataclass(frozen=True)
class Start:
    """`wording` and `head` (labels, width) to begin with, or None for a new head on the plain text; the reason why.

    `tried`: shares of examples that were right in the comparison, by `words` alone, `within` the prompt, and `plain`;
    by how much the words were `ahead`, and the standard error of that. `pull` (width,): how firmly a head that is
    trained by itself is held to `head` (text_classification.Pull).
    """

    wording: Wording | None
    head: torch.Tensor | None
    reason: str
    rows: torch.Tensor | None = None  # of the output layer, for the words
    tried: dict[str, float] | None = None
    pull: torch.Tensor | None = None

    def told(self) -> dict[str, Any]:
        """Return the plan's part about it."""
        if self.wording is None:
            return {"head": {"choice": "plain", "reason": self.reason}}
        shown = f"{self.reason}. Prompt {self.wording.prompt!r}, words {_listed(self.wording.words)}"
        return {"head": {"choice": "words", "reason": shown}}

    def remarks(self) -> list[str]:
        """Return what a user should know who takes the saved model elsewhere."""
        if self.wording is None:
            return []
        return [f"texts are read within the prompt {self.wording.prompt!r}, also by `%gpt_predict`. A transformers "
                f"pipeline has to be given them so; {PROMPT_FILE} beside the model has it"]  # fmt: skip

    def hold(self, tune: str) -> Pull | None:
        """Return what holds the head to its start while it is all that is trained."""
        if tune != "head" or self.head is None or self.pull is None:
            return None
        return Pull(self.head, self.pull)

    def resolved(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the settings of a recipe that begins in the same way."""
        if self.wording is None:
            return {"head": "plain", "prompt": None, "label_words": None}
        words = {label: word.strip() for label, word in zip(labels, self.wording.words, strict=True)}
        return {"head": "words", "prompt": self.wording.prompt, "label_words": words}


@dataclass(frozen=True)
class Base:
    """A model as it is, with its tokenizer. `output` gives its output layer (vocabulary, width).

    States are computed in `dtype`, of texts that are read as `reading` says.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    output: Callable[[], torch.Tensor]
    reading: Reading
    dtype: torch.dtype = torch.float32

    def tokens_of(self, wording: Wording) -> int:
        """Return how many tokens the prompt takes."""
        return len(label_words.encode(self.tokenizer, wording, [""], 10**6)[0][0])

    def states(self, texts: Sequence[str], wording: Wording | None) -> torch.Tensor:
        """Return the states (texts, width) that a head sees of `texts`, within a prompt if there is one."""
        rows = label_words.read(self.tokenizer, wording, texts, self.reading).rows
        pad: Any = self.tokenizer.pad_token_id
        return label_words.states(self.model, rows, pad_id=pad, dtype=self.dtype)

    def rows(self, wording: Wording) -> torch.Tensor:
        """Return the rows (labels, width) of the output layer for the words."""
        return label_words.word_rows(self.output(), self.tokenizer, wording.words)


@dataclass(frozen=True)
class Before:
    """What scores the base model as it is on rows held back: their tokens by themselves, and behind some examples.

    `rows` gives those of the output layer for the words. `head` is made of them and of examples; None: it will be, of
    the tokens of some examples and of texts that say nothing, `calibrating`. `zero` and `few` hold tokens of the rows
    numbered `of_zero` and `of_few`; `shots` examples stand before the latter, and before those of other examples and
    texts that say nothing, `few_calibrating`. No row that is scored calibrates anything.
    """

    rows: Callable[[], torch.Tensor]
    head: torch.Tensor | None
    calibrating: tuple[Sequence[Row], Sequence[Row]]
    zero: Sequence[Row]
    of_zero: list[int]
    few: list[list[int]]
    of_few: list[int]
    few_calibrating: tuple[list[list[int]], list[list[int]]]
    shots: int
    dtype: torch.dtype

    @classmethod
    def of(cls, base: Base, start: Start, table: Table, recipe: Recipe, context: int) -> Before | str:
        """Prepare the scoring of `table.validation`; `context` is the most tokens that the model sees.

        Where the classifier begins with a new head, the labels' words are asked all the same. Which tokens that takes
        hangs on base, table and recipe alone, so that a run that goes on needs the same. Returns why the base model
        cannot be scored, if so.
        """
        assert table.validation is not None
        wording = start.wording
        if wording is None:
            found = _within(base, _wording(table, recipe), recipe)
            if isinstance(found, str):
                return found
            wording = found

        def read(texts: Sequence[str]) -> Sequence[Row]:
            return label_words.read(base.tokenizer, wording, texts, base.reading).rows

        known = start.rows
        if known is None and getattr(base.model.config, "tie_word_embeddings", True):
            known = base.rows(wording)  # now, as the embedding is going to be cut and trained
        rows = functools.partial(base.rows, wording) if known is None else lambda: known
        calibrating: tuple[Sequence[Row], Sequence[Row]] = [], []
        # What such a head begins with has the odds of each label in it, and here labels are asked beside each other.
        head = None if table.multi_label else start.head
        if head is None:
            calibrating = (
                read([table.train.texts[at] for at in _looked_at(table, recipe)]),
                read(label_words.SAY_NOTHING),
            )
        held = table.validation.texts
        of_zero, of_few = (_spread(len(held), most) for most in (MOST_ZERO, MOST_FEW))
        shots = recipe.shots or min(MOST_SHOTS, max(LEAST_SHOTS, len(table.labels)))
        places = [] if table.multi_label else one_of_each(table.train.labels, shots)
        shown = wording.after(
            [table.train.texts[place] for place in places], [table.train.labels[place] for place in places]
        )
        fits = places and base.tokens_of(shown) * 2 <= context
        zero = read([held[at] for at in of_zero])

        def behind(texts: Sequence[str]) -> list[list[int]]:
            return label_words.encode(base.tokenizer, shown, texts, context)[0] if fits else []

        other = [at for at in range(len(table.train)) if at not in set(places)] or places
        beside = [other[at] for at in sample(len(other), MOST_BESIDE, recipe.seed)]
        few_calibrating = behind([table.train.texts[at] for at in beside]), behind(label_words.SAY_NOTHING)
        few = behind([held[at] for at in of_few])
        return cls(
            rows, head, calibrating, zero, of_zero, few, of_few, few_calibrating, len(places), base.dtype
        )  # fmt: skip

    @property
    def tokens(self) -> list[int]:
        """Every token that it needs, by number."""
        every = itertools.chain(*map(reading.flat, (self.zero, *self.calibrating)), self.few, *self.few_calibrating)
        return sorted({token for row in every for token in row})

    def renumbered(self, tokens: Callable[[list[int]], list[int]]) -> Before:
        def all_of(rows: Sequence[Row]) -> Sequence[Row]:
            return [reading.renumbered(row, tokens) for row in rows]

        def whole(rows: Sequence[list[int]]) -> list[list[int]]:
            return [tokens(row) for row in rows]

        seen, silent = map(all_of, self.calibrating)
        few_seen, few_silent = map(whole, self.few_calibrating)
        return replace(
            self, calibrating=(seen, silent), zero=all_of(self.zero), few=whole(self.few),
            few_calibrating=(few_seen, few_silent),
        )  # fmt: skip

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: Table) -> dict[str, Any]:
        """Return {"scores", "few_shot"}, each {"rows", "accuracy", "macro_f1", "scores": as `evaluate.measured`}.

        Few-shot ones where the examples fit, else None.
        """
        assert table.validation is not None
        truth, pad, rows = table.validation.labels, int(tokenizer.pad_token_id), self.rows()

        def states(of: Sequence[Row]) -> torch.Tensor:
            return label_words.states(model, of, pad_id=pad, dtype=self.dtype)

        def score(found: torch.Tensor, places: list[int], head: torch.Tensor) -> dict[str, Any]:
            if table.multi_label:
                shares = (SHARPNESS * found @ head.T).softmax(-1).numpy()
                return {"rows": len(found), **multi_label.untrained(table.labels, [truth[at] for at in places], shares)}
            told = evaluate.measured(table.labels, [truth[at] for at in places], (found @ head.T).numpy())
            return {
                "rows": len(found),
                **{name: told[name]["value"] for name in ("accuracy", "macro_f1")},
                "scores": told,
            }

        head = label_words.head(rows, *map(states, self.calibrating)) if self.head is None else self.head
        few = None
        if self.few:
            head_behind = label_words.head(rows, *map(states, self.few_calibrating))
            few = {**score(states(self.few), self.of_few, head_behind), "shots": self.shots}
        return {"scores": score(states(self.zero), self.of_zero, head), "few_shot": few}


def _looked_at(table: Table, recipe: Recipe) -> list[int]:
    """Return the places of the examples that calibration and choice look at."""
    return sample(len(table.train), max(MOST_TEXTS, A_LABEL * len(table.labels)), recipe.seed)


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` places of `count`, evenly spread."""
    return [at * count // min(count, most) for at in range(min(count, most))]


def one_of_each(labels: Sequence[int], count: int, seed: int | None = None) -> list[int]:
    """Return the places of `count` examples, of every label in turn, in their order.

    They are the first ones of each label, or where a `seed` is given drawn by it.
    """
    seen: dict[int, int] = {}
    turn = []
    order = range(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels)).tolist()
    for drawn, place in enumerate(order):
        label = labels[place]
        seen[label] = seen.get(label, 0) + 1
        turn.append((seen[label], drawn, place))
    return sorted(place for *_, place in sorted(turn)[:count])


def choose(base: Base, table: Table, recipe: Recipe) -> Start:
    """Return what a classifier of `table` begins with, by the recipe's `head`, or as the examples show.

    Raises DataError where words are asked for and the labels have none.
    """
    if recipe.head == "plain":
        return Start(None, None, "asked for in the recipe")
    settings = {"head": recipe.head == "words", "prompt": recipe.prompt, "label_words": recipe.label_words}
    asked = [name for name, given in settings.items() if given not in (None, False)]
    wording = _asked(base, table, recipe)
    if isinstance(wording, str):
        if asked:
            if len(table.labels) < 2:
                raise DataError(f"{asked[0]}: {wording}. Leave {' and '.join(asked)} out")
            raise DataError(
                f"head: {wording}. Say what the labels mean, as in `label_words: {{{table.labels[0]}: good, "
                f"{table.labels[1]}: bad}}`, or type `head: plain`"
            )
        return Start(None, None, f"a new head, as {wording}")
    train = table.train
    places = _looked_at(table, recipe)
    texts, truth = [train.texts[place] for place in places], _truth(table, places)
    seen = base.states(texts, wording)
    silent = base.states(label_words.SAY_NOTHING, wording)
    rows = base.rows(wording)
    head = label_words.head(rows, seen, silent)
    odds = torch.zeros(len(table.labels))
    if table.multi_label:
        odds = _log_odds(_truth(table, range(len(train))))
        head = label_words.with_odds(head, seen, odds)
    given = seen @ head.T
    pull = None
    if recipe.tune == "head":
        # The loss of several labels is their mean, and what a step off the words costs is of all of them together.
        share = 1 / len(table.labels) if table.multi_label else 1.0
        pull = share * shrinkage(seen, truth, given, recipe.seed) * torch.cat([seen, silent]).var(dim=0, correction=0)
    if asked:
        return Start(wording, head, "asked for in the recipe", rows, pull=pull)
    right = _right(given, truth)
    usable = _usable(truth)
    count = "1 example" if len(truth) == 1 else f"{len(truth):,} examples"
    size = sum(each.numel() for each in base.model.parameters())
    if usable.sum() < ENOUGH or (truth[usable] == truth[usable][0]).all():
        if size < KNOWING:
            little = f"{count} cannot tell which is better, and a model of {size / 1e6:.1f} million parameters knows"
            return Start(None, None, f"{little} little of what labels' words mean")
        what = "the order of labels" if table.multi_label else "them"
        few = f"{count} teach less than the labels' words, which get {right.mean():.2f} of {what} right"
        return Start(wording, head, few, rows, pull=pull)
    known = torch.from_numpy(usable)
    within = _cross_validated(seen[known], truth[usable], given[known], recipe.seed)
    bare = base.states([text for text, use in zip(texts, usable, strict=True) if use], None)
    plain = _cross_validated(bare, truth[usable], odds.expand(len(bare), -1), recipe.seed)
    better, spread = _ahead(max((right[usable], within), key=np.mean), plain)
    shares = {"words": right, "within": within, "plain": plain}
    tried = {**{name: float(each.mean()) for name, each in shares.items()}, "ahead": better, "spread": spread}
    what = "of the order of labels right" if table.multi_label else "right"
    how = f"{FOLDS}-fold cross-validation{RANKED if table.multi_label else ''}"
    said = (
        f"with the model as it is, of {count} {right.mean():.2f} {what} by the labels' words alone, "
        f"{within.mean():.2f} by a head learnt within the prompt, {plain.mean():.2f} by one learnt on the plain text "
        f"({how}): {better:+.2f} for the words, with a standard error of {spread:.2f}"
    )
    knows = size >= KNOWING
    model = f"a model of {size / 1e6:.1f} million parameters"
    if knows and 0 <= better <= spread:
        said = f"{said}, which is left to {model} as it knows what words mean"
        return Start(wording, head, said, rows, tried, pull)
    if knows and better < 0 and recipe.tune != "head" and not table.multi_label and _tell(right, truth):
        if better >= -HOPELESS * spread:
            said = f"{said}, no more than {HOPELESS:g} of these: {model} whose layers are tuned gets further from words"
            return Start(wording, head, said, rows, tried, pull)
        said = f"{said}, more than {HOPELESS:g} of these"
    if better > (spread if knows else DOUBTED * spread):
        return Start(wording, head, said, rows, tried, pull)
    if better > spread:
        said = f"{said}, too little for {model}, which knows little of words"
    return Start(None, None, said, tried=tried)


def _tell(right: np.ndarray, truth: np.ndarray) -> bool:
    """Whether words that are `right` (texts,) tell labels apart: clearly more often than the commonest label is.

    `truth` (texts,) are the labels' numbers.
    """
    commonest = float(np.bincount(truth).max() / len(truth))
    return bool(right.mean() > commonest + DOUBTED * (commonest * (1 - commonest) / len(right)) ** 0.5)


def _ahead(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return by how much `ours` is right more often than `theirs` on the same rows, and the standard error of that."""
    differences = ours.astype(float) - theirs
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def _asked(base: Base, table: Table, recipe: Recipe) -> Wording | str:
    """Return how labels' words are asked for, or why they are not. Raises DataError for `label_words` of no label."""
    if len(table.labels) < 2:
        return "one label has no other from which its word could tell it"
    return _within(base, _wording(table, recipe), recipe)


def _within(base: Base, wording: Wording | str, recipe: Recipe) -> Wording | str:
    """Return `wording`, or why there is none. A prompt that nobody asked for may take half of a text's tokens."""
    if isinstance(wording, str) or recipe.head == "words" or recipe.prompt is not None or recipe.label_words:
        return wording
    taken, most = base.tokens_of(wording), base.reading.max_length
    return wording if taken * 2 <= most else f"a prompt would take {taken} of a text's {most} tokens"


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
        texts=table.train.texts[:LOOK],
        pair=table.report.get("text_pair") is not None,
    )


def sample(count: int, most: int, seed: int) -> list[int]:
    """Return at most `most` places of `count`, drawn by `seed`, in order."""
    return sorted(np.random.default_rng((seed, 5)).permutation(count)[:most].tolist())


def shrinkage(states: torch.Tensor, truth: np.ndarray, given: torch.Tensor, seed: int) -> float:
    """Return how much to shrink what is learnt from `states` beside the logits `given` (texts, labels) by words.

    Words are trusted where they get enough of these examples right, and no fewer than a head learnt beside them does in
    cross-validation, if there are examples enough for one.
    """
    if truth.ndim == 2:
        return SHRINK
    right = _right(given, truth)
    chance = 1 / given.shape[1]
    if right.mean() - chance <= TRUST * (1 - chance):
        return SHRINK
    usable = _usable(truth)
    if len(set(truth[usable])) < 2:
        return FIRM
    known = torch.from_numpy(usable)
    within = _cross_validated(states[known], truth[usable], given[known], seed)
    return FIRM if right[usable].mean() >= within.mean() else SHRINK


def _usable(truth: np.ndarray) -> np.ndarray:
    """Return for each row whether its label has rows enough for every fold; several labels have no folds of theirs."""
    if truth.ndim == 2:
        return np.ones(len(truth), dtype=bool)
    return np.asarray(np.bincount(truth)[truth] >= FOLDS)


def learnt(
    states: torch.Tensor,
    labels: torch.Tensor,
    offset: torch.Tensor,
    new: torch.Tensor,
    new_offset: torch.Tensor,
    shrink: float = SHRINK,
) -> torch.Tensor:
    """Return logits (texts, labels) for the states `new` from logistic regression on `states` and their `labels`.

    What is learnt is added to the offsets, the logits (texts, labels) that each text has to begin with, and is shrunk
    towards nothing: with few examples the offsets decide. `labels` are what `text_classification.label_loss` takes.
    """
    mean, spread = states.mean(dim=0), states.std(dim=0, correction=0) + 1e-6
    scaled = (states - mean) / spread
    weight = torch.zeros(states.shape[1], offset.shape[1], requires_grad=True)
    bias = torch.zeros(offset.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits = scaled @ weight + bias + offset
        total = label_loss(logits, labels) * (logits.numel() if labels.is_floating_point() else len(logits))
        total = total + shrink / 2 * (weight.square().sum() + bias.square().sum())
        total.backward()
        return total

    solver.step(loss)
    with torch.no_grad():
        return ((new - mean) / spread) @ weight + bias + new_offset


def _cross_validated(states: torch.Tensor, truth: np.ndarray, offset: torch.Tensor, seed: int) -> np.ndarray:
    """Return how far `learnt` is `_right` about each row without having seen it; each label has enough rows."""
    fold = np.empty(len(truth), dtype=int)
    rng = np.random.default_rng((seed, 6))
    # Each label's rows are dealt out to the folds.
    dealt = [np.arange(len(truth))] if truth.ndim == 2 else [np.flatnonzero(truth == each) for each in np.unique(truth)]
    for of_label in dealt:
        rows = rng.permutation(of_label)
        fold[rows] = np.arange(len(rows)) % FOLDS
    right = np.zeros(len(truth))
    labels = torch.from_numpy(truth)
    for number in range(FOLDS):
        held = torch.from_numpy(fold == number)
        found = learnt(states[~held], labels[~held], offset[~held], states[held], offset[held])
        right[fold == number] = _right(found, truth[fold == number])
    return right


def _truth(table: Table, places: Sequence[int]) -> np.ndarray:
    """Return int64 (examples,), the label of each, or float32 (examples, labels), 1 for each label that it has."""
    labels = [table.train.labels[place] for place in places]
    if table.multi_label:
        several: np.ndarray = multi_label.flags(labels, len(table.labels)).astype(np.float32)
        return several
    return np.array(labels)


def _log_odds(truth: np.ndarray) -> torch.Tensor:
    """Return the log odds (labels,) of each label in `truth` (texts, labels); half a text more has it, half has not."""
    having = truth.sum(axis=0)
    return torch.from_numpy(np.log((having + 0.5) / (len(truth) - having + 0.5))).float()


def _right(logits: torch.Tensor, truth: np.ndarray) -> np.ndarray:
    """Return float64 (texts,): whether the likeliest label is right, 1 or 0.

    Where texts have several, `truth` (texts, labels): of those that are at least as likely as one of a text's labels
    the share that it has, in the mean over its labels (label ranking average precision, as scikit-learn has it).
    """
    if truth.ndim == 1:
        likeliest: np.ndarray = logits.argmax(dim=1).numpy()
        return np.asarray(likeliest == truth, dtype=float)
    from sklearn.metrics import label_ranking_average_precision_score as ranked

    return np.array([ranked(has[None], scores[None]) for has, scores in zip(truth, logits.numpy(), strict=True)])


def _listed(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words[:8]) + (f", … {len(words) - 8} more" if len(words) > 8 else "")
