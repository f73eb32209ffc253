"""Law 3: what a dataset draws is f(seed, epoch, index): not of workers, prefetch, batch size, processes, or where a run was cut."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler, get_worker_info

import velodrome as vd
from velodrome.data.share import Share

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SIZE = 22
WORKERS = [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


def draw() -> list[float]:
    """Return a number of each generator, and a second normal one: NumPy keeps it for later."""
    return [float(torch.rand(())), random.random(), numpy.random.rand(), numpy.random.randn(), random.gauss(0, 1)]


class Drawn(Dataset[Any]):
    """Each sample is its index and what is drawn for it."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, *draw()], dtype=torch.float64)


class ByBatch(Drawn):
    """Reads whole batches."""

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [self[index] for index in indices]


class Stream(IterableDataset[Any]):
    """Each worker's part of the numbers, with what is drawn for each; their order is drawn too."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        own = list(range(0 if info is None else info.id, SIZE, 1 if info is None else info.num_workers))
        random.shuffle(own)
        for index in own:
            yield torch.tensor([index, *draw()], dtype=torch.float64)


def collate_and_draw(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(
        [torch.cat((sample[:1], sample[1:] + noise)) for noise in (torch.rand(()),) for sample in samples]
    )


def noisy(batch: torch.Tensor) -> torch.Tensor:
    return torch.cat((batch[:, :1], torch.full_like(batch[:, 1:], sum(draw()))), 1)


def make(data: Any = None, batch_size: int = 4, seed: int | None = 3, **arguments: Any) -> vd.DataLoader:
    data = Drawn() if data is None else data
    shuffle = not isinstance(data, IterableDataset) and "sampler" not in arguments
    return vd.DataLoader(data, batch_size, shuffle=shuffle, seed=seed, **arguments)


def epochs_of(loader: Any, epochs: int = 2) -> list[torch.Tensor]:
    """Return the samples of each epoch, sorted by their index."""
    found = []
    for _ in range(epochs):
        rows = torch.cat(list(loader))
        found.append(rows[rows[:, 0].argsort(stable=True)])
    return found


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize(
    "arguments", [*WORKERS, {"batch_size": 5}, {"batch_size": 1}, {"num_workers": 1, "prefetch_factor": 5}], ids=str
)
def test_samples_do_not_depend_on_workers_prefetch_or_batch_size(arguments: dict[str, Any]) -> None:
    torch.manual_seed(99)  # nor on what was drawn before
    assert same(epochs_of(make(**arguments)), epochs_of(make()))


def test_every_sample_epoch_and_seed_draws_other_numbers() -> None:
    first, second = epochs_of(make())
    (other,) = epochs_of(make(seed=4), 1)
    for column in range(1, 6):
        numbers = torch.cat([rows[:, column] for rows in (first, second, other)])
        assert len(numbers.unique()) == 3 * SIZE, column


def test_pytorch_gives_other_numbers_with_workers_than_without() -> None:
    """Negative control: without our seeds the test above would fail."""
    alone, workers = (
        epochs_of(TorchDataLoader(Drawn(), 4, num_workers=num, generator=torch.Generator().manual_seed(3)), 1)
        for num in (0, 2)
    )
    assert not same(alone, workers)


@pytest.mark.parametrize("arguments", WORKERS[1:], ids=str)
def test_generators_of_the_workers_differ(arguments: dict[str, Any]) -> None:
    (rows,) = epochs_of(make(**arguments), 1)
    for column in range(1, 6):  # torch, Python, NumPy and their normal numbers: PyTorch left NumPy's equal once
        assert len(rows[:, column].unique()) == SIZE


@pytest.mark.parametrize("data", [Drawn, ByBatch, Stream])
def test_what_the_training_process_draws_is_not_touched(data: Any) -> None:
    seeds = (random.seed(1), numpy.random.seed(2), torch.manual_seed(3))
    numpy.random.randn()  # of a pair: the second is kept
    states = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state()
    for _ in make(data()):
        pass
    assert states[:2] == (random.getstate(), str(numpy.random.get_state()))
    assert torch.equal(states[2], torch.get_rng_state())
    assert torch.initial_seed() == 3
    assert seeds[2] is torch.default_generator
    expected = draw()
    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
    numpy.random.randn()
    assert draw() == expected


def test_what_is_drawn_between_batches_goes_on_as_without_a_loader() -> None:
    def drawn(batches: Any) -> list[list[float]]:
        random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
        return [draw() for _ in batches]

    assert drawn(make()) == drawn(range(6))  # 22 samples in batches of 4


@pytest.mark.parametrize("arguments", WORKERS, ids=str)
def test_samples_of_a_dataset_that_reads_batches_and_of_a_stream_are_the_same_again(arguments: dict[str, Any]) -> None:
    for data in (ByBatch, Stream):
        first, again = epochs_of(make(data(), **arguments), 3), epochs_of(make(data(), **arguments), 3)
        assert same(first, again)
        assert len({float(rows[0, 1]) for rows in first}) == 3
    assert same(epochs_of(make(ByBatch(), **arguments)), epochs_of(make(ByBatch())))


def test_samples_of_a_subset_are_seeded_one_by_one() -> None:
    parts = torch.utils.data.Subset(torch.utils.data.Subset(Drawn(), range(20)), range(1, 18, 2))
    assert same(epochs_of(make(parts)), epochs_of(make(parts, batch_size=3, num_workers=2)))


def test_a_stream_of_one_worker_is_that_without_workers() -> None:
    assert same(epochs_of(make(Stream(), num_workers=1)), epochs_of(make(Stream())))


@pytest.mark.parametrize("arguments", WORKERS, ids=str)
def test_collate_and_transform_that_draw_depend_on_nothing_else(arguments: dict[str, Any]) -> None:
    extra = {"collate_fn": collate_and_draw, "transform": noisy}
    torch.manual_seed(99)
    epochs = epochs_of(make(**extra, **arguments))
    torch.manual_seed(98)
    assert same(epochs, epochs_of(make(**extra)))
    for rows in epochs:
        assert rows[:, 0].tolist() == list(range(SIZE))
        assert len(rows[:, 1].unique()) == 6  # one number a batch of `noisy`
    collated = torch.cat(epochs_of(make(collate_fn=collate_and_draw, **arguments)))
    assert same([collated], [torch.cat(epochs_of(make(collate_fn=collate_and_draw)))])
    assert not same([collated], [torch.cat(epochs_of(make()))])
    random.seed(1)
    state = random.getstate()
    in_memory = [vd.DataLoader(torch.zeros(8, 2), 4, transform=noisy, seed=1) for _ in range(2)]
    first, other, again = (torch.cat(list(loader)) for loader in (in_memory[0], in_memory[0], in_memory[1]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # another epoch
    assert random.getstate() == state


def test_a_sample_that_a_sampler_names_twice_draws_twice() -> None:
    rows = torch.cat(list(make(sampler=[7, 7, 8, 7])))
    assert len(rows[:, 1].unique()) == 4
    for batch_size, workers in ((2, 0), (3, 2)):
        assert torch.equal(
            torch.cat(list(make(sampler=[7, 7, 8, 7], batch_size=batch_size, num_workers=workers))), rows
        )
    batches = torch.cat(list(vd.DataLoader(Drawn(), batch_sampler=[[7], [7, 8, 7]], seed=3)))
    assert torch.equal(batches, rows)
    items = torch.stack(list(vd.DataLoader(Drawn(), None, sampler=[7, 7, 8, 7], seed=3)))
    assert torch.equal(items, rows)


@pytest.mark.parametrize("size", [2, 3])
def test_samples_do_not_depend_on_the_number_of_processes(size: int) -> None:
    def sampler() -> Any:
        return WeightedRandomSampler(torch.ones(SIZE), 17, generator=torch.Generator().manual_seed(8))

    for arguments in ({}, {"sampler": sampler}):
        made = {name: function() for name, function in arguments.items()}
        whole = torch.cat(list(make(**made)))
        parts = []
        for rank in range(size):
            made = {name: function() for name, function in arguments.items()}
            batches = make(**made).iterate(share=Share(rank, size))
            parts.append([batch for batch in batches if isinstance(batch, torch.Tensor)])
        dealt = torch.cat([row for rank in parts for row in rank])
        assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, whole.tolist()))
