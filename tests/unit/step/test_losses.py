"""Losses by name are torch's functions, and the loop knows what each wants."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from velodrome import Trainer
from velodrome.errors import ArgumentError
from velodrome.step.losses import known_names, resolve_loss

torch.manual_seed(0)
SCORES, CLASSES = torch.randn(6, 3), torch.randint(0, 3, (6,))
NUMBERS, TARGETS = torch.randn(6, 2), torch.randn(6, 2)
PROBABILITIES, BINARY = torch.rand(6, 2), torch.randint(0, 2, (6, 2)).float()

CASES = {
    "cross_entropy": (SCORES, CLASSES, F.cross_entropy),
    "nll": (SCORES.log_softmax(1), CLASSES, F.nll_loss),
    "mse": (NUMBERS, TARGETS, F.mse_loss),
    "l1": (NUMBERS, TARGETS, F.l1_loss),
    "smooth_l1": (NUMBERS, TARGETS, F.smooth_l1_loss),
    "huber": (NUMBERS, TARGETS, F.huber_loss),
    "bce": (PROBABILITIES, BINARY, F.binary_cross_entropy),
    "bce_with_logits": (NUMBERS, BINARY, F.binary_cross_entropy_with_logits),
    "kl_div": (SCORES.log_softmax(1), SCORES.flip(0).softmax(1), lambda o, t: F.kl_div(o, t, reduction="batchmean")),
    "poisson_nll": (NUMBERS, TARGETS.abs(), F.poisson_nll_loss),
    "soft_margin": (NUMBERS, BINARY * 2 - 1, F.soft_margin_loss),
    "multi_margin": (SCORES, CLASSES, F.multi_margin_loss),
    "multilabel_soft_margin": (NUMBERS, BINARY, F.multilabel_soft_margin_loss),
}


def test_every_known_name_is_tested_here():
    assert sorted(CASES) == known_names()


@pytest.mark.parametrize("name", CASES)
def test_loss_by_name_equals_torch_bit_for_bit_in_value_and_gradient(name):
    output, target, function = CASES[name]
    values = []
    for call in (resolve_loss(name).function, function):
        leaf = output.clone().requires_grad_()
        loss = call(leaf, target)
        loss.backward()
        values.append((loss.detach(), leaf.grad))
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])


@pytest.mark.parametrize("name", CASES)
def test_loss_by_name_trains(name):
    output, target, _ = CASES[name]

    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return (x + self.shift).clamp(0, 1) if name == "bce" else x + self.shift

    trainer = Trainer(Shifts(), "sgd", lr=0.0, loss=name, progress=False, device="cpu")
    expected = CASES[name][2](output, target).item()
    assert trainer.fit((output, target), batch_size=6, epochs=1).metrics["train/loss"] == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "arguments", "module"),
    [
        ("cross_entropy", {"label_smoothing": 0.1}, nn.CrossEntropyLoss(label_smoothing=0.1)),
        ("cross_entropy", {"weight": [1.0, 2.0, 3.0]}, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))),
        ("nll", {"ignore_index": 0}, nn.NLLLoss(ignore_index=0)),
        ("smooth_l1", {"beta": 0.5}, nn.SmoothL1Loss(beta=0.5)),
        ("kl_div", {"log_target": True}, nn.KLDivLoss(reduction="batchmean", log_target=True)),
        ("kl_div", {"reduction": "mean"}, nn.KLDivLoss()),
        ("bce_with_logits", {"pos_weight": [2.0, 1.0]}, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0]))),
    ],
)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")
def test_arguments_reach_the_loss(name, arguments, module):
    output, target, _ = CASES[name]
    assert torch.equal(resolve_loss(name, arguments).function(output, target), module(output, target))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("MSE", "mse"),
        ("mae", "l1"),
        ("nll_loss", "nll"),
        (nn.L1Loss(), "l1"),
        (F.nll_loss, "nll"),
        (nn.BCELoss(), "bce"),
    ],
)
def test_loss_is_known_by_its_other_names_and_as_an_object(given, name):
    assert resolve_loss(given).name == name


def test_own_function_is_left_alone():
    def mine(output, target):
        return (output - target).square().mean()

    assert resolve_loss(mine).name == "mine"
    assert resolve_loss(mine).kind == "other"
    assert resolve_loss(None) is None


def test_class_weights_reach_the_device_of_the_model():
    trainer = Trainer(
        nn.Linear(3, 3),
        "sgd",
        loss="cross_entropy",
        loss_args={"weight": [1.0, 2.0, 3.0]},
        progress=False,
        device="cpu",
    )
    trainer.fit((SCORES, CLASSES), batch_size=6, epochs=1)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_reduction_that_is_no_mean_is_refused(reduction):
    with pytest.raises(ArgumentError, match=f"loss 'mse' with reduction='{reduction}' is no mean.*leave reduction out"):
        resolve_loss("mse", {"reduction": reduction})


def test_loss_arguments_without_a_loss_are_refused():
    with pytest.raises(ArgumentError, match=r"loss_args .*label_smoothing.* without a loss"):
        Trainer(nn.Linear(3, 3), loss_args={"label_smoothing": 0.1}, progress=False, device="cpu")


def test_loss_class_instead_of_an_instance_is_refused():
    with pytest.raises(ArgumentError, match=r"loss=.*MSELoss.* is a class\. Give an instance: MSELoss\(\)"):
        resolve_loss(nn.MSELoss)


def test_loss_argument_that_torch_refuses_is_an_argument_error():
    with pytest.raises(ArgumentError, match="torch.nn.CrossEntropyLoss refused its arguments"):
        resolve_loss("cross_entropy", {"weight": ["a", "b"]})
