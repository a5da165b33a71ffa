"""Starts the worker of one attempt and writes down how it ended. Knows nothing of training. Standard library only.

    python -m gptx_nb.supervisor RUN_DIR ATTEMPT

It runs in a session of its own, away from kernel, terminal and server, so that it lives on when they end. Of several
that want the same attempt, the one whose claim is linked first goes on; the others leave without a word. The worker's
output goes straight to the run's log file: nobody has to read it for the worker to go on, and a supervisor that is
killed takes nothing down. While the worker lives, the time of its process file is renewed, for readers elsewhere.

An attempt that memory ran out for is followed by another one, which takes less (worker/levers.py), while that is
possible and RETRIES are left. A worker that was killed had no last words; that it was for want of memory is taken for
true only where there is evidence: the system counted such a kill at that time, or the worker had at some time held
nearly all the memory there is for it. Any other SIGKILL is somebody's will, and nothing is started again.
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
from gptx_nb.main_memory import out_of_memory_kills, total_and_free
from gptx_nb.process import BEAT, Process
from gptx_nb.run_files import RunFiles

CLAIMED, FAILED, LOST = 0, 1, 3  # exit status: this one has the attempt; it could not be claimed; another one has it

RETRIES = 4  # each pulls more levers than the one before; the last one pulls all there are
NEAR = 0.9  # share of all memory: who holds that much and is killed was killed for it

REASONS = {0: "finished", 2: "mistake", 3: "stopped"}  # by the worker's exit status; any other: failed


def claim(run: RunFiles, attempt: int) -> bool:
    """Take `attempt` for this process; False where another one has it."""
    return files.create_exclusive(
        run.claim_file(attempt), json.dumps(Process.of(os.getpid()).to_json()).encode("utf-8")
    )


def worker_command(run: RunFiles, attempt: int) -> list[str]:
    # -P: the folder it is started in is no place to import from.
    return [sys.executable, "-P", "-m", "gptx_nb.worker", str(run.folder), str(attempt)]


def supervise(run: RunFiles, attempt: int, command: Sequence[str], retries: int = 0) -> dict[str, Any]:
    """Run `command` as the worker of a claimed attempt until it ends; write and return its outcome.

    {"reason", "exit_status" or None, "signal" or None, "message" or None, "out_of_memory_kills": number or None,
    "peak": most bytes that the worker held or None, "again": whether the next attempt was claimed, to take less memory,
    "ended": seconds since 1970, for show}
    """
    kills = _Kills()
    outcome: dict[str, Any] = {"reason": "failed", "exit_status": None, "signal": None, "message": None, "again": False}
    try:
        worker = _start(run, attempt, command)
    except OSError as error:
        outcome["message"] = f"the worker could not be started: {error}"
    else:
        ended = threading.Event()
        threading.Thread(target=_beat, args=(run.process_file(attempt), ended, kills), daemon=True).start()
        status, outcome["peak"] = _wait_for(worker)
        ended.set()
        outcome["out_of_memory_kills"] = killed = kills.since()
        if status < 0:
            outcome["signal"] = -status
            starved = -status == signal.SIGKILL and (killed or _held_nearly_all(outcome["peak"]))
            outcome["reason"] = "out of memory" if starved else "killed"
        else:
            outcome["exit_status"] = status
            outcome["reason"] = REASONS.get(status, "failed")
    outcome["ended"] = time.time()
    # Not one that was removed in the meantime. Its folder may be there again: a checkpoint was being written into it.
    if run.claim_file(attempt).exists():
        # Claimed before this attempt has an outcome: else who looks in between would see a run that has failed.
        outcome["again"] = retries > 0 and _can_take_less(run, attempt, outcome) and _claim_next(run, attempt)
        files.write_json(run.outcome_file(attempt), outcome)
    return outcome


def _can_take_less(run: RunFiles, attempt: int, outcome: dict[str, Any]) -> bool:
    words = files.read_json(run.end_file(attempt)) or {}
    levers = files.read_json(run.levers_file(attempt)) or {}  # none: it had not come to what they are for
    reason = words.get("reason", outcome["reason"])
    return reason == "out of memory" and bool(levers.get("left")) and not run.stop_file.exists()


def _claim_next(run: RunFiles, attempt: int) -> bool:
    if settings := files.read_json(run.settings_file(attempt)):
        files.write_json(run.settings_file(attempt + 1), settings)
    return claim(run, attempt + 1)


def _wait_for(worker: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Return the exit status, or the negative number of a signal, and the most bytes of memory that were held."""
    if not hasattr(os, "wait4"):
        return worker.wait(), None
    _, status, usage = os.wait4(worker.pid, 0)
    worker.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for it again
    return worker.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _held_nearly_all(peak: int | None) -> bool:
    total, _ = total_and_free()
    return peak is not None and total is not None and peak >= NEAR * total


class _Kills:
    """Counts the processes that were killed for want of memory in the last beats.

    Not since the beginning: a run may train for days, and what somebody else's process died of then proves nothing.
    """

    def __init__(self) -> None:
        self._before = self._now = out_of_memory_kills()

    def look(self) -> None:
        self._before, self._now = self._now, out_of_memory_kills()

    def since(self) -> int | None:
        """Return their number since the last look but one: the last one may have been after the worker's death."""
        now = out_of_memory_kills()
        return None if now is None or self._before is None else now - self._before


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


def _beat(evidence: Path, ended: threading.Event, kills: _Kills) -> None:
    while not ended.wait(BEAT):
        kills.look()
        with contextlib.suppress(OSError):  # the run was removed, or its disk does not answer now: the next one may do
            files.touch(evidence)


def main(arguments: Sequence[str], command: Sequence[str] | None = None) -> int:
    """Claim the attempt and, in a process that nobody is the parent of, supervise it. Returns once that is settled.

    The same process supervises the attempts that follow it because memory ran out.

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
    retries = RETRIES
    while mine and supervise(run, attempt, command or worker_command(run, attempt), retries)["again"]:
        attempt, retries = attempt + 1, retries - 1
    return CLAIMED if mine else LOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
