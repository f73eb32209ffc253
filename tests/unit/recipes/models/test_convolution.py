from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from velodrome.errors import ArgumentError
from velodrome.recipes.models import cnn


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # 1*32*9+32 + 32*64*9+64 + (64*7*7)*128+128 + 128*10+10: 28 is halved twice, to 7
        ({}, 421_642),
        # no bias beside a batch norm, which has a scale and a shift instead: the same number
        ({"batch_norm": True}, 421_642 + 32 + 64),
        # 3*4*9+4 + (4*16*16)*5+5 + 5*2+2
        ({"channels": [4], "hidden": 5, "in_channels": 3, "image_size": 32, "num_classes": 2}, 112 + 5125 + 12),
    ],
)
def test_cnn_has_the_parameters_that_its_arguments_say(arguments, expected):
    model = cnn(**arguments)
    x = torch.rand(2, arguments.get("in_channels", 1), *[arguments.get("image_size", 28)] * 2)
    assert model(x).shape == (2, arguments.get("num_classes", 10))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_cnn_computes_convolution_relu_pooling_twice_and_two_linear_layers():
    torch.manual_seed(0)
    model = cnn([3, 5], hidden=7).eval()
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    first, second, *linear = [layer for layer in model.modules() if isinstance(layer, kinds)]
    x = torch.rand(4, 1, 28, 28)
    h = x
    for layer in (first, second):
        h = F.max_pool2d(F.relu(F.conv2d(h, layer.weight.contiguous(), layer.bias, padding=1)), 2)
    expected = linear[1](F.relu(linear[0](h.flatten(1))))
    torch.testing.assert_close(model(x), expected)


def test_cnn_dropout_drops_while_training_only():
    torch.manual_seed(0)
    model = cnn([2], hidden=64, dropout=0.5)
    x = torch.rand(1, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    still = cnn([2], dropout=0)
    assert torch.equal(still(x), still(x))


def test_cnn_batch_norm_stands_after_each_convolution():
    layers = [type(layer).__name__ for layer in cnn([2, 3, 4], batch_norm=True).features]
    assert layers == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": []}, "one or more positive numbers, one a convolution"),
        ({"channels": [8, 0]}, "one or more positive numbers"),
        ({"hidden": 0}, "hidden=0 must be a positive number"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be at least 0 and less than 1"),
        ({"channels": [2] * 5}, "image_size=28 cannot be halved 5 times.* It must be at least 32"),
    ],
)
def test_cnn_wrong_argument_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        cnn(**arguments)
