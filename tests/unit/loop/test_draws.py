"""What is shown is brought up to date at most ten times a second, however short the steps are."""

import time

import torch
from torch import nn

from velodrome import Trainer
from velodrome.record.progress import NoProgress


class Counts(NoProgress):
    """Counts how often it is told how far a phase is."""

    def __init__(self):
        self.draws = 0

    def advance(self, batches_done, samples_done):
        self.draws += 1


def test_display_is_told_ten_times_a_second_and_at_the_end_of_a_loop(monkeypatch):
    shown = Counts()
    monkeypatch.setattr("velodrome.trainer.make_progress", lambda enabled: shown)
    data = torch.randn(4000, 4), torch.randn(4000, 1)
    trainer = Trainer(nn.Linear(4, 1), "sgd", lr=0.01, loss="mse", device="cpu")
    began = time.perf_counter()
    trainer.fit(data, data, batch_size=4, epochs=1)
    seconds = time.perf_counter() - began
    # 2,000 batches in two loops, each of which draws once at its beginning and once at its end
    assert 2 <= shown.draws <= 10 * seconds + 4
