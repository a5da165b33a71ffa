"""SHA-256 of large files that are asked for whenever a cell is run: a base model's weights, tables, texts.

`<home>/digests.json` remembers them by path: {path: {"mark": [size, mtime, ctime, inode, device], "sha256": ...}}. Any
write to a file, and any other file in its place, changes the mark: times are in nanoseconds, and nobody can set ctime.
Small files are read each time. What is remembered may be lost, or not written at all: then the file is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from gptx_nb import files
from gptx_nb.run_files import home

# What `from_pretrained` reads of a model's folder: configuration, weights, tokenizer, chat template.
MODEL_ENDINGS = (".json", ".safetensors", ".txt", ".model", ".jinja")
LARGE = 1_000_000  # bytes; less is read in no time
MOST = 256  # files that are remembered, those asked for last
SETTLED = 2.0  # seconds; a file that was written to just now could be again within one tick of its clock


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits. Raises OSError where it cannot be read."""
    found = path.stat()
    if found.st_size < LARGE:
        return files.sha256(path)
    name, mark = str(path.resolve()), _mark(found)
    known = _read().get(name)
    if known and known["mark"] == mark:
        return str(known["sha256"])
    settled = time.time() - found.st_ctime > SETTLED
    digest = files.sha256(path)
    if settled and _mark(path.stat()) == mark:  # nobody wrote to it meanwhile
        _remember(name, {"mark": mark, "sha256": digest})
    return digest


def of_model(path: Path) -> str:
    """Return a SHA-256 over the names and bytes of a model: what counts of a folder, or one file.

    What is not there counts as nothing. Raises OSError for a file that cannot be read.
    """
    whole = hashlib.sha256()
    inside = sorted(each for each in path.iterdir() if each.name.endswith(MODEL_ENDINGS)) if path.is_dir() else [path]
    for each in inside:
        if each.is_file() and not each.name.startswith("."):
            whole.update(f"{each.name}\0{sha256(each)}\n".encode())
    return whole.hexdigest()


def _mark(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _file() -> Path:
    return home() / "digests.json"


def _read() -> dict[str, Any]:
    try:
        kept = files.read_json(_file())
    except (OSError, json.JSONDecodeError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _remember(name: str, entry: dict[str, Any]) -> None:
    """Write `entry` down. Where two do so at once, one may be lost, and is found out again."""
    kept = _read()
    kept.pop(name, None)
    kept[name] = entry
    with contextlib.suppress(OSError):  # a full or read-only disk is told where something has to be written
        files.write_json(_file(), dict(list(kept.items())[-MOST:]))
