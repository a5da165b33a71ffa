"""Write and load the exact state of a training run: weights, optimiser state and position. No pickle.

    checkpoints/000120/
      model.safetensors       every tensor that training changes; float32 where lower weights have such masters
      optimizer.safetensors   what the optimiser keeps: AdamW's `exp_avg.<name>`, `exp_avg_sq.<name>`, `step.<name>`
      progress.json           {"step": 120, "scaler": {...}, ...}: what the loop needs besides tensors
      manifest.json           name -> {size, sha256}; written last: a folder without it does not count

A checkpoint is immutable. There is no generator state in it: the loop seeds every step from (seed, step).

    best/000100.safetensors   the weights alone, as they were after step 100, when they scored best so far

A checkpoint names in its progress the step that was best at that time, `"best": {"step": 100, ...}`. So a run that goes
on from it does not take for step 100 what a later step, done before a crash, has left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gptx_nb import files
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine.optimizer import Optimizer

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
MANIFEST = "manifest.json"


def _trained(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Return what training changes, once each: frozen weights are the base model's, and known without a copy.

    Masters stand for their weights. The second name of a tied tensor (GPT-2's output layer is its embedding) is
    dropped: safetensors refuses aliases.
    """
    frozen = _frozen(model)
    masters = _masters(model, optimizer)
    seen: set[tuple[int, int]] = set()
    distinct = {}
    for name, tensor in model.state_dict().items():
        alias = (tensor.data_ptr(), tensor.numel())
        if name in frozen or (tensor.numel() and alias in seen):
            continue
        seen.add(alias)
        distinct[name] = masters.get(name, tensor).detach().to("cpu").contiguous()
    return distinct


def _frozen(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _masters(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    names = _names(model)
    return {names[parameter]: master for parameter, master in optimizers.masters(optimizer).items()}


def _names(model: torch.nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def save(
    folder: Path,
    model: torch.nn.Module,
    optimizer: Optimizer,
    progress: dict[str, Any],
    scaler: torch.amp.GradScaler | None = None,
    kept: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write checkpoint `folder`/NNNNNN for `progress["step"]` and return it; one that is already there is kept.

    `kept`: what the optimiser keeps, by name, where it has but a part of it itself.
    """
    target = folder / f"{progress['step']:06d}"
    if target.exists():
        return target

    def fill(beside: Path) -> None:
        save_file(_trained(model, optimizer), beside / MODEL)
        save_file(optimizers.state(optimizer, _names(model)) if kept is None else kept, beside / OPTIMIZER)
        files.write_json(beside / PROGRESS, {**progress, "scaler": scaler.state_dict() if scaler else {}})
        manifest = {
            name: {"size": (beside / name).stat().st_size, "sha256": files.sha256(beside / name)}
            for name in (MODEL, OPTIMIZER, PROGRESS)
        }
        files.write_json(beside / MANIFEST, manifest)

    files.write_folder(target, fill)
    return target


def complete(checkpoint: Path) -> bool:
    """Say whether every file of `checkpoint` is there and unharmed."""
    manifest = files.read_json(checkpoint / MANIFEST)
    return manifest is not None and all(
        (checkpoint / name).is_file()
        and (checkpoint / name).stat().st_size == facts["size"]
        and files.sha256(checkpoint / name) == facts["sha256"]
        for name, facts in manifest.items()
    )


def every(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first, harmed ones among them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that is complete; a harmed one is passed over for the one before it."""
    return next((path for path in reversed(every(folder)) if complete(path)), None)


def load(
    checkpoint: Path, model: torch.nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None
) -> dict[str, Any]:
    """Put the state in `checkpoint` into `model`, `optimizer` and `scaler`; return its progress."""
    load_weights(checkpoint / MODEL, model)
    if masters := _masters(model, optimizer):
        saved = load_file(checkpoint / MODEL)
        for name, master in masters.items():
            master.copy_(saved[name])
    optimizers.load_state(optimizer, _names(model), load_file(checkpoint / OPTIMIZER))
    return load_progress(checkpoint, scaler)


def load_progress(checkpoint: Path, scaler: torch.amp.GradScaler | None = None) -> dict[str, Any]:
    """Put what `checkpoint` says of the scale into `scaler`; return its progress."""
    progress: dict[str, Any] = files.read_json(checkpoint / PROGRESS) or {}
    # A run that goes on in another dtype, on another device, begins with a new scale.
    if scaler and scaler.is_enabled() and progress.get("scaler"):
        scaler.load_state_dict(progress["scaler"])
    return progress


def newest(checkpoints: Path, best: Path) -> tuple[int, Path] | None:
    """Return the step and the file of the weights that were saved last, whether to go on from or as the best so far."""
    found = [(int(path.stem), path) for path in best.glob("*.safetensors") if path.stem.isdigit()]
    if (checkpoint := latest(checkpoints)) is not None:
        found.append((int(checkpoint.name), checkpoint / MODEL))
    return max(found, default=None)


def save_best(folder: Path, step: int, model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Write the weights alone, as the best so far, after `step` steps."""
    path = _best(folder, step)
    beside = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(_trained(model, optimizer), beside)
    files.replace(beside, path)


def load_best(folder: Path, step: int, model: torch.nn.Module) -> None:
    """Put the weights that were best after `step` steps into `model`."""
    load_weights(_best(folder, step), model)


def _best(folder: Path, step: int) -> Path:
    return folder / f"{step:06d}.safetensors"


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Put the weights in `path` into `model`; tied tensors need only one of their names."""
    missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    tied = {name for name in missing if name in dict(getattr(model, "_tied_weights_keys", None) or {})}
    lacking = set(missing) - tied - _frozen(model)
    if unexpected or lacking:
        raise ValueError(f"{path} does not fit this model: missing {sorted(lacking)}, unknown {unexpected}")


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for checkpoint in every(folder)[:-keep]:
        files.remove_folder(checkpoint)


def prune_best(folder: Path, checkpoints: Path, best: int | None) -> None:
    """Remove the weights in `folder` of all steps but `best` and those that a checkpoint in `checkpoints` names."""
    named = {best, *(_named_best(checkpoint) for checkpoint in every(checkpoints))}
    kept = {_best(folder, step) for step in named if step is not None}
    for path in folder.glob("*"):  # what a crash has left half written, too
        if path not in kept:
            files.remove_file(path)


def _named_best(checkpoint: Path) -> int | None:
    try:
        progress = files.read_json(checkpoint / PROGRESS) or {}
    except ValueError:  # a harmed checkpoint is never gone on from
        return None
    step: int | None = progress.get("best", {}).get("step")
    return step
