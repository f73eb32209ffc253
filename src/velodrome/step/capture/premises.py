"""What a recording relies on, and whether that still holds: where tensors lie, modes, hooks, the optimizer's options and state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.step.capture.limits import layout_of, reason_against
from velodrome.step.capture.rehearsal import named_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from velodrome.step.capture.context import CaptureContext
    from velodrome.step.updates import Updates

__all__ = ["Premises"]

_MAX_CHANGES = 3  # of the optimizer's options, or of its state, before recording is given up
_NOT_RECORDED = ("params", "lr", "initial_lr", "capturable", "param_names")  # options that may change


class Premises:
    """What recorded steps rely on.

    Args:
        modules: the model, and the loss where that is a module.
        updates: of the only optimizer.
        context: of the trainer.
    """

    def __init__(self, modules: Sequence[nn.Module], updates: Updates, context: CaptureContext) -> None:
        self._modules = modules
        self._updates = updates
        self._context = context
        self._layout: Any = None
        self._options: list[dict[str, Any]] = []
        self._state: Any = None
        self._num_changes = 0

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor that a step changes, by name."""
        return named_state(self._modules, self._updates.optimizer)

    @property
    def reason(self) -> str:
        """Why such steps cannot be recorded; "" when nothing is known against it."""
        return reason_against(self._modules, self._updates, self._context.precision, self._context.device)

    def note(self) -> None:
        """Take note of what is recorded with a step: all options but the learning rate, as numbers; where everything lies."""
        optimizer = self._updates.optimizer
        self._layout = self._read_layout()
        self._state = optimizer.state
        self._options = [
            {name: value for name, value in group.items() if name not in _NOT_RECORDED}
            for group in optimizer.param_groups
        ]

    def forget(self) -> None:
        """Nothing is recorded any more."""
        self._layout = None

    def layout_has_changed(self) -> bool:
        """Return whether tensors, modes or what is trained are others than the last time; takes note of them."""
        before, self._layout = self._layout, self._read_layout()
        return before != self._layout

    def options_have_changed(self) -> bool:
        """Return whether the optimizer has other options or another state than were recorded; cheap, for it is asked in each step."""
        optimizer = self._updates.optimizer
        if optimizer.state is not self._state or len(optimizer.param_groups) != len(self._options):
            return True
        for group, options in zip(optimizer.param_groups, self._options, strict=True):
            for name, value in options.items():
                now = group[name]
                if now is not value and now != value:
                    return True
        return False

    def count_change(self) -> str:
        """Take note that options have changed: all is recorded anew; return why no more is to be recorded, if it was too often."""
        self._layout = self._read_layout()
        self._num_changes += 1
        return "the optimizer's options or state change again and again" if self._num_changes > _MAX_CHANGES else ""

    def _read_layout(self) -> tuple[Any, ...]:
        return layout_of(self.state.values(), self._modules)
