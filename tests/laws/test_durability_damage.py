"""Law 4: a file of a checkpoint is damaged at random, 120 times, or 600 by `make test-long`; never is something wrong loaded in silence, and each error says what to do.

The checkpoint is that of a real run, with every kind of file. It is read by hash-checking scans, which must fall back to the checkpoint before,
and file by file, which must be refused or give the very same content.
"""

from __future__ import annotations

import random
import resource
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint import scan
from velodrome.checkpoint.read import find_last, read_state, read_tensors
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ADVICE = ("Use another checkpoint", "read it with that one", "Ask for one of these")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that ended with two checkpoints."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    torch.manual_seed(0)
    x, y = torch.randn(40, 8), torch.randint(0, 3, (40,))
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 3))
    trainer = vd.Trainer(
        model, "adam", lr=0.01, loss="cross_entropy", metrics=["accuracy"], seed=0, run_dir=folder, ema=0.9, device="cpu", progress=False,
        callbacks=[vd.EarlyStopping("val/loss", patience=5, restore_best=True)], checkpoint="every 5 steps", loggers=[],
    )  # fmt: skip
    trainer.fit((x, y), (x[:10], y[:10]), batch_size=4, epochs=1)
    return folder


def flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def swap(data: bytes, draw: random.Random) -> bytes:
    size = max(1, min(len(data) // 3, draw.choice((1, 8, 64, 512))))
    a, b = sorted((draw.randrange(len(data) // 2 - size + 1), draw.randrange(len(data) // 2, len(data) - size + 1)))
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def duplicate(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[max(0, at - draw.randrange(1, 600)) : at] + data[at:]


def zero(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    size = min(draw.choice((1, 8, 512, 4096)), len(data) - at)
    return data[:at] + bytes(size) + data[at + size :]


def append(data: bytes, draw: random.Random) -> bytes:
    return data + draw.randbytes(draw.randrange(1, 64))


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    flip,
    flip,
    truncate,
    swap,
    duplicate,
    zero,
    append,
)


def read_all(folder: Path) -> dict[str, Any]:
    """Return all that a checkpoint holds, file by file, hashes checked."""
    names = [path.stem for path in sorted(folder.glob("*.safetensors"))]
    return {"state": repr(read_state(folder)), **{name: read_tensors(folder, name) for name in names}}


def is_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if a.keys() != b.keys() or a["state"] != b["state"]:
        return False
    groups = a.keys() - {"state"}
    return all(a[group].keys() == b[group].keys() for group in groups) and all(
        torch.equal(tensor, b[group][name]) for group in groups for name, tensor in a[group].items()
    )


def damage_at_random(run: Path, copy: Path, *, num_damages: int, seed: int) -> tuple[list[str], list[str], int]:
    """Damage one file after another; return what was loaded although it is wrong, bad errors, and how many damages were refused."""
    shutil.copytree(run, copy)
    draw = random.Random(seed)
    older, newest = sorted((copy / "checkpoints").glob("step-*"))[-2:]
    contents = read_all(newest), read_all(older)
    files = sorted(newest.iterdir())
    wrong, bad_errors, num_refused = [], [], 0
    for number in range(num_damages):
        path = files[number % len(files)]
        whole = path.read_bytes()
        damage = draw.choice(DAMAGES)
        damaged = damage(whole, draw)
        if damaged == whole:  # two equal blocks were swapped, or zeros made zero
            damaged = flip(whole, draw)
        path.write_bytes(damaged)
        label = f"{number}: {damage.__name__} of {path.name}"
        try:
            loaded = read_all(newest)
            if not is_same(loaded, contents[0]):
                wrong.append(f"{label} loads something else")
        except CheckpointError as error:
            num_refused += 1
            if str(newest) not in error.message or not any(advice in error.message for advice in ADVICE):
                bad_errors.append(f"{label}: {error.message}")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            last = find_last(copy / "checkpoints")
        if not is_same(read_all(last), contents[0] if last == newest else contents[1]):
            wrong.append(f"{label}: {last} is trusted")
        if last == older and not any(str(newest) in str(warning.message) for warning in said):
            bad_errors.append(f"{label}: skipped without a word")
        path.write_bytes(whole)
    return wrong, bad_errors, num_refused


@pytest.mark.parametrize("num_damages", [120, pytest.param(600, marks=pytest.mark.long)])
def test_durability_damage_is_never_loaded_in_silence(run, tmp_path, num_damages):
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong, bad_errors, num_refused = damage_at_random(run, tmp_path / "run", num_damages=num_damages, seed=0)
    assert wrong == []
    assert bad_errors == []
    assert num_refused > 0.95 * num_damages  # white space of the manifest, or its run's name, may change
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * peak_before


def test_durability_control_without_hashes_damage_is_loaded_in_silence(run, tmp_path, monkeypatch):
    real = scan.check_file
    for module in ("scan", "read"):
        monkeypatch.setattr(
            f"velodrome.checkpoint.{module}.check_file", lambda path, record, hashes: real(path, record, hashes=False)
        )
    wrong = []
    try:
        wrong = damage_at_random(run, tmp_path / "run", num_damages=100, seed=0)[0]
    except (CheckpointError, ValueError, TypeError, KeyError):
        wrong.append("the scan trusted what cannot be read")
    assert wrong


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_durability_file_of_another_checkpoint_is_refused(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "run")
    older, newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-2:]
    shutil.copyfile(older / name, newest / name)
    with pytest.raises(CheckpointError, match="step-00000010"):
        read_all(newest)
    with pytest.warns(RuntimeWarning, match="newer checkpoints were skipped: .*step-00000010"):
        assert find_last(tmp_path / "run" / "checkpoints") == older
