import math
import os
import sys

import pytest

from velodrome.errors import ArgumentError
from velodrome.report.curves import collect_metrics
from velodrome.report.plots import MAX_PANELS, plot_history

pytest.importorskip("matplotlib", reason="the plots extra is not installed")

NAN = float("nan")


def make_history(num_epochs=4):
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "lr": 0.1,
            "train/top5": 0.9,
            "train/accuracy": 0.5 + epoch / 10,
            "train/loss": 1 / epoch,
            "val/loss": 0.5 + (epoch - 2) ** 2 / 10,
            "val/accuracy": 0.5 + epoch / 20,
        }
        for epoch in range(1, num_epochs + 1)
    ]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def curve(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))


def test_plot_has_one_panel_a_metric_loss_first_with_train_against_validation():
    figure = plot_history(make_history())
    assert titles(figure) == ["Loss", "Accuracy (%)", "Top5 (%)"]
    assert curve(figure.axes[0], "train") == ([1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4])
    assert curve(figure.axes[1], "validation")[1] == pytest.approx([55, 60, 65, 70])
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["train"]


def test_plot_marks_the_best_validation_epoch_of_each_metric():
    figure = plot_history(make_history())
    assert figure.axes[0].get_title(loc="right") == "best validation 0.5, epoch 2"
    assert figure.axes[1].get_title(loc="right") == "best validation 70.0%, epoch 4"
    assert figure.axes[2].get_title(loc="right") == ""


def test_plot_of_one_epoch_shows_points_and_the_tick_1():
    figure = plot_history(make_history(1))
    axes = figure.axes[0]
    figure.draw_without_rendering()
    assert curve(axes, "train") == ([1], [1])
    assert axes.get_lines()[0].get_markersize() > 3
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("num_epochs", [1, 2, 3, 7, 40, 1000])
def test_plot_ticks_are_whole_epochs(num_epochs):
    figure = plot_history(make_history(num_epochs))
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_values_missing_are_bridged_and_values_not_finite_are_gaps():
    history = [
        {"epoch": 1, "train/loss": 4.0},
        {"epoch": 2, "train/loss": NAN, "val/loss": 3.0},
        {"epoch": 3, "train/loss": None},
        {"epoch": 4, "train/loss": math.inf, "val/loss": 2.0},
        {"epoch": 5, "train/loss": 1.0},
    ]
    (metric,) = collect_metrics(history)
    assert metric.val.epochs == (2, 4)  # no NaN between: one line from 2 to 4
    assert metric.train.epochs == (1, 2, 3, 4, 5)
    assert [math.isnan(value) for value in metric.train.values] == [False, True, True, True, False]
    assert metric.find_best() == (4, 2.0)
    figure = plot_history(history)
    assert curve(figure.axes[0], "train")[1][::4] == [4, 1]


def test_long_run_without_markers_still_shows_a_point_between_two_gaps():
    history = [{"epoch": epoch, "train/loss": 1.0} for epoch in range(1, 101)]
    history[48]["train/loss"] = history[50]["train/loss"] = NAN
    lines = plot_history(history).axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines[1:]] == [[50]]
    assert lines[1].get_markersize() > 3


def test_step_rows_and_values_that_are_no_numbers_are_left_out():
    rows = [
        {"kind": "step", "step": 1, "train/loss": 9.0},
        {"kind": "epoch", "epoch": 1, "train/loss": 1.0, "val/note": "x"},
    ]
    (metric,) = collect_metrics(rows)
    assert metric.train.values == (1.0,)


def test_percent_only_for_shares():
    metrics = collect_metrics([{"epoch": 1, "train/accuracy": 81.0, "train/top3": 0.5, "train/mae": 0.5}])
    assert {metric.name: metric.is_fraction for metric in metrics} == {
        "accuracy": False,
        "top3": True,
        "mae": False,
    }


def test_more_metrics_than_panels_says_how_many_are_left_out():
    history = [{"epoch": 1, **{f"train/m{i}": 1.0 for i in range(MAX_PANELS + 3)}}]
    figure = plot_history(history)
    assert len(titles(figure)) == MAX_PANELS
    assert "3 more metrics" in figure.get_supxlabel()


def test_names_of_any_kind_are_drawn_as_text_without_a_warning(tmp_path):
    names = ("$x_y", "日本", "<script>", "a" * 300, "größe", "a/b")
    plot_history([{"epoch": 1, **{f"train/{name}": 1.0 for name in names}}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "start"),
    [("curves.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF"), ("c", b"\x89PNG")],
)
def test_plot_is_written_in_one_move_in_the_format_of_the_name(tmp_path, name, start):
    (tmp_path / name).write_bytes(b"old")
    plot_history(make_history(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [name]


def test_plot_touches_no_global_state_of_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    was_loaded = "matplotlib.pyplot" in sys.modules
    plot_history(make_history())
    assert ("matplotlib.pyplot" in sys.modules) == was_loaded
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("history", [[], [{"epoch": 1}], [{"epoch": 1, "train/loss": NAN}]])
def test_plot_of_nothing_is_refused(history):
    with pytest.raises(ArgumentError, match=f"nothing to draw in a history of {len(history)} rows"):
        plot_history(history)


@pytest.mark.parametrize("name", ["missing/curves.png", "curves.docx"])
def test_plot_that_cannot_be_written_is_refused_with_nothing_left(tmp_path, name):
    with pytest.raises(ArgumentError, match=r"cannot be written to .* Give another path"):
        plot_history(make_history(), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # what Python itself does for "not importable"
    with pytest.raises(ArgumentError, match=r'matplotlib is not installed.*pip install "velodrome\[plots\]"'):
        plot_history(make_history())


def test_the_run_decides_what_is_better_and_only_then_the_name():
    history = [{"epoch": epoch, "val/loss": loss, "val/score": loss} for epoch, loss in ((1, 1.0), (2, 3.0), (3, 2.0))]
    loss, score = collect_metrics(history)
    assert (loss.find_best(), score.find_best()) == ((1, 1.0), (2, 3.0))
    loss, score = collect_metrics(history, {"val/loss": "max", "val/score": "min"})
    assert (loss.find_best(), score.find_best()) == ((2, 3.0), (1, 1.0))
    figure = plot_history(history, directions={"val/loss": "max"})
    assert figure.axes[0].get_title(loc="right") == "best validation 3, epoch 2"


def test_curves_drawn_at_the_end_mark_what_the_mode_of_the_run_says(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    import velodrome as vd
    from velodrome.report import plots

    drawn = []
    plot = plots.plot_history
    monkeypatch.setattr(plots, "plot_history", lambda *args, **more: drawn.append(plot(*args, **more)) or drawn[-1])
    x = torch.zeros(8, 1)
    vd.fit(
        torch.nn.Linear(1, 1), (x, x + 1), val=(x, x + 1), batch_size=4, loss="mse", optimizer="sgd", lr=0.1, epochs=3, run_dir=tmp_path / "run",
        loggers=["curves"], progress=False, device="cpu", checkpoint=vd.Checkpointing(mode="max"),
    )  # fmt: skip
    assert drawn[0].axes[0].get_title(loc="right").endswith(", epoch 1")  # the loss falls


def test_evaluations_of_other_names_are_curves_too():
    history = [{"epoch": 1, "val/loss": 1.0, "test/loss": 2.0, "test/f1": 0.5, "lr/head": 0.1}]
    loss, f1 = collect_metrics(history)
    assert (loss.others["test"].values, f1.others["test"].values) == ((2.0,), (0.5,))
    figure = plot_history(history)
    assert titles(figure) == ["Loss", "F1"]
    assert curve(figure.axes[0], "test") == ([1], [2])


def test_numbers_that_no_float_holds_are_gaps():
    (metric,) = collect_metrics([{"epoch": 10**400, "train/loss": 1.0}, {"epoch": 2, "train/loss": 10**400}])
    assert metric.train.epochs == (1, 2)
    assert [math.isnan(value) for value in metric.train.values] == [False, True]
