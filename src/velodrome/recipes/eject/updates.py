"""From the loss of a batch to the update: accumulation, loss scaling, clipping, as `velodrome.step.updates` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from velodrome.recipes.eject.code import indent
from velodrome.recipes.eject.refuse import refusal

if TYPE_CHECKING:
    from velodrome.recipes.eject.average import Averages
    from velodrome.recipes.eject.loss import LossLines
    from velodrome.recipes.eject.schedule import Scheduling
    from velodrome.recipes.schema import Recipe

__all__ = ["Stepping", "num_micro_batches", "stepping_of"]


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """The lines after the loss."""

    constants: tuple[str, ...]
    setup: tuple[str, ...]
    begin_epoch: tuple[str, ...]
    lines: tuple[str, ...]
    """backward, and the update at the end of a window"""
    is_scaled: bool
    counts_steps: bool
    accumulates: bool


def num_micro_batches(recipe: Recipe) -> int:
    """Return how many micro-batches make an update."""
    train = recipe.train
    return train.batch_size // train.micro_batch if train.micro_batch else train.accumulate or 1


def stepping_of(recipe: Recipe, *, schedule: Scheduling, averages: Averages, loss: LossLines) -> Stepping:
    """Return the lines that turn a loss into an update.

    Raises:
        RecipeError: fp16 with accumulation over tokens, whose scale depends on the first batch.
    """
    train = recipe.train
    accumulate = num_micro_batches(recipe)
    is_scaled = train.precision == "fp16"
    if is_scaled and accumulate > 1 and loss.count != "len(x)":
        raise refusal(
            "train.precision", "fp16", "With accumulation over tokens the scale of the loss follows the first batch."
        )
    counts_steps = train.steps is not None or averages.counts_steps
    scaled = "scaler.scale({})" if is_scaled else "{}"
    update = [
        *(["scaler.unscale_(optimizer)"] if is_scaled else []),
        *(_divide(loss) if accumulate > 1 else []),
        *(["nn.utils.clip_grad_value_(model.parameters(), CLIP_VALUE)"] if train.clip_value is not None else []),
        *(["nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)"] if train.clip_norm is not None else []),
        *_step_lines(is_scaled, [*averages.after_update, *([schedule.after_update] if schedule.after_update else [])]),
        "optimizer.zero_grad()",
        *(["window.clear()"] if accumulate > 1 else []),
        *(["step += 1"] if counts_steps and not averages.counts_steps else []),
        *(["if step == STEPS:", "    break"] if train.steps is not None else []),
    ]
    if averages.counts_steps:  # the average asks for the number of the update just made
        update.insert(0, "step += 1")
    if accumulate == 1:
        lines = [f"{scaled.format('loss')}.backward()", *update]
    else:
        weight = f"{loss.count} / window[0]" if loss.count == "len(x)" else loss.count
        weighted = f"loss * ({weight})" if "/" in weight else f"loss * {weight}"
        backward = f"{scaled.format(weighted)}.backward()" if is_scaled else f"({weighted}).backward()"
        lines = [
            f"# Gradients are summed, weighted with the {'samples' if loss.count == 'len(x)' else 'tokens'} of each micro-batch, and",
            "# divided once by those of all: exact for unequal ones and a short last window.",
            f"window.append({loss.count})",
            backward,
            "if len(window) == ACCUMULATE or rows is batches[-1]:",
            indent(update),
        ]
    return Stepping(
        constants=(
            *([f"ACCUMULATE = {accumulate}  # micro-batches an update"] if accumulate > 1 else []),
            *([f"CLIP_NORM = {train.clip_norm!r}  # largest norm of all gradients"] if train.clip_norm else []),
            *([f"CLIP_VALUE = {train.clip_value!r}  # largest size of one of them"] if train.clip_value else []),
        ),
        setup=(
            *(["scaler = torch.amp.GradScaler(device.type)"] if is_scaled else []),
            *(["step = 0  # updates done"] if counts_steps else []),
        ),
        begin_epoch=("window = []",) if accumulate > 1 else (),
        lines=tuple(lines),
        is_scaled=is_scaled,
        counts_steps=counts_steps,
        accumulates=accumulate > 1,
    )


def _divide(loss: LossLines) -> list[str]:
    """Return the lines that make the mean over the window, a short last one too, of the sums of its gradients."""
    divisor = "sum(window) / window[0]" if loss.count == "len(x)" else "sum(window)"
    return [
        "for parameter in model.parameters():",
        "    if parameter.grad is not None:",
        f"        parameter.grad /= {divisor}",
    ]


def _step_lines(is_scaled: bool, after: list[str]) -> list[str]:
    """Return the update and what follows it; fp16 skips both when a gradient has overflowed."""
    if not is_scaled:
        return ["optimizer.step()", *after]
    if not after:
        return ["scaler.step(optimizer)", "scaler.update()"]
    return [
        "scale = scaler.get_scale()",
        "scaler.step(optimizer)",
        "scaler.update()",
        "if scaler.get_scale() >= scale:  # else overflow: no update was made",
        indent(after),
    ]
