"""The bill on CUDA: batches are timed by events on the device, and nothing waits for them."""

import time

import pytest
import torch
from torch import nn

from velodrome import Callback, Trainer, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

DATA = torch.randn(1600, 256), torch.randint(0, 10, (1600,))


class ForbidsWaits(Callback):
    """Makes every wait an error from the second step of the run to the last one before its end."""

    def on_step_end(self, trainer):
        if trainer.progress.steps_done in (2, 99):
            torch.cuda.set_sync_debug_mode("error" if trainer.progress.steps_done == 2 else "default")


@pytest.fixture(autouse=True)
def put_back():
    yield
    torch.cuda.set_sync_debug_mode("default")


def train(**arguments):
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    arguments = {"loss": "cross_entropy"} | arguments
    return fit(
        model, DATA, batch_size=16, epochs=1, optimizer="sgd", lr=0.1, device="cuda", engine="eager", progress=False,
        log_every="1000 steps", **arguments,
    )  # fmt: skip


def test_timing_never_waits_and_the_parts_are_the_whole():
    bill = train(callbacks=[ForbidsWaits()]).bill
    assert sum(bill.parts.values()) == pytest.approx(bill.wall_s, rel=1e-6)
    assert all(bill.parts[part] > 0 for part in ("forward", "backward", "optimizer"))
    assert bill.batches == 100


def test_work_of_the_device_belongs_to_the_part_that_asked_for_it():
    large = torch.randn(4096, 4096, device="cuda")

    def step_fn(model, batch):
        for _ in range(20):
            large @ large
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    bill = train(loss=None, step_fn=step_fn).bill
    assert bill.fraction("forward") > 0.5


def test_an_item_is_named_with_what_it_waited():
    large = torch.randn(4096, 4096, device="cuda")

    def step_fn(model, batch):
        value = (large @ large).sum().item()
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 0 * value

    (line,) = train(loss=None, step_fn=step_fn, find_syncs=True).waits
    assert "makes the loop wait for the device: `value = (large @ large).sum().item()` (item, 1 times a batch" in line


def test_an_item_in_every_batch_is_named_unasked_and_looking_waits_for_nothing():
    large = torch.randn(4096, 4096, device="cuda")

    def step_fn(model, batch):
        value = (large @ large).sum().item()
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) + 0 * value

    (line,) = train(loss=None, step_fn=step_fn).waits
    assert "makes the loop wait for the device: `value = (large @ large).sum().item()` (item, 1 times a batch" in line
    assert train(callbacks=[ForbidsWaits()]).waits == ()


def test_what_only_the_driver_knows_of_is_named_too():
    def step_fn(model, batch):
        torch.cuda.synchronize()
        repeated = torch.repeat_interleave(batch[1], torch.ones_like(batch[1]))
        return nn.functional.cross_entropy(model(batch[0]), repeated)

    lines = train(loss=None, step_fn=step_fn, find_syncs=True).waits
    assert any("repeat_interleave" in line for line in lines)


def test_data_that_are_fetched_while_the_device_works_cost_nothing():
    large = torch.randn(8192, 8192, device="cuda")
    trainer = Trainer(
        nn.Linear(256, 10), "sgd", lr=0.1, loss="cross_entropy", device="cuda", engine="eager", progress=False
    )

    def batches():
        for _ in range(40):
            time.sleep(0.0005)
            yield torch.randn(16, 256), torch.zeros(16, dtype=torch.long)

    for epoch in trainer.epochs(1):
        for batch in epoch.train(batches):
            for _ in range(10):
                large @ large
            trainer.step(trainer.forward(batch).loss)
    assert trainer.result.bill.fraction("data_wait") < 0.2
