"""A run whose time is over saves, returns, and goes on later as if nothing had been."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd
from velodrome.checkpoint.store import CheckpointStore

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
DATA = (X, X[:, :1])


def make(folder: Path | None, *, slow: float = 0.0, slow_eval: float = 0.0, **changes: Any) -> vd.Trainer:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        time.sleep(slow if torch.is_grad_enabled() else slow_eval)
        return functional.mse_loss(output, target)

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    return vd.Trainer(
        model, "adam", lr=0.1, loss=loss, seed=1, run_dir=folder, checkpoint=None, loggers=[], progress=False, device="cpu", **changes
    )  # fmt: skip


def weights(trainer: vd.Trainer) -> list[torch.Tensor]:
    return [each.clone() for each in trainer.model.state_dict().values()]


def rows(trainer: vd.Trainer) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in trainer.result.history]


@pytest.mark.parametrize("times", [{"slow": 0.15}, {"slow_eval": 0.15}])
def test_a_deadline_in_training_or_evaluation_returns_and_goes_on_exactly(
    times: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = make(tmp_path / "straight")
    straight.fit(DATA, DATA, batch_size=4, eval_batch_size=4, epochs=2)

    stopped = make(tmp_path / "run", stop_after="0.6s", **times)
    result = stopped.fit(DATA, DATA, batch_size=4, eval_batch_size=4, epochs=2)
    assert (result.stop_reason, result.history) == (vd.StopReason.DEADLINE, [])
    steps = stopped.progress.steps_done
    assert steps == 8 if "slow_eval" in times else 1 <= steps < 8
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["stop_reason"]) == ("stopped", "The time that the run was given is over.")
    assert f"The time is up: stopped after step {steps}, in epoch 1; saved in" in capsys.readouterr().err

    resumed = make(tmp_path / "run", resume="auto")
    resumed.fit(DATA, DATA, batch_size=4, eval_batch_size=4, epochs=2)
    assert all(map(torch.equal, weights(resumed), weights(straight)))
    assert rows(resumed) == rows(straight)
    assert resumed.result.stop_reason is vd.StopReason.EPOCHS


def test_the_loops_of_ones_own_end_and_the_epoch_is_not_whole(tmp_path: Path) -> None:
    trainer, seen = make(tmp_path / "run", slow=0.15, stop_after="0.5s"), []
    for epoch in trainer.epochs(3):
        for x, y in epoch.train(DATA, batch_size=4):
            trainer.step(trainer._run.engine.loss.function(trainer.model(x), y))
        batches = list(epoch.evaluate(DATA, batch_size=4))
        seen.append((epoch.is_whole, len(batches)))
    assert seen == [(False, 0)]
    assert trainer.result.stop_reason is vd.StopReason.DEADLINE
    assert trainer.result.history == []


def test_the_job_ends_when_its_scheduler_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 2))
    result = make(tmp_path / "run", slow=0.05).fit(DATA, batch_size=4, epochs=1000)
    assert result.stop_reason is vd.StopReason.DEADLINE
    assert json.loads((tmp_path / "run" / "run.json").read_text())["saved_step"] >= 1


def test_an_impossible_end_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "tomorrow")
    assert make(None).fit(DATA, batch_size=4, epochs=1).stop_reason is vd.StopReason.EPOCHS
    assert "warning: SLURM_JOB_END_TIME='tomorrow' is no number of seconds since 1970" in capsys.readouterr().err


def test_slow_saves_are_said_and_kept_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]  # a save takes 16 seconds by this one
    monkeypatch.setattr("velodrome.checkpoint.saver.perf_counter", lambda: clock[0])
    write = CheckpointStore.write

    def slow_write(self: CheckpointStore, content: Any) -> Any:
        clock[0] += 16.0
        return write(self, content)

    monkeypatch.setattr(CheckpointStore, "write", slow_write)
    trainer = make(tmp_path / "run", stop_after="1000s")
    deadline: list[float] = []

    class Look(vd.Callback):
        def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
            deadline.append(trainer._run.interruption._deadline.reserve_s)

    trainer._run.callbacks.append(Look())
    trainer.fit(DATA, batch_size=4, steps=2)

    assert deadline == [32.0]
    told = capsys.readouterr().err
    assert "A checkpoint took 16 seconds to write." in told
    assert "torchrun and most schedulers give it 30 before they kill it: ask for more (SLURM: --signal=TERM@64)" in told


def test_a_wrong_time_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(vd.errors.ArgumentError, match="give fit epochs of its own"):
        make(tmp_path / "run", stop_after="5 epochs")
    assert not (tmp_path / "run").exists()
