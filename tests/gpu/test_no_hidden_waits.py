"""Law 5 on CUDA: the driver itself refuses a wait between log points."""

import pytest
import torch
from torch import nn

from velodrome import Callback, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

FIRST, LAST = 2, 39


class ForbidsWaits(Callback):
    """Makes every wait an error after the first step, up to the last of the epoch."""

    def on_step_end(self, trainer):
        steps = trainer.progress.steps_done
        if steps == FIRST:
            torch.cuda.set_sync_debug_mode("error")
        elif steps == LAST:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def put_back():
    yield
    torch.cuda.set_sync_debug_mode("default")


def make_trainer(**arguments):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return Trainer(
        model, "adam", lr=0.01, loss="cross_entropy", metrics=["accuracy"], callbacks=[ForbidsWaits()], device="cuda",
        progress=False, **arguments,
    )  # fmt: skip


def test_training_never_waits_between_log_points():
    data = torch.randn(400, 4), torch.randint(0, 3, (400,))
    result = make_trainer(log_every="1000 steps").fit(data, batch_size=10, epochs=1)
    assert result.metrics["step"] == 40


@pytest.mark.parametrize("loss_args", [{"ignore_index": 2}, {"weight": [1.0, 2.0, 3.0]}])
def test_training_never_waits_to_learn_what_a_loss_is_a_mean_over(loss_args):
    data = torch.randn(400, 4), torch.randint(0, 3, (400,))
    result = make_trainer(log_every="1000 steps", loss_args=loss_args).fit(data, batch_size=10, epochs=1)
    assert type(result.metrics["train/loss"]) is float


def test_negative_control_a_log_point_in_between_is_a_wait():
    data = torch.randn(400, 4), torch.randint(0, 3, (400,))
    with pytest.raises(RuntimeError, match="synchroniz"):
        make_trainer(log_every="10 steps").fit(data, batch_size=10, epochs=1)


def test_label_out_of_range_is_refused_and_the_device_lives_on():
    data = torch.randn(40, 4), torch.full((40,), 3)
    from velodrome.errors import DataError

    with pytest.raises(DataError, match="train label 3 at sample 0 is out of range"):
        make_trainer().fit(data, batch_size=10, epochs=1)
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_class_weights_follow_the_model_to_the_device():
    data = torch.randn(40, 4), torch.randint(0, 3, (40,))
    for loss in (nn.CrossEntropyLoss(weight=torch.ones(3)), "cross_entropy"):
        arguments = {"loss_args": {"weight": [1.0, 1.0, 1.0]}} if isinstance(loss, str) else {}
        trainer = Trainer(nn.Linear(4, 3), "adam", loss=loss, device="cuda", progress=False, **arguments)
        assert trainer.fit(data, batch_size=10, epochs=1).metrics["step"] == 4
