"""What predictions hold and how they look, in a notebook and in a terminal."""

from collections.abc import Sequence
from html.parser import HTMLParser

import pandas
import pytest

from gptx_nb.predictions import Prediction, Predictions

PAYLOAD = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">&\" '"


def make(texts: list[str], cut_at: Sequence[int] = (), row_index: object = None) -> Predictions:
    rows = [[0.1, 0.7, 0.2] if number % 2 else [0.5, 0.3, 0.2] for number in range(len(texts))]
    return Predictions("reviews/1", ["bad", "good", "so so"], texts, rows, cut_at, row_index)


class Seen(HTMLParser):
    """The elements, attributes and visible text of a fragment."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_is_a_sequence_in_the_order_of_the_texts() -> None:
    predictions = make(["a", "b", "c"])
    assert len(predictions) == 3
    assert predictions[1] == Prediction("b", "good", 0.7, {"good": 0.7, "so so": 0.2, "bad": 0.1})
    assert list(predictions[1].probabilities) == ["good", "so so", "bad"]
    assert str(predictions[-1]) == "bad (0.500)"
    assert [each.text for each in predictions] == ["a", "b", "c"]
    assert [each.text for each in predictions[1:]] == ["b", "c"]
    assert predictions.labels == ["bad", "good", "bad"]
    with pytest.raises(IndexError):
        predictions[3]


def test_to_frame_has_a_column_for_every_label_and_keeps_the_index() -> None:
    frame = make(["a", "b"], row_index=pandas.Index(["x", "y"], name="id")).to_frame()
    assert list(frame.columns) == ["text", "label", "probability", "p(bad)", "p(good)", "p(so so)"]
    assert list(frame.index) == ["x", "y"]
    assert frame.index.name == "id"
    assert frame.loc["y", "label"] == "good"
    assert frame.loc["y", "p(so so)"] == 0.2


def test_an_empty_frame_has_the_same_columns() -> None:
    frame = make([]).to_frame()
    assert list(frame.columns) == ["text", "label", "probability", "p(bad)", "p(good)", "p(so so)"]
    assert len(frame) == 0
    assert frame["probability"].dtype == "float64"


def test_nothing_that_a_text_a_label_or_a_name_holds_becomes_markup() -> None:
    one = Predictions(PAYLOAD, [PAYLOAD, "good"], [PAYLOAD], [[0.9, 0.1]])
    many = Predictions(PAYLOAD, [PAYLOAD, "good"], [PAYLOAD] * 3, [[0.9, 0.1]] * 3)
    none = Predictions(PAYLOAD, [PAYLOAD, "good"], [], [])
    for predictions in (one, many, none):
        seen = Seen(predictions._repr_html_())
        assert seen.tags <= {"div", "table", "tr", "th", "td", "span"}
        assert seen.attributes <= {"style", "dir"}
        assert PAYLOAD.strip() in seen.text


def test_one_text_shows_every_label_and_up_to_ten() -> None:
    seen = Seen(make(["Great!"])._repr_html_())
    assert all(part in seen.text for part in ("Great!", "bad", "0.500", "good", "0.300", "so so", "0.200"))
    names = [f"label {number}" for number in range(12)]
    wide = Predictions("topics/1", names, ["x"], [[n / 66 for n in range(12)]])
    assert "label 11" in wide._repr_html_()
    assert "label 1<" not in wide._repr_html_()
    assert "… 2 more labels" in wide._repr_html_()
    assert "… 2 more labels" in repr(wide)


def test_a_long_table_shows_twenty_rows_and_says_how_many_more() -> None:
    predictions = make([f"text {number}" for number in range(1_300)])
    seen = Seen(predictions._repr_html_())
    assert "text 19" in seen.text
    assert "text 20" not in seen.text
    assert "… 1,280 more rows" in seen.text
    assert "… 1,280 more rows" in repr(predictions)
    assert len(predictions._repr_html_()) < 20_000


def test_a_long_text_is_shortened_in_the_table_only() -> None:
    predictions = make(["long " * 20_000, "short"], cut_at=[0])
    assert len(predictions._repr_html_()) < 5_000
    assert len(repr(predictions)) < 1_000
    assert len(predictions[0].text) == 100_000
    assert (
        "1 text (number 1, which begins '" + "long " * 7 + "long…') is longer than the model reads; only the beginning"
        in repr(predictions)
    )
    assert "is longer than the model reads" in predictions._repr_html_()
    assert "2 texts (the first: number 2, which begins 'b') are longer" in repr(make(["a", "b", "c"], cut_at=[1, 2]))
    assert "The text is longer than the model reads" in repr(make(["a"], cut_at=[0]))


def test_the_colours_are_those_of_the_page() -> None:
    html = make(["a", "b"])._repr_html_()
    assert "color:var(--jp-ui-font-color1,inherit)" in html
    assert "background:var(--jp-brand-color1,#1976d2)" in html
    assert "<style" not in html


def test_a_text_cannot_move_the_cursor_of_a_terminal() -> None:
    shown = repr(make(["\x1b[2J\x07wiped\r\nand\ttabbed \u202ereversed", "b"]))
    assert len(shown.splitlines()) == 3
    assert not set("\x1b\x07\r\t\u202e") & set(shown)


def test_the_text_table_reads_in_a_terminal() -> None:
    assert repr(make(["Great!", "Bad."])) == (
        "label  probability  text\nbad          0.500  Great!\ngood         0.700  Bad."
    )
    assert repr(make(["Great!"])) == (
        "Great!\n  bad    0.500  ██████████\n  good   0.300  ██████\n  so so  0.200  ████"
    )
    assert repr(make([])) == "reviews/1: no texts"
    assert repr(make([""])).startswith("(empty text)\n")
