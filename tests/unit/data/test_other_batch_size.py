"""A loader that goes on with another batch size, or other batches of a sampler: every sample once, also after a second change."""

import pytest
import torch
from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler, get_worker_info
from torch.utils.data.datapipes.iter import IterableWrapper

import velodrome
from velodrome.errors import DataError

N = 23
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Stream(IterableDataset):
    """Items with a random number each; workers read every second one, say."""

    def __init__(self):
        self.num_read = 0

    def __len__(self):
        return N

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for value in range(first, N, step):
            self.num_read += 1
            yield torch.tensor([value, torch.rand((), dtype=torch.float64)], dtype=torch.float64)


class Telling(Stream):
    """A stream that can be entered in the middle."""

    def __init__(self):
        super().__init__()
        self.next = 0

    def __iter__(self):
        begin, self.next = self.next, 0
        for value in range(begin, N):
            self.num_read += 1
            self.next = value + 1
            yield torch.tensor([value, torch.rand((), dtype=torch.float64)], dtype=torch.float64)
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def add_up(items):
    return torch.stack(items).sum(0)  # one row, of two numbers: not as many as items


def items_of(batches):
    return [tuple(row) for batch in batches for row in batch.reshape(-1, 2).tolist()]


def read(loader, number):
    iterator = iter(loader)
    return [next(iterator) for _ in range(number)], loader.state_dict()


def values_of(batches):
    return [int(value) for value, _ in items_of(batches)]


SIZES = [(5, 3, 4), (3, 5, 5), (5, 5, 3), (4, None, 3), (None, 4, 7)]


@pytest.mark.parametrize(
    ("kind", "sizes"), [*((kind, sizes) for kind in (Stream, Telling) for sizes in SIZES), (Stream, (5, 100, 3))]
)
def test_a_stream_goes_on_at_the_item_in_batches_of_another_size(kind, sizes):
    expected = items_of(velodrome.DataLoader(kind(), 6, seed=1))
    first, state = read(velodrome.DataLoader(kind(), sizes[0], seed=1), 2)
    loader = velodrome.DataLoader(kind(), sizes[1], seed=1)
    loader.load_state_dict(state)
    second, state = read(loader, 1)
    loader = velodrome.DataLoader(kind(), sizes[2], seed=1)
    loader.load_state_dict(state)
    third = list(loader)

    assert items_of([*first, *second, *third]) == expected
    done = min(N, sum(len(values_of([batch])) for batch in [*first, *second]))
    left = N - done
    assert [len(values_of([batch])) for batch in third] == [
        min(sizes[2], left - begin) for begin in range(0, left, sizes[2])
    ]
    if kind is Telling:
        assert loader.dataset.num_read == left  # what was skipped is not read
    assert items_of(loader) == items_of(list_epoch(kind(), 1))  # the next epoch is whole


def list_epoch(dataset, epoch):
    loader = velodrome.DataLoader(dataset, 6, seed=1)
    loader.set_epoch(epoch)
    return loader


@pytest.mark.parametrize("read_after", [0, 1, 2, 3])
def test_with_the_batch_size_of_after_the_change_the_batches_are_those_of_the_run_that_was_not_cut_again(read_after):
    for workers in (0, 2):
        _, state = read(velodrome.DataLoader(Stream(), 3, num_workers=workers, seed=1), 3)
        loader = velodrome.DataLoader(Stream(), 4, num_workers=workers, seed=1)
        loader.load_state_dict(state)
        uncut = [batch.tolist() for batch in loader]
        loader.load_state_dict(state)
        _, state = read(loader, read_after)
        loader = velodrome.DataLoader(Stream(), 4, num_workers=workers, seed=1)
        loader.load_state_dict(state)
        assert [batch.tolist() for batch in loader] == uncut[read_after:]
        assert len(uncut) > 3


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_each_worker_goes_on_at_its_own_item(number, persistent):
    arguments = {"num_workers": 2, "seed": 1, "persistent_workers": persistent}
    expected = sorted(items_of(velodrome.DataLoader(Stream(), 5, **arguments)))
    first, state = read(velodrome.DataLoader(Stream(), 5, **arguments), number)
    assert state["stream"]["items"] == {1: [5, 0], 2: [5, 5], 3: [10, 5]}[number]
    loader = velodrome.DataLoader(Stream(), 3, **arguments)
    loader.load_state_dict(state)
    second, state = read(loader, 2)
    loader = velodrome.DataLoader(Stream(), 4, **arguments)
    loader.load_state_dict(state)
    assert sorted(items_of([*first, *second, *loader])) == expected
    assert sorted(values_of(loader)) == list(range(N))  # the next epoch


def test_items_are_counted_where_collate_makes_other_numbers_of_them():
    def sums(loader):
        return [batch[0].item() for batch in loader]

    _, state = read(velodrome.DataLoader(Stream(), 5, collate_fn=add_up), 2)  # 0 to 9
    loader = velodrome.DataLoader(Stream(), 4, collate_fn=add_up)
    loader.load_state_dict(state)
    assert sums(loader) == [10 + 11 + 12 + 13, 14 + 15 + 16 + 17, 18 + 19 + 20 + 21, 22]
    loader = velodrome.DataLoader(Stream(), 5, collate_fn=add_up)
    loader.load_state_dict(state)
    assert sums(loader) == [10 + 11 + 12 + 13 + 14, 15 + 16 + 17 + 18 + 19, 20 + 21 + 22]


def test_drop_last_leaves_out_the_short_batch_of_what_is_left():
    _, state = read(velodrome.DataLoader(Stream(), 5, drop_last=True), 2)
    loader = velodrome.DataLoader(Stream(), 4, drop_last=True)
    loader.load_state_dict(state)
    assert values_of(loader) == list(range(10, 22))


@pytest.mark.parametrize(("then", "now"), [(2, 0), (2, 1), (0, 2)])
def test_another_number_of_readers_is_refused_with_the_numbers(then, now):
    _, state = read(velodrome.DataLoader(Stream(), 5, num_workers=then), 3)
    loader = velodrome.DataLoader(Stream(), 5, num_workers=now)
    parts = r"2 workers read \(10 and 5 items\)" if then else r"one process read \(15 items\)"
    with pytest.raises(DataError, match=rf"15 samples into a stream that {parts}.*Give num_workers={then} until"):
        loader.load_state_dict(state)


def test_one_worker_reads_what_the_training_process_reads():
    expected = items_of(velodrome.DataLoader(Stream(), 5, seed=1))
    first, state = read(velodrome.DataLoader(Stream(), 5, seed=1), 2)
    loader = velodrome.DataLoader(Stream(), 3, num_workers=1, seed=1)
    loader.load_state_dict(state)
    assert items_of([*first, *loader]) == expected


def test_a_position_of_an_earlier_version_within_a_batch_is_refused():
    state = {"epoch": 0, "samples_done": 10, "seed": 0, "num_samples": None}
    loader = velodrome.DataLoader(Stream(), 5)
    loader.load_state_dict(state)
    assert values_of(loader) == list(range(10, N))
    loader = velodrome.DataLoader(Stream(), 4)
    loader.load_state_dict(state)
    with pytest.raises(
        DataError, match=r"10 samples into the epoch.* one batch of samples 8 to 11 .*Give the batch_size of then"
    ):
        next(iter(loader))


def test_data_pipes_go_on_between_batches_and_are_refused_within_one():
    def pipe():
        return IterableWrapper([torch.tensor([float(i), 0.0]) for i in range(N)])

    _, state = read(velodrome.DataLoader(pipe(), 5), 2)
    for size in (5, 2):
        loader = velodrome.DataLoader(pipe(), size)
        loader.load_state_dict(state)
        assert values_of(loader) == list(range(10, N))
    loader = velodrome.DataLoader(pipe(), 4)
    loader.load_state_dict(state)
    with pytest.raises(DataError, match="one batch of samples 8 to 11"):
        next(iter(loader))
    _, state = read(velodrome.DataLoader(pipe(), 5, num_workers=2), 2)
    loader = velodrome.DataLoader(pipe(), 4, num_workers=2)
    with pytest.raises(DataError, match=r"pipe that 2 workers read in batches of 5 .*Give batch_size=5 until"):
        loader.load_state_dict(state)


class Noting:
    """A map-style dataset that notes what is read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return index


@pytest.mark.parametrize("is_laid_out_ahead", [False, True])
@pytest.mark.parametrize("as_tuples", [False, True])
def test_a_batch_of_a_sampler_that_the_position_falls_into_is_cut(is_laid_out_ahead, as_tuples):
    def batches(size):
        lists = list(BatchSampler(SequentialSampler(range(N)), size, drop_last=False))
        return [tuple(each) for each in lists] if as_tuples else lists

    _, state = read(velodrome.DataLoader(Noting(), batch_sampler=batches(5)), 2)
    loader = velodrome.DataLoader(Noting(), batch_sampler=batches(4))
    loader.load_state_dict(state)
    if is_laid_out_ahead:
        loader.lay_out_ahead()
        assert loader.batches_left() == 4
    assert [batch.tolist() for batch in loader] == [[10, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22]]
    assert loader.dataset.read == list(range(10, N))  # nothing that was skipped


def test_a_sampler_that_gives_fewer_samples_than_were_done_is_refused():
    _, state = read(velodrome.DataLoader(Noting(), batch_sampler=[[0, 1], [2, 3]]), 2)
    loader = velodrome.DataLoader(Noting(), batch_sampler=[[0, 1, 2]])
    loader.load_state_dict(state)
    with pytest.raises(
        DataError, match="4 samples into the epoch, and list gave 3 samples in all. Go on with the sampler of then"
    ):
        loader.lay_out_ahead()
