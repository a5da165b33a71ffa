"""The append-only metrics file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptx_nb.metrics import MetricsWriter, encode, read


def test_a_torn_last_line_waits_for_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics-1.jsonl"
    writer = MetricsWriter(path)
    writer.append({"step": 1, "loss": float("nan")})
    line = encode({"step": 2})
    with path.open("ab") as handle:
        handle.write(line[:7])
    records, offset = read(path)
    assert records == [{"step": 1, "loss": None}]
    with path.open("ab") as handle:
        handle.write(line[7:])
    assert read(path, offset) == ([{"step": 2}], path.stat().st_size)


def test_a_harmed_line_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "metrics-1.jsonl"
    path.write_bytes(encode({"step": 1}) + encode({"step": 2}).replace(b"2", b"3") + encode({"step": 4}))
    assert read(path)[0] == [{"step": 1}]


def test_a_file_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "metrics-1.jsonl", 7) == ([], 7)


def test_texts_survive_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "metrics-1.jsonl"
    records = [{"kind": "note", "text": text} for text in ("ä 🙂", "two\nlines", "a\u2028b\x85c\x0cd\re", "")]
    writer = MetricsWriter(path)
    for record in records:
        writer.append(record)
    writer.close()
    assert read(path) == (records, path.stat().st_size)


def test_any_cut_of_a_file_reads_as_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics-1.jsonl"
    records = [{"step": step, "loss": step / 3} for step in range(5)]
    whole = b"".join(encode(record) for record in records)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        found, offset = read(path)
        assert found == records[: len(found)]
        assert offset <= length
        path.write_bytes(whole)
        assert found + read(path, offset)[0] == records


def test_a_disk_that_takes_a_part_of_a_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics-1.jsonl"
    writer = MetricsWriter(path)
    writer.append({"step": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: real(descriptor, line[:5]))
    with pytest.raises(OSError, match=r"only 5 of \d+ bytes .* is the disk full\?"):
        writer.append({"step": 2})
    assert read(path)[0] == [{"step": 1}]


def test_a_reader_beside_a_writer_sees_every_record_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics-1.jsonl"
    code = (
        "import sys; from pathlib import Path; from gptx_nb.metrics import MetricsWriter\n"
        "writer = MetricsWriter(Path(sys.argv[1]))\n"
        "for step in range(3000): writer.append({'step': step, 'text': 'x' * (step % 200)})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    seen: list[int] = []
    offset = 0
    while writer.poll() is None or path.stat().st_size > offset:
        records, offset = read(path, offset)
        seen += [record["step"] for record in records]
    assert writer.returncode == 0
    assert seen == list(range(3000))
