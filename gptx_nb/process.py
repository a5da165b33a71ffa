"""Evidence of processes: which one it is, and whether it still runs. Starts and ends none. Standard library only."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """Evidence of one process: enough to tell it from every other, after reboots and reuse of its number too."""

    host: str
    boot: str
    pid: int
    started: str  # clock ticks since boot on Linux, `ps` start time elsewhere

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(platform.node(), boot_id(), pid, start_time(pid) or "")

    def alive(self) -> bool | None:
        """Say whether the process still is; None if it ran on another host, of which nothing is known here."""
        if self.host != platform.node():
            return None
        if self.boot != boot_id():
            return False
        return start_time(self.pid) == self.started

    def to_json(self) -> dict[str, Any]:
        return {"host": self.host, "boot": self.boot, "pid": self.pid, "started": self.started}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Process:
        return cls(value["host"], value["boot"], int(value["pid"]), value["started"])


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
