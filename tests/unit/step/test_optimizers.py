"""Optimizers by name: every class of `torch.optim` that works without a closure."""

import inspect

import pytest
import torch
from torch import nn

from velodrome import Trainer
from velodrome.errors import ArgumentError
from velodrome.step.optimizers import known_names, resolve_optimizer

X, Y = torch.randn(8, 4), torch.randn(8, 2)
CLASSES = {
    name.lower()
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}


def test_every_class_of_torch_optim_has_its_name_except_lbfgs():
    assert set(known_names()) == CLASSES - {"lbfgs"}


@pytest.mark.parametrize("name", known_names())
def test_optimizer_by_name_constructs_and_changes_the_weights(name):
    if name == "sparseadam":
        model = nn.EmbeddingBag(4, 2, sparse=True)
        data = torch.randint(0, 4, (8, 3)), Y
    elif name == "muon":  # only for matrices
        model, data = nn.Linear(4, 2, bias=False), (X, Y)
    else:
        model, data = nn.Linear(4, 2), (X, Y)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    Trainer(model, name, lr=0.1, loss="mse", progress=False, device="cpu").fit(data, batch_size=4, epochs=2)
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert all(changed)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_name_in_capitals_lr_and_arguments_reach_the_class():
    optimizer = resolve_optimizer("SGD", nn.Linear(4, 2), lr=0.3, arguments={"momentum": 0.9, "nesterov": True})
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.3, 0.9, True)


def test_betas_may_be_a_list_as_toml_has_them():
    optimizer = resolve_optimizer("adam", nn.Linear(4, 2), arguments={"betas": [0.8, 0.99]})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)


def test_named_optimizer_is_fused_unless_told_otherwise():
    assert resolve_optimizer("adam", nn.Linear(4, 2)).param_groups[0]["fused"] is True
    assert resolve_optimizer("adam", nn.Linear(4, 2), arguments={"fused": False}).param_groups[0]["fused"] is False
    assert not resolve_optimizer("adam", nn.Linear(4, 2), arguments={"foreach": True}).param_groups[0]["fused"]


def test_instance_is_used_as_it_is():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    assert resolve_optimizer(optimizer, model) is optimizer


def test_factory_gets_the_trainable_parameters_and_lr():
    model = nn.Linear(4, 2)
    model.bias.requires_grad_(False)
    made = resolve_optimizer(torch.optim.SGD, model, lr=0.2, arguments={"momentum": 0.5})
    assert made.param_groups[0]["params"] == [model.weight]
    assert (made.param_groups[0]["lr"], made.param_groups[0]["momentum"]) == (0.2, 0.5)


def test_frozen_parameters_are_left_out_and_stay():
    model = nn.Linear(4, 2)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    trainer = Trainer(model, "adamw", lr=0.1, loss="mse", progress=False, device="cpu")
    trainer.fit((X, Y), batch_size=4, epochs=1)
    assert torch.equal(model.bias, before)


FUSED_BOUND = {"sgd": 0, "adam": 8, "adamw": 8, "adagrad": 8}  # units in the last place of a weight, in one update


@pytest.mark.parametrize("name", FUSED_BOUND)
def test_a_fused_update_is_the_plain_one_within_a_bound(name):
    arguments = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    worst = 0.0
    torch.manual_seed(0)
    one, other = nn.Linear(40, 50, bias=False), nn.Linear(40, 50, bias=False)
    fused = resolve_optimizer(name, one, lr=0.01, arguments=dict(arguments))
    plain = resolve_optimizer(name, other, lr=0.01, arguments={**arguments, "fused": False, "foreach": False})
    assert fused.param_groups[0]["fused"] is True
    for _ in range(50):
        with torch.no_grad():
            other.weight.copy_(one.weight)
            size = one.weight.abs()
        one.weight.grad = torch.randn(50, 40)
        other.weight.grad = one.weight.grad.clone()
        fused.step()
        plain.step()
        size = torch.maximum(size, other.weight.detach().abs())
        unit = torch.nextafter(size, torch.tensor(torch.inf)) - size
        worst = max(worst, ((one.weight - other.weight).detach().abs() / unit).max().item())
    assert worst <= FUSED_BOUND[name]


def test_an_instance_is_left_as_it_is():
    model = nn.Linear(4, 2)
    assert not resolve_optimizer(torch.optim.Adam(model.parameters()), model).param_groups[0]["fused"]


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_parameters_that_no_fused_kernel_takes_get_the_plain_optimizer():
    model = nn.Linear(4, 2).to(torch.complex64)
    assert not resolve_optimizer("adam", model).param_groups[0].get("fused")


def test_factory_over_another_model_is_refused():
    other = nn.Linear(4, 2)
    with pytest.raises(ArgumentError, match="none of them a trainable parameter of this Linear"):
        resolve_optimizer(lambda parameters: torch.optim.SGD(other.parameters(), lr=0.1), nn.Linear(4, 2))


def test_muon_over_vectors_is_refused_with_torchs_reason():
    with pytest.raises(ArgumentError, match=r"torch\.optim\.Muon refused its arguments: .*2D"):
        resolve_optimizer("muon", nn.Linear(4, 2))


@pytest.mark.parametrize("lr", [-0.1, "fast", True, float("nan")])
def test_lr_that_is_no_rate_is_refused_for_a_name(lr):
    with pytest.raises(ArgumentError, match=r"is not a learning rate\. It must be a number of at least 0"):
        resolve_optimizer("sgd", nn.Linear(4, 2), lr=lr)


def test_trainer_refuses_optimizer_arguments_without_an_optimizer():
    with pytest.raises(ArgumentError, match=r"lr was given .* optimizer=None"):
        Trainer(nn.Linear(4, 2), None, lr=0.1, progress=False, device="cpu")
