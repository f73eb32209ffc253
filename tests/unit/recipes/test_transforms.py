"""`data.transforms` of a recipe: the training loader gets them, the evaluation loader does not, and mistakes are named."""

from __future__ import annotations

import pytest
import torch

from velodrome.errors import RecipeError
from velodrome.recipes.build import build
from velodrome.recipes.eject.refuse import check_can_be_ejected
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
        ('data.transforms=[{name="normalize", mean=0, std=1}]', "normalize = true"),
        ('data.transforms="cutout"', "must be a list"),
    ],
)
def test_mistakes_are_named(load, change, match):
    with pytest.raises(RecipeError, match=match):
        load(change)


def test_batches_as_they_are_cannot_be_changed(load):
    with pytest.raises(RecipeError, match="data.transforms changes tensors and datasets"):
        build(load('data.name="shelf_for_transform_tests:batches"', 'data.transforms=[{name="cutout", size=3}]'))


def test_no_script_is_written_for_them(load):
    with pytest.raises(RecipeError, match="data.transforms=.*cannot be ejected"):
        check_can_be_ejected(load().recipe)
