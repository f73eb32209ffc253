"""The named learning-rate curves, fitted to the run and written out as a function of the update's number."""

from __future__ import annotations

from dataclasses import dataclass

from velodrome.recipes.eject.code import Part
from velodrome.recipes.eject.refuse import refusal
from velodrome.step.schedules.drops import Exponential, Step
from velodrome.step.schedules.falls import Cosine, Linear, OneCycle, Polynomial, WarmupStableDecay
from velodrome.step.schedules.spans import RunLength, read_span
from velodrome.step.schedules.spec import Constant

__all__ = ["CURVES", "curve_part"]

CURVES = {
    kind.name: kind for kind in (Constant, Linear, Cosine, Polynomial, WarmupStableDecay, OneCycle, Exponential, Step)
}
_SHAPES = {
    "linear": "1 - t",
    "cosine": "0.5 * (1 + math.cos(math.pi * t))",
    "sqrt": "1 - math.sqrt(t)",
}
_FACTOR = '''\
def learning_rate_factor(step: int) -> float:
    """Return what the learning rate of an update is multiplied by."""
{body}
'''


@dataclass(frozen=True, kw_only=True)
class _Lines:
    constants: list[str]
    body: list[str]


def curve_part(spec: Constant, run: RunLength) -> Part:
    """Return the function `learning_rate_factor` and its constants.

    Args:
        spec: of a schedule with a name of ours.
        run: updates an epoch and budgets.
    Raises:
        RecipeError: a lowest learning rate that is not given as a share of the highest.
    """
    run = spec.fit(run)
    if isinstance(spec, OneCycle):
        found = _one_cycle(spec, run)
    else:
        rise, main = _rise(spec, run), _main(spec, run)
        found = _Lines(constants=rise.constants + main.constants, body=rise.body + main.body)
    body = "\n".join(f"    {line}" for line in found.body)
    imports = ("import math",) if "math." in body else ()
    return Part(imports=imports, constants=tuple(found.constants), definitions=(_FACTOR.format(body=body),))


def _rise(spec: Constant, run: RunLength) -> _Lines:
    updates = spec.warmup_updates(run)
    if not updates:
        return _Lines(constants=[], body=[])
    start = 1.0 / (updates + 1) if spec.warmup_start is None else spec.warmup_start
    return _Lines(
        constants=[
            f"WARMUP_STEPS = {updates}  # updates with a rising learning rate",
            f"WARMUP_START = {start!r}  # factor of the first one",
        ],
        body=["if step < WARMUP_STEPS:", "    return 1 - (1 - WARMUP_START) * (1 - step / WARMUP_STEPS)"],
    )


def _main(spec: Constant, run: RunLength) -> _Lines:
    warmup, total = spec.warmup_updates(run), run.total or 0
    begin = "WARMUP_STEPS" if warmup else ""
    if isinstance(spec, Linear):
        return _fall(_SHAPES["linear"], begin=begin, total=total, floor=spec.end_factor)
    if isinstance(spec, WarmupStableDecay):
        updates = round(read_span(spec.decay, "decay").updates(run))
        fall = _fall(_SHAPES[spec.shape], begin="DECAY_FROM", total=total, floor=_floor(spec))
        constant = f"DECAY_FROM = {total - updates}  # the last update with the full learning rate"
        return _Lines(
            constants=[constant, *fall.constants], body=["if step <= DECAY_FROM:", "    return 1.0", *fall.body]
        )
    if isinstance(spec, Polynomial):
        return _fall(f"(1 - t) ** {spec.power!r}", begin=begin, total=total, floor=_floor(spec))
    if isinstance(spec, Cosine):
        return _fall(_SHAPES["cosine"], begin=begin, total=total, floor=_floor(spec))
    since = "step - WARMUP_STEPS" if warmup else "step"
    if isinstance(spec, Exponential):
        per = read_span(spec.every, "every").updates(run)
        constants = [f"GAMMA = {spec.gamma!r}  # factor over GAMMA_STEPS", f"GAMMA_STEPS = {per!r}  # updates"]
        return _Lines(
            constants=constants,
            body=[f"return GAMMA ** (({since}) / GAMMA_STEPS)" if warmup else "return GAMMA ** (step / GAMMA_STEPS)"],
        )
    if isinstance(spec, Step) and spec.every is not None:
        per = max(1, round(read_span(spec.every, "every").updates(run)))
        constants = [f"GAMMA = {spec.gamma!r}  # factor of each drop", f"DROP_EVERY = {per}  # updates"]
        return _Lines(constants=constants, body=["return GAMMA ** (step // DROP_EVERY)"])
    if isinstance(spec, Step):
        points = sorted(round(read_span(value, "milestones").updates(run)) for value in spec.milestones)
        constants = [f"GAMMA = {spec.gamma!r}  # factor of each drop", f"DROPS = {points!r}  # updates"]
        return _Lines(constants=constants, body=["return GAMMA ** sum(step >= drop for drop in DROPS)"])
    return _Lines(constants=[], body=["return 1.0"])


def _fall(shape: str, *, begin: str, total: int, floor: float) -> _Lines:
    """Return the lines from 1 at `begin`, or at 0, down to the floor at the run's end."""
    constants = [f"TOTAL_STEPS = {total}  # updates of the whole run"]
    lines = ["if step >= TOTAL_STEPS:", f"    return {'MIN_FACTOR' if floor else '0.0'}"]
    lines.append(f"t = (step - {begin}) / (TOTAL_STEPS - {begin})" if begin else "t = step / TOTAL_STEPS")
    if floor:
        constants.append(f"MIN_FACTOR = {float(floor)!r}  # factor at its end")
        shape = f"MIN_FACTOR + (1 - MIN_FACTOR) * ({shape})"
    return _Lines(constants=constants, body=[*lines, f"return {shape}"])


def _one_cycle(spec: OneCycle, run: RunLength) -> _Lines:
    """Return the lines of one cycle: up to the last update of the warm-up, and down to the last update."""
    spec.warmup_updates(run)
    peak = max(read_span(spec.warmup, "warmup").updates(run) - 1, 0.0)
    start = 1 / 25 if spec.warmup_start is None else spec.warmup_start
    floor = 1 / 25e4 if spec.min_factor is None and spec.min_lr is None else _floor(spec)
    shape = _SHAPES[spec.shape]
    constants = [
        f"PEAK_STEP = {peak!r}  # the update with the full learning rate",
        f"LAST_STEP = {max((run.total or 0) - 1, 1)}",
        f"START_FACTOR = {start!r}",
        f"MIN_FACTOR = {float(floor)!r}",
    ]
    body = [
        "if step < PEAK_STEP:",
        "    t = step / PEAK_STEP",
        f"    return 1 - (1 - START_FACTOR) * ({shape})",
        "if step >= LAST_STEP:",
        "    return MIN_FACTOR",
        "t = (step - PEAK_STEP) / (LAST_STEP - PEAK_STEP)",
        f"return MIN_FACTOR + (1 - MIN_FACTOR) * ({shape})",
    ]
    return _Lines(constants=constants, body=body)


def _floor(spec: Cosine) -> float:
    if spec.min_lr is not None:
        raise refusal("scheduler.min_lr", spec.min_lr, "Give scheduler.min_factor, a share of the learning rate.")
    return spec.min_factor or 0.0
