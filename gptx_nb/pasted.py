"""Rows that were pasted into a form, kept as a file, so that a cell can name them and nothing is lost."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

from gptx_nb import files
from gptx_nb.errors import DataError
from gptx_nb.run_files import home

ADVICE = "Copy the cells of a sheet together with its header line, such as `text,label`"


def keep(text: str) -> Path:
    """Write pasted rows below the home, as they are, and return the file; the same rows are the same file.

    Tabs make it a .tsv, as a copied part of a sheet has, else it is a .csv. Raises DataError for what is no table.
    """
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    if not text.strip():
        raise DataError(f"data: nothing was pasted. {ADVICE}")
    header = text.lstrip("\r\n").splitlines()[0]
    separator, ending = ("\t", ".tsv") if "\t" in header else (",", ".csv")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise DataError(f"data: the pasted rows cannot be read: {error}. {ADVICE}") from None
    if len(rows) < 2:
        raise DataError(f"data: {len(rows)} line was pasted, and a table has a header and rows. {ADVICE}")
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("data: the pasted rows hold half a character (a lone surrogate). Copy them again") from None
    path = home() / "pasted" / f"{hashlib.sha256(content).hexdigest()[:12]}{ending}"
    if not path.exists():
        files.write_bytes(path, content)
    return path
