"""`data.transforms` of a recipe: the training loader gets them, the evaluation loader does not, and mistakes are named."""

from __future__ import annotations

import pytest
import torch

from velodrome.errors import RecipeError
from velodrome.recipes.build import build
from velodrome.recipes.eject.refuse import check_can_be_ejected
from velodrome.recipes.loaders import prediction_data
from velodrome.recipes.read import load_recipe
from velodrome.recipes.toml_writer import to_toml

MODULE = """\
import torch


def ones():
    data = torch.ones(40, 1, 4, 4), torch.zeros(40, dtype=torch.int64)
    return data, data


def batches():
    return [ones()[0]], None
"""
TRANSFORMS = 'transforms = [{ name = "cutout", size = 3, fill = 7 }, { name = "random_erasing", scale = [0.1, 0.2] }]'


@pytest.fixture
def load(recipe_file):
    (recipe_file.parent / "shelf_for_transform_tests.py").write_text(MODULE)
    text = recipe_file.read_text().replace('name = "mnist"', 'name = "shelf_for_transform_tests:ones"\n' + TRANSFORMS)
    recipe_file.write_text(text)
    return lambda *changes: load_recipe(recipe_file, changes)


def test_training_data_are_changed_and_evaluation_data_are_not(load):
    ready = build(load())
    inputs = torch.cat([x for x, _ in ready.train])
    assert (inputs == 7).any()
    assert (inputs == 0).any()
    assert all((x == 1).all() for x, _ in ready.val)


def test_the_resolved_recipe_names_them_again(load, tmp_path):
    recipe = load().recipe
    (tmp_path / "again.toml").write_text(to_toml(recipe.to_tables()))
    assert load_recipe(tmp_path / "again.toml", ()).recipe == recipe


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ('data.transforms=[{name="cutuot"}]', "cutout"),
        ('data.transforms=[{name="cutout"}]', "cutout needs size"),
        ('data.transforms=[{name="cutout", size=3, fil=1}]', "fill"),
        ('data.transforms=[{name="gaussian_noise", std=-1}]', "above 0"),
        ('data.transforms=[{name="normalize", mean=0}]', "normalize needs std"),
        ('data.transforms=[{name="normalize", mean=[], std=1}]', "is not a mean"),
        ('data.transforms=[{name="mixup", num_classes=1}]', "at least 2"),
        ('data.transforms="cutout"', "must be a list"),
    ],
)
def test_mistakes_are_named(load, change, match):
    with pytest.raises(RecipeError, match=match):
        load(change)


def test_fixed_ones_change_all_data_and_stand_where_they_are_needed(load):
    """Black is 0 and comes in before the normalisation: (0 - 1) / 0.5 = -2, and the ones become 0, in evaluation data too."""
    change = 'data.transforms=[{name="random_translate", pixels=2}, {name="normalize", mean=1, std=0.5}]'
    ready = build(load(change))
    train = torch.cat([x for x, _ in ready.train])
    assert set(train.unique().tolist()) == {-2.0, 0.0}
    assert all((x == 0).all() for x, _ in ready.val)
    rows = prediction_data(ready.data.val, ready.recipe)
    assert all((x == 0).all() for x in rows)


def test_random_ones_do_not_reach_data_to_predict(load):
    ready = build(load())
    assert prediction_data(ready.data.val, ready.recipe) is ready.data.val[0]


def test_a_resized_image_decides_the_first_size_of_the_mlp(load):
    """Images of 4 x 4 as 3 x 3 have 9 numbers."""
    ready = build(
        load('model.sizes=["auto", 10]', 'data.transforms=[{name="resize", size=3}, {name="cutout", size=1}]')
    )
    assert ready.recipe.model.arguments["sizes"] == [9, 10]
    assert next(iter(ready.val))[0].shape[1:] == (1, 3, 3)


def test_mixed_labels_reach_the_training_only(load):
    ready = build(load('data.transforms=[{name="mixup", num_classes=10}]'))
    assert next(iter(ready.train))[1].shape[1:] == (10,)
    assert next(iter(ready.val))[1].dtype == torch.int64


def test_data_are_not_normalised_twice(recipe_file):
    text = recipe_file.read_text().replace(
        'name = "mnist"',
        'name = "mnist"\nnormalize = true\ntransforms = [{ name = "normalize", mean = 0.1, std = 0.3 }]',
    )
    recipe_file.write_text(text)
    with pytest.raises(RecipeError, match="Leave one of them out"):
        load_recipe(recipe_file, ())


def test_batches_as_they_are_cannot_be_changed(load):
    with pytest.raises(RecipeError, match="data.transforms changes tensors and datasets"):
        build(load('data.name="shelf_for_transform_tests:batches"', 'data.transforms=[{name="cutout", size=3}]'))


def test_no_script_is_written_for_them(load):
    with pytest.raises(RecipeError, match="data.transforms=.*cannot be ejected"):
        check_can_be_ejected(load().recipe)
