"""What turns gradients into steps: AdamW, or Muon with AdamW beside it. Only matrices decay.

Biases, norms and scales have no reason to be small, and are a small part of the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from gptx_nb.engine import device as devices
from gptx_nb.engine import graphs, streams
from gptx_nb.errors import DeviceError, RecipeError

Result = TypeVar("Result")

AT_ONCE = 2**24  # numbers that a GPU steps at once, which have float32 gradients meanwhile


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


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices: the momentum's nearest orthogonal matrix is the step.

    Steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982). `torch.optim.Muon` does this, always
    in bfloat16: on a CPU without units for it, its step takes twice as long as the whole gradient. Here products are
    in the dtype that the device is fast in, and on a CPU each core takes matrices of its own.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(list(parameters), {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            dtype = devices.fast_dtype(parameters[0].device)
            number = min(len(parameters), streams.number_for(parameters[0].device))
            largest_first = sorted(parameters, key=lambda each: -each.numel())
            step = functools.partial(self._step, group, dtype)
            streams.each(step, [largest_first[stream::number] for stream in range(number)])

    @torch.no_grad()
    def _step(self, group: dict[str, Any], dtype: torch.dtype, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            momentum = self.state[parameter]["momentum_buffer"]
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            direction = orthogonal(parameter.grad.lerp(momentum, group["momentum"]), dtype)  # Nesterov's
            scale = 0.2 * max(parameter.shape) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype, steps: int = 5) -> torch.Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1, between 0.7 and 1.2.

    Newton-Schulz iteration with the coefficients of Jordan et al. (2024), in `dtype`.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(dtype)
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


Optimizer = torch.optim.Optimizer | Chain


class MasterAdamW(torch.optim.Optimizer):
    """AdamW for weights in a lower dtype: each has a float32 one beside it, its master, to which steps are added.

    In bfloat16 alone a step is lost where it is less than 1/256 of the weight (Micikevicius et al. 2018,
    arXiv:1710.03740). `masters` are the float32 values of `parameters`, in their order; they are changed in place.
    On a CPU all is done block by block, so that what a value needs is read from memory once.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        masters: Sequence[torch.Tensor],
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        super().__init__(_by_decay(list(parameters), weight_decay), {"lr": learning_rate, "betas": betas, "eps": 1e-8})
        self._divisor: float | torch.Tensor = 1.0
        # On a GPU, what is launched of both is launched at once where gradients stay where they are.
        self._clipping, self._stepping = graphs.Again(), graphs.Again()
        self._rates: dict[torch.device, torch.Tensor] = {}
        for parameter, master in zip(parameters, masters, strict=True):
            self.state[parameter] = {
                "master": master,
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
                "step": torch.zeros((), device=master.device),  # where the fused kernel reads it
            }

    def clip(self, most: float) -> float | torch.Tensor:
        """Return the L2 norm of the gradient; the next step divides by so much that it is at most `most`.

        On a GPU the norm stays there: whoever reads it waits for it.
        """
        gradients = [each.grad.detach() for each in self._parameters() if each.grad is not None]
        if _on_cpu(gradients):
            shares = streams.blocks([each.numel() for each in gradients], streams.number_for(torch.device("cpu")))
            flat = [each.flatten() for each in gradients]

            def squares(share: list[tuple[int, int, int]]) -> list[tuple[tuple[int, int, int], torch.Tensor]]:
                parts = ((block, flat[block[0]][block[1] : block[2]].float()) for block in share)
                return [(block, torch.dot(part, part)) for block, part in parts]

            # Added in one order, however many streams there were.
            found = dict(pair for pairs in streams.each(squares, shares) for pair in pairs)
            norm = float(torch.stack([found[block] for block in sorted(found)]).sum().sqrt()) if found else 0.0
            self._divisor = max(1.0, norm / most)
            return norm

        def look() -> tuple[torch.Tensor, torch.Tensor]:
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            whole = torch.linalg.vector_norm(torch.stack(norms))
            return whole, (whole / most).clamp_min(1.0)

        norm_there, self._divisor = self._launched(self._clipping, gradients, look, most)
        return norm_there.clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [each for each in self._parameters() if each.grad is not None]
        if _on_cpu(parameters):
            self._step_groups()
        else:
            if graphs.serve(parameters[0].device):
                self._rate(parameters[0].device).fill_(self.param_groups[0]["lr"])  # all groups have one
            gradients = [each.grad for each in parameters if each.grad is not None]
            given = self._divisor.data_ptr() if isinstance(self._divisor, torch.Tensor) else self._divisor
            self._launched(self._stepping, gradients, self._step_groups, given)
        self._divisor = 1.0

    def forget(self) -> None:
        """Give back the memory of what was recorded."""
        self._clipping, self._stepping = graphs.Again(), graphs.Again()

    def _rate(self, device: torch.device) -> torch.Tensor:
        """Return the tensor that the learning rate stands in, for what is recorded."""
        if device not in self._rates:
            self._rates[device] = torch.zeros((), device=device)
        return self._rates[device]

    def _launched(
        self, again: graphs.Again, gradients: Sequence[torch.Tensor], work: Callable[[], Result], *more: Hashable
    ) -> Result:
        """Do `work` with `gradients`, at once where that can be done; `more` are the numbers in it."""
        if not graphs.serve(gradients[0].device):
            return work()
        return again((*more, *(each.data_ptr() for each in gradients)), gradients[0].device, work)

    def _step_groups(self) -> None:
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if parameters:
                torch._foreach_add_([self.state[each]["step"] for each in parameters], 1)
            if _on_cpu(parameters):
                shares = streams.blocks([each.numel() for each in parameters], streams.number_for(torch.device("cpu")))
                streams.each(functools.partial(self._step_blocks, parameters, group), shares)
            else:
                self._step_whole(parameters, group)

    @torch.no_grad()
    def _step_blocks(
        self, parameters: list[torch.nn.Parameter], group: dict[str, Any], share: list[tuple[int, int, int]]
    ) -> None:
        for number, begin, end in share:
            parameter = parameters[number]
            assert parameter.grad is not None
            gradient = parameter.grad.flatten()[begin:end].float()
            self._update([parameter], [gradient], slice(begin, end), group)

    @torch.no_grad()
    def _step_whole(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        for some in _together(parameters):
            given = [each.grad.reshape(-1) for each in some if each.grad is not None]
            whole = torch.empty(sum(map(len, given)), dtype=torch.float32, device=given[0].device)
            gradients = list(whole.split([len(each) for each in given]))
            torch._foreach_copy_(gradients, given)
            self._update(some, gradients, slice(None), group)

    def _update(
        self, parameters: list[torch.nn.Parameter], gradients: list[torch.Tensor], at: slice, group: dict[str, Any]
    ) -> None:
        """Step the values `at` of each flattened parameter; `gradients` are theirs, in float32."""

        def part(tensor: torch.Tensor) -> torch.Tensor:
            flat = tensor.view(-1)
            return flat if at == slice(None) else flat[at]

        states = [self.state[each] for each in parameters]
        masters, exp_avg, exp_avg_sq = (
            [part(state[name]) for state in states] for name in ("master", "exp_avg", "exp_avg_sq")
        )
        torch._fused_adamw_(
            masters,
            gradients,
            exp_avg,
            exp_avg_sq,
            [],
            [state["step"] for state in states],
            lr=self._rate(masters[0].device) if graphs.serve(masters[0].device) else group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=torch.as_tensor(self._divisor, device=masters[0].device),
            found_inf=None,
        )
        torch._foreach_copy_([part(each.detach()) for each in parameters], masters)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]


def forget(optimizer: Optimizer) -> None:
    """Give back the memory of what was recorded of `optimizer`, if anything was."""
    if isinstance(optimizer, MasterAdamW):
        optimizer.forget()


def allocate(optimizer: Optimizer) -> None:
    """Make what `optimizer` keeps beside each parameter that has a gradient, as its first step would make it: zeros.

    So what it takes is taken before that step, and nothing is learnt. What is there already stays as it is.
    """
    for part in _parts(optimizer):
        for number, group in enumerate(part.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is None or part.state.get(parameter):
                    continue
                if isinstance(part, torch.optim.AdamW):
                    part.state[parameter] = {
                        "step": torch.zeros((), device=parameter.device),  # where the fused kernel reads it
                        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    }
                elif isinstance(part, Muon):
                    part.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
                elif (init := getattr(part, "init_state", None)) is not None:  # bitsandbytes has a function for it
                    init(group, parameter, number, place)


def _on_cpu(tensors: Sequence[torch.Tensor]) -> bool:
    return all(each.device.type == "cpu" for each in tensors)


def _together(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Part `parameters` into what is stepped at once on a GPU: many are quick, and each has a float32 gradient then."""
    some: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if some and sum(each.numel() for each in some) + parameter.numel() > AT_ONCE:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


def clip(optimizer: Optimizer, parameters: Sequence[torch.nn.Parameter], most: float) -> float | torch.Tensor:
    """Return the L2 norm of the whole gradient, and see to it that the next step has one of at most `most`.

    A tensor may still be on its way: reading it makes a GPU wait.
    """
    own: Callable[[float], float | torch.Tensor] | None = getattr(optimizer, "clip", None)
    if own is not None:
        return own(most)
    return torch.nn.utils.clip_grad_norm_(parameters, most)


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), all of a parameter's arithmetic in one kernel."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _adamw(parameters, learning_rate, weight_decay, betas)


def adamw_8bit(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """AdamW whose memory of gradients is kept in 8 bits, block by block (Dettmers et al. 2022, arXiv:2110.02861).

    Raises RecipeError where bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise RecipeError(
            "optimizer: adamw-8bit needs bitsandbytes, which is not installed. Type `%pip install "
            "'gptx-nb[bitsandbytes]'` in a cell, and run this one again; or leave it out"
        ) from None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made: torch.optim.Optimizer = AdamW8bit(_by_decay(parameters, weight_decay), lr=learning_rate, betas=betas)
    return made


def require_8bit(device: torch.device) -> None:
    """Raise DeviceError where the 8-bit optimiser gains nothing: it is meant for the memory of NVIDIA GPUs."""
    if device.type != "cuda":
        raise DeviceError(
            f"optimizer: adamw-8bit saves memory of NVIDIA GPUs, and this run trains on {device.type}. Leave it out"
        )


class SizesOf8bit(torch.optim.Optimizer):
    """Takes the memory that `adamw_8bit` takes, and no more than that: tensors without values cannot be quantised."""

    SMALLEST, BLOCK = 4096, 256  # values: less stays float32; so many share a scale

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__([each for each in model.parameters() if each.requires_grad], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            small = parameter.numel() < self.SMALLEST
            state = self.state[parameter]
            for number in (1, 2):
                dtype = torch.float32 if small else torch.uint8
                state[f"state{number}"] = torch.zeros_like(parameter, dtype=dtype)
                if not small:
                    blocks = -(-parameter.numel() // self.BLOCK)
                    state[f"absmax{number}"] = torch.zeros(blocks, device=parameter.device)


def muon(model: torch.nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]) -> Chain:
    """Muon for the matrices between hidden states, AdamW for embeddings, norms and biases (Jordan et al. 2024).

    One learning rate serves both, as Muon's steps are scaled to the size of AdamW's.
    For pretraining from random weights: fine-tuning a model that AdamW has trained gains nothing from it.
    """
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    embeddings = {id(parameter) for module in _embeddings(model) for parameter in module.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            (hidden if parameter.ndim == 2 and id(parameter) not in embeddings else rest).append(parameter)
    return Chain(
        Muon(hidden, learning_rate, weight_decay),
        _adamw(rest, learning_rate, 0.0, betas),
    )


def _embeddings(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    yield from (module for module in model.modules() if isinstance(module, torch.nn.Embedding))


def _adamw(
    parameters: list[torch.nn.Parameter], learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    return torch.optim.AdamW(_by_decay(parameters, weight_decay), lr=learning_rate, betas=betas, fused=True)


def _by_decay(parameters: list[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def masters(optimizer: Optimizer) -> dict[torch.Tensor, torch.Tensor]:
    """Return the float32 values of the parameters that have them beside lower ones: none with other optimisers."""
    if not isinstance(optimizer, MasterAdamW):
        return {}
    return {parameter: values["master"] for parameter, values in optimizer.state.items()}


def state(optimizer: Optimizer, names: dict[torch.Tensor, str]) -> dict[str, torch.Tensor]:
    """Return what `optimizer` keeps beside the weights, on the CPU, as `<key>.<name>`; `names` has each one's name.

    It is the same in every arithmetic: masters are weights.
    """
    kept = {}
    for part in _parts(optimizer):
        for parameter, values in part.state.items():
            for key, value in values.items():
                if key == "master":
                    continue
                saved = torch.as_tensor(value).detach().to("cpu").contiguous()
                # The values that 8 bits stand for are one tensor for all parameters, which no file may hold twice.
                kept[f"{key}.{names[parameter]}"] = saved.clone() if key.startswith("qmap") else saved
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
                    state = part.state[parameter]
                    for key, value in values.items():
                        # bitsandbytes counts steps in a plain number.
                        counted = key == "step" and "state1" in values
                        state[key] = int(value) if counted else value.to(parameter.device)


def _parts(optimizer: Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, Chain) else (optimizer,)
