"""Where memory runs out: the step, or the next attempt, takes less and learns the same; what cannot is told in words.

Real workers are killed: by the kernel, in a control group with too little memory, and by a signal at a known step.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from test_packing import CPU, PAD, ROWS, small

from gptx_nb import files, launch, memory_words, supervisor
from gptx_nb.engine import optimizer as optimizers
from gptx_nb.engine import packing, trial, tuning
from gptx_nb.engine.device import Device
from gptx_nb.engine.precision import Lowered
from gptx_nb.engine.sharding import Whole
from gptx_nb.engine.tasks import text_classification as task
from gptx_nb.engine.train import Batch, Settings, make_optimizer, train
from gptx_nb.errors import RunFailed
from gptx_nb.line import Line
from gptx_nb.metrics import MetricsWriter
from gptx_nb.process import Process
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run, RunStore
from gptx_nb.worker.__main__ import Attempt, _cause, _last_words
from gptx_nb.worker.levers import Levers

LONG = pd.DataFrame(
    {
        "text": [f"{('good', 'bad')[row % 2]} film {row} " * 20 for row in range(96)],
        "label": ["positive", "negative"] * 48,
    }
)
BF16 = torch.bfloat16
FULL = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


@pytest.fixture(scope="session")
def still_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without dropout: what of a row is dropped depends on the rows beside it."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "still"))
    config = json.loads((folder / "config.json").read_text())
    config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipe(model: Path, **more: Any) -> Recipe:
    settings = {"model": str(model), "data": "df", "epochs": 3.0, "batch_size": 96, "device": "cpu", "dtype": "float32"}
    plain = {"head": "plain", "baselines": False, "keep": "last", "learning_rate": 1e-4}
    return Recipe.model_validate({**settings, **plain, **more})


def losses(run: Run) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in run.history() if record["kind"] == "step"}


def notes(run: Run) -> list[str]:
    return [record["text"] for record in run.history() if record["kind"] == "note"]


def levers(run: Run, attempt: int) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(run.levers_file(attempt)) or {}
    return found


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A new control group for memory."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = root / f"gptx-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if any((group / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
                break
            group.rmdir()
    else:
        pytest.skip("no control group for memory can be made here")
    yield group
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            break
        time.sleep(0.05)


def within(group: Path, *names: str) -> Path:
    """A file of a control group, by its name in version 1 or 2."""
    return next(group / each for each in names if (group / each).exists())


def test_a_worker_that_the_kernel_kills_is_followed_by_one_that_takes_less(
    home: Path, still_model: Path, control_group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = launch._supervisor_command
    inside = ["sh", "-c", f'echo $$ > {control_group}/cgroup.procs; exec "$@"', "sh"]
    monkeypatch.setattr(launch, "_supervisor_command", lambda run, attempt: [*inside, *command(run, attempt)])
    asked = recipe(still_model, tokens_at_once=65_536, epochs=2.0)
    whole = launch.train("whole", asked, data=LONG, wait=True).run
    plan = whole.plan()
    assert plan is not None
    to_come = sum(plan["memory"]["parts"].values()) - plan["memory"]["parts"]["process"]
    most = int(within(control_group, "memory.max_usage_in_bytes", "memory.peak").read_text())
    within(control_group, "memory.limit_in_bytes", "memory.max").write_text(str(most - int(0.4 * to_come)))

    run = launch.train("starved", asked, data=LONG, wait=True).run
    first = run.outcome(1)
    assert first is not None
    assert (first["reason"], first["signal"], first["out_of_memory_kills"]) == ("out of memory", signal.SIGKILL, 1)
    assert run.state() == "finished"
    assert run.attempts() in (2, 3), "half of it fits, or an eighth"
    said = next(note for note in notes(run) if note.startswith("memory ran out in attempt 1: going on with "))
    budget = levers(run, 2)["token_budget"]
    assert budget < 65_536
    assert f"{budget:,} tokens at once" in said
    assert f"stays the same, but for rounding and for what dropout draws. `tokens_at_once: {budget}` " in said
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (run, whole))
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs) < 1e-4


# A supervisor whose machine counts a kill at every look, and a worker that dies as it is told.
HARMED = """
import os, sys, torch
from gptx_nb.metrics import MetricsWriter
from gptx_nb.worker import __main__ as worker

how, attempt = sys.argv.pop(1), int(sys.argv[2])
if attempt == 1 and how == "killed":
    append = MetricsWriter.append
    def appended(self, record):
        append(self, record)
        if record.get("step") == 3 and record["kind"] == "step":
            os.kill(os.getpid(), 9)
    MetricsWriter.append = appended
if attempt == 1 and how == "optimiser":
    step, count = torch.optim.AdamW.step, []
    def stepped(self, *rest):
        count.append(1)
        if len(count) == 4:  # the first one has no values: it is for the estimate
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return step(self, *rest)
    torch.optim.AdamW.step = stepped
if how == "comparison":
    from gptx_nb.engine import transfer
    from gptx_nb.engine.tasks.text_classification import Learner
    accuracy, loss = transfer.accuracy, Learner.loss
    def short_of_memory(*given, **named):
        failed = []
        def once(self, *rest):
            if failed:
                return loss(self, *rest)
            failed.append(1)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        Learner.loss = once
        return accuracy(*given, **named)
    transfer.accuracy = short_of_memory
sys.exit(worker.main(sys.argv[1:]))
"""
COUNTING = """
import itertools, sys
from gptx_nb import supervisor
how, worker, killing = sys.argv[3:6]
if killing == "counted":
    supervisor.out_of_memory_kills = itertools.count().__next__
supervisor.worker_command = lambda run, attempt: [sys.executable, "-c", worker, how, str(run.folder), str(attempt)]
sys.exit(supervisor.main(sys.argv[1:3]))
"""


@pytest.fixture(scope="module")
def undisturbed(still_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run to which nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTX_HOME", str(tmp_path_factory.mktemp("undisturbed")))
        return losses(launch.train("whole", in_steps(still_model), data=LONG, wait=True).run)


def in_steps(model: Path) -> Recipe:
    return recipe(model, epochs=3.0, batch_size=48, checkpoint_every=0.001)


@pytest.mark.parametrize("how", ["killed", "optimiser"])
def test_a_run_goes_on_from_its_last_checkpoint_with_less(
    home: Path, still_model: Path, undisturbed: dict[int, float], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def harmed(run: Run, attempt: int) -> list[str]:
        return [sys.executable, "-c", COUNTING, str(run.folder), str(attempt), how, HARMED, "counted"]

    monkeypatch.setattr(launch, "_supervisor_command", harmed)
    run = launch.train("harmed", in_steps(still_model), data=LONG, wait=True).run
    assert (run.state(), run.attempts()) == ("finished", 2)
    first = run.outcome(1)
    assert first is not None
    assert (first["reason"], first["again"]) == ("out of memory", True)
    if how == "optimiser":
        assert first["message"].startswith(
            "the device has too little memory: it computed 1,024 tokens at once. Type `to"
        )
    start = [record for record in run.history() if record["kind"] == "start"][-1]
    assert start["step"] == 2, "the last checkpoint: a step that was half done is done anew"
    assert (levers(run, 1)["token_budget"], levers(run, 2)["token_budget"]) == (1024, 512)
    assert "memory ran out in attempt 1: going on with 512 tokens at once" in " ".join(notes(run))
    assert len(losses(run)) == len(undisturbed) > 3
    assert losses(run) == pytest.approx(undisturbed, abs=1e-5)


def test_a_comparison_goes_on_with_less_too(home: Path, still_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmed(run: Run, attempt: int) -> list[str]:
        return [sys.executable, "-c", COUNTING, str(run.folder), str(attempt), "comparison", HARMED, "not counted"]

    monkeypatch.setattr(launch, "_supervisor_command", harmed)
    asked = recipe(still_model, epochs=2.0, validation=0.25, baseline="scratch", baseline_seeds=2)
    run = launch.train("compared", asked, data=LONG, wait=True).run
    assert (run.state(), run.attempts()) == ("finished", 1)
    scores = run.scores()
    assert scores is not None
    assert len(scores["transfer"]["scratch"]) == 2
    said = [note for note in notes(run) if note.startswith("memory ran out at step 1: going on with")]
    assert len(said) == 3, "each of three further trainings ran out once, and each began with what had been needed"
    assert levers(run, 1)["token_budget"] == 128


# ---- the supervisor -------------------------------------------------------------------------------------------------

DIES = """
import os, sys, time
from pathlib import Path
from gptx_nb import files
from gptx_nb.run_files import RunFiles
run, attempt = RunFiles(Path(sys.argv[2])), int(sys.argv[3])
at_once = 1024 >> attempt
state = {"left": sys.argv[1] != "all pulled", "token_budget": at_once, "ways": [f"{at_once} tokens at once"]}
files.write_json(run.levers_file(attempt), state)
os.kill(os.getpid(), 9)
"""


def after_deaths(how: str, counted: str, before: Callable[[Run], object] = lambda run: None) -> Run:
    asked = Recipe(examples=[["Good", "positive"], ["Bad", "negative"]])
    request = {"recipe": asked.model_dump(mode="json")}
    run = RunStore().create(f"run-{how[:3]}", lambda folder: files.write_json(folder / "request.json", request))
    before(run)
    subprocess.run([sys.executable, "-c", COUNTING, str(run.folder), "1", how, DIES, counted], check=True)
    give_up = time.monotonic() + 60
    while run.outcome() is None:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return run


def test_attempts_that_die_of_it_come_to_an_end(home: Path) -> None:
    run = after_deaths("dies", "counted", lambda run: files.write_json(run.settings_file(1), {"checkpoint_every": 7.0}))
    assert run.attempts() == 1 + supervisor.RETRIES
    assert run.state() == "failed"
    assert files.read_json(run.settings_file(5)) == {"checkpoint_every": 7.0}
    with pytest.raises(
        RunFailed, match=r"out of memory, 5 times in a row, it computed 32 tokens at once\. Type `tokens_at"
    ):
        launch.raise_if_bad(run)


def test_nothing_is_tried_again_where_nothing_is_left_to_try(home: Path) -> None:
    run = after_deaths("all pulled", "counted")
    assert run.attempts() == 1
    with pytest.raises(
        RunFailed, match=r"of memory, with 512 tokens at once\. Type a smaller max_length or `tune: lora`"
    ):
        launch.raise_if_bad(run)


def test_a_kill_without_evidence_is_somebodys_will(home: Path) -> None:
    run = after_deaths("dies", "not counted")
    assert (run.attempts(), run.state()) == (1, "interrupted")


def test_a_run_that_was_asked_to_stop_is_not_begun_again(home: Path) -> None:
    assert after_deaths("dies", "counted", Run.request_stop).attempts() == 1


def test_who_held_nearly_all_memory_and_was_killed_was_killed_for_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunStore().create("demo", lambda folder: files.write_json(folder / "request.json", {}))
    kill = [sys.executable, "-c", "import os; block = bytearray(60_000_000); os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(supervisor, "out_of_memory_kills", lambda: None)  # a container in which nothing is counted
    # Linux counts in what the process was before it became the worker: here, a large pytest.
    for total, reason in ((10**12, "killed"), (70_000_000, "out of memory")):
        monkeypatch.setattr(supervisor, "total_and_free", lambda total=total: (total, 0))
        outcome = supervisor.supervise(run, 1, kill)
        assert outcome["peak"] > 60_000_000
        assert outcome["reason"] == reason


def test_kills_of_long_ago_are_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    count = [4]
    monkeypatch.setattr(supervisor, "out_of_memory_kills", lambda: count[0])
    kills = supervisor._Kills()
    count[0] = 5
    kills.look()
    assert kills.since() == 1, "the look may have come after the death"
    kills.look()
    assert kills.since() == 0
    count[0] = 6
    assert kills.since() == 1


# ---- levers ---------------------------------------------------------------------------------------------------------


def learner(token_budget: int = 256) -> task.Learner:
    """64 rows of 8 tokens in a step, in two streams."""
    model, rows = small("llama"), [list(range(1, 9))] * 64
    options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": 64, "seed": 0, "token_budget": token_budget}
    return task.Learner(model, tuning.prepare(model, "full"), rows, [0, 1] * 32, rows[:2], streams=2, **options)


@pytest.fixture
def run(home: Path) -> Run:
    request = {"recipe": Recipe(data="df").model_dump(mode="json")}
    return RunStore().create("demo", lambda folder: files.write_json(folder / "request.json", request))


def ends(run: Run, attempt: int, reason: str, memory: int = 0) -> None:
    """Let an attempt have ended so; `lost`: without a word, having held `memory` bytes."""
    gone = replace(Process.of(os.getpid()), started="1")
    files.create_exclusive(run.claim_file(attempt), json.dumps(gone.to_json()).encode())
    writer = MetricsWriter(run.metrics_file(attempt))
    writer.append({"kind": "step", "step": 1, "memory": memory})
    writer.close()
    if reason != "lost":
        files.write_json(run.outcome_file(attempt), {"reason": reason, "exit_status": None, "signal": 9})


def begun(run: Run, attempt: int, asked: int | None = None) -> tuple[int, task.Learner, list[str]]:
    said: list[str] = []
    found, mine = learner(asked or 256), Levers(run, attempt, 0, said.append)
    mine.begin(found, CPU, asked)
    return levers(run, attempt)["pulled"], found, said


def test_each_attempt_that_runs_out_of_memory_pulls_more_levers(run: Run) -> None:
    assert begun(run, 1)[0] == 0
    ends(run, 1, "out of memory")
    pulled, found, said = begun(run, 2)
    assert (pulled, found.token_budget, found.streams) == (1, 128, 2)
    assert said[0].startswith(
        "memory ran out in attempt 1: going on with 128 tokens at once; the result stays the same"
    )
    assert begun(run, 2)[2] == [], "said once, though it may wait in line and begin anew"
    ends(run, 2, "out of memory")
    assert begun(run, 3)[0] == 3
    ends(run, 3, "out of memory")
    pulled, found, said = begun(run, 4)
    assert (pulled, found.token_budget, found.streams, levers(run, 4)["left"]) == (6, 16, 1, False)
    assert "with 16 tokens at once, one micro-batch at a time, activations computed twice; " in said[0]


def test_what_was_pulled_stays_pulled_until_the_user_asks_otherwise(run: Run) -> None:
    found, mine = learner(), Levers(run, 1, 0, lambda text: None)
    mine.begin(found, CPU, None)
    assert mine.pull(4)
    ends(run, 1, "stopped")
    pulled, found, said = begun(run, 2)
    assert (pulled, found.token_budget, said) == (1, 128, []), "as it was, so that its steps are the same"
    ends(run, 2, "killed")
    assert begun(run, 3)[0] == 1, "somebody's will"
    ends(run, 3, "out of memory")
    assert begun(run, 4, asked=256)[0] == 0


def test_what_changes_no_step_is_no_lever(run: Run) -> None:
    found, mine = learner(4096), Levers(run, 1, 0, lambda text: None)
    mine.begin(found, CPU, 4096)
    assert mine.pull(0)
    assert found.token_budget == 128, "a stream has 256 tokens: 2,048, 1,024, 512 and 256 would change nothing"
    assert levers(run, 1)["pulled"] == 1


def test_an_attempt_that_is_gone_without_a_word_tells_by_the_memory_it_held(run: Run) -> None:
    begun(run, 1)
    room = levers(run, 1)["room"]
    ends(run, 1, "lost", memory=room // 2)
    assert begun(run, 2)[0] == 0
    ends(run, 2, "lost", memory=room)
    assert begun(run, 3)[0] == 1


# ---- one process ----------------------------------------------------------------------------------------------------


def frozen_learner(method: str) -> task.Learner:
    model = small("gpt2")
    options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": 6, "seed": 0}
    return task.Learner(
        model, tuning.prepare(model, method), ROWS, [0, 1, 2, 0, 1, 2], ROWS, streams=1, token_budget=256, **options
    )


def kept(learner: task.Learner) -> torch.Tensor:
    assert learner.frozen is not None
    return learner.frozen.tensors(range(len(ROWS)))["kept"]


def attempt_of(run: Run, learner: task.Learner) -> Attempt:
    attempt = Attempt(run, 1, MetricsWriter(run.metrics_file(1)), Line(run, 1), None)
    attempt.levers.begin(learner, CPU, None)
    files.create_exclusive(run.claim_file(1), json.dumps(Process.of(os.getpid()).to_json()).encode())
    return attempt


@pytest.mark.parametrize("method", ["head", "top:1"])
def test_memory_that_runs_out_while_the_frozen_part_is_computed_takes_smaller_parts(
    run: Run, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = frozen_learner(method)
    whole.prepare(contextlib.nullcontext)
    forward = packing.decode

    def decode(decoder: Any, packed: Any, **more: Any) -> torch.Tensor:
        if packed["input_ids"].numel() > 40:
            raise RuntimeError(FULL)
        return forward(decoder, packed, **more)

    monkeypatch.setattr(packing, "decode", decode)
    found = frozen_learner(method)
    attempt_of(run, found)._keep_frozen_part(found, contextlib.nullcontext)
    assert torch.allclose(kept(found), kept(whole), atol=1e-6)
    said = notes(run)
    assert said[-1].startswith("memory ran out before the first step: going on with ")
    assert "activations computed twice" in said[-1]  # which no setting asks for
    assert said[-1].endswith(f"`tokens_at_once: {found.token_budget}` comes nearest to it")
    assert found.token_budget <= 40


def test_a_frozen_part_that_memory_has_no_room_for_goes_to_the_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = np.empty

    def no_room(shape: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(shape, tuple) and len(shape) == 2:
            raise MemoryError("Unable to allocate 9 GiB for an array")
        return empty(shape, *rest, **more)

    found = frozen_learner("head")
    attempt = attempt_of(run, found)
    monkeypatch.setattr(np, "empty", no_room)
    attempt._keep_frozen_part(found, contextlib.nullcontext)
    assert run.frozen_part.is_file()
    assert notes(run)[-1] == "frozen part kept on disk: memory ran out as it was computed"
    assert found.token_budget == 256


# ---- preflight ------------------------------------------------------------------------------------------------------


def held_by(found: task.Learner, optimizer: str) -> Whole:
    """Return the model of `found` as one process holds it."""
    settings = Settings(steps=3, learning_rate=1e-2, warmup=0.0, optimizer=optimizer)
    if optimizer == "masters":
        return Whole(found._model, Lowered(found._model, torch.bfloat16).optimizer(1e-2, 0.1, (0.9, 0.999)), BF16, None)
    return Whole(found._model, make_optimizer(found._model, settings), torch.float32, None)


def preflight(held: Whole, found: task.Learner, pull: Callable[[int], bool]) -> Batch:
    def with_less_memory(step: int, error: BaseException) -> Batch | None:
        return found.longest() if pull(step) else None

    here = Device(CPU, held.dtype, "", "", "", None, None)
    return trial.seconds_of(held, found.longest(), found.loss, here, 0, with_less_memory)[1]


def learnt(held: Whole, found: task.Learner, optimizer: str) -> list[float]:
    seen: list[float] = []
    train(
        held.model,
        held.optimizer,
        Settings(steps=3, learning_rate=1e-2, warmup=0.0, optimizer=optimizer),
        device=CPU,
        dtype=held.dtype,
        batch_at=found.step,
        loss_of=found.loss,
        record=lambda entry: seen.append(entry["loss"]),
        evaluate=lambda step: None,
        save=lambda step: None,
        should_stop=lambda: False,
    )
    return [*seen, *(float(each.detach().double().sum()) for each in held.model.parameters())]


def kept_beside(held: Whole) -> dict[str, torch.Size]:
    names = {each: name for name, each in held.model.named_parameters()}
    return {name: each.shape for name, each in optimizers.state(held.optimizer, names).items()}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "muon", "masters"])
def test_what_the_optimiser_keeps_is_there_before_the_first_step_and_changes_nothing(optimizer: str) -> None:
    if optimizer == "adamw-8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'gptx-nb[bitsandbytes]'")
    plain, tried = learner(), learner()
    without, tried_first = held_by(plain, optimizer), held_by(tried, optimizer)
    preflight(tried_first, tried, lambda step: False)
    before = kept_beside(tried_first)
    assert all(each.grad is None for each in tried_first.model.parameters())
    found = learnt(without, plain, optimizer)
    assert before == kept_beside(without), "as the first step makes it"
    assert learnt(tried_first, tried, optimizer) == found, "to the last bit"


def test_an_optimiser_that_does_not_fit_is_found_before_the_first_step(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, zeros_like = [2], torch.zeros_like

    def allocated(tensor: torch.Tensor, **more: Any) -> torch.Tensor:
        if room[0] and "memory_format" in more:  # as AdamW asks for what it keeps
            room[0] -= 1
            raise RuntimeError(FULL)
        return zeros_like(tensor, **more)

    plain, found = learner(), learner()
    undisturbed = learnt(held_by(plain, "adamw"), plain, "adamw")
    said: list[str] = []
    mine = Levers(run, 1, 0, said.append)
    mine.begin(found, CPU, None)
    held = held_by(found, "adamw")
    monkeypatch.setattr(torch, "zeros_like", allocated)
    taken = preflight(held, found, mine.pull)
    assert found.token_budget == 64, "two levers"
    assert [len(each["labels"]) for each in taken.micro] == [8] * 8
    assert said[-1].startswith("memory ran out before the first step: going on with 64 tokens at once")
    assert learnt(held, found, "adamw") == pytest.approx(undisturbed, rel=1e-4), "rows go together otherwise"

    room[0] = 99
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        preflight(held_by(found, "adamw"), found, mine.pull)
    said_last = _last_words(caught.value, run, mine)
    assert said_last["reason"] == "out of memory"
    assert said_last["message"].startswith("the device has too little memory: with 16 tokens at once, one micro-batch")


def test_a_model_that_writes_is_not_told_to_train_a_head() -> None:
    given = {"left": False, "ways": ["one micro-batch at a time"]}
    recipe = Recipe(data="df", tune="lora", max_length=512)
    assert memory_words.advice(recipe, given, False).endswith("Type `max_length: 256` or `tune: head`")
    assert memory_words.advice(recipe, given, True).endswith("Type `max_length: 256` or a smaller model")


def test_last_words_say_what_to_set(run: Run) -> None:
    found, mine = learner(), Levers(run, 1, 0, lambda text: None)
    said = _last_words(RuntimeError(FULL), run, mine)["message"]
    assert said == (
        "the device has too little memory: before the first step was tried. Type a smaller max_length or `tune: lora`"
    )
    mine.begin(found, CPU, None)
    said = _last_words(RuntimeError(FULL), run, mine)["message"]
    assert said == "the device has too little memory: it computed 256 tokens at once. Type `tokens_at_once: 128`"
    while mine.pull(0):
        pass
    files.write_text(run.recipe_file, Recipe(data="df", max_length=512).to_yaml())
    said = _last_words(RuntimeError(FULL), run, mine)
    assert said["message"] == (
        "the device has too little memory: with 16 tokens at once, one micro-batch at a time, activations computed "
        "twice. Type `max_length: 256` or `tune: lora`"
    )
    assert said["reason"] == "out of memory"


def test_a_rank_that_the_system_kills_for_want_of_memory_is_told_from_one_that_somebody_kills() -> None:
    from gptx_nb.engine.distributed import Failure

    failed = [Failure(0, 1), Failure(1, -signal.SIGKILL)]
    assert _cause(failed, [None, None], 1)["reason"] == "out of memory"
    assert _cause(failed, [None, None], 0)["reason"] == "killed"
    assert _cause(failed, [None, None], None)["reason"] == "killed"
