"""How `velodrome tune` ends when it does not end well: what was measured is shown, and no trial stays behind."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from velodrome.errors import VelodromeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from velodrome.advise.tuning.result import Tuning
    from velodrome.cli.screen import Screen

__all__ = ["answer_with_error", "ended_in_order", "show_what_is_known"]

_HEARD = ("SIGTERM", "SIGHUP")  # SIGHUP: the terminal was closed


@dataclass
class Signals:
    """Which signal told the program to end."""

    number: int = int(signal.SIGINT)

    @property
    def exit_code(self) -> int:
        """What shells and schedulers expect."""
        return 128 + self.number


@contextmanager
def ended_in_order() -> Iterator[Signals]:
    """Make of the other signals that end a program what Ctrl-C is: trials are ended, and what is known is shown.

    One that is ignored stays so (`nohup`). Handlers are put back afterwards; in another thread than the first one there are none.
    """
    found, before = Signals(), {}

    def interrupt(number: int, frame: Any) -> None:  # Any: a frame
        found.number = number
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in _HEARD:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_what_is_known(result: Tuning, error: Exception, screen: Screen) -> None:
    """Show what was found out before an error, where there is something; the error is the caller's to raise.

    Raises:
        typer.Exit: with `--json`, where the answer has the error in it.
    """
    if result.is_anything_known:
        answer_with_error("\n".join(result.lines()), result.to_json(), error, screen)


def answer_with_error(lines: str, data: Mapping[str, object], error: Exception, screen: Screen) -> None:
    """Show an answer that an error follows: on its own for people; with `--json` both are one object.

    Raises:
        typer.Exit: with `--json`.
    """
    if not screen.as_json:
        screen.answer(lines, data)
        return
    code = error.exit_code if isinstance(error, VelodromeError) else 1
    found = {"type": type(error).__name__, "message": str(error), "exit_code": code}
    screen.answer(lines, {**data, "error": found})
    raise typer.Exit(code)
