"""Which weights a run really left on the disk: a disk that was full during a save does not stop training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_WHY = "The warnings above and log.txt say why."


@dataclass(frozen=True, kw_only=True)
class SavedWeights:
    """The weights files of a run, and a sentence for each that should be there and is not."""

    best: Path | None
    last: Path | None
    problems: tuple[str, ...]


def find_saved_weights(run_dir: Path, *, last_step: int, best_step: int | None) -> SavedWeights:
    """Compare what a run directory holds with what the run did.

    Args:
        run_dir: of a run that has ended.
        last_step: how many steps were done; 0 expects no weights.
        best_step: the step of the best epoch, when its weights were to be kept.
    """
    from velodrome.checkpoint.read import find_weights_file
    from velodrome.checkpoint.scan import find_checkpoints, read_best

    folder = run_dir / "checkpoints"
    try:
        files = {one.step: find_weights_file(one.path) for one in find_checkpoints(folder) if not one.problem}
        marked = read_best(folder)
    except CheckpointError as error:
        if not last_step:
            return SavedWeights(best=None, last=None, problems=())
        problem = f"The weights of step {last_step} are NOT on disk: {error.message} {_WHY}"
        return SavedWeights(best=None, last=None, problems=(problem,))
    newest = max(files, default=None)
    problems = []
    if last_step and newest != last_step:
        saved = "nothing was saved" if newest is None else f"last saved: step {newest}"
        problems.append(f"The weights of step {last_step} are NOT on disk ({saved}). {_WHY}")
    best = files.get(best_step) if best_step is not None and marked is not None and marked.step == best_step else None
    if best_step is not None and best is None and not (newest is None and problems):
        saved = "none is marked as the best" if marked is None else f"the best one on disk is step {marked.step}"
        problems.append(f"The best weights, of step {best_step}, are NOT on disk ({saved}). {_WHY}")
    return SavedWeights(best=best, last=None if newest is None else files[newest], problems=tuple(problems))
