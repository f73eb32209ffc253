"""What a preflight found, in rows for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.checkpoint.space import readable_bytes

if TYPE_CHECKING:
    from velodrome.recipes.preflight import Preflight

__all__ = ["preflight_rows"]


def preflight_rows(found: Preflight) -> list[tuple[str, str]]:
    """Return checkpoint, disk and time."""
    room = found.room
    free = "an unknown amount" if room.free is None else readable_bytes(room.free)
    loaded = (
        f"but a run cannot go on from it: {found.not_resumable}"
        if found.not_resumable
        else "and loaded: every number came back"
    )
    each = f"{_readable(found.step_s)} a step, {_readable(found.save_s)} a save"
    if found.evaluation_batch_s:
        each += f", {_readable(found.evaluation_batch_s)} an evaluation batch"
    return [
        ("Checkpoint", f"saved, {loaded}"),
        (
            "Disk",
            f"{room.kept} checkpoints of {readable_bytes(room.checkpoint_bytes)} need {readable_bytes(room.needed)}; {free} free",
        ),
        ("Time", f"{'unknown in all' if found.seconds is None else f'about {_readable(found.seconds)}'}: {each}"),
    ]


def _readable(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
