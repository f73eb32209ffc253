"""Law 3: a run that was cut at any step and went on ends like the one that was never cut: weights, state, random numbers, records."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import velodrome as vd
from velodrome.checkpoint.read import read_state, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (22,), generator=torch.Generator().manual_seed(1))
VAL = (X[:10] * 1.1, Y[:10])


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    """Ends the run as soon as the checkpoint of a step is on the disk: nothing that comes later happens."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        if trainer.progress.steps_done >= self.step:
            raise Cut


class Noise(vd.Callback):
    """Draws from the generators that dropout does not use, so that their states matter to the weights."""

    def on_step_end(self, trainer: vd.Trainer) -> None:
        with torch.no_grad():
            trainer.model[0].bias += 1e-3 * (random.random() + numpy.random.rand())


class Tally(vd.Callback):
    """Remembers numbers, and says so."""

    def __init__(self) -> None:
        self.seen = torch.zeros(2)
        self.epochs: list[int] = []

    def on_step_end(self, trainer: vd.Trainer) -> None:
        self.seen += torch.tensor([1.0, trainer.optimizer.param_groups[0]["lr"]])

    def on_epoch_end(self, trainer: vd.Trainer, row: dict[str, Any]) -> None:
        self.epochs.append(row["epoch"])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen.clone(), "epochs": list(self.epochs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.epochs = state["seen"].clone(), list(state["epochs"])


def make_model() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


@dataclass(frozen=True)
class Case:
    """One row of the table: 22 samples in batches of 4 are 6 micro-batches, the last of 2 samples."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 2
    patience: int = 0

    def make(self, folder: Path, *, resume: str = "never", cut_at: int | None = None, **changes: Any) -> vd.Trainer:
        callbacks: list[Any] = [Noise(), Tally()]
        if self.patience:
            callbacks.append(vd.EarlyStopping("val/loss", patience=self.patience, min_delta=10.0, restore_best=True))
        callbacks += [] if cut_at is None else [CutAt(cut_at)]
        arguments: dict[str, Any] = {
            "optimizer": "adam", "lr": 0.02, "loss": "cross_entropy", "metrics": ["accuracy"], "seed": 5, "run_dir": folder,
            "checkpoint": "every step", "log_every": "4 steps", "loggers": ["csv"], "progress": False, "device": "cpu",
        }  # fmt: skip
        return vd.Trainer(
            make_model(), resume=resume, callbacks=callbacks, **{**arguments, **self.arguments, **changes}
        )

    def train(self, trainer: vd.Trainer) -> vd.FitResult:
        return trainer.fit((X, Y), VAL, batch_size=4, epochs=self.epochs)


class TwoOptimizers(Case):
    """An explicit loop with two optimizers that take turns within a batch, and a window that is longer for one of them."""

    def make(self, folder: Path, **changes: Any) -> vd.Trainer:
        model = nn.ModuleDict({"body": make_model(), "head": nn.Linear(3, 3)})
        cut_at = changes.pop("cut_at", None)
        return vd.Trainer(
            model, {"body": "adam", "head": "sgd"}, lr=0.02, seed=5, run_dir=folder, checkpoint="every step", log_every="4 steps",
            loggers=["csv"], progress=False, device="cpu", callbacks=[] if cut_at is None else [CutAt(cut_at)], accumulate=2, **changes,
        )  # fmt: skip

    def train(self, trainer: vd.Trainer) -> vd.FitResult:
        model, train = trainer.model, vd.DataLoader((X, Y), 4, shuffle=True)
        for epoch in trainer.epochs(self.epochs):
            for x, y in epoch.train(train):
                hidden = model["body"](x)
                loss = functional.cross_entropy(hidden, y)
                trainer.step(loss, optimizer="body")
                if trainer.progress.samples_in_epoch % 3:  # its windows are open where those of the body are closed, and saved
                    trainer.step(functional.cross_entropy(model["head"](hidden.detach()), y), optimizer="head")
                trainer.log(size=float(len(x)), hidden=hidden.mean())
            for x, y in epoch.evaluate(VAL, batch_size=5):
                trainer.log(accuracy=(model["body"](x).argmax(1) == y).float())
        return trainer.result


CASES = [
    Case("plain"),
    Case("accumulate", {"accumulate": 4, "clip_norm": 0.5, "grad_norms": True}),
    Case("ema and clip", {"ema": vd.EMA(0.8), "clip_value": 0.1}),
    Case("swa", {"ema": vd.SWA(start="1 epochs", every="1 epochs")}),
    Case("per step", {"scheduler": "one_cycle", "optimizer": "sgd", "optimizer_args": {"momentum": 0.9}}),
    Case("per epoch", {"scheduler": "cosine", "scheduler_every": "epoch", "scheduler_args": {"warmup": 2}}),
    Case("torch schedule", {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)}),
    Case("plateau", {"scheduler": "plateau", "scheduler_args": {"patience": 0, "threshold": 5.0}}),
    Case("early stopping", epochs=4, patience=1),
    Case("bf16", {"precision": "bf16"}),
    Case("fp16", {"precision": "fp16", "scaler_args": {"init_scale": 2.0**40, "growth_interval": 3}}),
    TwoOptimizers("two optimizers"),
]


def outcome(case: Case, trainer: vd.Trainer) -> dict[str, Any]:
    """Train to the end and return everything that must be equal, by name."""
    result = case.train(trainer)
    folder = trainer.run_dir
    assert folder is not None
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    state = read_state(last)["resume"]
    groups = ("model", "optimizer", "rng-rank0", "sums-rank0", "callbacks", "window")
    for name in ("journal_bytes", "row", "keeping", "phase", "position"):  # times are in it
        state.pop(name)
    facts: dict[str, Any] = {
        f"{group} {name}": value for group in groups for name, value in read_tensors(last, group).items()
    }
    facts |= {f"model now {name}": value for name, value in trainer.model.state_dict().items()}
    facts |= {f"average {name}": value for name, value in trainer.averaging.state_dict().items()}
    facts |= {"random": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist())}
    facts |= {"state": state, "history": rows_without_times(result.history), "progress": counters(trainer)}
    facts["journal"] = rows_without_times(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    facts["csv"] = [line.split(",")[:3] for line in (folder / "metrics.csv").read_text().splitlines()]
    facts["best"] = rows_without_times([result.best or {}])
    facts["reason"] = result.stop_reason
    return facts


def rows_without_times(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]


def counters(trainer: vd.Trainer) -> dict[str, int]:
    return {name: value for name, value in vars(trainer.progress).items() if name != "seconds"}


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the names of what is not equal, bit for bit."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a
        or name not in b
        or not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else repr(a[name]) == repr(b[name]))
    ]


def cut(case: Case, folder: Path, step: int, *, resume: str = "never") -> None:
    with pytest.raises(Cut):
        case.train(case.make(folder, cut_at=step, resume=resume))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what each case comes to when nothing cuts it, computed once."""
    known: dict[str, dict[str, Any]] = {}

    def compute(case: Case) -> dict[str, Any]:
        if case.name not in known:
            known[case.name] = outcome(case, case.make(tmp_path_factory.mktemp("straight") / "run"))
        return known[case.name]

    return compute


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_cut_at_any_step_ends_like_the_one_that_was_not(case: Case, straight: Any, tmp_path: Path) -> None:
    expected = straight(case)
    last = expected["progress"]["steps_done"]
    for step in range(1, last + 1):
        folder = tmp_path / str(step)
        cut(case, folder, step)

        assert different(expected, outcome(case, case.make(folder, resume="auto"))) == [], f"cut at step {step}"


@pytest.mark.parametrize("steps", [(3, 4), (2, 8, 11), (5, 6, 7), (6, 12)])
def test_a_run_may_be_cut_several_times(steps: tuple[int, ...], straight: Any, tmp_path: Path) -> None:
    case = CASES[2]
    for step in steps:
        cut(case, tmp_path / "run", step, resume="auto")

    assert different(straight(case), outcome(case, case.make(tmp_path / "run", resume="auto"))) == []
