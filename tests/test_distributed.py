"""Several processes of one run: equal to one, and of one mind about how they end. On a CPU, through gloo."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_packing import CPU, PAD, ROWS, small
from waiting import until

from gptx_nb import launch, metrics
from gptx_nb.engine import device as devices
from gptx_nb.engine import distributed, memory, models, plan, setup, sharding, tuning
from gptx_nb.engine.data import Examples, Table
from gptx_nb.engine.distributed import Failure, Ranks
from gptx_nb.engine.jobs import Classification
from gptx_nb.engine.memory import Estimate
from gptx_nb.engine.tasks import head_start, text_classification
from gptx_nb.engine.train import Settings, make_optimizer
from gptx_nb.errors import DeviceError, ModelError, RecipeError
from gptx_nb.line import Demand
from gptx_nb.process import Process, start_time
from gptx_nb.progress import Progress
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.runs import Run, RunStore
from gptx_nb.views import panels
from gptx_nb.worker.__main__ import _cause

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are looked up in /proc")

TINY = Path(models.__file__).parent.parent / "models" / "tiny"
REVIEWS = pd.DataFrame(
    {
        "text": [
            f"{word} {thing}{' indeed' * length}"
            for length, thing in enumerate(("film", "book", "song", "meal"))
            for word in ("good", "bad", "fine", "poor")
        ],
        "label": ["positive", "negative"] * 8,
    }
)


@pytest.fixture(scope="session")
def still_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without dropout: what of a row is dropped depends on the rows beside it."""
    folder = tmp_path_factory.mktemp("models") / "still"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipe(model: Path, **settings: Any) -> Recipe:
    small = {"batch_size": 5, "device": "cpu", "dtype": "float32", "baselines": False, "epochs": 4.0}
    return Recipe(model=str(model), data="df", **{**small, **settings})


def steps(run: Run) -> list[int]:
    return [record["step"] for record in run.history() if record["kind"] == "step"]


def processes_of(run: Run, attempt: int = 1) -> list[int]:
    """The numbers of the ranks' processes."""
    leader = run.processes(attempt)["worker"].pid
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == leader:
                found.append(int(folder.name))
    return sorted(found)


@pytest.fixture(autouse=True)
def nothing_is_left(home: Path) -> Iterator[None]:
    yield
    for run in RunStore().runs():
        for evidence in run.processes(max(1, run.attempts())).values():
            if evidence.alive():
                os.kill(evidence.pid, signal.SIGKILL)


def test_the_rows_of_a_step_are_dealt_out_evenly() -> None:
    lengths = [5, 90, 10, 80, 20, 70, 1]
    shares = [distributed.share(lengths, rank, 3) for rank in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(7))
    tokens = [sum(lengths[place] for place in share) for share in shares]
    assert max(tokens) - min(tokens) <= 10
    assert [distributed.share([7], rank, 2) for rank in range(2)] == [[0], []]


def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.count("all", "cpu") == 1
    assert devices.count(2, "cpu") == 2
    assert devices.of_rank("cpu", 1) == "cpu"
    monkeypatch.setattr(devices, "available", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices.count("all") == 4
    assert devices.of_rank("auto", 3) == "cuda:3"
    with pytest.raises(DeviceError, match=r"devices: 5 were asked for, and torch finds 4 cuda .* Type `devices: all`"):
        devices.count(5)


def test_a_number_of_devices_has_to_fit() -> None:
    assert make_recipe({"devices": "all"}).devices == "all"
    assert make_recipe({"devices": 4}).digest() == make_recipe({}).digest()
    for wrong in (0, "two", 65):
        with pytest.raises(RecipeError, match="devices: "):
            make_recipe({"devices": wrong})
    with pytest.raises(RecipeError, match="Type `device: cuda`, or leave devices out"):
        make_recipe({"devices": 2, "device": "cuda:1"})


def test_ranks_demand_what_all_of_them_take() -> None:
    one = Demand(held=1, to_come=2, free=10)
    assert memory.together([{"cpu": one}, {"cpu": one}]) == {"cpu": Demand(2, 4, 10)}
    assert set(memory.together([{"cuda:0": one}, {"cuda:1": one}])) == {"cuda:0", "cuda:1"}
    assert memory.together([{"cpu": one}, {}]) == {}


def furthest_apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between weights of two GPT-2, but for the biases of keys.

    These add the same to every score of a query, which softmax does not see: their gradient is zero, AdamW makes steps
    of a share of the learning rate from its rounding, and nothing that the model says depends on them.
    """
    most = 0.0
    for name in ours:
        apart = (ours[name] - theirs[name]).abs()
        if name.endswith("attn.c_attn.bias"):  # of queries, keys and values, one after the other
            width = len(apart) // 3
            apart[width : 2 * width] = 0
        most = max(most, float(apart.max()))
    return most


def test_two_processes_train_what_one_trains(home: Path, still_model: Path) -> None:
    for batch_size in (5, 12):
        asked = recipe(still_model, batch_size=batch_size, learning_rate=1e-4, head="words")
        one = launch.train("one", asked, data=REVIEWS, wait=True).run
        two = launch.train("two", asked.model_copy(update={"devices": 2}), data=REVIEWS, wait=True).run
        assert two.state() == "finished"
        ours, theirs = (load_file(run.model / "model.safetensors") for run in (two, one))
        assert set(ours) == set(theirs)
        before = load_file(still_model / "model.safetensors")
        moved = max(float((theirs[name] - before[name]).abs().max()) for name in before if name in theirs)
        assert moved > 3e-4, "weights were trained"
        assert furthest_apart(ours, theirs) < 1e-5
        losses = [[each["loss"] for each in run.history() if each["kind"] == "step"] for run in (one, two)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        tokens = [[each["tokens"] for each in run.history() if each["kind"] == "step"] for run in (one, two)]
        assert tokens[0] == tokens[1]
        plan = two.plan()
        assert plan is not None
        assert plan["devices"]["choice"] == 2
        assert plan["memory"]["reason"].startswith("at the peak in each of 2 processes: ")
        assert plan["head"]["choice"] == "words", "which one rank has found out for both"
        assert plan["train_rows"] % 12 == 1, "of the last step of 12 one rank has no row"
        assert two.recipe().device == "cpu"


def test_a_live_run_shows_each_rank_and_goes_on_after_a_kill(home: Path, tiny_model: Path) -> None:
    asked = recipe(tiny_model, epochs=60.0, checkpoint_every=0.05, keep="last", devices=2)
    run = launch.train("ranks", asked, data=REVIEWS).run
    until(lambda: len(steps(run)) > 20)
    seen = Progress(run).refresh()
    rows = seen.rank_rows()
    assert [(rank, device) for rank, device, _, _ in rows] == [("0", "cpu"), ("1", "cpu")]
    assert all(speed and memory.endswith("MB") for _, _, speed, memory in rows)
    assert "tokens/s on 2 devices" in seen.line()
    assert ">rank</th>" in panels.live(run, seen)["text/html"]
    assert listening([run.processes(1)["worker"].pid, *processes_of(run)]) == {"127.0.0.1"}

    ranks = processes_of(run)
    assert len(ranks) == 2
    evidence = [Process.of(pid) for pid in ranks]
    os.kill(ranks[1], signal.SIGKILL)
    outcome = launch.wait(run, timeout=120)
    assert run.state() == "interrupted"
    assert "was ended by SIGKILL, and the others were ended with it" in outcome["message"]
    until(lambda: not any(each.alive() for each in evidence))

    again = launch.train("ranks", asked, data=REVIEWS, wait=True)
    assert (again.action, run.state()) == ("resumed", "finished")
    starts = [
        each["step"]
        for attempt in (1, 2)
        for each in metrics.read(run.metrics_file(attempt))[0]
        if each["kind"] == "start"
    ]
    assert starts[0] == 0
    assert starts[1] > 0
    assert steps(run) == list(range(1, steps(run)[-1] + 1))
    whole = launch.train("whole", asked, data=REVIEWS, wait=True).run
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "as if it had never been cut"


def listening(pids: list[int]) -> set[str]:
    """The addresses at which one of the processes waits for connections."""
    sockets = {
        os.readlink(link)[8:-1]
        for pid in pids
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.islink(link) and os.readlink(link).startswith("socket:")
    }
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add("127.0.0.1" if fields[1].startswith("0100007F:") else fields[1])
    return found


def test_all_ranks_stop_as_asked_and_as_told_by_a_signal(home: Path, tiny_model: Path) -> None:
    asked = recipe(tiny_model, epochs=1000.0, devices=2)
    run = launch.train("stopped", asked, data=REVIEWS).run
    until(lambda: len(steps(run)) > 3)
    ranks = processes_of(run)
    launch.stop(run)
    assert run.state() == "stopped"
    assert not any(start_time(pid) for pid in ranks)
    assert run.model.is_dir()

    launch.train("stopped", asked, data=REVIEWS)
    until(lambda: any(each["kind"] == "step" for each in metrics.read(run.metrics_file(2))[0]))
    os.kill(run.processes(2)["worker"].pid, signal.SIGTERM)
    assert launch.wait(run, timeout=120)["reason"] == "stopped"


def test_ranks_end_when_what_started_them_is_killed(home: Path, tiny_model: Path) -> None:
    run = launch.train("orphans", recipe(tiny_model, epochs=1000.0, devices=2), data=REVIEWS).run
    until(lambda: len(steps(run)) > 3)
    ranks = [Process.of(pid) for pid in processes_of(run)]
    os.kill(run.processes(1)["worker"].pid, signal.SIGKILL)
    until(lambda: not any(each.alive() for each in ranks))
    assert run.state() == "interrupted"


def words(error: str | None, message: str, at: float, reason: str = "failed") -> dict[str, Any]:
    return {"reason": reason, "error": error, "message": message, "time": at}


def test_of_several_ranks_that_fail_the_first_is_named() -> None:
    gone = words("RuntimeError", "Connection closed by peer", 2.0)
    full = words("OutOfMemoryError", "too little memory", 1.0, "out of memory")
    failed = [Failure(0, 1), Failure(1, 1)]
    found = _cause(failed, [gone, full])
    assert (found["reason"], found["message"]) == ("out of memory", "rank 1: too little memory")
    assert _cause([Failure(0, -signal.SIGTERM), Failure(1, 1)], [None, full])["message"] == "rank 1: too little memory"
    killed = _cause([Failure(0, 1), Failure(1, -signal.SIGKILL)], [gone, None])
    assert killed["reason"] == "killed"
    assert killed["message"] == "rank 1 was ended by SIGKILL, and the others were ended with it"
    assert _cause([], [None, None])["message"] == "all ranks were ended before they had saved"


def test_a_mistake_that_every_rank_finds_is_told_once(home: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="/nowhere/at/all"):
        launch.train("mistaken", recipe(Path("/nowhere/at/all"), devices=2), data=REVIEWS)
    assert RunStore().names() == []


def test_what_a_classifier_begins_with_is_found_out_by_one_rank(
    still_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Examples(list(REVIEWS["text"]), [int(label == "positive") for label in REVIEWS["label"]])
    table = Table(data, data, ["negative", "positive"], {"label": "label", "text": "text", "columns": []})
    asked = recipe(still_model, devices=2)
    choose = head_start.choose

    def prepared(ranks: Any) -> tuple[Classification, setup.Setup]:
        job = Classification(table, asked)
        return job, setup.prepare(asked, job, lambda note: None, ranks=ranks)

    def rank(number: int) -> Ranks:
        for name, value in (("RANK", number), ("WORLD_SIZE", 2), (distributed.FOLDER, tmp_path)):
            monkeypatch.setenv(name, str(value))
        return Ranks()

    alone, by_itself = prepared(distributed.ALONE)
    first = rank(0)
    # The other one comes after it here, and has to be waited for elsewhere; it finds that the whole model fits.
    first._store.set("loaded/1", "null")
    first._store.set("sharding/1", "false")
    started, one = prepared(first)
    monkeypatch.setattr(head_start, "choose", lambda *_: pytest.fail("asked once more"))
    told, other = prepared(rank(1))
    monkeypatch.setattr(head_start, "choose", choose)
    assert told.start.wording == started.start.wording == alone.start.wording
    assert told.start.reason == alone.start.reason
    heads = [made.model.get_submodule("score").weight for made in (by_itself, one, other)]
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])
    assert one.estimate is not None
    assert by_itself.estimate is not None
    assert one.estimate.activations < by_itself.estimate.activations, "a rank has its share of a step's rows"


def test_memory_that_all_ranks_share_has_to_do_for_all_of_them() -> None:
    needs = Estimate(weights=1, gradients=10, optimiser=20, activations=60, working=10, allocator=0, process=5)
    asked: list[int] = []

    def advice(free: int) -> str:
        asked.append(free)
        return "Type `tokens_at_once: 16`, which would fit"

    _, warnings = plan.memory(needs, 200, advice)
    assert warnings == []
    said, warnings = plan.memory(needs, 200, advice, sharing=2)
    assert warnings[0].endswith("of memory are free. Type `tokens_at_once: 16`, which would fit")
    assert asked == [100]
    assert said["reason"].startswith("at the peak in each of 2 processes: ")


def test_a_copy_of_gradients_that_are_summed_counts_where_it_is_the_most() -> None:
    made = [memory_of_a_step(summed) for summed in (0, 10**9)]
    assert made[1].total - made[0].total > 9 * 10**8
    assert made[1].weights == made[0].weights


def test_the_copy_of_a_shared_model_that_is_scored_counts_where_it_is_the_most() -> None:
    model = small("gpt2")

    def shards(dtype: torch.dtype, device: str, rank: int = 0) -> memory.Shards:
        return sharding.memory_of(model, dtype, torch.device(device), rank, 2)

    whole = shards(torch.float32, "cuda").scored
    assert whole == 4 * model.num_parameters()
    assert shards(torch.bfloat16, "cuda").scored == shards(torch.bfloat16, "cpu").scored == whole // 2
    assert shards(torch.float32, "cpu").scored == 0, "the plain model is there"
    assert shards(torch.float32, "cuda", rank=1).scored == 0, "the first process scores"
    ours = shards(torch.float32, "cpu")
    made = [memory_of_a_step(0, replace(ours, scored=scored)) for scored in (0, 1000, 10**9)]
    assert made[1] == made[0], "it is gone when the next step begins"
    assert made[2].working == 10**9
    assert made[2].activations == made[2].gradients == 0 < made[2].optimiser


def memory_of_a_step(summed: int, shards: memory.Shards | None = None) -> Estimate:
    model = small("gpt2")
    tuned = tuning.prepare(model, "full")
    options: dict[str, Any] = {"pad_id": PAD, "device": CPU, "batch_size": 6, "seed": 0, "token_budget": 256}
    learner = text_classification.Learner(model, tuned, ROWS, [0, 1, 2, 0, 1, 2], ROWS, **options)
    return memory.estimate(
        model,
        learner.longest().micro[0],
        loss_of=learner.whole_loss,
        make_optimizer=lambda each: make_optimizer(each, Settings(steps=1, learning_rate=1e-3)),
        device=CPU,
        dtype=torch.float32,
        summed=summed,
        shards=shards,
    )
