"""A trained classifier: texts in, probabilities out. It loads a plain Hugging Face folder and keeps no run in mind.

Rows are sorted by length and padded on the right, so a row's result does not depend on the rows beside it: attention
is causal, and transformers pools at the last token that is not the padding token. What a user writes never becomes a
special token (`encode`), so a text that holds `<|endoftext|>` is not taken for padding.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gptx_nb.engine.device import Device
from gptx_nb.errors import ModelError

# Tokens of one batch, padding included. A CPU gains nothing from more, and its caches hold this much; a GPU wants work.
CPU_TOKENS = 4_096
GPU_TOKENS = 32_768


@dataclass(frozen=True)
class Answer:
    """`probabilities`: a row a text, a column a label, each row's sum 1. `cut`: the text was longer than the model."""

    probabilities: list[list[float]]
    cut: list[bool]


class Classifier:
    """A sequence classifier and its tokenizer on one device. `labels` stand in the order of the columns."""

    def __init__(self, model: Any, tokenizer: Any, device: Device) -> None:
        self._model = model.to(device.device).eval()
        self._tokenizer = tokenizer
        self._device = device
        config = model.config.get_text_config()
        self._pad = next(
            (i for i in (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), None
        )
        if self._pad is None:
            raise ModelError("the model has no padding token: set pad_token_id in its config.json")
        config.pad_token_id = model.config.pad_token_id = self._pad  # where transformers looks when it pools
        self.labels: list[str] = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.max_length = longest(config, tokenizer)
        self.bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))

    @classmethod
    def load(cls, folder: Path, device: Device) -> Classifier:
        """Load a folder made by `save_pretrained`. Only safetensors, only local files, no code from the folder.

        Weights are float32; where a GPU was given a lower precision, it is used by autocast as in training. Raises
        ModelError for a folder that is missing, incomplete or no classifier.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder.name}/ holds no model: it has no config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ModelError(f"the model in {folder.name}/ cannot be loaded: {_one_line(error)}") from error
        if report["missing_keys"]:  # transformers would go on with random numbers in their place
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ModelError(f"the model in {folder.name}/ is not a whole classifier: it lacks the weights {missing}")
        return cls(model, tokenizer, device)

    def predict(self, texts: list[str]) -> list[list[float]]:
        """Return a row of probabilities for each text, in the order of the texts."""
        return self.classify(texts).probabilities

    def classify(self, texts: list[str]) -> Answer:
        """Return probabilities and which texts were cut at `max_length` tokens, in the order of the texts.

        Raises ModelError if the weights give no finite number.
        """
        rows, cut = encode(self._tokenizer, texts, self.max_length)
        empty: Any = next(
            (i for i in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id) if i is not None), self._pad
        )
        rows = [row or [empty] for row in rows]  # a model needs at least one token
        probabilities: list[list[float]] = [[] for _ in rows]
        budget = CPU_TOKENS if self._device.device.type == "cpu" else GPU_TOKENS
        for places in batches([len(row) for row in rows], budget):
            for place, values in zip(places, self._forward([rows[place] for place in places]), strict=True):
                if not all(math.isfinite(value) for value in values):
                    raise ModelError("the model gives no finite numbers: its training has diverged")
                probabilities[place] = values
        return Answer(probabilities, cut)

    def _forward(self, rows: list[list[int]]) -> list[list[float]]:
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        where, dtype = self._device.device, self._device.dtype
        lower = where.type != "cpu" and dtype is not torch.float32
        with torch.inference_mode(), torch.autocast(where.type, dtype) if lower else contextlib.nullcontext():
            logits = self._model(input_ids=ids.to(where), attention_mask=mask.to(where), use_cache=False).logits
        values: list[list[float]] = logits.float().softmax(-1).tolist()
        return values

    def close(self) -> None:
        """Give the memory back. The classifier cannot be used after this."""
        self._model = None
        gc.collect()
        if self._device.device.type == "cuda":
            torch.cuda.empty_cache()


def encode(tokenizer: Any, texts: list[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
    """Return the token ids of each text, at most `max_length`, and whether it was cut. An empty text may give none.

    The tokenizer's own frame (a beginning-of-text token, if it writes one) is kept; the text itself is never read as a
    special token. Training has to use this function too, or it would see other tokens than prediction.
    """
    if not texts:
        return [], []
    options: dict[str, Any] = {
        "split_special_tokens": True,
        "padding": False,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "verbose": False,  # a warning about length would be wrong: long rows are cut below
    }
    rows: list[list[int]] = tokenizer(texts, truncation=False, **options)["input_ids"]
    cut = [len(row) > max_length for row in rows]
    long = [place for place, each in enumerate(cut) if each]
    if long:
        # Cut by the tokenizer and not here, so that its frame stays whole.
        again = tokenizer([texts[place] for place in long], truncation=True, max_length=max_length, **options)
        for place, row in zip(long, again["input_ids"], strict=True):
            rows[place] = row
    return rows, cut


def longest(config: Any, tokenizer: Any) -> int:
    """Return how many tokens fit: the tokenizer's `model_max_length` or the model's positions, whichever is less."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(positions, tokenizer.model_max_length))


def batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Group rows of similar length: lists of places in `lengths`, each of at most `budget` tokens after padding.

    A row longer than `budget` gets a batch of its own.
    """
    grouped: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Rows come in rising length, so the newest is the width of its batch.
        if grouped and (len(grouped[-1]) + 1) * lengths[place] <= budget:
            grouped[-1].append(place)
        else:
            grouped.append([place])
    return grouped


def use_all_cores() -> None:
    """Let matrix products take every core that this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores or 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether `error` means that the device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)  # the CPU's allocator and MPS raise a plain RuntimeError
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
