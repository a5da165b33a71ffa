"""Text classification: one label a text, read off the last token of a causal language model.

The head is transformers' own (`AutoModelForSequenceClassification`): a linear layer on the hidden state of the last
token that is not padding (Radford et al. 2018), so that the saved model is a plain one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gptx_nb.engine import batches, packing

Tensors = dict[str, torch.Tensor]


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    """Return each text's tokens, at most `max_length`, and how many texts were cut.

    Text never becomes a special token: a review that says "<|endoftext|>" is spelled, else it would read as padding.
    """
    if not texts:
        return [], 0
    # A rough cut by characters first: a token spells at most a few dozen, and a book need not be tokenised whole.
    rough = [text[: max_length * 40] for text in texts]
    rows = tokenizer(rough, split_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    cut = sum(
        len(row) > max_length or len(text) > len(part) for row, text, part in zip(rows, texts, rough, strict=True)
    )
    return [row[:max_length] for row in rows], cut


def make_step(
    step: int,
    rows: list[list[int]],
    labels: list[int],
    *,
    batch_size: int,
    pad_id: int,
    seed: int,
    packed: bool = False,
    token_budget: int = 4096,
) -> batches.Step:
    """Return the batch of one step, in as many micro-batches as `token_budget` asks for: memory does not grow with
    `batch_size`. `packed`: for a model with packed attention (see packing); else padded."""
    chosen, _ = batches.step_rows(step, rows=len(rows), batch_size=batch_size, seed=seed)
    micro, weights = [], []
    for group in batches.by_length([rows[index] for index in chosen], token_budget=token_budget, packed=packed):
        members = [chosen[place] for place in group]
        tensors = _tensors([rows[index] for index in members], pad_id, packed)
        tensors["labels"] = torch.tensor([labels[index] for index in members])
        micro.append(tensors)
        weights.append(len(members) / len(chosen))
    return batches.Step(micro, tokens=sum(max(1, len(rows[index])) for index in chosen), weights=weights)


def _tensors(rows: list[list[int]], pad_id: int, packed: bool) -> Tensors:
    return packing.pack(rows, pad_id) if packed else batches.pad(rows, pad_id)


def _logits(model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
    if "spread" not in tensors:
        padded: torch.Tensor = model(
            input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
        ).logits
        return padded
    classifier: Any = model  # transformers gives every decoder's classifier a `score`
    scored: torch.Tensor = classifier.score(packing.states(classifier, tensors)[tensors["last"]])
    return scored


def loss(model: torch.nn.Module, tensors: Tensors) -> torch.Tensor:
    """Return the mean cross entropy, in nats, of the labels."""
    return torch.nn.functional.cross_entropy(_logits(model, tensors).float(), tensors["labels"])


def logits(
    model: torch.nn.Module,
    rows: list[list[int]],
    *,
    pad_id: int,
    device: torch.device,
    labels: int,
    packed: bool = False,
    token_budget: int = 8192,
) -> np.ndarray:
    """Return float32 logits of shape (texts, labels), in the order of `rows`; batches are made by length.

    `labels` is the number of labels.
    """
    result = np.zeros((len(rows), labels), dtype=np.float32)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for group in batches.by_length(rows, token_budget=token_budget, packed=packed):
            tensors = _tensors([rows[index] for index in group], pad_id, packed)
            output = _logits(model, {name: tensor.to(device) for name, tensor in tensors.items()})
            result[group] = output.float().cpu().numpy()
    model.train(was_training)
    return result
