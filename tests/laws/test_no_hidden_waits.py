"""Law 5: between log points the loop never waits for the device, which on the CPU means that no tensor is read.

Counted are operations that torch itself marks as depending on values (`_local_scalar_dense`, `nonzero`, masks, `unique`, ...), copies from one device to
another, and the methods that give values to Python without an operation. On CUDA the same is asked of the driver (tests/gpu/test_no_hidden_waits.py).
"""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from velodrome import EMA, SWA, Callback, Trainer
from velodrome.step.guard import FlagGuard

X, LABELS = torch.randn(400, 4), torch.randint(0, 3, (400,))

# Of operations: their result, or its size, depends on values, so that a GPU's host waits for it.
ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Of methods: what passes no operation on the way.
READS = {"item", "tolist", "numpy", "cpu", "__array__", "__repr__"}


class Reads:
    """What was read so far."""

    def __init__(self):
        self.count = 0


class CountsOperations(TorchDispatchMode):
    """Counts operations whose result depends on values, and copies from one device to another."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name == "index":
            self.reads.count += has_mask(args[1])  # by numbers the size is known; by a mask it is not
        elif name in ("index_put", "index_put_"):
            self.reads.count += has_mask(args[1]) and args[2].ndim > 0  # one value for all is a masked_fill
        elif name == "_to_copy":
            self.reads.count += result.device != args[0].device
        elif name == "copy_":
            self.reads.count += args[1].device != args[0].device
        else:
            self.reads.count += bool(ON_VALUES & set(function.tags))
        return result


def has_mask(indices):
    return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)


class CountsCalls(TorchFunctionMode):
    """Counts methods that give values to Python, or say that these shall be on the CPU, where on this one they are already."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        # The trainer's own device is a torch.device: only who wants the CPU whatever the device is writes its name.
        to_cpu = name == "to" and any(
            each == "cpu" for each in (*args[1:], *(kwargs or {}).values()) if type(each) is str
        )
        self.reads.count += name in READS or to_cpu
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reads():
    """Yield a counter of reads so far."""
    counter = Reads()
    with CountsOperations(counter), CountsCalls(counter):
        yield counter


class ReadsByStep(Callback):
    """Writes down between which steps something was read."""

    def __init__(self, counter, of_the_guard=0):
        self.counter = counter
        self.of_the_guard = of_the_guard
        self.seen = 0
        self.by_step = Counter()

    def on_epoch_start(self, trainer):
        self.seen = self.counter.count

    def on_step_end(self, trainer):
        self.by_step[trainer.progress.steps_done] = self.counter.count - self.seen
        self.seen = self.counter.count

    @property
    def with_reads(self):
        """Steps since whose predecessor more was read than what the guard reads of every loss."""
        assert min(self.by_step.values()) >= self.of_the_guard
        return {step for step, count in self.by_step.items() if count > self.of_the_guard}


def make_trainer(counter, before=(), *, as_on="an accelerator", **arguments):
    """Return a trainer and who watches it.

    On the CPU a loss is read before its backward pass, which there is no wait: the reads of a run there are that one, by `item` and the
    operation below it, and those of a run on an accelerator, which has the other guard.
    """
    watcher = ReadsByStep(counter, of_the_guard=2 if as_on == "the CPU" else 0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True), loss="cross_entropy", metrics=["accuracy", "top2"],
        callbacks=[*before, watcher], device="cpu", progress=False, **arguments,
    )  # fmt: skip
    if as_on == "an accelerator":
        for updates in trainer._windows.by_name.values():
            updates.guard = FlagGuard(updates.optimizer, torch.device("cpu"), waits=False)
    return trainer, watcher


VALUES, MASK = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([True, False, True])
WAYS = {
    "item": lambda: VALUES[0].item(),
    "tolist": VALUES.tolist,
    "numpy": VALUES.numpy,
    "np.asarray": lambda: np.asarray(VALUES),
    "cpu": VALUES.cpu,
    "to('cpu')": lambda: VALUES.to("cpu"),
    "to(device='cpu')": lambda: VALUES.to(device="cpu"),
    "to another device": lambda: VALUES.to("meta"),
    "copy_ to another device": lambda: torch.empty(3, device="meta").copy_(VALUES),
    "float": lambda: float(VALUES[0]),
    "int": lambda: int(VALUES[0]),
    "bool": lambda: bool(VALUES[0]),
    "if": lambda: 1 if VALUES[0] > 0 else 0,
    "in": lambda: 2.0 in VALUES,
    "range": lambda: range(torch.tensor(3)),
    "format": lambda: f"{VALUES[0]:.2f}",
    "repr": lambda: repr(VALUES),
    "mask": lambda: VALUES[MASK],
    "assignment by a mask of values": lambda: VALUES.clone().__setitem__(MASK, torch.ones(2)),
    "index_put_": lambda: VALUES.clone().index_put_((MASK,), torch.ones(2)),
    "masked_select": lambda: VALUES.masked_select(MASK),
    "nonzero": VALUES.nonzero,
    "where": lambda: torch.where(MASK),
    "argwhere": lambda: torch.argwhere(VALUES),
    "unique": VALUES.unique,
    "unique_consecutive": VALUES.unique_consecutive,
    "repeat_interleave": lambda: VALUES.repeat_interleave(torch.tensor([1, 2, 1])),
    "bincount": lambda: torch.tensor([1, 2]).bincount(),
    "equal": lambda: torch.equal(VALUES, MASK.float()),
    "allclose": lambda: torch.allclose(VALUES, VALUES),
    "is_nonzero": lambda: torch.is_nonzero(VALUES[0]),
}


@pytest.mark.parametrize("way", WAYS)
def test_counter_sees_each_way_to_read(reads, way):
    WAYS[way]()
    assert reads.count


def test_counter_sees_nothing_in_what_waits_for_nothing(reads):
    numbers = torch.tensor([0, 2])
    for harmless in (
        lambda: VALUES[1:], lambda: VALUES[numbers], lambda: VALUES.sum(), lambda: VALUES.to(torch.float64), lambda: VALUES.clone(),
        lambda: VALUES.to(torch.device("cpu")), lambda: torch.where(MASK, VALUES, 0.0), lambda: VALUES.masked_fill(MASK, 0.0),
        lambda: VALUES.clone().copy_(VALUES), lambda: VALUES.clone().__setitem__(MASK, 0.0), lambda: len(VALUES), lambda: VALUES.shape[0],
    ):  # fmt: skip
        harmless()
    assert reads.count == 0


BOTH = pytest.mark.parametrize("as_on", ["an accelerator", "the CPU"])


@BOTH
def test_nothing_is_read_between_log_points(reads, as_on):
    trainer, watcher = make_trainer(reads, as_on=as_on, log_every="10 steps")
    trainer.fit((X, LABELS), batch_size=10, epochs=2)
    # The first batch is checked. A log point at step k is seen at step k + 1: callbacks come before it.
    assert watcher.with_reads <= {1, *range(11, 81, 10)}
    assert watcher.with_reads >= {11, 21, 31}


@pytest.mark.parametrize("average", [EMA(0.9), EMA(0.9, warmup=True), SWA(start=0)], ids=["ema", "warmup", "swa"])
@BOTH
def test_averaging_the_weights_reads_nothing(reads, average, as_on):
    trainer, watcher = make_trainer(reads, as_on=as_on, log_every="10 steps", ema=average)
    trainer.fit((X, LABELS), batch_size=10, epochs=2)
    assert watcher.with_reads <= {1, *range(11, 81, 10)}
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
@BOTH
def test_nothing_is_read_to_learn_what_a_loss_is_a_mean_over(reads, loss_args, as_on):
    trainer, watcher = make_trainer(reads, as_on=as_on, log_every="10 steps", loss_args=loss_args)
    trainer.fit((X, LABELS), batch_size=10, epochs=1)
    assert watcher.with_reads <= {1, 11, 21, 31}


@BOTH
def test_items_on_the_device_are_not_read(reads, as_on):
    trainer, watcher = make_trainer(reads, as_on=as_on, log_every="10 steps")
    for epoch in trainer.epochs(1):
        for x, y in epoch.train((X, LABELS), batch_size=10):
            trainer.step(nn.functional.cross_entropy(trainer.model(x), y), items=(y > 0).sum())
    assert watcher.with_reads <= {1, 11, 21, 31}
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


@BOTH
@pytest.mark.parametrize("way", WAYS)
def test_negative_control_a_callback_that_reads_is_caught(reads, way, as_on):
    class ReadsInEveryStep(Callback):
        def on_step_end(self, trainer):
            WAYS[way]()

    trainer, watcher = make_trainer(reads, before=[ReadsInEveryStep()], as_on=as_on, log_every="1000 steps")
    trainer.fit((X, LABELS), batch_size=100, epochs=1)
    assert watcher.with_reads == {1, 2, 3, 4}
