from itertools import pairwise

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)  # fmt: skip

import velodrome
from velodrome.data.adopt import BatchIterable, adopt, needs_batch_size
from velodrome.errors import ArgumentError, DataError


class Numbers(Dataset):
    def __init__(self, size=10):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([index, -index])


class Rows:
    """What datasets of other libraries look like: an index gives a dict."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index >= 5:
            raise IndexError(index)
        return {"x": [float(index), 1.0], "y": index}


class Stream(IterableDataset):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(torch.arange(5))


class OwnLoader(DataLoader):
    pass


def lists(batches):
    return [
        batch.tolist() if isinstance(batch, torch.Tensor) else [part.tolist() for part in batch] for batch in batches
    ]


def test_velodrome_loader_is_used_as_it_is():
    loader = velodrome.DataLoader(torch.arange(4), 2)
    assert adopt(loader) == (loader, loader.describe())
    iterable = BatchIterable([torch.arange(3)])
    assert adopt(iterable)[0] is iterable


def test_tensors_arrays_dicts_and_datasets_are_batched():
    x, y = torch.arange(6.0).reshape(3, 2), numpy.arange(3)
    assert lists(adopt((x, y), batch_size=2)[0]) == [[[[0, 1], [2, 3]], [0, 1]], [[[4, 5]], [2]]]
    assert lists(adopt(x, batch_size=3)[0]) == [x.tolist()]
    assert next(iter(adopt({"x": x, "y": y}, batch_size=3)[0])).keys() == {"x", "y"}
    assert lists(adopt(Numbers(3), batch_size=2)[0]) == [[[0, 0], [1, -1]], [[2, -2]]]
    assert lists(adopt(TensorDataset(x), batch_size=3)[0]) == [[x.tolist()]]
    assert lists(adopt(Stream(), batch_size=3, shuffle=True)[0]) == [[0, 1, 2], [3, 4]]
    loader, line = adopt(Rows(), batch_size=5)
    assert next(iter(loader))["y"].tolist() == [0, 1, 2, 3, 4]
    assert line == "5 samples, sample by sample (Rows), batches of 5, in their own order"
    shuffled = adopt(Numbers(), batch_size=10, shuffle=True)[0]
    assert sorted(next(iter(shuffled))[:, 0].tolist()) == list(range(10))


def test_iterables_of_batches_are_used_as_they_are():
    batches = [(torch.zeros(2), torch.zeros(2))] * 3
    source, line = adopt(batches)
    assert len(source) == 3
    assert list(source) == batches == list(source)
    assert line == "3 batches from list, used as it is"
    assert adopt(zip([1], [2], strict=True))[1] == "batches of unknown number from zip, used as it is"


def test_generator_is_refused_in_the_second_epoch_and_not_taken_for_an_empty_one():
    source, line = adopt(torch.zeros(1) for _ in range(2))
    assert line == "batches of unknown number from generator, used as it is"
    assert len(list(source)) == 2
    with pytest.raises(
        DataError, match=r"epoch 2 has 0 batches. A generator can be run through only once. Give a list"
    ):
        list(source)
    endless, _ = adopt(iter(range(10)))
    assert [next(iter(endless)) for _ in range(3)] == [0, 1, 2]  # left early, it goes on


def count():
    n = 0
    while True:
        yield n
        n += 1


def test_generator_that_was_left_early_goes_on_in_the_next_epoch():
    numbers = count()
    source, _ = adopt(numbers)
    assert [next(iter(source)) for _ in range(3)] == [0, 1, 2]
    assert next(numbers) == 3  # and still belongs to the user
    short, _ = adopt(n for n in range(3))
    assert next(iter(short)) == 0
    assert list(short) == [1, 2]
    with pytest.raises(DataError, match=r"The generator given as data is exhausted: epoch 3 has 0 batches"):
        list(short)


class Told:
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter([0, 1])

    def __len__(self):
        return 2


def test_set_epoch_reaches_the_iterable_its_sampler_or_its_dataset():
    told = Told()
    adopt(told)[0].set_epoch(3)
    sampler = Told()
    adopt(OwnLoader(Numbers(), sampler=sampler))[0].set_epoch(4)
    stream = Stream()
    adopt(DataLoader(stream, 2))[0].set_epoch(5)
    adopt([1])[0].set_epoch(6)
    assert (told.epochs, sampler.epochs, stream.epochs) == ([3], [4], [5])


def test_subclassed_loaders_and_iterable_datasets_keep_pytorchs_loader():
    loader = OwnLoader(Numbers(), 4, shuffle=True)
    source, line = adopt(loader)
    assert source.data is loader
    assert line == "3 batches from OwnLoader, used as it is"
    source, line = adopt(DataLoader(Stream(), 2))
    assert lists(source) == [[0, 1], [2, 3], [4]]
    assert line == "batches of unknown number from DataLoader, used as it is"


def double(samples):
    return torch.stack(samples) * 2


LOADERS = {
    "plain": lambda: DataLoader(Numbers(), 4),
    "drop_last": lambda: DataLoader(Numbers(), 4, drop_last=True),
    "collate": lambda: DataLoader(Numbers(), 4, collate_fn=double),
    "tensors": lambda: DataLoader(TensorDataset(torch.arange(9), torch.rand(9)), 4),
    "list": lambda: DataLoader([torch.tensor(i) for i in range(5)], 2),
    "no batches": lambda: DataLoader(Numbers(), None),
    "no batches, collate": lambda: DataLoader(Numbers(), None, collate_fn=lambda sample: sample * 2),
    "batch_sampler": lambda: DataLoader(Numbers(), batch_sampler=[[1, 2], [3]]),
    "batch_sampler, collate": lambda: DataLoader(Numbers(), batch_sampler=[[1, 2], [3]], collate_fn=double),
    "own BatchSampler": lambda: DataLoader(Numbers(), batch_sampler=BatchSampler(SequentialSampler(range(7)), 3, True)),
    "sequential over a part": lambda: DataLoader(Numbers(), 4, sampler=SequentialSampler(range(5))),
    "sequential over a part in memory": lambda: DataLoader(
        TensorDataset(torch.arange(9)), 4, sampler=SequentialSampler(range(5))
    ),
    "list as sampler": lambda: DataLoader(Numbers(), 4, sampler=[3, 1]),
    "weighted": lambda: DataLoader(
        TensorDataset(torch.arange(9)),
        4,
        sampler=WeightedRandomSampler([1.0] * 9, 20, generator=torch.Generator().manual_seed(1)),
    ),
    "weighted, one generator for both": lambda: _share(WeightedRandomSampler, [1.0] * 9, 20),
    "part, one generator for both": lambda: _share(SubsetRandomSampler, range(6)),
    "weighted, global generator": lambda: DataLoader(Numbers(), 2, sampler=WeightedRandomSampler([1.0] * 10, 9)),
    "random with replacement": lambda: DataLoader(Numbers(), 2, sampler=RandomSampler(range(10), replacement=True)),
    "random part": lambda: DataLoader(Numbers(), 2, sampler=RandomSampler(range(5))),
    "random number": lambda: DataLoader(Numbers(), 2, sampler=RandomSampler(range(10), num_samples=3)),
    "workers": lambda: DataLoader(Numbers(), 4, num_workers=2),
    "persistent": lambda: DataLoader(Numbers(), 4, num_workers=2, persistent_workers=True, prefetch_factor=3),
    "weighted, workers": lambda: DataLoader(
        Numbers(), 2, num_workers=1, sampler=WeightedRandomSampler([1.0] * 10, 9)
    ),
}  # fmt: skip


def _share(kind, *arguments):
    generator = torch.Generator().manual_seed(1)
    return DataLoader(Numbers(), 2, sampler=kind(*arguments, generator=generator), generator=generator)


@pytest.mark.parametrize("name", LOADERS)
def test_pytorch_loader_is_rebuilt_with_the_same_batches_and_the_same_draws(name):
    torch.manual_seed(3)
    loader = LOADERS[name]()
    torch.manual_seed(4)
    expected = []
    for _ in range(3):  # the model draws after each batch, as dropout does
        expected.append([(batch, torch.rand(2)) for batch in loader])
    torch.manual_seed(3)
    source, line = adopt(LOADERS[name]())
    assert isinstance(source, velodrome.DataLoader)
    assert line.endswith("(PyTorch's DataLoader, rebuilt as velodrome.DataLoader)")
    torch.manual_seed(4)
    assert len(source) == len(expected[0])
    for epoch in expected:
        seen = [(batch, torch.rand(2)) for batch in source]
        assert len(seen) == len(epoch)
        for (mine, noise), (theirs, other_noise) in zip(seen, epoch, strict=True):
            assert lists([mine]) == lists([theirs])
            assert torch.equal(noise, other_noise)


def test_shuffled_pytorch_loader_gets_an_order_of_its_own_every_epoch():
    source, line = adopt(DataLoader(Numbers(50), 50, shuffle=True))
    source.set_epoch(0, seed=0)
    epochs = [next(iter(source))[:, 0].tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert all(a != b for a, b in pairwise(epochs))
    assert "shuffled" in line
    source.set_epoch(0)
    assert next(iter(source))[:, 0].tolist() == epochs[0]


def test_needs_batch_size_for_what_has_no_batches():
    assert needs_batch_size((torch.zeros(2), torch.zeros(2)))
    assert needs_batch_size(Numbers())
    assert not needs_batch_size(DataLoader(Numbers()))
    assert not needs_batch_size([torch.zeros(2)])


@pytest.mark.parametrize(
    "data", [torch.zeros(2), (torch.zeros(2), torch.zeros(2)), numpy.zeros(2), Numbers(), Stream()]
)
def test_data_without_batch_size_are_refused(data):
    with pytest.raises(ArgumentError, match=r"^val is a \w+, which needs a batch size. Give batch_size=64, say"):
        adopt(data, role="val")


@pytest.mark.parametrize(
    "data", [velodrome.DataLoader(torch.zeros(2)), DataLoader(Numbers()), BatchIterable([1]), (i for i in range(2))]
)
def test_batch_size_for_what_has_batches_is_refused(data):
    with pytest.raises(ArgumentError, match=r"^batch_size=4 was given, but train is a .* Leave batch_size out"):
        adopt(data, batch_size=4, role="train")


def test_what_cannot_be_iterated_is_refused():
    for data, kind in ((5, "a int"), (Numbers, "the class Numbers itself"), (nn.Linear(1, 1), "a Linear")):
        with pytest.raises(
            ArgumentError, match=f"train is {kind}, which cannot be iterated. Give a DataLoader, a Dataset"
        ):
            adopt(data, role="train")


def test_an_iterable_dataset_without_batch_size_is_told_how_to_hand_its_own_through():
    with pytest.raises(ArgumentError, match="With batch_size=None there, its items are the batches"):
        adopt(Stream())


@pytest.mark.parametrize("batch_size", [None, 1])
def test_tensors_nested_in_a_tuple_are_refused_with_the_flat_form(batch_size):
    x = torch.zeros(2)
    with pytest.raises(ArgumentError, match=r"tuple of dict, Tensor, one inside.*flat: as a tuple \(a, b, target\)"):
        adopt(({"a": x}, x), batch_size=batch_size)
    with pytest.raises(ArgumentError, match="tuple of tuple, Tensor"):
        adopt(((x, x), x), batch_size=batch_size)


def test_a_function_that_yields_batches_is_called_every_epoch():
    called = []

    def batches():
        called.append(len(called))
        yield from [1, 2, 3]

    source, line = adopt(batches)
    assert line == "batches of unknown number from batches(), called every epoch"
    assert next(iter(source)) == 1  # left early
    assert list(source) == [1, 2, 3]
    assert called == [0, 1]


@pytest.mark.parametrize(("is_sharded", "expected"), [(False, [2, 4]), (True, [1, 2, 3, 4])])
def test_batches_of_a_function_are_dealt_out_unless_it_says_that_it_divides_them(is_sharded, expected):
    def batches():
        yield from [1, 2, 3, 4]

    batches.is_sharded = is_sharded
    source, _ = adopt(batches)
    source.deal_out(rank=1, size=2, seed=0)
    assert list(source) == expected


def test_a_function_that_cannot_begin_anew_is_refused():
    used_up = iter([1, 2])
    source, _ = adopt(lambda: used_up)
    assert list(source) == [1, 2]
    with pytest.raises(ArgumentError, match="returned the same list_iterator twice. It must begin anew"):
        list(source)
    with pytest.raises(ArgumentError, match="returned a int, which cannot be iterated. It must yield batches"):
        list(adopt(lambda: 5)[0])
    same_list = [1, 2]
    source, _ = adopt(lambda: same_list)
    assert list(source) == list(source) == [1, 2]
