"""Evaluations within the training loop: each has a row of its own, and a run that was stopped around one goes on exactly (law 3)."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd
from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
TRAIN, VAL = vd.DataLoader((X, Y), 5, shuffle=True, seed=0), vd.DataLoader((X[:20], Y[:20]), 10)


class Evaluated(vd.Callback):
    """Remembers every evaluation that it was told of."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_evaluate_end(self, trainer: vd.Trainer, metrics: dict[str, float]) -> None:
        self.seen.append([trainer.progress.steps_done, *map(list, sorted(metrics.items()))])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": json.dumps(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = json.loads(state["seen"])


class Stop(vd.Callback):
    """Tells the process to end after a step."""

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == 6:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, *callbacks: vd.Callback, told_in: int = 0) -> tuple[vd.Trainer, Evaluated]:
    """Two epochs of eight steps; evaluate after the third and sixth step of each and at its end; be told to stop in an evaluation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    evaluated, num_evaluations = Evaluated(), 0
    trainer = vd.Trainer(
        model, "sgd", lr=0.1, seed=0, device="cpu", run_dir=folder, resume="auto", progress=False, callbacks=[evaluated, *callbacks]
    )  # fmt: skip
    for epoch in trainer.epochs(2):
        for x, y in epoch.train(TRAIN):
            trainer.step(functional.cross_entropy(trainer.model(x), y))
            if trainer.progress.steps_in_epoch in (3, 6):
                num_evaluations += 1
                evaluate(trainer, epoch.evaluate(VAL), is_told=num_evaluations == told_in)
        evaluate(trainer, epoch.evaluate(VAL))
    return trainer, evaluated


def evaluate(trainer: vd.Trainer, batches: Any, *, is_told: bool = False) -> None:
    for x, y in batches:
        trainer.log(loss=functional.cross_entropy(trainer.model(x), y))
        if is_told:
            os.kill(os.getpid(), signal.SIGTERM)
            is_told = False


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in clocks} for row in lines if row["kind"] == kind]


def test_each_has_a_row_of_its_own_and_the_last_of_a_name_is_in_the_epochs_row(tmp_path: Path) -> None:
    trainer, evaluated = train(tmp_path / "run")
    found = rows(tmp_path / "run", "evaluation")
    assert [(row["epoch"], row["step"], row["samples"]) for row in found] == [(1, 3, 15), (1, 6, 30), (2, 11, 55), (2, 14, 70)]  # fmt: skip
    assert [["val/loss", row["val/loss"]] for row in found] == [e[1] for e in evaluated.seen if e[0] not in (8, 16)]
    assert len({row["val/loss"] for row in found}) == 4
    assert [row["val/loss"] for row in trainer.result.history] == [e[1][1] for e in evaluated.seen if e[0] in (8, 16)]


def test_what_is_evaluated_within_the_loop_alone_is_in_the_epochs_row_too(tmp_path: Path) -> None:
    trainer = vd.Trainer(nn.Linear(6, 3), "sgd", lr=0.1, device="cpu", run_dir=tmp_path / "run", progress=False)
    for epoch in trainer.epochs(1):
        for x, y in epoch.train(TRAIN):
            trainer.step(functional.cross_entropy(trainer.model(x), y))
            if trainer.progress.steps_in_epoch % 4 == 0:
                evaluate(trainer, epoch.evaluate(VAL))
    assert [row["step"] for row in rows(tmp_path / "run", "evaluation")] == [4, 8]
    assert trainer.result.history[0]["val/loss"] == rows(tmp_path / "run", "evaluation")[1]["val/loss"]


@pytest.mark.parametrize("where", ["within", "after"])
def test_two_data_under_one_name_are_refused(where: str) -> None:
    trainer = vd.Trainer(nn.Linear(6, 3), "sgd", lr=0.1, device="cpu", progress=False)
    with pytest.raises(ArgumentError, match="would mix with the evaluation before"):
        for epoch in trainer.epochs(1):
            for x, y in epoch.train(TRAIN):
                trainer.step(functional.cross_entropy(trainer.model(x), y))
                for _ in range(2 * (where == "within")):
                    evaluate(trainer, epoch.evaluate(VAL))
            for _ in range(2):
                evaluate(trainer, epoch.evaluate(VAL))


def states(trainer: vd.Trainer, evaluated: Evaluated, folder: Path) -> dict[str, Any]:
    weights = {name: value.tolist() for name, value in trainer.model.state_dict().items()}
    return {"weights": weights, "seen": evaluated.seen, "rows": [rows(folder, k) for k in ("evaluation", "epoch")]}


@pytest.mark.parametrize("told_in", [0, 1, 2, 3], ids=["after a step", "first", "second", "third"])
def test_a_run_that_is_told_to_end_around_one_goes_on_exactly(told_in: int, tmp_path: Path) -> None:
    straight = states(*train(tmp_path / "straight"), tmp_path / "straight")
    with pytest.raises(SystemExit):
        train(tmp_path / "run", *([] if told_in else [Stop()]), told_in=told_in)
    assert states(*train(tmp_path / "run"), tmp_path / "run") == straight


class Validate(vd.Callback):
    """Evaluates within the epoch, and is told to end in one of those evaluations."""

    def __init__(self, told_at: int = 0) -> None:
        self.told_at = told_at

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done % 3 == 0:
            trainer.evaluate(VAL, name="val")
            if trainer.progress.steps_done == self.told_at:
                os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, told_at: int = 0) -> tuple[vd.Trainer, Evaluated]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    evaluated = Evaluated()
    trainer = vd.Trainer(
        model, "sgd", lr=0.1, loss="cross_entropy", seed=0, device="cpu", run_dir=folder, resume="auto", progress=False,
        callbacks=[Validate(told_at), evaluated],
    )  # fmt: skip
    trainer.fit(TRAIN, VAL, epochs=2)
    return trainer, evaluated


def test_a_callback_records_evaluations_within_an_epoch(tmp_path: Path) -> None:
    trainer, evaluated = fit(tmp_path / "run")
    found = rows(tmp_path / "run", "evaluation")
    assert [(row["epoch"], row["step"]) for row in found] == [(1, 3), (1, 6), (2, 9), (2, 12), (2, 15)]
    assert [each[0] for each in evaluated.seen] == [3, 6, 8, 9, 12, 15, 16]
    assert trainer.result.history[1]["val/loss"] == evaluated.seen[-1][1][1] != found[-1]["val/loss"]
    assert "eval/loss" not in trainer.result.history[1]


@pytest.mark.parametrize("told_at", [3, 12])
def test_a_run_whose_callback_evaluates_goes_on_exactly(told_at: int, tmp_path: Path) -> None:
    straight = states(*fit(tmp_path / "straight"), tmp_path / "straight")
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", told_at)
    assert states(*fit(tmp_path / "run"), tmp_path / "run") == straight


def test_a_callback_evaluates_after_the_update_of_a_short_last_window_too(tmp_path: Path) -> None:
    trainer = vd.Trainer(
        nn.Linear(6, 3), "sgd", lr=0.1, loss="cross_entropy", device="cpu", progress=False, run_dir=tmp_path / "run", accumulate=3,
        callbacks=[Validate()],
    )  # fmt: skip
    trainer.fit(TRAIN, VAL, epochs=1)  # 8 batches are windows of 3, 3 and 2
    assert [row["step"] for row in rows(tmp_path / "run", "evaluation")] == [3]


def left_early(folder: Path, *, told: bool = False) -> vd.Trainer:
    """Look at the first batch only, after the second step; be told to end after the fourth."""
    torch.manual_seed(0)
    trainer = vd.Trainer(
        nn.Linear(6, 3), "sgd", lr=0.1, seed=0, device="cpu", run_dir=folder, resume="auto", progress=False
    )
    for epoch in trainer.epochs(1):
        for x, y in epoch.train(TRAIN):
            trainer.step(functional.cross_entropy(trainer.model(x), y))
            if trainer.progress.steps_in_epoch == 2:
                for images, labels in epoch.evaluate(VAL):
                    trainer.log(loss=functional.cross_entropy(trainer.model(images), labels))
                    break
            if told and trainer.progress.steps_in_epoch == 4:
                os.kill(os.getpid(), signal.SIGTERM)
    return trainer


def test_one_that_was_left_early_is_recorded_at_its_step_and_in_the_checkpoint_after_it(tmp_path: Path) -> None:
    trainer = left_early(tmp_path / "straight")
    (row,) = rows(tmp_path / "straight", "evaluation")
    assert row["step"] == 2
    assert trainer.result.history[0]["val/loss"] == row["val/loss"]
    with pytest.raises(SystemExit):
        left_early(tmp_path / "run", told=True)
    left_early(tmp_path / "run")
    for kind in ("evaluation", "epoch"):
        assert rows(tmp_path / "run", kind) == rows(tmp_path / "straight", kind)


def test_an_error_within_one_records_nothing_of_it(tmp_path: Path) -> None:
    trainer = vd.Trainer(nn.Linear(6, 3), "sgd", lr=0.1, device="cpu", run_dir=tmp_path / "run", progress=False)
    with pytest.raises(ZeroDivisionError):
        for epoch in trainer.epochs(1):
            for x, y in epoch.train(TRAIN):
                trainer.step(functional.cross_entropy(trainer.model(x), y))
                for _ in epoch.evaluate(VAL):
                    trainer.log(loss=1 / 0)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_callback_that_evaluates_twice_in_a_batch_under_one_name_is_refused() -> None:
    class Twice(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            for _ in range(2):
                trainer.evaluate(VAL, name="val")

    with pytest.raises(ArgumentError, match="would mix with the evaluation before"):
        vd.fit(nn.Linear(6, 3), TRAIN, loss="cross_entropy", optimizer="sgd", lr=0.1, epochs=1, progress=False, device="cpu", callbacks=[Twice()])  # fmt: skip


@pytest.mark.parametrize(("name", "message"), [("lr", "would mix with other values"), ("train", "would mix with other values"), ("val", "outside of the training loop")])  # fmt: skip
def test_a_name_that_cannot_be_recorded_is_refused(name: str, message: str) -> None:
    trainer = vd.Trainer(nn.Linear(6, 3), "sgd", lr=0.1, loss="cross_entropy", device="cpu", progress=False)
    with pytest.raises(ArgumentError, match=message):
        trainer.evaluate(VAL, name=name)
