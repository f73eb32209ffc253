"""Weights of convolutions in channels-last order."""

import pytest
import torch
from torch import nn

from velodrome import Trainer
from velodrome.errors import ArgumentError
from velodrome.step.layout import use_channels_last
from velodrome.step.precision import FullPrecision

CPU = torch.device("cpu")
DATA = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )


def fit(model, channels_last, **arguments):
    trainer = Trainer(
        model,
        "sgd",
        lr=0.05,
        loss="cross_entropy",
        device="cpu",
        progress=False,
        seed=0,
        channels_last=channels_last,
        **arguments,
    )
    trainer.fit(DATA, batch_size=8, epochs=2)
    return trainer


@pytest.mark.parametrize("wish", [True, "auto"])
def test_weights_and_what_flows_are_in_the_other_order_and_the_numbers_are_the_same(wish):
    seen = []
    model = net()
    model[2].register_forward_hook(lambda module, args, output: seen.append(output))
    one, other = fit(model, wish), fit(net(), False)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not other.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert one.result.metrics["train/loss"] == pytest.approx(other.result.metrics["train/loss"], rel=1e-4)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_off_leaves_the_bits_alone():
    model = net()
    before = [parameter.data_ptr() for parameter in model.parameters()]
    assert use_channels_last(model, False, device=CPU, precision=FullPrecision()) == 0
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_auto_leaves_a_model_without_convolutions_and_fp32_on_cuda():
    assert use_channels_last(nn.Linear(2, 2), "auto", device=CPU, precision=FullPrecision()) == 0
    assert use_channels_last(net(), "auto", device=torch.device("cuda"), precision=FullPrecision()) == 0


def test_three_dimensional_convolutions_have_their_own_order():
    model = nn.Sequential(nn.Conv3d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2))
    assert use_channels_last(model, True, device=CPU, precision=FullPrecision()) == 2
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_true_without_a_convolution_is_refused():
    with pytest.raises(ArgumentError, match="channels_last=True does nothing for Linear, which has no convolution"):
        use_channels_last(nn.Linear(2, 2), True, device=CPU, precision=FullPrecision())


@pytest.mark.parametrize("wish", ["yes", 1, None])
def test_another_wish_is_refused(wish):
    with pytest.raises(ArgumentError, match='It must be True, False or "auto"'):
        use_channels_last(net(), wish, device=CPU, precision=FullPrecision())


def test_a_run_goes_on_in_the_order_that_is_asked_for(tmp_path):
    straight = fit(net(), True, optimizer_args={"momentum": 0.9})
    first = Trainer(
        net(), "sgd", lr=0.05, loss="cross_entropy", device="cpu", progress=False, seed=0, channels_last=True, run_dir=tmp_path / "run",
        optimizer_args={"momentum": 0.9}, loggers=(),
    )  # fmt: skip
    first.fit(DATA, batch_size=8, epochs=1)
    resumed = Trainer(
        net(), "sgd", lr=0.05, loss="cross_entropy", device="cpu", progress=False, seed=0, channels_last=True, run_dir=tmp_path / "run",
        optimizer_args={"momentum": 0.9}, loggers=(), resume="auto",
    )  # fmt: skip
    resumed.fit(DATA, batch_size=8, epochs=2)
    pairs = zip(straight.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.model[0].weight.is_contiguous(memory_format=torch.channels_last)
