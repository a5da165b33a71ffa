"""The sandbox against programs that mean harm: each is run for real, and what it was after is checked outside."""

from __future__ import annotations

import json
import lzma
import os
import platform
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from gptx_nb.engine import sandbox
from gptx_nb.engine.sandbox import Limits, Outcome, Program, run, run_all
from gptx_nb.errors import UsageError

QUICK = Limits(seconds=1.0, memory=256 * 2**20)
TESTS = "assert double(2) == 4"
KERNEL = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
by_kernel = pytest.mark.skipif(not KERNEL, reason="the kernel guards only on Linux, x86-64 or ARM64")


def outcome(code: str, tests: str = TESTS, *entry_points: str) -> Outcome:
    return run(Program(code, tests, entry_points), allow_code=True, limits=QUICK)


def changed_child(monkeypatch: pytest.MonkeyPatch, folder: Path, old: str, new: str) -> None:
    """Let the sandbox start a copy of its inside in which `old` is `new`: one of its two guards alone."""
    source = sandbox._CHILD.read_text("utf-8")
    assert old in source
    (folder / "confinement.py").write_text(source.replace(old, new), "utf-8")
    monkeypatch.setattr(sandbox, "_CHILD", folder / "confinement.py")


def test_nothing_runs_before_the_user_allows_it(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    with pytest.raises(UsageError) as caught:
        run(Program(f"open({str(harm)!r}, 'w')", ""), allow_code=False)
    assert str(caught.value) == (
        "this score runs programs that the model has written, and that is off until you allow it. They run in a "
        "sandbox: no network, no files but in a folder of their own, limits of time and memory. Type "
        "`allow_code: true` to allow it"
    )
    with pytest.raises(UsageError, match="off until you allow it"):
        run_all([], allow_code=False)


def test_a_right_program_passes_and_a_wrong_one_fails_with_its_reason() -> None:
    assert outcome("def double(x): return 2 * x").verdict == "passed"
    wrong = outcome("def double(x): return x", "assert double(2) == 4, double(2)")
    assert (wrong.verdict, wrong.detail, wrong.passed) == ("failed", "AssertionError: 2", False)
    broken = outcome("def double(x) return x")
    assert (broken.verdict, broken.detail[:11]) == ("error", "SyntaxError")
    assert outcome("import numpy").detail == "ModuleNotFoundError: No module named 'numpy'"


HUMANEVAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "humaneval" / "test.jsonl.xz"


@pytest.mark.skipif(not HUMANEVAL.exists(), reason="HumanEval is not here (shared/data)")
def test_humanevals_own_solutions_pass_and_empty_ones_do_not() -> None:
    with lzma.open(HUMANEVAL, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in islice(lines, 12)]

    def job(problem: dict[str, str], body: str) -> Program:
        tests = f"{problem['test']}\ncheck({problem['entry_point']})"
        return Program(problem["prompt"] + body, tests, (problem["entry_point"],))

    right = [job(each, each["canonical_solution"]) for each in problems]
    empty = [job(each, "    pass\n") for each in problems]
    assert [each.verdict for each in run_all(right, allow_code=True)] == ["passed"] * 12
    assert [each.verdict for each in run_all(empty, allow_code=True)] == ["failed"] * 12


def test_outcomes_come_in_the_order_of_the_programs() -> None:
    jobs = [Program(f"def double(x): return {at} * x", TESTS) for at in range(4)]
    assert [each.passed for each in run_all(jobs, allow_code=True, limits=QUICK)] == [False, False, True, False]


def test_what_holds_here_is_told() -> None:
    held = outcome("def double(x): return 2 * x").held
    assert set(held) == {"time", "memory", "files", "file size", "network", "processes"}
    if KERNEL:
        assert held["network"] == held["processes"] == "by the kernel (seccomp)"
        assert held["memory"] == "by the kernel (RLIMIT_AS)"


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import signal\nsignal.signal(24, signal.SIG_IGN)\nwhile 1: 1",
    ],
)
def test_an_endless_program_is_ended(code: str) -> None:
    found = outcome(code)
    assert (found.verdict, found.detail) == ("timeout", "more than 1 seconds")


def test_a_test_that_never_ends_is_ended() -> None:
    assert outcome("def double(x):\n    while True: pass").verdict == "timeout"


@pytest.mark.parametrize("code", ["x = 'a' * 10**10", "x = []\nwhile True: x.append(bytearray(10**6))"])
def test_a_memory_hog_gets_no_more_than_its_limit(code: str) -> None:
    found = outcome(code)
    assert (found.verdict, found.detail) == ("memory", "more than 256 MiB")


def test_a_large_file_is_refused() -> None:
    assert outcome("open('large', 'wb').write(bytes(2**21))").detail == "OSError: [Errno 27] File too large"


def test_output_beyond_its_limit_is_dropped_and_does_not_block() -> None:
    found = outcome("print('y' * 10**7)\ndef double(x): return 2 * x")
    assert found.verdict == "passed"
    assert found.output == "y" * QUICK.output


def test_deep_recursion_ends_the_program_only() -> None:
    code = "import sys\nsys.setrecursionlimit(10**9)\ndef double(x): return double(x)"
    assert outcome(code).verdict in ("crashed", "memory", "failed", "timeout")


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.Popen(['sleep', '1000'])",
        "import os\nos.system('touch harm')",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(os.getppid(), 9)",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    ],
)
def test_no_process_is_started_and_none_is_hit(code: str) -> None:
    found = outcome(code)
    assert found.verdict == "error"
    assert "PermissionError" in found.detail


@by_kernel
@pytest.mark.parametrize(
    "call",
    [
        "C(57)",  # fork
        "C(56, 17, 0, 0, 0, 0)",  # clone
        "C(62, os.getppid(), 9)",  # kill
        "C(234, os.getppid(), os.getppid(), 9)",  # tgkill
        "C(41, 2, 1, 0)",  # socket
        "C(112)",  # setsid
        "C(302, 0, 9, N(LIMITS), 0)",  # prlimit64
        "C(90, P(b'/tmp'), 0)",  # chmod
        "C(272, 0x10000000)",  # unshare
        "C(425, 1, 0)",  # io_uring_setup
        "C(101, 16, os.getppid(), 0, 0)",  # ptrace
        "C(0x40000000 + 39)",  # getpid of x32
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_the_kernel_refuses_what_python_is_led_around(
    call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The audit hook is left out, so that the calls reach the kernel."""
    changed_child(monkeypatch, tmp_path, "    sys.addaudithook(", "    bool(")
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "LIMITS = (ctypes.c_uint64 * 2)(2**40, 2**40)\n"
        "N = ctypes.addressof\n"
        "P = ctypes.c_char_p\n"
        "def C(number, *values):\n"
        "    long = [ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *values)]\n"
        "    done = libc.syscall(*long)\n"
        "    return done, ctypes.get_errno()\n"
        f"found = {call}\n"
        "def double(x): return 2 * x\n"
    )
    found = outcome(code, "assert found == (-1, 1), found\n" + TESTS)
    assert (found.verdict, found.detail) == ("passed", "")


def test_threads_may_be_used() -> None:
    code = "import threading\nfound = []\nt = threading.Thread(target=found.append, args=(1,))\nt.start(); t.join()"
    assert outcome(code, "assert found == [1]").verdict == "passed"


def test_a_program_that_ignores_signals_is_gone_afterwards() -> None:
    code = (
        "import os, signal, threading, time\n"
        "for each in range(1, 64):\n"
        "    try: signal.signal(each, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "print(os.getpid(), flush=True)\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "time.sleep(1000)\n"
    )
    found = outcome(code)
    assert found.verdict == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int(found.output), 0)


def test_where_the_kernel_has_no_guards_python_refuses_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed_child(monkeypatch, tmp_path, '_LINUX = sys.platform == "linux"', "_LINUX = False")
    right = outcome("import tempfile\nopen('mine', 'w').write('x')\ndef double(x): return 2 * x")
    assert right.verdict == "passed"
    for what in ("files", "network", "processes"):
        assert right.held[what] == "by a Python audit hook, which a determined program can get around"
    target = tmp_path / "target"
    target.write_text("mine")
    for action in (
        f"open({str(target)!r})",
        f"open({str(target)!r}, 'w')",
        f"os.open({str(target)!r}, os.O_WRONLY)",
        f"os.remove({str(target)!r})",
        f"os.rename({str(target)!r}, 'x')",
        f"os.chmod({str(target)!r}, 0)",
        f"os.symlink({str(target)!r}, 'x'); open('x', 'w')",
        "os.fork()",
        "os.system('true')",
        "os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['true'])",
        "os.kill(os.getppid(), 9)",
        "import socket; socket.socket()",
        "import ctypes",
        "import gc; gc.get_objects()",
    ):
        found = outcome(f"import os\n{action}")
        assert (found.verdict, "the sandbox does not allow" in found.detail) == ("error", True), (action, found)
    assert target.read_text() == "mine"


# ---- files, network, environment ------------------------------------------------------------------------------------


def test_a_program_writes_in_its_own_folder_which_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, tempfile\n"
        "open('mine', 'w').write('x'); os.mkdir('sub'); os.rename('mine', 'sub/mine')\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x')\n"
        "print(os.getcwd(), open('sub/mine').read())\n"
    )
    found = outcome(code, "")
    assert found.verdict == "passed", found
    folder, content = found.output.split()
    assert content == "x"
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    "action",
    [
        "open(TARGET, 'w')",
        "open(TARGET)",
        "os.remove(TARGET)",
        "os.rename(TARGET, 'stolen')",
        "os.link(TARGET, 'link')",
        "os.symlink(TARGET, 'link'); open('link', 'a')",
        "os.chmod(TARGET, 0)",
        "os.truncate(TARGET, 0)",
        "os.utime(TARGET, (0, 0))",
        "os.listdir(os.path.dirname(TARGET))",
        "open('../harm', 'w')",
    ],
)
def test_files_of_others_are_neither_read_nor_changed(tmp_path: Path, action: str) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    before = target.stat()
    found = outcome(f"import os\nTARGET = {str(target)!r}\n{action}")
    assert found.verdict == "error"
    assert found.detail.startswith(("PermissionError", "OSError: [Errno 18]"))  # Landlock calls it another device
    after = target.stat()
    assert target.read_text() == "mine"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not (Path(os.path.dirname(found.output or "/tmp/x")) / "harm").exists()


@pytest.mark.parametrize(
    "action",
    [
        "import socket\nsocket.socket().connect(('127.0.0.1', PORT))",
        "import socket\nsocket.create_connection(('localhost', PORT))",
        "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{PORT}/')",
    ],
)
def test_no_network_is_reached(action: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        found = outcome(f"PORT = {server.getsockname()[1]}\n{action}")
        assert found.verdict == "error"
        assert "not allow" in found.detail or "not permitted" in found.detail
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    found = outcome("import os\nprint(sorted(os.environ))", "")
    assert set(eval(found.output)) <= {"HOME", "TMPDIR", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    for name in ("self", str(os.getpid())):
        assert outcome(f"print(open('/proc/{name}/environ').read())").verdict == "error"


def test_nothing_of_this_process_is_inherited() -> None:
    found = outcome("import os\nprint([n for n in range(3, 60) if os.path.exists(f'/dev/fd/{n}')])", "")
    assert "secret" not in found.output
    code = (
        "import os\nopen_ones = []\n"
        "for number in range(256):\n"
        "    try: os.fstat(number); open_ones.append(number)\n"
        "    except OSError: pass\n"
    )
    with open(os.devnull, "rb"):
        assert outcome(code, "assert len(open_ones) == 5, open_ones").verdict == "passed"


# ---- no pass without passing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import sys\nsys.exit(0)", "exited"),
        ("import os\nos._exit(0)", "exited"),
        ("def double(x):\n    raise SystemExit(0)", "exited"),
        ("def double(x):\n    import os\n    os._exit(0)", "exited"),
        ("import os, signal\nos.abort()", "crashed"),
        ("print('passed'); print('ready'); import sys; sys.exit(0)", "exited"),
        (
            "import os\nfor n in range(3, 9):\n  try: os.write(n, b'ready\\npassed 0\\n')\n  except: 0\nos._exit(0)",
            "exited",
        ),
        ("import os\nos.closerange(3, 4096)\ndef double(x): return 2 * x", "exited"),
        (
            "import builtins\nbuiltins.AssertionError = KeyboardInterrupt\ndef double(x): return 5",
            "failed",
        ),
        ("__builtins__ = {'len': lambda x: 4}\ndef double(x): return 5", "failed"),
        ("import sys\nsys.excepthook = sys.unraisablehook = print\ndef double(x): return 5", "failed"),
        ("import sys\nsys.settrace(lambda *a: sys.exit(0))\ndef double(x): return 5", "exited"),
        ("import atexit, os\natexit.register(os._exit, 0)\ndef double(x): return 5", "failed"),
    ],
)
def test_an_early_end_or_a_trick_does_not_count(code: str, verdict: str) -> None:
    assert outcome(code).verdict == verdict


@pytest.mark.parametrize(
    "trick",
    [
        "import builtins\nbuiltins.abs = lambda x: 0",
        "import builtins\nbuiltins.all = builtins.any = lambda x: True\nbuiltins.abs = lambda x: 0",
        "def abs(x): return 0",
        "import math\nmath.isclose = lambda *a, **k: True",
        "import math\ndel math.fabs\nmath.isclose = print",
    ],
)
def test_changed_built_ins_do_not_change_the_tests(trick: str) -> None:
    tests = "import math\nassert abs(double(2) - 4) < 1e-6 and all([math.isclose(double(3), 6)]), 'no'"
    found = outcome(f"{trick}\ndef double(x): return 5", tests)
    assert (found.verdict, found.detail) == ("failed", "AssertionError: no")
    assert outcome(f"{trick}\ndef double(x): return 2 * x", tests).verdict == "passed"


def test_a_program_may_be_named_like_a_built_in_where_the_tests_are_about_it() -> None:
    code = "def sum(a, b): return a + b"
    assert outcome(code, "assert sum(1, 2) == 3", "sum").verdict == "passed"
    assert outcome(code, "assert sum(1, 2) == 3").verdict == "failed"


def test_the_token_is_not_in_memory_while_the_program_runs() -> None:
    code = (
        "import sys\n"
        "def double(x):\n"
        "    frame, found = sys._getframe(), []\n"
        "    while frame:\n"
        "        found += [repr(v) for v in (*frame.f_locals.values(), *frame.f_globals.values())]\n"
        "        frame = frame.f_back\n"
        "    import re\n"
        "    print(any(re.fullmatch(\"'[0-9a-f]{32}'\", each) for each in found))\n"
        "    return 2 * x\n"
    )
    found = outcome(code)
    assert (found.verdict, found.output) == ("passed", "False\n")


def test_no_folder_is_left_behind() -> None:
    import tempfile

    started = time.time()
    outcome("open('x', 'w')\nwhile True: pass")
    left = [each for each in Path(tempfile.gettempdir()).glob("gptx_nb-sandbox-*") if each.stat().st_mtime >= started]
    assert left == []
