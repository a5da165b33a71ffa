"""Fixtures that every test may use. No test reaches a hub."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsers
import pytest
from hypothesis import settings
from IPython.core.interactiveshell import InteractiveShell
from servers import JupyterServer

from gptx_nb import inference, launch
from gptx_nb.runs import RunStore

os.environ["HF_HUB_OFFLINE"] = "1"

settings.register_profile("fixed", derandomize=True)  # the same examples in every run
settings.load_profile("fixed")


# The files that take longest, in that order: begun last, one of them would keep a single process busy at the end.
LONGEST = ("test_lab_browser.py", "test_sharding.py", "test_launch.py", "test_browser.py", "test_out_of_memory.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$GPTX_HOME`."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GPTX_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def plain_shell(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A fresh IPython with the magics, without a kernel."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "gptx_nb")
    yield shell
    shell.run_line_magic("unload_ext", "gptx_nb")
    InteractiveShell.clear_instance()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small GPT-2 of random weights and a tokenizer of bytes; like GPT-2 it has no pad token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, bos_token=end, unk_token=end, model_max_length=128
    )

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128}
    config = GPT2Config(vocab_size=len(vocabulary), bos_token_id=0, eos_token_id=0, **size)
    GPT2LMHeadModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """A JupyterLab that serves, one for all journeys of a file; under a prefix, as behind a proxy or a hub."""
    found = browsers.make_lab(tmp_path_factory.mktemp("lab"), base="/some/prefix/")
    found.start()
    yield found
    found.end()
    for run in RunStore(found.home).runs():  # of a journey that failed on its way
        if run.active:
            launch.kill(run)
    inference.free(found.home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium. Not of the whole session: it holds an event loop, which other tests start themselves."""
    with browsers.chromium() as found:
        yield found
