"""TensorBoard files: `Loss/train`, `Loss/val`, `Accuracy/train`, `Accuracy/val`, and `Step/...` between."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from types import ModuleType
from typing import TYPE_CHECKING

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.utils.tensorboard.writer import SummaryWriter

__all__ = ["INSTALL_HINT", "TensorBoardSink", "has_tensorboard"]

INSTALL_HINT = 'pip install "velodrome[tensorboard]"'

_SPLITS = ("train", "val")
_HOLD_S = 20.0


def has_tensorboard() -> bool:
    """Tell whether the package is installed, without importing it."""
    if "tensorboard" in sys.modules:
        return sys.modules["tensorboard"] is not None
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardSink:
    """Writes scalars through torch's own SummaryWriter; the x axis is the number of optimizer steps done.

    The writer is made late, because importing it takes 0.2 s (a second from a cold disk): at the first epoch
    row, when no batch is waiting, or at the first row after 20 s in a long epoch. Rows that come earlier are
    held until then.

    Args:
        log_dir: the folder for the event files.
    Raises:
        ArgumentError: tensorboard is not installed.
    """

    def __init__(self, log_dir: Path) -> None:
        if not has_tensorboard():
            raise ArgumentError(
                "TensorBoard files were asked for, but tensorboard is not installed. It is an extra. "
                f"Run: {INSTALL_HINT}"
            )
        self._log_dir = log_dir
        self._held: list[Mapping[str, object]] = []
        self._hold_until = time.monotonic() + _HOLD_S
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    def go_on(self, rows: Sequence[Mapping[str, object]], step: int) -> None:
        """Have TensorBoard forget what earlier files say from the last epoch's row on, and write the rows since then again.

        Not from the step on: the writer flushes at an epoch's row, so what a killed process wrote after it may never have come to the
        disk, although the journal has it.
        """
        placed = [(at, row) for row in rows if isinstance(at := row.get("step"), int)]
        ends = [at for at, row in placed if row.get("kind") == "epoch"]
        start = min(step, ends[-1]) if ends else 0
        self._purge_step = start
        self._held = [row for at, row in placed if at >= start]

    def write(self, row: Mapping[str, object]) -> None:
        """Write the numbers of one row under their tags."""
        is_epoch = row.get("kind") == "epoch"
        if self._writer is None:
            self._held.append(row)
            if is_epoch or time.monotonic() >= self._hold_until:
                self._write_held()
        else:
            self._add(self._writer, row)
        if is_epoch and self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is held and close the event file."""
        if self._held:
            self._write_held()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_held(self) -> None:
        self._writer = _make_writer(self._log_dir, self._purge_step)
        held, self._held = self._held, []
        for row in held:
            self._add(self._writer, row)

    def _add(self, writer: SummaryWriter, row: Mapping[str, object]) -> None:
        step = row.get("step")
        step = step if isinstance(step, int) else None
        for tag, value in make_tags(row).items():
            writer.add_scalar(tag, value, step)


def make_tags(row: Mapping[str, object]) -> dict[str, float]:
    """Return the scalars of a row under TensorBoard's names; what is not a number is left out.

    >>> make_tags({"kind": "epoch", "step": 9, "train/loss": 0.5, "val/top5": 0.75, "val/auc": None})
    {'Loss/train': 0.5, 'Top5/val': 0.75}
    >>> make_tags({"kind": "step", "step": 9, "lr": 0.1, "train/loss": 0.5, "samples_per_s": 10.0})
    {'Step/lr': 0.1, 'Step/loss': 0.5, 'Step/samples_per_s': 10.0}
    """
    tags: dict[str, float] = {}
    is_step = row.get("kind") == "step"
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        split, slash, metric = name.partition("/")
        if is_step and slash:
            tags[f"Step/{metric if split == 'train' else name}"] = float(value)
        elif is_step and name not in ("epoch", "step", "samples", "seconds"):
            tags[f"Step/{name}"] = float(value)
        elif slash and split in _SPLITS:
            tags[f"{metric[:1].upper()}{metric[1:]}/{split}"] = float(value)
        elif slash:
            tags[name] = float(value)
    return tags


def _make_writer(log_dir: Path, purge_step: int | None = None) -> SummaryWriter:
    """Make a writer whose file TensorBoard reads after those that are there: it takes them in the order of their names.

    A name is `events.out.tfevents.<second>.<host>.<process>.<number>`, compared as text: within a second, number 10 is
    read before number 9 and process 1000 before 999, and a run that goes on would be purged by nobody. Such a file is
    made again in the next second; a clock that went back is not waited for.
    """
    # tensorboard imports the whole of TensorFlow when it finds it, with seconds of delay and pages of log
    # lines, to open a local file. This name is its own switch for "use the built-in stand-in"
    # (tensorboard/compat/__init__.py).
    if "tensorflow" not in sys.modules:
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

    there = _event_files(log_dir)
    writer = _open_writer(log_dir, purge_step)
    for name in _event_files(log_dir) - there:
        if any(_second(other) == _second(name) and other > name for other in there):
            writer.close()
            (log_dir / name).unlink()
            time.sleep(1 - time.time() % 1)
            return _open_writer(log_dir, purge_step)
    return writer


def _open_writer(log_dir: Path, purge_step: int | None) -> SummaryWriter:
    from torch.utils.tensorboard.writer import SummaryWriter

    before = set(threading.enumerate())
    writer = SummaryWriter(str(log_dir), flush_secs=20, purge_step=purge_step)
    for thread in set(threading.enumerate()) - before:
        if type(thread).__module__.startswith("tensorboard."):
            # On a full disk the writing thread hands us its error, and then prints it again as a page of
            # traceback. Should Python rename this attribute, that page comes back and nothing else changes.
            vars(thread)["_invoke_excepthook"] = lambda *_: None
    return writer


def _event_files(log_dir: Path) -> set[str]:
    return {path.name for path in log_dir.glob("events.out.tfevents.*")}


def _second(name: str) -> str:
    return name.removeprefix("events.out.tfevents.").partition(".")[0]
