"""Measure what watching a run costs: training, the kernel, and the page that draws.

    python benchmarks/panel.py [--pairs 3] [--epochs 12] [--out panel.json]

Everything happens in a real JupyterLab, in Chromium, in a home of its own. Prints:

- training's tokens a second (of its own steps, and by the clock) with the live view in sight, and of the same run
  without any page, one after the other, `--pairs` times; the median of the ratios;
- milliseconds until the kernel answers `1+1` while the live view is drawn, median and worst of 40;
- milliseconds of JavaScript for a redraw of 2 × 10,000 points, median of 60, and of the whole live view: 10,000
  steps in each of four charts, 200 scores.

Needs chromium, chromium-browser or google-chrome on the PATH, and the tools of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import sync_playwright

from gptx_nb import launch, metrics
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run, RunStore

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROWS = 400
POINTS = 10_000
WARM = 10  # steps that are not counted

OPEN = """async path => {
    const app = window.jupyterapp;
    await app.restored;
    const widget = await app.commands.execute('docmanager:open', {path});
    await widget.context.ready;
    await widget.context.sessionContext.ready;
    void app.commands.execute('notebook:run-all-cells');
}"""
ASK = """async count => {
    const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    const took = [];
    for (let at = 0; at < count; at++) {
        const started = performance.now();
        await kernel.requestExecute({code: '1+1', silent: true}).done;
        took.push(performance.now() - started);
        await new Promise(later => setTimeout(later, 100));
    }
    return took;
}"""
REDRAW = """async ({chart, panel, points, repeats}) => {
    const load = text => import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'})));
    const x = Array.from({length: points}, (_, at) => at + 1);
    const noise = at => 1 + Math.sin(at / 300) + Math.random() / 3;
    const line = (label, color) => ({label, x, y: x.map(noise), style: 'solid', color});
    const {createChart} = await load(chart);
    const host = document.body.appendChild(document.createElement('div'));
    const drawn = createChart(host, {title: 'loss', xLabel: 'step', fromZero: true});
    const alone = [];
    for (let at = 0; at < repeats; at++) {
        const lines = [line('a', 0), line('b', 1)];
        await new Promise(requestAnimationFrame);
        const started = performance.now();
        drawn.update(lines);
        await null; // uPlot draws in a microtask
        alone.push(performance.now() - started);
    }
    // The whole view: five charts, numbers, tables.
    const scored = x.filter(at => at % 50 === 0);
    const numbers = new Float32Array([points, scored.length, ...x.flatMap(at => [at, noise(at), 1e-4, noise(at), 3000]),
        ...scored.flatMap(at => [at, noise(at), 0.5])]);
    const heard = {};
    const state = {history: new DataView(numbers.buffer), number: 0, about: [], head: {name: 'run', state: 'running',
        active: true, doing: 'training', can: [], numbers: []}};
    const model = {get: name => state[name], set() {}, save_changes() {}, send() {}, off() {},
        on: (event, call) => (heard[event] ??= []).push(call)};
    const took = [];
    const frame = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = call => frame(now => {
        const started = performance.now();
        call(now);
        queueMicrotask(() => queueMicrotask(() => took.push(performance.now() - started)));
    });
    const el = document.body.appendChild(document.createElement('div'));
    const widget = (await load(panel)).default();
    widget.initialize({model});
    widget.render({model, el});
    await new Promise(later => setTimeout(later, 300));
    took.length = 0;
    for (let at = 1; at <= repeats / 4; at++) {
        const more = new Float32Array([1, 0, points + at, noise(at), 1e-4, noise(at), 3000]);
        heard['msg:custom'].forEach(call => call({kind: 'more', number: at, head: {}, after: null},
            [new DataView(more.buffer)]));
        await new Promise(later => setTimeout(later, 1050)); // it draws once a second
    }
    return {alone, whole: took};
}"""


@contextmanager
def lab(folder: Path) -> Iterator[tuple[str, Path]]:
    """A JupyterLab in folders of its own: its address with token, and the notebooks' folder."""
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    named = ("SETTINGS_DIR", "WORKSPACES_DIR")
    own = {f"JUPYTERLAB_{each}": str(folder / each) for each in named}
    own |= {f"JUPYTER_{each}_DIR": str(folder / each) for each in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"GPTX_HOME": str(folder / "home"), "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *(f"--port={port}", "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True"),
            *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={notebooks}"),
        ],
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab?token={token}", notebooks
    finally:
        server.terminate()
        server.wait(30)


def rows() -> list[tuple[str, str]]:
    words = ("good", "fine", "kind", "bad", "poor", "late")
    return [(f"{words[at % 6]} {words[at * 7 % 5]} number {at}", "yes" if at % 6 < 3 else "no") for at in range(ROWS)]


def speeds(run: Run) -> dict[str, float]:
    """Return tokens a second of the steps after the first ones: in their own time, and by the clock."""
    records, _ = metrics.read(run.metrics_file(1))
    steps = [each for each in records if each.get("kind") == "step"][WARM:]
    tokens = sum(each["tokens"] for each in steps[1:])
    return {
        "in_steps": tokens / sum(each["seconds"] for each in steps[1:]),
        "by_the_clock": tokens / (steps[-1]["time"] - steps[0]["time"]),
    }


def watched(page: Any, address: str, notebooks: Path, name: str, cell: str, count: int) -> tuple[Run, list[float]]:
    """Train with the live view in sight; return the run, and the milliseconds of `count` answers meanwhile."""
    cells = ["%load_ext gptx_nb\nrows = " + repr(rows()), cell]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, notebooks / f"{name}.ipynb")
    page.goto(address.replace("/lab?", f"/lab/workspaces/{name}?"))
    page.wait_for_function("window.jupyterapp")
    page.evaluate(OPEN, f"{name}.ipynb")
    page.wait_for_function("() => document.querySelector('.gptx-panel canvas')", timeout=240_000)
    took = page.evaluate(ASK, count) if count else []
    launch.wait(run := RunStore().find(name))
    return run, took


def redraws(browser: Any) -> dict[str, float]:
    """Return the median milliseconds of JavaScript of one chart with 2 × 10,000 points, and of a whole live view."""
    esbuild = ROOT / "extension" / "node_modules" / "esbuild" / "bin" / "esbuild"
    source = ROOT / "extension" / "src" / "chart" / "index.ts"
    node = [sys.executable, str(ROOT / "extension" / "node.py"), "node"]
    made = subprocess.run(
        [*node, str(esbuild), str(source), "--bundle", "--format=esm", "--minify"], capture_output=True, check=True
    )
    panel = (ROOT / "gptx_nb" / "views" / "static" / "panel.js").read_text(encoding="utf-8")
    page = browser.new_page(viewport={"width": 1100, "height": 1200})
    page.goto("about:blank")
    asked = {"chart": made.stdout.decode(), "panel": panel, "points": POINTS, "repeats": 60}
    took = page.evaluate(REDRAW, asked)
    page.close()
    return {f"{name}_ms": round(statistics.median(each), 2) for name, each in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="0: the redraw alone")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("There is no chromium, chromium-browser or google-chrome on PATH.")
    found: dict[str, Any] = {"with": [], "without": [], "ratios": []}
    answers: list[float] = []
    with tempfile.TemporaryDirectory(prefix="gptx-panel-") as scratch, sync_playwright() as playwright:
        os.environ["GPTX_HOME"] = str(Path(scratch) / "home")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found["redraw"] = redraws(browser)
        with lab(Path(scratch)) as (address, notebooks):
            for pair in range(asked.pairs):
                recipe = make_recipe({"model": asked.model, "epochs": asked.epochs, "data": "rows"})
                alone = launch.train(f"alone-{pair}", recipe, data=rows(), wait=True).run
                page = browser.new_page(viewport={"width": 1100, "height": 1500})
                cell = f"%%gpt_finetune seen-{pair}\nmodel: {asked.model}\nepochs: {asked.epochs}\ndata: rows"
                # Answers are asked for in the last pair only: they would take their part of the processor.
                last = pair + 1 == asked.pairs
                seen, took = watched(page, address, notebooks, f"seen-{pair}", cell, 40 if last else 0)
                answers += took
                page.close()
                found["without"].append(speeds(alone))
                found["with"].append(speeds(seen))
                found["ratios"].append(found["with"][-1]["by_the_clock"] / found["without"][-1]["by_the_clock"])
        browser.close()
    if asked.pairs:
        found["ratio"] = round(statistics.median(found["ratios"]), 4)
        found["answer_ms"] = {"median": round(statistics.median(answers), 1), "worst": round(max(answers), 1)}
    text = json.dumps(found, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
