"""A run's metrics file: append a record, read on from a byte offset.

Every line is a CRC-32 of the JSON in eight hexadecimal digits, a space, the JSON, a newline. One process writes a file;
any number read it. A reader stops at the last whole, valid line and leaves the rest for its next read, so a torn last
line (a crash, or a write under way) is never shown and never skipped.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from gptx_nb.files import finite

Record = dict[str, Any]


def encode(record: Record) -> bytes:
    """Return the line for `record`; numbers that are not finite become null."""
    body = json.dumps(finite(record), ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Record | None:
    """Return the record in `line`, or None if the line is torn or harmed."""
    body = line[9:].removesuffix(b"\n")
    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(body):
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None


class MetricsWriter:
    """Appends records to one file. Each `append` is one write(2) of a whole line, visible to readers at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: Record) -> None:
        line = encode(record)
        written = os.write(self._descriptor, line)
        if written != len(line):  # a full disk writes a part: say so instead of going on with a torn file
            raise OSError(f"only {written} of {len(line)} bytes of a metrics line could be written: is the disk full?")

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def read(path: Path, offset: int = 0) -> tuple[list[Record], int]:
    """Return the valid records in `path` from byte `offset` on, and the offset to read on from next time."""
    try:
        with open(path, "rb") as handle:
            handle.seek(offset)
            content = handle.read()
    except FileNotFoundError:
        return [], offset
    records = []
    for line in content.splitlines(keepends=True):
        record = decode(line)
        if record is None:
            break
        records.append(record)
        offset += len(line)
    return records, offset
