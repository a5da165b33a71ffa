"""The append-only metrics file."""

from pathlib import Path

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
