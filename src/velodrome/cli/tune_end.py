"""How `velodrome tune` ends when it does not end well: what was measured is shown, and no trial stays behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from velodrome.errors import VelodromeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.advise.tuning.result import Tuning
    from velodrome.cli.screen import Screen

__all__ = ["answer_with_error", "show_what_is_known"]


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
