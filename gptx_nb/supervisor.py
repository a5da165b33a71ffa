"""Starts the worker of one attempt and writes down how it ended. Knows nothing of training. Standard library only.

    python -m gptx_nb.supervisor RUN_DIR ATTEMPT

It runs in a session of its own, away from kernel, terminal and server, so that it lives on when they end. Of several
that want the same attempt, the one whose claim is linked first goes on; the others leave without a word. The worker's
output goes straight to the run's log file: nobody has to read it for the worker to go on, and a supervisor that is
killed takes nothing down. While the worker lives, the time of its process file is renewed, for readers elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptx_nb import files
from gptx_nb.process import BEAT, Process
from gptx_nb.run_files import RunFiles

CLAIMED, FAILED, LOST = 0, 1, 3  # exit status: this one has the attempt; it could not be claimed; another one has it

REASONS = {0: "finished", 2: "mistake", 3: "stopped"}  # by the worker's exit status; any other: failed


def claim(run: RunFiles, attempt: int) -> bool:
    """Take `attempt` for this process; False where another one has it."""
    return files.create_exclusive(
        run.claim_file(attempt), json.dumps(Process.of(os.getpid()).to_json()).encode("utf-8")
    )


def worker_command(run: RunFiles, attempt: int) -> list[str]:
    # -P: the folder it is started in is no place to import from.
    return [sys.executable, "-P", "-m", "gptx_nb.worker", str(run.folder), str(attempt)]


def supervise(run: RunFiles, attempt: int, command: Sequence[str]) -> dict[str, Any]:
    """Run `command` as the worker of a claimed attempt until it ends; write and return its outcome.

    {"reason", "exit_status" or None, "signal" or None, "message" or None, "out_of_memory_kills": number or None,
    "ended": seconds since 1970, for show}
    """
    kills = out_of_memory_kills()
    outcome: dict[str, Any] = {"reason": "failed", "exit_status": None, "signal": None, "message": None}
    try:
        worker = _start(run, attempt, command)
    except OSError as error:
        outcome["message"] = f"the worker could not be started: {error}"
    else:
        ended = threading.Event()
        threading.Thread(target=_beat, args=(run.process_file(attempt), ended), daemon=True).start()
        status = worker.wait()
        ended.set()
        outcome["out_of_memory_kills"] = killed = _difference(kills, out_of_memory_kills())
        if status < 0:
            outcome["signal"] = -status
            outcome["reason"] = "out of memory" if -status == signal.SIGKILL and killed else "killed"
        else:
            outcome["exit_status"] = status
            outcome["reason"] = REASONS.get(status, "failed")
    outcome["ended"] = time.time()
    if run.folder.is_dir():  # not one that was removed in the meantime
        files.write_json(run.outcome_file(attempt), outcome)
    return outcome


def _start(run: RunFiles, attempt: int, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with run.log_file(attempt).open("ab") as log:
        # In a group of its own: a signal to the supervisor's group does not reach it.
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
    try:
        files.write_json(run.process_file(attempt), Process.of(worker.pid).to_json())
    except OSError:
        worker.kill()  # without evidence of it, a second one could be started beside it
        worker.wait()
        raise
    return worker


def _beat(evidence: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # the run was removed, or its disk does not answer now: the next one may do
            files.touch(evidence)


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


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def main(arguments: Sequence[str], command: Sequence[str] | None = None) -> int:
    """Claim the attempt and, in a process that nobody is the parent of, supervise it. Returns once that is settled.

    `command` stands in for the worker's own command line. Returns CLAIMED, LOST or FAILED.
    """
    run, attempt = RunFiles(Path(arguments[0])), int(arguments[1])
    for number in (signal.SIGHUP, signal.SIGINT):  # a closed terminal or an interrupt is not meant for a run
        signal.signal(number, signal.SIG_IGN)

    # The child outlives its parent, so it is nobody's child: the kernel has nothing to wait for, and leaves no zombie.
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            return {b"claimed": CLAIMED, b"lost": LOST}.get(pipe.read(), FAILED)
    os.close(reader)
    mine = claim(run, attempt)
    os.write(writer, b"claimed" if mine else b"lost")
    os.close(writer)
    if mine:
        supervise(run, attempt, command or worker_command(run, attempt))
    return CLAIMED if mine else LOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
