"""Whole journeys through a notebook, in a real JupyterLab in a real Chromium."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsers
import made_runs
import nbformat
import pytest
from browsers import ready, shoot, visit, write_notebook
from made_runs import SCRIPT
from payloads import PAYLOADS
from servers import JupyterServer

from gptx_nb import files
from gptx_nb.metrics import MetricsWriter
from gptx_nb.progress import Progress
from gptx_nb.runs import RunStore

pytestmark = browsers.MARKS

THEMES = """async () => {
    const inks = [];
    for (const theme of ['JupyterLab Dark', 'JupyterLab Light']) {
        await window.jupyterapp.commands.execute('apputils:change-theme', {theme});
        const dark = theme.endsWith('Dark');
        while ((document.body.dataset.jpThemeLight === 'false') !== dark) {
            await new Promise(later => setTimeout(later, 50));
        }
        await new Promise(later => setTimeout(later, 200));
        inks.push(getComputedStyle(document.querySelector('.gptx-panel')).color);
    }
    return inks;
}"""

RUN = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"  # does not wait for them

FINETUNE = f"""%%gpt_finetune demo --epochs 120
task: text-classification
model: MODEL
examples:
  - ["{SCRIPT}", "<b onclick=window.hacked=1>bold</b>"]
  - [This movie is amazing!, positive]
  - [I hate this product., negative]
  - [The service was really bad., negative]
"""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 1500})
    context.set_default_timeout(120_000)  # a loaded machine trains, and draws, slowly
    yield context.new_page()
    context.close()


def open_notebook(page: Any, lab: JupyterServer, name: str) -> None:
    visit(page, lab, Path(name).stem)
    browsers.open_notebook(page, name)
    page.evaluate("() => window.jupyterapp.shell.collapseLeft()")


def test_a_live_output_becomes_a_static_one_that_survives_a_reload(
    page: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    write_notebook(
        lab,
        "journey.ipynb",
        [
            "%load_ext gptx_nb",
            FINETUNE.replace("MODEL", str(tiny_model)),
            '%gpt_predict demo "This is a great product, I love it!"',
            "%gpt_runs",
        ],
    )
    open_notebook(page, lab, "journey.ipynb")
    page.evaluate(RUN)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    trained = cells.nth(1).locator(".jp-OutputArea-output")
    page.wait_for_function("() => /\\d of 120/.test(document.querySelectorAll('.jp-CodeCell')[1].innerText)")
    assert trained.get_by_role("button", name="Save and stop").is_enabled()
    trained.locator("canvas").first.wait_for()
    shoot(page, "live")

    trained.get_by_text("Ask it:").wait_for()
    assert trained.count() == 1
    said = trained.inner_text()
    assert "demo v1 · finished" in said
    assert trained.locator("canvas, button").count() == 0
    assert trained.locator("img").evaluate("image => image.complete && image.naturalWidth > 500")
    cells.nth(2).get_by_text("positive").first.wait_for()
    assert cells.nth(2).locator(".jp-OutputArea-output").count() == 1  # nothing is left of the waiting
    cells.nth(3).get_by_text("demo v1").wait_for()
    trained.get_by_text("Data", exact=True).click()
    assert SCRIPT in trained.inner_text()
    shoot(page, "finished")
    assert page.evaluate("window.hacked") is None

    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    ready(page)
    browsers.open_notebook(page, "journey.ipynb")
    trained.get_by_text("Ask it:").wait_for()
    assert "demo v1 · finished" in trained.inner_text()
    assert page.evaluate("window.hacked") is None
    saved = nbformat.read(lab.root / "journey.ipynb", as_version=4).cells[1].outputs
    assert [output.output_type for output in saved] == ["display_data"]
    assert set(saved[0].data) == {"text/plain", "text/html", "image/png"}
    assert (lab.root / "journey.ipynb").stat().st_size < 200_000

    # As it comes from somebody else: Jupyter trusts no notebook that it has not seen run.
    copy = nbformat.read(lab.root / "journey.ipynb", as_version=4)
    copy.cells.append(nbformat.v4.new_markdown_cell("Sent by mail."))
    nbformat.write(copy, lab.root / "received.ipynb")
    open_notebook(page, lab, "received.ipynb")
    page.get_by_role("paragraph").get_by_text("Sent by mail.").wait_for()
    assert not page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.get(1).trusted")
    trained.get_by_text("Ask it:").wait_for()
    assert "demo v1 · finished" in trained.inner_text()
    assert trained.locator("img").evaluate("image => image.complete && image.naturalWidth > 500")
    assert page.evaluate("window.hacked") is None


LONG = """import random
chance = random.Random(0)
words = ["fine", "poor", "late", "<script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>"]
labels = ["good", "<svg onload=window.hacked=1>"]
rows = [(" ".join(chance.choices(words, k=6)), chance.choice(labels)) for _ in range(400)]"""


def numbers(page: Any, cell: int) -> dict[str, str]:
    """Return the numbers of the live view in a cell."""
    rows = page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".numbers tr").all_inner_texts()
    return dict(row.split("\t") for row in rows)


def wait_for_step(page: Any, cell: int, step: int) -> None:
    page.wait_for_function(
        """([cell, step]) => {
            const shown = document.querySelectorAll('.jp-Notebook .jp-CodeCell')[cell].querySelector('.numbers td');
            return shown && Number(shown.innerText.split(' ')[0].replace(/,/g, '')) >= step;
        }""",
        arg=[cell, step],
    )


def test_a_live_view_survives_a_reload_and_a_restart_and_its_buttons_work_while_a_cell_runs(
    page: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    wish = f"%%gpt_finetune long --model {tiny_model} --epochs 1000 --batch-size 4 --max-length 32\ndata: rows"
    write_notebook(lab, "long.ipynb", ["%load_ext gptx_nb\n" + LONG, wish])
    open_notebook(page, lab, "long.ipynb")
    page.evaluate(RUN)
    wait_for_step(page, 1, 40)
    live = page.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".gptx-panel")
    before = numbers(page, 1)
    assert before["step"].endswith("of 100,000") or before["step"].endswith("of 80,000")
    assert set(before) >= {"loss", "learning rate", "gradient norm", "tokens/s", "memory", "time left"}
    shoot(page, "watch")
    colors = page.evaluate(THEMES)
    assert len(set(colors)) == 2  # a light and a dark theme have inks of their own
    chart = live.get_by_role("img", name="loss").first
    chart.focus()
    page.keyboard.press("+")
    live.get_by_text("What was chosen, and why").click()
    live.get_by_text("this CPU").or_(live.get_by_text("no GPU")).first.wait_for()
    assert page.evaluate("window.hacked") is None

    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(500)
    page.reload()
    ready(page)
    browsers.open_notebook(page, "long.ipynb")
    begun = time.monotonic()
    wait_for_step(page, 1, 41)
    redrawn = time.monotonic() - begun
    live.locator("canvas").first.wait_for()
    print(f"redrawn {redrawn:.1f} s after the notebook was open again")

    # While a cell runs the kernel hears nobody: the page's view waits, the run and its numbers do not.
    page.evaluate(
        """() => {
            const {content} = window.jupyterapp.shell.currentWidget;
            content.model.sharedModel.insertCell(2, {cell_type: 'code', source: 'import time; time.sleep(6)'});
            content.activeCellIndex = 2;
            window.jupyterapp.commands.execute('notebook:run-cell-and-select-next');
        }"""
    )
    run = RunStore(lab.home).find("long")
    begun, before_it = time.monotonic(), Progress(run).refresh().step
    page.reload()
    ready(page)
    browsers.open_notebook(page, "long.ipynb")
    meanwhile = Progress(run).refresh().step
    assert run.state() == "running"
    assert meanwhile > before_it
    wait_for_step(page, 1, meanwhile)
    print(f"redrawn {time.monotonic() - begun:.1f} s after a cell of 6 s had begun")

    page.evaluate(
        """async () => {
            const panel = window.jupyterapp.shell.currentWidget;
            await panel.sessionContext.session.kernel.restart();
            const cells = panel.content.model.sharedModel;
            for (const source of ['%load_ext gptx_nb', '%gpt_watch long']) {
                cells.insertCell(cells.cells.length, {cell_type: 'code', source});
            }
            panel.content.activeCellIndex = 2;
        }"""
    )
    page.wait_for_function("() => document.querySelectorAll('.jp-Notebook .jp-CodeCell').length === 4")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell-and-select-next'); }")
    page.wait_for_function("() => document.querySelectorAll('.jp-InputPrompt')[2].innerText.includes('[1]')")
    begun = time.monotonic()
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell-and-select-next'); }")
    wait_for_step(page, 3, 42)
    live = page.locator(".jp-Notebook .jp-CodeCell").nth(3)
    live.locator("canvas").first.wait_for()
    print(f"redrawn {time.monotonic() - begun:.1f} s after %gpt_watch in a kernel that was restarted")

    page.locator(".jp-Notebook .jp-CodeCell").nth(3).get_by_role("button", name="Save and stop").click()
    again = page.locator(".jp-Notebook .jp-CodeCell").nth(3).locator(".jp-OutputArea-output")
    again.get_by_text("It was stopped and saved").first.wait_for()
    shoot(page, "stopped")
    assert again.locator("canvas, button").count() == 0
    assert run.state() == "stopped"
    assert page.evaluate("window.hacked") is None


def test_mistakes_and_lists_read_well(page: Any, lab: JupyterServer, tiny_model: Path) -> None:
    write_notebook(
        lab,
        "mistakes.ipynb",
        [
            "%load_ext gptx_nb",
            "%gpt_device",
            "%%gpt_finetune reviews\ndata: nofile.csv",
        ],
    )
    open_notebook(page, lab, "mistakes.ipynb")
    page.evaluate(RUN)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(1).get_by_text("torch").first.wait_for()
    cells.nth(2).get_by_text("UsageError: data: there is no file 'nofile.csv'").wait_for()
    assert "Traceback" not in cells.nth(2).inner_text()
    assert "not started" in cells.nth(2).inner_text()
    shoot(page, "mistake")
    store = RunStore(lab.home)
    assert "reviews" not in store.names()


HOSTILE_CELL = """from IPython.display import display
from gptx_nb.runs import RunStore
from gptx_nb.views.panels import LiveView, RunView, live
from gptx_nb.progress import Progress
find = RunStore().find
view = LiveView("hostile-live").show()
view.refresh(find("hostile-live"))
_ = view.follow()"""


def hostile_runs() -> None:
    """Make runs that train, have failed and have finished, with payloads in every text that a run has."""
    every = "\n".join(PAYLOADS)
    rendered = [{"text": each, "label": each, "tokens": 3} for each in PAYLOADS]
    named = {"name": every, "where": every, "licence": every, "parameters": 1, "context": 8}
    plan = {**made_runs.PLAN, "rendered": rendered, "notes": list(PAYLOADS), "model": named}
    plan["device"] = {"choice": every, "reason": every, "name": every}
    texts = dict.fromkeys(("source", "why", "validation_note", "text", "label"), every)
    examples = [{"text": each, "label": each} for each in PAYLOADS]
    counts = {each: 40 - at for at, each in enumerate(PAYLOADS)}
    report = {**made_runs.REPORT, **texts, "warnings": list(PAYLOADS), "labels": counts, "examples": examples}
    scores = json.loads(json.dumps(made_runs.SCORES))
    labels = list(PAYLOADS[:10])
    scores["validation"] |= {
        "labels": labels,
        "per_class": [{**scores["validation"]["per_class"][0], "label": each} for each in labels],
        "confusion": [[1] * len(labels)] * len(labels),
    }
    shown = [{"text": each, "label": each, "said": each, "share": 0.5} for each in PAYLOADS]
    for name, more in (
        ("hostile-live", {"phase": "training"}),
        ("hostile-failed", {"phase": "training", "outcome": {**made_runs.FAILED, "reason": "failed"}, "log": every}),
        ("hostile-finished", {"phase": "saving", "outcome": made_runs.FINISHED, "scores": scores}),
    ):
        run = made_runs.make(name, steps=30, report=report, plan=plan, data=every, **more)
        writer = MetricsWriter(run.metrics_file(1))
        writer.append({**made_runs.evaluation_record(36), "samples": shown})
        for each in PAYLOADS:
            writer.append({"kind": "note", "text": each, "time": 0.0})
        writer.close()
        if name == "hostile-failed":
            files.write_json(run.end_file(1), {"reason": "failed", "error": "RunFailed", "message": every})


def test_scripts_in_any_text_of_a_run_execute_nowhere(
    page: Any, lab: JupyterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTX_HOME", str(lab.home))
    hostile_runs()
    write_notebook(
        lab,
        "hostile.ipynb",
        [
            "%load_ext gptx_nb",
            HOSTILE_CELL,
            "RunView(find('hostile-failed'))",
            "RunView(find('hostile-finished'))",
            "display(live(find('hostile-live'), Progress(find('hostile-live')).refresh()), raw=True)",
            "%gpt_runs",
            f"%gpt_predict {PAYLOADS[0]} x",
        ],
    )
    open_notebook(page, lab, "hostile.ipynb")
    page.evaluate(RUN)
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(6).get_by_text("UsageError").or_(cells.nth(6).get_by_text("RunNotFound")).first.wait_for()
    live = cells.nth(1).locator(".gptx-panel")
    live.get_by_text("What it says of held-out rows now").wait_for()
    page.evaluate("() => document.querySelectorAll('.jp-OutputArea details').forEach(each => each.open = true)")
    for at in range(1, 5):
        output = cells.nth(at).locator(".jp-OutputArea-output").first
        output.scroll_into_view_if_needed()  # what is out of sight is not laid out
        text = output.text_content()
        assert not [each for each in PAYLOADS if each not in text], at
    found = page.evaluate(
        """() => [...document.querySelectorAll('.jp-OutputArea *')].filter(each =>
            ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'FORM', 'MARQUEE', 'BASE', 'META', 'LINK'].includes(each.tagName) ||
            each.getAttributeNames().some(name => name.startsWith('on')) ||
            /^ *javascript:/i.test(each.getAttribute('href') ?? each.getAttribute('src') ?? '')
        ).map(each => each.outerHTML.slice(0, 200))"""
    )
    assert found == []
    page.wait_for_timeout(500)  # an image that fails to load does so later
    assert page.evaluate("window.hacked") is None
