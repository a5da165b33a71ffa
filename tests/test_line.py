"""Waiting in line: who trains, who waits and for whom, and that nobody waits for the dead."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from waiting import until

from gptx_nb import api, launch, metrics
from gptx_nb.engine import memory
from gptx_nb.engine.memory import Estimate
from gptx_nb.errors import RunFailed, UsageError
from gptx_nb.line import LIMIT, Demand, Line, Place, decide, limit, waits
from gptx_nb.process import Process, resident
from gptx_nb.progress import Progress, run_rows, runs_text
from gptx_nb.recipe import Recipe
from gptx_nb.run_files import RunFiles
from gptx_nb.runs import Run, RunStore

GB = 10**9
NEEDS = Demand(held=GB, to_come=2 * GB, free=3 * GB)
HERE = Process.of(os.getpid())


def place(number: int, peak: float, *, trains: bool = True, device: str = "cpu") -> Place:
    return Place(f"/home/runs/r/{number}", 1, number, HERE, {device: int(peak * GB)}, trains)


def answer(*others: Place, demand: Demand = NEEDS, held: float = 0.0, most: float | None = None) -> str:
    """The answer to a run with place 9 beside `others`, each of which holds `held` GB."""
    found = decide(
        {"cpu": demand}, others, 9, limit=None if most is None else int(most * GB), held=lambda *_: int(held * GB)
    )
    return found.answer


def test_a_run_that_fits_beside_the_others_trains() -> None:
    assert answer() == "trains"
    assert answer(place(1, 1.0)) == "trains"
    assert answer(place(1, 1.1)) == "waits", "what the other will take is counted before it has taken it"
    assert answer(place(1, 5.0), held=4.5) == "trains", "what it has taken is counted once: it is not free any more"
    assert answer(place(1, 9.0, device="cuda:0")) == "trains"


def test_gpus_are_told_apart_that_two_processes_know_by_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Estimate(GB, 0, 0, GB, 0, 0, 0)
    monkeypatch.setattr(memory, "available", lambda device: 2 * GB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def demands(uuid: str | None, device: str = "cuda") -> dict[str, Demand]:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
        return memory.demand(needs, torch.device(device))

    first = Place("/home/runs/r/1", 1, 1, HERE, {name: each.peak for name, each in demands("8a-1").items()}, True)
    answers = [
        decide(demand, [first], 2, held=lambda *_: 0).answer
        for demand in (demands("8a-2"), demands("8a-1"), demands("8a-1", "cuda:1"))
    ]
    assert answers == ["trains", "waits", "waits"], "another GPU; the same; the same by another number"
    assert [*demands("8a-1")] == ["GPU-8a-1"]
    assert [*demands(None)] == ["cuda:0"]


def test_what_a_run_on_a_gpu_keeps_in_main_memory_is_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Estimate(GB, 0, 0, GB, 0, 0, 0)
    free = {"cuda": 9 * GB, "cpu": 3 * GB}
    monkeypatch.setattr(memory, "available", lambda device: free[device.type])
    monkeypatch.setattr(memory, "taken", lambda device: GB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="8a-1"))

    def demands(kept: int) -> dict[str, Demand]:
        return memory.demand(needs, torch.device("cuda"), kept)

    def with_place(demands: dict[str, Demand], *others: Place) -> str:
        return decide(demands, others, 2, held=lambda *_: 0).answer

    assert [*demands(0)] == ["GPU-8a-1"]
    assert demands(2 * GB)["cpu"] == Demand(held=GB, to_come=2 * GB, free=3 * GB)
    on_cpu = place(1, 2.0)
    assert with_place(demands(0), on_cpu) == "trains", "it takes nothing of what the other needs"
    assert with_place(demands(GB), on_cpu) == "trains", "both fit"
    assert with_place(demands(2 * GB), on_cpu) == "waits"
    of_gpu = Place("/home/runs/r/1", 1, 1, HERE, {name: each.peak for name, each in demands(2 * GB).items()}, True)
    assert with_place({"cpu": Demand(0, GB, 3 * GB)}, of_gpu) == "waits", "nor does another begin beside it"
    assert memory.demand(replace(needs, frozen=GB), torch.device("cpu"), GB).keys() == {"cpu"}, "counted once"


def test_of_several_gpus_each_is_asked_for_what_its_own_process_holds(home: Path) -> None:
    one, other = ({f"GPU-{name}": NEEDS, "cpu": NEEDS} for name in "ab")
    peaks = {name: each.peak for name, each in memory.together([one, other]).items()}
    assert peaks == {"GPU-a": 3 * GB, "cpu": 6 * GB, "GPU-b": 3 * GB}
    run = RunStore().create("demo", lambda folder: None)
    for rank, held in enumerate((5, 7)):
        writer = metrics.MetricsWriter(run.of_rank(run.metrics_file(1), rank))
        writer.append({"kind": "step", "step": 1, "memory": held})
        writer.close()
    found = Place(str(run.folder), 1, 1, HERE, peaks, True)
    assert (found.held("GPU-a"), found.held("GPU-b")) == (5, 7)


def test_a_run_that_would_not_fit_alone_does_not_wait() -> None:
    large = Demand(held=GB, to_come=9 * GB, free=3 * GB)
    assert answer(place(1, 5.0), held=5.0, demand=large) == "too large"
    assert answer(place(1, 5.0), held=6.0, demand=large) == "waits", "when the other has ended, there is room"
    assert answer(demand=large) == "too large"


def test_a_newcomer_waits_behind_those_who_wait() -> None:
    assert answer(place(1, 0.1), place(2, 9.0, trains=False)) == "waits"
    assert answer(place(1, 0.1), place(10, 9.0, trains=False)) == "trains", "who came later is no hindrance"


def test_nobody_waits_where_nobody_trains() -> None:
    # Others that wait hold a little memory too.
    assert answer(place(10, 5.0, trains=False), demand=Demand(GB, 2 * GB, GB), held=0.5) == "too large"
    assert answer(demand=Demand(GB, 2 * GB, 2 * GB - 1)) == "too large"


def test_a_limit_binds_all_runs_together() -> None:
    assert answer(most=3.0) == "trains"
    assert answer(most=2.9) == "too large"
    assert answer(place(1, 1.0), held=0.5, most=4.0) == "trains"
    assert answer(place(1, 1.0), held=0.5, most=3.9) == "waits"


def test_a_wait_says_what_is_needed_and_what_is_free_to_a_run_that_holds_nothing() -> None:
    verdict = decide({"cpu": NEEDS}, [place(1, 2.5)], 9, held=lambda *_: 0)
    assert (verdict.answer, verdict.needs, verdict.free) == ("waits", 3 * GB, 1.5 * GB)
    assert [each.name for each in verdict.beside] == ["r/1"]


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit() is None
    monkeypatch.setenv(LIMIT, "8e9")
    assert limit() == 8 * GB
    for wrong in ("8 GB", "-1", "nan", "inf"):
        monkeypatch.setenv(LIMIT, wrong)
        with pytest.raises(UsageError, match=f"{LIMIT}: '{wrong}' is no number of bytes. For 8 GB type `%env"):
            limit()


# ---- places of real processes ---------------------------------------------------------------------------------------


@pytest.fixture
def sleepers() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start processes that do nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def line_of(home: Path, version: int) -> Line:
    return Line(RunFiles(home / "runs" / "r" / str(version)), 1)


def test_three_go_in_the_order_in_which_they_came(home: Path, sleepers: Callable[[], subprocess.Popen[bytes]]) -> None:
    demand = {"cpu": NEEDS}
    lines = [line_of(home, version) for version in (1, 2, 3)]
    processes = [sleepers() for _ in lines]

    def take(at: int) -> str:
        return lines[at].take(demand, Process.of(processes[at].pid)).answer

    assert [take(0), take(1), take(2)] == ["trains", "waits", "waits"]
    assert [line.its_turn() for line in lines] == [True, False, False]
    processes[0].kill()  # it leaves its place behind
    processes[0].wait()
    assert [line.its_turn() for line in lines[1:]] == [True, False]
    assert take(2) == "waits", "although it asks first"
    assert take(1) == "trains"
    assert not lines[2].its_turn()
    lines[1].leave()
    assert lines[2].its_turn()
    assert take(2) == "trains"
    assert [path.name for path in sorted(lines[0].folder.glob("*.json"))] == ["r-3-1.json"]


def test_who_waits_moves_up_when_one_ahead_gives_up(
    home: Path, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    lines = [line_of(home, version) for version in (1, 2, 3)]
    for line in lines:
        line.take({"cpu": NEEDS}, Process.of(sleepers().pid))
    assert [waits(RunFiles(home / "runs" / "r" / str(version)), 1) for version in (1, 2, 3)] == [False, True, True]
    lines[1].leave()
    assert lines[2].its_turn()


def test_of_many_that_come_at_once_only_as_many_train_as_fit(
    home: Path, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    sleeper = Process.of(sleepers().pid)
    demand = {"cpu": Demand(held=0, to_come=GB, free=int(2.5 * GB))}
    answers: list[str] = []

    def come(version: int) -> None:
        answers.append(line_of(home, version).take(demand, sleeper).answer)

    comers = [threading.Thread(target=come, args=(version,)) for version in range(1, 9)]
    for comer in comers:
        comer.start()
    for comer in comers:
        comer.join()
    assert sorted(answers) == ["trains"] * 2 + ["waits"] * 6
    numbers = [place.number for version in range(1, 9) if (place := line_of(home, version).mine())]
    assert sorted(numbers) == list(range(1, 9))


def test_a_lock_is_lifted_from_a_process_that_is_killed(
    home: Path, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    line = line_of(home, 1)
    line.folder.mkdir(parents=True)
    code = (
        "import fcntl, sys, time; handle = open(sys.argv[1], 'ab'); fcntl.flock(handle, fcntl.LOCK_EX); "
        "print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(line.folder / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        taken = threading.Thread(target=line.take, args=({}, HERE))
        taken.start()
        taken.join(0.3)
        assert taken.is_alive(), "it waits for the lock"
        holder.kill()
        taken.join(20)
        assert not taken.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="on Linux alone")
def test_the_memory_of_a_process_counts_what_it_has_started() -> None:
    child = "x = bytearray(300_000_000); print(flush=True); import time; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, process_group=0) as both:
        assert both.stdout
        both.stdout.readline()
        assert 300e6 < resident(both.pid) < 500e6
        os.killpg(both.pid, signal.SIGKILL)
        both.wait()
        assert resident(both.pid) == 0


# ---- whole runs -----------------------------------------------------------------------------------------------------

REVIEWS = pd.DataFrame(
    {
        "text": [
            f"{word} {thing}" for thing in ("film", "book", "song", "meal") for word in ("good", "bad", "fine", "poor")
        ],
        "label": ["positive", "negative"] * 8,
    }
)


def phases(run: Run, attempt: int = 1) -> list[dict[str, Any]]:
    return [each for each in metrics.read(run.metrics_file(attempt))[0] if each["kind"] == "phase"]


def is_waiting(run: Run) -> bool:
    return waits(run, max(1, run.attempts()))


@pytest.fixture
def train(home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Start a run in real processes. Once one trains, there is `room` for so many of its size, no more."""

    def train(name: str, epochs: float = 1000.0, devices: int = 1, room: float = 1.5) -> Run:
        recipe = {"epochs": epochs, "batch_size": 1, "device": "cpu", "dtype": "float32", "baselines": False}
        recipe["devices"] = devices
        run = launch.train(name, Recipe(model=str(tiny_model), data="df", **recipe), data=REVIEWS).run
        if LIMIT not in os.environ:
            until(lambda: any(each["kind"] == "step" for each in run.history()))
            monkeypatch.setenv(LIMIT, str(int(room * resident(run.processes(1)["worker"].pid))))
        return run

    yield train
    for run in RunStore().runs():
        for evidence in run.processes(max(1, run.attempts())).values():
            if evidence.alive():
                os.kill(evidence.pid, signal.SIGKILL)


def test_a_run_that_does_not_fit_waits_visibly_and_starts_by_itself(train: Callable[..., Run]) -> None:
    first = train("first")
    second = train("second", epochs=2.0)  # returns although it waits: the notebook is free
    assert second.state() == "running"
    assert second.plan() is not None
    until(lambda: is_waiting(second))

    record = phases(second)[-1]
    assert (record["phase"], record["beside"]) == ("queue", ["first/1"])
    assert record["needs"] > record["free"]
    seen = Progress(second).refresh()
    assert seen.doing == "waiting in line"
    assert "free beside first/1; starts by itself" in seen.line()
    shown = {row["name"]: row["doing"] for row in run_rows(RunStore().runs())}
    assert shown == {"first": "running", "second": "waiting in line"}
    assert "waiting in line" in runs_text(run_rows([second]))

    worker = second.processes(1)["worker"]
    until(lambda: resident(worker.pid) < 0.4 * resident(first.processes(1)["worker"].pid))  # it holds no model
    assert worker.alive()
    again = launch.train("second", second.recipe(), data=REVIEWS)
    assert again.note == "run second version 1 waits in line: showing it"

    launch.stop(first)
    outcome = launch.wait(second, timeout=120)
    assert outcome["reason"] == "finished"
    assert second.attempts() == 1
    api.require_model(second)
    plan = second.plan()
    assert plan is not None
    assert plan["learning_rate"]["reason"].startswith("for "), "what was chosen is not taken for what was asked for"
    assert not list((second.folder.parents[2] / "line").glob("*.json"))


def test_a_run_that_waits_can_be_stopped_and_goes_on_later(train: Callable[..., Run]) -> None:
    first = train("first")
    second = train("second", epochs=2.0)
    until(lambda: is_waiting(second))
    said = launch.stop(second)
    assert said.startswith("run second version 1 has left the line. Run its cell again to go on")
    assert second.state() == "stopped"
    assert first.state() == "running"
    with pytest.raises(RunFailed, match="Run the cell `%%gpt_finetune second` again"):
        api.require_model(second)
    os.kill(first.processes(1)["worker"].pid, signal.SIGTERM)
    until(lambda: not first.active)
    again = launch.train("second", second.recipe(), data=REVIEWS, wait=True)
    assert (again.action, second.state()) == ("resumed", "finished")


def test_the_line_moves_on_when_the_run_that_trains_is_killed(train: Callable[..., Run]) -> None:
    first = train("first")
    second = train("second")
    third = train("third", epochs=2.0)
    until(lambda: is_waiting(second) and is_waiting(third))
    assert phases(third)[-1]["behind"] == ["second/1"]
    os.kill(first.processes(1)["worker"].pid, signal.SIGKILL)
    until(lambda: any(each["kind"] == "step" for each in second.history()))
    until(lambda: is_waiting(third))
    assert not any(each["phase"] == "training" for each in phases(third))
    os.kill(second.processes(1)["worker"].pid, signal.SIGKILL)
    assert launch.wait(third, timeout=120)["reason"] == "finished"


def test_a_run_of_two_processes_waits_and_starts_as_one(train: Callable[..., Run]) -> None:
    first = train("first", room=2.8)
    second = train("second", epochs=2.0, devices=2)
    until(lambda: is_waiting(second))
    assert phases(second)[-1]["beside"] == ["first/1"]
    until(lambda: resident(second.processes(1)["worker"].pid) < 0.4 * resident(first.processes(1)["worker"].pid))
    os.kill(first.processes(1)["worker"].pid, signal.SIGKILL)
    assert launch.wait(second, timeout=120)["reason"] == "finished"
    assert second.attempts() == 1
    assert (second.plan() or {})["devices"]["choice"] == 2
