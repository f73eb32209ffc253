"""Pictures that are in the page itself: curves as images, or why there are none."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import ArgumentError
from velodrome.report.html import Markup, picture, tag
from velodrome.report.plots import INSTALL_HINT, hide_missing_glyphs, plot_history, style_axes
from velodrome.report.words import as_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure

__all__ = ["draw_curves", "draw_steps", "missing_pictures", "png_curves", "show_figure"]

_BLUE, _GREEN, _VERMILLION = "#0072B2", "#009E73", "#D55E00"
_DASHES = ("-", "--", ":", "-.")
_MAX_LINES = 4
_CURVES = "Learning curves: each metric over the epochs, training against validation, the best validation marked."


def draw_curves(epochs: Sequence[Mapping[str, Any]], directions: Mapping[str, Literal["min", "max"]]) -> Markup:
    """Return the learning curves as an image, or a sentence that says what is missing.

    Args:
        epochs: rows.
        directions: what is better of the values, where the run was told.
    """
    try:
        return show_figure(plot_history(epochs, directions=directions), alt=_CURVES)
    except ArgumentError:
        return missing_pictures()


def draw_steps(rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]] = ()) -> Markup:
    """Return loss and learning rate over the steps as an image; nothing where fewer than two rows were written.

    Args:
        rows: of log points.
        evaluations: rows of those within the training loop.
    """
    if len(rows) + len(evaluations) < 2:
        return Markup()
    try:
        figure = _plot_steps(rows, evaluations)
    except ImportError:
        return missing_pictures()
    return show_figure(figure, alt="Loss and learning rate over the steps.") if figure else Markup()


def missing_pictures() -> Markup:
    """Return the line that says how to have curves."""
    return tag(
        "p", "Curves are drawn by matplotlib, which is not installed; the table has the numbers. To have them: ", tag("code", INSTALL_HINT)
    )  # fmt: skip


def png_curves(png: bytes) -> Markup:
    """Return the learning curves that are drawn already."""
    return picture(f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=_CURVES)


def show_figure(figure: Figure, *, alt: str) -> Markup:
    """Return a figure as an SVG image: as an image it can neither run nor ask for anything, whatever names are drawn in it."""
    from matplotlib import rc_context

    drawn = io.BytesIO()
    # The salt makes the same picture from the same numbers; without it names in the file are drawn at random.
    with hide_missing_glyphs(), rc_context({"svg.hashsalt": "velodrome", "svg.fonttype": "path"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return picture(f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}", alt=alt)


def _plot_steps(rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Figure | None:
    from matplotlib.figure import Figure

    rates = _names(rows, lambda name: name == "lr" or name.startswith("lr/"))
    losses = _names(rows, _is_training_loss)  # one of each optimizer that has its own
    evaluated = _names(evaluations, lambda name: name.endswith("/loss") and not _is_training_loss(name))
    panels = [("Loss", [*losses, *evaluated]), ("Learning rate", rates)]
    series = {name: _points(evaluations if name in evaluated else rows, name) for _, names in panels for name in names}
    panels = [(title, [name for name in names if series[name]]) for title, names in panels]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    figure = Figure(figsize=(4.8 * len(panels), 3.0), dpi=120, facecolor="white")
    all_axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(left=0.16 / len(panels), right=0.98, top=0.88, bottom=0.17, wspace=0.3)
    for axes, (title, names) in zip(all_axes, panels, strict=True):
        for index, name in enumerate(names):
            steps, values = zip(*series[name], strict=True)
            axes.plot(
                steps, values, color=_colour(name, title), linewidth=1.2, label=name,
                linestyle=_DASHES[index % len(_DASHES)], marker="o" if len(steps) < 30 else None, markersize=3,
            )  # fmt: skip
        style_axes(axes, title=title, label="step")
        drawn = {value for name in names for _, value in series[name] if math.isfinite(value)}
        if len(drawn) == 1 and (only := drawn.pop()) > 0:  # a rate that stays would lie on an axis of its last digits
            axes.set_ylim(0, 1.3 * only)
        if len(names) > 1:
            for text in axes.legend(frameon=False, fontsize=8).get_texts():
                text.set_parse_math(False)  # an optimizer may be called "$x"
    return figure


def _names(rows: Sequence[Mapping[str, Any]], is_meant: Callable[[str], bool]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if is_meant(name)))[:_MAX_LINES]


def _is_training_loss(name: str) -> bool:
    return name.startswith("train/") and name.endswith("/loss")


def _colour(name: str, title: str) -> str:
    if title == "Learning rate":
        return _GREEN
    return _BLUE if _is_training_loss(name) else _VERMILLION


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return step and value; what is not finite is NaN, a gap."""
    found = [(as_number(row.get("step")), as_number(row[name])) for row in rows if name in row]
    found = [(step, value) for step, value in found if math.isfinite(step)]
    return found if any(math.isfinite(value) for _, value in found) else []
