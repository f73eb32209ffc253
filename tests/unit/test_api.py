"""`fit`, `evaluate` and `predict` in one call; seeds and devices."""

import random

import numpy
import pytest
import torch
from torch import nn

import velodrome
from velodrome.api import evaluate
from velodrome.devices import resolve_device
from velodrome.errors import ArgumentError, DataError

X, LABELS = torch.eye(4), torch.tensor([0, 1, 2, 0])


class Same(nn.Module):
    """Gives the first three columns of what it gets: right for the first three rows of X, wrong or tied for the last."""

    def forward(self, x):
        return 10 * x[:, :3]


def test_fit_in_one_call_trains_and_returns_the_result():
    torch.manual_seed(0)
    result = velodrome.fit(
        nn.Linear(4, 3), (X, LABELS), (X, LABELS), loss="cross_entropy", optimizer="sgd", lr=1.0, metrics=["accuracy"],
        batch_size=2, epochs=20, device="cpu", progress=False,
    )  # fmt: skip
    assert isinstance(result, velodrome.FitResult)
    assert len(result.history) == 20
    assert result.metrics["val/loss"] < result.history[0]["val/loss"]
    assert result.metrics["val/accuracy"] == 1.0
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= result.metrics.keys()


def test_fit_takes_arrays_lists_datasets_and_loaders():
    losses = []
    dataset = torch.utils.data.TensorDataset(X, LABELS)
    for data, batch_size in [
        ((X, LABELS), 2),
        ((X.numpy(), LABELS.numpy()), 2),
        (dataset, 2),
        (velodrome.DataLoader(dataset, 2), None),
        (torch.utils.data.DataLoader(dataset, 2), None),
        ([(X[:2], LABELS[:2]), (X[2:], LABELS[2:])], None),
    ]:
        torch.manual_seed(0)
        result = velodrome.fit(
            nn.Linear(4, 3), data, loss="cross_entropy", optimizer="sgd", lr=0.1, batch_size=batch_size, shuffle=False,
            epochs=2, device="cpu", progress=False,
        )  # fmt: skip
        losses.append(result.metrics["train/loss"])
    assert len(set(losses)) == 1


def test_evaluate_by_hand():
    values = velodrome.evaluate(Same(), (X, LABELS), loss="cross_entropy", metrics=["accuracy", "top3"], device="cpu")
    # three rows have scores (10, 0, 0) with the right one first, the last has (0, 0, 0): argmax gives 0, which is right
    expected = (3 * torch.log(1 + 2 * torch.exp(torch.tensor(-10.0))) + torch.log(torch.tensor(3.0))) / 4
    assert values["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert values["accuracy"] == 1.0
    assert values["top3"] == 1.0


def test_evaluate_with_metrics_alone_gives_no_loss():
    assert velodrome.evaluate(Same(), (X, torch.tensor([0, 1, 1, 1])), metrics=["accuracy"], device="cpu") == {
        "accuracy": 0.5
    }


def test_evaluate_and_predict_take_a_frozen_model_and_leave_it_alone():
    model = nn.Linear(4, 3).requires_grad_(False)
    before = model.weight.clone()
    velodrome.evaluate(model, (X, LABELS), loss="cross_entropy", device="cpu")
    output = velodrome.predict(model, X, device="cpu", batch_size=3)
    assert torch.equal(output, model(X))
    assert torch.equal(model.weight, before)
    assert not output.requires_grad


def test_evaluate_refuses_labels_out_of_range():
    with pytest.raises(DataError, match="eval label 3 at sample 2 is out of range"):
        velodrome.evaluate(Same(), (X, torch.tensor([0, 1, 3, 0])), loss="cross_entropy", device="cpu")


def test_predict_of_a_dataset_leaves_targets_out():
    dataset = torch.utils.data.TensorDataset(X, LABELS)
    assert torch.equal(velodrome.predict(Same(), dataset, device="cpu"), 10 * X[:, :3])


def test_predict_is_in_eval_mode_and_puts_it_back():
    model = nn.Dropout(0.9)
    assert torch.equal(velodrome.predict(model, X, device="cpu"), X)
    assert model.training


def test_seed_everything_makes_every_generator_repeat():
    draws = []
    for _ in range(2):
        velodrome.seed_everything(2**40 + 3)
        draws.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    velodrome.seed_everything(4)
    assert random.random() != draws[0][0]


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, None])
def test_seed_that_is_none_is_refused(seed):
    with pytest.raises(ArgumentError, match=r"is not a seed\. It must be a whole number from 0 to 2\*\*63 - 1"):
        velodrome.seed_everything(seed)


def test_seed_of_fit_covers_dropout_and_order_but_not_the_weights_made_before():
    weights = []
    for noise in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(noise)
        velodrome.fit(
            model, (X, LABELS), loss="cross_entropy", seed=9, batch_size=3, epochs=2, device="cpu", progress=False
        )
        weights.append(model[0].weight.detach())
    assert torch.equal(*weights)


def test_devices_by_every_spelling():
    assert (
        resolve_device("cpu") == resolve_device("cpu:0") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    )
    assert resolve_device("meta") == torch.device("meta")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 1.5])
def test_unknown_device_is_refused(device):
    with pytest.raises(
        ArgumentError, match=r"is not a device\. Write \"auto\", \"cpu\", \"cuda\", \"cuda:1\" or \"mps\""
    ):
        resolve_device(device)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="asks for MPS where there is none")
def test_mps_where_there_is_none_is_refused():
    with pytest.raises(ArgumentError, match=r"device=\"mps\" is not available on this machine\. Use device=\"auto\""):
        resolve_device("mps")


@pytest.mark.skipif(torch.xpu.is_available(), reason="asks for XPU where there is none")
def test_device_without_its_backend_is_refused():
    with pytest.raises(
        ArgumentError, match=r"device='xpu' cannot be used here: .*Use device=\"auto\" or device=\"cpu\""
    ):
        resolve_device("xpu")


def test_accuracy_leaves_out_what_the_loss_leaves_out_over_ragged_batches():
    """Six samples, two of them ignored; of the four that count, three are right: 75 %, however they are batched."""
    output = torch.tensor([[2.0, 1.0]] * 6)
    target = torch.tensor([0, -100, 0, 1, -100, 0])
    for batch_size in (1, 4, 6):
        values = evaluate(
            nn.Identity(), (output, target), loss="cross_entropy", metrics=["accuracy"], batch_size=batch_size
        )
        assert values["accuracy"] == 0.75
