"""Builds the JupyterLab extension and the notebook panel's JavaScript when gptx_nb is packaged or installed.

What was built is kept with a digest of its sources, and built again only if they differ: so a wheel or sdist that
carries it installs without Node, and a watch build (which has no digest) is never packaged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
BUNDLE = HERE / "dist"
PANEL = HERE.parent / "gptx_nb" / "views" / "static" / "panel.js"
SOURCES = (
    "package.json",
    "package-lock.json",
    "build.mjs",
    "rspack.config.cjs",
    "src/**/*",
    "style/**/*",
    "schema/**/*",
)


def digest() -> str:
    """Return a SHA-256 over the names and bytes of all that the bundles are made from."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in HERE.glob(pattern) if path.is_file()}):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(HERE).as_posix()}\0{content}\n".encode())
    return found.hexdigest()


def is_built() -> bool:
    """Say whether both bundles are there and made from these sources."""
    mark = BUNDLE / "sources.sha256"
    return PANEL.is_file() and mark.is_file() and mark.read_text(encoding="utf-8").strip() == digest()


def build() -> None:
    """Build both bundles from scratch, with the packages of package-lock.json."""
    node = _node()
    # A folder with the tools of `make test` has all that is needed here.
    installed = HERE / "node_modules" / ".package-lock.json"
    if not installed.is_file() or installed.stat().st_mtime < (HERE / "package-lock.json").stat().st_mtime:
        node.call("npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund")
    node.call("node", "build.mjs")
    (BUNDLE / "sources.sha256").write_text(digest() + "\n", encoding="utf-8")


def _node() -> Any:
    """Return the module node.py, which lies beside this file and in no package."""
    spec = importlib.util.spec_from_file_location("gptx_nb_node", HERE / "node.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ExtensionHook(BuildHookInterface[Any]):
    """What hatchling calls before it packs a wheel, an editable wheel or an sdist."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        node = _node()
        return [] if is_built() or node.on_path() else [node.WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not is_built():
            build()

    def clean(self, versions: list[str]) -> None:
        shutil.rmtree(BUNDLE, ignore_errors=True)
        PANEL.unlink(missing_ok=True)
