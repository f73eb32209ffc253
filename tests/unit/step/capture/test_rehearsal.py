"""Steps that are tried: kept, put back, compared."""

import random

import numpy
import pytest
import torch
from torch import nn

from velodrome.step.capture.rehearsal import Kept, PythonSide, difference, named_state

CPU = torch.device("cpu")


def test_state_has_weights_buffers_and_what_the_optimizer_keeps_by_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()

    names = set(named_state([model], optimizer))

    assert {"0.weight", "1.running_mean", "1.num_batches_tracked", "exp_avg of 0.weight", "step of 1.bias"} <= names


def test_tensors_and_random_state_are_put_back():
    tensor = torch.arange(3.0)
    kept = Kept({"tensor": tensor}, CPU)
    drawn = torch.rand(2)
    tensor.mul_(2)
    kept.put_back()
    assert tensor.tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(torch.rand(2), drawn)


@pytest.mark.parametrize(
    ("one", "differs"),
    [
        ([1.0, 2.0], ""),
        ([1.0, 2.0009], ""),  # 0.0009 apart on a way of 0.1: less than a hundredth
        ([1.0, 2.0011], "tensor ended 0.0011"),
        ([1.0, 1.9], "tensor ended 0.1"),
        ([1.0, float("nan")], "tensor ended nan"),
    ],
)
def test_ends_are_compared_relative_to_the_way(one, differs):
    start = {"tensor": torch.tensor([1.0, 1.9], dtype=torch.float64)}
    trusted = {"tensor": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    found, fraction = difference({"tensor": torch.tensor(one, dtype=torch.float64)}, trusted, start)
    assert found.startswith(differs) if differs else found == ""
    assert (fraction == 0.0) == (one == [1.0, 2.0])


def test_counters_must_be_equal():
    found, _ = difference({"n": torch.tensor(3)}, {"n": torch.tensor(4)}, {"n": torch.tensor(1)})
    assert found == "n is 3 instead of 4"


def change(model):
    model.flag = not model.flag


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda model: None, ""),
        (lambda model: random.random(), "Python's random"),
        (lambda model: numpy.random.rand(), "numpy.random"),
        (change, "Linear.flag"),
        (lambda model: setattr(model, "new", torch.ones(1)), "Linear.new"),
    ],
)
def test_what_python_does_is_seen_and_put_back(act, words):
    model = nn.Linear(1, 1)
    model.flag = True
    state, numbers = random.getstate(), numpy.random.get_state()[1].copy()
    python = PythonSide([model], CPU)
    act(model)
    assert words in python.put_back()
    assert model.flag is True
    assert not hasattr(model, "new")
    assert random.getstate() == state
    assert (numpy.random.get_state()[1] == numbers).all()
