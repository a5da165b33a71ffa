"""Walks a recipe's fields once and derives every other face of a setting: flag, `?` help, completion, form control,
table row; and of settings that are given, the cell and the command that ask for them.

Nothing about a setting is said here a second time: a new field of a recipe appears everywhere. `kind` is the recipe's
class throughout: fine-tuning's, unless another is given. Draws no form and parses
no command line; views do.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import yaml

from gptx_nb.errors import RecipeError
from gptx_nb.recipe import Recipe, Settings, known_models, parse_yaml

Kind = Literal["text", "number", "whole number", "yes or no", "choice", "list", "rows", "mapping"]

_KINDS: dict[str, Kind] = {
    "string": "text",
    "number": "number",
    "integer": "whole number",
    "boolean": "yes or no",
    "object": "mapping",
}
_EXPRESSION = re.compile(r"\{\{.+\}\}", re.DOTALL)  # of the notebook
_NUMBER = re.compile(r"[-+.\d][-+.\deE_]*")
_METAVARS: dict[Kind, str] = {
    "number": "NUMBER",
    "whole number": "N",
    "yes or no": "true|false",
    "list": "[A, B]",
    "mapping": "{ROLE: COLUMN}",
}
_SUGGESTIONS: dict[str, Callable[[], list[str]]] = {
    "model": known_models,
    "from": known_models,
    "tune": lambda: ["full", "lora", "head", "top:4"],
}


@dataclass(frozen=True)
class Setting:
    """One field of a recipe. Bounds are None where there is none; an `above` or `below` bound is not itself allowed."""

    name: str
    kind: Kind
    description: str
    default: Any
    reason: str  # why the default is what it is; for a default of None, what is done instead
    unit: str | None
    matters: bool  # whether it can change the trained model
    tasks: tuple[str, ...]  # those for which it means something; none: all
    choices: tuple[str, ...] | None
    suggestions: tuple[str, ...]
    also_text: bool  # a number, or the name of something
    minimum: float | None
    above: float | None
    maximum: float | None
    below: float | None

    @property
    def fits(self) -> str:
        """What may be given, in words: `number above 0, at most 1, or text`."""
        if self.choices:
            return " | ".join(self.choices)
        if self.kind == "yes or no":
            return "true | false"
        bounds = [
            f"{word} {bound:,}"
            for word, bound in (
                ("from", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
                ("below", self.below),
            )
            if bound is not None
        ]
        kinds = {"list": "list of texts", "rows": "list of [text, label]", "mapping": "mapping of texts"}
        words = kinds.get(self.kind, self.kind)
        return f"{words}{' ' + ', '.join(bounds) if bounds else ''}{' or text' if self.also_text else ''}"

    @property
    def shown_default(self) -> str:
        """The default as it would be typed; `-` where there is none and the reason says what is done instead."""
        if self.default is None:
            return "-"
        return self.default if isinstance(self.default, str) else _typed(self.default)


@dataclass(frozen=True)
class Flag:
    """A setting as an option of a command line: `argparse` and IPython's `@argument` take `option` and `arguments`."""

    option: str
    setting: Setting
    arguments: dict[str, Any]


@cache
def settings(kind: type[Settings] = Recipe) -> tuple[Setting, ...]:
    """Return the settings in the order of their recipe."""
    return tuple(_setting(name, schema) for name, schema in kind.model_json_schema()["properties"].items())


@cache
def find(name: str, kind: type[Settings] = Recipe) -> Setting:
    """Return the setting `name`; KeyError if there is none."""
    return {each.name: each for each in settings(kind)}[name]


def flags(kind: type[Settings] = Recipe) -> list[Flag]:
    """Return a flag for every setting. Values arrive as text (None: not given); `read_flags` makes settings of them.

    Help texts have their percent signs doubled, as argparse wants them.
    """
    return [
        Flag(
            f"--{setting.name.replace('_', '-')}",
            setting,
            {
                "dest": setting.name,
                "default": None,
                "metavar": _metavar(setting),
                "help": _help(setting).replace("%", "%%"),
            },
        )
        for setting in settings(kind)
    ]


def read_flags(values: Mapping[str, str | None], kind: type[Settings] = Recipe) -> dict[str, Any]:
    """Return plain values for a recipe from flags as they were typed; those that are None are left out.

    A value is read as in YAML (`1e-4` is a number), except that a text stays as it is. One pair of quotes around it is
    taken off. Raises RecipeError naming the flag.
    """
    return {name: _value(find(name, kind), text, kind) for name, text in values.items() if text is not None}


def help_text(kind: type[Settings] = Recipe) -> str:
    """Return all settings as plain text, for `?` and `--help`."""
    width = max(len(setting.name) for setting in settings(kind))
    return "\n".join(f"{setting.name:<{width}}  {_help(setting)}" for setting in settings(kind))


def docs_table(kind: type[Settings] = Recipe) -> str:
    """Return all settings as a Markdown table."""
    rows = [("Setting", "What it does", "Fits", "Default", "Why")]
    for setting in settings(kind):
        default = "" if setting.default is None else f"`{setting.shown_default}`"
        fits = setting.fits + (f" ({setting.unit})" if setting.unit else "")
        rows.append((f"`{setting.name}`", setting.description, fits, default, setting.reason))
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- | --- | --- | --- | --- |", *lines[1:]])


def completions(prefix: str, kind: type[Settings] = Recipe) -> list[str]:
    """Return what could stand in place of `prefix`, whole.

    `ep` -> `epochs: `; `model: g` -> `model: gpt2`, ...; `--ep` -> `--epochs`; `--keep b` -> `--keep best`.
    """
    if prefix.startswith("-"):
        option, separator, start = prefix.partition("=") if "=" in prefix else prefix.partition(" ")
        for flag in flags(kind):
            if separator and flag.option == option:
                return [f"{option}{separator}{value}" for value in values(flag.setting.name, start.strip(), kind)]
        return [] if separator else [flag.option for flag in flags(kind) if flag.option.startswith(option)]
    name, separator, start = prefix.partition(":")
    if separator:
        known = [setting.name for setting in settings(kind)]
        return (
            [f"{name}: {value}" for value in values(name.strip(), start.strip(), kind)] if name.strip() in known else []
        )
    return [f"{setting.name}: " for setting in settings(kind) if setting.name.startswith(prefix)]


def values(name: str, start: str = "", kind: type[Settings] = Recipe) -> list[str]:
    """Return the values of setting `name` that are known beforehand and begin with `start`."""
    setting = find(name, kind)
    offered = setting.choices or setting.suggestions or (("true", "false") if setting.kind == "yes or no" else ())
    return [value for value in offered if value.startswith(start)]


def form_spec(kind: type[Settings] = Recipe) -> list[dict[str, Any]]:
    """Return a form's controls as plain JSON: the facts of each Setting, with `title` and `fits` in words."""
    return [
        {**asdict(setting), "title": setting.name.replace("_", " ").capitalize(), "fits": setting.fits}
        for setting in settings(kind)
    ]


# ---- settings that are given ----------------------------------------------------------------------------------------


def cell(name: str, given: Mapping[str, Any], kind: type[Settings] = Recipe) -> str:
    """Return the cell that asks for the run `name` with the plain values `given`; what is a default is left out.

    A text `{{expression}}` as `data` or `validation` is one of the notebook; anywhere else two braces are braces.
    """
    lines = [_line(key, value) for key, value in _differing(given, kind).items()]
    return f"%%{kind.magic} {name}\n{''.join(lines)}"


def command(name: str, given: Mapping[str, Any], kind: type[Settings] = Recipe) -> str:
    """Return the command for a terminal that asks for the same run."""
    flags_of = [
        f"--{key.replace('_', '-')}={shlex.quote(_flag(find(key, kind), value))}"
        for key, value in _differing(given, kind).items()
    ]
    return " ".join(["gptx-nb", kind.kind, name, *flags_of])


def _differing(given: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """Return what is not a default, in the order of the recipe."""
    known = {setting.name: setting.default for setting in settings(kind)}
    return {
        name: _short(given[name])
        for name, default in known.items()
        if given.get(name) is not None and given[name] != default
    }


def _short(value: Any) -> Any:
    """Return a number as one types it: 3 epochs, not 3.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else value


def _line(name: str, value: Any) -> str:
    """Return a setting as it stands in a cell."""
    if name in ("data", "validation") and isinstance(value, str) and _EXPRESSION.fullmatch(value):
        return f"{name}: {value}\n"
    line = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=100)
    # In a cell, two braces begin an expression: in quotes, a brace can be spelt otherwise.
    return _quoted({name: value}, None).replace("{{", "\\x7B{") if "{{" in line else line


def _flag(setting: Setting, value: Any) -> str:
    """Return a value as `read_flags` reads it."""
    if isinstance(value, list | dict):
        return _quoted(value, True).strip()
    if not isinstance(value, str):
        return json.dumps(value)
    in_quotes = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return f'"{value}"' if in_quotes or value != value.strip() else value  # one pair of quotes is taken off


def _quoted(texts: Any, flow: bool | None) -> str:
    """Return nested texts as YAML, each in double quotes, so that one line holds whatever they hold."""
    return yaml.safe_dump(
        texts, sort_keys=False, allow_unicode=True, width=2**20, default_style='"', default_flow_style=flow
    )


# ---- from pydantic's schema -----------------------------------------------------------------------------------------


def _setting(name: str, schema: dict[str, Any]) -> Setting:
    forms = [form for form in schema.get("anyOf", [schema]) if form.get("type") != "null"]
    form = forms[0]
    choices = form.get("enum") or ([form["const"]] if "const" in form else None)
    kind: Kind
    if choices:
        kind = "choice"
    elif form["type"] == "array":
        kind = "list" if form["items"].get("type") == "string" else "rows"
    else:
        kind = _KINDS[form["type"]]
    return Setting(
        name=name,
        kind=kind,
        description=schema["description"],
        default=schema["default"],
        reason=schema["reason"],
        unit=schema["unit"],
        matters=schema["matters"],
        tasks=tuple(schema["tasks"]),
        choices=tuple(choices) if choices else None,
        suggestions=tuple(_SUGGESTIONS[name]()) if name in _SUGGESTIONS else (),
        also_text=kind != "text" and any(other.get("type") == "string" for other in forms[1:]),
        minimum=form.get("minimum"),
        above=form.get("exclusiveMinimum"),
        maximum=form.get("maximum"),
        below=form.get("exclusiveMaximum"),
    )


def _typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _help(setting: Setting) -> str:
    fits = "" if setting.kind == "text" else setting.fits
    unit = setting.unit if setting.unit and setting.unit not in setting.description.lower() else ""
    facts = ", ".join(fact for fact in (fits, unit) if fact)
    default = f"Default {setting.shown_default}: {setting.reason}" if setting.default is not None else setting.reason
    return f"{setting.description}{f' [{facts}]' if facts else ''} {default[0].upper()}{default[1:]}."


def _metavar(setting: Setting) -> str:
    if setting.choices:
        return "|".join(setting.choices)
    if setting.name == "label_words":
        return "{LABEL: WORD}"
    return _METAVARS.get(setting.kind, setting.name.upper())


def _value(setting: Setting, text: str, kind: type[Settings]) -> Any:
    option = f"--{setting.name.replace('_', '-')}"
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if setting.kind in ("text", "choice") or (setting.also_text and not _NUMBER.fullmatch(text)):
        return text
    if setting.kind == "list" and not text.startswith("["):
        text = f"[{text}]"
    try:
        return parse_yaml(f"{setting.name}: {text}", option, kind)[setting.name]
    except RecipeError as error:
        raise RecipeError(f"{option} {text}: {str(error).partition(': ')[2]}") from None
