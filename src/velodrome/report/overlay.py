"""Curves of several runs over one another, told apart by colour, dash and marker.

The colours are told apart with every common kind of colour blindness; a print in grey has dashes and markers.
Source: M. Okabe, K. Ito, "Color Universal Design", 2008.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from velodrome.monitor import is_metric
from velodrome.report.curves import name_split
from velodrome.report.plots import MAX_PANELS, style_axes
from velodrome.report.words import as_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

__all__ = ["MAX_RUNS", "plot_runs"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.4)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_RUNS = 12
_MOST_MARKERS = 12
_MAX_NAME = 60


def plot_runs(names: Sequence[str], histories: Sequence[Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Draw one panel for each value, with a line for each run; None where no run has an epoch with a number.

    Args:
        names: of the runs.
        histories: the rows of their epochs.
    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = dict.fromkeys(
        key for rows in histories for row in rows for key in row if is_metric(key) and math.isfinite(as_number(row[key]))
    )  # fmt: skip
    first = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
    panels = sorted(keys, key=lambda key: first.index(key) if key in first else len(first))[:MAX_PANELS]
    if not panels:
        return None
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    height = 0.35 + 0.25 * -(-len(names) // 2)
    figure = Figure(figsize=(4.9 * columns, 3.2 * rows + height), dpi=120, facecolor="white", layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, key in zip(all_axes, panels, strict=False):
        for index, history in enumerate(histories):
            points = [(as_number(row.get("epoch")), as_number(row[key])) for row in history if key in row]
            if points:
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, **_look(index), markevery=max(1, len(points) // _MOST_MARKERS))
        split, _, name = key.partition("/")
        shown = name if len(name) <= 30 else f"{name[:29]}…"
        what = name_split(split)[:30]
        style_axes(axes, title=f"{what[:1].upper()}{what[1:]} {shown.replace('_', ' ')}", label="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    lines = [all_axes[0].plot([], [], **_look(index))[0] for index in range(len(names))]
    shown_names = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in names]
    legend = figure.legend(
        lines, shown_names, loc="outside upper left", ncols=2, frameon=False, fontsize=9, handlelength=3.4
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a run may be called "$x"
    return figure


def _look(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linewidth": 1.6,
        "markersize": 4.5,
        "markeredgewidth": 0,
    }
