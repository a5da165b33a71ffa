"""What turns gradients into steps: AdamW, or Muon with AdamW beside it. Only matrices decay.

Biases, norms and scales have no reason to be small, and are a small part of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


class Chain:
    """Several optimisers, each with its own parameters, that step as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


Optimizer = torch.optim.Optimizer | Chain


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), all of a parameter's arithmetic in one kernel."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _adamw(parameters, learning_rate, weight_decay, betas)


def muon(model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> Chain:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms and biases (Jordan et al. 2024).

    Steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one learning rate serves both.
    For pretraining from random weights: fine-tuning a model that AdamW has trained gains nothing from it.
    """
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    embeddings = {id(parameter) for module in _embeddings(model) for parameter in module.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            (hidden if parameter.ndim == 2 and id(parameter) not in embeddings else rest).append(parameter)
    return Chain(
        torch.optim.Muon(
            hidden, lr=learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        _adamw(rest, learning_rate, 0.0, betas),
    )


def _embeddings(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    yield from (module for module in model.modules() if isinstance(module, torch.nn.Embedding))


def _adamw(
    parameters: list[torch.nn.Parameter], learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)


def state(optimizer: Optimizer, names: dict[torch.Tensor, str]) -> dict[str, torch.Tensor]:
    """Return all tensors that `optimizer` keeps, on the CPU, as `<key>.<name>`; `names` has each parameter's name."""
    kept = {}
    for part in _parts(optimizer):
        for parameter, values in part.state.items():
            for key, value in values.items():
                kept[f"{key}.{names[parameter]}"] = torch.as_tensor(value).detach().to("cpu").contiguous()
    return kept


def load_state(optimizer: Optimizer, names: dict[torch.Tensor, str], kept: dict[str, torch.Tensor]) -> None:
    """Put back what `state` has returned."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for whole, value in kept.items():
        key, _, name = whole.partition(".")
        by_name.setdefault(name, {})[key] = value
    for part in _parts(optimizer):
        for group in part.param_groups:
            for parameter in group["params"]:
                if values := by_name.get(names[parameter]):
                    part.state[parameter] = {key: value.to(parameter.device) for key, value in values.items()}


def _parts(optimizer: Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, Chain) else (optimizer,)
