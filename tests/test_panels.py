"""What a run looks like: live, finished, failed, stopped, with hostile texts, with many labels, in a saved file."""

import base64
import copy
import html.parser
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from made_runs import FAILED, FINISHED, KILLED, PLAN, REPORT, SCORES, SCRIPT, STOPPED, make

from gptx_nb import comparison, files, metrics, progress
from gptx_nb.recipe import make_recipe
from gptx_nb.runs import Run, RunStore
from gptx_nb.views import live, panels


class Words(html.parser.HTMLParser):
    """The text of a page, its tags, and what it would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What is displayed in an IPython of this process."""
    shell = InteractiveShell.instance()
    publisher = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", publisher)
    yield publisher.outputs
    InteractiveShell.clear_instance()


def finished(**changes: Any) -> Run:
    return make(steps=60, phase="saving", outcome=FINISHED, scores=SCORES | changes)


def test_a_live_view_says_step_loss_score_speed_time_left_and_how_to_stop(home: Path) -> None:
    run = make(steps=40, phase="training")
    shown = panels.bundle_of(run)
    assert shown["text/plain"] == (
        "reviews v1  training  step 40/60  loss 0.33  validation 0.86  3,100 tokens/s  5 s left"
    )
    words = Words(shown["text/html"])
    for part in ("step 40/60 · loss 0.33 · validation 0.86 · 3,100 tokens/s · 5 s left", "%gpt_stop reviews"):
        assert part in words.text
    assert "svg" in words.tags
    assert "image/png" not in shown


def test_before_training_mapping_examples_class_counts_lengths_and_split_are_shown(home: Path) -> None:
    text = Words(panels.bundle_of(make(phase="training"))["text/html"]).text
    for part in (
        "244 rows, 240 used; left out: 3 with empty text, 1 with no label",
        "text is column 'review' (the longest texts); label is column 'sentiment' (2 different values)",
        "192 to learn from; scoring: 48 of 240 examples held back",
        "3 to 61 tokens, median 14, 95 of 100 up to 40; none will be cut",
        "The zip broke on the first day and nobody answers.",
        "122",
        "118",
        "2 texts stand there twice",
        "this CPU has AMX",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("phase", "words"), [(None, "starting"), ("data", "reading the data"), ("model", "loading the model")]
)
def test_a_run_without_a_step_shows_what_it_does(home: Path, phase: str | None, words: str) -> None:
    run = make(phase=phase, report=None, plan=None)
    assert panels.bundle_of(run)["text/plain"] == f"reviews v1  {words}"


def test_the_end_shows_scores_beside_baselines_per_class_confusion_and_plot(home: Path) -> None:
    shown = panels.bundle_of(finished())
    assert shown["text/plain"].splitlines()[:6] == [
        "reviews v1  finished  accuracy 0.81 on 48 held-out rows  trained in 12 s",
        "TF-IDF does as well: 0.83 against 0.81 on 48 rows.",
        "                              accuracy  macro F1",
        "reviews v1 (tiny)                 0.81      0.81",
        "TF-IDF + logistic regression      0.83      0.83",
        "always the commonest label        0.50      0.33",
    ]
    words = Words(shown["text/html"])
    for part in ("Confusion matrix", "By label", "precision", "TF-IDF does as well", "%gpt_predict reviews", "0.0005"):
        assert part in words.text
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")


def test_scores_stand_with_their_intervals_and_the_calibration_error_beside(home: Path) -> None:
    def score(value: float, **facts: Any) -> dict[str, Any]:
        return {"value": value, "low": value - 0.05, "high": value + 0.1, "examples": 48, "best": 1.0, **facts}

    known = {"accuracy": score(0.8125), "macro_f1": score(0.811), "calibration_error": score(0.06, best=0.0)}
    words = {"tfidf": {"accuracy": 0.83, "macro_f1": 0.8, "scores": {"accuracy": score(0.83), "macro_f1": score(0.8)}}}
    by_label = [{**each} for each in SCORES["validation"]["per_class"]]
    unknown = {**score(0.0), "low": None, "high": None}  # no draw had such a row
    by_label[0] |= {"f1": 0.27, "scores": {"precision": score(0.87), "recall": score(0.79), "f1": unknown}}
    run = finished(validation={**SCORES["validation"], "scores": known, "per_class": by_label}, baselines=words)
    shown = panels.bundle_of(run)
    assert shown["text/plain"].splitlines()[2:6] == [
        "                                         accuracy             macro F1",
        "reviews v1 (tiny)             0.81 (0.76 to 0.91)  0.81 (0.76 to 0.91)",
        "TF-IDF + logistic regression  0.83 (0.78 to 0.93)  0.80 (0.75 to 0.90)",
        "calibration error 0.060 (0.010 to 0.160) on 48 rows",
    ]
    for part in ("0.81 (0.76 to 0.91)", "calibration error 0.060 (0.010 to 0.160) on 48 rows", "0.79 (0.74 to 0.89)"):
        assert part in Words(shown["text/html"]).text
    assert ">0.27<" in shown["text/html"], "no interval"
    told = comparison.compare([run])["scores"]
    assert ["accuracy, TF-IDF + logistic regression", "0.830 (0.780 to 0.930)"] in told
    assert ["calibration error", "0.060 (0.010 to 0.160)"] in told


def test_what_is_no_reason_to_worry_has_no_warning_sign(home: Path) -> None:
    report = {**REPORT, "remarks": ["both directions are learnt: each row counts twice"]}
    run = make(report=report, plan={**PLAN, "remarks": ["chat template: ours (it has none)"]}, phase="training")
    facts = ["Both directions are learnt: each row counts twice.", "Chat template: ours (it has none)."]
    assert progress.facts(run) == facts
    lines = live.about(run)[0]["lines"]
    assert lines[-3:] == [*facts, "⚠ 2 texts stand there twice"]
    assert [line for line in progress.preflight_lines(run) if line.startswith("note: ")] == [
        *(f"note: {each}" for each in facts),
        "note: 2 texts stand there twice",
    ]
    words = Words(panels.preflight(run)).text
    assert all(each in words for each in facts)
    assert f"⚠ {facts[0]}" not in words


def test_why_a_figure_of_the_base_model_is_missing_is_a_fact_and_no_warning(home: Path) -> None:
    run = finished(remarks=["the base model has no score: a <b>reason</b>"])
    shown = panels.bundle_of(run)
    assert "The base model has no score: a <b>reason</b>." in shown["text/plain"].splitlines()
    line = next(each for each in shown["text/html"].split("</div>") if "The base model has no score" in each)
    assert line.endswith("The base model has no score: a &lt;b&gt;reason&lt;/b&gt;.")
    assert "⚠" not in line


def test_a_static_view_is_small_and_needs_no_script_style_sheet_or_network(home: Path) -> None:
    shown = panels.bundle_of(finished())
    assert sum(len(part) for part in shown.values()) < 200_000
    words = Words(shown["text/html"])
    assert not words.tags & {"script", "style", "link", "iframe", "object", "svg"}
    for name, value in words.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value is not None
            assert value.startswith("data:image/png;base64,")


def test_every_text_of_the_table_is_escaped(home: Path) -> None:
    report, plan, scores = copy.deepcopy((REPORT, PLAN, SCORES))
    report |= {"labels": {SCRIPT: 3, "b": 4}, "text": SCRIPT, "label": SCRIPT, "source": SCRIPT, "why": SCRIPT}
    report |= {"examples": [{"text": SCRIPT, "label": SCRIPT}], "warnings": [SCRIPT], "validation_note": SCRIPT}
    plan |= {"rendered": [{"text": SCRIPT, "label": SCRIPT, "tokens": 3}], "notes": [SCRIPT + "`" + SCRIPT + "`"]}
    plan["device"] = {"choice": SCRIPT, "reason": SCRIPT, "name": SCRIPT}
    scores["validation"] |= {"labels": [SCRIPT, "b"]}
    scores["validation"]["per_class"][0]["label"] = SCRIPT
    for run in (
        make(steps=3, phase="training", report=report, plan=plan, data=SCRIPT),
        make(phase="data", report=report, plan=None),
        make(steps=60, phase="saving", outcome=FINISHED, report=report, plan=plan, scores=scores, data=SCRIPT),
        make(steps=9, phase="training", outcome={**FAILED, "message": SCRIPT}, log=SCRIPT, report=report, plan=plan),
    ):
        page = panels.bundle_of(run)["text/html"]
        words = Words(page)
        assert "script" not in words.tags
        assert not any(name.startswith("on") for name, _ in words.attributes)
        assert "window.hacked" in words.text


@pytest.mark.parametrize(
    ("outcome", "state", "said"),
    [
        (FAILED, "failed", "out of memory"),
        (STOPPED, "stopped", "Run the cell `%%gpt_finetune reviews` again to go on from there"),
        (KILLED, "interrupted", "ended by SIGTERM"),
    ],
)
def test_a_run_without_a_model_says_why_and_what_to_type(
    home: Path, outcome: dict[str, Any], state: str, said: str
) -> None:
    run = make(steps=20, phase="training", outcome=outcome, log="step 19\nthe last word\n")
    shown = panels.bundle_of(run)
    assert shown["text/plain"].startswith(f"reviews v1  {state}\n")
    assert said in shown["text/plain"]
    text = " ".join(Words(shown["text/html"]).text.split())
    assert said.replace("`", "").split(" again")[0] in text.replace("  ", " ")
    assert "%%gpt_finetune reviews" in text
    if state != "stopped":
        assert "the last word" in text
        assert str(run.log_file(1)) in text


def test_many_labels_are_cut_and_their_confusion_is_a_list_of_mistakes(home: Path) -> None:
    labels = [f"label {number}" for number in range(150)]
    scores = copy.deepcopy(SCORES)
    scores["validation"] |= {
        "labels": labels,
        "confusion": [
            [3 if true == said else int(said == true + 1) * true for said in range(150)] for true in range(150)
        ],
        "per_class": [{"label": each, "precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 3} for each in labels],
    }
    report = REPORT | {"labels": dict.fromkeys(labels, 9)}
    run = make(steps=60, phase="saving", outcome=FINISHED, scores=scores, report=report)
    shown = panels.bundle_of(run)
    text = Words(shown["text/html"]).text
    assert "Most frequent mistakes" in text
    assert "… 138 more labels" in text
    assert len(shown["text/html"]) < 200_000


def test_a_finished_run_stays_small_in_a_notebook_whatever_is_in_it(home: Path) -> None:
    long = "A very long sentence, with <marks> in it. " * 400
    labels = [f"{number} {long}" for number in range(90)]
    scores = copy.deepcopy(SCORES)
    scores["validation"] |= {
        "labels": labels,
        "confusion": [[7] * 90] * 90,
        "per_class": [{"label": each, "precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 3} for each in labels],
    }
    texts = dict.fromkeys(("source", "why", "validation_note"), long)
    report = {**REPORT, **texts, "labels": dict.fromkeys(labels, 9), "warnings": [f"{at} {long}" for at in range(200)]}
    plan = {**PLAN, "rendered": [{"text": long, "label": long, "tokens": 9}] * 3}
    plan |= {"device": {"choice": "cpu", "reason": long, "name": long}, "notes": [f"{at} {long}" for at in range(200)]}
    run = make(steps=60, phase="saving", outcome=FINISHED, scores=scores, report=report, plan=plan)
    writer = metrics.MetricsWriter(run.metrics_file(1))
    for step in range(61, 4_000):
        writer.append(made_runs.step_record(step) | {"loss": random.Random(step).random()})
        writer.append({"kind": "note", "text": f"{step} {long}", "time": 1.0})
    writer.close()
    request = files.read_json(run.folder / "request.json") or {}
    recipe = make_recipe({"data": "df", "label_words": {f"{at}": long for at in range(40)}})
    files.write_json(run.folder / "request.json", {**request, "recipe": recipe.model_dump(mode="json")})
    shown = panels.bundle_of(run)
    assert sum(len(part) for part in shown.values()) < 200_000
    text = Words(shown["text/html"]).text
    assert "Most frequent mistakes" in text
    assert "more notes" in text
    assert "Too long for a notebook, and left out; see" in text
    assert str(run.folder) in text
    assert "more lines" in shown["text/plain"]


def test_a_long_run_stays_small(home: Path) -> None:
    run = make(phase="training")
    writer = metrics.MetricsWriter(run.metrics_file(1))
    for step in range(1, 20_001):
        writer.append(made_runs.step_record(step))
    writer.close()
    assert len(panels.bundle_of(run)["text/html"]) < 40_000


def test_progress_reads_on_and_a_resumed_attempt_replaces_what_it_repeats(home: Path) -> None:
    run = make(steps=30, phase="training")
    seen = progress.Progress(run).refresh()
    assert seen.step == 30
    files.create_exclusive(run.claim_file(2), run.claim_file(1).read_bytes())
    writer = metrics.MetricsWriter(run.metrics_file(2))
    writer.append({"kind": "start", "step": 20, "steps": 60, "time": 0.0})
    writer.append(made_runs.step_record(21))
    writer.close()
    assert seen.refresh().step == 21
    assert [step["step"] for step in seen.steps] == list(range(1, 22))


def test_the_pause_before_a_resumed_attempt_does_not_count_as_time_that_a_step_takes(home: Path) -> None:
    run = make(steps=30, phase="training")
    seen = progress.Progress(run).refresh()
    assert seen.seconds_left == pytest.approx(30 * 0.25)
    files.create_exclusive(run.claim_file(2), run.claim_file(1).read_bytes())
    files.write_bytes(run.process_file(2), run.process_file(1).read_bytes())
    writer = metrics.MetricsWriter(run.metrics_file(2))
    night = 8 * 3600.0
    writer.append({"kind": "start", "step": 30, "steps": 60, "time": 0.0})
    assert seen.refresh().seconds_left is None
    for step in (31, 32, 33):
        record = made_runs.step_record(step)
        writer.append({**record, "time": record["time"] + night, "seconds": 0.1})
    writer.close()
    assert seen.refresh().seconds_left == pytest.approx(27 * 0.25)
    assert "6.8 s left" in seen.facts()
    assert seen.tokens_per_second == pytest.approx(6200)


@pytest.mark.parametrize(
    ("accuracy", "tfidf", "majority", "rows", "said"),
    [
        (0.80, 0.81, 0.5, 60, "TF-IDF does as well: 0.81 against 0.80 on 60 rows."),
        (0.60, 0.90, 0.5, 60, "TF-IDF does better: 0.90 against 0.60 on 60 rows. This GPT is not worth it here."),
        (0.82, 0.80, 0.5, 60, "Ahead of TF-IDF, 0.82 against 0.80, but on 60 rows that can be chance."),
        (0.95, 0.70, 0.5, 60, "Better than TF-IDF: 0.95 against 0.70 on 60 rows."),
        (0.50, 0.40, 0.5, 60, "No better than always saying the commonest label: 0.50 against 0.50 on 60 rows."),
        (1.00, 0.50, 0.5, 3, "Only 3 rows held back: a score of 1.00 says little. More examples would tell."),
    ],
)
def test_the_verdict_is_honest(accuracy: float, tfidf: float, majority: float, rows: int, said: str) -> None:
    scores = {
        "validation": {"rows": rows, "accuracy": accuracy},
        "baselines": {"majority": {"accuracy": majority}, "tfidf": {"accuracy": tfidf}},
    }
    assert progress.verdict(scores) == said


@pytest.mark.parametrize(
    ("base", "few", "said"),
    [
        (0.84, 0.70, ""),
        (0.85, None, " The base model does as well untrained: 0.85."),
        (0.84, 0.88, " The base model does as well shown 4 examples: 0.88."),
        (0.99, 0.97, " The base model does better untrained: 0.99. Training is not worth it here."),
    ],
)
def test_the_verdict_says_so_where_the_base_model_does_as_well(base: float, few: float | None, said: str) -> None:
    scores: dict[str, Any] = {
        "validation": {"rows": 100, "accuracy": 0.85},
        "baselines": {"majority": {"accuracy": 0.5}, "tfidf": {"accuracy": 0.6}},
        "base": {"accuracy": base, "rows": 100},
        "few_shot": None if few is None else {"accuracy": few, "rows": 100, "shots": 4},
    }
    assert progress.verdict(scores) == f"Better than TF-IDF: 0.85 against 0.60 on 100 rows.{said}"
    if "untrained" in said:
        scores["base"]["rows"] = 50
        assert progress.verdict(scores).endswith(f" The base model may do as well untrained: {base:.2f} on 50 rows.")


def test_the_verdict_says_so_where_nothing_was_held_back() -> None:
    assert progress.verdict({"validation": None, "note": "3 rows are too few to hold any back."}) == (
        "3 rows are too few to hold any back."
    )
    assert "no score" in progress.verdict({"validation": None, "note": None})


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (5, "5 s"), (12.4, "12 s"), (90, "90 s"), (200, "3 min"), (4800, "1 h 20 min")],
)
def test_times_are_told_in_words(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_the_list_of_runs_shows_state_model_rows_score_time_and_size(home: Path) -> None:
    finished()
    make("other", steps=9, phase="training")
    table = panels.RunTable(progress.run_rows(RunStore().runs()))
    head, *lines = repr(table).splitlines()
    assert head.split() == ["run", "state", "model", "rows", "score", "trained", "in", "size", "started"]
    assert re.match(r"other v1 +running +tiny +240 ", next(line for line in lines if line.startswith("other")))
    assert re.match(
        r"reviews v1 +finished +tiny +240 +0.81 +12 s +\d+ kB ", next(line for line in lines if "0.81" in line)
    )
    assert "0.81" in Words(table._repr_html_()).text


def test_an_empty_list_of_runs_says_how_to_make_one(home: Path) -> None:
    table = panels.RunTable([])
    assert repr(table) == "There are no runs yet. A cell `%%gpt_finetune NAME` makes one."
    assert "%%gpt_finetune NAME" in Words(table._repr_html_()).text


def test_a_live_view_is_followed_by_one_thread_and_ends_as_a_static_one(
    home: Path, published: list[dict[str, Any]]
) -> None:
    run = make(steps=5, phase="training")
    views = [panels.LiveView("reviews").show() for _ in range(3)]
    for view in views:
        view.refresh(run)
        view.follow()
    assert [thread.name for thread in threading.enumerate()].count("gptx-live") == 1
    before = len(published)
    writer = metrics.MetricsWriter(run.metrics_file(1))
    for step in range(6, 31):
        writer.append(made_runs.step_record(step))
        time.sleep(0.04)
    assert 3 <= len(published) - before <= 3 * 4  # one second, three views, at most four updates a second each
    files.write_json(run.scores_file, SCORES)
    files.write_json(run.outcome_file(1), {"exit_status": 0, "signal": None, **FINISHED})
    deadline = time.monotonic() + 20
    while "gptx-live" in [thread.name for thread in threading.enumerate()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    last = published[-1]
    assert last["update"]
    assert last["data"]["text/plain"].startswith("reviews v1  finished")
    assert "image/png" in last["data"]


def test_a_bug_in_a_live_view_is_shown_with_its_traceback(
    home: Path, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(steps=5, phase="training")
    view = panels.LiveView("reviews").show()
    view.refresh(run)
    monkeypatch.setattr(panels, "live", lambda *_, **__: 1 / 0)
    view.step()
    assert "ZeroDivisionError" in published[-1]["data"]["text/plain"]
    assert view.done


def test_showing_a_run_imports_neither_torch_nor_pandas_nor_pyplot(home: Path) -> None:
    run = finished()
    code = (
        "import sys; from pathlib import Path; from gptx_nb.runs import Run; from gptx_nb.views import panels\n"
        f"panels.bundle_of(Run(Path({str(run.folder)!r})))\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib.pyplot', 'ipywidgets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
