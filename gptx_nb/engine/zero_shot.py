"""A base model that gives labels although it was never trained to: by the words of the labels behind a prompt.

Examples with their labels may stand before each text (Brown et al. 2020, arXiv:2005.14165). What every text gets by the
prompt alone is taken out (see `label_words`): for that, and for nothing else, it looks at some of the texts that it is
asked about, and at texts that say nothing. Labels are float32's, as those of `predict`. Trains nothing, and knows no
run.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gptx_nb.engine import arithmetic, close_calls, lean, models, products
from gptx_nb.engine.device import Device
from gptx_nb.engine.models import Base, context
from gptx_nb.engine.predict import CPU_EXACT_TOKENS, CPU_TOKENS, GPU_TOKENS, Answer
from gptx_nb.engine.tasks import label_words
from gptx_nb.engine.tasks.label_words import SAY_NOTHING, SHARPNESS, Wording
from gptx_nb.engine.tasks.reading import CHARACTERS_A_TOKEN, Reading, flat
from gptx_nb.errors import DataError, nearest

KEPT_HEADS = 8


def read_wording(
    labels: Sequence[str],
    prompt: str | None = None,
    words: Mapping[str, str] | None = None,
    shots: Sequence[tuple[str, str]] = (),
    columns: tuple[str, str] = ("", ""),
    texts: Sequence[str] = (),
    pair: bool = False,
) -> Wording:
    """Return how texts are put to the model; `shots` are texts with labels. Raises DataError for what does not fit.

    `columns` are the names of the text's and the label's, if they come from a table; `texts` are some of the texts, of
    which each is a `pair` or none.
    """
    if len(set(labels)) < 2:
        raise DataError(
            f"labels: at least two are needed, and there are {len(set(labels))}: {', '.join(labels)}. "
            "Name them as in `--labels positive,negative`"
        )
    for label in words or {}:
        if label not in labels:
            raise DataError(f"label_words: {label!r} is none of the labels.{nearest(label, labels)}")
    found = label_words.wording(
        labels, text_column=columns[0], label_column=columns[1], prompt=prompt, words=words, texts=texts, pair=pair
    )
    if isinstance(found, str):
        raise DataError(
            f"labels: {found}. Say what they mean, as in `label_words: {{{labels[0]}: good, {labels[1]}: bad}}`"
        )
    for number, (_, label) in enumerate(shots, 1):
        if label not in labels:
            raise DataError(f"shot {number} has the label {label!r}, which is none of {', '.join(labels)}")
    return found.after([text for text, _ in shots], [list(labels).index(label) for _, label in shots])


class ZeroShot:
    """A base model on one device, asked for labels. `bytes` is what its weights take, `dtype` that of its products."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        output: torch.Tensor,
        device: Device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.max_length = context(model.config)
        self._output = output.float().cpu()
        torch.nn.Module.to(model, device.device)  # transformers' own `to` is typed wrongly
        self.dtype = dtype or arithmetic.of_answers(device).dtype
        products.prepare(model, self.dtype)
        lean.use(model)
        self.bytes = products.size(model)
        self._model, self._tokenizer, self._device = model.eval(), tokenizer, device.device
        self._heads: OrderedDict[tuple[Any, ...], tuple[torch.Tensor, float]] = OrderedDict()

    @classmethod
    def load(cls, base: Base, device: Device, dtype: torch.dtype | None = None) -> ZeroShot:
        """Load a base model. Raises ModelError."""
        tokenizer = models.load_tokenizer(base)
        model = models.load_classifier(base, tokenizer, ["0", "1"], 0)  # whose head is never asked
        return cls(model, tokenizer, models.output_rows(base, model), device, dtype)

    def classify(self, texts: Sequence[str], wording: Wording, beside: Sequence[str], pair: bool = False) -> Answer:
        """Return probabilities in the order of the texts; `beside` are texts of their kind that calibrate them.

        `pair`: each is two texts, the longer of which is cut where both are too long.
        """
        key = (wording, tuple(beside), pair)
        if key not in self._heads:
            self._heads[key] = self._head(wording, beside, pair)
            if len(self._heads) > KEPT_HEADS:
                self._heads.popitem(last=False)
        head, moved = self._heads[key]
        rows, cut_at = self._read(wording, texts, pair)
        logits = self._logits(rows, head)
        if self.dtype is torch.bfloat16:
            with products.exactly(self._model):
                logits = close_calls.settle(
                    logits, None, moved, lambda again: self._logits([rows[at] for at in again], head, CPU_EXACT_TOKENS)
                )
        shares: list[list[float]] = torch.from_numpy(logits).double().softmax(-1).tolist()
        return Answer(shares, cut_at)

    def sizes(self, texts: Sequence[str], most: int) -> list[int]:
        """Return the tokens of each text, of which no more than about `most` are counted."""
        read = [text[: most * CHARACTERS_A_TOKEN] for text in texts]
        return [len(ids) for ids in self._tokenizer(read, add_special_tokens=False, verbose=False)["input_ids"]]

    def _read(self, wording: Wording, texts: Sequence[str], pair: bool) -> tuple[list[list[int]], list[int]]:
        if not pair:
            return label_words.encode(self._tokenizer, wording, texts, self.max_length)
        found = label_words.read(self._tokenizer, wording, texts, Reading(self.max_length, pair=True))
        return flat(list(found.rows)), found.cut_at

    def _head(self, wording: Wording, beside: Sequence[str], pair: bool) -> tuple[torch.Tensor, float]:
        """Return the head (labels, width) as float32 has it, and by how much bfloat16 may move what decides a label."""
        words = label_words.word_rows(self._output, self._tokenizer, wording.words)
        silent, seen = (self._read(wording, texts, pair)[0] for texts in (SAY_NOTHING, beside))
        rows = [*silent, *seen]
        with products.exactly(self._model):
            states = self._states(rows, CPU_EXACT_TOKENS)
        head = SHARPNESS * label_words.head(words, states[len(silent) :], states[: len(silent)])
        if self.dtype is torch.float32:
            return head, 0.0
        exact = (states @ head.T).numpy()[: close_calls.TRIED]
        return head, close_calls.bound(exact, self._logits(rows[: close_calls.TRIED], head), None)

    def _logits(self, rows: Sequence[list[int]], head: torch.Tensor, cpu_tokens: int = CPU_TOKENS) -> np.ndarray:
        found: np.ndarray = (self._states(rows, cpu_tokens) @ head.T).numpy()
        return found

    def _states(self, rows: Sequence[list[int]], cpu_tokens: int = CPU_TOKENS) -> torch.Tensor:
        pad: Any = self._tokenizer.pad_token_id
        budget = cpu_tokens if self._device.type == "cpu" else GPU_TOKENS
        return label_words.states(self._model, rows, pad_id=pad, token_budget=budget)

    def close(self) -> None:
        """Give the memory back. It cannot be asked after this."""
        del self._model
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
