"""Run by `test_durability_kills.py` in a process of its own: forks a child per trial that saves in a loop, and kills it at a random moment.

    python tests/laws/kill_trials.py FOLDER SEED TRIALS KIND [KIND ...]

Prints a JSON table of what was seen for each kind, a line each. The control ends as soon as it has lost something. The process has one thread, so that forking it is safe.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.saver import Saver
from velodrome.checkpoint.scan import find_checkpoints, read_best
from velodrome.checkpoint.store import CheckpointStore

if TYPE_CHECKING:
    from velodrome.checkpoint.store import Content

RUN = "run-a"
NUM_VALUES = 40_000  # 160 KB a tensor: a kill falls inside of a file, too


class RemovesFirst(CheckpointStore):
    """The control: takes the old checkpoint away before the new one is in place."""

    def write(self, content: Content) -> Path:
        for found in self._own():
            self._discard(found.path)
        return super().write(content)


def content_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return what the checkpoint of a step holds: every number says which step it is."""
    weight = torch.full((NUM_VALUES,), float(step))
    return {"model": {"w": weight, "b": -weight[:3]}, "optimizer": {"w/exp_avg": weight / 2}}


def save_for_ever(folder: Path, kind: str, report: int) -> None:
    """Go on from the newest checkpoint, as a run does, and save step after step; say when a step is on the disk."""
    store = (RemovesFirst if kind == "control" else CheckpointStore)(folder, run_id=RUN)
    saver = Saver(store, keep_last=2, warn=lambda line: None)
    latest = store.latest()
    step = 0 if latest is None else read_state(latest)["step"]
    while True:
        # Every fifth time the same step again: the new one takes the place of the old.
        step += 1 if step % 5 or kind != "foreground" else random.random() < 0.5
        content = store.prepare(step, content_of(step), {"step": step})
        saver.save(content, keep=(), before=lambda: None, in_background=kind == "background")
        if kind == "background":
            saver.mark_best(step, monitor="x", value=float(step))
            saver.wait()
        assert saver.outcomes()[0].path is not None
        os.write(report, step.to_bytes(8, "little"))


def look(folder: Path, reported: int, seen: dict[str, Any]) -> None:
    """Load the newest checkpoint as the next process would, and count what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        latest = CheckpointStore(folder, run_id=RUN).latest()
    step = 0 if latest is None else read_state(latest)["step"]
    if step < reported:
        seen["lost"] += 1
    if latest is not None:
        for group, expected in content_of(step).items():
            loaded = read_tensors(latest, group)
            if loaded.keys() != expected.keys() or not all(
                torch.equal(loaded[name], expected[name]) for name in expected
            ):
                seen["wrong"] += 1
    best = read_best(folder) if folder.exists() else None
    seen["bad_marks"] += best is not None and best.value != best.step
    litter = list(folder.glob(".*")) if folder.exists() else []
    seen["killed_inside"] += bool(litter)
    seen["reached"] = step


def main() -> None:
    """Run the trials of each kind."""
    folder, seed, trials = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    for kind in sys.argv[4:]:
        print(json.dumps(run_trials(folder / kind, seed, trials, kind)))


def run_trials(folder: Path, seed: int, trials: int, kind: str) -> dict[str, Any]:
    """Kill so many processes, each of which goes on from what the one before it left; return what was seen."""
    delays = random.Random(seed)
    seen: dict[str, Any] = {
        "trials": 0,
        "lost": 0,
        "wrong": 0,
        "bad_marks": 0,
        "killed_inside": 0,
        "litter": 0,
        "reached": 0,
    }
    reported = 0
    for trial in range(trials):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            random.seed(seed + trial)
            try:
                save_for_ever(folder, kind, writing)
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(delays.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "the child ended by itself"
        with open(reading, "rb") as file:
            told = file.read()
        if told:
            reported = max(reported, int.from_bytes(told[-8:], "little"))
        look(folder, 0 if kind == "control" and seen["lost"] else reported, seen)
        seen["trials"] += 1
        if kind == "control" and seen["lost"]:
            break
    if kind != "control":
        store = CheckpointStore(folder, run_id=RUN)
        store.write(store.prepare(seen["reached"] + 1, content_of(0), {"step": 0}))
        store.prune()
        seen["litter"] = len(list(folder.glob(".*")))
        seen["problems"] = [found.problem for found in find_checkpoints(folder) if found.problem]
    return seen


if __name__ == "__main__":
    main()
