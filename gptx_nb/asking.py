"""One question to a run's model, to its base model, or to what a run that still trains has learnt so far.

Answers are plain data for views: labels with their probabilities, or a text. All computing is the inference process's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from gptx_nb import inference, unfinished
from gptx_nb.catalog import RUN
from gptx_nb.errors import DataError, GptxError, RunFailed, RunNotFound, UsageError
from gptx_nb.generations import Generations
from gptx_nb.pretraining import PretrainRecipe
from gptx_nb.progress import called
from gptx_nb.recipe import Recipe
from gptx_nb.runs import Run, RunStore

Who = Literal["tuned", "base"]
Json = dict[str, Any]
LOOKS = 3  # for a model that stays while it is asked
CHOICES_TASK = "question-answering"  # whose base model can be given choices


def ask(run: Run, text: str, who: Who = "tuned", on_text: Callable[[str], None] | None = None) -> Json:
    """Return {"who", "labels": [[label, share], ...] or "text" and "ended", "notes"} of the run's model or its base.

    A base model has no head for labels: it is asked which label's words are likeliest to follow the text. Raises what
    `inference.predict` raises, and UsageError where there is no base model.
    """
    if not text.strip():
        raise UsageError("text: there is none. Type one, and ask again")
    if who == "base":
        return _ask_base(run, text, on_text)
    for _ in range(LOOKS - 1):
        step = _latest(run)
        try:
            return _ask_tuned(run, text, step, on_text)
        except GptxError:  # of any kind: it may go before, while or after its files are read
            if step is None or run.unfinished(step).is_dir():
                raise
        # It has finished meanwhile, or another question made a model of newer weights.
    return _ask_tuned(run, text, _latest(run), on_text)


def _latest(run: Run) -> int | None:
    """Return the step whose model there is to ask; None: that of the finished run."""
    try:
        return None if run.model.is_dir() else unfinished.latest(run)
    except RunFailed:
        if not run.model.is_dir():
            raise
        return None  # it has finished meanwhile, and what was being made of its weights was put away


def _ask_tuned(run: Run, text: str, step: int | None, on_text: Callable[[str], None] | None) -> Json:
    told = called(run) if step is None else f"{called(run)} after step {step:,}"
    if inference.writes(run, step):
        return {"who": told, **_written(inference.generate(run, text, step=step, on_text=on_text))}
    found = inference.predict(run, text, step=step)
    shares = [list(pair) for pair in found[0].probabilities.items()]
    return {"who": told, "labels": shares, "notes": found.notes()}


def base_of(run: Run) -> str | None:
    """Return the name of the base model that `run` began with; None for one that began at random weights."""
    return run.recipe().base


def _ask_base(run: Run, text: str, on_text: Callable[[str], None] | None) -> Json:
    name = base_of(run)
    if name is None:
        raise UsageError(f"{called(run)} began at random weights: it has no base model to ask")
    base: Run | str = RunStore(run.folder.parents[2]).find(name.removeprefix(RUN)) if name.startswith(RUN) else name
    if run.kind is PretrainRecipe:
        return {"who": name, **_written(inference.generate(base, text, on_text=on_text))}
    recipe = run.recipe()
    assert isinstance(recipe, Recipe)
    if recipe.task in (None, "text-classification"):
        labels = (run.plan() or {}).get("labels") or recipe.labels
        if not labels:
            raise RunNotFound(f"{called(run)} has not read its labels yet")
        pair = inference.pair_of(run)
        if pair is not None:
            inference.read_pairs(text, pair, f"{called(run)} reads")  # what is no pair is the asker's mistake
        wanted = inference.Labels(tuple(labels), recipe.prompt, recipe.label_words, pair=pair)
        try:
            found = inference.label(base, [text], wanted)
        except DataError as error:  # they have no words
            told = _written(inference.generate(base, {"question": text, "choices": list(labels)}, task=CHOICES_TASK))
            why = f"The base model has learnt no labels, and cannot be asked by their words ({error}): these are how "
            return {
                "who": name,
                **told,
                "notes": [f"{why}likely each label's name is to follow the text.", *told["notes"]],
            }
        shares = [list(pair) for pair in found[0].probabilities.items()]
        note = "The base model has learnt no labels: it is asked by their words, as %gpt_predict with --labels does."
        return {"who": name, "labels": shares, "notes": [note, *found.notes()]}
    return {"who": name, **_written(inference.generate(base, text, task=recipe.task, on_text=on_text))}


def _written(found: Generations) -> Json:
    one = found[0]
    if one.probabilities is not None:
        return {"labels": [list(pair) for pair in one.probabilities.items()], "notes": found.notes()}
    return {"text": one.text, "ended": one.ended[0], "notes": found.notes()}
