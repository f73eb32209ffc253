from __future__ import annotations

import pytest
import torch
from torch import nn

from velodrome.errors import ArgumentError
from velodrome.recipes.models import mlp


class Quickstart(nn.Module):
    """The network of https://docs.pytorch.org/tutorials/beginner/basics/quickstart_tutorial.html, word for word."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, x):
        return self.linear_relu_stack(self.flatten(x))


def test_mlp_has_the_weights_and_outputs_of_the_quickstart_for_one_seed():
    torch.manual_seed(0)
    theirs = Quickstart()
    torch.manual_seed(0)
    ours = mlp([784, 512, 512, 10])
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("output", "total"),
    [("log_softmax", lambda y: y.exp().sum(dim=1)), ("none", lambda y: torch.softmax(y, 1).sum(dim=1))],
)
def test_mlp_output_gives_probabilities_that_sum_to_one(output, total):
    torch.testing.assert_close(total(mlp([4, 3, 2], output=output)(torch.rand(5, 4))), torch.ones(5))


def test_mlp_sigmoid_lies_between_zero_and_one():
    y = mlp([4, 1], activation="tanh", output="sigmoid")(torch.randn(50, 4))
    assert y.shape == (50, 1)
    assert ((y > 0) & (y < 1)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [3]}, "two or more positive numbers"),
        ({"sizes": [3, 0]}, "two or more positive numbers"),
        ({"sizes": ["auto", 2]}, "Only a recipe may say"),
        ({"sizes": [3, 2], "activation": "rleu"}, 'Did you mean "relu"'),
        ({"sizes": [3, 2], "output": "sigmod"}, 'Did you mean "sigmoid"'),
    ],
)
def test_mlp_wrong_argument_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        mlp(**arguments)
