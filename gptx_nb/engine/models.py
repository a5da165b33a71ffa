"""Base model -> classifier or language model. Finds a model by name, checks that it is a GPT, loads it, and saves it.

A base model comes from the package (`tiny`), a run (`run:my-domain`), a local folder, a .gguf file, or the Hugging Face
Hub; `smollm2-135m` also from a Python wheel, for machines that reach a package registry and no hub. What is saved is
a plain folder. Only safetensors and GGUF are read: a pickle is never loaded, and code from a repository never run.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import gptx_nb
from gptx_nb import adapters, digests, files
from gptx_nb.catalog import CATALOG, RUN, Entry, Wheel
from gptx_nb.engine import hub, tuning
from gptx_nb.errors import ModelError, UsageError, nearest
from gptx_nb.runs import RunStore

# Decoders whose classification head in transformers pools the last token. Others are refused by name.
DECODERS = (
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3",
    "smollm3", "starcoder2", "stablelm", "opt", "openai-gpt", "falcon", "mixtral", "olmo2",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base model that was found: `folder` and `file` (for GGUF) or a Hub name are what `from_pretrained` takes."""

    name: str
    where: str  # for people: "inside gptx_nb", a path, "Hugging Face Hub: openai-community/gpt2"
    path: str  # folder or Hub name
    gguf: str | None
    revision: str | None
    licence: str
    config: PreTrainedConfig

    @property
    def options(self) -> dict[str, Any]:
        if self.gguf:
            return {"gguf_file": self.gguf}
        return {"revision": self.revision or "main", "local_files_only": _only_local(self.path)}


def find(name: str, revision: str | None = None, note: Callable[[str], None] = lambda text: None) -> Base:
    """Find the base model `name` and read its configuration. `note` receives what is worth saying (a download).

    Raises ModelError with one line: not there, not reachable, not a GPT.
    """
    where, path, gguf, licence = _locate(name, revision, note)
    if (Path(path) / adapters.BASE_FILE).is_file():
        path, revision = str(_merged(Path(path), note)), None
        where = f"{where}, merged with its base in {path}"
    try:
        options = Base(name, where, path, gguf, revision, licence, PreTrainedConfig()).options
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_cannot_load(name, where, path, error)) from error
    if config.model_type not in DECODERS or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model: {name} is a {config.model_type} model ({where}), and gptx_nb fine-tunes GPTs: decoders such as "
            "GPT-2, Llama, Qwen. Type for example `model: gpt2` or `model: smollm2-135m`"
        )
    return Base(name, where, path, gguf, revision, licence, config)


def _locate(name: str, revision: str | None, note: Callable[[str], None]) -> tuple[str, str, str | None, str]:
    """Return (where, path or Hub name, GGUF file name or None, licence)."""
    if name == "tiny":
        folder = Path(gptx_nb.__file__).parent / "models" / "tiny"
        return "inside gptx_nb", str(folder), None, CATALOG["tiny"].licence
    if name.startswith(RUN):
        return _from_run(name)
    if entry := CATALOG.get(name):
        return _from_catalog(entry, revision, note)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"model: there is no file {name}.{_near_path(path)} Give the path of a .gguf file")
        return str(path), str(path.absolute().parent), path.name, "unknown"
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model: the folder {name} holds no config.json, so it is no saved model")
        return str(path), str(path.absolute()), None, "unknown"
    if path.is_file():
        raise ModelError(
            f"model: {name} is a file that does not end in .gguf. Give the folder of a saved model, or `model: tiny`"
        )
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"model: there is no folder {name}.{_near_path(path)} Give the folder of a saved model, or `model: tiny`"
        )
    return f"Hugging Face Hub: {name}", name, None, "see the model's page"


def _from_run(name: str) -> tuple[str, str, str | None, str]:
    try:
        run = RunStore().find(name.removeprefix(RUN))
    except UsageError as error:
        raise ModelError(f"model: {error}") from None
    if not (run.model / "config.json").is_file():
        raise ModelError(f"model: run {run.name} version {run.version} has no model: it is {run.state()}")
    licence = ((run.plan() or {}).get("model") or {}).get("licence")
    return f"{' <- '.join(chain(name))}", str(run.model), None, licence or "as its texts"


def chain(name: str) -> list[str]:
    """Return what the base model `name` came from, latest first: ["run my-domain version 1", "gpt2"].

    What a pretrained run came from is what it has written down: that one may be gone, or made anew, meanwhile.
    """
    if not name.startswith(RUN):
        return [name]
    try:
        run = RunStore().find(name.removeprefix(RUN))
    except UsageError:
        return [f"run {name.removeprefix(RUN)}, which is gone"]
    before = run.request()["recipe"][run.kind.base_setting]
    known = ((run.plan() or {}).get("model") or {}).get("chain")
    came_from = known or (chain(before) if before else ["random weights"])
    return [f"run {run.name} version {run.version}", *came_from]


def _near_path(path: Path) -> str:
    parent = path.parent
    return (
        nearest(path.name, [each.name for each in parent.iterdir()]) if parent.is_dir() else f" Nor is there {parent}."
    )


def _from_catalog(entry: Entry, revision: str | None, note: Callable[[str], None]) -> tuple[str, str, str | None, str]:
    assert entry.hub is not None
    if entry.wheel is None or _in_hub_cache(entry.hub, revision):
        return f"Hugging Face Hub: {entry.hub}", entry.hub, None, entry.licence
    folder = cache() / f"{entry.name}-{entry.wheel.version}"
    if folder.is_dir():
        return f"{entry.wheel.package} {entry.wheel.version}, kept in {folder}", str(folder), None, entry.licence
    if not hub.offline() and hub.trouble() is None:
        try:
            AutoConfig.from_pretrained(entry.hub, revision=revision or "main", trust_remote_code=False)
        except (OSError, ValueError) as error:
            note(f"{entry.hub} cannot be had from the Hugging Face Hub ({_short(error)}); taking the wheel instead")
        else:
            return f"Hugging Face Hub: {entry.hub}", entry.hub, None, entry.licence
    from_wheel(entry.wheel, folder, note)
    return f"{entry.wheel.package} {entry.wheel.version}, kept in {folder}", str(folder), None, entry.licence


def cache() -> Path:
    """Return where converted base models are kept: `$GPTX_CACHE`, else the user's cache directory."""
    if given := os.environ.get("GPTX_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gptx_nb"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "gptx_nb" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptx_nb"


def from_wheel(wheel: Wheel, folder: Path, note: Callable[[str], None]) -> None:
    """Download `wheel` with pip, check its SHA-256, and convert the GGUF file in it into the plain model `folder`."""
    pinned = f"{wheel.package}=={wheel.version}"
    note(f"fetching {pinned} from the package registry (once)")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            scratch,
            pinned,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        found = next(Path(scratch).glob("*.whl"), None)
        if "No module named pip" in done.stderr:
            raise ModelError(
                f"model: {pinned} is fetched with pip, and {sys.executable} has none. Install it in a terminal, with "
                f"`uv pip install pip` or `{sys.executable} -m ensurepip`, and run the cell again; or type "
                "`model: tiny`"
            )
        if done.returncode or found is None:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ModelError(
                f"model: {pinned} could not be fetched from the package registry either: {last[:200]}. "
                "Type `model: tiny`, or give the folder of a model that is on this machine"
            )
        if files.sha256(found) != wheel.sha256:
            raise ModelError(
                f"model: {found.name} is not the file that gptx_nb knows (its SHA-256 differs); it was not used"
            )
        note(f"converting {Path(wheel.member).name} to safetensors (once)")
        with zipfile.ZipFile(found) as archive, archive.open(wheel.member) as packed:
            gguf = Path(scratch) / Path(wheel.member).name
            with open(gguf, "wb") as out:
                shutil.copyfileobj(packed, out)
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32, **_dequantise())
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)

        def fill(beside: Path) -> None:
            model.bfloat16().save_pretrained(beside)
            tokenizer.save_pretrained(beside)

        with contextlib.suppress(FileExistsError):  # another process converted it in the meantime
            files.write_folder(folder, fill)


def _dequantise() -> dict[str, Any]:
    """GGUF weights stay quantised in transformers 5 unless asked otherwise; such cannot be trained or saved."""
    return (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )


def _in_hub_cache(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def _cannot_load(name: str, where: str, path: str, error: Exception) -> str:
    if Path(path).is_dir():
        return f"model: {name} ({where}) cannot be read: {_short(error)}"
    reason = "HF_HUB_OFFLINE is set and it is not in the Hub cache" if hub.offline() else hub.trouble() or _short(error)
    advice = "Without a network: `model: tiny` or `model: smollm2-135m`"
    if name in CATALOG:
        return f"model: {name} ({where}) could not be had: {reason}. {advice}"
    names = [each for each in (*CATALOG, *(entry.hub for entry in CATALOG.values() if entry.hub)) if each != name]
    return (
        f"model: {name} is no short name, no folder here, and could not be had from the Hugging Face Hub: {reason}."
        f"{nearest(name, names)} {advice}"
    )


def _only_local(name_or_path: str) -> bool:
    """Say whether `from_pretrained` should look at this machine only."""
    return not Path(name_or_path).is_dir() and (hub.offline() or hub.trouble() is not None)


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the right, with a padding token (GPT-2 has none: its end-of-text token serves).

    Which token pads does not matter, as no text can become it (see `reading.encode`).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False, **base.options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model: the tokenizer of {base.name} ({base.where}) cannot be read: {_short(error)}"
        ) from error
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def asked_as(setting: str, error: ModelError) -> str:
    """Return what `error` says of a base model, for a recipe that calls it by the name of `setting`."""
    return re.sub(r"(^|`)model: ", rf"\1{setting}: ", str(error))


def find_tokenizer(name: str, note: Callable[[str], None]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the base model `name`, or the one that a folder holds without a model."""
    folder = Path(name).expanduser()
    if not (folder.is_dir() and not (folder / "config.json").is_file()):
        try:
            return load_tokenizer(find(name, None, note))
        except ModelError as error:
            raise ModelError(asked_as("tokenizer", error)) from None
    if not any((folder / each).is_file() for each in TOKENIZER_FILES):
        raise ModelError(
            f"tokenizer: the folder {name} holds no tokenizer (there is no tokenizer.json). Give the folder of one, "
            "type `tokenizer: tiny`, or leave it out: one is trained"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"tokenizer: {name} holds no tokenizer that can be read: {_short(error)}") from error
    return tokenizer


def context(config: PreTrainedConfig) -> int:
    """Return the number of tokens that the model can see at once."""
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024)


def load_classifier(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    labels: list[str],
    seed: int,
    *,
    scratch: bool = False,
    multi_label: bool = False,
) -> PreTrainedModel:
    """Load `base` in float32 with a new head for `labels`, whose names and order go into the config.

    `multi_label`: a text may have any number of them, which goes into the config too.

    The head begins at small weights drawn from `seed`, the rest is the base model's, or drawn too if `scratch`.
    """
    torch.manual_seed(seed)
    options: dict[str, Any] = {**base.options, **(_dequantise() if base.gguf else {})}
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            base.path,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type="multi_label_classification" if multi_label else "single_label_classification",
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32,
            trust_remote_code=False,
            **({} if base.gguf else {"use_safetensors": True}),
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model: {base.name} ({base.where}) cannot be loaded: {_short(error)}") from error
    model.config.use_cache = False  # a cache of keys is for generation
    if hasattr(model, "hf_quantizer"):  # set by the GGUF loader; dequantised weights are plain ones
        model.config.__dict__.pop("quantization_config", None)
    if scratch:
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32)
    return model


def load_causal(base: Base) -> PreTrainedModel:
    """Load `base` in float32 as a language model."""
    options: dict[str, Any] = {**base.options, **(_dequantise() if base.gguf else {})}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base.path,
            dtype=torch.float32,
            trust_remote_code=False,
            **({} if base.gguf else {"use_safetensors": True}),
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model: {base.name} ({base.where}) cannot be loaded: {_short(error)}") from error
    model.config.use_cache = False  # a cache of keys is for generation
    if hasattr(model, "hf_quantizer"):  # set by the GGUF loader; dequantised weights are plain ones
        model.config.__dict__.pop("quantization_config", None)
    return model


def output_rows(base: Base, model: PreTrainedModel) -> torch.Tensor:
    """Return the output layer (vocabulary, width) of `base`, of which `model` is a classifier.

    Most small models have one matrix for input and output; of others the classifier lacks it, and it is read anew.
    """
    if getattr(model.config, "tie_word_embeddings", True):
        layer: Any = model.get_input_embeddings()
    else:
        layer = load_causal(base).get_output_embeddings()
    rows: torch.Tensor = layer.weight.detach()
    return rows


def from_folder(kind: Any, folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """Load a model that `save` has written, in float32, as `kind` (an Auto class); return names of missing weights too.

    Only safetensors, only local files (an adapter's base may be in the Hub's cache), no code from the folder. An
    adapter is merged into its base. Raises ModelError for one whose base is not there or has changed, and what
    transformers raises for a folder that is harmed.
    """
    options: dict[str, Any] = {
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "dtype": torch.float32,
    }
    base = adapters.base_of(folder)
    if base is None:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
        return model, sorted(report["missing_keys"])
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = kind.from_pretrained(base["path"], config=config, revision=base["revision"] or "main", **options)
    return tuning.with_adapter(model, folder), []


def merge(folder: Path, target: Path) -> None:
    """Write the adapter in `folder`, added to its base, as the plain model `target`, in float32.

    What else lies in the folder comes along. Raises FileExistsError where `target` is there, ModelError for an adapter
    whose base is gone or has changed, or that is harmed.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    gives_labels = config.architectures[0].endswith("ForSequenceClassification")
    kind = AutoModelForSequenceClassification if gives_labels else AutoModelForCausalLM
    try:
        model, _ = from_folder(kind, folder)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model: the adapter in {folder} cannot be merged: {_short(error)}") from error

    def fill(beside: Path) -> None:
        for file in folder.iterdir():
            if file.name not in (adapters.BASE_FILE, "adapter_config.json", tuning.ADAPTER_WEIGHTS):
                shutil.copy(file, beside)
        model.save_pretrained(beside)

    files.write_folder(target, fill)


def _merged(folder: Path, note: Callable[[str], None]) -> Path:
    """Return a plain model of the adapter in `folder`, which is made once and kept in the cache."""
    target = cache() / f"merged-{digests.of_model(folder)[:16]}"
    if not target.is_dir():
        note("merging the adapter with its base (once)")
        with contextlib.suppress(FileExistsError):  # another process has done so in the meantime
            merge(folder, target)
    return target


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    beside_it: dict[str, Any] | None = None,
    adapter_of: Base | None = None,
) -> None:
    """Write a plain Hugging Face folder as one step; `from_pretrained` reads it without gptx_nb.

    `beside_it`: more JSON files, by name. `adapter_of`: of a model with low-rank updates, write only what was added to
    this base (see `adapters`).
    """

    def fill(beside: Path) -> None:
        tokenizer.model_max_length = max_length
        if adapter_of is None:
            model.save_pretrained(beside)
        else:
            _save_adapter(beside, model, adapter_of)
        tokenizer.save_pretrained(beside)
        for name, value in (beside_it or {}).items():
            files.write_json(beside / name, value)

    files.write_folder(folder, fill)


def _save_adapter(folder: Path, model: PreTrainedModel, base: Base) -> None:
    commit = getattr(base.config, "_commit_hash", None) or base.revision
    config, tensors = tuning.adapter(model, base.path, commit)
    config.save_pretrained(folder)
    save_file(tensors, folder / tuning.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    plain = copy.copy(model.config)
    plain.architectures = [type(model).__name__]
    plain.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    files.write_json(folder / adapters.BASE_FILE, adapters.describe(base.name, base.path, commit))
