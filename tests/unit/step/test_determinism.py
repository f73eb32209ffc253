"""`deterministic=True` and `strategy=` through the trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.testing.tiny import tiny_mlp


class Look(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(torch.are_deterministic_algorithms_enabled())
        return self.linear(x)


@pytest.mark.parametrize("deterministic", [False, True])
def test_algorithms_are_deterministic_while_batches_go_by_and_only_then(deterministic):
    model = Look()
    data = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))] * 2
    vd.fit(model, data, data, epochs=1, loss="cross_entropy", optimizer="sgd", lr=0.1, deterministic=deterministic,
           device="cpu", progress=False)  # fmt: skip
    assert set(model.seen) == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_algorithm_names_itself():
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x):
            out = self.linear(x)
            return out + torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # which of the two wins is chance

    data = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(RuntimeError, match="put_"):
        vd.fit(Bad(), data, epochs=1, loss="cross_entropy", optimizer="sgd", lr=0.1, deterministic=True, device="cpu", progress=False)  # fmt: skip
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"deterministic": "yes"}, "neither True nor False"),
        ({"strategy": "dpp"}, "strategy='dpp' is unknown.*ddp"),
        ({"strategy": "ddp"}, "this one is alone.*torchrun"),
    ],
)
def test_what_cannot_be_is_refused(arguments, fragment):
    with pytest.raises(vd.errors.ArgumentError, match=fragment):
        vd.Trainer(tiny_mlp(), "sgd", lr=0.1, device="cpu", **arguments)
