"""What can be changed about a recipe to make it faster: one small object a technique.

Each says what it means in recipe fields, why it does not apply here when it does not, and what it may do to the numbers. All look at the
recipe and the facts of the best configuration so far: one that was taken may rule others out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from velodrome.advise.tuning.setup import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from velodrome.advise.tuning.facts import BenchFacts
    from velodrome.recipes.schema import Recipe

__all__ = ["NUMERICS", "Numerics", "Technique", "find_techniques"]

Numerics = Literal["equal", "close", "changed"]
NUMERICS: tuple[Numerics, ...] = ("equal", "close", "changed")
"""what a technique does to the numbers, from nothing to another arithmetic"""

_MOST_WORKERS = 8
_LARGEST_EVALUATION_BATCH = 16_384
_LARGER_BATCHES = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One thing that can be changed, with one or several values to try."""

    name: str
    choices: tuple[Change, ...] = ()
    why_not: str = ""
    """why there is nothing to try here"""
    numerics: Numerics = "equal"
    """the most that it is known to do to the numbers: each trial checks"""
    at_best: Numerics = "equal"
    """the least: where less is wished for it is not tried"""
    limit: float = 1e-4
    """largest relative difference of the mean loss over the first steps; more means that something is wrong"""
    compares: bool = True
    """whether the first steps see the same batches, so that their losses can be compared"""
    pays_later: bool = False
    """whether it costs time at the start, which the rest of the run has to earn back"""
    is_monotone: bool = False
    """whether the choices after one that is clearly slower are slower still"""


def find_techniques(recipe: Recipe, facts: BenchFacts, *, batch_size: bool = False) -> list[Technique]:
    """Return every technique, in the order in which they are tried: what feeds the model, then what runs it.

    Args:
        recipe: as it is.
        facts: what its baseline run showed.
        batch_size: try larger batches, which is another training.
    """
    finders: list[Callable[[Recipe, BenchFacts], Technique]] = [
        _in_memory, _resident, _workers, _pinned_memory, _threads, _evaluation_batch, _micro_batch, _fused, _channels_last,
        _graph_capture, _precision, _compile,
    ]  # fmt: skip
    found = [finder(recipe, facts) for finder in finders]
    return [_batch_size(recipe, facts), *found] if batch_size else [*found, _no_batch_size()]


def _only(field: str, *values: Any) -> tuple[Change, ...]:  # Any: what TOML holds
    return tuple(Change(fields={field: value}) for value in values)


def _workers(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, field = "workers", "train.num_workers"
    if facts.is_in_memory:
        return Technique(name=name, why_not="the data are in memory, which no worker can beat")
    if not facts.is_indexed:
        return Technique(
            name=name, why_not="the data bring a loader of their own; set its num_workers where it is made"
        )
    now, most = facts.num_workers, min(facts.cores, _MOST_WORKERS)
    counts = sorted({0, 1, 2, most // 2, most} - {now})
    found: list[Any] = [count for count in counts if count <= most]
    if recipe.train.num_workers != "auto":
        found.append("auto")
    return Technique(name=name, choices=_only(field, *found))


def _in_memory(recipe: Recipe, facts: BenchFacts) -> Technique:
    name = "data in memory"
    if recipe.train.in_memory:
        return Technique(name=name, why_not="the recipe says so already")
    if facts.is_in_memory:
        return Technique(name=name, why_not="they are already")
    if not facts.is_indexed:
        return Technique(name=name, why_not="the data are a loader, not a dataset or tensors")
    # Reading all of it once comes before the first step.
    return Technique(name=name, choices=_only("train.in_memory", True), pays_later=True)


def _resident(recipe: Recipe, facts: BenchFacts) -> Technique:
    name = "data on the device"
    if facts.device != "cuda":
        return Technique(name=name, why_not="for CUDA only")
    if not facts.is_in_memory:
        return Technique(name=name, why_not="the data are not in memory as whole tensors")
    if facts.is_resident:
        return Technique(name=name, why_not="they are there already")
    return Technique(name=name, choices=_only("train.resident", True), pays_later=True)


def _pinned_memory(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, field = "pinned memory", "train.pin_memory"
    if facts.device != "cuda":
        return Technique(name=name, why_not="for CUDA only")
    if facts.is_in_memory:
        return Technique(name=name, why_not="batches come from memory, and on the device where they fit")
    if not facts.is_indexed:
        return Technique(name=name, why_not="the data bring a loader of their own; set its pin_memory where it is made")
    return Technique(name=name, choices=_only(field, recipe.train.pin_memory is not True))


def _threads(recipe: Recipe, facts: BenchFacts) -> Technique:
    if facts.cores == 1:
        return Technique(name="threads", why_not="there is one core")
    if facts.device != "cpu":
        return Technique(name="threads", why_not="the arithmetic is not on the CPU")
    counts = {1, 2, facts.cores // 4, facts.cores // 2, facts.cores} - {0, facts.threads}
    choices = _only("train.threads", *sorted(counts, reverse=True))
    # Sums are split among threads, so the last digits depend on how many there are.
    return Technique(name="threads", choices=choices, numerics="close")


def _evaluation_batch(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, field = "evaluation batch", "train.eval_batch_size"
    if not facts.has_validation:
        return Technique(name=name, why_not="there are no validation data")
    if facts.num_val_samples is None:
        return Technique(name=name, why_not="the validation data bring batches of their own")
    now = recipe.train.eval_batch_size
    sizes = {now // 4, now * 4, min(facts.num_val_samples, _LARGEST_EVALUATION_BATCH)}
    choices = _only(
        field, *sorted(size for size in sizes if 1 <= size <= max(facts.num_val_samples, now) and size != now)
    )
    return Technique(name=name, choices=choices)


def _micro_batch(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, now, size = "micro-batch", recipe.train.micro_batch, recipe.train.batch_size
    if now is None:
        return Technique(name=name, why_not="the recipe has none: an update is one batch")
    larger = [each for each in (2 * now, 4 * now, size) if each <= size and size % each == 0]
    return Technique(
        name=name, choices=_only("train.micro_batch", *dict.fromkeys(larger)), numerics="close", at_best="close"
    )


def _fused(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, given = "fused optimizer", recipe.optimizer.arguments.get("fused")
    if ":" in recipe.optimizer.name:
        return Technique(name=name, why_not="the optimizer is code of your own")
    if given is None and not facts.optimizer_is_fused:
        return Technique(name=name, why_not=f"torch has no fused {recipe.optimizer.name} for this device")
    return Technique(name=name, choices=_only("optimizer.fused", not facts.optimizer_is_fused), numerics="close")


def _channels_last(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, field = "channels_last", "train.channels_last"
    if not facts.has_convolutions:
        return Technique(name=name, why_not="the model has no convolution over pictures")
    return Technique(
        name=name, choices=_only(field, recipe.train.channels_last is not True), numerics="close", at_best="close"
    )


def _graph_capture(recipe: Recipe, facts: BenchFacts) -> Technique:
    name, field = "graph capture", "train.engine"
    if facts.device != "cuda":
        return Technique(name=name, why_not="for CUDA only")
    if recipe.train.compile or recipe.train.engine == "compiled":
        return Technique(name=name, why_not="the model is compiled: one of the two runs the steps")
    other = "eager" if recipe.train.engine == "captured" else "captured"
    return Technique(name=name, choices=_only(field, other), numerics="close", pays_later=True)


def _precision(recipe: Recipe, facts: BenchFacts) -> Technique:
    now = recipe.train.precision or "fp32"
    names = ["bf16"] if facts.device != "cuda" else ["bf16", "fp16", *(["tf32"] if facts.can_tf32 else [])]
    choices = _only("train.precision", *[name for name in names if name != now])
    return Technique(name="precision", choices=choices, numerics="changed", at_best="changed", limit=0.02)


def _compile(recipe: Recipe, facts: BenchFacts) -> Technique:
    if recipe.train.engine == "compiled":
        off = {"train.engine": "eager", **({"train.compile": False} if recipe.train.compile else {})}
        return Technique(name="compile", choices=(Change(fields=off),), numerics="close", at_best="close")
    if recipe.train.compile:
        return Technique(name="compile", choices=_only("train.compile", False), numerics="close", at_best="close")
    if recipe.train.engine is not None and recipe.train.engine != "auto":
        return Technique(name="compile", why_not=f'engine="{recipe.train.engine}" says already what runs the steps')
    # Compiled dropout draws other numbers: the loss is that of another draw.
    limit = 0.2 if facts.has_dropout else 1e-3
    at_best: Numerics = "changed" if facts.has_dropout else "close"
    return Technique(
        name="compile",
        choices=_only("train.compile", True),
        numerics="changed",
        at_best=at_best,
        limit=limit,
        pays_later=True,
    )


def _batch_size(recipe: Recipe, facts: BenchFacts) -> Technique:
    now, total = recipe.train.batch_size, facts.num_train_samples
    if total is None:
        return Technique(name="batch size", why_not="the data bring batches of their own")
    sizes = [factor * now for factor in _LARGER_BATCHES if factor * now <= total]
    return Technique(
        name="batch size", choices=_only("train.batch_size", *sizes), numerics="changed", at_best="changed", compares=False, is_monotone=True,
        why_not="" if sizes else f"the data have {total:,} samples, and a batch {now}",
    )  # fmt: skip


def _no_batch_size() -> Technique:
    return Technique(
        name="batch size",
        why_not="larger batches are another training, with another learning rate; --batch-size tries them",
    )
