"""Real Jupyter servers in processes of their own, with the extension of this source tree, for tests."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "extension" / "dist"
# Whose Jupyter serves: of another environment, to try this one's extension with another release of JupyterLab.
PYTHON = os.environ.get("GPTX_LAB_PYTHON", sys.executable)


class JupyterServer:
    """A server with a token, on a free port and in folders of its own. It may be killed and started again there."""

    def __init__(self, folder: Path, module: str, *flags: str, base: str = "/") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.token = secrets.token_hex(16)
        self.folder, self.home, self.root, self.log = folder, folder / "home", folder / "root", folder / "server.log"
        self.base = base
        self._command = [
            *(PYTHON, "-m", module, "--no-browser", "--allow-root"),
            *(f"--port={self.port}", "--ServerApp.port_retries=0", f"--ServerApp.base_url={base}"),
            *(f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"),
            *flags,
        ]
        self.root.mkdir()
        # What an installed wheel puts into etc/jupyter and share/jupyter: the server finds both by itself.
        enabled = folder / "etc" / "jupyter_server_config.d" / "gptx_nb.json"
        enabled.parent.mkdir(parents=True)
        shutil.copy(ROOT / "gptx_nb" / "views" / "jupyter_server_config.json", enabled)
        extension = folder / "share" / "labextensions" / "gptx-nb"
        extension.parent.mkdir(parents=True)
        if BUNDLE.is_dir():  # copied: some releases of the server serve nothing through a link
            shutil.copytree(BUNDLE, extension)
        self._environment = {
            **os.environ,
            "GPTX_HOME": str(self.home),
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_CONFIG_PATH": str(folder / "etc"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            # Its widgets' part is in this environment, whatever environment Jupyter is of.
            "JUPYTER_PATH": os.pathsep.join((str(folder / "share"), f"{sys.prefix}/share/jupyter")),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "PYTHONPATH": str(ROOT),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base}"

    def start(self) -> None:
        """Start it, and return once it answers."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.address}api?token={self.token}", timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it: SIGTERM in good order, SIGKILL at once."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def processor_seconds(self) -> float:
        """Return the processor time that it has taken so far (Linux)."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
