"""The optimizers of a trainer, each with its accumulation window: usually one, two for a GAN."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from velodrome.errors import ArgumentError, WorldError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.optim import Optimizer

    from velodrome.step.updates import Updates

__all__ = ["Windows"]


class Windows:
    """Finds the window that a loss belongs to, and sees to it that none stays open.

    Args:
        by_name: the updates of each optimizer; the first is the one whose learning rate is recorded as "lr".
    """

    def __init__(self, by_name: Mapping[str, Updates]) -> None:
        self.by_name = dict(by_name)
        self._only = next(iter(self.by_name.values())) if len(self.by_name) == 1 else None
        if self._only is None:
            for name, updates in self.by_name.items():
                updates.prefix = f"{name}/"
        self._is_training = False
        self._modal: list[Any] = [each.optimizer for each in self.by_name.values() if _has_modes(each.optimizer)]

    def __len__(self) -> int:
        return len(self.by_name)

    def of(self, optimizer: Optimizer | str | None) -> Updates:
        """Return the updates of the optimizer given by name or as an object; of the only one when left out.

        Raises:
            ArgumentError: there are several and none was named, or it is not one of them.
        """
        if optimizer is None:
            if self._only is not None:
                return self._only
            names = ", ".join(f'"{name}"' for name in self.by_name)
            raise ArgumentError(
                f"This trainer has {len(self.by_name)} optimizers ({names}), and step() was not told which. Write step(loss, optimizer=...)."
            )
        for name, updates in self.by_name.items():
            if optimizer is updates.optimizer or (isinstance(optimizer, str) and optimizer == name):
                return updates
        if isinstance(optimizer, str):
            raise ArgumentError(f"step(optimizer={optimizer!r}) names no optimizer. {nearest(optimizer, self.by_name)}")
        raise ArgumentError(
            f"step(optimizer=...) was given a {type(optimizer).__name__} that is not this trainer's own. Give it to the Trainer."
        )

    def update(self, updates: Updates) -> None:
        """Make the update of a window."""
        if self._only is None and updates.world.size > 1:
            self._agree_on(updates)
        updates.update()

    def skip(self) -> Updates | None:
        """Count a micro-batch of which this process has no sample; return the window when that fills it.

        With several optimizers nobody here knows which losses the others have. The process then takes part at the end instead.
        """
        if self._only is None:
            return None
        self._only.skip()
        return self._only if self._only.is_full else None

    def turn_of_others(self) -> Updates | None:
        """Return the window that other processes update next, of which this one has nothing; None when it is known that nobody has one."""
        return self._only if self._only is not None else self._agree_on(None)

    def _agree_on(self, updates: Updates | None) -> Updates | None:
        """Return the optimizer that the processes update next, of several; None when none has a window.

        Cost: an exchange of names before each update, which is needed only here: a process without data cannot know the turn.
        """
        own = None if updates is None else next(name for name, each in self.by_name.items() if each is updates)
        world = next(iter(self.by_name.values())).world
        names = {name for name in world.gather(own) if name is not None}
        if len(names) > 1:
            raise WorldError(
                f"The processes do not update the same optimizer: {' and '.join(sorted(names))} at the same time. Each must call "
                f"step(optimizer=...) in the same order."
            )
        return self.by_name[names.pop()] if names else None

    def refuse_averaging(self) -> None:
        """Refuse an average of weights that an optimizer averages itself.

        Raises:
            ArgumentError: one has modes for training and evaluation, as schedule-free ones do; or there is no optimizer.
        """
        if not self.by_name:
            raise ArgumentError(
                "An average of the weights was asked of a trainer with optimizer=None, which never changes them. Give it an optimizer."
            )
        if self._modal:
            raise ArgumentError(
                f"{type(self._modal[0]).__name__} shows other weights in evaluation than in training: it averages them itself. Leave ema out, "
                f"or take another optimizer."
            )

    @property
    def have_modes(self) -> bool:
        """Whether an optimizer shows other weights in evaluation than in training."""
        return bool(self._modal)

    @property
    def open_ones(self) -> list[Updates]:
        """Those with micro-batches that no update was made of yet."""
        return [updates for updates in self.by_name.values() if updates.micro_batches]

    @property
    def skipped(self) -> int:
        """Updates that fp16 skipped; micro-batches and updates that were skipped for a number that is not finite."""
        return sum(updates.skipped for updates in self.by_name.values())

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate with which each optimizer made its last update, of its first group: "lr", and "lr/<name>" where there are several."""
        rates = {name: updates.learning_rate for name, updates in self.by_name.items()}
        first = next(iter(rates.values()), float("nan"))
        return {"lr": first, **({f"lr/{name}": rate for name, rate in rates.items()} if len(rates) > 1 else {})}

    def settle_blocking(self) -> None:
        """Bring schedules and counts up to date; waits for the device with fp16 only."""
        for updates in self.by_name.values():
            updates.settle_blocking()

    def discard(self) -> None:
        """Forget the gradients of all open windows."""
        for updates in self.by_name.values():
            updates.free_gradients()

    def calls(self) -> dict[str, list[tuple[str, Any]]]:
        """Return what is done around training and evaluation for optimizers with modes of their own: for `Trainer.explain`."""
        if not self._modal:
            return {}
        return {
            "training": [("tell the optimizer that it trains", optimizer.train) for optimizer in self._modal],
            "evaluation": [("show the weights meant for evaluation", optimizer.eval) for optimizer in self._modal],
        }

    @contextmanager
    def training(self) -> Iterator[None]:
        """Tell optimizers that have modes of their own (schedule-free ones) that training goes on, and that it has ended.

        Source: A. Defazio et al., "The Road Less Scheduled", 2024; https://github.com/facebookresearch/schedule_free
        """
        for updates in self.by_name.values():
            updates.prepare()
            updates.guard.attach()
        for optimizer in self._modal:
            optimizer.train()
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False
            for optimizer in self._modal:
                optimizer.eval()
            for updates in self.by_name.values():
                updates.guard.detach()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show the weights that such optimizers mean for evaluation; afterwards those of training are back, bit for bit."""
        if not self._modal or not self._is_training:
            yield
            return
        with torch.no_grad():
            held = [p for optimizer in self._modal for group in optimizer.param_groups for p in group["params"]]
            kept = [parameter.clone() for parameter in held]
            for optimizer in self._modal:
                optimizer.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for optimizer in self._modal:
                    optimizer.train()  # moves the weights back, up to rounding
                for parameter, values in zip(held, kept, strict=True):
                    parameter.copy_(values)


def _has_modes(optimizer: Any) -> bool:
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
