"""Worker processes that die or hang: noticed, explained, never waited for without an end.

PyTorch's loader notices a dead worker by a signal that raises a RuntimeError wherever the training process is, in the middle of an
optimizer's step too, and waits for one that hangs without an end. Here both are looked for while a batch is waited for, and only then.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
import weakref
from contextlib import contextmanager, suppress
from multiprocessing import get_context, get_start_method
from multiprocessing.connection import wait
from pickle import PicklingError
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import torch
from torch._C import (
    _error_if_any_worker_fails,  # pyright: ignore[reportAttributeAccessIssue]
    _remove_worker_pids,  # pyright: ignore[reportAttributeAccessIssue]
    _set_worker_pids,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Subset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from velodrome.data.failures import describe_error
from velodrome.data.fetching import Fetching
from velodrome.data.streaming import Streaming
from velodrome.errors import DataError, FetchError
from velodrome.free_memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

__all__ = ["DEFAULT_TIMEOUT_S", "WatchedLoader", "WorkerStart"]

DEFAULT_TIMEOUT_S = 600.0
"""how long a batch is waited for; as the collectives of several processes, whose others wait meanwhile"""

_POLL_S = 1.0
_ENDING_S = 5.0
# Nobody uses this one: SIGUSR1 and SIGUSR2 are asked for by schedulers and by users. Nowhere but in workers is it listened to.
_DUMP_SIGNAL: int | None = int(signal.SIGRTMIN) + 9 if hasattr(signal, "SIGRTMIN") else getattr(signal, "SIGUSR2", None)
_DUMP_WAIT_S = 2.0


class WorkerStartError(Exception):
    """`worker_init_fn` raised: what PyTorch brings to the training process, as text."""


class WorkerStart:
    """What a worker process does first: it shows the user their own dataset, gets ready to show its stack, calls `worker_init_fn`.

    Args:
        own: the user's `worker_init_fn`.
    """

    def __init__(self, own: Callable[[int], Any] | None) -> None:
        self._own = own
        self._pipe: tuple[Connection, Connection] | None = None

    def open_pipe(self) -> None:
        """Make what the stacks come through; called before workers are started."""
        if self._pipe is None and hasattr(faulthandler, "register"):
            from multiprocessing import Pipe

            self._pipe = Pipe(duplex=False)

    def __call__(self, worker_id: int) -> None:
        """Do so, in the worker."""
        info: Any = get_worker_info()
        if isinstance(info.dataset, (Fetching, Streaming)):  # they stand in its place
            object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._pipe is not None and _DUMP_SIGNAL is not None:
            faulthandler.register(_DUMP_SIGNAL, file=self._pipe[1].fileno(), all_threads=True)
        if self._own is not None:
            try:
                self._own(worker_id)
            except Exception as error:  # the user's: anything
                raise WorkerStartError(describe_error(error)) from error

    def stack_of(self, pid: int) -> str:
        """Return the stacks of all threads of a worker; nothing where it does not answer."""
        if self._pipe is None or _DUMP_SIGNAL is None:
            return ""
        reader, parts = self._pipe[0], []
        with suppress(OSError):
            os.kill(pid, _DUMP_SIGNAL)
            wait_s = _DUMP_WAIT_S
            while reader.poll(wait_s):
                parts.append(os.read(reader.fileno(), 1 << 16))
                wait_s = 0.2  # it writes line by line
        return b"".join(parts).decode(errors="replace").rstrip()

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.context import get_spawning_popen

        # A pipe goes along with a process that is being started, and with nothing else: a copy of a loader makes its own.
        return {"_own": self._own, "_pipe": self._pipe if get_spawning_popen() is not None else None}


class WatchedLoader(TorchDataLoader[Any]):
    """PyTorch's loader, whose workers are watched.

    Args:
        timeout_s: how long a batch is waited for; 0 waits without an end.
        what: the data, for messages.
        arguments: of PyTorch's loader, without `timeout`.
    """

    def __init__(self, dataset: Any, *, timeout_s: float, what: str, **arguments: Any) -> None:
        self.timeout_s = timeout_s
        self.what = what
        start = WorkerStart(arguments.pop("worker_init_fn", None))
        self.worker_start = start
        super().__init__(dataset, worker_init_fn=start, **arguments)

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.worker_start.open_pipe()
        self.check_worker_number_rationality()
        method = _start_method(self.multiprocessing_context)
        if method == "fork" and torch.cuda.is_initialized():
            _refuse_cuda_tensors(self._own_dataset)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "Got pickle error", UserWarning
                )  # the error itself comes, with what to do
                return _WatchedIterator(self)
        except (TypeError, AttributeError, PicklingError) as error:
            if method == "fork":  # nothing is pickled
                raise
            raise FetchError(
                f"{self.what} cannot be sent to worker processes that are started by {method}: {error}. Define dataset, collate_fn and "
                f"worker_init_fn at the top of a module, without lambdas, open files or locks in them; or use num_workers=0.",
                start_method=method,
            ) from error

    @property
    def _own_dataset(self) -> Any:
        return self.dataset.dataset if isinstance(self.dataset, (Fetching, Streaming)) else self.dataset

    def end_workers(self, iterator: Any) -> None:
        """End the workers after an error, whose traceback would keep them as long as it lives; the next epoch starts new ones."""
        self._iterator = None
        if isinstance(iterator, _WatchedIterator):
            iterator._shutdown_workers()


def _end(owner: int, done: Any, queues: list[Any], workers: list[Any]) -> None:
    """Tell workers to end, and wait for them, unless they have ended or are those of the process that this one was forked from."""
    if owner != os.getpid():
        return
    done.set()
    for queue in queues:
        with suppress(ValueError, OSError):  # closed: its worker was told
            queue.put(None)
    for worker in workers:
        with suppress(ValueError):  # closed
            worker.join(_ENDING_S)


class _WatchedIterator(_MultiProcessingDataLoaderIter):
    """Iterates as PyTorch's, and looks after the workers while it waits."""

    def __init__(self, loader: WatchedLoader) -> None:
        # Not the loader itself, which holds the iterator of workers that persist: both would live until a garbage collection, and in
        # the next forked worker too.
        self._timeout_s, self._what, self._start = loader.timeout_s, loader.what, loader.worker_start
        self._start_method = _start_method(loader.multiprocessing_context)
        self._owner = os.getpid()
        self._waiting_since: float | None = None
        self._stream = loader.dataset if isinstance(loader.dataset, Streaming) else None
        self._num_passed = 0
        super().__init__(loader)
        # A collection of garbage ends the queues before it asks this iterator to end its workers, which then wait for 5 s each.
        # What ends them here keeps the queues out of the garbage.
        ending = weakref.finalize(self, _end, self._owner, self._workers_done_event, self._index_queues, self._workers)
        ending.atexit = False  # PyTorch does

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        """Draw the first indices and hand them out; called as soon as the workers were started, and for each further epoch."""
        # From here on a death is looked for when a batch is wanted: it is not raised in a sampler.
        if self._worker_pids_set:
            self._worker_pids_set = False
            _remove_worker_pids(id(self))
        super()._reset(loader, first_iter)

    def _try_get_data(self, timeout: Any = _POLL_S) -> Any:
        """Wait a little for a batch of any worker; see PyTorch's own method.

        Raises:
            FetchError: a worker is dead, or none gave a batch for too long.
        """
        del timeout
        found = data = None
        try:
            if self._await_batch():
                with self._deaths_interrupt():
                    found, data = super()._try_get_data(_POLL_S)
        except (RuntimeError, OSError, EOFError) as error:  # the last two of what the dead one was to hand over
            lost = self._lost(tries=20)  # its end may be known a moment before its code is
            if not lost:
                raise
            raise _explain_death(*lost, what=self._what, num_workers=len(self._workers)) from error
        if found:
            self._waiting_since = None
            return True, data
        lost = self._lost()
        if lost:
            raise _explain_death(*lost, what=self._what, num_workers=len(self._workers))
        now = monotonic()
        passed = 0 if self._stream is None else self._stream.num_passed
        # Readers that go on in the middle leave items out, for as long as that takes.
        if self._waiting_since is None or passed != self._num_passed:
            self._num_passed = passed
            self._waiting_since = now - _POLL_S
        if 0 < self._timeout_s <= now - self._waiting_since:
            raise self._explain_hang()
        return False, None

    def _await_batch(self) -> bool:
        """Wait a little for a batch or the end of a worker; return whether there may be a batch.

        Nothing interrupts this wait: an error that a signal's handler raises may come up in code that runs meanwhile, a destructor or
        another handler, and be lost there.
        """
        reader = getattr(self._data_queue, "_reader", None)
        if reader is None:  # a thread that pins batches hands them over
            return True
        return reader.poll() or reader in wait(
            [reader, *(each.sentinel for each in self._workers if each.is_alive())], _POLL_S
        )

    def _process_data(self, data: Any, worker_idx: int) -> Any:
        """Name the function that failed where a worker was started; errors of samples and streams are named elsewhere."""
        if isinstance(data, ExceptionWrapper) and data.exc_type is WorkerStartError:
            reason = data.exc_msg.rstrip().rpartition(f"{WorkerStartError.__name__}: ")[2]
            raise FetchError(
                f"worker_init_fn failed in worker {worker_idx} of the {len(self._workers)} that read {self._what}: {reason}. It is called once in "
                f"each worker, with the worker's number, before the first sample is read. Mend it, or use num_workers=0, which calls it nowhere.",
                worker=worker_idx, traceback=data.exc_msg,
            )  # fmt: skip
        return super()._process_data(data, worker_idx)

    def __del__(self) -> None:
        # A process that was forked while this was alive has a copy. It has no workers to end, and PyTorch would wait for them.
        if self._owner == os.getpid():
            super().__del__()

    @contextmanager
    def _deaths_interrupt(self) -> Iterator[None]:
        """Inside, the death of a worker raises at once, even where the pipe that its data come through is waited for in vain."""
        pids = tuple(worker.pid for worker in self._workers if worker.pid is not None)
        with suppress(ValueError):  # an error came between setting and removing, in an iterator that had the same id
            _remove_worker_pids(id(self))
        _set_worker_pids(id(self), pids)
        try:
            _error_if_any_worker_fails()
            yield
        finally:
            with suppress(ValueError):
                _remove_worker_pids(id(self))

    def _lost(self, tries: int = 1) -> tuple[int, int, int] | None:
        """Return number, process id and exit code of a worker that is dead; a signal's code is negative."""
        for attempt in range(tries):
            if attempt:
                sleep(0.05)
            for number, worker in enumerate(self._workers):
                code = worker.exitcode
                if code is not None and (code or self._workers_status[number]) and worker.pid is not None:
                    return number, worker.pid, code
        return None

    def _explain_hang(self) -> FetchError:
        """Dump the stacks of all, and end the workers."""
        parts = []
        for number, worker in enumerate(self._workers):
            if worker.pid is not None and worker.is_alive():
                stack = self._start.stack_of(worker.pid) or "(it shows no stack)"
                parts.append(f"Worker {number} (pid {worker.pid}):\n{stack}")
        main = "".join(traceback.format_list(traceback.extract_stack(sys._getframe(1))))
        stacks = "\n\n".join([*parts, f"Training process (pid {os.getpid()}), most recent call last:\n{main.rstrip()}"])
        for worker in self._workers:
            worker.kill()
        message = (
            f"No batch came from the {len(self._workers)} workers that read {self._what} for {self._timeout_s:g} "
            f"seconds, so they were ended. {self._hint_at_fork()}Look at where they were, below; a larger timeout= of the loader "
            f"waits longer, 0 without an end.\n{stacks}"
        )
        return FetchError(message, stacks=stacks, timeout_s=self._timeout_s)

    def _hint_at_fork(self) -> str:
        num_threads = threading.active_count()
        if self._start_method != "fork" or num_threads == 1:
            return ""
        return (
            f"They were forked from a process of {num_threads} Python threads: a lock that one of those held stays locked in them "
            f'for ever, which multiprocessing_context="forkserver" avoids. '
        )


def _start_method(context: Any) -> str:
    """Return how worker processes are started."""
    method = get_start_method(allow_none=True) if context is None else context.get_start_method()
    return method or get_context().get_start_method()


def _refuse_cuda_tensors(dataset: Any) -> None:
    """Refuse what forked workers would fail on: a dataset that holds tensors on a GPU.

    Raises:
        DataError: with the tensor's name.
    """
    parts = [dataset]
    while isinstance(parts[-1], Subset):
        parts.append(parts[-1].dataset)
    for part in parts:
        for name, value in getattr(part, "__dict__", {}).items():
            if isinstance(value, torch.Tensor) and value.is_cuda:
                raise DataError(
                    f"{type(part).__name__} holds a tensor on {value.device} ({name}), which forked workers cannot read. Keep the dataset on "
                    f"the CPU (batches are moved to the device anyway), give its tensors themselves as data, or use num_workers=0."
                )


def _explain_death(number: int, pid: int, code: int, *, what: str, num_workers: int) -> FetchError:
    """Say how a worker died, why that usually happens, and what helps."""
    fewer = f"num_workers={max(1, num_workers // 2)}" if num_workers > 1 else "num_workers=0"
    if code >= 0:
        name, ended = None, f"ended itself with exit code {code}"
        why = "Code of the dataset or of worker_init_fn, or a library that they use, left the process. Use num_workers=0 to see where, if it is the dataset."
    else:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        ended = f"was killed by {name}"
        why = _why(name, fewer)
    return FetchError(
        f"Worker {number} (pid {pid}) of the {num_workers} that read {what} {ended}. {why}",
        worker=number, pid=pid, signal=name, exit_code_of_worker=code,
    )  # fmt: skip


def _why(name: str, fewer: str) -> str:
    if name == "SIGKILL":
        free = available_bytes(torch.device("cpu"))
        return (
            f"The kernel does that when memory is used up ({_size(free)} are free now; `dmesg` tells), or somebody else did. Use "
            f"{fewer}, a smaller batch_size or prefetch_factor, or a dataset that holds less: each worker has a copy of what it touches."
        )
    if name == "SIGBUS":
        shared = _shared_memory()
        return (
            f"Batches come through shared memory, which is used up when that happens{shared}. Give more of it (`docker run "
            f"--shm-size=8g`, or --ipc=host), use {fewer} or a smaller batch_size, or call "
            f'torch.multiprocessing.set_sharing_strategy("file_system") at the beginning.'
        )
    if name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"):
        return (
            "Native code of a library that the dataset uses crashed. Use num_workers=0 and `python -X faulthandler` to see where; "
            'a library that does not survive fork needs multiprocessing_context="spawn".'
        )
    return (
        "Somebody ended it from outside: a scheduler's limit, or a command. The run can go on from its last checkpoint."
    )


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return ""
    return f": /dev/shm has {_size(usage.total)}, {_size(usage.free)} of it free"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
