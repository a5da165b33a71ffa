"""From a run's sources to the table that it learns from, whichever task that is: text and label, or examples by role.

It imports neither torch nor transformers: a mistake in a table shall be told before those seconds pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gptx_nb import files
from gptx_nb.engine import data, roles
from gptx_nb.engine.data import Table
from gptx_nb.engine.roles import CLASSIFICATION, RoleTable
from gptx_nb.engine.scores import texts
from gptx_nb.engine.tasks.writing import LONG, TASKS
from gptx_nb.errors import RecipeError
from gptx_nb.recipe import Recipe

if TYPE_CHECKING:
    from gptx_nb.sources import Source

AnyTable = Table | RoleTable


def load(recipe: Recipe, sources: Mapping[str, Source | None], run_folder: Path) -> AnyTable:
    """Find out what is to be learnt, and read the table. Nothing is written. Raises UsageError."""
    task, why = roles.task_of(recipe, sources, run_folder)
    if task != CLASSIFICATION:
        _check(task, recipe)
        return roles.load(task, why, recipe, sources, run_folder)
    _refuse_chat_template(task, recipe)
    table = data.load(recipe, sources, run_folder)
    if table.multi_label and recipe.baseline is not None:
        raise RecipeError(
            f"baseline: {recipe.baseline} compares classifiers that give one label, by accuracy. These texts have any "
            "number of labels each; leave it out"
        )
    if table.report["text_pair"] is not None and recipe.long_texts != "cut":
        raise RecipeError(
            f"long_texts: {recipe.long_texts} is for single texts. Of a pair that is too long the longer text is cut; "
            "leave it out"
        )
    return table


def load_snapshot(folder: Path, recipe: Recipe) -> AnyTable:
    """Read what `save_snapshot` wrote; raises DataError where it is missing or is not what it was."""
    report = files.read_json(folder / "report.json") or {}
    if report.get("task", CLASSIFICATION) == CLASSIFICATION:
        return data.load_snapshot(folder)
    _check(report["task"], recipe)
    return roles.load_snapshot(folder)


def save_snapshot(table: AnyTable, folder: Path) -> None:
    """Write the rows and, last, report.json into `folder`."""
    if isinstance(table, RoleTable):
        roles.save_snapshot(table, folder)
    else:
        data.save_snapshot(table, folder)


def _refuse_chat_template(task: str, recipe: Recipe) -> None:
    if recipe.chat_template is not None:
        raise RecipeError(f"chat_template: it writes conversations, and the task is {task}. Leave it out")


def _check(task: str, recipe: Recipe) -> None:
    """Raise for settings that make no sense for a model that writes, and for scores whose packages are missing."""
    if recipe.tune == "head":
        raise RecipeError(
            f"tune: head trains a new classification head, and {task} has none: the model writes with all it has. "
            "Type `tune: full`, `tune: lora` or `tune: top:4`"
        )
    if recipe.baseline is not None:
        raise RecipeError(
            f"baseline: {recipe.baseline} compares classifiers, by accuracy. For {task} the base model as it is stands "
            "beside the tuned one without it; leave it out"
        )
    if recipe.long_texts == "head+tail" or (recipe.long_texts == "windows" and task not in LONG):
        fitting = " and ".join(LONG)
        raise RecipeError(
            f"long_texts: {recipe.long_texts} is not for {task}. Classifiers read head+tail and windows, {fitting} "
            "windows. Else a context is cut where it is too long, and counted, and whole texts to learn from are read "
            "in as many rows as they need; leave it out"
        )
    if task != "chat":
        _refuse_chat_template(task, recipe)
    for name in ("label", "labels"):
        if getattr(recipe, name) is not None:
            raise RecipeError(
                f"{name}: {task} has no labels. Name its columns by role, as in "
                f"`columns: {{{TASKS[task].asked}: …, {TASKS[task].target}: …}}`"
            )
    if unused := next((name for name in ("prompt", "label_words") if getattr(recipe, name) is not None), None):
        raise RecipeError(f"{unused}: {task} has no labels that words could stand for. Leave it out")
    if recipe.validation:
        texts.require_for(TASKS[task].scores)
