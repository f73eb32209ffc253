import gc
import multiprocessing
import random
import re
import time
from collections import namedtuple
from itertools import count

import numpy
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler, TensorDataset, default_collate
from torch.utils.data import DataLoader as TorchDataLoader

import velodrome
from velodrome.errors import ArgumentError, DataError

Point = namedtuple("Point", ["x", "y"])


class Squares(Dataset):
    def __init__(self, size=10):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"x": torch.tensor([index, index**2]), "y": float(index)}


class Stream(IterableDataset):
    def __init__(self, size=7):
        self.size = size
        self.num_read = 0

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for value in range(self.size) if worker is None else range(worker.id, self.size, worker.num_workers):
            self.num_read += 1
            yield torch.tensor([value])


class Drawn(Dataset):
    """A number from each generator that a dataset may use, and the worker that drew it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        info = torch.utils.data.get_worker_info()
        return torch.tensor([info.id, torch.rand(()), random.random()], dtype=torch.float64)


def collate_to_sum(samples):
    return sum(samples)


def assert_equal(mine, theirs):
    assert type(mine) is type(theirs)
    if isinstance(mine, torch.Tensor):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert_equal(mine[key], theirs[key])
    elif isinstance(mine, (tuple, list)):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert mine == theirs


DATA = {
    "tensor": lambda: torch.arange(20.0).reshape(10, 2),
    "float64 array": lambda: numpy.arange(10.0) / 3,
    "TensorDataset": lambda: TensorDataset(torch.arange(30).reshape(10, 3), torch.arange(10) % 2),
    "one tensor": lambda: TensorDataset(torch.arange(10)),
    "pairs": lambda: [(torch.tensor([i]), i % 2) for i in range(10)],
    "named": lambda: [Point(torch.tensor([i]), i % 2) for i in range(10)],
    "dicts": Squares,
    "numbers": lambda: list(range(10)),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch_size": 4},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 5, "shuffle": False},
        {"batch_size": 100},
        {"batch_size": 4, "collate_fn": default_collate},
        {"batch_size": 3, "sampler": [9, 0, 0, 2]},
        {"batch_sampler": [[1, 2, 3], [9], [0, 0]]},
        {"batch_sampler": BatchSampler(SequentialSampler(range(10)), 4, False)},
        {"batch_size": None},
        {"batch_size": None, "sampler": [3, 1]},
    ],
    ids=lambda arguments: re.sub(r" at 0x\w+", "", str(arguments)),
)
def test_batches_and_length_are_those_of_pytorch(name, arguments):
    mine, theirs = velodrome.DataLoader(DATA[name](), **arguments), TorchDataLoader(DATA[name](), **arguments)
    assert len(mine) == len(theirs)
    for _ in range(2):
        assert_equal(list(mine), list(theirs))


def test_custom_collate_is_used_for_data_in_memory_too():
    loader = velodrome.DataLoader(torch.arange(5), 2, collate_fn=collate_to_sum)
    assert [int(batch) for batch in loader] == [0 + 1, 2 + 3, 4]
    pairs = velodrome.DataLoader((torch.arange(3), torch.ones(3)), 3, collate_fn=lambda samples: len(samples))
    assert list(pairs) == [3]


@pytest.mark.parametrize("arguments", [{}, {"persistent_workers": True}])
def test_batches_of_two_workers_are_those_of_pytorch(arguments):
    mine = velodrome.DataLoader(Squares(), 3, num_workers=2, **arguments)
    for _ in range(2):
        assert_equal(list(mine), list(TorchDataLoader(Squares(), 3)))


def test_workers_that_persist_end_at_once_when_garbage_is_collected():
    """Each would wait for 5 seconds, and the collecting process for each of them."""
    others = set(multiprocessing.active_children())
    loader = velodrome.DataLoader(Squares(), 3, num_workers=2, persistent_workers=True)
    loader.itself = loader  # as a trainer's parts hold one another
    list(loader)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    del loader
    begin = time.monotonic()
    gc.collect()
    assert time.monotonic() - begin < 8  # of 10
    assert not any(worker.is_alive() for worker in workers)


def test_tuples_and_dicts_of_tensors_and_arrays_are_batched_as_they_are():
    x, y = numpy.arange(6.0).reshape(3, 2), torch.tensor([7, 8, 9])
    expected = [(torch.tensor([[0.0, 1.0], [2.0, 3.0]]).double(), y[:2]), (torch.tensor([[4.0, 5.0]]).double(), y[2:])]
    assert_equal(list(velodrome.DataLoader((x, y), 2)), expected)
    dicts = list(velodrome.DataLoader({"x": x, "y": y}, 2))
    assert_equal(dicts, [{"x": a, "y": b} for a, b in expected])
    assert_equal(list(velodrome.DataLoader({"x": x, "y": y}, 2, sampler=[0, 1, 2])), dicts)


@pytest.mark.parametrize("data", [lambda: torch.zeros(100, 2), lambda: [torch.zeros(2) for _ in range(100)]])
def test_change_of_a_batch_in_place_changes_neither_data_nor_other_batches(data):
    values = data()
    loader = velodrome.DataLoader(values, 10)
    for _ in range(2):
        for batch in loader:
            assert not batch.any()
            batch.add_(1)
    assert not torch.stack(list(values)).any()


def test_change_of_a_batch_in_place_does_not_spoil_the_backward_pass_of_another():
    weight = torch.ones((), requires_grad=True)
    first, second = velodrome.DataLoader(torch.ones(4), 2)
    loss = (weight * first).sum()
    second.mul_(5)
    loss.backward()  # PyTorch's two batches share nothing either
    assert weight.grad == 2


def test_batches_begun_under_inference_mode_can_be_trained_on_later():
    iterator = iter(velodrome.DataLoader(torch.ones(6), 2))
    with torch.inference_mode():
        next(iterator)
        loader = velodrome.DataLoader(TensorDataset(torch.ones(6)), 2)
    weight = torch.ones((), requires_grad=True)
    for batch in [*iterator, *(batch[0] for batch in loader)]:
        (weight * batch).sum().backward()
    assert weight.grad == 4 + 6


def test_data_made_under_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        data = TensorDataset(torch.ones(4))
    weight = torch.ones((), requires_grad=True)
    for (batch,) in velodrome.DataLoader(data, 2):
        (weight * batch).sum().backward()
    assert weight.grad == 4


def test_order_is_made_on_the_cpu_whatever_the_default_device():
    loader = velodrome.DataLoader(torch.arange(6), 2, shuffle=True, seed=0)
    with torch.device("meta"):
        assert sorted(torch.cat(list(loader)).tolist()) == list(range(6))


def test_data_on_a_device_are_gathered_there():
    loader = velodrome.DataLoader(TensorDataset(torch.empty(5, 3, device="meta")), 2)
    assert [batch[0].shape for batch in loader] == [(2, 3), (2, 3), (1, 3)]
    assert "on meta" in loader.describe()


def test_transform_is_applied_to_the_input_of_each_batch():
    x, y = torch.arange(3.0), torch.arange(3)
    assert_equal(
        list(velodrome.DataLoader((x, y), 2, transform=lambda t: t * 10)),
        [(torch.tensor([0.0, 10.0]), y[:2]), (torch.tensor([20.0]), y[2:])],
    )
    assert next(iter(velodrome.DataLoader(x, 3, transform=torch.sum))) == 0 + 1 + 2
    named = velodrome.DataLoader([Point(torch.tensor([i]), i) for i in range(2)], 2, transform=lambda t: t + 1)
    assert_equal(next(iter(named)), Point(torch.tensor([[1], [2]]), torch.tensor([0, 1])))


def test_seed_is_the_loaders_then_the_bound_one_then_that_of_pytorch():
    def order(**arguments):
        loader = velodrome.DataLoader(torch.arange(50), 50, shuffle=True, **arguments)
        return loader, lambda: next(iter(loader)).tolist()

    expected = {seed: order(seed=seed)[1]() for seed in (1, 2)}
    torch.manual_seed(2)
    assert order()[1]() == expected[2]
    loader, read = order()
    loader.set_epoch(0, seed=1)
    assert read() == expected[1]
    loader, read = order(seed=2)
    loader.set_epoch(0, seed=1)
    assert read() == expected[2]


def test_position_that_was_loaded_is_not_changed_by_the_trainers_seed():
    first = velodrome.DataLoader(torch.arange(50), 10, shuffle=True, seed=1)
    rest = list(first)[1:]
    first.set_epoch(0)
    next(iter(first))
    second = velodrome.DataLoader(torch.arange(50), 10, shuffle=True)
    second.load_state_dict(first.state_dict())
    assert_equal(list(second.iterate(seed=99)), rest)


def test_replay_torch_draw_draws_what_pytorch_draws():
    loader = velodrome.DataLoader(torch.arange(4), 2)
    loader.replay_torch_draw()
    torch.manual_seed(0)
    for _ in range(3):
        list(loader)
    after = torch.rand(())
    torch.manual_seed(0)
    for _ in range(3):
        list(TorchDataLoader(torch.arange(4), 2))
    assert torch.rand(()) == after


def draws_of(loader):
    return {tuple(row) for batch in loader for row in batch.tolist()}


def test_random_numbers_of_workers_differ_by_worker_and_epoch_and_repeat():
    loader = velodrome.DataLoader(Drawn(), 2, num_workers=2, seed=0)
    first, second = draws_of(loader), draws_of(loader)
    for column in (1, 2):
        assert len({row[column] for row in first | second}) == 16
    assert {row[0] for row in first} == {0, 1}
    torch.manual_seed(123)
    loader.set_epoch(0)
    assert draws_of(loader) == first
    assert draws_of(velodrome.DataLoader(Drawn(), 2, num_workers=2, seed=1)).isdisjoint(first)


def test_iterable_dataset_gives_the_batches_of_pytorch_and_goes_on_at_its_position():
    loader = velodrome.DataLoader(Stream(), 3)
    assert_equal(list(loader), list(TorchDataLoader(Stream(), 3)))
    with pytest.raises(TypeError, match="no len"):
        len(loader)
    workers = velodrome.DataLoader(Stream(), 2, num_workers=2)
    assert_equal(list(workers), list(TorchDataLoader(Stream(), 2, num_workers=2)))
    for arguments, rest in (({}, [[3, 4, 5], [6]]), ({"batch_size": None}, [[i] for i in range(1, 7)])):
        arguments = {"batch_size": 3, **arguments}
        first, second = velodrome.DataLoader(Stream(), **arguments), velodrome.DataLoader(Stream(), **arguments)
        next(iter(first))
        second.load_state_dict(first.state_dict())
        assert [batch.reshape(-1).tolist() for batch in second] == rest


def test_resume_with_samplers_skips_what_was_handed_out():
    for arguments in (
        {"sampler": [5, 4, 3, 2, 1]},
        {"batch_size": None, "sampler": [5, 4, 3, 2, 1]},
        {"batch_sampler": [[5, 4, 3], [2], [1, 0]]},
    ):
        arguments = {"batch_size": 2 if "sampler" in arguments else 1, **arguments}
        first = velodrome.DataLoader(list(range(6)), **arguments)
        batches = list(first)
        for position in range(len(batches) + 1):
            first.set_epoch(0)
            iterator = iter(first)
            for _ in range(position):
                next(iterator)
            second = velodrome.DataLoader(list(range(6)), **arguments)
            second.load_state_dict(first.state_dict())
            assert_equal(list(second), batches[position:])


class Endless:
    def __iter__(self):
        return count()


class EndlessBatches:
    def __iter__(self):
        return ([i, i] for i in count())


class Identity:
    def __getitem__(self, index):
        return index


def test_endless_samplers_work_and_have_no_length():
    for arguments in ({"sampler": Endless()}, {"batch_sampler": EndlessBatches()}):
        loader = velodrome.DataLoader(Identity(), **arguments)
        iterator = iter(loader)
        assert [next(iterator).tolist() for _ in range(3)][-1] in ([2], [2, 2])
        with pytest.raises(TypeError):
            len(loader)


class Told:
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter([0, 1])

    def __len__(self):
        return 2


def test_samplers_and_iterable_datasets_are_told_the_epoch():
    sampler, inner = Told(), Told()
    for loader in (
        velodrome.DataLoader(list(range(2)), sampler=sampler),
        velodrome.DataLoader(list(range(2)), batch_sampler=BatchSampler(inner, 2, False)),
    ):
        for _ in range(2):
            list(loader)
    assert sampler.epochs == inner.epochs == [0, 1]


def test_describe_says_how_the_data_are_read():
    describe = {
        "10 samples, in memory, batches of 4, shuffled": velodrome.DataLoader(torch.arange(10), 4, shuffle=True),
        "10 samples, in memory (TensorDataset), batches of 4, in their own order": velodrome.DataLoader(
            TensorDataset(torch.arange(10)), 4, num_workers=2
        ),
        "10 samples, sample by sample (Squares is not a known in-memory dataset), batches of 4, in their own order, 2 workers": velodrome.DataLoader(
            Squares(), 4, num_workers=2
        ),
        "2 samples, sample by sample, one by one, in the sampler's order": velodrome.DataLoader(
            Squares(), None, sampler=[1, 2]
        ),
        "samples of unknown number, sample by sample, batches of the sampler's sizes, in the sampler's order": velodrome.DataLoader(
            Squares(), batch_sampler=[[1]]
        ),
        "samples of unknown number, sample by sample (Stream), batches of 2, in their own order": velodrome.DataLoader(
            Stream(), 2
        ),
    }
    for line, loader in describe.items():
        assert loader.describe() == line


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("x", {"batch_size": 0}, "batch_size=0 is not a batch size. It must be a whole number of at least 1"),
        ("x", {"batch_size": True}, "batch_size=True is not a batch size"),
        ("x", {"batch_size": 2.0}, "batch_size=2.0 is not a batch size"),
        ("x", {"shuffle": True, "sampler": [0]}, "A sampler decides the order itself: leave shuffle out"),
        ("x", {"shuffle": True, "batch_sampler": [[0]]}, "A sampler decides the order itself: leave shuffle out"),
        ("x", {"batch_size": 4, "batch_sampler": [[0]]}, "makes whole batches itself: leave the others out"),
        ("x", {"drop_last": True, "batch_sampler": [[0]]}, "makes whole batches itself: leave the others out"),
        ("x", {"sampler": [0], "batch_sampler": [[0]]}, "makes whole batches itself: leave the others out"),
        ("x", {"drop_last": True, "batch_size": None}, "Without batches none is short: leave drop_last out"),
        ("x", {"seed": -1}, "seed=-1 is not a seed. It must be a whole number from 0 to"),
        ("x", {"seed": 1.5}, "seed=1.5 is not a seed"),
        ("x", {"shufle": True}, "no argument 'shufle'. Did you mean \"shuffle\""),
        ("x", {"persistent_worker": True}, "Did you mean \"persistent_workers\""),
        ("list", {"num_workers": -1}, "num_workers=-1 is not a number of processes"),
        ("list", {"persistent_workers": True}, "refused its arguments: persistent_workers option needs num_workers > 0"),
        ("stream", {"shuffle": True}, "Stream is an IterableDataset, whose order is its own"),
        ("stream", {"sampler": [0]}, "Stream is an IterableDataset, whose order is its own"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(data, arguments, message):
    dataset = {"x": torch.arange(4), "list": [1, 2], "stream": Stream()}[data]
    with pytest.raises(ArgumentError) as caught:
        velodrome.DataLoader(dataset, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (torch.zeros(0, 3), {}, "The dataset has 0 samples. Training needs at least one"),
        ([], {}, "The dataset has 0 samples"),
        (torch.zeros(3), {"batch_size": 4, "drop_last": True}, "3 samples, fewer than batch_size=4. Use a batch_size of at most 3"),
        ([1, 2, 3], {"batch_size": 4, "drop_last": True}, "3 samples, fewer than batch_size=4"),
        (iter([1]), {}, "it has no __getitem__. Give a Dataset, tensors, or pass an iterable of ready batches"),
        (Identity(), {}, "Identity has no __len__, so there is no order to draw. Give it one, or a sampler"),
    ],
)  # fmt: skip
def test_data_that_give_no_batch_are_refused(dataset, arguments, message):
    with pytest.raises(DataError) as caught:
        velodrome.DataLoader(dataset, **arguments)
    assert message in str(caught.value)


def test_states_of_something_else_are_refused():
    loader = velodrome.DataLoader(torch.arange(4), seed=1)
    state = loader.state_dict()
    with pytest.raises(DataError, match="a dataset of 5 samples; this one has 4. Go on with the same data"):
        loader.load_state_dict({**state, "num_samples": 5})
    with pytest.raises(DataError, match="an order of seed 2; this loader has seed=1. Leave seed out"):
        loader.load_state_dict({**state, "seed": 2})
    with pytest.raises(ArgumentError, match="has no epoch, samples_done. It must be what state_dict"):
        loader.load_state_dict({"seed": 1, "num_samples": 4})


@pytest.mark.parametrize("num_workers", [-1, 2.5, True, None])
def test_a_wrong_number_of_workers_is_refused_for_data_in_memory_too(num_workers):
    with pytest.raises(
        ArgumentError, match=f"num_workers={num_workers!r} is not a number of processes. It must be a whole"
    ):
        velodrome.DataLoader((torch.zeros(4, 2), torch.zeros(4)), num_workers=num_workers)


@pytest.mark.parametrize("wrap", [lambda x: (x, torch.zeros(4)), lambda x: {"x": x}])
def test_sparse_tensors_are_refused(wrap):
    with pytest.raises(ArgumentError, match=r"holds a sparse tensor .*Give tensor.to_dense\(\)"):
        velodrome.DataLoader(wrap(torch.eye(4).to_sparse()))


@pytest.mark.parametrize("data", [(torch.zeros(4, 2), torch.zeros(4)), torch.zeros(4, 2)])
def test_a_transform_that_returns_nothing_is_named(data):
    def scale(x):
        x.mul_(2)

    with pytest.raises(
        ArgumentError, match="transform=scale returned None for a batch. It must return the changed inputs"
    ):
        next(iter(velodrome.DataLoader(data, 2, transform=scale)))
