"""The two small networks of the benchmarks, for pictures of 28 x 28 and ten classes."""

from __future__ import annotations

from torch import nn


def mlp(hidden: int = 512) -> nn.Sequential:
    """Return the PyTorch quickstart's network: 784-512-512-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def cnn() -> nn.Sequential:
    """Return two convolutions of 32 and 64 channels, each pooled, and a linear layer of 128."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
