"""Law 3 at the ends of loops, epochs and runs: a run that was stopped there goes on, or is over, as the one that was not."""

from __future__ import annotations

import math
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(37, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (37,), generator=torch.Generator().manual_seed(1))


def make(folder: Path, **arguments: Any) -> vd.Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"optimizer": "sgd", "lr": 0.1, "loss": "cross_entropy", "seed": 0, "device": "cpu", **arguments}
    return vd.Trainer(model, **settings, run_dir=folder, resume="auto", progress=False, loggers=())


def train_loader() -> vd.DataLoader:
    return vd.DataLoader((X, Y), batch_size=5, shuffle=True, seed=0)


class Signal(vd.Callback):
    """Tells the process to end when a step, or the first evaluation, is over."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluate_end(self, trainer: vd.Trainer, metrics: dict[str, float]) -> None:
        if self.step is None:
            os.kill(os.getpid(), signal.SIGTERM)


class Epochs(vd.Callback):
    """Remembers the epochs that it was told of."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_epoch_end(self, trainer: vd.Trainer, row: dict[str, Any]) -> None:
        self.seen.append(row["epoch"])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


# 37 samples in batches of 8 are 5 steps an epoch: with "every 5 steps" each epoch's end finds a checkpoint of its step, made before the
# evaluation.
@pytest.mark.parametrize("checkpoint", ["every epoch", "every 5 steps", "every 1 step"])
@pytest.mark.parametrize(
    "limit", [1, 12]
)  # 1: the first epoch is the best one; 12: stopped early, and the best is not the last
def test_a_finished_run_has_its_best_weights_and_its_callbacks_as_they_were(
    tmp_path: Path, checkpoint: str, limit: int
) -> None:
    def run() -> tuple[float, list[int], int]:
        epochs, stopping = Epochs(), vd.EarlyStopping("val/loss", patience=1, restore_best=True)
        trainer = make(tmp_path / "run", optimizer="adam", lr=0.5, callbacks=[stopping, epochs], checkpoint=checkpoint)
        trainer.fit((X, Y), (X, Y), batch_size=8, epochs=limit)
        return trainer.evaluate((X, Y), batch_size=8)["loss"], epochs.seen, stopping.best_epoch

    first, second = run(), run()
    assert first == second
    assert first[2] >= 1
    assert limit == 1 or len(first[1]) < 12


@pytest.mark.parametrize("background", [False, True])
def test_the_best_checkpoint_holds_the_average_that_was_measured_though_its_step_had_been_saved(
    tmp_path: Path, background: bool
) -> None:
    """A step's checkpoint is made before its epoch ends, and with it before SWA takes the epoch into its average."""
    policy = vd.Checkpointing(every="every 5 steps", background=background)
    trainer = make(tmp_path / "run", ema=vd.SWA(start=1), checkpoint=policy)
    result = trainer.fit((X, Y), (X, Y), batch_size=8, epochs=3)
    rows = {"last": result.history[-1], "best": result.best or {}}
    for name, row in rows.items():
        model = vd.load_model(tmp_path / "run", make(tmp_path / name).model, weights=name)
        loss = vd.evaluate(model, (X, Y), batch_size=8, loss="cross_entropy")["loss"]
        assert loss == pytest.approx(row["val/loss"], rel=1e-6), name  # before the last epoch is in it: off by 3%


class FailsOnce(nn.Identity):
    """Raises in its n-th forward pass."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.num_passes, self.at = 0, at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_passes += 1
        if self.num_passes == self.at:
            raise RuntimeError("the machine had a bad moment")
        return x


def test_an_error_while_statistics_are_computed_leaves_no_half_of_them_to_go_on_from(tmp_path: Path) -> None:
    """Two epochs of 8 batches, then the pass that gives the average its statistics: it fails at its third batch, the 19th in all."""

    def run(folder: Path, *, fail_at: int = 0) -> dict[str, torch.Tensor]:
        trainer = make(folder, ema=vd.SWA(start=1), checkpoint="every 3 steps")
        trainer.model.append(FailsOnce(fail_at))
        train, val = train_loader(), vd.DataLoader((X, Y), batch_size=16)
        for epoch in trainer.epochs(2):
            for x, y in epoch.train(train):
                trainer.step(functional.cross_entropy(trainer.model(x), y))
            if epoch.index == 1:
                for x, y in epoch.evaluate(val):
                    trainer.log(loss=functional.cross_entropy(trainer.model(x), y))
        with trainer.averaging.applied():
            return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    straight = run(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="bad moment"):
        run(tmp_path / "run", fail_at=19)
    resumed = run(tmp_path / "run")
    assert straight["1.num_batches_tracked"] == 8
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.mark.parametrize("kills", [True, False])
def test_statistics_of_averaged_weights_come_from_the_epochs_own_order(tmp_path: Path, kills: bool) -> None:
    """Stopped between the training loop and the evaluation of the second epoch."""

    def run(folder: Path, *, kill: bool) -> list[float]:
        trainer = make(folder, ema=vd.SWA(start=1))
        train, val = train_loader(), vd.DataLoader((X, Y), batch_size=16)
        for epoch in trainer.epochs(2):
            for x, y in epoch.train(train):
                trainer.step(functional.cross_entropy(trainer.model(x), y))
            if kill and epoch.index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            for x, y in epoch.evaluate(val):
                trainer.log(loss=functional.cross_entropy(trainer.model(x), y))
        return [row["val/loss"] for row in trainer.result.history]

    if kills:
        with pytest.raises(SystemExit):
            run(tmp_path / "run", kill=True)
    assert run(tmp_path / "run", kill=False) == run(tmp_path / "straight", kill=False)


def test_statistics_of_averaged_weights_come_from_the_whole_epoch_when_its_last_step_was_the_last_of_all(
    tmp_path: Path,
) -> None:
    def run(folder: Path, *callbacks: vd.Callback) -> list[float]:
        trainer = make(folder, ema=vd.SWA(start=1), callbacks=callbacks)
        result = trainer.fit(train_loader(), (X, Y), epochs=3, steps=20)
        return [row["val/loss"] for row in result.history]

    with pytest.raises(SystemExit):
        run(tmp_path / "run", Signal(20))
    assert run(tmp_path / "run") == run(tmp_path / "straight")


def test_an_epoch_that_a_budget_cut_short_is_not_whole_after_its_evaluation_was_interrupted(tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: vd.Callback) -> int:
        trainer = make(folder, callbacks=callbacks)
        trainer.fit(train_loader(), (X, Y), steps=5)
        return trainer.progress.epochs_done

    with pytest.raises(SystemExit):
        run(tmp_path / "run", Signal())
    assert run(tmp_path / "run") == run(tmp_path / "straight") == 0  # 5 of 8 batches


def test_a_callback_that_fails_when_the_last_background_save_is_told_ends_the_run_in_good_order(tmp_path: Path) -> None:
    class Failing(vd.Callback):
        def on_checkpoint(self, trainer: vd.Trainer, path: Path) -> None:
            if trainer.progress.steps_done == 8:
                raise ValueError("upload failed")

    told: list[str] = []

    class Told(vd.Callback):
        def on_exception(self, trainer: vd.Trainer, error: BaseException) -> None:
            told.append(str(error))

        def on_fit_end(self, trainer: vd.Trainer) -> None:
            told.append("end")

    trainer = make(
        tmp_path / "run",
        callbacks=[Failing(), Told()],
        checkpoint=vd.Checkpointing(every="every epoch", background=True),
    )
    with pytest.raises(ValueError, match="upload failed"):
        trainer.fit((X, Y), batch_size=5, epochs=1)
    assert told == ["upload failed", "end"]
    assert trainer.result.stop_reason is vd.StopReason.FAILED
    assert make(tmp_path / "run").fit((X, Y), batch_size=5, epochs=2).history[-1]["epoch"] == 2  # nobody holds it


def test_a_value_that_is_no_number_is_one_in_the_history_of_a_run_that_goes_on(tmp_path: Path) -> None:
    def run(epochs: int) -> list[float]:
        trainer = make(tmp_path / "run", metrics={"gap": lambda output, target: torch.full((len(target),), math.nan)})
        return [row["val/gap"] for row in trainer.fit((X, Y), (X, Y), batch_size=8, epochs=epochs).history]

    assert all(math.isnan(value) for value in run(1) + run(2))


def test_a_trainer_that_was_stopped_says_that_its_next_fit_begins_the_epoch_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make(tmp_path / "run", callbacks=[Signal(5)])
    with pytest.raises(SystemExit):
        trainer.fit(train_loader(), epochs=2)
    assert "begins it anew" not in capsys.readouterr().err
    trainer.fit(train_loader(), epochs=1)
    assert "Epoch 1 was stopped in its middle, and this trainer begins it anew" in capsys.readouterr().err
    assert trainer.progress.steps_done == 5 + 8


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_that_persist_draw_their_seed_once_a_run_whatever_process_goes_on(
    tmp_path: Path, persistent: bool
) -> None:
    """PyTorch's loader draws from the generator that a sampler and dropout draw from too: in each epoch, or in the first alone."""

    def train(folder: Path, epochs: int) -> torch.Tensor:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3))
        sampler = torch.utils.data.WeightedRandomSampler([1.0] * len(X), len(X))
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(X, Y), 8, sampler=sampler, num_workers=1, persistent_workers=persistent,
            multiprocessing_context="fork",
        )  # fmt: skip
        trainer = vd.Trainer(
            model,
            "sgd",
            lr=0.1,
            loss="cross_entropy",
            seed=1,
            run_dir=folder,
            resume="auto",
            progress=False,
            device="cpu",
            loggers=(),
        )
        trainer.fit(loader, loader, epochs=epochs)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    straight = train(tmp_path / "straight", 3)
    for epochs in (1, 2, 3):
        gone_on = train(tmp_path / "again", epochs)
    assert torch.equal(gone_on, straight)


def own_loop(folder: Path, *, fails_at: int | None = None) -> vd.Trainer:
    trainer = make(folder)
    for epoch in trainer.epochs(2):
        for inputs, targets in epoch.train(train_loader()):
            trainer.step(functional.cross_entropy(trainer.model(inputs), targets))
            if trainer.progress.steps_done == fails_at:
                raise RuntimeError("of the user's own")
    return trainer


def test_an_error_within_a_batch_before_the_first_checkpoint_begins_the_run_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = own_loop(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="of the user's own"):
        own_loop(tmp_path / "run", fails_at=3)
    again = own_loop(tmp_path / "run")
    assert "begins anew, for it has no checkpoint to go on from" in capsys.readouterr().err
    for mine, other in zip(again.model.state_dict().values(), straight.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_nothing_begins_anew_where_a_checkpoint_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the user's own"):
        own_loop(tmp_path / "run", fails_at=3)
    (tmp_path / "run/checkpoints/step-00000003/model.safetensors").write_bytes(b"torn")
    with pytest.raises(vd.errors.CheckpointError, match="holds no checkpoint that can be gone on from"):
        own_loop(tmp_path / "run")


def test_a_run_that_is_named_is_not_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the user's own"):
        own_loop(tmp_path / "run", fails_at=3)
    with pytest.raises(vd.errors.CheckpointError, match=r'made within a batch.*resume="auto" begins it anew'):
        vd.Trainer(nn.Linear(6, 3), lr=0.1, optimizer="sgd", loss="cross_entropy", resume=tmp_path / "run")
