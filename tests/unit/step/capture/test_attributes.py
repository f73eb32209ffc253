"""Attributes of modules: what has changed, and that it is put back."""

import math
import random
from collections import deque

import numpy
import pytest
import torch
from torch import nn

from velodrome.step.capture.attributes import Attributes


class Tally:
    def __init__(self):
        self.seen = {"batches": 0}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.calls = [0]
        self.nested = {"counts": [1, (2, [3])]}
        self.seen = {1, 2}
        self.last = deque([1, 2], maxlen=4)
        self.table = numpy.zeros(3)
        self.tally = Tally()
        self.rate = math.nan
        self.function = torch.relu
        self.many = list(range(2000))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda net: net.calls.__setitem__(0, 1), "Net.calls"),
        (lambda net: net.calls.append(1), "Net.calls"),
        (lambda net: net.nested["counts"][1][1].append(4), "Net.nested"),
        (lambda net: net.nested.update(more=1), "Net.nested"),
        (lambda net: net.nested.pop("counts"), "Net.nested"),
        (lambda net: net.seen.add(3), "Net.seen"),
        (lambda net: net.last.append(3), "Net.last"),
        (lambda net: net.table.__setitem__(1, 5.0), "Net.table"),
        (lambda net: net.tally.seen.__setitem__("batches", 1), "Net.tally"),
        (lambda net: setattr(net, "rate", 1.0), "Net.rate"),
        (lambda net: setattr(net, "calls", 3), "Net.calls"),
        (lambda net: setattr(net, "function", torch.tanh), "Net.function"),
        (lambda net: setattr(net, "new", 1), "Net.new"),
        (lambda net: delattr(net, "rate"), "Net.rate"),
        (lambda net: net.eval(), "Net.training"),
        (lambda net: net.many.append(1), "Net.many"),
    ],
)
def test_what_changes_is_named_and_put_back(change, name):
    net = Net()
    lists = net.calls, net.nested, net.table
    before = Attributes([net])
    change(net)

    assert before.put_back() == name
    if name != "Net.many":  # too large to be kept
        assert before.put_back() == ""
    assert (net.calls, net.nested, net.seen) == ([0], {"counts": [1, (2, [3])]}, {1, 2})
    assert (list(net.last), net.table.tolist(), net.tally.seen) == ([1, 2], [0.0] * 3, {"batches": 0})
    assert math.isnan(net.rate)
    assert net.function is torch.relu
    assert net.training
    assert not hasattr(net, "new")
    assert [a is b for a, b in zip(lists, (net.calls, net.nested, net.table), strict=True)] == [True] * 3


def test_what_stays_or_is_a_tensors_own_is_no_change():
    net = Net()
    before = Attributes([net])
    net.calls = [0]  # another list with the same in it does the same in the next step
    net.layer.weight.data += 1
    net.mean += 1
    assert before.put_back() == ""


def test_an_element_of_something_large_is_not_seen():
    """The limit that docs/speed.md names: a table of words is not compared word by word."""
    net = Net()
    before = Attributes([net])
    net.many[5] = -1
    assert before.put_back() == ""


def test_what_holds_itself_ends():
    net = Net()
    net.calls.append(net.calls)
    before = Attributes([net])
    assert before.put_back() == ""


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator().manual_seed(3), lambda own: torch.rand(1, generator=own).item()),
        (numpy.random.default_rng(3), lambda own: own.random()),
        (numpy.random.Generator(numpy.random.MT19937(3)), lambda own: own.random()),
        (numpy.random.RandomState(3), lambda own: own.normal()),
        (random.Random(3), lambda own: own.gauss()),
    ],
)
def test_a_generator_that_was_drawn_from_is_named_and_draws_the_same_again(generator, draw):
    net = Net()
    net.held = {"own": generator}
    draw(generator)
    before = Attributes([net])
    assert before.put_back() == ""
    drawn = [draw(generator) for _ in range(3)]
    assert before.put_back() == "Net.held"
    assert [draw(generator) for _ in range(3)] == drawn
