"""Several processes of which one is told to stop: all leave at the same step, and nobody waits for anybody who is gone."""

import json
import os
import signal
import time

import pytest
import torch
from torch.nn import functional

import velodrome as vd

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
DATA = (X, X[:, :1])


class Shard(list):
    """Batches of this process only."""

    is_sharded = True


class SignalAt(vd.Callback):
    def __init__(self, step, ranks):
        self.step, self.ranks = step, ranks

    def on_step_end(self, trainer):
        time.sleep(0.01)
        if trainer.progress.steps_done == self.step and trainer._run.world.rank in self.ranks:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder, step, ranks, val_batches=None, eval_at=0, log_every="1000 steps", uneven=False, **more):
    """Train until the signal comes; return how it ended, where, and for how long this process listened."""
    from velodrome.distributed.world import join_world

    rank = join_world(torch.device("cpu")).rank
    done = [0]

    def loss(output, target):
        if not torch.is_grad_enabled():
            done[0] += 1
            if done[0] == eval_at and rank in ranks:
                os.kill(os.getpid(), signal.SIGTERM)
        return functional.mse_loss(output, target)

    torch.manual_seed(0)
    trainer = vd.Trainer(
        torch.nn.Linear(3, 1), "sgd", lr=1e-3, loss=loss, callbacks=[SignalAt(step, ranks)], device="cpu", progress=False,
        run_dir=folder, seed=0, log_every=log_every, **more,
    )  # fmt: skip
    data = Shard([(X[:4], X[:4, :1])] * (3 if uneven and rank else 30))
    val = None if val_batches is None else Shard([(X[:4], X[:4, :1])] * val_batches[rank])
    code = None
    try:
        trainer.fit(data, val, epochs=40)
    except SystemExit as end:
        code = end.code
    handler = signal.getsignal(signal.SIGTERM)
    return code, trainer.progress.steps_done, done[0], str(trainer.result.stop_reason), handler == signal.SIG_DFL


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_one_process_is_told_and_all_leave_at_the_same_step(two, tmp_path, ranks):
    results = two.run(train, str(tmp_path / "run"), 20, ranks)
    code, step, _, reason, is_restored = results[0]
    assert results == [results[0]] * two.size
    assert (code, reason, is_restored) == (143, "The run was told to end.", True)
    assert 20 <= step < 20 + 200  # steps of 10 ms or more: about a second's
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["saved_step"]) == ("stopped", step)


def test_a_log_point_is_listened_at_too(two, tmp_path):
    results = two.run(train, str(tmp_path / "run"), 41, (1,), None, 0, "7 steps")
    assert results[0][1] == results[1][1]
    assert results[0][1] in (41, 42)  # 42 is a multiple of 7


def test_processes_whose_data_are_used_up_leave_with_the_others(two, tmp_path):
    results = two.run(train, str(tmp_path / "run"), 9, (0,), None, 0, "1000 steps", True)
    assert [result[:2] for result in results] == [results[0][:2]] * two.size
    assert results[0][0] == 143


@pytest.mark.parametrize("ranks", [(0,), (1,)])
def test_in_an_evaluation_the_one_that_is_told_stops_and_waits_for_the_others_at_the_end(two, tmp_path, ranks):
    batches = [6, 9, 9][: two.size]
    results = two.run(train, str(tmp_path / "run"), 0, ranks, batches, 2)
    assert [(result[0], result[1]) for result in results] == [(143, 30)] * two.size
    for rank, result in enumerate(results):
        assert result[2] == (2 if rank in ranks else batches[rank])
    assert '"kind": "epoch"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_deadline_is_agreed_on(two, tmp_path):
    results = two.run(train_briefly, str(tmp_path / "short"))
    assert results == [results[0]] * two.size
    assert results[0][0] is None
    assert 1 <= results[0][1] < 1200
    assert results[0][3] == "The time that the run was given is over."


def train_briefly(folder):
    return train(folder, 0, (), stop_after="1s")


def count_exchanges():
    """Return how many exchanges 400 quick updates made, and how long they took."""
    from velodrome.distributed.world import join_world

    world = join_world(torch.device("cpu"))
    trainer = vd.Trainer(torch.nn.Linear(3, 1), "sgd", lr=1e-3, loss="mse", device="cpu", progress=False)
    extra, began, before = 0, time.perf_counter(), 0
    for epoch in trainer.epochs(1):
        for x, y in epoch.train(Shard([(X[:4], X[:4, :1])] * 400)):
            before = world.num_collectives
            trainer.step(functional.mse_loss(trainer.model(x), y))
            extra += world.num_collectives - before - 1
    return extra, time.perf_counter() - began


def test_listening_costs_an_exchange_a_second(two):
    for extra, seconds in two.run(count_exchanges):
        # Rows every 50 steps are 8 exchanges; 1, 2, 4, ... steps apart at first, then a second.
        assert 1 <= extra - 8 <= 9 + seconds
