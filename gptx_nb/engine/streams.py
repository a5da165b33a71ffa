"""Keep every core of a CPU busy: the micro-batches of a step go to as many threads as there are cores.

Within one operation a CPU's cores wait for each other at its end, some thousand times a step; on two cores a second one
then adds a tenth to a third to the speed. Each working on a micro-batch of its own, they meet once a step (measured
with smollm2-135m, 64 texts a step: 10.8 examples/s on one core, 12.3 with every operation on two, 21.8 in this way).

Each stream adds up the gradients of its own micro-batches, and these are added in the order of the streams: which
thread is quicker changes no bit. The price is memory for one more gradient a stream.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from gptx_nb.engine.device import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4  # streams; more cores share them: each stream holds a gradient, and a step has only so many rows
BLOCK = 2**18  # values that are worked on at once where memory is the limit: they fit into a core's cache


def number_for(device: torch.device, processes: int = 1) -> int:
    """Return how many streams work at once on `device`: one on a GPU, which needs no help to be busy.

    `processes` share the cores.
    """
    return max(1, min(MOST, cores() // processes)) if device.type == "cpu" else 1


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call `function` with each of `items`, all at once, this thread's cores shared among them; return all in order.

    Autograd modes and autocast belong to a thread: `function` has to set its own. So do the modes that watch operations
    or only pretend to carry them out (memory.py): under such a one, items come one after another, in this thread.
    """
    if len(items) <= 1 or is_in_torch_dispatch_mode():
        return [function(item) for item in items]
    before = torch.get_num_threads()
    threads = max(1, before // len(items))

    def call(item: Item) -> Result:
        torch.set_num_threads(threads)
        return function(item)

    try:
        found = [_pool().submit(call, item) for item in items]
        wait(found)  # where one has failed, too: what it shares memory with is gone before that is told
        return [one.result() for one in found]
    finally:
        torch.set_num_threads(before)  # a part of what it sets holds for all threads


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST, thread_name_prefix="stream")


_measuring = threading.Lock()  # of all: a part of the number of threads holds for the whole process


class Threads:
    """How many of a CPU's threads one small piece of work takes: as many as it is quickest with, by measurement.

    A few tokens are some thousand small operations that wait for memory and, where several threads share each, for each
    other too. What is best hangs on how threads wait (16 rows written by smollm2-135m, two cores with AMX, one thread
    and two: 235 and 187 tokens/s where they sleep at once, 245 and 310 where they spin for a moment, `launch.WAITING`)
    and on what the machine does besides. So each number of threads has its turns, at first and then now and again.
    There it gave the same bits with one thread and with two; the libraries promise that but for how sums are rounded.
    """

    TURNS = 2
    HOLDS = 500  # pieces of work, after which the numbers have their turns again

    def __init__(self) -> None:
        self._seconds: dict[Hashable, dict[int, list[float]]] = {}
        self._done: dict[Hashable, int] = {}

    @contextlib.contextmanager
    def quickest(self, kind: str, size: int) -> Iterator[None]:
        """Let this thread's operations take so many of the threads that it has now; `size` is in tokens or rows.

        What has been measured holds for work of the same `kind` and nearly the same size. What other threads compute
        meanwhile is neither measured nor given a number: a part of the setting holds for all.
        """
        before = torch.get_num_threads()
        if before == 1 or not _measuring.acquire(blocking=False):
            yield
            return
        try:
            step = max(0, size.bit_length() - 3)  # so that sizes are told apart by a quarter at most
            about = (kind, before, size >> step << step)
            if self._done.get(about, 0) % self.HOLDS == 0:
                self._seconds[about] = {before >> halved: [] for halved in range(before.bit_length())}
            found = self._seconds[about]
            number = min(found, key=lambda each: len(found[each]))
            is_measured = len(found[number]) >= self.TURNS
            if is_measured:
                number = min(found, key=lambda each: min(found[each]))
            torch.set_num_threads(number)
            started = time.perf_counter()
            try:
                yield
            finally:
                torch.set_num_threads(before)
            self._done[about] = self._done.get(about, 0) + 1
            if not is_measured:
                found[number].append(time.perf_counter() - started)
        finally:
            _measuring.release()


_threads: weakref.WeakKeyDictionary[torch.nn.Module, Threads] = weakref.WeakKeyDictionary()


def threads_of(model: torch.nn.Module) -> Threads:
    """Return what has been measured of small work for `model`, as long as it is there."""
    return _threads.setdefault(model, Threads())


def backward(
    losses: Sequence[Callable[[], torch.Tensor]], parameters: Sequence[torch.nn.Parameter], streams: int
) -> None:
    """Add the gradient of the sum of `losses` to the `grad` of `parameters`.

    Each loss is computed in the thread that follows it back; number i belongs to stream i % `streams`.
    """
    if streams == 1 or len(losses) == 1:
        for loss in losses:
            loss().backward()
        return

    def gradient(mine: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor | None]:
        total: list[torch.Tensor | None] = [None] * len(parameters)
        for loss in mine:
            found = torch.autograd.grad(loss(), parameters, allow_unused=True)
            for place, gradient in enumerate(found):
                total[place] = _added(total[place], gradient)
        return total

    gradients = each(gradient, [losses[stream::streams] for stream in range(min(streams, len(losses)))])

    def add(places: Sequence[int]) -> None:
        for place in places:
            parameter = parameters[place]
            for mine in gradients:
                parameter.grad = _added(parameter.grad, mine[place])
                mine[place] = None

    each(add, [range(stream, len(parameters), streams) for stream in range(streams)])


def _added(total: torch.Tensor | None, more: torch.Tensor | None) -> torch.Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total.add_(more)


def blocks(sizes: Sequence[int], streams: int) -> list[list[tuple[int, int, int]]]:
    """Cut tensors of so many values into blocks; return each stream's share: (number of the tensor, begin, end)."""
    every = [
        (number, begin, min(size, begin + BLOCK))
        for number, size in enumerate(sizes)
        for begin in range(0, size, BLOCK)
    ]
    return [every[stream::streams] for stream in range(streams)]
