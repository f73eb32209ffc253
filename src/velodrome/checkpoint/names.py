"""Parameter names without what wrappers add: weights saved under one wrapping load into any."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["clean_name", "clean_names"]


def clean_name(name: str) -> str:
    """Strip what `DistributedDataParallel` (`module.` in front) and `torch.compile` (`_orig_mod.`) add.

    >>> clean_name("module._orig_mod.layer.weight")
    'layer.weight'
    >>> clean_name("encoder._orig_mod.weight")
    'encoder.weight'
    """
    name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its clean one, or every name to itself when two would become the same.

    The second case is a model with a submodule of its own called `module` beside a twin: rare, but its
    weights must not overwrite each other.

    >>> clean_names(["module.a", "module.b"])
    {'module.a': 'a', 'module.b': 'b'}
    >>> clean_names(["module.a", "a"])
    {'module.a': 'module.a', 'a': 'a'}
    """
    clean = {name: clean_name(name) for name in names}
    return clean if len(set(clean.values())) == len(clean) else {name: name for name in clean}
