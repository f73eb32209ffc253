"""What every trial in a process needs: the recipe built, threads and random numbers put back, the device waited for."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from velodrome.advise.samples import first_samples
from velodrome.devices import resolve_device
from velodrome.recipes.build import build
from velodrome.recipes.loaders import evaluation_loader
from velodrome.recipes.read import load_recipe
from velodrome.seeding import random_state_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from velodrome.advise.tuning.setup import Setup
    from velodrome.recipes.build import Ready

__all__ = ["aside", "build_quietly", "digest_of", "validation_loader", "wait_for"]


@contextmanager
def aside(setup: Setup, *, threads: int | None = None) -> Iterator[None]:
    """Put threads and random numbers of the process back afterwards.

    Args:
        setup: decides the threads to begin with, where it says something about them.
        threads: to begin with instead: those that a run of this setup has taken before, beside its workers say.
    """
    before, train = torch.get_num_threads(), load_recipe(setup.recipe, setup.all_overrides).recipe.train
    with random_state_kept(resolve_device(train.device)):
        torch.set_num_threads(threads or train.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def build_quietly(setup: Setup) -> Ready:
    """Build what a setup describes."""
    return build(load_recipe(setup.recipe, setup.all_overrides), say=lambda line: None)


def validation_loader(ready: Ready, count: int) -> Any:
    """Return a loader over the first validation samples."""
    return evaluation_loader(replace(ready.data, val=first_samples(ready.data.val, count)), ready.recipe)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # SYNC: a clock is read
    elif device.type == "mps":
        torch.mps.synchronize()  # SYNC: a clock is read


def digest_of(model: nn.Module) -> str:
    """Return what two models have in common only if every bit of their state is the same."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            # SYNC: once a trial
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
