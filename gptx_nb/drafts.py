"""What was typed into a panel's form and not started yet, kept as a file, so that a restarted kernel loses nothing.

A notebook has one draft. Which notebook a kernel belongs to, Jupyter's server says in JPY_SESSION_NAME; where it does
not, nothing is kept beyond the kernel.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from gptx_nb import files
from gptx_nb.run_files import home

DAYS = 30  # a draft that was not touched for so long goes when another one is kept


def keep(draft: dict[str, Any]) -> None:
    """Keep `draft` as this notebook's, in place of an earlier one."""
    if (path := _path()) is None:
        return
    files.write_json(path, draft)
    for other in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > DAYS * 86_400:
                other.unlink()


def latest() -> dict[str, Any] | None:
    """Return this notebook's draft, if there is one that can be read."""
    path = _path()
    if path is None:
        return None
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict) or not {"kind", "name"} <= found.keys():
        return None
    return dict(found)


def forget() -> None:
    """Put this notebook's draft away: what it said has begun."""
    if path := _path():
        path.unlink(missing_ok=True)


def _path() -> Path | None:
    session = os.environ.get("JPY_SESSION_NAME")
    if not session:
        return None
    return home() / "drafts" / f"{hashlib.sha256(session.encode(errors='surrogateescape')).hexdigest()[:16]}.json"
