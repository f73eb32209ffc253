"""Out of memory: the batch goes through the model in parts, and every number stays that of the whole batch.

```text
forward(batch)
    try it whole, or in parts of the size that worked last
    out of memory: let go of everything, halve the parts, put random state and buffers back, try again
    a part in training: forward, (loss * items) backward
    the outcome: loss = sum(loss * items) / sum(items), outputs one after the other,
                 gradients = sum of the parts' / sum(items), handed out when the loss is backpropagated
backward(loss of a batch that went through whole)
    out of memory: the same, from the batch that `forward` was given
```

The parts' gradients wait in the graph of the loss. To the rest of the trainer it is a loss like any other: it may be weighed in a
window, scaled for fp16, given to one of several optimizers, or added to a penalty.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  (the class of all BatchNorms)
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from velodrome.errors import ArgumentError
from velodrome.step.arguments import check_items
from velodrome.step.checks import check_loss_value
from velodrome.step.cutting import CannotCut, count_samples, cut, even_sizes, join
from velodrome.step.eager import EagerEngine, Outcome
from velodrome.step.memory import describe_shapes, is_out_of_memory, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from velodrome.step.first_batch import FirstBatch
    from velodrome.step.precision import Precision
    from velodrome.step.updates import Updates

__all__ = ["SplittingEngine", "check_can_split"]

T = TypeVar("T")
_TRAIN, _EVALUATION = "train", "evaluation"


class SplittingEngine(EagerEngine):
    """Runs batches through another engine, whole while they fit and in parts afterwards.

    Args:
        engine: that runs a batch, or a part of one.
        windows: of the optimizers, whose backward passes are watched.
        precision: in which gradients are computed.
        device: the model's.
        say: shows a line that must be seen.
    Cost: in training a copy of the model's buffers and the state of the generators a batch, some ten microseconds; within an
        accumulation window a second set of gradients. Outputs of a batch are kept whole.
    """

    def __init__(
        self,
        engine: EagerEngine,
        *,
        windows: Mapping[str, Updates],
        precision: Precision,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(engine.model, loss=engine.loss, step_fn=engine.step_fn)
        self._engine = engine
        self._windows = windows
        self._precision = precision
        self._device = device
        self._say = say
        self._watched: _Watched | None = None
        for updates in windows.values():
            updates.backward = partial(self._backward, updates, updates.backward)

    # -- what a trainer calls ---------------------------------------------------------------------------------------

    def forward(self, batch: Any) -> Outcome:
        """Return output, target and loss of a batch, in parts where it does not fit."""
        return self._run(self._engine.forward, batch)

    def forward_first(self, first_batch: FirstBatch, batch: Any, role: str) -> Outcome:
        """Do the same for the first batch of a source: each part of it is checked."""
        first_batch.shapes = describe_shapes(batch)
        return self._run(partial(first_batch.forward, self._engine, role=role), batch)

    def predict(self, batch: Any) -> Any:
        """Return the model's output for a batch, without its target."""

        def attempt(sizes: list[int] | None) -> Any:
            if sizes is None:
                return self._engine.predict(batch)
            return join([self._engine.predict(part) for part in cut(batch, sizes)], sizes)

        return self._halve(_EVALUATION, batch, attempt)

    def calls(self) -> list[tuple[str, Any]]:
        """Return what `forward` calls: for `Trainer.explain`."""
        return [("where memory runs out: run the batch in halves", self._halve), *self._engine.calls()]

    def expect_targets(self, targets: Any) -> None:
        """Tell the engine inside."""
        self._engine.expect_targets(targets)

    # -- forward ----------------------------------------------------------------------------------------------------

    def _run(self, forward: Callable[[Any], Outcome], batch: Any, *, largest: int | None = None) -> Outcome:
        self._watched, self.why_not = None, ""
        trains = torch.is_grad_enabled()
        before = _Before(self.model, self._device) if trains or self.model.training else None

        def attempt(sizes: list[int] | None) -> Outcome:
            if sizes is None:
                return forward(batch)
            return self._run_parts(forward, cut(batch, sizes), sizes, trains=trains)

        outcome = self._halve(_TRAIN if trains else _EVALUATION, batch, attempt, before=before, largest=largest)
        if trains and before is not None and not isinstance(outcome, _JoinedOutcome):
            if isinstance(outcome.loss, Tensor) and outcome.loss._is_view():  # whose graph cannot be dropped in place
                outcome.loss = outcome.loss.clone()
            self._watched = _Watched(forward, batch, outcome, before)
        return outcome

    def _halve(
        self,
        kind: str,
        batch: Any,
        attempt: Callable[[list[int] | None], T],
        *,
        before: _Before | None = None,
        largest: int | None = None,
    ) -> T:
        """Return what an attempt gave with the batch whole, or in the largest parts that fit: of half the size, a quarter, ..."""
        known = self.part_sizes.get(kind)
        largest = known if largest is None else largest
        while True:
            sizes = _sizes_of(batch, largest)
            try:
                result = attempt(sizes)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self._smaller(batch, sizes, error)
                if smaller is None:
                    raise
                release(error, self._device)
            largest = smaller
            self._precision.forget_casts()
            if before is not None:
                before.restore()
        if largest is not None and largest != known and sizes is not None:
            self.part_sizes[kind] = largest
            self._say(self._describe(kind, sizes))
        return result

    def _smaller(self, batch: Any, sizes: list[int] | None, error: BaseException) -> int | None:
        """Return how many samples to try next; None when there is nothing to halve, and why."""
        try:
            if isinstance(error, CannotCut):
                raise error
            tried = count_samples(batch) if sizes is None else sizes[0]
        except CannotCut as reason:
            self.why_not = str(reason)
            return None
        if tried <= 1:
            self.why_not = "A single sample does not fit, so there is nothing to split."
            return None
        return -(-tried // 2)

    def _describe(self, kind: str, sizes: list[int]) -> str:
        layers = list(self.model.modules()) if kind == _TRAIN else []
        norms = any(isinstance(each, _BatchNorm) and each.training for each in layers)
        drops = any(isinstance(each, _DropoutNd) and each.training and each.p for each in layers)
        what = "training: gradients, steps and batch size stay" if kind == _TRAIN else "evaluation: values stay"
        return (
            f"Memory ran out in {what} what they are, but from here on at most {sizes[0]} sample{'s go' if sizes[0] > 1 else ' goes'} through the model at once; this batch "
            f"of {sum(sizes)} went in {len(sizes)} parts."
            f"{' BatchNorm sees a part, so its statistics are others than those of the whole batch.' if norms else ''}"
            f"{' Dropout draws its masks part by part.' if drops else ''}"
        )

    def _run_parts(
        self, forward: Callable[[Any], Outcome], parts: list[Any], sizes: list[int], *, trains: bool
    ) -> Outcome:
        parameters = self._parameters() if trains else []
        sums, outputs, targets = _Sums(), [], []
        with _gradients_aside(parameters), _hooks_aside(parameters):
            for part, size in zip(parts, sizes, strict=True):
                outcome = _forward_part(forward, part)
                if trains or not isinstance(outcome.loss, Tensor):
                    check_loss_value(outcome.loss, origin="A part of the batch")
                elif outcome.loss.numel() != 1:
                    raise CannotCut(
                        "The loss is no mean over the batch but a vector, so its parts cannot be put together."
                    )
                weighted = sums.add(outcome.loss, outcome.items, size)
                if trains and weighted is not None:
                    self._add_gradient(weighted)
                outputs.append(_detached(outcome.output))
                targets.append(outcome.target)
                del outcome, weighted  # and the graph of the part
            gradients = [parameter.grad for parameter in parameters]
        loss = sums.loss()
        if trains:
            scale = self._scale(torch.ones((), device=loss.device))
            loss = _HandOut.apply(loss, gradients, sums.factor() / scale, *parameters)
        del gradients
        target = join(targets, sizes, like=outputs)
        output = join(outputs, sizes, like=targets)
        return _JoinedOutcome(loss, output, target, sums.items())

    def _add_gradient(self, loss: Tensor) -> None:
        with self._precision.outside():
            self._scale(self._precision.to_float32(loss)).backward()

    def _scale(self, value: Tensor) -> Tensor:
        """Scale a loss as the first optimizer's scaler does: gradients of fp16 must not underflow before they are added up."""
        scaler = next(iter(self._windows.values())).scaler if self._windows else None
        return value if scaler is None else scaler.scale(value)

    def _parameters(self) -> list[nn.Parameter]:
        """Return everything that a loss may give gradients to: the model's parameters, and those of a loss."""
        own = [*self.model.parameters(), *(each for updates in self._windows.values() for each in updates.parameters)]
        return list({id(parameter): parameter for parameter in own if parameter.requires_grad}.values())

    # -- backward ---------------------------------------------------------------------------------------------------

    def _backward(
        self, updates: Updates, plain: Callable[[Tensor, Tensor | float], None], loss: Tensor, items: Tensor | float
    ) -> None:
        """Add the gradient of a loss to a window; where that runs out of memory, that of its batch in parts."""
        watched, self._watched = self._watched, None
        if watched is None or watched.outcome.loss is not loss:
            try:
                plain(loss, items)
            except Exception as error:
                if is_out_of_memory(error):
                    self.why_not = "The loss was not computed by trainer.forward(batch) alone, so its batch cannot be run again in parts."
                raise
            return
        tally, parameters = updates.tally, self._parameters()
        kept = [parameter.grad for parameter in parameters]
        try:
            with _gradients_aside(parameters):
                plain(loss, items)
                added = [parameter.grad for parameter in parameters]
        except Exception as error:
            largest = self._smaller(watched.batch, None, error) if is_out_of_memory(error) else None
            if largest is None:
                raise
            watched.let_go()
            release(error, self._device)
        else:
            for parameter, before, new in zip(parameters, kept, added, strict=True):
                parameter.grad = _sum(before, new)
            return
        updates.tally = tally
        self._precision.forget_casts()
        watched.before.restore()
        outcome = self._run(watched.forward, watched.batch, largest=largest)
        plain(outcome.loss, items)
        watched.outcome.take(outcome)


class _JoinedOutcome(Outcome):
    """What a batch gave that went through in parts."""


class _Watched:
    """A batch that went through the model whole, and whose backward pass is still to come."""

    def __init__(self, forward: Callable[[Any], Outcome], batch: Any, outcome: Outcome, before: _Before) -> None:
        self.forward = forward
        self.batch = batch
        self.outcome = outcome
        self.before = before

    def let_go(self) -> None:
        """Drop the graph: the caller may hold the outcome and its loss."""
        self.outcome.loss.detach_()
        self.outcome.output = _detached(self.outcome.output)


class _Before:
    """What a forward pass in training changes, as it was before: an attempt that failed leaves no trace.

    The generators too: then the numbers depend on the size of the parts alone, not on how often it was tried.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self._random = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self._on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        python, of_numpy, of_torch = self._random
        random.setstate(python)
        numpy.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if self._on_device is not None:
            torch.cuda.set_rng_state(self._on_device, self._device)


class _Sums:
    """Losses of the parts, summed with their items; weights are relative to the first part's, near 1, where fp16 has its digits."""

    def __init__(self) -> None:
        self._weighted: list[Tensor] = []
        self._items: list[Tensor | float] = []
        self._is_counted = False
        self._base: Tensor | float | None = None
        self._device = torch.device("cpu")

    def add(self, loss: Tensor, items: Tensor | float | None, samples: int) -> Tensor | None:
        """Count a part; return its loss with the weight for its backward pass, None where it has no items."""
        self._is_counted = self._is_counted or items is not None
        loss, items = loss.reshape(()), float(samples) if items is None else check_items(items)
        if isinstance(items, Tensor):
            items = items.to(loss.device, torch.promote_types(loss.dtype, torch.float32))
        self._items.append(items)
        self._device = loss.device
        if self._base is None:
            self._base = _at_least_one(items)
        if isinstance(items, Tensor) or isinstance(self._base, Tensor):
            items = torch.as_tensor(items, device=loss.device)
            # The mean of no items is NaN and counts nothing.
            weighted = torch.where(items > 0, loss * (items / self._base), 0.0)
        elif not items:
            return None
        else:
            weighted = loss if items == self._base else loss * (items / self._base)
        self._weighted.append(weighted.detach())
        return weighted

    def items(self) -> Tensor | float | None:
        """Return what the whole batch's loss is a mean over; None is its samples."""
        return sum(self._items) if self._is_counted else None

    def factor(self) -> Tensor:
        """Return what the sum of the weighted losses is to be multiplied with; 0 where there are no items at all."""
        total = self._total()
        return torch.where(total > 0, self._share(total), 0.0)

    def loss(self) -> Tensor:
        """Return the mean over all items; NaN where there are none."""
        total = self._total()
        if not self._weighted:
            return total * float("nan")
        summed = torch.stack(self._weighted).sum()
        return (summed * torch.where(total > 0, self._share(total), float("nan"))).to(summed.dtype)

    def _share(self, total: Tensor) -> Tensor:
        return (1.0 if self._base is None else self._base) / total

    def _total(self) -> Tensor:
        dtype = torch.float64 if self._device.type != "mps" else torch.float32
        total = sum(self._items)
        if isinstance(total, Tensor):
            return total.to(dtype)
        return torch.full((), total, dtype=dtype, device=self._device)  # filled there: a copy from here would wait


class _HandOut(torch.autograd.Function):
    """A loss whose gradients are computed already: its backward pass hands them out."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: list[Tensor | None], factor: Tensor, *parameters: nn.Parameter
    ) -> Tensor:
        del parameters  # what the gradients go to
        ctx.gradients, ctx.factor = gradients, factor
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  (torch's says *args)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "The loss of a batch that went through the model in parts was backpropagated a second time. Its gradients were handed out "
                "the first time: call trainer.forward(batch) again, or add the losses and call step() once."
            )
        factor = ctx.factor * gradient
        return (None, None, None, *(each if each is None else each.mul_(factor.to(each.dtype)) for each in gradients))


@contextmanager
def _gradients_aside(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let the parameters have no gradients; afterwards they have those of before, whatever happened inside."""
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


@contextmanager
def _hooks_aside(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Silence hooks on gradients: they are called once, when the sum of the parts is handed out, as for a whole batch."""
    tables: list[Any] = [  # dicts of torch's own, which its engine looks into
        table
        for parameter in parameters
        for table in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
        if table
    ]
    kept = [list(table.items()) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)


def _forward_part(forward: Callable[[Any], Outcome], part: Any) -> Outcome:
    try:
        return forward(part)
    except ValueError as error:
        if "Expected more than 1 value per channel" in str(error):
            raise CannotCut("BatchNorm cannot train on a part of one sample, so parts cannot be smaller.") from error
        raise


def _sizes_of(batch: Any, largest: int | None) -> list[int] | None:
    """Return the sizes of a batch's parts; None where it goes through whole."""
    if largest is None:
        return None
    try:
        samples = count_samples(batch)
    except CannotCut:
        return None
    return even_sizes(samples, largest) if samples > largest else None


def _sum(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, in the memory of one of them."""
    if before is None or new is None:
        return new if before is None else before
    return new.add_(before) if before.is_sparse and not new.is_sparse else before.add_(new)


def _at_least_one(items: Tensor | float) -> Tensor | float:
    return torch.where(items > 0, items, 1.0) if isinstance(items, Tensor) else items or 1.0


def _detached(output: Any) -> Any:
    """Return an output without its graph; what is no tensor, tuple, list or dict is left as it is."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_detached(each) for each in output))
    if isinstance(output, (tuple, list)):
        return type(output)(_detached(each) for each in output)
    return {key: _detached(value) for key, value in output.items()} if type(output) is dict else output


def check_can_split(model: nn.Module, *, processes: int, reuses_memory: bool) -> None:
    """Refuse `on_oom="split"` where parts of a batch would not do what the batch does.

    Args:
        model: to be trained.
        processes: that train together.
        reuses_memory: the model's outputs are overwritten by its next call, as CUDA graphs do.
    Raises:
        ArgumentError: names the reason.
    """
    if reuses_memory:
        raise ArgumentError(
            'on_oom="split" was given together with a compile mode that captures CUDA graphs, which overwrite the outputs of one part with '
            'those of the next. Use compile="default", or micro_batch= in place of on_oom.'
        )
    if processes > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ArgumentError(
            f'on_oom="split" was given to {processes} processes that train a model with SyncBatchNorm. Each splits when its own memory runs out, '
            f"and the statistics of the others would wait for parts that do not come. Use micro_batch=, or BatchNorm."
        )
