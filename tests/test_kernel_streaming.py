"""In a real kernel: an answer appears token by token, gives way to its table, and an interrupt ends it cleanly."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernels
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from gptx_nb import inference

ROOT = Path(__file__).parent.parent


@pytest.fixture
def kernel(home: Path, tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = kernels.manager()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    manager.start_kernel(env=environment, cwd=str(tmp_path), stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    client.execute_interactive("%load_ext gptx_nb", timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    inference.free()


def test_an_answer_is_streamed_and_an_interrupt_ends_it(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = kernel
    said: list[dict[str, Any]] = []
    reply = client.execute_interactive(
        '%gpt_predict tiny --temperature 0 --max-new-tokens 12 "The"', output_hook=said.append, timeout=120
    )
    assert reply["content"]["status"] == "ok"
    kinds = [each["msg_type"] for each in said if each["msg_type"] not in ("status", "execute_input")]
    pieces = [each["content"]["text"] for each in said if each["msg_type"] == "stream"]
    assert len(pieces) > 1
    # What was streamed is cleared once the whole answer is there, so that it stands in the cell once.
    assert kinds == ["stream"] * len(pieces) + ["clear_output", "execute_result"]
    whole: list[dict[str, Any]] = []
    client.execute_interactive("print(_.texts[0], end='')", output_hook=whole.append, timeout=60)
    assert "".join(pieces) == "".join(each["content"]["text"] for each in whole if each["msg_type"] == "stream")

    seen: list[dict[str, Any]] = []
    sent = client.execute("%gpt_predict tiny --max-new-tokens 100000 The")
    while sum(each["msg_type"] == "stream" for each in seen) < 3:
        seen.append(client.get_iopub_msg(timeout=60))
    manager.interrupt_kernel()
    begun = time.monotonic()
    while not (seen[-1]["msg_type"] == "status" and seen[-1]["content"]["execution_state"] == "idle"
               and seen[-1]["parent_header"].get("msg_id") == sent):  # fmt: skip
        seen.append(client.get_iopub_msg(timeout=60))
    assert time.monotonic() - begun < 30
    for each in seen:
        if each["msg_type"] == "error":
            assert "Traceback" not in "\n".join(each["content"]["traceback"])
            assert len(each["content"]["traceback"]) == 1
    after: list[dict[str, Any]] = []
    client.execute_interactive("1 + 1", output_hook=after.append, timeout=60)
    assert [each["content"]["data"]["text/plain"] for each in after if each["msg_type"] == "execute_result"] == ["2"]
