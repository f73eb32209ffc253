"""Optimizers by name: any class of `torch.optim`, fused where that is exact enough and faster."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from velodrome.errors import ArgumentError, nearest
from velodrome.step.parameters import parameter_groups
from velodrome.step.without_compiler import without_compiler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["known_names", "resolve_optimizer", "resolve_optimizers"]

_NOT_PLAIN = {
    "Optimizer",
    "LBFGS",
}  # LBFGS calls the loss again and again: it needs a closure that the loop does not have


def known_names() -> list[str]:
    """Return the names that `optimizer=` accepts: the classes of `torch.optim` in lower case."""
    return sorted(_classes())


def resolve_optimizer(
    optimizer: object,
    model: nn.Module,
    *,
    lr: float | None = None,
    arguments: dict[str, Any] | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> Optimizer:
    """Turn what the user gave as `optimizer` into an optimizer over the model's trainable parameters.

    A name makes a fused optimizer where torch has one (CPU and CUDA; measured 1.1x to 1.4x a step for small models, and its
    results differ from the plain one by rounding only: pass `fused=False` for bit-parity with `torch.optim`'s default).
    An instance is used as it is.

    Args:
        optimizer: an instance, a factory `parameters -> Optimizer`, or a name.
        model: already on its device.
        lr: for a name or a factory that takes it.
        arguments: for a name: the arguments of the class.
        groups: for a name or a factory: options by pattern of parameter or module names, as `parameter_groups` takes them.
    Raises:
        ArgumentError: an unknown name, argument or option, no trainable parameter, or an instance that holds none of them.
    """
    arguments = dict(arguments or {})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        total = sum(1 for _ in model.parameters())
        raise ArgumentError(
            f"The model has no trainable parameter ({total} parameters, all frozen). Training needs at least one with requires_grad=True."
        )
    if isinstance(optimizer, Optimizer):
        _refuse_extras(lr, arguments, groups, "an optimizer instance")
        _check_holds(optimizer, parameters, model)
        return optimizer
    given = parameter_groups(model, _checked(groups)) if groups else parameters
    if isinstance(optimizer, str):
        made = _named(optimizer, parameters, given, lr, arguments)
        _check_options(made, groups)
        return made
    if callable(optimizer):
        if lr is not None:
            arguments["lr"] = lr
        with without_compiler():
            made = optimizer(given, **arguments)
        if not isinstance(made, Optimizer):
            raise ArgumentError(
                f"The optimizer factory returned a {type(made).__name__}. It must return a torch.optim.Optimizer."
            )
        _check_options(made, groups)
        _check_holds(made, parameters, model)
        return made
    raise ArgumentError(
        f"optimizer={optimizer!r} is no optimizer. Give a name, a torch.optim.Optimizer, or a function parameters -> Optimizer."
    )


def resolve_optimizers(
    optimizers: Mapping[str, object],
    model: nn.Module,
    *,
    lr: float | None = None,
    arguments: dict[str, Any] | None = None,
) -> dict[str, Optimizer]:
    """Turn several optimizers of one model into instances, by name.

    Args:
        optimizers: an instance, or, where the name is that of a submodule (a `ModuleDict`'s key, say), a factory or an
            optimizer's name, which then gets that submodule's parameters.
        model: already on its device.
        lr, arguments: for all that are given by name or factory.
    Raises:
        ArgumentError: see `resolve_optimizer`; a parameter that two of them hold, or a name without a submodule.
    """
    if not optimizers:
        raise ArgumentError("optimizer={} holds no optimizer. Give at least one, or None for a trainer that evaluates.")
    resolved: dict[str, Optimizer] = {}
    holder: dict[int, str] = {}
    children = dict(model.named_modules())
    for name, given in optimizers.items():
        if isinstance(given, Optimizer):
            made = resolve_optimizer(given, model)
        elif name in children:
            made = resolve_optimizer(given, children[name], lr=lr, arguments=dict(arguments or {}))
        else:
            raise ArgumentError(
                f"optimizer[{name!r}] is no instance, and the model has no submodule {name!r} whose parameters it could get. "
                f"{nearest(name, [child for child in children if child])} Or give a torch.optim.Optimizer."
            )
        for group in made.param_groups:
            for parameter in group["params"]:
                if id(parameter) in holder:
                    raise ArgumentError(
                        f"optimizer[{name!r}] and optimizer[{holder[id(parameter)]!r}] hold the same parameter, of shape "
                        f"{tuple(parameter.shape)}. Give each parameter to one optimizer."
                    )
                holder[id(parameter)] = name
        resolved[name] = made
    return resolved


def _named(
    name: str, parameters: list[nn.Parameter], given: list[Any], lr: float | None, arguments: dict[str, Any]
) -> Optimizer:
    classes = _classes()
    kind = classes.get(name.lower())
    if kind is None:
        hint = (
            "LBFGS needs a closure, which the loop does not have."
            if name.lower() == "lbfgs"
            else nearest(name, classes)
        )
        raise ArgumentError(f"optimizer={name!r} is not a known optimizer. {hint}")
    signature = inspect.signature(kind).parameters
    if lr is not None:
        _check_lr(lr, "lr")
        arguments["lr"] = lr
    for argument in arguments:
        if argument not in signature or argument == "params":
            raise ArgumentError(
                f"optimizer {name!r} has no argument {argument!r}. {nearest(argument, [p for p in signature if p != 'params'])}"
            )
    if "betas" in arguments:
        arguments["betas"] = tuple(arguments["betas"])
    if "fused" in signature and not {"fused", "foreach", "differentiable"} & arguments.keys() and _can_fuse(parameters):
        arguments["fused"] = True
    try:
        with without_compiler():
            return kind(given, **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ArgumentError(f"torch.optim.{kind.__name__} refused its arguments: {error}") from error


def _classes() -> dict[str, Callable[..., Optimizer]]:
    return {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and name not in _NOT_PLAIN
    }


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() and not p.is_sparse for p in parameters)


def _check_lr(lr: object, name: str) -> None:
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not lr >= 0:
        raise ArgumentError(f"{name}={lr!r} is not a learning rate. It must be a number of at least 0.")


def _checked(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the options with those that TOML has as lists as tuples; torch looks at no group's learning rate, so this does."""
    made = {pattern: dict(options) if isinstance(options, Mapping) else options for pattern, options in groups.items()}
    for pattern, options in made.items():
        if isinstance(options, Mapping) and "lr" in options and not isinstance(options["lr"], Tensor):
            _check_lr(options["lr"], f"groups[{pattern!r}]: lr")
        if isinstance(options, Mapping) and "betas" in options:
            options["betas"] = tuple(options["betas"])
    return made


def _check_options(optimizer: Optimizer, groups: Mapping[str, Mapping[str, Any]] | None) -> None:
    """Refuse options of groups that the optimizer does not know: it would keep them and never look."""
    for pattern, options in (groups or {}).items():
        for option in options:
            if option not in optimizer.defaults:
                raise ArgumentError(
                    f"groups[{pattern!r}]: {type(optimizer).__name__} has no option {option!r}. {nearest(option, optimizer.defaults)}"
                )


def _refuse_extras(lr: float | None, arguments: dict[str, Any], groups: object, what: str) -> None:
    if lr is not None or arguments or groups:
        names = [*(["lr"] if lr is not None else []), *sorted(arguments), *(["groups"] if groups else [])]
        extras = ", ".join(names)
        raise ArgumentError(
            f"{extras} was given together with {what}, which has its own. Set it there, or give the optimizer by name."
        )


def _check_holds(optimizer: Optimizer, parameters: Iterable[nn.Parameter], model: nn.Module) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in parameters):
        raise ArgumentError(
            f"The optimizer holds {len(held)} parameters, none of them a trainable parameter of this {type(model).__name__}. "
            f"It was made for another model, or before its layers were replaced: make it anew from model.parameters()."
        )
