"""What is known of a number that is not finite: where in the run it came up, what was bad first, and the sentences about it."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.checkpoint.names import clean_names
from velodrome.data.batches import named_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from velodrome.run.run import Run
    from velodrome.step.guard import NonFinite
    from velodrome.step.updates import Updates

__all__ = ["NonFiniteFacts", "collect_facts", "count_non_finite", "say_what_happened", "say_what_next"]

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class NonFiniteFacts:
    """Where it came up.

    Fields:
        step: of the update that it would have reached, counted from 1.
        epoch, batch: counted from 1; the batch is None where the device's flag was read late.
        samples: their indices in the data, where the loader's order says so.
        lr: of the update.
        what: "loss", "gradient" or "gradient norm".
        value: as text, since JSON has no NaN.
        first: what was not finite first, in words.
        first_kind: "input", "weight", "buffer", "gradient", "loss" or "unknown".
        first_name: of the tensor.
        rank: of the process that found it.
    """

    step: int
    epoch: int
    batch: int | None
    samples: list[int]
    lr: float
    what: str
    value: str
    first: str
    first_kind: str
    first_name: str
    rank: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values; the batch itself takes the name "batch" in a bundle."""
        return {"batch_number" if name == "batch" else name: value for name, value in asdict(self).items()}


def collect_facts(run: Run, found: NonFinite, updates: Updates) -> NonFiniteFacts:
    """Gather what is known; waits for the device as often as it likes, for something is wrong already."""
    # A flag that is read right after the update it stopped, or before, is no surprise: the batch is still there.
    is_late = found.updates_ago is not None and (
        found.updates_ago > 1 or not run.position.is_in_batch or (found.updates_ago == 1 and updates.accumulate > 1)
    )
    step = run.progress.steps_done + 1 - (found.updates_ago or 0)
    kind, name, first = _find_first(run, found, updates, batch=None if is_late else run.position.batch)
    return NonFiniteFacts(
        step=step,
        epoch=run.row.get("epoch", run.progress.epoch),
        batch=None if is_late else run.train_phase.batches_done + 1,
        samples=[] if is_late or not run.is_alone else _samples(run),
        lr=float(updates.optimizer.param_groups[0].get("lr", float("nan"))),
        what=found.place,
        value=str(found.value),
        first=first,
        first_kind=kind,
        first_name=name,
        rank=run.world.rank,
    )


def say_what_happened(facts: NonFiniteFacts, *, is_alone: bool = True) -> str:
    """Return the sentences of fact: what, where, and what was bad first."""
    where = [f"epoch {facts.epoch}", *([f"batch {facts.batch}"] if facts.batch is not None else [])]
    if facts.samples:
        shown = ", ".join(map(str, facts.samples[:_SHOWN])) + (", ..." if len(facts.samples) > _SHOWN else "")
        where.append(f"samples {shown}")
    where += [f"lr {facts.lr:g}", *([] if is_alone else [f"rank {facts.rank}"])]
    became = {"gradient": "A gradient", "gradient norm": "The gradient norm"}.get(facts.what, "The training loss")
    return f"{became} became {facts.value} at step {facts.step} ({', '.join(where)}). Not finite first: {facts.first}."


def say_what_next(facts: NonFiniteFacts, bundle: Path | None, run_dir: Path | None) -> str:
    """Return the sentences of advice: where the batch lies and what shows more of it."""
    hints = {
        "input": "Look at how this batch was made.",
        "weight": "Try a smaller lr, or clip_norm=; look at the gradients of that layer: grad_norms=True looks at them in every step.",
    }
    hint = hints.get(
        facts.first_kind,
        "Try a smaller lr, or look at the data and at log, sqrt and division in the model and the loss.",
    )
    if run_dir is None:
        return f"{hint} With run_dir= the batch would have been kept."
    by_recipe = (run_dir / "recipe.toml").is_file()
    command = f"velodrome replay {shlex.quote(str(run_dir))} {facts.step}" if by_recipe else ""
    if facts.batch is None and not command:
        return f'{hint} The batch was gone when the device was read; log_every="1 step" reads it in every step, and keeps the batch.'
    if bundle is None:
        return f"{hint}{f' To see which module made it: {command}' if command else ''}"
    command = command or f'velodrome.replay("{bundle}", model, ...)'
    return f"{hint} The batch is in {bundle}. To see which module made it: {command}"


def count_non_finite(tensor: Tensor) -> str:
    """Return how many numbers are not finite, in words, or "" when all are; the -inf of a mask, 0 elsewhere, are meant."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return ""
    values = tensor.detach()
    values = values.coalesce().values() if values.is_sparse else values
    num = int((~torch.isfinite(values)).sum())
    if not num:
        return ""
    num_nan = int(torch.isnan(values).sum())
    if not num_nan and not values.is_complex() and not values[values != -torch.inf].any():
        return ""
    kinds = [*([f"{num_nan:,} NaN"] if num_nan else []), *([f"{num - num_nan:,} infinite"] if num > num_nan else [])]
    return f"{' and '.join(kinds)} of {values.numel():,} numbers"


def _find_first(run: Run, found: NonFinite, updates: Updates, *, batch: Any) -> tuple[str, str, str]:
    """Return kind, name and description of what was not finite first: what goes in before what comes out."""
    named = dict(run.model.named_parameters())
    names = {id(parameter): clean for name, clean in clean_names(named).items() for parameter in (named[name],)}
    candidates: list[tuple[str, Iterable[tuple[str, Tensor]]]] = [
        ("input", named_tensors(batch)),
        ("weight", ((names[id(each)], each) for each in named.values())),
    ]
    if found.place == "loss":  # forward has written statistics by then; the input that ruined them was found above
        candidates.append(("buffer", run.model.named_buffers()))
    for kind, tensors in candidates:
        for name, tensor in tensors:
            how = count_non_finite(tensor)
            if how:
                what = f"the input {name!r}" if kind == "input" else f"the {kind} {name!r}"
                since = ", which an update before this one has written" if kind == "weight" else ""
                return kind, name, f"{what} ({how}){since}"
    if found.parameter is not None:
        name = names.get(id(found.parameter), "of the optimizer, not of the model")
        grad = found.parameter.grad
        how = "" if grad is None else count_non_finite(grad)
        return "gradient", name, f"the gradient of {name!r}{f' ({how})' if how else ''}"
    if found.place == "loss":
        return "loss", "loss", "the loss itself; inputs and weights are finite"
    if found.place == "gradient norm":
        return "gradient", "", "the norm alone: each gradient is finite, and the sum of their squares is not"
    return (
        "unknown",
        "",
        "a gradient, whose name was not kept: the device was not waited for"
        if (found.updates_ago is not None)
        else "something in another process",
    )


def _samples(run: Run) -> list[int]:
    source = run.position.source
    return [] if source is None else source.indices_of_batch(run.train_phase.batch_samples)
