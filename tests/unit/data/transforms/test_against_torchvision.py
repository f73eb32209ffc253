"""Colours, rotations, affine maps, sizes and mixing against torchvision's own functions, for the same numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from velodrome import transforms as T
from velodrome.data.transforms.counters import keys_of_samples, uniforms

COUNT = 24


def draws_of(transform: T.Transform, count: int = COUNT) -> T.Draws:
    keys = keys_of_samples(5, torch.arange(count))
    return T.Draws(keys, uniforms(keys, transform.num_draws))


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    values[0] = 128  # one without any colour
    return values if dtype == torch.uint8 else values.to(dtype) / 255


def spread(number: Tensor, low: float, high: float) -> float:
    """The middle of the part of [low, high] that a table of 65,536 has for the number."""
    return (math.floor(float(number) * 65536) + 0.5) / 65536 * (high - low) + low


@pytest.fixture(scope="module")
def functional(torchvision):
    return torchvision.transforms.v2.functional


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("which", ["brightness", "contrast", "saturation", "hue", "all"])
def test_colours_are_torchvisions(functional, which: str, channels: int, dtype: torch.dtype) -> None:
    names = ["brightness", "contrast", "saturation", "hue"]
    used = names if which == "all" else [which]
    batch = images(COUNT, channels, 9, 11, dtype=dtype)
    transform = T.ColorJitter(**{name: 0.5 if name == "hue" else 0.6 for name in used})
    draws = draws_of(transform)
    out = transform(batch.clone(), draws)
    assert out.dtype == dtype
    for image, row, got in zip(batch, draws.numbers.tolist(), out, strict=True):
        expected = image
        for name, number in zip(names, row, strict=True):
            if name in used:
                factor = number - 0.5 if name == "hue" else 0.4 + 1.2 * number
                expected = getattr(functional, f"adjust_{name}")(expected, factor)
        difference = (got.double() - expected.double()).abs()
        if dtype == torch.uint8:
            assert difference.max() <= (1 if which != "all" else 4)  # a level that rounding decides moves what follows
            assert difference.bool().float().mean() < 0.02
        else:
            assert difference.max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotations_are_torchvisions(functional, mode: str, dtype: torch.dtype) -> None:
    batch = images(COUNT, 3, 9, 12, dtype=dtype)
    transform = T.RandomRotation((-170, 50), interpolation=mode)  # pyright: ignore[reportArgumentType]
    draws = draws_of(transform)
    for image, number, got in zip(batch, draws.numbers[:, 0], transform(batch, draws), strict=True):
        expected = functional.rotate(image, spread(number, -170, 50), interpolation=_mode(mode))
        assert_close(got, expected, mode)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_affine_maps_are_torchvisions(functional, mode: str, dtype: torch.dtype) -> None:
    batch = images(COUNT, 3, 10, 12, dtype=dtype)
    transform = T.RandomAffine(
        40, translate=(0.3, 0.2), scale=(0.6, 1.5), shear=(-20, 10, -5, 15), interpolation=mode  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    draws = draws_of(transform)
    for image, row, got in zip(batch, draws.numbers, transform(batch, draws), strict=True):
        angle, across, down, scale, shear_x, shear_y = row
        moved = [round((2 * float(across) - 1) * 0.3 * 12), round((2 * float(down) - 1) * 0.2 * 10)]
        expected = functional.affine(
            image, spread(angle, -40, 40), moved, 0.6 + 0.9 * float(scale), [spread(shear_x, -20, 10), spread(shear_y, -5, 15)],
            interpolation=_mode(mode),
        )  # fmt: skip
        assert_close(got, expected, mode)


def test_what_comes_in_from_outside_is_torchvisions_for_nearest_pixels(functional) -> None:
    batch = images(COUNT, 1, 9, 9)
    transform = T.RandomRotation(90, fill=0.25)
    draws = draws_of(transform)
    for image, number, got in zip(batch, draws.numbers[:, 0], transform(batch, draws), strict=True):
        expected = functional.rotate(image, spread(number, -90, 90), fill=[0.25])
        assert_close(got, expected, "nearest")


def test_a_border_is_a_mean_of_image_and_fill() -> None:
    """Filled with its own colour, an image of one colour is left as it is, borders too (torchvision darkens them)."""
    batch = torch.full((COUNT, 1, 8, 8), 0.5)
    transform = T.RandomRotation(90, interpolation="bilinear", fill=0.5)
    assert (transform(batch, draws_of(transform)) - 0.5).abs().max() < 1e-6


def _mode(name: str):
    from torchvision.transforms.v2 import InterpolationMode

    return InterpolationMode(name)


def assert_close(got: Tensor, expected: Tensor, mode: str) -> None:
    assert got.dtype == expected.dtype
    difference = (got.double() - expected.double()).abs()
    if mode == "nearest":  # where two pixels are equally near, rounding decides
        assert difference.bool().float().mean() <= 0.02
    else:
        assert difference.max() <= (1 if got.dtype == torch.uint8 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("size", [5, 20, (7, 30), (13, 17)])
def test_sizes_are_torchvisions_bit_for_bit(functional, size: int | tuple[int, int], dtype: torch.dtype) -> None:
    batch = images(4, 3, 13, 17, dtype=dtype)
    transform = T.Resize(size)
    wanted = [size] if isinstance(size, int) else list(size)
    assert torch.equal(transform(batch, draws_of(transform, 4)), functional.resize(batch, wanted, antialias=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(6, 4), 28, (40, 9)])
def test_resized_crops_are_torchvisions(functional, size: int | tuple[int, int], dtype: torch.dtype) -> None:
    batch = images(COUNT, 3, 23, 31, dtype=dtype)
    transform = T.RandomResizedCrop(size)
    draws = draws_of(transform)
    boxes = torch.stack(transform.boxes(draws, 23, 31), 1).to(torch.int64).tolist()
    for image, (top, left, tall, wide), got in zip(batch, boxes, transform(batch, draws), strict=True):
        expected = functional.resized_crop(image, top, left, tall, wide, list(transform.size), antialias=True)
        assert got.dtype == dtype
        difference = (got.double() - expected.double()).abs().max()
        assert difference <= (1 if dtype == torch.uint8 else 1e-5)


def test_boxes_are_drawn_as_torchvision_draws_them(torchvision) -> None:
    """Means of 4,000 of each, which differ by chance by less than four standard errors."""
    torch.manual_seed(0)
    arguments = {"scale": (0.1, 0.9), "ratio": (0.5, 3.0)}
    theirs = torchvision.transforms.v2.RandomResizedCrop(8, **arguments)
    image = torch.zeros(3, 20, 24)
    found = [theirs.make_params([image]) for _ in range(4000)]
    a = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in found], dtype=torch.float64)
    ours = T.RandomResizedCrop(8, **arguments)
    b = torch.stack(ours.boxes(draws_of(ours, 4000), 20, 24), 1)
    a, b = (torch.cat((x, x[:, 2:3] * x[:, 3:4], x[:, 2:3] / x[:, 3:4]), 1) for x in (a, b))
    error = ((a.var(0) + b.var(0)) / 4000).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    assert (a.std(0) / b.std(0) - 1).abs().max() < 0.1


@pytest.mark.parametrize(("ratio", "box"), [((3.0, 4.0), (9, 0, 5, 14)), ((0.1, 0.2), (0, 5, 23, 5))])
def test_where_no_box_fits_it_is_the_largest_in_the_middle(ratio: tuple[float, float], box: tuple[int, ...]) -> None:
    """14 wide: 14 / 3 = 4.7 high, from (23 - 5) // 2 on. 23 high: 23 * 0.2 = 4.6 wide, from (14 - 5) // 2 = 4 on."""
    transform = T.RandomResizedCrop(4, scale=(1.0, 1.0), ratio=ratio)
    boxes = torch.stack(transform.boxes(draws_of(transform), 23, 14), 1)
    expected = torch.tensor(box if box[1] == 0 else (0, 4, 23, 5), dtype=torch.float64)
    assert torch.equal(boxes, expected.expand(COUNT, 4))
