"""Labels of texts that have any number of them: lists, columns of 0 and 1, or texts with a separator that is named.

It finds them in a table and puts them in order; rows, texts and splits are `data`'s business. Labels that seem to be
several in one text are refused, not guessed apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gptx_nb.engine.tables import Sheet
from gptx_nb.errors import DataError
from gptx_nb.recipe import Recipe

Names = list[str]

SEPARATORS = (";", "|", ",", "；", "，", "、", "/", " ")  # that tables put between labels; none of them is assumed
RARE = (";", "|", "；")  # in names of labels: they are asked about wherever they stand between two words
REPEATED = 2 / 3  # of the parts of joined labels, those that stand in other labels too: then they surely are several
DOUBTFUL = 1 / 2  # the same, from where they may be
A_FEW = 100  # numbers that may be labels with blanks between
_LIST = re.compile(r"\[.*\]|\{.*\}|\(.*\)", re.DOTALL)
_ENTITY = re.compile(r"&#?\w+;")  # of HTML
_QUOTED = re.compile(r"""(['"])(.*)\1""", re.DOTALL)
_ON = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def indicators(sheet: Sheet, recipe: Recipe, rest: Sequence[str]) -> Names:
    """Return the columns of 0 and 1 that are labels each, in order; none where the labels stand in one column.

    Those that `labels:` names, or all of `rest`, the columns beside the text, if they hold nothing else.
    """
    if recipe.label is not None:
        return []
    if recipe.labels is not None:
        named = [name for name in recipe.labels if name in sheet.columns]
        if len(named) < len(recipe.labels):
            return []
        for name in named:
            for number, value in enumerate(sheet.columns[name], 1):
                if _is_on(value) is None:
                    raise DataError(
                        f"{sheet.shown}, row {number}: column {name!r} is one of the `labels:`, and holds "
                        f"{str(value)[:40]!r}. A column for a label holds 0 or 1 in every row. Correct the row, or "
                        "name a column of labels with `label:`"
                    )
        return named
    return list(rest) if len(rest) > 1 and all(holds_flags(sheet.columns[name]) for name in rest) else []


def holds_flags(values: Sequence[Any]) -> bool:
    """Say whether `values` are 0 and 1 throughout, or true and false, as `pandas.get_dummies` writes them."""
    return all(_is_on(value) is not None for value in values) and len(values) > 0


def _is_on(value: Any) -> bool | None:
    return _ON.get(str(value).strip().lower())


def of_indicators(sheet: Sheet, names: Sequence[str]) -> list[Names]:
    """Return each row's labels: the `names` of the columns that hold 1."""
    return [[name for name in names if _is_on(sheet.columns[name][row])] for row in range(sheet.rows)]


def of_column(sheet: Sheet, column: str, recipe: Recipe) -> list[Names | None] | None:
    """Return each row's labels where `column` holds several a row, None for a row without; None if it holds one each.

    Raises DataError where it seems to hold several as one text and no separator is named.
    """
    values = sheet.columns[column]
    if any(isinstance(value, list) for value in values):
        return [_listed(sheet, column, number, value) for number, value in enumerate(values, 1)]
    if recipe.label_separator is not None:
        listed = recipe.label_separator == "," and any(_LIST.fullmatch(str(value).strip()) for value in values)
        if not listed and not any(recipe.label_separator in str(value) for value in values):
            _refuse_joined(sheet, column, recipe)  # another one may be meant
        return [_parted(value, recipe.label_separator) for value in values]
    _refuse_joined(sheet, column, recipe)
    return None


def _listed(sheet: Sheet, column: str, number: int, value: Any) -> Names | None:
    if value is None or value != value:
        return None
    for each in value if isinstance(value, list) else [[]]:
        if each is None or isinstance(each, list | dict | bytes):
            got = "one that is not" if not isinstance(value, list) else f"{str(value)[:60]}"
            raise DataError(
                f"{sheet.shown}, row {number}: column {column!r} holds lists of labels, and {got} stands here. Give a "
                "list of texts in every row, as in ['joy', 'surprise'], or [] where no label fits"
            )
    return _clean(value)


def _parted(value: Any, separator: str) -> Names | None:
    if value is None or value != value or not str(value).strip():
        return None
    text = str(value).strip()
    if _LIST.fullmatch(text):
        text = text[1:-1]
    parts = (part.strip() for part in text.split(separator.strip() or separator))
    return _clean([quoted[2] if (quoted := _QUOTED.fullmatch(part)) else part for part in parts])


def _clean(values: Sequence[Any]) -> Names:
    texts = (str(value).lower() if isinstance(value, bool) else str(value).strip() for value in values)
    return list(dict.fromkeys(text for text in texts if text))


def _refuse_joined(sheet: Sheet, column: str, recipe: Recipe) -> None:
    """Raise DataError where the column's texts seem to be several labels each."""
    texts = [value.strip() if isinstance(value, str) else "" for value in sheet.columns[column]]
    distinct = {text for text in texts if text} - set(recipe.labels or ())
    for separator in SEPARATORS:
        lists = [text for text in distinct if _LIST.fullmatch(text)]
        if separator == "," and lists and 2 * len(lists) >= len(distinct):
            _refuse(sheet, column, texts, lists, separator)
        joined, share = _joined(distinct, separator)
        if share >= REPEATED:
            _refuse(sheet, column, texts, joined, separator)


def doubts(sheet: Sheet, column: str, recipe: Recipe) -> list[str]:
    """Return a warning where texts that are read as one label each may be several, though that is not sure."""
    values = sheet.columns[column]
    distinct = {value.strip() for value in values if isinstance(value, str)} - set(recipe.labels or ())
    for separator in SEPARATORS:
        joined, share = _joined(distinct, separator, sure=False)
        if share >= DOUBTFUL:
            return [_doubt(joined, separator)]
    for separator in RARE:
        plain = [text for text in distinct if separator in text and not _ENTITY.search(text)]
        if joined := [text for text in plain if all(map(str.strip, text.split(separator)))]:
            return [_doubt(joined, separator)]
    return []


def _doubt(joined: Sequence[str], separator: str) -> str:
    return (
        f"labels such as {min(joined)[:60]!r} look like several in one text, and are read as one each. If they "
        f"are several, type `label_separator: '{separator}'`"
    )


def _joined(distinct: set[str], separator: str, sure: bool = True) -> tuple[list[str], float]:
    """Return those of the `distinct` labels that may be several, and the share of their parts that others have too.

    What stands in names as well is `sure` only if two parts at least are labels of their own ("/": else a path), or if
    all is numbers (" ").
    """
    joined = [text for text in distinct if separator in text]
    counts = Counter(part for text in distinct for part in {part.strip() for part in text.split(separator)})
    parts = {part.strip() for text in joined for part in text.split(separator)} - ({""} if separator == " " else set())
    repeated = {part for part in parts if counts[part] > 1}
    if separator == " " and (len(counts) > A_FEW or not all(part.isdecimal() for part in counts if part)):
        return [], 0
    enough = len(repeated & distinct if separator == "/" else repeated) >= 2 or (not sure and repeated)
    return (joined, len(repeated) / len(parts)) if enough and "" not in parts else ([], 0)


def _refuse(sheet: Sheet, column: str, texts: list[str], joined: list[str], separator: str) -> None:
    known = set(joined)
    row = next(number for number, text in enumerate(texts) if text in known)
    raise DataError(
        f"{sheet.shown}, row {row + 1}: column {column!r} holds {texts[row][:60]!r}, which looks like several labels "
        f"in one text. Type `label_separator: '{separator}'` to have them read as such, or give lists. If it is one "
        "label, name all labels with `labels:`"
    )


def order(
    sheet: Sheet, found: Sequence[Names], numbers: Sequence[int], recipe: Recipe
) -> tuple[Names, list[list[int]]]:
    """Return the label names in the model's order, and each row's as their places in it; `numbers` are the rows'.

    The order is that of `labels:`, which also names labels that are numbers, else by name. Raises DataError for a label
    that is not in `labels:`, and for fewer than two.
    """
    counts = Counter(name for names in found for name in names)
    if recipe.labels is None:
        numeric = all(name.isdigit() for name in counts)
        labels = sorted(counts, key=(lambda name: (int(name), name)) if numeric else None)
        if len(labels) < 2:
            what = f"only {labels[0]!r}" if labels else "none at all"
            raise DataError(f"{sheet.shown}: at least two labels are needed, and its rows have {what}. Add rows")
        if len(found) > 1 and all(set(names) == set(labels) for names in found):
            raise DataError(
                f"{sheet.shown}: every row has all the labels, {', '.join(labels[:12])}, so nothing tells them apart. "
                "Add rows that have some of them only, or choose another column, as with `label:`"
            )
    else:
        labels = [name.strip() for name in recipe.labels]
    place = {name: at for at, name in enumerate(labels)}
    if not set(counts) <= set(place) and set(counts) <= {str(at) for at in range(len(labels))}:
        place = {str(at): at for at in range(len(labels))}
    for number, names in zip(numbers, found, strict=True):
        for name in names:
            if name not in place:
                raise DataError(
                    f"{sheet.shown}: the label {name[:40]!r} of row {number} is not among the labels: "
                    f"{', '.join(labels[:12])}. Add it to `labels:`, or correct the row"
                )
    return labels, [sorted(place[name] for name in names) for names in found]


def rarest(rows: Sequence[Sequence[int]], labels: int) -> list[int]:
    """Return for each row the rarest of its labels, for a split by label; `labels` for a row that has none."""
    counts = Counter(label for row in rows for label in row)
    return [min(row, key=lambda label: (counts[label], label)) if row else labels for row in rows]
