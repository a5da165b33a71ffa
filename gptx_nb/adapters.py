"""Models that are kept as an adapter: low-rank updates and a head, which load with the base model they were tuned on.

Such a folder is one that peft and transformers know (adapter_config.json, adapter_model.safetensors), with the model's
configuration and tokenizer, and `base.json`, which says what the base was:

    {"name": as it was asked for, "path": folder or name on the Hub, "revision": commit or None,
    "sha256": of a folder's files, or None}

As a base of another run it is merged first. Loads no model: engine/models.py does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptx_nb import digests, files
from gptx_nb.errors import ModelError

BASE_FILE = "base.json"


def describe(name: str, path: str, revision: str | None) -> dict[str, Any]:
    """Return what is kept of a base model, so that it is known again."""
    here = Path(path)
    return {
        "name": name,
        "path": path,
        "revision": revision,
        "sha256": digests.of_model(here) if here.is_dir() else None,
    }


def base_of(folder: Path) -> dict[str, Any] | None:
    """Return the base that the model in `folder` loads with; None: it is whole.

    Raises ModelError where the base is gone, or its files are others than those it was tuned on.
    """
    base: dict[str, Any] | None = files.read_json(folder / BASE_FILE)
    if base is None or base["sha256"] is None:
        return base
    path = Path(base["path"])
    kept = f"{folder.name}/ is an adapter of {base['name']}"
    again = "or run its cell again with `save: merged`, which keeps a whole model"
    if not path.is_dir():
        raise ModelError(f"{kept}, and the base model's folder {path} is gone. Put it back there, {again}")
    if digests.of_model(path) != base["sha256"]:
        raise ModelError(
            f"{kept}, and the files in {path} have changed since it was tuned: it fits no other weights. Put the "
            f"former ones back, {again}"
        )
    return base
