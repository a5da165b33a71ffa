"""Pretraining's recipe: every setting of a `%%gpt_pretrain` cell, read and told in the same way as `recipe.Recipe`.

Settings that fine-tuning has too are said once, there.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gptx_nb.recipe import Recipe, Settings, setting

MOST_PASSES = 1_000
LEAST_CONTEXT = 16  # tokens
# Layers, heads and width by name; small, medium and large are GPT-2's own.
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (4, 4, 256),
    "mini": (6, 6, 384),
    "compact": (8, 8, 512),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
}
_SHAPE = ("architecture", "size", "layers", "heads", "width", "tokenizer", "vocabulary", "embeddings")


def _same(name: str) -> Any:
    """The field of that name as fine-tuning has it."""
    return copy.copy(Recipe.model_fields[name])


class PretrainRecipe(Settings):
    """Everything that pretraining is made from, apart from its texts."""

    kind: ClassVar[str] = "pretrain"
    magic: ClassVar[str] = "gpt_pretrain"
    base_setting: ClassVar[str] = "from"

    data: str | None = setting(
        None,
        "Texts: a .txt, .md, .jsonl, .csv, .tsv or .parquet file (also .gz, .xz, .zst), a folder of such files, a "
        "variable of the notebook, or a name on the Hugging Face Hub.",
        reason="must be given",
        min_length=1,
    )
    text: str | None = setting(None, "Column that holds the text.", reason="found by name and content, and shown")
    subset: str | None = _same("subset")
    split: str = _same("split")
    document: Literal["file", "line", "paragraph"] = setting(
        "file",
        "What is a document in a plain text file: the whole file, a line, or a paragraph (between blank lines).",
        reason="attention stays within a document; a row of a table is always one",
    )
    validation: float | str = setting(
        0.01,
        "Share of the documents held back for scoring, or texts of their own (as for data).",
        reason="one in a hundred is enough of much text, and the score has an interval; 0 keeps one end of a text",
        unit="share",
    )
    near_duplicates: bool = setting(
        True,
        "Drop documents that nearly equal an earlier one, not only those that equal one.",
        reason="repeated text is learnt by heart and makes models worse (Lee et al. 2022)",
    )
    from_: str | None = setting(
        None,
        "Base model to go on from, with its tokenizer; none: weights are drawn at random.",
        reason="a new model is made",
        min_length=1,
        alias="from",
    )
    revision: str | None = _same("revision")
    architecture: Literal["gpt2", "llama"] = setting(
        "gpt2",
        "Kind of a new model: gpt2 (learned positions) or llama (rotary positions, gated layers).",
        reason="the architecture of the embedded base model; every tool reads it",
    )
    size: Literal["tiny", "mini", "compact", "small", "medium", "large"] = setting(
        "tiny",
        "Layers and width of a new model: "
        + ", ".join(f"{name} {layers} x {width}" for name, (layers, _, width) in SIZES.items())
        + ".",
        reason="the largest that a CPU teaches something within hours",
    )
    layers: int | None = setting(None, "Layers of a new model.", reason="as size says", ge=1, le=256)
    heads: int | None = setting(None, "Attention heads of a new model.", reason="width / 64", ge=1, le=256)
    width: int | None = setting(
        None, "Values by which a new model knows a token.", reason="as size says", ge=16, le=16_384
    )
    context: int = setting(
        512,
        "Longest text that a new model sees at once.",
        reason="about a page",
        unit="tokens",
        ge=LEAST_CONTEXT,
        le=131_072,
    )
    tokenizer: str | None = setting(
        None,
        "Tokenizer of a new model: a base model's name or a folder.",
        reason="byte-level BPE is trained on the texts: it spells every script without an unknown token",
        min_length=1,
    )
    vocabulary: int = setting(
        16_384,
        "Tokens of a tokenizer that is trained.",
        reason="words of one language whole, and an output layer that is not most of the work",
        unit="tokens",
        ge=260,
        le=262_144,
    )
    embeddings: Literal["random", "cooccurrence"] = setting(
        "random",
        "Where a new model's embeddings begin: at random, or at what the texts say of which tokens stand together.",
        reason="cooccurrence costs a pass over the texts and a few GB of memory; it helps where training is short",
    )
    dropout: float = setting(
        0.0,
        "Share of activations dropped while it learns.",
        reason="texts are seen once or a few times",
        unit="share",
        ge=0,
        lt=1,
    )
    epochs: float | None = setting(
        None, "Passes over the texts.", reason="1, unless tokens is given", unit="passes", gt=0, le=MOST_PASSES
    )
    tokens: int | None = setting(
        None, "Tokens to learn from in all, in place of epochs.", reason="as epochs says", unit="tokens", ge=1
    )
    tokens_per_step: int | None = setting(
        None,
        "Tokens a step.",
        reason="a thousandth of all, from 1,024 to 524,288: larger steps keep the device busier",
        unit="tokens",
        ge=16,
        le=67_108_864,
    )
    learning_rate: float | None = setting(
        None, "Peak step size.", reason="by optimizer and width: wider models take smaller steps", gt=0, le=1
    )
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw",
        "AdamW, or Muon for the matrices of the layers and AdamW for all else.",
        reason="the usual one; muon learns more from few tokens (Jordan et al. 2024)",
    )
    schedule: Literal["cosine", "wsd", "linear"] = setting(
        "cosine",
        "How the learning rate falls to zero: cosine, linear, or wsd (constant, then linear at the end).",
        reason="the usual one",
    )
    cooldown: float = setting(
        0.2, "Share of the steps in which wsd lowers the rate.", reason="Hu et al. 2024", unit="share", gt=0, le=1
    )
    warmup: float = setting(
        0.02, "Share of the steps in which the rate rises.", reason="steadies the first steps", unit="share", ge=0, lt=1
    )
    weight_decay: float = setting(0.1, "Decay of matrices.", reason="GPT-3's (Brown et al. 2020)", ge=0, le=1)
    samples: Annotated[list[str], Field(max_length=8)] | None = setting(
        None,
        "Beginnings of texts that are continued while it trains.",
        reason="the beginnings of two documents that were held back",
    )
    evaluate_every: int | None = setting(
        None,
        "Steps between scores on held-back documents.",
        reason="20 times in all",
        unit="steps",
        ge=1,
        matters=False,
    )
    seed: int = _same("seed")
    device: str = _same("device")
    devices: Annotated[int, Field(ge=1, le=64)] | str = _same("devices")
    sharding: Literal["auto", "on", "off"] = _same("sharding")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _same("dtype")
    tokens_at_once: int | None = _same("tokens_at_once")
    checkpoint_every: float = _same("checkpoint_every")

    @model_validator(mode="after")
    def _new_or_given(self) -> PretrainRecipe:
        if self.epochs is not None and self.tokens is not None:
            raise ValueError("both epochs and tokens are given; keep one of them")
        given = [name for name in _SHAPE if name in self.model_fields_set and self._is_chosen(name)]
        if self.from_ is not None and given:
            raise ValueError(f"from: {self.from_} has a shape and a tokenizer of its own. Leave out {', '.join(given)}")
        if self.from_ is None and self.tokenizer is not None and self._is_chosen("vocabulary"):
            raise ValueError(f"the tokenizer {self.tokenizer} has a vocabulary of its own. Leave out vocabulary")
        if self.from_ is None and self.architecture == "llama" and self._is_chosen("dropout"):
            raise ValueError("dropout: llama drops nothing. Leave it out, or type `architecture: gpt2`")
        return self

    def _is_chosen(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @field_validator("samples", mode="before")
    @classmethod
    def _samples_are_texts(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def shape(self) -> tuple[int, int, int]:
        """Return layers, heads and width of a new model. Raises ValueError where heads do not divide the width."""
        layers, heads, width = SIZES[self.size]
        if self.width is not None:
            width, heads = self.width, max(1, self.width // 64)
        return self.layers or layers, self.heads or heads, width

    @model_validator(mode="after")
    def _heads_divide(self) -> PretrainRecipe:
        _, heads, width = self.shape()
        if width % heads:
            fits = [n for n in range(1, width + 1) if width % n == 0 and 16 <= width // n <= 256] or [1]
            near = min(fits, key=lambda n: abs(n - heads))
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads. Type `heads: {near}`")
        if self.architecture == "llama" and (width // heads) % 2:
            raise ValueError(f"llama turns pairs of values, and a head has {width // heads}. Make width / heads even")
        return self


AnyRecipe = Recipe | PretrainRecipe
KINDS: dict[str, type[Recipe] | type[PretrainRecipe]] = {each.kind: each for each in (Recipe, PretrainRecipe)}
