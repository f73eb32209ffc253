"""A run that is told to stop by a signal or a deadline: it saves where it is, and leaves without bringing anything to its end.

That is not `trainer.stop()`, which evaluates, records the epoch and tells the callbacks. Here nothing happens that would not have
happened at this place anyway, so that the run that goes on later is the one that was never stopped, bit for bit.
"""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from velodrome.errors import FetchError
from velodrome.loop.progress import StopReason
from velodrome.stopping.deadline import NO_DEADLINE, Deadline, Limit, estimate_save_s, job_end
from velodrome.stopping.listening import Listening
from velodrome.stopping.signals import SignalWatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from velodrome.run.run import Run

__all__ = ["TERMINATED_CODE", "Interruption", "Leave", "Terminated", "was_left_in_order"]

TERMINATED_CODE = 128 + 15
_IN_ORDER = "The run was left in good order."
_GRACE_S = 30.0
"""what torchrun, SLURM and Kubernetes give between SIGTERM and SIGKILL, if nobody says otherwise"""
_INTERRUPTED = (0, -signal.SIGINT)
"""how a worker of PyTorch's ends that Ctrl-C was sent to"""


class Terminated(SystemExit):
    """SIGTERM or SIGUSR1 came, and the run was left in good order."""


@dataclass(frozen=True)
class Leave:
    """Why a run is to be left at once."""

    reason: StopReason
    cause: str
    """as people know it: "SIGTERM" """


class Interruption:
    """Listens for one run, and leaves it.

    Args:
        run: that is left.
        stop_after_s: how long a run may take from its begin, in seconds.
    """

    def __init__(self, run: Run, stop_after_s: float) -> None:
        self._run = run
        self._stop_after_s = stop_after_s
        self._signals = SignalWatch(self._hear)
        self._deadline: Limit = NO_DEADLINE
        self.wanted: Leave | None = None
        """what this process was told; alone, it is what the run does"""
        self.has_left = False
        """the run was saved, and nothing more is to be done in it"""

    def describe(self) -> str:
        """Return what is listened for, in words."""
        limits = [] if math.isinf(self._stop_after_s) else [f"the end of {self._stop_after_s:g} seconds"]
        heard = ", ".join(["SIGINT", "SIGTERM", "SIGUSR1", "the job's end", *limits])
        return f"listen for {heard}, to leave in good order"

    def begin(self) -> None:
        """A run begins."""
        run = self._run
        self.wanted, self.has_left, run.leaving = None, False, None
        left, problem = job_end(os.environ, unix_now=time())
        if problem:
            run.notices.warn_all(problem)
        seconds, now = min(left, self._stop_after_s), perf_counter()
        self._deadline = NO_DEADLINE
        if not math.isinf(seconds):
            num_bytes = sum(each.numel() * each.element_size() for each in run.model.parameters())
            self._deadline = Deadline(begins_at=now, ends_at=now + seconds, save_s=estimate_save_s(num_bytes))
        self._signals.begin()

    def listeners(self) -> list[Any]:
        """Return what is to be called after each update: nothing where there is one process."""
        run = self._run
        if run.is_alone:
            return []
        listening = Listening(run.world, run.progress, own_wish=lambda: self.wanted, heed=self.heed)
        return [listening.after_update]

    def end(self) -> None:
        """The run is over; what was there before hears the signals again."""
        self._signals.end()
        self._deadline = NO_DEADLINE

    def count_save(self, seconds: float) -> None:
        """A save took so long."""
        self._deadline.count_save(seconds)
        if seconds > _GRACE_S / 2:
            self._run.notices.warn_all(
                f"A checkpoint took {seconds:.0f} seconds to write. Where a job is told to stop, torchrun and most schedulers give it "
                f"{_GRACE_S:.0f} before they kill it: ask for more (SLURM: --signal=TERM@{math.ceil(4 * seconds)}), or give stop_after a time "
                f"that is well before the job's end."
            )

    # -- being told -------------------------------------------------------------------------------------------------

    def heed_time(self, now: float) -> None:
        """Look at the clock; called at most ten times a second."""
        if self._deadline.is_near(now) and self.wanted is None:
            self._want(Leave(StopReason.DEADLINE, "The time is up"))

    def heed(self, wishes: Iterable[Leave | None]) -> None:
        """Do what any process wishes; all of them call this with the same wishes."""
        told = [wish for wish in wishes if wish is not None]
        if told and not self.has_left:
            self._run.leaving = min(told, key=lambda each: each.reason is StopReason.DEADLINE)

    def _hear(self, number: signal.Signals) -> None:
        is_interrupt = number == signal.SIGINT
        if is_interrupt and self.has_left:
            raise KeyboardInterrupt  # everything is on the disk
        self._want(Leave(StopReason.INTERRUPTED if is_interrupt else StopReason.TERMINATED, number.name))
        if is_interrupt and self._run.world.is_main:
            # Not print, which may be under way itself just now.
            os.write(2, b"\nStopping when this batch is over; press Ctrl-C again for now.\n")

    def _want(self, leave: Leave) -> None:
        if self.wanted is None or self.wanted.reason is StopReason.DEADLINE:
            self.wanted = leave
            if self._run.is_alone:
                self._run.leaving = leave

    # -- leaving ----------------------------------------------------------------------------------------------------

    def leave(self) -> StopReason:
        """Save where the run is, say so, and raise what a process that got the signal is expected to end with.

        Returns:
            The reason, where a deadline asked: the caller goes on after the run.
        Raises:
            KeyboardInterrupt: it was SIGINT.
            SystemExit: with code 143, it was another signal.
            NumericsError: a weight is not finite; nothing was saved.
        """
        run = self._run
        leave = run.leaving
        assert leave is not None
        if not self.has_left:
            run.phases.settle_left()
            run.saves.save()
            run.world.barrier()  # a launcher whose first process ends gives the others, one of which writes, half a minute
            self.has_left = True
            run.display.close()  # what is still to be said of an epoch that is over comes first
            run.files.warn(self._describe(leave.cause))
        self._raise(leave)
        return leave.reason

    def has_ended_workers(self, error: BaseException) -> bool:
        """Return whether an error says that Ctrl-C ended the DataLoader workers, before they gave the batch that is waited for.

        A terminal sends it to them too. Those that are forked let it pass, see `SignalWatch`; those that are spawned end.
        """
        run = self._run
        is_fetching = run.phase.is_training and not run.position.is_in_batch
        # Of our loader, and of PyTorch's that is used as it is.
        is_of_ours = isinstance(error, FetchError) and error.fields.get("exit_code_of_worker") in _INTERRUPTED
        is_of_worker = is_of_ours or (isinstance(error, RuntimeError) and "DataLoader worker" in str(error))
        return is_of_worker and is_fetching and run.is_alone and run.leaving is not None and not self.has_left

    def leave_late(self) -> None:
        """The run came to its end before it could be left: what the signal asks of the process holds all the same.

        Raises: as `leave`.
        """
        if self.wanted is not None and not self.has_left:
            self._raise(self.wanted)

    def _raise(self, leave: Leave) -> None:
        if leave.reason is StopReason.INTERRUPTED:
            # Not a class of our own: Python ends a script as a shell expects it for this very class only.
            raise KeyboardInterrupt(_IN_ORDER)
        if leave.reason is StopReason.TERMINATED:
            raise Terminated(TERMINATED_CODE)

    def _describe(self, cause: str) -> str:
        """Say where the run is, and what of it is on the disk."""
        progress, files = self._run.progress, self._run.files
        step = progress.steps_done
        where = (
            f"{cause}: stopped after step {step:,}, in epoch {progress.epoch}"
            if step
            else f"{cause}: stopped before the first step"
        )
        if files.path is None:
            return f"{where}. Nothing was saved: the trainer has no run_dir."
        if files.checkpoints.saved_step < 0:
            return f"{where}. There is no checkpoint in {files.path} yet."
        if files.checkpoints.saved_step != step:
            return f"{where}; the newest checkpoint in {files.path} is of step {files.checkpoints.saved_step:,}."
        if not files.checkpoints.is_resumable:
            return f"{where}; its weights are saved in {files.path}, and no run can go on from them."
        return f"{where}; saved in {files.path}."


def was_left_in_order(error: BaseException) -> bool:
    """Return whether this is what a run raises that was told to stop and has saved what there was to save."""
    return isinstance(error, Terminated) or (isinstance(error, KeyboardInterrupt) and error.args == (_IN_ORDER,))
