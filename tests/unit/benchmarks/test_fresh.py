"""Arms in processes of their own: what they leave, what they are told, and what is said when one fails."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

SCRIPT = """
import argparse, os
import torch
from fresh import Outcome, add_child_options, serve
parser = argparse.ArgumentParser()
parser.add_argument("--value", type=float)
add_child_options(parser, threads=2)
options = parser.parse_args()
def arm():
    if options.arm == "broken":
        raise ValueError("the arm is broken")
    keep = torch.ones(8_000_000)
    return Outcome(seconds=options.value, losses=[2.0, 1.0], accuracies=[0.5], weights=torch.tensor([1.0, 2.0]),
                   notes={"threads": [torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])], "sum": float(keep.sum())})
serve(arm, options)
"""


@pytest.fixture
def fresh(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("fresh")


@pytest.fixture
def child(tmp_path: Path, fresh: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    paths = [str(Path(str(fresh.__file__)).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return str(path)


def test_an_arm_leaves_its_outcome_and_knows_its_threads(fresh: ModuleType, child: str) -> None:
    found = fresh.run_fresh(child, ["--value", "1.5"], arm="good", threads=1)

    assert (found.seconds, found.losses, found.accuracies) == (1.5, [2.0, 1.0], [0.5])
    assert found.notes["threads"] == [1, 1]
    assert torch.equal(found.weights, torch.tensor([1.0, 2.0]))
    if found.peak_rss_bytes and found.rss_before_bytes:
        assert found.peak_rss_bytes - found.rss_before_bytes >= 30_000_000  # the arm's 8 million floats are 32 MB

    with pytest.raises(SystemExit, match=r"(?s)The arm 'broken' of script.py failed.*ValueError: the arm is broken"):
        fresh.run_fresh(child, ["--value", "1.5"], arm="broken", threads=1)


def test_differences_are_those_of_the_last_run_from_the_reference(fresh: ModuleType) -> None:
    base = fresh.Outcome(seconds=1.0, losses=[3.0, 1.0], accuracies=[0.2, 0.5], weights=torch.tensor([1.0, 2.0]))
    other = dataclasses.replace(base, losses=[3.0, 1.25], accuracies=[0.2, 0.75], weights=torch.tensor([1.0, 2.5]))
    bare = fresh.Outcome(seconds=1.0)

    found = fresh.differences({"base": [other, base], "same": [base], "other": [base, other], "bare": [bare]}, "base")

    assert found["same"]["weights_equal"]
    assert found["other"] == {
        "weights_equal": False,
        "largest_weight_difference": 0.5,
        "loss": 1.25,
        "loss_difference": 0.25,
        "accuracy": 0.75,
        "accuracy_difference": 0.25,
    }
    assert found["bare"] == {}


def test_a_child_may_write_byte_code_and_finds_that_of_velodrome(
    fresh: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    import velodrome

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before = dict(os.environ)

    environ = fresh.child_environment(3)

    assert "PYTHONDONTWRITEBYTECODE" not in environ
    assert environ["OMP_NUM_THREADS"] == "3"
    added = {*fresh.THREAD_VARIABLES, "PYTHONWARNINGS"}
    assert {name: environ[name] for name in environ if name not in added} == {
        name: before[name] for name in before if name not in {*added, "PYTHONDONTWRITEBYTECODE"}
    }
    assert Path(importlib.util.cache_from_source(str(velodrome.__file__))).exists()
