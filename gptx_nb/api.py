"""The Python twins of the magics: finetune, pretrain, predict, evaluate, watch, stop, compare, runs, load,
merge, device, free.

Each returns a plain object, so that a script reads like a notebook, and shows at most a line of progress. Only `load`
imports an ML library here; training and prediction run in processes of their own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from gptx_nb import adapters, comparison, errands, evaluations, first_batches, inference, launch, text_pairs
from gptx_nb.catalog import CATALOG
from gptx_nb.comparison import Comparison
from gptx_nb.errors import DeviceError, RecipeError, RunFailed, RunNotFound, UsageError, nearest
from gptx_nb.evaluations import Evaluation
from gptx_nb.first_batches import FirstBatch
from gptx_nb.generations import Generations
from gptx_nb.predictions import Predictions
from gptx_nb.pretraining import AnyRecipe, PretrainRecipe
from gptx_nb.progress import StatusLine, called, trouble
from gptx_nb.recipe import Recipe, Task, make_recipe
from gptx_nb.runs import Run, RunStore

Watcher = Callable[[Run], None]

MERGE_SECONDS = 3600.0
DEVICE_SECONDS = 180.0  # a cold disk takes its time to hand out torch


def finetune(
    name: str, data: object | None = None, *, validation: object | None = None, wait: bool = True, **settings: Any
) -> Run:
    """Train the run `name`, or attach to it, resume it, or find it finished (see launch.train); return it.

    `data` and `validation` are what a recipe takes there, or a DataFrame, Series, datasets.Dataset or list. The other
    settings are those of a recipe. With `wait`, return when the run has ended; without, once training has begun.
    Raises UsageError for a mistake, after which nothing was started, and RunFailed where the run broke off.
    """
    return _train(name, Recipe, {**settings, "data": data, "validation": validation}, wait)


def first_batch(data: object | None = None, *, validation: object | None = None, **settings: Any) -> FirstBatch:
    """Return what `finetune` with these tables and settings would learn from first, as the model sees it.

    Every row token by token, and which of them are to be predicted. Nothing is trained or kept. Raises UsageError.
    """
    recipe, objects = with_objects({**settings, "data": data, "validation": validation})
    return first_batches.of(recipe, **objects)


def pretrain(
    name: str, data: object | None = None, *, validation: object | None = None, wait: bool = True, **settings: Any
) -> Run:
    """Pretrain the run `name` on plain text, as `finetune` trains on a table; return it.

    The settings are those of a `%%gpt_pretrain` cell, except that `from`, which is no name in Python, is `from_`. The
    result is a base model: `finetune(..., model="run:NAME")`.
    """
    if "from_" in settings:
        settings["from"] = settings.pop("from_")
    return _train(name, PretrainRecipe, {**settings, "data": data, "validation": validation}, wait)


def _train(name: str, kind: type[AnyRecipe], settings: dict[str, Any], wait: bool) -> Run:
    recipe, objects = with_objects(settings, kind)
    line = StatusLine()
    try:
        return launch.train(name, recipe, **objects, wait=wait, progress=line).run
    finally:
        line.close()


def with_objects(settings: dict[str, Any], kind: type[AnyRecipe] = Recipe) -> tuple[AnyRecipe, dict[str, Any]]:
    """Return the recipe for `settings`, and apart from it the tables among them that are objects and not names."""
    objects: dict[str, Any] = {}
    plain = {name: value for name, value in settings.items() if value is not None}
    for name in ("data", "validation"):
        if name in plain and not isinstance(plain[name], str | int | float):
            objects[name] = plain.pop(name)
    return make_recipe(plain, "", kind), objects


def predict(
    name: str,
    texts: Any,
    version: int | None = None,
    *,
    task: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    shots: Any = (),
    labels: Any = None,
    prompt: str | None = None,
    label_words: Mapping[str, str] | None = None,
    on_text: Callable[[str], None] | None = None,
    **how: Any,
) -> Predictions | Generations:
    """Ask the run `name`, or a base model of that name: a text, a list, a Series, a DataFrame; waits while it trains.

    A classifier gives Predictions. A model that writes gives Generations, and is also asked with a row by role
    ({"question": …, "context": …}) or a conversation ([{"role": "user", "content": …}]). `how` are `temperature`,
    `top_p`, `top_k`, `max_new_tokens`, `stop` (a text or several), `n`, `seed` and `beams`; `from_` and `to` are the
    languages of a translation, `task` what a base model shall do, `shots` examples with their answers, shown before the
    prompt. `on_text` is called with each piece of a single answer.

    A base model that is given `labels` gives each text one of them, untrained; `prompt`, `label_words` are what they
    are in a recipe, and `shots` then are texts with their labels. Shots that are rows with labels ask for labels too.
    Each text may be two, as in {"premise": …, "hypothesis": …} or a table with such columns.

    Raises RunNotFound, RunFailed for a run without a model, DataError for what is no text.
    """
    who = find(name, version)
    languages = {"from": from_, "to": to}
    line = StatusLine()
    try:
        if isinstance(who, Run):
            wait_for_model(who, line)
        wishes = read_wishes(how)
        if isinstance(who, Run) and not inference.writes(who):
            more = {"task": task, **languages, "labels": labels, "prompt": prompt, "label_words": label_words}
            given = [
                *how,
                *(word for word, value in more.items() if value),
                *(["shots"] if not hasattr(shots, "__len__") or len(shots) else []),
            ]
            refuse_wishes(who, given)
            return inference.predict(who, texts, line.texts)
        if gives_labels(who, task, labels, prompt, label_words, shots):
            if given := [*how, *(word for word, value in languages.items() if value)]:
                why = "labels are asked for"
                if not gives_labels(who, task, labels, prompt, label_words):
                    why = "shots that have labels ask for labels"
                raise UsageError(f"{', '.join(given)}: that is for writing, and {why}. Leave it out")
            wanted = labels_of(labels, prompt, label_words, shots, text_pairs.columns_of(texts))
            return inference.label(who, texts, wanted, line.texts)
        return inference.generate(
            who,
            texts,
            wishes,
            task=task,
            from_=from_,
            to=to,
            shots=rows_of(shots),
            progress=line.texts,
            on_text=on_text,
        )
    finally:
        line.close()


def evaluate(
    name: str,
    data: object | None = None,
    version: int | None = None,
    *,
    task: str | None = None,
    shots: Any = 0,
    most: int = evaluations.MOST,
    max_new_tokens: int | None = None,
    **settings: Any,
) -> Evaluation:
    """Score the run `name`, or a base model of that name, on any table; waits while the run trains.

    `data` is what `finetune` takes there; of its settings `columns`, `text`, `label`, `label_separator`, `split`,
    `subset` and `allow_code` say how to read it, `prompt` and `label_words` how a base model is asked for labels. A
    base model is shown `shots` rows with their answers, drawn by `seed` from all over the table, or rows that are
    given, with the table's columns (a DataFrame, a list of dictionaries), and answers `most` of the others. Every score
    has its number of examples and a 95 % interval.
    """
    known = (
        *("columns", "text", "label", "label_separator", "prompt", "label_words"),
        *("split", "subset", "seed", "allow_code", "device"),
    )
    for word in settings:
        if word not in known:
            raise UsageError(
                f"unknown setting {word!r}.{nearest(word, known)} For scoring there are: {', '.join(known)}"
            )
    given = hasattr(shots, "__len__") and not isinstance(shots, str)
    shown, count = (rows_of(shots), 0) if given else ([], shots)
    for word, value, least in (("shots", count, 0), ("most", most, 1), ("max_new_tokens", max_new_tokens, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{word}: {value!r} does not fit: a whole number from {least}")
    who = find(name, version)
    check_task(task)
    recipe, objects = with_objects({**settings, "data": data})
    assert isinstance(recipe, Recipe)
    if isinstance(who, Run):
        line = StatusLine()
        try:
            wait_for_model(who, line)
        finally:
            line.close()
    how = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    table = objects.get("data")
    return evaluations.evaluate(who, recipe, table, task=task, shots=count, shown=shown, most=most, how=how)


def find(name: str, version: int | None = None) -> Run | str:
    """Return the run `name`, or `name` itself where it is a base model: a short name, a folder, OWNER/NAME."""
    try:
        return RunStore().find(name, version)
    except (RunNotFound, RecipeError):  # no run, or nothing that could name one
        path = Path(name).expanduser()
        owner, _, rest = name.partition("/")
        if name in CATALOG or path.is_dir() or path.suffix == ".gguf" or (owner and rest and not rest.isdigit()):
            return name
        raise


def read_wishes(how: Mapping[str, Any]) -> inference.Wishes:
    """Return how texts shall be written from keywords; raises UsageError for an unknown or unfit one."""
    known = [each.name for each in dataclasses.fields(inference.Wishes)]
    for word in how:
        if word not in known:
            raise UsageError(
                f"unknown setting {word!r}.{nearest(word, known)} For writing there are: {', '.join(known)}"
            )
    given = {word: value for word, value in how.items() if value is not None}
    if "stop" in given:
        stop = given["stop"]
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return inference.Wishes(**given)


def refuse_wishes(run: Run, given: list[str]) -> None:
    """Raise UsageError where a classifier is asked to write."""
    if given:
        raise UsageError(
            f"{', '.join(given)}: run {called(run)} gives labels and writes no text, so it cannot be told how. Leave "
            "that out"
        )


def rows_of(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a list or DataFrame of examples by role."""
    if isinstance(table, str | int | float):
        raise UsageError(
            f"shots: {table!r} is no row with its answer. Give some, as in `--shots {{{{df.sample(4)}}}}` in a line or "
            "`shots=df.sample(4)` in Python. A number of them is for `%gpt_eval`, which has a table to draw from"
        )
    found = inference.read_prompts(table, "")[0] if len(table) else []
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise UsageError(f"shot {number} is {str(row)[:40]!r}, and needs to be a row by role, with its answer")
    return [row for row in found if isinstance(row, dict)]


def check_task(task: str | None) -> None:
    """Raise UsageError for a task that there is none of."""
    tasks = list(get_args(Task))
    if task is not None and task not in tasks:
        raise UsageError(f"unknown task {task!r}.{nearest(task, tasks)} Tasks: {', '.join(tasks)}")


def gives_labels(
    who: Run | str,
    task: str | None = None,
    labels: Any = None,
    prompt: str | None = None,
    label_words: Any = None,
    shots: Any = (),
) -> bool:
    """Say whether a model that writes is asked for labels; of a base model `shots` that have labels say so too."""
    check_task(task)
    if task not in (None, "text-classification"):
        return False
    if task is not None or any(each is not None for each in (labels, prompt, label_words)):
        return True
    if isinstance(shots, str | int | float) or (isinstance(who, Run) and who.kind is not PretrainRecipe):
        return False
    rows = _rows(shots)
    return bool(rows) and all(isinstance(row, Mapping) and _labelled(row) for row in rows)


def _labelled(row: Mapping[str, Any]) -> bool:
    """Say whether `row` is a text, or a pair of texts, with its label."""
    return "label" in row and ("text" in row or text_pairs.columns_of(row) is not None)


def labels_of(
    labels: Any, prompt: str | None, label_words: Any, shots: Any, pair: tuple[str, str] | None = None
) -> inference.Labels:
    """Return what a base model is to tell apart: `labels` as a list or as text with commas, else those of `shots`.

    `pair`: what the two texts are called, where each text is two.
    """
    shown = [_shot(row, number, pair) for number, row in enumerate(_rows(shots), 1)]
    if isinstance(labels, str):
        labels = [name.strip() for name in re.split("[,，、]", labels.strip(" []")) if name.strip()]
    names = tuple(str(name) for name in labels) if labels is not None else tuple(dict.fromkeys(b for _, b in shown))
    if not names:
        raise UsageError("which labels? Name them, as in `--labels positive,negative`, or give shots with their labels")
    if len(set(names)) != len(names):
        raise UsageError("labels: a name stands there twice")
    checked = make_recipe({"prompt": prompt, "label_words": label_words}, "labels")
    for label in checked.label_words or {}:
        if label not in names:
            raise UsageError(f"label_words: {label!r} is none of the labels.{nearest(label, names)}")
    return inference.Labels(names, checked.prompt, checked.label_words, tuple(shown), pair)


def _rows(table: Any) -> list[Any]:
    if isinstance(table, str | int | float):
        return rows_of(table)  # says what fits
    if isinstance(table, Mapping) or hasattr(table, "columns") or hasattr(table, "column_names"):
        return inference.read_prompts(table, "")[0]
    return list(table)


def _shot(row: Any, number: int, pair: tuple[str, str] | None) -> tuple[str, str]:
    texts_called = pair and isinstance(row, Mapping) and text_pairs.columns_of(row)
    names = [*(texts_called or pair or ("text",)), "label"]
    values = [row.get(name) for name in names] if isinstance(row, Mapping) else row
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != len(names) or None in values:
        what = "both texts and their label" if pair else "a text and its label"
        raise UsageError(
            f"shot {number} needs {what}: {{{', '.join(f'{name}: …' for name in names)}}} or [{', '.join(names)}]"
        )
    *texts, label = map(str, values)
    return text_pairs.join(*texts) if pair else texts[0], label


def wait_for_model(run: Run, watcher: Watcher | None = None) -> None:
    """Return once `run` has a model; the inference process warms up meanwhile. Raises RunFailed if it gets none."""
    if not run.active:
        require_model(run)
        return
    inference.warm()
    try:
        launch.wait(run, watcher)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(going_on(run)) from None
    require_model(run)


def require_model(run: Run) -> None:
    """Raise RunFailed, with cause, log and what to type next, if `run` ended without a model."""
    launch.raise_if_bad(run)
    if not run.model.is_dir():
        raise RunFailed(f"run {called(run)} has no model: it is {run.state()}. {trouble(run)}".rstrip())


def going_on(run: Run) -> str:
    """Return what to say when somebody stops waiting for `run`."""
    return (
        f"Stopped waiting. Run {called(run)} goes on: `%gpt_watch {run.name}` shows it, `%gpt_stop {run.name}` ends it."
    )


def watch(name: str, version: int | None = None) -> Run:
    """Wait until the run `name` has ended, with a line of progress; return it however it ended."""
    run = RunStore().find(name, version)
    line = StatusLine()
    try:
        launch.wait(run, line)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(going_on(run)) from None
    finally:
        line.close()
    return run


def stop(name: str, version: int | None = None) -> str:
    """Ask the run `name` to save and stop, wait for that, and return in one line what came of it."""
    line = StatusLine()
    try:
        return launch.stop(RunStore().find(name, version), progress=line)
    finally:
        line.close()


def compare(*names: str) -> Comparison:
    """Return scores, and what differs in the recipes, of two to eight runs side by side; NAME/2 is version 2.

    Its `to_frame` gives a pandas DataFrame. Raises RunNotFound, and UsageError for another number of runs.
    """
    return comparison.of([RunStore().find(name) for name in dict.fromkeys(names)])


def runs() -> list[Run]:
    """Return every version of every run, by name, then oldest first."""
    return RunStore().runs()


def load(name: str, version: int | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a finished run as plain transformers objects, in this process and on the CPU.

    An adapter is loaded with its base, and stays one. Imports torch and transformers. Raises RunNotFound where the run
    has no model yet, ModelError for an adapter whose base is gone or has changed.
    """
    run = RunStore().find(name, version)
    if run.active:
        raise RunNotFound(f"run {called(run)} has no model yet: it is {run.state()}. See `%gpt_watch {run.name}`")
    require_model(run)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForCausalLM if inference.writes(run) else AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    base = adapters.base_of(run.model)
    if base is None:
        return kind.from_pretrained(run.model), tokenizer
    config = AutoConfig.from_pretrained(run.model)
    model = kind.from_pretrained(base["path"], config=config, revision=base["revision"] or "main")
    model.load_adapter(str(run.model))
    return model, tokenizer


def merge(name: str, folder: str | Path | None = None, version: int | None = None) -> Path:
    """Write what the run `name` keeps as an adapter, merged with its base, as a plain model; return its folder.

    `folder` must not be there yet; None: `merged` in the run's own. The run keeps its adapter. Raises RunNotFound where
    there is no model yet, UsageError for a model that is whole or a folder that is taken, ModelError for an adapter
    whose base is gone or has changed.
    """
    run = RunStore().find(name, version)
    if run.active:
        raise RunNotFound(f"run {called(run)} has no model yet: it is {run.state()}. See `%gpt_watch {run.name}`")
    require_model(run)
    if not (run.model / adapters.BASE_FILE).is_file():
        raise UsageError(f"run {called(run)} is no adapter: its model is whole already, in {run.model}")
    target = run.folder / "merged" if folder is None else Path(folder).expanduser().absolute()
    if target.exists():
        raise UsageError(f"merge: {target} is there already. Name another folder, or remove it")
    errands.ask(
        "--merge",
        str(run.model),
        str(target),
        seconds=MERGE_SECONDS,
        late=RunFailed(f"merging has taken more than {MERGE_SECONDS / 3600:g} hour, and was ended"),
        broke_off="the adapter could not be merged",
    )
    return target


def device() -> dict[str, Any]:
    """Return the device that a run would train on, and why, as a short-lived process of the engine finds it.

    {"device", "reason", "dtype", "dtype_reason", "name", "memory_total", "memory_free": bytes or None, "cores",
    "torch": version, "matrix_peak": FLOPs a second of its fastest matrix product, "copy_speed": bytes a second that a
    copy reads and writes in its memory, both measured now, "answers": the arithmetic of predictions, and why}. Raises
    DeviceError.
    """
    return errands.ask(
        "--device",
        seconds=DEVICE_SECONDS,
        late=DeviceError(f"torch has not answered for {DEVICE_SECONDS:g} seconds. Try `%gpt_device` again"),
        broke_off="the engine could not be asked for its device",
    )


def free() -> str:
    """End the inference process, which keeps models warm, and return in one line what came of it.

    Its memory, on a GPU too, is free then. Runs go on; the next prediction starts a new process.
    """
    return "The inference process has ended." if inference.free() else "There is no inference process."
