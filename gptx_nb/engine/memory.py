"""Say before training how much memory it will take at its peak, part by part. Trains nothing, allocates no tensor.

One step is run on fake tensors, which have shapes but no values: forward, backward, optimiser. Whatever the model, its
attention, autocast, low-rank updates and activation checkpointing keep is then counted, and no formula has to know of
it. What one kernel allocates and frees within itself is not seen (measured: 1 % of the tensors).

On a CPU that is not yet what the process takes. glibc keeps what is freed inside its heap, where an aligned block does
not fit into the hole that another of its size has left: measured, such holes take a third to as much again as the
tensors do. They follow from the order of allocations, which the fake step has given: `Heap` repeats what glibc does
with it. Under another C library, and on a GPU, holes are not known and count as nothing.

A process started with GLIBC_TUNABLES=TUNABLE has fewer holes (the peak fell by up to a third) and takes no longer; its
peak is also the same from run to run within 5 %, and without it within 15 % only. With MALLOC_MMAP_THRESHOLD_=131072
there are no holes at all, and page faults cost up to 40 % more time.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import platform
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptx_nb.engine import device as devices
from gptx_nb.engine import dropout
from gptx_nb.engine.optimizer import Chain, MasterAdamW, Optimizer
from gptx_nb.engine.train import arithmetic
from gptx_nb.line import Demand, limit

Tensors = dict[str, torch.Tensor]

TUNABLE = "glibc.malloc.tcache_count=0"  # small objects that were freed no longer keep large blocks apart
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
MAIN = torch.device("cpu")
MARGIN = 0.15  # of what is to come, kept free: the error that an estimate may have


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part at the moment when a run takes most."""

    weights: int
    gradients: int
    optimiser: int
    activations: int  # what the forward pass keeps for the backward pass
    working: int  # everything else that a pass computes with
    allocator: int  # holes in the heap
    process: int  # Python, libraries and data: what is held before training, without the weights
    logits: int = 0  # a language model's, with what has their shape, such as their gradient
    frozen: int = 0  # what is kept of a frozen part (`tuning.FrozenPart`) in this memory

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def to_come(self) -> int:
        """What training adds to what the process holds already."""
        return self.total - self.weights - self.process

    def parts(self) -> dict[str, int]:
        return asdict(self)

    def fits(self, free: int | None) -> bool:
        """Whether it fits what is free, with a margin. What cannot be told is taken to fit: preflight will show."""
        return free is None or self.to_come * (1 + MARGIN) <= free

    def __str__(self) -> str:
        listed = [(size, name) for name, size in self.parts().items() if size >= 0.01 * self.total]
        words = ", ".join(f"{name} {_size(size)}" for size, name in sorted(listed, reverse=True))
        return f"{_size(self.total)} at the peak: {words}"


@dataclass(frozen=True)
class Shards:
    """What `sharding.Sharded` does with a model, in bytes: `held` by this process all the time, `gathered` in a pass.

    `count` processes have the model. All but the layers stays gathered for a pass, with its gradients; of the layers
    one is, with its gradients and the float32 copy in which they are summed. `rest`: what the last of these, all but
    the layers, takes once the activations are gone. `scored`: the copy of the whole model that this one scores with.
    """

    count: int
    held: int
    gathered: int
    rest: int
    scored: int

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        layers: torch.nn.ModuleList,
        dtype: torch.dtype,
        count: int,
        plain: bool,
        scores: bool,
    ) -> Shards:
        """`plain`: this process has the plain model beside its shards, on the same device; `scores`: it scores."""
        size = 2 if dtype is torch.bfloat16 else 4
        numbers = [_numbers(layer.parameters()) for layer in layers]
        inside = {id(each) for layer in layers for each in layer.parameters()}
        rest, trained = _numbers(each for each in model.parameters() if id(each) not in inside)
        layer, layer_trained = max(numbers)
        everything, _ = _numbers(model.parameters())
        return cls(
            count,
            held=4 * (everything // count + everything * plain),
            gathered=size * (rest + trained + layer + layer_trained) + 4 * layer_trained,
            rest=size * (rest + trained) + 4 * trained,
            # In main memory, and in float32, the plain model itself will do.
            scored=size * everything if scores and not (plain and size == 4) else 0,
        )


def _numbers(parameters: Iterable[torch.Tensor]) -> tuple[int, int]:
    """Return how many values `parameters` have, and how many of them are trained."""
    both = [(each.numel(), each.numel() * each.requires_grad) for each in parameters]
    return sum(all_of for all_of, _ in both), sum(trained for _, trained in both)


def estimate(
    model: torch.nn.Module,
    micro: Tensors,
    *,
    loss_of: Callable[[torch.nn.Module, Tensors], torch.Tensor],
    make_optimizer: Callable[[torch.nn.Module], Optimizer],
    device: torch.device,
    dtype: torch.dtype,
    several: bool = False,
    streams: int = 1,
    process: int | None = None,
    summed: int = 0,
    shards: Shards | None = None,
    frozen: int = 0,
) -> Estimate:
    """Estimate a run of `engine.train` whose largest micro-batch is `micro`.

    `loss_of` is given a model whose weights are fake, the very object `model`. Where a frozen part is computed once and
    kept (`tuning.FrozenPart`), give the loss that does without, as filling it takes most; `frozen`: its bytes, where
    they are kept in the memory of `device`.
    `several`: a stream has more than one micro-batch, so that gradients stand while the next one is computed.
    `streams`: so many are computed at once, each in a thread, which has a heap of its own. The weights of `model` may
    be on the meta device: they are not looked at. `process`: see `held`; None: measured now. `summed`: bytes of
    gradients that several processes add up at once, of which there is a copy before each update. `shards`: the process
    has a part of the model alone.
    """
    log, compute, update = _fake_step(model, micro, loss_of, make_optimizer, device, dtype)
    passes = [compute, *([list(_accumulating(compute, log))] if several else [])]
    weights = sum(size for key, size in log.sizes.items() if log.part[key] == "weights")
    gathered, rest, scored = 0, 0, 0
    if shards is not None:
        weights, gathered, rest, scored = shards.held, shards.gathered, shards.rest, shards.scored
        _cut(log, shards.count, next(model.parameters()).element_size(), {event.key for event in update})
    begun = {event.key for events in [*passes, update] for event in events if event.begins}
    standing = {key: size for key, size in log.sizes.items() if log.part[key] == "optimiser" and key not in begun}
    if process is None:
        process = held(model, device)

    # Shards do without: see `without_holes`.
    has_heap = shards is None and device.type == "cpu" and platform.libc_ver()[0] == "glibc"
    live: Counter[str] = Counter(optimiser=sum(standing.values()))
    at_most, most, resident = Counter[str](), 0, 0
    own = Heap()
    heaps = (own, own) if streams == 1 else (own, Heap())  # of the main thread, of each stream
    # The first step makes the optimiser's state, which stands beside the second.
    for events in [*passes, update, *passes]:
        if events is update and live.total() + summed > most:
            at_most, most = live + Counter(working=summed), live.total() + summed
            resident = max(resident, own.resident + summed)
        beside = 0 if events is update else gathered
        live["working"] += beside
        for event in events:
            alike = 1 if events is update and log.part[event.key] != "gradients" else streams
            size = log.sizes[event.key]
            part = "logits" if event.key in log.logits else log.part[event.key]
            live[part] += alike * (size if event.begins else -size)
            if (now := live.total()) > most:
                at_most, most = live.copy(), now
            if has_heap:
                heap = heaps[alike > 1]
                remembered = log.part[event.key] == "activations"
                heap.take(event.key, size, remembered) if event.begins else heap.give(event.key)
                in_heaps = own.resident if streams == 1 else own.resident + streams * heaps[1].resident
                resident = max(resident, in_heaps + beside)
        live["working"] -= beside
        if events is not update and live.total() + rest > most:  # the last gradients are summed
            at_most, most = live + Counter(working=rest), live.total() + rest
            resident = max(resident, own.resident + rest)
        for heap in heaps:
            heap.pass_ended()
    optimiser = Counter(optimiser=live["optimiser"])
    if optimiser.total() + scored > most:
        at_most, most = optimiser + Counter(working=scored), optimiser.total() + scored
    resident = resident + sum(standing.values()) if has_heap else 0
    return Estimate(
        weights=weights,
        gradients=at_most["gradients"],
        optimiser=at_most["optimiser"],
        activations=at_most["activations"],
        working=at_most["working"],
        allocator=max(0, resident - most),
        process=process,
        logits=at_most["logits"],
        frozen=frozen,
    )


def _cut(log: _Log, count: int, size: int, updating: set[int]) -> None:
    """Let the log tell of one of `count` processes that share a model of `size` bytes a value.

    Gradients are summed in float32.
    """
    for key, part in log.part.items():
        if part == "gradients":
            log.sizes[key] = log.sizes[key] * 4 // size // count
        elif part == "optimiser" or key in updating:
            log.sizes[key] //= count


def held(model: torch.nn.Module, device: torch.device) -> int:
    """Return the bytes that this process holds on `device` without the weights of `model`; 0 where it cannot be told.

    A weight that was read from a mapped file is in memory once it is touched, which training will do: so it is touched.
    """
    real = {id(each): each for each in [*model.parameters(), *model.buffers()] if each.device.type == device.type}
    weights = sum(each.nbytes for each in real.values())
    if device.type == "cuda":
        return max(0, torch.cuda.memory_reserved(device) - weights)
    if device.type != "cpu":
        return 0
    for each in real.values():
        each.detach().flatten()[:: 4096 // each.element_size()].sum()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0  # not Linux
    return max(0, pages * 4096 - weights)


def checkpoint_activations(model: torch.nn.Module) -> None:
    """Let `model` compute every layer again on the way back (Chen et al. 2016, arXiv:1604.06174), and keep less."""
    known: Any = model
    # The second name is that of older versions of transformers.
    enable = getattr(known, "activation_checkpointing_enable", None) or known.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def without_holes() -> None:
    """Let glibc map every block from 128 kB on by itself from here on: what is freed goes back, at a cost of time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 128 * 2**10)
        libc.malloc_trim(0)


def available(device: torch.device) -> int | None:
    """Return the bytes of memory that are free for a run on `device`, or None where it cannot be told."""
    return devices.memory(device)[1]


def of_recording(estimate: Estimate | None, most: int | None) -> int:
    """Return the bytes that recordings of training passes (`graphs.Steps`) may take beside the run.

    What a pass computes with has a place of its own in them, and gradients stay. 0: with them it would take more than
    `most`, what there is of the device, and none are made; nor where nothing is known.
    """
    if estimate is None or most is None:
        return 0
    size = estimate.activations + estimate.working + estimate.logits + estimate.gradients
    peak = estimate.weights + estimate.process + (estimate.to_come + size) * (1 + MARGIN)
    return size if peak <= min(most, limit() or most) else 0


def demand(
    estimate: Estimate | None, device: torch.device, in_main_memory: int = 0, recording: int = 0
) -> dict[str, Demand]:
    """Return what a run takes of its device, for its place in line; empty where that cannot be told.

    `in_main_memory`: bytes that a run on another device is going to keep there (see `kept_in_main_memory`).
    `recording`: see `of_recording`.
    """
    free = available(device)
    if estimate is None or free is None:
        return {}
    held, to_come = estimate.weights + estimate.process, round((estimate.to_come + recording) * (1 + MARGIN))
    found = {devices.whole_name(device): Demand(held, to_come, free)}
    free_beside = available(MAIN) if in_main_memory and device.type != "cpu" else None
    if free_beside is not None:
        found[str(MAIN)] = Demand(taken(MAIN) or 0, in_main_memory, free_beside)
    return found


def together(demands: Sequence[dict[str, Demand]]) -> dict[str, Demand]:
    """Return what several processes of one run take together; empty where one of them cannot tell."""
    found: dict[str, Demand] = {}
    for device, each in [pair for demand in demands for pair in demand.items()]:
        before = found.get(device, Demand(0, 0, each.free))
        found[device] = Demand(before.held + each.held, before.to_come + each.to_come, min(before.free, each.free))
    return found if all(demands) else {}


def taken(device: torch.device) -> int | None:
    """Return the bytes that this process has taken of `device`, kept for reuse or not; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
    except OSError:
        return None  # not Linux


def nearest_recipe(
    estimate_of: Callable[[str, int], Estimate | None], *, tune: str, max_length: int, free: int | None
) -> str | None:
    """Return the settings, as they are typed, that change least of a recipe and fit `free`; None if none does.

    `estimate_of(tune, max_length)` estimates the smallest micro-batch; None: it cannot. First rows get shorter, down to
    a quarter; then less is trained.
    """
    lengths = [max_length, max_length // 2, max_length // 4]
    methods = [tune, *(method for method in ("lora", "head") if _trains_less(method, tune))]
    for method in methods:
        for length in lengths:
            if (method, length) == (tune, max_length) or length < 16:
                continue
            if (made := estimate_of(method, length)) is not None and made.fits(free):
                changed = [f"tune: {method}"] if method != tune else []
                return ", ".join(changed + ([f"max_length: {length}"] if length != max_length else []))
    return None


def _trains_less(method: str, than: str) -> bool:
    order = ["full", "lora", "top", "head"]
    return order.index(method) > order.index(than.partition(":")[0])


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


# ---- a step without values ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Event:
    key: int
    begins: bool  # else it ends


class _Log(TorchDispatchMode):
    """Writes down when the memory of each tensor begins and ends, and how many bytes it has."""

    def __init__(self, vocabulary: int | None) -> None:
        super().__init__()
        self._vocabulary = vocabulary  # None: the model writes no tokens
        self.logits: set[int] = set()  # keys
        self.events: list[_Event] = []
        self.sizes: dict[int, int] = {}
        self.part: dict[int, str] = {}
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self.see(each, "working")
                if each.shape[-1:] == (self._vocabulary,) and each.is_floating_point():
                    self.logits.add(self._live[id(each.untyped_storage())][0])
        return result

    def see(self, tensor: torch.Tensor, part: str, *, rename: bool = False) -> None:
        storage = tensor.untyped_storage()
        place = id(storage)
        if place not in self._live:
            key = len(self.sizes)
            self.sizes[key], self.part[key] = storage.nbytes(), part
            self._live[place] = key, weakref.ref(storage, lambda _: self._end(place))
            self.events.append(_Event(key, True))
        elif rename:
            self.part[self._live[place][0]] = part

    def rename_live(self, old: str, new: str) -> None:
        for key, _ in self._live.values():
            if self.part[key] == old:
                self.part[key] = new

    def cut(self) -> list[_Event]:
        """Return the events since the last cut."""
        events, self.events = self.events, []
        return events

    def _end(self, place: int) -> None:
        key, _ = self._live.pop(place)
        self.events.append(_Event(key, False))


def _fake_step(
    model: torch.nn.Module,
    micro: Tensors,
    loss_of: Callable[[torch.nn.Module, Tensors], torch.Tensor],
    make_optimizer: Callable[[torch.nn.Module], Optimizer],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[_Log, list[_Event], list[_Event]]:
    """Return the log, the events of one micro-batch (all that begins ends, but gradients), and those of the update."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a while to import

    known: Any = model
    output = known.get_output_embeddings() if hasattr(known, "get_output_embeddings") else None
    log = _Log(None if output is None else output.weight.shape[0])
    was_training = model.training
    # Tensors that a module keeps outside of its buffers stay real: fake mode then converts them.
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, log, _fake_weights(model, device, log):
        model.train()
        tensors = {name: torch.empty_like(fake.from_tensor(each), device=device) for name, each in micro.items()}
        parameters = [each for each in model.parameters() if each.requires_grad]
        optimizer = make_optimizer(model)
        if isinstance(optimizer, MasterAdamW):
            for parameter in parameters:
                for name, state in optimizer.state[parameter].items():
                    log.see(state, "weights" if name == "master" else "optimiser", rename=True)
        log.cut()  # the weights are there already
        dropout.seed(0)  # as in training: what it remembers differs from torch's own
        with arithmetic(model, device, dtype):
            loss = loss_of(model, tensors)
        log.rename_live("working", "activations")
        loss.backward()
        del loss
        for each in parameters:
            if each.grad is not None:
                log.see(each.grad, "gradients", rename=True)
        compute = log.cut()
        if not isinstance(optimizer, MasterAdamW):  # it goes block by block, and has its state already
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        for state in _states(optimizer):
            log.see(state, "optimiser", rename=True)
        optimizer.zero_grad(set_to_none=True)
        update = log.cut()
        model.train(was_training)
    kept = {key for key, part in log.part.items() if part == "gradients"}
    whole = {event.key for event in compute if event.begins} & {event.key for event in compute if not event.begins}
    passing = [event for event in compute if event.key in whole or event.key in kept]
    return log, passing, update


def _accumulating(events: list[_Event], log: _Log) -> Iterator[_Event]:
    """Give the events of a further micro-batch: its gradients end at once, as they are added to those that stand.

    They are new memory to the heap, so they have keys of their own.
    """
    for event in events:
        if log.part[event.key] != "gradients":
            yield event
        elif event.begins:
            key = len(log.sizes)
            log.sizes[key], log.part[key] = log.sizes[event.key], "working"
            yield _Event(key, True)
            yield _Event(key, False)


def _states(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for part in optimizer.parts if isinstance(optimizer, Chain) else (optimizer,):
        for values in part.state.values():
            yield from (each for each in values.values() if isinstance(each, torch.Tensor))


@contextlib.contextmanager
def _fake_weights(model: torch.nn.Module, device: torch.device, log: _Log) -> Iterator[None]:
    """Put fake tensors in the place of all weights and buffers of `model`; put the real ones back at the end."""
    real: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    made: dict[int, torch.Tensor] = {}  # tied weights stay tied
    try:
        for module in model.modules():
            everything: list[dict[str, Any]] = [module._parameters, module._buffers]
            for named in everything:
                for name, tensor in named.items():
                    if tensor is None:
                        continue
                    real.append((named, name, tensor))
                    if id(tensor) not in made:
                        blank = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                        if isinstance(tensor, torch.nn.Parameter):
                            blank = torch.nn.Parameter(blank, requires_grad=tensor.requires_grad)
                        log.see(blank, "weights", rename=True)
                        made[id(tensor)] = blank
                    named[name] = made[id(tensor)]
        yield
    finally:
        for named, name, tensor in real:
            named[name] = tensor


# ---- what the C library makes of it ---------------------------------------------------------------------------------


class Heap:
    """glibc's main heap (malloc/malloc.c) as far as it concerns blocks of tensors.

    A block is cut from the smallest free chunk that has room for it at any alignment, else from the heap's free end; if
    neither has, it is mapped if it is large, or the heap grows. What is left of a chunk stays free, and neighbours that
    are free become one. The heap's end goes back when it is free and large.

    Crumbs beside a block, left by its alignment, are soon taken by small objects, which then keep its neighbours apart.
    Most of these are what autograd remembers an operation by. So the crumbs of a block come back with it only if no
    block was remembered meanwhile: without gradients all of them do. The others come back when a backward pass has
    ended and all it was remembered by is gone: see `pass_ended`.
    """

    PAGE = 4096
    LARGEST_THRESHOLD = 32 * 2**20
    TOP_PAD = 128 * 2**10
    SMALLEST = 32  # bytes in a chunk
    HEADER = 16
    ALIGNMENT = 64  # torch asks for it
    CRUMB = 128  # bytes; what is left of a chunk is smaller, or stays a chunk

    def __init__(self) -> None:
        self.threshold = 128 * 2**10  # from here on blocks are mapped; grows with what is freed
        self.trim_threshold = 128 * 2**10
        self.mapped = 0
        self.end = 0  # of the heap
        self.top = 0  # where its free end begins
        self.touched = 0  # up to here it is in memory
        self._remembered = 0
        self._taken: list[tuple[int, int]] = []  # start, size of crumbs that small objects have
        self._mapped: dict[int, int] = {}  # key: size
        self._blocks: dict[int, tuple[int, int, int, int, int]] = {}  # key: crumb, start, end, crumb, remembered
        self._free_at: dict[int, int] = {}  # start: size
        self._free_until: dict[int, int] = {}  # end: start
        self._by_size: list[tuple[int, int]] = []  # size, start

    @property
    def resident(self) -> int:
        """Bytes that are in memory."""
        return self.mapped + self.touched

    def take(self, key: int, size: int, remembered: bool) -> None:
        self._remembered += remembered
        needed = max(self.SMALLEST, _up(size + 8, 16))
        room = needed + self.ALIGNMENT + self.SMALLEST
        place = bisect.bisect_left(self._by_size, (room, 0))
        if place < len(self._by_size):
            found, start = self._by_size[place]
            self._forget(start, found)
        elif self.end - self.top < room + self.SMALLEST and room >= self.threshold:
            self._mapped[key] = _up(room + self.HEADER, self.PAGE)
            self.mapped += self._mapped[key]
            return
        else:
            if self.end - self.top < room + self.SMALLEST:
                self.end = _up(self.top + room + self.SMALLEST + self.TOP_PAD, self.PAGE)
            start, found = self.top, room
            self.top += room
        aligned = _up(start + self.HEADER, self.ALIGNMENT) - self.HEADER
        if 0 < aligned - start < self.SMALLEST:
            aligned += self.ALIGNMENT
        end, until = aligned + needed, start + found
        if until - end >= self.CRUMB:
            self._release(end, until - end)
            until = end
        self._blocks[key] = (start, aligned, end, until, self._remembered)
        self.touched = max(self.touched, end)

    def give(self, key: int) -> None:
        if key in self._mapped:
            size = self._mapped.pop(key)
            self.mapped -= size
            if self.threshold < size <= self.LARGEST_THRESHOLD:
                self.threshold, self.trim_threshold = size, 2 * size
            return
        before, start, end, after, remembered = self._blocks.pop(key)
        if self._remembered == remembered:
            start, end = before, after
        else:
            self._taken += [(before, start - before), (end, after - end)]
        self._release(start, end - start)
        self._trim()

    def pass_ended(self) -> None:
        """All that was remembered for a backward pass is gone, and with it the small objects in crumbs."""
        for start, size in self._taken:
            self._release(start, size)
        self._taken.clear()
        self._trim()

    def _trim(self) -> None:
        if self.end - self.top >= self.trim_threshold:
            self.end = _up(self.top + self.SMALLEST + self.TOP_PAD, self.PAGE)
            self.touched = min(self.touched, self.end)

    def _release(self, start: int, size: int) -> None:
        if size == 0:
            return
        if (before := self._free_until.get(start)) is not None:
            size += start - before
            self._forget(before, start - before)
            start = before
        if (after := self._free_at.get(start + size)) is not None:
            self._forget(start + size, after)
            size += after
        if start + size == self.top:
            self.top = start
            return
        self._free_at[start], self._free_until[start + size] = size, start
        bisect.insort(self._by_size, (size, start))

    def _forget(self, start: int, size: int) -> None:
        del self._free_at[start], self._free_until[start + size]
        self._by_size.pop(bisect.bisect_left(self._by_size, (size, start)))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
