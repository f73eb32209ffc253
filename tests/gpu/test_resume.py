"""Law 3 on CUDA: dropout's generator on the device, the fp16 scaler and sums on the device come back too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import velodrome as vd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

X, Y = torch.randn(22, 6), torch.arange(22) % 3


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
