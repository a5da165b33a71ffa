"""The kernel toolkit: which GPU a kernel is given and why, kernelspecs, and real kernels that are started from them."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import kernels
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from gptx_nb import gpus
from gptx_nb.gpus import Gpu
from gptx_nb.kernel import provisioner, specs
from gptx_nb.kernel.provisioner import GpuProvisioner
from gptx_nb.views.cli import main

ROOT = Path(__file__).parent.parent
GB = 1_000_000_000
PAIR = [Gpu(0, "GPU-aa", "H100", 80 * GB, 20 * GB, 0.0), Gpu(1, "GPU-bb", "H100", 80 * GB, 79 * GB, 0.0)]


def test_a_kernel_is_given_the_least_loaded_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: PAIR)
    assert provisioner.choose("auto", {}) == {
        "CUDA_VISIBLE_DEVICES": "GPU-bb",
        gpus.WHY: "GPU 1 (H100): the least loaded of 2 when this kernel started (99 % of its memory was free)",
    }


def test_of_equally_free_gpus_the_idle_one_is_taken() -> None:
    busy = Gpu(0, "GPU-aa", "H100", 80 * GB, 80 * GB, 0.9)
    assert gpus.least_loaded([busy, Gpu(1, "GPU-bb", "H100", 80 * GB, 80 * GB, 0.1)]).index == 1
    assert gpus.least_loaded([busy, Gpu(1, "GPU-bb", "H100", 80 * GB, 80 * GB, 0.9)]).index == 0


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: PAIR)
    for value in ("0", ""):
        chosen = provisioner.choose("auto", {"CUDA_VISIBLE_DEVICES": value})
        assert chosen == {gpus.WHY: "CUDA_VISIBLE_DEVICES was set before this kernel started, and was left as it is"}


def test_a_kernel_made_for_a_gpu_gets_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: PAIR)
    assert provisioner.choose("0", {})["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    assert provisioner.choose("GPU-bb", {})["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
    missing = provisioner.choose("7", {})
    assert missing[gpus.WHY] == "this kernel was made for GPU 7, and there are only 0 (H100), 1 (H100)"
    assert provisioner.choose("none", {})["CUDA_VISIBLE_DEVICES"] == ""


def test_without_a_gpu_it_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[Gpu]:
        raise gpus.NoGpu("there is no NVIDIA driver here (libnvidia-ml.so.1)")

    monkeypatch.setattr(gpus, "found", none)
    assert provisioner.choose("auto", {}) == {
        gpus.WHY: "no GPU was given to this kernel: there is no NVIDIA driver here (libnvidia-ml.so.1)"
    }
    assert "cannot be reached" in provisioner.choose("1", {})[gpus.WHY]


class Nvml:
    """What the driver's library answers, in ctypes: GPU 0 is whole, 1 divided in two parts, 2 may not be opened."""

    def __init__(self, *, opens: tuple[int, ...] = (0, 1)) -> None:
        self.opens = opens
        gb = {"GPU-aa": (80, 20), "MIG-b0": (20, 5), "MIG-b1": (20, 19)}
        self.gpus = [(uuid, total * GB, free * GB) for uuid, (total, free) in gb.items()]  # a handle counts from 1

    def nvmlInit_v2(self) -> int:
        return 0

    nvmlShutdown = nvmlInit_v2

    class nvmlErrorString:
        restype = None

        def __new__(cls, status: int) -> bytes:  # type: ignore[misc]
            return b"Insufficient Permissions"

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = {0: 1, 1: 9}.get(index)
        return 0 if index in self.opens else 4

    def nvmlDeviceGetMigMode(self, handle: Any, divided: Any, later: Any) -> int:
        divided._obj.value = handle.value == 9
        return 0 if handle.value == 9 else 3  # "not supported" by a card that cannot be divided

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> int:
        count._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, number: int, part: Any) -> int:
        part._obj.value = {0: 2, 2: 3}.get(number)
        return 0 if number in (0, 2) else 6

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        _, memory._obj.total, memory._obj.free = self.gpus[handle.value - 1]
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        rates._obj.gpu = 30
        return 0 if handle.value == 1 else 3

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, length: int) -> int:
        text.value = self.gpus[handle.value - 1][0].encode()
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, length: int) -> int:
        text.value = b"NVIDIA H100"
        return 0


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    library = Nvml()
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(gpus.sys, "platform", "linux")
    return library


def test_nvml_is_asked_for_whole_gpus_and_for_the_parts_of_divided_ones(nvml: Nvml) -> None:
    assert gpus.found() == [
        Gpu(0, "GPU-aa", "NVIDIA H100", 80 * GB, 20 * GB, 0.3),
        Gpu(1, "MIG-b0", "NVIDIA H100", 20 * GB, 5 * GB, None),
        Gpu(1, "MIG-b1", "NVIDIA H100", 20 * GB, 19 * GB, None),
    ]
    assert provisioner.choose("auto", {})["CUDA_VISIBLE_DEVICES"] == "MIG-b1"
    assert provisioner.choose("1", {})["CUDA_VISIBLE_DEVICES"] == "MIG-b1"
    assert provisioner.choose("MIG-b0", {})["CUDA_VISIBLE_DEVICES"] == "MIG-b0"


def test_where_no_gpu_may_be_opened_the_reason_is_told(nvml: Nvml) -> None:
    nvml.opens = ()
    why = "no GPU was given to this kernel: opening GPU 2 failed: Insufficient Permissions"
    assert provisioner.choose("auto", {}) == {gpus.WHY: why}


def test_kernels_that_start_at_once_are_given_different_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [Gpu(n, f"GPU-{n}", "H100", 80 * GB, (76 if n == 0 else 80) * GB, 0.0) for n in range(3)]
    monkeypatch.setattr(gpus, "found", lambda: free)
    monkeypatch.setattr(GpuProvisioner, "_given", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    async def starts() -> list[str]:
        made = [GpuProvisioner(kernel_id=str(n), kernel_spec=KernelSpec(), parent=KernelManager()) for n in range(5)]
        first = await asyncio.gather(*(each.pre_launch(env={}) for each in made[:3]))
        await made[1].cleanup()
        again = await made[2].pre_launch(env={})  # restarted, it does not stand in its own way
        last = await made[3].pre_launch(env={})
        mine = await made[4].pre_launch(env={"CUDA_VISIBLE_DEVICES": "0"})
        return [each["env"]["CUDA_VISIBLE_DEVICES"] for each in (*first, again, last, mine)]

    *first, again, last, mine = asyncio.run(starts())
    assert first == ["GPU-1", "GPU-2", "GPU-0"]  # of the first, a twentieth is taken
    assert (again, last, mine) == ("GPU-2", "GPU-0", "0")
    assert GpuProvisioner._given == {"0": "GPU-1", "2": "GPU-2", "3": "GPU-0"}


def test_nvml_tells_its_gpus_or_why_there_are_none() -> None:
    try:
        found = gpus.found()
    except gpus.NoGpu as error:
        why = str(error)
        assert ("driver" in why) or ("NVML" in why)
    else:
        assert all(
            each.uuid.startswith(("GPU-", "MIG-")) and 0 < each.memory_free <= each.memory_total for each in found
        )


def test_a_process_tells_what_it_was_given() -> None:
    assert gpus.given({}) == ""
    assert gpus.given({"CUDA_VISIBLE_DEVICES": "0"}) == "CUDA_VISIBLE_DEVICES=0"
    assert gpus.given({"CUDA_VISIBLE_DEVICES": "GPU-bb", gpus.WHY: "why"}) == "CUDA_VISIBLE_DEVICES=GPU-bb: why"
    assert gpus.given({gpus.WHY: "no GPU"}) == "no GPU"


# ---- kernelspecs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Jupyter's folders, empty; kernelspecs of the user go to the returned one."""
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path / "data" / "kernels"


def test_kernel_add_makes_a_kernelspec_with_its_gpu_and_defaults(
    jupyter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "defaults.yaml"
    recipe.write_text("model: gpt2\nepochs: 2\n")
    assert main(["kernel", "add", "--gpu", "1", "--recipe", str(recipe), "--user"]) == 0
    folder = jupyter / "gptx-gpu1-defaults"
    assert capsys.readouterr().out.splitlines()[0] == str(folder)
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["display_name"] == "GPTX (Python 3, GPU 1, defaults)"
    assert spec["argv"][0] == sys.executable
    assert spec["metadata"]["kernel_provisioner"] == {"provisioner_name": "gptx-gpu", "config": {"gpu": "1"}}
    assert json.loads((folder / "ipython_config.json").read_text()) == {"GptxMagics": {"model": "gpt2", "epochs": 2}}


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--gpu", "first"], None, "--gpu first: use a number as `nvidia-smi -L` counts them"),
        ([], None, "give --gpu, --recipe or both"),
        (["--gpu", "1", "--name", "My Kernel"], None, "--name My Kernel: use lower-case letters"),
        ([], "epoch: 1\n", "unknown setting 'epoch'. Did you mean 'epochs'?"),
        ([], "data: a.csv\n", "data belongs to one table and can be no default of a kernel"),
    ],
)
def test_a_mistake_in_kernel_add_is_one_message(
    jupyter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str | None,
    message: str,
) -> None:
    if text is not None:
        (tmp_path / "defaults.yaml").write_text(text)
        arguments = [*arguments, "--recipe", str(tmp_path / "defaults.yaml")]
    assert main(["kernel", "add", "--user", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not jupyter.exists()


def test_the_provisioner_is_found_by_its_name() -> None:
    entries = KernelProvisionerFactory.instance().get_provisioner_entries()
    if "gptx-gpu" not in entries:
        pytest.skip("gptx_nb is not installed in this environment, only on its path")
    assert entries["gptx-gpu"] == "gptx_nb.kernel.provisioner:GpuProvisioner"


def test_a_kernel_from_such_a_kernelspec_has_magics_defaults_and_its_choice(
    jupyter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "gptx-gpu" not in KernelProvisionerFactory.instance().get_provisioner_entries():
        # From a source tree that is not installed: the entry point that pyproject.toml declares.
        from importlib.metadata import EntryPoint

        point = EntryPoint(
            "gptx-gpu", "gptx_nb.kernel.provisioner:GpuProvisioner", "jupyter_client.kernel_provisioners"
        )
        monkeypatch.setitem(KernelProvisionerFactory.instance().provisioners, "gptx-gpu", point)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    recipe = tmp_path / "quick.yaml"
    recipe.write_text("model: gpt2\nepochs: 2\n")
    folder = specs.add("none", recipe, user=True)
    manager = kernels.manager(kernel_name=folder.name, kernel_spec_manager=KernelSpecManager())
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        told: list[str] = []

        def hear(message: dict[str, dict[str, object]]) -> None:
            told.append(str(message["content"].get("text", message["content"])))

        client.execute_interactive(
            "from os import environ\n"
            "magics = get_ipython().magics_manager.registry['GptxMagics']\n"
            "print(magics.model, magics.epochs, repr(environ['CUDA_VISIBLE_DEVICES']), environ['GPTX_DEVICE_WHY'])",
            output_hook=hear,
            timeout=60,
        )
        assert "gpt2 2 '' this kernel was made to have no GPU\n" in told
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_kernel_that_is_installed_loads_the_magics_through_the_provisioner() -> None:
    spec = json.loads((ROOT / "gptx_nb" / "kernel" / "kernelspec" / "kernel.json").read_text())
    assert spec["display_name"] == "GPTX (Python 3)"
    assert "--ext=gptx_nb" in spec["argv"]
    declared = (ROOT / "pyproject.toml").read_text()
    name = spec["metadata"]["kernel_provisioner"]["provisioner_name"]
    assert f'{name} = "gptx_nb.kernel.provisioner:GpuProvisioner"' in declared


def test_a_worker_inherits_what_its_kernel_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptx_nb import launch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    monkeypatch.setenv(gpus.WHY, "why")
    environment = launch.environment()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment[gpus.WHY]) == ("GPU-bb", "why")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
