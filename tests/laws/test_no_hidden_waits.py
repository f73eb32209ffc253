"""Law 5: between log points the loop never waits for the device, which on the CPU means that no tensor is read.

Every read of a tensor's value (`item`, `tolist`, `float`, `bool`, ...) goes through `aten::_local_scalar_dense` or through
`Tensor.tolist`/`numpy`, which are counted here; on CUDA the same is asked of the driver (tests/gpu/test_no_hidden_waits.py).
"""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from velodrome import EMA, SWA, Callback, Trainer
from velodrome.step.guard import FlagGuard

X, LABELS = torch.randn(400, 4), torch.randint(0, 3, (400,))

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item")


class CountsReads(TorchDispatchMode):
    """Counts operations that give a value to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in READS:
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Yield a counter of reads so far; `tolist`, `numpy` and `cpu` do not pass the dispatcher and are counted on their own."""
    counter = CountsReads()

    def counted(name):
        original = getattr(torch.Tensor, name)

        def call(tensor, *args, **kwargs):
            counter.count += 1
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, call)

    for name in ("tolist", "numpy", "cpu", "item"):
        counted(name)
    with counter:
        yield counter


class ReadsByStep(Callback):
    """Writes down between which steps something was read."""

    def __init__(self, counter):
        self.counter = counter
        self.seen = 0
        self.by_step = Counter()

    def on_epoch_start(self, trainer):
        self.seen = self.counter.count

    def on_step_end(self, trainer):
        self.by_step[trainer.progress.steps_done] = self.counter.count - self.seen
        self.seen = self.counter.count


def make_trainer(counter, before=(), **arguments):
    watcher = ReadsByStep(counter)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True), loss="cross_entropy", metrics=["accuracy", "top2"],
        callbacks=[*before, watcher], device="cpu", progress=False, **arguments,
    )  # fmt: skip
    # As on an accelerator: on the CPU a loss is read before its backward pass, which there is no wait.
    for updates in trainer._windows.by_name.values():
        updates.guard = FlagGuard(updates.optimizer, torch.device("cpu"), waits=False)
    return trainer, watcher


def test_counter_sees_every_way_to_read(reads):
    value = torch.ones(1)
    ways = [
        value.item,
        value.tolist,
        value.numpy,
        value.cpu,
        lambda: float(value),
        lambda: bool(value),
        lambda: int(value),
    ]
    for read in ways:
        before = reads.count
        read()
        assert reads.count > before


def test_nothing_is_read_between_log_points(reads):
    trainer, watcher = make_trainer(reads, log_every="10 steps")
    trainer.fit((X, LABELS), batch_size=10, epochs=2)
    # The first batch is checked. A log point at step k is seen at step k + 1: callbacks come before it.
    with_reads = {step for step, count in watcher.by_step.items() if count}
    assert with_reads <= {1, *range(11, 81, 10)}
    assert with_reads >= {11, 21, 31}


@pytest.mark.parametrize("average", [EMA(0.9), EMA(0.9, warmup=True), SWA(start=0)], ids=["ema", "warmup", "swa"])
def test_averaging_the_weights_reads_nothing(reads, average):
    trainer, watcher = make_trainer(reads, log_every="10 steps", ema=average)
    trainer.fit((X, LABELS), batch_size=10, epochs=2)
    assert {step for step, count in watcher.by_step.items() if count} <= {1, *range(11, 81, 10)}
    assert trainer.averaging.num_averaged == (2 if average.kind == "swa" else 80)


def test_log_point_reads_once_however_much_is_logged(reads):
    trainer, watcher = make_trainer(reads, log_every="10 steps")
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, LABELS), batch_size=10):
            output = trainer.model(x)
            trainer.step(nn.functional.cross_entropy(output, y))
            trainer.log(right=(output.argmax(1) == y).float(), largest=output.max(), norm=output.norm())
    assert (
        watcher.by_step[11] == watcher.by_step[21] == 3
    )  # all means at once; the flag, by `item` and the operation below it


def test_on_the_cpu_each_loss_is_read_and_nothing_else(reads):
    model = nn.Linear(4, 3)
    watcher = ReadsByStep(reads)
    trainer = Trainer(model, "sgd", lr=0.1, loss="cross_entropy", callbacks=[watcher], device="cpu", progress=False)
    trainer.fit((X, LABELS), batch_size=10, epochs=1)
    assert {watcher.by_step[step] for step in range(2, 41)} == {2}  # `item`, and the operation below it


@pytest.mark.parametrize("loss_args", [{"ignore_index": 2}, {"weight": [1.0, 2.0, 3.0]}])
def test_nothing_is_read_to_learn_what_a_loss_is_a_mean_over(reads, loss_args):
    trainer, watcher = make_trainer(reads, log_every="10 steps", loss_args=loss_args)
    trainer.fit((X, LABELS), batch_size=10, epochs=1)
    assert {step for step, count in watcher.by_step.items() if count} <= {1, 11, 21, 31}


def test_items_on_the_device_are_not_read(reads):
    trainer, watcher = make_trainer(reads, log_every="10 steps")
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, LABELS), batch_size=10):
            trainer.step(nn.functional.cross_entropy(trainer.model(x), y), items=(y > 0).sum())
    assert {step for step, count in watcher.by_step.items() if count} <= {1, 11, 21, 31}
    assert type(trainer.result.metrics["train/loss"]) is float


def test_evaluation_reads_only_at_its_end(reads):
    trainer, _ = make_trainer(reads)
    trainer.evaluate((X, LABELS), batch_size=10)  # the first batch of these data is checked
    before = reads.count
    counts = []
    for epoch in trainer.epochs(1):
        for batch in epoch.evaluate((X, LABELS), batch_size=10):
            trainer.measure(trainer.forward(batch))
            counts.append(reads.count)
    assert len(set(counts[1:])) == 1
    assert reads.count - counts[-1] <= 3  # loss, and the metrics
    assert before <= counts[0]


def test_negative_control_a_callback_that_reads_the_loss_is_caught(reads):
    class Reads(Callback):
        def on_step_end(self, trainer):
            next(trainer.model.parameters()).sum().item()

    trainer, watcher = make_trainer(reads, before=[Reads()], log_every="1000 steps")
    trainer.fit((X, LABELS), batch_size=10, epochs=1)
    assert all(count >= 1 for count in watcher.by_step.values())
