"""FAULTS 48, 49: the process that the others wait for is named; processes that read other data are refused."""

from __future__ import annotations

import contextlib
import io
import os
import time

import pytest
import torch

import velodrome as vd
from velodrome.errors import WorldError


class Slow(vd.Callback):
    def __init__(self, rank):
        self.is_slow = int(os.environ["RANK"]) == rank

    def on_step_end(self, trainer):
        time.sleep(0.03 if self.is_slow else 0.002)


def train(slow_rank):
    """Return the warnings of thirty steps in which one rank sleeps."""
    x = torch.ones(60, 2)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        trainer = vd.Trainer(
            torch.nn.Linear(2, 1), "sgd", lr=0.01, loss="mse", device="cpu", progress=False, log_every="4 steps", seed=0,
            callbacks=[Slow(slow_rank)],
        )  # fmt: skip
        trainer.fit((x, x[:, :1]), batch_size=2, epochs=1, shuffle=False)
    return said.getvalue()


def test_the_process_that_the_others_wait_for_is_named_once(two):
    said = two.run(train, 1)
    assert said[0].count("warning: Rank 1 takes ") == 1
    assert "all wait for it" in said[0]
    assert "Rank 1 takes" not in said[1]


def test_no_process_is_named_when_nobody_is_slow(two):
    assert "all wait for it" not in two.run(train, 5)[0]


def train_on_other_data(kind):
    rank = int(os.environ["RANK"])
    x = torch.ones(8, 2)
    if rank == 1:
        x = {"values": x + 1, "number": x[:6], "same": x.clone()}[kind]
    trainer = vd.Trainer(torch.nn.Linear(2, 1), "sgd", lr=0.01, loss="mse", device="cpu", progress=False, seed=0)
    try:
        trainer.fit((x, x[:, :1]), batch_size=2, epochs=1)
    except WorldError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize(("kind", "what"), [("values", "'content' is "), ("number", "'samples' is 6 in rank 1")])
def test_processes_that_read_other_data_are_refused_before_the_first_step(kind, what, two):
    first, second = two.run(train_on_other_data, kind)
    assert what in first
    assert "same model on the same data" in first
    assert "The data's 'content' is" in second or "The data's 'samples' is 8 in rank 0 and 6 in rank 1" in second


def test_processes_that_read_equal_copies_train(two):
    assert two.run(train_on_other_data, "same") == ["trained", "trained"]
