"""Two checkpoints, state by state: what differs, in words, the likelier cause first.

Everything that a checkpoint holds is compared, whatever it is called, so that a state that is saved is never left out here. Only what
a clock decided is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.manifest import read_manifest
from velodrome.checkpoint.read import read_state, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["KINDS", "StateDifference", "compare_checkpoints", "compare_values", "is_of_the_clock"]

KINDS = (
    "settings", "data", "position", "random state", "parameter", "buffer", "average", "optimizer", "schedule", "loss scale",
    "gradient", "callback", "metric sums", "best epoch", "counter", "other", "row",
)  # fmt: skip
"""The kinds of state, causes before what follows from them: weights that differ make everything after them differ."""

# Lengths of files: the digits of a time decide them.
_LENGTHS = {"journal_bytes"}
_CLOCK_ENDINGS = ("_s", "_ms", "seconds")
_WORDS_BY_KEY = {
    "settings": "settings",
    "data": "data",
    "order_seed": "data",
    "position": "position",
    "loop": "position",
    "buffers": "buffer",
    "windows": "gradient",
    "loop_start": "random state",
    "random": "random state",
    "optimizers": "optimizer",
    "gradients": "gradient",
    "callbacks": "callback",
    "phase": "metric sums",
    "row": "metric sums",
    "keeping": "best epoch",
    "averaging": "average",
    "last_averaged_step": "average",
    "progress": "counter",
}
_GENERATORS = {"python": "Python", "numpy": "NumPy", "torch": "torch", "mps": "torch on MPS"}


@dataclass(frozen=True, kw_only=True)
class StateDifference:
    """One state that differs.

    Args:
        kind: out of `KINDS`.
        name: what it is called, such as "fc1.weight".
        text: a sentence's worth for people.
    """

    kind: str
    name: str
    text: str


def compare_checkpoints(a: Path, b: Path) -> list[StateDifference]:
    """Return what differs between two checkpoint folders, in the order of `KINDS`; an empty list when nothing does.

    Args:
        a, b: folders of one step each, hashes checked while they are read.
    Raises:
        CheckpointError: one is damaged.
    Cost: both are read whole, a group of tensors at a time.
    """
    state_a, state_b = read_state(a), read_state(b)
    parameters = _parameter_names(state_a)
    found = [_of_state(place, text) for place, text in _compare_plain(state_a, state_b)]
    files_a, files_b = read_manifest(a).files, read_manifest(b).files
    for file in sorted(files_a.keys() | files_b.keys()):
        group, dot, suffix = file.rpartition(".")
        if not dot or suffix != "safetensors":
            continue
        if file not in files_a or file not in files_b:
            there = "first" if file in files_a else "second"
            found.append(StateDifference(kind="other", name=file, text=f"{file} is in the {there} checkpoint only"))
            continue
        named = [_in_order_of(parameters, read_tensors(folder, group)) for folder in (a, b)]
        found += [_of_tensor(group, name, text, parameters) for name, text in _compare_tensors(*named)]
    return sorted(_without_repetition(found), key=lambda each: KINDS.index(each.kind))


def compare_values(a: Tensor, b: Tensor) -> str:
    """Return how two tensors differ, or "" when they are the same; NaN equals NaN.

    >>> import torch
    >>> compare_values(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    '1 of 2 elements differs, the largest difference is 0.5'
    """
    import torch

    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} {a.dtype} against {tuple(b.shape)} {b.dtype}"
    if torch.equal(a, b):
        return ""
    is_same = a == b
    if a.is_floating_point() or a.is_complex():
        is_same |= (a != a) & (b != b)
    count = int((~is_same).sum())
    if not count:
        return ""
    wide = torch.complex128 if a.is_complex() else torch.float64
    largest = float((a.to(wide) - b.to(wide)).abs()[~is_same].max())
    differ = "differs" if count == 1 else "differ"
    return f"{count:,} of {a.numel():,} elements {differ}, the largest difference is {largest:.3g}"


def is_of_the_clock(name: str) -> bool:
    """Return whether a value's name says that it was measured with a clock: `seconds`, `samples_per_s`, `save_ms`.

    >>> is_of_the_clock("samples_per_s"), is_of_the_clock("val/loss"), is_of_the_clock("val/loss_s")
    (True, False, False)
    """
    return "/" not in name and name.endswith(_CLOCK_ENDINGS)


def _compare_plain(a: Any, b: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the places at which two plain states differ, with what stands there."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            name = str(key)
            if is_of_the_clock(name) or name in _LENGTHS:
                continue
            if key not in a or key not in b:
                yield (*place, name), f"is in the {'first' if key in a else 'second'} only"
            else:
                yield from _compare_plain(a[key], b[key], (*place, name))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _compare_plain(left, right, (*place, str(index)))
    elif a != b and not (a != a and b != b):
        yield place, f"{_short(a)} against {_short(b)}"


def _compare_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b:
            yield name, f"is in the {'first' if name in a else 'second'} only"
        elif text := compare_values(a[name], b[name]):
            yield name, text


def _in_order_of(parameters: Mapping[str, int], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of parameters first, in the model's order: a file has them in that of the alphabet."""
    return dict(sorted(tensors.items(), key=lambda item: parameters.get(item[0], len(parameters))))


def _of_tensor(group: str, name: str, text: str, parameters: Mapping[str, int]) -> StateDifference:
    """Say in a user's words which state a tensor of a group is."""
    root, *rest = name.split("/")
    if group == "model":
        kind = "parameter" if name in parameters else "buffer"
        title = f"parameter {name}" if name in parameters else f"buffer or frozen parameter {name}"
        return StateDifference(kind=kind, name=name, text=f"{title}: {text}")
    if group == "ema":
        return StateDifference(kind="average", name=name, text=f"average of {name}: {text}")
    base, _, rank = group.partition("-rank")
    ranked = f" in process {rank}" if rank not in ("", "0") else ""
    if base == "rng":
        which = rest[0] if rest else ""
        whose = _GENERATORS.get(which, f"torch on cuda:{rest[1]}" if which == "cuda" and len(rest) > 1 else which)
        when = ", from which the order of the epoch was drawn" if root == "loop_start" else ""
        return StateDifference(
            kind="random state", name=f"{root}/{whose}{ranked}", text=f"random state of {whose}{ranked}{when}: differs"
        )
    if group == "optimizer" and "by_name" in rest:
        owner, what = rest[rest.index("by_name") + 1], "/".join(rest[rest.index("by_name") + 2 :])
        return StateDifference(kind="optimizer", name=f"{owner}/{what}", text=f"optimizer's {what} of {owner}: {text}")
    inner = "/".join(rest)
    if base == "window":
        title = f"gradient in an open accumulation window{ranked} ({inner})"
        return StateDifference(kind="gradient", name=inner, text=f"{title}: {text}")
    if root == "callbacks" and rest:
        title = f"state of the callback {rest[0]}{ranked}: {'/'.join(rest[1:])}"
        return StateDifference(kind="callback", name=inner, text=f"{title}: {text}")
    if base == "sums":
        kind = _WORDS_BY_KEY.get(root, "other")
        title = "sums of the epoch's means and metrics" if kind == "metric sums" else kind
        return StateDifference(kind=kind, name=inner, text=f"{title}{ranked} ({inner}): {text}")
    return StateDifference(kind="other", name=name, text=f"{group} {name}: {text}")


def _of_state(place: tuple[str, ...], text: str) -> StateDifference:
    """Say in a user's words which state a value of `state.json` is."""
    path = list(place[1:] if place[0] == "resume" and len(place) > 1 else place)
    ranked = ""
    if path[0] == "ranks" and len(path) > 2:  # what each process has of its own
        ranked = f" in process {path[1]}" if path[1] != "0" else ""
        path = path[2:]
    name = ".".join(path)
    kind = _WORDS_BY_KEY.get(path[0], "other")
    if path[0] == "updates":
        kind = "schedule" if "schedule" in path or path[-1] == "rate" else "optimizer"
        kind = "loss scale" if "scaler" in path or path[-1] == "scale" else kind
    if kind == "random state":
        whose = _GENERATORS.get(path[1], path[1]) if len(path) > 1 else "all generators"
        return StateDifference(
            kind=kind, name=f"{path[0]}/{whose}{ranked}", text=f"random state of {whose}{ranked}: differs"
        )
    title = f"{kind} {name}{ranked}" if kind != "other" else f"{name}{ranked}"
    return StateDifference(kind=kind, name=name, text=f"{title}: {text}")


def _parameter_names(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the names of the parameters that are trained, with their places in the optimizers."""
    optimizers = (state.get("resume") or {}).get("optimizers", {})
    names = (name for each in optimizers.values() for group in each.get("names", ()) for name in group)
    return {name: place for place, name in enumerate(name for name in names if isinstance(name, str))}


def _without_repetition(found: list[StateDifference]) -> list[StateDifference]:
    """Return each state once: a generator's words and its position are one random state."""
    return list({(each.kind, each.text): each for each in found}.values())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
