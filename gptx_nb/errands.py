"""A question to the engine that a short-lived process answers with a line of JSON, so that torch is not loaded here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from gptx_nb import launch
from gptx_nb.errors import BY_NAME, GptxError, RunFailed

TAIL = 6  # lines of a broken process that are told


def ask(*asked: str, seconds: float, late: GptxError, broke_off: str) -> dict[str, Any]:
    """Return what `python -m gptx_nb.worker` with the words `asked` answers.

    Raises `late` after `seconds`, the error that the answer names, and RunFailed that begins with `broke_off` where
    there is no answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gptx_nb.worker", *asked],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=launch.environment(),
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise late from None
    lines = done.stdout.strip().splitlines()
    try:
        told: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        told = {}
    if "error" in told:
        raise BY_NAME.get(told["error"], type(late))(told["message"])
    if done.returncode != 0 or not told:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-TAIL:])
        raise RunFailed(f"{broke_off} (exit status {done.returncode}):\n{tail}")
    return told
