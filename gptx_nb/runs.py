"""Runs on disk: `Run` knows every file name of one run, `RunStore` finds runs. State is derived from evidence.

A run is `<home>/runs/<name>/<version>/`; it may take several attempts (a crash and a resume are two).

    request.json           what was asked: the recipe, the source of the examples, fingerprints, code version
    recipe.yaml            the same, complete and resolved by the worker: columns, labels, learning rate, ...
    plan.json              what the engine decided before training, each choice with its reason
    source/                rows that came from memory (a DataFrame, inline examples), as they were handed over
    data/                  the snapshot that the run learns from: train.parquet, validation.parquet, report.json
    claims/1, claims/2     who may write, one per attempt: host, boot id, pid and start time of the supervisor
    settings-2.json        settings of a later attempt that do not decide the model, such as `device`
    process-1.json         the same of the worker: evidence, not state. Its time is renewed every 10 s while that lives
    metrics-1.jsonl        one writer per file; where several processes (ranks) train together, that of rank 0
    metrics-1.rank-1.jsonl what rank 1 did; end-1.rank-1.json: its last words
    log-1.txt              stdout and stderr of the worker
    levers-1.json          what the attempt does to take less memory; the next one goes on with it (worker/levers.py)
    end-1.json             the worker's last words: how it ended, as far as it knew
    outcome-1.json         the supervisor's: exit status, signal, out-of-memory evidence; whether it began attempt 2
    checkpoints/000120/    exact training state
    best/000100.safetensors
                           the weights that scored best so far, by step. Gone, like checkpoints/, once it has finished
    asked/000100/          the model as it was then, where somebody has asked a run that still trains; goes with them
    frozen.f32             while it trains: what the frozen part gives for every row, where memory is too small for it
    model/                 a plain Hugging Face folder, made as one step
    scores.json            validation scores and baselines
    transfer.json          accuracies by seed from the base model and from random weights, as far as they are known
    stop                   a request from a view

Reading never waits for a writer, and nothing here imports more than the standard library and core.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from gptx_nb import files, metrics
from gptx_nb.errors import RunNotFound, nearest
from gptx_nb.pretraining import KINDS, AnyRecipe
from gptx_nb.process import Process, boot_id, signs_of_life, start_time
from gptx_nb.recipe import Recipe, check_name, make_recipe, parse_yaml
from gptx_nb.run_files import RunFiles, home
from gptx_nb.sources import Source

__all__ = ["ACTIVE", "Process", "Run", "RunStore", "State", "boot_id", "home", "start_time"]

State = Literal["starting", "running", "stopping", "finished", "stopped", "interrupted", "failed", "elsewhere"]
ACTIVE: tuple[State, ...] = ("starting", "running", "stopping", "elsewhere")


class Run(RunFiles):
    """One version of a named run: a directory. Its file names come from RunFiles."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = folder.parent.name
        self.version = int(folder.name)

    def __repr__(self) -> str:
        return f"<Run {self.name} version {self.version}: {self.state()}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    # ---- what was asked, planned and found --------------------------------------------------------------------------

    def request(self) -> dict[str, Any]:
        """Return what was written when the run was made.

        {"kind": "finetune" or "pretrain", "recipe": {...}, "source": {"train": {...}, "validation": {...} or None},
        "base": fingerprint of a base model on this disk or None, "digest": ..., "code": version,
        "created": seconds since 1970, for show}
        """
        request: dict[str, Any] | None = files.read_json(self.request_file)
        if request is None:
            raise RunNotFound(f"run {self.name} version {self.version} has no request.json in {self.folder}")
        return request

    @property
    def kind(self) -> type[AnyRecipe]:
        """Fine-tuning or pretraining: the class of the run's recipe."""
        return KINDS[self.request().get("kind", Recipe.kind)]  # an older run has none

    def recipe(self) -> AnyRecipe:
        """Return the resolved recipe, or the recipe as asked while the worker has not resolved it.

        What does not decide the model is as the latest attempt was asked to have it.
        """
        kind, where = self.kind, str(self.recipe_file)
        settings = files.read_json(self.settings_file(self.attempts())) or {}
        try:
            text = self.recipe_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return make_recipe({**self.request()["recipe"], **settings}, str(self.request_file), kind)
        return make_recipe({**parse_yaml(text, where, kind), **settings}, where, kind)

    @property
    def cell(self) -> str:
        """What begins the cell that makes this run: `%%gpt_finetune reviews`."""
        return f"%%{self.kind.magic} {self.name}"

    def sources(self) -> dict[str, Source | None]:
        """Return where the examples come from: {"train": ..., "validation": ... or None}."""
        asked = self.request()["source"]
        return {name: Source.from_json(value) if value else None for name, value in asked.items()}

    def plan(self) -> dict[str, Any] | None:
        plan: dict[str, Any] | None = files.read_json(self.plan_file)
        return plan

    def report(self) -> dict[str, Any] | None:
        report: dict[str, Any] | None = files.read_json(self.report_file)
        return report

    def scores(self) -> dict[str, Any] | None:
        scores: dict[str, Any] | None = files.read_json(self.scores_file)
        return scores

    # ---- evidence and state -----------------------------------------------------------------------------------------

    def attempts(self) -> int:
        """Return the number of attempts that were claimed."""
        attempt = 0
        while self.claim_file(attempt + 1).exists():
            attempt += 1
        return attempt

    def processes(self, attempt: int) -> dict[str, Process]:
        """Return the claimant and, once it has started, the worker of `attempt`: {"supervisor": ..., "worker": ...}."""
        found = {}
        with contextlib.suppress(ValueError):  # a claim may be empty for a moment: see files.create_exclusive
            if claim := files.read_json(self.claim_file(attempt)):
                found["supervisor"] = Process.from_json(claim)
        if evidence := files.read_json(self.process_file(attempt)):
            found["worker"] = Process.from_json(evidence)
        return found

    def alive(self, attempt: int) -> bool | None:
        """Say whether a process of `attempt` lives; None while nothing is known of one that runs elsewhere."""
        alive = [process.alive() for process in self.processes(attempt).values()]
        if any(alive):
            return True
        if alive and None not in alive:
            return False
        return signs_of_life(self.claim_file(attempt), self.process_file(attempt), self.metrics_file(attempt))

    def outcome(self, attempt: int | None = None) -> dict[str, Any] | None:
        """Return how an attempt, by default the latest one, ended, or None while it goes on.

        {"reason": "finished" | "stopped" | "mistake" | "failed" | "out of memory" | "killed" | "lost",
        "error": class name or None, "message": text or None, "exit_status": int or None, "signal": int or None}.
        The worker's last words say why; the supervisor's record says how. "lost": there is neither, and no process.
        """
        attempt = attempt or self.attempts()
        if attempt == 0:
            return None
        words: dict[str, Any] = files.read_json(self.end_file(attempt)) or {}
        outcome = files.read_json(self.outcome_file(attempt))
        if outcome is None:
            if self.alive(attempt) is not False:
                return None
            # Both may have ended, in good order, since the first look.
            words = files.read_json(self.end_file(attempt)) or {}
            outcome = files.read_json(self.outcome_file(attempt))
            outcome = outcome or {"reason": "lost", "exit_status": None, "signal": None}
        return {"error": None, "message": None, **outcome, **words}

    def state(self) -> State:
        """Derive the state from claims, processes and outcome."""
        attempt = self.attempts()
        if attempt == 0:
            return "starting"
        outcome = self.outcome(attempt)
        while attempt > 1 and outcome is not None and outcome["reason"] == "mistake":
            attempt -= 1  # an attempt that was refused has changed nothing
            outcome = self.outcome(attempt)
        if outcome is None:
            alive = [process.alive() for process in self.processes(attempt).values()]
            if any(each is None for each in alive):
                return "elsewhere"
            if self.stop_file.exists():
                return "stopping"
            return "running" if self.process_file(attempt).exists() else "starting"
        if outcome["reason"] in ("finished", "stopped"):
            return "finished" if outcome["reason"] == "finished" else "stopped"
        return "interrupted" if outcome["reason"] in ("killed", "lost") else "failed"

    @property
    def active(self) -> bool:
        return self.state() in ACTIVE

    # ---- metrics and log --------------------------------------------------------------------------------------------

    def history(self) -> list[metrics.Record]:
        """Return all records of all attempts as one line of time: a resumed attempt replaces what it repeats."""
        merged: list[metrics.Record] = []
        for attempt in range(1, self.attempts() + 1):
            records, _ = metrics.read(self.metrics_file(attempt))
            for record in records:
                if record.get("kind") == "start":
                    merged = [old for old in merged if old.get("step", 0) <= record["step"]]
                merged.append(record)
        return merged

    def log_tail(self, lines: int = 12) -> str:
        """Return the last `lines` lines of the latest attempt's log."""
        try:
            with open(self.log_file(max(1, self.attempts())), "rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - 65_536))
                text = handle.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def plot(self) -> Any:
        """Return loss, score, learning rate, gradient norm and speed by step as a matplotlib Figure."""
        from gptx_nb.views import figures

        return figures.figure(self)

    def raise_if_deleted(self) -> None:
        """Raise RunNotFound where the run is not on the disk any more, or only what a worker has written since."""
        if not self.request_file.is_file():
            raise RunNotFound(
                f"run {self.name} version {self.version} was deleted: it is not in {self.folder} any more"
            )

    def request_stop(self) -> None:
        """Ask the worker to save and stop. It looks at every step. Raises RunNotFound where the run was deleted."""
        self.raise_if_deleted()
        try:
            files.leave_mark(self.stop_file)
        except FileNotFoundError:  # at this moment
            self.raise_if_deleted()
            raise

    def withdraw_stop(self) -> None:
        self.stop_file.unlink(missing_ok=True)


class RunStore:
    """All runs below one home directory."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or home()) / "runs"

    def names(self) -> list[str]:
        """Return the names of runs that have a version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(folder.name for folder in self.root.iterdir() if next(self._folders(folder), None))

    def versions(self, name: str) -> list[Run]:
        """Return the versions of `name`, oldest first."""
        return sorted(
            (Run(folder) for folder in self._folders(self.root / check_name(name))), key=lambda run: run.version
        )

    def runs(self) -> list[Run]:
        """Return every version of every run, by name, then oldest first."""
        return [run for name in self.names() for run in self.versions(name)]

    def latest(self, name: str) -> Run | None:
        return next(reversed(self.versions(name)), None)

    def find(self, name: str, version: int | None = None) -> Run:
        """Return a run by name (its latest version), `name/3`, or name and version; raises RunNotFound."""
        typed = name
        name, _, given = typed.partition("/")
        if given and name.strip(".") == "":
            check_name(typed)  # ../x: a wrong name, rather than a wrong version of a run
        if given:
            if not given.isdigit():
                raise RunNotFound(f"{name}/{given}: a version is a number, as in {name}/1")
            version = int(given)
        versions = self.versions(name)
        if not versions:
            known = self.names()
            advice = f" Runs: {', '.join(known[:12])}." if known else " There are no runs yet."
            raise RunNotFound(
                f"no run is called {name!r}.{nearest(name, known)}{advice} A cell `%%gpt_finetune {name}` makes one."
            )
        if version is None:
            return versions[-1]
        for run in versions:
            if run.version == version:
                return run
        raise RunNotFound(
            f"run {name!r} has no version {version}; it has {', '.join(str(run.version) for run in versions)}"
        )

    def next_version(self, name: str) -> int:
        """Return the number that the next version of `name` gets. Remains of a removed version keep theirs taken."""
        folder = self.root / check_name(name)
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
        return max(taken, default=0) + 1

    def create(self, name: str, fill: Callable[[Path], None], version: int | None = None) -> Run:
        """Make the next version of `name`; `fill(folder)` writes its first files. Complete or not there at all.

        With `version`: make that one, or raise FileExistsError where another cell has made it in the meantime.
        """
        while True:
            folder = self.root / check_name(name) / str(version or self.next_version(name))
            try:
                files.write_folder(folder, fill)
            except FileExistsError:
                if version is not None:
                    raise
                continue
            return Run(folder)

    def remove(self, run: Run) -> None:
        """Remove one version from disk."""
        files.remove_folder(run.folder)
        with contextlib.suppress(OSError):  # it has other versions
            run.folder.parent.rmdir()

    @staticmethod
    def _folders(folder: Path) -> Iterator[Path]:
        if folder.is_dir() and not folder.name.startswith("."):
            for path in folder.iterdir():
                if path.name.isdigit() and (path / "request.json").is_file():
                    yield path
