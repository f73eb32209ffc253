"""Whether the state in a checkpoint is one that a run wrote: hashes prove that it is whole, not who wrote it.

What is read from `state.json` is only ever compared, counted with and copied; names in it choose among the parts that the user's own
program made. So the worst that a made-up state can do is to fail, and here it fails with one sentence, before anything was changed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from velodrome.errors import CheckpointError, VelodromeError
from velodrome.record.reading import check_counts
from velodrome.seeding import random_state_kept, set_random_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from velodrome.resume.run_state import SavedState

__all__ = ["check_sound", "refusing_unsound"]

# What using a value of another kind, or one that is missing, raises.
_SIGNS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
_STAGES = ("between", "open", "over")
_KINDS: dict[str, tuple[type, ...]] = {
    "settings": (dict,),
    "data": (dict,),
    "row": (dict,),
    "keeping": (dict,),
    "position": (dict,),
    "callbacks": (dict,),
    "optimizers": (dict,),
    "updates": (dict,),
    "ranks": (list,),
    "stop": (str, type(None)),
    "journal_bytes": (int, type(None)),
    "order_seed": (int, type(None)),
}
_KINDS_OF_PROCESS: dict[str, tuple[type, ...]] = {
    "random": (dict,),
    "loop_start": (dict, type(None)),
    "phase": (dict, type(None)),
    "loop": (dict, type(None)),
    "data": (dict,),
    "buffers": (dict,),
    "callbacks": (dict,),
    "windows": (dict,),
}


def check_sound(saved: SavedState, whole: Mapping[str, Any]) -> None:
    """Compare a state with what a run writes, as far as it is used after other things were changed.

    Args:
        saved: what was saved for going on.
        whole: the `state.json` that it stands in.
    Raises:
        ValueError: names the entry.
    """
    state = saved.state
    check_counts(whole["progress"])
    _check_kinds(state, _KINDS)
    if (state.get("journal_bytes") or 0) < 0:
        raise ValueError(f"journal_bytes is {state['journal_bytes']}")
    _check_position(state["position"])
    for own in state["ranks"]:
        _check_kinds(own, _KINDS_OF_PROCESS)
        if own["loop"] is not None and type(own["loop"]["batches_done"]) is not int:
            raise ValueError("loop counts something else than batches")
    for own in saved.owns:
        for name in ("random", "loop_start"):
            if own is not None and own.state[name] is not None:
                cpu = torch.device("cpu")
                with random_state_kept(cpu):
                    set_random_state(own.get(name), cpu)


def _check_kinds(state: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for name, known in kinds.items():
        if name in state and type(state[name]) not in known:
            raise ValueError(f"{name} is a {type(state[name]).__name__}")


def _check_position(position: Mapping[str, Any]) -> None:
    end = position["epoch_end"]
    if position["stage"] not in _STAGES:
        raise ValueError(f"position.stage is {str(position['stage'])[:50]!r}")
    if type(position["loops_done"]) is not int:
        raise ValueError("position counts something else than loops")
    if position["stage"] == "over" and (type(end["row"]) is not dict or type(end["verdict"]) is not dict):
        raise ValueError("position.epoch_end is no row with a verdict")


@contextmanager
def refusing_unsound(checkpoint: Path | None) -> Iterator[None]:
    """Turn whatever a made-up or foreign state raises into one sentence; errors on purpose stay what they are.

    Raises:
        CheckpointError: names the checkpoint and what was found.
    """
    try:
        yield
    except VelodromeError:
        raise
    except _SIGNS as error:
        what = (
            f"{error!r} is missing or out of place"
            if isinstance(error, LookupError)
            else str(error).splitlines()[0][:200]
        )
        raise CheckpointError(
            f"{checkpoint} is whole, and its state is not one that a run can go on from: {what}. A run of another release may have written "
            f"it. Nothing was trained; move this checkpoint away to go on from an older one.",
            path=checkpoint,
        ) from error
