from __future__ import annotations

import pytest

from velodrome.report.overlay import MAX_RUNS, plot_runs

pytest.importorskip("matplotlib", reason="the plots extra is not installed")


def rows(values, **more):
    return [{"epoch": epoch, "val/loss": value, **more} for epoch, value in enumerate(values, 1)]


def test_each_run_is_a_line_in_each_panel():
    figure = plot_runs(["a", "b"], [rows([1.0, 0.5]), rows([2.0, float("nan"), 0.25])])
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "Validation loss"
    first, second, *_ = axes.get_lines()
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 2], [1.0, 0.5])
    assert list(second.get_xdata()) == [1, 2, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_runs_are_told_apart_without_colour():
    figure = plot_runs([str(index) for index in range(MAX_RUNS)], [rows([1.0, 0.5])] * MAX_RUNS)
    lines = figure.axes[0].get_lines()[:MAX_RUNS]
    assert len({(str(line._dash_pattern), line.get_marker()) for line in lines}) == MAX_RUNS


def test_a_value_that_one_run_lacks_has_the_lines_of_the_others():
    figure = plot_runs(["a", "b"], [rows([1.0]), [{"epoch": 1, "train/loss": 3.0}]])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Training loss", "Validation loss"]


def test_runs_without_numbers_have_no_picture():
    assert plot_runs(["a"], [[]]) is None
    assert plot_runs(["a"], [[{"epoch": 1, "val/loss": None}]]) is None


def test_a_name_is_no_formula():
    figure = plot_runs(["$\\frac$", "b"], [rows([1.0]), rows([2.0])])
    figure.draw_without_rendering()


def test_evaluations_of_any_name_have_a_panel():
    figure = plot_runs(["a"], [[{"epoch": 1, "val/loss": 1.0, "test/f1": 0.5, "lr/head": 0.1}]])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Validation loss", "Test f1"]
