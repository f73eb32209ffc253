"""Mixup and cutmix by hand: partners, weights, areas, labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from velodrome import DataLoader
from velodrome import transforms as T
from velodrome.data.transforms.counters import keys_of_samples, uniforms
from velodrome.data.transforms.tables import Table, quantiles_of_beta
from velodrome.errors import ArgumentError, DataError

LABELS = torch.tensor([0, 1, 2])


def draws(numbers: list[list[float]], batch_size: int | None = None) -> T.Draws:
    return T.Draws(torch.zeros(len(numbers), dtype=torch.int64), torch.tensor(numbers), batch_size=batch_size)


def test_a_sample_is_mixed_with_the_next_one_of_its_batch_by_their_numbers() -> None:
    """Weights are the quarter, the half and again the quarter quantile of the even distribution on (0, 1): 0.25, 0.5, 0.25."""
    inputs = torch.tensor([[0.0], [10.0], [100.0]])
    numbers = [[0.5, 0.25, 0.0], [0.1, 0.5, 0.0], [0.9, 0.25, 0.0]]  # in order 1, 0, 2: partners 0 -> 2, 1 -> 0, 2 -> 1
    out, shares = T.MixUp(3).pair(inputs, LABELS, draws(numbers))
    assert out.flatten().tolist() == pytest.approx([75.0, 5.0, 32.5], abs=1e-3)
    expected = [[0.25, 0, 0.75], [0.5, 0.5, 0], [0, 0.75, 0.25]]
    assert shares.flatten().tolist() == pytest.approx(sum(expected, []), abs=1e-4)


def test_several_batches_are_mixed_within_each() -> None:
    inputs = torch.arange(5.0).view(5, 1)
    numbers = [[0.2, 0.5, 0.0], [0.1, 0.5, 0.0], [0.9, 0.5, 0.0], [0.3, 0.5, 0.0], [0.4, 0.5, 0.0]]
    out, _ = T.MixUp(5).pair(inputs, torch.arange(5), draws(numbers, batch_size=2))
    assert out.flatten().tolist() == pytest.approx([0.5, 0.5, 2.5, 2.5, 4.0], abs=1e-3)  # the last one is alone


def test_samples_above_p_stay_as_they_are() -> None:
    inputs = torch.tensor([[0.0], [10.0]])
    out, shares = T.MixUp(2, p=0.5).pair(inputs, LABELS[:2], draws([[0.1, 0.5, 0.4], [0.2, 0.5, 0.5]]))
    assert out.flatten().tolist() == pytest.approx([5.0, 10.0], abs=1e-3)
    assert shares[1].tolist() == [0.0, 1.0]


def test_cutmix_is_torchvisions_box_and_area() -> None:
    """Weight 0.75 (even quantile): half the side is 0.5 sqrt(1 - 0.75) = 1/4 of it: 2 of 8 rows and 1 of 4 columns either way."""
    inputs = torch.stack((torch.zeros(1, 8, 4), torch.ones(1, 8, 4)))
    numbers = [[0.1, 0.74999, 0.0, 0.5, 0.5], [0.2, 0.74999, 0.0, 0.0, 0.99]]  # centres (4, 2) and (0, 3)
    out, shares = T.CutMix(2).pair(inputs, LABELS[:2], draws(numbers))
    first, second = torch.zeros(8, 4), torch.ones(8, 4)
    first[2:6, 1:3] = 1  # 8 of 32 pixels
    second[0:2, 2:4] = 0  # 4 of 32
    assert torch.equal(out[:, 0], torch.stack((first, second)))
    assert shares.tolist() == [[0.75, 0.25], [0.125, 0.875]]


def test_mixed_batches_are_torchvisions_for_the_same_numbers(torchvision) -> None:
    v2 = torchvision.transforms.v2
    inputs = torch.rand(6, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 4
    order = torch.arange(6) / 8  # each one's partner is the next one, torchvision's the one before: turned round
    numbers = torch.full((6, 5), 0.3)
    numbers[:, 0], numbers[:, 2], numbers[:, 3], numbers[:, 4] = order, 0.0, 0.6, 0.2
    share = float(Table(quantiles_of_beta, 0.7).at(torch.tensor([0.3]))[0])
    for ours, theirs in ((T.MixUp(4, alpha=0.7), v2.MixUp(num_classes=4)), (T.CutMix(4, alpha=0.7), v2.CutMix(num_classes=4))):  # fmt: skip
        out, shares = ours.pair(inputs, labels, draws(numbers.tolist()))
        if isinstance(ours, T.MixUp):
            params = {"lam": share}
        else:
            half = 0.5 * (1 - share) ** 0.5
            y, x = int(0.6 * 9), int(0.2 * 12)
            box = (
                max(0, x - int(half * 12)),
                max(0, y - int(half * 9)),
                min(12, x + int(half * 12)),
                min(9, y + int(half * 9)),
            )
            params = {"box": box, "lam_adjusted": 1 - (box[2] - box[0]) * (box[3] - box[1]) / 108}
        flipped = labels.flip(0)
        params |= {"labels": flipped, "batch_size": 6}
        assert (out.flip(0) - theirs.transform(inputs.flip(0), params)).abs().max() < 1e-6
        assert (shares.flip(0) - theirs.transform(flipped, params)).abs().max() < 1e-6


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 2.0, 40.0])
def test_weights_are_those_of_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)), and its density on a few intervals, each from 100,000 draws of torch."""
    ours = Table(quantiles_of_beta, alpha).at((torch.arange(65536) + 0.5) / 65536)
    assert ours.mean().item() == pytest.approx(0.5, abs=1e-4)
    assert ours.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)
    assert (ours[1:] >= ours[:-1]).all()
    torch.manual_seed(0)
    theirs = torch.distributions.Beta(alpha, alpha).sample(torch.Size((100_000,))).double()
    edges = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.55, 0.9, 0.999], dtype=torch.float64)
    for edge in edges:
        a, b = (ours < edge).double().mean(), (theirs < edge).double().mean()
        assert abs(float(a - b)) < 4 * 0.5 / 100_000**0.5 + 2e-5


def test_shares_of_classes_are_mixed_as_they_are() -> None:
    shares = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    _, out = T.MixUp(2).pair(torch.zeros(2, 1), shares, draws([[0.1, 0.5, 0.0], [0.2, 0.5, 0.0]]))
    assert out.flatten().tolist() == pytest.approx([0.25, 0.75, 0.25, 0.75], abs=1e-4)


@pytest.mark.parametrize(
    ("data", "transform", "match"),
    [
        (torch.zeros(6, 1, 4, 4), T.MixUp(3), r"a batch has 1 parts.*Give|give such data"),
        ((torch.zeros(6, 4), torch.zeros(6), LABELS.repeat(2)), T.MixUp(3), "two tensors: give such data"),
        ((torch.zeros(6, 4), torch.zeros(6)), T.MixUp(3), r"torch.float32 targets of shape \(6,\).*class indices"),
        ((torch.zeros(6, 4), torch.zeros(6, 2)), T.MixUp(3), r"shares of the classes \(batch, 3\)"),
        ((torch.zeros(6, 4), torch.arange(6)), T.MixUp(5), "label 5, and num_classes=5 allows 0 to 4"),
        ((torch.zeros(6, 4), torch.arange(6) - 1), T.MixUp(5), "label -1"),
        ((torch.zeros(6, 4), LABELS.repeat(2)), T.CutMix(3), "shape of images"),
    ],
)
def test_data_that_cannot_be_mixed_are_refused(data: object, transform: T.Transform, match: str) -> None:
    with pytest.raises(DataError, match=match):
        next(iter(DataLoader(data, 6, transform=transform)))


def test_a_mixing_transform_called_on_inputs_alone_says_what_it_wants() -> None:
    with pytest.raises(DataError, match=r"Give \(inputs, targets\) as data"):
        T.MixUp(3)(torch.zeros(2, 3), draws([[0.1, 0.5, 0.0], [0.2, 0.5, 0.0]]))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_classes": 1}, "num_classes=1 is not a number of classes. It must be a whole number of at least 2"),
        ({"num_classes": 3, "alpha": 0}, "above 0"),
        ({"num_classes": 3, "p": 2}, "from 0 to 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        T.CutMix(**arguments)  # pyright: ignore[reportArgumentType]


def test_a_label_out_of_range_on_an_accelerator_makes_its_loss_nan() -> None:
    """No look at the numbers there, which would wait: on the device called "meta" there are none to look at."""
    targets = torch.zeros(2, dtype=torch.int64, device="meta")
    numbers: Tensor = uniforms(keys_of_samples(0, torch.arange(2)), 3)
    out, shares = T.MixUp(3).pair(
        torch.zeros(2, 4, device="meta"), targets, T.Draws(torch.zeros(2, device="meta"), numbers.to("meta"))
    )
    assert out.shape == (2, 4)
    assert shares.shape == (2, 3)
