"""The supervisor: one claimant, a worker that outlives it, and a record of how the worker ended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import until

from gptx_nb import files, supervisor
from gptx_nb.process import Process
from gptx_nb.runs import Run, RunStore

MAIN = "import sys; from gptx_nb import supervisor; sys.exit(supervisor.main(sys.argv[1:3], sys.argv[3:]))"


@pytest.fixture
def run(home: Path) -> Run:
    return RunStore().create("demo", lambda folder: files.write_json(folder / "request.json", {}))


def start(run: Run, code: str, attempt: int = 1) -> subprocess.Popen[bytes]:
    worker = [sys.executable, "-c", code]
    command = [sys.executable, "-c", MAIN, str(run.folder), str(attempt), *worker]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.parametrize(
    ("code", "reason", "status", "number", "state"),
    [
        ("pass", "finished", 0, None, "finished"),
        ("raise SystemExit(3)", "stopped", 3, None, "stopped"),
        ("raise SystemExit(2)", "mistake", 2, None, "failed"),
        ("raise ValueError('a bug')", "failed", 1, None, "failed"),
        ("import os; os.kill(os.getpid(), 9)", "killed", None, 9, "interrupted"),
        ("import os; os.abort()", "killed", None, 6, "interrupted"),
    ],
)
def test_the_way_a_worker_ends_is_written_down(
    run: Run, code: str, reason: str, status: int | None, number: int | None, state: str
) -> None:
    assert start(run, code).wait() == supervisor.CLAIMED
    until(run.outcome_file(1).exists)
    outcome = run.outcome()
    assert outcome is not None
    assert (outcome["reason"], outcome["exit_status"], outcome["signal"]) == (reason, status, number)
    assert run.state() == state


def test_the_workers_output_goes_to_the_log(run: Run) -> None:
    start(run, "import sys; print('héllo'); sys.exit('no luck')").wait()
    until(run.outcome_file(1).exists)
    assert run.log_tail().splitlines() == ["héllo", "no luck"]


def test_a_worker_that_cannot_start_is_a_failure_with_its_reason(run: Run) -> None:
    command = [sys.executable, "-c", MAIN, str(run.folder), "1", "/no/such/program"]
    assert subprocess.run(command, check=False).returncode == supervisor.CLAIMED
    until(run.outcome_file(1).exists)
    outcome = run.outcome()
    assert outcome is not None
    assert outcome["reason"] == "failed"
    assert "could not be started" in outcome["message"]


def test_of_many_that_want_an_attempt_one_gets_it(run: Run) -> None:
    code = f"open({str(run.folder / 'began')!r}, 'a').write('x'); import time; time.sleep(0.5)"
    contenders = [start(run, code) for _ in range(6)]
    statuses = sorted(each.wait() for each in contenders)
    assert statuses == [supervisor.CLAIMED] + [supervisor.LOST] * 5
    until(run.outcome_file(1).exists)
    assert (run.folder / "began").read_text() == "x"
    assert run.attempts() == 1


def test_the_worker_lives_in_a_session_of_its_own_and_ignores_interrupts(run: Run) -> None:
    start(run, "import time; time.sleep(1.5); print('unharmed')").wait()
    until(run.process_file(1).exists)
    processes = run.processes(1)
    worker, watcher = processes["worker"].pid, processes["supervisor"].pid
    assert os.getsid(worker) == os.getsid(watcher) != os.getsid(0)
    assert os.getpgid(worker) != os.getpgid(watcher)
    for pid in (worker, watcher):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    assert run.state() == "running"
    until(run.outcome_file(1).exists)
    assert run.state() == "finished"
    assert run.log_tail() == "unharmed"


def test_a_run_goes_on_when_its_supervisor_is_killed(run: Run) -> None:
    last_words = json.dumps({"reason": "finished", "error": None, "message": None})
    code = f"import time; time.sleep(1); open({str(run.end_file(1))!r}, 'w').write({last_words!r})"
    start(run, code).wait()
    until(run.process_file(1).exists)
    processes = run.processes(1)
    os.kill(processes["supervisor"].pid, signal.SIGKILL)
    until(lambda: processes["supervisor"].alive() is False)
    assert run.state() == "running"
    until(lambda: processes["worker"].alive() is False)
    assert run.state() == "finished"  # by the worker's own word: nobody else was there


def test_the_supervisor_gives_signs_of_life_while_the_worker_lives(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BEAT", 0.05)
    evidence = run.process_file(1)
    # The worker itself looks whether the time of its process file goes on.
    code = (
        f"import os, time\nwhile not os.path.exists({str(evidence)!r}): time.sleep(0.01)\n"
        f"first = os.stat({str(evidence)!r}).st_mtime_ns\n"
        f"while os.stat({str(evidence)!r}).st_mtime_ns == first: time.sleep(0.01)\n"
    )
    finished = threading.Thread(target=supervisor.supervise, args=(run, 1, [sys.executable, "-c", code]), daemon=True)
    finished.start()
    finished.join(20)
    assert not finished.is_alive()
    last = evidence.stat().st_mtime_ns
    time.sleep(0.2)
    assert evidence.stat().st_mtime_ns == last


def test_a_run_whose_processes_are_all_killed_counts_as_interrupted(run: Run) -> None:
    start(run, "import time; time.sleep(60)").wait()
    until(run.process_file(1).exists)
    processes = run.processes(1)
    for name in ("supervisor", "worker"):
        os.kill(processes[name].pid, signal.SIGKILL)
    until(lambda: not any(each.alive() for each in processes.values()))
    outcome = run.outcome()
    assert outcome is not None
    assert outcome["reason"] == "lost"
    assert run.state() == "interrupted"


def test_a_run_that_was_removed_is_not_written_to_again(run: Run) -> None:
    start(run, "import time; time.sleep(0.5)").wait()
    until(run.process_file(1).exists)
    watcher = run.processes(1)["supervisor"]
    RunStore().remove(run)
    until(lambda: watcher.alive() is False)
    assert not run.folder.exists()


def test_a_run_that_is_removed_stays_so_where_its_worker_makes_its_folder_anew(run: Run) -> None:
    start(run, "import time; time.sleep(1.5)").wait()
    until(run.process_file(1).exists)
    watcher = run.processes(1)["supervisor"]
    run.folder.rename(run.folder.with_name("aside"))
    run.checkpoints.mkdir(parents=True)  # as a checkpoint does that was being written at that moment
    until(lambda: watcher.alive() is False)
    assert [each.name for each in run.folder.iterdir()] == [run.checkpoints.name]


def test_kills_for_want_of_memory_are_counted_by_this_machine() -> None:
    kills = supervisor.out_of_memory_kills()
    if sys.platform == "linux":
        assert kills is not None
        assert kills >= 0


def test_a_killed_worker_is_out_of_memory_only_where_the_system_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([4, 5])
    monkeypatch.setattr(supervisor, "out_of_memory_kills", lambda: next(kills))
    outcome = supervisor.supervise(run, 1, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert outcome["reason"] == "out of memory"
    assert outcome["out_of_memory_kills"] == 1


def test_evidence_tells_a_process_from_a_later_one_of_the_same_number() -> None:
    here = Process.of(os.getpid())
    assert here.alive() is True
    assert replace(here, started="1").alive() is False
    assert replace(here, boot="another boot").alive() is False
    assert replace(here, host="its name before").alive() is True
    assert replace(here, host="another container", space="another").alive() is None
    assert replace(here, host="another container", boot="another boot").alive() is None
    assert replace(here, machine="a namesake", boot="another boot").alive() is None
    assert Process.from_json(here.to_json()) == here
    ended = subprocess.Popen([sys.executable, "-c", ""])
    evidence = Process.of(ended.pid)
    until(lambda: evidence.alive() is False)  # a zombie until it is waited for
    ended.wait()
