"""The only list of settings. Flags, completion, help, forms and the README table are derived from it (fields.py).

`Recipe` is fine-tuning's; pretraining has one of its own (pretraining.py), read and told in the same way. `None` as a
default means that the engine chooses and says why; what it chose stands in the run's own `recipe.yaml`.
A recipe is read from YAML (a cell body, a file), from keywords, or from flags; every mistake gives one line.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Hashable, Mapping
from functools import cache
from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from gptx_nb.catalog import CATALOG
from gptx_nb.errors import RecipeError, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

CHAT_TEMPLATES = ("chatml", "zephyr")
Task = Literal[
    "text-classification",
    "text-generation",
    "chat",
    "summarization",
    "question-answering",
    "translation",
    "code-generation",
]
LABELS: tuple[Task, ...] = ("text-classification",)
ROLES: dict[str, tuple[str, ...]] = {  # that a column can have, by task, for `columns`
    "text-classification": ("text", "label", "text_pair"),
    "text-generation": ("text", "prompt", "completion"),
    "chat": ("messages", "instruction", "output", "input"),
    "summarization": ("document", "summary"),
    "question-answering": ("question", "answer", "context", "choices"),
    "translation": ("source", "target"),
    "code-generation": ("prompt", "text", "code", "tests", "entry_point"),
}
SOURCES = ("data", "examples")  # settings that say where rows come from, which have fingerprints of their own
ELSEWHERE = "a table"  # for the place of one

_SHARE = re.compile(r"\s*(\d*[.,]?\d+)\s*(%?)\s*")  # as text: `20%`, `'0.2'`, `0,2`


def setting(
    default: Any,
    description: str,
    *,
    reason: str,
    unit: str | None = None,
    matters: bool = True,
    tasks: tuple[Task, ...] = (),
    **bounds: Any,
) -> Any:
    """A `Recipe` field. `reason` says why the default is what it is; `matters=False`: the trained model is the same.

    `tasks`: those for which it means something, where that is not all of them.
    """
    facts: dict[str, Any] = {"reason": reason, "unit": unit, "matters": matters, "tasks": list(tasks)}
    return Field(default, description=description, json_schema_extra=facts, **bounds)


class Settings(BaseModel):
    """What recipes of every kind have in common: how they are checked, told apart, and written down."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    kind: ClassVar[str]  # of run, as it stands in request.json
    magic: ClassVar[str]  # whose cell makes such a run
    base_setting: ClassVar[str]  # the one that names a base model

    @field_validator("*", mode="before")
    @classmethod
    def _a_number_is_no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _types(cls, str(info.field_name)) & {int, float}:
            raise ValueError("a number is wanted, not true or false")
        return value

    @field_validator("validation", check_fields=False)
    @classmethod
    def _validation_fits(cls, value: float | str) -> float | str:
        typed = _SHARE.fullmatch(value) if isinstance(value, str) else None
        share = float(typed[1].replace(",", ".")) / (100 if typed[2] else 1) if typed else value
        if isinstance(share, float) and not 0 <= share <= 0.9:
            raise ValueError("a share from 0 to 0.9, or the name of a table")
        if typed:
            raise ValueError(f"type {share:g}")
        return value

    @field_validator("device", check_fields=False)
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
            raise ValueError("use auto, cpu, cuda, cuda:0 (or another number), mps or xpu")
        return value

    @field_validator("devices", check_fields=False)
    @classmethod
    def _devices_are_counted(cls, value: int | str) -> int | str:
        if isinstance(value, str) and value != "all":
            raise ValueError("a number of devices from 1 to 64, or all")
        return value

    @model_validator(mode="after")
    def _one_device_or_several(self: S) -> S:
        device, devices = (getattr(self, name) for name in ("device", "devices"))
        if devices != 1 and ":" in device:
            raise ValueError(
                f"device: {device} is one device, and devices: {devices} are asked for. Type "
                f"`device: {device.partition(':')[0]}`, or leave devices out"
            )
        if self.model_dump()["sharding"] == "on":
            if devices == 1:
                raise ValueError("sharding: on shares a model among several devices. Type `devices: all` too")
            if reason := self.why_not_sharded():
                raise ValueError(f"sharding: on does not go with {reason}")
        return self

    def why_not_sharded(self) -> str | None:
        """Say which setting keeps several devices from sharing the model, and what to type; None: they may."""
        asked = self.model_dump()
        if (optimizer := asked["optimizer"]) != "adamw":
            return f"optimizer: {optimizer}, which steps whole tensors that no device has then. Type `optimizer: adamw`"
        if (method := asked.get("tune", "full")) not in ("full", "lora"):
            return f"tune: {method}, which keeps what the frozen layers give. Type `tune: lora`, or leave sharding out"
        if asked.get("quantize") == "4bit":
            return "quantize: 4bit, whose weights cannot be cut. Leave one of them out"
        return None

    @property
    def base(self) -> str | None:
        """The base model as it was asked for, if there is one."""
        value: str | None = self.model_dump()[self.base_setting]
        return value

    def with_base(self: S, base: str) -> S:
        """Return this recipe with another base model."""
        name = next(name for name, field in type(self).model_fields.items() if self.base_setting in (name, field.alias))
        return self.model_copy(update={name: base})

    def digest(self) -> str:
        """A fingerprint of the settings that decide what model comes out, in hexadecimal digits.

        Where the examples come from is left out, and where a validation table lies: their rows have fingerprints of
        their own, and may move.
        """
        deciding = {
            name: ELSEWHERE if name == "validation" and isinstance(value, str) else value
            for name, value in self.model_dump(mode="json").items()
            if name not in SOURCES and matters(name, type(self))
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode("utf-8")).hexdigest()

    def to_yaml(self) -> str:
        """Return the recipe as YAML, complete, re-usable as a cell body."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


S = TypeVar("S", bound=Settings)


class Recipe(Settings):
    """Everything that fine-tuning is made from, apart from the rows of its table."""

    kind: ClassVar[str] = "finetune"
    magic: ClassVar[str] = "gpt_finetune"
    base_setting: ClassVar[str] = "model"

    task: Task | None = setting(
        None,
        "What the model shall do.",
        reason="text-classification where the table has a label, else what its columns are for; shown with the reason",
    )
    model: str = setting(
        "tiny",
        "Base model: a short name, a folder, a .gguf file, or a name on the Hugging Face Hub.",
        reason="ships inside the package, so the first run needs no download",
        min_length=1,
    )
    revision: str | None = setting(
        None, "Branch, tag or commit of a base model on the Hub.", reason="the Hub's main branch"
    )
    data: str | None = setting(
        None,
        "Examples: a variable of the notebook (DataFrame, Series, datasets.Dataset, list), a .csv, .tsv, .jsonl or "
        ".parquet file, a data set's folder, or a name on the Hugging Face Hub.",
        reason="give either data or examples",
        min_length=1,
    )
    subset: str | None = setting(None, "Configuration of a Hub data set that has several.", reason="most have one")
    split: str = setting("train", "Split of a data set to learn from.", reason="the usual name", min_length=1)
    examples: Annotated[list[list[str] | dict[str, str]], Field(min_length=1)] | None = setting(
        None, "Examples typed here: [text, label] each.", reason="give either data or examples"
    )
    text: str | None = setting(
        None,
        "Column that holds the text.",
        reason="found by name and content, and shown",
        tasks=(*LABELS, "text-generation"),
    )
    label: str | None = setting(
        None, "Column that holds the label.", reason="found by name and content, and shown", tasks=LABELS
    )
    columns: Annotated[dict[str, str | list[str]], Field(min_length=1)] | None = setting(
        None,
        "Columns by role, as in {question: q, context: body}; for a pair of texts {text: a, text_pair: b, label: c}.",
        reason="found by name and content, and shown",
        tasks=tuple(task for task in get_args(Task) if task not in LABELS),
    )
    labels: Annotated[list[str], Field(min_length=2)] | None = setting(
        None,
        "Label names in the model's order.",
        reason="the table's labels in the order that it declares, else sorted; 0/1 get names only from here",
        tasks=LABELS,
    )
    head: Literal["auto", "words", "plain"] = setting(
        "auto",
        "What a classifier begins with: the words of its labels behind a prompt, or a new head on the plain text.",
        reason="the words where cross-validation on the examples favours them; of 50 million parameters or more, where "
        "they are not behind, or not far if its layers are tuned",
    )
    prompt: str | None = setting(
        None,
        "Prompt that is answered with a label's words; {text} stands for the text.",
        reason="found from the columns' names and the labels, and shown",
        min_length=1,
    )
    label_words: Annotated[dict[str, str], Field(min_length=1)] | None = setting(
        None,
        "The words that stand for labels behind the prompt, as in {pos: positive, neg: negative}.",
        reason="the labels' own names, spelled out",
    )
    label_separator: str | None = setting(
        None,
        "What stands between the labels of a text that has several, as in 'joy;surprise'.",
        reason="a text is one label unless you say so; lists and columns of 0 and 1 need none",
        min_length=1,
    )
    threshold: float | None = setting(
        None,
        "Where texts have several labels: the probability from which on a label is given.",
        reason="chosen by micro F1 on the held-out rows, each half scored with the other's, and one for each label "
        "where that does better; 0.5 where there are none",
        unit="share",
        gt=0,
        lt=1,
    )
    validation: float | str = setting(
        0.2,
        "Share of the examples held back for scoring, or a table of its own (as for data). At the default, a data "
        "set's own validation split is taken.",
        reason="one in five keeps the score's error small and most examples for learning; split by label, fixed seed",
        unit="share",
    )
    tune: str = setting(
        "full",
        "Which part is trained: full, lora (low-rank updates beside it), top:K (the last K layers) or head.",
        reason="learns most; lora needs a third of the memory, top:4 and head a fraction of the time",
    )
    save: Literal["merged", "adapter"] = setting(
        "merged",
        "How a model tuned with lora is kept: merged, a whole model; or as an adapter of a few MB, which is loaded "
        "with its base model.",
        reason="a whole model needs nothing else",
    )
    quantize: Literal["none", "4bit"] = setting(
        "none",
        "Where lora tunes a model too large for the GPU: keep its own weights in 4 bits (with bitsandbytes, on NVIDIA "
        "GPUs).",
        reason="exact; 4 bits take an eighth of the memory for them",
    )
    epochs: float | None = setting(
        None,
        "Passes over the examples.",
        reason="3, or more where that would be fewer than 60 steps (200 for head; 250, in at most 30 passes, where "
        "every weight of a classifier of fewer than 50 million parameters is trained): small sets need longer",
        unit="passes",
        gt=0,
        le=1000,
    )
    batch_size: int | None = setting(
        None,
        "Examples a step.",
        reason="16; up to 64 where an epoch still has 30 steps, as larger steps keep the device busier",
        unit="examples",
        ge=1,
        le=4096,
    )
    learning_rate: float | None = setting(
        None,
        "Peak step size of AdamW.",
        reason="as measured for what is trained; smaller models and larger batches take larger steps",
        gt=0,
        le=1,
    )
    warmup: float | None = setting(
        None,
        "Share of the steps in which the learning rate rises.",
        reason="a tenth steadies the first steps",
        unit="share",
        ge=0,
        lt=1,
    )
    weight_decay: float = setting(0.01, "AdamW's decay of matrices.", reason="AdamW's default", ge=0, le=1)
    optimizer: Literal["adamw", "adamw-8bit"] = setting(
        "adamw",
        "How AdamW remembers gradients: in float32, or in 8 bits (with bitsandbytes, on NVIDIA GPUs).",
        reason="exact; 8 bits take a quarter of the memory for it",
    )
    max_length: int | None = setting(
        None,
        "Longest text; what is beyond is cut, and counted.",
        reason="the model's context, at most 512: longer rows cost memory and time",
        unit="tokens",
        ge=8,
        le=1_048_576,
    )
    long_texts: Literal["cut", "head+tail", "windows"] = setting(
        "cut",
        "What is read of texts longer than max_length: their beginning, beginning and end (classifiers), or all of it "
        "in overlapping windows (classifiers average their logits; question-answering takes the likeliest answer of "
        "all windows, summarization summarises their summaries).",
        reason="costs least; the plan says how many texts are cut, and what windows would cost",
    )
    stride: int | None = setting(
        None,
        "From the beginning of a window to the next one's.",
        reason="three quarters of max_length, so that what one window ends with begins the next",
        unit="tokens",
        ge=1,
        le=1_048_576,
    )
    context: int | None = setting(
        None,
        "Tokens that the model shall see at once, beyond what it was pretrained with.",
        reason="the model's own; more takes tuning on long texts",
        unit="tokens",
        ge=16,
        le=1_048_576,
    )
    rope: Literal["linear", "yarn"] | None = setting(
        None,
        "How rotary positions are scaled for a longer context.",
        reason="yarn, which learns with the fewest examples (Peng et al. 2023)",
    )
    keep: Literal["best", "last"] = setting(
        "best", "Which weights to keep: best on validation, or last.", reason="a small set overfits soon"
    )
    baselines: bool = setting(
        True,
        "Score what is simpler on the same rows: a majority guess and TF-IDF + logistic regression, or the base model "
        "as it is.",
        reason="shows whether the tuned GPT is worth it",
    )
    shots: int | None = setting(
        None,
        "Examples that the base model is shown before what is asked, where it is scored beside the tuned one.",
        reason="4; one of each label, from 4 to 8, where it gives labels",
        unit="examples",
        ge=1,
        le=64,
    )
    chat_template: str | None = setting(
        None,
        "How conversations are written: chatml, zephyr, or a template of your own, a text in Jinja.",
        reason="the model's own; a base model without one gets ChatML if its vocabulary has the marks, else Zephyr's",
        tasks=("chat",),
    )
    allow_code: bool = setting(
        False,
        "Run the programs that a model for code writes, in a sandbox, to score them by their tests.",
        reason="written programs are only run where you say so",
        matters=False,
        tasks=("code-generation",),
    )
    baseline: Literal["scratch"] | None = setting(
        None,
        "scratch: also train the same architecture from random weights, and show what pretraining was worth.",
        reason="takes as long again for every seed, twice",
        matters=False,
        tasks=LABELS,
    )
    baseline_seeds: int = setting(
        3,
        "Seeds over which that is compared.",
        reason="shows its spread",
        unit="seeds",
        matters=False,
        tasks=LABELS,
        ge=1,
        le=10,
    )
    seed: int = setting(
        0, "Seed of split, order and new weights.", reason="the same cell gives the same model", ge=0, le=2**31 - 1
    )
    device: str = setting(
        "auto",
        "auto, cpu, cuda, cuda:N, mps or xpu.",
        reason="the fastest there is",
        matters=False,
    )
    devices: Annotated[int, Field(ge=1, le=64)] | str = setting(
        1,
        "How many devices train together, each on its share of a step's rows: a number, or all for every GPU. On a CPU "
        "a number of processes.",
        reason="one; more give the same model but for rounding, as another device does",
        unit="devices",
        matters=False,
    )
    sharding: Literal["auto", "on", "off"] = setting(
        "auto",
        "Whether several devices share the model, each with a part of every tensor (FSDP2), or each holds the whole.",
        reason="where the whole does not fit one device: gathering layers takes time",
        matters=False,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Arithmetic of the matrix products.", reason="the fastest that the device computes well"
    )
    tokens_at_once: int | None = setting(
        None,
        "Most tokens that are computed at once: a step with more is computed in parts, and learns the same.",
        reason="what keeps the device busy; halved by itself where memory runs out",
        unit="tokens",
        matters=False,
        ge=16,
        le=1_048_576,
    )
    checkpoint_every: float = setting(
        120.0,
        "Time between checkpoints of an unfinished run.",
        reason="little is lost in a crash, little time is spent",
        unit="seconds",
        matters=False,
        gt=0,
        le=86_400,
    )

    @field_validator("text", "label", mode="before")
    @classmethod
    def _columns_may_be_numbered(cls, value: Any) -> Any:
        return value if isinstance(value, bool) or not isinstance(value, Integral) else str(value)

    @field_validator("columns", "label_words", mode="before")
    @classmethod
    def _mappings_may_be_typed_in_one_line(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Mapping):  # labels may be numbers, as in {0: bad, 1: good}
            return {str(key).lower() if isinstance(key, bool) else str(key): each for key, each in value.items()}
        if not isinstance(value, str):
            return value
        name = str(info.field_name)
        try:
            read: dict[str, Any] = parse_yaml(f"{name}: {value}", name)
        except RecipeError:
            read = {}
        if not isinstance(read.get(name), dict):
            wanted = {
                "columns": "columns by role are wanted, as in {question: q, answer: a}",
                "label_words": "words by label are wanted, as in {pos: positive, neg: negative}",
            }
            raise ValueError(wanted[name])
        return read[name]

    @field_validator("prompt")
    @classmethod
    def _prompt_holds_the_text(cls, value: str | None) -> str | None:
        if value is not None and value.count("{text}") != 1:
            raise ValueError("{text} has to stand in it once, for the text, as in 'Review: {text}\\nSentiment:'")
        return value

    @field_validator("label_words")
    @classmethod
    def _words_are_no_blanks(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for label, word in (value or {}).items():
            if not word.strip():
                raise ValueError(f"{label!r} has no word")
        return value and {label: word.strip() for label, word in value.items()}

    @field_validator("examples", mode="before")
    @classmethod
    def _examples_are_rows(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        rows: list[Any] = []
        for number, row in enumerate(value, 1):
            if isinstance(row, Mapping):
                rows.append({str(key): _as_text(item) for key, item in row.items()})
            elif isinstance(row, list | tuple) and len(row) == 2:
                rows.append([_as_text(item) for item in row])
            else:
                got = f"{len(row)} parts" if isinstance(row, list | tuple) else type(row).__name__
                raise ValueError(
                    f"example {number} has {got}, and needs two: [text, label]. "
                    'Put a text with a comma or a colon in quotes: ["Good, but late", positive]'
                )
        return rows

    @field_validator("tune")
    @classmethod
    def _tune_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"full|lora|head|top:[1-9]\d{0,3}", value):
            raise ValueError("use full, lora, head, or top:4 (or another number of layers)")
        return value

    @field_validator("chat_template")
    @classmethod
    def _template_is_one(cls, value: str | None) -> str | None:
        if value is None or value in CHAT_TEMPLATES or "{{" in value or "{%" in value:
            return value
        raise ValueError(
            f"use {', '.join(CHAT_TEMPLATES)}, or a text in Jinja, with {{% for message in messages %}} and "
            "{% if add_generation_prompt %}. Of a file give what it holds"
        )

    @model_validator(mode="after")
    def _one_source(self) -> Recipe:
        if self.data is not None and self.examples is not None:
            raise ValueError("both data and examples are given; keep one of them")
        if self.save == "adapter" and self.tune != "lora":
            raise ValueError("save: adapter keeps what lora has tuned; type `tune: lora` too, or leave save out")
        if self.quantize == "4bit" and self.save != "adapter":
            raise ValueError(
                "quantize: 4bit tunes an adapter of a base that stays as it is; type `tune: lora` and `save: adapter` "
                "too"
            )
        if self.stride is not None and self.long_texts != "windows":
            raise ValueError("stride is for `long_texts: windows`; type that too, or leave stride out")
        if self.rope is not None and self.context is None:
            raise ValueError("rope scales positions for a longer context; say how long, as in `context: 4096`")
        if self.shots is not None and not self.baselines:
            raise ValueError(
                "shots: with `baselines: false` no base model is scored that could be shown any; leave one out"
            )
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a name stands there twice")
        unused = next((name for name in ("prompt", "label_words") if getattr(self, name) is not None), None)
        if self.head == "plain" and unused:
            raise ValueError(f"head: plain reads the plain text and has no use for {unused}; keep one of them")
        return self


def settings_of(kind: type[Settings]) -> dict[str, FieldInfo]:
    """Return the fields of a kind of recipe by the names that are typed (`from` is no name in Python)."""
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def _types(kind: type[Settings], name: str) -> set[Any]:
    """Return the types that the field `name` may have: {float, str} for `float | str`."""
    annotation = kind.model_fields[name].annotation
    return set(get_args(annotation)) or {annotation}


def matters(name: str, kind: type[Settings]) -> bool:
    """Say whether the setting `name` can change the trained model."""
    facts = settings_of(kind)[name].json_schema_extra
    return bool(facts["matters"]) if isinstance(facts, dict) else True


@overload
def make_recipe(settings: Mapping[str, Any], where: str = "") -> Recipe: ...
@overload
def make_recipe(settings: Mapping[str, Any], where: str, kind: type[S]) -> S: ...
def make_recipe(settings: Mapping[str, Any], where: str = "", kind: type[Any] = Recipe) -> Any:
    """Make a recipe of a kind from plain values.

    `where` opens the message of a RecipeError ("cell body", a file, "flags").
    """
    known = settings_of(kind)
    for key in settings:
        if key not in known:
            raise RecipeError(
                f"{_lead(where, settings, key)}unknown setting {key!r}.{nearest(str(key), known)} "
                f"Settings: {', '.join(known)}"
            )
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        place = error.errors(include_url=False)[0]["loc"]
        raise RecipeError(_lead(where, settings, place[0] if place else None) + _one_line(error, known)) from None


def parse_yaml(text: str, where: str = "cell body", kind: type[Settings] = Recipe) -> Lines:
    """Read settings of a kind of recipe from YAML; raises RecipeError with line and column.

    Differs from plain YAML 1.1 where that surprises: `1e-4` is a number; `yes`, `no`, `on`, `off`, dates, `010`, `0x10`
    and `1:30` are text; a key given twice, a tag, an alias, NaN and infinity are errors; whatever stands in `examples`,
    `labels`, `columns` and settings that hold a text is text.
    """
    loader = _loader(kind)
    try:
        settings = yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or ""
        if "expected ':'" in problem:
            mark = error.context_mark or mark  # the problem is noticed only where the next line begins
        if "expected ':'" in problem or "mapping values" in problem:
            _refuse_unspaced(text, mark, where, kind)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{where}{place}: {_explain(error, text, mark)}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: {str(error).splitlines()[0]}") from None
    if settings is None:
        return Lines({}, {})
    if not isinstance(settings, dict):
        _refuse_unspaced(text, None, where, kind)
        raise RecipeError(
            f"{where}: expected lines like `epochs: 3`, got {type(settings).__name__} {str(settings)[:60]!r}"
        )
    root = yaml.compose(text, Loader=loader)
    lines = {key.value: key.start_mark.line + 1 for key, _ in root.value} if isinstance(root, yaml.MappingNode) else {}
    return Lines(settings, lines)


class Lines(dict[str, Any]):
    """Settings with the line in which each key stands, for messages."""

    def __init__(self, settings: Mapping[str, Any], lines: Mapping[str, int]) -> None:
        super().__init__(settings)
        self.lines = dict(lines)


def check_name(name: str) -> str:
    """Return `name` if a run can be called that, else raise RecipeError."""
    if not NAME.fullmatch(name) or ".." in name:
        fits = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", name).strip("-.")[:64] or "my-run"
        raise RecipeError(
            f"{name!r} cannot name a run: use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or "
            f"digit. For example: {fits}"
        )
    return name


def known_models() -> list[str]:
    """Return the short names of base models."""
    return list(CATALOG)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the differences that `parse_yaml` names."""

    as_typed: ClassVar[set[str]] = set()  # settings whose values stay as they were typed: a column 0, a commit 1234567

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here", event.start_mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.composer.ComposerError(None, None, f"tags ({tag}) are not read here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        _check_keys(node)
        return {
            key_node.value: _texts(value_node)
            if key_node.value in self.as_typed
            else self.construct_object(value_node, deep=True)
            for key_node, value_node in node.value
        }


@cache
def _loader(kind: type[Settings]) -> type[_Loader]:
    texts = {
        field.alias or name for name, field in kind.model_fields.items() if _types(kind, name) <= {str, type(None)}
    }
    return type(
        "_Loader", (_Loader,), {"as_typed": {"columns", "examples", "label_words", "labels", "samples", *texts}}
    )


def _check_keys(node: yaml.MappingNode) -> None:
    """Raise ConstructorError where a key of `node` is no word, or is given twice."""
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} is given twice (first in line {seen[key]}); keep one", key_node.start_mark
            )
        seen[key] = key_node.start_mark.line + 1


def _texts(node: yaml.Node) -> Any:
    """Construct `node` with every scalar as the text that was typed (`no` stays 'no', `007` stays '007')."""
    if isinstance(node, yaml.SequenceNode):
        return [_texts(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        return {key.value: _texts(value) for key, value in node.value}
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_yaml_float(node))
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is not a finite number", node.start_mark)
    return value


_BOOLEAN, _TIMESTAMP, _INTEGER, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "timestamp", "int", "float"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOLEAN, _TIMESTAMP, _INTEGER, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INTEGER, re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_constructor(_FLOAT, _construct_float)


def _refuse_unspaced(text: str, mark: yaml.Mark | None, where: str, kind: type[Settings]) -> None:
    """Raise RecipeError for the first line, down to `mark`, with a setting that lacks its colon or the space after."""
    for number, line in enumerate(text.splitlines(), 1):
        if mark and number > mark.line + 1:
            return
        typed = re.fullmatch(r"(\w+)\s*(?::(?!\s)|\s)\s*([^\s:].*)", line)
        if typed and typed[1] in settings_of(kind):
            raise RecipeError(
                f"{where}, line {number}: {line.strip()[:60]!r} is no setting yet. Write "
                f"`{typed[1]}: {typed[2].strip()[:60]}`, with a colon and a space"
            ) from None


def _explain(error: yaml.MarkedYAMLError, text: str, mark: yaml.Mark | None) -> str:
    problem = (error.problem or "cannot be read").strip()
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "quoted scalar" in (error.context or "") or "unexpected end of stream" in problem:
        opened = error.context_mark
        where = f" opened in line {opened.line + 1}" if opened else ""
        return f"a quote{where} is never closed. Close it, or put the text in the other kind of quotes"
    if "mapping values are not allowed" in problem or ("expected ',' or" in problem):
        return f'{problem}. Put a text with a comma, colon or quote in quotes: ["Good: very good", positive]'
    if "\\t" in problem:
        return "a tab stands where YAML wants spaces"
    return f"{problem} in {line.strip()[:60]!r}" if line.strip() and "given twice" not in problem else problem


def _lead(where: str, settings: Mapping[str, Any], key: Any) -> str:
    line = settings.lines.get(key) if isinstance(settings, Lines) else None
    return f"{where}, line {line}: " if where and line else f"{where}: " if where else ""


def _as_text(value: Any) -> str:
    if value is None:
        raise ValueError("an example holds an empty value; give text and label")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(
        f"an example holds {str(value)[:40]!r} where a text is wanted. Put a text with a comma or a colon in quotes"
    )


def _one_line(error: ValidationError, known: Mapping[str, FieldInfo]) -> str:
    """Say the first mistake in `error` in one line: setting, what was got, what fits, what to type."""
    first = error.errors(include_url=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    got = first["input"]
    typed = str(got).lower() if isinstance(got, bool) else str(got)
    shown = "" if first["type"] == "value_error" and name == "examples" else f"{typed[:60]!r} does not fit: "
    unit = (known[name].json_schema_extra or {}).get("unit")  # type: ignore[union-attr]
    fits = message[0].lower() + message[1:] + (f" ({unit})" if unit else "")
    hint = (
        nearest(got, first.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ").split(", "))
        if isinstance(got, str)
        else ""
    )
    default = known[name].default
    example = "" if default is None or name == "task" else f". The default is {name}: {default}"
    return f"{name}: {shown}{fits}.{hint}".rstrip(".") + (example or "")
