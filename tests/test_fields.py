"""Every face of a setting comes from Recipe: nothing is missing, nothing is said twice."""

import argparse
import json
from pathlib import Path

import pytest

from gptx_nb import fields
from gptx_nb.errors import RecipeError
from gptx_nb.recipe import Recipe, make_recipe

NAMES = list(Recipe.model_fields)


def test_every_setting_has_a_flag_a_control_a_completion_a_help_line_and_a_table_row() -> None:
    assert [flag.setting.name for flag in fields.flags()] == NAMES
    assert [control["name"] for control in fields.form_spec()] == NAMES
    assert [offer.removesuffix(": ") for offer in fields.completions("")] == NAMES
    assert [line.split()[0] for line in fields.help_text().splitlines()] == NAMES
    assert [row.split("`")[1] for row in fields.docs_table().splitlines()[2:]] == NAMES


def test_every_setting_says_what_it_does_and_why_its_default_is_what_it_is() -> None:
    for setting in fields.settings():
        assert setting.description.endswith(".")
        assert setting.reason
        assert not setting.reason.endswith(".")


def test_bounds_units_and_defaults_are_taken_over() -> None:
    assert fields.find("epochs").fits == "number above 0, at most 1,000"
    assert fields.find("warmup").fits == "number from 0, below 1"
    assert fields.find("batch_size").fits == "whole number from 1, at most 4,096"
    assert fields.find("validation").fits == "number or text"
    assert fields.find("keep").choices == ("best", "last")
    assert fields.find("checkpoint_every").unit == "seconds"
    assert fields.find("seed").shown_default == "0"
    assert fields.find("baselines").shown_default == "true"
    assert not fields.find("device").matters
    with pytest.raises(KeyError):
        fields.find("epoch")


def test_the_form_is_plain_json() -> None:
    assert json.loads(json.dumps(fields.form_spec(), allow_nan=False))[1]["suggestions"][0] == "tiny"


def test_argparse_takes_the_flags_as_they_are() -> None:
    parser = argparse.ArgumentParser()
    for flag in fields.flags():
        parser.add_argument(flag.option, **flag.arguments)
    assert "Examples a step. [whole number from 1, at most 4,096]" in " ".join(parser.format_help().split())
    given = vars(parser.parse_args(["--epochs", "3", "--learning-rate", "1e-4", "--labels", "no, yes"]))
    assert fields.read_flags(given) == {"epochs": 3, "learning_rate": 0.0001, "labels": ["no", "yes"]}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model", '"a b"', "a b"),
        ("model", "1e-4", "1e-4"),
        ("text", "no", "no"),
        ("validation", "0.1", 0.1),
        ("validation", "held: out.csv", "held: out.csv"),
        ("baselines", "false", False),
        ("labels", "[no, yes]", ["no", "yes"]),
        ("examples", "[[Good, 1], [Bad, 0]]", [["Good", "1"], ["Bad", "0"]]),
        ("keep", "last", "last"),
    ],
)
def test_a_flag_is_read_as_the_setting_wants_it(name: str, text: str, value: object) -> None:
    read = fields.read_flags({name: text, "seed": None})
    assert read == {name: value}
    make_recipe(read, "flags")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("epochs", ".nan", "--epochs .nan: .nan is not a finite number"),
        ("labels", "[a", "--labels [a: "),
        ("max_length", "!!int 3", "--max-length !!int 3: tags"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        fields.read_flags({name: text})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_completion_offers_settings_values_and_flags() -> None:
    assert fields.completions("ep") == ["epochs: "]
    assert fields.completions("keep: ") == ["keep: best", "keep: last"]
    assert "model: smollm2-135m" in fields.completions("model: s")
    assert fields.completions("--base") == ["--baselines", "--baseline", "--baseline-seeds"]
    assert fields.completions("--baselines f") == ["--baselines false"]
    assert fields.completions("--keep=b") == ["--keep=best"]
    assert fields.completions("nothing: ") == []
    assert fields.completions("--nothing x") == []


def test_the_readmes_table_is_the_recipes() -> None:
    readme = Path(__file__).parent.parent / "README.md"
    assert fields.docs_table() in readme.read_text(encoding="utf-8"), (
        "the table in README.md is stale: put there what "
        '`python -c "from gptx_nb import fields; print(fields.docs_table())"` prints'
    )
