"""What every transform does with arguments and batches that nobody foresaw: it works, or says what to do."""

from __future__ import annotations

import inspect
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from velodrome import transforms as T
from velodrome.data.transforms.counters import keys_of_samples, uniforms
from velodrome.errors import ArgumentError, DataError

KINDS: dict[type[T.Transform], dict[str, Any]] = {
    T.ToFloat: {},
    T.Normalize: {"mean": 0.5, "std": 0.25},
    T.RandomCrop: {"size": 3},
    T.RandomTranslate: {"pixels": 1},
    T.RandomHorizontalFlip: {},
    T.RandomVerticalFlip: {},
    T.RandomRotation: {"degrees": 10},
    T.RandomAffine: {"degrees": 10},
    T.Resize: {"size": 4},
    T.RandomResizedCrop: {"size": 4},
    T.Cutout: {"size": 2},
    T.RandomErasing: {"p": 1.0},
    T.ColorJitter: {"brightness": 0.2},
    T.GaussianNoise: {"std": 0.1},
    T.MixUp: {"num_classes": 3},
    T.CutMix: {"num_classes": 3},
}
ODD: list[Any] = [
    float("nan"), float("inf"), -1, -0.5, 0, 1, 2.5, 28.0, True, "3", "", b"3", None, [], (), [1], [0.1, 0.2], [0.2, 0.1], (1, 2, 3), [[1, 2], [3]],
    {}, {"a": 1}, object, torch.tensor(2), torch.tensor(0.5), torch.tensor(True), torch.tensor([]), torch.tensor([0.1, 0.2]), torch.ones(2, 2),
    numpy.int64(2), numpy.float32(0.5), numpy.bool_(True), numpy.array([0.1, 0.2]), numpy.array(3), 1j, 10**400,
]  # fmt: skip


def test_every_transform_is_listed_here() -> None:
    assert {kind.__name__ for kind in KINDS} == set(T.__all__) - {"Compose", "Draws", "Transform"}


def apply(transform: T.Transform, batch: Tensor, labels: Tensor | None = None) -> Tensor:
    keys = keys_of_samples(5, torch.arange(len(batch)))
    draws = T.Draws(keys, uniforms(keys, transform.num_draws))
    labels = torch.arange(len(batch)) % 3 if labels is None else labels
    return transform.pair(batch.clone(), labels, draws)[0]


def made(kind: type[T.Transform], **arguments: Any) -> tuple[T.Transform | None, str]:
    """Return the transform, or what was said against it."""
    try:
        return kind(**arguments), ""
    except ArgumentError as error:
        return None, str(error)


def changed(transform: T.Transform, batch: Tensor) -> tuple[Tensor | None, str]:
    """Return the changed batch, or what was said against it."""
    try:
        return apply(transform, batch), ""
    except DataError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_arguments_are_taken_or_refused_with_the_value_and_the_rule(kind: type[T.Transform]) -> None:
    """Nothing but ArgumentError; what is taken can be used, or says why not, and describes itself by plain numbers."""
    batch = torch.rand(3, 1, 6, 6)
    num_refused = 0
    for name in inspect.signature(kind).parameters:
        for value in ODD:
            transform, refusal = made(kind, **{**KINDS[kind], name: value})
            if transform is None:
                num_refused += 1
                assert any(word in refusal for word in ("must be", "Give", "known")), (name, value, refusal)
                continue
            assert "tensor" not in repr(transform)
            assert "numpy" not in repr(transform)
            out, _ = changed(transform, batch)
            if out is not None:  # else a crop that is larger than the images, say
                assert len(out) == 3
                assert out.isfinite().all(), (name, value)
    assert num_refused >= 5 * len(inspect.signature(kind).parameters)


SHAPES = [
    (4, 6, 6), (4, 1, 6, 6), (4, 3, 6, 6), (4, 4, 6, 6), (1, 1, 6, 6), (4, 1, 1, 1), (1, 1, 1), (2, 3, 1, 7), (3, 1, 0, 4), (0, 1, 6, 6), (4, 6), (4,), (2, 5, 3, 6, 6),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_batches_are_changed_or_refused(kind: type[T.Transform], shape: tuple[int, ...]) -> None:
    arguments = {**KINDS[kind], **({"size": 1} if kind is T.RandomCrop else {})}
    arguments |= {"saturation": 0.2, "hue": 0.1, "contrast": 0.2} if kind is T.ColorJitter else {}
    transform = kind(**arguments)
    for dtype in (torch.uint8, torch.float32, torch.float64, torch.float16, torch.int64, torch.bool):
        batch = torch.ones(shape).to(dtype)
        out, refusal = changed(transform, batch)
        if out is None:
            assert any(word in refusal for word in ("Convert", "Give", "Leave", "Use", "look at")), refusal
            continue
        assert len(out) == len(batch)
        assert out.ndim == batch.ndim
        floats = (T.Normalize, T.ToFloat, T.GaussianNoise, T.MixUp)
        assert out.dtype == (torch.float32 if dtype == torch.uint8 and kind in floats else dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_batch_lies_in_memory_changes_nothing(kind: type[T.Transform]) -> None:
    batch = torch.rand(5, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    transform = kind(**KINDS[kind])
    expected = apply(transform, batch)
    last = batch.to(memory_format=torch.channels_last)
    apart = torch.zeros(5, 6, 7, 12)[:, ::2, :, ::2]
    apart.copy_(batch)
    assert not apart.is_contiguous()
    for other in (last, apart):
        keys = keys_of_samples(5, torch.arange(5))
        draws = T.Draws(keys, uniforms(keys, transform.num_draws))
        assert torch.equal(transform.pair(other, torch.arange(5) % 3, draws)[0], expected)


def test_numbers_of_tensors_and_arrays_are_numbers() -> None:
    x = torch.tensor([0.0, 1.0])
    assert repr(T.Normalize(x.mean(), x.std(unbiased=False))) == "Normalize(mean=(0.5,), std=(0.5,))"
    assert repr(T.Normalize(torch.tensor([0.5, 0.25]), numpy.array([1.0, 2.0]))) == (
        "Normalize(mean=(0.5, 0.25), std=(1.0, 2.0))"
    )
    assert T.RandomCrop(torch.tensor(3)).size == T.RandomCrop(numpy.int64(3)).size == (3, 3)
    assert T.RandomCrop(torch.tensor([3, 4])).size == (3, 4)
    assert T.Cutout(numpy.int32(2), fill=torch.tensor(0.5)).fill == 0.5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: T.RandomCrop(28.0), r"size=28.0 is not the size of an image. Both sides must be whole numbers"),
        (lambda: T.RandomCrop((3, 4, 5)), r"or \(height, width\)"),
        (lambda: T.RandomCrop(3, padding=(1, 2)), r"padding=\(1, 2\).*whole number"),
        (lambda: T.RandomCrop(3, fill="black"), "fill='black' is not a colour"),
        (lambda: T.Normalize([], []), r"mean=\[\] is not a mean. Give one number"),
        (lambda: T.Normalize(float("nan"), 1), "mean=nan"),
        (lambda: T.Normalize("01", 1), "mean='01'"),
        (lambda: T.RandomErasing(scale=0.2), "scale=0.2 are not two fractions"),
        (lambda: T.RandomErasing(ratio=(1, float("nan"))), "ratio="),
        (lambda: T.ColorJitter(hue=0.6), "hue=0.6.*0 to 0.5"),
        (lambda: T.RandomRotation((10, -10)), "the smaller first"),
        (lambda: T.RandomRotation(-10), "at least 0"),
        (lambda: T.RandomAffine(0, shear=90), "between -89 and 89"),
        (lambda: T.RandomAffine(0, translate=0.1), "translate=0.1 are not two fractions"),
        (lambda: T.RandomAffine(0, scale=(0, 1)), "above 0"),
        (lambda: T.RandomRotation(10, interpolation="bilinar"), "bilinear"),
        (lambda: T.RandomResizedCrop(8, scale=(0, 1)), "not 0 itself"),
        (lambda: T.Resize(0), "at least 1"),
        (lambda: T.Compose(T.ToFloat()), "Give a list"),
        (lambda: T.Compose(3), "Give a list"),
    ],
)
def test_what_is_refused_says_the_value_and_what_to_do(make: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        make()


@pytest.mark.parametrize(
    ("transform", "batch", "match"),
    [
        (T.RandomCrop(3, padding=1, fill=-0.42), torch.zeros(2, 6, 6, dtype=torch.uint8), "fills with -0.42.*ToFloat"),
        (T.Cutout(3, fill=300), torch.zeros(2, 6, 6, dtype=torch.uint8), "whole numbers from 0 to 255"),
        (T.ColorJitter(hue=0.1), torch.zeros(2, 4, 6, 6), "an alpha channel"),
        (T.Resize(3), torch.zeros(2, 1, 0, 6), "no pixel"),
        (
            T.RandomResizedCrop(3),
            torch.zeros(2, 8, 6, 3),
            r"\(8, 6, 3\).*8 channels of 6 rows of 3 pixels.*permute\(0, 3, 1, 2\)",
        ),
        (T.RandomHorizontalFlip(), torch.zeros(2, 28, 28, 1), "put the channels first"),
        (
            T.ColorJitter(0.1),
            torch.tensor([-0.25, 255.0]).repeat(2, 3, 4, 1),
            "from -0.25 to 255.*before Normalize.*divided by 255",
        ),
        (T.ColorJitter(0.1), torch.tensor([-2.0, 1.0]).repeat(2, 3, 4, 1), "from -2 to 1"),
    ],
)
def test_batches_that_do_not_fit_are_refused(transform: T.Transform, batch: Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        apply(transform, batch)


def test_few_pixels_behind_few_channels_are_no_channels() -> None:
    assert apply(T.RandomHorizontalFlip(p=1.0), torch.arange(3.0).repeat(2, 4, 8, 1))[0, 0, 0].tolist() == [2, 1, 0]


def test_a_little_noise_around_zero_to_one_is_cut_off_by_color_jitter() -> None:
    noisy = torch.tensor([-0.2, 0.5, 1.2]).repeat(2, 3, 4, 1)
    changed = apply(T.ColorJitter(0.1), noisy)
    assert changed.min() == 0
    assert changed.max() <= 1
