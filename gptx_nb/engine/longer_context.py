"""A longer context than a model was pretrained with, to be tuned from there.

Rotary positions are scaled, by transformers' own code and in the saved config, so that the saved model is a plain one:

    linear   every position is divided by the factor (Chen et al. 2023, arXiv:2306.15595)
    yarn     slow rotations are divided, fast ones stay, attention is sharpened (Peng et al. 2023, arXiv:2309.00071)

Scaling by the length of the text at hand ("dynamic") is not offered: transformers scales a whole batch by its longest
text, so a text's answer would depend on the texts beside it. GPT-2's learned positions are interpolated to more of
them; the first and the last keep their vectors, and all are trained, as none of the others is what the model knew.
Architectures whose positions are made otherwise are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from gptx_nb.engine import models
from gptx_nb.engine.tuning import Tuning
from gptx_nb.errors import ModelError, RecipeError
from gptx_nb.recipe import Recipe


def extend(model: PreTrainedModel, recipe: Recipe) -> str | None:
    """Let `model` see `recipe.context` tokens, in place; return how, in words. None: nothing was asked for.

    Raises RecipeError for a context that is not longer, ModelError for a model that cannot be made to see more.
    """
    if recipe.context is None:
        return None
    before, wanted = models.context(model.config), recipe.context
    if wanted <= before:
        raise RecipeError(
            f"context: {wanted:,} is asked for, and {recipe.model} sees {before:,} tokens as it is. Leave it out; "
            f"shorter rows are made by `max_length: {wanted}`"
        )
    if model.config.model_type == "gpt2":
        return _interpolate(model, recipe, before, wanted)
    return _scale(model, recipe, before, wanted)


def train_positions(model: PreTrainedModel, tuned: Tuning, recipe: Recipe) -> Tuning:
    """Let positions that were interpolated be trained, whatever else of the model is."""
    if recipe.context is None or model.config.model_type != "gpt2":
        return tuned
    _positions(model).requires_grad_(True)
    return replace(tuned, trained=sum(each.numel() for each in model.parameters() if each.requires_grad))


def _positions(model: PreTrainedModel) -> torch.nn.Embedding:
    decoder: Any = model.base_model
    found: torch.nn.Embedding = decoder.wpe
    return found


def _interpolate(model: PreTrainedModel, recipe: Recipe, before: int, wanted: int) -> str:
    if recipe.rope is not None:
        raise RecipeError(f"rope: {recipe.model} has learned positions, and no rotary ones to scale. Leave it out")
    if recipe.tune not in ("full", "lora"):
        raise RecipeError(
            f"context: the positions of {recipe.model} are interpolated to {wanted:,} and have to be trained then, and "
            f"`tune: {recipe.tune}` leaves them as they are. Type `tune: full` or `tune: lora`"
        )
    if recipe.save == "adapter":
        raise RecipeError(
            f"context: the positions of {recipe.model} are interpolated to {wanted:,} and trained as a whole, which no "
            "adapter can hold. Leave `save: adapter` out, and the whole model is kept"
        )
    known = _positions(model).weight.detach()
    rows = torch.nn.functional.interpolate(known.T[None], size=wanted, mode="linear", align_corners=True)[0].T
    decoder: Any = model.base_model
    decoder.wpe = torch.nn.Embedding.from_pretrained(rows.contiguous(), freeze=False)
    model.config.n_positions = wanted
    return (
        f"the {before:,} learned positions are interpolated to {wanted:,} and tuned with the rest: until then the "
        "model is worse than it was, also on short texts"
    )


def _scale(model: PreTrainedModel, recipe: Recipe, before: int, wanted: int) -> str:
    config, decoder = model.config, model.base_model
    known = getattr(config, "rope_parameters", None)
    kind = config.model_type
    if not isinstance(known, dict) or "rope_theta" not in known or not hasattr(decoder, "rotary_emb"):
        raise ModelError(
            f"context: {recipe.model} is a {kind} model, whose positions cannot be stretched here: it sees {before:,} "
            "tokens. Leave context out; long texts are read with `long_texts: windows`"
        )
    if known.get("rope_type", "default") != "default":
        raise ModelError(
            f"context: the positions of {recipe.model} are scaled already ({known['rope_type']}), to {before:,} tokens"
            ". Leave context out"
        )
    way = recipe.rope or "yarn"
    factor = wanted / before
    config.rope_parameters = {
        **known, "rope_type": way, "factor": factor, "original_max_position_embeddings": before,
    }  # fmt: skip
    config.max_position_embeddings = wanted
    rotary: Any = decoder.rotary_emb
    decoder.rotary_emb = type(rotary)(config=config)
    told = "divided by it" if way == "linear" else "slow rotations divided by it, fast ones kept"
    return (
        f"rotary positions scaled from {before:,} tokens, {way} with factor {factor:g}: {told}. It takes tuning on "
        "long texts to be used well"
    )
