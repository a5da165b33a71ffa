"""How far a run is and what came of it, in numbers and plain words, for every view. Draws nothing and decides nothing.

Everything is read from the run's files, so it is the same for a run that this process started, one that another did,
and one that ended last week.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from gptx_nb import launch, line, metrics, multi_label_words, pretraining_words, samples, writing_words
from gptx_nb.errors import GptxError
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.runs import Run, State

WAITS = "waiting in line"
PHASES = {
    "corpus": "preparing the texts",
    "data": "reading the data",
    "model": "loading the model",
    "queue": WAITS,
    "base": "scoring the base model as it is",
    "frozen": "computing the frozen part",
    "preflight": "trying the longest rows",
    "training": "training",
    "scoring": "scoring",
    "transfer": "training for comparison",
    "saving": "saving",
}
RECENT = 20  # steps over which speed is averaged
NAMES = {"tfidf": "TF-IDF + logistic regression", "majority": "always the commonest label"}


class Progress:
    """One run, looked at again and again. `refresh` reads what was added to its files since the last time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state: State = "starting"
        self.phase: str | None = None
        self.waits_for = ""  # why it waits in line, in words
        self.prepared = ""  # how much of the texts is prepared, in words
        self.total: int | None = None
        self.steps: list[metrics.Record] = []
        self.evaluations: list[metrics.Record] = []
        self.notes: list[str] = []
        self._offsets: dict[int, int] = {}
        self._device = ""
        self._ranks: dict[int, _Rank] = {}  # of the latest attempt, without rank 0
        self._resumed_at = 0  # how many of the steps stood there when the latest attempt began

    def refresh(self) -> Progress:
        """Read on, and return self."""
        # The state first: what is read afterwards is at least as new, so that an ended run is never shown half.
        self.state = self.run.state()
        for attempt in range(1, self.run.attempts() + 1):
            records, offset = metrics.read(self.run.metrics_file(attempt), self._offsets.get(attempt, 0))
            self._offsets[attempt] = offset
            for record in records:
                self._take(record)
        self._read_ranks(self.run.attempts())
        return self

    def _read_ranks(self, attempt: int) -> None:
        rank = 1
        while (path := self.run.of_rank(self.run.metrics_file(attempt), rank)).exists():
            if rank not in self._ranks or self._ranks[rank].path != path:
                self._ranks[rank] = _Rank(path)
            self._ranks[rank].refresh()
            rank += 1
        self._ranks = {each: seen for each, seen in self._ranks.items() if each < rank}

    def _take(self, record: metrics.Record) -> None:
        kind = record.get("kind")
        if kind == "start":  # a resumed attempt repeats what came after its checkpoint
            self.total = record.get("steps") or self.total
            self._device = record.get("device") or ""
            self.steps = [old for old in self.steps if old["step"] <= record["step"]]
            self.evaluations = [old for old in self.evaluations if old["step"] <= record["step"]]
            self._resumed_at = len(self.steps)
        elif kind == "phase":
            self.phase = record["phase"]
            self.waits_for = _waits_for(record) if self.phase == "queue" else ""
            self.prepared = str(record.get("done") or "")
        elif kind == "step":
            self.steps.append(record)
        elif kind == "evaluation":
            self.evaluations.append(record)
        elif kind == "note":
            self.notes.append(str(record["text"]))

    # ---- numbers ----------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def share(self) -> float:
        """How much of the training is done, from 0 to 1."""
        return min(1.0, self.step / self.total) if self.total else 0.0

    @property
    def loss(self) -> float | None:
        """The mean of the last steps' losses: a single one jumps about."""
        recent = [step["loss"] for step in self.steps[-5:] if step.get("loss") is not None]
        return sum(recent) / len(recent) if recent else None

    @property
    def validation(self) -> float | None:
        """The latest validation accuracy, from 0 to 1."""
        found: float | None = self.evaluations[-1].get("accuracy") if self.evaluations else None
        return found

    @property
    def perplexity(self) -> float | None:
        """Of a run whose model writes: the latest, of held-out answers."""
        found: float | None = self.evaluations[-1].get("perplexity") if self.evaluations else None
        return found

    @property
    def bits_per_byte(self) -> float | None:
        """Of a pretraining run: how well held-back documents are predicted."""
        found: float | None = self.evaluations[-1].get("bits_per_byte") if self.evaluations else None
        return found

    @property
    def _recent(self) -> list[metrics.Record]:
        """The last steps of the latest attempt: before it lies a pause, or another device."""
        return self.steps[self._resumed_at :][-RECENT:]

    @property
    def tokens_per_second(self) -> float | None:
        recent = self._recent
        seconds = sum(step.get("seconds") or 0.0 for step in recent)
        return sum(step.get("tokens") or 0 for step in recent) / seconds if seconds else None

    def rank_rows(self) -> list[tuple[str, str, str, str]]:
        """Return (rank, device, tokens per second, memory held) of each rank, in words; empty for a single process."""
        if not self._ranks:
            return []
        each = {0: (self._device, self._recent), **{rank: (one.device, one.steps) for rank, one in self._ranks.items()}}
        return [(str(rank), device, *_speed_and_memory(steps)) for rank, (device, steps) in each.items()]

    @property
    def seconds_left(self) -> float | None:
        """About how long training still takes, scoring and saving left out."""
        recent = self._recent
        if not self.total or len(recent) < 2 or self.phase in ("scoring", "saving"):
            return None
        took: float = (recent[-1]["time"] - recent[0]["time"]) / (len(recent) - 1)
        return max(0.0, took * (self.total - self.step))

    @property
    def doing(self) -> str:
        """What goes on, in a word or two."""
        if self.state in ("running", "elsewhere"):
            doing = PHASES.get(self.phase or "", "starting")
            return f"{doing} on another computer" if self.state == "elsewhere" else doing
        return {"stopping": "saving and stopping"}.get(self.state, self.state)

    def facts(self) -> list[str]:
        """The numbers of the moment, each in a few words."""
        found = []
        if self.waits_for and self.state in ("running", "elsewhere"):
            found.append(self.waits_for)
        if self.prepared and self.state == "running":
            found.append(self.prepared)
        if self.step:
            found.append(f"step {self.step:,}/{self.total:,}" if self.total else f"step {self.step:,}")
        if self.loss is not None:
            found.append(f"loss {number(self.loss)}")
        if self.validation is not None:
            found.append(f"validation {self.validation:.2f}")
        if self.perplexity is not None:
            found.append(f"perplexity {self.perplexity:.4g} on held-out answers")
        if self.bits_per_byte is not None:
            found.append(f"held back {self.bits_per_byte:.3f} bits a byte")
        if self.phase == "training" and (speed := self.tokens_per_second):
            found.append(f"{speed:,.0f} tokens/s" + (f" on {1 + len(self._ranks)} devices" if self._ranks else ""))
        if self.state == "running" and (left := self.seconds_left) is not None:
            found.append(f"{duration(left)} left")
        return found

    def line(self) -> str:
        """Everything in one line."""
        return "  ".join([called(self.run), self.doing, *self.facts()])


class _Rank:
    """What one of several processes has told of itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = ""
        self.steps: list[metrics.Record] = []
        self._offset = 0

    def refresh(self) -> None:
        records, self._offset = metrics.read(self.path, self._offset)
        for record in records:
            if record.get("kind") == "start":
                self.device, self.steps = record.get("device") or "", []
            elif record.get("kind") == "step":
                self.steps = [*self.steps, record][-RECENT:]


def _speed_and_memory(steps: Sequence[metrics.Record]) -> tuple[str, str]:
    seconds = sum(step.get("seconds") or 0.0 for step in steps)
    speed = sum(step.get("here") or 0 for step in steps) / seconds if seconds else None
    return f"{speed:,.0f}" if speed is not None else "", size(steps[-1].get("memory") if steps else None)


def _waits_for(record: metrics.Record) -> str:
    """Say why a run waits in line, from the record that says so."""
    needs, free = size(record["needs"]), size(record["free"])
    beside, behind = (", ".join(record.get(name) or ()) for name in ("beside", "behind"))
    where = f" beside {beside}" if beside else ""
    then = f"; it comes after {behind}" if behind else ""
    return f"needs {needs}; {free} are free{where}{then}; starts by itself"


def called(run: Run) -> str:
    return f"{run.name} v{run.version}"


def number(value: float) -> str:
    """A loss in as many digits as say something."""
    value += 0.0  # a zero has no sign
    return f"{value:.2f}" if value >= 0.095 or value == 0 else f"{value:.2g}"


def share(value: float | None) -> str:
    """A score from 0 to 1 in words; nothing where there is none."""
    return "" if value is None else f"{value:.2f}"


def duration(seconds: float) -> str:
    """A time in words: 12 s, 3 min, 1 h 20 min."""
    if seconds < 99.5:
        return f"{max(seconds, 0):.0f} s" if seconds >= 9.95 else f"{max(seconds, 0):.1f} s".replace(".0 s", " s")
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def size(count: float | None) -> str:
    """A number of bytes in words: 21 MB; nothing where it is not known."""
    return "" if count is None else pretraining_words.size(count)


def one_line(text: str, limit: int = 120) -> str:
    """`text` without line breaks and control characters, and no longer than `limit`."""
    clean = re.sub(r"\s+", " ", "".join(letter if letter.isprintable() else " " for letter in text[: 4 * limit]))
    return clean if len(clean) <= limit and len(text) <= 4 * limit else clean[: limit - 1].rstrip() + "…"


# ---- before training ------------------------------------------------------------------------------------------------


def mapping(report: dict[str, Any]) -> str:
    """Say which column is what, and why."""
    return str(report["why"])


def rows_used(report: dict[str, Any]) -> str:
    """Say how many rows there are and how many can be used."""
    rows, used = report["rows"], report["used"]
    if rows == used:
        return f"{counted(rows, 'row')}, all used"
    left_out = ", ".join(f"{count:,} with {why}" for why, count in report["dropped"].items())
    return f"{counted(rows, 'row')}, {used:,} used; left out: {left_out or f'{rows - used:,}'}"


def split_sizes(report: dict[str, Any], plan: dict[str, Any] | None = None) -> str:
    """Say how many examples are learned from, and what the score is measured on."""
    left_out = plan["tokens"].get("left_out_of_scoring") if plan else None
    without = f", {left_out:,} of them left out as they do not fit" if left_out else ""
    return f"{report['train']:,} to learn from; scoring: {report['validation_note']}{without}"


def lengths(plan: dict[str, Any]) -> str:
    """Say how long the texts are in tokens and how many will be cut."""
    tokens = plan["tokens"]
    longest = plan["max_length"]["choice"]
    # Neither is known of older runs, and of texts that are written.
    row, begins = tokens.get("first_cut_row"), " ".join((tokens.get("first_cut") or "").split())
    who = "it" if tokens["cut"] == 1 else "the first"
    if row and begins:
        which = f" ({who}, {row}, begins {begins!r})"
    elif row:
        which = f" ({who} is {row})"
    else:
        which = f" ({who} begins {begins!r})" if begins else ""
    long = f"{counted(tokens['cut'], 'row')} longer than {longest:,}{which} will be cut"
    cut = long if tokens["cut"] else "none will be cut"
    return (
        f"{tokens['min']:,} to {tokens['max']:,} tokens, median {number_of(tokens['median'])}, "
        f"95 of 100 up to {number_of(tokens['p95'])}; {cut}"
    )


def number_of(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or value >= 10 else f"{value:,.1f}"


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def choices(run: Run) -> list[tuple[str, str, str]]:
    """Return what the engine chose for the run: (setting, value, reason)."""
    plan = run.plan()
    if plan is None:
        return []
    model = plan["model"]
    facts = [f"{model['parameters'] / 1e6:.1f} million parameters"] if model.get("parameters") else []
    facts += [str(model[key]) for key in ("licence", "where") if model.get(key)]
    device = plan["device"]
    named = ", ".join(filter(None, (device["choice"], device.get("name"))))
    found = [("model", str(model["name"]), ", ".join(facts)), ("device", named, device["reason"])]
    for name in (
        "devices",
        "sharding",
        "dtype",
        "tune",
        "proposal",
        "head",
        "rows",
        "memory",
        "tokens_per_step",
        "learning_rate",
        "warmup",
        "epochs",
        "max_length",
        "context",
        "long_texts",
        "launches",
        "compile",
        "time",
        "limit",
    ):
        if name in plan and (name, plan[name]["choice"]) != ("devices", 1):  # an older run decided less
            found.append((name, _plain(plan[name]["choice"]), plan[name]["reason"] or ""))
    batch, steps = plan.get("batch_size"), f"{plan['steps']:,} steps in all"
    if batch is None:  # pretraining counts tokens
        found.append(("steps", f"{plan['steps']:,}", ""))
    elif isinstance(batch, dict):
        found.append(("batch_size", _plain(batch["choice"]), f"{batch['reason']}; {steps}"))
    else:  # an older run
        found.append(("batch_size", _plain(batch), steps))
    return found


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def warnings(run: Run) -> list[str]:
    """Return what a user should know about data and plan, each once."""
    report, plan = run.report(), run.plan()
    found = [*((report or {}).get("warnings") or ()), *((plan or {}).get("notes") or ())]
    return list(dict.fromkeys(str(each) for each in found))


def facts(run: Run) -> list[str]:
    """Return what a user should know of data and plan that is no reason to worry, each once, as sentences."""
    found = [*((run.report() or {}).get("remarks") or ()), *((run.plan() or {}).get("remarks") or ())]
    return list(dict.fromkeys(_sentence(str(each)) for each in found))


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"


def _told(run: Run) -> list[str]:
    return [f"note: {each}" for each in [*facts(run), *warnings(run)]]


def preflight_lines(run: Run) -> list[str]:
    """Return what was found out before training, as text."""
    report, plan = run.report(), run.plan()
    lines = []
    if run.kind is PretrainRecipe:
        lines += [f"{what}: {words}" for what, words in pretraining_words.corpus_lines(report)] if report else []
        lines += [f"{name}: {value}" + (f" ({why})" if why else "") for name, value, why in choices(run)]
        return lines + _told(run)
    if report is not None and writing_words.is_writing(report):
        lines += [
            f"data: {report.get('source') or 'examples'}: {rows_used(report)}",
            f"task: {report['task']} ({report['task_why']})",
            f"columns: {mapping(report)}",
            f"rows: {split_sizes(report, plan)}",
        ]
        if plan is not None:
            lines.append(f"lengths: {lengths(plan)}; {writing_words.targets(plan)}")
            lines += [
                f"example: {one_line(text, 300)} ({tokens:,} tokens)" for text, tokens in writing_words.rendered(plan)
            ]
            lines += [f"{name}: {value}" + (f" ({why})" if why else "") for name, value, why in choices(run)]
        return lines + _told(run)
    if report is not None:
        lines += [
            f"data: {report.get('source') or 'examples'}: {rows_used(report)}",
            f"columns: {mapping(report)}",
            "labels: " + ", ".join(f"{one_line(name, 40)} {count:,}" for name, count in _first(report["labels"], 12)),
            f"rows: {split_sizes(report)}",
        ]
    if plan is not None:
        lines.append(f"lengths: {lengths(plan)}")
        lines += [
            f"example: {one_line(each['text'], 70)} -> {one_line(each['label'], 30)} ({each['tokens']:,} tokens)"
            for each in plan["rendered"]
        ]
        lines += [f"{name}: {value}" + (f" ({why})" if why else "") for name, value, why in choices(run)]
    return lines + _told(run)


def _first(values: dict[str, int], limit: int) -> list[tuple[str, int]]:
    return sorted(values.items(), key=lambda pair: -pair[1])[:limit]


# ---- after training -------------------------------------------------------------------------------------------------


def verdict(scores: dict[str, Any]) -> str:
    """Say in one line what the scores are worth beside the baselines."""
    if writing_words.is_writing(scores):
        return writing_words.verdict(scores)
    validation = scores.get("validation")
    if not validation:
        return scores.get("note") or "No rows were held back, so there is no score: try it before you trust it."
    if validation.get("multi_label"):
        return multi_label_words.verdict(validation, scores.get("baselines") or {}, scores.get("base"))
    rows, ours = validation["rows"], validation["accuracy"]
    on = f"on {counted(rows, 'row')}"
    if rows < 10:
        return f"Only {counted(rows, 'row')} held back: a score of {ours:.2f} says little. More examples would tell."
    baselines = scores.get("baselines") or {}
    majority, words = (baselines.get(name, {}).get("accuracy") for name in ("majority", "tfidf"))
    untrained = _untrained(scores, ours, rows)
    if majority is not None and ours <= majority:
        said = f"No better than always saying the commonest label: {ours:.2f} against {majority:.2f} {on}."
    elif words is None:
        beside = f", always saying the commonest label {majority:.2f}" if majority is not None else ""
        said = f"{ours:.2f} {on}{beside}."
    elif words - ours > _chance(ours, words, rows):
        said = f"TF-IDF does better: {words:.2f} against {ours:.2f} {on}. This GPT is not worth it here."
    elif words >= ours:
        said = f"TF-IDF does as well: {words:.2f} against {ours:.2f} {on}."
    elif ours - words <= _chance(ours, words, rows):
        said = f"Ahead of TF-IDF, {ours:.2f} against {words:.2f}, but {on} that can be chance."
    else:
        said = f"Better than TF-IDF: {ours:.2f} against {words:.2f} {on}."
    return f"{said} {untrained}" if untrained else said


def _chance(one: float, other: float, rows: int) -> float:
    """Return by how much two accuracies on so many rows can differ by chance: two standard errors."""
    middle = (one + other) / 2
    return 2 * math.sqrt(max(middle * (1 - middle), 0.0) / rows)


def _untrained(scores: dict[str, Any], ours: float, rows: int) -> str:
    """Say that the base model does as well as what was made of it, if it does; else nothing."""
    found = [
        (each["accuracy"], how.format_map(each), each["rows"])
        for name, how in (("base", "untrained"), ("few_shot", "shown {shots} examples"))
        if (each := scores.get(name)) and each.get("accuracy") is not None
    ]
    best, how, of = max(found, default=(-1.0, "", rows), key=lambda each: each[0])
    if best < ours:
        return ""
    if of < rows:  # it is scored on some of the rows: by chance they may be easier
        return f"The base model may do as well {how}: {best:.2f} on {counted(of, 'row')}."
    if best - ours > _chance(ours, best, rows):
        return f"The base model does better {how}: {best:.2f}. Training is not worth it here."
    return f"The base model does as well {how}: {best:.2f}."


def transfer_gain(transfer: dict[str, Any]) -> str:
    """Say in one line how much pretraining helped, and how sure that is."""
    seeds = counted(len(transfer["scratch"]), "seed")
    points = 100 * transfer["gain"]
    if transfer["low"] is None:
        return f"Transfer gain: {points:+.1f} points over random weights, with one seed; that can be chance."
    low, high = (max(-100.0, min(100.0, 100 * transfer[end])) for end in ("low", "high"))
    between = f"{low:+.1f} to {high:+.1f}"
    chance = "; that can be chance" if transfer["low"] <= 0 <= transfer["high"] else ""
    return f"Transfer gain: {points:+.1f} points over random weights (95 % interval {between}, {seeds}){chance}."


def mistakes(validation: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return (label, what it was taken for, rows), the most frequent first."""
    labels = validation["labels"]
    wrong = [
        (labels[true], labels[said], count)
        for true, row in enumerate(validation["confusion"])
        for said, count in enumerate(row)
        if true != said and count
    ]
    return sorted(wrong, key=lambda each: -each[2])


def score_rows(run: Run) -> list[tuple[str, float, float | None]]:
    """Return (who, accuracy, macro F1) of the model and of each baseline; empty where nothing was held back."""
    return [(who, found["accuracy"], found["macro_f1"]) for who, found in _scored(run)]


def score_cells(run: Run) -> list[tuple[str, str, str]]:
    """Return `score_rows` in words, each score with its 95 % interval where it is known."""
    return [(who, measured(found, "accuracy"), measured(found, "macro_f1")) for who, found in _scored(run)]


def measured(found: dict[str, Any], name: str) -> str:
    """Return the figure of that `name` in words, with its 95 % interval where it is known."""
    scores = found.get("scores") or {}
    score = scores.get("subset_accuracy" if name == "accuracy" and "accuracy" not in scores else name)
    low, high = (score["low"], score["high"]) if score else (None, None)
    return share(found[name]) + (f" ({low:.2f} to {high:.2f})" if low is not None and low == low else "")


def calibration(validation: dict[str, Any] | None) -> str:
    """Say how far confidence and accuracy are apart; nothing of an older run."""
    score = ((validation or {}).get("scores") or {}).get("calibration_error")
    return "" if score is None else f"calibration error {writing_words.shown(score)} on {score['examples']:,} rows"


def remarks(scores: dict[str, Any]) -> list[str]:
    """Say why a figure of the base model is missing, where that is not plain: facts, no warnings."""
    return [_sentence(each) for each in scores.get("remarks") or ()]


def _scored(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Return (who, {"accuracy", "macro_f1", "scores"}) of the model and of each baseline."""
    scores = run.scores()
    if not scores or not scores.get("validation") or run.kind is PretrainRecipe or writing_words.is_writing(scores):
        return []
    validation = scores["validation"]
    rows: list[tuple[str, dict[str, Any]]] = [(f"{called(run)} ({model_name(run)})", validation)]
    baselines = scores.get("baselines") or {}
    if transfer := scores.get("transfer"):
        seeds = counted(len(transfer["scratch"]), "seed")
        if len(transfer["pretrained"]) > 1:  # the model itself has one of them, and the gain is that of the means
            rows.append((f"the same from {model_name(run)} ({seeds})", _mean(transfer["pretrained"])))
        rows.append((f"same architecture, random weights ({seeds})", _mean(transfer["scratch"])))
    for name, how in (("few_shot", "shown {shots} examples"), ("base", "untrained")):
        if (found := scores.get(name)) and "accuracy" in found:
            who = f"{model_name(run)}, {how.format_map(found)}"
            who += f" (on {found['rows']:,} of the rows)" if found["rows"] < validation["rows"] else ""
            rows.append((who, found))
    return rows + [(words, baselines[name]) for name, words in NAMES.items() if name in baselines]


def _mean(accuracies: Sequence[float]) -> dict[str, Any]:
    return {"accuracy": sum(accuracies) / len(accuracies), "macro_f1": None}


def model_name(run: Run) -> str:
    """The base model as it was asked for; a folder by its last part."""
    request = run.request()
    name = request["recipe"][run.kind.base_setting]
    if name is None:
        return "new"
    return Path(name).name if os.path.isabs(name) else str(name)


def headline(run: Run) -> str:
    """Name the run, its state and, if it has finished, its score and time."""
    parts = [called(run), run.state()]
    scores = run.scores() if parts[1] == "finished" else None
    if scores:
        validation = scores.get("validation")
        if validation and run.kind is PretrainRecipe:
            parts.append(pretraining_words.scored(validation))
        elif validation and writing_words.is_writing(scores):
            parts.append(writing_words.headline(validation))
        elif validation and validation.get("multi_label"):
            parts.append(multi_label_words.headline(validation))
        elif validation:
            parts.append(f"accuracy {validation['accuracy']:.2f} on {counted(validation['rows'], 'held-out row')}")
        if scores.get("seconds") is not None:
            parts.append(f"trained in {duration(scores['seconds'])}")
    return "  ".join(parts)


def trouble(run: Run) -> str:
    """Return why the run has no model and what to type next, or an empty text."""
    try:
        launch.raise_if_bad(run)
    except GptxError as error:
        return str(error)
    if run.state() == "stopped":
        if launch.nothing_saved(run):
            return f"It was stopped before anything was saved. Run the cell `{run.cell}` again to begin anew."
        return f"It was stopped and saved. Run the cell `{run.cell}` again to go on from there."
    return ""


HEAD = ("", "accuracy", "macro F1")


def result_lines(run: Run) -> list[str]:
    """Return how the run ended, as text: scores beside the baselines, or what went wrong."""
    lines = [headline(run)]
    if why := trouble(run):
        return lines + why.splitlines()
    scores = run.scores()
    if scores is None:
        return lines
    if run.kind is PretrainRecipe:
        lines.append(pretraining_words.verdict(scores, run.name))
        for beginning, text in samples.latest(Progress(run).refresh().evaluations).rows:
            lines.append(f"sample: {one_line(beginning, 60)} | {one_line(text, 200)}")
        return lines + _told(run) + [f"note: {note}" for note in _notes(run)]
    lines.append(verdict(scores))
    if writing_words.is_writing(scores):
        head, cells = writing_words.table(scores, model_name(run))
        lines += text_table(head, cells, right=("rows",)).splitlines() if cells else []
        for asked, right, answer, before in writing_words.samples(scores):
            lines.append(f"asked: {one_line(asked, 100)}")
            for who, text in (("right", right), ("tuned", answer), ("base", before)):
                lines += [f"  {who}: {one_line(text, 140)}"] if text else []
    if scores.get("transfer"):
        lines.append(transfer_gain(scores["transfer"]))
    if rows := score_cells(run):
        width = max(len(who) for who, _, _ in rows)
        wide = max(8, *(len(cell) for row in rows for cell in row[1:]))
        lines += [f"{who:{width}}  {accuracy:>{wide}}  {f1:>{wide}}" for who, accuracy, f1 in [HEAD, *rows]]
    if said := calibration(scores.get("validation")):
        lines.append(said)
    lines += remarks(scores)
    if (validation := scores.get("validation") or {}).get("multi_label"):
        lines += multi_label_words.lines(validation)
    return lines + _told(run) + [f"note: {note}" for note in _notes(run)]


def _notes(run: Run) -> list[str]:
    return [str(record["text"]) for record in run.history() if record.get("kind") == "note"]


# ---- all runs -------------------------------------------------------------------------------------------------------


def run_row(run: Run) -> dict[str, Any]:
    """Return a line of the list of runs, ready for JSON: score from 0 to 1 or None, times in seconds."""
    request = run.request()
    report, scores = run.report(), run.scores()
    validation = (scores or {}).get("validation")
    return {
        "name": run.name,
        "version": run.version,
        "state": (state := run.state()),
        "doing": WAITS if state == "running" and line.waits(run, run.attempts()) else state,
        "model": model_name(run),
        "kind": run.kind.kind,
        "rows": report.get("used", report.get("documents")) if report else None,
        "accuracy": validation.get("accuracy") if validation else None,
        "bits_per_byte": validation.get("bits_per_byte") if validation and run.kind is PretrainRecipe else None,
        "score": writing_words.headline(validation).partition(" on ")[0]
        if validation and writing_words.is_writing(scores)
        else None,
        "seconds": (scores or {}).get("seconds"),
        "created": request["created"],
        "bytes": sum(path.lstat().st_size for path in run.folder.rglob("*") if path.is_file()),
        "folder": str(run.folder),
    }


def run_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a line a run, newest first; a run that is removed meanwhile is left out."""
    rows = []
    for run in runs:
        try:
            rows.append(run_row(run))
        except (LookupError, FileNotFoundError):
            continue
    return sorted(rows, key=lambda row: -row["created"])


COLUMNS = ("run", "state", "model", "rows", "score", "trained in", "size", "started")
NUMERIC = ("rows", "score", "trained in", "size")


def run_cells(row: dict[str, Any]) -> list[str]:
    """Return the words for `COLUMNS`."""
    return [
        f"{row['name']} v{row['version']}",
        row["doing"],
        row["model"],
        "" if row["rows"] is None else f"{row['rows']:,}",
        _score(row),
        "" if row["seconds"] is None else duration(row["seconds"]),
        size(row["bytes"]),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"])),
    ]


def _score(row: dict[str, Any]) -> str:
    if row.get("score") is not None:
        return str(row["score"])
    if row["bits_per_byte"] is not None:
        return f"{row['bits_per_byte']:.3f} bits/byte"
    return "" if row["accuracy"] is None else f"{row['accuracy']:.2f}"


NO_RUNS = "There are no runs yet. A cell `%%gpt_finetune NAME` makes one."


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[str] = ()) -> str:
    """Lay out cells in columns, those named in `right` to the right."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    aligned = [">" if name in right else "<" for name in head]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def runs_text(rows: Sequence[dict[str, Any]]) -> str:
    return text_table(COLUMNS, [run_cells(row) for row in rows], NUMERIC) if rows else NO_RUNS


def device_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (what, words) of the device that a run would use (see launch of the worker with --device)."""
    memory = ""
    if facts.get("memory_total"):
        free = f", {size(facts['memory_free'])} free" if facts.get("memory_free") is not None else ""
        memory = size(facts["memory_total"]) + free
    trains, answers = f"{facts['dtype']}: {facts['dtype_reason']}", facts.get("answers", "")
    found = [
        ("device", f"{facts['device']}: {facts['reason']}"),
        ("given to this kernel", facts.get("kernel") or ""),
        ("name", facts.get("name") or ""),
        ("arithmetic", trains),
        ("of answers", answers if answers != trains else ""),
        ("matrix products", f"{facts['matrix_peak'] / 1e9:,.0f} GFLOP/s, measured" if facts.get("matrix_peak") else ""),
        ("memory", memory),
        ("memory moves", f"{facts['copy_speed'] / 1e9:,.0f} GB/s, measured" if facts.get("copy_speed") else ""),
        ("processor cores", str(facts.get("cores") or "")),
        ("torch", str(facts.get("torch") or "")),
    ]
    return [(what, words) for what, words in found if words]


# ---- a line on a terminal -------------------------------------------------------------------------------------------


class StatusLine:
    """Shows a run's progress in one line that overwrites itself; where that cannot be, a line every few seconds."""

    EVERY = 5.0  # seconds

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        # A notebook's stream is no terminal and still understands a carriage return.
        self._overwrites = self._stream.isatty() or type(self._stream).__name__ == "OutStream"
        self._progress: Progress | None = None
        self._last = ""
        self._spoke = -math.inf

    def __call__(self, run: Run) -> None:
        if self._progress is None or self._progress.run != run:
            self._progress = Progress(run)
        now = time.monotonic()
        if now - self._spoke < (0.25 if self._overwrites else self.EVERY):
            return
        self._show(self._progress.refresh().line(), now)

    def texts(self, done: int, total: int) -> None:
        """Show how many texts of a prediction are done."""
        now = time.monotonic()
        if done < total and now - self._spoke >= (0.25 if self._overwrites else self.EVERY):
            self._show(f"{done:,} of {total:,} texts", now)

    def _show(self, line: str, now: float) -> None:
        if line == self._last:
            return
        if self._overwrites:
            self._stream.write("\r" + line + " " * max(0, len(self._last) - len(line)))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._last, self._spoke = line, now

    def close(self) -> None:
        """Remove the line, so that what comes next stands alone."""
        if self._overwrites and self._last:
            self._stream.write("\r" + " " * len(self._last) + "\r")
            self._stream.flush()
        self._last = ""
