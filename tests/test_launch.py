"""What running a cell does: start, attach, resume, show; one attempt for many cells; nothing lost, nothing left behind.

Most tests let a worker of a few lines act in place of the real one, in real processes; the last ones train.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kernels
import pandas as pd
import pytest
from waiting import until

import gptx_nb
from gptx_nb import api, files, launch, process
from gptx_nb.errors import DataError, DeviceError, ModelError, RecipeError, RunFailed, RunNotFound, UsageError
from gptx_nb.process import Process
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run, RunStore

WORKER = """
import os, sys, time
from pathlib import Path
from gptx_nb import files
from gptx_nb.metrics import MetricsWriter
from gptx_nb.run_files import home
from gptx_nb.runs import Run

run, attempt = Run(Path(sys.argv[1])), int(sys.argv[2])
how = (home() / "behaviour").read_text()
metrics = MetricsWriter(run.metrics_file(attempt))

def end(reason, status, error=None, message=None):
    files.write_json(run.end_file(attempt), {"reason": reason, "error": error, "message": message})
    sys.exit(status)

metrics.append({"kind": "phase", "phase": "data", "time": time.time()})
if how == "mistake":
    end("mistake", 2, "DataError", "reviews.csv has no column 'x'")
if how == "crash early":
    raise ValueError("a bug")
files.write_json(run.plan_file, {})
metrics.append({"kind": "phase", "phase": "training", "time": time.time()})
print("training", how, flush=True)
if how == "killed":
    os.kill(os.getpid(), 9)
if how == "crash":
    end("failed", 1, "FloatingPointError", "the loss became nan at step 3")
while how in ("train", "deaf"):
    time.sleep(0.02)
    if how == "train" and run.stop_file.exists():
        end("stopped", 3)
run.model.mkdir(exist_ok=True)
end("finished", 0)
"""
SUPERVISOR = "import sys; from gptx_nb import supervisor; sys.exit(supervisor.main(sys.argv[1:3], sys.argv[3:]))"
RECIPE = Recipe(examples=[["Good", "positive"], ["Bad", "negative"]])
FRAME = pd.DataFrame({"text": ["Good", "Bad"], "label": ["positive", "negative"]})


def supervisor_of_a_stand_in(run: Run, attempt: int) -> list[str]:
    where = [str(run.folder), str(attempt)]
    return [sys.executable, "-c", SUPERVISOR, *where, sys.executable, "-c", WORKER, *where]


@pytest.fixture
def behave(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Say how the worker that stands in for the real one shall behave from now on."""
    monkeypatch.setattr(launch, "_supervisor_command", supervisor_of_a_stand_in)
    home.mkdir()

    def behave(how: str) -> None:
        (home / "behaviour").write_text(how)

    behave("finish")
    yield behave
    behave("finish")
    for run in RunStore().runs():
        for attempt in range(1, run.attempts() + 1):
            for evidence in run.processes(attempt).values():
                if evidence.alive():
                    os.kill(evidence.pid, signal.SIGKILL)


def ended(run: Run) -> str:
    until(lambda: not run.active)
    return run.state()


def test_a_new_name_makes_version_one(behave: Callable[[str], None], home: Path) -> None:
    launched = launch.train("demo", RECIPE)
    run = launched.run
    assert (launched.action, run.name, run.version) == ("new", "demo", 1)
    assert run.request()["recipe"]["examples"] == [["Good", "positive"], ["Bad", "negative"]]
    assert run.request()["code"] == gptx_nb.__version__
    assert (run.source / "train.jsonl").read_text().count("\n") == 2
    assert ended(run) == "finished"
    assert list((home / "staging").iterdir()) == []


def test_waiting_ends_with_the_run_and_shows_progress(behave: Callable[[str], None]) -> None:
    seen: list[Run] = []
    run = launch.train("demo", RECIPE, wait=True, progress=seen.append).run
    assert run.state() == "finished"
    assert seen
    assert set(seen) == {run}


def test_a_cell_run_again_attaches_while_the_run_trains(behave: Callable[[str], None]) -> None:
    behave("train")
    first = launch.train("demo", RECIPE)
    again = launch.train("demo", RECIPE)
    assert (again.action, again.run) == ("attached", first.run)
    assert again.note == "run demo version 1 is training already: showing it"
    assert first.run.attempts() == 1


def test_a_cell_run_again_shows_the_finished_run(behave: Callable[[str], None]) -> None:
    first = launch.train("demo", RECIPE, wait=True)
    again = launch.train("demo", RECIPE, wait=True)
    assert (again.action, again.run) == ("shown", first.run)
    assert first.run.attempts() == 1


def test_settings_that_do_not_matter_make_no_new_version(behave: Callable[[str], None]) -> None:
    launch.train("demo", RECIPE, wait=True)
    other = RECIPE.model_copy(update={"checkpoint_every": 5.0, "device": "cpu"})
    assert launch.train("demo", other).action == "shown"


def test_anything_that_matters_makes_the_next_version_and_is_named(
    behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = FRAME.copy()
    recipe = Recipe(data="df")
    launch.train("demo", recipe, data=frame, wait=True)
    frame.loc[0, "text"] = "Very good"
    second = launch.train("demo", recipe, data=frame, wait=True)
    assert (second.action, second.run.version) == ("new", 2)
    assert second.note == "changed since version 1: the examples"
    third = launch.train("demo", recipe.model_copy(update={"epochs": 2.0}), data=frame, wait=True)
    assert third.note == "changed since version 2: epochs"
    code = gptx_nb.__version__
    monkeypatch.setattr(gptx_nb, "__version__", "9.9")
    fourth = launch.train("demo", recipe.model_copy(update={"epochs": 2.0}), data=frame, wait=True)
    assert fourth.note == f"changed since version 3: gptx_nb ({code} before, 9.9 now)"
    own = launch.train("demo", recipe, data=frame, validation=FRAME, wait=True)
    assert own.note == "changed since version 4: epochs, the validation table"
    assert own.run.version == 5


def test_a_run_is_known_again_where_its_tables_have_moved(behave: Callable[[str], None], tmp_path: Path) -> None:
    def of(folder: str, rows: pd.DataFrame = FRAME) -> Recipe:
        (tmp_path / folder).mkdir(exist_ok=True)
        FRAME.to_csv(tmp_path / folder / "train.csv", index=False)
        rows.to_csv(tmp_path / folder / "test.csv", index=False)
        return Recipe(data=str(tmp_path / folder / "train.csv"), validation=str(tmp_path / folder / "test.csv"))

    launch.train("demo", of("here"), wait=True)
    assert launch.train("demo", of("there")).action == "shown"
    other = launch.train("demo", of("elsewhere", FRAME[:1]), wait=True)
    assert other.note == "changed since version 1: the validation table"


def test_a_run_that_still_trains_is_told_beside_its_successor(behave: Callable[[str], None]) -> None:
    behave("train")
    launch.train("demo", RECIPE)
    second = launch.train("demo", RECIPE.model_copy(update={"seed": 1}))
    assert second.action == "new"
    assert second.note == "changed since version 1: seed. Version 1 still trains; `%gpt_stop demo/1` stops it"
    assert RunStore().find("demo/1").state() == "running"


@pytest.mark.parametrize(("how", "state"), [("train", "stopped"), ("killed", "interrupted"), ("crash", "failed")])
def test_a_run_that_broke_off_is_resumed_as_the_next_attempt(
    behave: Callable[[str], None], how: str, state: str
) -> None:
    behave(how)
    if how == "train":
        run = launch.train("demo", RECIPE).run
        launch.stop(run)
    else:
        with pytest.raises(RunFailed):
            launch.train("demo", RECIPE, wait=True)
        run = RunStore().find("demo")
    assert run.state() == state
    behave("finish")
    again = launch.train("demo", RECIPE, wait=True)
    assert (again.action, again.run, run.attempts()) == ("resumed", run, 2)
    assert again.note == f"run demo version 1 was {state}: going on with attempt 2"
    assert run.state() == "finished"
    assert not run.stop_file.exists()


def test_device_and_checkpoints_may_change_from_attempt_to_attempt(behave: Callable[[str], None]) -> None:
    behave("train")
    run = launch.train("demo", RECIPE).run
    other = RECIPE.model_copy(update={"device": "cpu", "checkpoint_every": 5.0})
    assert launch.train("demo", other).note == (
        "run demo version 1 is training already: showing it. To have device: cpu (auto before), checkpoint_every: 5.0 "
        "(120.0 before), type `%gpt_stop demo` and run this cell again"
    )
    launch.stop(run)
    assert launch.train("demo", other).note == (
        "run demo version 1 was stopped: going on with attempt 2, with device: cpu (auto before), "
        "checkpoint_every: 5.0 (120.0 before)"
    )
    assert (run.recipe().device, run.recipe().checkpoint_every) == ("cpu", 5.0)
    launch.stop(run)
    assert launch.train("demo", other).note == "run demo version 1 was stopped: going on with attempt 3"
    assert run.recipe().device == "cpu"


def moved_elsewhere(run: Run) -> None:
    """Leave what a run leaves whose container was taken away with all its processes, on another computer."""
    for evidence in run.processes(1).values():
        os.kill(evidence.pid, signal.SIGKILL)
    until(lambda: not any(evidence.alive() for evidence in run.processes(1).values()))
    for path in (run.claim_file(1), run.process_file(1)):
        there = replace(Process.from_json(json.loads(path.read_text())), host="there", boot="another", space="another")
        files.write_json(path, there.to_json())
    run.outcome_file(1).unlink(missing_ok=True)


def test_a_run_that_ended_with_its_container_is_resumed(
    behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SILENCE", 1.0)
    behave("train")
    run = launch.train("demo", RECIPE).run
    moved_elsewhere(run)
    assert run.state() == "elsewhere"
    behave("finish")
    again = launch.train("demo", RECIPE, wait=True)
    assert again.note == "run demo version 1 was interrupted: going on with attempt 2"
    assert run.state() == "finished"


def test_a_run_that_trains_on_another_computer_is_attached_to(behave: Callable[[str], None]) -> None:
    behave("train")
    run = launch.train("demo", RECIPE).run
    moved_elsewhere(run)
    threading.Timer(0.5, files.touch, [run.process_file(1)]).start()
    again = launch.train("demo", RECIPE)
    assert again.note == "run demo version 1 is training already on another computer: showing it"
    assert run.attempts() == 1


def test_nobody_waits_without_end_for_a_run_that_ended_elsewhere(
    behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SILENCE", 1.0)
    behave("train")
    run = launch.train("demo", RECIPE).run
    moved_elsewhere(run)
    assert launch.stop(run, wait_seconds=20) == "run demo version 1 is interrupted"
    assert launch.wait(run, timeout=20)["reason"] == "lost"
    with pytest.raises(RunFailed, match=r"(?s)its process is gone without a word.*`%%gpt_finetune demo` again"):
        api.require_model(run)


def test_a_run_that_is_stopping_is_resumed_once_it_has_stopped(behave: Callable[[str], None]) -> None:
    behave("deaf")
    run = launch.train("demo", RECIPE).run
    run.request_stop()
    assert run.state() == "stopping"
    worker = run.processes(1)["worker"].pid
    threading.Timer(0.3, os.kill, (worker, signal.SIGKILL)).start()
    behave("finish")
    again = launch.train("demo", RECIPE)
    assert (again.action, run.attempts()) == ("resumed", 2)
    assert ended(run) == "finished"


def test_a_finished_run_without_its_model_is_trained_anew(behave: Callable[[str], None]) -> None:
    run = launch.train("demo", RECIPE, wait=True).run
    run.model.rmdir()
    assert launch.train("demo", RECIPE, wait=True).run.version == 2


def test_a_run_whose_maker_vanished_before_it_started_is_started(behave: Callable[[str], None]) -> None:
    run = launch.train("demo", RECIPE, wait=True).run
    request = run.request_file.read_bytes()
    RunStore().remove(run)
    RunStore().create("demo", lambda folder: (folder / "request.json").write_bytes(request) and None)
    assert run.state() == "starting"
    assert launch.train("demo", RECIPE).action == "attached"
    assert ended(run) == "finished"


def test_a_mistake_is_raised_by_its_name_and_nothing_is_left(behave: Callable[[str], None], home: Path) -> None:
    behave("mistake")
    with pytest.raises(DataError, match=r"^reviews.csv has no column 'x'$"):
        launch.train("demo", RECIPE)
    assert RunStore().names() == []
    assert not (home / "runs" / "demo").exists()
    behave("finish")
    assert launch.train("demo", RECIPE, wait=True).run.version == 1


def test_a_mistake_when_resuming_takes_nothing_away(behave: Callable[[str], None]) -> None:
    behave("train")
    run = launch.train("demo", RECIPE).run
    launch.stop(run)
    behave("mistake")
    with pytest.raises(DataError, match="no column 'x'"):
        launch.train("demo", RECIPE)
    assert RunStore().find("demo") == run
    behave("finish")
    assert launch.train("demo", RECIPE, wait=True).run.attempts() == 3


def test_a_mistake_of_the_caller_starts_nothing(behave: Callable[[str], None], home: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file 'nowhere\.csv'"):
        launch.train("demo", Recipe(data="nowhere.csv"))
    idle = Recipe(data="df", shots=2, validation=0)
    with pytest.raises(RecipeError, match="shots: with `validation: 0` no row is held back"):
        launch.train("idle", idle, data=object())
    with pytest.raises(RecipeError, match=r"'\.\./x' cannot name a run"):
        launch.train("../x", RECIPE)
    with pytest.raises(DataError, match="there is nothing to learn from"):
        launch.train("demo", Recipe())
    assert not (home / "runs").exists()


def test_a_home_that_cannot_be_written_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file")
    with pytest.raises(UsageError, match=r"nothing can be written to .*Set GPTX_HOME to a folder of yours"):
        launch.train("demo", RECIPE)


def test_a_full_disk_is_told_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(UsageError, match=r"no room is left on the disk of .*Free some, or set GPTX_HOME"):
        launch.train("demo", RECIPE)
    assert RunStore().runs() == []
    assert list((home / "staging").iterdir()) == []


SUPERVISOR_WITHOUT_LINKS = f"""
import os

def no_links(*_):
    raise PermissionError(1, "Operation not permitted")

os.link = no_links
{SUPERVISOR}
"""


def test_a_disk_without_hard_links_serves_as_home(
    behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def supervisor(run: Run, attempt: int) -> list[str]:
        return [
            SUPERVISOR_WITHOUT_LINKS if part == SUPERVISOR else part for part in supervisor_of_a_stand_in(run, attempt)
        ]

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(launch, "_supervisor_command", supervisor)
    behave("train")
    run = launch.train("demo", RECIPE).run
    assert (run.source / "train.jsonl").read_text().count("\n") == 2
    assert launch.train("demo", RECIPE).action == "attached"
    launch.stop(run)
    assert launch.train("demo", RECIPE).action == "resumed"
    assert set(run.processes(2)) == {"supervisor", "worker"}


def test_a_run_that_broke_off_names_cause_log_and_next_step(behave: Callable[[str], None]) -> None:
    behave("crash")
    with pytest.raises(RunFailed) as caught:
        launch.train("demo", RECIPE, wait=True)
    run = RunStore().find("demo")
    assert str(caught.value) == (
        "run demo version 1 broke off: FloatingPointError: the loss became nan at step 3\n"
        f"Log: {run.log_file(1)}\nIts last lines:\ntraining crash\n"
        "Run the cell `%%gpt_finetune demo` again to try once more; nothing was saved yet."
    )
    (run.checkpoints / "000003").mkdir(parents=True)
    with pytest.raises(RunFailed, match="`%%gpt_finetune demo` again to resume it from its last checkpoint"):
        launch.raise_if_bad(run)


def test_a_bug_before_training_is_raised_with_the_log(behave: Callable[[str], None]) -> None:
    behave("crash early")
    with pytest.raises(RunFailed, match=r"(?s)its process ended with status 1\..*ValueError: a bug"):
        launch.train("demo", RECIPE)


def test_a_killed_worker_is_told_with_its_signal(behave: Callable[[str], None]) -> None:
    behave("killed")
    with pytest.raises(RunFailed, match="broke off: its process was ended by SIGKILL"):
        launch.train("demo", RECIPE, wait=True)


def test_a_supervisor_that_cannot_start_is_told(behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    monkeypatch.setattr(launch, "_supervisor_command", lambda run, attempt: broken)
    with pytest.raises(RunFailed, match=r"(?s)could not be started\..*no such thing"):
        launch.train("demo", RECIPE)


def test_of_many_cells_at_once_one_attempt_comes(behave: Callable[[str], None]) -> None:
    behave("train")
    found: list[launch.Launched] = []
    cells = [threading.Thread(target=lambda: found.append(launch.train("demo", RECIPE))) for _ in range(5)]
    for cell in cells:
        cell.start()
    for cell in cells:
        cell.join()
    assert sorted(each.action for each in found) == ["attached"] * 4 + ["new"]
    assert {each.run for each in found} == {RunStore().find("demo/1")}
    assert RunStore().find("demo").version == 1
    assert found[0].run.attempts() == 1


def test_of_many_cells_that_resume_at_once_one_attempt_comes(behave: Callable[[str], None]) -> None:
    behave("train")
    run = launch.train("demo", RECIPE).run
    launch.stop(run)
    found: list[str] = []
    cells = [threading.Thread(target=lambda: found.append(launch.train("demo", RECIPE).action)) for _ in range(5)]
    for cell in cells:
        cell.start()
    for cell in cells:
        cell.join()
    assert sorted(found) == ["attached"] * 4 + ["resumed"]
    assert run.attempts() == 2
    assert run.state() == "running"


def test_many_cells_with_the_same_mistake_all_hear_of_it(behave: Callable[[str], None]) -> None:
    behave("mistake")
    heard: list[str] = []

    def cell() -> None:
        try:
            launch.train("demo", RECIPE)
        except DataError as error:
            heard.append(str(error))

    cells = [threading.Thread(target=cell) for _ in range(3)]
    for each in cells:
        each.start()
    for each in cells:
        each.join()
    assert heard == ["reviews.csv has no column 'x'"] * 3
    assert RunStore().names() == []


def test_an_interrupt_ends_the_waiting_and_not_the_run(behave: Callable[[str], None]) -> None:
    behave("train")

    def interrupt(run: Run) -> None:
        if run.plan_file.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"run demo version 1 goes on training\. .*`%gpt_stop demo`"):
        launch.train("demo", RECIPE, wait=True, progress=interrupt)
    assert RunStore().find("demo").state() == "running"


def test_an_interrupt_while_a_run_starts_is_told_with_the_run(
    behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(run: Run, attempt: int) -> list[str]:
        command = supervisor_of_a_stand_in(run, attempt)
        return [f"import time; time.sleep(1); {part}" if part == SUPERVISOR else part for part in command]

    monkeypatch.setattr(launch, "_supervisor_command", slow)
    behave("train")
    seen: list[Run] = []
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt, match=r"run demo version 1 goes on training\. .*`%gpt_stop demo`"):
        launch.train("demo", RECIPE, progress=seen.append)
    run = RunStore().find("demo")
    assert seen == [run]
    assert run.state() == "starting"
    until(lambda: run.state() == "running")


def test_stopping_says_what_came_of_it(behave: Callable[[str], None]) -> None:
    behave("train")
    run = launch.train("demo", RECIPE).run
    assert launch.stop(run) == (
        "run demo version 1 has saved and stopped. Run its cell again to go on: `%%gpt_finetune demo`"
    )
    assert launch.stop(run) == "run demo version 1 does not train: it is stopped"


def test_a_worker_that_does_not_answer_is_told_and_not_killed(behave: Callable[[str], None]) -> None:
    behave("deaf")
    run = launch.train("demo", RECIPE).run
    said = launch.stop(run, wait_seconds=0.3)
    assert "was asked to stop and has not answered for 0.3 seconds" in said
    assert str(run.log_file(1)) in said
    assert run.state() == "stopping"


def test_waiting_has_an_end_where_one_is_set(behave: Callable[[str], None]) -> None:
    behave("train")
    run = launch.train("demo", RECIPE).run
    with pytest.raises(TimeoutError, match=r"run demo version 1 still goes on after 0\.3 seconds of waiting"):
        launch.wait(run, timeout=0.3)
    launch.stop(run)
    assert launch.wait(run)["reason"] == "stopped"
    RunStore().remove(run)
    with pytest.raises(RunNotFound, match="run demo version 1 was removed"):
        launch.wait(run)


def test_threads_wait_as_the_user_has_said_or_spin_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.WAITING:
        monkeypatch.delenv(name, raising=False)
    assert launch.environment().items() >= launch.WAITING.items()
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert launch.environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert launch.environment()["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in launch.environment(), "it would count for more"


def test_the_worker_gets_the_callers_home_and_package(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.chdir(tmp_path)
    code = "import gptx_nb, os; print(gptx_nb.__file__); print(os.environ['GPTX_HOME'])"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=launch.environment(), cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [gptx_nb.__file__, str(home)]
    assert launch.environment()["PYTHONPATH"].endswith(":/somewhere")


def test_a_base_model_in_a_folder_is_known_by_its_whole_path(
    behave: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for given, kept in (("mine", str(tmp_path / "mine")), ("./gone", str(tmp_path / "gone")), ("gpt2", "gpt2")):
        run = launch.train(f"m-{given.strip('./')}", RECIPE.model_copy(update={"model": given}), wait=True).run
        assert run.request()["recipe"]["model"] == kept


def test_a_base_model_whose_files_have_changed_makes_the_next_version(
    behave: Callable[[str], None], tmp_path: Path
) -> None:
    folder, gguf = tmp_path / "mine", tmp_path / "mine.gguf"
    folder.mkdir()
    for path in (folder / "model.safetensors", folder / "config.json", gguf):
        path.write_bytes(b"before")
    for name, model, changing in (("folder", folder, folder / "model.safetensors"), ("file", gguf, gguf)):
        recipe = RECIPE.model_copy(update={"model": str(model)})
        launch.train(name, recipe, wait=True)
        (tmp_path / "mine" / "README.md").write_text("no part of the model")
        assert launch.train(name, recipe).action == "shown"
        changing.write_bytes(b"after!")
        again = launch.train(name, recipe, wait=True)
        assert (again.action, again.run.version) == ("new", 2)
        assert again.note == "changed since version 1: the base model's files"


# ---- in a real kernel -----------------------------------------------------------------------------------------------

IN_KERNEL = f"""
import sys
from gptx_nb import files, launch
from gptx_nb.recipe import Recipe
def command(run, attempt):
    where = [str(run.folder), str(attempt)]
    return [sys.executable, "-c", {SUPERVISOR!r}, *where, sys.executable, "-c", {WORKER!r}, *where]
launch._supervisor_command = command
recipe = Recipe(examples=[["Good", "positive"], ["Bad", "negative"]])
"""


def test_a_run_outlives_interrupt_restart_and_shutdown_of_its_kernel(behave: Callable[[str], None]) -> None:
    behave("train")
    manager = kernels.manager()
    manager.start_kernel(cwd="/", env=launch.environment())
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        asked = client.execute(IN_KERNEL + "launch.train('demo', recipe, wait=True)")
        until(lambda: RunStore().latest("demo") is not None)
        run = RunStore().find("demo")
        until(lambda: run.state() == "running" and run.plan_file.exists(), 60)
        processes = run.processes(1)

        def unharmed() -> bool:
            time.sleep(0.5)
            return run.state() == "running" and all(each.alive() for each in processes.values())

        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=30)
        while reply["parent_header"]["msg_id"] != asked:  # of a kernel that was asked twice whether it is ready
            reply = client.get_shell_msg(timeout=30)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert "goes on training" in reply["content"]["evalue"]
        assert unharmed()
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        assert unharmed()
        answer = client.execute(IN_KERNEL + "print(launch.train('demo', recipe).action)", reply=True, timeout=60)
        assert answer["content"]["status"] == "ok"
        assert run.attempts() == 1
        manager.shutdown_kernel()
        assert unharmed()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert unharmed()
    launch.stop(run)
    assert run.state() == "stopped"
    until(lambda: not any(each.alive() for each in processes.values()))  # the supervisor ends after its last word


def test_an_interrupt_while_a_cell_starts_its_run_leaves_the_run_on_the_screen(behave: Callable[[str], None]) -> None:
    behave("train")
    slow = IN_KERNEL.replace(SUPERVISOR, f"import time; time.sleep(2); {SUPERVISOR}")
    cell = "%%gpt_finetune demo\nexamples:\n  - [Good, positive]\n  - [Bad, negative]"
    manager = kernels.manager()
    manager.start_kernel(cwd="/", env=launch.environment(), stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    shown: list[str] = []
    try:
        client.wait_for_ready(timeout=60)
        client.execute(f"{slow}\n%load_ext gptx_nb", reply=True, timeout=60)
        until(lambda: client.get_iopub_msg(timeout=20)["content"].get("execution_state") == "idle")
        client.execute(cell)
        until(lambda: RunStore().latest("demo") is not None, 60)
        time.sleep(0.3)
        manager.interrupt_kernel()
        answer = client.get_shell_msg(timeout=30)["content"]
        assert answer["evalue"].startswith("run demo version 1 goes on training. See it with `%gpt_watch demo`")
        while (content := client.get_iopub_msg(timeout=20)["content"]).get("execution_state") != "idle":
            shown.append(content.get("data", {}).get("text/plain", ""))
        assert any("demo v1" in text for text in shown)
        assert not any("not started" in text for text in shown)
        run = RunStore().find("demo")
        until(lambda: run.state() == "running")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# ---- with the real worker -------------------------------------------------------------------------------------------

SMALL = {"epochs": 2.0, "batch_size": 4, "device": "cpu", "dtype": "float32", "baselines": False}
REVIEWS = pd.DataFrame(
    {
        "text": [
            f"{word} {thing}" for thing in ("film", "book", "song", "meal") for word in ("good", "bad", "fine", "poor")
        ],
        "label": ["positive", "negative"] * 8,
    }
)


def test_a_frame_is_trained_on_and_the_model_is_a_plain_folder(home: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": "df"})
    run = launch.train("real", recipe, data=REVIEWS, wait=True).run
    assert run.state() == "finished"
    plan, scores, report = run.plan(), run.scores(), run.report()
    assert plan is not None
    assert scores is not None
    assert report is not None
    assert plan["labels"] == ["negative", "positive"]
    assert report["train"] + report["validation"] == 16
    assert scores["validation"]["rows"] == report["validation"]
    phases = [record["phase"] for record in run.history() if record["kind"] == "phase"]
    assert phases == ["data", "model", "preflight", "training", "scoring", "saving"]
    model = AutoModelForSequenceClassification.from_pretrained(run.model)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert launch.train("real", recipe, data=REVIEWS.copy()).action == "shown"


def test_a_stopped_run_goes_on_to_the_weights_of_an_uncut_one(home: Path, tiny_model: Path) -> None:
    from safetensors.numpy import load_file

    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": "df", "epochs": 40.0, "keep": "last"})
    whole = launch.train("whole", recipe, data=REVIEWS, wait=True).run

    cut = launch.train("cut", recipe, data=REVIEWS).run
    until(lambda: any(record["kind"] == "step" for record in cut.history()), 120)
    launch.stop(cut)
    assert cut.state() == "stopped"
    again = launch.train("cut", recipe, data=REVIEWS, wait=True)
    assert (again.action, cut.attempts()) == ("resumed", 2)
    one, other = (load_file(run.model / "model.safetensors") for run in (whole, cut))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_a_worker_that_is_killed_is_resumed_from_its_last_checkpoint(home: Path, tiny_model: Path) -> None:
    recipe = Recipe.model_validate(
        {**SMALL, "model": str(tiny_model), "data": "df", "epochs": 100.0, "checkpoint_every": 0.05}
    )
    run = launch.train("killed", recipe, data=REVIEWS).run
    until(lambda: run.checkpoints.is_dir() and any(each.name.isdigit() for each in run.checkpoints.iterdir()), 120)
    os.kill(run.processes(1)["worker"].pid, signal.SIGKILL)
    assert ended(run) == "interrupted"
    before = run.plan()
    assert before is not None
    names = ("memory", "time", "learning_rate")
    elsewhere = {name: {**before[name], "choice": "of another computer"} for name in names}
    files.write_json(run.plan_file, {**before, **elsewhere, "notes": ["too little memory"], "proposal": {}})
    assert launch.train("killed", recipe, data=REVIEWS, wait=True).action == "resumed"
    after = run.plan()
    assert after is not None
    assert after["learning_rate"]["choice"] == "of another computer", "what was chosen stays"
    assert "of another computer" not in (after["memory"]["choice"], after["time"]["choice"])
    assert (after["notes"], "proposal" in after) == (before["notes"], False)
    first = next(record for record in run.history() if record["kind"] == "start")
    assert first["step"] == 0
    resumed = [record for record in run.history() if record["kind"] == "start"][-1]
    assert resumed["step"] > 0
    steps = [record["step"] for record in run.history() if record["kind"] == "step"]
    assert steps == list(range(1, steps[-1] + 1))


def test_a_run_that_is_removed_while_it_trains_ends_and_does_not_come_back(home: Path, tiny_model: Path) -> None:
    settings = {**SMALL, "model": str(tiny_model), "data": "df", "epochs": 1000.0, "checkpoint_every": 0.05}
    run = launch.train("removed", Recipe.model_validate(settings), data=REVIEWS).run
    until(lambda: run.checkpoints.is_dir() and any(each.name.isdigit() for each in run.checkpoints.iterdir()), 120)
    processes = run.processes(1)
    run.folder.rename(home / "aside")  # as `rm -rf` would, at one moment
    until(lambda: not any(each.alive() for each in processes.values()), 60)
    # A checkpoint that was being written at that moment may be there, and nothing that makes it a run.
    assert {each.name for each in run.folder.glob("*")} <= {"checkpoints", "best"}
    assert RunStore().runs() == []


def test_a_resumed_run_names_the_step_whose_weights_it_keeps(home: Path, tiny_model: Path) -> None:
    recipe = Recipe.model_validate(
        {**SMALL, "model": str(tiny_model), "data": "df", "epochs": 400.0, "checkpoint_every": 86_400}
    )
    run = launch.train("best", recipe, data=REVIEWS).run

    def evaluations() -> list[dict[str, Any]]:
        return [record for record in run.history() if record["kind"] == "evaluation"]

    def best() -> dict[str, Any]:
        return max(evaluations(), key=lambda each: (each["accuracy"], -each["validation_loss"]))

    until(evaluations, 120)
    launch.stop(run)
    stopped, at_stop = run.scores(), best()
    assert stopped is not None
    assert stopped["best_step"] == at_stop["step"]
    launch.train("best", recipe, data=REVIEWS)
    # Better weights, and a step after them: they are written.
    until(lambda: at_stop["step"] < best()["step"] < run.history()[-1].get("step", 0), 120)
    os.kill(run.processes(2)["worker"].pid, signal.SIGKILL)
    assert ended(run) == "interrupted"

    run.request_stop()  # before the next attempt has taken a step: what the crash has undone is not to be kept
    assert launch._start(run, 3, None)
    assert ended(run) == "stopped"
    scores = run.scores()
    assert scores is not None
    assert scores["best_step"] == at_stop["step"]
    assert scores["validation"]["loss"] == pytest.approx(at_stop["validation_loss"], abs=1e-6)


def test_a_stopped_run_takes_another_device_and_one_that_is_absent_is_refused(home: Path, tiny_model: Path) -> None:
    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": "df", "epochs": 400.0})
    run = launch.train("moved", recipe, data=REVIEWS).run
    launch.stop(run)
    plan = run.plan()
    assert plan is not None
    assert plan["device"]["reason"] == "asked for in the recipe"

    with pytest.raises(DeviceError, match="device: cuda:99 was asked for, and"):
        launch.train("moved", recipe.model_copy(update={"device": "cuda:99"}), data=REVIEWS)
    assert run.state() == "stopped"
    assert run.plan() == plan
    api.require_model(run)

    other = recipe.model_copy(update={"device": "auto", "checkpoint_every": 0.05})
    note = launch.train("moved", other, data=REVIEWS).note
    assert "was stopped: going on with attempt 3, with device: auto (cuda:99 before), checkpoint_every: 0.05" in note
    newest = max(path.name for path in run.checkpoints.iterdir())
    until(lambda: max(path.name for path in run.checkpoints.iterdir() if path.name.isdigit()) > newest, 60)
    assert run.state() == "running", "checkpoints are made as often as asked for now"
    renewed = run.plan()
    assert renewed is not None
    assert renewed["device"]["reason"] != "asked for in the recipe"
    own = ("device", "dtype", "memory", "time", "limit")  # each attempt's own
    assert {**renewed, **{name: plan[name] for name in own}} == plan
    launch.stop(run)


def test_a_finished_run_needs_its_model_alone(home: Path, tiny_model: Path) -> None:
    recipe = Recipe.model_validate(
        {**SMALL, "model": str(tiny_model), "data": "df", "epochs": 40.0, "checkpoint_every": 0.05}
    )
    run = launch.train("finished", recipe, data=REVIEWS).run
    until(lambda: run.best.is_dir() and run.checkpoints.is_dir(), 120)
    launch.stop(run)
    assert run.state() == "stopped"
    assert run.best.is_dir()
    assert run.checkpoints.is_dir()
    launch.train("finished", recipe, data=REVIEWS, wait=True)
    assert run.state() == "finished"
    assert not run.best.exists()
    assert not run.checkpoints.exists()
    assert run.model.is_dir()


DYING_WORKER = """
import os, sys
from gptx_nb import files
from gptx_nb.worker import __main__ as worker

def dying(real):
    def call(path, *rest):
        if path.name == sys.argv[3]:
            os._exit(9)
        return real(path, *rest)
    return call

files.write_json, files.remove_folder = dying(files.write_json), dying(files.remove_folder)
sys.exit(worker.main(sys.argv[1:3]))
"""


@pytest.mark.parametrize(
    ("at", "state", "action"), [("end-1.json", "failed", "resumed"), ("checkpoints", "finished", "shown")]
)
def test_nothing_is_lost_where_a_run_dies_at_its_very_end(
    home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, at: str, state: str, action: str
) -> None:
    def supervisor(run: Run, attempt: int) -> list[str]:
        where = [str(run.folder), str(attempt)]
        return [sys.executable, "-c", SUPERVISOR, *where, sys.executable, "-c", DYING_WORKER, *where, at]

    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": "df", "checkpoint_every": 0.001})
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_supervisor_command", supervisor)
        run = launch.train("dying", recipe, data=REVIEWS).run
        assert ended(run) == state
    assert any(path.name.isdigit() for path in run.checkpoints.iterdir())
    assert launch.train("dying", recipe, data=REVIEWS, wait=True).action == action
    assert run.state() == "finished"
    api.require_model(run)


def test_an_attempt_that_was_taken_for_dead_makes_way(home: Path, tiny_model: Path) -> None:
    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": "df", "epochs": 400.0})
    run = launch.train("taken", recipe, data=REVIEWS).run
    files.write_json(run.claim_file(2), Process.of(os.getpid()).to_json())
    until(run.end_file(1).exists, 60)
    words = files.read_json(run.end_file(1)) or {}
    assert words["message"].startswith("attempt 2 goes on with this run: this one, on ")


def test_a_table_that_changes_before_it_is_read_is_refused(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    table = tmp_path / "reviews.csv"
    REVIEWS.to_csv(table, index=False)
    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": str(table)})

    def edit(run: Run) -> None:
        table.write_text(table.read_text().replace("good film", "better film"))

    with pytest.raises(DataError, match=r"data: .*reviews\.csv was changed while it was read\. Run the cell again"):
        launch.train("edited", recipe, progress=edit)
    assert RunStore().names() == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"text": "review"}, DataError, "has no column 'review'"),
        ({"model": "/nowhere/at/all"}, ModelError, "/nowhere/at/all"),
    ],
)
def test_a_mistake_found_by_the_worker_leaves_nothing(
    home: Path, tiny_model: Path, settings: dict[str, str], error: type[UsageError], message: str
) -> None:
    recipe = Recipe.model_validate({**SMALL, "model": str(tiny_model), "data": "df", **settings})
    with pytest.raises(error) as caught:
        launch.train("mistaken", recipe, data=REVIEWS)
    assert message in str(caught.value)
    assert RunStore().names() == []
