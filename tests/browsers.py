"""JupyterLab in a real Chromium, for tests: what opens it, and what is done in every journey.

The fixtures `lab` and `browser` (conftest.py) give both. Screenshots go to $GPTX_SCREENSHOTS, if that is set.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from servers import BUNDLE, JupyterServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("CI") != "true",
        reason="there is no chromium, chromium-browser or google-chrome on PATH",
    ),
]

SETTINGS = {"@jupyterlab/apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false"}'}

OPEN = """async path => {
    const widget = await window.jupyterapp.commands.execute('docmanager:open', {path});
    await widget.context.ready;
    await widget.context.sessionContext.ready;
}"""


def make_lab(folder: Path, *flags: str, base: str = "/") -> JupyterServer:
    """Return a JupyterLab in `folder` that asks nothing of its user; it is not started yet."""
    assert (BUNDLE / "package.json").is_file(), "the extension is not built: make .venv builds it"
    made = JupyterServer(folder, "jupyterlab", "--LabApp.expose_app_in_browser=True", *flags, base=base)
    for name, text in SETTINGS.items():
        path = folder / "settings" / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    return made


@contextmanager
def chromium() -> Iterator[Any]:
    assert CHROMIUM is not None, "CI=true, and there is no chromium on PATH"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(page: Any, lab: JupyterServer, workspace: str) -> None:
    """Open JupyterLab in a workspace of its own: else what other tests opened is there too."""
    page.goto(f"{lab.address}lab/workspaces/{workspace}?token={lab.token}")
    ready(page)


def ready(page: Any) -> None:
    page.wait_for_function("window.jupyterapp")
    page.evaluate("() => window.jupyterapp.restored.then(() => true)")


def command(page: Any, name: str, arguments: dict[str, Any] | None = None) -> None:
    """Begin a command of JupyterLab, and do not wait for its end."""
    page.evaluate(
        "([name, arguments]) => { void window.jupyterapp.commands.execute(name, arguments); }", [name, arguments or {}]
    )


def write_notebook(lab: JupyterServer, name: str, cells: list[str]) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.root / name)


def open_notebook(page: Any, name: str) -> None:
    """Open a notebook in JupyterLab, and wait for its kernel."""
    page.evaluate(OPEN, name)


def use_theme(page: Any, theme: str) -> None:
    """Change to the theme `Light` or `Dark`."""
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", f"JupyterLab {theme}"
    )
    page.wait_for_function("dark => (document.body.dataset.jpThemeLight === 'false') === dark", arg=theme == "Dark")
    page.wait_for_timeout(300)


def shoot(page: Any, name: str) -> None:
    if folder := os.environ.get("GPTX_SCREENSHOTS"):
        for theme in ("Light", "Dark"):
            use_theme(page, theme)
            page.screenshot(path=str(Path(folder) / f"{name}-{theme.lower()}.png"))
