"""A phase counts what it was given at the time when it was given."""

import pytest
import torch
from torch import nn

import velodrome
from velodrome import Trainer

X, LABELS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Largest:
    """A metric with state, 0 when it has seen nothing."""

    def reset(self):
        self.value = torch.zeros(())

    def update(self, output, target):
        self.value = torch.maximum(self.value, output.max())

    def compute(self):
        return self.value


def make_trainer(**arguments):
    torch.manual_seed(0)
    return Trainer(nn.Linear(4, 3), "sgd", lr=0.5, loss="cross_entropy", device="cpu", progress=False, **arguments)


def test_log_counts_values_as_they_were():
    trainer, count, biases = make_trainer(), torch.zeros(()), []
    for epoch in trainer.epochs(1):
        for batch in epoch.train((X, LABELS), batch_size=4):
            trainer.log(count=count, bias=trainer.model.bias[0], vector=count.expand(4))
            biases.append(trainer.model.bias[0].item())
            count += 1
            trainer.step(trainer.forward(batch).loss)
    row = trainer.result.metrics
    assert len(set(biases)) == 3
    assert row["train/count"] == row["train/vector"] == (0 + 1 + 2) / 3
    assert row["train/bias"] == pytest.approx(sum(biases) / 3, rel=1e-12)


def test_metrics_that_a_loop_of_your_own_does_not_measure_are_not_recorded():
    trainer = make_trainer(metrics=["accuracy", Largest()])
    for epoch in trainer.epochs(1):
        for batch in epoch.train((X, LABELS), batch_size=4):
            trainer.step(trainer.forward(batch).loss)
        for x, _ in epoch.evaluate((X, LABELS), batch_size=4):
            trainer.log(largest=trainer.model(x).amax(1))
        for batch in epoch.evaluate((X, LABELS), batch_size=4, name="test"):
            trainer.measure(trainer.forward(batch))
    names = {name for name in trainer.result.metrics if "/" in name}
    assert names == {"train/loss", "val/largest", "test/loss", "test/accuracy", "test/largest"}


def test_evaluation_by_metrics_alone_takes_targets_of_any_kind():
    batches = [(X[:8], {"label": LABELS[:8]}), (X[8:], {"label": LABELS[8:]})]
    model = nn.Linear(4, 3)

    def right(output, target):
        return (output.argmax(1) == target["label"]).float()

    expected = (model(X).argmax(1) == LABELS).sum().item() / 12
    assert velodrome.evaluate(model, batches, metrics=[right], device="cpu") == {"right": pytest.approx(expected)}
