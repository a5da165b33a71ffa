"""Binder: what `binder/postBuild` leaves in an image makes a real JupyterLab open the quickstart. Builds no image."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.parse
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICKSTART = "notebooks/quickstart.ipynb"

# The image's Python, for which everything is installed already, and whose torch is the small one.
PYTHON = """#!/bin/sh
case "$*" in "-m pip install "* | *torch.version.cuda*) exit 0 ;; esac
exec "{python}" "$@"
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An environment of its own, with the packages of this one, after `binder/postBuild` has run in it."""
    folder = tmp_path / "image"
    venv.create(folder, with_pip=False)
    inside = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (inside / "these.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (folder / "share").symlink_to(Path(sys.prefix) / "share")  # where JupyterLab's pages are
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON.format(python=folder / "bin" / "python"), encoding="utf-8")
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run([ROOT / "binder" / "postBuild"], cwd=ROOT, env=environment, check=True)
    return folder


@pytest.fixture
def lab(image: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab of `image`, started as Binder does: in the repository, with no notebook named."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    log = tmp_path / "lab.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [
                *(image / "bin" / "python", "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
            ],
            env={**os.environ, **own, "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces")},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    address = f"http://127.0.0.1:{port}/?token={token}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address.replace("/?", "/api?"), timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(30)


def test_a_launch_of_the_repository_opens_the_quickstart(lab: str) -> None:
    with urllib.request.urlopen(lab, timeout=30) as page:
        assert page.status == 200
        assert urllib.parse.urlsplit(page.url).path == f"/lab/tree/{QUICKSTART}"
    with urllib.request.urlopen(lab.replace("/?", f"/api/contents/{QUICKSTART}?content=0&"), timeout=30) as found:
        assert json.load(found)["path"] == QUICKSTART


def test_the_address_in_the_readme_names_the_quickstart() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"mybinder\.org/v2/\S+urlpath=([^\s`)]+)", readme)
    assert [urllib.parse.unquote(each) for each in named] == [f"lab/tree/{QUICKSTART}"]
    assert (ROOT / QUICKSTART).is_file()
