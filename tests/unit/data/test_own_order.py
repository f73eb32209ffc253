"""Loaders for predictions: all samples, in the order of the data, or a refusal that says what to give."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

import velodrome
from velodrome.data.adopt import adopt
from velodrome.errors import ArgumentError

DATA = torch.arange(7)


class Numbers(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.tensor(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class OwnLoader(DataLoader):
    pass


def read(data):
    return torch.cat([torch.as_tensor(batch).reshape(-1) for batch in adopt(data)[0].in_own_order()]).tolist()


@pytest.mark.parametrize(
    "loader",
    [
        velodrome.DataLoader(DATA, 2, shuffle=True, drop_last=True),
        velodrome.DataLoader(Numbers(), 2, shuffle=True, drop_last=True),
        velodrome.DataLoader(Numbers(), 2, shuffle=True, num_workers=1),
        velodrome.DataLoader(DATA, 2, shuffle=True, collate_fn=torch.stack),
        velodrome.DataLoader(Stream(), 2),
        DataLoader(Numbers(), 2, shuffle=True, drop_last=True),
        DataLoader(Numbers(), None, shuffle=True),
        DataLoader(Numbers(), batch_sampler=BatchSampler(SequentialSampler(range(7)), 2, False)),
        DataLoader(Stream(), 2),
        OwnLoader(Numbers(), 2),
        [DATA],
    ],
)
def test_every_sample_comes_in_the_order_of_the_data(loader):
    assert read(loader) == list(range(7))


def test_the_loader_itself_still_shuffles_and_stays_where_it_is():
    loader = velodrome.DataLoader(DATA, 2, shuffle=True, drop_last=True, seed=0)
    iterator = iter(loader)
    next(iterator)
    before = loader.state_dict()
    assert read(loader) == list(range(7))
    assert loader.state_dict() == before
    assert loader.in_own_order().describe() == "7 samples, in memory, batches of 2, in their own order"
    assert len(list(iterator)) == 2
    plain = velodrome.DataLoader(DATA, 2)
    assert plain.in_own_order() is plain


def test_samplers_that_name_their_samples_are_taken_at_their_word():
    assert read(DataLoader(Numbers(), 2, sampler=[3, 1])) == [3, 1]
    assert read(velodrome.DataLoader(DATA, sampler=range(5), batch_size=2, drop_last=True)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "loader",
    [
        velodrome.DataLoader(Numbers(), 2, sampler=SubsetRandomSampler(range(3))),
        DataLoader(TensorDataset(DATA), 2, sampler=SubsetRandomSampler(range(3))),
        DataLoader(Numbers(), batch_sampler=BatchSampler(SubsetRandomSampler(range(7)), 2, False)),
    ],
)
def test_sampler_of_an_order_unknown_is_refused(loader):
    with pytest.raises(
        ArgumentError,
        match=r"^The DataLoader takes its samples from a SubsetRandomSampler, whose order may differ each time\. A prediction "
        r"gives its outputs in the order of the data: give the dataset with batch_size=, or a loader without a sampler",
    ):
        read(loader)


def test_pytorch_loader_used_as_it_is_is_refused_when_it_shuffles():
    with pytest.raises(ArgumentError, match="The OwnLoader takes its samples from a RandomSampler"):
        read(OwnLoader(Numbers(), 2, shuffle=True))


@pytest.mark.parametrize(
    "loader",
    [
        velodrome.DataLoader(Stream(), 2, drop_last=True),
        DataLoader(Stream(), 2, drop_last=True),
        OwnLoader(Numbers(), 2, drop_last=True),
        DataLoader(Numbers(), batch_sampler=BatchSampler(SequentialSampler(range(7)), 2, True)),
        DataLoader(Numbers(), batch_sampler=BatchSampler(RandomSampler(range(7)), 2, True)),
    ],
)
def test_loader_that_leaves_samples_out_is_refused(loader):
    with pytest.raises(
        ArgumentError, match=r"Loader has drop_last=True, which leaves samples out\. .* drop_last=False"
    ):
        read(loader)
