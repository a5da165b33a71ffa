"""Start real kernels for tests."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager


def manager(**settings: Any) -> KernelManager:
    """Return a manager that speaks with its kernel through files.

    A manager chooses free TCP ports and frees them again for its kernel to take. Where tests run side by side, another
    takes such a port in between now and then, and the kernel dies at its start.
    """
    folder = tempfile.mkdtemp(prefix="kernel")  # pytest's own folders are too deep: a socket's path has 107 bytes
    made = KernelManager(transport="ipc", ip=str(Path(folder) / "socket"), **settings)
    weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
    return made
