"""Which checkpoints are kept for good."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import velodrome as vd
from velodrome.checkpoint.scan import find_checkpoints
from velodrome.loop.progress import Progress
from velodrome.run.keeping import Keeping

if TYPE_CHECKING:
    from pathlib import Path


def train(folder: Path, *, epochs: int, **policy: Any) -> list[int]:
    """Train 4 steps an epoch and return the steps of the checkpoints that are left."""
    torch.manual_seed(0)
    data = torch.randn(16, 4), torch.randint(0, 3, (16,))
    trainer = vd.Trainer(
        torch.nn.Linear(4, 3), "adam", lr=0.01, loss="cross_entropy", run_dir=folder, resume="auto", device="cpu", progress=False, loggers=[],
        seed=0, checkpoint=vd.Checkpointing(keep_best=0, **policy),
    )  # fmt: skip
    trainer.fit(data, batch_size=4, epochs=epochs)
    return sorted(one.step for one in find_checkpoints(folder / "checkpoints"))


@pytest.mark.parametrize("background", [False, True])
def test_keep_every_keeps_the_next_checkpoint_each_time_so_much_is_done(tmp_path: Path, background: bool) -> None:
    # Saved at 3, 6, 9, 12, 15, 18, 20 (the end). Five steps are done at 6 (>= 5), 12 (>= 10), 15 and 20; 18 is one of the last two.
    left = train(tmp_path, epochs=5, every="3 steps", keep_every="5 steps", background=background)
    assert left == [6, 12, 15, 18, 20]


def test_keep_every_in_epochs(tmp_path: Path) -> None:
    # Epochs end at steps 4, 8, ..., 28: kept are those after the third and sixth, and the last two.
    assert train(tmp_path, epochs=7, keep_every="3 epochs") == [12, 24, 28]


def test_keep_every_is_remembered_by_a_run_that_goes_on(tmp_path: Path) -> None:
    assert train(tmp_path, epochs=4, keep_every="2 epochs") == [8, 12, 16]
    assert train(tmp_path, epochs=7, keep_every="2 epochs") == [8, 16, 24, 28]


def test_a_save_that_failed_leaves_its_place_to_the_next() -> None:
    keeping = Keeping(vd.Checkpointing(keep_every="10 steps"))
    keeping.begin_save(Progress(steps_done=10))
    assert keeping.kept_steps == [10]
    keeping.forget(10)
    keeping.begin_save(Progress(steps_done=13))
    keeping.begin_save(Progress(steps_done=16))
    assert keeping.kept_steps == [13]


def test_keep_every_that_is_no_duration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vd.errors.ArgumentError, match="keep_every='often' .*unit"):
        train(tmp_path, epochs=1, keep_every="often")


def train_and_validate_every_second_epoch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[Any, dict[str, Any], str]:
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    trainer = vd.Trainer(
        torch.nn.Linear(4, 3), "sgd", lr=0.1, run_dir=folder, device="cpu", loggers=[], seed=0, checkpoint="every 100 epochs"
    )  # fmt: skip
    loader = vd.DataLoader((x, y), batch_size=4)
    for epoch in trainer.epochs(6):
        for inputs, targets in epoch.train(loader):
            trainer.step(torch.nn.functional.cross_entropy(trainer.model(inputs), targets))
        if trainer.progress.epoch % 2 == 0:
            for inputs, targets in epoch.evaluate(loader):
                trainer.log(loss=torch.nn.functional.cross_entropy(trainer.model(inputs), targets) + 5)
    best = json.loads((folder / "checkpoints/best.json").read_text(encoding="utf-8"))
    return trainer.result, best, capsys.readouterr().err


def test_the_first_validated_epoch_takes_the_place_of_those_that_the_training_loss_stood_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The validation loss is larger than every training loss here: ranked with these it would never be the best."""
    result, best, said = train_and_validate_every_second_epoch(tmp_path / "run", capsys)
    assert [("val/loss" in row) for row in result.history] == [False, True] * 3
    assert result.best["epoch"] == 6
    assert best["step"] == 24
    assert best["monitor"] == "val/loss"
    assert "no epoch is marked" not in said
