"""A run that goes on with an earlier one: what is done at which moment, and nothing at all in a run that begins.

The order matters: data are positioned before their iterator is made, which may draw from a generator, and the generators are put
back after it is made and before the first batch is fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.nested import join
from velodrome.errors import CheckpointError
from velodrome.keeping import Verdict
from velodrome.loop.progress import Progress, StopReason
from velodrome.resume import Resumption, compare
from velodrome.run_state import SavedState, collect_state, load_callbacks
from velodrome.seeding import get_random_state, set_random_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from velodrome.data_in_use import DataInUse
    from velodrome.loop.progress import Budget
    from velodrome.run import Run

__all__ = ["GoingOn"]

_ENDED = (StopReason.EPOCHS, StopReason.STEPS, StopReason.SECONDS, StopReason.EARLY, StopReason.REQUESTED)


class GoingOn:
    """Brings a run to where an earlier one was.

    Args:
        run: that begins or goes on.
        resumption: from what; used up by the first `load`.
    """

    def __init__(self, run: Run, resumption: Resumption) -> None:
        self.is_over = False
        """the earlier run had reached the end that is asked for: there is nothing to do"""
        self._run = run
        self._resumption = resumption
        self._saved: SavedState | None = None
        self._had_ended = False
        self._is_pending = False
        self._loop: Mapping[str, Any] | None = None
        self._loops_to_skip = 0
        self._batches_to_skip = 0
        self._is_random_pending = False
        self._train: Any = None

    # -- the run ----------------------------------------------------------------------------------------------------

    def foresee(self, train: Any) -> None:
        """Take note of the training data, so that others than those of the earlier run are refused before anything is changed."""
        self._train = train

    def load(self, budget: Budget) -> None:
        """Load what a checkpoint holds but for callbacks, position and random state; find out whether that run was over.

        Raises:
            RefusedError: it does not fit; nothing was changed.
            CheckpointError: it is damaged.
        """
        run, resumption = self._run, self._resumption
        if resumption.checkpoint is None:
            return
        record = run.files.record
        self._saved, accepted = resumption.load(run, {} if self._train is None else self._train.describe_data())
        for reason in resumption.skipped:
            run.files.warn(f"warning: A newer checkpoint is not used: {reason}")
        if accepted:
            run.files.warn(
                f"warning: Going on with other settings: {'; '.join(accepted)}. The run is no longer the one that was begun."
            )
        self._is_pending = True
        self._had_ended = _had_ended(record, run.progress.steps_done)
        self.is_over = self._had_ended and _asks_for_no_more(record, budget)

    def look_back(self) -> None:
        """Show the run that is over as its trainer left it: counters, history and what callbacks remember."""
        run, saved = self._run, self._take()
        record = run.files.record
        saved_step = run.progress.steps_done
        for name, value in Progress(**record["progress"]).__dict__.items():
            setattr(run.progress, name, value)
        run.files.look_back(run.progress.steps_done, saved_step=saved_step)
        run.keeping.best = record.get("best")
        load_callbacks(run, saved)
        self._restore_random(saved)
        reason = next(each for each in _ENDED if str(each) == record["stop_reason"])
        run.stop_requested = reason
        run.files.say(
            f"The run in {run.files.path} is done already, after {run.progress.steps_done:,} steps: {reason} Nothing was trained; "
            f"give a larger budget to go on."
        )

    def start(self, sources: DataInUse) -> None:
        """Cut the records back, and have the data in the order of the earlier run."""
        run, saved = self._run, self._saved
        step = run.progress.steps_done
        if not self._is_pending or saved is None:
            run.files.go_back(None if step else 0, step=step)  # killed before its first checkpoint, it begins anew
            return
        run.files.go_back(saved.state["journal_bytes"], step=step)
        sources.go_on_with(saved.state["order_seed"])
        run.files.say(f"Going on from the checkpoint of step {step:,}, epoch {run.progress.epoch}.")

    def begin(self) -> None:
        """Go to where the checkpoint was made: callbacks are told of the epoch that was over, and get their state."""
        if not self._is_pending:
            return
        run, saved = self._run, self._saved
        assert saved is not None
        position = saved.state["position"]
        run.position.stage = position["stage"]
        if position["stage"] == "open":
            return  # `begin_epoch` does the rest
        saved = self._take()
        self._load_callbacks(saved)
        self._restore_random(saved)
        if position["stage"] == "over":
            end = join(position["epoch_end"], {})
            run.after_epoch(end["row"], Verdict(**end["verdict"]))
        if self._had_ended:  # it was to stop there, and now goes on: callbacks begin as in any run that goes on
            run.stop_requested = None
            run.tell("on_fit_start")

    # -- the epoch that was under way --------------------------------------------------------------------------------

    @property
    def is_inside_epoch(self) -> bool:
        """Whether the next epoch is one that was interrupted."""
        return self._is_pending and not self.is_over

    def begin_epoch(self) -> int:
        """Bring back row, sums and callbacks of the epoch; return the samples done at its last log point."""
        run, saved = self._run, self._take()
        position = saved.state["position"]
        run.row.clear()
        run.row.update(join(saved.state["row"], {}))
        phase = run.train_phase
        phase.load_state_dict(saved.get("sums-rank0", "phase"))
        if phase.unsaved:
            run.files.warn(
                f"warning: {', '.join(phase.unsaved)} of epoch {run.row['epoch']} counts only what comes from here on: a metric object "
                f"without state_dict() cannot be saved."
            )
        run.tell("on_epoch_start")
        self._load_callbacks(saved)
        if self._had_ended:
            run.stop_requested = None
        self._loops_to_skip, self._loop = position["loops_done"], position["loop"]
        if self._loop is None:
            self._restore_random(saved)
        else:
            self._saved = saved
        return saved.state["interval_samples"]

    def enter_data(self, source: Any, epoch: int) -> int | None:
        """Position the data of a training loop.

        Returns:
            The batches done; None for a loop that was over.
        """
        run = self._run
        if self._loops_to_skip:
            self._loops_to_skip -= 1
            run.position.loops_done += 1
            return None
        loop, self._loop = self._loop, None
        if loop is None:
            source.set_epoch(epoch)
            return 0
        assert self._saved is not None
        self._resumption.refuse(compare(self._saved.state["data"], source.describe_data(), name="data"))
        self._batches_to_skip = source.go_to(epoch, loop["data"], loop["batches_done"])
        self._is_random_pending = True
        if source.draws_in_workers:
            run.files.warn(
                "warning: Worker processes fetch the data. Their random numbers begin anew in the middle of this epoch: random "
                "augmentation is not bit for bit that of the run that was not interrupted; order and samples are."
            )
        return self._batches_to_skip

    def batches(self, source: Any) -> Iterator[Any]:
        """Return the iterator over the batches that are left, with the generators as they were when it was interrupted."""
        run, device = self._run, self._run.trainer.device
        if not self._is_random_pending:
            if source.draws_at_start and run.files.path is not None:
                run.position.loop_start = get_random_state(device)
            return iter(source)
        saved, self._saved, self._is_random_pending = self._saved, None, False
        assert saved is not None
        loop_start = run.position.loop_start = saved.get("rng-rank0", "loop_start")
        if loop_start is not None:  # a sampler draws the same order again
            set_random_state(loop_start, device)
        iterator = iter(source)
        source.skip(iterator, self._batches_to_skip)
        self._restore_random(saved)
        return iterator

    # -- a checkpoint -----------------------------------------------------------------------------------------------

    def collect(self) -> SavedState:
        """Return what a checkpoint holds besides the weights; the reason, where a run cannot go on from it."""
        run = self._run
        if not run.is_alone:
            return SavedState(state={"not_resumable": "several processes trained together"})
        if run.position.is_in_batch:
            return SavedState(state={"not_resumable": "it was made within a batch, and the loop was left there"})
        try:
            saved = collect_state(run)
        except CheckpointError as error:
            run.warn(f"Checkpoints hold weights only, and the run cannot go on from them: {error.message}")
            return SavedState(state={"not_resumable": error.message})
        return SavedState(tensors=saved.tensors, state={"resume": saved.state})

    # -- inner works ------------------------------------------------------------------------------------------------

    def _take(self) -> SavedState:
        """Return what was loaded, once."""
        saved, self._saved, self._is_pending = self._saved, None, False
        assert saved is not None
        self._resumption.checkpoint = None
        return saved

    def _load_callbacks(self, saved: SavedState) -> None:
        left = load_callbacks(self._run, saved)
        if left:
            self._run.files.warn(
                f"warning: The checkpoint holds the state of {', '.join(left)}, which this trainer does not have."
            )

    def _restore_random(self, saved: SavedState) -> None:
        set_random_state(saved.get("rng-rank0", "random"), self._run.trainer.device)


def _had_ended(record: Mapping[str, Any], step: int) -> bool:
    """Return whether a run had come to its end, and this checkpoint is its last."""
    progress = record.get("progress")
    ended = record.get("status") == "done" and record.get("stop_reason") in {str(each) for each in _ENDED}
    return ended and isinstance(progress, dict) and progress.get("steps_done") == step


def _asks_for_no_more(record: Mapping[str, Any], budget: Budget) -> bool:
    """Return whether a run that had ended would end again at once."""
    limits = {name: value for name, value in vars(budget).items() if value is not None}
    return record.get("budget") == limits or budget.exhausted_by(Progress(**record["progress"])) is not None
