"""Token shards: the tokens of many documents one after another, in files that are mapped into memory and never loaded.

    tokens-000.bin, ...   little-endian uint16 where the vocabulary fits, else uint32; at most SHARD bytes each
    manifest.json         sizes and SHA-256 of the files, numbers of documents, tokens and bytes of text. Written last

Every document is opened by the end-of-text token, and one more closes the last: whatever stands between two of them is
one document. Text never becomes that token, so no list of beginnings is needed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptx_nb import files
from gptx_nb.errors import DataError
from gptx_nb.pretraining import LEAST_CONTEXT

MANIFEST = "manifest.json"
SHARD = 64 * 2**20  # bytes of a file


def token_type(vocabulary: int) -> np.dtype[Any]:
    """Return the type that a token of so large a vocabulary is stored in."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def write(folder: Path, pieces: Iterable[tuple[bool, Sequence[int], int]], *, end: int, vocabulary: int) -> None:
    """Write documents to `folder`, which is there whole or not at all.

    A piece: whether it begins a document, its tokens, its bytes of text. `end` is the end-of-text token, which no
    document holds.
    """

    def fill(beside: Path) -> None:
        kind = token_type(vocabulary)
        parts: list[dict[str, Any]] = []
        counts = {"documents": -1, "tokens": 0, "text_bytes": 0}
        rows = itertools.chain(pieces, [(True, (), 0)])  # what opens no document closes the last
        opening = np.array([end], dtype=kind).tobytes()
        for number in itertools.count():
            path = beside / f"tokens-{number:03}.bin"
            digest, size = hashlib.sha256(), 0
            with path.open("wb") as file:
                for begins, tokens, text_bytes in rows:
                    content = (opening if begins else b"") + np.asarray(tokens, dtype=kind).tobytes()
                    file.write(content)
                    digest.update(content)
                    size += len(content)
                    counts["documents"] += begins
                    counts["tokens"] += begins + len(tokens)
                    counts["text_bytes"] += text_bytes
                    if size >= SHARD:
                        break
            if not size:
                path.unlink()
                break
            parts.append({"name": path.name, "bytes": size, "sha256": digest.hexdigest()})
        facts = {**counts, "end": end, "vocabulary": vocabulary, "type": kind.str, "files": parts}
        files.write_json(beside / MANIFEST, facts)

    files.write_folder(folder, fill)


class Shards:
    """What `write` has left in `folder`, as one long row of tokens that is closed to a ring."""

    def __init__(self, folder: Path) -> None:
        facts = files.read_json(folder / MANIFEST)
        if facts is None:
            raise DataError(f"{folder} holds no token shards (there is no {MANIFEST})")
        self.folder = folder
        self.tokens: int = facts["tokens"]
        self.documents: int = facts["documents"]
        self.text_bytes: int = facts["text_bytes"]
        self.end: int = facts["end"]
        self.vocabulary: int = facts["vocabulary"]
        self._parts = []
        for part in facts["files"]:
            path = folder / part["name"]
            if path.stat().st_size != part["bytes"]:
                raise DataError(f"{path} has {path.stat().st_size:,} bytes, and {part['bytes']:,} were written")
            self._parts.append(np.memmap(path, dtype=facts["type"], mode="r"))
        self._ends = np.cumsum([len(part) for part in self._parts])

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `count` tokens from place `start` on, int64; behind the last comes the first again."""
        found = []
        while count > 0:
            start %= self.tokens
            part = int(np.searchsorted(self._ends, start, side="right"))
            offset = start - (int(self._ends[part - 1]) if part else 0)
            piece = np.asarray(self._parts[part][offset : offset + count], dtype=np.int64)
            found.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(found)

    def rows(self, length: int) -> int:
        """Return how many rows of `length` tokens an epoch has: every token stands in one, a few in two."""
        return -(-self.tokens // length)

    def require_rows(self, length: int, dropped: Mapping[str, int]) -> None:
        """Raise DataError where there is less text than two rows of `length` tokens.

        `dropped`: how many documents were left out, by why; part of the explanation.
        """
        if self.tokens < 2 * length:
            without = ", ".join(f"{count:,} {why}" for why, count in dropped.items() if count)
            raise DataError(
                f"the texts have {self.tokens:,} tokens"
                + (f" once documents are left out ({without})" if without else "")
                + f", fewer than two rows of {length:,}. Give more text"
                + (f", or type `context: {self.tokens // 2}`" if self.tokens >= 2 * LEAST_CONTEXT else "")
            )
