"""Averages of the weights at the ends of epochs, and the BatchNorm statistics that belong to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from velodrome.loop.modes import training_mode
from velodrome.seeding import random_state_kept
from velodrome.step.batch_norm import recompute_statistics

if TYPE_CHECKING:
    from velodrome.run.run import Run

__all__ = ["average_epoch"]


def average_epoch(run: Run) -> None:
    """Average the weights at the end of an epoch's training, if it is time: before they are evaluated and saved."""
    if "epoch" in run.row and run.progress.steps_in_epoch and run.averaging.after_epoch(run.row["epoch"]):
        _recompute(run)


def _recompute(run: Run) -> None:
    """Pass the training data through the averaged model; the run goes on as if that had not been."""
    source, engine = run.train_source, run.engine
    assert source is not None  # steps were made on its batches
    if source.is_read_once:
        run.notices.warn_all(
            "The training data can be read only once, so the BatchNorm statistics of the averaged weights are those of the "
            "weights before averaging. Give data that can be read again, such as a DataLoader."
        )
        return
    # In the order of this epoch, whether its loop was run here or before the run was interrupted, to its end or not.
    source.set_epoch(run.row["epoch"] - 1)
    source = source.whole()  # every process reads all of it: the same statistics everywhere, those of one process
    place = run.placer(source)
    # A loop of one's own may compute its loss outside: then the batch goes through the model without its target.
    forward = engine.forward if run.first_batch.has_seen(source) else engine.predict
    as_in_training = training_mode(run.model), run.precision.around(run.model)
    with run.averaging.applied(), random_state_kept(run.trainer.device), as_in_training[0], as_in_training[1]:
        batches = (place(batch)[0] for batch in source)
        try:
            recompute_statistics(run.model, batches, forward)
        except BaseException:
            run.position.is_in_batch = True  # the average has half of its statistics: nothing to go on from
            raise
