"""The report of one run: one page, in the order in which people ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.report.html import Markup, join, page, tag
from velodrome.report.run_curves import show_curves, show_epochs, show_evaluations, show_metrics
from velodrome.report.run_story import (
    show_checkpoints,
    show_commands,
    show_events,
    show_goings_on,
    show_recipe,
    show_surroundings,
)
from velodrome.report.run_time import show_bill, show_findings
from velodrome.report.style import STYLE
from velodrome.report.words import show_duration, show_time

if TYPE_CHECKING:
    from velodrome.report.facts import RunFacts

__all__ = ["run_page", "section"]

_STATES = {
    "done": ("good", "Done"),
    "stopped": ("bad", "Stopped before its end; it can go on"),
    "failed": ("bad", "Failed"),
    "killed": ("bad", "Killed: it never said how it ended"),
    "under way": ("", "Under way when this was written"),
    "broken": ("bad", "Broken: its record cannot be read"),
}


def run_page(facts: RunFacts, *, curves_png: bytes = b"", draws: bool = True) -> str:
    """Return the report of a run as one HTML page, which asks for nothing and runs nothing.

    The same files give the same page.

    Args:
        facts: what its files tell.
        curves_png: the learning curves where they are drawn already.
        draws: whether what is not drawn yet may be; without it matplotlib is not imported.
    Cost: with `draws` that of two figures.
    """
    parts = (
        ("metrics", "Metrics", show_metrics(facts)),
        ("findings", "Findings", show_findings(facts)),
        ("time", "Where the time went", show_bill(facts)),
        ("curves", "Curves", show_curves(facts, png=curves_png, draws=draws)),
        ("epochs", "Epochs", show_epochs(facts)),
        ("evaluations", "Evaluations within epochs", show_evaluations(facts)),
        ("changes", "Where it went on", show_goings_on(facts)),
        ("events", "Events", show_events(facts)),
        ("checkpoints", "Checkpoints", show_checkpoints(facts)),
        ("surroundings", "Made with", show_surroundings(facts)),
        ("recipe", "Recipe", show_recipe(facts)),
        ("commands", "Commands", show_commands(facts)),
    )
    shown = [part for part in parts if part[2]]
    links = tag("nav", tag("ul", *(tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in shown)))
    return page(
        f"{facts.name} – report",
        STYLE,
        tag("header", tag("h1", facts.name), _how_it_ended(facts), _problems(facts), links),
        tag("main", *(section(name, title, content) for name, title, content in shown)),
        tag("footer", "Made by Velodrome from the files of the run; nothing in this page is loaded or run."),
    )


def section(name: str, title: str, content: Markup) -> Markup:
    """Return a part of the page with its heading."""
    return tag("section", tag("h2", title, id=name), content)


def _how_it_ended(facts: RunFacts) -> Markup:
    record = facts.record
    look, words = _STATES.get(facts.status, ("bad", facts.status))
    reason, error = record.get("stop_reason"), record.get("error")
    if facts.status in ("under way", "killed"):  # what an earlier part of the run said is not how this one ended
        reason = error = None
    lines = [
        join([tag("span", words, class_=f"state {look}".strip()), f". {reason}" if reason else "."]),
        f"Written to by {facts.holder}." if facts.holder else "",
        join(["Error: ", tag("code", error)]) if error else "",
        _how_far(facts),
    ]
    return join(tag("p", line) for line in lines if line)


def _how_far(facts: RunFacts) -> str:
    progress = facts.record.get("progress") or {}
    counts = ((facts.epochs_done, "epoch"), (facts.steps_done, "step"), (progress.get("samples_done"), "sample"))
    done = [f"{number:,} {unit}{'s' * (number != 1)}" for number, unit in counts if isinstance(number, int)]
    took = show_duration(progress.get("seconds"))
    began, ended = (show_time(facts.record.get(name)) for name in ("started", "finished"))
    sentences = [
        f"{', '.join(done)}{f' in {took}' if took else ''}" if done else "No step was recorded",
        f"Recipe or script: {facts.recipe_name}" if facts.recipe_name else "",
        f"Begun {began}" if began else "",
        f"ended {ended}" if ended else "",
    ]
    return ". ".join(sentence for sentence in sentences if sentence).replace(". ended", ", ended") + "."


def _problems(facts: RunFacts) -> Markup:
    if not facts.problems:
        return Markup()
    return tag("ul", *(tag("li", f"Problem: {problem}", class_="bad") for problem in facts.problems), class_="plain")
