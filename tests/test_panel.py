"""The panel's questions and answers: what the page asks, put to real runs and a real notebook."""

import time
from pathlib import Path
from typing import Any

import made_runs
import pytest
from IPython.core.interactiveshell import InteractiveShell
from made_runs import FINISHED, SCORES, make
from waiting import until

from gptx_nb import asking, comparison, drafts, inference, launch, pasted, rehearsals
from gptx_nb.errors import DataError, RunNotFound, UsageError
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import RunStore
from gptx_nb.views import live, magics, panel

ROWS = [("Great, I love it", "yes"), ("Awful.", "no")] * 6
DISTINCT = [(f"{text} {number}", label) for number in range(8) for text, label in ROWS[:2]]  # some can be held back


class Page:
    """A panel, and what a page would hear of it."""

    def __init__(self, shell: InteractiveShell, name: str = "") -> None:
        loaded: magics.GptxMagics = getattr(shell, magics._LOADED)[0]
        run = RunStore().find(name) if name else None
        self.widget = panel.PanelWidget(magics._Notebook(loaded), run)
        self.heard: list[dict[str, Any]] = []
        self.widget.send = lambda content, buffers=None: self.heard.append(content)
        self._count = 0

    def put(self, what: str, **more: Any) -> str:
        self._count += 1
        self.widget._hear(None, {"kind": "ask", "id": str(self._count), "what": what, **more}, [])
        return str(self._count)

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Return the answer's message."""
        identity = self.put(what, **more)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            for each in self.heard:
                if each.get("id") == identity and each["kind"] == "answer":
                    return each
            time.sleep(0.02)
        raise AssertionError(f"no answer to {what}: {self.heard}")

    def parts(self) -> list[Any]:
        return [each["value"] for each in self.heard if each["kind"] == "part"]


@pytest.fixture
def page(plain_shell: InteractiveShell) -> Any:
    found = Page(plain_shell)
    yield found
    found.widget.close()


def seen_as(page: Page, state: str) -> None:
    """Wait until the page is told that the watched run has that state."""
    until(lambda: state in [page.widget.head.get("state"), *(each.get("head", {}).get("state") for each in page.heard)])


def form(**recipe: Any) -> dict[str, Any]:
    return {"run_kind": "finetune", "name": "reviews", "recipe": recipe}


def test_the_form_opens_with_settings_tables_and_cells_of_the_notebook(
    page: Page, plain_shell: InteractiveShell
) -> None:
    plain_shell.user_ns.update(df=[{"body": "Nice.", "stars": 5}], In=["", "x = 1", "%%gpt_finetune a\ndata: df"])
    told = page.ask("open")["value"]
    assert [each["name"] for each in told["kinds"]["finetune"]][:2] == ["task", "model"]
    assert told["kinds"]["pretrain"]
    assert {"name": "df", "kind": "list", "rows": 1, "columns": ["body", "stars"]} in told["tables"]
    assert told["cells"] == ["%%gpt_finetune a\ndata: df"]
    assert told["opened"] == {"kind": "finetune", "name": "", "recipe": {"data": "df"}}  # the only table


def test_what_was_typed_is_found_again_by_a_page_that_is_loaded_again(page: Page) -> None:
    draft = {"kind": "finetune", "name": "half", "recipe": {"data": "df", "epochs": "thr"}}
    page.widget._hear(None, {"kind": "draft", "draft": draft}, [])
    assert page.ask("open")["value"]["opened"] == draft
    cell = page.ask("open", cell="%%gpt_finetune other\ndata: df")["value"]["opened"]
    assert cell == {"kind": "finetune", "name": "other", "recipe": {"data": "df"}}


def test_what_was_typed_outlives_the_kernel_until_it_is_started(
    plain_shell: InteractiveShell, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/you/a.ipynb")
    draft = {"kind": "finetune", "name": "half", "recipe": {"data": "df", "epochs": "thr"}}
    first = Page(plain_shell)
    first.widget._hear(None, {"kind": "draft", "draft": draft}, [])
    first.widget._hear(None, {"kind": "draft", "draft": "no draft"}, [])
    first.widget.close()
    later = Page(plain_shell)
    assert later.ask("open")["value"]["opened"] == draft
    make("reviews", steps=3, outcome=FINISHED, scores=SCORES)
    assert Page(plain_shell, "reviews").ask("open")["value"]["opened"]["name"] == "reviews", "a run that was asked for"
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/you/b.ipynb")
    assert Page(plain_shell).ask("open")["value"]["opened"]["name"] == "", "another notebook"
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/you/a.ipynb")
    [kept] = (home / "drafts").iterdir()
    kept.write_text('{"kind": "finetune", "recipe": ')
    assert Page(plain_shell).ask("open")["value"]["opened"]["name"] == "", "harmed: begun anew"
    drafts.keep(draft)
    drafts.forget()
    assert drafts.latest() is None


def test_a_cell_opens_in_the_form_with_its_expressions_as_they_stand(page: Page) -> None:
    cell = "%%gpt_finetune reviews --epochs 3\ndata: {{df[:100]}}\nlabels: [no, yes]"
    told = page.ask("open", cell=cell)["value"]["opened"]
    wanted = {"data": "{{df[:100]}}", "labels": ["no", "yes"], "epochs": 3}
    assert told == {"kind": "finetune", "name": "reviews", "recipe": wanted}
    again = page.ask("cell", **form(**told["recipe"]))["value"]["cell"]
    assert again.splitlines()[1] == "data: {{df[:100]}}"
    assert page.ask("open", cell=again)["value"]["opened"] == told
    assert "begins with %%gpt_finetune NAME" in page.ask("open", cell="x = 1")["error"]


def test_a_runs_recipe_opens_in_the_form_that_is_shown_with_its_name(plain_shell: InteractiveShell) -> None:
    make(steps=12, phase="training", outcome=FINISHED)
    page = Page(plain_shell, "reviews")
    opened = page.ask("open")["value"]["opened"]
    assert (opened["name"], opened["recipe"]["data"]) == ("reviews", "df")
    seen_as(page, "finished")  # and it is watched
    page.widget.close()


def test_a_mistake_is_one_message_with_its_field(page: Page) -> None:
    wrong = page.ask("start", **form(data="df", epochs=-1))
    assert wrong["error"] == "epochs: '-1' does not fit: input should be greater than 0 (passes)"
    assert wrong["field"] == "epochs"
    assert page.ask("start", run_kind="finetune", name=" ", recipe={})["field"] == "name"
    assert page.ask("start", run_kind="finetune", name="a b", recipe={})["field"] == "name"
    assert page.ask("start", **form(epoch=3))["error"].startswith("unknown setting 'epoch'. Did you mean 'epochs'?")
    assert page.ask("start", **form())["error"].startswith("there is nothing to learn from.")
    missing = page.ask("start", **form(data="nothing.csv"))
    assert missing["field"] == "data"
    assert "there is no file 'nothing.csv'" in missing["error"]
    assert "Restart the kernel" in page.ask("dance")["error"]


def test_cell_and_command_say_the_same(page: Page) -> None:
    told = page.ask("cell", **form(data="df", epochs=3))["value"]
    assert told["cell"] == "%%gpt_finetune reviews\ndata: df\nepochs: 3\n"
    assert told["command"] == "gptx-nb finetune reviews --data=df --epochs=3"


def test_pasted_rows_are_kept_as_they_are_and_the_same_ones_once(page: Page, home: Path) -> None:
    text = 'text\tlabel\n"Two\nlines, ""so"""\tyes\n\t007\n'
    path = Path(page.ask("paste", text=text)["value"]["path"])
    assert path.read_bytes().decode() == text
    assert (path.suffix, path.parent) == (".tsv", home / "pasted")
    assert pasted.keep(text) == path
    assert pasted.keep("text,label\na,b\n").suffix == ".csv"
    assert page.ask("paste", text="alone")["field"] == "data"
    with pytest.raises(DataError, match="nothing was pasted"):
        pasted.keep(" \n")


def test_a_rehearsal_is_told_in_parts_and_one_that_is_withdrawn_is_silent(
    page: Page, plain_shell: InteractiveShell, tiny_model: Path
) -> None:
    plain_shell.user_ns["mine"] = ROWS
    found = page.ask("rehearse", **form(data="mine", model=str(tiny_model), epochs=1))["value"]
    assert page.parts()[0]["report"]["labels"] == {"no": 6, "yes": 6}
    assert found["plan"]["memory"]["choice"]
    identity = page.put("rehearse", **form(data="mine", model=str(tiny_model), epochs=1))
    page.widget._hear(None, {"kind": "withdraw", "id": identity}, [])
    time.sleep(0.5)
    assert not [each for each in page.heard if each.get("id") == identity]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Any:
    """A home with a small classifier."""
    monkeypatch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("panel") / "home"
    monkeypatch.setenv("GPTX_HOME", str(folder))
    settings = {"model": str(tiny_model), "epochs": 2, "baselines": False, "validation": 0.25}
    launch.train("reviews", make_recipe(settings), data=DISTINCT, wait=True)
    yield folder
    inference.free(folder)
    monkeypatch.undo()


def test_a_run_is_asked_beside_its_base_model(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTX_HOME", str(trained))
    run = RunStore().find("reviews")
    told = asking.ask(run, "Great")
    assert told["who"] == "reviews v1"
    assert {label for label, _ in told["labels"]} == {"yes", "no"}
    assert sum(share for _, share in told["labels"]) == pytest.approx(1)
    base = asking.ask(run, "Great", "base")
    assert {label for label, _ in base["labels"]} == {"yes", "no"}
    assert base["notes"][0].startswith("The base model has learnt no labels: it is asked by their words")
    assert sum(share for _, share in base["labels"]) == pytest.approx(1)
    with pytest.raises(UsageError, match="text: there is none"):
        asking.ask(run, " ")


def test_the_rows_that_a_run_does_best_and_worst_on_are_told(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTX_HOME", str(trained))
    run = RunStore().find("reviews")
    told = inference.extremes(run, 1)
    scores = run.scores() or {}
    assert told["rows"] == scores["validation"]["rows"] >= 2
    (worst,), (best,) = told["worst"], told["best"]
    assert worst["share"] <= best["share"]
    assert (worst["text"], worst["right"]) in DISTINCT
    asked = dict(asking.ask(run, worst["text"])["labels"])
    assert asked[worst["right"]] == pytest.approx(worst["share"], abs=1e-5)
    assert worst["said"] == max(asked, key=lambda label: asked[label])


def test_a_run_without_a_model_says_so(home: Path) -> None:
    with pytest.raises(RunNotFound, match="reviews v1 has no model yet: it is running"):
        asking.ask(make(steps=3, phase="training"), "Great")


def test_runs_are_compared_by_scores_and_by_what_differs(page: Page) -> None:
    make(steps=24, phase="training", scores=SCORES, outcome=FINISHED)
    make(steps=12, phase="training", outcome=made_runs.STOPPED, data="other.csv")
    assert [each["id"] for each in page.ask("runs")["value"]["runs"]] == ["reviews/1", "reviews/2"]
    told = page.ask("compare", runs=["reviews/1", "reviews/2"])["value"]
    assert told["settings"] == [["data", "df", "other.csv"]]
    scores = {name: rest for name, *rest in told["scores"]}
    assert scores["state"] == ["finished", "stopped"]
    assert scores["accuracy"] == ["0.812", ""]
    assert scores["accuracy, TF-IDF + logistic regression"] == ["0.830", ""]
    assert told["runs"][0]["confusion"] == [[19, 5], [4, 20]]
    assert len(told["runs"][0]["curves"]["loss"]) == 24
    assert told["runs"][0]["curves"]["score_name"] == "accuracy"
    assert page.ask("compare", runs=["nothing"])["error"].startswith("no run is called 'nothing'")
    assert comparison.compare([])["runs"] == []


def test_a_run_of_another_panel_is_watched(page: Page) -> None:
    make(steps=12, phase="training", outcome=FINISHED)
    assert page.ask("watch", run="reviews/1")["value"] == {"id": "reviews/1"}
    seen_as(page, "finished")
    assert page.widget.head["name"] == "reviews"


def test_a_panel_tells_that_its_run_was_deleted_and_opens_without_it(plain_shell: InteractiveShell) -> None:
    run = make(steps=12, phase="training", outcome=FINISHED)
    page = Page(plain_shell, "reviews")
    seen_as(page, "finished")
    RunStore().remove(run)
    seen_as(page, "deleted")
    assert page.ask("watch", run="reviews/1")["error"].startswith("no run is called 'reviews'")
    assert page.ask("open")["value"]["opened"] == {"kind": "finetune", "name": "", "recipe": {}}
    page.widget.close()


def test_where_no_widgets_are_drawn_the_panel_is_the_list_of_runs(plain_shell: InteractiveShell) -> None:
    make(steps=12, phase="training", outcome=FINISHED)
    shown = plain_shell.run_line_magic("gpt_panel", "")
    bundle = shown._repr_mimebundle_()
    assert live.WIDGET not in bundle
    assert "reviews" in bundle["text/plain"]
    assert "reviews" in bundle["text/html"]
    assert "`%gpt_watch NAME` shows one" in repr(shown)


def test_a_bug_keeps_its_traceback(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(rehearsals, "rehearse", broken)
    told = page.ask("rehearse", **form(data="df.csv"))
    assert "ZeroDivisionError: of ours" in told["error"]
    assert "line" in told["error"]
