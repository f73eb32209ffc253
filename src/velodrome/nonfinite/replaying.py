"""One step of a run once more, with every module watched: from the bundle of a number that was not finite, or from a checkpoint.

A checkpoint makes it exact: the run goes on from there as it did, up to the step, and writes nothing. A bundle is the batch and the
weights alone: quicker, and dropout draws other masks than it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.matching import copy_into_model
from velodrome.checkpoint.read import read_state
from velodrome.checkpoint.scan import check_files, find_checkpoints
from velodrome.data.batches import move
from velodrome.errors import ArgumentError, CheckpointError, NumericsError
from velodrome.loop.modes import training_mode
from velodrome.nonfinite.answers import Stop
from velodrome.nonfinite.bundle import read_bundle
from velodrome.nonfinite.inspection import Fault, describe_fault, find_fault
from velodrome.resume.going_on import GoingOn
from velodrome.resume.resumption import Resumption
from velodrome.seeding import random_state_kept, set_random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from torch import nn

    from velodrome.nonfinite.bundle import Bundle
    from velodrome.trainer import Trainer

__all__ = ["Replay", "find_start", "replay", "replay_bundle", "replay_run"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of a step when it was run again.

    Fields:
        step: of the update, counted from 1.
        epoch, batch: counted from 1; None where the bundle does not say.
        samples: indices into the data, where they are known.
        loss: of the micro-batch.
        fault: the first tensor that is not finite; None when all were finite.
        origin: what it was run from: a bundle or a checkpoint.
    """

    step: int
    epoch: int | None
    batch: int | None
    samples: list[int]
    loss: float
    fault: Fault | None
    origin: Path

    def __str__(self) -> str:
        """Return it in a few lines."""
        where = [f"step {self.step}"]
        where += [f"epoch {self.epoch}"] if self.epoch is not None else []
        where += [f"batch {self.batch}"] if self.batch is not None else []
        where += [f"samples {', '.join(map(str, self.samples[:8]))}"] if self.samples else []
        lines = [f"{', '.join(where)}: loss {self.loss:g}"]
        if self.fault is None:
            lines.append("Every number of this step is finite.")
        else:
            lines.append(f"Not finite first: {describe_fault(self.fault)}")
            lines += [self.fault.operation] if self.fault.operation else []
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return plain values; a loss that is not finite as text."""
        finite = abs(self.loss) < float("inf")
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "samples": self.samples,
            "loss": self.loss if finite else str(self.loss),
            "is_reproduced": self.fault is not None,
            "fault": None if self.fault is None else self.fault.as_json(),
            "origin": str(self.origin),
        }


def replay(
    bundle: str | Path,
    model: nn.Module,
    *,
    loss: Callable[[Any, Any], Any] | str | None = None,
    loss_args: Mapping[str, Any] | None = None,
    step_fn: Callable[[nn.Module, Any], Any] | None = None,
    precision: str = "fp32",
    device: str | torch.device = "auto",
) -> Replay:
    """Run the batch of a bundle through a model once more, and find the module that makes the first number that is not finite.

    Args:
        bundle: a folder such as `runs/mine/nonfinite/step-00000012`, which the error names.
        model: gets the bundle's weights.
        loss, loss_args, step_fn, precision, device: as they were given to the Trainer.
    Raises:
        ArgumentError: no bundle, or one without its batch or weights.
        CheckpointError: it is damaged, or the weights are another model's.
    """
    from velodrome.trainer import Trainer

    read = read_bundle(bundle)
    trainer = Trainer(
        model, None, loss=loss, loss_args=loss_args, step_fn=step_fn, precision=precision, device=device, progress=False
    )
    return replay_bundle(trainer, read)


def replay_bundle(trainer: Trainer, bundle: Bundle) -> Replay:
    """Run a bundle's batch through a trainer's model, which gets its weights.

    Raises:
        ArgumentError: the bundle holds no batch, or no weights.
        CheckpointError: the weights are another model's.
    """
    for name, has_it in (("batch", bundle.batch is not None), ("weights", bool(bundle.weights))):
        if not has_it:
            why = bundle.facts.get(f"no_{name}") or f"{bundle.facts.get('first', '')}."
            raise ArgumentError(
                f"{bundle.path} holds no {name}, so that its step cannot be run again from it: {why} Go on from a checkpoint before it, "
                f"with velodrome replay RUN {bundle.facts['step']} for a run of a recipe."
            )
    copy_into_model(trainer.model, bundle.weights, origin=bundle.path)
    batch = move(bundle.batch, trainer.device)
    engine, precision = trainer._engine, trainer._precision  # pyright: ignore[reportPrivateUsage]  (its own file)
    with random_state_kept(trainer.device), training_mode(trainer.model), precision.around(trainer.model):
        if bundle.random:
            set_random_state(bundle.random, trainer.device)
        loss, fault = find_fault(trainer.model, lambda: engine.forward(batch).loss)
    facts = bundle.facts
    return Replay(
        step=facts["step"],
        epoch=facts.get("epoch"),
        batch=facts.get("batch_number"),
        samples=list(facts.get("samples", ())),
        loss=float(loss.detach()),
        fault=fault,
        origin=bundle.path,
    )


def find_start(run_dir: Path, step: int) -> Path | None:
    """Return the newest checkpoint from which a run comes by this step, whole and with all its state; None when there is none."""
    for found in find_checkpoints(run_dir / "checkpoints"):
        if found.manifest is None or found.problem or found.manifest.step >= step:
            continue
        try:
            check_files(found.path, found.manifest, hashes=True)
            if isinstance(read_state(found.path, verify=False).get("resume"), dict):
                return found.path
        except CheckpointError:
            continue
    return None


def replay_run(trainer: Trainer, train: Any, val: Any, *, step: int, start: Path, **budget: Any) -> Replay:
    """Go on from a checkpoint as the run did, and watch one step.

    Args:
        trainer: without a run directory, made like that of the run.
        train, val: the data of the run.
        step: of the update to watch, counted from 1.
        start: the checkpoint.
        budget: epochs, steps and seconds of the run.
    Raises:
        ArgumentError: the run ends before that step.
    """
    run = trainer._run  # pyright: ignore[reportPrivateUsage]  (its own file)
    run.going_on = GoingOn(run, Resumption(start))
    for epoch in trainer.epochs(**budget):
        for batch in epoch.train(train):
            if trainer.progress.steps_done < step - 1:
                outcome = trainer.forward(batch)
                trainer.step(outcome.loss, items=outcome.items)
                trainer.measure(outcome)
                continue
            found = _watch(trainer, batch, step=step, start=start)
            if found.fault is not None or trainer.progress.steps_done >= step:
                return found
        if val is not None:
            for batch in epoch.evaluate(val):
                trainer.measure(trainer.forward(batch))
    raise ArgumentError(
        f"Step {step} was asked for, and the run ends after {trainer.progress.steps_done}. Give a step of the run, counted from 1."
    )


def _watch(trainer: Trainer, batch: Any, *, step: int, start: Path) -> Replay:
    """Run one micro-batch of the step with every module watched."""
    run = trainer._run  # pyright: ignore[reportPrivateUsage]  (its own file)
    run.nonfinite = Stop(run)
    source = run.position.source
    facts: dict[str, Any] = {
        "step": step,
        "epoch": run.row.get("epoch"),
        "batch": run.train_phase.batches_done + 1,
        "samples": [] if source is None else source.indices_of_batch(run.train_phase.batch_samples),
        "origin": start,
    }
    held: list[Any] = []

    def forward() -> torch.Tensor:
        held.append(trainer.forward(batch))
        return held[0].loss

    loss, fault = find_fault(trainer.model, forward)
    if fault is None:
        for updates in run.windows.by_name.values():
            updates.guard.looks_at_gradients = True
        try:
            trainer.step(loss, items=held[0].items)
        except NumericsError as error:  # a sum of gradients overflowed: of this window, or over its norm
            fault = Fault(
                module="", kind="gradient", tensor=str(error.fields.get("first", "")), num_nan=0, num_infinite=0, num_numbers=0,
                minimum=None, maximum=None,
            )  # fmt: skip
    return Replay(loss=float(loss.detach()), fault=fault, **facts)
