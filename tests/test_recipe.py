"""What a user may type in a cell body, and the one line that answers a mistake."""

import pytest

from gptx_nb.errors import RecipeError
from gptx_nb.recipe import Recipe, check_name, make_recipe, parse_yaml


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
        ("keep: bets", "Did you mean 'best'?"),
        ("a: &x 1\nb: *x", "aliases (*name) are not read here"),
        ("epochs:\t3\n\tseed: 1", "a tab stands where YAML wants spaces"),
        ("- a\n- b", "cell body: expected lines like `epochs: 3`, got list"),
        ("just words", "cell body: expected lines like `epochs: 3`, got str 'just words'"),
        ("examples:\n - [Good: very, positive]", "Put a text with a comma or a colon in quotes"),
        ("learning_rate: -.inf", "-.inf is not a finite number"),
        ("? [a]: b\n: c", "cell body, line 1"),
        ("task: chat", "task: 'chat' does not fit: input should be 'text-classification'"),
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
