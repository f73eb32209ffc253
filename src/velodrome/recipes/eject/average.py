"""The average of the weights that a recipe keeps, through `torch.optim.swa_utils`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  (what torch's update_bn looks for)

from velodrome.recipes.eject.code import NO_PART, Part, call
from velodrome.recipes.eject.refuse import refusal

if TYPE_CHECKING:
    from velodrome.recipes.build import Ready

__all__ = ["Averages", "averages_of"]


@dataclass(frozen=True, kw_only=True)
class Averages:
    """How a script averages the weights; with nothing in it, not at all."""

    part: Part = NO_PART
    setup: str = ""
    after_update: tuple[str, ...] = ()
    after_training: tuple[str, ...] = ()
    """at the end of an epoch's updates"""
    evaluated: str = "model"
    """which model is evaluated"""
    counts_steps: bool = False
    """whether `step` must count the updates"""


def averages_of(ready: Ready) -> Averages:
    """Return the lines of the average.

    Raises:
        RecipeError: an average that must recompute BatchNorm statistics.
    """
    rule: Any = ready.trainer_arguments.get("ema")
    if rule is None:
        return Averages()
    if getattr(rule, "warmup", False):
        raise refusal("ema.warmup", True, "torch's averages have one decay: leave it out.")
    budget = ready.fit_arguments
    first_step, first_epoch = rule.find_start(epochs=budget["epochs"], steps=budget["steps"])
    is_scaled = ready.recipe.train.precision == "fp16"
    if is_scaled and rule.kind == "ema" and (first_step or rule.steps_between > 1):
        raise refusal(
            "ema.every" if rule.steps_between > 1 else "ema.start",
            rule.every if rule.steps_between > 1 else rule.start,
            "With fp16 it counts only updates that were not skipped: average every update from the first on.",
        )
    update = "averaged.update_parameters(model)"
    evaluated = "model"
    if rule.evaluates_averaged:
        starts_at_once = rule.steps_between == 1 and not (first_step or first_epoch or is_scaled)
        evaluated = "averaged" if starts_at_once else "averaged if averaged.n_averaged > 0 else model"
    part = Part(imports=("from torch.optim import swa_utils",))
    if rule.kind == "swa":
        if any(isinstance(module, _BatchNorm) for module in ready.model.modules()):
            raise refusal(
                "ema.kind", "swa", "The statistics of BatchNorm layers would have to be computed anew: use ema."
            )
        setup = call(
            "averaged = swa_utils.AveragedModel", ["model", "multi_avg_fn=swa_utils.get_swa_multi_avg_fn()"], level=1
        )
        conditions = [f"epoch >= {first_epoch}"] if first_epoch else []
        conditions += [f"step > {first_step}"] if first_step else []
        if rule.epochs_between > 1:
            done = f"(epoch + 1 - {first_epoch})" if first_epoch else "(epoch + 1)"
            conditions.append(f"{done} % {rule.epochs_between} == 0")
        return Averages(
            part=part,
            setup=setup,
            after_training=_under(conditions, update),
            evaluated=evaluated,
            counts_steps=first_step > 0,
        )
    arguments = ["model", f"multi_avg_fn=swa_utils.get_ema_multi_avg_fn({rule.decay!r})"]
    arguments += ["use_buffers=True"] if _averages_buffers(ready) else []
    conditions = [f"epoch >= {first_epoch}"] if first_epoch else []
    conditions += [f"step > {first_step}"] if first_step else []
    if rule.steps_between > 1:
        done = f"(step - {first_step})" if first_step else "step"
        conditions.append(f"{done} % {rule.steps_between} == 0")
    return Averages(
        part=part,
        setup=call("averaged = swa_utils.AveragedModel", arguments, level=1),
        after_update=_under(conditions, update),
        evaluated=evaluated,
        counts_steps=first_step > 0 or rule.steps_between > 1,
    )


def _averages_buffers(ready: Ready) -> bool:
    """Return whether there are running statistics: means over the last batches themselves, averaged with the weights.

    Raises:
        RecipeError: there are other buffers of real numbers too, which are copied; torch's average knows all or none.
    """
    floats = [name for name, buffer in ready.model.named_buffers() if buffer.is_floating_point()]
    others = [name for name in floats if not name.rpartition(".")[2].startswith("running_")]
    if others and len(others) < len(floats):
        raise refusal(
            "ema.kind", "ema", f"The model's buffer {others[0]!r} is copied and others are averaged: leave [ema] out."
        )
    return bool(floats) and not others


def _under(conditions: list[str], line: str) -> tuple[str, ...]:
    return (f"if {' and '.join(conditions)}:", f"    {line}") if conditions else (line,)
