"""The inside of the sandbox: gives up what a program written by a model must not have, then runs it and its tests.

Started by `sandbox` as `python -I -S confinement.py CONTROL RESULT`, both file descriptors; it needs the standard
library only. What is given up stays so: Linux lets a process bind itself without being root (Landlock for files,
seccomp for system calls), and no way back exists. Elsewhere an audit hook refuses the same through Python, which C code
or a determined program can get around; what held in fact is told to `sandbox`.

Messages on CONTROL are a length (8 bytes) and as many bytes: limits as JSON, the program, then, when that has been run,
names to keep, the tests, and a token. Messages on RESULT are lines: "held JSON", "ready", "passed TOKEN",
"failed WHERE TEXT".
The token is read when the tests are over, so that it is nowhere in memory while the program's code can run.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import ctypes
import functools
import itertools
import json
import math
import operator
import os
import platform
import random
import re
import resource
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator

PROGRAM, TESTS = "<program>", "<tests>"
# Tests use these; a program that has changed them finds its changes undone before its tests.
_TOOLS = (builtins, copy, functools, itertools, math, operator, os, random, re, sys)

BY_KERNEL = "by the kernel"
BY_HOOK = "by a Python audit hook, which a determined program can get around"


def main(control: int, result: int) -> None:
    """Confine this process, run the program and then its tests, and end."""
    say, leave, run, build, flush = _saying(result), os._exit, exec, compile, sys.stdout.flush
    limits = json.loads(_receive(control))
    program = _receive(control).decode("utf-8")
    held = confine(limits, os.getcwd())
    say("held " + json.dumps(held))

    before = [(module, dict(vars(module))) for module in _TOOLS]
    own = types.ModuleType("__main__")
    sys.modules["__main__"] = own
    where = PROGRAM
    try:
        run(build(program, PROGRAM, "exec"), vars(own))
        say("ready")
        kept = _receive(control).decode("utf-8").split()
        tests = _receive(control).decode("utf-8")
        _undo(before)
        where = TESTS
        run(build(tests, TESTS, "exec"), _namespace(vars(own), kept))
        _undo(before)
        flush()
    except BaseException as error:  # SystemExit is as much an end before the tests' end as any other
        say(f"failed {where} {_told(error)}")
        with contextlib.suppress(BaseException):
            flush()
        leave(1)
    say("passed " + _receive(control).decode("utf-8"))
    leave(0)


def _receive(control: int, read: Callable[[int, int], bytes] = os.read) -> bytes:
    def exactly(size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = read(control, size)
            if not part:
                raise EOFError("the sandbox has closed its side")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    return exactly(int.from_bytes(exactly(8), "big"))


def _saying(result: int) -> Callable[[str], None]:
    write = os.write

    def say(line: str) -> None:
        data = line.replace("\n", " ").encode("utf-8", "replace") + b"\n"
        while data:
            data = data[write(result, data) :]

    return say


def _undo(before: list[tuple[types.ModuleType, dict[str, object]]]) -> None:
    """Give modules back the functions and classes that they had `before`."""
    for module, names in before:
        current = vars(module)
        for name, value in names.items():
            if current.get(name) is not value and callable(value):
                current[name] = value
    for name in set(vars(builtins)) - set(before[0][1]):
        del vars(builtins)[name]
    sys.settrace(None)
    sys.setprofile(None)


def _namespace(program: dict[str, object], kept: list[str]) -> dict[str, object]:
    """Return the program's names for its tests, without those that would stand for a built-in, but for `kept`."""
    hidden = set(vars(builtins)) - set(kept)
    return {name: value for name, value in program.items() if name not in hidden} | {"__builtins__": builtins}


def _told(error: BaseException) -> str:
    name = type(error).__name__
    try:
        return f"{name}: {error}"[:500]
    except BaseException:  # the program's own __str__ fails
        return name


# ---- confinement ----------------------------------------------------------------------------------------------------


def confine(limits: dict[str, float], folder: str) -> dict[str, str]:
    """Give up everything but reading Python's own files, and `folder`; return what is held off, and by what.

    `limits`: "seconds" of processor time, "memory", "file" in bytes. To be called once, as it cannot be undone.
    """
    readable = _readable()
    held = {"time": "by the kernel (RLIMIT_CPU) and the clock"}
    _die_with_parent()
    _drop_capabilities()
    held["files"] = BY_KERNEL + " (Landlock)" if _landlock(folder, readable) else BY_HOOK
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 64)
    held["file size"] = _told_by(_limit(resource.RLIMIT_FSIZE, int(limits["file"])), "RLIMIT_FSIZE")
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _limit(resource.RLIMIT_CPU, math.ceil(used + limits["seconds"]), over=1)
    held["memory"] = _told_by(_limit(resource.RLIMIT_AS, int(limits["memory"])), "RLIMIT_AS")
    filtered = _seccomp()  # last, as it keeps limits as they are
    held["network"] = held["processes"] = BY_KERNEL + " (seccomp)" if filtered else BY_HOOK
    sys.addaudithook(_hook(folder, readable, watch_files=not held["files"].startswith(BY_KERNEL)))
    return held


def _told_by(holds: bool, name: str) -> str:
    return f"{BY_KERNEL} ({name})" if holds else "not limited on this system"


def _limit(what: int, value: int, over: int = 0) -> bool:
    """Lower a limit for good; say whether that held."""
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit of the address space
        resource.setrlimit(what, (value, value + over))
    return resource.getrlimit(what)[0] == value


def _readable() -> list[str]:
    """Return the files and folders that Python itself needs to read."""
    paths = sysconfig.get_paths()
    found = [*sys.path, paths["stdlib"], paths["platstdlib"], os.path.join(sys.base_prefix, "lib")]
    if sys.base_prefix in ("/", "/usr", "/usr/local"):
        found.pop()  # all of the system's: its libraries follow
    found += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/System/Library", "/usr/share/zoneinfo"]
    found += ["/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom"]
    return [os.path.realpath(path) for path in dict.fromkeys(found) if path and os.path.exists(path)]


_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_DUMPABLE = 1, 38, 22, 4
_SIGKILL = 9


def _call(name: int, *values: object) -> int:
    assert _LIBC is not None
    result: int = _LIBC.syscall(ctypes.c_long(name), *values)
    return result


def _prctl(option: int, *values: object) -> bool:
    assert _LIBC is not None
    filled = [*values, *(ctypes.c_ulong(0) for _ in range(4 - len(values)))]
    return int(_LIBC.prctl(option, *filled)) == 0


def _die_with_parent() -> None:
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL))


def _drop_capabilities() -> None:
    """Be no more than any user, where the sandbox is started by root: limits and files hold for root then too."""
    machine = _MACHINES.get(platform.machine()) if _LINUX else None
    if machine and os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
        nothing = (ctypes.c_uint32 * 6)()
        _call(machine.capset, ctypes.byref(header), ctypes.byref(nothing))


# ---- files: Landlock ------------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# Write, read, list, remove, make and move plain files and folders, and cut them short: no devices, links or sockets.
_IN_FOLDER = 1 << 1 | _READ_FILE | _READ_DIR | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | 1 << 14


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _landlock(folder: str, readable: list[str]) -> bool:
    """Let this process write in `folder` and read `readable` only; False where the kernel does not know how."""
    if not _LINUX:
        return False
    version = _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    handled = (1 << 13) - 1  # all rights of version 1; later ones: link to elsewhere, truncate, device controls
    handled |= (1 << 13) * (version >= 2) | (1 << 14) * (version >= 3) | (1 << 15) * (version >= 5)
    ruleset = _Ruleset(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        for path in readable:
            rights = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
            _allow(rules, path, rights | (1 << 1 if path == "/dev/null" else 0))
        _allow(rules, folder, _IN_FOLDER & handled)
        return _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1)) and _call(_RESTRICT_SELF, rules, ctypes.c_uint32(0)) == 0
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        beneath = _Beneath(rights, descriptor)
        if _call(_ADD_RULE, rules, 1, ctypes.byref(beneath), ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), f"Landlock does not take {path}")
    finally:
        os.close(descriptor)


# ---- system calls: seccomp ------------------------------------------------------------------------------------------


class _Machine:
    """The numbers of system calls on one kind of processor, `audit` being the kernel's name for it."""

    def __init__(self, audit: int, capset: int, own: dict[str, int], refused: tuple[int, ...]) -> None:
        self.audit, self.capset, self.own = audit, capset, own
        # From 424 on, numbers are the same everywhere: pidfd_send_signal, io_uring (3), mounts (6), pidfd_open,
        # pidfd_getfd, mount_setattr, fchmodat2.
        self.refused = (*refused, *range(424, 435), 438, 442, 452)


# In the order of the lists, a line each: sockets and processes; debugging and signals; sessions and limits; mounts and
# namespaces; bpf, perf, keys; modules, reboot, swap, accounting; clocks and host name; what Landlock does not see
# (modes, owners, attributes, times, truncate, device files, handles); shared memory and queues; ports.
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        126,
        {"clone": 56, "clone3": 435, "kill": 62, "tgkill": 234, "prlimit64": 302},
        (
            *(41, 57, 58, 59, 322),
            *(101, 310, 311, 200, 129, 297),
            *(112, 109, 160),
            *(165, 166, 155, 161, 272, 308),
            *(321, 298, 323, 250, 248, 249),
            *(175, 313, 176, 246, 320, 169, 167, 168, 163, 103, 179),
            *(164, 227, 305, 159, 170, 171),
            *(90, 91, 268, 92, 94, 93, 260, 188, 189, 190, 197, 198, 199, 132, 235, 261, 280, 76, 133, 259, 304),
            *(29, 68, 64, 240),
            *(172, 173),
        ),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        91,
        {"clone": 220, "clone3": 435, "kill": 129, "tgkill": 131, "prlimit64": 261},
        (
            *(198, 221, 281),
            *(117, 270, 271, 130, 138, 240),
            *(157, 154, 164),
            *(40, 39, 41, 51, 97, 268),
            *(280, 241, 282, 219, 217, 218),
            *(105, 273, 106, 104, 294, 142, 224, 225, 89, 116, 60),
            *(170, 112, 266, 171, 161, 162),
            *(52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 88, 45, 33, 265),
            *(194, 186, 190, 180),
        ),
    ),
}
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def _seccomp() -> bool:
    """Refuse sockets, new processes, signals to others and changes of the system; False where that is not possible.

    Threads are allowed, and socket pairs, which reach nobody.
    """
    machine = _MACHINES.get(platform.machine()) if _LINUX and sys.maxsize > 2**32 else None
    if machine is None:
        return False
    listing = list(_listing(machine))
    rules = _Filter(len(listing), (_Instruction * len(listing))(*(_Instruction(*each) for each in listing)))
    if not _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1)):
        return False
    return _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(rules))


def _listing(machine: _Machine) -> Iterator[tuple[int, int, int, int]]:
    """Yield the filter for the kernel, a small program over (number of the call, machine, arguments)."""
    argument = [16 + 8 * at for at in range(6)]  # where the lower half of each lies
    own = machine.own
    refuse = (_RETURN, 0, 0, _REFUSE | _EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    yield (_LOAD, 0, 0, 4)
    yield (_EQUAL, 1, 0, machine.audit)
    yield (_RETURN, 0, 0, _KILL)  # calls by the numbers of another machine
    yield (_LOAD, 0, 0, 0)
    yield (_ABOVE, 0, 1, 0x40000000)  # x32
    yield refuse
    for number in machine.refused:
        yield (_EQUAL, 0, 1, number)
        yield refuse
    # clone3 has its flags in memory, which a filter cannot see: glibc goes on with clone where it is missing.
    yield (_EQUAL, 0, 1, own["clone3"])
    yield (_RETURN, 0, 0, _REFUSE | _ENOSYS)
    yield (_EQUAL, 0, 4, own["clone"])
    yield (_LOAD, 0, 0, argument[0])
    yield (_ANY_BIT, 1, 0, _CLONE_THREAD)
    yield refuse
    yield allow
    for name in ("kill", "tgkill"):
        yield (_EQUAL, 0, 4, own[name])
        yield (_LOAD, 0, 0, argument[0])
        yield (_EQUAL, 1, 0, os.getpid())
        yield refuse
        yield allow
    # Reading a limit is fine, setting one is not.
    yield (_EQUAL, 0, 6, own["prlimit64"])
    yield (_LOAD, 0, 0, argument[2])
    yield (_EQUAL, 0, 2, 0)
    yield (_LOAD, 0, 0, argument[2] + 4)
    yield (_EQUAL, 1, 0, 0)
    yield refuse
    yield allow
    yield allow  # every other call


# ---- the audit hook -------------------------------------------------------------------------------------------------

_REFUSED = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "pty.", "resource.",
    "ctypes.dl", "ctypes.call_function", "gc.get_", "sys._current_", "os.chmod", "os.chown", "os.lchown", "os.setxattr",
    "os.removexattr", "os.utime", "os.chflags", "socket.connect", "socket.bind", "socket.get", "socket.send",
    "webbrowser.",
)  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(folder: str, readable: list[str], watch_files: bool) -> Callable[[str, tuple[object, ...]], None]:
    """Return a hook that refuses by raising PermissionError. It goes along with what the kernel refuses: more is known
    there of what was meant, so that the program gets a clear message."""
    realpath, inside, local = os.path.realpath, os.path.join(os.path.realpath(folder), ""), 1  # AF_UNIX

    def within(path: object, places: list[str]) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open file's number
        real = realpath(os.fsdecode(path))
        return (
            real + os.sep == inside
            or real.startswith(inside)
            or any(real == place or real.startswith(place + os.sep) for place in places)
        )

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event.startswith(_REFUSED) or (event == "socket.__new__" and values[1] != local):
            raise PermissionError(f"the sandbox does not allow {event}")
        if event == "import" and values[0] in ("ctypes", "_ctypes"):
            raise ImportError("the sandbox does not allow ctypes")
        if not watch_files:
            return
        if event == "open":
            flags = values[2] if isinstance(values[2], int) else 0
            if not within(values[0], [] if flags & _WRITING else readable):
                raise PermissionError(f"the sandbox does not allow to open {values[0]!r}")
        elif event.startswith(_CHANGES):
            paths = [value for value in values if isinstance(value, str | bytes | os.PathLike)]
            if not all(within(path, []) for path in paths):
                raise PermissionError(f"the sandbox does not allow {event} outside its folder")

    return hook


if __name__ == "__main__":
    for _name in ("ctypes", "_ctypes", "resource"):
        sys.modules.pop(_name, None)
    main(int(sys.argv[1]), int(sys.argv[2]))
