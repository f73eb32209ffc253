"""Convolutions, then linear layers: the network of the tutorials on digits and clothes."""

from __future__ import annotations

from collections.abc import Sequence  # the recipe check reads these annotations
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from velodrome.errors import ArgumentError

__all__ = ["CNN", "cnn"]

Channels = Annotated[Sequence[PositiveInt], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class CNN(nn.Module):
    """Convolution, ReLU and 2 x 2 max pooling, once for each entry of `channels`; then two linear layers.

    Shapes: (N, in_channels, image_size, image_size) to logits (N, num_classes).
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        hidden: int,
        dropout: float,
        batch_norm: bool,
        in_channels: int,
        image_size: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = image_size
        for inputs, outputs in zip([in_channels, *channels], channels, strict=False):
            # A bias would be taken off again by the mean of the batch norm behind it.
            layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            # ReLU after the pooling gives the same numbers as before it, on a quarter of the pixels.
            layers += [nn.MaxPool2d(2), nn.ReLU()]
            size //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels[-1] * size * size, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        # Channels last in memory: a training step takes half the time on a CPU (one thread, 16 + 32 to 32 + 64 channels), most
        # of it saved in the pooling. The weights decide: activations take their layout over.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (an overload that the stub lacks)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.features(x))


def cnn(
    channels: Channels = (32, 64),
    hidden: PositiveInt = 128,
    dropout: Share = 0.25,
    batch_norm: bool = False,
    in_channels: PositiveInt = 1,
    image_size: PositiveInt = 28,
    num_classes: PositiveInt = 10,
) -> nn.Module:
    """Build a small convolutional network for square pictures.

    Args:
        channels: of each 3 x 3 convolution; each is followed by a pooling that halves the picture.
        hidden: width of the linear layer between the convolutions and the logits.
        dropout: share of the numbers that is dropped before each of the two linear layers; 0 drops none.
        batch_norm: normalise after each convolution.
        in_channels: 1 for grey pictures, 3 for colours.
        image_size: height and width.
        num_classes: outputs.
    Raises:
        ArgumentError: a number is out of range, or there are more poolings than the picture can be halved.
    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
        1998, section II, with ReLU, max pooling and dropout in place of its squashing, averaging and weight sharing.
    """
    for name, value in {"hidden": hidden, "in_channels": in_channels, "num_classes": num_classes}.items():
        if value <= 0:
            raise ArgumentError(f"{name}={value} must be a positive number.")
    if not channels or min(channels) <= 0:
        raise ArgumentError(f"channels={list(channels)} must be one or more positive numbers, one a convolution.")
    if not 0 <= dropout < 1:
        raise ArgumentError(f"dropout={dropout} must be at least 0 and less than 1. Use 0.25, or 0 for none.")
    if image_size < 2 ** len(channels):
        raise ArgumentError(
            f"image_size={image_size} cannot be halved {len(channels)} times, once after each of the convolutions. "
            f"It must be at least {2 ** len(channels)}: use fewer channels, or larger pictures."
        )
    return CNN(
        channels=channels,
        hidden=hidden,
        dropout=dropout,
        batch_norm=batch_norm,
        in_channels=in_channels,
        image_size=image_size,
        num_classes=num_classes,
    )
