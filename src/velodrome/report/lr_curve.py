"""The curve of a learning rate range test: loss against learning rate, with the suggestion marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError
from velodrome.report.plots import INSTALL_HINT, save_figure

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

__all__ = ["plot_lr_curve"]

_LOSS, _SMOOTHED, _MARK, _INK = "#9FB8C8", "#0072B2", "#D55E00", "#222222"


def plot_lr_curve(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    marks: Mapping[str, float],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw losses against learning rates.

    Args:
        rates, losses, smoothed: one number a step.
        marks: learning rates to mark, by what they are.
        path: also write the figure there, in one move; the ending says the format (png, svg, pdf).
    Returns:
        A matplotlib Figure.
    Raises:
        ArgumentError: there is nothing to draw, matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(
            f"A curve was asked for, but matplotlib is not installed. It is an extra. Run: {INSTALL_HINT}"
        ) from error
    if not rates:
        raise ArgumentError("There is nothing to draw: the range test took no step.")
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained", facecolor="white")
    axes: Any = figure.subplots()
    axes.plot(rates, losses, color=_LOSS, linewidth=1.0, label="loss of the step")
    axes.plot(rates, smoothed, color=_SMOOTHED, linewidth=1.8, label="smoothed")
    for index, (name, rate) in enumerate(marks.items()):
        style = "-" if not index else (0, (4, 2))
        axes.axvline(rate, color=_MARK, linewidth=1.2, linestyle=style, label=f"{name}: {rate:.2g}")
    axes.set_xscale("log")
    low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 2)])
    axes.set_ylim(low - 0.1 * (high - low or 1), high + 0.6 * (high - low or 1))  # not up to where it diverged
    axes.set_xlabel("learning rate", fontsize=9, color=_INK)
    axes.set_ylabel("training loss", fontsize=9, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if path is not None:
        save_figure(figure, Path(path))
    return figure
