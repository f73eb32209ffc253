"""A verb that trains and was told to stop: how to go on, and the exit code that shells and schedulers expect."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from velodrome.errors import VelodromeError
from velodrome.stopping.interruption import TERMINATED_CODE, Terminated, was_left_in_order

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.loop.result import FitResult
    from velodrome.trainer import Trainer

INTERRUPTED_CODE = 130


class StoppedRun(VelodromeError):
    """A run was told to stop, by a signal or a deadline; where it is saved has been said already."""

    def __init__(self, message: str, *, code: int, **fields: object) -> None:
        super().__init__(message, **fields)
        self.exit_code = code  # pyright: ignore[reportAttributeAccessIssue, reportIncompatibleVariableOverride]


def fit(trainer: Trainer, train: Any, val: Any, run_dir: Path, options: str, **arguments: Any) -> FitResult:
    """Train to the end.

    Args:
        trainer, train, val, arguments: of `Trainer.fit`.
        run_dir: as people read and copy it.
        options: what `velodrome resume` needs besides, with a space in front.
    Raises:
        StoppedRun: it was told to stop before; with the command that goes on.
        KeyboardInterrupt: it was interrupted twice, and stopped without a save.
    """
    from velodrome.loop.progress import StopReason

    try:
        result = trainer.fit(train, val, **arguments)
    except (KeyboardInterrupt, Terminated) as told:
        if not was_left_in_order(told):
            raise
        code = TERMINATED_CODE if isinstance(told, Terminated) else INTERRUPTED_CODE
        reason = trainer.result.stop_reason
        if reason in (StopReason.INTERRUPTED, StopReason.TERMINATED):
            raise _stopped(trainer, run_dir, options, code) from told
        raise StoppedRun(f"The run was over: {reason}", code=code, run_dir=str(run_dir)) from told
    if result.stop_reason is StopReason.DEADLINE:
        raise _stopped(trainer, run_dir, options, TERMINATED_CODE)
    return result


def _stopped(trainer: Trainer, run_dir: Path, options: str, code: int) -> StoppedRun:
    command = f"velodrome resume {shlex.quote(str(run_dir))}{options}"
    facts = {
        "stop_reason": str(trainer.result.stop_reason),
        "run_dir": str(run_dir),
        "step": trainer.progress.steps_done,
    }
    return StoppedRun(f"Go on with: {command}", code=code, command=command, **facts)
