"""What a trainer does when memory runs out: `on_oom="stop"` says what to change, `"split"` goes on with parts of the batch."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from velodrome.data.batches import num_samples
from velodrome.errors import ArgumentError, OutOfMemoryError, nearest
from velodrome.step.cutting import CannotCut
from velodrome.step.memory import describe_shapes, is_out_of_memory, memory_in_use, release
from velodrome.step.splitting import SplittingEngine, check_can_split

if TYPE_CHECKING:
    from velodrome.step.eager import EagerEngine
    from velodrome.step.phases import NoPhases
    from velodrome.step.precision import Precision
    from velodrome.step.windows import Windows
    from velodrome.trainer import Trainer

__all__ = ["OnOutOfMemory"]

_MODES = ("stop", "split")


class OnOutOfMemory:
    """Watches forward, backward and update of a trainer; costs nothing before memory runs out, unless it is to split.

    Args:
        trainer: whose memory it is.
        mode: "stop" or "split".
    Raises:
        ArgumentError: another mode.
    """

    def __init__(self, trainer: Trainer, mode: str) -> None:
        if mode not in _MODES:
            raise ArgumentError(f"on_oom={mode!r} is unknown. {nearest(str(mode), _MODES)}")
        self._trainer = trainer
        self._mode = mode
        self._engine: EagerEngine
        self._precision: Precision

    def watch(self, engine: EagerEngine, *, windows: Windows, precision: Precision, phases: NoPhases) -> EagerEngine:
        """Return the engine that batches are to go through.

        Raises:
            ArgumentError: splitting does not go together with the trainer's other switches.
        """
        self._engine, self._precision = engine, precision
        if self._mode == "split":
            trainer = self._trainer
            check_can_split(trainer.model, processes=trainer._world.size, reuses_memory=phases.reuses_memory)
            self._engine = SplittingEngine(
                engine,
                windows=windows.by_name,
                precision=precision,
                device=trainer.device,
                say=lambda line: trainer._run.warn(line),  # there is no run yet
            )
        return self._engine

    def predict(self, batch: Any) -> Any:
        """Return the model's output for a batch."""
        try:
            return self._engine.predict(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self.explain(error, part="the forward pass", batch=batch) from error

    def explain(self, error: BaseException, *, part: str = "", batch: Any = None) -> OutOfMemoryError:
        """Give memory back, discard what the open windows hold, and return the error that says what happened and what to do.

        Args:
            error: the allocator's.
            part: of the step; found in the traceback where it is left out.
            batch: that did not fit, where it is known.
        """
        trainer = self._trainer
        run, first = trainer._run, trainer._first_batch
        part = part or ("the update" if _is_inside_update(error) else "the backward pass")
        samples = num_samples(batch) if batch is not None else run.phase.batch_samples
        shapes = describe_shapes(batch) if batch is not None else first.shapes
        usage = memory_in_use(trainer.device)
        if run.phase.is_training:
            trainer._windows.discard()
        self._precision.forget_casts()
        release(error, trainer.device)
        phase = {"train": "training", "predict": "prediction"}.get(run.phase.name, f"the evaluation {run.phase.name!r}")
        like = "" if batch is not None or not shapes else "like the first one: "
        facts = f"a batch of {samples} sample{'s' * (samples != 1)}{f' ({like}{shapes})' if shapes else ''} on {trainer.device}"
        if usage:
            facts += f"; {_gib(usage['peak_bytes'])} were in use at most, {_gib(usage['free_bytes'])} of {_gib(usage['total_bytes'])} were free"
        state = "No weight was changed by this step, and gradients were discarded." if part != "the update" else ""
        sentences = [
            f"Memory ran out in {part} of {phase}, after step {trainer.progress.steps_done}: {facts}.",
            self._engine.why_not,
            state if run.phase.is_training else "",
            self._advice(part),
            "" if isinstance(error, CannotCut) else f"({_first_line(error)})",
        ]
        return OutOfMemoryError(
            " ".join(sentence for sentence in sentences if sentence),
            phase=run.phase.name,
            step=trainer.progress.steps_done,
            samples=samples,
            shapes=shapes,
            **usage,
        )

    def _advice(self, part: str) -> str:
        if part == "the update":
            return "What the optimizer keeps for each weight does not fit: use one that keeps less (sgd), freeze a part of the model, or a larger device."
        if not self._trainer._run.phase.is_training:
            ways = ["a smaller batch_size or eval_batch_size"]
        else:
            ways = [
                "a smaller batch_size with accumulate=, or micro_batch=, for the same samples an update",
                "gradient_checkpointing= for the largest modules",
            ]
        if self._mode != "split":
            ways.append('on_oom="split", which runs such a batch in parts with the same result')
        return f"Use {'; or '.join(ways)}."


def _is_inside_update(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "update" and "Updates" in frame.f_code.co_qualname for frame, _ in frames)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
