"""The part of a checkpoint that is not tensors: JSON that comes back exactly, or is refused at once."""

from __future__ import annotations

import json
from collections.abc import Mapping

from velodrome.errors import CheckpointError

__all__ = ["MAX_STATE_BYTES", "encode_state"]

MAX_STATE_BYTES = 1 << 26
"""More is neither read nor written: a run's state is some 20 KB, and large things are tensors."""


def encode_state(state: Mapping[str, object]) -> bytes:
    """Return the content of `state.json`; floats keep every bit, NaN too, and tuples become lists.

    Raises:
        CheckpointError: a value or a key that JSON would change or cannot hold, with its place.
    """
    _check(state, "state", 0)
    data = (_write(state, levels=2) + "\n").encode()
    if len(data) > MAX_STATE_BYTES:
        raise CheckpointError(
            f"state.json would have {len(data)} bytes. At most {MAX_STATE_BYTES} are read back. Keep large lists of callbacks or metrics "
            f"as tensors or arrays, which have files of their own."
        )
    return data


def _write(value: object, *, levels: int, indent: str = "\n") -> str:
    """Return JSON with a line for each entry of the uppermost levels, for people; all below is one line.

    With `indent=1` throughout, json would work in Python rather than in C: 1.2 ms more for the main job's state, in the loop.
    """
    if not levels or not isinstance(value, Mapping) or not value:
        return json.dumps(value, default=dict)
    indent += " "
    entries = [
        f"{indent}{json.dumps(key)}: {_write(each, levels=levels - 1, indent=indent)}" for key, each in value.items()
    ]
    return "{" + ",".join(entries) + indent[:-1] + "}"


def _check(value: object, place: str, depth: int) -> None:
    if depth > 50:
        raise CheckpointError(f"{place[:80]}... is nested more than 50 deep. Flatten it before saving.", place=place)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise CheckpointError(
                    f"{place} has the key {key!r}. JSON keys are texts, and this one would come back as "
                    f"another. "
                    f"Save it as a text.",
                    place=place,
                )
            _check(inner, f"{place}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check(inner, f"{place}[{index}]", depth + 1)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise CheckpointError(
            f"{place} is a {type(value).__name__}. state.json holds texts, numbers, booleans, None, lists "
            f"and "
            f"tables. Save a tensor in a group of tensors, and anything else as one of these.",
            place=place,
        )
