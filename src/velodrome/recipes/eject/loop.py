"""The loop of a script: `main`, and `evaluate` beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.recipes.eject.code import call, collection, indent

if TYPE_CHECKING:
    from velodrome.recipes.eject.plan import Plan

__all__ = ["evaluate_function", "main_function"]

_AUTO_DEVICE = 'device = torch.accelerator.current_accelerator(True) or torch.device("cpu")'


def evaluate_function(plan: Plan) -> str:
    """Return the function that gives the exact means over the validation data."""
    arguments = ["model: nn.Module", "inputs: Tensor", "targets: Tensor"]
    arguments += ["loss_function: nn.Module"] if plan.loss.needs_function else []
    lines = [
        "model.eval()",
        *_empty_sums(plan),
        "for x, y in zip(inputs.split(EVAL_BATCH_SIZE), targets.split(EVAL_BATCH_SIZE)):",
        indent([*_forward_and_loss(plan, "x.device.type", level=2), *_count(plan)]),
        collection("return {", _means("val", plan), level=1),
    ]
    head = call("def evaluate", arguments, " -> dict[str, float]:")
    about = '    """Return the means over all samples."""'
    return "\n".join(["@torch.inference_mode()", head, about, indent(lines), ""])


def main_function(plan: Plan) -> str:
    """Return `main`: options, data, model, and the loop."""
    train, (maker, arguments) = plan.recipe.train, plan.model
    lines = [*_options(plan), "", *_device(plan), *_data(plan), ""]
    lines += ["torch.manual_seed(SEED)", call(f"model = {maker}", arguments, ".to(device)", level=1)]
    if plan.frozen:
        lines += ["for name, parameter in model.named_parameters():"]
        lines += ["    parameter.requires_grad_(name not in FROZEN)"]
    if train.compile:
        mode = train.compile if isinstance(train.compile, str) and train.compile != "default" else ""
        lines.append(f'model.compile(mode="{mode}")' if mode else "model.compile()")
    setup = [plan.optimizer, plan.schedule.setup, plan.averages.setup, *plan.loss.setup, *plan.stepping.setup]
    setup += plan.stopping.setup
    lines += [line for line in setup if line]
    lines += ["", "torch.manual_seed(SEED)  # dropout does not depend on how the weights were drawn"]
    lines += ["for epoch in range(EPOCHS):" if train.epochs else "for epoch in itertools.count():"]
    lines += [indent(_epoch(plan))]
    saved = "averaged.module" if plan.averages.setup else "model"
    lines += ["", "if options.save is not None:", f"    torch.save({saved}.state_dict(), options.save)"]
    return "\n".join(["def main() -> None:", '    """Train, and print a line an epoch."""', indent(lines), ""])


def _options(plan: Plan) -> list[str]:
    lines = ["parser = argparse.ArgumentParser(description=__doc__)"]
    if plan.data.option:
        lines.append('parser.add_argument("--data", type=Path, default=DATA)')
    lines.append('parser.add_argument("--save", help="a file for the weights")')
    return [*lines, "options = parser.parse_args()"]


def _device(plan: Plan) -> list[str]:
    train = plan.recipe.train
    lines = [_AUTO_DEVICE if train.device == "auto" else f'device = torch.device("{train.device}")']
    if train.precision == "tf32":
        lines.append('torch.backends.cuda.matmul.fp32_precision = "tf32"')
        lines.append('torch.backends.cudnn.conv.fp32_precision = "tf32"')
    return lines


def _data(plan: Plan) -> list[str]:
    if plan.data.option:
        return [
            "data = load_data(options.data)  # stays on the device: batches are gathered there",
            "train_x, train_y, val_x, val_y = (tensor.to(device) for tensor in data)",
        ]
    names = ["train", *(["val"] if plan.has_val else [])]
    return [*plan.data.lines, *(f"{name}_x, {name}_y = {name}_x.to(device), {name}_y.to(device)" for name in names)]


def _epoch(plan: Plan) -> list[str]:
    """Return the body of the loop over epochs."""
    train, stepping = plan.recipe.train, plan.stepping
    order = "epoch_order(len(train_x), epoch)" if train.shuffle else "torch.arange(len(train_x))"
    batches = f"{order}.to(device).split(BATCH_SIZE)"
    body = [
        "x, y = train_x[rows], train_y[rows]",
        *_forward_and_loss(plan, "device.type", level=3),
        *_count(plan),
        *stepping.lines,
    ]
    lines = ["model.train()", *_empty_sums(plan)]
    if stepping.accumulates or train.drop_last:
        lines.append(f"batches = {batches}")
        batches = "batches"
    if train.drop_last:
        lines += ["if len(batches[-1]) < BATCH_SIZE:", "    batches = batches[:-1]"]
    lines += [*stepping.begin_epoch, f"for rows in {batches}:", indent(body), *plan.averages.after_training]
    lines.append(collection("row = {", ['"epoch": epoch + 1', *_means("train", plan)], level=2))
    if plan.has_val:
        function = ["loss_function"] if plan.loss.needs_function else []
        lines.append(call("row |= evaluate", [plan.averages.evaluated, "val_x", "val_y", *function], level=2))
    lines.append('print("  ".join(f"{name} {value!r}" for name, value in row.items()))')
    lines += [plan.schedule.after_epoch] if plan.schedule.after_epoch else []
    lines += plan.stopping.after_epoch
    return [*lines, *(["if step == STEPS:", "    break"] if train.steps is not None else [])]


def _forward_and_loss(plan: Plan, device_type: str, *, level: int) -> list[str]:
    loss = call(f"loss = {plan.loss.function}", plan.loss.arguments, level=level)
    if not plan.autocast:
        return ["output = model(x)", loss]
    return [
        f"with torch.autocast({device_type}, dtype={plan.autocast}):",
        "    output = model(x)",
        "output = output.float()  # loss and metrics in full precision",
        loss,
    ]


def _empty_sums(plan: Plan) -> list[str]:
    names = [metric.variable for metric in plan.metrics]
    return ["losses = []", *([" = ".join([*names, "num_predictions"]) + " = 0"] if names else [])]


def _count(plan: Plan) -> list[str]:
    counted = f"losses.append((loss.detach(), {plan.loss.count}))"
    lines = [counted]
    if plan.stepping.is_scaled:
        lines = ["if loss.isfinite():  # overflow is part of fp16", f"    {counted}"]
    lines += [line for metric in plan.metrics for line in metric.lines]
    return [*lines, *([f"num_predictions += {plan.metrics[0].count}"] if plan.metrics else [])]


def _means(name: str, plan: Plan) -> list[str]:
    ratios = [f'"{name}/{metric.name}": {metric.variable}.item() / num_predictions' for metric in plan.metrics]
    return [f'"{name}/loss": mean(losses)', *ratios]
