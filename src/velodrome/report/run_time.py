"""Where the time of a run went, in its report: findings in words, the bill as a table with bars, the pace of each process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.report.html import Markup, bar, join, table, tag
from velodrome.report.words import as_number, show_duration, show_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from velodrome.report.facts import RunFacts

__all__ = ["PART_NAMES", "bill_parts", "show_bill", "show_findings"]

PART_NAMES = {
    "data_wait": "waiting for data",
    "transfer": "transfer",
    "forward": "forward and loss",
    "backward": "backward",
    "optimizer": "optimizer",
    "logging": "logging and metrics",
    "callbacks": "callbacks",
    "saving": "saving",
    "evaluation": "evaluation",
    "other": "other",
}
"""as `velodrome.record.bill.PARTS` calls them"""


def bill_parts(bill: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each part of a recorded bill that is a time."""
    parts = bill.get("parts_s")
    if not isinstance(parts, dict):
        return {}
    return {str(name): number for name, value in parts.items() if (number := as_number(value)) >= 0}


def show_findings(facts: RunFacts) -> Markup:
    """Return what the bill means, and how many warnings there were."""
    warnings = sum(each.kind == "warning" for each in facts.events)
    found = [tag("li", each) for each in facts.findings]
    if found and facts.bill_is_of_part_before:
        found.append(tag("li", "What is said of the time is of the part before the run went on last.", class_="soft"))
    if warnings:
        what = "1 warning was" if warnings == 1 else f"{warnings:,} warnings were"
        found.append(tag("li", f"{what} given: see ", tag("a", "events", href="#events"), "."))
    return tag("ul", *found, class_="plain") if found else tag("p", "Nothing stands out in the time or in the log.")


def show_bill(facts: RunFacts) -> Markup:
    """Return the parts of the wall time, the largest share of a bar's width each, and what a step took in each process."""
    bill, parts = facts.bill, bill_parts(facts.bill)
    wall = as_number(bill.get("wall_s"))
    if not parts or not wall > 0:
        return tag("p", "No bill was recorded: no epoch is over, or events.jsonl is missing.")
    batches = bill.get("batches")
    epoch = bill.get("epoch")
    caption = f"{show_duration(wall)} of wall time"
    caption += f", {batches:,} batches of training" if isinstance(batches, int) else ""
    caption += f", up to the end of epoch {show_number(epoch)}" if epoch is not None else ""
    caption += f"{_whose(facts)}."
    rows = []
    callbacks = bill.get("callbacks_s")
    for name, seconds in parts.items():
        rows.append(_row(PART_NAMES.get(name, name), seconds, wall))
        if name == "callbacks" and isinstance(callbacks, dict):
            each = ((str(one), as_number(value)) for one, value in callbacks.items())
            rows += [_row(f"– {one}", value, wall) for one, value in each if value >= 0]
    return join([table(("Part", "Seconds", "Share", ""), rows, caption=caption), _show_pace(facts.step_ms)])


def _whose(facts: RunFacts) -> str:
    """Return of which part of a run that went on the bill is."""
    if facts.bill_is_of_part_before:
        return "; of the part before the run went on last: no epoch has ended since"
    return "; of the last part of the run, since it went on" if facts.goings_on else ""


def _row(name: str, seconds: float, wall: float) -> tuple[object, ...]:
    return name, f"{seconds:.3f}", f"{seconds / wall:.1%}", bar(seconds / wall)


def _show_pace(step_ms: Sequence[float]) -> Markup:
    if len(step_ms) < 2:
        return Markup()
    slowest, middle = max(step_ms), sorted(step_ms)[(len(step_ms) - 1) // 2]  # the lower of two in the middle
    rows = [
        (f"rank {rank}", f"{each:.3g}", bar(each / slowest if slowest > 0 else 0.0))
        for rank, each in enumerate(step_ms)
    ]
    sentence = ""
    if middle > 0 and slowest > 1.5 * middle:
        sentence = (
            f"Rank {list(step_ms).index(slowest)} takes {slowest / middle:.1f} times as long as the median: all wait for it. "
            f"Look at its device, its data and what else runs on its machine."
        )
    return join(
        [
            tag("h3", "Processes"),
            table(("Process", "Milliseconds", ""), rows, caption="What a step took in each by itself, not waited for the others."),
            tag("p", sentence) if sentence else "",
        ]
    )  # fmt: skip
