"""Averages of weights on CUDA: no update waits, storages are exchanged, recurrent layers stay in one piece of memory."""

import pytest
import torch
from torch import nn

from velodrome import EMA, SWA, Trainer
from velodrome.step.averaging import Averaging

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

X, Y = torch.randn(64, 5, 3), torch.randn(64, 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(3, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.norm(self.recurrent(x)[0][:, -1]))


class Counts:
    steps_done = 0
    epochs_done = 0


@pytest.fixture
def syncs_are_errors():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rule", [EMA(0.5), EMA(0.9, warmup=True), SWA(start=0)], ids=["ema", "warmup", "swa"])
def test_averaging_and_carrying_wait_for_nothing(rule, syncs_are_errors):
    model = Recurrent().cuda()
    averaging = Averaging(model, rule, Counts())
    averaging.begin(epochs=9)
    torch.cuda.synchronize()
    syncs_are_errors()
    for epoch in range(1, 4):
        averaging._counts.steps_done += 1
        averaging.after_update()
        averaging.after_epoch(epoch)
        with averaging.applied():
            pass
    torch.cuda.set_sync_debug_mode("default")
    assert averaging.num_averaged == 3


@pytest.mark.parametrize("average", [EMA(0.5), SWA(start=0)], ids=["ema", "swa"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_run_with_a_recurrent_layer(average, precision):
    """Warnings are errors: cuDNN warns of recurrent weights that lie in several pieces of memory."""
    model = Recurrent()
    trainer = Trainer(model, "adam", loss="mse", ema=average, precision=precision, device="cuda", progress=False)
    trainer.fit((X, Y), (X, Y), batch_size=16, epochs=2)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    trainer.evaluate((X, Y))
    assert all(torch.equal(raw[name], value) for name, value in model.state_dict().items())
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
    with trainer.averaging.applied():
        assert not torch.equal(model.head.weight, raw["head.weight"])


@pytest.mark.parametrize("average", [EMA(0.5), SWA(start=0)], ids=["ema", "swa"])
def test_run_with_cuda_graphs_evaluates_the_same_weights_as_one_without(average):
    losses = []
    for compile in (False, "reduce-overhead"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        trainer = Trainer(
            model, "sgd", lr=0.1, loss="mse", ema=average, compile=compile, device="cuda", seed=0, progress=False
        )
        result = trainer.fit((X[:, 0], Y), (X[:, 0], Y), batch_size=16, epochs=4)
        losses.append([row["val/loss"] for row in result.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
