"""A run is a directory: names are checked, versions counted, and the state is derived from evidence alone."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gptx_nb import files, process
from gptx_nb.errors import RecipeError, RunNotFound
from gptx_nb.metrics import MetricsWriter
from gptx_nb.process import Process
from gptx_nb.recipe import Recipe
from gptx_nb.run_files import home
from gptx_nb.runs import Run, RunStore
from gptx_nb.sources import Source

REQUEST = {
    "recipe": Recipe(epochs=2).model_dump(mode="json"),
    "source": {"train": Source("file", "a.csv", "0", "/a.csv").to_json(), "validation": None},
    "digest": "0",
    "code": "0.1.0",
}


def fill(folder: Path) -> None:
    files.write_json(folder / "request.json", REQUEST)


def gone() -> Process:
    """Evidence of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    evidence = Process.of(process.pid)
    process.wait()
    return evidence


HERE = Process.of(os.getpid())
ELSEWHERE = replace(HERE, host="another host", machine="another", boot="another boot", pid=1)


def claim(run: Run, claimant: Process, worker: Process | None = None, attempt: int = 1) -> None:
    files.create_exclusive(run.claim_file(attempt), json.dumps(claimant.to_json()).encode())
    if worker:
        files.write_json(run.process_file(attempt), worker.to_json())


@pytest.fixture
def run(home: Path) -> Run:
    return RunStore().create("demo", fill)


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPTX_HOME", "~/here")
    assert home() == Path.home() / "here"
    monkeypatch.delenv("GPTX_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert home() == tmp_path / "gptx_nb"


def test_versions_are_counted_and_found(home: Path) -> None:
    store = RunStore()
    assert store.names() == []
    assert store.latest("demo") is None
    first, second = store.create("demo", fill), store.create("demo", fill)
    other = store.create("other", fill)
    assert (first.version, second.version) == (1, 2)
    assert store.runs() == [first, second, other]
    assert store.find("demo") == store.find("demo/2") == store.find("demo", 2) == second
    store.remove(second)
    assert store.find("demo") == first
    assert store.next_version("demo") == 2


def test_what_is_not_there_is_answered_with_what_is(home: Path) -> None:
    store = RunStore()
    with pytest.raises(
        RunNotFound, match=r"no run is called 'demo'. There are no runs yet. A cell `%%gpt_finetune demo`"
    ):
        store.find("demo")
    store.create("reviews", fill)
    with pytest.raises(RunNotFound, match=r"no run is called 'review'. Did you mean 'reviews'\? Runs: reviews."):
        store.find("review")
    with pytest.raises(RunNotFound, match="run 'reviews' has no version 7; it has 1"):
        store.find("reviews", 7)
    with pytest.raises(RunNotFound, match="reviews/x: a version is a number"):
        store.find("reviews/x")
    with pytest.raises(RecipeError, match=r"'\.\./x' cannot name a run"):
        store.find("../x")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "x y"])
def test_no_name_leaves_the_folder_of_runs(home: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot name a run"):
        RunStore().create(name, fill)
    assert not home.exists()


def test_a_version_that_is_half_made_is_no_version(home: Path) -> None:
    def broken(folder: Path) -> None:
        files.write_text(folder / "source" / "train.jsonl", "{}")
        raise OSError("disk full")

    store = RunStore()
    with pytest.raises(OSError, match="disk full"):
        store.create("demo", broken)
    assert store.names() == []
    assert list((store.root / "demo").iterdir()) == []


def test_a_version_that_another_has_made_is_told_where_a_number_was_asked_for(home: Path) -> None:
    store = RunStore()
    store.create("demo", fill, version=1)
    with pytest.raises(FileExistsError):
        store.create("demo", fill, version=1)
    assert store.create("demo", fill).version == 2


def test_remains_of_a_removed_version_do_not_block_the_next(home: Path) -> None:
    store = RunStore()
    remains = store.root / "demo" / "1"
    remains.mkdir(parents=True)
    (remains / "outcome-1.json").write_text("{}")
    assert store.create("demo", fill).version == 2


def test_a_run_is_starting_until_its_worker_is_there(run: Run) -> None:
    assert run.state() == "starting"
    claim(run, HERE)
    assert run.state() == "starting"
    files.write_json(run.process_file(1), HERE.to_json())
    assert run.state() == "running"
    run.request_stop()
    assert run.state() == "stopping"
    run.withdraw_stop()
    assert run.state() == "running"
    assert run.active
    assert repr(run) == "<Run demo version 1: running>"


def test_nobody_leaves_a_request_for_a_run_that_was_deleted(run: Run) -> None:
    RunStore().remove(run)
    with pytest.raises(RunNotFound, match=r"^run demo version 1 was deleted: it is not in .*demo/1 any more$"):
        run.request_stop()
    assert not run.folder.exists()
    run.folder.mkdir(parents=True)  # by a worker that goes on
    with pytest.raises(RunNotFound):
        run.request_stop()
    assert not run.stop_file.exists()


def test_a_run_goes_on_while_either_process_lives(run: Run) -> None:
    claim(run, gone(), HERE)
    assert run.state() == "running"


def test_a_run_without_processes_or_words_was_interrupted(run: Run) -> None:
    claim(run, gone(), gone())
    assert run.state() == "interrupted"
    outcome = run.outcome()
    assert outcome is not None
    assert outcome["reason"] == "lost"


def test_a_run_of_another_boot_was_interrupted(run: Run) -> None:
    before = replace(HERE, boot="an earlier boot")
    claim(run, before, before)
    assert run.state() == "interrupted"


@pytest.mark.parametrize(
    "elsewhere",
    [
        ELSEWHERE,
        replace(HERE, host="another container", space="pid:[1]"),  # on the same computer
        replace(HERE, host="another container", boot="another boot"),  # of the same image, with its machine id
    ],
    ids=["computer", "container", "image"],
)
def test_a_run_elsewhere_goes_on_while_its_files_change_and_was_interrupted_once_they_do_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, elsewhere: Process
) -> None:
    monkeypatch.setattr(process, "SILENCE", 0.5)
    claim(run, elsewhere, elsewhere)
    assert (run.state(), run.alive(1)) == ("elsewhere", None)
    for _ in range(8):  # longer in all than it may be silent
        time.sleep(0.1)
        files.touch(run.process_file(1))
        assert (run.state(), run.alive(1)) == ("elsewhere", True)
    time.sleep(0.55)
    assert run.state() == "interrupted"
    outcome = run.outcome()
    assert outcome is not None
    assert outcome["reason"] == "lost"
    files.write_json(run.outcome_file(1), {"reason": "finished", "exit_status": 0, "signal": None})
    assert run.state() == "finished"


def test_a_clock_that_is_wrong_on_the_other_computer_does_not_matter(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SILENCE", 0.2)
    claim(run, ELSEWHERE, ELSEWHERE)
    for path in (run.claim_file(1), run.process_file(1)):
        os.utime(path, (1.0, 1.0))
    assert run.state() == "elsewhere"
    os.utime(run.process_file(1), (2.0, 2.0))
    assert run.alive(1)
    os.utime(run.process_file(1), (2e9, 2e9))
    assert run.alive(1)
    time.sleep(0.25)
    assert run.state() == "interrupted"


def test_a_computer_that_was_renamed_knows_its_run(run: Run) -> None:
    claim(run, replace(HERE, host="its name before"))
    assert run.state() == "starting"
    claim(run, replace(gone(), host="its name before"), attempt=2)
    assert run.state() == "interrupted"


def test_a_claim_that_is_still_empty_belongs_to_somebody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SILENCE", 0.2)
    run.claim_file(1).parent.mkdir()
    run.claim_file(1).touch()
    assert run.state() == "starting"
    time.sleep(0.25)
    assert run.state() == "interrupted"


def test_an_attempt_that_was_refused_leaves_the_run_as_it_was(run: Run) -> None:
    for attempt, reason in ((1, "stopped"), (2, "mistake")):
        claim(run, gone(), gone(), attempt)
        files.write_json(run.outcome_file(attempt), {"reason": reason, "exit_status": 3, "signal": None})
    assert run.state() == "stopped"
    outcome = run.outcome()
    assert outcome is not None
    assert outcome["reason"] == "mistake"


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("finished", "finished"),
        ("stopped", "stopped"),
        ("mistake", "failed"),
        ("failed", "failed"),
        ("out of memory", "failed"),
        ("killed", "interrupted"),
        ("lost", "interrupted"),
    ],
)
def test_the_outcome_decides_the_state(run: Run, reason: str, state: str) -> None:
    claim(run, gone(), gone())
    files.write_json(run.outcome_file(1), {"reason": reason, "exit_status": None, "signal": None})
    assert run.state() == state


def test_the_workers_word_counts_over_the_supervisors(run: Run) -> None:
    claim(run, gone(), gone())
    files.write_json(run.outcome_file(1), {"reason": "failed", "exit_status": 1, "signal": None, "message": None})
    files.write_json(run.end_file(1), {"reason": "out of memory", "error": "OutOfMemoryError", "message": "2 GB"})
    assert run.outcome() == {
        "reason": "out of memory",
        "error": "OutOfMemoryError",
        "message": "2 GB",
        "exit_status": 1,
        "signal": None,
    }


def test_a_later_attempt_replaces_the_outcome_of_an_earlier_one(run: Run) -> None:
    claim(run, gone(), gone())
    claim(run, HERE, HERE, attempt=2)
    assert run.attempts() == 2
    assert run.outcome() is None
    assert run.state() == "running"


def test_a_resumed_attempt_replaces_the_steps_it_repeats(run: Run) -> None:
    for attempt, start, steps in ((1, 0, (1, 2, 3)), (2, 2, (3, 4))):
        claim(run, gone(), gone(), attempt)
        writer = MetricsWriter(run.metrics_file(attempt))
        writer.append({"kind": "start", "step": start})
        for step in steps:
            writer.append({"kind": "step", "step": step, "attempt": attempt})
        writer.close()
    steps_of = [(each["step"], each["attempt"]) for each in run.history() if each["kind"] == "step"]
    assert steps_of == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_what_was_asked_is_read_back_until_the_worker_has_resolved_it(run: Run) -> None:
    assert run.recipe() == Recipe(epochs=2)
    assert run.sources()["train"] == Source("file", "a.csv", "0", "/a.csv")
    assert run.sources()["validation"] is None
    files.write_text(run.recipe_file, Recipe(epochs=2, text="review").to_yaml())
    assert run.recipe().text == "review"
    assert run.plan() is run.report() is run.scores() is None
    claim(run, gone())
    claim(run, gone(), attempt=2)
    files.write_json(run.settings_file(2), {"device": "cpu", "checkpoint_every": 5.0})
    assert (run.recipe().text, run.recipe().device, run.recipe().checkpoint_every) == ("review", "cpu", 5.0)


def test_only_the_end_of_a_long_log_is_read(run: Run) -> None:
    assert run.log_tail() == ""
    run.log_file(1).write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert run.log_tail(2) == "line 99998\nline 99999"
