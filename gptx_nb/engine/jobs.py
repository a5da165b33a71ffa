"""What differs between the two kinds of fine-tuning, so that one set-up and one worker do both.

`Classification` gives each text a label, `Writing` lets the model write an answer. A job holds a run's table; it says
how its examples become rows of tokens, who learns from them, how they are shown and scored, and what is kept beside the
model. Training itself knows neither.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import answers, evaluate, models, multi_label, plan
from gptx_nb.engine.data import Table, label_name
from gptx_nb.engine.examples import AnyTable
from gptx_nb.engine.ragged import Ragged
from gptx_nb.engine.rendering import pieces
from gptx_nb.engine.roles import CLASSIFICATION, RoleTable
from gptx_nb.engine.shots import draw
from gptx_nb.engine.tasks import (
    chat_templates,
    head_start,
    label_words,
    long_contexts,
    reading,
    targets,
    text_classification,
)
from gptx_nb.engine.tasks.encoding import Encoded, EncodedRows, Encoder
from gptx_nb.engine.tasks.head_start import Base, Start
from gptx_nb.engine.tasks.label_words import PROMPT_FILE, Wording
from gptx_nb.engine.tasks.long_contexts import Windows
from gptx_nb.engine.tasks.reading import Reading, Row, TokenRows
from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.tasks.writing import LONG, TASKS
from gptx_nb.engine.tuning import Tuning
from gptx_nb.engine.writer import Writer
from gptx_nb.errors import DataError
from gptx_nb.inference import CLASSIFIER_FILE, TASK_FILE
from gptx_nb.recipe import Recipe

Learner = text_classification.Learner | targets.Learner
Once = Callable[[str, Callable[[], Any]], Any]  # gives plain values that are made once for all ranks, by their name

SAMPLES = 2  # held-out rows that a model answers at each evaluation
SAMPLE_TOKENS = 32
SHOWN_OF_A_TEXT = 40  # characters, by which its writer finds it
MOST_OF_THE_TIME = 0.03  # share of a run's time in which they are written
MOST_TIMES_USUAL = 4  # tokens of an answer, times the task's usual number, however long those learnt from were
PARTS = ("train", "validation")
SHOTS, MOST_FEW_SHOT = 4, 20  # examples that an untuned model is shown, and answers that it then writes


class Job(Protocol):
    """What set-up and worker ask of either kind of fine-tuning."""

    @property
    def report(self) -> dict[str, Any]: ...
    @property
    def is_scored(self) -> bool: ...  # rows were held back
    @property
    def why_unscored(self) -> str: ...  # if it is not
    @property
    def shares_vocabulary(self) -> bool: ...  # the model writes: every row of its embedding is needed
    @property
    def label_count(self) -> int: ...  # that a head tells apart; 0: the model writes
    @property
    def has_a_before(self) -> bool: ...  # the base model can do the task as it is, and is scored
    def load_model(
        self, base: models.Base, tokenizer: PreTrainedTokenizerBase, seed: int, *, scratch: bool = False
    ) -> PreTrainedModel: ...
    def begin(
        self,
        base: models.Base,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        dtype: Any,
        looks_in: Any,
        once: Once,
    ) -> None: ...  # decides what a new head begins with, in the dtype `looks_in`; `model` is as `load_model` gave it
    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None: ...
    @property
    def rows(self) -> int: ...  # to learn from
    @property
    def token_rows(self) -> tuple[Ragged, Ragged]: ...  # to learn from, and held back
    @property
    def more_tokens(self) -> list[int]: ...  # that are needed besides, by numbers
    def renumber(self, cut: Any) -> None: ...  # for an embedding with fewer rows (vocabulary.Cut)
    def learner(self, model: PreTrainedModel, tuned: Tuning, **options: Any) -> Learner: ...
    def told(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]: ...  # the plan's part about examples
    def seen(  # rows of these numbers, token by token
        self, tokenizer: PreTrainedTokenizerBase, places: Sequence[int]
    ) -> list[dict[str, Any]]: ...
    def resolved(self) -> dict[str, Any]: ...  # settings of the recipe that are known now
    def before(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any
    ) -> dict[str, Any]: ...  # {"scores", "few_shot"} of the base model; "remarks": why one of them is missing
    def evaluation(  # for the metrics, and by what the best is kept: greater is better
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any
    ) -> tuple[dict[str, Any], list[float]]: ...
    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]: ...
    def baselines(self) -> dict[str, Any]: ...
    def beside(self) -> dict[str, Any]: ...  # JSON files beside the model, by name: to ask it again


def of(table: AnyTable, recipe: Recipe) -> Job:
    """Return the job of a table that `examples` has read."""
    if isinstance(table, RoleTable):
        return Writing(table, recipe)
    return MultiLabel(table, recipe) if table.multi_label else Classification(table, recipe)


@dataclass
class Classification:
    """One label a text."""

    table: Table
    recipe: Recipe
    shares_vocabulary = False

    def __post_init__(self) -> None:
        self._rows, self._held = TokenRows(), TokenRows()
        self._renumbered: Any = None  # the cut vocabulary (vocabulary.Cut) whose numbers the rows have
        self._cut = 0
        self._first_cut: tuple[str | None, str] | None = None
        self.start = Start(None, None, "a new head on the plain text")
        self._before: head_start.Before | None = None
        self._not_before = ""  # why the base model is not scored, where it could have been
        self._before_cut: head_start.Before | None = None  # the same, with the numbers that a cut vocabulary has
        self._reading = Reading(0)
        self._cost: dict[str, str] | None = None

    @property
    def report(self) -> dict[str, Any]:
        return self.table.report

    @property
    def is_scored(self) -> bool:
        return self.table.validation is not None

    @property
    def why_unscored(self) -> str:
        return str(self.report["validation_note"])

    @property
    def label_count(self) -> int:
        return len(self.table.labels)

    @property
    def has_a_before(self) -> bool:
        return self._before is not None  # without words, a new head says nothing

    def load_model(
        self, base: models.Base, tokenizer: PreTrainedTokenizerBase, seed: int, *, scratch: bool = False
    ) -> PreTrainedModel:
        self._scratch = scratch
        return models.load_classifier(base, tokenizer, self.table.labels, seed, scratch=scratch)

    def begin(
        self,
        base: models.Base,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        dtype: Any,
        looks_in: Any,
        once: Once,
    ) -> None:
        if self._scratch:  # words mean nothing to random weights
            return
        known = Base(model, tokenizer, lambda: models.output_rows(base, model), self._reading_at(max_length), looks_in)
        # Of several processes one looks at the examples, and the others take its word.
        self.start = _start_of(once("head start", lambda: _plain(head_start.choose(known, self.table, self.recipe))))
        if self.start.head is not None:
            score: Any = model.get_submodule("score")
            score.weight.data.copy_(self.start.head)
        if self.is_scored and self.recipe.baselines:
            known = replace(known, dtype=dtype)  # it is scored where and as the run is trained
            context = models.context(base.config)
            before = head_start.Before.of(known, self.start, self.table, self.recipe, context)
            if isinstance(before, str):
                self._not_before = f"the base model has no score: {before}"
            else:
                self._before = before

    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._reading = self._reading_at(max_length)
        found = self._read(tokenizer, self.table.train.texts)
        more = self._read(tokenizer, self.table.validation.texts if self.table.validation is not None else [])
        self._rows, self._held, self._cut = found.rows, more.rows, len(found.cut_at) + len(more.cut_at)
        self._first_cut = self._find_first_cut(found.cut_at, more.cut_at)
        self._renumbered = self._before_cut = None
        self._cost = self._reading.cost(found.rows, self._cut, found.tokens + more.tokens, more.rows)

    def _find_first_cut(self, of_train: list[int], of_held: list[int]) -> tuple[str | None, str] | None:
        """Return which row the first text that is cut is, if known, and how it begins, for its writer to find it.

        The places are those of such texts.
        """
        own = self.report.get("validation_table")
        parts = [(part, at[0]) for part, at in ((self.table.train, of_train), (self.table.validation, of_held)) if at]
        firsts = [
            (part.numbers[at] if part.numbers else 0, part is not self.table.train, part.texts[at])
            for part, at in parts
            if part is not None
        ]
        if not firsts:
            return None
        # Both parts may be of one table, and then the first of its rows is meant.
        number, is_held, text = firsts[0] if own else min(firsts)
        where = f" of {own['source']}" if own and is_held else ""
        return f"row {number}{where}" if number else None, text[:SHOWN_OF_A_TEXT]

    def _reading_at(self, max_length: int) -> Reading:
        pair = self.report.get("text_pair") is not None
        return Reading(max_length, self.recipe.long_texts, self.recipe.stride, pair)

    def _read(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> reading.Rows:
        return label_words.read(tokenizer, self.start.wording, texts, self._reading)

    def _first(self, count: int) -> list[Row]:
        """Return the first rows, with the tokenizer's numbers."""
        return [self._row_at(place) for place in range(min(count, len(self._rows)))]

    def _row_at(self, place: int) -> Row:
        cut = self._renumbered
        return self._rows[place] if cut is None else reading.renumbered(self._rows[place], cut.original)

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def token_rows(self) -> tuple[Ragged, Ragged]:
        return self._rows.windows, self._held.windows

    def renumber(self, cut: Any) -> None:
        self._rows, self._held = self._rows.renumbered(cut.tokens), self._held.renumbered(cut.tokens)
        self._renumbered = cut
        if self._before is not None:
            self._before_cut = self._before.renumbered(cut.tokens)

    def learner(self, model: PreTrainedModel, tuned: Tuning, **options: Any) -> Learner:
        labels, pull = self.table.train.labels, self.start.hold(self.recipe.tune)
        return text_classification.Learner(model, tuned, self._rows, labels, self._held, pull=pull, **options)

    def told(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        told = plan.examples(self.table, tokenizer, self._rows, self._held, self._first(3), self._cut, self._first_cut)
        told = {**told, "remarks": self.start.remarks(), **self.start.told()}
        return {**told, "long_texts": self._cost} if self._cost is not None else told

    def seen(self, tokenizer: PreTrainedTokenizerBase, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return examples token by token: none is predicted, but for the label behind them all."""
        labels = [label_name(self.table.labels, self.table.train.labels[at]) for at in places]
        rows = [[token for window in reading.windows_of(self._row_at(at)) for token in window] for at in places]
        return [
            {"pieces": pieces(row, [False] * len(row), tokenizer), "label": label, "tokens": len(row)}
            for row, label in zip(rows, labels, strict=True)
        ]

    def resolved(self) -> dict[str, Any]:
        report = self.table.report
        named: dict[str, Any] = {"text": report["text"], "label": report["label"], "columns": None}
        if report.get("text_pair") is not None:
            roles = {role: report[role] for role in ("text", "text_pair", "label")}
            named = {"text": None, "label": None, "columns": roles}
        labels = self.table.labels
        return {"task": CLASSIFICATION, **named, "labels": labels, **self.start.resolved(labels)}

    @property
    def more_tokens(self) -> list[int]:
        return self._before.tokens if self._before is not None else []

    def before(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]:
        before = self._before_cut or self._before
        if before is None:
            return {}
        few = "the base model is not scored on examples before a text: they take more than half of what it sees"
        remarks = [*_stretched(self.recipe), *([] if before.few else [few])]
        return {**before.scores(model, tokenizer, self.table), "remarks": remarks}

    def evaluation(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any
    ) -> tuple[dict[str, Any], list[float]]:
        assert self.table.validation is not None
        logits = learner.held_logits()
        found = evaluate.scores(self.table.labels, self.table.validation.labels, logits)
        told = {"validation_loss": found["loss"], "accuracy": found["accuracy"], "macro_f1": found["macro_f1"]}
        told["samples"] = evaluate.samples(self.table.labels, self.table.validation, logits)
        # Among equal accuracies the surer one: a small validation set has many ties.
        return told, [found["accuracy"], -found["loss"]]

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]:
        assert self.table.validation is not None
        labels, truth, logits = self.table.labels, self.table.validation.labels, learner.held_logits()
        remarks = [self._not_before] if self._not_before else []
        return {**evaluate.in_full(labels, truth, logits), "remarks": remarks}

    def baselines(self) -> dict[str, Any]:
        assert self.table.validation is not None
        return evaluate.baselines(self.table.train, self.table.validation)

    def beside(self) -> dict[str, Any]:
        columns = {role: self.report.get(role) for role in ("text", "text_pair")}
        found: dict[str, Any] = {CLASSIFIER_FILE: {"reading": self._reading.to_json(), "columns": columns}}
        if self.start.wording is not None:
            found[PROMPT_FILE] = self.start.wording.to_json(self.table.labels)
        return found


def _plain(start: Start) -> dict[str, Any]:
    """Return `start` as plain values. float32 numbers survive their way through JSON to the last bit."""
    tensors = {"head": start.head, "rows": start.rows, "pull": start.pull}
    return {
        "wording": None if start.wording is None else asdict(start.wording),
        "reason": start.reason,
        "tried": start.tried,
        **{name: None if tensor is None else tensor.tolist() for name, tensor in tensors.items()},
    }


def _start_of(plain: dict[str, Any]) -> Start:
    """Return what `_plain` has taken apart."""
    words = plain["wording"]
    wording = None if words is None else Wording(**{**words, "words": tuple(words["words"])})
    head, rows, pull = (None if plain[name] is None else torch.tensor(plain[name]) for name in ("head", "rows", "pull"))
    return Start(wording, head, plain["reason"], rows, plain["tried"], pull)


class MultiLabel(Classification):
    """Any number of labels a text."""

    _threshold: multi_label.Threshold = multi_label.USUAL

    def load_model(
        self, base: models.Base, tokenizer: PreTrainedTokenizerBase, seed: int, *, scratch: bool = False
    ) -> PreTrainedModel:
        self._scratch = scratch
        return models.load_classifier(base, tokenizer, self.table.labels, seed, scratch=scratch, multi_label=True)

    def learner(self, model: PreTrainedModel, tuned: Tuning, **options: Any) -> Learner:
        truth = multi_label.flags(self.table.train.labels, len(self.table.labels)).astype(np.float32)
        pull = self.start.hold(self.recipe.tune)
        return text_classification.Learner(model, tuned, self._rows, truth, self._held, pull=pull, **options)

    def resolved(self) -> dict[str, Any]:
        found = super().resolved()
        return {**found, "label": None} if self.report["label"] not in self.report["columns"] else found

    def evaluation(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any
    ) -> tuple[dict[str, Any], list[float]]:
        assert self.table.validation is not None
        logits = learner.held_logits()
        found = self._scored(logits)
        names = ("accuracy", "micro_f1", "macro_f1")
        told = {"validation_loss": found["loss"], **{name: found[name] for name in names}}
        told["samples"] = multi_label.samples(self.table.labels, self.table.validation, logits, self._threshold)
        return told, [found["micro_f1"], -found["loss"]]

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]:
        return {**self._scored(learner.held_logits()), "remarks": [self._not_before] if self._not_before else []}

    def before(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]:
        found = super().before(model, tokenizer, learner)
        how = (
            "untrained, the base model gives the labels whose words are likeliest, at least "
            f"{multi_label.LIKELY:.0%} of the likeliest; examples before a text would show it one label each"
        )
        return {**found, "remarks": [*_stretched(self.recipe), how]} if found else {}

    def _scored(self, logits: np.ndarray) -> dict[str, Any]:
        assert self.table.validation is not None
        found = multi_label.scores(self.table.labels, self.table.validation.labels, logits, self.recipe.threshold)
        self._threshold = found["threshold"]
        return found

    def baselines(self) -> dict[str, Any]:
        assert self.table.validation is not None
        return multi_label.baselines(self.table.train, self.table.validation, len(self.table.labels))

    def beside(self) -> dict[str, Any]:
        found = super().beside()
        found[CLASSIFIER_FILE]["threshold"] = self.recipe.threshold or self._threshold
        return found


@dataclass
class Writing:
    """A written answer to each example."""

    table: RoleTable
    recipe: Recipe
    shares_vocabulary = True
    label_count = 0
    has_a_before = True

    def __post_init__(self) -> None:
        self.task = TASKS[self.table.task]
        self._rows, self._held = EncodedRows(), EncodedRows()
        self._scored_on: list[int] = []  # places of the examples held back that fit
        self._facts = dict(self.table.facts)
        self._counts: dict[str, int] = {}
        self._notes: list[str] = []
        self._remarks: list[str] = []
        self._windowed: list[int] = []  # how many windows the contexts take that take several
        self._began = time.monotonic()
        self._wrote = 0.0  # seconds in which samples were written

    @property
    def report(self) -> dict[str, Any]:
        return self.table.report

    @property
    def is_scored(self) -> bool:
        return bool(self._held) if self._rows else self.table.validation is not None

    def load_model(
        self, base: models.Base, tokenizer: PreTrainedTokenizerBase, seed: int, *, scratch: bool = False
    ) -> PreTrainedModel:
        assert not scratch, "only classifiers are compared with random weights (see examples.load)"
        return models.load_causal(base)

    def begin(
        self,
        base: models.Base,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        dtype: Any,
        looks_in: Any,
        once: Once,
    ) -> None:
        return  # it writes with the head that it has

    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._rows, self._held = EncodedRows(), EncodedRows()  # anew: it may be asked for several lengths
        self._notes, self._remarks, self._windowed = [], [], []
        if self.task.name == "chat":
            self._remarks.append(
                f"{chat_templates.told(tokenizer, self.recipe.chat_template)}; it is saved with the model"
            )
        encoder = Encoder(tokenizer, max_length)
        if self.recipe.long_texts == "windows":
            self._facts["windows"] = Windows(max_length, self.recipe.stride).to_json()
        held = self.table.validation or []
        unlearnt: list[str] = []  # rows with an answer that fits by itself into none
        cut, of_train, firsts, left_out = 0, 0, dict[str, int](), {part: list[int]() for part in PARTS}
        lost = {part: list[int]() for part in PARTS}  # examples whose answer stands in what is not read
        for part, examples, rows in zip(PARTS, (self.table.train, held), (self._rows, self._held), strict=True):
            parts: list[Any] = []
            for at, example in enumerate(examples):
                try:
                    read = self._window(example, encoder, tokenizer)
                    found, shortened, segments = self._encoded(dict(read), encoder, tokenizer)
                except DataError as error:
                    begins = " ".join(self.task.shown(example).split())[:40]
                    raise DataError(f"{self._row(part, at)} ({begins!r}): {error}") from None
                fitting = [row for row in found if row is not None and any(row.loss)]
                if shortened or any(row.cut for row in fitting):
                    cut += 1
                    firsts.setdefault(part, at)
                    of_train += part == "train"
                lost[part] += [at] if any(self.task.loses_answer(example, read, row.cut) for row in fitting) else []
                left_out[part] += [] if fitting else [at]
                if fitting and self.task.name == "chat" and len(fitting) < len(found):
                    unlearnt.append(self._row(part, at))
                rows.extend(fitting)
                parts += [] if self._rows else segments
            if parts and not rows and rows is self._rows:
                encoder.rows(parts, f"{self._row(part, 0)} and all others")  # says why nothing can be learnt
        first_cut = self._first(firsts) if firsts else ""
        answering = not any(self.task.whole_text(each) for each in self.table.train[:1])
        longest = max((_longest_answer(row) for row in self._rows), default=0) if answering else 0
        # Where memory makes rows shorter, examples are encoded again: what whole answers had stays.
        if longest > self.task.max_new_tokens and self._facts.get("answer_tokens") is None:
            self._facts["answer_tokens"] = min(longest, MOST_TIMES_USUAL * self.task.max_new_tokens)
        self._facts.pop("max_length", None)
        if of_train and self.task.name != "chat":  # of which every part is learnt
            self._facts["max_length"] = max_length
        out = set(left_out["validation"])
        self._scored_on = [at for at in range(len(held)) if at not in out]
        counts = {part: len(places) for part, places in left_out.items()}
        self._counts = {"cut": cut, "left_out": sum(counts.values()), "left_out_of_scoring": counts["validation"]}
        if self._windowed:
            learnt = "the window with the answer is" if self.task.name == "question-answering" else "the beginning is"
            self._notes.append(
                f"{_contexts(len(self._windowed))} longer than {max_length:,} tokens: {learnt} learnt from, and all "
                f"windows, {sum(self._windowed) / len(self._windowed):.1f} of each, are asked when the model answers, "
                "each for the time of an answer"
            )
        elif cut and self.task.name in LONG:
            self._notes.append(
                f"{_contexts(cut, first_cut)} cut to fit into {max_length:,} tokens. `long_texts: windows` reads all "
                "of them, and takes the time of an answer for each window of a context when the model answers"
            )
        elif cut and self.task.name == "chat":
            self._remarks.append(
                f"{_rows_are(cut, first_cut)} longer than {max_length:,} tokens: each is learnt in parts, every answer "
                f"{'that fits ' if unlearnt else ''}in one of them; a larger `max_length:` lets answers see more of "
                "what was said"
            )
        elif cut:
            self._notes.append(
                f"{_rows_are(cut, first_cut)} longer than {max_length:,} tokens, and what asks for the answer is cut. "
                "Set a larger `max_length:`, if the model allows it, or shorten them"
            )
        if unlearnt:
            have = (
                f"1 conversation ({unlearnt[0]}) has"
                if len(unlearnt) == 1
                else (f"{len(unlearnt):,} conversations (the first: {unlearnt[0]}) have")
            )
            self._notes.append(
                f"{have} answers of more than {max_length:,} tokens, with what asks for them, which are not learnt. "
                "Set a larger `max_length:`, if the model allows it, or shorten them"
            )
        for part, what in zip(PARTS, ("the model learns to guess", "in scoring it has to be guessed"), strict=True):
            if places := lost[part]:
                rows_have = "1 row has its answer" if len(places) == 1 else f"{len(places):,} rows have their answer"
                first = answers.first_of(places, functools.partial(self._row, part))
                self._notes.append(
                    f"{rows_have} only where the context is not read{first}: {what}. Set a larger `max_length:`, if "
                    "the model allows it, or leave such rows out"
                )
        for part, what in zip(PARTS, ("learning", "scoring"), strict=True):
            if places := left_out[part]:
                which = answers.rows_left_out(len(places), self._row(part, places[0]))
                why = f"the answer and what asks for it take more than {max_length:,} tokens"
                self._notes.append(f"{which} out of {what}: {why}")
        if held and not self._held:
            self._notes.append(self.why_unscored)

    def _first(self, firsts: Mapping[str, int]) -> str:
        """Name the first of the rows that `firsts` has by part; both parts may be of one table."""
        own = self.report.get("validation_table") is not None
        part = min(firsts, key=lambda part: (own and part == "validation", self.table.numbers[part][firsts[part]]))
        return self._row(part, firsts[part])

    def _row(self, part: str, at: int) -> str:
        """Name the row of the table that an example was; the example where an older snapshot does not know it."""
        own = self.report.get("validation_table") if part == "validation" else None
        number = self.table.numbers[part][at]
        where = f"row {number}" if number else f"example {at + 1} of the {part} part"
        return f"{(own or self.report)['source']}, {where}"

    @property
    def why_unscored(self) -> str:
        if self.table.validation is None:
            return str(self.report["validation_note"])
        return (
            f"no row held back fits, so there is no score ({self.report['validation_note']}). Shorten their texts, or "
            "set a larger `max_length:`, if the model allows it"
        )

    def _encoded(
        self, example: dict[str, Any], encoder: Encoder, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[Encoded | None], bool, list[Any]]:
        """Return the rows of an example, whether it takes several to fit, and its segments."""
        segments = self.task.segments(example, self._facts, tokenizer)
        if self.task.whole_text(example):
            return [row for each in segments for row in encoder.windows(each)], False, segments
        rows = [encoder.encode(each) for each in segments]
        if None in rows and self.task.shorter(example) is not None:
            return self._in_parts(example, encoder, tokenizer), True, segments
        return rows, False, segments

    def _in_parts(
        self, example: dict[str, Any], encoder: Encoder, tokenizer: PreTrainedTokenizerBase
    ) -> list[Encoded | None]:
        """Return the rows of a conversation that is too long for one: of its end, of what is before that, and so on.

        Each is as long as fits, behind the system message; every answer is learnt in one of them.
        """

        def rows_of(part: dict[str, Any]) -> list[Encoded | None]:
            return [encoder.encode(each) for each in self.task.segments(part, self._facts, tokenizer)]

        found: list[Encoded | None] = []
        rest: dict[str, Any] | None = example
        while rest is not None:
            part, rows = rest, rows_of(rest)
            while None in rows and (shorter := self.task.shorter(part)) is not None:
                part, rows = shorter, rows_of(shorter)
            found = rows + found
            rest = self.task.rest(rest, part)
        return found

    def _window(self, example: Example, encoder: Encoder, tokenizer: PreTrainedTokenizerBase) -> Example:
        """Return the example with the window of its context that it is learnt from."""
        how, role = Windows.of(self._facts), LONG.get(self.task.name)
        if how is None or role is None or role not in example:
            return example
        bare = encoder.encode(self.task.segments({**example, role: ""}, self._facts, tokenizer)[0])
        if bare is None:
            return example
        found, _ = long_contexts.parts(tokenizer, example, role, how, fixed=len(bare.ids))
        self._windowed += [len(found)] if len(found) > 1 else []
        if self.task.name == "summarization":
            return found[0]
        return long_contexts.with_answer(found, role, self.task.accepted(example))

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def token_rows(self) -> tuple[Ragged, Ragged]:
        return self._rows.ids, self._held.ids

    @property
    def more_tokens(self) -> list[int]:
        return []

    def renumber(self, cut: Any) -> None:
        raise AssertionError("a model that writes keeps its vocabulary")

    def learner(self, model: PreTrainedModel, tuned: Tuning, **options: Any) -> Learner:
        return targets.Learner(model, tuned, self._rows, self._held, **options)

    def told(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        parts = self._rows, self._held
        lengths = np.sort(np.concatenate([each.ids.lengths for each in parts])).tolist()
        answers_of = np.sort(np.concatenate([each.targets for each in parts])).tolist()
        return {
            "task": {"choice": self.table.task, "reason": self.report["task_why"]},
            "train_rows": len(self._rows),
            "validation_rows": len(self._held),
            "tokens": {**_spread(lengths), **self._counts},
            "target_tokens": _spread(answers_of),
            "rendered": [
                {"pieces": _pieces(row, tokenizer), "tokens": len(row.ids), "targets": sum(row.loss)}
                for row in self._rows[:3]
            ],
            "notes": [*self.report.get("warnings", []), *self._notes],
            "remarks": self._remarks,
        }

    def seen(self, tokenizer: PreTrainedTokenizerBase, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows token by token, and which tokens are to be predicted."""
        rows = [self._rows[at] for at in places]
        return [{"pieces": pieces(row.ids, row.loss, tokenizer), "label": None, "tokens": len(row.ids)} for row in rows]

    def resolved(self) -> dict[str, Any]:
        return {"task": self.table.task, "columns": self.report["roles"], "text": None}

    @property
    def _fitting(self) -> list[Example]:
        """The examples held back that it is scored on."""
        held = self.table.validation or []
        return [held[at] for at in self._scored_on]

    def before(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]:
        """Return the scores of the model as it is, before it is tuned, on the rows that are held back.

        {"scores": by itself, "few_shot": behind some examples with their answers, where these fit}.
        """
        if not self.is_scored or not self.recipe.baselines:
            return {}
        few, why = self._few_shot(model, tokenizer)
        said = f"the base model is not scored on examples before what is asked: {why}"
        return {
            "scores": self._scored(model, tokenizer, learner, tuned=False),
            "few_shot": few,
            "remarks": [
                *_stretched(self.recipe),
                said if few is None else f"the base model was shown {few['which']}",
            ],
        }

    def _few_shot(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[dict[str, Any] | None, str]:
        """Return the scores behind some examples, or None and why there are none."""
        train, held = self.table.train, self._fitting
        writer = Writer(model, tokenizer, self.table.task, self._facts, tuned=False)
        if any(self.task.whole_text(each) for each in [*train[:1], *held]):
            return None, "texts to continue have no answers to show"
        drawn = draw(writer, train, min(self.recipe.shots or SHOTS, len(train)), self.recipe.seed)
        shots = [train[at] for at in drawn.places]
        try:
            found = answers.written(writer, held, allow_code=self.recipe.allow_code, shots=shots, most=MOST_FEW_SHOT)
        except DataError as error:
            return None, str(error)
        if not found["written"]:
            return None, f"{len(shots)} of them do not fit into the {writer.context:,} tokens that it sees"
        which = drawn.told([self.table.numbers["train"][at] for at in drawn.places], str(self.report["source"]))
        return {**found, "shots": len(shots), "which": which}, ""

    def evaluation(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any
    ) -> tuple[dict[str, Any], list[float]]:
        found = answers.likelihood(learner.held_nats())
        told = {"validation_loss": found["loss"], "perplexity": found["perplexity"]["value"]}
        return {**told, "samples": self._samples(model, tokenizer)}, [-found["loss"]]

    def _samples(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
        """Let the model answer a few fixed rows, for people to look at; not where that would hold training up."""
        started = time.monotonic()
        if self._wrote > MOST_OF_THE_TIME * (started - self._began):
            return []
        writer = Writer(model, tokenizer, self.table.task, self._facts, tuned=True)
        found = answers.samples(writer, self._fitting, SAMPLES, SAMPLE_TOKENS)
        self._wrote += time.monotonic() - started
        return found

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any) -> dict[str, Any]:
        return self._scored(model, tokenizer, learner, tuned=True)

    def _scored(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, learner: Any, tuned: bool
    ) -> dict[str, Any]:
        held = self._fitting
        found = answers.likelihood(learner.held_nats(), [row.text(tokenizer) for row in self._held])
        writer = Writer(model, tokenizer, self.table.task, self._facts, tuned=tuned)
        more = answers.written(writer, held, allow_code=self.recipe.allow_code)
        notes = answers.notes(more, lambda at: self._row("validation", self._scored_on[at]), writer.reads)
        return {"rows": len(held), **found, **more, "notes": notes}

    def baselines(self) -> dict[str, Any]:
        return {}

    def beside(self) -> dict[str, Any]:
        return {TASK_FILE: {"task": self.table.task, "facts": self._facts, "roles": self.report["roles"]}}


def save(
    job: Job,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    adapter_of: models.Base | None = None,
) -> None:
    """Write the model as a plain folder, or an adapter of a base, with what is needed to ask it again."""
    told = job.beside()
    if TASK_FILE not in told:
        models.save(folder, model, tokenizer, max_length, told, adapter_of)
        return
    ends = chat_templates.end_ids(tokenizer) if told[TASK_FILE]["task"] == "chat" else {tokenizer.eos_token_id}
    causal: Any = model
    causal.config.use_cache = True
    if causal.generation_config is not None:
        causal.generation_config.eos_token_id = sorted(ends)
    models.save(folder, model, tokenizer, max_length, told, adapter_of)


def _stretched(recipe: Recipe) -> list[str]:
    """Return how the base model's context differs from its own, where it does."""
    if recipe.context is None:
        return []
    return [f"the base model is scored with its positions stretched to {recipe.context:,} tokens, as the run begins"]


def _longest_answer(row: Encoded) -> int:
    """Return how many tokens the longest answer of `row` has."""
    return max((sum(1 for _ in each) for is_target, each in itertools.groupby(row.loss) if is_target), default=0)


def _contexts(count: int, first: str = "") -> str:
    what, verb = ("1 context", "is") if count == 1 else (f"{count:,} contexts", "are")
    which = f" ({first})" if count == 1 else f" (the first: {first})"
    return f"{what}{which if first else ''} {verb}"


def _rows_are(count: int, first: str) -> str:
    return f"1 row ({first}) is" if count == 1 else f"{count:,} rows (the first: {first}) are"


def _spread(lengths: list[int]) -> dict[str, int]:
    count = len(lengths)
    middle, most = lengths[count // 2], lengths[min(count - 1, int(count * 0.95))]
    return {"min": lengths[0], "median": middle, "p95": most, "max": lengths[-1]}


def _pieces(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[list[Any]]:
    """Return [text, whether it is to be predicted] piece by piece, as the model sees a row."""
    pieces: list[list[Any]] = []
    start = 0
    for at in range(1, len(row.ids) + 1):
        if at == len(row.ids) or row.loss[at] != row.loss[start]:
            pieces.append([str(tokenizer.decode(row.ids[start:at])).strip("\ufffd"), row.loss[start]])
            start = at
    return pieces
