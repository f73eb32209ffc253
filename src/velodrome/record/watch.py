"""Watching some training batches closely: which ones, and what is done around each."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

__all__ = ["DEFAULT_BATCHES", "NOBODY", "Watcher", "Watchers", "make_watchers", "parse_batches"]

DEFAULT_BATCHES = range(10, 15)
"""a few, when what is done once is over: memory is there, kernels are chosen"""


class Watcher(Protocol):
    """Looks at some batches of training, counted from 0 in this process."""

    batches: range
    num_seen: int
    """batches that it looked at so far"""
    sees_fetching: bool
    """whether it looks at a batch from its fetching on, or from when it is there"""
    speaks: bool
    """whether it says its sentences by itself"""

    def around(self, number: int) -> AbstractContextManager[None]:
        """Look at a batch, to its end."""
        ...

    def end(self) -> None:
        """No batch comes any more: say what was seen, once."""
        ...

    @property
    def sentences(self) -> list[str]:
        """What was found that says what to change."""
        ...


class Watchers:
    """Those of a run; usually none.

    Args:
        watchers: who looks at which batches.
    """

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = tuple(watchers)
        self._batches_done = 0
        self._stop = max((each.batches.stop for each in self._watchers), default=0)

    def watch(self, batches: Iterator[Any], spending: Callable[[str], AbstractContextManager[None]]) -> Iterator[Any]:
        """Return the batches; those that a watcher wants are fetched and used inside of its `around`.

        Args:
            batches: of a training loop.
            spending: counts what the watching takes as a part of the bill.
        """
        return self._watch(batches, spending) if self._batches_done < self._stop else batches

    def _watch(self, batches: Iterator[Any], spending: Callable[[str], AbstractContextManager[None]]) -> Iterator[Any]:
        while (number := self._batches_done) < self._stop:
            watching = [each for each in self._watchers if number in each.batches]
            with ExitStack() as stack:
                _enter(stack, [each for each in watching if each.sees_fetching], number, spending)
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                _enter(stack, [each for each in watching if not each.sees_fetching], number, spending)
                for each in watching:
                    each.num_seen += 1
                yield batch
            self._batches_done += 1
            for each in watching:
                if number == each.batches[-1]:
                    with spending("other"):
                        each.end()
        yield from batches

    def end(self) -> None:
        """The run is over: have those say what they saw that have not."""
        for each in self._watchers:
            each.end()

    @property
    def sentences(self) -> list[str]:
        """What was found."""
        return [*self.unsaid, *self.said]

    @property
    def said(self) -> list[str]:
        """What was found by those who were asked to look, and said so."""
        return [line for each in self._watchers if each.speaks for line in each.sentences]

    @property
    def unsaid(self) -> list[str]:
        """What was found by those who look unasked."""
        return [line for each in self._watchers if not each.speaks for line in each.sentences]


NOBODY = Watchers()


def _enter(
    stack: ExitStack, watching: Sequence[Watcher], number: int, spending: Callable[[str], AbstractContextManager[None]]
) -> None:
    """Have watchers look at a batch until the stack is left."""
    if watching:
        with spending("other"):
            for each in watching:
                stack.enter_context(each.around(number))


def make_watchers(
    *,
    profile: range | None,
    waits: range | None,
    looks: bool,
    run_dir: Path | None,
    device: torch.device,
    say: Callable[[str], None],
) -> Watchers:
    """Return the watchers for what was asked.

    Args:
        profile: the batches to trace.
        waits: the batches in which to look for lines that wait.
        looks: also look for them in a few of the first batches, without being asked.
        run_dir: of the run.
        device: of the model.
        say: shows a line to people.
    """
    found: list[Watcher] = []
    if profile is not None and run_dir is not None:
        from velodrome.record.profiling import Profiler

        found.append(Profiler(profile, folder=run_dir / "profile", say=say))
    if waits is not None:
        from velodrome.record.waits import WaitFinder

        found.append(WaitFinder(waits, device=device, say=say))
    elif looks:
        from velodrome.record.glance import Glance

        found.append(Glance(device))
    return Watchers(found) if found else NOBODY


def parse_batches(value: object, *, name: str) -> range | None:
    """Return which batches are to be watched; None for none.

    Args:
        value: False or None; True for a few after the first ones; a number of batches from there on; or "FIRST:LAST", counted from 1.
        name: of the argument.
    Raises:
        ArgumentError: it is none of these.
    """
    if value is None or value is False:
        return None
    if value is True:
        return DEFAULT_BATCHES
    first = DEFAULT_BATCHES.start
    text = str(value).strip()
    start, colon, stop = text.partition(":")
    try:
        chosen = range(int(start) - 1, int(stop)) if colon else range(first, first + int(text))
    except ValueError:
        chosen = range(0)
    if not chosen or chosen.start < 0:
        is_option = name.startswith("--")
        raise ArgumentError(
            f"{name}{' ' if is_option else '='}{value!r} says not which batches. Give a number of batches from the {first + 1}th on, or "
            f'"FIRST:LAST" such as "100:104", counted from 1{"" if is_option else f", or True for {first + 1}:{DEFAULT_BATCHES.stop}"}.'
        )
    return chosen
