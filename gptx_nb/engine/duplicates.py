"""Find documents that equal, or nearly equal, one that was seen before.

Equal: the same letters, whatever their case and the blanks between them. Nearly equal: of the stretches of WINDOW bytes
in both, at least THRESHOLD stand in each (Jaccard similarity), as estimated by MinHash (Broder 1997) with one
permutation (Li, Owen & Zhang 2012) that is rotated into empty bins (Shrivastava & Li 2014); candidates are found by
bands of the signature (locality-sensitive hashing). Of a signature's values one byte each is kept (Li & König 2010):
two that differ are taken for equal once in 256 times, which is less than the estimate is sure of. So a document takes
150 to 300 bytes, and 16 to 32 where only equal ones are looked for or MOST_NEAR have been kept.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

WINDOW = 24  # bytes
BINS, BANDS = 64, 8
THRESHOLD = 0.8
SAMPLED = 8  # of longer texts one stretch in so many is looked at, chosen by its hash
LONG = 16_384  # bytes
MOST = 2_000_000  # bytes of a document that are looked at
MOST_NEAR = 2**22  # documents that a nearly equal one is looked for among: half a gigabyte to a whole one
FIRST_ROWS = 2**10  # that there is room for at the beginning

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


class Letters:
    """What is looked at of a document, which may come in pieces: its letters, whatever their case and the blanks."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self._beginning = bytearray()

    def add(self, text: str) -> None:
        letters = "".join(text.casefold().split()).encode("utf-8")
        self._digest.update(letters)
        self._beginning += letters[: MOST - len(self._beginning)]

    def digest(self) -> bytes:
        return self._digest.digest()

    def beginning(self) -> bytes:
        """The first MOST bytes."""
        return bytes(self._beginning)


class Seen:
    """The documents that were seen; `near`: whether nearly equal ones are looked for as well.

    `complete`: whether they are looked for among all; beyond MOST_NEAR documents, only equal ones are found.
    """

    def __init__(self, near: bool) -> None:
        self._near = near
        self._equal = _Rows(1)
        self._bands = _Rows(BANDS)
        self.complete = True

    def why(self, document: Letters) -> str | None:
        """Say what it is to those that were seen, "duplicates" or "near duplicates"; else None, and it is seen."""
        letters, digest = document.beginning(), np.frombuffer(document.digest(), dtype=np.uint64)
        if self._equal.find(digest):
            return "duplicates"
        self._equal.add(digest)
        if not self._near or len(letters) < 2 * WINDOW:
            return None
        # Not the lowest bits: stretches of long texts are sampled by these, and have the same.
        kept = (signature(letters) >> np.uint32(8)).astype(np.uint8).view(np.uint64)  # a band is one number
        for number in self._bands.find(kept):
            if np.mean(self._bands.row(number).view(np.uint8) == kept.view(np.uint8)) >= THRESHOLD:
                return "near duplicates"
        if self._bands.count < MOST_NEAR:
            self._bands.add(kept)
        else:
            self.complete = False
        return None


class _Rows:
    """Rows of `width` keys (uint64), each found by any of its keys: 16 to 32 bytes a key, in arrays that double.

    Each column has a hash table of its own with open addressing, at most half full, of the rows' numbers plus one.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._keys = np.zeros((FIRST_ROWS, width), dtype=np.uint64)
        self._tables = np.zeros((width, 2 * FIRST_ROWS), dtype=np.uint32)

    @property
    def bytes(self) -> int:
        return self._keys.nbytes + self._tables.nbytes

    def row(self, number: int) -> np.ndarray:
        found: np.ndarray = self._keys[number]
        return found

    def find(self, keys: np.ndarray) -> set[int]:
        """Return the first row with the same key, for each column that has one."""
        found = set()
        for column, key in enumerate(keys.tolist()):
            number = self._tables[column, self._slot(column, key)]
            if number:
                found.add(int(number) - 1)
        return found

    def add(self, keys: np.ndarray) -> None:
        if self.count == len(self._keys):
            self._double()
        self._keys[self.count] = keys
        self.count += 1
        for column, key in enumerate(keys.tolist()):
            slot = self._slot(column, key)
            if not self._tables[column, slot]:  # the first row with that key stays
                self._tables[column, slot] = self.count

    def _slot(self, column: int, key: int) -> int:
        """Return the slot of the first row with `key`, or else the empty one where it would be."""
        table, keys = self._tables[column], self._keys[:, column]
        mask = len(table) - 1
        slot: int = _mixed(key) & mask
        while (number := int(table[slot])) and int(keys[number - 1]) != key:
            slot = (slot + 1) & mask
        return slot

    def _double(self) -> None:
        keys, width = self._keys, self._keys.shape[1]
        self._keys = np.zeros((2 * len(keys), width), dtype=np.uint64)
        self._keys[: len(keys)] = keys
        size = 2 * self._tables.shape[1]
        self._tables = np.zeros((width, size), dtype=np.uint32)
        for table, column in zip(self._tables, keys.T, strict=True):
            _, first = np.unique(column, return_index=True)
            slots = _mixed(column[first]) & np.uint64(size - 1)
            while len(first):  # those that want one slot: the last of them has it, the others look one further
                empty = table[slots] == 0
                table[slots[empty]] = first[empty] + 1
                left = table[slots] != first + 1
                first, slots = first[left], (slots[left] + np.uint64(1)) & np.uint64(size - 1)


def _mixed(key: Any) -> Any:
    """Return the high half of `key`, an int or an array of uint64, times an odd number (Fibonacci hashing)."""
    if isinstance(key, int):
        return ((key * _BASE) & (2**64 - 1)) >> 32
    return (key * np.uint64(_BASE)) >> np.uint64(32)


def signature(letters: bytes) -> np.ndarray:
    """Return the (BINS,) uint32 MinHash signature of at least WINDOW bytes.

    Two are equal in as many places as the sets of their stretches are alike, in the mean.
    """
    values = np.frombuffer(letters[:MOST], dtype=np.uint8).astype(np.uint64) + np.uint64(1)
    count = len(values)
    # A stretch's polynomial is a difference of sums, divided by the power at which it begins. All modulo 2^64.
    sums = np.zeros(count + 1, dtype=np.uint64)
    np.cumsum(values * _powers(_BASE)[:count], out=sums[1:])
    hashes = (sums[WINDOW:] - sums[:-WINDOW]) * _powers(_INVERSE)[: count - WINDOW + 1]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    if count > LONG:
        sampled = hashes[(hashes & np.uint64(SAMPLED - 1)) == 0]
        hashes = sampled if len(sampled) else hashes
    hashes = np.sort(hashes)
    bins = hashes >> np.uint64(64 - 6)  # log2(BINS) high bits choose the bin
    first = np.searchsorted(bins, np.arange(BINS, dtype=np.uint64))
    found = np.full(BINS, np.iinfo(np.uint64).max, dtype=np.uint64)
    there = (first < len(hashes)) & (bins[np.minimum(first, len(hashes) - 1)] == np.arange(BINS))
    found[there] = hashes[first[there]]
    if not there.all():  # an empty bin takes the next full one's, moved by the distance
        full = np.flatnonzero(there)
        following = np.searchsorted(full, np.arange(BINS)) % len(full)
        distance = (full[following] - np.arange(BINS)) % BINS
        found = found[full[following]] + distance.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
    return (found & np.uint64(0xFFFFFFFF)).astype(np.uint32)


@functools.lru_cache(maxsize=2)
def _powers(base: int) -> np.ndarray:
    """Return the first MOST powers of `base`, modulo 2^64."""
    steps = np.full(MOST, base, dtype=np.uint64)
    steps[0] = 1
    return np.cumprod(steps)
