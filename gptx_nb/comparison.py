"""Several runs beside each other as plain data: what was asked, what came of it, where they differ. Draws nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptx_nb import fields, progress, writing_words
from gptx_nb.curves import SCORES, score_name
from gptx_nb.errors import UsageError
from gptx_nb.overview import details
from gptx_nb.pretraining import KINDS
from gptx_nb.progress import Progress
from gptx_nb.runs import Run

Json = dict[str, Any]
MOST = 8  # runs that can be told apart on one chart
LONGEST = 200  # characters of a value
MISTAKES = 10  # of those that a model makes most frequently
CALLED = {"finetune": "fine-tuning", "pretrain": "pretraining"}


@dataclass(frozen=True)
class Comparison:
    """What `gptx_nb.compare` returns: runs, and rows of [name, a value a run] of their scores and their settings."""

    runs: list[Run]
    scores: list[list[str]]
    settings: list[list[str]]  # those that differ
    verdicts: list[tuple[str, str]]  # run, and what is to be said of its scores

    @property
    def head(self) -> list[str]:
        return ["", *map(progress.called, self.runs)]

    def to_frame(self) -> Any:
        """Return scores and settings as a pandas DataFrame: a row a name, a column a run."""
        import pandas

        rows = [*self.scores, *self.settings]
        return pandas.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=self.head[1:])

    def __repr__(self) -> str:
        lines = progress.text_table(self.head, self.scores).splitlines()
        if self.settings:
            shown = [[progress.one_line(cell, 40) for cell in row] for row in self.settings]
            lines += ["", "what differs in the recipes", *progress.text_table(self.head, shown).splitlines()]
        return "\n".join([*lines, "", *(f"{who}: {said}" for who, said in self.verdicts)]).rstrip()


def of(runs: Sequence[Run]) -> Comparison:
    """Compare several runs. Raises UsageError for fewer than two or more than can be told apart."""
    if not 2 <= len(runs) <= MOST:
        raise UsageError(
            f"{progress.counted(len(runs), 'run')}: name 2 to {MOST}, as in `%gpt_compare reviews/1 reviews/2`. "
            "`%gpt_runs` lists them"
        )
    told = compare(runs)
    said = [(each["called"], text) for each in told["runs"] for text in (each["verdict"], each["transfer"]) if text]
    return Comparison(list(runs), told["scores"], told["settings"], said)


def compare(runs: Sequence[Run]) -> Json:
    """Return {"runs": [one each], "scores": rows, "settings": rows}; a row is [name, a value a run].

    One run is {"id", "called", "state", "verdict", "transfer", "labels", "confusion", "mistakes": the most frequent as
    [label, taken for, rows], "more_mistakes": how many pairs more, ...}. Of the recipes only what differs is told.
    """
    told = [details(run) for run in runs]
    return {
        "runs": [_one(run, each) for run, each in zip(runs, told, strict=True)],
        "scores": _scores(told),
        "settings": _settings(told),
    }


def curves(run: Run) -> Json:
    """Return {"steps", "loss", "scored", "held_out", "score", "score_name"} of a run, as far as it is."""
    seen = Progress(run).refresh()
    name = score_name(seen.evaluations)
    return {
        "steps": [each["step"] for each in seen.steps],
        "loss": [each.get("loss") for each in seen.steps],
        "scored": [each["step"] for each in seen.evaluations],
        "held_out": [each.get("validation_loss") for each in seen.evaluations],
        "score": [each.get(name) if name else None for each in seen.evaluations],
        "score_name": SCORES.get(name or "", ""),
    }


def _one(run: Run, told: Json) -> Json:
    scores = told["scores"] or {}
    validation = scores.get("validation") or {}
    transfer = scores.get("transfer")
    wrong = progress.mistakes(validation) if validation.get("confusion") else []
    return {
        "id": told["id"],
        "called": progress.called(run),
        "state": told["state"],
        "doing": told["doing"],
        "scored": bool(validation) and run.model.is_dir() and told["kind"] == "finetune",
        "verdict": told["verdict"],
        "transfer": progress.transfer_gain(transfer) if transfer else "",
        "labels": validation.get("labels") or [],
        "confusion": validation.get("confusion") or [],
        "mistakes": [[label, said, f"{count:,}"] for label, said, count in wrong[:MISTAKES]],
        "more_mistakes": max(0, len(wrong) - MISTAKES),
        "samples": [list(each) for each in writing_words.samples(scores)] if writing_words.is_writing(scores) else [],
        "curves": curves(run),
    }


def _scores(told: Sequence[Json]) -> list[list[str]]:
    columns = [_scores_of(each) for each in told]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [[name, *(column.get(name, "") for column in columns)] for name in names]


def _scores_of(told: Json) -> dict[str, str]:
    """Return every score of a run in words, by its name, that of others on the same rows among them."""
    found = {"state": str(told["doing"])}
    scores = told["scores"] or {}
    validation = scores.get("validation") or {}
    if isinstance(validation.get("scores"), dict):  # with their intervals; an older classifier has none
        beside = (("base", "base model"), ("few_shot", "base model, shown examples"))
        kinds = [(validation, ""), *((scores[key], f", {who}") for key, who in beside if scores.get(key))]
        for measured, who in kinds:
            every = writing_words.values(measured) if measured.get("scores") is not None else {}
            found |= {f"{writing_words.called(name)}{who}": writing_words.shown(each) for name, each in every.items()}
    else:
        for name in ("accuracy", "macro_f1", "bits_per_byte"):
            if isinstance(validation.get(name), int | float):
                found[writing_words.called(name)] = f"{validation[name]:.3f}"
    for name, each in (scores.get("baselines") or {}).items():
        known = (each.get("scores") or {}).get("accuracy")
        accuracy = writing_words.shown(known) if known else f"{each['accuracy']:.3f}"
        found[f"accuracy, {progress.NAMES.get(name, name)}"] = accuracy
    if isinstance(validation.get("rows"), int):
        found["held-out rows"] = f"{validation['rows']:,}"
    if transfer := scores.get("transfer"):
        found["transfer gain"] = _gain(transfer)
    if told["seconds"] is not None:
        found["trained in"] = progress.duration(told["seconds"])
    return found


def _gain(transfer: Json) -> str:
    """Return a transfer gain for a cell of a table, with its 95 % interval; the verdict says it as a sentence."""
    points = f"{100 * transfer['gain']:+.1f} points"
    if transfer["low"] is None:
        return points
    return f"{points} ({100 * transfer['low']:+.1f} to {100 * transfer['high']:+.1f})"


def _settings(told: Sequence[Json]) -> list[list[str]]:
    """Return the settings that differ; between kinds of runs, whose defaults do, those that somebody has asked for."""
    recipes, kinds = [each["recipe"] for each in told], [each["kind"] for each in told]
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    differ = [name for name in names if len({json.dumps(each.get(name)) for each in recipes}) > 1]
    if len(set(kinds)) < 2:
        return [[name, *(_value(recipe.get(name)) for recipe in recipes)] for name in differ]
    asked = set[str]().union(*(_asked(each["recipe"], each["kind"]) for each in told))
    rows = [[name, *(_value(recipe.get(name)) for recipe in recipes)] for name in differ if name in asked]
    return [["kind of run", *(CALLED.get(kind, kind) for kind in kinds)], *rows]


def _asked(recipe: Json, kind: str) -> set[str]:
    """Return the names of settings that are not as they are by default; all where this version knows no defaults."""
    known = {each.name: each.default for each in fields.settings(KINDS[kind])} if kind in KINDS else {}
    return {name for name, value in recipe.items() if value is not None and (name not in known or value != known[name])}


def _value(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
