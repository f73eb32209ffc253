"""The state of an optimizer by parameter names: it fits the same model whatever the order in which its parameters come.

torch's own `state_dict` numbers the parameters; a layer that was added, or groups that were written in another order, would give
every later parameter the momentum of its neighbour, in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from velodrome.errors import RefusedError
from velodrome.step.without_compiler import without_compiler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.optim import Optimizer

__all__ = ["differences", "group_options", "load_optimizer_state", "optimizer_state", "parameter_names"]

_SHOWN = 4


def parameter_names(optimizer: Optimizer, named: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of an optimizer's parameters, group by group; one that is not the model's is called by its place.

    Args:
        optimizer: over any parameters.
        named: the model's, by clean names.
    """
    by_id = {id(parameter): name for name, parameter in named.items()}
    return [
        [by_id.get(id(parameter), f"group {g} parameter {i}") for i, parameter in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def group_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of each group without its parameters; tensors among them are copies."""
    return [
        {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name not in ("params", "param_names")
        }
        for group in optimizer.param_groups
    ]


def optimizer_state(optimizer: Optimizer, names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the state by names: tables and lists with tensors and plain values.

    Args:
        optimizer: whose `state_dict` is asked, so that one with a state of its own kind is saved as it wants.
        names: of its parameters, see `parameter_names`.
    """
    with without_compiler():
        state = optimizer.state_dict()
    number_to_name = _number_to_name(state, names)
    return {
        "names": [list(group) for group in names],
        "options": [
            {name: value for name, value in group.items() if name not in ("params", "param_names")}
            for group in state["param_groups"]
        ],
        "by_name": {number_to_name[key]: value for key, value in state["state"].items() if key in number_to_name},
        "others": {key: value for key, value in state["state"].items() if key not in number_to_name},
        "own": {key: value for key, value in state.items() if key not in ("state", "param_groups")},
    }


def load_optimizer_state(optimizer: Optimizer, saved: Mapping[str, Any], names: Sequence[Sequence[str]]) -> None:
    """Give an optimizer a saved state; every tensor comes back with the bits and the dtype that it had.

    Raises:
        RefusedError: its parameters are not the saved ones.
    """
    problem = differences(saved["names"], names)
    if problem:
        raise RefusedError(
            f"The optimizer's parameters are not those of the checkpoint: {problem}. Nothing was changed."
        )
    with without_compiler():
        current = optimizer.state_dict()
    name_to_number = {name: number for number, name in _number_to_name(current, names).items()}
    parameters = {
        name: parameter
        for group, own in zip(optimizer.param_groups, names, strict=True)
        for parameter, name in zip(group["params"], own, strict=True)
    }
    by_name = {name: _like(values, parameters[name]) for name, values in saved["by_name"].items()}
    groups = [
        # An option that a later torch has, and that one had not, is what this optimizer was made with.
        {**group, **options, **{key: value for key, value in group.items() if key in ("params", "param_names")}}
        for options, group in zip(saved["options"], current["param_groups"], strict=True)
    ]
    state = {name_to_number[name]: values for name, values in by_name.items()}
    with without_compiler():
        optimizer.load_state_dict({**saved["own"], "state": {**state, **saved["others"]}, "param_groups": groups})
    for name, values in by_name.items():
        _restore_dtypes(optimizer.state.get(parameters[name]), values)


def differences(saved: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> str:
    """Return in a few words how the parameters differ, or ""."""
    if [sorted(group) for group in saved] == [sorted(group) for group in names]:
        return ""
    before, now = {name for group in saved for name in group}, {name for group in names for name in group}
    parts = [
        f"{what} {', '.join(sorted(which)[:_SHOWN])}{', ...' if len(which) > _SHOWN else ''}"
        for what, which in (("missing now are", before - now), ("new are", now - before))
        if which
    ]
    return (
        "; ".join(parts)
        or f"they were in groups of {[len(g) for g in saved]} and are in groups of {[len(g) for g in names]}"
    )


def _number_to_name(state: Mapping[str, Any], names: Sequence[Sequence[str]]) -> dict[Any, str]:
    return {
        number: name
        for group, own in zip(state["param_groups"], names, strict=True)
        for number, name in zip(group["params"], own, strict=True)
    }


def _like(value: Any, parameter: Tensor) -> Any:
    """Return a state with the memory layout of its parameter: fused and batched kernels want one for both."""
    if isinstance(value, Tensor):
        if value.shape == parameter.shape and not parameter.is_contiguous():
            return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
        return value
    if isinstance(value, dict):
        return {key: _like(each, parameter) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_like(each, parameter) for each in value)
    return value


def _restore_dtypes(loaded: Any, saved: Any) -> None:
    """Undo the cast to the parameter's dtype that `Optimizer.load_state_dict` makes: fp32 state of bf16 weights would lose digits."""
    if not isinstance(loaded, dict) or not isinstance(saved, dict):
        return
    for key, value in saved.items():
        now = loaded.get(key)
        if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
            loaded[key] = value.to(now.device)
        elif isinstance(value, dict):
            _restore_dtypes(now, value)
