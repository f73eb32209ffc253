"""Law 3 on CUDA: dropout's generator on the device, the fp16 scaler and sums on the device come back too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import velodrome as vd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

X, Y = torch.randn(22, 6, generator=torch.Generator().manual_seed(0)), torch.arange(22) % 3


class Cut(Exception):
    pass


class CutAt(vd.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        if trainer.progress.steps_done >= self.step:
            raise Cut


def make(folder: Path, *, cut_at: int = 1000, **arguments: Any) -> vd.Trainer:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return vd.Trainer(
        model, "adam", lr=0.02, loss="cross_entropy", metrics=["accuracy"], seed=5, run_dir=folder, checkpoint="every step", loggers=[],
        progress=False, device="cuda", callbacks=[CutAt(cut_at)], ema=0.9, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("step", [1, 6, 7, 11])
def test_a_run_cut_on_cuda_ends_like_the_one_that_was_not(tmp_path: Path, precision: str, step: int) -> None:
    straight = make(tmp_path / "straight", precision=precision)
    expected = straight.fit((X, Y), (X, Y), batch_size=4, epochs=2)
    with pytest.raises(Cut):
        make(tmp_path / "run", precision=precision, cut_at=step).fit((X, Y), (X, Y), batch_size=4, epochs=2)
    torch.cuda.manual_seed(99)

    again = make(tmp_path / "run", precision=precision, resume="auto")
    result = again.fit((X, Y), (X, Y), batch_size=4, epochs=2)

    assert all(map(torch.equal, straight.model.state_dict().values(), again.model.state_dict().values()))
    for row, other in zip(expected.history, result.history, strict=True):
        assert {k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} == {
            k: v for k, v in other.items() if k not in ("seconds", "samples_per_s")
        }


def train_together(folder: str, cut_at: int, resume: str) -> Any:
    from velodrome.distributed.world import join_world

    trainer = make(Path(folder) / "run", resume=resume)  # type: ignore[arg-type]
    trainer._run.callbacks.append(StopAll(cut_at))
    with suppress(Cut):
        trainer.fit((X, Y), (X, Y), batch_size=6, epochs=2)
    rank = join_world(trainer.device).rank
    return rank, {name: value.cpu() for name, value in trainer.model.state_dict().items()}


class StopAll(vd.Callback):
    """Ends the run in every process, in the batch after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done > self.step:
            raise Cut


@pytest.mark.parametrize("step", [2, 5])
def test_two_processes_go_on_with_the_dropout_of_their_devices(step: int, two: Any, tmp_path: Path) -> None:
    """With one GPU both share it, over Gloo."""
    straight = two.run(train_together, str(tmp_path / "straight"), 1000, "never", timeout_s=240)
    two.run(train_together, str(tmp_path / "run"), step, "never", timeout_s=240)
    again = two.run(train_together, str(tmp_path / "run"), 1000, "auto", timeout_s=240)

    for (_, weights), (_, expected) in zip(again, straight, strict=True):
        assert all(map(torch.equal, weights.values(), expected.values()))
