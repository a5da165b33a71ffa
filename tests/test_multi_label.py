"""Texts with several labels each, and pairs of texts: from the table to the prediction, in real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import gptx_nb
from gptx_nb import inference, launch, multi_label_words, text_pairs
from gptx_nb.engine import examples, multi_label
from gptx_nb.engine.scores.labels import multi_label as scored
from gptx_nb.engine.tasks import reading
from gptx_nb.engine.tasks.label_words import PROMPT_FILE
from gptx_nb.engine.tasks.reading import Reading
from gptx_nb.engine.tasks.text_classification import label_loss
from gptx_nb.errors import DataError, RecipeError, UsageError
from gptx_nb.predictions import Predictions
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run
from gptx_nb.sources import stage
from gptx_nb.views import panels


@pytest.fixture
def process(home: Path) -> Iterator[Path]:
    """An empty home, whose inference process ends with the test."""
    yield home
    inference.free()


TEXTS = [f"{colour} {thing}" for colour in ("red", "blue", "grey", "red and blue") for thing in "abcdefghij"]


def colours(text: str) -> list[str]:
    return [name for name in ("red", "blue") if name in text]


SETS = pd.DataFrame({"text": TEXTS, "colours": [colours(text) for text in TEXTS]}).rename(columns={"colours": "labels"})


def table_of(tmp_path: Path, data: object, **settings: Any) -> Any:
    asked = make_recipe({"data": "df", **settings})
    return examples.load(asked, stage(asked, data, None, tmp_path), tmp_path)


def tuned(name: str, model: Path, data: object, **settings: Any) -> Run:
    small = {"model": str(model), "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    return launch.train(name, make_recipe({**small, **settings}), data=data, wait=True).run


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_column_of_lists_gives_each_text_its_labels_or_none(tmp_path: Path) -> None:
    table = table_of(tmp_path, SETS, validation=0)
    assert (table.multi_label, table.labels) == (True, ["blue", "red"])
    assert (table.train.labels[0], table.train.labels[10], table.train.labels[20]) == ([1], [0], [])
    assert table.report["labels"] == {"blue": 20, "red": 20}
    assert table.report["warnings"] == ["10 of 40 texts have no label at all, and are learnt as such"]
    examples.save_snapshot(table, tmp_path)
    again = examples.load_snapshot(tmp_path, make_recipe({"data": "df"}))
    assert (again.train, again.multi_label) == (table.train, True)  # type: ignore[union-attr]


def test_columns_of_0_and_1_are_labels_named_or_found(tmp_path: Path) -> None:
    flags = {name: [int(name in colours(text)) for text in TEXTS] for name in ("red", "blue")}
    frame = pd.DataFrame({"id": range(40), "text": TEXTS, **flags})
    found = table_of(tmp_path, frame, validation=0)
    assert found.report["why"] == (
        "text is column 'text' (by its name); labels are columns 'red', 'blue' (they hold 0 and 1)"
    )
    named = table_of(tmp_path, frame.assign(note="x"), labels=["red", "blue"], validation=0)
    assert (named.labels, named.train.labels[0], named.train.labels[30]) == (["red", "blue"], [0], [0, 1])
    with pytest.raises(DataError, match=r"row 3: column 'red' is one of the `labels:`, and holds '7'\. .* 0 or 1"):
        table_of(tmp_path, frame.assign(red=[1, 1, 7] + [0] * 37), labels=["red", "blue"])


def test_a_few_labels_that_may_be_several_are_asked_about(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS[:4], "label": ["joy;surprise", "anger;fear", "sadness", "joy"]})
    told = table_of(tmp_path, frame, validation=0).report["warnings"]
    assert any("labels such as 'anger;fear' look like several in one text" in each for each in told)
    assert any("type `label_separator: ';'`" in each for each in told)


def test_lists_of_one_label_each_are_read_as_they_were_asked_to_be(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": [f"['{'red' if at % 2 else 'blue'}']" for at in range(len(TEXTS))]})
    with pytest.raises(DataError, match=r"Type `label_separator: ','`"):
        table_of(tmp_path, frame)
    table = table_of(tmp_path, frame, label_separator=",", validation=0)
    assert (table.multi_label, table.labels) == (True, ["blue", "red"])


def test_several_labels_in_one_text_are_refused_and_a_separator_reads_them(tmp_path: Path) -> None:
    frame = SETS.assign(labels=[";".join(each) for each in SETS["labels"]])
    with pytest.raises(DataError) as caught:
        table_of(tmp_path, frame)
    assert str(caught.value) == (
        "df (DataFrame), row 31: column 'labels' holds 'red;blue', which looks like several labels in one text. Type "
        "`label_separator: ';'` to have them read as such, or give lists. If it is one label, name all labels with "
        "`labels:`"
    )
    table = table_of(tmp_path, frame, label_separator=";", validation=0)
    assert (table.labels, table.train.labels[0], table.train.labels[20]) == (["blue", "red"], [1], [0, 1])
    assert table.report["dropped"] == {"no label": 10}  # an empty cell says nothing, an empty list says none
    as_text = SETS.assign(labels=[str(each) for each in SETS["labels"]])
    with pytest.raises(DataError, match=r"holds \"\['red'\]\", which looks like several labels .*separator: ','"):
        table_of(tmp_path, as_text)
    assert (
        table_of(tmp_path, as_text, label_separator=",", validation=0).train
        == table_of(tmp_path, SETS, validation=0).train
    )


def test_a_separator_that_stands_nowhere_is_told_from_the_one_that_is_meant(tmp_path: Path) -> None:
    rows = {"text": ["a", "b", "c", "d"], "label": ["joy", "awe", "joy;awe", "awe;joy"]}
    with pytest.raises(DataError, match=r"row 3: .* 'joy;awe', which looks like several .* `label_separator: ';'`"):
        table_of(tmp_path, pd.DataFrame(rows), label_separator="/")
    plain = table_of(tmp_path, pd.DataFrame({**rows, "label": ["joy", "awe"] * 2}), label_separator="/")
    assert (plain.multi_label, plain.labels) == (True, ["awe", "joy"])


def test_labels_that_hold_a_comma_stay_whole(tmp_path: Path) -> None:
    towns = ["New York, NY", "Buffalo, NY", "Fresno, CA", "Boston, MA"]
    frame = pd.DataFrame({"text": TEXTS, "label": towns * 10})
    assert not table_of(tmp_path, frame).multi_label
    pairs = ["a, b", "a", "b", "b, a"]
    declared = table_of(tmp_path, frame.assign(label=pairs * 10), labels=pairs)
    assert (declared.multi_label, declared.labels) == (False, pairs)


def test_a_label_of_the_validation_table_that_was_never_learnt_is_told_with_its_row(tmp_path: Path) -> None:
    asked = make_recipe({"data": "df"})
    other = pd.DataFrame({"text": ["x", "y"], "labels": [["red"], ["green"]]})
    with pytest.raises(DataError, match=r"the label 'green' of row 2 is not among the labels: blue, red\. Add it"):
        examples.load(asked, stage(asked, SETS, other, tmp_path), tmp_path)


def test_a_list_among_texts_and_a_comparison_with_random_weights_are_refused(tmp_path: Path) -> None:
    mixed = [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": "y"}] * 10
    with pytest.raises(DataError, match="row 2: column 'labels' holds lists of labels, and one that is not"):
        table_of(tmp_path, mixed)
    with pytest.raises(RecipeError, match="baseline: scratch compares classifiers that give one label"):
        table_of(tmp_path, SETS, baseline="scratch")


# ---- loss and scores ------------------------------------------------------------------------------------------------


def test_the_loss_is_the_binary_cross_entropy_of_transformers() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]])
    assert torch.equal(label_loss(logits, labels), torch.nn.BCEWithLogitsLoss()(logits, labels))


def test_the_threshold_is_that_of_the_best_micro_f1_and_no_row_chooses_its_own() -> None:
    truth = np.array([[1, 0], [0, 1]] * 20, dtype=bool)
    shares = np.where(truth, 0.3, 0.05)
    assert multi_label.choose(shares, truth) == 0.3
    logits = np.log(shares / (1 - shares))
    found = multi_label.scores(["a", "b"], [[0], [1]] * 20, logits)
    assert (found["micro_f1"], found["accuracy"], found["threshold"]) == (1.0, 1.0, 0.3)
    assert multi_label.scores(["a", "b"], [[0], [1]] * 20, logits, 0.5)["micro_f1"] == 0.0
    # Each half is given with the other half's threshold.
    shares[::2] *= 0.5
    answers, _, _ = multi_label.given(shares, truth, None)
    assert (answers[1::2] == (shares[1::2] >= multi_label.choose(shares[::2], truth[::2]))).all()
    assert multi_label.given(shares[:10], truth[:10], None)[1] == 0.5


def test_labels_have_their_own_thresholds_where_these_do_better_on_rows_that_did_not_choose_them() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3)) < [0.5, 0.3, 0.02]
    # The model is sure of the first label, never of the second; the third has too few rows to say.
    shares = np.where(truth, [0.9, 0.35, 0.6], [0.5, 0.1, 0.2]) + rng.normal(0, 0.02, (200, 3))
    logits = np.log(shares / (1 - shares))
    rows = [np.flatnonzero(row).tolist() for row in truth]
    found = multi_label.scores(["joy", "fear", "awe"], rows, logits)
    common = multi_label.choose(shares, truth)
    assert found["threshold"][2] == common
    assert found["threshold"][1] < 0.35 < 0.5 < found["threshold"][0]
    assert found["micro_f1"] > 0.98 > multi_label.scores(["joy", "fear", "awe"], rows, logits, common)["micro_f1"]
    assert found["threshold_why"].startswith("each label's best F1 on the held-out rows: micro F1 ")
    joy, fear, awe = found["threshold"]
    said = f"a label is given from a probability of its own (joy {joy:g}, fear {fear:g}, awe {awe:g}) on: each label's"
    assert said in multi_label_words.lines(found)[1]
    answer = Predictions("run", ["joy", "fear", "awe"], ["a text"], [[0.45, 0.4, 0.2]], threshold=found["threshold"])
    assert answer.labels == [["fear"]]
    assert f"at least its own (joy {joy:g}, fear {fear:g}, awe {awe:g})." in answer.notes()[0]


def test_scores_by_label_are_those_of_the_answers() -> None:
    found = multi_label.scores(["a", "b"], [[0], [0, 1], []], np.array([[9.0, -9], [9, -9], [-9, -9]]), 0.5)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert [each["f1"] for each in found["per_class"]] == [1.0, 0.0]
    truth = multi_label.flags([[0], [0, 1], []], 2)
    assert found["micro_f1"] == scored(["a", "b"], truth, truth & [True, False]).micro_f1.value


def test_an_untrained_model_gives_the_likeliest_labels_and_those_near_it() -> None:
    shares = np.array([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04], [0.34, 0.33, 0.33]])
    assert multi_label.by_share(shares).tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    found = multi_label.untrained(["a", "b", "c"], [[0, 1], [0], [2]], shares)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["micro_f1"] == found["scores"]["micro_f1"]["value"] == pytest.approx(8 / 10)


def test_a_base_model_is_scored_on_texts_of_several_labels(process: Path, tiny_model: Path) -> None:
    found = gptx_nb.evaluate(str(tiny_model), SETS, task="text-classification")
    assert found.rows == len(SETS)
    assert {"micro_f1", "macro_f1", "subset_accuracy"} == set(found.scores)
    assert any("at least 50% as likely as the likeliest" in note for note in found.notes)
    with pytest.raises(UsageError, match=r"shots: texts have several labels here, and each that is shown has one"):
        gptx_nb.evaluate(str(tiny_model), SETS, task="text-classification", shots=2)


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_gives_every_label_above_its_threshold(process: Path, tiny_model: Path) -> None:
    run = tuned("sets", tiny_model, SETS, epochs=12, tune="full")
    scores = run.scores()
    assert scores is not None
    validation = scores["validation"]
    assert validation["micro_f1"] > 0.9 > scores["baselines"]["majority"]["micro_f1"]
    assert [each["label"] for each in validation["per_class"]] == ["blue", "red"]
    shown = panels.ended(run)
    assert "micro F1 counts each label" in shown["text/plain"]
    fact = (
        "Untrained, the base model gives the labels whose words are likeliest, at least 50% of the likeliest; examples "
        "before a text would show it one label each."
    )
    assert fact in shown["text/plain"].splitlines()
    assert f"⚠ {fact}" not in shown["text/html"]
    assert scores["base"]["rows"] == validation["rows"]
    assert 0 < scores["base"]["micro_f1"] < validation["micro_f1"]
    assert scores["few_shot"] is None
    assert ", untrained" in shown["text/plain"]
    assert "By label" in shown["text/html"]
    assert "Confusion" not in shown["text/html"]
    assert (run.plan() or {})["memory"]["choice"] != "unknown"

    config = json.loads((run.model / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    found = gptx_nb.predict("sets", ["red a", "red and blue a", "grey a"])
    assert isinstance(found, Predictions)
    assert [sorted(each) for each in found.labels] == [["red"], ["blue", "red"], []]
    assert found.threshold == validation["threshold"]
    assert found[2].label == "(none)"
    assert "A text has every label whose probability is at least" in repr(found)
    assert list(found.to_frame()["label"][1]) == list(found[1].labels)

    model = AutoModelForSequenceClassification.from_pretrained(run.model)
    tokens = AutoTokenizer.from_pretrained(run.model)("red and blue a", return_tensors="pt")
    with torch.no_grad():
        plain = model(**tokens).logits.sigmoid()[0]
    assert plain.tolist() == pytest.approx([found[1].probabilities[name] for name in ("blue", "red")], abs=1e-4)

    told = gptx_nb.evaluate("sets", SETS)
    assert set(told.scores) == {"micro_f1", "macro_f1", "subset_accuracy", "calibration_error"}
    assert told["micro_f1"] > 0.9
    with pytest.raises(DataError, match=r"the run gives any number of labels a text, and this table has one label"):
        gptx_nb.evaluate("sets", pd.DataFrame({"text": TEXTS, "labels": ["red", "blue"] * 20}))


def test_a_run_of_several_labels_begins_at_their_words(process: Path) -> None:
    run = tuned("words", Path("tiny"), SETS, epochs=2, tune="full", head="words", max_length=48)
    told = json.loads((run.model / PROMPT_FILE).read_text())
    assert told == {"prompt": "{text}\nCategory:", "label_words": {"blue": " blue", "red": " red"}}
    scores = run.scores()
    assert scores is not None
    assert 0 < scores["base"]["micro_f1"] <= 1
    found = gptx_nb.predict("words", ["red and blue a"])
    assert isinstance(found, Predictions)
    model = AutoModelForSequenceClassification.from_pretrained(run.model)
    asked = told["prompt"].replace("{text}", "red and blue a")
    with torch.no_grad():
        plain = model(**AutoTokenizer.from_pretrained(run.model)(asked, return_tensors="pt")).logits.sigmoid()[0]
    assert plain.tolist() == pytest.approx([found[0].probabilities[name] for name in ("blue", "red")], abs=1e-4)


# ---- pairs of texts -------------------------------------------------------------------------------------------------

THINGS = ("car", "door", "hat", "cup")
PAIRS = pd.DataFrame(
    [(f"A {one}.", f"A {other}.", "same" if one == other else "other") for one in THINGS for other in THINGS] * 3,
    columns=["premise", "hypothesis", "label"],
)


def test_a_pair_is_found_by_name_or_named_and_becomes_one_text(tmp_path: Path) -> None:
    found = table_of(tmp_path, PAIRS, validation=0)
    assert found.report["why"].startswith("text is columns 'premise' and 'hypothesis', one after the other")
    assert found.train.texts[1] == "A car.\n\nA door."
    other = PAIRS.set_axis(["a", "b", "c"], axis=1)
    named = table_of(tmp_path, other, columns={"text": "a", "text_pair": "b", "label": "c"}, validation=0)
    assert named.train == found.train
    with pytest.raises(DataError, match=r"no column 'B' \(text_pair: B\)"):
        table_of(tmp_path, other, columns={"text": "a", "text_pair": "B", "label": "c"})
    with pytest.raises(DataError, match=r"one column for each of its roles, .*, and body: a is none"):
        table_of(tmp_path, other, columns={"body": "a", "label": "c"})
    with pytest.raises(DataError, match="a text_pair is the second of two texts"):
        table_of(tmp_path, other, columns={"text_pair": "b", "label": "c"})


@given(st.text("ab \n", max_size=40), st.text("ab \n", max_size=40))
def test_joined_texts_come_apart_where_they_were_joined(first: str, second: str) -> None:
    both = text_pairs.split(text_pairs.join(first, second))
    assert both is not None
    assert both[1] == second.strip("\n")
    assert both[0].replace("\n", "").replace(" ", "") == first.replace("\n", "").replace(" ", "")


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40))
def test_of_a_pair_that_is_too_long_the_longer_text_is_cut(one: int, other: int, most: int) -> None:
    tokenizer = bytes_tokenizer()
    text = text_pairs.join("a" * one, "b" * other)
    found = reading.encode(tokenizer, [text], Reading(most, pair=True))
    row = reading.flat(found.rows)[0]
    assert len(row) == min(most, one + other + 2)
    spelled = str(tokenizer.decode(row))
    kept = spelled.count("a"), spelled.count("b")
    assert bool(found.cut_at) == (len(text) > most)
    assert kept[0] == one or kept[0] >= min(one, most // 2 - 2)
    assert kept[1] == other or kept[1] >= min(other, most // 2 - 2)


def bytes_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(["<|end|>", *alphabet])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def test_a_run_learns_from_pairs_and_is_asked_with_pairs(process: Path, tiny_model: Path) -> None:
    run = tuned("pairs", tiny_model, PAIRS, epochs=1, validation=0)
    assert run.recipe().columns == {"text": "premise", "text_pair": "hypothesis", "label": "label"}  # type: ignore[union-attr]
    one = gptx_nb.predict("pairs", {"premise": "A car.", "hypothesis": "A hat."})
    frame = gptx_nb.predict("pairs", PAIRS.head(2))
    typed = gptx_nb.predict("pairs", "A car.\n\nA hat.")
    assert isinstance(one, Predictions)
    assert isinstance(typed, Predictions)
    assert isinstance(frame, Predictions)
    assert (one.texts, one.probabilities) == (typed.texts, typed.probabilities)
    assert frame.texts == ["A car.\n\nA car.", "A car.\n\nA door."]
    assert gptx_nb.evaluate("pairs", PAIRS).rows == 48
    with pytest.raises(DataError, match=r"row 1 of 1 is no pair of texts, which run pairs/1 reads\. Give"):
        gptx_nb.predict("pairs", "A car.")
    with pytest.raises(DataError, match="the table has no column 'hypothesis', and run pairs/1 reads pairs"):
        gptx_nb.predict("pairs", PAIRS[["premise"]])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"premise": "a", "hypothesis": "b"}, ("premise", "hypothesis")),
        ([{"one": "a", "other": "b"}], ("one", "other")),
        ([("a", "b"), ("c", "d"), ("e", "f")], ("text", "text_pair")),
        (pd.DataFrame({"textA": ["a"], "textB": ["b"], "id": [1]}), ("textA", "textB")),
        (pd.DataFrame({"text": ["a"], "text_pair": ["b"]}), ("text", "text_pair")),
        (pd.DataFrame({"text": ["a"], "query": ["b"], "passage": ["c"]}), None),
        (pd.DataFrame({"review": ["a"], "label": ["b"]}), None),
        ([{"id": 17, "review": "Fine!"}], None),
        ([{"role": "user", "content": "I love it"}], None),
        ([{"text": "Fine!", "label": "good"}], None),
        (("a", "b"), None),
        ("a\n\nb", None),
        ([], None),
    ],
)
def test_what_is_a_pair_of_texts_is_seen_by_names_and_shape(asked: Any, found: tuple[str, str] | None) -> None:
    assert text_pairs.columns_of(asked) == found


def test_both_texts_of_a_pair_are_shortened() -> None:
    assert text_pairs.shortened(text_pairs.join("a" * 50, "b" * 50), 20) == text_pairs.join("a" * 10, "b" * 10)
    assert text_pairs.shortened("a" * 50, 20) == "a" * 20


def test_a_base_model_is_asked_with_pairs_untrained(process: Path, tiny_model: Path) -> None:
    base, names = str(tiny_model), ["alike", "other"]
    row = {"premise": "A car.", "hypothesis": "A hat."}
    one = gptx_nb.predict(base, row, labels=names)
    joined = gptx_nb.predict(base, "A car.\n\nA hat.", labels=names, prompt="{text}\nRelation:")
    assert isinstance(one, Predictions)
    assert isinstance(joined, Predictions)
    assert (one.texts, one.probabilities) == (joined.texts, joined.probabilities)
    shots = [{**row, "label": "other"}, ["A hat.", "A hat.", "alike"]]
    asked = PAIRS[["premise", "hypothesis"]].head(3)
    for texts in (asked, asked.to_dict("records"), asked.values.tolist()):
        shown = gptx_nb.predict(base, texts, shots=shots, task="text-classification")
        assert isinstance(shown, Predictions)
        assert shown.texts == ["A car.\n\nA car.", "A car.\n\nA door.", "A car.\n\nA hat."]
        assert shown.classes == ["other", "alike"]
    long = gptx_nb.predict(base, [{"premise": "A car. " * 60, "hypothesis": each} for each in ("A", "B")], labels=names)
    assert isinstance(long, Predictions)
    assert long.cut_at == [0, 1]
    assert long.probabilities[0] != long.probabilities[1], "the second text is read although the first is too long"
    with pytest.raises(DataError, match=r"row 2 of 2 is no pair of texts, which .*tiny-gpt2 is asked about\. Give"):
        gptx_nb.predict(base, [row, {"premise": "A car."}], labels=names)
    with pytest.raises(UsageError, match="shot 1 needs both texts and their label: "):
        gptx_nb.predict(base, row, labels=names, shots=[{"text": "A car.", "label": "other"}])
