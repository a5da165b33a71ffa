"""Runs a program that a model has written, with its tests, where it can do no harm; says whether the tests passed.

Off until the user allows it. Each program runs in a fresh Python (isolated, no packages, no environment) in a folder of
its own that is removed afterwards, under limits of time, memory, file size and output, without network and without new
processes (threads are fine). What binds it there is in `confinement`; `Outcome.held` tells what held on this machine.

What is guaranteed: on Linux 5.13 or newer, on x86-64 and ARM64, the kernel keeps the program from the network, from
other processes, and from every file but Python's own (to read) and those of its folder. It may fill its folder with
many files, up to the limit each, until its time is over. Elsewhere there are limits only, and an audit hook that
refuses the same in Python, which a program that sets out to get around it can do: do not run such programs there.

What is not: a program shares a process with its tests. Early exits, changed built-ins, names that stand for built-ins
and messages in its output do not count as a pass; but one that returns objects which equal everything, or that attacks
this very protocol from within, can forge one. Scores are for measuring models, not for judging adversaries.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptx_nb.errors import UsageError

Verdict = Literal["passed", "failed", "error", "exited", "timeout", "memory", "crashed"]

START_SECONDS = 60.0  # until the process is confined: a loaded machine may take its time
CLOCK = 3  # times the processor time; other processes may have the processor meanwhile
_LARGEST_RESULT = 100_000  # bytes of messages
_CHILD = Path(__file__).with_name("confinement.py")


@dataclass(frozen=True)
class Limits:
    """`seconds` of processor time (by the clock three times as many), `memory`, `file` and `output` in bytes."""

    seconds: float = 5.0
    memory: int = 512 * 2**20
    file: int = 2**20
    output: int = 10_000


@dataclass(frozen=True)
class Program:
    """A program and the tests that it has to pass, both Python.

    The tests see the program's names; where one would stand for a built-in (`sum`), the built-in is seen, unless it is
    in `entry_points`: what the tests are about.
    """

    code: str
    tests: str
    entry_points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    `verdict`: "passed"; "failed" in the tests; "error" before them; "exited" without finishing them; "timeout";
    "memory"; "crashed" by a signal. `detail` is the error's text, `output` the first of what was printed, `seconds` by
    the clock. `held` tells for "time", "memory", "files", "file size", "network" and "processes" what guards them.
    """

    verdict: Verdict
    detail: str = ""
    output: str = ""
    seconds: float = 0.0
    held: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run(program: Program, *, allow_code: bool, limits: Limits | None = None) -> Outcome:
    """Run one program with its tests. Raises UsageError unless the user has allowed that."""
    _refuse_unless(allow_code)
    limits = limits or Limits()
    folder = tempfile.mkdtemp(prefix="gptx_nb-sandbox-")
    try:
        return _Session(program, limits, os.path.realpath(folder)).outcome()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_all(
    programs: Sequence[Program], *, allow_code: bool, limits: Limits | None = None, at_once: int = 2
) -> list[Outcome]:
    """Run every program, `at_once` of them at a time, and return the outcomes in their order."""
    _refuse_unless(allow_code)
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(lambda each: run(each, allow_code=allow_code, limits=limits), programs))


def _refuse_unless(allow_code: bool) -> None:
    if not allow_code:
        raise UsageError(
            "this score runs programs that the model has written, and that is off until you allow it. They run in a "
            "sandbox: no network, no files but in a folder of their own, limits of time and memory. Type "
            "`allow_code: true` to allow it"
        )


class _Session:
    """One process and the three pipes to it: control, result, and what it prints."""

    def __init__(self, program: Program, limits: Limits, folder: str) -> None:
        self._program, self._limits, self._folder = program, limits, folder
        self._token = secrets.token_hex(16)
        self._to_send = bytearray()
        self._result, self._output = bytearray(), bytearray()
        self._lines: list[str] = []
        self._held: dict[str, str] = {}

    def outcome(self) -> Outcome:
        """Start it, talk to it, and end it whatever happens."""
        control, self._control = os.pipe()
        self._results, result = os.pipe()
        self._printed, printed = os.pipe()
        theirs, ours = (control, result, printed), (self._control, self._results, self._printed)
        try:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD), str(control), str(result)],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    cwd=self._folder,
                    env={"HOME": self._folder, "TMPDIR": self._folder},
                    pass_fds=(control, result),
                    start_new_session=True,
                )
            finally:
                for each in theirs:
                    os.close(each)
            begun = time.monotonic()
            try:
                ended = self._talk()
                if ended:
                    _await_end(process.pid)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: a zombie's group
                    os.killpg(process.pid, signal.SIGKILL)  # before wait, as long as its number is surely its own
                status = process.wait()
            return self._judge(ended, status, time.monotonic() - begun)
        finally:
            for each in ours:
                os.close(each)

    def _talk(self) -> bool:
        """Send and receive until the process closes its side; False if it takes too long."""
        for descriptor in (self._control, self._results, self._printed):
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK)
        self._send(
            json.dumps({"seconds": self._limits.seconds, "memory": self._limits.memory, "file": self._limits.file})
        )
        self._send(self._program.code)
        deadline = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            selector.register(self._printed, selectors.EVENT_READ)
            while True:
                self._flush()
                wait = deadline - time.monotonic()
                if wait <= 0:
                    return False
                ready = selector.select(min(wait, 0.02) if self._to_send else wait)
                for key, _ in ready:
                    data = _read(key.fd)
                    if key.fd == self._printed:
                        self._output += data[: self._limits.output - len(self._output)]
                        if not data:
                            selector.unregister(key.fd)
                    elif not data:
                        return True
                    elif self._hear(data):
                        deadline = time.monotonic() + CLOCK * self._limits.seconds

    def _hear(self, data: bytes) -> bool:
        """Take in messages and answer them; return True when the process says that it is confined."""
        if len(self._result) < _LARGEST_RESULT:
            self._result += data
        confined = False
        *whole, rest = self._result.split(b"\n")
        self._result = bytearray(rest)
        for raw in whole:
            line = raw.decode("utf-8", "replace")
            kind, _, value = line.partition(" ")
            if kind == "held" and not self._held:
                self._held = json.loads(value)
                confined = True
            elif kind == "ready" and "ready" not in self._lines:
                self._send(" ".join(self._program.entry_points))
                self._send(self._program.tests)
                self._send(self._token)
            self._lines.append(line)
        return confined

    def _send(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self._to_send += len(data).to_bytes(8, "big") + data

    def _flush(self) -> None:
        while self._to_send:
            try:
                del self._to_send[: os.write(self._control, self._to_send)]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._to_send.clear()

    def _judge(self, ended: bool, status: int, seconds: float) -> Outcome:
        def told(verdict: Verdict, detail: str = "") -> Outcome:
            return Outcome(verdict, detail, self._output.decode("utf-8", "replace"), seconds, self._held)

        failure = next((line for line in self._lines if line.startswith("failed ")), None)
        if not ended or (status in (-signal.SIGXCPU, -signal.SIGKILL) and not failure and not self._passed()):
            return told("timeout", f"more than {self._limits.seconds:g} seconds")
        if self._passed() and status == 0:
            return told("passed")
        if failure:
            _, where, detail = failure.split(" ", 2)
            if detail.startswith("MemoryError"):
                return told("memory", f"more than {self._limits.memory // 2**20} MiB")
            if detail.startswith("SystemExit"):
                return told("exited", detail)
            return told("failed" if where == "<tests>" else "error", detail)
        if status < 0:
            return told("crashed", f"signal {-status} ({signal.Signals(-status).name})")
        return told("exited", f"exit status {status} before its tests had ended")

    def _passed(self) -> bool:
        return self._lines[-2:] == ["ready", f"passed {self._token}"]


def _await_end(process: int) -> None:
    """Let a process that has closed its side end by itself, for a moment; it is left to be waited for."""
    for _ in range(100):
        if not hasattr(os, "waitid") or os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            return
        time.sleep(0.01)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except BlockingIOError:
        return b""
