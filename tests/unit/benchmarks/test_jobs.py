"""The loops that benchmarks compare learn the same, in the small: a comparison of unequal work would mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

SMALL_GPT = ["model.width=16", "model.num_heads=2", "model.num_layers=1", "data.window=32"]


@pytest.fixture
def jobs(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("jobs")


@pytest.fixture
def gpt(jobs: ModuleType, text_file: Path) -> Any:
    return jobs.load_job("gpt", data_root=Path(), epochs=1, changes=[*SMALL_GPT, f'data.path="{text_file}"'])


def test_fit_on_the_tutorials_loaders_gives_its_bits(jobs: ModuleType, gpt: Any) -> None:
    tutorial = jobs.tutorial_loop(gpt)
    fit = jobs.velodrome_same_loaders(gpt)

    assert torch.equal(fit.weights, tutorial.weights)
    assert fit.losses == pytest.approx(tutorial.losses, rel=1e-6)
    assert fit.accuracies == pytest.approx(tutorial.accuracies)


def test_fit_as_the_recipe_learns_what_the_well_written_loop_learns(jobs: ModuleType, gpt: Any) -> None:
    well_written = jobs.well_written_loop(gpt)
    fit = jobs.velodrome_recipe(gpt)
    switched = jobs.velodrome_recipe(gpt, precision="bf16")

    assert torch.equal(fit.weights, well_written.weights)
    assert fit.losses == pytest.approx(well_written.losses, rel=1e-6)
    assert not torch.equal(switched.weights, well_written.weights)  # control: other arithmetic is seen
    assert switched.losses == pytest.approx(well_written.losses, rel=0.05)


def test_a_job_is_compared_with_the_loop_that_it_shares_its_work_with(
    script: Callable[[str], ModuleType], jobs: ModuleType
) -> None:
    outcome = script("fresh").Outcome
    weights = torch.tensor([1.0])
    runs = {
        "tutorial": [outcome(seconds=8.0, losses=[1.0], accuracies=[0.5], weights=weights)],
        "well written": [outcome(seconds=4.0, losses=[1.5], accuracies=[0.5], weights=weights + 1)],
        "fit": [outcome(seconds=4.0, losses=[1.0], accuracies=[0.5], weights=weights)],
        "fit, as recipe": [outcome(seconds=2.0, losses=[1.5], accuracies=[0.5], weights=weights + 1)],
    }

    arms = script("recipe_jobs").compare(runs)["arms"]

    assert arms["fit"]["speed"]["median"] == 2.0  # 8 / 4
    assert arms["fit, as recipe"]["speed"]["median"] == 4.0  # 8 / 2
    assert arms["fit"]["weights_equal"]
    assert arms["fit, as recipe"]["weights_equal"]
    assert arms["fit, as recipe"]["compared_with"] == "well written"
    assert not arms["well written"]["weights_equal"]
