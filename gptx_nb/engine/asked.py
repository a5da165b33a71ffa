"""What a model that writes is asked: rows and shots become examples by the reading that training has.

Columns are those that the run learnt from; where a row has others, they are found as those of a table are
(`tasks.columns`), or are called after roles. Cells are read by the task's own `read`. Nothing is written here: see
`writer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptx_nb.engine.roles import Roles, cell_of, flattened, storable, unfolded
from gptx_nb.engine.tables import Sheet
from gptx_nb.engine.tasks import chat_templates, columns, templates
from gptx_nb.engine.tasks.columns import messages_of, parsed
from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.tasks.writing import Facts, Missing, WritingTask, choices_of, counted_from, wrong_turn
from gptx_nb.errors import DataError

Row = Mapping[str, Any]

ENDS = (("source", "from"), ("target", "to"))  # of a translation: roles, and what their languages are called
STAND_IN = "?"  # for an answer that is asked for


@dataclass(frozen=True)
class Asking:
    """How one model is asked. `learnt`: the columns that it was tuned on, if it was tuned for this task.

    `source` and `to`: the languages of a translation, None for what the model or the row says.
    """

    task: WritingTask
    facts: Facts
    learnt: Roles | None = None
    source: str | None = None
    to: str | None = None

    def examples(self, rows: Sequence[str | Row], first: int = 1) -> list[Example]:
        """Return the examples that `rows` ask for, texts or values by column, of which the `first` has that number.

        Raises DataError, which names the row.
        """
        rows = [_alone(each) for each in rows]
        sheet, roles, facts = self._table(rows)

        def read(at: int) -> Example:
            row = rows[at]
            if isinstance(row, str):
                return self._asked({self._first_role(): row})
            self._require([needed - {self.task.target} for needed, _ in self.task.shapes], roles, row)
            return self._asked(_by_role(sheet, roles, at))

        alone = len(rows) == 1 and first == 1
        return [{**_numbered("" if alone else f"row {first + at}: ", read, at), **facts} for at in range(len(rows))]

    def shots(self, rows: Sequence[Row]) -> list[Example]:
        """Return examples with their answers, to be shown before what is asked. Raises DataError."""
        sheet, roles, facts = self._table(rows)
        given = [_by_role(sheet, roles, at) for at in range(len(rows))]
        counted = counted_from(given) if "choices" in roles else None
        counted = self.facts.get("counted_from") if counted is None else counted

        def read(at: int) -> Example:
            try:
                found = self.task.read({**given[at], "counted_from": counted})
            except Missing as error:
                raise DataError(f"a shot has an {error}; it needs {self.task.needs}") from None
            self._require([needed for needed, _ in self.task.shapes], roles, rows[at])
            if self.task.whole_text(found):
                raise DataError("a shot for text-generation has a prompt and a completion")
            return found

        return [
            {**_numbered("" if len(rows) == 1 else f"shot {at + 1}: ", read, at), **facts} for at in range(len(rows))
        ]

    def _asked(self, given: Row) -> Example:
        """Return what is asked by the values of roles: read as an example is, the answer left out."""
        task = self.task
        if task.name == "text-generation":
            begun = given.get("text", given.get("prompt"))
            return {"prompt": begun if isinstance(begun, str) else task.read({"prompt": begun})["prompt"]}
        if "messages" in given:
            talk = messages_of(given["messages"])
            if talk is None:
                raise DataError(wrong_turn(parsed(given["messages"])))
            chat_templates.check(talk, asked=True)
            return {"messages": talk}
        answer = next(filter(None, choices_of(given["choices"])[0])) if "choices" in given else STAND_IN
        return task.without_target(task.read({**given, task.target: answer}))

    def _first_role(self) -> str:
        """Return the role that a plain text has: of a model that was tuned, the one that it was asked with."""
        begun = self.task.name == "text-generation" or "prompt" in (self.learnt or {})
        return "prompt" if begun else self.task.asked

    def _require(self, shapes: Sequence[frozenset[str]], roles: Roles, row: Row) -> None:
        if not any(each <= set(roles) for each in shapes):
            wants = " or ".join(" and ".join(map(self._called, sorted(each))) for each in shapes)
            has = ", ".join(map(str, row)) or "nothing"
            raise DataError(f"{self.task.name} is asked with {wants}, and the row has {has}")

    def _called(self, role: str) -> str:
        column = self._wanted().get(role, role)
        return role if column == role else f"{role} (column {column!r})"

    # ---- columns ----------------------------------------------------------------------------------------------------

    def _table(self, rows: Sequence[str | Row]) -> tuple[Sheet, Roles, dict[str, str]]:
        """Return `rows` as a table, the column of each role, and what holds for all rows (languages)."""
        names = dict.fromkeys(name for row in rows if not isinstance(row, str) for name in row)
        values = {name: [None if isinstance(row, str) else row.get(name) for row in rows] for name in names}
        sheet = unfolded(Sheet("", values, len(rows)))
        if self.task.name == "translation":
            return sheet, *self._direction(sheet.columns)
        return sheet, self._columns(sheet.columns), {}

    def _wanted(self) -> Roles:
        """Return the columns that the run learnt from, for a translation in the direction that is asked for."""
        learnt = self.learnt or {}
        if self.task.name == "translation" and learnt and self._learnt_languages() != _languages(self.facts):
            return {"source": learnt["target"], "target": learnt["source"]}
        return learnt

    def _columns(self, table: Mapping[str, list[Any]]) -> Roles:
        learnt = self.learnt or {}
        if learnt and set(flattened(learnt)) <= set(table):
            return learnt  # a table as it was learnt from, nothing added
        found = {
            role: column for role, column in learnt.items() if not table.keys().isdisjoint(flattened({role: column}))
        }
        for role, several in found.items():
            if isinstance(several, list) and (gone := [name for name in several if name not in table]):
                raise DataError(f"the {role} are columns {', '.join(several)}, and the rows have no {gone[0]!r}")
        if not learnt or not set(learnt) - {self.task.target} <= set(found):
            found = {**_beside(found, self._guessed(table)), **found}
        named = [optional if self._complete(found) else needed | optional for needed, optional in self.task.shapes]
        return {**_beside(found, {role: role for roles in named for role in roles if role in table}), **found}

    def _complete(self, roles: Roles) -> bool:
        return any(needed - {self.task.target} <= set(roles) for needed, _ in self.task.shapes)

    def _guessed(self, table: Mapping[str, list[Any]]) -> Roles:
        """Return the roles that columns have by the guess that training makes.

        One row may be too short to tell a text from its summary, and what is asked has no column of answers yet: then
        names decide, and a column of answers is thought of.
        """
        bare: dict[str, list[Any]] = {name: [] for name in table}
        answers: dict[str, list[Any]] = {self.task.target: []}
        for each in (table, bare, {**table, **answers}, {**bare, **answers}):
            if guess := columns.guess(each, self.task.name):
                roles = guess.roles.items()
                return {role: column for role, column in roles if set(flattened({role: column})) <= set(table)}
        return {}

    # ---- translation ------------------------------------------------------------------------------------------------

    def _direction(self, table: Mapping[str, list[Any]]) -> tuple[Roles, dict[str, str]]:
        """Return the columns of source and target, which change places in a translation back, and the languages."""
        looked = columns.Table(table)
        coded = {
            name: code
            for name, plain in looked.plain().items()
            if (code := columns.language_code(plain)) and columns.is_written(looked, name, plain)
        }
        languages = self._learnt_languages() or self._told_languages(list(coded.values()))
        wanted = self._wanted()
        roles: Roles = {}
        for role, end in ENDS:
            named = [name for name, code in coded.items() if _same(code, languages[end])]
            by_role = columns.side(looked, role, but=[*flattened(wanted), *coded])
            for name in (wanted.get(role), *named, by_role):
                if isinstance(name, str) and name in table:
                    roles.setdefault(role, name)
        return roles, languages

    def _learnt_languages(self) -> dict[str, str] | None:
        """Return the direction that is asked for, of the two that the model has learnt; None if it has learnt none."""
        if "to" not in self.facts:
            return None
        there = _languages(self.facts)
        back = {"from": there["to"], "to": there["from"]}
        asked = {end: said for end, said in (("from", self.source), ("to", self.to)) if said is not None}
        for languages in (there, back):
            if all(_same(languages[end], said) for end, said in asked.items()):
                return languages
        told = ", ".join(f"{end}: {said}" for end, said in asked.items())
        raise DataError(f"{told} is not what the model has learnt: {there['from']} and {there['to']}")

    def _told_languages(self, coded: Sequence[str]) -> dict[str, str]:
        """Return the languages that are asked for; the first is the row's, if a column is called after it (`coded`)."""
        if self.to is None:
            raise DataError("translation into which language? Type it, as in `--to fr`")
        others = [code for code in coded if not _same(code, self.to)]
        source = self.source or (others[0] if len(others) == 1 else "en")
        if _same(source, self.to) or (self.source is None and len(others) > 1):
            other = others[0] if others else "fr" if _same(self.to, "en") else "en"
            raise DataError(
                f"translation into {templates.language(self.to)} from which language? Type it, as in `--from {other}`"
            )
        return {"from": source, "to": self.to}


def _same(one: str, other: str) -> bool:
    return templates.language(one) == templates.language(other)


def _languages(facts: Facts) -> dict[str, str]:
    return {end: facts[end] for _, end in ENDS}


def _beside(found: Roles, more: Roles) -> Roles:
    """Return the roles of `more` whose columns play none yet."""
    taken = set(flattened(found))
    return {role: column for role, column in more.items() if taken.isdisjoint(flattened({role: column}))}


def _by_role(sheet: Sheet, roles: Roles, at: int) -> dict[str, Any]:
    return {role: cell_of(sheet, column, at, roles) for role, column in roles.items()}


def _alone(row: str | Row) -> str | Row:
    """Return the text of a row that has no other column than `text`: it may be asked of any task."""
    if isinstance(row, str) or list(row) != ["text"]:
        return row
    return row["text"] if isinstance(row["text"], str) else row


def _numbered(where: str, read: Callable[[int], Example], at: int) -> Example:
    """Read the row `at` a place; say `where` that is if it cannot be read."""
    try:
        found: Example = storable(read(at))
        return found
    except (DataError, Missing) as error:
        raise DataError(f"{where}{error}") from None
