"""The parts of a script, put together: imports, constants, data, model, order, evaluation, and `main`, which is the loop."""

from __future__ import annotations

import copy
import re
import shlex
from typing import TYPE_CHECKING

import torch

import velodrome
from velodrome.recipes import registry
from velodrome.recipes.eject.average import averages_of
from velodrome.recipes.eject.code import NO_PART, Part, assign, wrap
from velodrome.recipes.eject.data import data_part
from velodrome.recipes.eject.loop import evaluate_function, main_function
from velodrome.recipes.eject.loss import loss_lines, metrics_of, try_model
from velodrome.recipes.eject.models import model_part
from velodrome.recipes.eject.optimizer import optimizer_part
from velodrome.recipes.eject.plan import Plan
from velodrome.recipes.eject.refuse import check_can_be_ejected
from velodrome.recipes.eject.schedule import schedule_of
from velodrome.recipes.eject.stopping import stopping_of
from velodrome.recipes.eject.updates import num_micro_batches, stepping_of
from velodrome.step.parameters import freeze
from velodrome.step.schedules.spans import RunLength

if TYPE_CHECKING:
    from collections.abc import Sequence

    from velodrome.recipes.build import Ready

__all__ = ["eject"]

_ORDER = '''\
def epoch_order(num_samples: int, epoch: int) -> Tensor:
    """Return the order of an epoch's samples, which depends on SEED and epoch only."""
    # Hashed, because SEED + epoch would give run 0's epoch 1 the order of run 1's epoch 0.
    digest = hashlib.sha256(f"order:{SEED}:{epoch}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
'''
_MEAN = '''\
def mean(losses: list[tuple[Tensor, int]]) -> float:
    """Return the mean over samples of (mean of a batch, samples in it).

    Python's floats have 64 bits, in which this sum is exact: no order changes it.
    """
    total = sum(value.item() * count for value, count in losses)
    return total / sum(count for _, count in losses)
'''


def eject(ready: Ready, *, source: str = "", overrides: Sequence[str] = ()) -> str:
    """Return the plain PyTorch script that trains what a recipe says and prints the same losses.

    Args:
        ready: a recipe with its data loaded and its model built.
        source, overrides: the recipe and the changes to it as they were given, for the script's first lines.
    Raises:
        RecipeError: something that no plain lines are written for, by the field's name.
    """
    recipe = ready.recipe
    check_can_be_ejected(recipe)
    data = data_part(ready)
    model, maker, arguments = model_part(recipe)
    optimizer, optimizer_lines = optimizer_part(recipe)
    loss = loss_lines(ready)
    averages = averages_of(ready)
    schedule = schedule_of(recipe, _run_length(ready), has_val=ready.data.val is not None)
    plan = Plan(
        recipe=recipe,
        data=data,
        has_val=ready.data.val is not None,
        model=(maker, arguments),
        frozen=_frozen(ready),
        optimizer=optimizer_lines,
        loss=loss,
        metrics=metrics_of(ready, try_model(ready)),
        schedule=schedule,
        averages=averages,
        stepping=stepping_of(recipe, schedule=schedule, averages=averages, loss=loss),
        stopping=stopping_of(recipe),
    )
    order = Part(imports=("import hashlib",), definitions=(_ORDER,)) if recipe.train.shuffle else NO_PART
    parts = [data.part, model, order, optimizer, loss.part, schedule.part, averages.part]
    definitions = [text for part in parts for text in part.definitions]
    definitions += [_MEAN, *([evaluate_function(plan)] if plan.has_val else []), main_function(plan)]
    body = "\n\n".join(definitions)
    constants = [*_constants(plan), *(line for part in parts for line in part.constants), *plan.stepping.constants]
    constants += plan.stopping.constants
    imports = _imports([line for part in parts for line in part.imports], body)
    return "\n".join(
        [
            _header(ready, plan, [source or ready.name, *overrides]),
            "",
            *imports,
            "",
            *constants,
            "",
            "",
            body,
            "",
            'if __name__ == "__main__":',
            "    main()",
            "",
        ]
    )


def _frozen(ready: Ready) -> list[str]:
    """Return the names of the parameters that the recipe's patterns freeze; the model is left as it is."""
    patterns = ready.recipe.train.freeze
    return freeze(copy.deepcopy(ready.model), patterns) if patterns else []


def _run_length(ready: Ready) -> RunLength:
    budget, per_epoch = ready.fit_arguments, -(-len(ready.train) // num_micro_batches(ready.recipe))
    return RunLength(steps_per_epoch=per_epoch, epochs=budget["epochs"], steps=budget["steps"])


def _constants(plan: Plan) -> list[str]:
    train = plan.recipe.train
    length = f"EPOCHS = {train.epochs}" if train.epochs else f"STEPS = {train.steps}  # updates"
    size = "  # samples a micro-batch" if plan.stepping.accumulates else "  # samples a step"
    constants = [assign("DATA", plan.data.option, plan.data.help)] if plan.data.option else []
    constants += [
        f"SEED = {train.seed}  # of weights, order and dropout",
        length,
        f"BATCH_SIZE = {train.loader_batch_size}{size}",
    ]
    if plan.has_val:
        constants.append(f"EVAL_BATCH_SIZE = {train.eval_batch_size}")
    if plan.frozen:
        constants.append(assign("FROZEN", plan.frozen, "Parameters that are not trained."))
    return constants


def _header(ready: Ready, plan: Plan, given: Sequence[str]) -> str:
    equal = f"to the last bit on the same CPU with the same torch ({torch.__version__})"
    if plan.recipe.train.compile:
        equal = "but for rounding: compiled code has its own, and the run times a few batches without it"
    about = [
        f"Train {ready.name} in plain PyTorch.",
        f"Prints the losses of `velodrome train {shlex.join(given)}`, {equal}. Made by velodrome {velodrome.__version__}, "
        f"and needs none of it.",
        f"Data: {plan.data.about}",
    ]
    if any(registry.is_user_code(table.name) for table in plan.recipe.named_tables().values()):
        about.append("Your own modules are imported: put this file beside them, or name their folder in PYTHONPATH.")
    text = "\n\n".join(wrap(each.replace("\\", "/").replace('"""', "'''")) for each in about)
    return f'"""{text}\n"""' if len(about) > 1 else f'"""{text}"""'


def _imports(given: list[str], body: str) -> list[str]:
    """Return the import lines in their usual order: the standard library, packages, the user's own modules."""
    standard = {"import argparse", "from pathlib import Path"} if "options" in body else {"import argparse"}
    standard |= {"import itertools"} if "itertools." in body else set()
    packages = {"import torch"}
    packages |= {"import torch.nn.functional as F"} if re.search(r"\bF\.", body) else set()
    names = ["Tensor", *(["nn"] if re.search(r"\bnn\.", body) else [])]
    packages.add(f"from torch import {', '.join(names)}")
    own = set()
    for line in given:
        root = line.split()[1].partition(".")[0]
        is_own = line.startswith("from") and " as " in line
        (own if is_own else packages if root in ("torch", "numpy") else standard).add(line)
    blocks = [_sorted(standard), _sorted(packages), _sorted(own)]
    return [line for block in blocks if block for line in ["", *block]][1:]


def _sorted(lines: set[str]) -> list[str]:
    return sorted(lines, key=lambda line: (line.startswith("from"), line.split()[1]))
