"""Law 3: what a dataset draws is f(seed, epoch, index): not of workers, prefetch, batch size, processes, or where a run was cut."""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler, get_worker_info

import velodrome as vd
from velodrome.data.share import Share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

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


# -- runs that are cut ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def soon_collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The traceback of a run that was cut keeps its workers; as garbage each is waited for 5 seconds, after its queue is gone."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # forked workers have it, too
    yield
    gc.collect()


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    """Ends the run when the checkpoint of a step is on the disk."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        if trainer.progress.steps_done >= self.step:
            raise Cut


class Counted(Drawn):
    """Notes what is read in this process."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read.append(index)
        return super().__getitem__(index)


def train(data: Any, folder: Path, *, cut_at: int = 10**9, epochs: int = 2, **arguments: Any) -> list[torch.Tensor]:
    """Train a model with dropout on what is drawn; return its weights."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)).double()
    trainer = vd.Trainer(
        model, "adam", lr=0.02, seed=5, step_fn=lambda model, batch: model(batch / 22).square().mean(), run_dir=folder,
        checkpoint="every 3 steps", resume="auto", callbacks=[CutAt(cut_at)], device="cpu", progress=False, **arguments,
    )  # fmt: skip
    trainer.fit(data, epochs=epochs)
    return [value.clone() for value in trainer.model.state_dict().values()]


def train_in_pieces(make_data: Any, folder: Path, cuts: tuple[int, ...] = (3, 9)) -> list[torch.Tensor]:
    for number, step in enumerate(cuts):
        random.seed(number), numpy.random.seed(number), torch.manual_seed(number)  # another process
        with pytest.raises(Cut):
            train(make_data(), folder, cut_at=step)
    return train(make_data(), folder)


@pytest.mark.usefixtures("soon_collected")
def test_a_run_that_was_cut_ends_like_the_one_that_was_not_whatever_reads_its_samples(tmp_path: Path) -> None:
    expected = train(make(seed=None), tmp_path / "straight")
    for number, arguments in enumerate(WORKERS):
        pieces = train_in_pieces(lambda arguments=arguments: make(seed=None, **arguments), tmp_path / str(number))
        assert same(pieces, expected)


@pytest.mark.usefixtures("soon_collected")
@pytest.mark.parametrize("arguments", WORKERS, ids=str)
def test_a_run_over_a_stream_that_was_cut_ends_like_the_one_that_was_not(
    arguments: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def data() -> vd.DataLoader:
        return make(Stream(), seed=None, **arguments)

    assert same(train_in_pieces(data, tmp_path / "pieces"), train(data(), tmp_path / "straight"))
    assert "bit for bit" not in capsys.readouterr().err


@pytest.mark.usefixtures("soon_collected")
def test_another_number_of_workers_of_a_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(make(Stream(), seed=None, num_workers=2), tmp_path / "run", cut_at=3)
    with pytest.raises(vd.errors.RefusedError, match="workers: 2 -> None"):
        train(make(Stream(), seed=None), tmp_path / "run")


@pytest.mark.usefixtures("soon_collected")
def test_without_our_seeds_the_run_would_end_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr("velodrome.data.fetching.seed_generators", lambda *arguments: None)

    def data() -> vd.DataLoader:
        return make(seed=None, num_workers=2)

    assert not same(train_in_pieces(data, tmp_path / "pieces"), train(data(), tmp_path / "straight"))


def test_a_change_of_the_batch_size_changes_no_sample(tmp_path: Path) -> None:
    """Of the epoch that was cut, the rest is read as it would have been."""
    whole = {float(row[0]): row for batch in _seen(tmp_path / "a", 4, 4) for row in batch}
    cut_short = _seen(tmp_path / "b", 4, 4, cut_at=3)
    rest = _seen(tmp_path / "b", 5, 5, accept_changes=True)
    rows = [row for batch in [*cut_short, *rest] for row in batch]
    assert len(rows) == SIZE
    assert all(torch.equal(row, whole[float(row[0])]) for row in rows)


def _seen(folder: Path, batch_size: int, size: int, *, cut_at: int = 10**9, **arguments: Any) -> list[torch.Tensor]:
    """Return the batches of one epoch that a run saw."""
    batches = []
    trainer = vd.Trainer(
        torch.nn.Linear(6, 1).double(), "sgd", lr=0.0, seed=5, run_dir=folder, checkpoint="every step", resume="auto",
        callbacks=[CutAt(cut_at)], device="cpu", progress=False, **arguments,
    )  # fmt: skip
    try:
        for epoch in trainer.epochs(1):
            for batch in epoch.train(make(batch_size=batch_size, seed=None)):
                assert len(batch) <= size
                batches.append(batch.clone())
                trainer.step(trainer.model(batch).mean())
    except Cut:
        pass
    return batches


def see_in_world(num_workers: int) -> list[list[float]]:
    """Return the samples that this process of several trains on."""
    rows = []
    trainer = vd.Trainer(torch.nn.Linear(6, 1).double(), "sgd", lr=0.0, seed=5, device="cpu", progress=False)
    for epoch in trainer.epochs(2):
        for batch in epoch.train(make(seed=None, num_workers=num_workers)):
            rows += batch.tolist()
            trainer.step(trainer.model(batch).mean())
    return rows


def test_two_processes_see_the_samples_of_one_with_workers_or_without(two: Any) -> None:
    parts = two.run(see_in_world, 0)  # they are children themselves, which may have none
    seen = sorted(row for part in parts for row in part)
    assert seen == sorted(see_in_world(0)) == sorted(see_in_world(2))


# -- data that tell their position themselves ----------------------------------------------------------------------------------


class StatefulLoader:
    """As torchdata's StatefulDataLoader: fetches ahead, and tells of what it handed out; a random sampler's state is a tensor."""

    def __init__(self, dataset: Any, *, extra: Any = None) -> None:
        self.dataset, self.extra = dataset, extra
        self.given: dict[str, Any] | None = None
        self.asked = 0

    def __iter__(self) -> Any:
        base_seed = int(
            torch.empty((), dtype=torch.int64).random_()
        )  # drawn when the iterator is made, as by PyTorch's
        state = self.given or {"generator": torch.Generator().manual_seed(base_seed % 1000).get_state(), "yielded": 0}
        self.given = None
        generator = torch.Generator()
        generator.set_state(state["generator"])
        self.state = {**state, "prefetched": (1, 2)}
        order = torch.randperm(SIZE, generator=generator).tolist()
        return self._iterate([order[i : i + 4] for i in range(0, SIZE, 4)])

    def _iterate(self, batches: list[list[int]]) -> Any:
        ahead: list[torch.Tensor] = []
        waiting = batches[self.state["yielded"] :]
        while waiting or ahead:
            while waiting and len(ahead) < 3:
                indices = waiting.pop(0)
                ahead.append(torch.stack([self.dataset[index] for index in indices]))
            self.state["yielded"] += 1
            yield ahead.pop(0)

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return {**self.state, "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = {name: state[name] for name in ("generator", "yielded")}
        assert state["prefetched"] == (1, 2)  # no list


class Fixed(Dataset[Any]):
    """Samples without random numbers, which are counted."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read.append(index)
        return torch.arange(6.0, dtype=torch.float64) + index


class StatefulStream(IterableDataset[Any]):
    """As a stream of Hugging Face datasets: its state is where it is, in Python numbers and texts."""

    read: list[int]

    def __init__(self) -> None:
        self.read, self.next, self.start, self.epoch = [], 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        self.next, self.start = self.start, 0
        while self.next < SIZE:
            index = self.next
            self.next += 1
            self.read.append(index)
            yield torch.tensor([index, self.epoch, *draw()[:4]], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {
            "examples_iterable": {"shard_idx": 0, "shard_example_idx": self.next, "type": "ArrowExamplesIterable"},
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["examples_iterable"]["shard_example_idx"]


class GrainLike:
    """As grain's loader: the iterator has the state, as bytes."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __iter__(self) -> Any:
        return GrainIterator(self)


class GrainIterator:
    def __init__(self, data: GrainLike) -> None:
        self.data, self.next = data, 0

    def __iter__(self) -> GrainIterator:
        return self

    def __next__(self) -> torch.Tensor:
        if self.next == 6:
            raise StopIteration
        self.next += 1
        self.data.read.append(self.next)
        return torch.full((3, 6), float(self.next), dtype=torch.float64)

    def get_state(self) -> bytes:
        return b'{"next": %d}' % self.next

    def set_state(self, state: bytes) -> None:
        self.next = int(state.decode().split(": ")[1][:-1])


def in_pytorch(stream: Any) -> Any:
    return TorchDataLoader(stream, 4)


MAKERS: dict[str, Any] = {
    "loader": lambda part: StatefulLoader(part),
    "stream in our loader": lambda part: make(part, seed=None),
    "stream in PyTorch's": in_pytorch,
    "iterator": lambda part: part,
}
PARTS: dict[str, Any] = {
    "loader": Fixed,
    "stream in our loader": StatefulStream,
    "stream in PyTorch's": StatefulStream,
    "iterator": GrainLike,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_data_that_tell_their_position_are_gone_on_with_by_it_and_read_nothing_twice(kind: str, tmp_path: Path) -> None:
    straight = PARTS[kind]()
    expected = train(MAKERS[kind](straight), tmp_path / "straight")
    parts = []
    for step in (3, 9, 10**9):
        parts.append(PARTS[kind]())
        random.seed(step), torch.manual_seed(step)
        if step < 10**9:
            with pytest.raises(Cut):
                train(MAKERS[kind](parts[-1]), tmp_path / "run", cut_at=step)
        else:
            assert same(train(MAKERS[kind](parts[-1]), tmp_path / "run"), expected)
    read = [index for part in parts for index in part.read]
    ahead = 2 * 2 * 4 if kind == "loader" else 0  # it fetches two batches ahead, which each cut throws away
    assert len(read) <= len(straight.read) + ahead
    if kind != "loader":
        assert read == straight.read


def test_a_state_that_no_checkpoint_can_hold_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Cut):
        train(StatefulLoader(Fixed(), extra=object()), tmp_path / "run", cut_at=3)
    assert "loop/data/own/extra is a object" in capsys.readouterr().err
    with pytest.raises(vd.errors.CheckpointError, match="loop/data/own/extra is a object"):
        train(StatefulLoader(Fixed()), tmp_path / "run")
