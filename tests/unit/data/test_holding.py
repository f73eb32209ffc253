"""A dataset that is read once and kept: the same bits afterwards, and no random sample is frozen."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import velodrome as vd
from velodrome.data.holding import read_into_memory
from velodrome.errors import DataError


class Squares(Dataset):
    """Sample i is ([i, i * i], i % 3); counts how often samples are read."""

    def __init__(self, count=100, change=lambda sample, index: sample):
        self.count, self.change, self.reads = count, change, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        return self.change((numpy.array([index, index**2], dtype="float32"), index % 3), index)


def test_each_sample_is_read_once_and_some_twice():
    dataset = Squares(200)
    kept = read_into_memory(dataset)
    assert dataset.reads == 1 + 200 + 64  # the first one for its shape; the checked ones: 0, 62 between, 199
    assert isinstance(kept, TensorDataset)
    assert torch.equal(kept.tensors[0][3], torch.tensor([3.0, 9.0]))
    assert kept.tensors[1].tolist()[:5] == [0, 1, 2, 0, 1]


def test_batches_are_those_of_the_dataset_to_the_bit():
    for make in (lambda: Squares(50), lambda: Squares(50, lambda sample, _: {"input": sample[0], "target": sample[1]})):
        read = list(vd.DataLoader(make(), 8, shuffle=True, seed=3))
        kept = list(vd.DataLoader(read_into_memory(make()), 8, shuffle=True, seed=3))
        assert len(read) == len(kept) == 7  # 50 samples in batches of 8
        for one, other in zip(read, kept, strict=True):
            assert type(one) is type(other)
            pairs = (
                zip(one.values(), other.values(), strict=True)
                if isinstance(one, dict)
                else zip(one, other, strict=True)
            )
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_what_is_in_memory_comes_back_as_it_is():
    for data in ((torch.ones(3), torch.ones(3)), TensorDataset(torch.ones(3)), {"x": torch.ones(3)}):
        assert read_into_memory(data) is data


@pytest.mark.parametrize("draw", [random.random, lambda: numpy.random.rand(), lambda: torch.rand(()).item()])
def test_samples_that_draw_random_numbers_are_refused_however_rarely_they_use_them(draw):
    dataset = Squares(200, lambda sample, index: (sample[0] + (index == 77 and draw() > 2), sample[1]))
    with pytest.raises(DataError, match=r"training dataset \(Squares\) draws random numbers.*data\.transforms"):
        read_into_memory(dataset)


def test_samples_of_a_generator_of_their_own_are_refused():
    generator = numpy.random.default_rng(0)
    dataset = Squares(change=lambda sample, index: (sample[0] + generator.random(), sample[1]))
    with pytest.raises(DataError, match="gives another sample 0 when it is read again"):
        read_into_memory(dataset)


def test_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(DataError):
        read_into_memory(Squares(change=lambda sample, _: (sample[0] + torch.rand(1).item(), sample[1])))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda sample, index: (sample[0][: 1 + index % 2], sample[1]),
            "sample 1 in another shape or type than sample 0",
        ),
        (lambda sample, index: (sample[0], "label"), "not all numbers"),
        (lambda sample, index: sample[0], "must be tuples or dicts"),
    ],
)
def test_samples_that_cannot_be_kept_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        read_into_memory(Squares(change=change))


def test_more_than_half_of_the_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr("velodrome.data.holding.available_bytes", lambda device: 3199)
    with pytest.raises(DataError, match="let workers read it"):
        read_into_memory(Squares(100))  # 100 samples of 2 x 4 + 8 bytes: 1600, and half is 1599.5
    monkeypatch.setattr("velodrome.data.holding.available_bytes", lambda device: 3200)
    assert len(read_into_memory(Squares(100))) == 100


def test_a_missing_number_is_equal_to_itself():
    kept = read_into_memory(Squares(3, lambda sample, _: (sample[0] * float("nan"), sample[1])))
    assert kept.tensors[0].isnan().all()
