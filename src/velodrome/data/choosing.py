"""`num_workers="auto"`: worker processes where measuring says that they pay.

The first batches are fetched in the training process, with a clock: how long fetching takes, and how long whoever asked needs until it asks
again. A small model says how many workers would help, they are tried for a few batches, and stay if those came faster. Order and random
numbers of the samples are f(seed, epoch, index), so neither the trial nor its outcome changes anything but the time.
"""

from __future__ import annotations

from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from velodrome.cores import usable_cores
from velodrome.errors import VelodromeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from velodrome.data.sample_path import SamplePath
    from velodrome.data.share import Share

__all__ = ["WorkerChoice", "choose_workers"]

_NUM_SKIPPED = 3  # the first steps make caches, compile, allocate
_NUM_MEASURED = 8
_MEASURED_S = 0.2
_MOST_MEASURED = 64
# A batch through shared memory and a pipe, both sides; the start of a forked worker. Orders of magnitude, seen on two cores.
_HANDOVER_S = 0.0005
_START_S = 0.05
_WORTH_IT = 0.9


def choose_workers(*, fetch_s: float, step_s: float, cores: int, threads: int, num_batches: int | None) -> int:
    """Return how many workers should give batches fastest; 0 where none would make a tenth of difference.

    Args:
        fetch_s: seconds to fetch a batch in the training process.
        step_s: seconds from one batch to the asking for the next.
        cores: that the process may use.
        threads: that the step keeps busy.
        num_batches: of an epoch, over which the start has to pay; None where that is not known.

    >>> choose_workers(fetch_s=0.030, step_s=0.010, cores=8, threads=1, num_batches=1000)
    3
    >>> choose_workers(fetch_s=0.001, step_s=0.020, cores=8, threads=1, num_batches=1000)
    0
    """
    alone = fetch_s + step_s
    busy = min(threads, cores)
    times = {0: alone}
    for workers in range(1, cores + 1):
        # Whichever is longest: the loop, a worker's share of the fetching, all work divided among all cores.
        work = (fetch_s + _HANDOVER_S + step_s * busy) / cores
        times[workers] = max(step_s + _HANDOVER_S, (fetch_s + _HANDOVER_S) / workers, work)
    best = min(times.values())
    fewest = next(workers for workers, time in times.items() if time <= 1.05 * best)
    saved = alone - times[fewest]
    is_paid = num_batches is None or saved * num_batches > _START_S * fewest
    return fewest if times[fewest] < _WORTH_IT * alone and is_paid else 0


class WorkerChoice:
    """Measures, tries and decides, while the batches of the first epoch are handed out.

    Args:
        without: returns the path of batches without workers.
        make: returns one with so many workers, as `num_workers`, which persist.
    """

    def __init__(self, without: Callable[[], SamplePath], make: Callable[..., SamplePath]) -> None:
        self._make = make
        self.current = self.path = without()
        """what gives the batches now; and in the next epoch"""
        self.is_made = False
        self.line = ""
        """what was measured, once it was"""
        self.failure = ""
        """what those that were tried failed at: "start", where they could not be sent what they need, or "run"; else nothing"""

    def begin_epoch(self) -> None:
        """Take the path that was decided on, or that without workers."""
        self.current = self.path

    def batches(
        self, *, start: int, say: Callable[[str], None], seed: int, epoch: int, shuffle: bool, share: Share
    ) -> Iterator[tuple[int, Any]]:
        """Yield as `SamplePath.batches` does; see there."""
        what = {"seed": seed, "epoch": epoch, "shuffle": shuffle, "share": share}
        clock = _Clock()
        done = yield from clock.measure(self.path.batches(start=start, **what), start)
        if done is None:  # the epoch was over first: the next one measures
            return
        cores, threads = usable_cores(), torch.get_num_threads()
        try:
            num_batches = len(self.path)
        except TypeError:
            num_batches = None
        workers = choose_workers(
            fetch_s=clock.fetch_s, step_s=clock.step_s, cores=cores, threads=threads, num_batches=num_batches
        )
        measured = f"measured: {_ms(clock.fetch_s)} to fetch a batch, {_ms(clock.step_s)} to use it, {cores} cores"
        if workers == 0 or self.path.has_own_order:  # a sampler is not asked twice for one epoch
            self._decide(workers, measured, say)
            yield from clock.rest
            return
        clock.rest.close()
        yield from self._try(workers, done, clock.fetch_s + clock.step_s, measured, say, what)

    def _try(
        self, workers: int, done: int, alone_s: float, measured: str, say: Callable[[str], None], what: dict[str, Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yield the rest of the epoch: by workers, as long as they are worth it."""
        tried = self.current = self._make(num_workers=workers)
        batches: Any = tried.batches(start=done, **what)
        refusal = ""
        try:
            first = next(batches, None)
        except VelodromeError as error:  # not all data can be sent to another process; a bad sample is met again below
            first, refusal = None, f"; {workers} workers failed: {error}"
            self.failure = "start" if "start_method" in error.fields else "run"
        clock = _Clock(
            num_skipped=_NUM_SKIPPED + 2 * workers
        )  # what they fetched while they were awaited comes at once
        after = done
        if first is not None:
            after = yield from clock.measure(chain([first], batches), done)
        if refusal or (after is not None and clock.period_s > _WORTH_IT * alone_s):
            batches.close()
            tried.end_workers()
            self.current = self.path
            slower = refusal or f"; with {workers} workers {_ms(clock.period_s)} instead of {_ms(alone_s)}"
            self._decide(0, measured + slower, say)
            yield from self.path.batches(start=done if after is None else after, **what)
            return
        self.path = tried
        gain = f"; {_ms(clock.period_s)} with them instead of {_ms(alone_s)}" if clock.period_s else ""
        self._decide(workers, measured + gain, say)
        yield from batches

    def _decide(self, workers: int, measured: str, say: Callable[[str], None]) -> None:
        self.is_made = True
        if workers and self.path.num_workers != workers:
            self.path = self._make(num_workers=workers)
        self.line = f"{workers or 'no'} worker{'s' * (workers != 1)}, {measured}"
        say(self.line)


class _Clock:
    """Hands batches out until it knows how long fetching and using them take."""

    def __init__(self, num_skipped: int = _NUM_SKIPPED) -> None:
        self._num_skipped = num_skipped
        self.fetch_s = self.step_s = self.period_s = 0.0
        self.rest: Any = None
        """the batches that are left, where there are any"""

    def measure(self, batches: Iterable[tuple[int, Any]], done: int) -> Generator[tuple[int, Any], None, int | None]:
        """Yield batches while measuring; return how many samples are done, None where all batches were handed out before."""
        self.rest = batches
        fetched, used = [], []
        total_s = 0.0
        before = perf_counter()
        for size, batch in batches:
            arrived = perf_counter()
            yield size, batch
            done += size
            now = perf_counter()
            if self._num_skipped:
                self._num_skipped -= 1
            else:
                fetched.append(arrived - before)
                used.append(now - arrived)
                total_s += now - before
                if len(fetched) >= _NUM_MEASURED and (total_s > _MEASURED_S or len(fetched) >= _MOST_MEASURED):
                    from statistics import median  # 3 ms to import

                    self.fetch_s, self.step_s = median(fetched), median(used)
                    self.period_s = total_s / len(fetched)  # workers give several at once, then none: their mean counts
                    return done
            before = perf_counter()
        return None


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
