"""Law 3: a batched transform changes a sample by (seed, epoch, index), whatever batch, chunk, process or worker it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

import velodrome as vd
from velodrome import transforms as T
from velodrome.data.share import EMPTY, Share
from velodrome.errors import ArgumentError, DataError, FetchError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SIZE = 47
IMAGES = torch.randint(0, 256, (SIZE, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(SIZE)
EVERY = {
    "crop": T.RandomCrop((8, 9), padding=2),
    "reflect": T.RandomCrop(5, padding=2, padding_mode="reflect"),
    "translate": T.RandomTranslate(1),
    "horizontal": T.RandomHorizontalFlip(),
    "vertical": T.RandomVerticalFlip(),
    "cutout": T.Cutout(3),
    "erasing": T.RandomErasing(1.0),
    "jitter": T.ColorJitter(0.4, 0.4, 0.4, 0.2),
    "rotation": T.RandomRotation(90),
    "affine": T.RandomAffine(
        30, translate=(0.2, 0.3), scale=(0.7, 1.4), shear=(-10, 10, -5, 5), interpolation="bilinear", fill=7
    ),
    "resized crop": T.RandomResizedCrop((5, 6), scale=(0.2, 1.0)),
    "resize": T.Compose([T.RandomHorizontalFlip(), T.Resize((5, 4))]),
    "noise": T.GaussianNoise(0.1),
    "all": T.Compose(
        [
            T.ColorJitter(0.4, 0.4, 0.4, 0.2),
            T.RandomRotation(15, interpolation="bilinear"),
            T.RandomCrop((8, 9), padding=2),
            T.RandomHorizontalFlip(),
            T.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
            T.GaussianNoise(0.1),
            T.RandomErasing(),
        ]
    ),
}
MIXED = T.Compose(
    [T.RandomCrop((8, 9), padding=2), T.CutMix(SIZE, p=0.5), T.Normalize(0.5, 0.2), T.MixUp(SIZE, alpha=0.4)]
)
"""a function of (seed, epoch, index) and of which samples are in the batch"""


class OneByOne(Dataset[Any]):
    """The same images, read sample by sample."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return IMAGES[int(index)], LABELS[int(index)]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ((image, label) for image, label in zip(IMAGES, LABELS, strict=True))


def epochs_of(transform: Any, data: Any = None, batch_size: int = 8, epochs: int = 2, **arguments: Any) -> list[Tensor]:
    """Return the changed images of each epoch, in the order of their labels."""
    data = (IMAGES, LABELS) if data is None else data
    shuffle = arguments.pop("shuffle", "sampler" not in arguments and not isinstance(data, IterableDataset))
    loader = vd.DataLoader(data, batch_size, shuffle=shuffle, seed=3, transform=transform, **arguments)
    found = []
    for _ in range(epochs):
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        found.append(images[labels.argsort()])
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.fixture
def batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data in memory are gathered and changed for several batches at once; these few would be all of them."""
    monkeypatch.setattr("velodrome.data.columns._CHUNK_BYTES", 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("batch_size", [1, 5, 7, SIZE])
@pytest.mark.usefixtures("batch_by_batch")
def test_a_sample_is_changed_alike_in_any_batch(batch_size: int, name: str, dtype: torch.dtype) -> None:
    images = IMAGES if dtype == torch.uint8 else IMAGES.float() / 255
    in_eights = epochs_of(EVERY[name], (images, LABELS))
    assert same(epochs_of(EVERY[name], (images, LABELS), batch_size), in_eights)
    assert same(epochs_of(EVERY[name], (images, LABELS), batch_size, shuffle=False), in_eights)
    assert not torch.equal(in_eights[0], in_eights[1])  # each epoch in another way


def test_several_batches_changed_at_once_are_those_of_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    many = epochs_of(EVERY["all"])
    monkeypatch.setattr("velodrome.data.columns._CHUNK_BYTES", 1)
    assert same(epochs_of(EVERY["all"]), many)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_workers": 2},
        {"sampler": list(reversed(range(SIZE)))},
        {"batch_size": 6},
        {"data": TensorDataset(IMAGES, LABELS)},
    ],
    ids=["one process", "workers", "sampler", "other batches", "tensors"],
)
def test_data_read_sample_by_sample_are_changed_as_data_in_memory(arguments: dict[str, Any]) -> None:
    found = epochs_of(EVERY["all"], **{"data": OneByOne(), **arguments})
    in_memory = epochs_of(EVERY["all"])
    if "sampler" in arguments:  # may name a sample twice, so the position counts too: see below
        assert not same(found, in_memory)
        assert same(found, epochs_of(EVERY["all"], OneByOne(), 5, **arguments))
    else:
        assert same(found, in_memory)


def test_a_sample_that_comes_twice_is_changed_in_two_ways() -> None:
    loader = vd.DataLoader(OneByOne(), 4, sampler=[7] * 12, seed=0, transform=T.GaussianNoise(1.0))
    images = torch.cat([images for images, _ in loader])
    assert len(images.flatten(1).unique(dim=0)) == 12


def test_a_stream_is_changed_by_the_number_of_its_items() -> None:
    assert same(epochs_of(EVERY["all"], Stream()), epochs_of(EVERY["all"], Stream(), 5))


def test_seeds_and_samples_are_changed_in_different_ways() -> None:
    ones = torch.ones(SIZE, 1, 30)
    loaders = [vd.DataLoader((ones, LABELS), 8, seed=seed, transform=T.GaussianNoise(1.0)) for seed in (0, 1)]
    rows = torch.cat([images for loader in loaders for _ in range(2) for images, _ in loader])
    assert len(rows.flatten(1).unique(dim=0)) == 4 * SIZE


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("data", [(IMAGES, LABELS), OneByOne()], ids=["in memory", "sample by sample"])
def test_processes_that_share_batches_change_samples_as_one_does(data: Any, size: int) -> None:
    loader = vd.DataLoader(data, 8, shuffle=True, seed=3, transform=EVERY["all"])
    whole = {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}
    count = 0
    for rank in range(size):
        loader.set_epoch(0)
        for batch in loader.iterate(share=Share(rank, size)):
            if batch is not EMPTY:
                for image, label in zip(*batch, strict=True):
                    assert torch.equal(image, whole[int(label)])
                    count += 1
    assert count == SIZE


@pytest.mark.parametrize("data", [(IMAGES, LABELS), OneByOne()], ids=["in memory", "sample by sample"])
@pytest.mark.parametrize("done", [1, 3, 5])
@pytest.mark.parametrize("batch_size", [8, 3])
def test_a_loader_that_goes_on_changes_what_is_left_as_before(data: Any, done: int, batch_size: int) -> None:
    def make(batch_size: int) -> vd.DataLoader:
        return vd.DataLoader(data, batch_size, shuffle=True, seed=3, transform=EVERY["all"])

    first, straight = make(8), make(8)
    iterator = iter(first)
    for _ in range(done):
        next(iterator)
    after = make(batch_size)
    after.load_state_dict(first.state_dict())

    rest = [torch.cat(parts) for parts in zip(*after, strict=True)]
    expected = [torch.cat(parts[done:]) for parts in zip(*straight, strict=True)]
    assert torch.equal(rest[1], expected[1])
    assert torch.equal(rest[0], expected[0])


def test_transforms_draw_nothing_from_the_global_generators() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epochs_of(EVERY["all"])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(epochs_of(EVERY["all"]), epochs_of(EVERY["all"]))


@pytest.mark.usefixtures("batch_by_batch")
def test_a_function_that_draws_by_batch_gives_other_samples_in_other_batches() -> None:
    """Negative control: with random numbers of the batch, which a plain function has, the first test fails."""

    def noisy(images: Tensor) -> Tensor:
        return images / 255 + torch.randn(images.shape)

    assert not same(epochs_of(noisy), epochs_of(noisy, batch_size=5))


@pytest.mark.usefixtures("batch_by_batch")
def test_a_transform_that_mixes_samples_is_seen_by_the_first_test() -> None:
    """Negative control: so does a transform whose sample depends on its batch."""

    class Centred(T.Transform):
        def __call__(self, batch: Tensor, draws: T.Draws) -> Tensor:
            return batch.float() - batch.float().mean(0)

    assert not same(epochs_of(Centred()), epochs_of(Centred(), batch_size=5))


def test_the_data_themselves_are_never_changed() -> None:
    class InPlace(T.Transform):
        def __call__(self, batch: Tensor, draws: T.Draws) -> Tensor:
            return batch.zero_()

    before = IMAGES.clone()
    assert not epochs_of(InPlace())[0].any()
    epochs_of(EVERY["all"])
    assert torch.equal(IMAGES, before)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(216, SIZE), torch.nn.Dropout(0.2))


class FailsAt(vd.Callback):
    """Ends a run by an error after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == self.step:
            raise RuntimeError("planted")


@pytest.mark.parametrize("step", [2, 9])
def test_a_run_that_goes_on_ends_with_the_weights_of_one_that_was_not_stopped(tmp_path: Path, step: int) -> None:
    def run(folder: Path | None, model: torch.nn.Module, *callbacks: vd.Callback) -> None:
        data = vd.DataLoader((IMAGES, LABELS), 8, shuffle=True, transform=EVERY["all"])
        trainer = vd.Trainer(
            model, optimizer="sgd", lr=0.01, loss="cross_entropy", seed=0, progress=False, run_dir=folder, loggers=(),
            resume="auto" if folder else "never", checkpoint="every step" if folder else None, callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(data, steps=14)

    straight, cut, after = network(), network(), network()
    run(None, straight)
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "run", cut, FailsAt(step))
    run(tmp_path / "run", after)
    for a, b in zip(straight.parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_a_transform_raises_names_the_samples() -> None:
    class Broken(T.Transform):
        def __call__(self, batch: Tensor, draws: T.Draws) -> Tensor:
            raise ValueError("planted")

    with pytest.raises(FetchError, match=r"Broken of samples 0, 1.* failed: ValueError: planted.*whole batches"):
        next(iter(vd.DataLoader((IMAGES, LABELS), 4, transform=Broken())))
    with pytest.raises(FetchError, match="samples 0, 1, 2 and 3 failed"):
        next(iter(vd.DataLoader(OneByOne(), 4, transform=Broken())))
    with pytest.raises(DataError, match="shape of images"):  # what says itself what to do stays as it is
        next(iter(vd.DataLoader((torch.zeros(9, 4), LABELS[:9]), 4, transform=T.RandomCrop(2))))


def test_what_cannot_be_changed_is_refused() -> None:
    class Shortens(T.Transform):
        def __call__(self, batch: Tensor, draws: T.Draws) -> Tensor:
            return batch[1:]

    with pytest.raises(DataError, match=r"of 47 samples. It must return"):
        next(iter(vd.DataLoader((IMAGES, LABELS), 4, transform=Shortens())))
    with pytest.raises(ArgumentError, match="Give a batch_size"):
        vd.DataLoader(OneByOne(), None, transform=T.ToFloat())
    with pytest.raises(ArgumentError, match="the first part of a tuple, and the data are a dict of image, label"):
        vd.DataLoader({"image": IMAGES, "label": LABELS}, 4, transform=T.ToFloat())
    with pytest.raises(DataError, match="the first part of a tuple, and the batch is a dict"):
        dicts: Any = [{"image": image} for image in IMAGES]
        next(iter(vd.DataLoader(dicts, 4, transform=T.ToFloat())))
    with pytest.raises(DataError, match="one row a sample"):
        flat = vd.DataLoader(
            OneByOne(), 4, transform=T.ToFloat(), collate_fn=lambda samples: torch.cat([x for x, _ in samples])
        )
        next(iter(flat))


def test_pytorchs_loader_of_the_same_images_goes_with_a_transform_by_its_dataset() -> None:
    theirs = TorchDataLoader(TensorDataset(IMAGES, LABELS), 8)
    assert same(epochs_of(EVERY["all"], theirs.dataset), epochs_of(EVERY["all"]))


def test_a_weighted_sampler_goes_with_a_transform() -> None:
    sampler = WeightedRandomSampler([1.0] * SIZE, 20, generator=torch.Generator().manual_seed(0))
    batches = list(vd.DataLoader(OneByOne(), 8, sampler=sampler, seed=0, transform=T.ToFloat()))
    assert [len(images) for images, _ in batches] == [8, 8, 4]


# -- samples that are mixed ----------------------------------------------------------------------------------------------


def mixed(data: Any = None, **arguments: Any) -> list[list[Tensor]]:
    """Return the batches of two epochs of mixed samples."""
    loader = vd.DataLoader((IMAGES, LABELS) if data is None else data, 8, seed=3, transform=MIXED, **arguments)
    return [list(map(torch.cat, zip(*loader, strict=True))) for _ in range(2)]


def same_mixed(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(map(same, a, b))


def test_samples_are_mixed_alike_in_chunks_in_batches_by_workers_and_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_chunks = mixed(shuffle=True)
    assert not same(in_chunks[0], in_chunks[1])  # each epoch in another way
    assert same_mixed(mixed(OneByOne(), shuffle=True), in_chunks)
    assert same_mixed(mixed(OneByOne(), shuffle=True, num_workers=2), in_chunks)
    monkeypatch.setattr("velodrome.data.columns._CHUNK_BYTES", 1)
    assert same_mixed(mixed(shuffle=True), in_chunks)
    assert same_mixed(mixed(Stream()), mixed())  # in order, a stream's items have the numbers of the samples


def test_partners_are_of_the_same_batch_whatever_its_order() -> None:
    """The labels of a batch, mixed, are made of the labels of that batch; a batch in another order mixes the same pairs."""
    loader = vd.DataLoader((IMAGES, LABELS), 8, seed=3, transform=MIXED)
    for number, (_, shares) in enumerate(loader):
        own = range(8 * number, min(SIZE, 8 * number + 8))
        assert shares[:, own.start : own.stop].sum(1) == pytest.approx([1.0] * len(own))
    turned = T.MixUp(SIZE)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(8)
    numbers = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
    images, shares = turned.pair(IMAGES[:8], LABELS[:8], T.Draws(keys, numbers))
    images_2, shares_2 = turned.pair(IMAGES[:8][order], LABELS[:8][order], T.Draws(keys[order], numbers[order]))
    assert torch.equal(images[order], images_2)
    assert torch.equal(shares[order], shares_2)


@pytest.mark.parametrize("size", [2, 3])
def test_each_process_mixes_its_own_part_of_a_batch(size: int) -> None:
    loader = vd.DataLoader((IMAGES, LABELS), 8, seed=3, transform=MIXED)
    single = vd.DataLoader(OneByOne(), 8, seed=3, transform=MIXED)
    for rank in range(size):
        loader.set_epoch(0)
        single.set_epoch(0)
        for one, other in zip(
            loader.iterate(share=Share(rank, size)), single.iterate(share=Share(rank, size)), strict=True
        ):
            assert (one is EMPTY) == (other is EMPTY)
            assert one is EMPTY or same(list(one), list(other))


@pytest.mark.parametrize("data", [(IMAGES, LABELS), OneByOne()], ids=["in memory", "sample by sample"])
@pytest.mark.parametrize("done", [1, 4])
def test_a_loader_that_goes_on_mixes_what_is_left_as_before(data: Any, done: int) -> None:
    first, straight, after = (vd.DataLoader(data, 8, shuffle=True, seed=3, transform=MIXED) for _ in range(3))
    iterator = iter(first)
    for _ in range(done):
        next(iterator)
    after.load_state_dict(first.state_dict())
    for batch, expected in zip(after, list(straight)[done:], strict=True):
        assert same(list(batch), list(expected))


@pytest.mark.usefixtures("batch_by_batch")
def test_another_batch_size_mixes_other_partners() -> None:
    """What the docs say: the first law of this file does not hold for samples that are mixed. Also its negative control."""
    sevens = vd.DataLoader((IMAGES, LABELS), 7, seed=3, transform=MIXED)
    eights = vd.DataLoader((IMAGES, LABELS), 8, seed=3, transform=MIXED)
    assert not torch.equal(next(iter(sevens))[0], next(iter(eights))[0][:7])


@pytest.mark.parametrize("step", [2, 9])
def test_a_run_on_mixed_samples_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path, step: int) -> None:
    def run(folder: Path | None, model: torch.nn.Module, *callbacks: vd.Callback) -> vd.Trainer:
        data = vd.DataLoader((IMAGES, LABELS), 8, shuffle=True, transform=MIXED)
        trainer = vd.Trainer(
            model, optimizer="sgd", lr=0.01, loss="cross_entropy", metrics=["accuracy", "top3"], seed=0, progress=False,
            run_dir=folder, loggers=(), resume="auto" if folder else "never", checkpoint="every step" if folder else None,
            callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(data, vd.DataLoader((IMAGES.float(), LABELS), 8), steps=14)
        return trainer

    straight, cut, after = network(), network(), network()
    whole = run(None, straight)
    with pytest.raises(RuntimeError, match="planted"):
        run(tmp_path / "run", cut, FailsAt(step))
    again = run(tmp_path / "run", after)
    for a, b in zip(straight.parameters(), after.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.result.metrics["train/accuracy"] == again.result.metrics["train/accuracy"]
