"""Which engine runs the steps: what was asked for, what this machine has, and the reason in a line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest
from velodrome.step.capture.engine import CapturedEngine, CapturedPhases
from velodrome.step.capture.graphs import CudaGraphs
from velodrome.step.compiled import NotCompiled, resolve_compilation
from velodrome.step.engine import ENGINES
from velodrome.step.guard import FlagGuard, ReadGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from velodrome.step.capture.graphs import Recorder
    from velodrome.step.eager import EagerEngine
    from velodrome.step.precision import Precision
    from velodrome.step.windows import Windows

__all__ = ["EngineChoice", "choose_engine"]

AUTO_CAPTURES = False
"""Whether "auto" records steps on CUDA. Not before tests/gpu/test_captured.py has passed on a CUDA machine: turn it on here then."""

Compile = bool | str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine of a trainer."""

    name: str
    """"eager", "compiled" or "captured" """
    why: str
    """in words"""
    compile: Compile = False
    """for `resolve_compilation`"""
    recorder: Recorder | None = None
    """of captured steps"""
    is_news: bool = False
    """whether a run says it by itself; `Trainer.explain` always does"""
    is_warning: bool = False
    """whether it is not what was asked for"""

    @property
    def line(self) -> str:
        """The choice and its reason."""
        return f"engine: {self.name}: {self.why}"

    def compilation(self, model: nn.Module, *, device: torch.device, say: Callable[[str], None]) -> NotCompiled:
        """Compile the model in place, if that is what was chosen.

        Raises:
            ArgumentError: an unknown mode or argument.
        """
        return resolve_compilation(self.compile, model, device=device, say=say)

    def capture(
        self,
        engine: EagerEngine,
        *,
        windows: Windows,
        precision: Precision,
        device: torch.device,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        steps_done: Callable[[], int],
        keeps_outputs: bool,
        is_watched: bool,
    ) -> tuple[EagerEngine, NotCompiled | None]:
        """Return the engine that records steps and what it is told loops through; the one given and None where nothing is to be recorded.

        Args:
            engine: eager.
            windows: of the optimizers.
            precision, device, say, warn, steps_done, keeps_outputs, is_watched: see `CapturedEngine`.
        """
        if self.recorder is None or not len(windows):
            return engine, None
        updates = next(iter(windows.by_name.values()))
        is_fused = all(group.get("fused") for group in updates.optimizer.param_groups)
        if is_fused and device.type == "cpu" and type(updates.guard) is ReadGuard and not updates.guard.every_update:
            updates.guard = FlagGuard(updates.optimizer, device, waits=False)  # a recording reads no number
        captured = CapturedEngine(
            engine,
            updates=updates,
            precision=precision,
            recorder=self.recorder,
            device=device,
            say=say,
            warn=warn,
            steps_done=steps_done,
            keeps_outputs=keeps_outputs,
            is_watched=is_watched,
        )
        return captured, CapturedPhases(captured)


def choose_engine(
    engine: object,
    *,
    compile: Compile,
    device: torch.device,
    splits: bool,
    has_step_fn: bool,
    num_optimizers: int,
) -> EngineChoice:
    """Return the engine to run steps with.

    Args:
        engine: "auto", "eager", "compiled", "captured", or what records steps (`velodrome.testing.replayer.Replayer`).
        compile: of the model, as the trainer was told.
        device: the model's.
        splits: batches that do not fit into memory are to be split.
        has_step_fn: the user's function computes the loss.
        num_optimizers: of the model.
    Raises:
        ArgumentError: an unknown name, one that this machine cannot have, or two switches that contradict each other.
    """
    is_compiled = compile is not False and compile is not None
    if not isinstance(engine, str):
        if not callable(getattr(engine, "record", None)):
            raise ArgumentError(f"engine={engine!r} is no engine. Give one of {', '.join(ENGINES)}.")
        recorder: Any = engine
        _refuse_together("engine=<a recorder>", is_compiled=is_compiled, splits=splits)
        return _unless_several(
            EngineChoice(name="captured", why=f"{type(engine).__name__} records steps", recorder=recorder),
            num_optimizers,
        )
    if engine not in ENGINES:
        raise ArgumentError(f"engine={engine!r} is unknown. {nearest(engine, ENGINES)}")
    if engine == "eager" and is_compiled:
        raise ArgumentError(
            f'engine="eager" and compile={compile!r} contradict each other. Leave engine out, or write engine="compiled".'
        )
    if engine == "compiled" or (engine == "auto" and is_compiled):
        _refuse_without_compiler(device)
        why = "it was asked for" if engine == "compiled" else f"compile={compile!r} was given"
        return EngineChoice(name="compiled", why=why, compile=compile if is_compiled else True)
    if engine == "captured":
        if device.type != "cuda":
            raise ArgumentError(
                f'engine="captured" records CUDA graphs, and this trainer runs on {device}. Use engine="eager", or device="cuda" where there '
                f"is one: velodrome doctor shows what torch finds."
            )
        _refuse_together('engine="captured"', is_compiled=is_compiled, splits=splits)
        return _unless_several(
            EngineChoice(name="captured", why="it was asked for", recorder=CudaGraphs(device)), num_optimizers
        )
    return (
        _choose(device, splits=splits, has_step_fn=has_step_fn, num_optimizers=num_optimizers)
        if engine == "auto"
        else _EAGER
    )


_EAGER = EngineChoice(name="eager", why="it was asked for")


def _unless_several(choice: EngineChoice, num_optimizers: int) -> EngineChoice:
    if num_optimizers < 2:
        return choice
    why = f"not captured, because {num_optimizers} optimizers take turns, and each makes steps of its own"
    return EngineChoice(name="eager", why=why, is_news=True, is_warning=True)


def _choose(device: torch.device, *, splits: bool, has_step_fn: bool, num_optimizers: int) -> EngineChoice:
    """Return what "auto" means on a device."""
    if device.type != "cuda":
        return EngineChoice(
            name="eager",
            why=f"whole steps are recorded as CUDA graphs, and this trainer runs on {device.type}",
        )
    if splits:
        why = 'on_oom="split" runs batches in parts of changing size, which no recording can'
    elif has_step_fn:
        why = 'what step_fn decides in Python, a recording would decide once. If it decides nothing, give engine="captured"'
    elif num_optimizers > 1:
        why = f"{num_optimizers} optimizers take turns, and each makes steps of its own"
    elif not AUTO_CAPTURES:
        why = 'engine="captured" replays whole steps as CUDA graphs: try it where steps are short'
    else:
        why = "a whole step is one launch; it is checked against eager before use"
        return EngineChoice(name="captured", why=why, recorder=CudaGraphs(device))
    return EngineChoice(name="eager", why=why, is_news=True)


def _refuse_together(name: str, *, is_compiled: bool, splits: bool) -> None:
    if is_compiled:
        raise ArgumentError(
            f'{name} and compile= were both given. A model compiled with compile="reduce-overhead" records graphs by itself: leave one '
            f"of them out."
        )
    if splits:
        raise ArgumentError(
            f'{name} and on_oom="split" were both given: a recording has the memory and the batch that it was made with. Leave one of '
            f"them out."
        )


def _refuse_without_compiler(device: torch.device) -> None:
    """Refuse compilation for a CPU without a compiler for what torch writes: it would fail in the first batch, in many lines."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    if device.type == "cpu" and not any(name and shutil.which(name) for name in names):
        raise ArgumentError(
            "Compiling a model for the CPU needs a C++ compiler, and none was found (g++, clang++, CXX). Install one, say with "
            '"apt install g++", or use engine="eager".'
        )
