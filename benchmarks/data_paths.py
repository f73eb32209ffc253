"""Claim: images in memory, augmented by batch, come at a small part of the cost of augmenting sample by sample, and are the same bits.

No model: an epoch of batches is asked for and thrown away. Fixed data: PyTorch's loader over a `TensorDataset`, the same again (the noise
floor), `velodrome.DataLoader` over the same floats, and over bytes that become floats batch by batch. Augmented data (a random crop from
the padded image, a flip, normalised): a dataset that changes each sample by itself with tensor operations, read by PyTorch's loader, and
`velodrome.DataLoader` with the batched transform, in memory and over a dataset that is read sample by sample. A slow dataset: without
workers, with one for each core, and with `num_workers="auto"`, its measuring and its trial included. All arms of a group hand out equal
batches, which is checked before anything is timed.

    python benchmarks/data_paths.py --samples 20000 --rounds 7
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, TensorDataset

import velodrome as vd
from harness import add_common_options, at_least_one, environment, interleave, opening, ratios, summary, write_record
from velodrome.data.threads import usable_cores
from velodrome.data.transforms.counters import key_of_epoch, keys_of_samples, uniforms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Make = Callable[[], Iterable[Any]]

BATCH, PADDING, MEAN, STD = 64, 2, 0.286, 0.353
AUGMENT = vd.transforms.Compose(
    [
        vd.transforms.RandomCrop(28, padding=PADDING),
        vd.transforms.RandomHorizontalFlip(),
        vd.transforms.Normalize(MEAN, STD),
    ]
)


class OneByOne(Dataset[Any]):
    """The images as they are, one at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class AugmentedOneByOne(OneByOne):
    """Each image changed by itself, as most datasets do it; by the numbers that the batched transform draws."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)
        numbers = uniforms(keys_of_samples(key_of_epoch(0, 0), torch.arange(len(images))), 3)
        self.places = (numbers[:, :2] * (2 * PADDING + 1)).long().tolist()
        self.flips = (numbers[:, 2] < 0.5).tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = F.pad(self.images[index], (PADDING,) * 4)
        top, left = self.places[index]
        image = image[:, top : top + 28, left : left + 28]
        if self.flips[index]:
            image = image.flip(-1)
        return image.to(torch.float32).div_(255).sub_(MEAN).div_(STD), self.labels[index]


class Slow(OneByOne):
    """Each image takes some work that holds a core, as decoding does."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        end = perf_counter() + 0.0005
        while perf_counter() < end:
            pass
        return super().__getitem__(index)


def groups(images: Tensor, labels: Tensor) -> dict[str, dict[str, Make]]:
    """Return what makes each arm's loader, anew for every run, so that each is at its first epoch."""
    floats = images.to(torch.float32).div_(255)
    in_order = {"batch_size": BATCH, "seed": 0}
    few = slice(0, max(BATCH, len(images) // 10))
    slow = partial(vd.DataLoader, Slow(images[few], labels[few]), **in_order)
    fixed = partial(TorchDataLoader, TensorDataset(floats, labels), BATCH)
    return {
        "fixed": {
            "PyTorch": fixed,
            "PyTorch again": fixed,
            "in memory": partial(vd.DataLoader, (floats, labels), **in_order),
            "in memory, bytes": partial(vd.DataLoader, (images, labels), transform=vd.transforms.ToFloat(), **in_order),
        },
        "augmented": {
            "PyTorch": partial(TorchDataLoader, AugmentedOneByOne(images, labels), BATCH),
            "by batch, in memory": partial(vd.DataLoader, (images, labels), transform=AUGMENT, **in_order),
            "by batch, read one by one": partial(
                vd.DataLoader, OneByOne(images, labels), transform=AUGMENT, **in_order
            ),
        },
        "slow dataset": {
            "no workers": slow,
            "a worker a core": partial(slow, num_workers=usable_cores(), persistent_workers=True),
            "auto": partial(slow, num_workers="auto"),
        },
    }


def run(make: Make) -> float:
    """Return the microseconds a batch of one epoch takes."""
    loader = make()
    count = 0
    start = perf_counter()
    for _ in loader:
        count += 1
    return (perf_counter() - start) / count * 1e6


def are_equal(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Return whether two loaders hand out the same batches, bit for bit."""
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def main() -> None:
    """Check that the arms of each group agree, time them, write the record."""
    parser = argparse.ArgumentParser(description=opening(__doc__), epilog="Takes about two minutes on two idle cores.")
    parser.add_argument("--samples", type=at_least_one, default=20_000)
    parser.add_argument("--threads", type=at_least_one, default=1)
    add_common_options(parser, rounds=7)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.samples, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (options.samples,), generator=generator)
    facts = environment(threads=options.threads, samples=options.samples, batch_size=BATCH, rounds=options.rounds)
    results: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    for group, arms in groups(images, labels).items():
        reference, *others = arms
        equal = {name: are_equal(arms[reference](), arms[name]()) for name in others}
        times = interleave({name: partial(run, make) for name, make in arms.items()}, rounds=options.rounds, say=False)
        raw[group] = times
        results[group] = {
            "batch_us": {name: summary(each) for name, each in times.items()},
            "speedup": {name: summary(ratios(times[reference], times[name])) for name in others},
            "equal_bits": equal,
        }
        for name in arms:
            speedup = "" if name == reference else f"  {results[group]['speedup'][name]['median']:6.2f} times as fast"
            bits = "" if name == reference else f", {'equal' if equal[name] else 'OTHER'} bits"
            print(f"{group:<13} {name:<26} {results[group]['batch_us'][name]['median']:9.1f} us a batch{speedup}{bits}")
    write_record("data_paths", {"environment": facts, "results": results, "batch_us": raw}, options.records)
    if not all(each for group in results.values() for each in group["equal_bits"].values()):
        raise SystemExit("The arms of a group hand out different batches.")


if __name__ == "__main__":
    main()
