"""Launch on an NVIDIA GPU at once what is launched again and again: CUDA graphs.

A small model's next token is a thousand kernels of a few microseconds, and a training step on short texts some
thousands; to launch them one by one takes several times as long as they do. (An H200 computes 64 sentences of SST-2,
forward and back with smollm2-135m, in 11 ms; Python took 98 ms to launch that.) Recorded once, they are launched
together. Shapes and places in memory are those of the recording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")

ERRORS = "thread_local"  # what other threads ask of CUDA meanwhile is not recorded, and does no harm
BEFORE = 2  # times that the same is computed plainly first: recording takes about as long, and needs kernels loaded


def serve(device: torch.device) -> bool:
    """Whether what `device` is given can be recorded."""
    return device.type == "cuda"


class Recorded:
    """What some work has launched. `given`: the tensors that it reads; what it returns is the tensor that it writes."""

    def __init__(self, work: Callable[[Tensors], torch.Tensor], given: Tensors) -> None:
        self._given = {name: each.clone() for name, each in given.items()}
        device = next(iter(given.values())).device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # libraries make their workspaces
            work(self._given)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode=ERRORS):
            self._found = work(self._given)

    def __call__(self, given: Tensors) -> torch.Tensor:
        """Do the work for `given`, of the same shapes; what is returned is overwritten by the next call."""
        for name, each in given.items():
            self._given[name].copy_(each, non_blocking=True)
        self._graph.replay()
        return self._found


class Graphs:
    """The recordings of one kind of work, by what decides their shapes."""

    def __init__(self) -> None:
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, Recorded] = {}
        self._fails = False

    def get(
        self, key: Hashable, work: Callable[[Tensors], torch.Tensor], given: Callable[[], Tensors]
    ) -> Recorded | None:
        """Return the recording for `key`, of `work` on what `given()` is like; None: do it plainly this time.

        Doing `work` again has to change nothing. `given()` is on the device.
        """
        if self._fails:
            return None
        self._seen[key] += 1
        if key not in self._recorded and self._seen[key] > BEFORE:
            try:
                self._recorded[key] = Recorded(work, given())
            except RuntimeError:  # a model whose code looks at values on its way cannot be recorded
                self._fails = True
        return self._recorded.get(key)


class Again:
    """Records work that reads and writes the same tensors each time, until it is given another `key`."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: Any = None

    def __call__(self, key: Hashable, work: Callable[[], Result]) -> Result:
        """Do `work`, which `key` tells apart: where its tensors are, and its numbers. A tensor that it returns stays
        where it is, and is overwritten by the next call."""
        if key != self._key:
            self._key, self._seen, self._graph, self._found = key, 0, None, None
        self._seen += 1
        if self._seen <= BEFORE:
            return work()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode=ERRORS):
                self._found = work()
            self._graph = graph
        self._graph.replay()
        found: Result = self._found
        return found


class Steps:
    """Records what forward and backward passes of a model launch, by the shapes of their micro-batches.

    Gradients are added up in tensors that stay, and are `grad` of the parameters from `begin` on. `loss_of` is that of
    training. `even` brings micro-batches into few shapes, and is called with what is not on the device yet. What
    dropout draws depends on the seed that is set before each step, recorded or not.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        loss_of: Callable[[Tensors], torch.Tensor],
        device: torch.device,
        even: Callable[[Tensors], Tensors],
    ) -> None:
        self._parameters, self._loss_of, self._device = list(parameters), loss_of, device
        self._even = even
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Step] = {}
        self._gradients: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._pool: Any = None
        self.on = True

    def begin(self) -> None:
        """Begin a step: no gradient is there yet."""
        if self._gradients:
            for parameter, gradient in self._gradients:
                parameter.grad = gradient
            torch._foreach_zero_([gradient for _, gradient in self._gradients])

    def add(self, tensors: Tensors, weight: float) -> torch.Tensor:
        """Add the gradient of `weight` times the loss of a micro-batch to that of the parameters; return that loss."""
        tensors = self._even(tensors)
        key = tuple((name, tuple(each.shape)) for name, each in tensors.items())
        if (recorded := self._recorded.get(key)) is not None:
            return recorded(tensors, weight)
        moved = {name: each.to(self._device, non_blocking=True) for name, each in tensors.items()}
        loss = self._loss_of(moved) * weight
        loss.backward()
        found = loss.detach()
        del loss
        self._seen[key] += 1
        if self.on and self._seen[key] == BEFORE:
            self._record(key, moved)
        return found

    def _record(self, key: Hashable, moved: Tensors) -> None:
        if not self._gradients:
            self._gradients = [(each, each.grad) for each in self._parameters if each.grad is not None]
        try:
            self._recorded[key] = _Step(self._loss_of, moved, self._pool)
        except RuntimeError:  # code that looks at values on its way, or too little memory: goes on as before
            self.on = False
        else:
            self._pool = self._recorded[key].pool

    def drop(self) -> None:
        """Forget all that was recorded, and record no more: what it holds is needed elsewhere."""
        self.on = False
        self._recorded.clear()
        self._gradients.clear()
        self._pool = None


class _Step:
    """A recorded way forward and back of one micro-batch."""

    def __init__(self, loss_of: Callable[[Tensors], torch.Tensor], moved: Tensors, pool: Any) -> None:
        self._given = {name: each.clone() for name, each in moved.items()}
        self._weight = torch.ones((), device=next(iter(moved.values())).device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode=ERRORS):
            loss = loss_of(self._given) * self._weight
            loss.backward()
            self._loss = loss.detach()
            del loss

    @property
    def pool(self) -> Any:
        """Where it has its memory: those of one model are played one after another, and can share it."""
        return self._graph.pool()

    def __call__(self, tensors: Tensors, weight: float) -> torch.Tensor:
        for name, each in tensors.items():
            self._given[name].copy_(each, non_blocking=True)
        self._weight.fill_(weight)
        self._graph.replay()
        return self._loss.clone()
