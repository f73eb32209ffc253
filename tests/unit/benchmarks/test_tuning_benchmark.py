"""tune against combinations by hand: which they are, and what the speed of a whole run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from velodrome.recipes.read import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@pytest.fixture
def tuning(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tuning")


def test_compilation_is_charged_to_the_run_that_is_compiled(tuning: ModuleType) -> None:
    # Epochs of 10 s and of 5 s: five of them are 50 s and 25 s, after 1 s each, or 31 s where it is compiled first.
    assert tuning.whole_run_speed(2.0, 10.0, 5, (1.0, 1.0)) == pytest.approx(51 / 26)
    assert tuning.whole_run_speed(2.0, 10.0, 5, (1.0, 31.0)) == pytest.approx(51 / 56)
    assert tuning.whole_run_speed(2.0, 10.0, 0, (1.0, 31.0)) == 2.0  # nobody knows how long the run is


def test_channels_last_joins_for_convolutions(tuning: ModuleType) -> None:
    plain, pictures = (tuning.strong_combinations(has_convolutions=each) for each in (False, True))
    assert len(plain) == 4  # threads 1 and 2, fp32 and bf16
    assert len(pictures) == 8
    assert {"train.threads": 2, "train.precision": "bf16", "train.channels_last": True} in pictures


@pytest.mark.parametrize("name", ["fashion-mnist-tutorial", "fashion-mnist-cnn", "char-gpt"])
def test_every_combination_is_a_recipe(tuning: ModuleType, name: str) -> None:
    from velodrome.advise.tuning.setup import Change, Setup

    rest = [{field: value} for field, values in tuning.REST for value in values]
    for fields in [*tuning.strong_combinations(has_convolutions=True), *rest]:
        load_recipe(name, Setup(recipe=name, change=Change(fields=fields)).all_overrides)


def test_what_is_usual_is_not_measured_twice(tuning: ModuleType) -> None:
    recipe = load_recipe("fashion-mnist-tutorial").recipe
    assert tuning.usual(recipe, "train.eval_batch_size") == 1000
    assert tuning.usual(recipe, "optimizer.fused") is True
