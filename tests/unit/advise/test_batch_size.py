"""The batch-size finder: which sizes run, which one is enough, and that nothing of the caller's moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.advise.batch_size import BatchSizes, MeasuredSize
from velodrome.errors import ArgumentError, DataError
from velodrome.testing.tiny import tiny_classification, tiny_mlp


def sizes(*speeds, limit="the data end"):
    return BatchSizes(
        measured=tuple(
            MeasuredSize(batch_size=2**index, samples_per_s=speed, memory_bytes=None)
            for index, speed in enumerate(speeds)
        ),
        limit=limit,
    )


def test_powers_of_two_up_to_the_data_are_measured():
    found = vd.find_batch_size(
        tiny_mlp(), tiny_classification(num_samples=24), loss="cross_entropy", seconds_each=0.001
    )
    assert [each.batch_size for each in found.measured] == [1, 2, 4, 8, 16]
    assert found.largest == 16
    assert found.limit == "the data have 24 samples"
    assert all(each.samples_per_s > 0 for each in found.measured)


def test_the_largest_that_is_asked_for_is_the_end():
    found = vd.find_batch_size(tiny_mlp(), tiny_classification(), loss="cross_entropy", seconds_each=0.001, largest=4)
    assert found.largest == 4
    assert "largest=4" in found.sentence


def test_the_smallest_on_the_plateau_is_enough():
    found = sizes(100.0, 190.0, 290.0, 300.0, 280.0)  # 95 % of 300 is 285: 290 is the first above
    assert found.fastest == 4
    assert found.largest == 16


def test_nothing_of_the_callers_is_changed():
    model, data = (
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)),
        tiny_classification(),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    vd.fit(model, data, optimizer=optimizer, loss="cross_entropy", steps=2, batch_size=8, progress=False)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    random_state = torch.get_rng_state()
    vd.find_batch_size(model, data, optimizer=optimizer, loss="cross_entropy", seconds_each=0.001, largest=2, lr=None)
    assert all(torch.equal(before[0][name], tensor) for name, tensor in model.state_dict().items())
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(before[1][index][name], value) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), random_state)


class Greedy(nn.Module):
    """Has no memory for more than four samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.layer(x)


def test_the_end_of_memory_is_the_end_of_the_sizes():
    found = vd.find_batch_size(Greedy(), tiny_classification(), loss="cross_entropy", seconds_each=0.001)
    assert found.largest == 4
    assert "memory ended at 8" in found.limit


def test_a_batch_that_would_be_split_does_not_fit():
    found = vd.find_batch_size(
        Greedy(), tiny_classification(), loss="cross_entropy", seconds_each=0.001, on_oom="split"
    )
    assert found.largest == 4
    assert "memory ended at 8" in found.limit


def test_no_samples_are_refused():
    data = tuple(each[:0] for each in tiny_classification())
    with pytest.raises(DataError, match="The data have 0 samples"):
        vd.find_batch_size(tiny_mlp(), data, loss="cross_entropy")


def test_memory_is_foreseen_on_a_cpu():
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x):
            ballast = torch.ones(len(x), 1 << 20)  # 4 MiB a sample
            return self.layer(x) + 0 * ballast.sum(1, keepdim=True)

    found = vd.find_batch_size(
        Growing(), tiny_classification(num_samples=64), loss="cross_entropy", seconds_each=0.001, memory_share=1e-9
    )
    # How early depends on what this process had taken and freed before; without it the limit is that there are 64 samples.
    assert "would take more than" in found.limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"largest": 0}, "at least 1"),
        ({"largest": "4"}, "largest='4' is no batch size. It must be a whole number"),
        ({"largest": 2.5}, "whole number of at least 1"),
        ({"largest": True}, "whole number of at least 1"),
        ({"seconds_each": float("nan")}, "no time to train for. It must be above 0"),
        ({"seconds_each": -1}, "must be above 0"),
        ({"seconds_each": "1"}, "must be a number"),
        ({"memory_share": 0}, "above 0 and at most 1"),
        ({"run_dir": "runs/x"}, "writes nothing"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        vd.find_batch_size(tiny_mlp(), tiny_classification(), loss="cross_entropy", **arguments)


def test_throughput_counts_all_batches_of_an_update(monkeypatch):
    seconds = iter(range(10**9))  # a second goes by whenever somebody looks at the clock
    monkeypatch.setattr("velodrome.advise.batch_size.perf_counter", lambda: float(next(seconds)))
    found = vd.find_batch_size(
        tiny_mlp(), tiny_classification(num_samples=64), loss="cross_entropy", seconds_each=0.5, largest=2, accumulate=4
    )
    # Three updates of four batches in the one second between two looks.
    assert [each.samples_per_s for each in found.measured] == [12.0, 24.0]


def test_batches_are_made_as_the_loader_is_told():
    seen = []

    def double(x):
        seen.append(len(x))
        return x

    vd.find_batch_size(
        tiny_mlp(),
        tiny_classification(),
        loss="cross_entropy",
        seconds_each=0.001,
        largest=2,
        loader_args={"transform": double},
    )
    assert set(seen) == {1, 2}


def test_data_with_batches_of_their_own_are_refused():
    with pytest.raises(ArgumentError, match="batches of its own size"):
        vd.find_batch_size(tiny_mlp(), [tiny_classification()], loss="cross_entropy")
