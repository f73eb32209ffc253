"""`velodrome verify resume RECIPE`: the proof that this very recipe resumes exactly.

| exit code | meaning |
|---|---|
| 0 | the run that was killed and resumed equals the one that was not |
| 1 | a run failed, or ended before it could be killed |
| 2 | the recipe or an argument is wrong |
| 3 | something differs: resuming this recipe is not exact |
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from velodrome.cli.screen import Screen, table
from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from velodrome.recipes.build import Ready
    from velodrome.recorded_runs.proof import Proof

__all__ = ["DIFFERENT", "verify_resume"]

DIFFERENT = 3
_SHOWN = 6
_MOST_BYTES = 2 << 30
_LEAST_STEPS = 12
_MOST_STEPS_FOR_AN_EPOCH = 100
_STEPS_OF_A_LONG_EPOCH = 30


def verify_resume(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    steps: int | None = None,
    processes: int = 1,
    device: str | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Train a recipe straight, then killed and resumed, and say whether the two are equal; return the exit code.

    Args:
        recipe: a built-in recipe's name or a TOML file.
        overrides: changes to it, such as "train.epochs=2".
        steps: updates of each run. Left out, the length that the overrides give, or else an epoch and a half where an epoch has at most
            100 steps, and 30 steps where it has more.
        processes: that train together.
        device: "cpu", "cuda", ...
        json: answer with one JSON object.
        quiet: say nothing but errors and the answer.
    Raises:
        RecipeError: the recipe is wrong.
        ArgumentError: its length is a time, which ends each run elsewhere; or it is given twice.
        VelodromeError: a run failed.
    """
    from velodrome.recipes.build import build
    from velodrome.recipes.read import load_recipe
    from velodrome.recorded_runs.proof import prove_resume

    screen = Screen(as_json=json, quiet=quiet)
    changes = [*overrides, *([f"train.device={device}"] if device else [])]
    own_length = _own_length(overrides)
    if steps is not None:
        if steps < 2:
            raise ArgumentError(f"--steps {steps} leaves nothing to resume. Give at least 2.")
        if own_length:
            raise ArgumentError(f"--steps {steps} was given together with {own_length}. Leave one of the two out.")
    ready = build(load_recipe(recipe, changes), say=screen.say_data)
    per_epoch = _steps_per_epoch(ready)
    if not own_length:
        steps = steps or _choose_steps(per_epoch)
        changes.append(f"train.steps={steps}")
        total = steps
    else:
        total = _total_steps(ready, per_epoch)
    command = _command(recipe, changes, ready, total=total, processes=processes)
    proof = prove_resume(command, steps_per_epoch=per_epoch, say=screen.say)
    _answer(screen, proof, recipe, processes=processes)
    return 0 if proof.is_exact else DIFFERENT


def _own_length(overrides: Sequence[str]) -> str:
    """Return the override that gives the run's length, or ""."""
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key == "train.seconds":
            raise ArgumentError(
                f"{text} was given. A run that a clock ends is never twice the same: give train.steps or train.epochs."
            )
        if key in ("train.steps", "train.epochs"):
            return text
    return ""


def _command(
    recipe: str, changes: Sequence[str], ready: Ready, *, total: int | None, processes: int
) -> Callable[[Path, str], list[str]]:
    """Return what gives the command line of each run: saves every few steps, rows at as many places, nothing drawn."""
    every = 5 if total is None else max(1, total // 8)
    # Every checkpoint that is kept is one more place at which the first difference can be found.
    num_bytes = 4 * sum(p.numel() * p.element_size() for p in ready.model.parameters())
    keep = max(2, min(1000, _MOST_BYTES // max(1, num_bytes)))
    settings = [
        f"checkpoint.every=every {every} steps", f"checkpoint.keep_last={keep}", f"logging.every={every} steps",
        "logging.tensorboard=false", "logging.curves=false", "logging.report=false", "logging.progress=false",
    ]  # fmt: skip
    start = [sys.executable, "-m", "velodrome", "train", recipe, *changes, *settings]
    several = ["--processes", str(processes)] if processes > 1 else []

    def command(folder: Path, name: str) -> list[str]:
        return [*start, "--out", str(folder), "--name", name, "--resume", "auto", "--json", "--quiet", *several]

    return command


def _steps_per_epoch(ready: Ready) -> int | None:
    try:
        batches = len(ready.train)
    except TypeError:
        return None
    return math.ceil(batches / ready.trainer_arguments.get("accumulate", 1))


def _choose_steps(per_epoch: int | None) -> int:
    """Return an epoch and a half where that is cheap: a kill inside an epoch, and an end of one on either side of it."""
    if per_epoch is None or per_epoch > _MOST_STEPS_FOR_AN_EPOCH:
        return _STEPS_OF_A_LONG_EPOCH
    return max(_LEAST_STEPS, per_epoch + math.ceil(per_epoch / 2))


def _total_steps(ready: Ready, per_epoch: int | None) -> int | None:
    train = ready.recipe.train
    if train.steps is not None:
        return train.steps
    return None if per_epoch is None or train.epochs is None else per_epoch * train.epochs


def _answer(screen: Screen, proof: Proof, recipe: str, *, processes: int) -> None:
    import torch

    from velodrome.recorded_runs.proof import likely_causes

    comparison, causes = proof.comparison, likely_causes(proof)
    threads = torch.get_num_threads()
    where: list[tuple[str, str]] = [
        (
            "Steps",
            f"{proof.steps:,}, killed by SIGKILL after the checkpoint of step {proof.resumed_from:,} and resumed from it",
        ),
        ("Compared", f"{len(comparison.steps_compared)} checkpoints, {comparison.num_rows} rows, the best epoch"),
        (
            "With",
            f"torch {torch.__version__}, {threads} thread{'s' * (threads != 1)}, {processes} process{'es' * (processes != 1)}",
        ),
        ("Took", f"{proof.seconds:.1f} s"),
    ]
    data: dict[str, Any] = {
        "equal": proof.is_exact,
        "steps": proof.steps,
        "resumed_from": proof.resumed_from,
        "steps_compared": list(comparison.steps_compared),
        "num_rows": comparison.num_rows,
        "torch": torch.__version__,
        "threads": threads,
        "processes": processes,
        "seconds": proof.seconds,
        "first_step_that_differs": comparison.step,
        "differs_before_the_kill": proof.differs_before_the_kill,
        "differences": [vars(each) for each in comparison.differences],
        "causes": causes,
        "warnings": list(proof.warnings),
    }
    if proof.is_exact:
        screen.answer(
            f"Exact: {recipe} ends the same whether it is killed or not. Weights, optimizer, schedule, averages, random state, position, "
            f"callbacks, rows and best epoch are equal, bit for bit; times aside.\n{table(where)}",
            data,
        )
        return
    first, *others = [each.text for each in comparison.differences]
    lines = [f"Different: {first}"]
    if proof.differs_before_the_kill:
        lines.append(
            f"It differs at step {comparison.step} already, before the kill: the recipe does not give the same numbers twice, resumed or not."
        )
    elif comparison.step is not None:
        lines.append(f"It is the first state that differs, in the checkpoint of step {comparison.step}.")
    lines += [f"  also {text}" for text in others[: _SHOWN - 1]]
    if len(others) >= _SHOWN:
        lines.append(f"  and {len(others) - _SHOWN + 1} more (--json lists them)")
    lines += ["Likely causes:", *(f"  - {cause}" for cause in causes)]
    lines += [f"The resumed run said: {line}" for line in proof.warnings]
    screen.answer("\n".join([*lines, table(where)]), data)
