"""Early stopping: which epoch ends the run, what is said, and which weights remain."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from velodrome import EMA, Callback, EarlyStopping, StopReason, Trainer
from velodrome.errors import ArgumentError

X, Y = torch.ones(8, 1), torch.zeros(8, 1)


def trainer_with(values, *callbacks, **arguments):
    """A trainer whose epoch k has val/loss `values[k]`; its weight is -k - 1 at that epoch's end."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen = iter(values)

    def step_fn(model, batch):
        return model(batch[0]).mean() if model.training else torch.tensor(float(next(seen)))

    return Trainer(
        model, "sgd", lr=1.0, step_fn=step_fn, callbacks=callbacks, progress=False, loggers=(), device="cpu", **arguments
    )  # fmt: skip


def fit(trainer, epochs=10):
    return trainer.fit((X, Y), (X, Y), batch_size=8, epochs=epochs)


@pytest.mark.parametrize(
    ("values", "options", "last_epoch"),
    [
        ([5, 4, 4, 4, 4, 1], {"patience": 3}, 5),  # 4 of epoch 2 is not beaten in 3, 4, 5
        ([5, 4, 4, 3, 3, 3, 1], {"patience": 2}, 6),  # 4 is beaten in epoch 4
        ([5, 4, 1], {"patience": 1, "min_delta": 1.0}, 2),  # better by 1, not by more than 1
        ([5, 3, 3, 1], {"patience": 1, "min_delta": 1.0}, 3),
        ([5, 6, 6, 9], {"patience": 1, "mode": "max"}, 3),
        ([float("nan"), float("nan"), 1], {"patience": 2}, 2),
        ([5, float("nan"), -float("inf"), 1], {"patience": 2}, 3),
    ],
)
def test_run_ends_after_patience_epochs_without_improvement(values, options, last_epoch):
    result = fit(trainer_with(values, EarlyStopping(**options)))
    assert len(result.history) == last_epoch
    assert result.stop_reason is StopReason.EARLY


def test_improving_run_uses_its_budget():
    result = fit(trainer_with([5, 4, 3, 2], EarlyStopping(patience=1)), epochs=4)
    assert result.stop_reason is StopReason.EPOCHS


def test_it_says_why_with_the_numbers(tmp_path):
    stopping = EarlyStopping(patience=2)
    fit(trainer_with([5, 0.25, 4, 3], stopping, run_dir=tmp_path / "run"))
    line = "EarlyStopping: val/loss has not improved for 2 epochs (patience 2); its best is 0.25, of epoch 2, and epoch 4 has 3."
    assert line in (tmp_path / "run" / "log.txt").read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["stop_reason"]) == ("done", "No improvement of the monitored value.")
    assert (stopping.best_value, stopping.best_epoch, stopping.epochs_waited) == (0.25, 2, 2)


def test_value_that_was_never_finite_is_called_so(tmp_path):
    fit(trainer_with([float("nan")], EarlyStopping(patience=1), run_dir=tmp_path / "run"))
    assert "it was never a finite number, and epoch 1 has nan." in (tmp_path / "run" / "log.txt").read_text()


def test_unknown_monitor_is_refused_with_the_known_names():
    with pytest.raises(
        ArgumentError, match=r'monitors \'val/los\'.*Did you mean "val/loss"\? Known: train/loss, val/loss'
    ):
        fit(trainer_with([5], EarlyStopping("val/los", mode="min")))


def test_monitor_of_validation_without_validation_is_refused():
    with pytest.raises(ArgumentError, match=r"This run has no validation data.*Known: train/loss"):
        trainer_with([], EarlyStopping()).fit((X, Y), batch_size=8, epochs=2)


def test_epoch_without_evaluation_is_not_counted():
    stopping = EarlyStopping(patience=1)
    trainer = trainer_with([5, 4, 4], stopping)
    for epoch in trainer.epochs(10):
        for batch in epoch.train((X, Y), batch_size=8):
            trainer.step(trainer.forward(batch).loss)
        if epoch.index % 2 == 0:
            for batch in epoch.evaluate((X, Y), batch_size=8):
                trainer.measure(trainer.forward(batch))
    assert trainer.progress.epochs_done == 5


def test_restore_best_puts_the_weights_of_the_best_epoch_back_and_leaves_the_files(tmp_path):
    trainer = trainer_with([5, 4, 6, 6], EarlyStopping(patience=2, restore_best=True), run_dir=tmp_path / "run")
    fit(trainer)
    assert trainer.model.weight.item() == -2  # after two epochs
    assert load_file(tmp_path / "run/checkpoints/step-00000004/model.safetensors")["weight"].item() == -4
    assert "has the weights of epoch 2 again" in (tmp_path / "run" / "log.txt").read_text()


def test_without_restore_best_the_last_weights_stay():
    trainer = trainer_with([5, 4, 6, 6], EarlyStopping(patience=2))
    fit(trainer)
    assert trainer.model.weight.item() == -4


def test_restore_best_restores_the_average_too():
    # The averages: -1, -1.5, -2.25, -3.125.
    trainer = trainer_with([5, 4, 6, 6], EarlyStopping(patience=2, restore_best=True), ema=EMA(0.5))
    fit(trainer)
    assert trainer.model.weight.item() == -2
    assert trainer.averaging.state_dict()["weight"].item() == -1.5


def test_restore_best_after_a_budget_and_after_an_error():
    trainer = trainer_with([5, 4, 6], EarlyStopping(patience=9, restore_best=True))
    fit(trainer, epochs=3)
    assert trainer.model.weight.item() == -2

    class Fails(Callback):
        def on_step_end(self, trainer):
            if trainer.progress.steps_done == 4:
                raise RuntimeError("mine")

    trainer = trainer_with([5, 4, 6], EarlyStopping(patience=9, restore_best=True), Fails())
    with pytest.raises(RuntimeError, match="mine"):
        fit(trainer)
    assert trainer.model.weight.item() == -2


def test_best_epoch_that_is_the_last_is_left_alone(tmp_path):
    trainer = trainer_with([5, 4], EarlyStopping(patience=2, restore_best=True), run_dir=tmp_path / "run")
    fit(trainer, epochs=2)
    assert trainer.model.weight.item() == -2
    assert "again" not in (tmp_path / "run" / "log.txt").read_text()


def test_stopped_run_that_goes_on_has_patience_again():
    trainer = trainer_with([5, 6, 6, 7, 7, 7], EarlyStopping(patience=2))
    assert len(fit(trainer).history) == 3
    assert len(fit(trainer).history) == 5


def test_the_same_callback_begins_anew_with_another_trainer():
    stopping = EarlyStopping(patience=2)
    fit(trainer_with([1, 2, 2], stopping))
    assert len(fit(trainer_with([9, 8, 7, 7, 7], stopping)).history) == 5


def test_state_goes_on_where_it_was():
    first = EarlyStopping(patience=3, restore_best=True)
    fit(trainer_with([5, 6, 6], first), epochs=3)
    second = EarlyStopping(patience=3, restore_best=True)
    second.load_state_dict(first.state_dict())
    assert (second.best_value, second.best_epoch, second.epochs_waited) == (5, 1, 2)
    assert second.state_dict()["best_weights"]["weight"].item() == -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience=0 is not a number of epochs. It must be a whole number of at least 1"),
        ({"patience": True}, "patience=True"),
        ({"min_delta": -0.1}, "min_delta=-0.1 is not a difference. It must be a number of at least 0"),
        ({"min_delta": float("nan")}, "min_delta=nan"),
        ({"monitor": "val/mystery"}, "Give mode='min' or mode='max'"),
        ({"mode": "lowest"}, "mode='lowest' is unknown"),
        ({"monitor": ""}, "is not the name of a value"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        EarlyStopping(**options)


def test_reason_by_name_and_its_misspelling():
    class Stops(Callback):
        def __init__(self, reason):
            self.reason = reason

        def on_epoch_end(self, trainer, row):
            trainer.stop(self.reason)

    assert fit(trainer_with([1], Stops("early"))).stop_reason is StopReason.EARLY
    assert fit(trainer_with([1], Stops(StopReason.REQUESTED))).stop_reason is StopReason.REQUESTED
    with pytest.raises(ArgumentError, match=r'reason=\'earli\' is no reason to stop. Did you mean "early"'):
        fit(trainer_with([1], Stops("earli")))
