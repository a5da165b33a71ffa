"""Turns any table into examples: columns found and explained, rows checked, split, kept as a snapshot.

It reads no files of its own (tables.py does) and cuts no texts: tokens are the model's business. Every choice stands in
`Table.report` with its reason, everything left out is counted there, and every mistake is one DataError. A resumed run
learns from the snapshot alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptx_nb import files, text_pairs
from gptx_nb.engine import label_sets
from gptx_nb.engine.ragged import Ragged
from gptx_nb.engine.stored import ROWS_AT_ONCE, Stored
from gptx_nb.engine.tables import Sheet, read
from gptx_nb.engine.tasks import columns as guessing
from gptx_nb.errors import DataError, nearest
from gptx_nb.recipe import Recipe
from gptx_nb.text_pairs import TEXT_NAMES

if TYPE_CHECKING:
    from gptx_nb.sources import Source

# Names of columns, the likeliest first.
LABEL_NAMES = (
    *("label", "labels", "category", "class", "sentiment", "target", "intent", "topic", "emotion", "tag", "polarity"),
    *("verdict", "genre", "output", "label_text", "label_name", "label_names", "class_name", "category_name"),
    *("emotions", "classes", "intents", "sentiments"),
    *("标签", "类别", "分类", "情感", "情绪", "意图", "主题", "话题", "类型"),
)
ID_NAMES = ("id", "idx", "index", "guid", "uuid", "key", "url", "link", "date", "time", "timestamp")

ROLES = ("text", "text_pair", "label")

DEFAULT_SHARE = Recipe.model_fields["validation"].default
SMALLEST_SPLIT = 10  # fewer examples than this are all needed for learning
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_WHOLE = re.compile(r"(-?\d+)(\.0+)?")
_CONTENT_LABEL_LENGTH = 60  # characters; a column of longer values on average is no label
_LISTED = 12


@dataclass(frozen=True)
class Examples:
    """Texts and, for each, the index of its label in `Table.labels`; of a multi-label table a list of such.

    `numbers`: the row, from 1, of its table that each was; empty where there was no table, and in older snapshots.
    """

    texts: Sequence[str]
    labels: Sequence[Any]
    numbers: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Table:
    """What a run learns from, and the report on how it came about."""

    train: Examples
    validation: Examples | None
    labels: list[str]
    report: dict[str, Any]

    @property
    def multi_label(self) -> bool:
        """Whether a text may have any number of labels."""
        return bool(self.report.get("multi_label"))


@dataclass(frozen=True)
class Columns:
    """Which column is the text, which the label, and why each.

    `pair` is the column of a second text; `indicators` are columns of 0 and 1, each a label, in place of `label`.
    """

    text: str
    label: str
    why: str
    pair: str | None = None
    indicators: tuple[str, ...] = ()

    @property
    def read(self) -> dict[str, str]:
        """The columns that are read, by what they are."""
        found = {"text": self.text, **({"text_pair": self.pair} if self.pair else {})}
        labels = {f"label {name}": name for name in self.indicators} or {"label": self.label}
        return {**found, **labels}


@dataclass
class _Rows:
    """The usable rows of one table, labels still by name."""

    texts: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)  # a name, or the names of a text that may have several
    numbers: list[int] = field(default_factory=list)  # of the rows in the table, from 1
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def load(recipe: Recipe, sources: Mapping[str, Source | None], run_folder: Path, *, learns: bool = True) -> Table:
    """Read the tables in `sources` ("train", and "validation" or None), and return examples ready to learn from.

    `learns`: they are learnt from; else they are scored or shown, and where the recipe names labels one is enough.
    Nothing is written: `save_snapshot` does that. Raises DataError with one short message for whatever does not fit.
    """
    source = sources["train"]
    if source is None:
        raise DataError("there are no examples. Type some below `examples:`, or name a table with `data:`")
    named = [name for name in (recipe.text, recipe.label, *(recipe.columns or {}).values()) if isinstance(name, str)]
    sheet = read(
        source,
        run_folder,
        subset=source.options.get("subset", recipe.subset),
        split=source.options.get("split", recipe.split),
        named=named,
    )
    columns = find_columns(sheet, recipe)
    sets = _label_sets(sheet, columns, recipe)
    rows = _usable(sheet, columns, sets)
    renamed: dict[str, str] = {}
    if sets is not None:
        labels, numbered = label_sets.order(sheet, rows.labels, rows.numbers, recipe)
        everything = Examples(rows.texts, numbered, rows.numbers)
        counts = Counter(label for row in everything.labels for label in row)
    else:
        if learns or not recipe.labels:  # rows that are scored or shown may all have one of known labels
            _check_labels(sheet, columns, rows, named=recipe.label is not None)
        labels, renamed = _order(sheet, columns, rows, recipe)
        index = {name: at for at, name in enumerate(labels)}
        everything = Examples(rows.texts, [index[renamed.get(label, label)] for label in rows.labels], rows.numbers)
        counts = Counter(everything.labels)
        rows.warnings += label_sets.doubts(sheet, columns.label, recipe)
    warnings = [*sheet.notes, *rows.warnings, *_repeats(everything, sheet.shown)]
    if sets is not None and (bare := sum(not row for row in everything.labels)):
        warnings.append(f"{bare:,} of {len(everything):,} texts have no label at all, and are learnt as such")
    if without := [name for at, name in enumerate(labels) if not counts[at]]:
        warnings.append(f"no row has the label {listed(without)}")

    own = sources.get("validation")
    # As of a DatasetDict in the notebook: a share that was asked for goes first.
    its_own = sheet.own_validation if own is None and recipe.validation == DEFAULT_SHARE else None
    about_own: dict[str, Any] | None = None
    validation: Examples | None
    if its_own:
        own = replace(source, options={**source.options, "split": its_own})
    if own is not None:
        try:
            validation, about_own, more = _own_validation(
                own, run_folder, recipe, columns, labels, renamed, everything, sets is not None
            )
        except DataError as error:
            if not its_own:
                raise
            raise DataError(
                f"{source.shown} brings its own split {its_own!r} for scoring. {error}. Or hold back a share of the "
                "rows to learn from, as in `validation: 0.1`"
            ) from None
        train, note = everything, f"{len(validation)} rows of {about_own['source']}"
        if its_own:
            note += f", the data set's own split {its_own!r}"
        warnings += more
    else:
        share = recipe.validation if isinstance(recipe.validation, float) else 0.0
        by = label_sets.rarest(everything.labels, len(labels)) if sets is not None else everything.labels
        kept, held, note = split(everything.texts, by, share, recipe.seed)
        train, validation = _pick(everything, kept), _pick(everything, held) if held else None
        single = [name for at, name in enumerate(labels) if counts[at] == 1]
        if validation is not None and single:
            warnings.append(f"one row only, so learned from and not scored: {listed(single)}")
        if validation is not None and (unscored := _without(validation, labels, counts)):
            them = "it is" if len(unscored) == 1 else "they are"
            warnings.append(
                f"no row that is held back has {listed(unscored)}, so {them} learned from and not scored. A larger "
                "`validation:`, or a table of its own, scores more"
            )

    report: dict[str, Any] = {
        "source": sheet.shown,
        "columns": list(sheet.columns),
        "text": columns.text,
        "text_pair": columns.pair,
        "label": columns.label,
        "multi_label": sets is not None,
        "why": columns.why,
        "rows": sheet.rows,
        "used": len(everything),
        "dropped": rows.dropped,
        "labels": {name: counts[at] for at, name in enumerate(labels)},
        "train": len(train),
        "validation": len(validation) if validation is not None else 0,
        "validation_note": note,
        "validation_table": about_own,
        "examples": [
            {"text": everything.texts[at], "label": label_name(labels, everything.labels[at])}
            for at in range(min(3, len(everything)))
        ],
        "encoding": sheet.encoding,
        "warnings": warnings,
        "fingerprint": fingerprint(train, validation, labels),
    }
    return Table(train, validation, labels, report)


def _without(examples: Examples, labels: list[str], counts: Mapping[int, int]) -> list[str]:
    """Return the labels that none of `examples` has, though several rows of the table do (`counts` by number)."""
    there = {label for each in examples.labels for label in (each if isinstance(each, list) else [each])}
    return [name for at, name in enumerate(labels) if counts[at] > 1 and at not in there]


def label_name(labels: list[str], label: int | list[int]) -> str:
    """Return the name of a row's label, of several all with commas between."""
    if isinstance(label, int):
        return labels[label]
    return ", ".join(labels[each] for each in label) or "(none)"


# ---- columns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What a column holds, apart from its name."""

    filled: int
    distinct: int
    numbers: float  # share of the filled cells
    length: float  # mean characters
    nested: bool

    @property
    def worded(self) -> bool:
        return self.filled > 0 and not self.nested and self.numbers <= 0.5


def find_columns(sheet: Sheet, recipe: Recipe) -> Columns:
    """Return the text and label columns: those the recipe names, else by name, else by content."""
    recipe, pair, pair_why = _by_role(sheet, recipe)
    names = list(sheet.columns)
    for setting, wanted in (("text", recipe.text), ("text_pair", pair), ("label", recipe.label)):
        if wanted is not None and wanted not in names:
            raise DataError(
                f"{sheet.shown} has no column {wanted!r} ({setting}: {wanted}).{nearest(wanted, names)} Columns: "
                f"{listed(names)}"
            )
    if recipe.text is not None and recipe.text == recipe.label:
        raise DataError(
            f"text and label are the same column, {recipe.text!r}. Columns: {listed(names)}. Name two of them"
        )
    if len(names) < 2:
        raise DataError(
            f"{sheet.shown} has one column, {listed(names)!r}, and needs two: a text and its label. "
            "Add a column of labels; in a CSV, separate them by commas"
        )
    facts = {name: _look(values) for name, values in sheet.columns.items() if name != pair}
    if pair is not None:
        assert recipe.text is not None  # a pair is named, or guessed, with both of its texts
        known = recipe.label or _label_by_name(sheet, facts, recipe)[0]
        known = known or _label_by_content(sheet, facts, recipe.text)[0]
        both = f"text is columns {recipe.text!r} and {pair!r}, one after the other ({pair_why})"
        return Columns(recipe.text, known, f"{both}; label is column {known!r}", pair)
    if flags := _indicators(sheet, recipe, facts):
        found, found_why = (recipe.text, "set") if recipe.text else _text_column(sheet, facts, None)
        how = "set" if recipe.labels else "they hold 0 and 1"
        why = f"text is column {found!r} ({found_why}); labels are columns {listed(map(repr, flags))} ({how})"
        return Columns(found, ", ".join(flags), why, indicators=tuple(flags))

    label, label_why = recipe.label, "set"
    if label is None:
        label, label_why = _label_by_name(sheet, facts, recipe)
    text, text_why = recipe.text, "set"
    if text is None:
        text, text_why = _text_column(sheet, facts, label)
    if label is None:
        label, label_why = _label_by_content(sheet, facts, text)
    return Columns(text, label, f"text is column {text!r} ({text_why}); label is column {label!r} ({label_why})")


def _by_role(sheet: Sheet, recipe: Recipe) -> tuple[Recipe, str | None, str]:
    """Return the recipe with the columns that `columns:` names by role, the column of a second text, and why."""
    given = recipe.columns or {}
    for role, column in given.items():
        if role not in ROLES or isinstance(column, list):
            raise DataError(
                f"columns: text-classification has one column for each of its roles, {', '.join(ROLES)}, and "
                f"{role}: {column} is none.{nearest(role, ROLES)} Name them as in {{text: {next(iter(sheet.columns))}}}"
            )
    roles = {role: str(column) for role, column in given.items()}
    if "text_pair" in roles and "text" not in roles and recipe.text is None:
        raise DataError("columns: a text_pair is the second of two texts. Name the first as well, with `text`")
    update = {role: column for role, column in roles.items() if role != "text_pair" and getattr(recipe, role) is None}
    recipe = recipe.model_copy(update=update)
    if "text_pair" in roles:
        return recipe, roles["text_pair"], "set"
    if recipe.text is None and recipe.label_separator is None:
        guess = guessing.guess({name: values[:200] for name, values in sheet.columns.items()})
        if guess is not None and "text_pair" in guess.roles:
            first, second, label = (str(guess.roles[role]) for role in ("text", "text_pair", "label"))
            recipe = recipe.model_copy(update={"text": first, "label": recipe.label or label})
            return recipe, second, guess.why
    return recipe, None, ""


def _indicators(sheet: Sheet, recipe: Recipe, facts: dict[str, _Facts]) -> list[str]:
    """Return the columns of 0 and 1 (or true and false) that are labels each, if that is how this table has them."""
    if recipe.labels is None and any(_plain(name) in LABEL_NAMES for name in facts):
        return []
    others = [name for name in facts if name != recipe.text and not _is_id(name)]
    rest = [name for name in others if not facts[name].worded or label_sets.holds_flags(sheet.columns[name])]
    only = len(others) - len(rest) == (0 if recipe.text else 1)  # nothing else could be the label
    return label_sets.indicators(sheet, recipe, rest if only else [])


def _label_sets(sheet: Sheet, columns: Columns, recipe: Recipe) -> list[list[str] | None] | None:
    """Return each row's labels where a text may have several, else None."""
    if columns.indicators:
        return list(label_sets.of_indicators(sheet, columns.indicators))
    return label_sets.of_column(sheet, columns.label, recipe)


def _label_by_name(sheet: Sheet, facts: dict[str, _Facts], recipe: Recipe) -> tuple[str | None, str]:
    candidates = [name for name in by_name(list(facts), LABEL_NAMES) if name != recipe.text and facts[name].filled]
    if not candidates:
        return None, ""
    label = candidates[0]
    if twin := _twin(label, sheet, facts, recipe):
        return twin, f"it names the numbers in {label!r}"
    return label, "by its name"


def _text_column(sheet: Sheet, facts: dict[str, _Facts], label: str | None) -> tuple[str, str]:
    labelled = set(by_name(list(facts), LABEL_NAMES))
    rest = [name for name in facts if name != label]
    named = [name for name in by_name(rest, TEXT_NAMES) if name not in labelled and not _is_id(name)]
    worded = [name for name in named if facts[name].worded]
    if worded:
        if _plain(worded[0]) == "text" or len(worded) == 1:
            return worded[0], "by its name"
        longest = max(worded, key=lambda name: facts[name].length)
        return longest, f"by its name; the longest of {listed(worded)}"
    others = [name for name in rest if facts[name].worded and name not in labelled and not _is_id(name)]
    if others:
        return max(others, key=lambda name: facts[name].length), "it holds the longest texts"
    if named:
        return named[0], "by its name"  # numbers or nothing in it: told where the rows are checked
    left = [name for name in rest if facts[name].worded]
    if len(rest) == 1 or left:
        return max(left or rest, key=lambda name: facts[name].length), "it holds the longest texts"
    raise DataError(f"{sheet.shown}: no column holds texts. Columns: {listed(facts)}. Name one, as in `text: review`")


def _label_by_content(sheet: Sheet, facts: dict[str, _Facts], text: str) -> tuple[str, str]:
    rest = [name for name in facts if name != text]
    usable = [name for name in rest if not _is_id(name) and facts[name].filled] or rest
    if len(usable) == 1:
        return usable[0], "the only other column"
    few = [
        name
        for name in usable
        if not facts[name].nested
        and 2 <= facts[name].distinct <= max(2, facts[name].filled // 2)
        and facts[name].length <= _CONTENT_LABEL_LENGTH
    ]
    # Words make better labels than numbers, which may be amounts.
    likely = [name for name in few if facts[name].worded] or few
    if len(likely) == 1:
        return likely[0], f"{facts[likely[0]].distinct} different values"
    if not likely:
        raise DataError(
            f"{sheet.shown}: no column looks like a label (few different values). Columns: {listed(facts)}. Name "
            f"one, as in `label: {rest[0]}`"
        )
    raise DataError(f"{sheet.shown}: {listed(likely)} could each be the label. Choose one, as in `label: {likely[0]}`")


def _twin(label: str, sheet: Sheet, facts: dict[str, _Facts], recipe: Recipe) -> str | None:
    """Return the column that gives each number in column `label` its own name, if there is one."""
    numbers = _label_texts(sheet.columns[label])
    if facts[label].nested or not all(number is None or _WHOLE.fullmatch(number) for number in numbers):
        return None
    for name in facts:
        if name == label or not facts[name].worded or facts[name].distinct != facts[label].distinct:
            continue
        words = _label_texts(sheet.columns[name])
        pairs = {
            (number, word)
            for number, word in zip(numbers, words, strict=True)
            if number is not None and word is not None
        }
        one_to_one = len(pairs) == len({number for number, _ in pairs}) == len({word for _, word in pairs}) >= 2
        # As many texts as rows would pair with anything: the numbers must repeat.
        if not one_to_one or (len(pairs) * 2 > facts[label].filled and not by_name([name], LABEL_NAMES)):
            continue
        if recipe.labels and not {word for _, word in pairs} <= set(recipe.labels):
            continue  # the recipe gives the numbers other names
        return name
    return None


def by_name(names: list[str], known: tuple[str, ...]) -> list[str]:
    """Return those of `names` that are called like `known`: the same word, in the order of `known`, then a part."""
    exact = [name for word in known for name in names if _plain(name) == word]
    partly = [name for word in known for name in names if word in _plain(name).split("_") and name not in exact]
    return list(dict.fromkeys(exact + partly))


def _plain(name: str) -> str:
    """Return `Review Text`, `reviewText` and `review-text` all as `review_text`."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).strip("_").lower()


def _is_id(name: str) -> bool:
    plain = _plain(name)
    return plain in ID_NAMES or plain.endswith("_id") or plain.startswith("unnamed") or plain.startswith("column_")


def _look(values: list[Any]) -> _Facts:
    filled = numbers = length = 0
    nested = False
    distinct = set()
    for value in values:
        if missing(value):
            continue
        filled += 1
        nested = nested or isinstance(value, list | dict | bytes)
        text = str(value)
        numbers += not isinstance(value, bool) and _NUMBER.fullmatch(text.strip()) is not None
        length += len(text)
        distinct.add(text)
    return _Facts(filled, len(distinct), numbers / max(1, filled), length / max(1, filled), nested)


# ---- rows -----------------------------------------------------------------------------------------------------------


def _usable(sheet: Sheet, columns: Columns, sets: list[list[str] | None] | None) -> _Rows:
    """Return the rows that have both a text and a label; count the others. `sets`: each row's, if it may have several.

    A pair of texts becomes one text.
    """
    texts = sheet.columns[columns.text]
    others = [columns.pair] if columns.pair else []
    others += [columns.label] if sets is None else []
    for name in (columns.text, *others):
        values = sheet.columns[name]
        nested = next((value for value in values if isinstance(value, list | dict | bytes)), None)
        if nested is not None:
            kind = {list: "lists", dict: "objects", bytes: "bytes"}[type(nested)]
            raise DataError(
                f"{sheet.shown}: column {name!r} holds {kind}, and needs one text or label a row. "
                f"Columns: {listed(sheet.columns)}. Choose with `text:` and `label:`"
            )
    rows = _Rows()
    dropped: Counter[str] = Counter()
    numbers = mended = 0
    labels: list[Any] = _label_texts(sheet.columns[columns.label]) if sets is None else list(sets)
    seconds = sheet.columns[columns.pair] if columns.pair else texts
    for number, (text, second, label) in enumerate(zip(texts, seconds, labels, strict=True), 1):
        if missing(text) or missing(second):
            dropped["empty text"] += 1
        elif label is None:
            dropped["no label"] += 1
        else:
            whole = text_pairs.join(_as_text(text), _as_text(second)) if columns.pair else _as_text(text)
            numbers += not isinstance(text, bool) and _NUMBER.fullmatch(whole.strip()) is not None
            clean = encodable(whole)
            mended += clean != whole
            rows.texts.append(clean)
            rows.labels.append(label)
            rows.numbers.append(number)
    rows.dropped = dict(dropped)
    if not rows.texts:
        parts = " and ".join(f"{count} with {why}" for why, count in dropped.items())
        raise DataError(
            f"{sheet.shown}: no row can be used ({parts}; text is column {columns.text!r}, label is column "
            f"{columns.label!r}). "
            f"Columns: {listed(sheet.columns)}. Choose with `text:` and `label:`"
        )
    if numbers * 2 > len(rows.texts):
        others = [name for name in sheet.columns if name not in (columns.text, columns.label)]
        advice = f"Name another, as in `text: {others[0]}`" if others else "Give a table with a column of texts"
        raise DataError(
            f"{sheet.shown}: {numbers} of {len(rows.texts)} texts in column {columns.text!r} are numbers: is it "
            f"the wrong column? Columns: {listed(sheet.columns)}. {advice}"
        )
    if numbers:
        rows.warnings.append(f"{numbers} text{' is a number' if numbers == 1 else 's are numbers'}, and used as text")
    if mended:
        rows.warnings.append(
            f"{mended} text{'s' * (mended != 1)} with broken Unicode (half a character) mended with \ufffd"
        )
    return rows


def _label_texts(values: list[Any]) -> list[str | None]:
    """Return labels as texts, None where there is none. `1.0` becomes `1` where every label is a whole number."""
    texts = [None if missing(value) else encodable(_as_text(value)).strip() for value in values]
    matches = [_WHOLE.fullmatch(text) if text is not None else None for text in texts]
    if all(match or text is None for match, text in zip(matches, texts, strict=True)):
        return [match[1] if match else None for match in matches]
    return texts


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as in YAML and JSON
    return str(value)


def missing(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    return bool(isinstance(value, float) and math.isnan(value))


def encodable(text: str) -> str:
    """Return `text` as it can be stored in UTF-8: JSON may hold half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _check_labels(sheet: Sheet, columns: Columns, rows: _Rows, *, named: bool) -> None:
    """Raise DataError where the labels cannot be learned: one only, or nearly as many as rows.

    `named`: the user has said which column it is. Many classes with few rows each are then meant.
    """
    distinct = len(set(rows.labels))
    if distinct == 1:
        other = next((name for name in sheet.columns if name not in (columns.text, columns.label)), None)
        advice = f", or choose the column, as in `label: {other}`" if other else ""
        raise DataError(
            f"{sheet.shown}: every row has the label {rows.labels[0]!r} (column {columns.label!r}); at least two "
            f"labels are needed. Add rows with another{advice}"
        )
    if len(rows.labels) > 20 and (distinct == len(rows.labels) or (not named and distinct * 2 > len(rows.labels))):
        kind = "numbers" if all(_NUMBER.fullmatch(label) for label in rows.labels) else "text"
        raise DataError(
            f"{sheet.shown}: column {columns.label!r} has {distinct} different labels in {len(rows.labels)} rows; "
            f"it looks like {kind}, not like a label. Columns: {listed(sheet.columns)}. Name the right one with "
            "`label:`"
        )


def _order(sheet: Sheet, columns: Columns, rows: _Rows, recipe: Recipe) -> tuple[list[str], dict[str, str]]:
    """Return the label names in the model's order, and new names for labels that are numbers 0, 1, … of the "
    "recipe's."""
    found = Counter(rows.labels)
    if recipe.labels is None:
        declared = [name for name in _label_texts(sheet.orders.get(columns.label, [])) if name is not None]
        if set(found) <= set(declared):
            return [name for name in dict.fromkeys(declared) if name in found], {}
        numeric = all(_NUMBER.fullmatch(name) for name in found)
        return sorted(found, key=(lambda name: (float(name), name)) if numeric else None), {}
    labels = [name.strip() for name in recipe.labels]
    if set(found) <= set(labels):
        return labels, {}
    numbered = {str(at): name for at, name in enumerate(labels)}
    if set(found) <= set(numbered):
        return labels, numbered
    _refuse_label(sheet, rows.labels, rows.numbers, labels)
    raise AssertionError("a label that is not in the recipe was found above")


def _refuse_label(
    sheet: Sheet, names: list[str], numbers: list[int], labels: list[str], known_by: str = "labels"
) -> None:
    """Raise DataError for the first of `names`, the labels of rows with these `numbers`, that is not known."""
    found = Counter(names)
    strangers = [name for name in found if name not in labels]
    if strangers:
        first = strangers[0]
        row, others = numbers[names.index(first)], len(strangers) - 1
        told = [f"first: row {row}"] if found[first] > 1 else []
        told += [f"{others} more such label{'s' * (others > 1)}"] if others else []
        where = f"{found[first]} rows" if found[first] > 1 else f"row {row}"
        where += f" ({'; '.join(told)})" if told else ""
        raise DataError(
            f"{sheet.shown}: the label {first!r} of {where} is not among the {known_by}: {listed(labels)}."
            f"{nearest(first, labels)} Add it there, or correct the rows"
        )


def _repeats(examples: Examples, shown: str) -> list[str]:
    seen: dict[str, set[Any]] = {}
    for text, label in zip(examples.texts, examples.labels, strict=True):
        seen.setdefault(text.strip(), set()).add(tuple(label) if isinstance(label, list) else label)
    repeated = len(examples) - len(seen)
    disputed = sum(1 for labels in seen.values() if len(labels) > 1)
    warnings = []
    if repeated:
        warnings.append(f"{repeated} row{' repeats' if repeated == 1 else 's repeat'} a text of {shown}")
    if disputed:
        warnings.append(
            f"{disputed} text{'s stand' if disputed != 1 else ' stands'} there with different labels: no model can "
            "learn both"
        )
    return warnings


# ---- validation -----------------------------------------------------------------------------------------------------


def split(texts: Sequence[str], labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int], str]:
    """Return the rows to learn from, the rows to hold back, and a note on how many and why.

    By label, in the same proportions. Identical texts stay on one side, every label keeps a row to learn from. A text's
    place depends on the text and the seed, not on the order of rows or on a generator, so it is the same everywhere.
    """
    everything = list(range(len(texts)))
    if share == 0:
        return everything, [], "validation: 0, so no example is held back and there is no score"
    if len(texts) < SMALLEST_SPLIT:
        return (
            everything,
            [],
            f"{len(texts)} examples are too few to hold some back for scoring ({SMALLEST_SPLIT} are enough)",
        )

    groups: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        groups.setdefault(text.strip(), []).append(row)
    by_label: dict[int, list[list[int]]] = {}
    for text in sorted(groups, key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode()).digest()):
        rows = groups[text]
        counted = Counter(labels[row] for row in rows)
        by_label.setdefault(min(counted, key=lambda label: (-counted[label], label)), []).append(rows)

    wanted = _apportion({label: len(by_label[label]) for label in sorted(by_label)}, share)
    chosen = [rows for label in sorted(by_label) for rows in by_label[label][: wanted[label]]]
    # A label that only stands beside others (one text, two labels) may have gone entirely: bring its rows back.
    for label in sorted(set(labels)):
        held = {row for rows in chosen for row in rows}
        if all(row in held for row in everything if labels[row] == label):
            chosen.remove(next(rows for rows in chosen if any(labels[row] == label for row in rows)))
    held = {row for rows in chosen for row in rows}
    if not held:
        return (
            everything,
            [],
            f"no example is held back: {share:g} of {len(texts)}, with one left to learn from for each label, is none",
        )
    kept = [row for row in everything if row not in held]
    note = f"{len(held)} of {len(texts)} examples held back (validation: {share:g}), by label, seed {seed}"
    return kept, sorted(held), note


def _apportion(sizes: dict[int, int], share: float) -> dict[int, int]:
    """Return how many of each label's groups to hold back: `share` of all, by largest remainders, one left of "
    "each."""
    exact = {label: share * size for label, size in sizes.items()}
    wanted = {label: min(math.floor(exact[label]), size - 1) for label, size in sizes.items()}
    left = round(share * sum(sizes.values())) - sum(wanted.values())
    for label in sorted(sizes, key=lambda label: (math.floor(exact[label]) - exact[label], label)):
        if left > 0 and wanted[label] < sizes[label] - 1:
            wanted[label] += 1
            left -= 1
    return wanted


def _own_validation(
    source: Source,
    run_folder: Path,
    recipe: Recipe,
    columns: Columns,
    labels: list[str],
    renamed: dict[str, str],
    train: Examples,
    multi_label: bool,
) -> tuple[Examples, dict[str, Any], list[str]]:
    """Read the user's own validation table: the training table's columns and labels, no others."""
    sheet = read(
        source,
        run_folder,
        subset=source.options.get("subset", recipe.subset),
        split=source.options.get("split"),
        named=list(columns.read.values()),
        setting="validation",
    )
    for what, name in columns.read.items():
        if name not in sheet.columns:
            raise DataError(
                f"validation: {sheet.shown} has no column {name!r}, the {what} of the training table."
                f"{nearest(name, sheet.columns)} Columns: {listed(sheet.columns)}. Rename it in one of the tables"
            )
    if multi_label:
        sets = _label_sets(sheet, columns, recipe)
        rows = _usable(sheet, columns, sets if sets is not None else [])
        known_labels = recipe.model_copy(update={"labels": labels})
        order = label_sets.order(sheet, rows.labels, rows.numbers, known_labels)[1]
        validation = Examples(rows.texts, order, rows.numbers)
    else:
        rows = _usable(sheet, columns, None)
        called = [renamed.get(label, label) for label in rows.labels]
        _refuse_label(sheet, called, rows.numbers, labels, "training table's labels")
        index = {name: at for at, name in enumerate(labels)}
        validation = Examples(rows.texts, [index[name] for name in called], rows.numbers)
    known = {text.strip() for text in train.texts}
    leaked = sum(1 for text in validation.texts if text.strip() in known)
    warnings = [*sheet.notes, *(f"validation: {warning}" for warning in rows.warnings)]
    if leaked:
        warnings.append(
            f"{leaked} of {len(validation)} validation rows {'is' if leaked == 1 else 'are'} in the training table "
            "too: the score will look better than it is"
        )
    scored = {label for each in validation.labels for label in (each if isinstance(each, list) else [each])}
    if unscored := [name for at, name in enumerate(labels) if at not in scored]:
        which = "label {}: it is" if len(unscored) == 1 else "labels {}: they are"
        warnings.append(
            f"no validation row has the {which.format(listed(unscored))} learnt, and not scored. Add such rows to the "
            "validation table, or take the rows out of the training table"
        )
    about = {
        "source": sheet.shown,
        "rows": sheet.rows,
        "used": len(validation),
        "dropped": rows.dropped,
        "encoding": sheet.encoding,
        "leaked": leaked,
    }
    return validation, about, warnings


def _pick(examples: Examples, rows: list[int]) -> Examples:
    numbers: Sequence[int] = [examples.numbers[row] for row in rows] if examples.numbers else ()
    return Examples([examples.texts[row] for row in rows], [examples.labels[row] for row in rows], numbers)


# ---- snapshot -------------------------------------------------------------------------------------------------------


def fingerprint(train: Examples, validation: Examples | None, labels: list[str]) -> str:
    """Return the SHA-256 of labels and rows, in their order, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(labels, ensure_ascii=False).encode("utf-8"))
    for name, part in (("train", train), ("validation", validation or Examples([], []))):
        digest.update(f"\n{name} {len(part)}".encode())
        for row in zip(part.texts, part.labels, strict=True):
            digest.update(b"\n" + json.dumps(row, ensure_ascii=False).encode("utf-8"))
    return digest.hexdigest()


def save_snapshot(table: Table, folder: Path) -> None:
    """Write train.parquet, validation.parquet (where there is one) and, last, report.json into `folder`."""
    for name, part in (("train", table.train), ("validation", table.validation)):
        path = folder / f"{name}.parquet"
        if part is None:
            path.unlink(missing_ok=True)
        else:
            files.write_bytes(path, _to_parquet(part, table.labels))
    files.write_json(folder / "report.json", table.report)


def load_snapshot(folder: Path) -> Table:
    """Return what `save_snapshot` wrote; raises DataError where it is missing or is not what it was.

    Texts stay in the file, and are read when they are asked for.
    """
    report: dict[str, Any] | None = files.read_json(folder / "report.json")
    if report is None:
        raise DataError(f"{folder} holds no complete snapshot of the examples. Run the cell again under another name")
    try:
        train, labels = _from_parquet(folder / "train.parquet")
        validation = _from_parquet(folder / "validation.parquet")[0] if report["validation"] else None
        found = fingerprint(train, validation, labels)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        reason = str(error).splitlines()[0][:120]
        raise DataError(
            f"the snapshot of the examples in {folder} cannot be read: {reason}. Run the cell again under another name"
        ) from None
    if found != report["fingerprint"]:
        raise DataError(
            f"the snapshot of the examples in {folder} has been changed since it was made. Run the cell again "
            "under another name"
        )
    return Table(train, validation, labels, report)


def _to_parquet(examples: Examples, labels: list[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    several = any(isinstance(each, list) for each in examples.labels)
    columns = {
        "text": pa.array(examples.texts, pa.string()),
        "label": pa.array(examples.labels, pa.list_(pa.int64()) if several else pa.int64()),
        "label_name": pa.array([label_name(labels, each) for each in examples.labels], pa.string()),
    }
    if examples.numbers:
        columns["row"] = pa.array(examples.numbers, pa.int64())
    table = pa.table(columns).replace_schema_metadata({"gptx_nb.labels": json.dumps(labels, ensure_ascii=False)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS_AT_ONCE)
    return buffer.getvalue()


def _from_parquet(path: Path) -> tuple[Examples, list[str]]:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    labels: list[str] = json.loads((schema.metadata or {})[b"gptx_nb.labels"])
    marks: Stored[Any] = Stored(path, "label", _as_it_is)
    several = len(marks) > 0 and isinstance(marks[0], list)
    numbers: Sequence[int] = Stored(path, "row", int) if "row" in schema.names else ()
    return Examples(Stored(path, "text", str), Ragged(marks) if several else list(marks), numbers), labels


def _as_it_is(cell: Any) -> Any:
    return cell


def listed(names: Iterable[object]) -> str:
    """Return `names` in words, the first of many."""
    short = [str(name)[:40] for name in names]
    return ", ".join(short[:_LISTED]) + (f", … {len(short) - _LISTED} more" if len(short) > _LISTED else "")
