"""The order of samples is f(seed, epoch): not of workers, not of where the data lie, not of where a run was interrupted."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

import velodrome
from velodrome.data.order import epoch_generator, epoch_order


class Counting(Dataset):
    """The numbers from 0 on; remembers which were read."""

    def __init__(self, size):
        self.size = size
        self.read = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        return index


def samples_of(loader):
    return [value for batch in loader for value in batch.tolist()]


def make(place, size, batch_size, **arguments):
    data = torch.arange(size) if place == "memory" else Counting(size)
    return velodrome.DataLoader(data, batch_size, **arguments)


@given(
    size=st.integers(1, 40), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), other=st.integers(0, 2**63 - 1)
)
@settings(max_examples=50, deadline=None)
def test_epoch_order_is_a_permutation_and_nothing_but_seed_and_epoch_goes_in(size, seed, epoch, other):
    before = torch.get_rng_state()
    order = epoch_order(size, seed=seed, epoch=epoch, shuffle=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(other)
    assert torch.equal(order, epoch_order(size, seed=seed, epoch=epoch, shuffle=True))
    assert sorted(order.tolist()) == list(range(size))
    assert epoch_order(size, seed=seed, epoch=epoch, shuffle=False).tolist() == list(range(size))


def test_epoch_generator_next_seed_and_next_epoch_share_nothing():
    seeds = {epoch_generator(seed, epoch, "order").initial_seed() for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400  # seed + epoch would give 39
    assert epoch_generator(0, 0, "order").initial_seed() != epoch_generator(0, 0, "workers").initial_seed()


def test_order_in_memory_and_sample_by_sample_is_the_same_in_every_epoch():
    in_memory, by_sample = (make(place, 23, 4, shuffle=True, seed=3) for place in ("memory", "samples"))
    epochs = [samples_of(in_memory) for _ in range(3)]
    assert epochs == [samples_of(by_sample) for _ in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_with_two_workers_is_that_without():
    for arguments in ({}, {"persistent_workers": True}):
        workers = make("samples", 11, 2, shuffle=True, seed=3, num_workers=2, **arguments)
        alone = make("samples", 11, 2, shuffle=True, seed=3)
        assert [samples_of(workers) for _ in range(2)] == [samples_of(alone) for _ in range(2)]


@pytest.mark.parametrize("place", ["memory", "samples"])
def test_order_after_an_early_break_is_that_of_the_next_epoch(place):
    straight = make(place, 10, 3, shuffle=True, seed=1)
    epochs = [samples_of(straight) for _ in range(3)]
    left = make(place, 10, 3, shuffle=True, seed=1)
    for _ in left:
        break
    assert samples_of(left) == epochs[1]
    left.set_epoch(0)
    assert samples_of(left) == epochs[0]
    left.set_epoch(2)
    assert samples_of(left) == epochs[2]


@pytest.mark.parametrize("place", ["memory", "samples"])
def test_two_iterations_at_once_are_two_epochs_that_do_not_disturb_each_other(place):
    straight = make(place, 10, 3, shuffle=True, seed=1)
    expected = [samples_of(straight), samples_of(straight)]
    loader = make(place, 10, 3, shuffle=True, seed=1)
    pairs = [(a.tolist(), b.tolist()) for a, b in zip(loader, loader, strict=True)]
    assert [list(chain.from_iterable(pair[i] for pair in pairs)) for i in (0, 1)] == expected
    assert loader.state_dict()["epoch"] == 2


@pytest.mark.parametrize("place", ["memory", "samples"])
@given(
    size=st.integers(1, 30), batch_size=st.integers(1, 8), seed=st.integers(0, 99), epoch=st.integers(0, 3),
    drop_last=st.booleans(), taken=st.integers(0, 30), again=st.integers(0, 30),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_resume_at_every_position_gives_exactly_the_rest_and_reads_nothing_else(
    place, size, batch_size, seed, epoch, drop_last, taken, again
):
    drop_last = drop_last and batch_size <= size
    arguments = {"shuffle": True, "seed": seed, "drop_last": drop_last}
    straight = make(place, size, batch_size, **arguments)
    straight.set_epoch(epoch)
    batches = [batch.tolist() for batch in straight]
    following = samples_of(straight)

    first = make(place, size, batch_size, **arguments)
    first.set_epoch(epoch)
    iterator = iter(first)
    taken = min(taken, len(batches))
    for _ in range(taken):
        next(iterator)
    second = make(place, size, batch_size, **arguments)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()  # saved again before anything was read
    iterator = iter(second)
    more = min(again, len(batches) - taken)
    seen = [next(iterator).tolist() for _ in range(more)]
    third = make(place, size, batch_size, **arguments)
    third.load_state_dict(second.state_dict())
    seen += [batch.tolist() for batch in third]

    assert seen == batches[taken:]
    assert samples_of(third) == following
    if place == "samples":
        assert third.dataset.read == [*chain.from_iterable(batches[taken + more :]), *following]


@given(size=st.integers(1, 30), first_size=st.integers(1, 8), second_size=st.integers(1, 8), taken=st.integers(0, 8))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("place", ["memory", "samples"])
def test_resume_with_another_batch_size_goes_on_at_the_same_sample(place, size, first_size, second_size, taken):
    order = epoch_order(size, seed=5, epoch=0, shuffle=True).tolist()
    first = make(place, size, first_size, shuffle=True, seed=5)
    iterator = iter(first)
    taken = min(taken, len(first))
    for _ in range(taken):
        next(iterator)
    second = make(place, size, second_size, shuffle=True, seed=5)
    second.load_state_dict(first.state_dict())
    batches = [batch.tolist() for batch in second]
    assert list(chain.from_iterable(batches)) == order[taken * first_size :]
    assert all(len(batch) == second_size for batch in batches[:-1])


def test_resume_with_another_batch_size_and_drop_last_hands_out_no_short_batch_on_either_path():
    rests = []
    for place in ("memory", "samples"):
        loader = make(place, 10, 4, seed=0, drop_last=True)
        loader.load_state_dict({"epoch": 0, "samples_done": 5, "seed": 0, "num_samples": 10})
        rests.append([batch.tolist() for batch in loader])
    assert rests == [[[5, 6, 7, 8]]] * 2


@pytest.mark.parametrize("place", ["memory", "samples"])
def test_state_without_its_seed_gives_another_order(place):
    """Negative control: the seed in the state matters."""
    first = make(place, 30, 3, shuffle=True, seed=1)
    next(iter(first))
    whole = make(place, 30, 3, shuffle=True)
    whole.load_state_dict(first.state_dict())
    without = make(place, 30, 3, shuffle=True)
    without.load_state_dict({**first.state_dict(), "seed": 2})
    rest = epoch_order(30, seed=1, epoch=0, shuffle=True).tolist()[3:]
    assert samples_of(whole) == rest
    assert samples_of(without) != rest


@pytest.mark.parametrize("place", ["memory", "samples"])
def test_state_of_an_iteration_that_was_only_begun_is_the_start_of_its_epoch(place):
    loader = make(place, 6, 2, seed=0)
    iterator = iter(loader)
    assert loader.state_dict() == {"epoch": 0, "samples_done": 0, "seed": 0, "num_samples": 6}
    next(iterator)
    assert loader.state_dict()["samples_done"] == 2
    list(iterator)
    assert loader.state_dict() == {"epoch": 1, "samples_done": 0, "seed": 0, "num_samples": 6}
    next(iter(loader))
    loader.set_epoch(5)
    assert loader.state_dict() == {"epoch": 5, "samples_done": 0, "seed": 0, "num_samples": 6}


@pytest.mark.parametrize("place", ["memory", "samples"])
def test_loading_draws_nothing_from_the_global_generators(place):
    loader = make(place, 8, 2, shuffle=True, seed=0)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)
