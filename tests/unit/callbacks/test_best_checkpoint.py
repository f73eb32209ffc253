"""Which checkpoints remain when several rules keep them, and how they go together with every budget."""

import json

import pytest
import torch
from torch import nn

from velodrome import BestCheckpoint, Checkpointing, EarlyStopping, StopReason, Trainer, load_model
from velodrome.errors import ArgumentError

X, Y = torch.ones(8, 1), torch.zeros(8, 1)
LOSSES = [9, 1, 5, 6, 7, 8]
ACCURACIES = [0.5, 0.1, 0.9, 0.2, 0.9, 0.3]


def trainer_with(tmp_path, *callbacks, losses=LOSSES, accuracies=ACCURACIES, **arguments):
    """A trainer of one step an epoch, whose epoch k has the given val/loss and val/accuracy; its weight is -k - 1 then."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    loss, accuracy = iter(losses), iter(accuracies)

    def step_fn(model, batch):
        output = model(batch[0])
        if model.training:
            return {"loss": output.mean(), "output": torch.zeros(8), "target": batch[1]}
        return {
            "loss": torch.tensor(float(next(loss))),
            "output": torch.full((8,), next(accuracy)),
            "target": batch[1],
        }

    return Trainer(
        model, "sgd", lr=1.0, step_fn=step_fn, metrics={"accuracy": lambda output, target: output.mean()},
        callbacks=callbacks, progress=False, loggers=(), device="cpu", run_dir=tmp_path / "run", **arguments,
    )  # fmt: skip


def saved(tmp_path):
    return sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))


def fit(trainer, epochs=6):
    return trainer.fit((X, Y), (X, Y), batch_size=8, epochs=epochs)


def test_best_ones_of_both_values_stay_beside_the_newest(tmp_path):
    by_accuracy = BestCheckpoint("val/accuracy")
    result = fit(trainer_with(tmp_path, by_accuracy))
    assert [row["val/accuracy"] for row in result.history] == pytest.approx(ACCURACIES)
    assert saved(tmp_path) == [
        2,
        3,
        5,
        6,
    ]  # 2 has the best loss, 3 the best accuracy (5 is no better), 5 and 6 are the newest
    assert by_accuracy.path == tmp_path / "run" / "checkpoints" / "step-00000003"
    model = nn.Linear(1, 1, bias=False)
    assert load_model(by_accuracy.path, model).weight.item() == -3
    assert load_model(tmp_path / "run", model).weight.item() == -2  # best.json stays with the loss


def test_best_two_by_each_value(tmp_path):
    by_accuracy = BestCheckpoint("val/accuracy", keep=2)
    fit(trainer_with(tmp_path, by_accuracy, checkpoint=Checkpointing(every=None, keep_best=2)))
    # By loss 2 (1) and 3 (5); by accuracy 3 and 5 (0.9); and the last two saved are 5 and 6.
    assert by_accuracy.ranking == [(pytest.approx(0.9), 3), (pytest.approx(0.9), 5)]
    assert saved(tmp_path) == [2, 3, 5, 6]


def test_without_another_rule_it_saves_the_best_itself(tmp_path):
    fit(trainer_with(tmp_path, BestCheckpoint("val/accuracy"), checkpoint=Checkpointing(every=None, keep_best=0)))
    assert saved(tmp_path) == [3, 6]  # 1 was the best for a while, and 6 is the end


def test_negative_control_without_it_that_checkpoint_is_gone(tmp_path):
    fit(trainer_with(tmp_path))
    assert saved(tmp_path) == [2, 5, 6]


def test_every_n_best_k_and_each_budget_together(tmp_path):
    for name, budget, reason, last in (
        ("epochs", {"epochs": 5}, StopReason.EPOCHS, 5),
        ("steps", {"epochs": 9, "steps": 4}, StopReason.STEPS, 4),
        ("seconds", {"epochs": 1, "seconds": 600}, StopReason.EPOCHS, 1),
        ("early", {"epochs": 9}, StopReason.EARLY, 4),
    ):
        callbacks = [BestCheckpoint("val/accuracy"), *([EarlyStopping(patience=2)] if name == "early" else [])]
        policy = Checkpointing(every="2 steps", keep_best=1)
        trainer = trainer_with(tmp_path / name, *callbacks, checkpoint=policy)
        result = trainer.fit((X, Y), (X, Y), batch_size=8, **budget)
        assert result.stop_reason is reason, name
        assert result.metrics["step"] == last, name
        assert last in saved(tmp_path / name), name
        best = min(result.history, key=lambda row: row["val/loss"])["step"]
        most = max(result.history, key=lambda row: (row["val/accuracy"], -row["step"]))["step"]
        assert {best, most} <= set(saved(tmp_path / name)), name
        assert json.loads((tmp_path / name / "run" / "run.json").read_text())["stop_reason"] == str(reason)


def test_nan_is_never_among_the_best(tmp_path):
    best = BestCheckpoint("val/accuracy", keep=3)
    fit(trainer_with(tmp_path, best, accuracies=[float("nan"), 0.5, float("nan")]), epochs=3)
    assert best.kept_steps == [2]


def test_value_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"BestCheckpoint monitors 'val/auc'.*Known: .*val/accuracy"):
        fit(trainer_with(tmp_path, BestCheckpoint("val/auc")))


def test_without_files_there_is_no_path():
    best = BestCheckpoint("train/loss")
    trainer = Trainer(nn.Linear(1, 1), "sgd", lr=0.0, loss="mse", callbacks=[best], progress=False, device="cpu")
    trainer.fit((X, Y), batch_size=8, epochs=1)
    assert best.path is None
    assert best.kept_steps == [1]


def test_state_goes_on_where_it_was():
    first, second = BestCheckpoint("val/loss", keep=2), BestCheckpoint("val/loss", keep=2)
    for step, value in enumerate([3.0, 1.0, 2.0], start=1):
        first.judge({"val/loss": value}, step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.ranking == first.ranking == [(1.0, 2), (2.0, 3)]
    assert second.judge({"val/loss": 5.0}, 4) is False


def test_same_callback_begins_anew_with_another_trainer(tmp_path):
    best = BestCheckpoint("val/loss")
    fit(trainer_with(tmp_path / "a", best))
    fit(trainer_with(tmp_path / "b", best, losses=[50] * 6))
    assert best.kept_steps == [1]


@pytest.mark.parametrize("keep", [0, -1, True, 1.5])
def test_wrong_keep_is_refused(keep):
    with pytest.raises(ArgumentError, match="is not a number of checkpoints. It must be a whole number of at least 1"):
        BestCheckpoint("val/loss", keep=keep)
