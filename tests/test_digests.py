"""Digests of large files: read once, and again whenever the file may be another."""

import os
import time
from pathlib import Path

import pytest

from gptx_nb import digests, files


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[Path]:
    """The files that were read."""
    seen: list[Path] = []
    whole = files.sha256

    def sha256(path: Path) -> str:
        seen.append(path)
        return whole(path)

    monkeypatch.setattr(files, "sha256", sha256)
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    return seen


def large(path: Path, letter: bytes) -> Path:
    path.write_bytes(letter * digests.LARGE)
    time.sleep(0.01)
    return path


def test_a_large_file_is_read_once(read: list[Path], tmp_path: Path) -> None:
    weights = large(tmp_path / "model.safetensors", b"a")
    first = digests.sha256(weights)
    assert digests.sha256(weights) == first
    assert read == [weights]
    small = tmp_path / "config.json"
    small.write_text("{}")
    assert digests.sha256(small) == digests.sha256(small)
    assert read == [weights, small, small]


def test_a_file_that_was_changed_is_read_again_whatever_its_time_says(read: list[Path], tmp_path: Path) -> None:
    weights = large(tmp_path / "model.safetensors", b"a")
    before, found = digests.sha256(weights), weights.stat()
    large(weights, b"b")
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))
    after = digests.sha256(weights)
    assert after != before
    assert after == files.sha256(weights)
    other = large(tmp_path / "other", b"c")
    os.replace(other, weights)
    assert digests.sha256(weights) not in (before, after)


def test_a_file_that_is_written_to_just_now_is_not_remembered(
    read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 60.0)
    weights = large(tmp_path / "model.safetensors", b"a")
    digests.sha256(weights)
    digests.sha256(weights)
    assert read == [weights, weights]


def test_what_is_remembered_may_be_lost(read: list[Path], tmp_path: Path, home: Path) -> None:
    weights = large(tmp_path / "model.safetensors", b"a")
    first = digests.sha256(weights)
    (home / "digests.json").write_text("{torn")
    assert digests.sha256(weights) == first
    assert digests.sha256(weights) == first
    assert len(read) == 2


def test_a_model_is_its_names_and_bytes(read: list[Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    large(tmp_path / "model.safetensors", b"a")
    before = digests.of_model(tmp_path)
    (tmp_path / "README.md").write_text("no part of the model")
    assert digests.of_model(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert digests.of_model(tmp_path) != before
