"""Whether weights fit a model, name by name and shape by shape, and if so, putting them in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.checkpoint.names import clean_names
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module

__all__ = ["copy_into_model"]

_SHOWN = 8


def copy_into_model(model: Module, tensors: Mapping[str, Tensor], *, origin: Path) -> None:
    """Copy the tensors into the model, or change nothing and say what does not fit.

    Raises:
        CheckpointError: names or shapes differ, or a whole number would become a fraction or the reverse.
    """
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    current = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    unmade = [name for name, value in current.items() if value.is_meta and not is_lazy(value)]
    if unmade:
        raise CheckpointError(
            f"{unmade[0]} and {len(unmade) - 1} more tensors of this {type(model).__name__} are on the meta device, which "
            f'holds no numbers. Make them first: model.to_empty(device="cpu").',
            path=origin,
        )
    clean = clean_names(current)
    file_names = {new: old for old, new in clean_names(tensors).items()}
    chosen = {raw: tensors[file_names[name]] for raw, name in clean.items() if name in file_names}
    # A file by another writer may hold a tied weight under one of its names only.
    filled = {_storage(current[raw]) for raw in chosen if not is_lazy(current[raw])}
    missing = [name for raw, name in clean.items() if raw not in chosen and _absent_storage(current[raw], filled)]
    unexpected = sorted(file_names.keys() - set(clean.values()))
    differing = []
    for raw, tensor in chosen.items():
        mine = current[raw]
        if is_lazy(mine):
            continue
        if mine.shape != tensor.shape:
            differing.append(f"{clean[raw]} {tuple(tensor.shape)} -> {tuple(mine.shape)}")
        elif mine.is_floating_point() != tensor.is_floating_point():
            differing.append(f"{clean[raw]} {tensor.dtype} -> {mine.dtype}")
    problems = [
        *_list("missing in the file", missing),
        *_list("unknown to the model", unexpected),
        *_list("of another shape or kind (file -> model)", differing),
    ]
    if problems:
        raise CheckpointError(
            f"The weights of {origin} do not fit this {type(model).__name__}: {'; '.join(problems)}. Every "
            f"name, "
            f"shape and kind must agree. Build the model that was trained, or give another checkpoint.",
            path=origin,
            missing=tuple(missing),
            unexpected=tuple(unexpected),
            differing=tuple(differing),
        )
    # Not strict: names were compared above, and what is left out is a second name of a tied weight or no
    # tensor.
    model.load_state_dict(chosen, strict=False)


def _absent_storage(tensor: Tensor, filled: set[tuple[object, ...]]) -> bool:
    from torch.nn.parameter import is_lazy

    return is_lazy(tensor) or tensor.is_meta or not tensor.numel() or _storage(tensor) not in filled


def _storage(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape


def _list(what: str, names: Sequence[str]) -> list[str]:
    """Return one phrase with the first eight names and the count of the others, or nothing."""
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"]
