"""Turns any table into examples by role, for tasks whose model writes: columns found, rows checked, split.

What data.py is for text classification. Tables are read by tables.py, columns guessed by tasks/columns.py, cells read
by the task's entry in tasks/writing.py. Every choice stands in `RoleTable.report` with its reason, everything left out
is counted there, and every mistake is one DataError. A resumed run learns from the snapshot alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gptx_nb import files
from gptx_nb.engine import data
from gptx_nb.engine.stored import ROWS_AT_ONCE, Stored
from gptx_nb.engine.tables import Sheet, read
from gptx_nb.engine.tasks import columns as guessing
from gptx_nb.engine.tasks import templates
from gptx_nb.engine.tasks.columns import Guess
from gptx_nb.engine.tasks.writing import TASKS, Missing, WritingTask, counted_from
from gptx_nb.errors import DataError, nearest
from gptx_nb.recipe import Recipe
from gptx_nb.text_pairs import plain_name

if TYPE_CHECKING:
    from gptx_nb.sources import Source

Example = dict[str, Any]
Roles = dict[str, str | list[str]]

CLASSIFICATION = "text-classification"
FEW_LABELS = 9  # different ones, beyond which they have to stand in two rows each for a column to be one of labels
LONGEST_NAME = 40  # characters of a label's name
SEEN = 200  # rows that a guess looks at
FEWEST_GROUPS = 10  # contexts; with fewer, questions on the same text may stand on both sides of the split


@dataclass(frozen=True)
class RoleTable:
    """What a run learns from: examples by role, `facts` that hold for all of them, and the report.

    `numbers` of "train" and "validation": the row, from 1, of its table that each example was; 0 in older snapshots.
    """

    task: str
    train: Sequence[Example]
    validation: Sequence[Example] | None
    facts: dict[str, Any]
    report: dict[str, Any]
    numbers: Mapping[str, Sequence[int]]


@dataclass
class _Read:
    examples: list[Example] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of their rows in the table, from 1
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)  # row that lacks the same, from 1
    counted_from: int | None = None  # 0 or 1: the first choice, where answers are numbers
    unanswered: list[int] = field(default_factory=list)  # rows, from 1, whose last turns nobody answers


def task_of(recipe: Recipe, sources: Mapping[str, Source | None], run_folder: Path) -> tuple[str, str]:
    """Return the task of a run, and why: the one that was asked for, else by the table's columns."""
    if recipe.task is not None:
        return recipe.task, "asked for in the recipe"
    if any(each is not None for each in (recipe.label, recipe.labels, recipe.label_separator, recipe.threshold)):
        return CLASSIFICATION, "a label is named in the recipe"
    if {"label", "text_pair"} & set(recipe.columns or {}):
        return CLASSIFICATION, "a label is named in the recipe"
    sheet = _sheet(sources["train"], recipe, run_folder)
    guess = _guess(sheet, recipe)
    if guess is None or guess.task == CLASSIFICATION or _has_label(sheet, recipe, guess):
        return CLASSIFICATION, "the table has a label"
    return guess.task, guess.why


def load(task: str, why: str, recipe: Recipe, sources: Mapping[str, Source | None], run_folder: Path) -> RoleTable:
    """Read the tables in `sources`, and return examples of `task` ready to learn from; `why` it is that task.

    Nothing is written: `save_snapshot` does that. Raises DataError with one short message for whatever does not fit.
    """
    kind, source = TASKS[task], sources["train"]
    sheet = _sheet(source, recipe, run_folder)
    assert source is not None
    roles, roles_why = find_columns(sheet, kind, recipe.columns, recipe.text)
    facts = _facts(kind, roles)
    found = _examples(sheet, kind, roles, facts)
    if "joint" in facts:
        facts["joint"] = templates.joint_of(*([each[role] for each in found.examples] for role in kind_pair(kind)))
    warnings = [*sheet.notes]
    warnings += [f"row {row} is left out, the first with {why}" for why, row in found.first.items()]
    if found.unanswered:
        count = len(found.unanswered)
        which = "1 conversation ends" if count == 1 else f"{count:,} conversations end"
        warnings.append(
            f"{which} with turns that nobody answers, which are left out; the first is row {found.unanswered[0]}"
        )
    if found.counted_from is not None:
        facts["counted_from"] = found.counted_from
    if found.counted_from == 1:
        warnings.append("answers that are numbers count from 1: one is the number of its choices, and none is 0")
    own = sources.get("validation")
    about: dict[str, Any] | None = None
    validation: list[Example] | None
    its_own = sheet.own_validation if own is None and recipe.validation == data.DEFAULT_SHARE else None
    if its_own:
        own = _of_split(source, its_own)
    if own is not None:
        other = unfolded(read(
            own, run_folder, subset=own.options.get("subset", recipe.subset), split=own.options.get("split"),
            named=flattened(roles), setting="validation", plain_text=task == "text-generation",
        ))  # fmt: skip
        _require(other, roles, "validation: ")
        held = _examples(other, kind, roles, facts)
        train, validation = found.examples, held.examples
        numbers = {"train": found.numbers, "validation": held.numbers}
        about = {"source": other.shown, "rows": other.rows, "used": len(validation), "dropped": dict(held.dropped)}
        note = f"{len(validation)} rows of {other.shown}"
        if its_own:
            note += f", the data set's own split {its_own!r}"
        known = {_key(kind, each) for each in train}
        if leaked := sum(_key(kind, each) in known for each in validation):
            warnings.append(
                f"{leaked} of {len(validation)} validation rows {'is' if leaked == 1 else 'are'} in the training table "
                "too: the score will look better than it is"
            )
    else:
        share = recipe.validation if isinstance(recipe.validation, float) else 0.0
        keys = _groups(kind, found.examples)
        kept, back, note = data.split(keys, [0] * len(keys), share, recipe.seed)
        note = note.replace(", by label", "").replace(", with one left to learn from for each label,", "")
        train = [found.examples[at] for at in kept]
        validation = [found.examples[at] for at in back] if back else None
        numbers = {
            part: [found.numbers[at] for at in places] for part, places in (("train", kept), ("validation", back))
        }
    remarks: list[str] = []
    if task == "translation":
        train = both_ways(train)
        validation = validation and both_ways(validation)
        numbers = {part: [row for row in rows for _ in range(2)] for part, rows in numbers.items()}
        if unknown := unknown_languages(roles):
            warnings.append(unknown)
        remarks.append(
            f"both directions are learnt: {facts['from']} to {facts['to']} and back, so each row counts twice"
        )
    report = {
        "task": task,
        "task_why": why,
        "source": sheet.shown,
        "columns": list(sheet.columns),
        "roles": roles,
        "why": roles_why,
        "rows": sheet.rows,
        "used": len(found.examples),
        "dropped": dict(found.dropped),
        "train": len(train),
        "validation": len(validation) if validation is not None else 0,
        "validation_note": note,
        "validation_table": about,
        "facts": facts,
        "encoding": sheet.encoding,
        "warnings": warnings,
        "remarks": remarks,
        "fingerprint": fingerprint(train, validation),
    }
    return RoleTable(task, train, validation, facts, report, numbers)


class ReadTable(NamedTuple):
    """Examples of a table and the numbers of their rows, the columns of their roles, and why these.

    `counted_from`: 0 or 1, the number of the first choice where answers are numbers.
    """

    examples: list[Example]
    numbers: list[int]
    roles: Roles
    why: str
    counted_from: int | None


def read_examples(
    task: str, roles: Roles | None, facts: dict[str, Any], source: Source, run_folder: Path, recipe: Recipe
) -> ReadTable:
    """Read any table for a model that is to be scored on it.

    `roles`, if the table has such columns and the recipe names none, else found anew; `facts` are the model's.
    """
    kind = TASKS[task]
    sheet = _sheet(source, recipe, run_folder)
    if roles is not None and not recipe.columns and set(flattened(roles)) <= set(sheet.columns):
        found, why = roles, "the columns that the run learnt from"
    else:
        found, why = find_columns(sheet, kind, recipe.columns, recipe.text)
    its_own = _facts(kind, found)
    ends = its_own.get("from"), its_own.get("to")
    reversed_ = None not in ends and ends == (facts.get("to"), facts.get("from"))  # a run has learnt both directions
    usable = _examples(sheet, kind, found, its_own if reversed_ else its_own | facts)
    return ReadTable(usable.examples, usable.numbers, found, why, usable.counted_from)


def _sheet(source: Source | None, recipe: Recipe, run_folder: Path) -> Sheet:
    if source is None:
        raise DataError("there are no examples. Type some below `examples:`, or name a table with `data:`")
    named = [name for name in (recipe.text, recipe.label, *flattened(recipe.columns or {})) if name]
    options = source.options
    return unfolded(read(
        source, run_folder, subset=options.get("subset", recipe.subset), split=options.get("split", recipe.split),
        named=named, plain_text=recipe.task in (None, "text-generation"),
    ))  # fmt: skip


def unfolded(sheet: Sheet) -> Sheet:
    """Return the table with a column for each language where it has objects of them, as the Hub's `translation`."""
    for name, values in list(sheet.columns.items()):
        keys = guessing.languages_of(values[:SEEN])
        if keys and not set(keys) & set(sheet.columns):
            objects = [guessing.parsed(each) for each in values]
            more = {key: [each.get(key) if isinstance(each, dict) else None for each in objects] for key in keys}
            columns = {other: column for other, column in sheet.columns.items() if other != name}
            sheet = replace(sheet, columns={**columns, **more})
    return sheet


def _of_split(source: Source, split: str) -> Source:
    return replace(source, options={**source.options, "split": split})


def flattened(roles: Mapping[str, str | list[str]]) -> list[str]:
    """Return the columns of all roles, each by itself."""
    return [name for each in roles.values() for name in (each if isinstance(each, list) else [each])]


# ---- which task, which columns --------------------------------------------------------------------------------------


def _guess(sheet: Sheet, recipe: Recipe, task: str | None = None) -> Guess | None:
    return guessing.guess({name: values[:SEEN] for name, values in sheet.columns.items()}, task)


def _has_label(sheet: Sheet, recipe: Recipe, guess: Guess) -> bool:
    """Say whether a column looks like a label, though `guess` is for another task.

    Beside a guess that rests on more than a text, it has to be the answer's own column.
    """
    try:
        found = data.find_columns(sheet, recipe)
    except DataError:
        return False
    if found.indicators:
        return set(guess.roles) == {"text"}
    labels = [each for each in sheet.columns[found.label] if each is not None]
    distinct = len({str(each) for each in labels})
    by_name = bool(data.by_name([found.label], data.LABEL_NAMES))
    most = max(len(labels) // 2, FEW_LABELS) if by_name else min(100, len(labels) // 5)
    if by_name and any(isinstance(each, list) for each in labels):
        return set(guess.roles) == {"text"}
    if by_name and distinct > max(2, len(labels) // 2) and not _are_names(found.label, labels):
        return False
    if not 2 <= distinct <= max(2, most) or any(isinstance(each, list | dict) for each in labels):
        return False
    if set(guess.roles) == {"text"}:
        return True
    few = distinct <= max(2, len(labels) // 10)
    # A text with a head beside it is not its summary where a label is what there is to learn.
    beside = guess.task == "summarization" and plain_name(found.label) in ("label", "labels", "标签")
    return few and by_name and (beside or (found.label in flattened(guess.roles) and "choices" not in guess.roles))


def _are_names(column: str, labels: Sequence[Any]) -> bool:
    """Say whether what stands in a column that is called after a label is so short that it names one, not answers."""
    vague = plain_name(column) in ("target", "output")
    return not vague and all(len(str(each)) <= LONGEST_NAME for each in labels)


def find_columns(
    sheet: Sheet, kind: WritingTask, given: Mapping[str, str | list[str]] | None, text: str | None = None
) -> tuple[Roles, str]:
    """Return the columns of the task's roles, and why: those that are `given`, the others by name and content."""
    asked: Roles = dict(given or {})
    known = sorted({role for needed, optional in kind.shapes for role in needed | optional})
    if text is not None:
        if "text" not in known:
            raise DataError(
                f"text: {text} is a setting of text-classification, text-generation and code-generation. For "
                f"{kind.name} name columns by role, as in `columns: {{{kind.asked}: {text}}}`"
            )
        asked.setdefault("text", text)
    for role in asked:
        if role not in known:
            raise DataError(
                f"columns: {kind.name} has no role {role!r}.{nearest(role, known)} Its roles: {', '.join(known)}"
            )
    _require(sheet, asked, "", "columns")
    guess = guessing.guess({name: values[:SEEN] for name, values in sheet.columns.items()}, kind.name)
    roles: Roles = dict(asked)
    parts = ["set"] if asked else []
    if not kind.shape(roles):
        taken = set(flattened(roles))
        if guess is not None:
            more = {
                role: column
                for role, column in guess.roles.items()
                if role not in roles and taken.isdisjoint(flattened({role: column}))
            }
            if kind.shape({**more, **roles}):
                roles = {**more, **roles}
                parts.append(guess.why)
        if not kind.shape(roles) and not asked and list(sheet.columns) == ["text", "label"]:
            roles = {kind.asked: "text", kind.target: "label"}  # pairs, as they were typed
            parts = ["pairs: what is asked, and its answer"]
    if not kind.shape(roles):
        role = next((each for each in (kind.asked, kind.target) if each not in roles), kind.target)
        first = next(iter(sheet.columns))
        raise DataError(
            f"{sheet.shown}: its columns do not fit {kind.name}, which needs {kind.needs}. Columns: "
            f"{data.listed(sheet.columns)}. Name them by role, as in `columns: {{{role}: {first}, …}}`"
        )
    said = "; ".join(f"{role} is column {_called(column)}" for role, column in roles.items())
    return roles, f"{said} ({'; '.join(parts)})"


def _called(column: str | list[str]) -> str:
    return ", ".join(map(repr, column)) if isinstance(column, list) else repr(column)


def _require(sheet: Sheet, roles: Mapping[str, str | list[str]], lead: str, setting: str = "") -> None:
    for role, column in roles.items():
        for name in column if isinstance(column, list) else [column]:
            if name not in sheet.columns:
                where = f" ({setting}: {{{role}: {name}}})" if setting else f", the {role} of the training table"
                raise DataError(
                    f"{lead}{sheet.shown} has no column {name!r}{where}.{nearest(name, sheet.columns)} Columns: "
                    f"{data.listed(sheet.columns)}"
                )


def facts_of(task: str, roles: Roles, examples: Sequence[Example]) -> dict[str, Any]:
    """Return what holds for a whole table, for a model that was not tuned on another."""
    kind = TASKS[task]
    facts = _facts(kind, roles)
    if "joint" in facts:
        facts["joint"] = templates.joint_of(*([each[role] for each in examples] for role in kind_pair(kind)))
    return facts


def unknown_languages(roles: Roles) -> str:
    """Say what to type where the columns of a translation are not called after languages; else nothing."""
    names = [str(roles[role]) for role in ("source", "target")]
    unknown = [name for name in names if guessing.language_code(plain_name(name)) is None]
    if not unknown:
        return ""
    known = [name for name in names if name not in unknown]
    likely = [code for code in ("en", "fr") if code not in map(guessing.language_code, map(plain_name, known))]
    renamed = ", ".join(f"{name!r}: {code!r}" for name, code in zip(unknown, likely, strict=False))
    which = " and ".join(map(repr, unknown))
    called = "is not called after a language" if len(unknown) == 1 else "are not called after languages"
    return (
        f"{which} {called}, so the model is not told which it is. Say so, as in `df.rename(columns={{{renamed}}})`, or "
        "in the file's first line"
    )


def kind_pair(kind: WritingTask) -> tuple[str, str]:
    return kind.asked, kind.target


def _facts(kind: WritingTask, roles: Roles) -> dict[str, Any]:
    if kind.name == "translation":
        names = {role: str(roles[role]) for role in ("source", "target")}
        return {
            end: guessing.language_code(plain_name(name)) or name
            for end, name in (("from", names["source"]), ("to", names["target"]))
        }
    if kind.name == "text-generation" and "completion" in roles:
        return {"joint": ""}
    return {"line": "written"} if kind.name == "code-generation" else {}


# ---- rows -----------------------------------------------------------------------------------------------------------


def _examples(sheet: Sheet, kind: WritingTask, roles: Roles, facts: Mapping[str, Any]) -> _Read:
    """Return the usable rows as examples; count the others by what they lack."""
    found = _Read()
    languages = {end: facts[end] for end in ("from", "to") if kind.name == "translation"}
    if "choices" in roles:
        sure = counted_from(_rows(sheet, roles))
        found.counted_from = facts.get("counted_from") if sure is None else sure
    for number, row in enumerate(_rows(sheet, roles)):
        try:
            example = kind.read({**row, "counted_from": found.counted_from})
            if "messages" in row and len(guessing.parsed(row["messages"])) > len(example["messages"]):
                found.unanswered.append(number + 1)
            found.examples.append({**storable(example), **languages})
            found.numbers.append(number + 1)
        except Missing as error:
            found.dropped[str(error)] += 1
            found.first.setdefault(str(error), number + 1)
        except DataError as error:
            raise DataError(f"{sheet.shown}, row {number + 1}: {error}") from None
    if not found.examples:
        parts = " and ".join(f"{count} with {why}" for why, count in found.dropped.items())
        raise DataError(
            f"{sheet.shown}: no row can be used ({parts}). Columns: {data.listed(sheet.columns)}. Choose with "
            "`columns:`"
        )
    return found


def _rows(sheet: Sheet, roles: Roles) -> Iterator[dict[str, Any]]:
    for number in range(sheet.rows):
        yield {role: cell_of(sheet, column, number, roles) for role, column in roles.items()}


def cell_of(sheet: Sheet, column: str | list[str], number: int, roles: Roles) -> Any:
    """Return a role's value in a row; of several columns (choices) the texts, and what their columns call them."""
    if isinstance(column, str):
        return sheet.columns[column][number]
    texts = [sheet.columns[name][number] for name in column]
    if roles.get("answer") in column:  # the right one among the others: sorted, or its place would give it away
        return sorted((each for each in texts if not data.missing(each)), key=str)
    return {"text": texts, "label": guessing.choice_names(column)}


def storable(value: Any) -> Any:
    """Return `value` with every text in it as UTF-8 can store it (`data.encodable`)."""
    if isinstance(value, str):
        return data.encodable(value)
    if isinstance(value, dict):
        return {key: storable(each) for key, each in value.items()}
    return [storable(each) for each in value] if isinstance(value, list) else value


def both_ways(examples: Sequence[Example]) -> list[Example]:
    """Return each translation, and behind it the one in the other direction."""
    found = []
    for each in examples:
        plain = {role: value for role, value in each.items() if role != "references"}
        found += [each, templates.reversed_translation(plain)]
    return found


def _key(kind: WritingTask, example: Example) -> str:
    return json.dumps(example if kind.whole_text(example) else kind.without_target(example), sort_keys=True)


def _groups(kind: WritingTask, examples: Sequence[Example]) -> list[str]:
    """Return what keeps rows together in the split: what they ask, or the text that they ask about."""
    contexts = [str(each.get("context") or "") for each in examples]
    if all(contexts) and len(set(contexts)) >= FEWEST_GROUPS:
        return contexts
    return [_key(kind, each) for each in examples]


# ---- snapshot -------------------------------------------------------------------------------------------------------


def fingerprint(train: Sequence[Example], validation: Sequence[Example] | None) -> str:
    """Return the SHA-256 of the examples, in their order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, part in (("train", train), ("validation", validation or [])):
        digest.update(f"\n{name} {len(part)}".encode())
        for each in part:
            digest.update(b"\n" + json.dumps(each, ensure_ascii=False, sort_keys=True).encode("utf-8"))
    return digest.hexdigest()


def save_snapshot(table: RoleTable, folder: Path) -> None:
    """Write train.parquet, validation.parquet (where there is one) and, last, report.json into `folder`.

    Each row is one example as JSON: roles hold lists and conversations too.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, part in (("train", table.train), ("validation", table.validation)):
        path = folder / f"{name}.parquet"
        if part is None:
            path.unlink(missing_ok=True)
            continue
        rows = pa.array([json.dumps(each, ensure_ascii=False) for each in part], pa.string())
        buffer = io.BytesIO()
        numbers = pa.array(table.numbers[name], pa.int64())
        whole = pa.table({"example": rows, "row": numbers})
        pq.write_table(whole, buffer, compression="zstd", row_group_size=ROWS_AT_ONCE)
        files.write_bytes(path, buffer.getvalue())
    files.write_json(folder / "report.json", table.report)


def load_snapshot(folder: Path) -> RoleTable:
    """Return what `save_snapshot` wrote; raises DataError where it is missing or is not what it was.

    Examples stay in the file, and are read when they are asked for.
    """
    report: dict[str, Any] | None = files.read_json(folder / "report.json")
    if report is None:
        raise DataError(f"{folder} holds no complete snapshot of the examples. Run the cell again under another name")
    again = "Run the cell again under another name"
    try:
        train, learnt = _stored(folder / "train.parquet")
        validation, held = _stored(folder / "validation.parquet") if report["validation"] else (None, [])
        found = fingerprint(train, validation)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        reason = str(error).splitlines()[0][:120]
        raise DataError(f"the snapshot of the examples in {folder} cannot be read: {reason}. {again}") from None
    if found != report["fingerprint"]:
        raise DataError(f"the snapshot of the examples in {folder} has been changed since it was made. {again}")
    numbers = {"train": learnt, "validation": held}
    return RoleTable(report["task"], train, validation, report["facts"], report, numbers)


def _stored(path: Path) -> tuple[Sequence[Example], Sequence[int]]:
    import pyarrow.parquet as pq

    examples: Stored[Example] = Stored(path, "example", json.loads)
    known = "row" in pq.read_schema(path).names
    return examples, Stored(path, "row", int) if known else [0] * len(examples)
