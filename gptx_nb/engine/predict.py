"""A trained classifier: texts in, probabilities out. It loads a plain Hugging Face folder and knows no run.

Tokens and batches are those of training's scoring (`text_classification`): rows of similar length together, packed
where the model allows that. So in one arithmetic a text's result does not
depend on the texts beside it, but for rounding.

Labels are float32's. Where the device computes bfloat16 faster (`arithmetic`), products are in it, and the texts whose
labels rounding could change are computed again in float32 (`close_calls`): few where weights are dithered (`products`),
more where they are not. (With heads whose logits differ by about 2, on joined SST-2 sentences, weights rounded to the
nearest number alone change 0.35 % of 2,000 labels with tiny.) What is left of that is in the probabilities of texts
whose labels are sure.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gptx_nb import files
from gptx_nb.engine import (
    arithmetic,
    close_calls,
    graphs,
    lean,
    models,
    multi_label,
    norms,
    packing,
    products,
    streams,
    varlen,
)
from gptx_nb.engine.device import Device, cores, is_out_of_memory
from gptx_nb.engine.models import context
from gptx_nb.engine.tasks import label_words, text_classification
from gptx_nb.engine.tasks.label_words import Wording
from gptx_nb.engine.tasks.reading import Reading, Row
from gptx_nb.errors import ModelError
from gptx_nb.inference import CLASSIFIER_FILE

# Tokens of one batch, padding included. A CPU gains nothing from more than its caches hold: with smollm2-135m and AMX,
# 768 give 2.0 times the tokens a second that 4,096 give. A GPU wants work.
CPU_TOKENS = 768
# The same where float32 weights are put together anew for each batch.
CPU_EXACT_TOKENS = 4_096
GPU_TOKENS = 32_768


@dataclass(frozen=True)
class Answer:
    """`probabilities`: a row a text, a column a label. `cut_at`: the places of texts too long to be read whole.

    A row's sum is 1, but where a text may have several labels: then each is a probability by itself.
    """

    probabilities: list[list[float]]
    cut_at: list[int]


class Classifier:
    """A sequence classifier and its tokenizer on one device, and the prompt that it reads texts in, if it has one.

    `labels` are in the order of the columns, `max_length` is in tokens, `bytes` is what the weights take. `threshold`:
    from which probability on a label is given, or one for each label, where a text may have several; else None.
    `reading` by default sees the first tokens of a text. `dtype` of the products: by default `arithmetic`'s.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        reading: Reading | None = None,
        threshold: multi_label.Threshold | None = None,
        wording: Wording | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        pad_id = model.config.pad_token_id
        if pad_id is None:
            raise ModelError("the model's config.json has no pad_token_id, so texts cannot be padded")
        names: dict[Any, str] = model.config.id2label or {}
        self.labels = [names[number] for number in sorted(names)]
        self.max_length = min(context(model.config), tokenizer.model_max_length)
        self.reading = reading or Reading(self.max_length)
        several = model.config.problem_type == "multi_label_classification"
        self.threshold = (threshold or multi_label.USUAL) if several else None
        self._device = device.device
        torch.nn.Module.to(model, device.device)  # transformers' own `to` is typed wrongly
        self.dtype = dtype or arithmetic.of_answers(device).dtype
        products.prepare(model, self.dtype)
        self.bytes = products.size(model)
        self._packed = packing.use(model) is None
        norms.use(model)
        lean.use(model)
        self._model = model.eval()
        fast = self._packed and self.dtype is torch.bfloat16 and varlen.serves(self._device, self.dtype, model.config)
        self._recorded = graphs.Graphs(model) if fast else None
        self._tokenizer = tokenizer
        self._wording = wording
        self._pad_id: int = pad_id
        self._threads = streams.threads_of(model)
        # By how much bfloat16 may move what decides a label.
        self._moved = self._try() if self.dtype is torch.bfloat16 else None

    @classmethod
    def load(cls, folder: Path, device: Device, dtype: torch.dtype | None = None) -> Classifier:
        """Load a folder made by `save_pretrained`: only safetensors, only local files, no code from the folder.

        Raises ModelError for a folder that is missing, harmed, or holds no classifier.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder.name}/ holds no model: it has no config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, gone = models.from_folder(AutoModelForSequenceClassification, folder)
        except ModelError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            shown = " ".join(str(error).split())[:200]
            raise ModelError(f"{folder.name}/ cannot be loaded: {type(error).__name__}: {shown}") from error
        if gone:  # transformers would go on with random numbers in their place
            missing = ", ".join(gone[:3])
            raise ModelError(f"{folder.name}/ holds no whole classifier: weights are missing ({missing})")
        told = files.read_json(folder / CLASSIFIER_FILE) or {}
        longest = min(context(model.config), tokenizer.model_max_length)
        reading, wording = Reading.of_folder(folder, longest), label_words.beside(folder)
        return cls(model, tokenizer, device, reading, told.get("threshold"), wording, dtype)

    def predict(self, texts: list[str]) -> list[list[float]]:
        """Return a row of probabilities for each text, in the order of the texts."""
        return self.classify(texts).probabilities

    def classify(self, texts: list[str]) -> Answer:
        """Return the probabilities, in the order of the texts, and which texts were cut at `max_length` tokens.

        In bfloat16 labels are float32's all the same, and probabilities are near to its.
        Raises ModelError if the weights give no finite number.
        """
        found = label_words.read(self._tokenizer, self._wording, texts, self.reading)
        logits = self._settled(found.rows)
        if not np.isfinite(logits).all():
            raise ModelError("the model gives no finite numbers: its training has diverged")
        wide = torch.from_numpy(logits).double()
        probabilities: list[list[float]] = (wide.softmax(-1) if self.threshold is None else wide.sigmoid()).tolist()
        return Answer(probabilities, found.cut_at)

    def _settled(self, rows: Sequence[Row]) -> np.ndarray:
        """Return the logits of `rows`, whose labels are float32's: rows whose labels are open are computed exactly."""
        logits = self._logits(rows)
        if self._moved is None:
            return logits
        return close_calls.settle(
            logits, self.threshold, self._moved, lambda places: self._exactly([rows[at] for at in places])
        )

    def _exactly(self, rows: Sequence[Row]) -> np.ndarray:
        with products.exactly(self._model):
            return self._logits(rows, exact=True)

    def _logits(self, rows: Sequence[Row], *, exact: bool = False) -> np.ndarray:
        """Return the logits (rows, labels). `exact`: products are float32 ones at the moment."""
        on_cpu = self._device.type == "cpu"
        # Several texts, or windows of one, share the cores (`streams`).
        tokens = len(rows[0]) if len(rows) == 1 and isinstance(rows[0], list) else 0
        kind = "exact" if exact else "plain"
        with self._threads.quickest(kind, tokens) if on_cpu and tokens else contextlib.nullcontext():
            return text_classification.logits(
                self._model,
                rows,
                pad_id=self._pad_id,
                device=self._device,
                labels=len(self.labels),
                packed=self._packed,
                token_budget=(CPU_EXACT_TOKENS if exact else CPU_TOKENS) if on_cpu else GPU_TOKENS,
                recorded=None if exact else self._recorded,
            )

    def _try(self) -> float:
        texts = close_calls.texts_to_try(self._tokenizer)
        rows = label_words.read(self._tokenizer, self._wording, texts, self.reading).rows
        return close_calls.bound(self._exactly(rows), self._logits(rows), self.threshold)

    def close(self) -> None:
        """Give the memory back. The classifier cannot be used after this."""
        del self._model
        self._recorded = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def use_all_cores() -> None:
    """Let matrix products take every core that this process may use."""
    torch.set_num_threads(cores())
