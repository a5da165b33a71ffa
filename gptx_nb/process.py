"""Evidence of processes: which one it is, and whether it still runs. Starts and ends none. Standard library only.

A process of this computer is looked up. Of one elsewhere (another computer that shares the disk, a container that is
gone) only its files can tell: they change while it lives.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEAT = 10.0  # seconds between signs of life
SILENCE = 45.0  # seconds without one after which a process elsewhere counts as ended


@dataclass(frozen=True)
class Process:
    """Evidence of one process: enough to tell it from every other, after reboots and reuse of its number too."""

    host: str
    boot: str
    pid: int
    started: str  # clock ticks since boot on Linux, `ps` start time elsewhere
    machine: str = ""  # /etc/machine-id, where there is one
    space: str = ""  # PID namespace, where there is one: containers number their processes each for itself

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(platform.node(), boot_id(), pid, start_time(pid) or "", machine_id(), pid_space())

    def alive(self) -> bool | None:
        """Say whether the process still is; None if it ran elsewhere, where it cannot be looked up."""
        if self.boot == boot_id():
            # The host's name may change while it runs (a laptop's follows its network); a container's is its own.
            here = self.space == pid_space() or self.host == platform.node()
            return start_time(self.pid) == self.started if here else None
        # A machine id alone proves nothing: containers of one image, and clones of one disk, have the same.
        return False if (self.host, self.machine) == (platform.node(), machine_id()) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Process:
        return cls(**value)


def machine_id() -> str:
    """Return what names this installation of an operating system, or "" where nothing does."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_space() -> str:
    """Return what names the set of processes that this one sees, or "" where there is only one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def boot_id() -> str:
    """Return what names this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        output = subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=False).stdout
        return re.sub(r"\D+", "-", output).strip("-")


def start_time(pid: int) -> str | None:
    """Return when process `pid` started, or None if there is none or only its dead body (a zombie)."""
    if Path("/proc/self/stat").exists():
        try:
            # Fields after the name, which may hold spaces and brackets: 1st is the state, 20th the start in ticks.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    status, _, started = listed.stdout.strip().partition(" ")
    return None if not status or status.startswith("Z") else started.strip()


def resident(pid: int) -> int:
    """Return the bytes of main memory that process `pid` holds, on Linux with all that it has started; 0: unknown."""
    if not Path("/proc/self/statm").exists():
        listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return 1024 * int(listed.stdout.strip() or 0)
    children: dict[int, list[int]] = {}
    for number in (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
            children.setdefault(int(fields.split()[1]), []).append(number)
    pages, todo = 0, [pid]
    while todo:
        each = todo.pop()
        todo += children.get(each, [])
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{each}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# ---- elsewhere ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    marks: tuple[tuple[int, int] | None, ...]  # size and time of each file, by the clock of whoever wrote it
    since: float  # by this process's own clock, which is never compared with another's
    changed: bool  # since the first look


_looks: dict[tuple[Path, ...], _Look] = {}


def signs_of_life(*written: Path) -> bool | None:
    """Say whether somebody writes to one of the files: no for SILENCE seconds of none; None until that can be told."""
    now = time.monotonic()
    marks = tuple(_mark(path) for path in written)
    before = _looks.get(written)
    if before is None or before.marks != marks:
        _looks[written] = _Look(marks, now, changed=before is not None)
        return None if before is None else True
    if now - before.since >= SILENCE:
        return False
    return True if before.changed else None


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        # Opened, because a network's disk may answer from memory for a minute to who only asks for a file's time.
        with open(path, "rb") as handle:
            found = os.fstat(handle.fileno())
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
