"""Optimizers are made, saved and loaded without importing torch's compiler: a second that only `compile` has to pay.

torch wraps some methods of `Optimizer` in a guard that tells its compiler to leave them alone, and the guard's first call imports the
compiler to tell it so. While nobody has imported it, nothing can be compiling, and the method itself does the same.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["without_compiler"]

_GUARDED = ("add_param_group", "state_dict", "load_state_dict")
_MARK = "__dynamo_disable"  # where the guard looks for the function that it shall call


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within, the guarded methods of optimizers are called as they are, unless the compiler was imported before.

    A torch that guards them in another way imports its compiler as ever.

    Source: `torch._compile._disable_dynamo`, torch 2.11 to 2.13.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    guarded = [getattr(getattr(Optimizer, name), "__wrapped__", None) for name in _GUARDED]
    marked = [method for method in guarded if method is not None and not hasattr(method, _MARK)]
    for method in marked:
        setattr(method, _MARK, method)
    try:
        yield
    finally:
        for method in marked:  # the compiler, imported later, is to find its guards as torch made them
            delattr(method, _MARK)
