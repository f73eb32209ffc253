"""Transforms that mix two samples of a batch, and their labels: mixup and cutmix."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from velodrome.data.transforms.arguments import check_number, check_probability, check_whole
from velodrome.data.transforms.base import Transform, check_images, per_sample
from velodrome.data.transforms.tables import Table, quantiles_of_beta
from velodrome.data.transforms.values import ToFloat
from velodrome.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from velodrome.data.transforms.base import Draws

__all__ = ["CutMix", "MixUp"]

_TO_FLOAT = ToFloat()


class _Mixing(Transform):
    """Mixes each sample with a partner of its batch, and their labels in the same proportion.

    The samples of a batch are put into an order by a number that each draws, and each one's partner is the next: everybody is a partner
    once. So partners depend on which samples are in the batch (the batch size, and how many processes share it), and on nothing else.
    Targets become shares of classes, (batch, classes) floats that sum to 1: class indices, or such shares, are taken.
    """

    changes_targets = True

    def __init__(self, num_classes: int, *, alpha: float = 1.0, p: float = 1.0) -> None:
        self.num_classes = check_whole("num_classes", num_classes, "a number of classes", least=2)
        self.alpha = check_number(
            "alpha", alpha, "a parameter of Beta(alpha, alpha)", "It must be a number above 0.", above=0
        )
        self.p = check_probability("p", p)
        self._shares = Table(quantiles_of_beta, self.alpha)

    def __call__(self, batch: Tensor, draws: Draws) -> Tensor:
        """Refuse a batch without targets.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{type(self).__name__} mixes labels as well, and the batch has none that it knows: it is not a pair. Give (inputs, targets) as data."
        )

    def pair(self, inputs: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return mixed inputs, and targets as shares of the classes, (batch, num_classes).

        Raises:
            DataError: targets that are neither class indices nor shares of so many classes.
        """
        targets = _as_shares(targets, self)
        partners = _partners(draws.numbers[:, 0], draws.batch_size)
        share = self._shares.at(draws.numbers[:, 1]).masked_fill_(draws.numbers[:, 2] >= self.p, 1.0)
        inputs, share = self._mix(inputs, inputs.index_select(0, partners), share, draws)
        share = share.to(targets.dtype).unsqueeze(1)
        return inputs, targets.index_select(0, partners) * (1 - share) + targets * share

    @abstractmethod
    def _mix(self, inputs: Tensor, others: Tensor, share: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the mixed inputs, and which share of each is its own in the end, shape (batch,)."""


class MixUp(_Mixing):
    """Take the weighted mean of each sample and a partner of its batch, and of their labels; uint8 becomes floats 0 to 1 before.

    The weight is drawn for each sample from Beta(alpha, alpha); for the same weight and partner the result is torchvision's. Train with
    `loss="cross_entropy"`, which takes shares of classes.

    Args:
        num_classes: how many there are.
        alpha: small ones leave most samples nearly as they are, 1 draws every weight equally often.
        p: the probability that a sample is mixed.
    Shapes: inputs (batch, ...); targets (batch,) of class indices or (batch, num_classes) of shares -> (batch, num_classes), float32.
    Raises:
        ArgumentError: numbers that cannot be.
        DataError: batches that are not (inputs, targets); labels out of range.
    Source: H. Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018; torchvision.transforms.v2.MixUp, which draws once a batch.
    """

    num_draws = 3

    def _mix(self, inputs: Tensor, others: Tensor, share: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        inputs, others = _TO_FLOAT(inputs, draws), _TO_FLOAT(others, draws)
        weight = per_sample(share.to(inputs.dtype), inputs)
        return others * (1 - weight) + inputs * weight, share


class CutMix(_Mixing):
    """Put a rectangle of a partner of its batch into each image, and mix their labels by area; any dtype.

    The area is drawn for each image as 1 minus a number from Beta(alpha, alpha), its centre anywhere; what lies outside of the image is cut
    off, and counts for nothing in the labels. For the same numbers and partner the result is torchvision's.

    Args:
        num_classes, alpha, p: see `MixUp`.
    Shapes, Raises: see `MixUp`; inputs are images (batch, ..., height, width).
    Source: S. Yun et al., CutMix, ICCV 2019; torchvision.transforms.v2.CutMix, which draws once a batch.
    """

    num_draws = 5

    def _mix(self, inputs: Tensor, others: Tensor, share: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        check_images(inputs, self)
        height, width = inputs.shape[-2:]
        half = (1 - share).sqrt() * 0.5
        rows, columns = (
            _inside(size, (draws.numbers[:, column] * size).floor(), (half * size).floor())
            for size, column in ((height, 3), (width, 4))
        )
        mask = rows[:, :, None] & columns[:, None, :]
        area = rows.sum(1) * columns.sum(1)
        mixed = torch.where(mask.view(len(inputs), *(1,) * (inputs.ndim - 3), height, width), others, inputs)
        return mixed, 1 - area.double() / (height * width)


def _inside(size: int, centre: Tensor, half: Tensor) -> Tensor:
    """Return which of so many places lie within `half` of the centre, (batch, size): the centre itself and `half` - 1 after it included."""
    places = torch.arange(size, device=centre.device)
    return (places >= (centre - half).unsqueeze(1)) & (places < (centre + half).unsqueeze(1))


def _partners(numbers: Tensor, batch_size: int | None) -> Tensor:
    """Return for each sample which one it is mixed with, int64: the next in its batch by the numbers, and the first after the last."""
    count = len(numbers)
    size = count if batch_size is None else batch_size
    places = torch.arange(count, device=numbers.device)
    batches = places // max(1, size)
    # Below 1, so that adding the batch's number keeps batches together; float64 holds both exactly.
    order = (numbers.double() + batches).argsort(stable=True)
    after = places + 1
    is_last = (after % max(1, size) == 0) | (after == count)
    following = torch.where(is_last, batches * size, after)
    partners = torch.empty_like(order)
    partners[order] = order[following]
    return partners


def _as_shares(targets: Tensor, transform: _Mixing) -> Tensor:
    """Return each sample's share of every class.

    Raises:
        DataError: they are neither class indices nor such shares; a label out of range, on the CPU. On an accelerator, where looking
            would wait, that sample's shares become NaN, and the loss with them, which the guard against NaN sees.
    """
    count, name = transform.num_classes, type(transform).__name__
    if targets.is_floating_point() and targets.ndim == 2 and targets.shape[1] == count:
        return targets
    if targets.is_floating_point() or targets.ndim != 1 or targets.dtype == torch.bool:
        raise DataError(
            f"{name} mixes labels, and was given {targets.dtype} targets of shape {tuple(targets.shape)}. It wants class indices (batch,), or "
            f"shares of the classes (batch, {count}), as num_classes={count} says."
        )
    shares = (targets.unsqueeze(1) == torch.arange(count, device=targets.device)).to(torch.float32)
    is_out = (targets < 0) | (targets >= count)
    if targets.device.type != "cpu":
        return shares.masked_fill_(is_out.unsqueeze(1), float("nan"))
    if is_out.any():  # SYNC: on the CPU
        label = int(targets[is_out][0])
        raise DataError(
            f"{name} was given the label {label}, and num_classes={count} allows 0 to {count - 1}. Give it the number of classes."
        )
    return shares
