"""Speedruns: every seed counts, the last epoch counts, and what is said of them is arithmetic that one can check."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@pytest.fixture
def speedruns(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("speedruns")


def run(seed: int, seconds: float, history: list[float]) -> dict[str, Any]:
    facts = {"epochs": 2, "steps": 10, "num_parameters": 5, "precision": "fp32", "data": "8 + 2"}
    return {"seed": seed, "seconds": seconds, "accuracy": history[-1], "history": history, **facts}


def test_seeds_are_summed_up_with_those_that_missed(speedruns: ModuleType) -> None:
    # Seed 1 was above the target after one epoch and fell below it: it did not reach it.
    found = speedruns.summarise([run(0, 1.0, [0.85, 0.92]), run(1, 3.0, [0.91, 0.88])], 0.90)

    assert (found["n"], found["reached"], found["steps"]) == (2, 1, 10)
    assert found["accuracy"]["mean"] == pytest.approx(0.90)
    assert found["seconds"]["mean"] == 2.0
    assert found["seconds"]["sd"] == pytest.approx(2**0.5)  # of a sample: sqrt(((1-2)^2 + (3-2)^2) / 1)
    assert found["first_evaluation_at_target"]["mean"] == 1.5  # 2 and 1
    assert found["tuning_seeds_among_them"] == []


def test_a_seed_that_chose_the_recipe_is_named(speedruns: ModuleType) -> None:
    found = speedruns.summarise([run(0, 1.0, [0.5]), run(100, 1.0, [0.5])], 0.90)

    assert found["tuning_seeds_among_them"] == [100]
    assert found["reached"] == 0
    assert found["first_evaluation_at_target"] == {"n": 0}


def test_a_speedrun_trains_its_recipe_for_its_fixed_length(speedruns: ModuleType) -> None:
    small = ["model.channels=[2]", "model.hidden=8", "train.epochs=1", "train.batch_size=500"]
    options = Namespace(data_root=Path("data"), set=small)

    found = speedruns.speedrun("mnist-10k-98.5", 3, options)

    assert found.notes["steps"] == 16  # 8,000 digits in batches of 500
    assert found.notes["epochs"] == 1
    assert found.notes["data"] == "MNIST: 8,000 + 2,000 images"
    assert len(found.accuracies) == 1
    assert found.seconds > 0


@pytest.mark.parametrize("name", ["fashion-mnist-90", "fashion-mnist-92", "mnist-99", "mnist-10k-98.5"])
def test_every_speedrun_names_a_recipe_of_a_fixed_length(speedruns: ModuleType, name: str) -> None:
    from velodrome.recipes.read import load_recipe

    recipe, changes, target = speedruns.RUNS[name]
    loaded = load_recipe(recipe, changes).recipe

    assert (loaded.train.epochs is None) != (loaded.train.steps is None)
    assert loaded.early_stopping is None  # no stop by a look at validation data
    assert 0.9 <= target <= 0.99


def test_one_seed_is_refused(speedruns: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["speedruns.py", "--seeds", "1", "1"])
    with pytest.raises(SystemExit):
        speedruns.main()
    assert "at least two different seeds" in capsys.readouterr().err
