"""A verb in several processes: started by `--processes`, or by torchrun."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from velodrome.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


def is_main() -> bool:
    """Return whether this process speaks: the only one, or rank 0 of several."""
    return os.environ.get("RANK", "0") == "0"


def is_launched() -> bool:
    """Return whether `--processes` started this process: what goes wrong is then told by the one that started it."""
    return "VELODROME_LAUNCHER" in os.environ


def main_first(device: str, function: Callable[[], T]) -> T:
    """Call a function in the main process, then in the others: what it downloads or unpacks is there by then."""
    if "RANK" not in os.environ:
        return function()
    from velodrome.devices import resolve_device
    from velodrome.distributed.world import join_world, local_device

    world = join_world(resolve_device(local_device(device)))
    if not world.is_main:
        world.barrier()
    result = function()
    if world.is_main:
        world.barrier()
    return result


class RankError(WorldError):
    """What a process left before it ended, told by the one that started it, with that process's exit code."""

    def __init__(self, message: str, *, kind: str, code: int, **fields: object) -> None:
        super().__init__(message, **fields)
        self.kind = kind
        self.exit_code = code  # pyright: ignore[reportAttributeAccessIssue, reportIncompatibleVariableOverride]


def run_verb(arguments: Sequence[str], *, processes: int) -> None:
    """Run a verb of the command line in so many processes.

    Raises:
        RankError: one failed; its message, or a sentence that names its rank.
        ArgumentError: no number of processes.
    """
    from velodrome.distributed.launch import launch

    try:
        failure = launch("velodrome", arguments, processes=processes)
    except WorldError as error:
        code = 128 + int(error.signal)  # as shells say it: 143 for SIGTERM  # type: ignore[call-overload]
        raise RankError(error.message, kind="Terminated", code=code) from None
    if failure is None:
        return
    told = failure.told
    if told is None:
        code = failure.exit_code if failure.exit_code > 0 else 1
        raise RankError(
            f"{failure.sentence} The other processes were ended.", kind="WorldError", code=code, rank=failure.rank
        )
    where = "" if told["kind"] == "Stopped" else f" [rank {failure.rank} of {processes}]"
    raise RankError(f"{told['message']}{where}", kind=told["kind"], code=told["exit_code"], **told["fields"])
