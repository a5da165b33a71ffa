"""Main memory: how much of it there is for a process, how much is free, and whom the system has killed for want of it.

Asks the kernel and its control groups (version 2 and 1). Standard library only: the supervisor needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def total_and_free(machine: Path = Path("/")) -> tuple[int | None, int | None]:
    """Return total and available main memory: the machine's, or what control groups allow where that is less."""
    try:
        sizes = _sizes(machine / "proc/meminfo")
    except OSError:
        return None, None
    total, free = sizes["MemTotal:"] * 1024, sizes["MemAvailable:"] * 1024
    for limit, used in _control_groups(machine):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _control_groups(machine: Path) -> Iterator[tuple[int, int]]:
    """Give limit and use of each control group (v2 or v1) that this process is in; pages of files do not count as used.

    A group is bound by all that are above it. In a container the path may lead outside of what can be seen here: then
    the groups that can be seen are looked at.
    """
    try:
        lines = (machine / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux
    mount = machine / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = mount / "unified" if (mount / "unified").is_dir() else mount
            limit_file, used_file, file_pages = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = mount / "memory"
            limit_file, used_file, file_pages = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limit = (folder / limit_file).read_text(encoding="ascii").strip()
                used = int((folder / used_file).read_text(encoding="ascii"))
                used -= _sizes(folder / "memory.stat").get(file_pages, 0)
            except OSError:
                continue  # the root of v2 has no limit
            if limit != "max":
                yield int(limit), used


def _sizes(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    words = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    return {name: int(number) for name, number, *_ in words}


def out_of_memory_kills() -> int | None:
    """Return how often the system has killed a process of this control group for want of memory; None if not known."""
    for path in _memory_events():
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _memory_events() -> list[Path]:
    """Return the files that count such kills: of this control group (version 2, then 1), then of the whole machine."""
    places = []
    root = Path("/sys/fs/cgroup")
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            # Inside a container the path is often one of the host's; the container's own group is the root then.
            places += [root / group.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            places += [
                root / "memory" / group.lstrip("/") / "memory.oom_control",
                root / "memory" / "memory.oom_control",
            ]
    return [*places, Path("/proc/vmstat")]
