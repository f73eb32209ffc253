from __future__ import annotations

import math
import tomllib
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velodrome.errors import RecipeError
from velodrome.recipes.read import builtin_names, load_recipe
from velodrome.recipes.schema import Recipe
from velodrome.recipes.toml_writer import to_toml, toml_value

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


@given(st.dictionaries(texts, st.dictionaries(texts, values, max_size=3), max_size=3))
def test_to_toml_is_read_back_as_the_same_tables(tables):
    assert tomllib.loads(to_toml(tables)) == tables


def test_toml_value_nan_is_nan():
    assert math.isnan(tomllib.loads(f"x = {toml_value(math.nan)}")["x"])


@pytest.mark.parametrize("name", builtin_names())
def test_to_toml_recipe_comes_back_equal(name):
    recipe = load_recipe(name).recipe
    assert Recipe.model_validate(tomllib.loads(to_toml(recipe.to_tables()))) == recipe


def test_to_toml_refuses_what_a_recipe_cannot_hold():
    with pytest.raises(RecipeError, match="TOML has no date"):
        to_toml({"train": {"epochs": date(2024, 1, 1)}})
