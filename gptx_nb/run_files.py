"""Where runs are kept, and RunFiles: every file name in a run's directory, here and nowhere else. Touches no file.
Standard library only: the supervisor needs it, and stays tiny. What the files hold is told in runs.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """Return where everything is kept: `$GPTX_HOME`, else the user's data directory."""
    if given := os.environ.get("GPTX_HOME"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "gptx_nb"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "gptx_nb"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "gptx_nb"


class RunFiles:
    """The names of one run's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def request_file(self) -> Path:
        return self.folder / "request.json"

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.json"

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def report_file(self) -> Path:
        return self.data / "report.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        return self.folder / "best"

    @property
    def frozen_part(self) -> Path:
        return self.folder / "frozen.f32"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def unfinished(self, step: int) -> Path:
        """The model after `step` steps of a run that still trains."""
        return self.asked / f"{step:06d}"

    @property
    def asked(self) -> Path:
        return self.folder / "asked"

    @property
    def scores_file(self) -> Path:
        return self.folder / "scores.json"

    @property
    def before_file(self) -> Path:
        """What the base model scores on the rows that are held back, before it is tuned."""
        return self.data / "before.json"

    @property
    def transfer_file(self) -> Path:
        return self.folder / "transfer.json"

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"

    def claim_file(self, attempt: int) -> Path:
        return self.folder / "claims" / str(attempt)

    def settings_file(self, attempt: int) -> Path:
        return self.folder / f"settings-{attempt}.json"

    def process_file(self, attempt: int) -> Path:
        return self.folder / f"process-{attempt}.json"

    def metrics_file(self, attempt: int) -> Path:
        return self.folder / f"metrics-{attempt}.jsonl"

    def log_file(self, attempt: int) -> Path:
        return self.folder / f"log-{attempt}.txt"

    def end_file(self, attempt: int) -> Path:
        return self.folder / f"end-{attempt}.json"

    def words_file(self, attempt: int, rank: int) -> Path:
        return self.folder / f"end-{attempt}.rank-{rank}.json"

    def outcome_file(self, attempt: int) -> Path:
        return self.folder / f"outcome-{attempt}.json"

    def levers_file(self, attempt: int) -> Path:
        return self.folder / f"levers-{attempt}.json"

    @staticmethod
    def of_rank(path: Path, rank: int) -> Path:
        """Return what one of several processes writes in the place of `path`: metrics-1.rank-1.jsonl, ..."""
        return path.with_name(f"{path.stem}.rank-{rank}{path.suffix}") if rank else path
