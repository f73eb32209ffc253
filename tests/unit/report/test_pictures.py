"""Pictures in a report: which lines there are, and what is said without matplotlib."""

from __future__ import annotations

import sys

import pytest

from velodrome.report.facts import RunFacts
from velodrome.report.pictures import _plot_steps, missing_pictures
from velodrome.report.run_curves import show_curves


def lines(axes):
    return {line.get_label(): list(map(float, line.get_ydata())) for line in axes.get_lines()}


def test_losses_of_each_optimizer_and_of_evaluations_are_drawn():
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    rows = [{"step": step, "lr": 0.1, "train/g/loss": 1.0 / step, "train/d/loss": 2.0, "train/g/grad_norm": 9.0} for step in (1, 2)]  # fmt: skip
    evaluations = [{"step": 2, "val/loss": 4.0, "val/f1": 0.5}]
    figure = _plot_steps(rows, evaluations)
    assert lines(figure.axes[0]) == {"train/g/loss": [1.0, 0.5], "train/d/loss": [2.0, 2.0], "val/loss": [4.0]}


def test_of_many_losses_four_of_each_kind_are_drawn():
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    rows = [{"step": step, **{f"train/o{index}/loss": 1.0 for index in range(9)}} for step in (1, 2)]
    figure = _plot_steps(rows, [{"step": 2, **{f"e{index}/loss": 1.0 for index in range(9)}}])
    assert len(figure.axes[0].get_lines()) == 8


@pytest.mark.parametrize("epochs", [[], [{"epoch": 1, "val/loss": 1.0}]])
def test_without_matplotlib_the_hint_is_there_once_also_with_rows_of_steps_only(monkeypatch, epochs):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    facts = RunFacts(name="x", status="done", epochs=epochs, steps=[{"step": step, "train/loss": 1.0} for step in (1, 2)])  # fmt: skip
    assert show_curves(facts, png=b"", draws=True).count(missing_pictures()) == 1
