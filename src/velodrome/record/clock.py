"""The clock of a run: who is spending the time now. Its sums are the bill.

Two ways, because a reading of the clock takes 25 to 130 nanoseconds and a step of a small model 25 microseconds:

- What is rare (an evaluation, a save, a row, a callback) is timed each time. A stack says whose time it is, so that each second is
  counted once: a save that a callback asks for is saving, not callback.
- What happens in every batch is timed in some batches, chosen at random so that nothing periodic can hide from it. In these the methods
  of a step are replaced by timed ones. Of all others two things are known, for two readings each: how long the loop waited for data, and
  whether the rest took far longer than usual. What that was too long is forward: where the user's own code runs. What the loop took as a
  whole between two saves, rows and so on is known, and what is left of it divided as in the batches that were timed, a few at a time: the
  parts sum to the whole.

Where a device works on its own, batches are timed by its events, read when they are over: see `marks.py`. The host's clock does not tell
what it did in the others, which are divided as those.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import islice, pairwise
from math import inf
from random import Random
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from velodrome.record.bill import Bill
from velodrome.record.marks import HostMarks
from velodrome.report.bill_parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from velodrome.record.marks import Marks

__all__ = ["Clock", "billed"]

_LOOP = "loop"
"""the training loop, while it is not divided yet"""
_PAUSED = ""
"""part of a timed batch that was counted on its own: a row, a save, a callback"""
_LEAST_SAMPLES = 8
"""timed batches from which the time of all those around them is divided"""
_DEAREST_S = 1e-5
"""what timing a batch costs, generously: every batch is timed where that is at most a thousandth of it"""
_RAREST = 64
"""one batch of so many is timed where batches are short"""
_FAR_TIMES, _FAR_S = 4, 5e-3
"""a batch takes far longer than usual: so many times as long, and so much"""

Method = TypeVar("Method", bound="Callable[..., Any]")


@dataclass(kw_only=True)
class _Interval:
    """Some batches, as far as the clock has come."""

    seconds: float = 0.0
    """that the loop took, less what was counted as something else"""
    samples: list[list[tuple[str, Any]]]
    """of those that were timed: parts, and the marks at which they begin"""
    waited: float = 0.0
    """that the others waited for data"""
    too_long: float = 0.0
    """that some of the others took longer than usual"""


def billed(part: str) -> Callable[[Method], Method]:
    """Count the time of a method, of an object that has a `clock`, as a part of the bill: for what is rare, and waits for the device.

    Cost: a microsecond or two a call. The device is waited for first, so that what it still had to do is not counted here.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.clock.drain()
            depth = self.clock.push(part)
            try:
                return method(self, *args, **kwargs)
            finally:
                self.clock.pop(depth)

        return call  # type: ignore[return-value]

    return decorate


class Clock:
    """Counts the seconds of a run by part.

    Args:
        marks: how moments within a batch are marked.
    """

    def __init__(self, marks: Marks | None = None) -> None:
        self._marks: Marks = marks or HostMarks()
        self._draw = Random(0)  # its own: what a run draws must not depend on what is timed
        self._final: Bill | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything; the clock stands still."""
        self._parts = dict.fromkeys((*PARTS, _LOOP), 0.0)
        self._callbacks: dict[str, float] = {}
        self._stack: list[tuple[str, str]] = []
        self._began_at = self._since = 0.0
        self._batches = 0
        self._first_in_interval = 0
        self._every = 1
        self._gap = 0
        self._sample: list[tuple[str, Any]] | None = None
        self._interval = _Interval(samples=[])
        self._waiting: list[_Interval] = []
        self._usual_s = self._far_s = inf
        self._num_long, self._long_s = 0, 0.0
        self._paused_s = self._left_at = 0.0
        self._shares: dict[str, float] = {}
        self._points: list[tuple[object, str, bool, Callable[..., Any], str]] = []
        self._swap_in: list[Callable[..., Any]] = []
        self.origin: Callable[[], tuple[str, dict[str, Any]]] = _nothing_known
        """returns the class of the training data, and the facts of the bill: asked when there is one, for some of them change meanwhile"""

    # -- the run ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A run begins."""
        self._uninstall()
        self.reset()
        self._final = None
        self._began_at = self._since = perf_counter()
        self._stack.append(("other", _PAUSED))

    def settle(self) -> Bill:
        """The loops are over: wait for what was timed in them, and return the bill so far, of which nothing is guessed any more."""
        if self._final is None:
            self._uninstall()
            self._divide(is_last=True)
        return self.bill

    def end(self) -> Bill:
        """The run is over: return its bill, which stays."""
        self._final = self.settle()
        self._stack.clear()
        return self._final

    @property
    def bill(self) -> Bill:
        """The bill so far. What was not divided yet is divided by what is known."""
        if self._final is not None:
            return self._final
        if self._stack:
            self._charge(perf_counter())
        self._resolve(waits=False)
        parts = dict(self._parts)
        here = replace(self._interval, seconds=parts.pop(_LOOP))
        if here.samples and not self._marks.are_over(here.samples[-1][-1][1]):
            here.samples = []
        shares = dict(self._shares)
        for interval in (here, *(replace(each, samples=[]) for each in self._waiting)):
            self._settle(interval, parts, shares)
        dataset, facts = self.origin()
        return Bill(
            wall_s=self._since - self._began_at,
            parts=parts,
            callbacks=dict(self._callbacks),
            batches=self._batches,
            num_long=self._num_long,
            long_s=self._long_s,
            dataset=dataset,
            facts=facts,
        )

    # -- what is rare -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Wait for the device where it works on its own: called where that happens anyway, by whoever reads from it next."""
        if self._stack and self._stack[-1][0] is _LOOP:
            self._marks.drain()

    def push(self, part: str) -> int:
        """From now on the time belongs to this part; return what `pop` is to be given."""
        stack = self._stack
        if not stack:
            return -1
        self._charge(perf_counter())
        if stack[-1][0] is _LOOP:
            self._left_at = self._since
        before = _PAUSED
        if self._sample is not None:
            before = self._sample[-1][0]
            self._sample.append((_PAUSED, self._marks.now()))
        stack.append((part, before))
        return len(stack) - 1

    def pop(self, depth: int) -> None:
        """The time belongs again to whom it belonged before the `push` that returned this; what was left open inside ends, too."""
        stack = self._stack
        if not 0 < depth < len(stack):  # it was left open, and ended together with what was around it
            return
        self._charge(perf_counter())
        before = stack[depth][1]
        del stack[depth:]
        if stack[-1][0] is _LOOP:
            self._paused_s += self._since - self._left_at
        if self._sample is not None:
            self._sample.append((before, self._marks.now()))

    @contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Count the time inside as this part."""
        depth = self.push(part)
        try:
            yield
        finally:
            self.pop(depth)

    @contextmanager
    def looping(self) -> Iterator[None]:
        """A loop over training batches goes on inside."""
        depth = self.push(_LOOP)
        try:
            yield
        finally:
            self._uninstall()
            self.pop(depth)

    def timed_listeners(
        self, listeners: Mapping[str, list[Callable[..., None]]]
    ) -> dict[str, list[Callable[..., None]]]:
        """Return the methods of callbacks with their time counted, by class: about half a microsecond a call."""
        return {event: [self._timed_callback(call) for call in calls] for event, calls in listeners.items()}

    def _timed_callback(self, call: Callable[..., None]) -> Callable[..., None]:
        owner = getattr(call, "__self__", None)
        name = type(owner).__name__ if owner is not None else getattr(call, "__qualname__", repr(call))
        part = f"callbacks/{name}"

        @wraps(call)
        def timed_call(*args: Any) -> None:
            depth = self.push(part)
            try:
                call(*args)
            finally:
                self.pop(depth)

        return timed_call

    def _charge(self, now: float) -> None:
        """Give the time since the last reading to whose it was."""
        part, seconds = self._stack[-1][0], now - self._since
        self._since = now
        if part in self._parts:
            self._parts[part] += seconds
            return
        group, _, name = part.partition("/")
        self._parts[group] += seconds
        self._callbacks[name] = self._callbacks.get(name, 0.0) + seconds

    # -- what happens in every batch ----------------------------------------------------------------------------------

    def batches(
        self,
        source: Iterable[Any],
        place: Callable[[Any], tuple[Any, int]],
        points: Sequence[tuple[object, str, str]],
    ) -> Iterator[tuple[Any, int]]:
        """Yield what `place` makes of each batch; some of them are timed, from the wait for data to the next batch.

        Args:
            source: of batches.
            place: puts a batch on the device, and counts its samples.
            points: objects, names of their methods, and the part of the bill that a call of it is.
        """
        iterator = iter(source)
        self._uninstall()
        self._points = [(each, name, name in vars(each), getattr(each, name), part) for each, name, part in points]
        self._swap_in = [self._timed_point(part, original) for _, _, _, original, part in self._points]
        try:
            while True:
                gap = left = self._gap
                interval, waited, ended = self._interval, 0.0, perf_counter()
                try:
                    for raw in islice(iterator, gap):
                        begun, paused = perf_counter(), self._paused_s
                        waited += begun - ended
                        left -= 1
                        yield place(raw)
                        ended = perf_counter()
                        if ended - begun > self._far_s:
                            self._note_long(ended - begun - (self._paused_s - paused))
                finally:  # the loop may be left here, and another one begun
                    self._batches += gap - left
                    self._gap = left
                    interval.waited += waited
                if left:
                    interval.waited += perf_counter() - ended
                    return
                try:
                    self._begin_sample()
                    try:
                        raw = next(iterator)
                    except StopIteration:
                        return
                    self._batches += 1
                    self._mark("transfer")
                    placed = place(raw)
                    self._mark("forward")
                    yield placed
                finally:
                    self._end_sample()
        finally:
            self._uninstall()

    def _begin_sample(self) -> None:
        for (each, name, *_), call in zip(self._points, self._swap_in, strict=True):
            setattr(each, name, call)
        self._sample = [("data_wait", self._marks.now())]

    def _mark(self, part: str) -> None:
        """From now on the batch that is being timed is in this part."""
        if self._sample is not None:
            self._sample.append((part, self._marks.now()))

    def _end_sample(self) -> None:
        sample, self._sample = self._sample, None
        if sample is None:  # the run ended meanwhile
            return
        sample.append((_PAUSED, self._marks.now()))
        self._interval.samples.append(sample)
        for each, name, _, original, _ in self._points:
            setattr(each, name, original)
        if len(self._interval.samples) >= _LEAST_SAMPLES:
            self._divide()
        self._gap = self._draw.randrange(2 * self._every - 1)

    def _timed_point(self, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        marks = self._marks

        def call(*args: Any, **kwargs: Any) -> Any:
            sample = self._sample
            if (
                sample is None or (before := sample[-1][0]) is _PAUSED
            ):  # in an evaluation, say, that a callback asked for
                return original(*args, **kwargs)
            sample.append((part, marks.now()))
            try:
                return original(*args, **kwargs)
            finally:
                sample.append((before, marks.now()))

        return call

    def _uninstall(self) -> None:
        """Have the objects call their own methods again."""
        if self._sample is not None:
            self._end_sample()
        for each, name, was_own, original, _ in self._points:
            if was_own:
                setattr(each, name, original)
            else:
                vars(each).pop(name, None)
        self._points = []

    # -- from what was timed to the whole -----------------------------------------------------------------------------

    def _note_long(self, seconds: float) -> None:
        """A batch that was not timed took so long from its data on: more than usual, or what was counted as something else took it."""
        if seconds > self._far_s:
            excess = seconds - self._usual_s
            self._interval.too_long += excess
            self._num_long, self._long_s = self._num_long + 1, self._long_s + excess

    def _divide(self, *, is_last: bool = False) -> None:
        """Have the time of the loop since the last call divided as the batches were that were timed since."""
        if self._stack:
            self._charge(perf_counter())
        interval, num_batches = self._interval, self._batches - self._first_in_interval
        if interval.samples or is_last:
            interval.seconds, self._parts[_LOOP] = self._parts[_LOOP], 0.0
            self._interval, self._first_in_interval = _Interval(samples=[]), self._batches
            self._waiting.append(interval)
            if num_batches and interval.seconds > 0:
                affordable = int(1000 * _DEAREST_S * num_batches / interval.seconds)
                self._every = max(1, min(_RAREST, affordable))
        self._resolve(waits=is_last)

    def _resolve(self, *, waits: bool) -> None:
        """Divide what waited for the device, as far as it has come; or wait for it, at the end of a run."""
        marks, waiting = self._marks, self._waiting
        while waiting:
            samples = waiting[0].samples
            if samples and waits:
                marks.wait(samples[-1][-1][1])
            if samples and not marks.are_over(samples[-1][-1][1]):
                return
            interval = waiting.pop(0)
            self._learn_lengths(interval.samples)
            self._settle(interval, self._parts, self._shares)

    def _learn_lengths(self, samples: list[list[tuple[str, Any]]]) -> None:
        """Learn from timed batches how long one takes from its data on, and count those that took far longer."""
        lengths = [self._length(each) for each in samples]
        if lengths and self._marks.are_of_host:
            self._usual_s = median(lengths)
            self._far_s = _FAR_TIMES * self._usual_s + _FAR_S
            excesses = [length - self._usual_s for length in lengths if length > self._far_s]
            self._num_long, self._long_s = self._num_long + len(excesses), self._long_s + sum(excesses)

    def _length(self, sample: list[tuple[str, Any]]) -> float:
        return sum(seconds for part, seconds in self._sum([sample]).items() if part != "data_wait")

    def _settle(self, interval: _Interval, parts: dict[str, float], shares: dict[str, float]) -> None:
        """Add an interval to the parts, and how usual batches were divided to the shares."""
        timed = self._sum(interval.samples)
        if not self._marks.are_of_host:
            for part, seconds in timed.items():
                shares[part] = shares.get(part, 0.0) + seconds
            _spread(interval.seconds, timed or shares, parts)
            return
        usual = [each for each in interval.samples if self._length(each) <= self._far_s]
        for part, seconds in self._sum(usual).items():
            if part != "data_wait":
                shares[part] = shares.get(part, 0.0) + seconds
        known = {**timed, "data_wait": timed.get("data_wait", 0.0) + interval.waited}
        known["forward"] = known.get("forward", 0.0) + interval.too_long
        for part, seconds in known.items():
            parts[part] += seconds
        _spread(interval.seconds - sum(known.values()), shares, parts)

    def _sum(self, samples: list[list[tuple[str, Any]]]) -> dict[str, float]:
        """Return the seconds of samples by part."""
        between = self._marks.seconds
        sums: dict[str, float] = {}
        for sample in samples:
            for (part, begin), (_, end) in pairwise(sample):
                if part is not _PAUSED:
                    sums[part] = sums.get(part, 0.0) + between(begin, end)
        return sums


def _nothing_known() -> tuple[str, dict[str, Any]]:
    return "", {}


def _spread(seconds: float, shares: Mapping[str, float], parts: dict[str, float]) -> None:
    """Add seconds to parts, in proportion to shares."""
    total = sum(shares.values())
    for part, share in (shares if total > 0 else {"forward": 1.0}).items():
        parts[part] += seconds * share / (total if total > 0 else 1.0)
