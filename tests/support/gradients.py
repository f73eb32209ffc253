"""A small problem in double precision, and an optimizer that keeps the gradients it was given."""

from __future__ import annotations

import torch
from torch import nn


class GradientTaker(torch.optim.SGD):
    """SGD that keeps what it was given."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, momentum=0.9)
        self.seen: list[list[torch.Tensor]] = []

    def step(self, closure=None):
        self.seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return super().step(closure)


def problem(samples: int = 37):
    """Return a network, inputs and labels, always the same."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (samples,), generator=generator)
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double(), x, y


def batches_of(x, y, sizes):
    """Cut inputs and labels into batches of these sizes."""
    return list(zip(x.split(sizes), y.split(sizes), strict=True))
