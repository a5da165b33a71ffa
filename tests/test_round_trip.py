"""Form, cell, YAML and command line are one specification: every setting, with values that are hard to write down."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from gptx_nb import fields
from gptx_nb.pretraining import KINDS, AnyRecipe, PretrainRecipe
from gptx_nb.recipe import Recipe, make_recipe, parse_yaml
from gptx_nb.views import cli, magics

SETTINGS = Path(__file__).parent.parent / "extension" / "test" / "settings.json"  # the form's part of it, in TypeScript

# A text that YAML, a shell, a form or IPython would each like to read as something else.
HARD = [
    "no",
    "007",
    "1e-4",
    "a: b, [c] # d",
    " kept spaces ",
    "'single'",
    '"double"',
    "$HOME `x` \\n",
    "two\nlines",
    "{{braces}}",
    "naïve 😀",
    "-> arrow",
    "null",
    "\t",
]
VALUES: dict[str, list[Any]] = {  # of settings that take not every text
    "task": ["chat", "text-classification"],
    "tune": ["lora", "top:12"],
    "device": ["cuda:1"],
    "devices": [4, "all"],
    "validation": [0.0, 0.25, "held out.csv", "no"],
    "heads": [2],
    "width": [128],
    "split": ["validation[:10%]", "yes"],
    "examples": [
        [["Good, but late: 5 -> 4", "no"], ["two\nlines\there", "yes"], [" {{x}} ", "[1]"]],
        [{"question": "Who?", "answer": "'Me'"}, {"question": "1", "answer": "null"}],
    ],
    "columns": [{"question": "q: [1]", "context": ["a, b", "no"]}, {"document": "{{d}}", "summary": " s "}],
    "chat_template": [
        "zephyr",
        "{% for turn in messages %}\n- {{ turn['role'] }}: {{ turn['content'] }} # so\n{% endfor %}",
    ],
    "prompt": ["Review: {text}\nSentiment:", "no: '{text}' # is"],
    "label_words": [{"no": "bad", "yes": "good: 1"}, {"a, b": "null", "[d": "two words"}],
    "labels": [["no", "yes"], ["a, b", " c ", "[d", '"e"', "two\nlines"]],
    "samples": [["Once, upon"], ["no", "{{x}}", "a\nb"]],
}


def values(setting: fields.Setting) -> list[Any]:
    """Return values of `setting` that are no default."""
    if setting.name in VALUES:
        return VALUES[setting.name]
    if setting.choices:
        return [each for each in setting.choices if each != setting.default]
    if setting.kind == "yes or no":
        return [not setting.default]
    if setting.kind == "whole number":
        return [max(int(setting.minimum or 0), 7 if setting.default != 7 else 8)]
    if setting.kind == "number":
        return [0.07, 1e-05]
    assert setting.kind == "text", f"{setting.name} is of a new kind: say here which values it has"
    return list(HARD)


CASES: list[tuple[type[AnyRecipe], str, Any]] = [
    (kind, setting.name, value)
    for kind in (Recipe, PretrainRecipe)
    for setting in fields.settings(kind)
    for value in values(setting)
]


# Settings that are refused without others.
WITH: dict[str, dict[str, Any]] = {
    "stride": {"long_texts": "windows"},
    "rope": {"context": 4096},
    "shots": {"baselines": True},
    "save": {"tune": "lora"},
    "quantize": {"tune": "lora", "save": "adapter"},
    "sharding": {"devices": "all"},
}


def case(name: str, value: Any) -> dict[str, Any]:
    return {**WITH.get(name, {}), name: value}


def recipe_of(kind: type[AnyRecipe], given: dict[str, Any]) -> AnyRecipe:
    return make_recipe(given, "", kind)


@pytest.fixture(scope="module")
def commands() -> argparse.ArgumentParser:
    return cli.parser()


def test_every_setting_of_every_recipe_has_a_case() -> None:
    assert {(kind, name) for kind, name, _ in CASES} == {
        (kind, setting.name) for kind in KINDS.values() for setting in fields.settings(kind)
    }
    for kind, name, value in CASES:
        wanted = recipe_of(kind, case(name, value)).model_dump(mode="json")[name]
        assert wanted == value, name  # as it is given, so it is kept
        assert wanted != fields.find(name, kind).default


def test_what_a_form_holds_makes_a_cell_that_is_read_as_the_same_recipe(plain_shell: InteractiveShell) -> None:
    loaded: magics.GptxMagics = getattr(plain_shell, magics._LOADED)[0]
    for kind, name, value in CASES:
        cell = fields.cell("reviews", case(name, value), kind)
        opening, _, body = cell.partition("\n")
        line = opening.removeprefix(f"%%{kind.magic} ")
        if name in ("data", "validation") and value == "{{braces}}":
            plain_shell.user_ns["braces"] = "table.csv"  # an expression of the notebook
            assert loaded._wish(line, body, kind)[1] == recipe_of(kind, case(name, "table.csv"))
            continue
        read_name, recipe, objects = loaded._wish(line, body, kind)
        assert (read_name, objects) == ("reviews", {})
        assert recipe == recipe_of(kind, case(name, value)), cell


def test_a_recipe_that_is_written_as_yaml_is_read_as_the_same_one() -> None:
    for kind, name, value in CASES:
        recipe = recipe_of(kind, case(name, value))
        assert recipe_of(kind, parse_yaml(recipe.to_yaml(), "", kind)) == recipe


def test_the_command_for_a_terminal_asks_for_the_same_recipe(commands: argparse.ArgumentParser) -> None:
    for kind, name, value in CASES:
        command = fields.command("reviews", case(name, value), kind)
        program, *words = shlex.split(command)
        given = commands.parse_args(words)
        assert (program, given.kind, given.name) == ("gptx-nb", kind, "reviews")
        typed = {setting.name: getattr(given, setting.name) for setting in fields.settings(kind)}
        assert recipe_of(kind, fields.read_flags(typed, kind)) == recipe_of(kind, case(name, value)), command


def test_all_settings_together_make_one_cell_and_one_command(commands: argparse.ArgumentParser) -> None:
    given = {setting.name: values(setting)[0] for setting in fields.settings()} | {
        "long_texts": "windows",
        "tune": "lora",
        "save": "adapter",
        "sharding": "off",  # which an optimiser in 8 bits needs
        "baselines": True,  # which shots need
    }
    del given["data"], given["device"]  # or examples; or devices
    body = fields.cell("reviews", given).partition("\n")[2]
    assert recipe_of(Recipe, parse_yaml(body)) == recipe_of(Recipe, given)
    parsed = commands.parse_args(shlex.split(fields.command("reviews", given))[1:])
    typed = {setting.name: getattr(parsed, setting.name) for setting in fields.settings()}
    assert recipe_of(Recipe, fields.read_flags(typed)) == recipe_of(Recipe, given)


def test_defaults_are_left_out_of_a_cell() -> None:
    asked = recipe_of(Recipe, {"data": "df", "epochs": 3}).model_dump(mode="json")
    assert fields.cell("reviews", asked) == "%%gpt_finetune reviews\ndata: df\nepochs: 3\n"
    assert fields.cell("base", {"from": "gpt2"}, PretrainRecipe) == "%%gpt_pretrain base\nfrom: gpt2\n"
    assert fields.cell("reviews", {"data": "{{df[:9]}}"}) == "%%gpt_finetune reviews\ndata: {{df[:9]}}\n"
    assert fields.command("reviews", {"epochs": 3}) == "gptx-nb finetune reviews --epochs=3"


def told_to_the_form() -> str:
    told = {
        kind.kind: [
            {"setting": setting, "values": values(fields.find(str(setting["name"]), kind))}
            for setting in fields.form_spec(kind)
        ]
        for kind in KINDS.values()
    }
    return json.dumps(told, indent=1) + "\n"


def test_the_values_that_the_form_is_tested_with_are_these() -> None:
    renewed = (
        "python -c 'import test_round_trip as t; t.SETTINGS.write_text(t.told_to_the_form())', in tests/, renews it"
    )
    assert SETTINGS.read_text(encoding="utf-8") == told_to_the_form(), renewed
