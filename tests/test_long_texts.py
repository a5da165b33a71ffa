"""Texts beyond a row: head and tail, windows with pooled logits, and a longer context. Loss, prediction and cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import gptx_nb
from gptx_nb import inference, launch, progress
from gptx_nb.engine import jobs, longer_context, models, packing, plan, tuning
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.device import choose
from gptx_nb.engine.predict import Classifier
from gptx_nb.engine.tasks import label_words, reading, text_classification
from gptx_nb.engine.tasks.label_words import Wording
from gptx_nb.engine.tasks.reading import Reading, Windowed
from gptx_nb.errors import ModelError, RecipeError
from gptx_nb.predictions import Predictions
from gptx_nb.progress import preflight_lines
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run


@pytest.fixture
def process(home: Path) -> Iterator[Path]:
    """An empty home, whose inference process ends with the test."""
    yield home
    inference.free()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@given(text=st.text("abc", min_size=1, max_size=300), most=st.integers(4, 40), stride=st.none() | st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_windows_hold_every_token_in_order_and_end_where_the_text_ends(
    tokenizer: Any, text: str, most: int, stride: int | None
) -> None:
    how = Reading(most, "windows", stride)
    found = reading.encode(tokenizer, [text], how)
    windows, ids = reading.windows_of(found.rows[0]), tokenizer(text)["input_ids"]
    assert all(len(each) <= most for each in windows)
    if found.cut_at:
        assert len(windows) == reading.MOST_WINDOWS
        return
    assert windows[0] == ids[:most]
    assert windows[-1] == ids[-most:]
    covered = {at for start in range(0, len(ids), how.step) for at in range(start, start + most)}
    assert set(range(len(ids))) <= covered
    assert found.tokens == len(ids)


def test_head_and_tail_are_a_quarter_and_three(tokenizer: Any) -> None:
    text = "".join(chr(ord("a") + at % 26) for at in range(100))
    found = reading.encode(tokenizer, [text, "short"], Reading(20, "head+tail"))
    assert tokenizer.decode(found.rows[0]) == text[:5] + text[-15:]
    assert (found.cut_at, tokenizer.decode(found.rows[1])) == ([0], "short")
    book = reading.encode(tokenizer, ["x" * 5_000 + "y" * 5_000], Reading(20, "head+tail"))
    assert tokenizer.decode(book.rows[0]) == "x" * 5 + "y" * 15
    assert book.tokens == 10_000


@pytest.mark.parametrize("tune", ["full", "top:1", "head"])
def test_the_loss_is_that_of_the_mean_of_each_texts_windows(tiny_model: Path, tokenizer: Any, tune: str) -> None:
    base = models.find(str(tiny_model))
    model = models.load_classifier(base, models.load_tokenizer(base), ["a", "b"], seed=0)
    plain = models.load_classifier(base, models.load_tokenizer(base), ["a", "b"], seed=0).eval()
    texts = ["a long one " * 6, "short", "another that is long " * 3]
    rows = reading.encode(tokenizer, texts, Reading(16, "windows")).rows
    cpu = torch.device("cpu")
    learner = text_classification.Learner(
        model, tuning.prepare(model, tune), rows, [0, 1, 1], rows, pad_id=0, device=cpu, batch_size=3, seed=0
    )
    model.eval()
    learner.prepare(lambda: torch.autocast("cpu", enabled=False))
    means = []
    for row in rows:
        with torch.no_grad():
            means.append(
                torch.stack([plain(torch.tensor([window])).logits[0] for window in reading.windows_of(row)]).mean(0)
            )
    expected = torch.nn.functional.cross_entropy(torch.stack(means), torch.tensor([0, 1, 1]))
    step = learner.step(0)
    found = sum(
        float(learner.loss(model, tensors).detach()) * weight
        for tensors, weight in zip(step.micro, step.weights, strict=True)
    )
    assert found == pytest.approx(float(expected), abs=1e-5)
    assert np.abs(learner.held_logits() - torch.stack(means).numpy()).max() < 1e-4
    # A text's windows are computed together, whatever the budget.
    learner.token_budget = 16
    assert sorted(len(tensors["labels"]) for tensors in learner.step(0).micro) == [1, 1, 1]
    assert learner.tokens == sum(map(len, rows))


TAIL = pd.DataFrame(
    [("word " * 30 + ending, ending) for ending in ("good", "bad")] * 20 + [("good", "good"), ("bad", "bad")] * 4,
    columns=["text", "label"],
)


def tuned(name: str, model: Path, data: object, **settings: Any) -> Run:
    small = {"model": str(model), "learning_rate": 0.01, "device": "cpu", "dtype": "float32", "data": "df"}
    return launch.train(name, make_recipe({**small, **settings}), data=data, wait=True).run


def test_a_run_reads_windows_and_predicts_as_it_was_trained(process: Path, tiny_model: Path) -> None:
    run = tuned("windows", tiny_model, TAIL, max_length=64, long_texts="windows", epochs=10, validation=0.25)
    scores = run.scores()
    assert scores is not None
    assert scores["validation"]["accuracy"] == 1.0  # what matters stands behind the first 64 tokens
    told = "\n".join(preflight_lines(run))
    assert "long_texts: windows (40 of 48 texts are longer than 64 tokens, and are read in 120 windows" in told
    assert "times the tokens, and about the time, of cutting" in told
    assert (run.plan() or {})["memory"]["choice"] != "unknown"
    found = gptx_nb.predict("windows", list(TAIL["text"][:2]))
    assert isinstance(found, Predictions)
    assert (found.labels, found.cut_at) == (["good", "bad"], [])
    plain = AutoModelForSequenceClassification.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    row = reading.encode(tokenizer, [TAIL["text"][0]], Reading(64, "windows")).rows[0]
    assert isinstance(row, Windowed)
    with torch.no_grad():
        mean = torch.stack([plain(torch.tensor([each])).logits[0] for each in row.windows]).mean(0)
    assert list(found[0].probabilities.values()) == pytest.approx(sorted(mean.softmax(-1).tolist())[::-1], abs=1e-4)


def test_texts_that_are_cut_are_counted_with_what_windows_would_cost(tokenizer: Any) -> None:
    found = reading.encode(tokenizer, ["x" * 100, "x" * 10], Reading(20))
    assert Reading(20).cost(found.rows, len(found.cut_at), found.tokens) == {
        "choice": "cut",
        "reason": "1 of 2 texts are longer than 20 tokens; the rest is cut. `long_texts: windows` reads all, for about "
        "4.6 times the tokens and time",
    }
    short = reading.encode(tokenizer, ["x"], Reading(20))
    assert Reading(20).cost(short.rows, len(short.cut_at), short.tokens) is None


@pytest.mark.parametrize("prompt", [None, "{text}\nTopic:"])
@pytest.mark.parametrize("way", ["cut", "head+tail", "windows"])
def test_the_texts_that_are_cut_are_known(tokenizer: Any, prompt: str | None, way: Any) -> None:
    wording = None if prompt is None else Wording(prompt, (" a", " b"))
    texts = ["x", "y" * 30, "z" * 40] if way != "windows" else ["x", "y" * 5_000, "z" * 6_000]
    found = label_words.read(tokenizer, wording, texts, Reading(24, way))
    assert found.cut_at == [1, 2]
    assert label_words.read(tokenizer, wording, texts[:1], Reading(24, way)).cut_at == []


def test_a_plan_says_which_the_first_text_that_is_cut_is(home: Path, tiny_model: Path) -> None:
    texts = ["short", "I was told that\nit would last " + "long " * 40, "brief"] * 4
    texts[0] = ""  # left out, and counted as a row all the same
    small = {
        "model": str(tiny_model),
        "max_length": 48,
        "epochs": 1,
        "baselines": False,
        "validation": 0,
        "head": "plain",
    }
    table = pd.DataFrame({"text": texts, "label": ["a", "b", "a"] * 4})
    run = gptx_nb.finetune("long", table, device="cpu", **small)
    told = run.plan()
    assert told is not None
    assert progress.lengths(told).endswith(
        "; 4 rows longer than 48 (the first, row 2, begins 'I was told that it would last long long') will be cut"
    )
    told["tokens"].update(cut=1)
    assert " (it, row 2, begins 'I was told that " in progress.lengths(told)
    told["tokens"].update(cut=4, first_cut="   ")
    assert "longer than 48 (the first is row 2) will be cut" in progress.lengths(told)
    told["tokens"].update(cut=1, first_cut="I was told that\nit")
    told["tokens"].pop("first_cut_row")
    assert " (it begins 'I was told that " in progress.lengths(told), "of a run that does not know"
    short = table.assign(text=table["text"].str[:9])
    held = gptx_nb.finetune("held", short, device="cpu", **{**small, "validation": table[2:]}).plan()
    assert held is not None
    assert held["tokens"]["first_cut_row"].startswith("row 3 of "), "a table of its own"


def test_of_rows_that_are_learnt_and_held_back_the_first_of_the_table_is_named() -> None:
    learnt, held = (Examples(["x", "y"], [0, 1], numbers) for numbers in ([3, 5], [2, 9]))
    recipe = make_recipe({"data": "df"})
    of_one = jobs.Classification(Table(learnt, held, ["a", "b"], {"validation_table": None}), recipe)
    assert of_one._find_first_cut([1], [0]) == ("row 2", "x")
    assert of_one._find_first_cut([1], [1]) == ("row 5", "y")
    assert of_one._find_first_cut([], [1]) == ("row 9", "y")
    assert of_one._find_first_cut([], []) is None
    own = jobs.Classification(Table(learnt, held, ["a", "b"], {"validation_table": {"source": "held.csv"}}), recipe)
    assert own._find_first_cut([1], [0]) == ("row 5", "y")
    assert own._find_first_cut([], [0]) == ("row 2 of held.csv", "x")
    older = jobs.Classification(Table(Examples(["x"], [0]), None, ["a", "b"], {}), recipe)
    assert older._find_first_cut([0], []) == (None, "x")


def test_settings_of_long_texts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RecipeError, match="stride is for `long_texts: windows`; type that too, or leave stride out"):
        make_recipe({"data": "df", "stride": 10})
    with pytest.raises(RecipeError, match="rope scales positions for a longer context; say how long"):
        make_recipe({"data": "df", "rope": "yarn"})
    with pytest.raises(RecipeError, match="long_texts: 'middle' does not fit"):
        make_recipe({"data": "df", "long_texts": "middle"})


# ---- a longer context -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "llama"
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=64, initializer_range=0.3, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rope", ["linear", "yarn"])
def test_rotary_positions_are_scaled_by_transformers_and_saved_as_a_plain_model(
    llama: Path, tmp_path: Path, rope: str
) -> None:
    base = models.find(str(llama))
    model, before = models.load_causal(base).eval(), models.load_causal(base).eval()
    said = longer_context.extend(model, make_recipe({"model": str(llama), "context": 256, "rope": rope}))
    assert said is not None
    assert said.startswith(f"rotary positions scaled from 64 tokens, {rope} with factor 4: ")
    ids = torch.randint(1, 257, (1, 40))
    with torch.no_grad():
        if rope == "linear":  # every fourth position is one that the model knows
            places, seen = torch.arange(40)[None], torch.ones(1, 40)
            expected = before(ids, position_ids=places, attention_mask=seen).logits
            found = model(ids, position_ids=4 * places, attention_mask=seen).logits
            assert torch.allclose(found, expected, atol=1e-4)
        long = torch.randint(1, 257, (1, 200))
        here = model(long).logits
        model.save_pretrained(tmp_path / "model")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert torch.allclose(plain(long).logits, here, atol=1e-5)
        assert not torch.allclose(model(ids).logits, before(ids).logits, atol=1e-3)
    assert models.context(plain.config) == 256
    packing.use(model)
    packed = packing.states(model, packing.pack([long[0].tolist()], 0))
    with torch.no_grad():
        assert torch.allclose(packed, plain.model(long).last_hidden_state[0], atol=1e-4)


def test_learned_positions_are_interpolated_and_trained(tiny_model: Path) -> None:
    base = models.find(str(tiny_model))
    asked = make_recipe({"model": str(tiny_model), "context": 255, "tune": "lora"})
    model, before = models.load_causal(base), models.load_causal(base)
    said = longer_context.extend(model, asked)
    assert said is not None
    assert said.startswith("the 128 learned positions are interpolated to 255 and tuned with the rest")
    new, old = model.base_model.wpe.weight, before.base_model.wpe.weight  # type: ignore[union-attr]
    assert torch.allclose(new[::2], old, atol=1e-6)
    assert torch.allclose(new[1], (old[0] + old[1]) / 2, atol=1e-6)  # type: ignore[operator]
    known = tuning.prepare(model, "lora")
    assert longer_context.train_positions(model, known, asked).trained == known.trained + 255 * 64
    assert new.requires_grad
    assert plan.max_length(asked, 255) == (255, "the context that the recipe asks for")


def test_contexts_that_cannot_be_are_refused(llama: Path, tiny_model: Path, tmp_path: Path) -> None:
    def asked(model: PreTrained, **settings: Any) -> None:
        longer_context.extend(model, make_recipe({"model": "m", **settings}))

    rotary, learned = models.load_causal(models.find(str(llama))), models.load_causal(models.find(str(tiny_model)))
    with pytest.raises(RecipeError, match=r"context: 64 is asked for, and m sees 64 tokens as it is\. Leave it out"):
        asked(rotary, context=64)
    with pytest.raises(RecipeError, match="rope: m has learned positions, and no rotary ones to scale"):
        asked(learned, context=256, rope="yarn")
    with pytest.raises(RecipeError, match=r"and `tune: head` leaves them as they are\. Type `tune: full` or"):
        asked(learned, context=256, tune="head")
    with pytest.raises(RecipeError, match=r"which no adapter can hold\. Leave `save: adapter` out"):
        asked(learned, context=256, tune="lora", save="adapter")
    asked(rotary, context=128)
    with pytest.raises(ModelError, match=r"the positions of m are scaled already \(yarn\), to 128 tokens"):
        asked(rotary, context=256)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
    }
    other = OPTForCausalLM(OPTConfig(vocab_size=257, max_position_embeddings=64, **size))
    with pytest.raises(ModelError, match="m is a opt model, whose positions cannot be stretched here: it sees 64"):
        asked(other, context=128)


PreTrained = Any


def test_a_run_with_a_longer_context_reads_what_it_could_not_before(process: Path, tiny_model: Path) -> None:
    run = tuned("longer", tiny_model, TAIL, context=192, epochs=6, validation=0.25)
    assert (run.plan() or {})["context"]["choice"] == 192
    assert any("Context: 192 tokens; the 128 learned positions" in line for line in preflight_lines(run))
    scores = run.scores()
    assert scores is not None
    assert scores["validation"]["accuracy"] == 1.0
    model = Classifier.load(run.model, choose("cpu", "float32"))
    assert model.max_length == 192
