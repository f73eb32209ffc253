"""Saves one after another, in the foreground or in the background: what is written, removed and marked, and what came of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from velodrome.checkpoint.background import Background
from velodrome.checkpoint.snapshot import Snapshot
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from torch import Tensor

    from velodrome.checkpoint.store import CheckpointStore, Content

__all__ = ["Outcome", "Saver"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one save.

    Args:
        step: of the checkpoint.
        path: its folder; None when it could not be written.
        problem: why not, or "".
        seconds: how long it took to be on the disk.
    """

    step: int
    path: Path | None
    problem: str = ""
    seconds: float = 0.0


class Saver:
    """Writes checkpoints, removes old ones, and marks the best.

    In the background, a save takes a snapshot and returns; everything else is done by a thread, one save at a time. What came of
    it is asked for by `outcomes`, by the thread that trains: nothing here calls back into the run but `notify` and `warn`.

    Args:
        store: where they go.
        keep_last: how many of the newest stay.
        notify: is called in the background when there is news; it must do no more than set an attribute.
        warn: gets lines that people must see, also in the background; it must do no more than keep them.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        keep_last: int,
        notify: Callable[[], None] = lambda: None,
        warn: Callable[[str], None],
    ) -> None:
        self._store = store
        self._keep_last = keep_last
        self._notify = notify
        self._warn = warn
        self._background = Background()
        self._snapshot = Snapshot()
        self._outcomes: deque[Outcome] = deque()
        self._failed_step: int | None = None
        self._owed_mark: tuple[int, str, float] | None = None  # of a best step that is not written, or not marked, yet

    def prepare(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]) -> Content:
        """Return what a checkpoint will hold, see `CheckpointStore.prepare`."""
        return self._store.prepare(step, tensors, state)

    def give_up(self, step: int, problem: str) -> None:
        """Count a save that failed before anything could be written."""
        self._outcomes.append(self._fail(step, problem))

    def save(self, content: Content, *, keep: Collection[int], before: Callable[[], None], in_background: bool) -> None:
        """Write a checkpoint and remove those that need not be kept; a save that is under way is waited for.

        Args:
            content: of the checkpoint.
            keep: steps whose checkpoints stay.
            before: is called first, where the writing is done.
            in_background: return as soon as the content is copied.
        """
        self.wait()
        if not in_background:
            before()
            self._outcomes.append(self._save(content, keep))
            return
        copied, wait_for_copy = self._snapshot.take(content)
        self._background.submit(partial(self._work, copied, tuple(keep), before, wait_for_copy))

    def mark_best(self, step: int, *, monitor: str, value: float) -> None:
        """Mark the checkpoint of a step as the best as soon as it is there; what fails is tried again by every later save."""

        def mark() -> None:
            self._owed_mark = (step, monitor, value)
            self._mark()

        if self._background.is_busy:
            self._background.submit(mark)
        else:
            mark()

    def outcomes(self) -> list[Outcome]:
        """Return what came of the saves that ended since this was last asked."""
        ended = []
        while self._outcomes:
            ended.append(self._outcomes.popleft())
        return ended

    def wait(self) -> float:
        """Wait for what is under way; return for how many seconds."""
        started = perf_counter()
        self._background.wait()
        return perf_counter() - started

    def close(self) -> None:
        """Wait for what is under way, and give the memory of the snapshot back."""
        self.wait()
        self._mark()
        self._snapshot = Snapshot()

    # -- where the writing is done ----------------------------------------------------------------------------------

    def _work(
        self, content: Content, keep: Collection[int], before: Callable[[], None], wait_for_copy: Callable[[], None]
    ) -> None:
        try:
            wait_for_copy()
            before()
            outcome = self._save(content, keep)
        except BaseException as error:  # a thread that dies tells nobody: memory may be used up, or the device lost
            problem = f"The checkpoint of step {content.step} could not be saved: {type(error).__name__}: {error}."
            outcome = self._fail(content.step, problem)
        self._outcomes.append(outcome)
        self._notify()

    def _save(self, content: Content, keep: Collection[int]) -> Outcome:
        began = perf_counter()
        try:
            path = self._store.write(content)
        except CheckpointError as error:
            return self._fail(content.step, error.message)
        seconds = perf_counter() - began
        self._failed_step = None
        self._mark()
        try:
            self._store.prune(keep_last=self._keep_last, keep=keep)
        except CheckpointError as error:
            self._warn(f"{error} The new checkpoint is whole; the next save tries again to remove old ones.")
        return Outcome(step=content.step, path=path, seconds=seconds)

    def _fail(self, step: int, problem: str) -> Outcome:
        self._failed_step = step
        return Outcome(step=step, path=None, problem=problem)

    def _mark(self) -> None:
        if self._owed_mark is None or self._owed_mark[0] == self._failed_step:
            return
        step, monitor, value = self._owed_mark
        try:
            self._store.mark_best(step, monitor=monitor, value=value)
            self._owed_mark = None
        except CheckpointError as error:
            self._warn(f"{error.message} Training goes on; the next save tries again.")
            self._notify()
