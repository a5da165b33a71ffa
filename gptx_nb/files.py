"""All file operations that must survive a crash. Nothing else in the package writes, renames or removes run files.

A file that is read by others is written beside its place, flushed to disk, renamed, and its directory flushed: readers
see the old file or the new one, never a part. Appends are one `write` of whole lines.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How file systems say that they have no hard links (FAT, many network and cloud disks), or none to that place.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def flush_directory(directory: Path) -> None:
    """Make a rename or a new name in `directory` survive a power cut (no-op where directories cannot be opened)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(folder, name), "rb") as handle:
                os.fsync(handle.fileno())
        flush_directory(Path(folder))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` as one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(beside, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def replace(beside: Path, path: Path) -> None:
    """Flush the finished file `beside` and put it in the place of `path`, as one step."""
    with open(beside, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(beside, path)
    flush_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that every parser accepts: a number that is not finite becomes null."""
    write_text(path, json.dumps(finite(value), ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any | None:
    """Return what `path` holds, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def finite(value: Any) -> Any:
    """Return `value` with every NaN and infinity in it replaced by None (bare `NaN` is not JSON)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` as one step: `fill` writes into a folder beside it, which is flushed and renamed.

    Raises FileExistsError where `path` is there already: a folder made this way is never overwritten.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir()
    try:
        fill(beside)
        _flush_tree(beside)
        try:
            os.rename(beside, path)
        except OSError as error:
            if path.exists():  # a folder that is not empty came in between
                raise FileExistsError(path) from error
            raise
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_directory(path.parent)


def move_folder(path: Path, target: Path) -> None:
    """Give the folder `path` another place on the same disk, as one step.

    Raises FileExistsError where `target` is there already, FileNotFoundError where `path` is gone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(target)
    try:
        os.rename(path, target)
    except OSError as error:
        if target.exists():  # a folder that is not empty came in between
            raise FileExistsError(target) from error
        raise
    flush_directory(target.parent)
    flush_directory(path.parent)


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create `path` with `content`, or return False where it exists.

    Made with link(2), which is atomic on local file systems and on NFS, and never shows a half-written file. Where
    there are no links, the name is taken first: a reader may then find the file empty for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(beside, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                return False
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    flush_directory(path.parent)
    return True


def link(source: Path, target: Path) -> None:
    """Give a file that is not written to any more a second name, or, where there are no hard links, copy it."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)


def leave_mark(path: Path) -> None:
    """Make the empty file `path`. Makes no folder: FileNotFoundError where the one that it belongs into is gone."""
    path.touch()
    flush_directory(path.parent)


def touch(path: Path) -> None:
    """Renew the time of the file `path`, which needs no room on the disk."""
    os.utime(path)


def remove_file(path: Path) -> None:
    """Remove a file; readers keep what they have opened."""
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder: renamed out of sight first, so that no reader finds half of it."""
    gone = path.with_name(f".{path.name}.gone.{uuid.uuid4().hex[:8]}")
    try:
        os.rename(path, gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def disk_is_full(error: BaseException) -> bool:
    """Say whether `error` means that there is no room to write, or no more for this user."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left on device" in str(error)  # safetensors has an error class of its own for everything


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
