"""The live view as a widget: curves as numbers, what is sent and what not, buttons, and when a widget is made."""

import array
import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_runs
import pytest
from made_runs import FINISHED, PLAN, REPORT, SCRIPT, make

from gptx_nb import curves, files, launch, metrics, progress, samples
from gptx_nb.errors import RunNotFound, UsageError
from gptx_nb.process import Process
from gptx_nb.runs import Run, RunStore
from gptx_nb.trash import Trash
from gptx_nb.views import live, panels


def unpacked(content: bytes) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Return the rows of steps and of scores."""
    numbers = array.array("f")
    numbers.frombytes(content)
    steps, scores = int(numbers[0]), int(numbers[1])
    assert len(numbers) == 2 + 5 * steps + 3 * scores
    rows = [tuple(numbers[at : at + 5]) for at in range(2, 2 + 5 * steps, 5)]
    return rows, [tuple(numbers[at : at + 3]) for at in range(2 + 5 * steps, len(numbers), 3)]


def add(run: Run, attempt: int, *records: dict[str, Any]) -> None:
    writer = metrics.MetricsWriter(run.metrics_file(attempt))
    for record in records:
        writer.append(record)
    writer.close()


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_curves_are_whole_first_and_then_what_was_added(home: Path) -> None:
    run = make(steps=24, phase="training")
    seen = progress.Progress(run).refresh()
    told = curves.Curves(seen)
    steps, scores = unpacked(told.whole())
    assert [row[0] for row in steps] == list(range(1, 25))
    assert steps[0][2:] == pytest.approx((5e-4, 1.0, 3100.0))
    assert [row[0] for row in scores] == [12, 24]
    assert told.added() is None
    add(run, 1, made_runs.step_record(25), {**made_runs.step_record(26), "loss": None})
    seen.refresh()
    follows, content = told.added() or (0.0, b"")
    steps, scores = unpacked(content)
    assert (follows, [row[0] for row in steps], scores) == (None, [25, 26], [])
    assert math.isnan(steps[1][1])
    assert told.added() is None


def test_a_resumed_attempt_takes_back_steps_and_scores_after_its_checkpoint(home: Path) -> None:
    run = make(steps=26, phase="training")
    seen = progress.Progress(run).refresh()
    told = curves.Curves(seen)
    told.whole()
    files.create_exclusive(run.claim_file(2), run.claim_file(1).read_bytes())
    start = {"kind": "start", "step": 20, "steps": 60, "time": 0.0}
    add(run, 2, start, made_runs.step_record(21))
    seen.refresh()
    follows, content = told.added() or (0.0, b"")
    steps, scores = unpacked(content)
    assert follows == 20
    assert [row[0] for row in steps] == [21]
    assert scores == []


def test_a_very_long_run_is_sent_in_means_of_neighbours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST", 100)
    seen = progress.Progress(make(steps=250, phase="training")).refresh()
    steps, _ = unpacked(curves.Curves(seen).whole())
    assert len(steps) == 84
    assert steps[-1][0] == 250
    assert steps[0][1] == pytest.approx(sum(made_runs.step_record(step)["loss"] for step in (1, 2, 3)) / 3, rel=1e-5)


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_every_number_has_its_place_from_the_first_moment_on(home: Path) -> None:
    empty = live.numbers(progress.Progress(make(phase=None)).refresh())
    full = live.numbers(progress.Progress(make("other", steps=40, phase="training")).refresh())
    assert dict(full) == {
        "step": "40 of 60",
        "time left": "5 s",
        "loss": "0.33",
        "held-out loss": "0.39",
        "accuracy": "0.858",
        "learning rate": "5.00e-04",
        "gradient norm": "1",
        "tokens/s": "3,100",
        "device use": "–",
        "memory": "–",
    }
    assert [name for name, _ in empty] == [name if name != "accuracy" else "score" for name, _ in full]
    assert {value for _, value in empty} == {"–"}


@pytest.mark.parametrize(
    ("changes", "buttons"),
    [
        ({"phase": "training", "steps": 3}, ["stop", "kill", "clone"]),
        ({"phase": "training", "steps": 3, "outcome": made_runs.STOPPED}, ["resume", "clone"]),
        ({"phase": "training", "steps": 3, "outcome": made_runs.KILLED}, ["resume", "clone"]),
        ({"phase": "saving", "steps": 60, "outcome": FINISHED, "scores": made_runs.SCORES}, ["clone"]),
    ],
)
def test_a_run_has_the_buttons_that_do_something(home: Path, changes: dict[str, Any], buttons: list[str]) -> None:
    assert live.can(progress.Progress(make(**changes)).refresh()) == buttons


def test_what_was_found_out_before_training_is_plain_text(home: Path) -> None:
    report = REPORT | {"labels": {SCRIPT: 3, "b": 4}, "warnings": [SCRIPT]}
    told = live.about(make(phase="training", report=report, plan=PLAN))
    assert [part["title"] for part in told] == ["Data", "What was chosen, and why"]
    counts = told[0]["tables"][-1]
    assert counts["rows"][1] == [progress.one_line(SCRIPT, 60), "3", ""]
    assert counts["bars"] == [1.0, 0.75]
    assert f"⚠ {SCRIPT}" in told[0]["lines"]
    assert json.loads(json.dumps(told)) == told


# ---- what is sent ---------------------------------------------------------------------------------------------------


class Sent(live.RunWidget):
    """A widget that keeps what it sends."""

    def __init__(self, name: str) -> None:
        self.messages: list[dict[str, Any]] = []
        super().__init__(name)

    def send(self, content: Any, buffers: Any = None) -> None:
        self.messages.append({**content, "buffers": buffers})


@pytest.fixture
def idle() -> Iterator[None]:
    """No cell runs, as far as views know."""
    yield
    live.cell_ends()


def test_a_widget_has_everything_first_and_then_sends_increments(home: Path, idle: None) -> None:
    run = make(steps=5, phase="training")
    widget = Sent("reviews")
    widget.step(run)
    assert len(unpacked(widget.history)[0]) == 5
    assert widget.head["doing"] == "training"
    assert [part["title"] for part in widget.about] == ["Data", "What was chosen, and why"]
    widget.step(run)
    add(run, 1, made_runs.step_record(6))
    widget.step(run)
    assert set(widget.messages[-1]["head"]) == {"share", "numbers"}  # what has changed, and nothing else
    assert [(each["kind"], each["number"]) for each in widget.messages][-1:] == [("more", len(widget.messages))]
    assert unpacked(widget.messages[-1]["buffers"][0])[0][0][0] == 6
    count = len(widget.messages)
    widget.step(run)
    assert len(widget.messages) == count  # nothing is new
    assert len(unpacked(widget.history)[0]) == 5  # it is not sent again
    state = widget.get_state()  # what a page asks for that is loaded again
    assert [row[0] for row in unpacked(state["history"])[0]] == [1, 2, 3, 4, 5, 6]
    assert state["number"] == widget.messages[-1]["number"]
    assert dict(state["head"]["numbers"])["step"] == "6 of 60"
    add(run, 1, made_runs.step_record(7))
    widget.step(run)
    assert unpacked(widget.messages[-1]["buffers"][0])[0][0][0] == 7
    assert widget.messages[-1]["number"] == state["number"] + 1


def test_nothing_is_sent_for_a_view_that_nobody_sees_and_everything_once_somebody_does(home: Path, idle: None) -> None:
    run = make(steps=5, phase="training")
    widget = Sent("reviews")
    live.cell_ends()
    widget.step(run)
    widget._hear(widget, {"kind": "seen", "view": "a", "seen": False}, [])
    count = len(widget.messages)
    add(run, 1, made_runs.step_record(6), made_runs.step_record(7))
    widget.step(run)
    assert len(widget.messages) == count
    assert len(unpacked(widget.history)[0]) == 5
    widget._hear(widget, {"kind": "seen", "view": "a", "seen": True}, [])
    widget.step(run)
    assert len(unpacked(widget.history)[0]) == 7


def test_while_a_cell_runs_every_view_counts_as_seen_for_no_word_of_it_arrives(home: Path, idle: None) -> None:
    run = make(steps=5, phase="training")
    widget = Sent("reviews")
    widget.step(run)
    widget._hear(widget, {"kind": "seen", "view": "a", "seen": False}, [])
    live.cell_begins()
    add(run, 1, made_runs.step_record(6))
    widget.step(run)
    assert widget.messages[-1]["kind"] == "more"


def test_the_stop_button_leaves_its_request_in_the_runs_directory(home: Path, idle: None) -> None:
    run = make(steps=5, phase="training")
    widget = Sent("reviews")
    widget.step(run)
    widget._hear(widget, {"kind": "act", "action": "stop"}, [])
    assert run.stop_file.exists()
    assert widget.messages[-1]["said"] == "It saves and stops at its next step."


def test_stop_now_ends_the_process_of_the_run_and_nothing_else(home: Path) -> None:
    run = make(steps=5, phase="training")
    with subprocess.Popen(["sleep", "60"], process_group=0) as worker:
        files.write_bytes(run.process_file(1), json.dumps(Process.of(worker.pid).to_json()).encode())
        said: list[str] = []
        live.act(run, "kill", said.append)
        assert worker.wait(10) == -signal.SIGKILL
    advice = "Run its cell again to go on from its last checkpoint: `%%gpt_finetune reviews`"
    assert said == [f"run reviews version 1 was ended. {advice}"]


def test_stop_now_is_refused_where_there_is_nothing_to_end(home: Path) -> None:
    run = make(steps=5, phase="training", outcome=made_runs.STOPPED)
    with pytest.raises(UsageError, match="reviews version 1 has no process to end: it is stopped"):
        launch.kill(run)
    assert Process.of(os.getpid()).alive()


def test_a_run_that_has_finished_cannot_be_resumed_and_the_button_says_so(home: Path) -> None:
    run = make(steps=60, phase="saving", outcome=FINISHED, scores=made_runs.SCORES)
    said: list[str] = []
    live._resume(run, said.append)
    assert said == ["run reviews version 1 cannot be resumed: it is finished"]


def test_the_clone_button_gets_the_cell_that_asks_for_the_run(home: Path, idle: None) -> None:
    run = make(steps=5, phase="training", data="reviews.csv")
    widget = Sent("reviews")
    widget.step(run)
    widget._hear(widget, {"kind": "act", "action": "clone"}, [])
    assert widget.messages[-1]["kind"] == "cell"
    assert widget.messages[-1]["cell"] == "%%gpt_finetune reviews\ndata: reviews.csv\n"


def test_a_run_that_is_deleted_while_it_is_watched_is_told_as_such_and_its_buttons_do_nothing(
    home: Path, idle: None
) -> None:
    run = make(steps=5, phase="training")
    widget = Sent("reviews")
    widget.step(run)
    RunStore().remove(run)
    with pytest.raises(RunNotFound, match=r"^run reviews version 1 was deleted: it is not in .*reviews/1 any more$"):
        widget.step(run)
    told = widget.messages[-1]["head"]
    assert (told["state"], told["doing"], told["active"], told["can"]) == ("deleted", "deleted", False, [])
    assert dict(told["numbers"]) | {"step": "5 of 60", "tokens/s": "–", "time left": "–"} == dict(told["numbers"])
    for action in ("stop", "kill", "resume", "clone"):
        widget._hear(widget, {"kind": "act", "action": action}, [])
        assert "version 1 was deleted" in widget.messages[-1]["said"], action
    assert not run.folder.exists()  # nobody has left a request there
    state = widget.get_state()  # a page that is loaded again
    assert state["head"]["state"] == "deleted"
    assert [part["title"] for part in state["about"]] == ["Data", "What was chosen, and why"]
    assert len(unpacked(state["history"])[0]) == 5


def test_what_is_taken_back_from_the_trash_or_made_anew_in_its_place_is_shown_again(home: Path, idle: None) -> None:
    run = make(steps=5, phase="training", outcome=made_runs.STOPPED)
    widget = Sent("reviews")
    widget.step(run)
    thrown = Trash().put(run)
    with pytest.raises(RunNotFound):
        widget.step(run)
    Trash().restore(thrown)
    widget.step(run)
    told = widget.messages[-1]["head"]
    assert (told["state"], told["can"]) == ("stopped", ["resume", "clone"])
    RunStore().remove(run)
    assert make(steps=2, phase="training") == run
    widget.step(run)
    assert [row[0] for row in unpacked(widget.history)[0]] == [1, 2]


def test_a_page_that_says_nothing_while_it_could_be_heard_draws_no_widgets(
    home: Path, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "DRAWN", 0.0)
    widget = Sent("reviews")
    assert not widget.is_not_drawn  # its cell still runs
    live.cell_ends()
    assert widget.is_not_drawn
    widget._hear(widget, {"kind": "seen", "view": "a", "seen": False}, [])
    assert not widget.is_not_drawn


def test_a_view_that_was_seen_long_ago_is_sent_nothing_for_its_page_may_be_closed(
    home: Path, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(steps=5, phase="training")
    widget = Sent("reviews")
    live.cell_ends()
    widget._hear(widget, {"kind": "seen", "view": "a", "seen": True}, [])
    widget.step(run)
    monkeypatch.setattr(live, "ALIVE", 0.0)
    count = len(widget.messages)
    add(run, 1, made_runs.step_record(6))
    widget.step(run)
    assert len(widget.messages) == count


# ---- fixed held-out rows --------------------------------------------------------------------------------------------


def said(share: float, text: str = "Nice.") -> dict[str, Any]:
    label = "good" if share > 0.5 else "bad"
    return {"text": text, "label": "good", "said": label, "share": share}


def test_held_out_rows_show_what_is_said_of_them_now_and_the_course_of_it() -> None:
    told = samples.latest([{"samples": [said(0.25), said(0.5)]}, {"samples": []}, {"samples": [said(0.75), said(0.5)]}])
    assert told.head == ("held-out row", "label", "says", "probability of its label")
    assert list(told.rows) == [("Nice.", "good", "good", "0.75"), ("Nice.", "good", "bad", "0.50")]
    assert told.courses == [[0.25, 0.75], [0.5, 0.5]]
    assert samples.latest([{"step": 1}]) == samples.Samples()
    long = samples.latest([{"samples": [said(at / 100)]} for at in range(100)])
    assert (len(long.courses[0]), long.courses[0][-1]) == (25, 0.99)


def test_the_probability_of_a_held_out_row_stands_right_as_numbers_do(home: Path) -> None:
    run = make(steps=5, phase="training")
    add(run, 1, {"kind": "evaluation", "step": 5, "samples": [said(0.25)]})
    told = live.sample_table(progress.Progress(run).refresh()) or {}
    assert [told["head"][at] for at in told["right"]] == ["probability of its label"]


def test_held_out_rows_of_a_model_that_writes_show_its_answers(home: Path) -> None:
    run = make(steps=5, phase="training")
    answer = {"asked": SCRIPT, "right": "4", "answer": "5"}
    add(run, 1, {"kind": "evaluation", "step": 5, "samples": [answer]})
    assert live.sample_table(progress.Progress(run).refresh()) == {
        "title": "What it says of held-out rows now",
        "head": ["asked", "right", "answered"],
        "rows": [[SCRIPT, "4", "5"]],
        "right": [],
    }


def test_beginnings_that_a_pretrained_model_goes_on_with_are_not_called_held_out_rows() -> None:
    told = samples.latest([{"samples": [{"prompt": "The cell is", "text": "small"}]}])
    assert (told.title, list(told.rows)) == ("How it goes on now", [("The cell is", "small")])


# ---- figures --------------------------------------------------------------------------------------------------------


def test_a_run_plots_its_curves_as_a_figure(home: Path) -> None:
    run = make(steps=24, phase="saving", outcome=FINISHED, scores=made_runs.SCORES)
    figure = run.plot()
    axes = {each.get_title(): each for part in figure.subfigs for each in part.axes}
    assert list(axes) == ["loss", "accuracy on what was held out", "learning rate", "gradient norm", "tokens/s"]
    labels = [line.get_label() for line in axes["accuracy on what was held out"].lines]
    assert labels == ["this model", "TF-IDF", "majority"]
    assert list(axes["loss"].lines[0].get_xdata()) == list(range(1, 25))


# ---- in a cell's output ---------------------------------------------------------------------------------------------


def test_a_client_that_names_no_cell_gets_no_widget(home: Path) -> None:
    assert not live.draws_widgets()
    assert live.WIDGET not in panels.bundle_of(make(steps=5, phase="training"))
