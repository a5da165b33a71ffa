"""The data engine on real public sets, where they are at hand: shared/data beside the repository. Never committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptx_nb.engine import data
from gptx_nb.recipe import make_recipe
from gptx_nb.sources import Source

SETS = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

# Set, rows of train and validation, labels, the least and most frequent label in train.
KNOWN = [
    ("sst2", 6907, 872, 2, ("negative", 3303), ("positive", 3604)),
    ("sms_spam", 3728, 500, 2, ("spam", 455), ("ham", 3273)),
    ("banking77", 8972, 970, 77, None, ("card_payment_fee_charged", 169)),
    ("chnsenticorp", 7565, 1138, 2, ("negative", 3422), ("positive", 4143)),
    ("trec", 4864, 501, 6, ("abbreviation", 76), ("entity", 1129)),
]


def source(name: str, part: str) -> Source:
    path = SETS / name / f"{part}.csv.xz"
    if not path.exists():
        pytest.skip(f"{path} is not here: this test needs the public data sets beside the repository")
    return Source(kind="file", shown=f"{name}/{path.name}", fingerprint="0", path=str(path), options={})


@pytest.mark.parametrize(("name", "rows", "held", "labels", "least", "most"), KNOWN, ids=[row[0] for row in KNOWN])
def test_a_real_set_is_read_and_its_columns_are_found(
    name: str, rows: int, held: int, labels: int, least: tuple[str, int] | None, most: tuple[str, int], tmp_path: Path
) -> None:
    sources = {"train": source(name, "train"), "validation": source(name, "validation")}
    table = data.load(make_recipe({"data": name, "validation": "own"}), sources, tmp_path)
    report = table.report
    assert (report["text"], report["label"]) == ("text", "label_text")
    assert "label is column 'label_text' (it names the numbers in 'label')" in report["why"]
    assert (report["rows"], report["used"], report["train"], report["validation"]) == (rows, rows, rows, held)
    assert len(table.labels) == labels
    assert table.labels == sorted(table.labels)
    counts = report["labels"]
    assert least is None or (counts[least[0]], min(counts.values())) == (least[1], least[1])
    assert (counts[most[0]], max(counts.values())) == (most[1], most[1])
    assert report["encoding"] == "utf-8"
    data.save_snapshot(table, tmp_path / "data")
    assert data.load_snapshot(tmp_path / "data") == table


@pytest.mark.parametrize("name", [row[0] for row in KNOWN])
def test_a_real_set_is_split_by_label_without_leaks(name: str, tmp_path: Path) -> None:
    table = data.load(make_recipe({"data": name}), {"train": source(name, "train")}, tmp_path)
    assert table.validation is not None
    assert len(table.validation) / table.report["used"] == pytest.approx(0.2, abs=0.005)
    assert set(table.train.labels) == set(range(len(table.labels)))
    assert not {text.strip() for text in table.train.texts} & {text.strip() for text in table.validation.texts}
    for at in range(len(table.labels)):
        in_all = table.report["labels"][table.labels[at]]
        assert abs(table.validation.labels.count(at) - 0.2 * in_all) < 3
