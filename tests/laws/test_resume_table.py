"""Law 3 as a table: every place of a cut with every switch, workers and processes, each pair of them in some row.

Each row trains straight, then is cut and goes on, and everything must be equal, bit for bit: weights, averages, random numbers,
history and the checkpoint's files, apart from times. `test_resume.py` cuts at every single step, and has the negative controls.
"""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import velodrome as vd
from support.pairwise import covering_rows, missing_pairs, name_of
from velodrome.checkpoint.read import read_state, read_tensors

pytestmark = pytest.mark.slow

SAMPLES, BATCH, EPOCHS = 22, 6, 3  # batches of 6, 6, 6 and 4: windows of two are whole
X = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (SAMPLES,), generator=torch.Generator().manual_seed(1))

# Where a run is cut: one cut after the other. "step": the last checkpoint is the one before this update of the epoch.
CUTS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "first step": (("step", 1, 2),),
    "mid epoch": (("step", 2, 2),),
    "epoch end": (("on_epoch_end", 1, 0),),
    "epoch start": (("on_epoch_start", 2, 0),),
    "evaluation": (("evaluation", 2, 0),),
    "evaluated": (("on_evaluate_end", 1, 0),),
    "after the best": (("step", 2, 1),),
    "twice in an epoch": (("step", 2, 1), ("step", 2, 2)),
    "three times": (("step", 1, 2), ("evaluation", 1, 0), ("step", 2, 2)),
}
FACTORS: dict[str, tuple[Any, ...]] = {
    "cut": tuple(CUTS),
    "workers": (0, 2, "persistent"),
    "precision": ("fp32", "bf16", "fp16"),
    "schedule": (None, "step", "epoch", "metric"),
    "average": (False, True),
    "clip": (False, True),
    "accumulate": (1, 2),
    "stopping": (False, True),
    "optimizers": (1, 2),
    "processes": (1, 2),
}


ROWS = covering_rows(FACTORS)


class Cut(Exception):
    """Stands for whatever kills a run: no code of it catches this."""


class CutAt(vd.Callback):
    """Ends the run in every process at the same place."""

    def __init__(self, place: str, epoch: int, update: int) -> None:
        self.place, self.epoch, self.update = place, epoch, update
        if place.startswith("on_"):
            setattr(self, place, self._cut)

    def on_step_end(self, trainer: vd.Trainer) -> None:
        progress = trainer.progress
        if (self.place, self.epoch, self.update) == ("step", progress.epochs_done + 1, progress.steps_in_epoch):
            raise Cut

    def _cut(self, trainer: vd.Trainer, *details: Any) -> None:
        if trainer._run.row.get("epoch", trainer.progress.epochs_done) == self.epoch:
            raise Cut


class Samples(Dataset[Any]):
    """Samples with random augmentation, in this process or in its workers."""

    def __init__(self, *, augments: bool) -> None:
        self.augments = augments

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return X[index] + (0.1 * torch.rand(6) if self.augments else 0.0), Y[index]


def make(row: dict[str, Any], folder: str, *, cut: tuple[str, int, int] | None = None) -> vd.Trainer:
    torch.manual_seed(7)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    model = nn.ModuleDict({"body": body, "head": nn.Linear(3, 3)})
    schedule = {
        None: {},
        "step": {"scheduler": "one_cycle"},
        "epoch": {"scheduler": "cosine", "scheduler_every": "epoch"},
        "metric": {
            "scheduler": "plateau",
            "scheduler_monitor": "val/accuracy",
            "scheduler_args": {"patience": 0, "threshold": 5.0},
        },
    }[row["schedule"]]
    stopping = [vd.EarlyStopping("val/accuracy", patience=1, min_delta=10.0, restore_best=True)]
    return vd.Trainer(
        model,
        {"body": "adam", "head": "sgd"} if row["optimizers"] == 2 else "adam",
        lr=0.02,
        precision=row["precision"],
        scaler_args={"init_scale": 2.0**20, "growth_interval": 2} if row["precision"] == "fp16" else None,
        accumulate=row["accumulate"],
        clip_norm=0.5 if row["clip"] else None,
        ema=vd.EMA(0.8) if row["average"] else None,
        callbacks=[*(stopping if row["stopping"] else []), *([] if cut is None else [CutAt(*cut)])],
        checkpoint=vd.Checkpointing(every="every step", monitor="epoch", mode="min"),
        run_dir=f"{folder}/run",
        resume="auto",
        seed=5,
        log_every="3 steps",
        loggers=["csv"],
        device="cpu",
        progress=False,
        **schedule,
    )


def train(row: dict[str, Any], folder: str, *, cut: tuple[str, int, int] | None = None) -> vd.Trainer:
    """Train with a loop that does everything by hand, until it is cut."""
    trainer = make(row, folder, cut=cut)
    # Forked: the processes of a world were spawned, and would spawn theirs, which import torch first.
    kept = {"num_workers": 2, "persistent_workers": row["workers"] == "persistent", "multiprocessing_context": "fork"}
    workers: dict[str, Any] = kept if row["workers"] else {}
    data = vd.DataLoader(Samples(augments=True), BATCH, shuffle=True, **workers)
    try:
        run_epochs(row, trainer, data, cut)
    finally:
        end_workers(data)
    return trainer


def run_epochs(row: dict[str, Any], trainer: vd.Trainer, data: vd.DataLoader, cut: tuple[str, int, int] | None) -> None:
    model = trainer.model
    for epoch in trainer.epochs(EPOCHS):
        for x, y in epoch.train(data):
            # From the generators that dropout does not use, so that their states matter to the weights.
            hidden = model["body"](x + 0.1 * (random.random() + numpy.random.rand()))
            loss = F.cross_entropy(hidden, y)
            if row["optimizers"] == 2:
                trainer.step(loss, optimizer="body")
                trainer.step(F.cross_entropy(model["head"](hidden.detach()), y), optimizer="head")
            else:
                trainer.step(loss + F.cross_entropy(model["head"](hidden), y))
            trainer.log(size=float(len(x)), hidden=hidden.float().mean())
        for done, (x, y) in enumerate(epoch.evaluate((X, Y), batch_size=5)):
            torch.rand(3)
            trainer.log(accuracy=(model["head"](model["body"](x)).argmax(1) == y).float())
            if cut is not None and cut[:2] == ("evaluation", epoch.index + 1) and done == 2:
                raise Cut


def end_workers(data: vd.DataLoader) -> None:
    """End workers that persist: collected as garbage they take 5 seconds each, their queues go before them."""
    iterator = getattr(getattr(data._samples, "_loader", None), "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def outcome(trainer: vd.Trainer) -> dict[str, Any]:
    """Return everything that must be equal, by name."""
    facts = {f"model {name}": value.clone() for name, value in trainer.model.state_dict().items()}
    facts |= {f"average {name}": value.clone() for name, value in trainer.averaging.state_dict().items()}
    facts["random"] = str((random.getstate(), numpy.random.get_state(), torch.get_rng_state().tolist()))
    facts["history"] = str(without_times(trainer.result.history))
    facts["reason"] = str(trainer.result.stop_reason)
    facts["counters"] = str(without_times([vars(trainer.progress)]))
    folder = trainer.run_dir
    if folder is None:
        return facts
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    facts["journal"] = str(without_times(rows))
    facts["checkpoints"] = str(sorted(path.name for path in (folder / "checkpoints").glob("step-*")))
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    for path in sorted(last.glob("*.safetensors")):
        for name, value in read_tensors(last, path.stem).items():
            facts[f"{path.stem} {name}"] = value
    facts["state"] = str(without_clocks(read_state(last)))
    return facts


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]


def without_clocks(state: Any) -> Any:
    """Leave out what a clock said, at any depth, and the journal's length, which depends on its digits."""
    if isinstance(state, list):
        return [without_clocks(each) for each in state]
    if not isinstance(state, dict):
        return state
    clocks = ("seconds", "samples_per_s", "journal_bytes")
    return {name: without_clocks(value) for name, value in sorted(state.items()) if name not in clocks}


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the names of what is not equal, bit for bit."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a
        or name not in b
        or not (torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name])
    ]


def compare_row(row: dict[str, Any], folder: str) -> tuple[list[str], int, list[str]]:
    """Return what differs between the straight run and the one that was cut, how often it was cut, and what it went on from."""
    expected = outcome(train(row, f"{folder}/straight"))
    num_cuts, places = 0, []
    for cut in CUTS[row["cut"]]:
        with suppress(Cut):
            train(row, f"{folder}/cut", cut=cut)
            continue
        num_cuts += 1
        random.seed(99), numpy.random.seed(99), torch.manual_seed(99)  # another process
    trainer = train(row, f"{folder}/cut")
    if trainer.run_dir is not None:
        places = [line for line in Path(trainer.run_dir, "log.txt").read_text().splitlines() if "Going on from" in line]
    return different(expected, outcome(trainer)), num_cuts, places


def compare_rows(rows: list[dict[str, Any]], folder: str) -> list[tuple[list[str], int, list[str]]]:
    return [compare_row(row, f"{folder}/{index}") for index, row in enumerate(rows)]


def check(row: dict[str, Any], answer: tuple[list[str], int, list[str]]) -> None:
    differs, num_cuts, places = answer
    assert differs == [], name_of(row)
    assert num_cuts == len(CUTS[row["cut"]]), f"{name_of(row)} was not cut where it should be"
    # Two optimizers make both of the first updates in one batch: then there was no checkpoint yet.
    begun_anew = row["optimizers"] == 2 and ("step", 1, 2) in CUTS[row["cut"]]
    assert len(places) == num_cuts - begun_anew, f"{name_of(row)}: {places}"


def test_the_table_has_every_pair_and_few_rows() -> None:
    assert missing_pairs(FACTORS, ROWS) == []
    assert missing_pairs(FACTORS, ROWS[:-1]) != []  # the control
    assert len(ROWS) <= 45


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("row", [row for row in ROWS if row["processes"] == 1], ids=name_of)
def test_one_process(row: dict[str, Any], tmp_path: Path) -> None:
    check(row, compare_row(row, str(tmp_path)))


def test_two_processes(two: Any, tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["processes"] == 2]
    first, second = two.run(compare_rows, rows, str(tmp_path), timeout_s=240)
    for row, answer, other in zip(rows, first, second, strict=True):
        check(row, answer)
        assert other[:2] == ([], answer[1]), f"rank 1: {name_of(row)}"
