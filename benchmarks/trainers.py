"""The other trainers that ours is compared with: what they are installed as, and which of them are here.

They live in an environment of their own (`make bench-peers` makes it). One that is not installed is left out, and the record says so.
Importing this file imports none of them.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Read when they are imported.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class Installed:
    """How a trainer is installed."""

    package: str  # as package indexes name it
    modules: tuple[str, ...]  # all of them have to be there; the first is the trainer's own


TRAINERS = {
    "Ignite": Installed("pytorch-ignite", ("ignite",)),
    "Poutyne": Installed("poutyne", ("poutyne",)),
    "Accelerate": Installed("accelerate", ("accelerate",)),
    "skorch": Installed("skorch", ("skorch",)),
    "Lightning": Installed("lightning", ("lightning",)),
    "transformers Trainer": Installed("transformers", ("transformers", "accelerate")),
    "Keras": Installed("keras", ("keras",)),
}
PACKAGES = tuple(each.package for each in TRAINERS.values())


def trainer_of(arm: str) -> Installed:
    """Return the trainer of an arm, whose name may go on after a comma: "Lightning, barebones"."""
    return TRAINERS[arm.partition(",")[0]]


def installed(arms: Iterable[str], only: Sequence[str] = ()) -> list[str]:
    """Return the arms whose trainers can be imported here; of those in `only`, where it names any."""
    return [
        arm for arm in arms if (not only or arm in only) and all(map(importlib.util.find_spec, trainer_of(arm).modules))
    ]


def quiet_arguments(**more: Any) -> Any:
    """Return the `TrainingArguments` of transformers for a run on the CPU that writes no files, draws no bar and does not clip."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=os.devnull + "-unused",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        max_grad_norm=0.0,
        logging_steps=50,
        **more,
    )
