"""File operations under faults: after an error or a crash at any of their steps, readers find the old or the new."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptx_nb import files

# Run in a process of its own: every attempt is a fork of it in which one step fails, or at which it dies.
HARNESS = """
import builtins, io, json, os, sys
from pathlib import Path
from gptx_nb import files

case, mode, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
OLD, NEW = b"old " * 5000, b"new " * 7000

def fill(folder):
    (folder / "a").write_bytes(NEW)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "b").write_bytes(NEW)

def prepare(folder):
    if case in ("write over", "put in place"):
        (folder / "target").write_bytes(OLD)
    if case == "put in place":
        (folder / "part").write_bytes(NEW)
    if case == "remove":
        (folder / "target").mkdir()
        fill(folder / "target")

def act(folder):
    target = folder / "target"
    if case in ("write over", "write anew"):
        files.write_bytes(target, NEW)
    elif case == "put in place":
        files.replace(folder / "part", target)
    elif case == "claim":
        assert files.create_exclusive(target, NEW)
    elif case == "make a folder":
        files.write_folder(target, fill)
    elif case == "remove":
        files.remove_folder(target)

def look(folder):
    target = folder / "target"
    if target.is_dir():
        found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        return "new" if found == {"a": NEW, "deeper/b": NEW} else "a part"
    if not target.exists():
        return "nothing"
    return {OLD: "old", NEW: "new"}.get(target.read_bytes(), "a part")

steps = 0

def step(at):
    global steps
    steps += 1
    if steps == at:
        if mode == "crash":
            os._exit(9)
        raise OSError(5, "injected")

class Handle:
    def __init__(self, real, at):
        self.real, self.at = real, at
    def __getattr__(self, name):
        return getattr(self.real, name)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.real.close()
    def write(self, content):
        half = len(content) // 2
        self.real.write(content[:half])
        self.real.flush()
        step(self.at)  # a full disk takes a part
        return half + self.real.write(content[half:])

def arm(at):
    def guarded(real):
        def call(*arguments, **named):
            step(at)
            return real(*arguments, **named)
        return call
    for name in ("open", "fsync", "replace", "rename", "link", "mkdir"):
        setattr(os, name, guarded(getattr(os, name)))
    real_open = io.open
    def opened(*arguments, **named):
        step(at)
        return Handle(real_open(*arguments, **named), at)
    builtins.open = io.open = opened

results = []
for at in range(1, 100):
    folder = root / str(at)
    folder.mkdir()
    prepare(folder)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            arm(at)
            act(folder)
            status = 0 if steps < at else 1  # 1: the fault was swallowed
        except FileExistsError:
            status = 4
        except OSError:
            status = 3
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    hidden = [path.name for path in folder.iterdir() if path.name not in ("target", "part")]
    results.append({"status": status, "found": look(folder), "hidden": hidden})
    if status == 0:
        break
print(json.dumps(results))
"""


@pytest.mark.parametrize(
    ("case", "before", "after"),
    [
        ("write over", "old", "new"),
        ("write anew", "nothing", "new"),
        ("put in place", "old", "new"),
        ("claim", "nothing", "new"),
        ("make a folder", "nothing", "new"),
        ("remove", "new", "nothing"),
    ],
)
@pytest.mark.parametrize("mode", ["error", "crash"])
def test_a_fault_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, case: str, before: str, after: str, mode: str
) -> None:
    command = [sys.executable, "-c", HARNESS, case, mode, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    *faults, last = results
    assert last == {"status": 0, "found": after, "hidden": []}, "without a fault it works"
    assert faults, "no step was reached"
    for result in faults:
        assert result["found"] in (before, after)
        assert result["status"] == 9 if mode == "crash" else result["status"] in (1, 3)
        if result["status"] == 1:  # a folder that cannot be flushed, as on Windows
            assert result["found"] == after
        if mode == "error" and case != "remove":  # what cannot be deleted stays, out of sight
            assert result["hidden"] == [], "what is beside is cleared away"
        assert all(name.startswith(".") for name in result["hidden"])
    assert {result["found"] for result in faults} >= {before}


@pytest.mark.parametrize(
    "write",
    [
        lambda target: files.write_bytes(target, b"a"),
        lambda target: files.create_exclusive(target, b"a"),
        lambda target: files.replace(target.with_name("part"), target),
        lambda target: files.write_folder(target, lambda folder: files.write_text(folder / "a", "1")),
    ],
    ids=["write", "claim", "put in place", "make a folder"],
)
def test_a_new_name_is_flushed_to_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    target = tmp_path / "target"
    (tmp_path / "part").write_bytes(b"a")
    flushed = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            flushed.append(target.exists())

    monkeypatch.setattr(os, "fsync", watched)
    write(target)
    assert flushed[-1:] == [True], "its folder was not flushed after the name stood there: a power cut takes it away"


def test_one_of_two_claims_is_refused(tmp_path: Path) -> None:
    assert files.create_exclusive(tmp_path / "claims" / "1", b"me")
    assert not files.create_exclusive(tmp_path / "claims" / "1", b"you")
    assert (tmp_path / "claims" / "1").read_bytes() == b"me"
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["1"]


def no_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_without_hard_links_one_of_two_claims_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    test_one_of_two_claims_is_refused(tmp_path)


def test_without_hard_links_a_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"rows")
    files.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    monkeypatch.setattr(os, "link", no_links)
    files.link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"rows"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        files.link(tmp_path / "gone", tmp_path / "d")


def test_a_folder_made_as_one_step_is_never_overwritten(tmp_path: Path) -> None:
    files.write_folder(tmp_path / "model", lambda folder: files.write_text(folder / "a", "1"))
    with pytest.raises(FileExistsError):
        files.write_folder(tmp_path / "model", lambda folder: files.write_text(folder / "a", "2"))
    assert (tmp_path / "model" / "a").read_text() == "1"


def test_of_two_that_make_a_folder_at_once_one_is_told(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        files.write_text(folder / "a", "second")
        files.write_folder(tmp_path / "model", lambda inner: files.write_text(inner / "a", "first"))

    with pytest.raises(FileExistsError):
        files.write_folder(tmp_path / "model", slow)
    assert (tmp_path / "model" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_json_has_no_number_that_other_parsers_refuse(tmp_path: Path) -> None:
    value = {"loss": float("nan"), "list": [1.5, float("inf"), ("ä", None)]}
    files.write_json(tmp_path / "a.json", value)
    assert "NaN" not in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "a.json") == {"loss": None, "list": [1.5, None, ["ä", None]]}
    assert files.read_json(tmp_path / "missing.json") is None


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    files.remove_folder(tmp_path / "gone")


def test_a_full_disk_is_known_by_whoever_says_so() -> None:
    assert files.disk_is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert files.disk_is_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not files.disk_is_full(PermissionError(errno.EACCES, "Permission denied"))
