"""How the extension is built and packaged: what a wheel and an sdist carry, and what they need to be installed."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from servers import BUNDLE, ROOT

import gptx_nb

EXTENSION = ROOT / "extension"


def test_the_lock_file_holds_no_address_of_a_registry() -> None:
    lock = json.loads((EXTENSION / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["lockfileVersion"] == 3
    assert [name for name, each in lock["packages"].items() if "resolved" in each] == []
    assert len(lock["packages"]) > 100
    # Every platform's own part of the bundlers is locked, not only this machine's.
    for platform in ("linux-x64", "linux-arm64", "darwin-arm64", "win32-x64"):
        assert any(f"@rspack/binding-{platform}" in name for name in lock["packages"]), platform


def test_the_extension_has_the_version_of_the_package() -> None:
    assert json.loads((EXTENSION / "package.json").read_text(encoding="utf-8"))["version"] == gptx_nb.__version__


def test_only_api_ts_knows_addresses_and_nothing_is_read_as_markup() -> None:
    for path in sorted((EXTENSION / "src").rglob("*.ts")):
        text = path.read_text(encoding="utf-8")
        if path.relative_to(EXTENSION / "src").as_posix() not in ("api.ts", "panel/server.ts"):  # a bundle each
            assert not re.search(r"[`'\"]/?gptx_nb/|makeRequest|new WebSocket|(?<![\w.])fetch\(", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert (BUNDLE / "sources.sha256").is_file(), "the extension is not built: make .venv builds it"
    folder = tmp_path_factory.mktemp("sdist")
    return build(ROOT, "sdist", folder)


def build(source: Path, target: str, folder: Path, path: str | None = None) -> Path:
    environment = {**os.environ, **({"PATH": path} if path else {})}
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.iterdir())


def test_an_sdist_makes_a_wheel_without_node_and_both_carry_the_bundles(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as packed:
        names = packed.getnames()
        packed.extractall(tmp_path / "source", filter="data")
    inside = {name.partition("/")[2] for name in names}
    assert {"extension/dist/package.json", "extension/src/index.ts", "gptx_nb/views/static/panel.js"} <= inside
    assert not any("node_modules" in name for name in inside)
    source = next((tmp_path / "source").iterdir())
    (tmp_path / "empty").mkdir()
    wheel = build(source, "wheel", tmp_path / "wheel", path=str(tmp_path / "empty"))
    data = "/".join((f"{wheel.name.partition('-py3')[0]}.data", "data"))
    with zipfile.ZipFile(wheel) as packed_wheel:
        there = set(packed_wheel.namelist())
        metadata = json.loads(packed_wheel.read(f"{data}/share/jupyter/labextensions/gptx-nb/package.json"))
        enabled = json.loads(packed_wheel.read(f"{data}/etc/jupyter/jupyter_server_config.d/gptx_nb.json"))
    assert f"{data}/share/jupyter/labextensions/gptx-nb/{metadata['jupyterlab']['_build']['load']}" in there
    assert f"{data}/share/jupyter/labextensions/gptx-nb/schemas/gptx-nb/plugin.json" in there
    assert f"{data}/share/jupyter/labextensions/gptx-nb/install.json" in there
    assert f"{data}/share/jupyter/kernels/gptx/kernel.json" in there
    assert enabled == {"ServerApp": {"jpserver_extensions": {"gptx_nb.views.routes": True}}}
    assert "gptx_nb/views/static/panel.js" in there


def test_without_node_and_without_a_bundle_the_build_asks_for_nodes_wheel_or_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(EXTENSION / "node.py"), "node", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or done.stderr.startswith("Node 20.19 or newer, with npm, is needed")


def test_what_was_built_from_other_sources_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXTENSION))
    import hatch_build

    monkeypatch.setattr(hatch_build, "HERE", tmp_path)
    monkeypatch.setattr(hatch_build, "BUNDLE", tmp_path / "dist")
    monkeypatch.setattr(hatch_build, "PANEL", tmp_path / "panel.js")
    for name in ("src", "dist"):
        (tmp_path / name).mkdir()
    (tmp_path / "src" / "index.ts").write_text("1")
    (tmp_path / "panel.js").write_text("")
    assert not hatch_build.is_built()
    (tmp_path / "dist" / "sources.sha256").write_text(hatch_build.digest() + "\n")
    assert hatch_build.is_built()
    (tmp_path / "src" / "index.ts").write_text("2")
    assert not hatch_build.is_built()
