"""Evaluations: any run or base model, scored on any table by a short-lived process of the engine.

The process reads the table, loads the model, scores it, writes result.json and ends, so that its memory is free again.
"""

from __future__ import annotations

import html
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptx_nb import files, inference, launch, progress, sources, writing_words
from gptx_nb.errors import BY_NAME, RunFailed, RunNotFound
from gptx_nb.predictions import _CELL, _FRAME, _printable, _short
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run

LEARNT = ("text", "label", "columns", "label_separator")  # settings of a run that say how its table is read
SHOWN = "shown"  # folder of the rows that a base model is shown
SHOWN_LABELS = 20
MOST = 50  # answers that are written to be scored


@dataclass(frozen=True)
class Evaluation:
    """How good `model` is at `task` on a table of `rows` rows.

    `scores` by name: {"value", "low", "high" (a 95 % interval), "examples", "how", "best", "more_is_better"}.
    `samples`: {"asked", "right", "answer"} of a few rows. Where `labels` are given, `per_label` has {"label",
    "precision", "recall", "f1" (scores like those above), "support" (rows)} of each, and row i, column j of `confusion`
    counts texts of i that were called j. Where a text has one label, `reliability` has {"low", "high", "answers",
    "confidence" (its mean), "accuracy"} of the answers whose probability lies between: a model that knows itself is
    right as often as it is sure. `why` says which columns were read.
    """

    model: str
    task: str
    rows: int
    scores: dict[str, dict[str, Any]]
    why: str = ""
    shots: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    per_label: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reliability: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> float:
        """Return the value of a score."""
        return float(self.scores[name]["value"])

    def _table(self) -> list[tuple[str, str, str, str]]:
        return [
            (writing_words.called(name), writing_words.shown(each), f"{each['examples']:,}", str(each["how"]))
            for name, each in self.scores.items()
        ]

    def _labels(self) -> list[tuple[str, ...]]:
        """Return a row for each of the most frequent labels: its name, precision, recall, F1 and number of rows."""
        places = sorted(range(len(self.per_label)), key=lambda at: -self.per_label[at]["support"])[:SHOWN_LABELS]
        figures = ("precision", "recall", "f1")
        return [
            (each["label"], *(writing_words.shown(each[name]) for name in figures), f"{each['support']:,}")
            for each in (self.per_label[at] for at in sorted(places))
        ]

    def _mistakes(self) -> list[tuple[str, ...]]:
        """Return the most frequent mistakes: the label, what it was taken for, how often."""
        worst = progress.mistakes({"labels": self.labels, "confusion": self.confusion})[:SHOWN_LABELS]
        return [(label, taken, f"{count:,}") for label, taken, count in worst]

    def _reliability(self) -> list[tuple[str, ...]]:
        """Return a row for each range of probability: how sure the answers in it are, how often right, how many."""
        return [
            (f"{each['low']:.2f} to {each['high']:.2f}", f"{each['confidence']:.2f}", f"{each['accuracy']:.2f}",
             f"{each['answers']:,}")
            for each in self.reliability
        ]  # fmt: skip

    def _head(self) -> str:
        shots = f", {self.shots} shots" if self.shots else ""
        return f"{self.model}: {self.task}{shots}, {self.rows:,} rows. {self.why}"

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: a row a score, with its interval and number of examples."""
        import pandas

        names = ("value", "low", "high", "examples", "how")
        return pandas.DataFrame({name: {score: each[name] for score, each in self.scores.items()} for name in names})

    def __repr__(self) -> str:
        rows = self._table()
        width = max((len(row[0]) for row in rows), default=0)
        lines = [self._head(), *(f"{name:{width}}  {value}  {count} examples" for name, value, count, _ in rows)]
        lines += [
            f"label {_short(_printable(label), 40)}: precision {precision}, recall {recall}, F1 {f1}, {count} rows"
            for label, precision, recall, f1, count in self._labels()
        ]
        for each in self.samples:
            lines.append(f"asked: {_short(_printable(each['asked']), 100)}")
            lines += [f"  {who}: {_short(_printable(each[who]), 140)}" for who in ("right", "answer") if each[who]]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
            def cells(row: tuple[str, ...], tag: str) -> str:
                return "".join(f'<{tag} style="{_CELL}">{html.escape(_short(cell, 240))}</{tag}>' for cell in row)

            lines = [f"<tr>{cells(head, 'th')}</tr>", *(f"<tr>{cells(row, 'td')}</tr>" for row in rows)]
            return f'<table style="border-collapse:collapse;margin:0 0 8px;color:inherit">{"".join(lines)}</table>'

        parts = [f"<div>{html.escape(self._head())}</div>"]
        parts.append(table(("score", "value", "examples", "how"), [*self._table()]))
        if self.samples:
            shown = [tuple(_printable(each[key]) for key in ("asked", "right", "answer")) for each in self.samples]
            parts.append(table(("asked", "right", "answer"), shown))
        if by_label := self._labels():
            of = f" ({len(by_label)} of {len(self.per_label):,})" if len(by_label) < len(self.per_label) else ""
            parts.append(table((f"label{of}", "precision", "recall", "F1", "rows"), by_label))
        if self.confusion and len(self.labels) > SHOWN_LABELS:
            parts.append(table(("label", "most often taken for", "rows"), self._mistakes()))
        elif self.confusion:
            lines = [(label, *map(str, row)) for label, row in zip(self.labels, self.confusion, strict=True)]
            parts.append(table(("label ↓ taken for →", *self.labels), lines))
        if self.reliability:
            parts.append(table(("probability of the answer", "mean", "share right", "rows"), self._reliability()))
        parts += [f'<div style="opacity:.75">{html.escape(note)}</div>' for note in self.notes]
        return f'<div style="{_FRAME}">{"".join(parts)}</div>'


def evaluate(
    who: Run | str,
    recipe: Recipe,
    data: object | None,
    *,
    task: str | None = None,
    shots: int = 0,
    shown: Sequence[Mapping[str, Any]] = (),
    most: int = MOST,
    how: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score a run, or the base model that `who` names, on a table.

    `recipe` names table and columns (`data`, `columns`, `text`, `label`, `label_separator`, `split`, `allow_code`);
    `data` is the table where it is an object. A base model is shown `shots` rows of the table, drawn by the recipe's
    seed and not scored, or the rows `shown`; of the others `most` are answered. Raises UsageError for a mistake,
    RunFailed where the process broke off.
    """
    if isinstance(who, Run) and not (who.model / "config.json").is_file():
        raise RunNotFound(f"run {who.name}/{who.version} has no model yet: it is {who.state()}")
    with tempfile.TemporaryDirectory(prefix="gptx_nb-eval-") as scratch:
        folder = Path(scratch)
        source = sources.stage(recipe, data, 0.0, folder)["train"]
        assert source is not None
        examples = None
        if shown:
            (folder / SHOWN).mkdir()
            named = recipe.model_copy(update={"data": "shots"})
            examples = sources.stage(named, list(shown), 0.0, folder / SHOWN)["train"]
        request = {
            "folder": str(who.model) if isinstance(who, Run) else None,
            "base": None if isinstance(who, Run) else who,
            "writes": not isinstance(who, Run) or inference.writes(who),
            **{name: getattr(who.recipe() if isinstance(who, Run) else recipe, name) for name in ("device", "dtype")},
            "learnt": {name: getattr(who.recipe(), name, None) for name in LEARNT} if isinstance(who, Run) else {},
            "recipe": recipe.model_dump(mode="json"),
            "source": source.to_json(),
            "task": task,
            "shots": shots,
            "shown": examples.to_json() if examples is not None else None,
            "most": most,
            "how": dict(how or {}),
        }
        files.write_json(folder / "request.json", request)
        told = _ask(folder)
    label = f"{who.name}/{who.version}" if isinstance(who, Run) else who
    return Evaluation(label, **told)


def _ask(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "gptx_nb.worker", "--evaluate", str(folder)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=launch.environment(),
        start_new_session=True,
    )
    try:
        said = child.communicate()[0].decode("utf-8", errors="replace")
    except BaseException:  # an interrupt
        child.kill()
        child.wait()
        raise
    try:
        told: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        tail = "\n".join(said.strip().splitlines()[-6:])
        raise RunFailed(f"the scoring broke off (exit status {child.returncode}):\n{tail}") from None
    if "error" in told:
        raise BY_NAME.get(told["error"], RunFailed)(told["message"])
    return told
