"""What a metric is, and what is better of it, as its name says it: one rule for stopping, checkpoints, curves and reports."""

from __future__ import annotations

import pytest

from velodrome.callbacks.best_checkpoint import BestCheckpoint
from velodrome.errors import ArgumentError
from velodrome.monitor import Monitor, find_direction, is_metric


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("val/loss", "min"),
        ("val/logloss", "min"),
        ("val/rmse", "min"),
        ("val/nll", "min"),
        ("test/nll_per_token", "min"),
        ("val/top5_error", "min"),
        ("val/top5", "max"),
        ("val/top_1", "max"),
        ("val/topk", "max"),
        ("val/acc", "max"),
        ("val/balanced_acc", "max"),
        ("val/f1_score", "max"),
        ("val/score", "max"),
        ("val/stop_rate", None),
        ("val/accept_rate", None),
        ("val/channelloss", "min"),
        ("val/quantity", None),
        ("loss/quantity", None),
    ],
)
def test_the_name_tells_what_is_better_or_nothing(name, direction):
    assert find_direction(name) == direction
    if direction is not None:
        assert Monitor(name).direction == direction
    else:
        with pytest.raises(ArgumentError, match="does not say whether smaller is better"):
            Monitor(name)


def test_a_mode_wins_over_the_name():
    assert Monitor("val/loss", "max").direction == "max"


def test_an_abbreviation_is_enough_for_a_callback():
    BestCheckpoint("val/acc")


def test_a_metric_is_what_has_the_name_of_what_was_measured():
    names = ["epoch", "step", "lr", "lr/head", "seconds", "samples_per_s", "train/loss", "train/head/loss", "test/f1"]
    assert [name for name in names if is_metric(name)] == ["train/loss", "train/head/loss", "test/f1"]
