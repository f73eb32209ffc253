"""Run by `test_durability_runs.py` in a process of its own: whole small runs, each with one file operation that goes wrong.

    python tests/laws/crash_trials.py FOLDER STRIDE MODE:foreground|background|control:FIRST [...]

Every call of `os` that changes the disk is counted: those of checkpoints, `run.json`, `best.json`, `latest.json`, `log.txt` and the journal.
In trial k (FIRST, FIRST + STRIDE, ...) the k-th one fails, or ends the process; then the run is gone on with, undisturbed. Prints a JSON table of what was seen for each case, a line each.
The control goes on without cutting the journal back: it reports twice what came after the checkpoint.
The process has one thread, so that forking it is safe.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint.read import find_last, read_state, read_tensors
from velodrome.record.journal import Journal

OPERATIONS = ("open", "write", "fsync", "replace", "link", "unlink", "rmdir", "mkdir")
X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


class Fault:
    """Makes operation number `fail_at` go wrong, whichever thread asks for it."""

    def __init__(self, fail_at: int, mode: str) -> None:
        self.fail_at, self.mode, self.count = fail_at, mode, 0

    def install(self) -> None:
        for name in OPERATIONS:
            setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Any) -> Any:
        def operation(*arguments: Any, **options: Any) -> Any:
            if real.__name__ == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return real(*arguments, **options)
            self.count += 1
            if self.count != self.fail_at:
                return real(*arguments, **options)
            if self.mode == "exit before":
                os._exit(9)
            if self.mode == "exit after":
                real(*arguments, **options)
                os._exit(9)
            if self.mode == "short write":
                if real.__name__ == "write" and len(arguments[1]) > 1:
                    return real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                return real(*arguments, **options)
            code = getattr(errno, self.mode)
            raise OSError(
                code, os.strerror(code), os.fspath(arguments[0]) if isinstance(arguments[0], (str, Path)) else None
            )

        return operation


def train(folder: Path, *, background: bool, fault: Fault | None = None) -> str:
    """Run two epochs of three steps, or what is left of them; return why it ended."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 3))
    if fault is not None:
        fault.install()
    trainer = vd.Trainer(
        model, "adam", lr=0.02, loss="cross_entropy", seed=5, run_dir=folder, device="cpu", progress=False, loggers=["csv"], resume="auto",
        log_every="2 steps", checkpoint=vd.Checkpointing(every="2 steps", background=background),
    )  # fmt: skip
    return str(trainer.fit((X, Y), (X[:5], Y[:5]), batch_size=4, epochs=2).stop_reason)


def forked(work: Any) -> tuple[int, str]:
    """Call `work` in a child; return its exit status and what it returned or raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        real_write, code = os.write, 1
        try:
            real_write(writing, str(work()).encode())
            code = 0
        except BaseException:
            real_write(writing, traceback.format_exc().encode()[-3000:])
        os._exit(code)
    os.close(writing)
    with open(reading, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


def outcome(folder: Path) -> str:
    """Return all that a run ends with, times aside, as a text."""
    last = find_last(folder / "checkpoints")
    state = read_state(last)
    tensors = {
        name: {key: value.tolist() for key, value in read_tensors(last, name).items()}
        for name in ("model", "optimizer", "rng-rank0")
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [{key: value for key, value in row.items() if key not in ("seconds", "samples_per_s")} for row in rows]
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    status = json.loads((folder / "run.json").read_text())["status"]
    return json.dumps([last.name, state["progress"]["steps_done"], tensors, plain, best, status], sort_keys=True)


def go_on(folder: Path, kind: str) -> str:
    """Train what is left, undisturbed."""
    if kind == "control":
        whole = Journal.go_back
        Journal.go_back = lambda self, num_bytes, *, step: whole(self, None, step=step)
    return train(folder, background=kind == "background")


def main() -> None:
    """Run the trials of each case."""
    root, stride = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    train(root / "warm", background=False)  # all that is imported late is there before the first fork
    for number, case in enumerate(sys.argv[3:]):
        mode, kind, first = case.split(":")
        print(json.dumps(run_case(root / str(number), mode, kind, int(first), stride)), flush=True)


def run_case(root: Path, mode: str, kind: str, first: int, stride: int) -> dict[str, Any]:
    """Try every so many-th operation; return what was seen."""
    background = kind == "background"
    straight = forked(lambda: train(root / "straight", background=background))
    assert straight[0] == 0, straight[1]
    expected = outcome(root / "straight")

    def count() -> int:
        fault = Fault(0, "")
        train(root / "count", background=background, fault=fault)
        return fault.count

    num_operations = int(forked(count)[1])
    seen: dict[str, Any] = {"operations": num_operations, "ended": [], "went_through": [], "problems": []}
    for fail_at in range(first, num_operations + 1, stride):
        folder = root / str(fail_at)
        code, text = forked(lambda at=fail_at, into=folder: train(into, background=background, fault=Fault(at, mode)))
        seen["ended" if code else "went_through"].append(fail_at)
        if code == 1 and not mode.startswith("exit") and "cannot be written to" not in text:
            seen["problems"].append(
                f"operation {fail_at}: {text[-600:]}"
            )  # neither refused before the first step nor gone on
        code, text = forked(lambda into=folder: go_on(into, kind))
        try:
            if code or outcome(folder) != expected:
                raise ValueError(f"it ends otherwise: {text[-600:]}")
        except (vd.errors.VelodromeError, OSError, ValueError) as error:
            seen["problems"].append(f"operation {fail_at}, gone on with: {error}")
        leftover = [path.name for path in (folder / "checkpoints").glob(".*")]
        if leftover:
            seen["problems"].append(f"operation {fail_at} leaves {leftover}")
    return seen


if __name__ == "__main__":
    main()
