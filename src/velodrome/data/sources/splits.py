"""What every source gives: training and validation data, and a sentence on where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["Splits"]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training and validation data as (inputs, targets), first dimension the sample."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    origin: str
    """one sentence for people: which source, where, how many"""
    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: what is needed to prepare new rows in the same way"""
    files: tuple[Path, ...] = ()
    """where the data were read from"""
