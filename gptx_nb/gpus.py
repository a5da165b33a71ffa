"""NVIDIA GPUs of this machine, asked through NVML: names, memory, load. Opens no CUDA context, needs no ML library.

A GPU that is divided (MIG) counts as its parts: a process of CUDA sees one of them, and only by its UUID.
NVML is the driver's own library (libnvidia-ml.so.1), called here with ctypes; where it is missing there are no GPUs
that CUDA could use. Its numbering is by PCI bus and may differ from CUDA's, so a GPU is named by its UUID, which
CUDA_VISIBLE_DEVICES takes as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WHY = "GPTX_DEVICE_WHY"  # the variable in which a kernel's provisioner leaves the reason for its choice
SHARE = 0.1  # of a GPU's memory, that a kernel which was given it counts for
_OK = 0


class NoGpu(Exception):
    """There is no GPU, or its driver cannot be asked; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a part of one (MIG) under its number.

    Memory in bytes; `busy` is the share of the last second in which it computed, 0 to 1, or None.
    """

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_free: int
    busy: float | None

    @property
    def load(self) -> tuple[float, float]:
        """What orders GPUs from the least to the most loaded: the share of memory taken, then how busy it is."""
        return 1 - self.memory_free / max(1, self.memory_total), self.busy or 0.0


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def found() -> list[Gpu]:
    """Return the GPUs that NVML knows, in its order. Raises NoGpu, with the reason, where there is none.

    One that does not answer, or that this container may not use, is passed over as long as there are others.
    """
    gpus: list[Gpu] = []
    trouble = NoGpu("the NVIDIA driver finds no GPU")
    with _nvml() as library:
        count = ctypes.c_uint()
        _check(library, library.nvmlDeviceGetCount_v2(ctypes.byref(count)), "counting the GPUs")
        for index in range(count.value):
            try:
                handle = ctypes.c_void_p()
                opened = library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
                _check(library, opened, f"opening GPU {index}")
                gpus += [_gpu(library, index, part) for part in _parts(library, handle)]
            except NoGpu as error:
                trouble = error
    if not gpus:
        raise trouble
    return gpus


def least_loaded(gpus: list[Gpu], given: Mapping[str, int] | None = None) -> Gpu:
    """Return the GPU with the largest free share of memory; of equals the least busy, then the first.

    `given` says to how many kernels each was given, by UUID. A kernel counts as SHARE of its memory: one that has just
    begun, or waits for its user, has taken none yet.
    """
    counts = given or {}

    def load(gpu: Gpu) -> tuple[float, float, int]:
        memory, busy = gpu.load
        return round(memory + SHARE * counts.get(gpu.uuid, 0), 2), round(busy, 1), gpu.index

    return min(gpus, key=load)


def given(variables: Mapping[str, str] = os.environ) -> str:
    """Say which GPUs this process was given and why; empty where it sees whatever there is."""
    visible, why = variables.get("CUDA_VISIBLE_DEVICES"), variables.get(WHY, "")
    if visible is None:
        return why
    return f"CUDA_VISIBLE_DEVICES={visible}{f': {why}' if why else ''}"


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    if sys.platform == "darwin":
        raise NoGpu("there is no NVIDIA driver for macOS")
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        raise NoGpu("there is no NVIDIA driver here (libnvidia-ml.so.1)") from None
    _check(library, library.nvmlInit_v2(), "starting NVML")
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _parts(library: Any, handle: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    """Return the parts that a GPU is divided into; where it is whole, itself."""
    divided, later, count = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    if library.nvmlDeviceGetMigMode(handle, ctypes.byref(divided), ctypes.byref(later)) != _OK or not divided.value:
        return [handle]
    library.nvmlDeviceGetMaxMigDeviceCount(handle, ctypes.byref(count))
    parts = []
    for number in range(count.value):
        part = ctypes.c_void_p()
        if library.nvmlDeviceGetMigDeviceHandleByIndex(handle, number, ctypes.byref(part)) == _OK:  # else it is empty
            parts.append(part)
    return parts


def _gpu(library: Any, index: int, handle: ctypes.c_void_p) -> Gpu:
    memory, utilization = _Memory(), _Utilization()
    _check(library, library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)), f"asking GPU {index} for its memory")
    # Not every card, and no part of a card (MIG), tells how busy it is.
    busy = library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(utilization)) == _OK
    return Gpu(
        index,
        _text(library, library.nvmlDeviceGetUUID, handle, f"asking GPU {index} for its UUID"),
        _text(library, library.nvmlDeviceGetName, handle, f"asking GPU {index} for its name"),
        memory.total,
        memory.free,
        utilization.gpu / 100 if busy else None,
    )


def _text(library: Any, ask: Any, handle: ctypes.c_void_p, doing: str) -> str:
    buffer = ctypes.create_string_buffer(96)
    _check(library, ask(handle, buffer, len(buffer)), doing)
    return buffer.value.decode("utf-8", errors="replace")


def _check(library: Any, status: int, doing: str) -> None:
    if status != _OK:
        library.nvmlErrorString.restype = ctypes.c_char_p
        words = library.nvmlErrorString(status)
        raise NoGpu(f"{doing} failed: {words.decode() if words else f'NVML error {status}'}")
