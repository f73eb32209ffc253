"""Each process's part of the data: together they are what one process gets, batch by batch."""

import random
from contextlib import suppress

import numpy
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data.distributed import DistributedSampler

from velodrome.data.adopt import BatchIterable, adopt
from velodrome.data.bound import BoundLoader
from velodrome.data.loader import DataLoader
from velodrome.data.share import EMPTY, Share

CPU = torch.device("cpu")
SIZES = [2, 3, 5]


class Numbers(Dataset):
    """Sample i is the number i; counts what was fetched."""

    def __init__(self, size):
        self.size = size
        self.fetched = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.fetched.append(index)
        return torch.tensor(index)


class Stream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        numbers = list(range(self.size))
        random.shuffle(numbers)
        return iter(torch.tensor(numbers))


def batches(loader, rank=0, size=1, epoch=0):
    """Return the batches of one process as lists of numbers, [] where it has none; other draws of the process come in between."""
    source, _ = adopt(loader)
    if isinstance(source, BatchIterable):
        source.deal_out(rank=rank, size=size, seed=7)
    else:
        source = BoundLoader(source, seed=7, device=CPU, rank=rank, size=size)
    source.set_epoch(epoch)
    result = []
    for batch in source:
        torch.rand(rank + 1), random.random()  # a process's own dropout and augmentation
        result.append([] if batch is EMPTY else torch.as_tensor(batch).reshape(-1).tolist())
    with suppress(TypeError):  # a stream does not know
        assert len(source) == len(result)
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_samples", [1, 2, 5, 12, 13])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"drop_last": True}], ids=str)
@pytest.mark.parametrize("kind", [torch.arange, Numbers], ids=["in memory", "samples"])
def test_slices_of_all_ranks_make_the_batches_of_one_process(kind, options, num_samples, size):
    if options.get("drop_last") and num_samples < 4:
        pytest.skip("no whole batch")
    whole = batches(DataLoader(kind(num_samples), 4, **options))
    parts = [batches(DataLoader(kind(num_samples), 4, **options), rank, size) for rank in range(size)]
    assert [sum(slices, []) for slices in zip(*parts, strict=True)] == whole
    for slices in zip(*parts, strict=True):
        lengths = [len(part) for part in slices]
        assert max(lengths) - min(lengths) <= 1
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_process_fetches_only_its_own_samples_and_workers_change_nothing(workers):
    data = Numbers(11)
    parts = [batches(DataLoader(data, 4, shuffle=True, num_workers=workers), rank, 3) for rank in range(3)]
    whole = batches(DataLoader(Numbers(11), 4, shuffle=True))
    assert [sum(slices, []) for slices in zip(*parts, strict=True)] == whole
    if not workers:
        assert sorted(data.fetched) == list(range(11))


@pytest.mark.parametrize("size", SIZES)
def test_batches_of_a_sampler_that_are_smaller_than_the_world_leave_some_ranks_empty(size):
    lists = [[3, 1, 4], [5], [9, 2], [6, 5, 3]]
    parts = [batches(DataLoader(Numbers(10), batch_sampler=lists), rank, size) for rank in range(size)]
    assert [sum(slices, []) for slices in zip(*parts, strict=True)] == lists
    assert [len(part) for part in parts[1]] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightedRandomSampler([1.0, 2.0, 3.0, 4.0, 5.0], 9),
        lambda: RandomSampler(range(5), replacement=True, num_samples=9),
    ],
    ids=["weighted", "with replacement"],
)
def test_samplers_that_draw_at_random_draw_the_same_in_every_process(make):
    parts = []
    for rank in range(3):
        torch.manual_seed(rank)  # processes have seeds of their own
        parts.append(batches(DataLoader(Numbers(5), 4, sampler=make()), rank, 3, epoch=2))
    assert [len(sum(slices, [])) for slices in zip(*parts, strict=True)] == [4, 4, 1]
    seen = []
    for rank in range(2):
        torch.manual_seed(rank + 10)
        seen.append(batches(DataLoader(Numbers(5), 4, sampler=make()), 0, 3, epoch=2))
    assert seen == [parts[0], parts[0]]


def test_what_a_process_draws_itself_is_not_disturbed():
    def draws(size):
        torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
        batches(DataLoader(Numbers(5), 2, sampler=WeightedRandomSampler([1.0] * 5, 5)), 0, size)
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    batches_of_two = draws(2)
    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
    for _ in range(3):
        torch.rand(1), random.random()
    assert batches_of_two == (torch.rand(1).item(), random.random(), numpy.random.rand())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_samples", [1, 6, 13])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: [torch.arange(n)[start : start + 2] for start in range(0, n, 2)],
        lambda n: TorchDataLoader(Stream(n), batch_size=2),
        lambda n: DataLoader(Stream(n), 2),
        lambda n: DataLoader(Numbers(n), None),
    ],
    ids=["list", "torch stream", "stream", "items"],
)
def test_batches_of_unknown_nature_are_dealt_out_in_rounds(make, num_samples, size):
    parts = []
    for rank in range(size):
        torch.manual_seed(rank), random.seed(rank)  # processes have seeds of their own
        parts.append(batches(make(num_samples), rank, size))
    assert len({len(part) for part in parts}) == 1
    assert sorted(number for part in parts for batch in part for number in batch) == list(range(num_samples))


def test_a_line_says_how_data_are_shared():
    def line(data, size=2):
        source, _ = adopt(data)
        if isinstance(source, BatchIterable):
            source.deal_out(rank=0, size=size, seed=0)
            return source.describe()
        return BoundLoader(source, seed=0, device=CPU, rank=0, size=size).describe()

    assert line(DataLoader(torch.zeros(4), 2)).endswith(
        "batches of 2, in their own order, each batch divided among 2 processes"
    )
    assert line(DataLoader(torch.zeros(4), 2), size=1).endswith("in their own order")
    assert line(DataLoader(Numbers(4), None)).endswith("dealt out batch by batch among 2 processes")
    assert "used as it is, dealt out batch by batch among 2 processes, each of which reads them all" in line(
        [torch.zeros(2)]
    )
    sampler = DistributedSampler(Numbers(5), num_replicas=2, rank=0)
    assert "divided by its DistributedSampler, which gives 1 sample twice" in line(
        DataLoader(Numbers(5), 2, sampler=sampler)
    )
    sampler = DistributedSampler(Numbers(4), num_replicas=2, rank=0)
    assert line(TorchDataLoader(Numbers(4), 2, sampler=sampler)).endswith(", divided by its DistributedSampler")
    stream = Stream(4)
    stream.is_sharded = True
    assert line(DataLoader(stream, 2)).endswith("which each process reads as its own part")


def test_data_that_divide_themselves_are_left_alone():
    data = Numbers(7)
    parts = [
        batches(
            DataLoader(
                data, 2, sampler=DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False, drop_last=True)
            ),
            rank,
            2,
        )
        for rank in range(2)
    ]
    assert parts == [[[0, 2], [4]], [[1, 3], [5]]]
    sampler = BatchSampler(DistributedSampler(data, num_replicas=2, rank=1, shuffle=False, drop_last=True), 2, False)
    assert batches(DataLoader(data, batch_sampler=sampler), 1, 2) == [[1, 3], [5]]


def test_the_position_counts_the_samples_of_all_processes():
    loader = DataLoader(torch.arange(10), 4, shuffle=True)
    iterator = iter(BoundLoader(loader, seed=3, device=CPU, rank=1, size=3))
    first = next(iterator)
    state = loader.state_dict()
    assert (len(first), state["samples_done"]) == (1, 4)
    rest = [batch.tolist() for batch in iterator]

    other = DataLoader(torch.arange(10), 4, shuffle=True)
    other.load_state_dict(state)
    went_on = BoundLoader(other, seed=3, device=CPU, rank=1, size=3)
    assert [batch.tolist() for batch in went_on] == rest


def test_predictions_read_everything_in_every_process():
    bound = BoundLoader(DataLoader(TensorDataset(torch.arange(5)), 2, shuffle=True), seed=0, device=CPU, rank=1, size=2)
    assert [batch[0].tolist() for batch in bound.in_own_order()] == [[0, 1], [2, 3], [4]]


def test_slices_are_contiguous_and_differ_by_one_at_most():
    assert [Share(rank, 4).of(6) for rank in range(4)] == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert [Share(rank, 3).of(2) for rank in range(3)] == [(0, 1), (1, 2), (2, 2)]
