from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from velodrome.errors import RefusedError
from velodrome.step.optimizer_state import differences, load_optimizer_state, optimizer_state, parameter_names


class Odd(torch.optim.Optimizer):
    """Keeps tensors of another dtype, None, numbers, lists and a table for each parameter, and something of its own beside them."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99), "mode": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["sum"] = state.get("sum", torch.zeros_like(parameter, dtype=torch.float64)) + parameter.grad
                state["history"] = [*state.get("history", []), parameter.grad.clone()][-2:]
                state["nothing"] = None
                state["count"] = state.get("count", 0) + 1
                state["inner"] = {"wide": parameter.detach().double() / 3}
                parameter -= group["lr"] * state["sum"].to(parameter.dtype) * state["count"]
        self.state["all of them"] = self.state.get("all of them", 0) + 1


class Swapped(nn.Module):
    """The same layers, declared in one order or in the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.b(x))


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for step in range(num_steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), 0.1 * (step + 1))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        Odd,
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.ASGD(p),
        lambda p: torch.optim.NAdam(p),
        lambda p: torch.optim.Adafactor(p),
    ],
)
def test_an_optimizer_goes_on_by_names_whatever_the_order_of_its_parameters(make: Any) -> None:
    torch.manual_seed(0)
    model, other = Swapped("a", "b"), Swapped("b", "a")
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer_state(optimizer, parameter_names(optimizer, named(model))))  # as a file would
    other.load_state_dict(model.state_dict())
    its_optimizer = make(other.parameters())

    load_optimizer_state(its_optimizer, saved, parameter_names(its_optimizer, named(other)))
    train(model, optimizer, 2)
    train(other, its_optimizer, 2)

    assert all(torch.equal(named(model)[name], value) for name, value in named(other).items())


def test_state_keeps_its_dtype_where_torch_would_cast_it_to_that_of_the_parameter() -> None:
    model = Swapped("a", "b").bfloat16()
    optimizer = Odd(model.parameters())
    model(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    names = parameter_names(optimizer, named(model))
    saved = optimizer_state(optimizer, names)
    again = Odd(model.parameters())

    load_optimizer_state(again, saved, names)

    for parameter in model.parameters():
        for before, now in ((optimizer.state[parameter], again.state[parameter]),):
            assert now["sum"].dtype == torch.float64
            assert torch.equal(now["sum"], before["sum"])
            assert torch.equal(now["inner"]["wide"], before["inner"]["wide"])
            assert now["nothing"] is None
            assert now["count"] == 1
    assert again.state["all of them"] == 1
    assert again.param_groups[0]["betas"] == (0.9, 0.99)


def test_state_has_the_memory_layout_of_its_parameter() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    names = parameter_names(optimizer, named(model))
    saved = optimizer_state(optimizer, names)
    saved["by_name"]["weight"]["exp_avg"] = saved["by_name"]["weight"][
        "exp_avg"
    ].contiguous()  # as a file gives it back
    again = torch.optim.Adam(model.parameters())

    load_optimizer_state(again, saved, names)

    assert again.state[model.weight]["exp_avg"].stride() == model.weight.stride()
    assert torch.equal(again.state[model.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"])


def test_other_parameters_are_refused_with_their_names() -> None:
    model, other = Swapped("a", "b"), Swapped("a", "c")
    optimizer, its_optimizer = torch.optim.SGD(model.parameters()), torch.optim.SGD(other.parameters())
    saved = optimizer_state(optimizer, parameter_names(optimizer, named(model)))

    with pytest.raises(RefusedError, match=r"missing now are b\.bias, b\.weight; new are c\.bias, c\.weight"):
        load_optimizer_state(its_optimizer, saved, parameter_names(its_optimizer, named(other)))


def test_other_groups_are_said_by_their_sizes() -> None:
    assert (
        differences([["a", "b"], ["c"]], [["a"], ["b", "c"]])
        == "they were in groups of [2, 1] and are in groups of [1, 2]"
    )


def test_parameters_outside_of_the_model_are_called_by_their_place() -> None:
    model, scale = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [model.weight, model.bias]}, {"params": [scale]}])

    assert parameter_names(optimizer, named(model)) == [["weight", "bias"], ["group 1 parameter 0"]]
