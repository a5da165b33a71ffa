"""Starts a kernel on this machine and gives it a GPU: by default the least loaded one at that moment, asked by NVML.

What it gave to kernels of this server that still live counts too: they may have taken no memory yet, or be starting at
this very moment. Kernels of other servers count once they have taken memory.

What the user has set wins. Where there is no GPU the kernel starts all the same, and `%gpt_device` says why. Workers
that the kernel starts inherit its choice. The provisioner is looked for where the Jupyter server runs: it has to be
installed there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Unicode

from gptx_nb import gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"


def choose(gpu: str, variables: Mapping[str, str], given: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return the environment variables that give a kernel its GPU, and the reason (gpus.WHY) beside them.

    `gpu` is auto, none, a number as nvidia-smi counts them, or a UUID; `variables` is the environment it starts with;
    `given` says to how many kernels each GPU was given already, by UUID.
    """
    if VISIBLE in variables:
        return {gpus.WHY: f"{VISIBLE} was set before this kernel started, and was left as it is"}
    if gpu == "none":
        return {VISIBLE: "", gpus.WHY: "this kernel was made to have no GPU"}
    try:
        found = gpus.found()
    except gpus.NoGpu as error:
        if gpu == "auto":
            return {gpus.WHY: f"no GPU was given to this kernel: {error}"}
        return {VISIBLE: gpu, gpus.WHY: f"this kernel was made for GPU {gpu}, which cannot be reached: {error}"}
    if gpu == "auto":
        best = gpus.least_loaded(found, given)
        free = f"{100 * best.memory_free / max(1, best.memory_total):.0f} % of its memory was free"
        why = (
            f"the least loaded of {len(found)} when this kernel started ({free})" if len(found) > 1 else "the only one"
        )
        return {VISIBLE: best.uuid, gpus.WHY: f"GPU {best.index} ({best.name}): {why}"}
    if meant := [each for each in found if gpu in (str(each.index), each.uuid)]:
        one = gpus.least_loaded(meant, given)  # of the parts of a divided one
        return {VISIBLE: one.uuid, gpus.WHY: f"GPU {one.index} ({one.name}): this kernel was made for it"}
    known = ", ".join(f"{each.index} ({each.name})" for each in found)
    return {VISIBLE: gpu, gpus.WHY: f"this kernel was made for GPU {gpu}, and there are only {known}"}


class GpuProvisioner(LocalProvisioner):
    """A kernel process of this machine that sees one GPU."""

    gpu: str = Unicode(
        "auto", config=True, help="auto (the least loaded), none, a number as nvidia-smi counts them, or a UUID."
    )  # type: ignore[assignment]

    _given: ClassVar[dict[str, str]] = {}  # the GPU that each kernel of this server was given, by the kernel's id

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Add the GPU to the environment that the kernel starts with."""
        kwargs = await super().pre_launch(**kwargs)
        self._given.pop(self.kernel_id, None)  # of this kernel, before it was restarted
        # Nothing is awaited from here until it is noted: another kernel that starts now sees it.
        chosen = choose(self.gpu, kwargs["env"], Counter(self._given.values()))
        if chosen.get(VISIBLE) and VISIBLE not in kwargs["env"]:
            self._given[self.kernel_id] = chosen[VISIBLE]
        kwargs["env"] = {**kwargs["env"], **chosen}
        self.log.info("Kernel %s: %s", self.kernel_id, chosen[gpus.WHY])
        return kwargs

    async def cleanup(self, restart: bool = False) -> None:
        """Take the GPU back from a kernel that has ended."""
        if not restart:
            self._given.pop(self.kernel_id, None)
        await super().cleanup(restart=restart)
