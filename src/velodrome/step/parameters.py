"""Parameters by pattern: freezing them, groups with options of their own, and which ones an optimizer misses.

A pattern is a shell pattern over the names of parameters and modules; `*` also matches dots. One that matches a module stands
for every parameter below it: "encoder", "encoder.*" and "enc*" all mean the encoder. A parameter that is tied under several names is meant
by each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.optim import Optimizer

from velodrome.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "HeldInVain",
    "check_patterns",
    "freeze",
    "held_in_vain",
    "hint_names",
    "parameter_groups",
    "unheld_parameters",
]


class HeldInVain(NamedTuple):
    """Parameters that optimizers hold and that this model will not train."""

    frozen: list[str]
    """Names of parameters with requires_grad=False."""
    foreign: list[str]
    """What belongs to another model, as "SGD, group 0, parameter 2 of shape (4, 2)"."""


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Set requires_grad=False for the parameters that the patterns match.

    Running statistics of normalisation layers are no parameters: they go on following the data in training mode.

    Returns:
        The names of these parameters, in the model's order.
    Raises:
        ArgumentError: a pattern matches no parameter; then nothing is frozen.
    """
    meant = {id(parameter) for found in _match(model, _as_list(patterns)).values() for parameter in found}
    frozen = []
    for name, parameter in model.named_parameters():
        if id(parameter) in meant:
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def parameter_groups(model: nn.Module, groups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups for an optimizer.

    Several patterns may match one parameter: it gets the options of all of them, a later pattern overriding an earlier one
    option by option. Parameters whose options agree share a group; those without any are the group "default", which comes first.
    Every group has a "name", its patterns joined by " + "; torch's optimizers keep it beside the options.

    Args:
        model: its parameters with requires_grad=True are sorted.
        groups: options by pattern, such as {"head": {"lr": 1e-3}, "*.bias": {"weight_decay": 0.0}}.
    Raises:
        ArgumentError: a pattern matches no trainable parameter, or its options are none.
    """
    matches = _match(model, list(groups))
    for pattern, options in groups.items():
        if not isinstance(options, Mapping) or not options or {"params", "name"} & options.keys():
            raise ArgumentError(
                f"groups[{pattern!r}]={options!r} are no options. Give some of the optimizer's arguments, such as "
                f'{{"lr": 1e-3}} or {{"weight_decay": 0.0}}.'
            )
        if not any(parameter.requires_grad for parameter in matches[pattern]):
            raise ArgumentError(
                f"groups[{pattern!r}] matches {len(matches[pattern])} parameters, all of them frozen. Options change nothing there: "
                f"leave the pattern out, or do not freeze them."
            )
    meant = {pattern: {id(parameter) for parameter in found} for pattern, found in matches.items()}
    made: list[dict[str, Any]] = [{"params": [], "name": "default"}]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        hits = [pattern for pattern in groups if id(parameter) in meant[pattern]]
        options = {name: value for pattern in hits for name, value in groups[pattern].items()}
        same = next((group for group in made if _options(group) == options), None)
        if same is None:
            made.append({"params": [parameter], **options, "name": " + ".join(hits)})
        else:
            same["params"].append(parameter)
    return [group for group in made if group["params"]]


def unheld_parameters(model: nn.Module, optimizers: Optimizer | Iterable[Optimizer]) -> list[str]:
    """Return the names of trainable parameters that no optimizer holds: nothing will change them."""
    held = {id(parameter) for _, parameter in _held(optimizers)}
    return [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in held
    ]


def held_in_vain(model: nn.Module, optimizers: Optimizer | Iterable[Optimizer]) -> HeldInVain:
    """Return what optimizers hold without training it: frozen parameters, and those of another model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = HeldInVain([], [])
    for place, parameter in _held(optimizers):
        if id(parameter) not in names:
            found.foreign.append(f"{place} of shape {tuple(parameter.shape)}")
        elif not parameter.requires_grad:
            found.frozen.append(names[id(parameter)])
    return found


def hint_names(pattern: str, known: list[str]) -> str:
    """Return a sentence with the names nearest to a pattern; a long list is cut, since a large model has thousands."""
    text = nearest(pattern.strip("*."), known)
    return text if len(text) <= 600 else f"{text[:600].rpartition(', ')[0]}, ... ({len(known)} names)."


def _match(model: nn.Module, patterns: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that each pattern means."""
    named = list(model.named_parameters(remove_duplicate=False))
    modules = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if name and next(module.parameters(), None) is not None
    ]
    matches = {}
    for pattern in patterns:
        roots = tuple(f"{name}." for name in modules if fnmatchcase(name, pattern))
        matches[pattern] = [
            parameter for name, parameter in named if fnmatchcase(name, pattern) or name.startswith(roots)
        ]
        if not matches[pattern]:
            known = [*modules, *(name for name, _ in named)]
            raise ArgumentError(
                f"The pattern {pattern!r} matches no parameter of this {type(model).__name__}. {hint_names(pattern, known)}"
            )
    return matches


def _as_list(patterns: Sequence[str]) -> list[str]:
    return check_patterns(patterns, "freeze")


def check_patterns(patterns: object, name: str) -> list[str]:
    """Return the patterns as a list.

    Raises:
        ArgumentError: it is neither a text nor a list of texts.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, (list, tuple)) or not all(isinstance(pattern, str) for pattern in given):
        raise ArgumentError(
            f'{name}={patterns!r} is no list of patterns. Write names of parameters or modules: ["encoder.*"].'
        )
    return list(given)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "name")}


def _held(optimizers: Optimizer | Iterable[Optimizer]) -> Iterable[tuple[str, nn.Parameter]]:
    for optimizer in [optimizers] if isinstance(optimizers, Optimizer) else optimizers:
        for group_index, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                yield f"{type(optimizer).__name__}, group {group_index}, parameter {index}", parameter
