"""Start, attach, resume, show, wait for, stop: what running a cell does. Trains nothing and loads no ML library.

A cell is a wish, not a command. `train` compares what is asked with the latest version of that name: settings that
decide the model, bytes of the examples and of a base model on this disk, version of gptx_nb. All equal: attach to it
while it trains, resume it after it broke off, show it once it has finished. Anything else makes the next version. Of
two cells that run at once one claims the attempt, and both attach. Interrupting a wait never touches the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gptx_nb
from gptx_nb import digests, files, line, memory_words, metrics, writing_words
from gptx_nb.catalog import CATALOG, RUN
from gptx_nb.errors import BY_NAME, DISK_FULL, ModelError, RecipeError, RunFailed, RunNotFound, UsageError
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.recipe import SOURCES, Recipe, Settings, check_name, matters
from gptx_nb.run_files import RunFiles, home
from gptx_nb.runs import ACTIVE, Run, RunStore
from gptx_nb.sources import Source, stage
from gptx_nb.supervisor import CLAIMED, LOST

Progress = Callable[[Run], None]
Sources = dict[str, Source | None]

POLL = 0.05  # seconds between looks while a run is checked before training
LONG_ENOUGH = 15.0  # seconds that a cell waits while texts are prepared
_PAST_PREFLIGHT = ("queue", "frozen", "training", "scoring", "saving")


@dataclass(frozen=True)
class Launched:
    """What running a cell came to. `note` is one line for the user, or empty."""

    run: Run
    action: Literal["new", "attached", "resumed", "shown"]
    note: str = ""


def train(
    name: str,
    recipe: AnyRecipe,
    *,
    data: object | None = None,
    validation: object | None = None,
    wait: bool = False,
    progress: Progress | None = None,
) -> Launched:
    """Make sure that the run `name` with this recipe and data is trained, and return once training has begun.

    `data` and `validation` are objects of the caller, where the recipe's own text does not say all (see sources.stage).
    With `wait`, return when the run has ended. `progress` is called with the run while this waits. Raises UsageError
    for a mistake, after which nothing is left behind, and RunFailed where the run broke off.
    """
    check_name(name)
    if isinstance(recipe, Recipe) and recipe.shots is not None and recipe.validation == 0:
        raise RecipeError(
            "shots: with `validation: 0` no row is held back on which a base model could be scored. Leave "
            "`shots` or `validation: 0` out"
        )
    store = RunStore()
    launched: Launched | None = None
    try:
        recipe = settled(recipe, progress)
        with _staging() as folder:
            sources = stage(recipe, data, validation, folder)
            while launched is None or not _preflight(launched, store, progress):
                try:
                    launched = _launch(store, name, recipe, sources, folder, progress)
                except (FileExistsError, RunNotFound):
                    launched = None  # another cell was quicker to make, or to withdraw, that version: look again
        assert launched is not None
        if wait:
            _until_ended(launched.run, progress)
    except KeyboardInterrupt:
        if launched is None:
            raise
        raise KeyboardInterrupt(_goes_on(launched.run)) from None
    if wait:
        raise_if_bad(launched.run)
    return launched


def settled(recipe: AnyRecipe, progress: Progress | None = None) -> AnyRecipe:
    """Return `recipe` with its base model as a worker finds it: a run by its version, a path whole."""
    return _with_whole_path(_with_run(recipe, RunStore(), progress))


def resume(run: Run, progress: Progress | None = None) -> Launched:
    """Go on with `run` as its latest attempt was asked to, for a view that has a run and no cell.

    Returns once training has begun. Raises UsageError where there is nothing to go on with, else as `finetune` does.
    """
    state = run.state()
    if state == "finished" or state in ACTIVE:
        raise UsageError(f"{_called(run)} cannot be resumed: it is {state}")
    code = run.request().get("code")
    if code != gptx_nb.__version__:
        raise UsageError(
            f"{_called(run)} was begun by gptx_nb {code}, and this is {gptx_nb.__version__}, which may compute "
            "otherwise. Start it anew from its recipe"
        )
    attempt = run.attempts()
    run.withdraw_stop()
    if settings := files.read_json(run.settings_file(attempt)):
        files.write_json(run.settings_file(attempt + 1), settings)
    action: Literal["resumed", "attached"] = "resumed" if _start(run, attempt + 1, progress) else "attached"
    launched = Launched(run, action, f"{_called(run)} was {state}: going on with attempt {run.attempts()}")
    _preflight(launched, RunStore(run.folder.parents[2]), progress)
    return launched


def wait(run: Run, progress: Progress | None = None, timeout: float | None = None) -> dict[str, Any]:
    """Wait until the run has ended and return its outcome (see Run.outcome); TimeoutError after `timeout` seconds."""
    return _until_ended(run, progress, timeout)


def _until_ended(run: Run, progress: Progress | None = None, timeout: float | None = None) -> dict[str, Any]:
    give_up = None if timeout is None else time.monotonic() + timeout
    while (outcome := run.outcome()) is None:
        _still_there(run)
        if give_up is not None and time.monotonic() >= give_up:
            raise TimeoutError(f"{_called(run)} still goes on after {timeout:g} seconds of waiting")
        if progress:
            progress(run)
        time.sleep(0.2)
    if progress:
        progress(run)
    return outcome


def stop(run: Run, wait_seconds: float = 60, progress: Progress | None = None) -> str:
    """Ask the run to save and stop, wait for that, and say in one line what came of it. Nothing is killed."""
    if not run.active:
        return f"{_called(run)} does not train: it is {run.state()}"
    waited = line.waits(run, run.attempts())
    run.request_stop()
    try:
        _until_ended(run, progress, wait_seconds)
    except TimeoutError:
        log = run.log_file(max(1, run.attempts()))
        return (
            f"{_called(run)} was asked to stop and has not answered for {wait_seconds:g} seconds. It looks at every "
            f"step, so a long step or scoring delays it; the request stands. Log: {log}"
        )
    if run.state() == "stopped":
        if waited:
            return f"{_called(run)} has left the line. Run its cell again to go on: `{run.cell}`"
        if nothing_saved(run):
            return f"{_called(run)} has stopped; nothing was saved yet. Run its cell again to begin anew: `{run.cell}`"
        return f"{_called(run)} has saved and stopped. Run its cell again to go on: `{run.cell}`"
    return f"{_called(run)} is {run.state()}"


def nothing_saved(run: Run) -> bool:
    """Whether `run` was stopped so early that nothing is left: texts that are being prepared are not kept."""
    return run.kind is PretrainRecipe and not run.report_file.exists()


def kill(run: Run) -> str:
    """End the run's processes at once, without saving, and say in one line what came of it.

    What was saved stays. Raises UsageError where there is no process of it on this computer.
    """
    worker = run.processes(run.attempts()).get("worker")
    if not run.active or worker is None:
        raise UsageError(f"{_called(run)} has no process to end: it is {run.state()}")
    if worker.alive() is None:
        raise UsageError(f"{_called(run)} trains on another computer. `%gpt_stop {run.name}` saves and stops it")
    run.request_stop()  # so that nobody takes this death for one of want of memory, and goes on with it
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.killpg(worker.pid, signal.SIGKILL)  # the supervisor gave it a group of its own
    return f"{_called(run)} was ended. Run its cell again to go on from its last checkpoint: `{run.cell}`"


def raise_if_bad(run: Run) -> None:
    """Raise RunFailed if the latest attempt broke off, or the mistake that ended it."""
    outcome = run.outcome()
    if outcome is None or run.state() not in ("failed", "interrupted"):
        return
    if outcome["reason"] == "mistake":
        raise _mistake(outcome)
    saved = run.checkpoints.is_dir() and any(path.name.isdigit() for path in run.checkpoints.iterdir())
    again = "to resume it from its last checkpoint" if saved else "to try once more; nothing was saved yet"
    shown = ""
    if outcome.get("error") != DISK_FULL:  # of which the log says no more
        tail = run.log_tail()
        shown = f"\nLog: {run.log_file(run.attempts())}" + (f"\nIts last lines:\n{tail}" if tail else " (it is empty)")
    raise RunFailed(
        f"{_called(run)} broke off: {_cause(run, outcome)}{shown}\nRun the cell `{run.cell}` again {again}."
    )


# ---- what to do -----------------------------------------------------------------------------------------------------


def _launch(
    store: RunStore, name: str, recipe: AnyRecipe, sources: Sources, staged: Path, progress: Progress | None
) -> Launched:
    """Attach, resume, show or make; raises FileExistsError or RunNotFound where another cell came in between."""
    request = _request(recipe, sources)
    # The number first: a version that another cell makes in between is then seen as the latest, or stands in the way.
    version = store.next_version(name)
    latest = store.latest(name)
    if latest is not None and latest.request()["digest"] == request["digest"]:
        attempt = latest.attempts()  # before the state: an attempt that is claimed from here on must not be passed over
        state = latest.state()
        if state == "stopping":  # its answer decides: let it save first
            with _going_on(latest):
                _until_ended(latest, progress)
            state = latest.state()
        if state == "elsewhere":  # or it ended there together with its container: that shows after a while
            with _going_on(latest):
                _until_known(latest, attempt, progress)
            state = latest.state()
        changed = _free_changes(latest, recipe)
        if state in ACTIVE:
            if attempt == 0:  # made, and its maker may be gone
                _start(latest, 1, progress)
            where = " on another computer" if state == "elsewhere" else ""
            doing = "waits in line" if line.waits(latest, attempt) else "is training already"
            note = f"{_called(latest)} {doing}{where}: showing it"
            if changed:
                note += f". To have {changed}, type `%gpt_stop {name}` and run this cell again"
            return Launched(latest, "attached", note)
        if state == "finished" and latest.model.is_dir() and not _wants_comparison(latest, recipe):
            return Launched(latest, "shown", f"{_called(latest)} has finished with this recipe and data: showing it")
        if state != "finished" or latest.model.is_dir():
            latest.withdraw_stop()
            files.write_json(latest.settings_file(attempt + 1), _free(recipe))
            if _start(latest, attempt + 1, progress):
                note = f"{_called(latest)} was {state}: going on with attempt {attempt + 1}"
                return Launched(latest, "resumed", f"{note}, with {changed}" if changed else note)
            return Launched(latest, "attached", f"{_called(latest)} is training already: showing it")

    def fill(folder: Path) -> None:
        inside = RunFiles(folder)
        files.write_json(inside.request_file, request)
        if RunFiles(staged).source.is_dir():
            inside.source.mkdir()
            # Linked, not moved: where another cell makes this version first, the rows are wanted again.
            for table in RunFiles(staged).source.iterdir():
                files.link(table, inside.source / table.name)

    note = _difference(latest, request) if latest else ""
    run = store.create(name, fill, version)
    _start(run, 1, progress)
    return Launched(run, "new", note)


def _wants_comparison(run: Run, recipe: AnyRecipe) -> bool:
    """Whether `recipe` asks to compare the finished `run` with random weights, over seeds that were not yet."""
    if not isinstance(recipe, Recipe) or recipe.baseline is None:
        return False
    scores = run.scores() or {}
    known = len((scores.get("transfer") or {}).get("scratch") or ())
    return bool(scores.get("validation")) and known < recipe.baseline_seeds


def _until_known(run: Run, attempt: int, progress: Progress | None) -> None:
    """Wait until an attempt on another computer has shown a sign of life, or none for too long."""
    while run.alive(attempt) is None and run.outcome() is None:
        _still_there(run)
        if progress:
            progress(run)
        time.sleep(0.2)


def _request(recipe: AnyRecipe, sources: Sources) -> dict[str, Any]:
    """Return what is written into request.json. Its digest is the same for cells that wish for the same model."""
    code = gptx_nb.__version__
    base = _base_fingerprint(recipe.base)
    deciding = {
        "kind": recipe.kind,
        "recipe": recipe.digest(),
        "base": base,
        "code": code,
        **{name: source.fingerprint if source else None for name, source in sources.items()},
    }
    return {
        "kind": recipe.kind,
        "recipe": recipe.model_dump(mode="json"),
        "source": {name: source.to_json() if source else None for name, source in sources.items()},
        "base": base,
        "digest": hashlib.sha256(json.dumps(deciding, sort_keys=True).encode("utf-8")).hexdigest(),
        "code": code,
        "created": time.time(),
    }


def _free(recipe: Settings) -> dict[str, Any]:
    """Return the settings that may change from attempt to attempt: the trained model is the same."""
    return {name: value for name, value in recipe.model_dump(mode="json").items() if not matters(name, type(recipe))}


def _free_changes(run: Run, recipe: Settings) -> str:
    """Say which of those are now asked for otherwise than in the latest attempt of `run`."""
    before = _free(run.recipe())
    return ", ".join(
        f"{name}: {value} ({before[name]} before)" for name, value in _free(recipe).items() if value != before[name]
    )


def _difference(older: Run, request: dict[str, Any]) -> str:
    """Say in one line what makes the new version differ from `older`."""
    before = older.request()
    if before.get("kind", "finetune") != request["kind"]:
        return f"{_called(older)} is another kind of run: {older.cell} made it"
    changed = [
        name
        for name, value in request["recipe"].items()
        if name not in SOURCES
        and matters(name, older.kind)
        and before["recipe"].get(name) != value
        and not (name == "validation" and isinstance(value, str))  # a table: below, by what it holds
    ]
    for name, what in (("train", "the examples"), ("validation", "the validation table")):
        old, new = before["source"][name], request["source"][name]
        if (old and old["fingerprint"]) != (new and new["fingerprint"]):
            changed.append(what)
    if older.kind.base_setting not in changed and before.get("base") != request["base"]:
        changed.append("the base model's files")
    if before["code"] != request["code"]:
        changed.append(f"gptx_nb ({before['code']} before, {request['code']} now)")
    why = (
        f"changed since version {older.version}: {', '.join(changed)}" if changed else f"{_called(older)} has no model"
    )
    if older.active:
        why += f". Version {older.version} still trains; `%gpt_stop {older.name}/{older.version}` stops it"
    return why


def _preflight(launched: Launched, store: RunStore, progress: Progress | None) -> bool:
    """Wait until the run's data, model and device have proved good; False where another cell has withdrawn the run.

    A mistake found on the way is raised, and a run in which nothing had begun is removed. Raises RunFailed where the
    worker broke off.
    """
    run = launched.run
    if launched.action == "shown":
        return True
    looks = 0
    outcome: dict[str, Any] | None = None
    while outcome is None:
        if not run.request_file.exists():
            return False
        attempt = run.attempts()  # where memory runs out, the next one is begun for it
        if _has_begun(run, attempt):
            return True
        # Whether processes live is dearer to find out than whether a file is there.
        if looks % 20 == 19 or run.outcome_file(attempt).exists():
            outcome = run.outcome()
        if progress:
            progress(run)
        time.sleep(POLL)
        looks += 1
    if outcome["reason"] == "mistake":
        if not run.plan_file.exists():
            store.remove(run)
        raise _mistake(outcome)
    raise_if_bad(run)
    return True


def _has_begun(run: Run, attempt: int) -> bool:
    records, _ = metrics.read(run.metrics_file(attempt))
    preparing = [record["time"] for record in records if record.get("phase") == "corpus"]
    if preparing and preparing[-1] - preparing[0] > LONG_ENOUGH:
        return True  # many texts take their time; what is wrong with them is told with the run
    if not run.plan_file.exists():
        return False
    # The plan is there before the trial step, and may be left from an earlier attempt.
    return any(record.get("kind") in ("start", "step") or record.get("phase") in _PAST_PREFLIGHT for record in records)


def _start(run: Run, attempt: int, progress: Progress | None) -> bool:
    """Start a supervisor for `attempt`; True if it has claimed it, False if another one has."""
    try:
        log = run.log_file(attempt).open("ab")
    except FileNotFoundError:
        raise RunNotFound(f"{_called(run)} is gone") from None
    with log, _going_on(run):
        try:
            if progress:  # from here on an interrupt is shown with the run
                progress(run)
        finally:  # an interrupt ends the waiting, and the run is made by now
            supervisor = subprocess.Popen(
                _supervisor_command(run, attempt),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment(),
                # What a Jupyter server sends to the kernel's process group, or the kernel to its children, ends here.
                start_new_session=True,
            )
        status = supervisor.wait()
    if status not in (CLAIMED, LOST):
        raise RunFailed(
            f"{_called(run)} could not be started.\nLog: {run.log_file(attempt)}\n{run.log_tail()}\n"
            f"Run the cell `{run.cell}` again once that is mended."
        )
    return status == CLAIMED


def _supervisor_command(run: Run, attempt: int) -> list[str]:
    # -P: the folder it is started in is no place to import from.
    return [sys.executable, "-P", "-m", "gptx_nb.supervisor", str(run.folder), str(attempt)]


# How OpenMP's threads wait for work. Those that only spin starve every other process of the cores, and ours beside
# them: measured on two busy cores, a run took 3 times as long. Those that sleep at once are woken too late for work of
# 0.1 ms. GNU's, which torch has on Linux, spin so many times before they sleep, some tenths of a millisecond (16 rows
# written by smollm2-135m, two cores: 235 tokens/s asleep at once, 310 so; beside another busy process 215 and 200, and
# 140 if they only spin).
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}


def waiting(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what of `WAITING` a process with these environment variables is given: nothing where the user decided."""
    if "OMP_WAIT_POLICY" in variables:
        return {}
    return {name: value for name, value in WAITING.items() if name not in variables}


def environment() -> dict[str, str]:
    """Return the environment for a process of ours: this one's, with the same home and the same gptx_nb."""
    variables = {**os.environ, "GPTX_HOME": str(home()), "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    variables |= waiting(variables)
    # Small objects that glibc keeps for reuse hold large blocks apart: without them the peak of memory is up to a third
    # lower, and the same from run to run. No slower, measured.
    variables.setdefault("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    package = str(Path(gptx_nb.__file__).resolve().parent.parent)
    # A folder of installed packages is found anyway; named here, it would come before the standard library.
    if package not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        given = variables.get("PYTHONPATH")
        variables["PYTHONPATH"] = os.pathsep.join([package, given] if given else [package])
    return variables


def _with_run(recipe: AnyRecipe, store: RunStore, progress: Progress | None) -> AnyRecipe:
    """Return `recipe` with the version of the run that it begins with, as `run:NAME/2`; wait while that run trains."""
    typed = recipe.base or ""
    if not typed.startswith(RUN):
        return recipe
    setting = recipe.base_setting
    try:
        run = store.find(typed.removeprefix(RUN))
    except UsageError as error:
        raise ModelError(f"{setting}: {error}") from None
    if run.active:
        with _going_on(run):
            _until_ended(run, progress)
    raise_if_bad(run)
    if not run.model.is_dir():
        raise ModelError(
            f"{setting}: {_called(run)} has no model: it is {run.state()}. Run the cell `{run.cell}` first"
        )
    return recipe.with_base(f"{RUN}{run.name}/{run.version}")


def _with_whole_path(recipe: AnyRecipe) -> AnyRecipe:
    """Return `recipe` with the relative path of a base model or tokenizer made whole: the worker runs elsewhere."""
    if isinstance(recipe, PretrainRecipe) and (tokenizer := _whole_path(recipe.tokenizer)):
        recipe = recipe.model_copy(update={"tokenizer": tokenizer})
    path = _whole_path(recipe.base)
    return recipe.with_base(path) if path else recipe


def _whole_path(name: str | None) -> str | None:
    """Return the whole path that `name` stands for; None: it names no file or folder of this machine."""
    if name is None or name.startswith(RUN) or name in CATALOG:
        return None
    path = os.path.abspath(os.path.expanduser(name))
    like_path = name.startswith(("./", "../", "~", "/")) or name.endswith(".gguf")
    return path if like_path or Path(path).exists() else None


def _base_fingerprint(model: str | None) -> str | None:
    """Return a SHA-256 over the names and bytes of a base model on this disk, None for one that has a name only.

    A folder or file that is not there is told by the worker, which knows what a base model needs.
    """
    if model is None:
        return None
    path = RunStore().find(model.removeprefix(RUN)).model if model.startswith(RUN) else Path(model)
    if not path.is_absolute():
        return None
    try:
        return digests.of_model(path)
    except OSError as error:
        raise ModelError(
            f"model: {error.filename or path} cannot be opened: {error.strerror or error}. Check its permissions"
        ) from None


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
    """An empty folder on the disk of the runs, which is gone afterwards."""
    place = home() / "staging"
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=place)
    except OSError as error:
        raise UsageError(
            f"nothing can be written to {home()}: {error.strerror or error}. Set GPTX_HOME to a folder of yours, as in "
            "`%env GPTX_HOME=~/gptx`"
        ) from None
    try:
        yield Path(folder)
    except OSError as error:
        if not files.disk_is_full(error):
            raise
        raise UsageError(
            f"no room is left on the disk of {home()}. Free some, or set GPTX_HOME to a folder on another disk, as in "
            "`%env GPTX_HOME=/elsewhere/gptx`"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- words ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _going_on(run: Run) -> Iterator[None]:
    """Let an interrupt end the waiting, and say that it has not ended the run."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_goes_on(run)) from None


def _goes_on(run: Run) -> str:
    return f"{_called(run)} goes on training. See it with `%gpt_watch {run.name}`, end it with `%gpt_stop {run.name}`"


def _called(run: Run) -> str:
    return f"run {run.name} version {run.version}"


def _still_there(run: Run) -> None:
    if not run.request_file.exists():
        raise RunNotFound(f"{_called(run)} was removed. Run its cell again to train it anew")


def _mistake(outcome: dict[str, Any]) -> Exception:
    return BY_NAME.get(outcome["error"] or "", UsageError)(outcome["message"] or "the worker refused its recipe")


def _cause(run: Run, outcome: dict[str, Any]) -> str:
    if outcome.get("error") == DISK_FULL:
        return f"{outcome['message']}."
    said = f"{outcome['error'] or 'error'}: {outcome['message']}" if outcome["message"] else ""
    if outcome["reason"] == "out of memory":
        attempt = run.attempts()
        tries = memory_words.in_a_row(run, attempt)
        times = f", {tries} times in a row" if tries > 1 else ""
        if outcome["message"]:  # its own last words, which say what to type
            return f"out of memory{times} ({outcome['error']}): {outcome['message']}."
        levers, writes = files.read_json(run.levers_file(attempt)), writing_words.is_writing(run.report())
        return f"out of memory{times}, {memory_words.advice(run.recipe(), levers, writes)}."
    if outcome["reason"] == "lost":
        return "its process is gone without a word: the computer was restarted, or everything was killed."
    if outcome["signal"]:
        return f"its process was ended by {signal.Signals(outcome['signal']).name}."
    return said or f"its process ended with status {outcome['exit_status']}."
