"""Whole journeys through the JupyterLab extension, in a real Chromium."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsers
import made_runs
import pytest
from browsers import command, open_notebook, ready, shoot, use_theme, visit, write_notebook
from made_runs import SCRIPT
from servers import ROOT, JupyterServer

from gptx_nb import inference, launch
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import RunStore
from gptx_nb.trash import Trash

pytestmark = browsers.MARKS


@pytest.fixture
def context(browser: Any, lab: JupyterServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A browser's window of its own, and no runs in the home, where made_runs writes."""
    monkeypatch.setenv("GPTX_HOME", str(lab.home))
    shutil.rmtree(lab.home / "runs", ignore_errors=True)
    context = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=False)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(120_000)  # a loaded machine trains, and draws, slowly
    yield context
    context.close()


def open_lab(context: Any, lab: JupyterServer, workspace: str, *, sidebar: bool = True) -> Any:
    page = context.new_page()
    visit(page, lab, workspace)
    if sidebar:
        command(page, "gptx-nb:show-runs")
        page.locator(".gptx-Sidebar").wait_for()
    return page


def card(page: Any, identity: str) -> Any:
    return page.locator(f'.gptx-Card[data-run="{identity}"]')


def table(lab: JupyterServer, name: str) -> None:
    rows = [("good thing", SCRIPT), ("bad thing", "<b onclick=window.hacked=1>bad</b>")]
    lines = "".join(
        json.dumps({"text": f"{text} {n}", "label": label}) + "\n" for n in range(12) for text, label in rows
    )
    (lab.root / name).write_text(lines, encoding="utf-8")


def start(page: Any, name: str, settings: dict[str, str]) -> None:
    form = page.locator(".gptx-Form")
    if form.count() == 0:
        page.get_by_label("New run", exact=True).first.click()
    form.get_by_label("Name").fill(name)
    for setting, typed in settings.items():
        field = form.locator(f'[data-setting="{setting}"]')
        if not field.is_visible():
            form.get_by_text("All settings").click()
        control = field.locator("input, select, textarea")
        control.select_option(typed) if control.evaluate("node => node.tagName") == "SELECT" else control.fill(typed)
    form.get_by_role("button", name="Start").click()


def test_a_run_is_started_followed_and_asked_with_no_notebook_open(
    context: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    page = open_lab(context, lab, "start")
    page.get_by_text("There are no runs yet.").wait_for()
    shoot(page, "empty")
    table(lab, "reviews.jsonl")
    settings = {"data": "reviews.jsonl", "model": str(tiny_model), "epochs": "-1", "baselines": "false"}
    start(page, "reviews", settings)
    wrong = page.locator('.gptx-Form [data-setting="epochs"].gptx-mod-wrong')
    wrong.get_by_text("epochs: '-1' does not fit: input should be greater than 0").wait_for()
    assert page.evaluate("document.activeElement.id").endswith("-epochs")
    shoot(page, "form")
    wrong.locator("input").fill("150")
    page.locator(".gptx-Form").get_by_role("button", name="Start").click()

    dashboard = page.locator(".gptx-Dashboard")
    dashboard.get_by_text("training").first.wait_for()
    card(page, "reviews/1").get_by_role("progressbar").wait_for()
    page.locator(".gptx-Status").get_by_text("reviews v1").wait_for()
    shoot(page, "training")
    card(page, "reviews/1").get_by_text("finished").wait_for()
    dashboard.get_by_role("button", name="Ask").wait_for()
    page.wait_for_function("() => !document.querySelector('.gptx-Status')?.checkVisibility()")
    assert dashboard.locator(".gptx-Chart").first.locator("canvas, path").count() > 0
    dashboard.get_by_label("Texts to ask the model about").fill("good thing 5")
    dashboard.get_by_role("button", name="Ask").click()
    dashboard.locator(".gptx-Ask-label").nth(1).wait_for()
    assert SCRIPT in dashboard.inner_text()
    shoot(page, "finished")
    assert page.evaluate("window.hacked") is None
    with urllib.request.urlopen(f"{lab.address}api/kernels?token={lab.token}") as answer:
        assert json.load(answer) == []


def test_a_model_that_writes_and_a_pretrained_one_are_asked_too(
    context: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    rows = [{"prompt": f"{number} and one are", "completion": f" {number + 1}.\n{SCRIPT}"} for number in range(12)]
    (lab.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (lab.root / "rivers.txt").write_text("\n\n".join(hex(7**n) for n in range(60, 90)))
    settings = {"task": "text-generation", "model": str(tiny_model), "epochs": 1, "device": "cpu"}
    launch.train("sums", make_recipe({**settings, "data": str(lab.root / "rows.jsonl")}))
    page = open_lab(context, lab, "writing")
    page.get_by_label("New run", exact=True).first.click()
    page.get_by_role("button", name="Pretrain").click()
    start(page, "rivers", {"data": "rivers.txt", "from": str(tiny_model), "tokens": "600", "device": "cpu"})
    for name in ("sums", "rivers"):
        card(page, f"{name}/1").get_by_text("finished").wait_for()
    for name, prompt in (("sums", "2 and one are"), ("rivers", "0x")):
        card(page, f"{name}/1").hover()
        card(page, f"{name}/1").get_by_label(f"Ask {name} v1").click()
        dashboard = page.locator(f"#gptx-nb-dashboard-{name}\\/1")
        texts = dashboard.get_by_label("Texts to ask the model about")
        page.wait_for_function("text => text === document.activeElement", arg=texts.element_handle())
        page.keyboard.insert_text(prompt)
        page.keyboard.press("Control+Enter")
        written = dashboard.locator(".gptx-Ask-written")
        written.wait_for()
        expected = inference.generate(RunStore(lab.home).find(name), prompt)[0].text
        assert written.text_content() == (expected or "(It wrote nothing.)")
        shoot(page, f"ask-{name}")
    card(page, "sums/1").get_by_text("ROUGE-1 0.").wait_for()
    card(page, "sums/1").locator(".gptx-Card-name").click()
    dashboard = page.locator("#gptx-nb-dashboard-sums\\/1")
    assert "ROUGE-L" in dashboard.locator(".gptx-Table").first.inner_text()
    assert SCRIPT in dashboard.locator(".gptx-Section", has_text="What it answers").inner_text()
    assert page.evaluate("window.hacked") is None


def test_a_run_goes_on_when_the_server_is_killed_and_is_there_again_with_the_next(
    context: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    page = open_lab(context, lab, "killed")
    table(lab, "long.jsonl")
    start(page, "long", {"data": "long.jsonl", "model": str(tiny_model), "epochs": "900", "baselines": "false"})
    card(page, "long/1").get_by_role("progressbar").wait_for()
    card(page, "long/1").get_by_text("step ").wait_for()
    lab.end(signal.SIGKILL)
    page.get_by_text("The Jupyter server does not answer. Runs go on without it.").first.wait_for()
    run = RunStore(lab.home).find("long")
    step = latest_step(run)
    deadline = time.monotonic() + 60
    while latest_step(run) == step:
        assert time.monotonic() < deadline, run.log_tail()
        time.sleep(0.2)
    lab.start()
    page.wait_for_function(
        "() => !document.querySelector('.gptx-Sidebar').innerText.includes('does not answer')", timeout=90_000
    )
    # JupyterLab's own dialog about the lost connection lies above everything.
    page.evaluate("() => document.querySelectorAll('.jp-Dialog').forEach(dialog => dialog.remove())")
    card(page, "long/1").hover()
    card(page, "long/1").get_by_label("Save and stop long v1").click()
    card(page, "long/1").get_by_text("stopped").wait_for()
    assert run.state() == "stopped"
    card(page, "long/1").hover()
    card(page, "long/1").get_by_label("Go on with long v1").click()
    card(page, "long/1").get_by_text("training").wait_for()
    assert run.attempts() == 2
    run.request_stop()


def latest_step(run: Any) -> int:
    return max((record["step"] for record in run.history() if record.get("kind") == "step"), default=0)


def test_two_tabs_a_notebook_and_a_terminal_follow_one_run_and_agree(
    context: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    first, second = open_lab(context, lab, "one"), open_lab(context, lab, "two")
    table(lab, "short.jsonl")
    write_notebook(lab, "watch.ipynb", ["%load_ext gptx_nb", "%gpt_watch short"])
    open_notebook(second, "watch.ipynb")
    environment = {**os.environ, "GPTX_HOME": str(lab.home), "PYTHONPATH": str(ROOT)}
    train = [sys.executable, "-m", "gptx_nb.views.cli", "train", "short", "--data", str(lab.root / "short.jsonl")]
    flags = ["--model", str(tiny_model), "--epochs", "60", "--baselines", "false"]
    with subprocess.Popen([*train, *flags], env=environment, stdout=subprocess.PIPE, text=True) as terminal:
        card(second, "short/1").wait_for()
        command(second, "notebook:run-all-cells")
        printed, _ = terminal.communicate()
    for page in (first, second):
        card(page, "short/1").get_by_text("finished").wait_for()
    told = [card(page, "short/1").inner_text() for page in (first, second)]
    assert told[0] == told[1]
    output = second.locator(".jp-Notebook .jp-OutputArea-output")
    output.get_by_text("Ask it:").wait_for()
    score = re.search(r"accuracy \d\.\d+", told[0])
    assert score is not None
    assert "short v1" in printed
    assert f"{score[0]} on" in printed
    assert f"{score[0]} on" in output.inner_text()


def test_eight_tabs_load_and_follow(context: Any, lab: JupyterServer) -> None:
    made_runs.make("going", steps=30, phase="training")
    pages = [open_lab(context, lab, f"tab{number}") for number in range(8)]
    for page in pages:
        card(page, "going/1").get_by_text("training").wait_for()
    made_runs.make("other", steps=12, phase="training", outcome=made_runs.FINISHED)
    for page in pages:
        page.bring_to_front()
        card(page, "other/1").get_by_text("finished").wait_for()


def test_nothing_is_asked_while_the_views_are_hidden(context: Any, lab: JupyterServer) -> None:
    made_runs.make("reviews", steps=60, phase="training", outcome=made_runs.FINISHED)
    page = open_lab(context, lab, "hidden")
    card(page, "reviews/1").wait_for()
    command(page, "filebrowser:activate")
    page.locator(".gptx-Sidebar").wait_for(state="hidden")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/gptx_nb/" in request.url else None)
    page.on("websocket", lambda line: asked.append(line.url) if "/gptx_nb/" in line.url else None)
    page.wait_for_timeout(6000)
    assert asked == []
    # A run that ends elsewhere is told by Jupyter's own event.
    made_runs.make("elsewhere", steps=12, phase="training", outcome=made_runs.FINISHED)
    page.get_by_text("elsewhere v1 has finished.").wait_for()


def test_a_deleted_run_is_taken_back_and_the_layout_comes_back_with_its_dashboard(
    context: Any, lab: JupyterServer
) -> None:
    made_runs.make("reviews", steps=60, phase="training", scores=made_runs.SCORES, outcome=made_runs.FINISHED)
    made_runs.make("reviews", steps=33, phase="training", outcome=made_runs.STOPPED)
    page = open_lab(context, lab, "layout")
    card(page, "reviews/2").hover()
    card(page, "reviews/2").get_by_label("Delete reviews v2").click()
    card(page, "reviews/2").wait_for(state="detached")
    page.get_by_role("button", name="Undo").click()
    card(page, "reviews/2").get_by_text("stopped").wait_for()
    for version in (1, 2):
        page.get_by_label(f"Choose reviews v{version} to compare it").check()
    page.get_by_role("button", name="Compare 2").click()
    page.get_by_text("2 runs compared").wait_for()
    page.get_by_label("Filter runs").fill("v1")
    card(page, "reviews/2").wait_for(state="detached")
    shoot(page, "compare")
    page.wait_for_timeout(2000)  # the layout is saved a moment after it has changed
    page.reload()
    ready(page)
    page.get_by_text("2 runs compared").wait_for()
    page.locator(".gptx-Sidebar").wait_for()
    assert page.get_by_label("Filter runs").input_value() == "v1"


def test_a_run_becomes_a_cell_and_a_variable_too_and_both_read_as_yaml(context: Any, lab: JupyterServer) -> None:
    made_runs.make("reviews", steps=60, phase="training", outcome=made_runs.FINISHED)
    write_notebook(lab, "cells.ipynb", ["my_table = 1"])
    page = open_lab(context, lab, "cells")
    open_notebook(page, "cells.ipynb")
    card(page, "reviews/1").hover()
    card(page, "reviews/1").get_by_label("Insert reviews v1 as a cell").click()
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(1).get_by_text("%%gpt_finetune reviews").wait_for()
    assert source(page, 1) == "%%gpt_finetune reviews\ndata: df\n"
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.mimeType === 'text/x-yaml'"
    )

    # As a hand does it, which comes after the new cell has taken the focus: JupyterLab gives it a moment late.
    cells.nth(1).locator(".cm-content:focus").wait_for()
    cells.nth(0).locator(".cm-line").dblclick(position={"x": 20, "y": 8})
    page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="gptx-cell-from-variable"] jp-button').click()
    cells.nth(2).wait_for()
    assert source(page, 1) == "%%gpt_finetune my-table\nmodel: tiny\ndata: my_table\n"
    shoot(page, "cells")
    # Both kinds of cells have their settings' names in a colour of their own, as YAML has; Python would not.
    for text in ("%%gpt_finetune one\ndata: df\nepochs: 2", "%%gpt_pretrain two\ndata: books/\nfrom: gpt2"):
        set_source(page, 1, text)
        page.wait_for_function(COLOURED, arg="data")
        page.wait_for_function(COLOURED, arg=text.rpartition("\n")[2].partition(":")[0])
    set_source(page, 1, "x = 1")
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.mimeType === 'text/x-ipython'"
    )


# Whether a word at the beginning of a line of the second cell is marked, alone and in another colour than the line.
COLOURED = """word => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')[1].querySelectorAll('.cm-line')].some(
    line => [...line.children].some(
        mark => mark.textContent === word && getComputedStyle(mark).color !== getComputedStyle(line).color
    )
)"""


def set_source(page: Any, at: int, text: str) -> None:
    page.evaluate(
        "([at, text]) => window.jupyterapp.shell.currentWidget.content.widgets[at].model.sharedModel.setSource(text)",
        [at, text],
    )


def test_tab_completes_flags_and_settings_in_a_cell_that_reads_as_yaml(context: Any, lab: JupyterServer) -> None:
    made_runs.make("domain", steps=12, phase="training", outcome=made_runs.FINISHED)
    write_notebook(lab, "complete.ipynb", ["%load_ext gptx_nb", ""])
    page = open_lab(context, lab, "complete", sidebar=False)
    open_notebook(page, "complete.ipynb")
    command(page, "notebook:run-all-cells")
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.content.widgets[0].model.executionState === 'idle'"
        " || window.jupyterapp.shell.currentWidget.content.widgets[0].model.executionCount === 1"
    )
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(1)
    for text, offered in (
        ("%%gpt_finetune reviews --learn", "--learning-rate"),
        ("%%gpt_pretrain base --tokeni", "--tokenizer"),
        ("%%gpt_pretrain base\ndata: books/\nfrom: run:dom", "run:domain"),
        ("%gpt_eval dom", "domain"),
        ("%gpt_compare domain dom", "domain"),
    ):
        set_source(page, 1, text)
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+End")
        page.keyboard.press("Tab")
        page.locator(".jp-Completer .jp-mod-active").get_by_text(offered, exact=True).wait_for()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "text => window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel.getSource() === text",
            arg=text[: max(text.rfind(" "), text.rfind("\n")) + 1] + offered,
        )


def test_the_panel_configures_starts_watches_asks_and_compares_in_a_notebook(
    context: Any, lab: JupyterServer, tiny_model: Path
) -> None:
    made_runs.make("older", steps=60, phase="training", scores=made_runs.SCORES, outcome=made_runs.FINISHED)
    table(lab, "rows.jsonl")
    code = ["%load_ext gptx_nb\nimport pandas\ndf = pandas.read_json('rows.jsonl', lines=True)", "%gpt_panel"]
    write_notebook(lab, "panel.ipynb", code)
    page = open_lab(context, lab, "panel", sidebar=False)
    open_notebook(page, "panel.ipynb")
    command(page, "notebook:run-all-cells")
    desk = page.locator(".desk")
    desk.get_by_label("Name").fill("reviews")
    desk.locator('[data-setting="model"] input').fill(str(tiny_model))
    desk.get_by_label("Tables of this notebook").select_option("df")
    desk.get_by_text("First rows of 24").wait_for()
    assert desk.get_by_label("Column of label").input_value() == "label"
    desk.get_by_text("What it takes, and why").wait_for()
    shoot(page, "panel-configure")
    desk.locator('[data-setting="epochs"] input').fill("-1")
    desk.get_by_role("button", name="Start").click()
    desk.locator('[data-setting="epochs"].gptx-mod-wrong').get_by_text("does not fit").wait_for()
    desk.locator('[data-setting="epochs"] input').fill("200")
    desk.get_by_role("button", name="Insert below").click()
    desk.get_by_text("It stands in a new cell.").wait_for()
    assert f"model: {tiny_model}\ndata: df\nepochs: 200\n" in source(page, 2)

    desk.get_by_role("button", name="Start").click()
    desk.locator(".watch .title").get_by_text("training").wait_for()
    desk.get_by_role("tab", name="Ask").click()
    desk.get_by_label("Text to ask the model about").fill("good thing 5")
    while True:  # it can be asked as soon as it has saved weights, after its first epoch
        desk.get_by_role("button", name="Ask", exact=True).click()
        tuned = desk.get_by_label("Tuned", exact=True)
        tuned.locator(".gptx-Ask-label, .error").first.wait_for()
        if tuned.locator(".error").count() == 0:
            break
        assert "saved no" in tuned.locator(".error").inner_text()
        page.wait_for_timeout(500)
    # Its base is asked by the labels' words beside it, one of which is a script.
    base = desk.get_by_label("Base model", exact=True)
    base.get_by_text("The base model has learnt no labels: it is asked by their words").wait_for()
    assert base.locator(".gptx-Ask-label").count() == 2
    assert SCRIPT in base.inner_text()
    assert SCRIPT in desk.inner_text()
    shoot(page, "panel-ask")
    desk.get_by_role("tab", name="Watch").click()
    desk.locator(".watch .title").get_by_text("finished").wait_for()
    shoot(page, "panel-watch")
    desk.get_by_role("tab", name="Compare").click()
    boxes = desk.locator(".runs input")
    boxes.nth(1).wait_for()  # the list has come
    for box in boxes.all():
        box.check()
    desk.get_by_text("What differs in the recipes").wait_for()
    desk.get_by_text("Best and worst held-out rows").first.click()  # of the run that was just trained
    desk.get_by_text("held-out rows.").first.wait_for()
    shoot(page, "panel-compare")
    Trash(lab.home).put(RunStore(lab.home).find("reviews"))  # as the sidebar does, while the panel watches it
    desk.get_by_role("tab", name="Watch").click()
    desk.locator(".watch .title").get_by_text("deleted").wait_for()
    assert desk.locator(".watch header button:visible").count() == 0
    assert page.evaluate("window.hacked") is None


def source(page: Any, at: int) -> str:
    found = page.evaluate(
        "at => window.jupyterapp.shell.currentWidget.content.widgets[at].model.sharedModel.getSource()", at
    )
    return str(found)


def test_states_read_on_dark_and_on_light(context: Any, lab: JupyterServer) -> None:
    made_runs.make("reviews", steps=60, phase="training", scores=made_runs.SCORES, outcome=made_runs.FINISHED)
    made_runs.make("broken", steps=20, phase="training", outcome=made_runs.FAILED, log=f"Loading\n{SCRIPT}\n")
    page = open_lab(context, lab, "themes")
    card(page, "broken/1").locator(".gptx-Card-name").click()
    dashboard = page.locator(".gptx-Dashboard")
    dashboard.get_by_text("broke off: out of memory").wait_for()
    dashboard.get_by_text("Log", exact=True).click()
    dashboard.locator(".gptx-Log").get_by_text(SCRIPT).wait_for()
    for theme in ("Light", "Dark"):
        use_theme(page, theme)
        for where in (".gptx-Card-name", ".gptx-Card-state", ".gptx-Card-made", ".gptx-Trouble", ".gptx-Log"):
            assert page.evaluate(CONTRAST, where) >= 4.0, (theme, where)
    assert page.evaluate("window.hacked") is None


# The contrast of a text to what it stands on, as WCAG reckons it.
CONTRAST = """where => {
    const luminance = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(value => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const node = document.querySelector(where);
    let ground = node;
    const clear = color => color === 'transparent' || /, 0\\)$/.test(color);
    while (clear(getComputedStyle(ground).backgroundColor)) {
        ground = ground.parentElement;
    }
    const both = [getComputedStyle(node).color, getComputedStyle(ground).backgroundColor].map(luminance);
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


def test_everything_in_the_list_is_reached_by_keyboard(context: Any, lab: JupyterServer) -> None:
    made_runs.make("reviews", steps=60, phase="training", outcome=made_runs.FINISHED)
    page = open_lab(context, lab, "keyboard")
    card(page, "reviews/1").get_by_text("finished").wait_for()
    page.locator(".jp-LauncherCard").first.wait_for()  # which takes the focus when it comes
    page.get_by_label("Filter runs").focus()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.title")
        )
    assert reached[2:6] == [
        "Choose reviews v1 to compare it",
        "Open reviews v1",
        "Open reviews v1",
        "Ask reviews v1",
    ]
    assert "Delete reviews v1" in reached


def test_five_hundred_runs_are_listed_and_scroll(context: Any, lab: JupyterServer) -> None:
    for number in range(500):
        made_runs.make(f"run-{number:03}", steps=12, phase="training", outcome=made_runs.FINISHED)
    page = open_lab(context, lab, "many")
    page.wait_for_function("() => document.querySelectorAll('.gptx-Card').length === 500")
    frames = page.evaluate(
        """() => new Promise(resolve => {
            const list = document.querySelector('.gptx-List');
            let count = 0;
            const step = () => {
                list.scrollTop += 400;
                count += 1;
                count < 60 ? requestAnimationFrame(step) : resolve(list.scrollTop);
            };
            requestAnimationFrame(step);
        })"""
    )
    assert frames > 10_000
    page.get_by_label("Filter runs").fill("run-499")
    page.wait_for_function("() => document.querySelectorAll('.gptx-Card').length === 1")
    page.get_by_text("1 of 500").wait_for()
