"""Makes kernelspecs that are bound to a device and to default settings: what `gptx-nb kernel add` does.

<prefix>/share/jupyter/kernels/gptx-gpu1/
    kernel.json           starts ipykernel with the magics, on GPU 1
    recipe.yaml           the default settings, as they were given
    ipython_config.json   the same as configuration of the magics (`%config GptxMagics` shows it)
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from gptx_nb.errors import RecipeError, UsageError
from gptx_nb.recipe import make_recipe, parse_yaml

OF_ONE_TABLE = ("data", "examples", "text", "label", "labels")  # no defaults: they belong to one table
_GPU = re.compile(r"auto|none|\d{1,3}|(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TEMPLATE = Path(__file__).parent / "kernelspec"


def add(gpu: str = "auto", recipe: Path | None = None, name: str | None = None, *, user: bool = False) -> Path:
    """Install a kernelspec and return its folder; one of the same name is replaced.

    Into the environment that this Python belongs to or, with `user`, for all environments of the user. Raises
    UsageError, or RecipeError for default settings that do not fit.
    """
    if not _GPU.fullmatch(gpu):
        raise UsageError(
            f"--gpu {gpu}: use a number as `nvidia-smi -L` counts them, a UUID, auto (the least loaded) or none"
        )
    defaults, text = _read(recipe) if recipe else ({}, "")
    name = name or _name(gpu, recipe)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name}: use lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name
        shutil.copytree(TEMPLATE, folder)
        spec = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
        spec["argv"][0] = sys.executable  # the one that has gptx_nb, wherever the server runs
        spec["display_name"] = _title(gpu, recipe)
        spec["metadata"]["kernel_provisioner"]["config"] = {"gpu": gpu}
        if defaults:
            spec["argv"].append("--config={resource_dir}/ipython_config.json")
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
            _write(folder / "ipython_config.json", {"GptxMagics": defaults})
        _write(folder / "kernel.json", spec)
        where: dict[str, Any] = {"user": True} if user else {"prefix": sys.prefix}
        try:
            return Path(KernelSpecManager().install_kernel_spec(str(folder), name, **where))
        except PermissionError as error:
            raise UsageError(f"{error.filename} cannot be written to. Type --user to install it for yourself") from None


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}. Check its name") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start + 1}). Save it as UTF-8") from None
    given = parse_yaml(text, str(path))
    make_recipe(given, str(path))
    for setting in OF_ONE_TABLE:
        if setting in given:
            raise RecipeError(f"{path}: {setting} belongs to one table and can be no default of a kernel. Take it out")
    return dict(given), text


def _name(gpu: str, recipe: Path | None) -> str:
    parts = ["gptx"]
    if gpu.isdecimal():
        parts.append(f"gpu{gpu}")
    elif gpu != "auto":
        parts.append(gpu.lower()[:12])
    if recipe:
        parts.append(re.sub(r"[^a-z0-9]+", "-", recipe.stem.lower()).strip("-") or "recipe")
    if len(parts) == 1:
        raise UsageError("give --gpu, --recipe or both: without them it would be the kernel *GPTX (Python 3)* again")
    return "-".join(parts)


def _title(gpu: str, recipe: Path | None) -> str:
    on = {"auto": "", "none": "no GPU"}.get(gpu, f"GPU {gpu[:12]}")
    return f"GPTX ({', '.join(part for part in ('Python 3', on, recipe.stem if recipe else '') if part)})"


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
