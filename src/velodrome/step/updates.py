"""From losses to updates: the accumulation window of one optimizer.

```text
for every micro-batch:
    (loss * items) backward         items: what the loss is a mean over
at the window's end:
    sum the gradients over processes, with the number of items beside them
    unscale                         fp16 only
    divide by the items of all micro-batches of all processes
    clip
    update, free the gradients
    advance the schedule            unless fp16 skipped the update
```

Gradients are summed and divided once: micro-batches of unequal size, a short last window and a changing number of tokens
then give the gradient of one big batch without a special case.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from velodrome.errors import NumericsError
from velodrome.step.bare import BareBackward, BareStep
from velodrome.step.gradient_world import ONE_PROCESS, GradientWorld
from velodrome.step.guard import NO_GUARD, Guard
from velodrome.step.schedules import NO_SCHEDULE, Schedule
from velodrome.step.whole_steps import NO_WHOLE_STEPS, WholeSteps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from velodrome.step.clipping import Clipping
    from velodrome.step.precision import Precision

__all__ = ["Updates"]


class Updates:
    """Makes the updates of one optimizer.

    Args:
        optimizer: over parameters that are on their device.
        accumulate: micro-batches an update.
        clipping: of the gradients before the update.
        precision: of the forward passes whose losses come in.
        scaler: of the losses; disabled where the precision needs none.
        schedule: of the learning rates.
        is_only: no other optimizer shares the model; else gradients are computed for this one's parameters only, so that
            the generator's loss leaves nothing in the window of the discriminator.
        world: the processes that train together.
        guard: looks at losses and gradients before they reach the weights.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        clipping: Clipping,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        schedule: Schedule = NO_SCHEDULE,
        accumulate: int = 1,
        is_only: bool = True,
        world: GradientWorld = ONE_PROCESS,
        guard: Guard = NO_GUARD,
    ) -> None:
        self.optimizer = optimizer
        self.guard = guard
        self.accumulate = accumulate
        self.scaler = scaler
        self.world = world
        self.schedule = schedule
        self.on_update: list[Callable[[], None]] = []
        """called after every update that was really made"""
        self.on_first_gradients: Callable[[list[nn.Parameter]], None] | None = None
        """called once, before the next update, with the parameters that have no gradient"""
        self.prefix = ""
        """what stands before the names of its values: nothing, or "<name>/" where there are several"""
        self.skipped = 0
        """updates that fp16 skipped, as far as they are settled, or that a bad number kept from being made"""
        self.norms: dict[str, Tensor] = {}
        """gradient norms of the last update, before clipping; on the device"""
        self.micro_batches = 0
        """of the open window"""
        self.whole_steps: WholeSteps = NO_WHOLE_STEPS
        """makes whole steps, where an engine has recorded them; taken up by `prepare`, and in each step"""
        self._backward = BareBackward()
        self._step: Callable[[], None] = BareStep(optimizer)
        self._clipping = clipping
        self._precision = precision
        self._is_scaled = scaler.is_enabled()
        self._is_only = is_only
        self._has_plain_zero_grad = type(optimizer).zero_grad is Optimizer.zero_grad
        self._base = 1.0
        self._token_base: float | None = None
        self._items: Tensor | float = 0.0
        self._scale = scaler.get_scale() if self._is_scaled else 1.0
        self._is_settled = True
        self._is_plain = False
        self._rate: Tensor | float | None = None

    @property
    def is_full(self) -> bool:
        """Whether the window has all its micro-batches."""
        return self.micro_batches >= self.accumulate

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters of the optimizer."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    @property
    def learning_rate(self) -> float:
        """What the last update was made with, of the first group; what the next one will be made with before the first."""
        rate = self.optimizer.param_groups[0].get("lr", math.nan) if self._rate is None else self._rate
        return float(rate)  # SYNC: where lr is a tensor, at log points

    @property
    def base(self) -> float:
        """The items that a loss of weight 1 has, in the open window."""
        return self._base

    def prepare(self) -> None:
        """Look what is switched on, before a phase of training: where nothing is, a step costs what the plain loop's costs."""
        self._step = self.whole_steps.step_of(self.optimizer)
        self._is_plain = (
            self.accumulate == 1
            and self.world.size == 1
            and self._is_only
            and self._precision.is_plain
            and not self._is_scaled
            and not self._clipping.is_on
            and not self.on_update
            and self.schedule is NO_SCHEDULE
        )

    # -- for a checkpoint --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counts, scaler and schedule, as tensors and plain values; the optimizer's own state is not in it.

        An open window is: its gradients stay where they are, on the parameters, and what they are to be divided by is here.
        """
        return {
            "skipped": self.skipped,
            "rate": self._rate,
            "scaler": self.scaler.state_dict(),
            "scale": self._scale,
            "token_base": self._token_base,
            "schedule": self.schedule.state_dict(),
            "micro_batches": self.micro_batches,
            "base": self._base,
            "items": self._items,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; the optimizer's own state was loaded before.

        Raises:
            CheckpointError: the schedule is of another kind.
        """
        self.skipped, self._rate = state["skipped"], state["rate"]
        if self._is_scaled and state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))
        self._scale, self._token_base = state["scale"], state["token_base"]
        self.schedule.load_state_dict(state["schedule"])
        items = state["items"]
        self.micro_batches, self._base = state["micro_batches"], state["base"]
        self._items = items.to(self.parameters[0].device) if isinstance(items, Tensor) else items
        self._is_settled = True

    # -- a micro-batch ----------------------------------------------------------------------------------------------

    @property
    def tally(self) -> tuple[int, float, Tensor | float, float | None]:
        """What `backward` counts besides the gradients; set again where a backward pass that failed is repeated."""
        return self.micro_batches, self._base, self._items, self._token_base

    @tally.setter
    def tally(self, before: tuple[int, float, Tensor | float, float | None]) -> None:
        self.micro_batches, self._base, self._items, self._token_base = before

    def backward(self, loss: Tensor, items: Tensor | float) -> None:
        """Add the gradient of a loss, the mean over so many items, to the window.

        Raises:
            NonFinite: the loss; the window is as it was.
        """
        if self.whole_steps is not NO_WHOLE_STEPS and self.whole_steps.make_step(loss):
            return
        if items.__class__ is Tensor or items:  # the mean of no items is NaN, and counts nothing
            self.guard.check_loss(loss, items)
        if self._is_plain:
            self.micro_batches = 1
            if items.__class__ is Tensor or items:
                self._backward(loss)
            return
        self.micro_batches += 1
        with self._precision.outside():
            loss = self._precision.to_float32(loss)
            if self.accumulate > 1 or self.world.size > 1:
                weighted = self._weigh(loss, items)
                if weighted is None:
                    return
                loss = weighted
            elif not isinstance(items, Tensor) and not items:
                return
            # Else: a window of one micro-batch, whose mean has the right gradient as it is.
            if self._is_scaled:
                loss = self.scaler.scale(loss)
            if self._is_only:
                self._backward(loss)
            else:
                torch.autograd.backward(loss, inputs=self.parameters)

    def _weigh(self, loss: Tensor, items: Tensor | float) -> Tensor | None:
        """Count the items, and return the loss with their weight; None when they are none.

        Weights are relative to a base near the usual number of items: near 1, where fp16 has its digits.
        """
        if isinstance(items, Tensor):
            items = items.detach().to(loss.device, torch.promote_types(loss.dtype, torch.float32))
            if self._is_scaled and self._token_base is None:
                first = max(1.0, items.item())  # SYNC: once a run
                self._token_base = 2.0 ** round(math.log2(first))  # a power of two changes no digit of any gradient
            if self.micro_batches == 1:
                self._base, self._items = self._token_base or 1.0, 0.0
            self._items = self._items + items.double() if loss.device.type != "mps" else self._items + items
            # The mean of no items is often NaN, and counts nothing. Its gradient, too, where that is finite: torch's own losses
            # give zeros, a quotient of the user's with 0 below gives NaN, which no weight makes undone.
            return torch.where(items > 0, loss * (items / self._base), 0.0)
        if self.micro_batches == 1:
            self._base, self._items = float(items) or 1.0, 0.0
        self._items = self._items + items
        if not items:
            return None
        return loss if items == self._base else loss * (items / self._base)

    # -- the window's end -------------------------------------------------------------------------------------------

    def skip(self) -> None:
        """Count a micro-batch of which this process has no sample, while others have."""
        self.micro_batches += 1
        if self.micro_batches == 1:
            self._base, self._items = 1.0, 0.0

    def update(self) -> None:
        """Update the parameters with the gradients of the window, and free them.

        Raises:
            NonFinite: a gradient; nothing was changed, and the gradients are still there.
        """
        if self.whole_steps is not NO_WHOLE_STEPS and self.whole_steps.count_update():
            return
        if self._is_plain:
            if self.on_first_gradients is not None:
                self._show_first_gradients()
            if self.guard.looks_at_gradients:
                self.guard.check_gradients(self.parameters)
            self.guard.before_update()
            self._step()
            self.free_gradients()
            return
        self.settle_blocking()  # the learning rate of this update may depend on whether the last one was made
        self._apply(self._sum_over_processes()[0])

    def take_part(self) -> bool:
        """Make an update that belongs to other processes, with nothing of one's own, when there is one.

        A process whose data are used up calls this until nobody has any: its weights stay those of the others.

        Returns:
            Whether a process had a window to update with; when none had, nothing was changed.
        """
        self.settle_blocking()
        self.free_gradients()
        self._base, self._items = 1.0, 0.0
        divisor, num_active = self._sum_over_processes(is_active=False)
        if not num_active.item():  # SYNC: a process without data has nothing to queue
            return False
        self._apply(divisor)
        return True

    def _apply(self, divisor: Tensor | float) -> None:
        if self.schedule is not NO_SCHEDULE:
            rate = self.optimizer.param_groups[0].get("lr", math.nan)
            self._rate = rate.clone() if isinstance(rate, Tensor) else rate
        if self.on_first_gradients is not None:
            self._show_first_gradients()
        parameters = self.parameters
        is_empty = all(parameter.grad is None for parameter in parameters)
        with self._precision.outside():
            if is_empty:  # no items in any micro-batch of any process: there is nothing to scale, divide or clip
                self.norms = {}
                self._finish_update()
                return
            if self._is_scaled:
                self.scaler.unscale_(self.optimizer)
            if not isinstance(divisor, float) or divisor != 1.0:
                _divide(parameters, divisor)
            if self._clipping.is_on:
                self.norms = self._clipping.apply(parameters, self.guard.check_norm)
            elif self.guard.looks_at_gradients:
                self.guard.check_gradients(parameters)
            self.guard.before_update()
            if self._is_scaled:
                self.scaler.step(
                    self.optimizer
                )  # SYNC: fp16, where torch's optimizer is not fused: was there an overflow?
                self.scaler.update()
            else:
                self._step()
        self._finish_update()

    def _finish_update(self) -> None:
        self.free_gradients()
        self._precision.forget_casts()
        self._is_settled = False
        # Weight averaging wants the weights and statistics of this very update; the schedule has time until the next one.
        if not self._is_scaled or self.on_update:
            self.settle_blocking()

    def calls(self) -> dict[str, list[tuple[str, Any]]]:
        """Return what `backward` and `update` call, in order, in words and with the function: for `Trainer.explain`."""
        shares = self.accumulate > 1 or self.world.size > 1
        others = f"sum gradients and items over {self.world.size} processes"
        backward: list[tuple[str, Any]] = [
            *([("weigh the loss with its items", self._weigh)] if shares else []),
            *([("scale the loss (fp16)", self.scaler.scale)] if self._is_scaled else []),
            ("backward: add to the gradients", self._backward.function if self._is_only else torch.autograd.backward),
        ]
        update: list[tuple[str, Any]] = [
            *([(others, self.world.sum_gradients)] if self.world.size > 1 else []),
            *([("unscale (fp16)", self.scaler.unscale_)] if self._is_scaled else []),
            *([("divide by the items of the window", _divide)] if shares else []),
            *self._clipping.calls(),
            *([("skip the update if a gradient overflowed", self.scaler.step)] if self._is_scaled else []),
            (f"update the parameters: {type(self.optimizer).__name__}", type(self.optimizer).step),
            *([("adapt the scale", self.scaler.update)] if self._is_scaled else []),
            ("free the gradients", self.free_gradients),
        ]
        if self.schedule is not NO_SCHEDULE:
            late = ", once it is known whether fp16 skipped it" if self._is_scaled else ""
            what = f"tell the schedule of the update{late}: {self.schedule.describe()}"
            update.append((what, self.schedule.after_update))
        guard = self.guard
        if guard.looks_when:
            backward.insert(0, ("look at the loss: is it finite?", guard.check_loss))
        if guard.looks_when and not self._clipping.is_on:
            place = next(index for index, (_, call) in enumerate(update) if call == type(self.optimizer).step)
            update.insert(place, (f"{guard.looks_when}, look at each gradient: is it finite?", guard.check_gradients))
        return {"backward": backward, "update": update}

    def settle_blocking(self) -> None:
        """Advance what counts updates, now that it is known whether the last one was made.

        fp16 decides that on the device. It is read as late as possible: just before the next update, whose forward and
        backward passes are queued by then, so that the device does not run dry. (With an optimizer that is not fused torch's
        scaler waits by itself, in every update.)

        Raises:
            NumericsError: the scale fell so far that overflow cannot be the reason.
        """
        if self._is_settled:
            return
        self._is_settled = True
        if self._is_scaled:
            scale = self.scaler.get_scale()  # SYNC: fp16 only: was the update before this one made?
            was_skipped, self._scale = scale < self._scale, scale
            if was_skipped:
                self.skipped += 1
                if scale < _LEAST_SCALE:
                    raise NumericsError(
                        f"fp16 skipped {self.skipped} updates, and the loss scale fell to {scale:g}: not the range of fp16 is the "
                        f"reason, but a loss or gradients that are not finite. Look at the data and at log, sqrt and division in "
                        f'the model, or try precision="bf16" or "fp32".'
                    )
                return
        self.schedule.after_update()
        for call in self.on_update:
            call()

    def _show_first_gradients(self) -> None:
        show, parameters = self.on_first_gradients, self.parameters
        unused = [parameter for parameter in parameters if parameter.grad is None]
        if show is not None and len(unused) < len(parameters):  # else a window without any item: the next one tells
            self.on_first_gradients = None
            show(unused)

    def free_gradients(self) -> None:
        """Set every gradient to None, as `zero_grad()` does, and begin a new window.

        Rather than calling it: torch wraps `zero_grad` in a profiler range and a compiler guard, 20 microseconds a step of a
        small model, several times what the work takes. An optimizer with a `zero_grad` of its own is asked to do it.
        """
        self.micro_batches = 0
        if not self._has_plain_zero_grad:
            self.optimizer.zero_grad()
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _sum_over_processes(self, *, is_active: bool = True) -> tuple[Tensor | float, Tensor]:
        """Sum gradients and items over all processes; return what the gradients are to be divided by, and how many are active.

        Whether a process is active, with a window of its own, travels with the gradients as the items do. Active ones never
        read the number.
        """
        items = self._items
        if self.world.size > 1:
            parameters = self.parameters
            if self._base != 1.0:
                _divide(parameters, 1.0 / self._base)
            extras = torch.zeros(3, dtype=torch.float64, device=parameters[0].device)
            extras[0] = items
            extras[1] = float(is_active)
            extras[2] = self.guard.flag
            if self._is_scaled:
                self.scaler.scale(extras)  # makes its scale, where this process had no loss yet
            items, num_active, flags = self.world.sum_gradients(parameters, extras).unbind()
            self.guard.check_others(flags, items)
            return torch.where(items > 0, items, 1.0), num_active
        if self.accumulate == 1:
            return 1.0, _ONE
        if isinstance(items, Tensor):
            return torch.where(items > 0, items / self._base, 1.0), _ONE
        return items / self._base if items else 1.0, _ONE

    # -- recorded ----------------------------------------------------------------------------------------------------

    def run_on_device(self, loss: Tensor, items: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the update of a window of one micro-batch with what the device alone can do, so that it may be recorded.

        `count_update` does the host's part, once for each time that this is done.

        Returns:
            The loss for the guard to note, and the norms before clipping.
        """
        with self._precision.outside():
            loss = self._precision.to_float32(loss)
            seen = self.guard.look_at_loss(loss, items)
            self._backward(loss)
            parameters, norms = self.parameters, {}
            if self._clipping.is_on:
                norms = self._clipping.apply(parameters, self.guard.check_norm)
            else:
                self.guard.look_at_gradients(parameters)
            self._step()
        for parameter in parameters:
            parameter.grad = None
        return seen, norms

    def count_update(self, norms: dict[str, Tensor]) -> None:
        """Take note of an update that `run_on_device` has made, or a recording of it: averages, schedule and records go on."""
        if self.schedule is not NO_SCHEDULE:
            rate = self.optimizer.param_groups[0].get("lr", math.nan)
            self._rate = rate.clone() if isinstance(rate, Tensor) else rate
        self.norms = norms
        self.guard.before_update()
        self.micro_batches = 0
        self._is_settled = False
        self.settle_blocking()


_ONE = torch.ones(())
_LEAST_SCALE = 2.0**-16
"""32 halvings below where torch's scaler begins"""


def _divide(parameters: Sequence[nn.Parameter], divisor: Tensor | float) -> None:
    """Divide all gradients in place."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            grad.div_(divisor)
        else:
            groups.setdefault((grad.device, grad.dtype), []).append(grad)
    for (device, dtype), grads in groups.items():
        # Any: what torch's own optimizers are built on is not among its typed names.
        foreach: Any = torch
        foreach._foreach_div_(grads, divisor.to(device, dtype) if isinstance(divisor, Tensor) else divisor)
