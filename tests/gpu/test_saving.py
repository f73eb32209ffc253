"""Saves in the background from CUDA: the copies run beside the next step, and hold the state before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint.read import read_tensors
from velodrome.checkpoint.scan import find_checkpoints

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def train(folder: Path, *, background: bool) -> dict[int, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    data = torch.randn(64, 32), torch.arange(64) % 4
    model = nn.Sequential(nn.Linear(32, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 4))
    policy = vd.Checkpointing(every="every step", keep_last=50, background=background)
    trainer = vd.Trainer(
        model, "adam", lr=0.01, loss="cross_entropy", run_dir=folder, device="cuda", progress=False, loggers=[], seed=0, checkpoint=policy,
        deterministic=True,
    )  # fmt: skip
    trainer.fit(data, batch_size=8, epochs=2)
    return {
        one.step: read_tensors(one.path) | read_tensors(one.path, "optimizer")
        for one in find_checkpoints(folder / "checkpoints")
    }


def test_checkpoints_of_the_background_hold_the_state_of_their_step(tmp_path):
    straight, beside = train(tmp_path / "a", background=False), train(tmp_path / "b", background=True)
    assert sorted(beside) == sorted(straight) == list(range(1, 17))
    for step, tensors in straight.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, beside[step][name]), f"step {step}, {name}"
