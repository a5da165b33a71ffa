"""What a user may type in a cell body, and the one line that answers a mistake."""

import pytest

from gptx_nb.errors import RecipeError
from gptx_nb.recipe import LABELS, ROLES, Recipe, check_name, make_recipe, parse_yaml


def read(body: str) -> Recipe:
    return make_recipe(parse_yaml(body), "cell body")


def test_the_articles_cell_is_read() -> None:
    recipe = read(
        "task: text-classification\nexamples:\n  - [This movie is amazing!, positive]\n"
        "  - [I hate this product., negative]\n  - [The service was really bad., negative]\n"
    )
    assert recipe.examples is not None
    assert recipe.examples[0] == ["This movie is amazing!", "positive"]


def test_numbers_and_labels_are_read_as_people_mean_them() -> None:
    recipe = read("learning_rate: 1e-4\nlabels: [no, yes]\nexamples: [[a, 0], [b, 007], ['x, y', true]]")
    assert recipe.learning_rate == 1e-4
    assert recipe.labels == ["no", "yes"]
    assert recipe.examples == [["a", "0"], ["b", "007"], ["x, y", "true"]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("epoch: 3", "cell body, line 1: unknown setting 'epoch'. Did you mean 'epochs'?"),
        ("epochs: 3\nepochs: 4", "cell body, line 2, column 1: 'epochs' is given twice (first in line 1)"),
        ("learning_rate: .nan", "cell body, line 1, column 16: .nan is not a finite number"),
        ("data: !!python/object:os.system x", "tags (tag:yaml.org,2002:python/object:os.system) are not read here"),
        ("data: 'abc\nepochs: 3", "a quote opened in line 1 is never closed"),
        ("task: text-classification\nepochs: 0", "cell body, line 2: epochs: '0' does not fit"),
        ("examples:\n - [a, b, c]", "example 1 has 3 parts, and needs two: [text, label]"),
        ("data: a.csv\nexamples: [[a, b]]", "both data and examples are given"),
        ("device: gpu", "use auto, cpu, cuda, cuda:0"),
    ],
)
def test_a_mistake_gives_one_line_with_its_place(body: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(body)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_complete_recipe_survives_yaml() -> None:
    recipe = read("data: reviews.csv\nepochs: 2\nlabels: [no, 'yes', '1']")
    assert read(recipe.to_yaml()) == recipe


def test_only_settings_that_matter_change_the_digest() -> None:
    assert read("device: cpu").digest() == read("checkpoint_every: 5").digest()
    assert read("epochs: 2").digest() != read("epochs: 3").digest()
    assert read("validation: here/test.csv").digest() == read("validation: there/test.csv").digest()
    assert read("validation: here/test.csv").digest() != read("validation: 0.2").digest()


@pytest.mark.parametrize("name", ["../x", "", "a b", ".hidden", "a/b", "a..b", "x" * 65])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="cannot name a run"):
        check_name(name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("models: gpt2", "cell body, line 1: unknown setting 'models'. Did you mean 'model'?"),
        ("zzz: 1", "cell body, line 1: unknown setting 'zzz'. Settings: task, model"),
        (
            "batch_size: 0",
            "cell body, line 1: batch_size: '0' does not fit: input should be greater than or equal to 1",
        ),
        ("validation: 0.95", "a share from 0 to 0.9, or the name of a table"),
        ("labels: [one]", "cell body, line 1: labels: "),
        ("labels: [a, a]", "labels: a name stands there twice"),
        (
            "shots: 2\nbaselines: false",
            "shots: with `baselines: false` no base model is scored that could be shown any",
        ),
        ("keep: bets", "Did you mean 'best'?"),
        ("a: &x 1\nb: *x", "aliases (*name) are not read here"),
        ("epochs:\t3\n\tseed: 1", "a tab stands where YAML wants spaces"),
        ("- a\n- b", "cell body: expected lines like `epochs: 3`, got list"),
        ("just words", "cell body: expected lines like `epochs: 3`, got str 'just words'"),
        ("examples:\n - [Good: very, positive]", "Put a text with a comma or a colon in quotes"),
        ("learning_rate: -.inf", "-.inf is not a finite number"),
        ("? [a]: b\n: c", "cell body, line 1"),
        ("task: chatt", "task: 'chatt' does not fit: input should be 'text-classification', 'text-generation', 'chat'"),
        ("task: chatt", "Did you mean 'chat'?"),
        ("columns: {}", "columns: "),
    ],
)
def test_more_mistakes_give_one_line_too(body: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(body)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keywords_are_checked_like_a_cell() -> None:
    with pytest.raises(RecipeError, match="learning_rate: 'nan' does not fit"):
        make_recipe({"learning_rate": float("nan")})
    with pytest.raises(RecipeError, match=r"^unknown setting 'epoch'\. Did you mean 'epochs'\?"):
        make_recipe({"epoch": 1})
    assert make_recipe({"epochs": 3}) == read("epochs: 3") == read("epochs: 3.0")


def test_an_empty_cell_is_the_defaults() -> None:
    assert read("") == read("# nothing but a comment\n") == Recipe()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("examples: [{text: a, text: b}]", "cell body, line 1, column 22: 'text' is given twice (first in line 1)"),
        ("examples:\n - {text: a, [b]: c}", "cell body, line 2, column 14: a key must be a word"),
        ("batch_size: true", "batch_size: 'true' does not fit: a number is wanted, not true or false"),
        ("epochs: true", "epochs: 'true' does not fit: a number is wanted, not true or false"),
        ("seed: false", "seed: 'false' does not fit: a number is wanted, not true or false"),
        ("validation: true", "validation: 'true' does not fit: a number is wanted, not true or false"),
        ("batch_size: 1:30", "batch_size: '1:30' does not fit: input should be a valid integer"),
        ("epochs: 1:30.5", "epochs: '1:30.5' does not fit: input should be a valid number"),
        ("seed: 0x10", "seed: '0x10' does not fit: input should be a valid integer"),
    ],
)
def test_a_value_that_yaml_would_take_for_another_is_refused(body: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(body)
    assert message in str(caught.value)


def test_a_leading_zero_does_not_make_a_number_octal() -> None:
    assert read("batch_size: 010").batch_size == 10
    assert read("examples: [[a, 010], [b, '1:30']]").examples == [["a", "010"], ["b", "1:30"]]


@pytest.mark.parametrize("share", ["20%", "'0.2'", "'20 %'", "0,2"])
def test_a_share_typed_as_text_says_which_number_to_type(share: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(f"data: a.csv\nvalidation: {share}")
    shown = share.strip("'")
    assert str(caught.value).startswith(f"cell body, line 2: validation: {shown!r} does not fit: type 0.2")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("data: nofile.csv\nepochs:3", 2),
        ("data: nofile.csv\nepochs:3\nseed: 1", 2),
        ("epochs:3\ndata: nofile.csv", 1),
        ("epochs:3", 1),
        ("data: nofile.csv\nepochs 3\n", 2),
        ("data: nofile.csv\nepochs :3\n", 2),
    ],
)
def test_a_setting_without_its_colon_or_the_space_after_it_is_named_with_its_line(body: str, line: int) -> None:
    with pytest.raises(RecipeError) as caught:
        read(body)
    assert str(caught.value).startswith(f"cell body, line {line}: 'epochs")
    assert str(caught.value).endswith("is no setting yet. Write `epochs: 3`, with a colon and a space")


def test_a_line_that_is_no_setting_is_told_with_its_own_place() -> None:
    with pytest.raises(RecipeError, match=r"^cell body, line 2, column 1: could not find expected ':' in 'hm'$"):
        read("data: a.csv\nhm\nseed: 1")


def test_columns_may_be_numbered() -> None:
    recipe = read("text: 0\nlabel: 1")
    assert (recipe.text, recipe.label) == ("0", "1")
    assert make_recipe({"text": 0, "label": 1}) == recipe
    assert read(recipe.to_yaml()) == recipe


def test_settings_that_hold_a_text_keep_it_as_it_was_typed() -> None:
    recipe = read("subset: 2018\nrevision: 1.10\ntext: 007\nlabel: true\nmodel: 1e-4")
    typed = (recipe.subset, recipe.revision, recipe.text, recipe.label, recipe.model)
    assert typed == ("2018", "1.10", "007", "true", "1e-4")
    assert read("text: ~").text is None


def test_the_roles_that_a_recipe_names_are_those_that_the_tasks_read() -> None:
    from gptx_nb.engine.tasks.writing import TASKS

    read = {name: {role for shape in task.shapes for roles in shape for role in roles} for name, task in TASKS.items()}
    assert {name: set(roles) for name, roles in ROLES.items() if name in TASKS} == read
    assert set(ROLES) == {*TASKS, *LABELS}


def test_labels_that_are_numbers_may_be_keys() -> None:
    expected = {"0": "bad", "1": "good"}
    for typed in ({0: "bad", 1: "good"}, {"0": "bad", "1": "good"}, "{0: bad, 1: good}"):
        assert make_recipe({"label_words": typed}).label_words == expected
    assert make_recipe({"label_words": {True: "yes", False: "no"}}).label_words == {"true": "yes", "false": "no"}
