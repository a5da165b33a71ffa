"""Where runs go that a view deletes: a folder of the same home, from which they can be taken back for a while.

    <home>/trash/0123456789abcdef/reviews/3/     one deletion: the run's folder as it was

Knows nothing of what a run is made of. `RunStore.remove`, which is for ever, is not used here.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from pathlib import Path

from gptx_nb import files
from gptx_nb.errors import RunNotFound
from gptx_nb.run_files import home
from gptx_nb.runs import Run, RunStore

KEPT = 7 * 86_400.0  # seconds
_ID = re.compile(r"[0-9a-f]{16}")


class Trash:
    """Deleted runs of one home."""

    def __init__(self, root: Path | None = None) -> None:
        self._home = root or home()
        self.folder = self._home / "trash"

    def put(self, run: Run) -> str:
        """Move `run` here and return the id that takes it back. Its name and version are free then."""
        identity = uuid.uuid4().hex[:16]
        files.move_folder(run.folder, self.folder / identity / run.name / str(run.version))
        with contextlib.suppress(OSError):  # it has other versions
            run.folder.parent.rmdir()
        return identity

    def restore(self, identity: str) -> Run:
        """Move a run back and return it, as the next version where its own number is taken. Raises RunNotFound."""
        folder = self._find(identity)
        store = RunStore(self._home)
        name, version = folder.parent.name, int(folder.name)
        while True:
            target = store.root / name / str(version)
            try:
                files.move_folder(folder, target)
            except FileExistsError:
                version = store.next_version(name)
                continue
            files.remove_folder(self.folder / identity)
            return Run(target)

    def empty(self, older_than: float = KEPT) -> None:
        """Remove for ever what was deleted more than `older_than` seconds ago."""
        with contextlib.suppress(FileNotFoundError):
            for folder in self.folder.iterdir():
                if _ID.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > older_than:
                    files.remove_folder(folder)

    def _find(self, identity: str) -> Path:
        if _ID.fullmatch(identity):
            for path in (self.folder / identity).glob("*/*"):
                if path.name.isdecimal() and path.is_dir() and not path.is_symlink():
                    return path
        raise RunNotFound("it is no longer in the trash")
