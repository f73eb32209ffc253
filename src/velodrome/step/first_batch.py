"""The first batch of each source is looked at before it is trusted; every later one goes the short way."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from torch import Tensor

from velodrome.errors import ArgumentError, DataError
from velodrome.step.checks import check_finite, check_input_fits_model, check_loss_value, check_outcome
from velodrome.step.eager import EagerEngine, Outcome, split_batch
from velodrome.step.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from velodrome.step.losses import Loss

__all__ = ["FirstBatch"]


class ColumnsLike(Protocol):
    """Data in memory: a tensor, or a tuple or dict of them, with all samples."""

    tensors: Any


class FirstBatch:
    """Runs the checks of `velodrome.step.checks` once a source, with all targets when they are in memory."""

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._checked: WeakSet[object] = WeakSet()  # not their ids, which the next source may get
        self._all_targets: Tensor | None = None
        self._source: object = None
        self._foreseen: Tensor | None = None
        self._is_loss_checked = False
        self.is_pending = True
        """whether the next forward pass belongs to a source that was not looked at yet"""
        self.shapes = ""
        """of the last first batch, in words"""

    @property
    def loss_is_unchecked(self) -> bool:
        """Whether `step` was never given a loss."""
        return not self._is_loss_checked

    @contextmanager
    def of(self, source: object, columns: ColumnsLike | None) -> Iterator[None]:
        """Batches come from this source for a while; afterwards the state of before is back."""
        before = self._source, self.is_pending, self._all_targets
        self._source = source
        self.is_pending = source not in self._checked
        self._all_targets = _targets_of(columns) if self.is_pending and columns is not None else None
        try:
            yield
        finally:
            self._source, was_pending, self._all_targets = before
            self.is_pending = was_pending and self._source not in self._checked

    def has_seen(self, source: object) -> bool:
        """Return whether a batch of this source passed `forward`."""
        return source in self._checked

    def foresee(self, columns: ColumnsLike | None) -> None:
        """Validation data that lie in memory are looked at together with the first training batch, not an epoch later."""
        self._foreseen = None if columns is None else _targets_of(columns)

    def forward(self, engine: EagerEngine, batch: Any, *, role: str) -> Outcome:
        """Run the engine on the first batch, and check what comes out of the model before the loss sees it.

        Before rather than after: on CUDA a label out of range kills the process's device context inside of the loss.

        Raises:
            DataError: see `check_outcome`; or the model failed, explained by the batch.
            ArgumentError: no loss was given, and the model does not return one.
        """
        if self._loss is None or engine.step_fn is not None:
            outcome = self._forward_whole(engine, batch)
        else:
            try:
                output, target = engine.run_model(batch)
            except (RuntimeError, IndexError) as error:
                if is_out_of_memory(error) or isinstance(error, (NotImplementedError, RecursionError)):
                    raise
                explained = check_input_fits_model(engine.model, batch, error)
                if explained is None:
                    raise
                raise explained from error
            except TypeError as error:
                if not _is_call_of(engine.model, error):
                    raise
                raise ArgumentError(_explain_call(engine.model, batch, error)) from error
            check_outcome(self._loss, output, target, all_targets=self._all_targets, role=role)
            self._check_foreseen(self._loss, output, target)
            engine.expect_targets(target if self._all_targets is None else self._all_targets)
            outcome = engine.compute_loss(self._loss.function, output, target)
        if self._source is not None:
            self._checked.add(self._source)
        self.is_pending = False
        return outcome

    def _check_foreseen(self, loss: Loss, output: Any, target: Any) -> None:
        """Check the validation targets against the training output, where they have the shape of the training targets."""
        targets, self._foreseen = self._foreseen, None
        if targets is None or not isinstance(output, Tensor) or not isinstance(target, Tensor) or not output.ndim:
            return
        if targets.shape[1:] == target.shape[1:]:
            rows = min(len(output), len(targets))
            check_outcome(loss, output[:rows], targets[:rows], all_targets=targets, role="val")

    def _forward_whole(self, engine: EagerEngine, batch: Any) -> Outcome:
        try:
            return engine.forward(batch)
        except TypeError as error:
            # The commonest cause: the loss was forgotten, and the model cannot take (input, target).
            if engine.step_fn is None and isinstance(batch, (tuple, list)) and _is_call_of(engine.model, error):
                raise ArgumentError(
                    f"No loss was given, so {type(engine.model).__name__} was called with all {len(batch)} parts of the batch "
                    f'and must return its loss. It refused: {error}. Give a loss of (output, target), such as loss="cross_entropy".'
                ) from error
            raise

    def check_loss(self, loss: object) -> None:
        """Check the first loss that `step` is given."""
        check_loss_value(loss, origin="step()" if self._loss is None else f"loss {self._loss.name!r}")
        self._is_loss_checked = True


def _targets_of(columns: ColumnsLike) -> Tensor | None:
    """Return the targets of all samples, where there are any."""
    tensors = columns.tensors
    if isinstance(tensors, (tuple, dict)) and len(tensors) > 1:
        try:
            target = split_batch(tensors)[1]
        except DataError:
            return None
        return target if isinstance(target, Tensor) else None
    return None


def _is_call_of(model: nn.Module, error: TypeError) -> bool:
    """Return whether the error is about the arguments of the model's own forward, not of something inside of it."""
    return f"{type(model).__name__}.forward()" in str(error)


def _explain_call(model: nn.Module, batch: Any, error: TypeError) -> str:
    """Say with which arguments the model was called, and how to call it otherwise."""
    inputs, _ = split_batch(batch)
    if isinstance(inputs, Mapping):
        how = f"by name, with the entries {', '.join(map(str, inputs))} of the batch's dict"
    elif isinstance(inputs, (tuple, list)):
        how = f"with the {len(inputs)} inputs of the batch"
    else:
        how = "with the batch's input"
    return (
        f"{type(model).__name__} was called {how}, and refused: {error}. The last part of a batch, or its target, goes to the loss, "
        f"and everything else to the model: change the batch, or call the model yourself in step_fn=."
    )


def check_columns(columns: ColumnsLike, *, role: str) -> None:
    """Refuse NaN and infinity anywhere in data that lie in memory."""
    tensors = columns.tensors
    named = {"input": tensors} if isinstance(tensors, Tensor) else tensors
    items = named.items() if isinstance(named, dict) else ((f"column {i}", t) for i, t in enumerate(named))
    for name, tensor in items:
        what = {"column 0": "inputs", "column 1": "targets"}.get(str(name), str(name))
        check_finite(tensor, what=f"{role} {what}")
