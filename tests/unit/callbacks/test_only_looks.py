"""A callback that says it only looks is taken at its word by an engine that records steps."""

from __future__ import annotations

import pytest
from torch import nn

from velodrome import Callback, Trainer
from velodrome.testing.replayer import Replayer
from velodrome.testing.tiny import tiny_classification


class Freezes(Callback):
    """Changes what a step does, after eight of them."""

    def __init__(self, only_looks):
        self.only_looks = only_looks

    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 8:
            trainer.model[1].eval()


@pytest.mark.parametrize(("only_looks", "expected"), [(False, 2), (True, 1)])
def test_changes_of_a_callback_that_only_looks_are_not_looked_for(only_looks, expected):
    recorder = Replayer()
    trainer = Trainer(
        nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), "sgd", lr=0.1, loss="cross_entropy", device="cpu",
        engine=recorder, progress=False, callbacks=[Freezes(only_looks)],
    )  # fmt: skip
    trainer.fit(tiny_classification(num_samples=160), batch_size=8, epochs=1)  # 20 steps
    assert recorder.num_recorded == expected  # anew after the change that was seen
