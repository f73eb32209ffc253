"""Groups of processes on this machine, for tests of code that trains in several of them."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from velodrome.errors import WorldError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import ModuleType, TracebackType

_GRACE_S = 5.0
"""how long the others may go on after a process has failed: they may fail too, or wait for it"""

__all__ = ["Failure", "Processes", "run_in_processes"]


def run_in_processes(function: Callable[..., Any], size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Run a function in so many processes that form a world, and return what it returned, by rank.

    Args:
        function: of a module, not of a class or another function; a `Trainer` made in it joins the world.
        size: the number of processes.
        args: handed to each; anything that can be pickled.
        timeout_s: for the whole call.
    Raises:
        WorldError: a process failed, with its traceback, or gave no answer in time.
    Cost: starting Python and torch, about two seconds a process; `Processes` serves many calls.
    """
    with Processes(size) as processes:
        return processes.run(function, *args, timeout_s=timeout_s)


class Processes:
    """Processes that form a world, over Gloo on this machine, and run what they are given.

    ```python
    with Processes(2) as processes:
        losses = processes.run(train_once, 1e-3)  # [what rank 0 returned, what rank 1 returned]
    ```
    """

    def __init__(self, size: int) -> None:
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        self.size = size
        # The store lives here, so that its port is free for certain, and no process is special.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, self._store.port), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """The processes' ids, by rank."""
        return [process.pid for process in self._processes]

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """Run a function in every process and return what it returned, by rank; see `run_in_processes`."""
        outcomes = self.outcomes(function, *args, timeout_s=timeout_s)
        failed = [(rank, outcome) for rank, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
        if failed:
            told = "\n".join(f"rank {rank} of {self.size}:\n{failure.text}" for rank, failure in failed)
            raise WorldError(
                f"{function.__name__} failed in {len(failed)} of {self.size} processes.\n{told}", rank=failed[0][0]
            )
        return outcomes

    def outcomes(self, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """Return what the function returned in each process, or a `Failure` where it raised or the process is gone."""
        from multiprocessing.connection import wait
        from time import monotonic

        call = pickle.dumps((_address(function), args))
        outcomes: list[Any] = [Failure("the process is gone")] * self.size
        waiting = {}
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(call)
                waiting[pipe] = rank
            except OSError:
                pass
        end = monotonic() + timeout_s
        while waiting:
            ready: Any = wait(list(waiting), timeout=max(0.0, end - monotonic()))
            if not ready:
                late = sorted(waiting.values())
                self.close()
                failed = [outcome for outcome in outcomes if isinstance(outcome, Failure) and outcome.kind]
                if failed:  # they wait for the one that failed: that one is told, and this group is over
                    for rank in late:
                        outcomes[rank] = Failure("it waited for the others")
                    return outcomes
                raise WorldError(
                    f"{function.__name__} gave no answer within {timeout_s:g} seconds in the ranks {late}.", ranks=late
                )
            for pipe in ready:
                rank = waiting.pop(pipe)
                with suppress(EOFError):  # gone; what stands there says so
                    outcomes[rank] = pickle.loads(pipe.recv_bytes())
                if isinstance(outcomes[rank], Failure):
                    end = min(end, monotonic() + _GRACE_S)
        return outcomes

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()  # they end when nothing can come any more
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Failure:
    """How a call ended in a process that did not return: the traceback as text, and the error's class name."""

    def __init__(self, text: str, kind: str = "") -> None:
        self.text = text
        self.kind = kind

    def __repr__(self) -> str:
        return f"Failure({self.kind}: {self.text})"


def _address(function: Callable[..., Any]) -> tuple[str, str | None, str]:
    """Return where a function is to be found: module, file and name; a test's module may not be importable by name."""
    module = sys.modules[function.__module__]
    return function.__module__, getattr(module, "__file__", None), function.__qualname__


def _find(address: tuple[str, str | None, str]) -> Callable[..., Any]:
    name, path, function = address
    return getattr(_module(name, path), function)


def _module(name: str, path: str | None) -> ModuleType:
    if name not in sys.modules and path is not None:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name] if name in sys.modules else importlib.import_module(name)


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    """Be one process of a world: run what comes through the pipe until it closes."""
    # As torchrun sets them, in a process that was made for nothing else.
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0",
    )  # fmt: skip
    import torch

    torch.set_num_threads(1)
    multiprocessing.current_process().daemon = False  # data loaders may start workers of their own
    while True:
        try:
            call = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            address, args = pickle.loads(call)
            answer = pickle.dumps(_find(address)(*args))
        except BaseException as error:
            answer = pickle.dumps(Failure(traceback.format_exc(), type(error).__name__))
        try:
            pipe.send_bytes(answer)
        except OSError:
            return
