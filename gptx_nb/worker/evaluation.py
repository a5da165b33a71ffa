"""Scores a model on a table, as `gptx_nb.evaluations` has asked for: reads request.json, writes result.json."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx_nb import files, inference
from gptx_nb.errors import DataError, UsageError
from gptx_nb.evaluations import SHOWN
from gptx_nb.multi_label_words import least
from gptx_nb.predictions import too_long
from gptx_nb.recipe import Recipe, make_recipe
from gptx_nb.sources import Source

if TYPE_CHECKING:
    from gptx_nb.engine.device import Device
    from gptx_nb.engine.predict import Answer
    from gptx_nb.engine.writer import Writer


def carry_out(folder: Path) -> int:
    """Return the exit status: 0, 2 for the user's mistake, 1 for a bug."""
    asked: dict[str, Any] = files.read_json(folder / "request.json") or {}
    try:
        told = _score(asked, folder)
    except UsageError as error:
        files.write_json(folder / "result.json", {"error": type(error).__name__, "message": str(error)})
        return 2
    except Exception as error:
        traceback.print_exc()
        shown = f"{type(error).__name__}: {error}"
        files.write_json(folder / "result.json", {"error": "RunFailed", "message": f"the scoring broke off: {shown}"})
        return 1
    files.write_json(folder / "result.json", files.finite(told))
    return 0


def _score(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    import transformers

    from gptx_nb.engine import device
    from gptx_nb.engine.predict import use_all_cores

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    use_all_cores()
    recipe = make_recipe({key: value for key, value in asked["recipe"].items() if value is not None})
    source = Source.from_json(asked["source"])
    wishes = (asked["device"], asked["dtype"])
    chosen = device.choose(*(wish if wish in ("cpu", "float32") else "auto" for wish in wishes))
    if not asked["writes"]:
        return _labelled(asked, recipe, source, folder, chosen)
    tuned = asked["folder"] and (Path(asked["folder"]) / inference.TASK_FILE).exists()
    if not tuned and _has_labels(asked, recipe, source, folder):
        return _labelled_untrained(asked, recipe, source, folder, chosen)
    return _written(asked, recipe, source, folder, chosen)


def _has_labels(asked: dict[str, Any], recipe: Recipe, source: Source, folder: Path) -> bool:
    from gptx_nb.engine import roles

    if asked["task"] is None:
        return roles.task_of(recipe, {"train": source, "validation": None}, folder)[0] == roles.CLASSIFICATION
    return bool(asked["task"] == roles.CLASSIFICATION)


def _labelled_untrained(
    asked: dict[str, Any], recipe: Recipe, source: Source, folder: Path, chosen: Device
) -> dict[str, Any]:
    """Score a base model that gives labels by their words; its shots are drawn from each label in turn."""
    from gptx_nb.engine import data, models
    from gptx_nb.engine.tasks.head_start import one_of_each
    from gptx_nb.engine.zero_shot import ZeroShot, read_wording

    table = data.load(recipe.model_copy(update={"validation": 0.0}), {"train": source, "validation": None}, folder)
    if table.multi_label and (asked["shots"] or asked["shown"]):
        raise UsageError("shots: texts have several labels here, and each that is shown has one. Leave them out")
    pair = table.report.get("text_pair") is not None
    texts, truth, count = table.train.texts, table.train.labels, asked["shots"]
    if count >= len(texts):
        raise UsageError(f"shots: {count} of {len(texts)} rows leave none to score")
    model = ZeroShot.load(models.find(asked["base"] or asked["folder"], None), chosen)
    most = model.max_length // (2 * max(1, count))
    short = _short(model.sizes(texts, most + 1), truth, most) if count else []
    shown = [short[at] for at in one_of_each([truth[at] for at in short], count, recipe.seed)] if count else []
    shots = [(texts[at], table.labels[truth[at]]) for at in shown]
    if asked["shown"]:
        alike = {} if pair else {"text": table.report["text"], "label": table.report["label"]}
        given = recipe.model_copy(update={**alike, "labels": table.labels, "validation": 0.0})
        other = data.load(
            given, {"train": Source.from_json(asked["shown"]), "validation": None}, folder / SHOWN, learns=False
        )
        shots = [(text, other.labels[at]) for text, at in zip(other.train.texts, other.train.labels, strict=True)]
    others = [at for at in range(len(texts)) if at not in set(shown)]
    columns = table.report["text"], table.report["label"]
    rest = [texts[at] for at in others]
    beside = rest[:: -(-len(rest) // inference.MOST_BESIDE)]
    wording = read_wording(table.labels, recipe.prompt, recipe.label_words, shots, columns, beside, pair)
    texts_shown = {shot for shot, _ in shots}
    known = _known(sum(text in texts_shown for text in rest))
    answer = model.classify(rest, wording, beside, pair)
    scored = _scored_by_share if table.multi_label else _scored
    found = scored(table.labels, [truth[at] for at in others], rest, answer)
    if count:
        passed = len(texts) - len(short)
        longer = f"; {passed:,} longer {'row was' if passed == 1 else 'rows were'} passed over" if passed else ""
        told = f"shown to the model: {len(shown):,} rows, of each label in turn, drawn by seed {recipe.seed}{longer}"
        known.insert(0, told)
    prompt = f"prompt {wording.prompt!r}, words {', '.join(map(repr, wording.words[:12]))}"
    return {
        **found,
        "why": table.report["why"],
        "shots": len(shots),
        "notes": [prompt, *known, *table.report["warnings"], *found["notes"]],
    }


def _labelled(asked: dict[str, Any], recipe: Recipe, source: Source, folder: Path, chosen: Device) -> dict[str, Any]:
    from gptx_nb.engine import data
    from gptx_nb.engine.predict import Classifier

    if asked["shots"] or asked["shown"] or asked["task"] not in (None, "text-classification"):
        raise UsageError("this run gives labels: shots and task are for base models and for models that write")
    _refuse_words(recipe, "this run has learnt its labels")
    model = Classifier.load(Path(asked["folder"]), chosen)
    learnt = {key: getattr(recipe, key) or value for key, value in asked["learnt"].items()}
    as_learnt = {"labels": model.labels, "label_separator": learnt["label_separator"], "validation": 0.0}
    wanted = recipe.model_copy(update=as_learnt)
    sources = {"train": source, "validation": None}
    try:
        try:
            table = data.load(wanted.model_copy(update=learnt), sources, folder, learns=False)
        except DataError as error:
            if "has no column" not in str(error) or recipe.text or recipe.label or recipe.columns:
                raise
            table = data.load(wanted, sources, folder, learns=False)  # other names than those learnt from
    except DataError as error:
        said, unknown, _ = str(error).rpartition(" Add it ")
        if not unknown:
            raise
        other = "" if model.threshold is None else ", or say what stands between labels with `--label-separator`"
        raise DataError(f"{said} The run knows no others: correct such rows or leave them out{other}") from None
    if (model.threshold is not None) != table.multi_label:
        kinds = ["one label a text", "any number of labels a text"]
        learnt_kind, has = kinds if table.multi_label else kinds[::-1]
        raise DataError(f"the run gives {learnt_kind}, and this table has {has}. Score it on a table like its own")
    texts = list(table.train.texts)
    answer = model.classify(texts)
    if model.threshold is None:
        found = _scored(model.labels, table.train.labels, texts, answer)
    else:
        found = _scored_sets(model.labels, table.train.labels, texts, answer, model.threshold)
    return {**found, "why": table.report["why"], "notes": [*table.report["warnings"], *found["notes"]]}


def _short(sizes: Sequence[int], truth: Sequence[int], most: int) -> list[int]:
    """Return the places of texts of at most `most` tokens; of a label without such a text its shortest."""
    places = [at for at, size in enumerate(sizes) if size <= most]
    for label in set(truth) - {truth[at] for at in places}:
        places.append(min((at for at, each in enumerate(truth) if each == label), key=lambda at: sizes[at]))
    return sorted(places)


def _known(count: int) -> list[str]:
    """Return the note that so many scored rows were shown to the model as well, or none."""
    equal = "1 scored row equals" if count == 1 else f"{count:,} scored rows equal"
    return [f"{equal} a row that was shown: the score looks better than it is"] if count else []


def _refuse_words(recipe: Recipe, why: str) -> None:
    if given := [name for name in ("prompt", "label_words") if getattr(recipe, name) is not None]:
        raise UsageError(f"{' and '.join(given)}: for a base model that gives labels, and {why}. Leave that out")


def _scored(labels: list[str], truth: Sequence[int], texts: Sequence[str], answer: Answer) -> dict[str, Any]:
    """Return the scores of an answer to texts with one label each, as part of the result."""
    import numpy as np

    from gptx_nb.engine.scores.labels import calibration, single_label

    shares = np.array(answer.probabilities)
    found = single_label(labels, truth, shares.argmax(axis=1).tolist())
    calibrated = calibration(truth, shares)
    scores = {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "calibration_error": calibrated.error}
    by_label = [each.to_json() for each in found.per_label]
    return {
        **_told(labels, scores, texts, answer),
        "confusion": found.confusion,
        "per_label": by_label,
        "reliability": [asdict(each) for each in calibrated.bins],
    }


def _scored_by_share(labels: list[str], truth: Sequence[Any], texts: Sequence[str], answer: Answer) -> dict[str, Any]:
    """Return the scores of a base model's answer to texts with several labels."""
    import numpy as np

    from gptx_nb.engine import multi_label

    given = multi_label.by_share(np.array(answer.probabilities))
    how = f"a label is given where its word is at least {multi_label.LIKELY:.0%} as likely as the likeliest one's"
    return _told_of_sets(labels, truth, given, texts, answer, how)


def _scored_sets(
    labels: list[str], truth: Sequence[Any], texts: Sequence[str], answer: Answer, threshold: float | list[float]
) -> dict[str, Any]:
    """Return the scores of an answer to texts with several labels."""
    import numpy as np

    from gptx_nb.engine import multi_label
    from gptx_nb.engine.scores.labels import calibration_by_label

    shares = np.array(answer.probabilities)
    how = f"a label is given from a probability of {least(labels, threshold)} on"
    found = _told_of_sets(labels, truth, shares >= threshold, texts, answer, how)
    error = calibration_by_label(multi_label.flags(truth, len(labels)), shares)
    found["scores"]["calibration_error"] = error.to_json()
    return found


def _told_of_sets(
    labels: list[str], truth: Sequence[Any], given: Any, texts: Sequence[str], answer: Answer, how: str
) -> dict[str, Any]:
    """Return the scores of the labels `given`, boolean of shape (texts, labels); `how` they were chosen is noted."""
    from gptx_nb.engine import multi_label
    from gptx_nb.engine.scores.labels import multi_label as scored

    sets = scored(labels, multi_label.flags(truth, len(labels)), given)
    scores = {name: getattr(sets, name) for name in ("micro_f1", "macro_f1", "subset_accuracy")}
    told = _told(labels, scores, texts, answer)
    by_label = [each.to_json() for each in sets.per_label]
    return {**told, "per_label": by_label, "notes": [*told["notes"], how]}


def _told(labels: list[str], scores: dict[str, Any], texts: Sequence[str], answer: Answer) -> dict[str, Any]:
    return {
        "task": "text-classification",
        "rows": len(answer.probabilities),
        "scores": {name: each.to_json() for name, each in scores.items()},
        "labels": labels,
        "notes": [too_long(texts, answer.cut_at, "the part that fits", numbered=False)] if answer.cut_at else [],
    }


def _written(asked: dict[str, Any], recipe: Recipe, source: Source, folder: Path, chosen: Device) -> dict[str, Any]:
    from gptx_nb.engine import answers, roles
    from gptx_nb.engine.scores import texts
    from gptx_nb.engine.shots import draw
    from gptx_nb.engine.tasks.writing import TASKS
    from gptx_nb.engine.writer import How, task_of

    model = Path(asked["folder"]) if asked["folder"] else None
    told = task_of(model) if model else None
    task = asked["task"] or (told["task"] if told else None)
    if task is None:
        task, _ = roles.task_of(recipe, {"train": source, "validation": None}, folder)
    _refuse_words(recipe, f"the task is {task}")
    if task == roles.CLASSIFICATION:
        raise UsageError("task: a model that writes gives no labels. Fine-tune a run for text-classification first")
    own = told["roles"] if told and told["task"] == task else None
    facts = told["facts"] if told and told["task"] == task else {}
    texts.require_for(TASKS[task].scores)
    examples, numbers, found_roles, why, counted = roles.read_examples(task, own, facts, source, folder, recipe)
    count = asked["shots"]
    if count >= len(examples):
        raise UsageError(f"shots: {count} of {len(examples)} rows leave none to score")
    writer = _writer(asked, model, task, chosen)
    if (count or asked["shown"]) and any(writer.task.whole_text(each) for each in examples):
        raise UsageError("shots: texts to continue in their style have no answers to show. Leave shots out")
    if not writer.tuned:
        writer.facts.update(roles.facts_of(task, found_roles, examples))
    untold = roles.unknown_languages(found_roles) if task == "translation" and not writer.tuned else ""
    _require_templates(writer, examples, numbers)
    drawn = draw(writer, examples, count, recipe.seed)
    shown = [f"shown to the model: {drawn.told([numbers[at] for at in drawn.places])}"] if count else []
    shots = [examples[at] for at in drawn.places]
    if asked["shown"]:
        given = Source.from_json(asked["shown"])
        facts = {**facts, "counted_from": counted}
        shots, rows_shown, *_ = roles.read_examples(task, found_roles, facts, given, folder / SHOWN, recipe)
        _require_templates(writer, shots, rows_shown)
        shown = [f"shown to the model: {len(shots):,} rows that were given"]
    rest = [at for at in range(len(examples)) if at not in set(drawn.places)]
    examples, numbers = [examples[at] for at in rest], [numbers[at] for at in rest]
    shown += _known(sum(each in shots for each in examples))
    if task == "translation" and not shots and not recipe.columns:
        examples, numbers = roles.both_ways(examples), [number for number in numbers for _ in range(2)]
        shown.append(
            "both directions are scored, so each row counts twice (perplexity is that of both); `columns` ask for "
            "one of them"
        )
    tokens = [writer.rows(each, shots) for each in examples]
    left_out = [number for number, each in zip(numbers, tokens, strict=True) if None in each]
    rows = [row for each in tokens for row in each if row is not None]
    if not rows:
        fewer = f", or show fewer rows than {len(shots)}" if shots else ""
        raise DataError(f"no row fits into the {writer.reads}. Shorten the texts{fewer}")
    likely = answers.likelihood(writer.nats(rows), [writer.text_of(row) for row in rows])
    how = How(**{"temperature": 0.0, **asked["how"]})
    found = answers.written(
        writer, examples, allow_code=recipe.allow_code, shots=shots, most=asked["most"], how=how
    )  # fmt: skip
    scores = {**found["scores"], **{key: likely[key] for key in ("bits_per_byte", "perplexity") if key in likely}}
    notes = answers.notes(found, lambda at: f"row {numbers[at]}", writer.reads)
    if left_out:
        which = answers.rows_left_out(len(left_out), f"row {left_out[0]}")
        why = f"the answer and what asks for it take more than {writer.context:,} tokens"
        notes.insert(0, f"{which} out of perplexity: {why}")
    if places := [at for at, each in enumerate(tokens) if any(row is not None and row.cut for row in each)]:
        first = answers.first_of(places, lambda at: f"row {numbers[at]}")
        notes.append(f"for perplexity {len(places):,} of {len(examples):,} rows had their contexts cut to fit{first}")
    if 0 < found["written"] < len(examples):
        notes.append(f"{found['written']:,} of {len(examples):,} rows were answered, evenly spread")
    return {
        "task": task,
        "rows": len(examples),
        "scores": scores,
        "why": why,
        "shots": len(shots),
        "samples": found["samples"],
        "notes": [*filter(None, (untold, "" if writer.tuned else writer.template)), *shown, *notes],
    }


def _require_templates(writer: Writer, examples: list[Any], numbers: list[int]) -> None:
    """Raise DataError, which names the row, for a conversation that the model's chat template does not take."""
    for number, example in zip(numbers, examples, strict=True) if writer.task.name == "chat" else ():
        try:
            writer.prompt(example)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None


def _writer(asked: dict[str, Any], folder: Path | None, task: str, chosen: Device) -> Writer:
    from gptx_nb.engine import models
    from gptx_nb.engine.writer import Writer

    if folder is not None:
        return Writer.load(folder, chosen, task)
    base = models.find(asked["base"], None)
    return Writer.of(models.load_causal(base), models.load_tokenizer(base), chosen, None, task)
