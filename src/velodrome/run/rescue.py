"""What is saved when an error ends a run: the weights of that moment, beside the checkpoints and not among them.

```text
checkpoints/step-00000900/          the last checkpoint; what `resume` goes on from, and what "last" means
checkpoints/failed/step-00000937/   the weights when the error came
```

Weights only, and never gone on from. The batch that failed has drawn random numbers and has moved the statistics of BatchNorm, so a run
that went on from here would be another one than the run that was never interrupted; from the last checkpoint it is the same to the bit.
But hours of work between the two are there to be looked at, evaluated, or to begin a new run from: `velodrome.load_model` and
`velodrome eval` take the folder.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from velodrome.errors import NumericsError
from velodrome.nonfinite.checks import check_finite_weights

if TYPE_CHECKING:
    from pathlib import Path

    from velodrome.run.run import Run

__all__ = ["FAILED_FOLDER", "save_aside"]

FAILED_FOLDER = "failed"


def save_aside(run: Run, error: BaseException) -> Path | None:
    """Save the weights of a run that an error ends; return the folder.

    Nothing is saved, and None returned, without a run directory, before the first step, of a step that has a checkpoint, of weights that
    are not finite, or when the user interrupted the run. A failure is told and hides no error: this is called on the way out.
    """
    files, progress = run.files, run.progress
    is_wanted = isinstance(error, Exception) and not isinstance(error, NumericsError)
    if files.path is None or not is_wanted or not files.checkpoints.can_save(progress, is_resumable=False):
        return None
    from velodrome.checkpoint.store import CheckpointStore

    step, averaging = progress.steps_done, run.averaging
    try:
        with averaging.raw(), run.windows.evaluating():
            check_finite_weights(run.model.named_parameters(), step=step)
            store = CheckpointStore(files.path / "checkpoints" / FAILED_FOLDER, run_id=files.record["id"])
            tensors = {"model": run.model.state_dict(), **averaging.tensors()}
            why = f"{type(error).__name__} ended the run"
            state = {
                "progress": asdict(progress),
                "evaluated_weights": averaging.evaluates,
                "averaging": averaging.describe(),
                "failed": f"{type(error).__name__}: {error}",
                "not_resumable": why,
            }
            path = store.save(step, tensors, state)
            store.prune()
    except Exception as second:  # the first error is the one that matters
        files.warn(f"warning: The weights of step {step} could not be saved aside: {type(second).__name__}: {second}")
        return None
    files.say(
        f"The weights of step {step:,}, when {why}, are in {path}, to be looked at: velodrome.load_model takes that folder. A resume "
        f"goes on from the last checkpoint instead, and is exact."
    )
    return path
