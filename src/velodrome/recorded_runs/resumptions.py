"""Where a run went on, and what was changed then, as `events.jsonl` tells."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from velodrome.report.differences import Difference, find_differences
from velodrome.report.facts import WentOn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from velodrome.report.facts import Event

__all__ = ["find_goings_on", "read_pace"]

_PACE = re.compile(r"([\d.e+-]{1,20}) ms in rank \d+")
_LEFT_OUT = ("pid",)  # never the same


def find_goings_on(recorded: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[WentOn]:
    """Return each time that a run went on, the first one first.

    Args:
        recorded: of `events.jsonl`.
        record: of `run.json`, which tells how the run was begun.
    """
    found: list[WentOn] = []
    began: Mapping[str, Any] = {name: record.get(name) for name in ("command", "versions", "git", "host")}
    for event in recorded:
        if event.get("event") == "recipe_changed" and found:
            found[-1] = _with_changes(found[-1], _changes_of_recipe(event))
        if event.get("event") != "went_on":
            continue
        before, now = ({**began, **_table(event.get("before"))}, {**began, **_table(event.get("now"))})
        step = event.get("step")
        tables = [_comparable(each) for each in (before, now)]
        found.append(
            WentOn(
                time=str(event.get("time")),
                step=step if isinstance(step, int) else None,
                changes=tuple(find_differences(tables)),
            )
        )
        began = now
    return found


def read_pace(log: Sequence[Event]) -> list[float]:
    """Return the milliseconds that a step took in each process, as the run said it last."""
    for event in reversed(log):
        if event.text.startswith("By itself a step took "):
            try:
                return [float(text) for text in _PACE.findall(event.text)]
            except ValueError:
                return []
    return []


def _comparable(state: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in state.items() if name not in _LEFT_OUT}
    command = shown.get("command")
    return {**shown, "command": shlex.join(map(str, command))} if isinstance(command, list) else shown


def _with_changes(going_on: WentOn, more: tuple[Difference, ...]) -> WentOn:
    return WentOn(time=going_on.time, step=going_on.step, changes=(*more, *going_on.changes))


def _changes_of_recipe(event: Mapping[str, Any]) -> tuple[Difference, ...]:
    return tuple(
        Difference(name=f"recipe: {name}", values=tuple(values))
        for name, values in _table(event.get("changes")).items()
        if isinstance(values, list) and len(values) == 2
    )


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
