"""Scores against figures worked out by hand and against the packages that define them; intervals by their coverage."""

from __future__ import annotations

import math
import random
import sys
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from gptx_nb.engine.scores import labels, programs, texts
from gptx_nb.engine.scores.intervals import DRAWS, mean, score
from gptx_nb.engine.scores.words import answer_tokens, normalise, spaceless, words
from gptx_nb.errors import UsageError

WORDS = [
    *("the", "cat", "sat", "on", "a", "red", "mat", "while"),
    *("two", "dogs", "were", "running", "past", "its", "house"),
]


def sentences(count: int, seed: int, length: int = 9) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, length))) for _ in range(count)]


# ---- intervals ------------------------------------------------------------------------------------------------------


def test_a_score_has_its_number_of_examples_and_an_interval_around_it() -> None:
    found = mean([True] * 60 + [False] * 40, "accuracy")
    assert (found.value, found.examples) == (0.6, 100)
    # The normal approximation: 0.6 ± 1.96 * sqrt(0.24 / 100)
    assert found.low == pytest.approx(0.504, abs=0.011)
    assert found.high == pytest.approx(0.696, abs=0.011)
    assert str(found) == "0.600 (0.500 to 0.700, 100 examples)"
    assert found == mean([True] * 60 + [False] * 40, "accuracy")


def test_the_interval_holds_the_truth_in_95_of_100_repetitions() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = mean(generator.normal(3.0, 1.0, 80), "mean")
        held += found.low <= 3.0 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_a_score_of_no_examples_is_not_a_number() -> None:
    found = mean([], "accuracy")
    assert found.examples == 0
    assert all(math.isnan(each) for each in (found.value, found.low, found.high))


def test_many_examples_are_drawn_in_parts() -> None:
    found = score(np.ones((60_000, 2)), lambda sums: sums[..., 0] / sums[..., 1], "share")
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert 60_000 * DRAWS > 2**24


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_scores_of_labels_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    truth = generator.integers(5, size=300)
    answers = np.where(generator.random(300) < 0.6, truth, generator.integers(5, size=300))
    names = [*"abcde", "never"]
    found = labels.single_label(names, truth.tolist(), answers.tolist())
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(truth, answers))
    assert found.macro_f1.value == pytest.approx(metrics.f1_score(truth, answers, average="macro"))
    assert found.confusion == metrics.confusion_matrix(truth, answers, labels=range(6)).tolist()
    expected = metrics.precision_recall_fscore_support(truth, answers, labels=range(6), zero_division=0)
    for at, each in enumerate(found.per_label):
        assert (each.label, each.support) == (names[at], expected[3][at])
        assert (each.precision.value, each.recall.value, each.f1.value) == pytest.approx(
            [row[at] for row in expected[:3]]
        )
    for each in [found.accuracy, found.macro_f1, *(row.f1 for row in found.per_label[:5])]:
        assert each.low < each.value < each.high
    assert found.per_label[5].recall.examples == 0
    assert math.isnan(found.per_label[5].recall.low)


def test_drawing_cells_of_the_confusion_matrix_is_drawing_examples() -> None:
    generator = np.random.default_rng(2)
    truth = generator.integers(3, size=120)
    answers = np.where(generator.random(120) < 0.7, truth, generator.integers(3, size=120))
    values = []
    for _ in range(1_500):
        rows = generator.integers(120, size=120)
        values.append(metrics.f1_score(truth[rows], answers[rows], average="macro"))
    found = labels.single_label(list("abc"), truth.tolist(), answers.tolist()).macro_f1
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.015)


def test_77_labels_are_scored_at_once() -> None:
    generator = np.random.default_rng(3)
    truth = generator.integers(77, size=3_000)
    answers = np.where(generator.random(3_000) < 0.9, truth, generator.integers(77, size=3_000))
    found = labels.single_label([str(at) for at in range(77)], truth.tolist(), answers.tolist())
    assert found.macro_f1.value == pytest.approx(metrics.f1_score(truth, answers, average="macro"))


def test_scores_of_several_labels_a_text_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(4)
    truth = generator.random((200, 4)) < 0.3
    answers = truth ^ (generator.random((200, 4)) < 0.1)
    found = labels.multi_label(list("abcd"), truth, answers)
    assert found.micro_f1.value == pytest.approx(metrics.f1_score(truth, answers, average="micro"))
    assert found.macro_f1.value == pytest.approx(metrics.f1_score(truth, answers, average="macro"))
    assert found.subset_accuracy.value == pytest.approx(metrics.accuracy_score(truth, answers))
    assert found.per_label[2].recall.value == pytest.approx(metrics.recall_score(truth[:, 2], answers[:, 2]))
    assert found.micro_f1.examples == 200
    assert found.micro_f1.low < found.micro_f1.value < found.micro_f1.high


def test_the_calibration_error_of_several_labels_a_text_is_that_of_each_answer_yes_or_no() -> None:
    found = labels.calibration_by_label(np.array([[1, 0], [1, 1]]), np.array([[0.9, 0.1], [0.62, 0.38]]))
    # Both answers of the first text are right at 0.9; of the second one is, at 0.62, and one is not.
    assert found.value == pytest.approx((2 * 0.1 + abs(0.38 - 0.62)) / 4)
    assert (found.examples, found.best, found.more_is_better) == (2, 0.0, False)
    assert found.low <= found.value <= found.high


def test_the_calibration_error_of_answers_is_that_of_their_confidence() -> None:
    found = labels.calibration_of([0.9, 0.9, 0.6, 0.6], [True, False, True, True])
    assert found.value == pytest.approx((abs(0.5 - 0.9) + abs(1 - 0.6)) / 2)
    assert found.low <= found.value <= found.high


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    # Ten answers of confidence 0.9, of which 6 are right; ten of 0.6, of which 6 are right.
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    truth = ([0] * 6 + [1] * 4) * 2
    found = labels.calibration(truth, probabilities)
    assert found.error.value == pytest.approx(0.5 * 0.3 + 0.5 * 0.0)
    assert not found.error.more_is_better
    assert [(each.answers, round(each.confidence, 3), each.accuracy) for each in found.bins] == [
        (10, 0.6, 0.6),
        (10, 0.9, 0.6),
    ]
    # Bins are open below and closed above: 9/15 belongs to the ninth.
    assert found.bins[0].high == pytest.approx(9 / 15)


def test_a_model_that_is_sure_and_right_is_calibrated() -> None:
    found = labels.calibration([0, 1, 1], np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert (found.error.value, found.error.low, found.error.high) == (0.0, 0.0, 0.0)


# ---- likelihood -----------------------------------------------------------------------------------------------------


def test_perplexity_and_bits_a_byte_weigh_texts_by_their_length() -> None:
    nats = [10 * math.log(4), 30 * math.log(2)]
    assert texts.perplexity(nats, [10, 30]).value == pytest.approx(2 ** ((20 + 30) / 40))
    # "é" has two bytes
    assert texts.bits_per_byte([8 * math.log(2), 4 * math.log(2)], ["éé", "abcd"]).value == pytest.approx(12 / 8)


# ---- summaries and translations -------------------------------------------------------------------------------------


def test_rouge_is_that_of_rouge_score_for_english() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"], True)
    truth = [[first, second] for first, second in zip(sentences(60, 1), sentences(60, 2), strict=True)]
    truth[0] = ["The U.S.-based cats' running_costs were 3.5 % higher; well-known dogs ran"]
    answers = sentences(60, 3)
    answers[0] = "Running costs of U.S. cats (well known) are 3.5% HIGHER"
    expected = [scorer.score_multi(accepted, answer) for accepted, answer in zip(truth, answers, strict=True)]
    found = texts.rouge(truth, answers)
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert found[kind].value == pytest.approx(np.mean([each[kind].fmeasure for each in expected]))
        assert found[kind].low < found[kind].value < found[kind].high
        assert found[kind].examples == 60


def test_rouge_counts_chinese_by_character_and_keeps_accents() -> None:
    pytest.importorskip("rouge_score")
    found = texts.rouge([["北京是首都"]], ["北京很大"])
    assert found["rouge1"].value == pytest.approx(2 * 2 / (5 + 4))
    assert found["rouge2"].value == pytest.approx(2 * 1 / (4 + 3))
    assert texts.rouge([["été"]], ["ete"])["rouge1"].value == 0.0


def sacrebleu_streams(references: list[list[str]]) -> list[list[str | None]]:
    most = max(map(len, references))
    return [[each[at] if at < len(each) else None for each in references] for at in range(most)]


@pytest.mark.parametrize("seed", range(4))
def test_chrf_and_bleu_are_those_of_sacrebleu(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    answers = sentences(40, seed, length=7 + seed)
    references = [[text] for text in sentences(40, seed + 10)]
    for at in range(0, 40, 3):  # some are nearly right, some have a second reference
        references[at] = [answers[at] + " house", *references[at]]
    streams = sacrebleu_streams(references)
    found = texts.bleu(references, answers)
    assert found.value == pytest.approx(sacrebleu.metrics.BLEU().corpus_score(answers, streams).score)
    assert found.low < found.value < found.high
    assert found.best == 100
    assert "tok:13a" in found.how
    found = texts.chrf(references, answers)
    assert found.value == pytest.approx(sacrebleu.metrics.CHRF().corpus_score(answers, streams).score)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("references", "answers"),
    [
        ([["a b c d e"]], ["a b"]),  # no n-gram of orders 3 and 4
        ([["a b c d e f"]], ["a x b y c z"]),  # no match in orders 2 to 4
        ([["a b c"]], ["x y z"]),
        ([["a b c"]], [""]),
        ([["a"], ["b c d e f g"]], ["", "b c d e f g"]),
    ],
)
def test_bleu_and_chrf_at_the_edges_are_those_of_sacrebleu(references: list[list[str]], answers: list[str]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = sacrebleu_streams(references)
    assert texts.bleu(references, answers).value == pytest.approx(sacrebleu.corpus_bleu(answers, streams).score)
    assert texts.chrf(references, answers).value == pytest.approx(sacrebleu.corpus_chrf(answers, streams).score)


def test_the_interval_of_bleu_is_that_of_scoring_draws_of_sentences() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    answers = sentences(50, 5, length=12)
    references = [[" ".join(text.split()[:-1]) + " mat" if at % 2 else text] for at, text in enumerate(answers)]
    generator = np.random.default_rng(0)
    values = []
    for _ in range(400):
        rows = generator.integers(50, size=50)
        drawn = [[references[row][0] for row in rows]]
        values.append(sacrebleu.metrics.BLEU(force=True).corpus_score([answers[row] for row in rows], drawn).score)
    found = texts.bleu(references, answers)
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=2.5)


def test_bleu_takes_chinese_by_character() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references, answers = [["你最好立刻去床上躺会儿。"]], ["你最好马上去床上躺一会儿。"]
    found = texts.bleu(references, answers)
    assert "tok:zh" in found.how
    expected = sacrebleu.metrics.BLEU(tokenize="zh").corpus_score(answers, [[references[0][0]]]).score
    assert found.value == pytest.approx(expected)
    assert found.value > texts.bleu(references, answers, chinese=False).value


def test_a_missing_package_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, *_: Any) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(UsageError) as caught:
        texts.rouge([["a"]], ["a"])
    assert str(caught.value) == (
        "ROUGE needs rouge-score, which is not installed here. Type `%pip install 'gptx-nb[tasks]'` in a cell, and run "
        "this one again"
    )
    with pytest.raises(UsageError, match="chrF and BLEU need sacrebleu, which is not installed here"):
        texts.require("chrF", "BLEU")


def test_scores_load_their_packages_only_when_they_are_asked_for() -> None:
    import subprocess

    code = "import sys, gptx_nb.engine.scores.texts; print({'nltk', 'sacrebleu', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- short answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("an A.B.C. theory", "abc theory"),
        ("  $4,000 ", "4000"),
        ("（北京） ， 2008 年。", "北京2008年"),
        ("“Été”", "été"),
        ("The", ""),
    ],
)
def test_answers_are_normalised_by_squads_rules(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_exact_match_and_token_f1_take_the_best_reference() -> None:
    references = [["Lady Gaga", "Stefani Germanotta"], ["in the year 1969"], ["Paris"], [""]]
    answers = ["the lady Gaga!", "1969", "London", ""]
    assert texts.exact_match(references, answers).value == 0.5
    assert texts.token_f1(references, answers).value == pytest.approx((1 + 0.5 + 0 + 1) / 4)


def test_chinese_answers_are_compared_by_character() -> None:
    assert answer_tokens("1963年，北京 GDP") == ["1963", "年", "北", "京", "gdp"]
    assert texts.token_f1([["印度太平洋区"]], ["太平洋"]).value == pytest.approx(2 * 3 / (6 + 3))
    assert texts.exact_match([["“ 黑鹦嘴鱼 ”"]], ["黑鹦嘴鱼。"]).value == 1.0


def test_words_and_scripts_are_told_apart() -> None:
    assert words("Hello_World, 3.5 北京ok ภาษา") == ["hello", "world", "3", "5", "北", "京", "ok", *"ภาษา"]
    assert spaceless("北京 is")
    assert not spaceless("Beijing 北京 is the capital")
    assert not spaceless("123")
    assert not spaceless("안녕하세요 세계")


def test_references_that_do_not_fit_are_a_bug_and_not_scored() -> None:
    with pytest.raises(ValueError, match="1 lists of references for 2 answers"):
        texts.token_f1([["a"]], ["a", "b"])
    with pytest.raises(ValueError, match="at least one reference"):
        texts.exact_match([[]], ["a"])
    with pytest.raises(ValueError, match="at least one reference"):
        texts.exact_match(["a"], ["a"])  # type: ignore[list-item]


# ---- programs -------------------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_choices_with_a_program_that_passes() -> None:
    passed = [[True, False, False, False], [False] * 4, [True] * 4, [True, True, False, False]]
    assert programs.pass_at(1, passed).value == pytest.approx((0.25 + 0 + 1 + 0.5) / 4)
    for k in (1, 2, 3, 4):
        expected = np.mean([1 - math.comb(4 - sum(each), k) / math.comb(4, k) for each in passed])
        assert programs.pass_at(k, passed).value == pytest.approx(expected)
    assert programs.pass_at(1, passed).examples == 4


def test_pass_at_more_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        programs.pass_at(10, [[True] * 10, [False] * 3])
    assert str(caught.value) == (
        "pass@10 needs at least 10 programs for each problem, and one has 3. Ask for more answers, as in `n: 10`, or "
        "for pass@3"
    )
