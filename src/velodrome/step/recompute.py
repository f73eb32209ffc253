"""Activations recomputed in the backward pass instead of kept: gradient checkpointing by module name."""

from __future__ import annotations

import inspect
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from velodrome.errors import ArgumentError
from velodrome.step.parameters import check_patterns, hint_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["recompute_activations"]


def recompute_activations(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Make modules keep only their inputs for the backward pass, which runs their forward once more.

    Only while gradients are on and the module is in training mode. The gradients are the same, bit for bit: random numbers and
    autocast are as in the first run, and buffers such as BatchNorm's running statistics are changed by the first run alone.
    Parameter names, `state_dict` and the modules' types stay. Forward hooks of the module itself run once.

    The new forward is an attribute of each module that refers to it: a deep copy and a pickle of the model recompute too, on
    their own modules (a pickle needs this package when it is read); `nn.DataParallel`'s replicas do not work, as they share attributes.

    Args:
        model: changed in place. Calling again with the same patterns changes nothing.
        patterns: shell patterns over module names, `*` also matching dots. A `ModuleList` stands for its members. Inside a module that is
            recomputed already, none is: it would be run a third time.
    Returns:
        The names of the modules among these that are recomputed, now or since an earlier call.
    Raises:
        ArgumentError: a pattern matches no module, or one whose forward changes what it computes with: spectral normalisation.
    Cost: about one more forward of these modules a step, and their buffers twice while one runs.
    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; torch.utils.checkpoint, not re-entrant.
    """
    patterns = check_patterns(patterns, "gradient_checkpointing")
    named = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    chosen: list[str] = []
    for pattern in patterns:
        hits = [name for name in named if fnmatchcase(name, pattern)]
        if not hits:
            raise ArgumentError(
                f"The pattern {pattern!r} matches no module of this {type(model).__name__}. {hint_names(pattern, list(named))}"
            )
        chosen += hits
    leaves = [leaf for name in chosen for leaf in _members(name, named[name])]
    done = [name for name, module in named.items() if _is_recomputed(module)]
    outermost = _outermost([*done, *leaves])
    for name in outermost:
        _check(name, named[name])
    for name in outermost:
        if not _is_recomputed(named[name]):
            named[name].forward = _RecomputedForward(named[name])
    return [name for name in named if name in leaves and name in outermost]


class _RecomputedForward:
    """A module's forward under `checkpoint`. An object, not a closure: a copied module's then refers to the copy."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inner = vars(module).get("forward")  # somebody else's, if there is one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and self.module.training):
            return self._run(*args, **kwargs)
        if (
            torch.compiler.is_compiling()
        ):  # forward and backward are planned as one: buffers and random numbers are its business
            return checkpoint(self._run, *args, use_reentrant=False, **kwargs)
        return checkpoint(
            self._run,
            *args,
            use_reentrant=False,
            preserve_rng_state=True,
            context_fn=lambda: (nullcontext(), _spare_buffers(self.module)),
            **kwargs,
        )

    @property
    def __signature__(self) -> inspect.Signature:
        """The module's own, for those who look which inputs it takes."""
        own = self.inner if self.inner is not None else type(self.module).forward.__get__(self.module)
        return inspect.signature(own)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


@contextmanager
def _spare_buffers(module: nn.Module) -> Iterator[None]:
    """Let a forward change copies of the buffers: BatchNorm would count the batch twice otherwise."""
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    for part, buffers in kept:
        part._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


def _is_recomputed(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), _RecomputedForward)


def _members(name: str, module: nn.Module) -> list[str]:
    """Return the module's name, or those of its members if it has no forward of its own."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return [name]
    return [leaf for child, part in module.named_children() for leaf in _members(f"{name}.{child}", part)]


def _outermost(names: list[str]) -> list[str]:
    unique = list(dict.fromkeys(names))
    return [name for name in unique if not any(name.startswith(f"{other}.") for other in unique)]


def _check(name: str, module: nn.Module) -> None:
    for part in module.modules():
        hooks = [*part._forward_pre_hooks.values()]
        if type(part).__name__ == "_SpectralNorm" or any(type(hook).__name__ == "SpectralNorm" for hook in hooks):
            raise ArgumentError(
                f"{name!r} has spectral normalisation, whose every forward in training changes the weights that it computes with: the "
                f"second run would give other gradients. Leave it out of the patterns."
            )
