"""Whose turn it is: runs of this computer that do not fit a device together train one after another.

Every run that has a plan holds a place, a file in `<home>/line/`: who it is, what it will take of which device at its
peak, and whether it trains or waits. A place counts while its process lives, so one that is killed holds up nobody.
Places are taken under flock(2), which the system lifts from a process that dies: of two runs that come at the same
moment, the second counts what the first is going to take. Those who wait go in the order in which they came, and a
newcomer waits behind them although it would fit: else small runs could keep a large one waiting for ever. Whether there
is room is asked anew when a run that was waited for has ended; what other programs give back counts from then on.

Measures no free memory and knows no torch: what is free comes from the engine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptx_nb import files, metrics
from gptx_nb.errors import UsageError
from gptx_nb.process import Process, resident
from gptx_nb.run_files import RunFiles

LIMIT = "GPTX_MEMORY_LIMIT"  # bytes that all runs together may take of a device; unset: all there is


@dataclass(frozen=True)
class Place:
    """One attempt's place. `peaks`: bytes by device, all that it holds when it takes most; `beside`: whom it waits for.

    `process` is the one that holds the memory, or started all that do.
    """

    run: str  # its folder
    attempt: int
    number: int  # the order in which they came
    process: Process
    peaks: dict[str, int]
    trains: bool
    beside: list[str] = field(default_factory=list)  # keys

    @property
    def key(self) -> str:
        return _key(Path(self.run), self.attempt)

    @property
    def name(self) -> str:
        return "/".join(Path(self.run).parts[-2:])

    def held(self, device: str) -> int:
        """Return the bytes that it holds on `device` now; 0 where that cannot be told."""
        if device == "cpu":
            return resident(self.process.pid)
        run = RunFiles(Path(self.run))
        devices = [each for each in self.peaks if each != "cpu"]
        rank = devices.index(device)  # of several devices each has a process of its own
        records, _ = metrics.read(run.of_rank(run.metrics_file(self.attempt), rank))
        return next((int(each["memory"]) for each in reversed(records) if each.get("memory") is not None), 0)


@dataclass(frozen=True)
class Demand:
    """What an attempt takes of one device, in bytes: it holds `held`, `to_come` follows, and `free` are free now."""

    held: int
    to_come: int
    free: int

    @property
    def peak(self) -> int:
        return self.held + self.to_come


@dataclass(frozen=True)
class Verdict:
    """What comes of a demand. "waits": it would fit alone; "too large": not even then, so that waiting is no use.

    `needs` and `free` are bytes of the device that is shortest, as they are for a run that holds nothing yet.
    """

    answer: Literal["trains", "waits", "too large"]
    needs: int = 0
    free: int = 0
    beside: Sequence[Place] = ()  # who trains
    behind: Sequence[Place] = ()  # who came before and waits


def decide(
    demands: Mapping[str, Demand],
    others: Sequence[Place],
    number: int,
    *,
    limit: int | None = None,
    held: Callable[[Place, str], int] = Place.held,
) -> Verdict:
    """Say whether a run with `demands` (by device) and place `number` may train beside `others`."""
    near = [each for each in others if set(each.peaks) & set(demands)]
    training = [each for each in near if each.trains]
    ahead = sorted((each for each in near if not each.trains and each.number < number), key=lambda each: each.number)
    fits = alone = True
    shortest: tuple[int, int, int] | None = None  # bytes left over, needed, free
    for device, demand in demands.items():
        there = {each.key: held(each, device) for each in near if device in each.peaks}
        space = demand.free
        if limit is not None:
            space = min(space, limit - demand.held - sum(there.values()))
        here = [each for each in training if device in each.peaks]
        left = space - sum(max(0, each.peaks[device] - there[each.key]) for each in here)
        fits &= demand.to_come <= left
        alone &= demand.to_come <= space + sum(there[each.key] for each in here)
        if shortest is None or left - demand.to_come < shortest[0]:
            shortest = left - demand.to_come, demand.peak, max(0, left + demand.held)
    needs, free = shortest[1:] if shortest else (0, 0)
    if not alone:
        return Verdict("too large", needs, free, training)
    # With nobody to wait for, waiting would never end.
    if not ahead and (fits or not training):
        return Verdict("trains", needs, free, training)
    return Verdict("waits", needs, free, training, ahead)


class Line:
    """All places below one home, seen by one attempt of `run`."""

    def __init__(self, run: RunFiles, attempt: int) -> None:
        self._run, self._attempt = run.folder, attempt
        self.folder = run.folder.parents[2] / "line"
        self._file = self.folder / f"{_key(run.folder, attempt)}.json"

    def take(self, demands: Mapping[str, Demand], process: Process) -> Verdict:
        """Decide whether the attempt trains now, and keep its place, in front or in line.

        An attempt without demands is not bound to any device, and trains. Raises UsageError for a wrong limit.
        """
        most = limit()
        with self._locked():
            there = self._alive(remove=True)
            mine = there.pop(self._file.stem, None)
            number = mine.number if mine else 1 + max((each.number for each in there.values()), default=0)
            others = list(there.values())
            verdict = decide(demands, others, number, limit=most)
            waits = verdict.answer == "waits"
            place = Place(
                run=str(self._run),
                attempt=self._attempt,
                number=number,
                process=process,
                peaks={device: demand.peak for device, demand in demands.items()},
                trains=not waits,
                beside=[each.key for each in (*verdict.beside, *verdict.behind)] if waits else [],
            )
            files.write_json(self._file, asdict(place))
        return verdict

    def mine(self) -> Place | None:
        """Return the attempt's own place, if it has taken one and its process lives."""
        return self._alive().get(self._file.stem)

    def its_turn(self) -> bool:
        """Say whether it is time to ask anew: one that it waited for is gone, and nobody is ahead."""
        there = self._alive()
        mine = there.get(self._file.stem)
        if mine is None or mine.trains:
            return True
        ahead = any(
            not each.trains and each.number < mine.number and set(each.peaks) & set(mine.peaks)
            for each in there.values()
        )
        return not ahead and not set(mine.beside) <= set(there)

    def leave(self) -> None:
        """Give the place up. One that is never given up ends with its process."""
        files.remove_file(self._file)

    def _alive(self, *, remove: bool = False) -> dict[str, Place]:
        """Return the places that count, by key. With `remove`, which wants the lock, those of the dead are removed."""
        found = {}
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            place = _read(path)
            if place is None:
                continue
            alive = place.process.alive()
            if alive:
                found[place.key] = place
            elif alive is False and remove:  # one elsewhere has a line of its own
                files.remove_file(path)
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # not on Windows

        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "ab") as handle:
            # A disk without locks still has the places; two that come at the same moment may then both train.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def waits(run: RunFiles, attempt: int) -> bool:
    """Say whether that attempt waits in line."""
    place = Line(run, attempt).mine()
    return place is not None and not place.trains


def limit() -> int | None:
    """Return what `$GPTX_MEMORY_LIMIT` allows all runs together on a device, in bytes; None where it is not set."""
    given = os.environ.get(LIMIT, "").strip()
    if not given:
        return None
    try:
        found = int(float(given))
    except (ValueError, OverflowError):
        found = 0
    if found <= 0:
        raise UsageError(
            f"{LIMIT}: {given[:40]!r} is no number of bytes. For 8 GB type `%env {LIMIT}=8e9`, or unset it to use all "
            "the memory there is"
        )
    return found


def _key(folder: Path, attempt: int) -> str:
    return f"{folder.parent.name}-{folder.name}-{attempt}"


def _read(path: Path) -> Place | None:
    facts: dict[str, Any] | None = files.read_json(path)
    return None if facts is None else Place(**{**facts, "process": Process.from_json(facts["process"])})
