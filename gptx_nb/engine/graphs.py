"""Launch on an NVIDIA GPU at once what is launched again and again: CUDA graphs.

A small model's next token is a thousand kernels of a few microseconds, and a training step on short texts some
thousands; to launch them one by one takes several times as long as they do. (An H200 computes 64 sentences of SST-2,
forward and back with smollm2-135m, in 11 ms; Python took 98 ms to launch that.) Recorded once, they are launched
together. Shapes and places in memory are those of the recording.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from gptx_nb.engine.device import is_out_of_memory

Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")

ERRORS = "thread_local"  # what other threads ask of CUDA meanwhile is not recorded, and does no harm
BEFORE = 2  # times that the same is computed plainly first: recording takes about as long, and needs kernels loaded
MOST = 48  # recordings of one kind that are kept
MOST_TRIED = 8  # times that work which should stay where it is may have moved

# Models whose code looks at values on its way. To find that out again each time would take memory each time.
_cannot: weakref.WeakSet[Any] = weakref.WeakSet()


def serve(device: torch.device) -> bool:
    """Whether what `device` is given can be recorded."""
    return device.type == "cuda" and torch.version.hip is None


def looks_at_values(config: Any) -> bool:
    """Whether a model's code looks at values on its way: positions that stretch with the text do.

    Where recording is broken off by that, memory stays taken, so it is not begun.
    """
    every = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {each.get("rope_type", each.get("type")) for each in (every, *every.values()) if isinstance(each, dict)}
    return bool(kinds & {"dynamic", "longrope"})


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of `device` that recordings are made on: torch's own is one for all devices."""
    return torch.cuda.Stream(device)


def _recorded(
    device: torch.device, work: Callable[[], Result], pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Record `work`, which is not done by that; return the recording and what `work` has returned."""
    graph = torch.cuda.CUDAGraph()
    # Where recording fails, torch leaves its stream the current one; the outer of the two puts that right.
    with (
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream(device)),
        torch.cuda.graph(graph, pool=pool, stream=_aside(device), capture_error_mode=ERRORS),
    ):
        found = work()
    return graph, found


class Recorded:
    """What some work has launched. `given`: the tensors that it reads; what it returns is the tensor that it writes."""

    def __init__(self, work: Callable[[Tensors], torch.Tensor], given: Tensors, pool: Any = None) -> None:
        self._given = {name: each.clone() for name, each in given.items()}
        device = next(iter(given.values())).device
        aside = _aside(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # libraries make their workspaces
            work(self._given)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph, self._found = _recorded(device, lambda: work(self._given), pool)

    def __call__(self, given: Tensors) -> torch.Tensor:
        """Do the work for `given`, of the same shapes; what is returned is overwritten by the next call."""
        for name, each in given.items():
            self._given[name].copy_(each, non_blocking=True)
        self._graph.replay()
        return self._found


class Graphs:
    """The recordings of one kind of work of `model`, by what decides their shapes: the MOST that were asked for last.

    They share their memory: what one has found is to be used before the next is asked for.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, Recorded] = {}
        self._pool: Any = None
        self._full = False  # there was too little memory for one
        if looks_at_values(getattr(model, "config", None)):
            _cannot.add(model)

    def get(
        self, key: Hashable, work: Callable[[Tensors], torch.Tensor], given: Callable[[], Tensors]
    ) -> Recorded | None:
        """Return the recording for `key`, of `work` on what `given()` is like; None: do it plainly this time.

        Doing `work` again has to change nothing. `given()` is on the device.
        """
        if self._full or self._model in _cannot:
            return None
        self._seen[key] += 1
        if key not in self._recorded and self._seen[key] > BEFORE:
            if self._pool is None and torch.cuda.is_available():
                self._pool = torch.cuda.graph_pool_handle()
            try:
                self._recorded[key] = Recorded(work, given(), self._pool)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    _cannot.add(self._model)
                self._recorded.clear()
                self._full = True
                return None
            if len(self._recorded) > MOST:
                oldest = next(iter(self._recorded))
                del self._recorded[oldest], self._seen[oldest]
        if key in self._recorded:
            self._recorded[key] = self._recorded.pop(key)  # asked for last
        return self._recorded.get(key)


class Again:
    """Records work that reads and writes the same tensors each time, until it is given another `key`."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._seen = self._moved = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: Any = None

    def __call__(self, key: Hashable, device: torch.device, work: Callable[[], Result]) -> Result:
        """Do `work`, which `key` tells apart: where its tensors are, and its numbers.

        A tensor that it returns stays where it is, and is overwritten by the next call.
        """
        if key != self._key:
            self._moved += self._graph is not None
            self._key, self._seen, self._graph, self._found = key, 0, None, None
        self._seen += 1
        if self._seen <= BEFORE or self._moved > MOST_TRIED:
            return work()
        if self._graph is None:
            try:
                self._graph, self._found = _recorded(device, work)
            except RuntimeError:  # too little memory: nothing was done yet
                self._moved = MOST_TRIED + 1
                return work()
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
        self._gradients: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._pool: Any = None
        self.on = True

    def begin(self) -> None:
        """Begin a step: no gradient is there yet."""
        if self._gradients:
            for parameter, gradient in self._gradients.items():
                parameter.grad = gradient
            torch._foreach_zero_(list(self._gradients.values()))

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
        if self.on and self._seen[key] == BEFORE and len(self._recorded) < MOST:
            self._record(key, moved)
        return found

    def _record(self, key: Hashable, moved: Tensors) -> None:
        for each in self._parameters:
            if each.grad is not None:
                self._gradients.setdefault(each, each.grad)
        try:
            self._recorded[key] = _Step(self._loss_of, moved, self._pool)
        except RuntimeError:  # code that looks at values on its way, or too little memory: goes on as before
            self.drop()
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
        device = next(iter(moved.values())).device
        self._weight = torch.ones((), device=device)

        def work() -> torch.Tensor:
            loss = loss_of(self._given) * self._weight
            loss.backward()
            return loss.detach()

        self._graph, self._loss = _recorded(device, work, pool)

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
