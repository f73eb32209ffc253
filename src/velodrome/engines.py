"""Which engine runs the steps: what was asked for, what this machine has, and the reason in a line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest
from velodrome.metrics import means, metric_set
from velodrome.step import guard
from velodrome.step.capture.context import CaptureContext, Held
from velodrome.step.compiled import resolve_compilation
from velodrome.step.engine import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from velodrome.step.capture.graphs import Recorder
    from velodrome.step.eager import EagerEngine
    from velodrome.step.engine import Engine
    from velodrome.step.phases import NoPhases
    from velodrome.step.windows import Windows

__all__ = ["CaptureContext", "EngineChoice", "choose_engine", "held_results"]

_RECOMPUTING = ("inductor", "aot_", "cudagraphs")
"""backends of torch.compile that plan forward and backward together, and so know what is computed twice"""
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

    def compile_model(self, model: nn.Module, *, device: torch.device, say: Callable[[str], None]) -> NoPhases:
        """Compile the model in place, if that is what was chosen; return what is told of the loops around its batches.

        Raises:
            ArgumentError: an unknown mode or argument.
        """
        return resolve_compilation(self.compile, model, device=device, say=say)

    def record(
        self, engine: EagerEngine, phases: NoPhases, *, windows: Windows, context: CaptureContext
    ) -> tuple[Engine, NoPhases]:
        """Return the engine that records steps and what is told of its loops; those given where nothing is to be recorded.

        Args:
            engine: eager.
            phases: what is told of its loops.
            windows: of the optimizers.
            context: of the trainer.
        """
        if self.recorder is None or not len(windows):
            return engine, phases
        from velodrome.step.capture.engine import CapturedEngine, CapturedPhases  # many modules, for those who record

        captured = CapturedEngine(engine, next(iter(windows.by_name.values())), self.recorder, context)
        return captured, CapturedPhases(captured)


def held_results(*, has_metrics: bool) -> Held:
    """Return how many results of steps guard, means and metrics hold at most, which recorded steps must not write over."""
    return Held(
        losses=max(guard.NUM_KEPT, means.MAX_PENDING),
        batches=metric_set.MAX_HELD_BATCHES if has_metrics else 0,
        numbers=metric_set.MAX_HELD_NUMBERS,
    )


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the choice depends on."""

    compile: Compile
    device: torch.device
    splits: bool
    has_step_fn: bool
    num_optimizers: int
    recomputes: bool = False

    @property
    def is_compiled(self) -> bool:
        return self.compile is not False and self.compile is not None


def choose_engine(
    engine: object,
    *,
    compile: Compile,
    device: torch.device,
    splits: bool,
    has_step_fn: bool,
    num_optimizers: int,
    recomputes: bool = False,
) -> EngineChoice:
    """Return the engine to run steps with.

    Args:
        engine: "auto", "eager", "compiled", "captured", or what records steps (`velodrome.testing.replayer.Replayer`).
        compile: of the model, as the trainer was told.
        device: the model's.
        splits: batches that do not fit into memory are to be split.
        has_step_fn: the user's function computes the loss.
        num_optimizers: of the model.
        recomputes: activations of some modules are computed again in the backward pass.
    Raises:
        ArgumentError: an unknown name, one that this machine cannot have, or two switches that contradict each other.
    """
    facts = _Facts(
        compile=compile, device=device, splits=splits, has_step_fn=has_step_fn, num_optimizers=num_optimizers,
        recomputes=recomputes,
    )  # fmt: skip
    if not isinstance(engine, str):
        return _choose_recorder(engine, facts)
    if engine not in _CHOOSE:
        raise ArgumentError(f"engine={engine!r} is unknown. {nearest(engine, ENGINES)}")
    return _CHOOSE[engine](facts)


def _choose_auto(facts: _Facts) -> EngineChoice:
    if facts.is_compiled:
        return _compiled(facts, why=f"compile={facts.compile!r} was given")
    reason = _reason_not_to_record(facts)
    if reason:
        return EngineChoice(name="eager", why=reason, is_news=facts.device.type == "cuda")
    why = "a whole step is one launch; it is checked against eager before use"
    return EngineChoice(name="captured", why=why, recorder=_cuda_graphs(facts.device))


def _choose_eager(facts: _Facts) -> EngineChoice:
    if facts.is_compiled:
        raise ArgumentError(
            f'engine="eager" and compile={facts.compile!r} contradict each other. Leave engine out, or write engine="compiled".'
        )
    return EngineChoice(name="eager", why="it was asked for")


def _choose_compiled(facts: _Facts) -> EngineChoice:
    return _compiled(facts, why="it was asked for")


def _choose_captured(facts: _Facts) -> EngineChoice:
    if facts.device.type != "cuda":
        raise ArgumentError(
            f'engine="captured" records CUDA graphs, and this trainer runs on {facts.device}. Use engine="eager", or device="cuda" where '
            f"there is one: velodrome doctor shows what torch finds."
        )
    return _captured(facts, _cuda_graphs(facts.device), name='engine="captured"', why="it was asked for")


def _choose_recorder(recorder: Any, facts: _Facts) -> EngineChoice:
    if not callable(getattr(recorder, "record", None)):
        raise ArgumentError(f"engine={recorder!r} is no engine. Give one of {', '.join(ENGINES)}.")
    return _captured(facts, recorder, name="engine=<a recorder>", why=f"{type(recorder).__name__} records steps")


_CHOOSE = {"auto": _choose_auto, "eager": _choose_eager, "compiled": _choose_compiled, "captured": _choose_captured}


def _cuda_graphs(device: torch.device) -> Recorder:
    from velodrome.step.capture.graphs import CudaGraphs

    return CudaGraphs(device)


def _compiled(facts: _Facts, *, why: str) -> EngineChoice:
    _refuse_without_compiler(facts.device)
    backend = facts.compile.get("backend", "inductor") if isinstance(facts.compile, Mapping) else "inductor"
    if facts.recomputes and not str(backend).startswith(_RECOMPUTING):
        raise ArgumentError(
            f"gradient_checkpointing and compile={facts.compile!r} were both given, and the backend {backend!r} runs what is recomputed as "
            f'if it were new: BatchNorm counts twice, dropout draws again. Leave one of them out, or use backend "inductor" or "aot_eager".'
        )
    return EngineChoice(name="compiled", why=why, compile=facts.compile if facts.is_compiled else True)


def _captured(facts: _Facts, recorder: Recorder, *, name: str, why: str) -> EngineChoice:
    _refuse_together(name, is_compiled=facts.is_compiled, splits=facts.splits)
    if facts.num_optimizers > 1:
        why = f"not captured, because {facts.num_optimizers} optimizers take turns, and each makes steps of its own"
        return EngineChoice(name="eager", why=why, is_news=True, is_warning=True)
    return EngineChoice(name="captured", why=why, recorder=recorder)


def _reason_not_to_record(facts: _Facts) -> str:
    """Return why "auto" records no steps; "" when it does."""
    if facts.device.type != "cuda":
        return f"whole steps are recorded as CUDA graphs, and this trainer runs on {facts.device.type}"
    if facts.splits:
        return 'on_oom="split" runs batches in parts of changing size, which no recording can'
    if facts.has_step_fn:
        return 'what step_fn decides in Python, a recording would decide once. If it decides nothing, give engine="captured"'
    if facts.num_optimizers > 1:
        return f"{facts.num_optimizers} optimizers take turns, and each makes steps of its own"
    if not AUTO_CAPTURES:
        return 'engine="captured" replays whole steps as CUDA graphs: try it where steps are short'
    return ""


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
