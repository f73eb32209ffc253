"""Learning curves: training against validation, one panel a metric, the best validation epoch marked.

Colours are the blue and the vermillion that every common kind of colour blindness tells apart, and the two
lines differ in marker and dash as well, so a print in grey reads too.
Source: M. Okabe, K. Ito, "Color Universal Design", 2008.
"""

from __future__ import annotations

import io
import math
import os
import secrets
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from velodrome.errors import ArgumentError
from velodrome.report.curves import Curve, Metric, collect_metrics, name_split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INSTALL_HINT", "MAX_PANELS", "hide_missing_glyphs", "plot_history", "save_figure", "style_axes"]

INSTALL_HINT = 'pip install "velodrome[plots]"'
MAX_PANELS = 12

_TRAIN, _VAL, _INK, _FAINT = "#0072B2", "#D55E00", "#222222", "#8A8A8A"
# Of evaluations of other names; more of them are in the tables.
_OTHERS: tuple[tuple[str, str, Any], ...] = (
    ("#009E73", "^", (0, (1, 1.2))), ("#CC79A7", "D", (0, (5, 1.2, 1, 1.2))), ("#56B4E9", "v", (0, (4, 1.4, 1, 1.4))),
)  # fmt: skip
_NUM_MARKED_EPOCHS = 30
_LONELY: dict[str, Any] = {"markersize": 4.5, "markeredgewidth": 0, "linestyle": "none", "zorder": 3}
_RING: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.5}


def plot_history(
    history: Sequence[Mapping[str, object]],
    path: str | os.PathLike[str] | None = None,
    *,
    directions: Mapping[str, Literal["min", "max"]] | None = None,
) -> Figure:
    """Draw the learning curves of a run.

    Nothing global is touched: no pyplot, no backend, no style of the user's.

    Args:
        history: epoch rows, as in `FitResult.history`.
        path: also write the figure there, in one move; the ending says the format (png, svg, pdf).
        directions: what is better of values whose names do not say it, or say it wrongly, as the run was told.
    Returns:
        A matplotlib Figure; a notebook shows it.
    Raises:
        ArgumentError: there is nothing to draw, matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ArgumentError(
            f"Curves were asked for, but matplotlib is not installed. It is an extra. Run: {INSTALL_HINT}"
        ) from error

    metrics = collect_metrics(history, directions)
    if not metrics:
        raise ArgumentError(
            f"There is nothing to draw in a history of {len(history)} rows. A curve needs one epoch row with "
            'a number such as "train/loss" or "val/loss". Train for at least one epoch first.'
        )
    num_left_out = max(0, len(metrics) - MAX_PANELS)
    metrics = metrics[:MAX_PANELS]
    num_columns = min(len(metrics), 3)
    num_rows = -(-len(metrics) // num_columns)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(4.8 * num_columns, 3.5 * num_rows), dpi=120, layout=layout, facecolor="white")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_panel(axes, metric)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    if num_left_out:
        figure.supxlabel(f"epoch   ({num_left_out} more metrics are in metrics.csv)", fontsize=9, color=_FAINT)
    if path is not None:
        save_figure(figure, Path(path))
    return figure


def _draw_panel(axes: Axes, metric: Metric) -> None:
    scale = 100.0 if metric.is_fraction else 1.0
    all_epochs = {epoch for curve in metric.curves for epoch in curve.epochs}
    markersize = 4.5 if len(all_epochs) <= _NUM_MARKED_EPOCHS else 0.0
    _fill_gap(axes, metric, scale)
    lines: list[tuple[str, Curve, str, str, Any]] = [
        ("train", metric.train, _TRAIN, "o", "-"),
        (name_split("val"), metric.val, _VAL, "s", (0, (4, 1.4))),
        *((name[:24], curve, *look) for (name, curve), look in zip(metric.others.items(), _OTHERS, strict=False)),
    ]
    for label, curve, colour, marker, dash in lines:
        if not curve.measured:
            continue
        values = [scale * value for value in curve.values]
        axes.plot(
            curve.epochs, values, color=colour, marker=marker, linestyle=dash, label=label,
            linewidth=1.8, markersize=markersize, markeredgewidth=0, zorder=3,
        )  # fmt: skip
        if not markersize:
            _mark_lonely_points(axes, curve.epochs, values, color=colour, marker=marker)
    _mark_best(axes, metric, scale)
    _style(axes, metric, all_epochs)


def _fill_gap(axes: Axes, metric: Metric, scale: float) -> None:
    """Shade the distance between training and validation: what grows there is overfitting."""
    train, val = (dict(zip(curve.epochs, curve.values, strict=True)) for curve in (metric.train, metric.val))
    epochs = sorted(train.keys() & val.keys())
    if len(epochs) > 1:
        low, high = ([scale * side[epoch] for epoch in epochs] for side in (train, val))
        axes.fill_between(epochs, low, high, color=_FAINT, alpha=0.13, linewidth=0, zorder=1)


def _mark_lonely_points(axes: Axes, epochs: Sequence[float], values: Sequence[float], **look: Any) -> None:
    """Draw the points with a gap on either side, which a line without markers would swallow."""
    is_gap = [True, *(math.isnan(value) for value in values), True]
    lonely = [i for i in range(len(values)) if is_gap[i] and not is_gap[i + 1] and is_gap[i + 2]]
    if lonely:
        axes.plot([epochs[i] for i in lonely], [values[i] for i in lonely], **_LONELY, **look)


def _mark_best(axes: Axes, metric: Metric, scale: float) -> None:
    best = metric.find_best()
    if best is None:
        return
    epoch, value = best
    shown = f"{100 * value:.1f}%" if metric.is_fraction else f"{value:.4g}"
    axes.axvline(epoch, color=_VAL, linewidth=1.0, linestyle=(0, (1, 2)), alpha=0.8, zorder=2)
    axes.plot([epoch], [scale * value], markeredgecolor=_VAL, zorder=4, **_RING)
    axes.set_title(f"best validation {shown}, epoch {epoch:g}", loc="right", fontsize=9, color=_VAL, pad=7)


def _style(axes: Axes, metric: Metric, epochs: set[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    name = metric.name if len(metric.name) <= 24 else metric.name[:23] + "…"
    title = name[:1].upper() + name[1:].replace("_", " ") + (" (%)" if metric.is_fraction else "")
    style_axes(axes, title=title, label="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    first, last = min(epochs), max(epochs)
    margin = 0.5 if first == last else 0.03 * (last - first)
    axes.set_xlim(first - margin, last + margin)
    axes.margins(y=0.09)
    legend = axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=_INK, handlelength=2.4)
    for text in legend.get_texts():
        text.set_parse_math(False)  # an evaluation may be called "$x"


def style_axes(axes: Axes, *, title: str, label: str) -> None:
    """Give a panel the look that all of ours have.

    Args:
        axes: the panel.
        title: what it shows; names of metrics are text, never TeX.
        label: of the axis at the bottom.
    """
    # A metric may be called "$x".
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=7, parse_math=False)
    axes.set_xlabel(label, fontsize=9, color=_INK)
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-5, 7))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9, length=3, width=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")


@contextmanager
def hide_missing_glyphs() -> Iterator[None]:
    """Draw a name in a script that the font lacks as boxes, without a warning about each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure in one move: whoever looks while a run goes on sees a whole picture."""
    image = io.BytesIO()
    kwargs: dict[str, Any] = {"format": path.suffix[1:].lower()} if path.suffix else {"format": "png"}
    temp = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        with hide_missing_glyphs():
            figure.savefig(image, **kwargs)
        temp.write_bytes(image.getvalue())
        os.replace(temp, path)
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib cannot write
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(
            f"The curves cannot be written to {path}: {reason}. The folder must exist and the name must end "
            "in .png, .svg or .pdf. Give another path.",
            path=str(path),
        ) from error
    finally:
        temp.unlink(missing_ok=True)
