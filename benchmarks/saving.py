"""Claim: a save in the background keeps training waiting for less than 5 ms and the copy; nothing of a save is given up for that.

Two networks on random data: the main job's (784-512-512-10 with Adam, 670,000 weights) and a large one (25 million). Arms, in turns: the same loop
without a save, once more (the noise floor), with Velodrome's saves in the foreground and in the background, and with `torch.save` of the
state dicts of model, optimizer and generator, as it is usually written and followed by `fsync`. A Velodrome checkpoint is hashed, flushed
to the disk file by file, renamed into its place, and holds the position in the data and all else that a run goes on from.

Stall: the time from the end of the loop's body to the next batch, at a save; the median of the other batches is taken off. Added: the time of the
whole loop, until the last save is on the disk, beyond that of the loop without saves, for each save. Each arm's last
checkpoint is read back and compared with the weights that the loop without saves ended with.

    python benchmarks/saving.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

import velodrome as vd
from harness import add_common_options, environment, interleave, opening, summary, write_record
from velodrome.checkpoint.read import find_last, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MODELS = {
    "main job": {"sizes": [784, 512, 512, 10], "batch": 128, "steps": 120, "every": 20},
    "large": {"sizes": [784, 3250, 3250, 3250, 10], "batch": 32, "steps": 15, "every": 5},
}
SMALL = {"small": {"sizes": [16, 8, 4], "batch": 8, "steps": 8, "every": 4}}
ARMS = ("no save", "no save again", "foreground", "background", "torch.save", "torch.save and fsync")


def train(arm: str, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train with one way of saving; return stalls, the time of the loop and the weights that can be loaded."""
    torch.manual_seed(0)
    sizes, batch, every = spec["sizes"], spec["batch"], spec["every"]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    data = torch.randn(batch * spec["steps"], sizes[0]), torch.randint(0, sizes[-1], (batch * spec["steps"],))
    loader = vd.DataLoader(data, batch)
    folder = Path(tempfile.mkdtemp(dir=folder))
    ours = arm in ("foreground", "background")
    policy = vd.Checkpointing(every=f"{every} steps", keep_best=0, background=arm == "background") if ours else None
    trainer = vd.Trainer(
        model, "adam", lr=1e-3, seed=0, device="cpu", progress=False, loggers=[], run_dir=folder / "run" if ours else None, checkpoint=policy,
    )  # fmt: skip
    save = None if ours or arm.startswith("no save") else partial(torch_save, folder, trainer, fsync="fsync" in arm)
    stalls, others, ended_at = [], [], 0.0
    started = perf_counter()
    for epoch in trainer.epochs(1):
        for step, (inputs, targets) in enumerate(epoch.train(loader)):
            if step:
                (stalls if step % every == 0 else others).append(perf_counter() - ended_at)
            trainer.step(F.cross_entropy(trainer.model(inputs), targets))
            ended_at = perf_counter()
            if save is not None and (step + 1) % every == 0:
                save(step + 1)
    seconds = perf_counter() - started
    rest = median(others)
    weights = load(folder, arm) or {name: value.detach() for name, value in model.state_dict().items()}
    shutil.rmtree(folder)
    return {"stalls_s": [stall - rest for stall in stalls], "seconds": seconds, "weights": weights}


def torch_save(folder: Path, trainer: vd.Trainer, step: int, *, fsync: bool) -> None:
    """Save as most scripts do, and keep two."""
    state = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "step": step,
    }
    with open(folder / f"step-{step:08d}.pt", "wb") as file:
        torch.save(state, file)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    for old in sorted(folder.glob("step-*.pt"))[:-2]:
        old.unlink()


def load(folder: Path, arm: str) -> dict[str, Tensor] | None:
    """Return the weights of the last checkpoint; None where nothing was saved."""
    if arm in ("foreground", "background"):
        return read_tensors(find_last(folder / "run" / "checkpoints"))
    files = sorted(folder.glob("step-*.pt"))
    return torch.load(files[-1], weights_only=True)["model"] if files else None


def copy_ms(spec: dict[str, Any]) -> float:
    """Return how long it takes to copy weights and Adam's two moments into memory that is there already."""
    num = sum(a * b + b for a, b in pairwise(spec["sizes"]))
    source, target = torch.ones(3 * num), torch.zeros(3 * num)
    times = []
    for _ in range(7):
        start = perf_counter()
        target.copy_(source)
        times.append(1000 * (perf_counter() - start))
    return median(times)


def measure(spec: dict[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    """Run all arms on one network and return the results."""
    arms: dict[str, Callable[[], dict[str, Any]]] = {arm: partial(train, arm, spec, folder) for arm in ARMS}
    interleave(arms, rounds=1, say=False)  # warm-up
    runs = interleave(arms, rounds=rounds, say=False)
    reference = runs["no save"][0]["weights"]
    same = {
        arm: all(torch.equal(value, run["weights"][name]) for run in results for name, value in reference.items())
        for arm, results in runs.items()
    }
    num_saves = spec["steps"] // spec["every"]
    plain = [run["seconds"] for run in runs["no save"]]
    return {
        "num_weights": sum(value.numel() for value in reference.values()),
        "num_saves": num_saves,
        "copy_ms": copy_ms(spec),
        "stall_ms": {arm: summary([1000 * s for run in runs[arm] for s in run["stalls_s"]]) for arm in ARMS},
        "added_ms_per_save": {
            arm: summary(
                [1000 * (run["seconds"] - base) / num_saves for run, base in zip(runs[arm], plain, strict=True)]
            )
            for arm in ARMS[1:]
        },
        "loads_the_same_weights": same,
        "seconds": {arm: [run["seconds"] for run in runs[arm]] for arm in ARMS},
    }


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(
        description=opening(__doc__), epilog="Takes about three minutes, on two idle cores."
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where checkpoints go; a temporary folder when left out"
    )
    parser.add_argument("--small", action="store_true", help="a network of no size, to see that everything runs")
    add_common_options(parser, rounds=5)
    options = parser.parse_args()
    facts = environment(threads=torch.get_num_threads(), rounds=options.rounds)
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, spec in (SMALL if options.small else MODELS).items():
            results[name] = found = measure(spec, Path(folder), options.rounds)
            print(f"{name}: {found['num_weights']:,} weights, copied in {found['copy_ms']:.1f} ms")
            for arm in ARMS[1:]:
                stall, added = found["stall_ms"][arm], found["added_ms_per_save"][arm]
                print(
                    f"  {arm:<22} stall {stall['median']:7.1f} ms ({stall['min']:.1f} to {stall['max']:.1f}), adds {added['median']:7.1f} ms a save"
                )
            if not all(found["loads_the_same_weights"].values()):
                raise SystemExit(f"Not all arms load the same weights: {found['loads_the_same_weights']}")
    write_record("saving", {"environment": facts, "results": results}, options.records)


if __name__ == "__main__":
    main()
