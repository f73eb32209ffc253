"""Numbers are looked at before they can reach the weights: the loss of each micro-batch, and gradients.

```text
each micro-batch       the loss, before its backward pass
each update            the norm of the gradients, where one is measured anyway
some updates           every gradient: the first one after each log point; with policies that go on, all of them
```

On the CPU a loss is simply read: 0.2 microseconds (torch 2.13). On an accelerator reading waits, so `FlagGuard` has the device
raise a flag that makes this update and all that follow do nothing, and the flag is read at the next log point.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim import Optimizer

__all__ = ["NO_GUARD", "NUM_KEPT", "FlagGuard", "Guard", "NonFinite", "ReadGuard", "first_non_finite", "make_guard"]

NUM_KEPT = 512  # losses that are kept one by one
Place = Literal["loss", "gradient", "gradient norm", "elsewhere"]


class NonFinite(Exception):
    """A number that is not finite was found, and has not reached the weights.

    Args:
        place: where; "elsewhere" is another process.
        value: NaN or an infinity.
        parameter: the first one, in the optimizer's order, whose gradient is not finite.
        updates_ago: how many updates were queued since, where a device raised a flag that was read late; they did nothing.
    """

    def __init__(
        self, place: Place, value: float, *, parameter: Tensor | None = None, updates_ago: int | None = None
    ) -> None:
        super().__init__(f"{place}: {value}")
        self.place: Place = place
        self.value = value
        self.parameter = parameter
        self.updates_ago = updates_ago


class Guard:
    """Looks at numbers before they reach the weights. This one looks at nothing: with fp16 the loss scaler does its work: it skips what is not finite."""

    looks_at_gradients = False
    """whether `check_gradients` is to be called before the next update"""
    looks_when = ""
    """in words, before which updates that is; empty where nothing is looked at, losses included"""
    flag: Tensor | float = 0.0
    """more than 0 once something of this process's open window is bad: it travels with the gradients"""
    waits = ""
    """a sentence that says what waits for the device in every step, where something does"""
    is_on_device = False
    """whether the device does all the looking, so that it may be recorded: `look_at_loss` and `look_at_gradients`, then `note_loss`"""

    def __init__(self) -> None:
        self.on_flags: Callable[[int], None] = lambda num: None
        """called with the number of bad micro-batches in all processes, when an update is made without them"""

    def check_loss(self, loss: Tensor, items: Tensor | float) -> None:
        """Look at the mean over so many items, before its backward pass.

        Raises:
            NonFinite: it is known already that it is bad.
        """

    def look_at_loss(self, loss: Tensor, items: Tensor | float) -> Tensor:
        """Do the device's part of `check_loss`; return the loss, or 0 where it counts nothing."""
        del items
        return loss.detach()

    def note_loss(self, seen: Tensor) -> None:
        """Do the host's part of `check_loss`, with what `look_at_loss` returned."""

    def look_at_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Do the device's part of `check_gradients`."""

    def check_norm(self, norm: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Look at the norm of the window's gradients, before they are clipped."""

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Look at each gradient of the window."""

    def check_others(self, flags: Tensor, items: Tensor) -> None:
        """Look at the sum of all processes' flags, and at the number of items that their gradients are of."""

    def before_update(self) -> None:
        """The update is about to be made."""

    def read_flag(self) -> None:
        """The device is waited for anyway: say what it has found.

        Raises:
            NonFinite: the first such loss since the last time; without one it was a gradient.
        """

    def attach(self) -> None:
        """Training goes on."""

    def detach(self) -> None:
        """Training is over, or an evaluation lies in between."""


NO_GUARD = Guard()


class ReadGuard(Guard):
    """Reads each number at once: where the CPU computes, nothing waits for anything.

    Args:
        every_update: look at all gradients before every update; else only before the first one after a log point.
        goes_on: a window of several processes may be updated with what the others have, when one has a bad loss.
    Cost: 0.2 microseconds a micro-batch on the CPU; a look at every gradient reads and writes each once.
    """

    def __init__(self, *, every_update: bool = False, goes_on: bool = False) -> None:
        super().__init__()
        self.looks_at_gradients = True
        self.looks_when = "before each update" if every_update else "after a log point"
        self.flag = 0.0
        self.every_update = every_update
        self._goes_on = goes_on

    def check_loss(self, loss: Tensor, items: Tensor | float) -> None:
        """Refuse a loss that is not finite; the mean of no items is no loss, whatever it says."""
        value = loss.item()  # SYNC: on the CPU nothing waits; elsewhere the policy was asked for, and said so
        if not isfinite(value):
            counts = not isinstance(items, Tensor) or items.item()  # SYNC: the loss is bad, if it counts
            if not counts:
                return
            raise NonFinite("loss", value)

    def check_norm(self, norm: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Refuse a norm that is not finite, and name the first gradient that is not, if it is not only the sum that overflowed."""
        value = norm.item()  # SYNC: as in check_loss
        if not isfinite(value):
            raise NonFinite("gradient norm", value, parameter=first_non_finite(parameters))

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Refuse gradients that are not finite."""
        self.looks_at_gradients = self.every_update
        if any(flag.item() for flag in _flags([p.grad for p in parameters if p.grad is not None])):  # SYNC: as above
            parameter = first_non_finite(parameters)
            raise NonFinite("gradient", _bad_value(parameter), parameter=parameter)

    def check_others(self, flags: Tensor, items: Tensor) -> None:
        """Refuse the window when another process found something; where the policy goes on, only when nothing is left of it."""
        self.flag = 0.0
        num = int(flags.item())  # SYNC: as in check_loss
        if num and not (self._goes_on and items.item()):  # SYNC: as in check_loss
            raise NonFinite("elsewhere", float("nan"))
        if num:
            self.on_flags(num)


class FlagGuard(Guard):
    """Lets the device raise a flag that stays: this update and all after it change nothing, and no step waits.

    torch's fused optimizers take the flag from an attribute, which is how its `GradScaler` hands it over; Adam's count of steps
    stands still too. Momentum that is made in a flagged first update holds no numbers: the run ends there.

    Args:
        optimizer: fused; another one is given `waits`.
        device: of losses and gradients.
        waits: read the flag before each update, for an optimizer that knows no such attribute.
    Cost: a kernel a micro-batch, and one for a norm.
    Source: torch/amp/grad_scaler.py, `_maybe_opt_step` and `step`, torch 2.13.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, *, waits: bool) -> None:
        super().__init__()
        self.looks_at_gradients = True
        self.looks_when = "after a log point"
        self.is_on_device = not waits
        self._optimizer: Any = optimizer  # Any: attributes that only some of torch's optimizers know
        self._waits = waits
        self._flag = torch.zeros((), dtype=torch.float32, device=device)
        self.flag = self._flag
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._losses: list[Tensor] = []
        self._chunks: list[Tensor] = []
        self._updates: list[int] = []
        self._num_updates = 0

    def check_loss(self, loss: Tensor, items: Tensor | float) -> None:
        """Raise the flag where the loss is not finite, unless it is the mean of no items."""
        self.note_loss(self.look_at_loss(loss, items))

    def look_at_loss(self, loss: Tensor, items: Tensor | float) -> Tensor:
        """Raise the flag; return the loss without what counts nothing."""
        seen = loss.detach()
        if isinstance(items, Tensor):
            seen = torch.where(items > 0, seen, 0.0)
        self._look_at(seen.data.reshape(()))  # `.data`: what torch takes for a change in place must not reach the graph
        return seen.reshape(())

    def note_loss(self, seen: Tensor) -> None:
        """Keep the loss until the flag is read."""
        self._losses.append(seen)
        self._updates.append(self._num_updates)
        if len(self._losses) >= NUM_KEPT:
            self._chunks.append(torch.stack(self._losses))
            self._losses = []

    def check_norm(self, norm: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Raise the flag where the norm is not finite."""
        del parameters
        self._look_at(norm.data)

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raise the flag where a gradient is not finite."""
        self.looks_at_gradients = False
        self.look_at_gradients(parameters)

    def look_at_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raise the flag where a gradient is not finite."""
        _flags([p.grad for p in parameters if p.grad is not None], self._flag)

    def check_others(self, flags: Tensor, items: Tensor) -> None:
        """Raise the flag where another process has."""
        del items
        self._look_at(torch.where(flags > 0, torch.inf, 0.0).to(self._flag))

    def before_update(self) -> None:
        """Count the update; for an optimizer that cannot be flagged, read the flag."""
        if self._waits:
            self.read_flag()
        self._num_updates += 1

    def attach(self) -> None:
        """Hand the flag to the optimizer."""
        if not self._waits:
            self._optimizer.grad_scale, self._optimizer.found_inf = None, self._flag

    def detach(self) -> None:
        """Take it back: the optimizer is the user's own."""
        for name in ("grad_scale", "found_inf"):
            self._optimizer.__dict__.pop(name, None)

    def _look_at(self, number: Tensor) -> None:
        _raise_flag([number], self._flag, self._one)

    def read_flag(self) -> None:
        """Say what was found since the last time."""
        losses, updates, made = self._losses, self._updates, self._num_updates
        chunks = self._chunks
        self._losses, self._chunks, self._updates, self._num_updates = [], [], [], 0
        if not self._flag.item():  # SYNC: at log points; each update where the optimizer takes no flag
            return
        self._flag.zero_()
        chunks += [torch.stack(losses)] if losses else []
        values = [value for chunk in chunks for value in chunk.tolist()]  # SYNC: the run ends here
        for value, update in zip(values, updates, strict=True):
            if not isfinite(value):
                raise NonFinite("loss", value, updates_ago=made - update)
        raise NonFinite("gradient", float("nan"), updates_ago=made)


def make_guard(
    policy: str, optimizer: Optimizer, device: torch.device, *, is_scaled: bool, is_recorded: bool = False
) -> Guard:
    """Return the guard of an optimizer.

    Args:
        policy: "stop", or "skip" and "rollback", which go on and therefore must know at once.
        optimizer: whose updates it guards.
        device: of the parameters.
        is_scaled: fp16's scaler does the work.
        is_recorded: steps are to be recorded, so that no number may be read; an optimizer that is not fused cannot be.
    """
    if is_scaled:
        return Guard()
    name = type(optimizer).__name__
    is_fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
    guard: Guard
    if policy != "stop":
        guard = ReadGuard(every_update=True, goes_on=policy == "skip")
        waits = f'on_nonfinite="{policy}" reads every loss before its backward pass, and looks at the gradients before each update'
    elif device.type != "cuda" and not (
        is_recorded and is_fused and device.type == "cpu"
    ):  # elsewhere torch's check of many tensors at once is not known to be there
        guard = ReadGuard()
        waits = "every loss is read before its backward pass"
    else:
        guard = FlagGuard(optimizer, device, waits=not is_fused)
        waits = (
            "" if is_fused else f"{name} is not fused, so that each of its updates waits until it is known to be finite"
        )
    if waits and device.type != "cpu":
        guard.waits = f"NaN is kept away from the weights: on {device.type} {waits}."
    return guard


def first_non_finite(parameters: Iterable[nn.Parameter]) -> nn.Parameter | None:
    """Return the first parameter whose gradient is not finite; waits for the device, at the end of a run."""
    for parameter in parameters:
        if parameter.grad is not None and not torch.isfinite(_dense(parameter.grad)).all():  # SYNC: something is bad
            return parameter
    return None


def _flags(gradients: Sequence[Tensor], flag: Tensor | None = None) -> list[Tensor]:
    """Return flags that are above 0 where a gradient is not finite, one a device and dtype; or raise the one given.

    torch's own check of its scaler rather than norms: it is exact (a norm overflows), and on a CPU 15 times as fast as
    `torch._foreach_norm(..., inf)`: 8 microseconds for ten matrices of 64 x 64. It multiplies by 1 on the way.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        dense = _dense(gradient)
        if dense.is_complex():
            dense = torch.view_as_real(dense)
        groups.setdefault((dense.device, dense.dtype), []).append(dense)
    flags = []
    for (device, _), group in groups.items():
        own = torch.zeros((), dtype=torch.float32, device=device) if flag is None or flag.device != device else flag
        _raise_flag(group, own, torch.ones((), dtype=torch.float32, device=device))
        if flag is not None and own is not flag:
            flag.copy_(torch.maximum(flag, own.to(flag.device)))
        flags.append(own)
    return flags


def _raise_flag(tensors: list[Tensor], flag: Tensor, one: Tensor) -> None:
    """Set the flag to 1 where a tensor is not finite; what it holds is multiplied by 1."""
    amp: Any = torch  # what torch's own scaler is built on is not among its typed names
    amp._amp_foreach_non_finite_check_and_unscale_(tensors, flag, one)


def _dense(gradient: Tensor) -> Tensor:
    return gradient._values() if gradient.is_sparse else gradient


def _bad_value(parameter: nn.Parameter | None) -> float:
    """Return NaN if there is one in the gradient, else the infinity."""
    if parameter is None or parameter.grad is None:
        return float("nan")
    values = _dense(parameter.grad)
    values = values[~torch.isfinite(values)]
    worst = values.abs().max() if values.is_complex() else values.sum()
    return worst.item()  # SYNC: something is bad
