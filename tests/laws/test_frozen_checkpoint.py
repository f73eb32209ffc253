"""A checkpoint that an earlier release wrote is gone on from by this one; one that lacks an entry is refused in words.

`tests/fixtures/checkpoint-1` was written by `write` below when format 1 was made. It never changes: what cannot read it any more
breaks the runs of people. A new format gets a folder of its own beside it.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.errors import VelodromeError

if TYPE_CHECKING:
    from collections.abc import Iterator

FROZEN = Path(__file__).resolve().parents[1] / "fixtures" / "checkpoint-1"
X = torch.arange(18.0).reshape(9, 2) / 18
Y = torch.arange(9) % 2
STEP = 7  # of 10: the second of the second epoch of five batches


class Cut(Exception):
    """Ends a run."""


class CutAfter(vd.Callback):
    """Cuts a run in the batch after a step."""

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done > STEP:
            raise Cut


def train(run_dir: Path, *callbacks: vd.Callback, resume: str = "auto") -> vd.Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.2), nn.Linear(3, 2))
    stopping = vd.EarlyStopping("val/loss", patience=2, restore_best=True)
    trainer = vd.Trainer(
        model, "adam", lr=0.05, loss="cross_entropy", metrics=["accuracy"], seed=4, ema=0.5, scheduler="cosine", run_dir=run_dir,
        resume=resume, checkpoint=vd.Checkpointing(every="every step", keep_last=2), log_every="2 steps", loggers=[], progress=False,
        device="cpu", callbacks=[stopping, *callbacks],
    )  # fmt: skip
    trainer.fit((X, Y), (X, Y), batch_size=2, epochs=2)
    return trainer


def write(folder: Path) -> None:
    """Write the fixture: the newest checkpoint, the journal, and of `run.json` what does not speak of a machine."""
    run = folder.with_name("whole")
    with pytest.raises(Cut):
        train(run, CutAfter(), resume="never")
    name = f"step-{STEP:08d}"
    shutil.copytree(run / "checkpoints" / name, folder / "checkpoints" / name)
    length = read_state(run / "checkpoints" / name)["resume"]["journal_bytes"]
    (folder / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:length])
    kept = {key: value for key, value in json.loads((run / "run.json").read_text()).items() if key in ("id", "budget")}
    (folder / "run.json").write_text(json.dumps({**kept, "status": "running"}) + "\n")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[vd.Trainer, dict[str, Any]]:
    """Return a run of today that goes on from the frozen checkpoint."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    shutil.copytree(FROZEN, folder)
    trainer = train(folder)
    return trainer, facts(trainer)


def facts(trainer: vd.Trainer) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in trainer.result.history]
    progress = {name: value for name, value in vars(trainer.progress).items() if name != "seconds"}
    weights = {name: value.tolist() for name, value in trainer.model.state_dict().items()}
    average = {name: value.tolist() for name, value in trainer.averaging.state_dict().items()}
    best = {k: v for k, v in (trainer.result.best or {}).items() if k not in ("seconds", "samples_per_s")}
    journal = (trainer.run_dir / "metrics.jsonl").read_text().splitlines() if trainer.run_dir else []
    lines = [[json.loads(line)[key] for key in ("kind", "epoch", "step", "samples")] for line in journal]
    patience = next(each for each in trainer._run.callbacks if isinstance(each, vd.EarlyStopping)).epochs_waited
    return {"rows": rows, "progress": progress, "weights": weights, "average": average, "best": best, "lines": lines, "patience": patience}  # fmt: skip


def test_a_frozen_checkpoint_is_gone_on_from(expected: Any, tmp_path: Path) -> None:
    trainer, found = expected
    straight = train(tmp_path / "straight", resume="never")

    assert found["progress"] == facts(straight)["progress"]
    assert found["lines"] == facts(straight)["lines"]
    # Other versions of torch may round otherwise, and a run of today may begin with other weights than one of then.
    assert all(math.isfinite(row["val/loss"]) for row in found["rows"])
    torch.testing.assert_close(trainer.model.state_dict(), straight.model.state_dict(), rtol=1e-3, atol=1e-4)


def test_frozen_weights_are_loaded() -> None:
    model = vd.load_model(FROZEN, nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.2), nn.Linear(3, 2)), weights="last")

    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(3, 2), (3,), (2, 3), (2,)]


def paths_of(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every entry of every table, at any depth."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(value, dict):
            yield (*before, key)
        yield from paths_of(each, (*before, key))


STATE = json.loads((FROZEN / "checkpoints" / f"step-{STEP:08d}" / "state.json").read_text())
HAS_DEFAULT = {
    ("evaluated_weights",): "load_model takes the raw weights",
}
"""Entries without which a run goes on all the same, and as what."""


def write_without(folder: Path, place: tuple[Any, ...]) -> None:
    shutil.copytree(FROZEN, folder)
    path = folder / "checkpoints" / f"step-{STEP:08d}"
    state = json.loads(json.dumps(STATE))
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    groups = {each.stem: read_tensors(path, each.stem) for each in path.glob("*.safetensors")}
    CheckpointStore(folder / "checkpoints", run_id=json.loads((folder / "run.json").read_text())["id"]).save(STEP, groups, state)  # fmt: skip


# What is below these belongs to torch, to a callback, or is named by what the run logged: any name may be there or not.
OTHERS = (
    "by_name",
    "own",
    "others",
    "EarlyStopping-0",
    "totals",
    "pending",
    "interval",
    "device_sums",
    "device_counts",
)
PLACES = [
    place
    for place in paths_of(STATE)
    if not any(name in place[:-1] for name in OTHERS) and place[-2:-1] != ("callbacks",) and place[-1][:1] != "$"
]


@pytest.mark.parametrize("start", range(0, len(PLACES), 20))
def test_a_checkpoint_without_one_entry_is_refused_or_goes_on_the_same(
    start: int, expected: Any, tmp_path: Path
) -> None:
    silent = []
    for index, place in enumerate(PLACES[start : start + 20]):
        folder = tmp_path / str(index)
        write_without(folder, place)
        try:
            found = facts(train(folder))
        except VelodromeError:
            continue
        if found != expected[1] and place not in HAS_DEFAULT:
            silent.append(place)
    assert silent == []


def test_the_fixture_is_small() -> None:
    assert sum(path.stat().st_size for path in FROZEN.rglob("*") if path.is_file()) < 60_000
