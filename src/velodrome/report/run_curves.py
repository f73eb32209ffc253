"""The numbers of a run in its report: best and last metrics, curves, and the table of epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from velodrome.monitor import is_metric
from velodrome.report.curves import collect_metrics
from velodrome.report.html import Markup, join, table, tag
from velodrome.report.pictures import draw_curves, draw_steps, png_curves
from velodrome.report.words import as_number, show_duration, show_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from velodrome.report.facts import RunFacts

__all__ = ["show_curves", "show_epochs", "show_evaluations", "show_metrics"]

_MAX_METRICS = 100
_MAX_OTHERS = 4  # evaluations beside validation, in the table of metrics
_MAX_COLUMNS = 8  # of metrics, in the table of epochs
_MOST_ROWS, _ROWS_AT_EACH_END = 40, 15
_NO_EPOCH = "No epoch is over, so there are no metrics of one."


def show_metrics(facts: RunFacts) -> Markup:
    """Return the best and the last value of every metric, and which epoch was the best of the run."""
    metrics = collect_metrics(facts.epochs, facts.directions)
    if not metrics:
        return tag("p", _NO_EPOCH)
    rows = []
    others = list(dict.fromkeys(split for metric in metrics for split in metric.others))
    for metric in metrics[:_MAX_METRICS]:
        best = metric.find_best()
        rows.append(
            (
                metric.name,
                *(_last(facts, f"{split}/{metric.name}") for split in ("train", "val")),
                "" if best is None else show_number(best[1]),
                "" if best is None else f"{best[0]:g}",
                *(_last(facts, f"{split}/{metric.name}") for split in others[:_MAX_OTHERS]),
            )
        )
    left_out = len(metrics) - len(rows)
    header = ("Metric", "Training, last", "Validation, last", "Validation, best", "in epoch")
    header += tuple(f"{split}, last" for split in others[:_MAX_OTHERS])
    more = len(others) - _MAX_OTHERS
    return join(
        [
            tag("p", sentence) if (sentence := _best_sentence(facts)) else "",
            table(header, rows),
            tag("p", f"{left_out:,} more metrics are in metrics.csv.", class_="soft") if left_out > 0 else "",
            tag("p", f"{more:,} more evaluations are in metrics.csv.", class_="soft") if more > 0 else "",
        ]
    )


def show_curves(facts: RunFacts, *, png: bytes, draws: bool) -> Markup:
    """Return learning curves, then loss and learning rate over the steps; without pictures a line that says how to have them."""
    if not facts.epochs and not facts.steps and not facts.evaluations:
        return Markup()
    has_curves = bool(collect_metrics(facts.epochs))
    if not draws:
        return (
            png_curves(png)
            if png
            else tag(
                "p",
                "Curves were not drawn when this page was written: ",
                tag("code", "velodrome report"),
                " draws them.",
            )
        )
    chosen = (
        f"Of {facts.num_step_rows:,} rows {len(facts.steps):,} are drawn, evenly chosen."
        if facts.num_step_rows > len(facts.steps)
        else ""
    )
    curves = Markup() if not has_curves else png_curves(png) if png else draw_curves(facts.epochs, facts.directions)
    steps = draw_steps(facts.steps, facts.evaluations)
    return join(
        [
            curves,
            steps if steps != curves else "",  # that matplotlib is missing is said once
            tag("p", chosen, class_="soft") if steps and chosen else "",
        ]
    )


def show_epochs(facts: RunFacts) -> Markup:
    """Return the table of epochs; of many the first, the last and the best."""
    rows = facts.epochs
    if not rows:
        return Markup()
    names = _columns(rows)
    shown_names, more = names[:_MAX_COLUMNS], names[_MAX_COLUMNS:]
    chosen = _choose(rows, facts.best.get("epoch"))
    cells: list[tuple[Any, ...]] = []
    classes = []
    before = -1
    for index in chosen:
        if index > before + 1:
            cells.append((f"{index - before - 1:,} left out",))
            classes.append("gap")
        before = index
        row = rows[index]
        cells.append(
            (
                show_number(row.get("epoch")),
                show_number(row["step"]) if "step" in row else "",
                show_duration(row.get("seconds")),
                f"{as_number(row['lr']):.4g}" if "lr" in row else "",
                *(show_number(row[name]) if name in row else "" for name in shown_names),
                f"{rate:,.0f}" if math.isfinite(rate := as_number(row.get("samples_per_s"))) else "",
            )
        )
        classes.append("best" if facts.best and row.get("epoch") == facts.best.get("epoch") else "")
    header = ("Epoch", "Steps", "Time", "Learning rate", *shown_names, "Samples/s")
    caption = "Each row is the end of an epoch; time counts from the start of the run."
    if facts.best:
        caption += " The best epoch stands out."
    lost = [f"{len(more):,} more columns are in metrics.csv."] if more else []
    if len(chosen) < len(rows):
        lost.append(f"{len(rows) - len(chosen):,} of {len(rows):,} epochs are left out; metrics.csv has all.")
    return join(
        [table(header, cells, caption=caption, classes=classes), *(tag("p", each, class_="soft") for each in lost)]
    )


def show_evaluations(facts: RunFacts) -> Markup:
    """Return the table of the evaluations within epochs; of many the first and the last."""
    rows = facts.evaluations
    if not rows:
        return Markup()
    names = list(dict.fromkeys(name for row in rows for name in row if is_metric(name)))
    shown_names, more = names[:_MAX_COLUMNS], names[_MAX_COLUMNS:]
    cells: list[tuple[Any, ...]] = []
    before = -1
    for index in _choose(rows, None):
        if index > before + 1:
            cells.append((f"{index - before - 1:,} left out", *[""] * (len(shown_names) + 1)))
        before, row = index, rows[index]
        values = (show_number(row[name]) if name in row else "" for name in shown_names)
        cells.append((*(show_number(row.get(name)) for name in ("step", "epoch")), *values))
    lost = tag("p", f"{len(more):,} more columns are in metrics.jsonl.", class_="soft") if more else ""
    caption = "Made within the training loop; the row of an epoch has the last value of each name."
    return join([table(("Step", "Epoch", *shown_names), cells, caption=caption), lost])


def _best_sentence(facts: RunFacts) -> str:
    best, monitor = facts.best, facts.monitor
    if not best:
        return ""
    value = f": {monitor} {show_number(best[monitor])}" if monitor in best else ""
    return f"The best epoch is {show_number(best.get('epoch'))} of {len(facts.epochs):,}{value}."


def _last(facts: RunFacts, key: str) -> str:
    """Return the value of the last epoch that has one."""
    return next((show_number(row[key]) for row in reversed(facts.epochs) if key in row), "")


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row if is_metric(name))
    ends = ("loss", "accuracy")
    return sorted(names, key=lambda name: [name.partition("/")[2] != end for end in ends])


def _choose(rows: Sequence[Mapping[str, Any]], best_epoch: object) -> list[int]:
    """Return which rows are shown: all of a few; of many the first, the last and the best one."""
    if len(rows) <= _MOST_ROWS:
        return list(range(len(rows)))
    chosen = {*range(_ROWS_AT_EACH_END), *range(len(rows) - _ROWS_AT_EACH_END, len(rows))}
    chosen |= {index for index, row in enumerate(rows) if best_epoch is not None and row.get("epoch") == best_epoch}
    return sorted(chosen)
