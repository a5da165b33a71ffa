"""Choose device and arithmetic, each with its reason. Asks torch; changes nothing.

Matrix products in bfloat16 need units for it (AMX or AVX-512 BF16 on a CPU, Ampere or newer on CUDA): without them
they are emulated, measured at 1/500 of the float32 speed on an AVX2 CPU. So the choice looks at the units.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptx_nb import gpus, main_memory
from gptx_nb.errors import DeviceError


@dataclass(frozen=True)
class Device:
    """Where and in which arithmetic the engine computes. Memory in bytes; None where it cannot be told."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    dtype_reason: str
    name: str
    memory_total: int | None
    memory_free: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "reason": self.reason,
            "dtype_reason": self.dtype_reason,
            "name": self.name,
            "memory_total": self.memory_total,
            "memory_free": self.memory_free,
            "cores": cores(),
            "torch": torch.__version__,
        }


def choose(device: str = "auto", dtype: str = "auto") -> Device:
    """Resolve `device` (auto, cpu, cuda, cuda:N, mps, xpu) and `dtype` (auto, float32, bfloat16, float16).

    Raises DeviceError if a device was asked for by name and is not there.
    """
    chosen, reason = _device(device)
    arithmetic, why = _dtype(chosen, dtype)
    total, free = memory(chosen)
    return Device(chosen, arithmetic, reason, why, _name(chosen), total, free)


def count(devices: int | str, device: str = "auto") -> int:
    """Return how many devices of the kind that `device` chooses train together, for a number or "all".

    A CPU counts as one, however many processes are asked for. Raises DeviceError where there are too few.
    """
    kind = _device(device)[0].type
    here = torch.cuda.device_count() if kind == "cuda" else 1
    if devices == "all":
        return here
    if kind != "cpu" and int(devices) > here:
        raise DeviceError(
            f"devices: {devices} were asked for, and torch finds {here} {kind} device(s) here. Type `devices: all` to "
            "use what is there"
        )
    return int(devices)


def of_rank(device: str, rank: int) -> str:
    """Return the device, as a recipe names it, for one of several processes: each has a GPU, or all share the CPU."""
    return f"cuda:{rank}" if _device(device)[0].type == "cuda" else device


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Use:
    """How much of `device` is used, looked at again and again. Of a CPU: by this process, of the cores that it has."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._every = 5.0 if device.type == "cuda" else 1.0  # seconds between looks: a driver takes a moment to answer
        self._told: float | None = None
        self._looked = time.monotonic()
        self._took = time.process_time()

    def __call__(self) -> float | None:
        """Return the share of the last seconds, 0 to 1; None where it cannot be told."""
        now = time.monotonic()
        if now - self._looked >= self._every:
            took = time.process_time()
            if self._device.type == "cpu":
                self._told = min(1.0, (took - self._took) / (now - self._looked) / cores())
            elif self._device.type == "cuda":
                self._told = _busy(self._device)
            self._looked, self._took = now, took
        return self._told


def _busy(device: torch.device) -> float | None:
    """Return the share of the last second in which a GPU computed, as its driver has it."""
    try:
        return next((gpu.busy for gpu in gpus.found() if gpu.uuid == whole_name(device)), None)
    except gpus.NoGpu:  # a driver without NVML
        return None


def available() -> list[str]:
    """Return the kinds of device that torch finds here, fastest first; always ends with cpu."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def whole_name(device: torch.device) -> str:
    """Return what `device` is called in every process of this computer: GPU- and the UUID of an NVIDIA GPU.

    Its number is by what CUDA_VISIBLE_DEVICES lets a process see, and tells nothing to another one.
    """
    if device.type != "cuda":
        return str(device)
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # an older ROCm has none
    return f"GPU-{uuid}" if uuid else f"cuda:{torch.cuda.current_device() if device.index is None else device.index}"


def _device(asked: str) -> tuple[torch.device, str]:
    found = available()
    if asked == "auto":
        best = found[0]
        if best != "cpu":
            return torch.device(best), f"torch finds a {best} device"
        return torch.device("cpu"), "no GPU that torch can use is here" + _why_no_gpu()
    kind = asked.partition(":")[0]
    if kind not in found:
        raise DeviceError(
            f"device: {asked} was asked for, and torch finds only {', '.join(found)} here{_why_no_gpu()}. "
            "Type `device: auto` to use what is there"
        )
    device = torch.device(asked)
    if kind == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise DeviceError(
            f"device: {asked} was asked for, and the CUDA devices of this machine are cuda:0 to cuda:{last}. Type "
            f"`device: cuda:{last}` or one of a lower number, or `device: auto`"
        )
    return device, "asked for in the recipe"


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        has_card = Path("/proc/driver/nvidia/version").exists()
        card = "; an NVIDIA driver is here, so a CUDA build would see it" if has_card else ""
        return f" (this torch, {torch.__version__}, is built for CPU{card})"
    return ""


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which `device` computes matrix products fastest."""
    return _dtype(device, "auto")[0]


def _dtype(device: torch.device, asked: str) -> tuple[torch.dtype, str]:
    if asked != "auto":
        chosen: torch.dtype = getattr(torch, asked)
        if chosen is torch.float16 and device.type == "cpu":
            raise DeviceError("dtype: float16 is not trained in on a CPU. Type `dtype: auto`, `float32` or `bfloat16`")
        return chosen, "asked for in the recipe"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU has bfloat16 units"
        return torch.float16, "this GPU has no bfloat16 units; float16 with loss scaling"
    if device.type == "xpu":
        return torch.bfloat16, "Intel GPUs have bfloat16 units"
    if device.type == "mps":
        return torch.float32, "exact, and as fast as lower ones for small models on Apple GPUs"
    flags = _cpu_flags()
    units = next((name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")) if flag in flags), None)
    if units:
        return torch.bfloat16, f"this CPU has {units}"
    return torch.float32, "this CPU has no bfloat16 units"


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.split())
    except OSError:
        pass  # not Linux: no such file, and float32 is right everywhere
    return set()


PEAK_TURNS = 3


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Return the FLOPs a second of the fastest product of square matrices: what no training can go beyond.

    `seconds` are spent on each of a few sizes at a time, by turns: what else a machine does may last for a while.
    """
    fastest, sizes = 0.0, (512, 1024, 2048) if device.type == "cpu" else (4096, 8192)
    for _ in range(PEAK_TURNS):
        for size in sizes:
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            took = least_seconds(device, functools.partial(torch.matmul, left, right), seconds)
            fastest = max(fastest, 2 * size**3 / took)
    return fastest


def least_seconds(device: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Return the seconds of the fastest of many times that `device` does `work`; `seconds` are spent on them."""
    work()
    least, end = math.inf, time.perf_counter() + seconds
    while least == math.inf or time.perf_counter() < end:
        _wait_for(device)
        started = time.perf_counter()
        work()
        _wait_for(device)
        least = min(least, time.perf_counter() - started)
    return least


def copy_speed(device: torch.device) -> float:
    """Return the bytes a second that `device` reads and writes in its memory: those of the fastest of a few copies.

    What is copied is larger than the usual caches.
    """
    values = 2**23 if device.type == "cpu" else 2**26  # 32 MB, 256 MB
    left, right = (torch.ones(values, device=device) for _ in range(2))
    took = []
    for _ in range(3):
        _wait_for(device)
        started = time.perf_counter()
        left.copy_(right)
        _wait_for(device)
        took.append(time.perf_counter() - started)
    return 2 * right.nbytes / min(took)


def _wait_for(device: torch.device) -> None:
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory(device: torch.device) -> tuple[int | None, int | None]:
    """Return total and free memory of `device` in bytes; None where it cannot be told."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    if device.type == "cpu":
        return main_memory.total_and_free()
    return None, None


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether `error` means that the device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Allocators other than CUDA's have no error class of their own; cuBLAS reserves a workspace by itself.
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    if device.type == "mps":
        return "Apple GPU"
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {cores()} cores"
    except OSError:
        pass  # not Linux
    return f"CPU, {cores()} cores"
