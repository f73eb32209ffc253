"""Layers one after another: the network of the PyTorch quickstart, in any size."""

from __future__ import annotations

from collections.abc import Sequence  # the recipe check reads these annotations
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from velodrome.errors import ArgumentError, nearest

__all__ = ["ACTIVATIONS", "MLP", "mlp"]

Sizes = Annotated[Sequence[PositiveInt | Literal["auto"]], Field(min_length=2)]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    """Flattens its input and sends it through linear layers with an activation between them.

    With sizes 784-512-512-10 the modules, their names and the order in which they draw random numbers are those of
    the PyTorch quickstart's network, so that one seed gives one set of weights in both.
    """

    def __init__(self, sizes: Sequence[int], activation: str, output: nn.Module | None) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        layers[-1:] = [] if output is None else [output]
        self.linear_relu_stack = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, log-probabilities or probabilities, as `output` says."""
        return self.linear_relu_stack(self.flatten(x))


def mlp(
    sizes: Sizes,
    activation: Literal["relu", "gelu", "tanh", "sigmoid", "leaky_relu", "elu", "silu"] = "relu",
    output: Literal["none", "log_softmax", "sigmoid"] = "none",
) -> nn.Module:
    """Build a multi-layer perceptron.

    Args:
        sizes: inputs, hidden layers, outputs; the first may be "auto" in a recipe, which measures the data.
        activation: what stands between two linear layers.
        output: what stands after the last one: nothing for cross_entropy and bce_with_logits, "log_softmax" for nll,
            "sigmoid" for bce.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(f'activation="{activation}" is unknown. {nearest(activation, ACTIVATIONS)}')
    outputs = {"none": None, "log_softmax": nn.LogSoftmax(dim=1), "sigmoid": nn.Sigmoid()}
    if output not in outputs:
        raise ArgumentError(f'output="{output}" is unknown. {nearest(output, outputs)}')
    numbers = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(numbers) < 2 or len(numbers) != len(sizes):
        raise ArgumentError(
            f"sizes={list(sizes)} must be two or more positive numbers: inputs, hidden layers, outputs. "
            'Only a recipe may say "auto", and only for the inputs.'
        )
    return MLP(numbers, activation, outputs[output])
