"""Generators that are put back, and whether anything was drawn from them meanwhile."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from velodrome.data.randomness import GeneratorsKept

DRAWS = {
    "python": random.random,
    "numpy": numpy.random.rand,
    "numpy, a normal number": numpy.random.randn,
    "torch": lambda: torch.rand(()).item(),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("half_a_pair", [False, True])
def test_a_draw_is_noticed_and_undone(name, half_a_pair):
    draw = DRAWS[name]
    numpy.random.seed(3)
    if half_a_pair:  # normal numbers come in pairs: drawing the second one changes no word of the generator
        numpy.random.randn()
    with GeneratorsKept() as kept:
        assert not kept.has_moved
        first = draw()
        assert kept.has_moved
    assert draw() == first


def test_what_was_put_back_inside_has_not_moved():
    with GeneratorsKept() as kept:
        with GeneratorsKept():
            for draw in DRAWS.values():
                draw()
        assert not kept.has_moved
