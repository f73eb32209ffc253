"""Small models and data with answers that can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tiny_classification(
    num_samples: int = 96, num_features: int = 8, num_classes: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return `(inputs, labels)` that a linear layer can separate: class k sits around its own corner.

    Inputs are normal noise of size 0.1 plus 1 at feature `k % num_features`, so with
    `num_classes <= num_features` the label is where the largest input is, and accuracy 1.0 is within reach.
    The classes take turns (0, 1, 2, 0, ...), so each has `num_samples / num_classes` rows, give or take one.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_samples) % num_classes
    inputs = 0.1 * torch.randn(num_samples, num_features, generator=generator)
    inputs[torch.arange(num_samples), labels % num_features] += 1.0
    return inputs, labels


def tiny_regression(num_samples: int = 64, num_features: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return `(inputs, targets)` with `targets[i, 0] = 1 * x0 + 2 * x1 + 3 * x2 + ... + 0.5`, no noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, num_features, generator=generator)
    weights = torch.arange(1.0, num_features + 1.0)
    return inputs, (inputs @ weights + 0.5).unsqueeze(1)


def tiny_mlp(num_features: int = 8, num_hidden: int = 16, num_outputs: int = 3, seed: int = 0) -> nn.Sequential:
    """Return linear-ReLU-linear with weights fixed by `seed`; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(num_features, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_outputs))


def tiny_cnn(num_classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Return one convolution with batch norm and one linear layer, for images of shape (N, 1, 8, 8)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 8 * 8, num_classes),
        )
