"""The classifier of a saved folder: padding, special tokens, length, and what it refuses."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

import gptx_nb
from gptx_nb.engine.device import Device, choose, is_out_of_memory
from gptx_nb.engine.predict import Classifier
from gptx_nb.errors import ModelError

TINY = Path(gptx_nb.__file__).parent / "models" / "tiny"
LABELS = {0: "bad", 1: "good", 2: "so so"}
CONTEXT = 64


@pytest.fixture(scope="module")
def cpu() -> Device:
    return choose("cpu", "float32")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """The embedded model's: it pads with its end-of-text token, as GPT-2 does."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokenizer.model_max_length = CONTEXT
    return tokenizer


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama with a beginning-of-text token"])
def folder(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small model of random weights, large enough that every token changes the result."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "id2label": LABELS, "num_labels": 3}
    if request.param == "gpt2":
        size = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": CONTEXT}
        model = GPT2ForSequenceClassification(
            GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, **size, **ids)
        )
    else:
        size = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        config = LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, initializer_range=0.3, **size, **ids
        )
        model = LlamaForSequenceClassification(config)
    path = tmp_path_factory.mktemp("model") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if "beginning" in request.param:
        from tokenizers import processors

        framed = AutoTokenizer.from_pretrained(path)
        framed._tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        framed.save_pretrained(path)
    return path


MIXED = [
    "Good.",
    "",
    "This is a much longer review, which says at length that the thing does what it should, and little more.",
    "<|endoftext|>",
    "It broke.<|endoftext|>",
    "<|endoftext|>It broke.",
    "   ",
    "好的产品 🙂 très bien",
    "word " * 500,
    "\0\n\t",
    "Good.",
]


def test_a_batch_of_mixed_lengths_gives_what_one_text_at_a_time_gives(folder: Path, cpu: Device) -> None:
    classifier = Classifier.load(folder, cpu)
    together = torch.tensor(classifier.predict(MIXED))
    alone = torch.tensor([classifier.predict([text])[0] for text in MIXED])
    assert (together - alone).abs().max() < 1e-4
    assert torch.allclose(together.sum(-1), torch.ones(len(MIXED)))
    # Else the comparison would hold for a model that says the same of everything.
    assert (together[0] - together[2]).abs().max() > 0.01


def test_labels_do_not_depend_on_the_arithmetic_that_training_likes(folder: Path, cpu: Device) -> None:
    expected = torch.tensor(Classifier.load(folder, cpu).predict(MIXED))
    other = Classifier.load(folder, choose("cpu", "bfloat16"))
    found = torch.tensor(other.predict(MIXED))
    assert torch.equal(expected.argmax(-1), found.argmax(-1))
    # Whether products are in bfloat16 is measured here: then shares of sure labels may differ a little.
    assert (expected - found).abs().max() < (1e-6 if other.dtype is torch.float32 else 0.03)


def test_it_pools_at_the_last_token_and_not_at_padding(folder: Path, cpu: Device) -> None:
    classifier = Classifier.load(folder, cpu)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = getattr(model, model.base_model_prefix)
    for text in ("Good.", "It broke.<|endoftext|>", "This one is a little longer."):
        ids = tokenizer(text, split_special_tokens=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model.score(base(input_ids=ids).last_hidden_state[0, -1]).softmax(-1)
        got = torch.tensor(classifier.predict([text, "A far longer text, so that the first needs padding " * 2])[0])
        assert (got - expected).abs().max() < 1e-4


def test_text_that_spells_a_special_token_is_read_as_text(folder: Path, cpu: Device) -> None:
    classifier = Classifier.load(folder, cpu)
    plain, spelled = classifier.predict(["It broke.", "It broke.<|endoftext|>"])
    assert max(abs(one - other) for one, other in zip(plain, spelled, strict=True)) > 1e-4


def test_order_is_kept(folder: Path, cpu: Device) -> None:
    classifier = Classifier.load(folder, cpu)
    texts = [f"number {n} " * (n % 17 + 1) for n in range(200)]
    expected = dict(zip(texts, classifier.predict(texts), strict=True))
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    for text, row in zip(shuffled, classifier.predict(shuffled), strict=True):
        assert row == pytest.approx(expected[text], abs=1e-4)


def test_a_text_of_100_000_characters_is_cut_and_counted(folder: Path, cpu: Device) -> None:
    classifier = Classifier.load(folder, cpu)
    assert classifier.max_length == CONTEXT
    spaced, solid = "very " * 20_000, "a" * 100_000
    answer = classifier.classify([spaced, "short", solid])
    assert answer.cut_at == [0, 2]
    start = classifier.predict(["very " * 1_000])[0]
    assert answer.probabilities[0] == pytest.approx(start, abs=1e-4)


def test_no_texts_give_no_rows(folder: Path, cpu: Device) -> None:
    answer = Classifier.load(folder, cpu).classify([])
    assert answer.probabilities == []
    assert answer.cut_at == []


def test_labels_come_in_the_order_of_the_config(folder: Path, cpu: Device) -> None:
    assert Classifier.load(folder, cpu).labels == ["bad", "good", "so so"]


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path, cpu: Device) -> None:
    with pytest.raises(ModelError, match=r"model/ holds no model: it has no config\.json"):
        Classifier.load(tmp_path / "model", cpu)


def test_harmed_weights_are_refused_in_one_line(folder: Path, tmp_path: Path, cpu: Device) -> None:
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="model/ cannot be loaded") as caught:
        Classifier.load(tmp_path / "model", cpu)
    assert "\n" not in str(caught.value)


def test_a_model_without_its_head_is_refused_instead_of_guessing(cpu: Device) -> None:
    with pytest.raises(ModelError, match=r"weights are missing \(score.weight\)"):
        Classifier.load(TINY, cpu)


def test_a_pickle_is_never_loaded(folder: Path, tmp_path: Path, cpu: Device) -> None:
    shutil.copytree(folder, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        Classifier.load(tmp_path / "model", cpu)


def test_weights_that_are_not_finite_are_told_and_not_shown(folder: Path, tmp_path: Path, cpu: Device) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="no finite numbers"):
        Classifier.load(tmp_path / "model", cpu).predict(["Good."])


def test_running_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
