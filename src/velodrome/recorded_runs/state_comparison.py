"""Two run directories of one training: the first state that differs, from the first step on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.compare import StateDifference, compare_checkpoints, is_of_the_clock
from velodrome.checkpoint.scan import find_checkpoints, read_best
from velodrome.errors import CheckpointError
from velodrome.record.journal import read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["StateComparison", "compare_rows", "compare_runs"]


@dataclass(frozen=True, kw_only=True)
class StateComparison:
    """What the comparison of two runs found.

    Args:
        steps_compared: of the checkpoints that both runs have, oldest first, up to the first that differs.
        num_rows: of `metrics.jsonl`, those of the first run.
        step: of the first checkpoint that differs; None where only rows or the best epoch differ, or nothing does.
        differences: of that checkpoint, then of rows and best epoch.
    """

    steps_compared: tuple[int, ...]
    num_rows: int
    step: int | None
    differences: tuple[StateDifference, ...]


def compare_runs(a: Path, b: Path) -> StateComparison:
    """Compare two run directories: checkpoints of the same step, rows, and the best epoch. Times are passed over.

    Raises:
        CheckpointError: a file is damaged, or the two have no checkpoint of the same step.
    Cost: reads all checkpoints up to the first that differs.
    """
    folders_a, folders_b = _checkpoints(a), _checkpoints(b)
    common = sorted(folders_a.keys() & folders_b.keys())
    if not common:
        raise CheckpointError(
            f"{a} has checkpoints of the steps {sorted(folders_a)} and {b} of {sorted(folders_b)}: none is of the same step. Save in "
            f"both runs after the same steps."
        )
    compared: list[int] = []
    found: list[StateDifference] = []
    step = None
    for each in common:
        compared.append(each)
        found = compare_checkpoints(folders_a[each], folders_b[each])
        if found:
            step = each
            break
    rows_a, rows_b = read_rows(a / "metrics.jsonl"), read_rows(b / "metrics.jsonl")
    found += compare_rows(rows_a, rows_b)
    best = [read_best(folder / "checkpoints") for folder in (a, b)]
    if best[0] != best[1]:
        found.append(
            StateDifference(kind="best epoch", name="best.json", text=f"best.json: {best[0]} against {best[1]}")
        )
    if max(folders_a) != max(folders_b):
        text = f"the last checkpoints are of step {max(folders_a)} and {max(folders_b)}"
        found.append(StateDifference(kind="counter", name="steps_done", text=text))
    return StateComparison(steps_compared=tuple(compared), num_rows=len(rows_a), step=step, differences=tuple(found))


def compare_rows(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[StateDifference]:
    """Return what differs between the first rows of two journals that do not agree, and whether one has more rows."""
    found: list[StateDifference] = []
    for number, (left, right) in enumerate(zip(a, b, strict=False), 1):
        names = [name for name in [*left, *(name for name in right if name not in left)] if not is_of_the_clock(name)]
        wrong = [name for name in names if name not in left or name not in right or left[name] != right[name]]
        if wrong:
            where = f"row {number} of metrics.jsonl ({left.get('kind')}, step {left.get('step')})"
            found += [
                StateDifference(
                    kind="row", name=name, text=f"{where}: {name} {left.get(name)!r} against {right.get(name)!r}"
                )
                for name in wrong
            ]
            break
    if len(a) != len(b):
        found.append(StateDifference(kind="row", name="rows", text=f"metrics.jsonl has {len(a)} rows against {len(b)}"))
    return found


def _checkpoints(run_dir: Path) -> dict[int, Path]:
    """Return the whole checkpoints of a run by step."""
    found = find_checkpoints(run_dir / "checkpoints")
    return {each.step: each.path for each in found if not each.problem and not each.set_aside}
