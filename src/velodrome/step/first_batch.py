"""The first batch of each phase is looked at before it is trusted; every later one goes the short way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from velodrome.errors import DataError, VelodromeError
from velodrome.step.checks import check_finite, check_input_fits_model, check_loss_value, check_outcome
from velodrome.step.eager import EagerEngine, Outcome, split_batch

if TYPE_CHECKING:
    from velodrome.step.losses import Loss

__all__ = ["FirstBatch"]


class ColumnsLike(Protocol):
    """Data in memory: a tensor, or a tuple or dict of them, with all samples."""

    tensors: Any


class FirstBatch:
    """Runs the checks of `velodrome.step.checks` once a phase, with all targets when they are in memory."""

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._checked: set[int | str] = set()
        self._all_targets: Tensor | None = None
        self._source_key: int | str = ""
        self._is_loss_checked = False
        self.is_pending = True
        """whether the next forward pass belongs to a source that was not looked at yet"""

    @property
    def loss_is_unchecked(self) -> bool:
        """Whether `step` was never given a loss."""
        return not self._is_loss_checked

    def expect(self, source: object, columns: ColumnsLike | None) -> None:
        """A phase over this source begins."""
        self._source_key = id(source)
        self.is_pending = self._source_key not in self._checked
        self._all_targets = None
        if self.is_pending and columns is not None:
            tensors = columns.tensors
            if isinstance(tensors, (tuple, dict)) and len(tensors) > 1:
                try:
                    target = split_batch(tensors)[1]
                except DataError:
                    return
                self._all_targets = target if isinstance(target, Tensor) else None

    def forward(self, engine: EagerEngine, batch: Any, *, role: str) -> Outcome:
        """Run the engine on the first batch, and check what went in and came out.

        Raises:
            DataError: see `check_outcome`; or the model failed, explained by the batch.
        """
        try:
            outcome = engine.forward(batch)
        except VelodromeError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            self._explain(engine, batch, error, role)
            raise
        if self._loss is not None:
            check_outcome(self._loss, outcome.output, outcome.target, all_targets=self._all_targets, role=role)
        self._checked.add(self._source_key)
        self.is_pending = False
        return outcome

    def check_loss(self, loss: object) -> None:
        """Check the first loss that `step` is given."""
        check_loss_value(loss, origin="step()" if self._loss is None else f"loss {self._loss.name!r}")
        self._is_loss_checked = True

    def _explain(self, engine: EagerEngine, batch: Any, error: Exception, role: str) -> None:
        """Raise a DataError that says what does not fit, when that can be told."""
        if self._loss is not None and engine.step_fn is None:
            try:
                output = engine.predict(batch)
            except Exception:
                explained = check_input_fits_model(engine.model, batch, error)
                if explained is not None:
                    raise explained from error
                return
            # The model took the batch, so it is the loss that did not take the target.
            check_outcome(self._loss, output, split_batch(batch)[1], all_targets=self._all_targets, role=role)


def check_columns(columns: ColumnsLike, *, role: str) -> None:
    """Refuse NaN and infinity anywhere in data that lie in memory."""
    tensors = columns.tensors
    named = {"input": tensors} if isinstance(tensors, Tensor) else tensors
    items = named.items() if isinstance(named, dict) else ((f"column {i}", t) for i, t in enumerate(named))
    for name, tensor in items:
        what = {"column 0": "inputs", "column 1": "targets"}.get(str(name), str(name))
        check_finite(tensor, what=f"{role} {what}")
