"""What happened to a run, in its report: where it went on, events, checkpoints, what it was made with, and the next commands."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from velodrome.report.differences import flatten
from velodrome.report.html import Markup, join, table, tag
from velodrome.report.words import show_bytes, show_time, show_value

if TYPE_CHECKING:
    from velodrome.report.facts import RunFacts

__all__ = ["show_checkpoints", "show_commands", "show_events", "show_goings_on", "show_recipe", "show_surroundings"]

_MAX_LONG_TEXT = 20_000
_MAX_CHECKPOINTS = 60


def show_goings_on(facts: RunFacts) -> Markup:
    """Return for each time that the run went on what was not as before."""
    parts = []
    for each in facts.goings_on:
        where = "" if each.step is None else f" after step {each.step:,}"
        parts.append(tag("h3", f"Went on{where}, {show_time(each.time)}"))
        if each.changes:
            rows = [
                (change.name, *("–" if value is None else show_value(value) for value in change.values))
                for change in each.changes
            ]
            parts.append(table(("What", "Before", "Now"), rows, num_texts=3))
        else:
            parts.append(tag("p", "Recipe, command, versions, machine and number of processes were as before."))
    return join(parts)


def show_events(facts: RunFacts) -> Markup:
    """Return what the run said, in the order of time."""
    if not facts.events:
        return tag("p", "Nothing was said in log.txt, or it is missing.")
    rows = []
    classes = []
    for event in facts.events:
        text = event.text.removeprefix("warning: ")
        first, _, rest = text.partition("\n")
        what = join([first, tag("details", tag("summary", "all of it"), tag("pre", rest, limit=_MAX_LONG_TEXT))]) if rest else first  # fmt: skip
        if event.kind == "error":  # of a traceback its last line says what is wrong
            what = join(
                [rest.rpartition("\n")[2], tag("details", tag("summary", "traceback"), tag("pre", text, limit=_MAX_LONG_TEXT))]
            )  # fmt: skip
        rows.append((tag("time", show_time(event.time)), event.kind, what))
        classes.append("bad" if event.kind in ("warning", "error") else "")
    lost = facts.num_events_left_out
    return join(
        [
            tag("p", f"{lost:,} older lines are left out; log.txt has all.", class_="soft") if lost else "",
            table(("Time", "What", ""), rows, num_texts=3, classes=classes),
        ]
    )


def show_checkpoints(facts: RunFacts) -> Markup:
    """Return what can be loaded from the disk."""
    if not facts.checkpoints:
        return tag("p", "There is no checkpoint.")
    newest = next((each for each in facts.checkpoints if not each.problem), None)
    rows = []
    for each in facts.checkpoints[:_MAX_CHECKPOINTS]:
        marks = [word for word, is_so in (("newest", each is newest), ("best", each.is_best)) if is_so]
        rows.append((each.name, f"{each.step:,}", show_bytes(each.num_bytes), each.problem or ", ".join(marks)))
    left_out = len(facts.checkpoints) - len(rows)
    return join(
        [
            table(("Folder", "Step", "Size", ""), rows, num_texts=1, caption="Sizes are checked, hashes are not: velodrome verify does."),
            tag("p", f"{left_out:,} older ones are left out.", class_="soft") if left_out > 0 else "",
        ]
    )  # fmt: skip


def show_commands(facts: RunFacts) -> Markup:
    """Return what to type next."""
    if not facts.commands:
        return Markup()
    rows = [(what, tag("code", command)) for what, command in facts.commands]
    return table((), rows, num_texts=2)


def show_surroundings(facts: RunFacts) -> Markup:
    """Return command, versions, code and machine of the newest part of the run."""
    if not facts.record:
        return Markup()
    record = {**facts.surroundings, "id": facts.record.get("id")}
    command, versions, git = record.get("command"), record.get("versions"), record.get("git")
    rows: list[tuple[str, object]] = []
    if isinstance(command, list):
        rows.append(("Command", tag("code", shlex.join(map(str, command)))))
    rows += [(str(name), show_value(value)) for name, value in (versions.items() if isinstance(versions, dict) else ())]
    if isinstance(git, dict):
        changed = ", with changes that are not committed" if git.get("dirty") else ""
        rows.append(("Git", f"{git.get('commit')}{changed}"))
    else:
        rows.append(("Git", "not in a repository"))
    names = (
        ("host", "Host"),
        ("device", "Device"),
        ("processes", "Processes"),
        ("seed", "Seed"),
        ("budget", "Budget"),
        ("id", "Run id"),
    )
    rows += [(title, show_value(record[name])) for name, title in names if record.get(name) is not None]
    caption = "As it was when the run went on last; what was otherwise before stands above." if facts.goings_on else ""
    return table((), rows, num_texts=2, caption=caption)


def show_recipe(facts: RunFacts) -> Markup:
    """Return the resolved recipe as it stands in the folder."""
    if not facts.recipe_text:
        words = tag("p", "This run was begun in Python: it has no recipe. These settings decided its numbers:")
        rows = [(name, show_value(value)) for name, value in flatten(facts.settings).items()]
        return join([words, table((), rows, num_texts=2)]) if rows else Markup()
    return tag("pre", tag("code", facts.recipe_text, limit=100_000))
