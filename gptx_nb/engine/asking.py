"""What a model that writes is asked: rows and shots become examples by the reading that training has.

Columns are those that the run learnt from; where a row has others, they are found as those of a table are
(`tasks.columns`), or are called after roles. Cells are read by the task's own `read`. Nothing is written here: see
`writer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptx_nb.engine.tasks import chat_templates, columns, templates
from gptx_nb.engine.tasks.columns import messages_of
from gptx_nb.engine.tasks.templates import Example
from gptx_nb.engine.tasks.writing import Facts, Missing, WritingTask, _parsed
from gptx_nb.errors import DataError

Row = Mapping[str, Any]
Roles = Mapping[str, str | list[str]]  # column by role; several for choices that have a column each

ENDS = (("source", "from"), ("target", "to"))  # of a translation: roles, and what their languages are called
STAND_IN = "0"  # for an answer that is asked for: a text, and the place of a choice


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
        roles, facts = self._columns([each for each in rows if not isinstance(each, str)])

        def read(row: str | Row) -> Example:
            if isinstance(row, str):
                return self._asked({self._first_role(): row})
            given = _by_role(roles, row)
            self._require([needed - {self.task.target} for needed, _ in self.task.shapes], given, row)
            return self._asked(given)

        alone = len(rows) == 1 and first == 1
        return [
            {**_told("" if alone else f"row {number}: ", read, row), **facts} for number, row in enumerate(rows, first)
        ]

    def shots(self, rows: Sequence[Row]) -> list[Example]:
        """Return examples with their answers, to be shown before what is asked. Raises DataError."""
        roles, facts = self._columns(rows)

        def read(row: Row) -> Example:
            given = _by_role(roles, row)
            try:
                found = self.task.read(given)
            except Missing as error:
                raise DataError(f"a shot has an {error}; it needs {self.task.needs}") from None
            self._require([needed for needed, _ in self.task.shapes], given, row)
            if self.task.whole_text(found):
                raise DataError("a shot for text-generation has a prompt and a completion")
            return found

        alone = len(rows) == 1
        return [
            {**_told("" if alone else f"shot {number}: ", read, row), **facts} for number, row in enumerate(rows, 1)
        ]

    def _asked(self, given: Row) -> Example:
        """Return what is asked by the values of roles: read as an example is, the answer left out."""
        task = self.task
        if task.name == "text-generation":
            begun = given.get("text", given.get("prompt"))
            return {"prompt": begun if isinstance(begun, str) else task.read({"prompt": begun})["prompt"]}
        if "messages" in given:
            talk = _parsed(given["messages"])
            talk = messages_of(talk) or talk
            chat_templates.check(talk, asked=True)
            return {"messages": talk}
        return task.without_target(task.read({**given, task.target: STAND_IN}))

    def _first_role(self) -> str:
        """Return the role that a plain text has: of a model that was tuned, the one that it was asked with."""
        begun = self.task.name == "text-generation" or "prompt" in (self.learnt or {})
        return "prompt" if begun else self.task.asked

    def _require(self, shapes: Sequence[frozenset[str]], given: Row, row: Row) -> None:
        if not any(each <= set(given) for each in shapes):
            wants = " or ".join(" and ".join(map(self._called, sorted(each))) for each in shapes)
            has = ", ".join(map(str, row)) or "nothing"
            raise DataError(f"{self.task.name} is asked with {wants}, and the row has {has}")

    def _called(self, role: str) -> str:
        column = (self.learnt or {}).get(role, role)
        return role if column == role else f"{role} (column {column!r})"

    # ---- columns ----------------------------------------------------------------------------------------------------

    def _columns(self, rows: Sequence[Row]) -> tuple[Roles, dict[str, str]]:
        """Return the column of each role in `rows`, and what holds for all of them: the languages of a translation."""
        table: dict[str, list[Any]] = {}
        for row in rows:
            for name, value in row.items():
                table.setdefault(name, []).append(value)
        if self.task.name == "translation":
            return self._direction(table)
        learnt = self.learnt or {}
        if learnt and set(_flat(learnt)) <= set(table):
            return learnt, {}  # a table as it was learnt from, nothing added
        found = {role: column for role, column in learnt.items() if not table.keys().isdisjoint(_flat({role: column}))}
        roles = [role for needed, optional in self.task.shapes for role in (*needed, *optional)]
        if not self._complete(found):
            found = dict(self._guessed(table))
        if self._complete(found):
            roles = [role for _, optional in self.task.shapes for role in optional]
        taken = _flat(found)
        return {**{role: role for role in roles if role in table and role not in taken}, **found}, {}

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
                return {role: column for role, column in guess.roles.items() if set(_flat({role: column})) <= set(table)}
        return {}

    # ---- translation ------------------------------------------------------------------------------------------------

    def _direction(self, table: Mapping[str, list[Any]]) -> tuple[Roles, dict[str, str]]:
        """Return the columns of source and target, which change places in a translation back, and the languages."""
        coded = {
            columns._language(columns._plain(name)) or "": name
            for name, values in reversed(table.items())
            if all(isinstance(each, str | None) for each in values)
        }
        coded.pop("", None)
        languages = self._learnt_languages() or self._told_languages(list(reversed(coded)))
        roles: dict[str, str | list[str]] = {}
        for role, end in ENDS:
            known = {self.facts.get(word): (self.learnt or {}).get(each) for each, word in ENDS}
            own = known.get(languages[end])
            named = next((name for code, name in coded.items() if _same(code, languages[end])), None)
            by_role = role if role not in known.values() else None
            column = next((each for each in (own, named, by_role) if isinstance(each, str) and each in table), None)
            if column is not None:
                roles[role] = column
        return roles, languages

    def _learnt_languages(self) -> dict[str, str] | None:
        """Return the direction that is asked for, of the two that the model has learnt; None if it has learnt none."""
        if "to" not in self.facts:
            return None
        there = {"from": self.facts["from"], "to": self.facts["to"]}
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
            raise DataError("translation into which language? Say so, as in `to: fr`")
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


def _flat(roles: Roles) -> list[str]:
    return [name for each in roles.values() for name in (each if isinstance(each, list) else [each])]


def _by_role(roles: Roles, row: Row) -> dict[str, Any]:
    return {
        role: [row.get(name) for name in column] if isinstance(column, list) else row[column]
        for role, column in roles.items()
        if isinstance(column, list) or column in row
    }


def _alone(row: str | Row) -> str | Row:
    """Return the text of a row that has no other column than `text`: it may be asked of any task."""
    return row["text"] if list(row) == ["text"] and isinstance(row["text"], str) else row


def _told(where: str, read: Callable[[Any], Example], row: Any) -> Example:
    """Read `row`; say `where` it stands if that cannot be."""
    try:
        return read(row)
    except (DataError, Missing) as error:
        raise DataError(f"{where}{error}") from None
