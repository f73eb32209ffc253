"""Loops that are left by `break`, by a budget, by a request, or called more than once an epoch."""

import pytest
import torch
from torch import nn

from velodrome import StopReason, Trainer
from velodrome.errors import ArgumentError

X = torch.arange(8.0).reshape(8, 1)
Y = torch.zeros(8, 1)


def make_trainer(**arguments):
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return Trainer(model, "sgd", lr=0.0, loss="mse", progress=False, device="cpu", **arguments)


def test_train_left_by_break_ends_the_epoch_with_the_means_of_what_it_saw():
    trainer = make_trainer()
    for rows, epoch in enumerate(trainer.epochs(3)):
        for batch in epoch.train((X, Y), batch_size=2, shuffle=False):
            trainer.step(trainer.forward(batch).loss)
            if trainer.progress.steps_in_epoch == 2:
                break
        assert rows < 3, "a broken-off epoch must count, or the loop never ends"
    # weight 1, lr 0: losses (0 + 1) / 2 and (4 + 9) / 2, mean 3.5
    assert [row["train/loss"] for row in trainer.result.history] == [3.5, 3.5, 3.5]
    assert [row["step"] for row in trainer.result.history] == [2, 4, 6]
    assert trainer.progress.epochs_done == 3
    assert trainer.result.stop_reason is StopReason.EPOCHS


def test_evaluate_left_by_break_keeps_the_means_of_what_it_saw():
    trainer = make_trainer()
    for epoch in trainer.epochs(1):
        for batch in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.forward(batch).loss)
        for batch in epoch.evaluate((X, Y), batch_size=2):
            trainer.measure(trainer.forward(batch))
            break
    assert trainer.result.metrics["val/loss"] == 0.5  # (0 + 1) / 2


def test_train_twice_an_epoch_counts_one_epoch_and_means_over_both():
    trainer = make_trainer()
    epochs_seen = 0
    for epoch in trainer.epochs(2):
        epochs_seen += 1
        for data in ((X[:4], Y[:4]), (X[4:], Y[4:])):
            for batch in epoch.train(data, batch_size=4):
                trainer.step(trainer.forward(batch).loss)
    assert epochs_seen == 2
    assert trainer.result.metrics["step"] == 4
    assert trainer.result.metrics["train/loss"] == 17.5  # (0+1+4+9+16+25+36+49) / 8


def test_train_twice_an_epoch_stops_at_the_step_budget():
    trainer = make_trainer()
    for epoch in trainer.epochs(steps=2):
        for _ in range(2):
            for batch in epoch.train((X, Y), batch_size=4):
                trainer.step(trainer.forward(batch).loss)
    assert trainer.progress.steps_done == 2


def test_epochs_without_training_end():
    trainer = make_trainer()
    for epoch in trainer.epochs(2):
        for batch in epoch.evaluate((X, Y), batch_size=8):
            trainer.measure(trainer.forward(batch))
    assert [row["val/loss"] for row in trainer.result.history] == [17.5, 17.5]


def test_leaving_the_epochs_says_so_and_keeps_what_was_whole():
    trainer = make_trainer()
    for epoch in trainer.epochs(5):
        for batch in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.forward(batch).loss)
        if epoch.index == 1:
            break
    assert trainer.result.stop_reason is StopReason.LEFT
    assert len(trainer.result.history) == 1  # the second was left before its end


def test_train_after_its_epoch_is_refused():
    trainer = make_trainer()
    kept = list(trainer.epochs(2))
    assert len(kept) == 2
    with pytest.raises(ArgumentError, match=r"after its epoch was over\. Call it inside of the loop"):
        next(kept[0].train((X, Y), batch_size=8))


def test_progress_counts_epochs_from_one_while_evaluating():
    trainer = make_trainer()
    seen = []
    for epoch in trainer.epochs(2):
        for batch in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.forward(batch).loss)
        for _ in epoch.evaluate((X, Y), batch_size=8):
            seen.append(trainer.progress.epoch)
    assert seen == [1, 2]
