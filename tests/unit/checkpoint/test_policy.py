from dataclasses import FrozenInstanceError

import pytest

from velodrome.checkpoint.policy import Checkpointing
from velodrome.errors import ArgumentError


@pytest.mark.parametrize(
    ("monitor", "direction"),
    [
        ("val/loss", "min"),
        ("val/mean_absolute_error", "min"),
        ("val/perplexity", "min"),
        ("val/accuracy", "max"),
        ("val/AUC", "max"),
        ("val/f1", "max"),
        ("val/top5", "max"),
        ("loss/accuracy", "max"),  # the quantity is what follows the last slash
    ],
)
def test_direction_auto_follows_the_name(monitor, direction):
    assert Checkpointing(monitor=monitor).direction == direction


def test_direction_given_wins_over_the_name():
    assert Checkpointing(monitor="val/loss", mode="max").direction == "max"


def test_is_better_is_strict_and_nan_never_wins():
    policy = Checkpointing()
    assert policy.is_better(0.5, 0.6)
    assert not policy.is_better(0.6, 0.6)
    assert not policy.is_better(0.7, 0.6)
    assert policy.is_better(0.7, None)
    assert policy.is_better(0.7, float("nan"))
    assert not policy.is_better(float("nan"), 0.6)
    assert not policy.is_better(float("nan"), None)
    assert Checkpointing(monitor="val/accuracy").is_better(0.7, 0.6)


def test_checkpointing_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Checkpointing().keep_last = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": ""}, "every='' is not a duration"),
        ({"every": 5}, "every=5 is not a duration.*'every 100 steps'"),
        ({"keep_last": 1}, "keep_last=1 .* from 2 up.*torn.*Use keep_last=2 or more"),
        ({"keep_last": True}, "keep_last=True is not a whole number"),
        ({"keep_every": 10}, "keep_every=10 is not a duration. It is a text such as '10 epochs'"),
        ({"background": 1}, "background=1 is not True or False"),
        ({"max_failures": 0}, "max_failures=0 .* from 1 up: None goes on"),
        ({"keep_best": -1}, "keep_best=-1 .* from 0 up"),
        ({"monitor": " "}, "monitor=' ' is not the name of a value"),
        ({"mode": "smallest"}, "mode='smallest' is unknown. It is 'auto', 'min' or 'max'"),
        ({"monitor": "val/bleu"}, "monitor='val/bleu' does not say.*Give mode='min' or mode='max'"),
    ],
)
def test_checkpointing_wrong_argument_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Checkpointing(**arguments)


def test_checkpointing_none_saves_only_at_the_end():
    assert Checkpointing(every=None).every is None
