"""The recording callback hears every event, in the order of the loop."""

from __future__ import annotations

import inspect
from typing import Any

from velodrome.callbacks.base import EVENTS
from velodrome.testing.recording import RecordingCallback
from velodrome.testing.tiny import tiny_classification, tiny_mlp
from velodrome.trainer import Trainer


def test_two_steps_and_an_evaluation_are_recorded_in_order() -> None:
    recording = RecordingCallback()
    trainer = Trainer(tiny_mlp(), "sgd", lr=0.1, loss="cross_entropy", callbacks=[recording], progress=False)

    trainer.fit(tiny_classification(num_samples=6), tiny_classification(num_samples=3), epochs=1, batch_size=4)

    assert recording.events == [
        "on_fit_start",
        "on_epoch_start",
        "on_step_end",  # 4 samples
        "on_step_end",  # the other 2
        "on_evaluate_end",
        "on_epoch_end",
        "on_fit_end",
    ]


def test_every_event_of_the_base_class_is_recorded_under_its_name() -> None:
    nothing: Any = None
    for event in EVENTS:
        recording = RecordingCallback()
        method = getattr(recording, event)
        method(*[nothing] * len(inspect.signature(method).parameters))

        assert recording.events == [event]
