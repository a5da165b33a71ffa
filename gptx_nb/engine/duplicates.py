"""Find documents that equal, or nearly equal, one that was seen before.

Equal: the same letters, whatever their case and the blanks between them. Nearly equal: of the stretches of WINDOW bytes
in both, at least THRESHOLD stand in each (Jaccard similarity), as estimated by MinHash (Broder 1997) with one
permutation (Li, Owen & Zhang 2012) that is rotated into empty bins (Shrivastava & Li 2014); candidates are found by
bands of the signature (locality-sensitive hashing). What is kept of a document is about a kilobyte.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

WINDOW = 24  # bytes
BINS, BANDS = 64, 8
THRESHOLD = 0.8
SAMPLED = 8  # of longer texts one stretch in so many is looked at, chosen by its hash
LONG = 16_384  # bytes
MOST = 2_000_000  # bytes of a document that are looked at

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
    """The documents that were seen; `near`: whether nearly equal ones are looked for as well."""

    def __init__(self, near: bool) -> None:
        self._near = near
        self._equal: set[bytes] = set()
        self._bands: list[dict[int, int]] = [{} for _ in range(BANDS)]
        self._signatures: list[np.ndarray] = []

    def why(self, document: Letters) -> str | None:
        """Say what it is to those that were seen, "duplicates" or "near duplicates"; else None, and it is seen."""
        letters, digest = document.beginning(), document.digest()
        if digest in self._equal:
            return "duplicates"
        self._equal.add(digest)
        if not self._near or len(letters) < 2 * WINDOW:
            return None
        own = signature(letters)
        keys = [hash(part.tobytes()) for part in own.reshape(BANDS, -1)]
        candidates = {each[key] for each, key in zip(self._bands, keys, strict=True) if key in each}
        if any(np.mean(self._signatures[number] == own) >= THRESHOLD for number in candidates):
            return "near duplicates"
        for each, key in zip(self._bands, keys, strict=True):
            each.setdefault(key, len(self._signatures))
        self._signatures.append(own)
        return None


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
