"""Graph mode: the model compiled in place, with the odd batch run as it is, and the price said."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

from velodrome.errors import ArgumentError, nearest
from velodrome.step.phases import NO_PHASES, NoPhases

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from velodrome.step.phases import Place

__all__ = ["Compiled", "resolve_compilation"]

_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Micro-batches of a run, counted from 0, that are measured: the first is compiled, the second warms up.
_EAGER_ONES = (2, 3, 4)
_COMPILED_ONES = (5, 6, 7)
_LAST_ONE = 8


class Compiled(NoPhases):
    """Compiles the model in place with `nn.Module.compile`: parameters keep their names, and the model its class.

    A batch of another size than the first one of its phase, once a phase, is the ragged last one: it runs without compilation,
    because compiling anew for one batch costs more than it saves. When sizes vary more than that, torch's own dynamic shapes
    take over.

    Six micro-batches near the start of a run are timed, three of them run as they are; from these the break-even is computed.
    Which ones is a matter of their number alone, so that a run that was interrupted does the same.

    Args:
        model: on its device.
        arguments: of `torch.compile`.
        say: shows a line to people.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.compile.html
    """

    is_on = True

    def __init__(
        self, model: nn.Module, arguments: Mapping[str, Any], *, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._device = device
        options = arguments.get("options") or {}
        has_graphs = arguments.get("mode") in _GRAPH_MODES or options.get("triton.cudagraphs", False)
        self.reuses_memory = has_graphs and device.type == "cuda"
        self._stance = "default"
        self._times: dict[int, float] = {}
        self._last: tuple[int, float] | None = None
        self._is_reported = False
        try:
            _compile_in_place(model, arguments)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ArgumentError(f"torch.compile refused compile={dict(arguments)}: {error}") from error

    def watch(self, place: Place, micro_batch: Callable[[], int | None]) -> Place:
        """Return what puts batches on the device and chooses how each one is run.

        Args:
            place: puts a batch on the device.
            micro_batch: the number of the training micro-batch that comes, from 0 in the run; None in an evaluation.
        """
        full_size, num_odd = None, 0

        def place_and_choose(batch: Any) -> tuple[Any, int]:
            nonlocal full_size, num_odd
            placed, samples = place(batch)
            number = micro_batch()
            if full_size is None:
                full_size = samples
            is_odd = samples != full_size
            num_odd += is_odd
            if number is not None and not self._is_reported:
                self._measure(number)
            runs_eager = (is_odd and num_odd == 1) or (number in _EAGER_ONES)
            self._set_stance("force_eager" if runs_eager else "default")
            if self.reuses_memory:
                torch.compiler.cudagraph_mark_step_begin()
            return placed, samples

        return place_and_choose

    def calls(self) -> list[tuple[str, Any]]:
        """Return what is done to each batch."""
        return [("choose whether the batch runs compiled", self.watch)]

    def leave_phase(self) -> None:
        """Compile again whatever is called from now on."""
        self._set_stance("default")
        self._last = None

    def _set_stance(self, stance: str) -> None:
        if stance != self._stance:
            torch.compiler.set_stance(stance)  # type: ignore[arg-type]
            self._stance = stance

    def _measure(self, number: int) -> None:
        """Note when a micro-batch begins; the time until the next one begins is its own."""
        if number > _LAST_ONE:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # SYNC: nine times a run, to time what compiling buys
        now = perf_counter()
        if self._last is not None and self._last[0] == number - 1:
            self._times[number - 1] = now - self._last[1]
        self._last = (number, now)
        if number == _LAST_ONE:
            self._is_reported = True
            self._report()

    def _report(self) -> None:
        try:
            eager = min(self._times[number] for number in _EAGER_ONES)
            compiled = min(self._times[number] for number in _COMPILED_ONES)
            first = self._times[0] - compiled
        except (KeyError, ValueError):
            return  # the run began in the middle of these
        line = f"compile: took {first:.1f} s; a step takes {_readable(compiled)} instead of {_readable(eager)}"
        saved = eager - compiled
        if saved > 0.02 * eager:
            self._say(f"{line} ({eager / compiled:.2f}x), which pays off after {first / saved:,.0f} steps")
        else:
            self._say(f"{line}, which never pays off: leave compile out for this model and device")


def resolve_compilation(
    compile: bool | str | Mapping[str, Any],
    model: nn.Module,
    *,
    device: torch.device,
    say: Callable[[str], None],
) -> NoPhases:
    """Compile the model in place as asked, or leave it.

    Args:
        compile: True or "default", another mode of torch.compile, or a dict of its arguments.
        model: on its device.
        device: the model's.
        say: shows a line to people.
    Raises:
        ArgumentError: an unknown mode or argument.
    """
    if compile is False or compile is None:
        return NO_PHASES
    if isinstance(compile, Mapping):
        arguments = dict(compile)
        mode = arguments.get("mode")
    else:
        mode = "default" if compile is True else compile
        arguments = {} if mode == "default" else {"mode": mode}
    if mode is not None and mode not in _MODES:
        raise ArgumentError(f"compile={compile!r} is no mode of torch.compile. {nearest(str(mode), _MODES)}")
    return Compiled(model, arguments, device=device, say=say)


def _compile_in_place(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Do what `nn.Module.compile` does, also where the model is one of torch's own classes.

    torch 2.13 compiles nothing of `nn.Sequential(...).compile()`, without a word: it takes the container's forward for a part
    of itself. One frame of ours around the call is what it looks for; `torch.compile(model)` adds one too.
    """
    model.compile(**arguments)  # checks the arguments, and says to others that the model is compiled

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    # Graphs are counted by code object, and after eight of one torch gives up: each model gets a code object of its own.
    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, closure=call.__closure__)
    model._compiled_call_impl = torch.compile(own, **arguments)


def _readable(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
