"""Which files of a folder hold texts to pretrain on: one answer for fingerprint and reading. Opens none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gptx_nb.errors import DataError

MOST_FILES = 1_000_000  # in a folder of texts; one with more is somebody's disk

PLAIN = (".txt", ".md", ".text")
ROWS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".xz", ".bz2", ".zst")


def kind_of(path: Path) -> str:
    """Return the ending that says what is in a file, without that of its packing; empty where it is none of ours."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in (*PLAIN, *ROWS) else ""


def files_of(folder: Path, shown: str, setting: str, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the text files below `folder` in an order that depends on their names alone; hidden ones are left out.

    `left_out` is told how many others there are, by what they are. Raises DataError: there is none, or a link leads
    nowhere, there are
    more than MOST_FILES.
    """
    found, looked_at = False, 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        looked_at += len(folders) + len(names)
        if looked_at > MOST_FILES:
            raise DataError(
                f"{setting}: {folder} holds more than {MOST_FILES:,} files. Put texts together, as JSON lines, or name "
                "a folder in it"
            )
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place, name)
            if name.lower().startswith("readme") or not kind_of(path):
                if left_out is not None:
                    readme = name.lower().startswith("readme")
                    left_out["README files" if readme else f"{path.suffix.lower() or 'other'} files"] += 1
                continue
            if not path.is_file():
                why = "a link to a file that is not there" if path.is_symlink() else "no file that can be read"
                raise DataError(f"{setting}: {path} is {why}. Mend or remove it, and run the cell again")
            found = True
            yield path
    if not found:
        endings = ", ".join((*PLAIN, *ROWS))
        raise DataError(f"{setting}: {shown} holds no texts: files that end in {endings} (.gz, .xz, .bz2, .zst too)")
