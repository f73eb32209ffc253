"""Each batched transform against a literal twin, sample by sample, and what it refuses."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from velodrome import transforms as T
from velodrome.data.transforms.counters import keys_of_samples, uniforms
from velodrome.errors import ArgumentError, DataError


def draws_of(transform: T.Transform, count: int, key: int = 5) -> T.Draws:
    keys = keys_of_samples(key, torch.arange(count))
    return T.Draws(keys, uniforms(keys, transform.num_draws))


def apply(transform: T.Transform, batch: Tensor) -> Tensor:
    return transform(batch.clone(), draws_of(transform, len(batch)))


def images(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = torch.arange(torch.Size(shape).numel()).remainder(251).view(shape)
    return values.to(dtype) if dtype == torch.uint8 else values.to(dtype) / 251


@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 1, 5, 7), (6, 3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64], ids=str)
def test_random_crop_cuts_the_padded_image_at_the_drawn_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    transform = T.RandomCrop((4, 6), padding=2, fill=9)
    batch = images(*shape).to(dtype)
    out, numbers = apply(transform, batch), draws_of(transform, 6).numbers

    assert out.shape == (*shape[:-2], 4, 6)
    assert out.dtype == dtype
    for image, row, cut in zip(batch, numbers, out, strict=True):
        padded = torch.full((*shape[1:-2], 9, 11), 9, dtype=dtype)
        padded[..., 2:7, 2:9] = image
        top, left = int(row[0] * 6), int(row[1] * 6)  # 9 - 4 + 1 places, 11 - 6 + 1 places
        assert torch.equal(cut, padded[..., top : top + 4, left : left + 6])


def test_random_crop_reaches_every_place_equally_often() -> None:
    position = torch.arange(25).view(1, 5, 5).expand(9000, 5, 5)
    corner = apply(T.RandomCrop(3), position)[:, 0, 0]
    counts = corner.bincount(minlength=25)[[0, 1, 2, 5, 6, 7, 10, 11, 12]]
    assert counts.sum() == 9000
    assert (counts - 1000).abs().max() < 4 * (1000 * 8 / 9) ** 0.5


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_random_crop_fills_the_border_as_torch_does(mode: str) -> None:
    batch = images(40, 2, 4, 5, dtype=torch.float32)
    transform = T.RandomCrop((4, 5), padding=3, padding_mode=mode)  # pyright: ignore[reportArgumentType]
    out, numbers = apply(transform, batch), draws_of(transform, 40).numbers
    padded = torch.nn.functional.pad(batch, (3, 3, 3, 3), mode=mode)
    for image, row, cut in zip(padded, numbers, out, strict=True):
        top, left = int(row[0] * 7), int(row[1] * 7)
        assert torch.equal(cut, image[:, top : top + 4, left : left + 5])


def test_random_translate_moves_by_up_to_so_many_pixels() -> None:
    batch = torch.zeros(500, 1, 7, 7)
    batch[:, :, 3, 3] = 1
    places = apply(T.RandomTranslate(2), batch).nonzero()[:, 2:]
    assert len(places) == 500  # never moved out of the picture
    assert {tuple(place) for place in places.tolist()} == {(y, x) for y in range(1, 6) for x in range(1, 6)}


@pytest.mark.parametrize(("kind", "dim"), [(T.RandomHorizontalFlip, -1), (T.RandomVerticalFlip, -2)])
def test_a_flip_mirrors_those_whose_number_is_below_p(kind: type[T.RandomHorizontalFlip], dim: int) -> None:
    batch, transform = images(400, 2, 3, 4), kind(p=0.25)
    out, numbers = apply(transform, batch), draws_of(transform, 400).numbers[:, 0]
    for image, number, flipped in zip(batch, numbers, out, strict=True):
        assert torch.equal(flipped, image.flip(dim) if number < 0.25 else image)
    assert 60 < int((numbers < 0.25).sum()) < 140
    assert torch.equal(apply(kind(p=0), batch), batch)
    assert torch.equal(apply(kind(p=1), batch), batch.flip(dim))


def test_to_float_and_normalize_are_torchvisions_bit_for_bit(torchvision) -> None:
    vision = torchvision.transforms
    batch = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    expected = vision.Normalize((0.1, 0.5, 0.3), (0.2, 0.3, 0.7))(batch[0].float().div(255))
    out = apply(T.Compose([T.ToFloat(), T.Normalize((0.1, 0.5, 0.3), (0.2, 0.3, 0.7))]), batch)
    assert torch.equal(out[0], expected)
    assert torch.equal(apply(T.Normalize((0.1, 0.5, 0.3), (0.2, 0.3, 0.7)), batch), out)  # by itself too


def test_normalize_by_hand() -> None:
    out = apply(T.Normalize(0.5, 0.25), torch.tensor([[0.0, 0.5, 1.0]]))
    assert out.tolist() == [[-2.0, 0.0, 2.0]]


def test_cutout_blanks_a_square_around_the_drawn_centre() -> None:
    batch, transform = torch.ones(300, 2, 6, 8), T.Cutout(3, fill=7, p=0.8)
    out, numbers = apply(transform, batch), draws_of(transform, 300).numbers
    for image, (y, x, chance) in zip(out, numbers.tolist(), strict=True):
        expected = torch.ones(2, 6, 8)
        top, left = int(y * 6) - 1, int(x * 8) - 1
        if chance < 0.8:
            expected[:, max(0, top) : top + 3, max(0, left) : left + 3] = 7
        assert torch.equal(image, expected)


def test_random_erasing_draws_as_torchvision_does(torchvision) -> None:
    """Area and shape of the rectangles: means of 4,000 of each, which differ by chance by less than four standard errors."""
    vision = torchvision.transforms
    torch.manual_seed(0)
    batch, arguments = torch.ones(4000, 1, 20, 24), {"p": 0.7, "scale": (0.05, 0.4), "ratio": (0.4, 2.0)}
    theirs = torch.stack([vision.RandomErasing(**arguments)(image) for image in batch])
    ours = apply(T.RandomErasing(**arguments), batch)

    def facts(out: Tensor) -> Tensor:
        gone = out[:, 0] == 0
        rows, columns = gone.any(2), gone.any(1)
        tall, wide = rows.sum(1), columns.sum(1)
        assert torch.equal(gone.flatten(1).sum(1), tall * wide)  # one rectangle each
        y, x = rows.long().argmax(1), columns.long().argmax(1)
        return torch.stack((tall > 0, tall, wide, tall * wide, (tall - wide).abs(), y, x), 1).double()

    a, b = facts(theirs), facts(ours)
    error = ((a.var(0) + b.var(0)) / 4000).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    assert (a.std(0) / b.std(0) - 1).abs().max() < 0.1


def test_random_erasing_leaves_an_image_alone_that_no_rectangle_fits_into() -> None:
    batch = torch.ones(
        50, 1, 2, 40
    )  # a tenth of the area at least, at least four times as high as wide: 5.6 pixels of 2
    assert torch.equal(apply(T.RandomErasing(1.0, scale=(0.1, 0.2), ratio=(4.0, 5.0)), batch), batch)


def test_brightness_multiplies_and_cuts_off() -> None:
    transform = T.ColorJitter(brightness=0.5)
    numbers = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.75, 0.0]])  # factors 0.5, 1.0, 1.25
    batch = torch.tensor([100, 101, 240], dtype=torch.uint8).view(1, 1, 3).expand(3, 1, 3)
    out = transform(batch, T.Draws(torch.zeros(3, dtype=torch.int64), numbers))
    assert out.dtype == torch.uint8
    assert out[:, 0].tolist() == [[50, 50, 120], [100, 101, 240], [125, 126, 255]]
    floats = transform(torch.full((1, 1, 1), 0.875), T.Draws(torch.zeros(1, dtype=torch.int64), numbers[2:]))
    assert floats.item() == 1.0


def test_contrast_moves_numbers_away_from_the_mean_grey() -> None:
    transform = T.ColorJitter(contrast=1.0)
    numbers = torch.tensor([[0.0, 0.0], [0.0, 0.75]])  # factors 0 and 1.5
    batch = torch.tensor([0.25, 0.5, 0.75, 0.5]).view(1, 1, 2, 2).expand(2, 1, 2, 2)  # mean 0.5
    out = transform(batch, T.Draws(torch.zeros(2, dtype=torch.int64), numbers))
    assert out.flatten(1).tolist() == [[0.5, 0.5, 0.5, 0.5], [0.125, 0.5, 0.875, 0.5]]


def test_contrast_of_colours_weighs_them_as_the_eye_does() -> None:
    transform = T.ColorJitter(contrast=1.0)
    none = T.Draws(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2))  # factor 0: the mean grey is left
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert transform(red, none).flatten().tolist() == pytest.approx([0.2989] * 3, abs=1e-6)  # fixed point of 20 bits


def test_gaussian_noise_has_its_standard_deviation_and_makes_floats() -> None:
    out = apply(T.GaussianNoise(0.1), torch.full((100, 1, 20, 20), 51, dtype=torch.uint8)).double()
    assert abs(out.mean().item() - 0.2) < 4 * 0.1 / 200
    assert abs(out.std().item() / 0.1 - 1) < 0.02


def test_two_noises_of_one_batch_are_two() -> None:
    twice = apply(T.Compose([T.GaussianNoise(1.0), T.GaussianNoise(1.0)]), torch.zeros(50, 400))
    assert abs(twice.std().item() / 2**0.5 - 1) < 0.03  # the same one twice would have 2


def test_compose_gives_each_its_own_numbers_in_order() -> None:
    class Adds(T.Transform):
        num_draws = 2

        def __call__(self, batch: Tensor, draws: T.Draws) -> Tensor:
            return batch + draws.numbers

    both = T.Compose([Adds(), T.Compose([Adds(), T.ToFloat()])])
    numbers = draws_of(both, 3).numbers
    assert both.num_draws == 4
    assert torch.equal(apply(both, torch.zeros(3, 2)), numbers[:, :2] + numbers[:, 2:])
    assert repr(T.Compose([T.RandomCrop(3, padding=1), T.ToFloat()])) == (
        "Compose([RandomCrop(size=(3, 3), padding=1, fill=0, padding_mode='constant'), ToFloat()])"
    )


def test_transforms_that_have_been_used_can_be_pickled() -> None:
    pipeline = T.Compose([T.RandomErasing(1.0), T.Normalize(0.5, 0.5)])
    batch = images(4, 1, 9, 9, dtype=torch.float32)
    first = apply(pipeline, batch)
    assert torch.equal(apply(pickle.loads(pickle.dumps(pipeline)), batch), first)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: T.RandomCrop(0), "at least 1"),
        (lambda: T.RandomCrop(3, padding=-1), "whole number of at least 0"),
        (lambda: T.RandomCrop(3, padding_mode="reflct"), "reflect"),
        (lambda: T.RandomTranslate(0), "at least 1"),
        (lambda: T.RandomTranslate(1, padding_mode="wrap"), "not known"),
        (lambda: T.RandomHorizontalFlip(1.5), "from 0 to 1"),
        (lambda: T.RandomVerticalFlip(True), "from 0 to 1"),
        (lambda: T.Normalize((0.1, 0.2), 0.3), "one a channel, of both"),
        (lambda: T.Normalize(0.1, 0.0), "above 0"),
        (lambda: T.Cutout(0), "at least 1"),
        (lambda: T.RandomErasing(scale=(0.5, 0.2)), "the smaller first"),
        (lambda: T.RandomErasing(ratio=(0.0, 1.0)), "above 0"),
        (lambda: T.ColorJitter(brightness=-1), "at least 0"),
        (lambda: T.GaussianNoise(0), "above 0"),
        (lambda: T.Compose([torch.relu]), "as transform="),
    ],
)
def test_arguments_that_cannot_be_are_refused(make: object, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        make()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("transform", "batch", "match"),
    [
        (T.RandomCrop(3), torch.zeros(4, 10), r"shape \(4, 10\)"),
        (T.RandomCrop(9, padding=1), torch.zeros(4, 6, 6), "8 x 8 with their padding"),
        (T.RandomCrop(9, padding=6, padding_mode="reflect"), torch.zeros(4, 6, 6), "larger than the padding of 6"),
        (T.Normalize((0.1, 0.2), (0.3, 0.4)), torch.zeros(4, 3, 5, 5), "as many as there are channels"),
        (T.ToFloat(), torch.zeros(4, dtype=torch.int64), "divides uint8"),
        (T.ColorJitter(0.5), torch.zeros(4, 3, 3, dtype=torch.int64), "uint8 and floats"),
    ],
)
def test_batches_that_do_not_fit_are_refused(transform: T.Transform, batch: Tensor, match: str) -> None:
    with pytest.raises(DataError, match=match):
        apply(transform, batch)
