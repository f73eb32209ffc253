"""Several processes of one command on this machine, started and watched by torch's own elastic launcher.

They meet at a port of this machine that the system chooses. When one fails the others are ended; nothing is started again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

from velodrome.cores import usable_cores
from velodrome.errors import ArgumentError, WorldError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Failure", "check_processes", "launch", "leave_failure"]

# torch's elastic launcher names the file in which a process leaves its error in this variable.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_HANDLED = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How the process ended that failed first."""

    rank: int
    exit_code: int
    """of the process; minus the signal that killed it"""
    told: Mapping[str, Any] | None
    """what it left with `leave_failure`"""

    @property
    def sentence(self) -> str:
        """Name the rank, and what became of it."""
        if self.exit_code >= 0:
            return f"Rank {self.rank} ended with exit code {self.exit_code}."
        name = signal.Signals(-self.exit_code).name if -self.exit_code in set(signal.Signals) else "an unknown signal"
        memory = " The system does that when memory runs out." if self.exit_code == -signal.SIGKILL else ""
        return f"Rank {self.rank} was killed by signal {-self.exit_code} ({name}).{memory}"


def check_processes(processes: object) -> int:
    """Return the number of processes.

    Raises:
        ArgumentError: it is no whole number of at least 1.
    """
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ArgumentError(
            f"processes={processes!r} is not a number of processes. It must be a whole number of at least 1."
        )
    return processes


def launch(module: str, arguments: Sequence[str], *, processes: int) -> Failure | None:
    """Run `python -m module arguments` in so many processes that form a world; return the first failure, or None.

    Ctrl-C, SIGTERM and SIGHUP reach the processes. Each gets its share of the cores that this one may use, in its own environment only.

    Raises:
        KeyboardInterrupt: this process got SIGINT; the others were ended.
        WorldError: it got another signal that ends, such as SIGTERM; its number is the field `signal`.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_processes(processes)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what happened is told in one sentence
    threads = str(max(1, usable_cores() // processes))
    # For what processes leave behind.
    with tempfile.TemporaryDirectory(prefix="velodrome-") as folder, _signals_put_back():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=uuid.uuid4().hex,
            max_restarts=0,
            monitor_interval=0.1,
            local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            child = ["-m", "velodrome.distributed.child", str(os.getpid()), threads]
            elastic_launch(config, sys.executable)(*child, module, *arguments)
        except ChildFailedError as error:
            return _first_failure(error.failures)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            name = signal.Signals(error.sigval).name
            raise WorldError(f"{name} came: the {processes} processes were ended.", signal=int(error.sigval)) from None
    return None


def leave_failure(kind: str, message: str, exit_code: int, **fields: Any) -> bool:
    """Leave an error to the launcher, which tells it once for all processes; return False where there is no launcher.

    Args:
        kind: the name of its class.
        message: what people read.
        exit_code: with which this process will end.
        fields: more facts, for machines.
    """
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return False
    told = {"kind": kind, "message": message, "exit_code": exit_code, "fields": fields}
    # In the form that torch's launcher reads, and torchrun prints.
    extra = {"py_callstack": message, "timestamp": str(int(time()))}
    with suppress(OSError):
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"message": {"message": json.dumps(told, default=str), "extraInfo": extra}}, file)
        return True
    return False


@contextmanager
def _signals_put_back() -> Iterator[None]:
    """Put back the handlers, and the variable that names them, which torch's launcher leaves as it needed them."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)


def _first_failure(failures: Mapping[int, Any]) -> Failure:
    """Return the failure that the others follow from: not the end that the launcher made, nor an error about another rank."""
    found = [
        Failure(rank=rank, exit_code=failure.exitcode, told=_read(failure))
        for rank, failure in sorted(failures.items())
    ]

    def is_secondary(failure: Failure) -> tuple[bool, bool]:
        was_ended = failure.exit_code == -signal.SIGTERM
        return was_ended, failure.told is not None and failure.told["kind"] == "WorldError"

    return min(found, key=is_secondary)


def _read(failure: Any) -> Mapping[str, Any] | None:
    try:
        told = json.loads(failure.message["message"])
    except (TypeError, ValueError, KeyError):
        return None  # torch's own words for a process that left none
    return told if isinstance(told, dict) and "exit_code" in told else None
