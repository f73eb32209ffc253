"""A run that goes on with an earlier one: what is done at which moment, and nothing at all in a run that begins.

The order matters: data are positioned before their iterator is made, which may draw from a generator, and the generators are put
back after it is made and before the first batch is fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.callbacks.early_stopping import EarlyStopping
from velodrome.checkpoint.nested import join
from velodrome.errors import CheckpointError, RefusedError
from velodrome.loop.progress import Progress, StopReason
from velodrome.resume.own_state import OwnState, collect_own, load_phase, load_random
from velodrome.resume.run_state import SavedState, collect_state, load_callbacks
from velodrome.resume.settings import compare
from velodrome.resume.sound_state import refusing_unsound
from velodrome.run.keeping import Verdict
from velodrome.seeding import get_random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from velodrome.data.source import Source
    from velodrome.data_in_use import DataInUse
    from velodrome.loop.progress import Budget
    from velodrome.resume.resumption import Resumption
    from velodrome.run.run import Run

__all__ = ["GoingOn"]

_ENDS = {str(each): each for each in StopReason if each.is_end}


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
        self._record: Mapping[str, Any] = {}
        self._path: Path | None = None

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
            for reason in resumption.skipped:
                run.files.warn(f"warning: The run begins anew, for it has no checkpoint to go on from: {reason}")
            return
        record = self._record = run.world.gather(dict(run.files.record))[0]
        self._path = resumption.checkpoint
        with refusing_unsound(self._path):
            self._saved, accepted = resumption.load(run, {} if self._train is None else self._train.describe_data())
        run.consensus.count_from_here()
        for reason in resumption.skipped:
            run.files.warn(f"warning: A newer checkpoint is not used: {reason}")
        if accepted:
            run.files.warn(
                f"warning: Going on with other settings: {'; '.join(accepted)}. The run is no longer the one that was begun."
            )
        then, now = self._saved.num_processes, run.world.size
        if then != now:
            run.files.warn(
                f"warning: Going on, not bit for bit: {then} -> {now} processes. Every sample of the epoch counts once all the same; sums are "
                f"rounded otherwise, and each process has dropout of its own."
            )
        self._is_pending = True
        self._had_ended = _had_ended(record, run.progress.steps_done)
        self.is_over = self._had_ended and _asks_for_no_more(record, budget)

    def look_back(self) -> None:
        """Show the run that is over as its trainer left it: counters, history and what callbacks remember."""
        run, saved = self._run, self._take()
        record = self._record
        saved_step = run.progress.steps_done
        for name, value in Progress(**record["progress"]).__dict__.items():
            setattr(run.progress, name, value)
        if run.world.is_main:
            run.files.look_back(run.progress.steps_done, saved_step=saved_step)
        self._share_history()
        run.keeping.best = record.get("best")
        load_callbacks(run, saved)
        self._restore_random(saved)
        self._tell_of_epoch(saved)
        for callback in run.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.restore_best_weights(run.trainer)
        reason = _ENDS[record["stop_reason"]]
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
        self._share_history()
        sources.go_on_with(saved.state["order_seed"], were_read=run.progress.epochs_done > 0)
        run.files.say(f"Going on from the checkpoint of step {step:,}, epoch {run.progress.epoch}.")

    def begin(self) -> None:
        """Go to where the checkpoint was made: callbacks are told of the epoch that was over, and get their state."""
        if not self._is_pending:
            return
        run, saved = self._run, self._saved
        assert saved is not None
        run.position.stage = saved.state["position"]["stage"]
        if run.position.stage == "open":
            return  # `begin_epoch` does the rest
        saved = self._take()
        self._load_callbacks(saved)
        self._restore_random(saved)
        self._tell_of_epoch(saved)
        if self._had_ended:  # it was to stop there, and now goes on: callbacks begin as in any run that goes on
            run.stop_requested = None
            run.tell("on_fit_start")

    # -- the epoch that was under way --------------------------------------------------------------------------------

    @property
    def is_inside_epoch(self) -> bool:
        """Whether the next epoch is one that was interrupted."""
        return self._is_pending and not self.is_over

    def begin_epoch(self) -> None:
        """Bring back row, sums and callbacks of the epoch."""
        run, saved = self._run, self._take()
        position = saved.state["position"]
        with refusing_unsound(self._path):
            run.row.clear()
            run.row.update({"epoch": saved.state["row"]["epoch"], **join(saved.state["row"], {})})
            load_phase(run, saved.owns)
            self._loops_to_skip, self._loop = position["loops_done"], self._own(saved).get("loop")
            run.position.is_whole = position.get("is_whole", True)  # checkpoints of earlier versions do not say
        phase = run.train_phase
        if phase.unsaved:
            run.files.warn(
                f"warning: {', '.join(phase.unsaved)} of epoch {run.row['epoch']} counts only what comes from here on: a metric object "
                f"without state_dict() cannot be saved."
            )
        run.tell("on_epoch_start")
        self._load_callbacks(saved)
        if self._had_ended:
            run.stop_requested = None
        if self._loop is None:
            self._restore_random(saved)
        else:
            self._saved = saved

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
        then, own = self._saved.num_processes, self._own(self._saved)
        with refusing_unsound(self._path):
            done, data = loop["batches_done"], loop["data"]
        if then == run.world.size:
            self._resumption.refuse(compare(own.get("data"), source.describe_data(), name="data"))
        else:
            done = batches_for_others(source, done, then=then, now=run.world.size, warn=run.notices.warn_all)
        self._batches_to_skip = source.go_to(epoch, data, done)
        self._is_random_pending = True
        if source.draws_in_workers:
            run.files.warn(
                "warning: Worker processes with random streams of their own fetch the data, which begin anew in the middle of this epoch: "
                "random augmentation is not bit for bit that of the run that was not interrupted; order and samples are."
            )
        return self._batches_to_skip

    def batches(self, source: Source) -> Iterator[Any]:
        """Return the iterator over the batches that are left, with the generators as they were when it was interrupted."""
        run, device = self._run, self._run.trainer.device
        if not self._is_random_pending:
            if source.draws_at_start and run.notes_random_states:
                run.position.loop_start = get_random_state(device)
            return iter(source)
        saved, self._saved, self._is_random_pending = self._saved, None, False
        assert saved is not None
        with refusing_unsound(self._path):
            run.position.loop_start = self._own(saved).get("loop_start")
            load_random(run, saved.owns, "loop_start")  # a sampler draws the same order again
        iterator = iter(source)
        skipped, done = source.skip(iterator, self._batches_to_skip), run.progress.samples_in_epoch
        if skipped is not None and skipped != done and run.is_alone and not run.position.loops_done:
            run.files.warn(
                f"warning: The {self._batches_to_skip} batches that were left out had {skipped} samples, and the run had done {done} in as many: "
                f"ready batches are counted in batches, and theirs have another size now. Some samples of epoch {run.row['epoch']} come "
                f"twice or not at all. A velodrome.DataLoader goes on at the sample."
            )
        self._restore_random(saved)
        return iterator

    def pass_over_data(self) -> None:
        """Have the generators as they were when the run was interrupted, in a loop of which nothing is left to read."""
        if self._is_random_pending:
            saved, self._saved, self._is_random_pending = self._saved, None, False
            assert saved is not None
            self._run.position.loop_start = self._own(saved).get("loop_start")
            self._restore_random(saved)

    # -- a checkpoint -----------------------------------------------------------------------------------------------

    def collect(self) -> SavedState:
        """Return what a checkpoint holds besides the weights; the reason, where a run cannot go on from it."""
        run = self._run
        if run.position.is_in_batch:
            reason = "it was made within a batch, and the loop was left there"
            return SavedState(state={"not_resumable": reason, "is_within_batch": True})
        try:
            saved = collect_state(run, [collect_own(run)] if run.is_alone else run.saves.together.take())
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

    def _tell_of_epoch(self, saved: SavedState) -> None:
        """Do what comes after the checkpoint of an epoch that was over, where this is one: callbacks had not heard of it."""
        position = saved.state["position"]
        if position["stage"] != "over":
            return
        with refusing_unsound(self._path):
            end = join(position["epoch_end"], {})
            row, verdict = end["row"], Verdict(**end["verdict"])
        self._run.after_epoch(row, verdict)

    def _load_callbacks(self, saved: SavedState) -> None:
        left = load_callbacks(self._run, saved)
        if left:
            self._run.files.warn(
                f"warning: The checkpoint holds the state of {', '.join(left)}, which this trainer does not have."
            )

    def _restore_random(self, saved: SavedState) -> None:
        with refusing_unsound(self._path):
            load_random(self._run, saved.owns)

    def _own(self, saved: SavedState) -> OwnState:
        """Return what this process had of its own; what rank 0 had, where there were not as many processes."""
        own = saved.owns[self._run.world.rank if saved.num_processes == self._run.world.size else 0]
        assert own is not None
        return own

    def _share_history(self) -> None:
        """Let every process have the rows that rank 0 read."""
        files = self._run.files
        files.history = self._run.world.gather(files.history)[0]


def batches_for_others(source: Source, done: int, *, then: int, now: int, warn: Callable[[str], None]) -> int:
    """Return how many batches another number of processes has done, at the same sample.

    Args:
        source: of the data, on its first pass here.
        done: by each of the processes of then.
        then, now: numbers of processes.
        warn: is told where the order of the epoch cannot be had again.
    Raises:
        RefusedError: the data divide themselves, or are dealt out and do not come out even.
    """
    if source.divides_itself:
        raise RefusedError(
            f"The training data divide themselves, and {then} processes were in the middle of their parts: {now} cannot know which samples "
            f"are left. No step was made. Start {then} processes until the epoch is over."
        )
    if source.has_own_order and 1 in (then, now):
        warn(
            f"Where the data draw their order at random, this epoch has another one with {now} processes than with {then}: some of its "
            f"samples may come twice and others not at all. The epochs after it are whole."
        )
    if not source.is_dealt:
        return done
    if not source.can_enter and done * then % now:
        raise RefusedError(
            f"{then} processes had done {done * then} batches of this epoch, which are no whole rounds of {now} ({done * then} % {now} = "
            f"{done * then % now}). No step was made. Start {then} processes until the epoch is over, or one."
        )
    return -(-done * then // now)


def _had_ended(record: Mapping[str, Any], step: int) -> bool:
    """Return whether a run had come to its end, and this checkpoint is its last."""
    progress = record.get("progress")
    ended = record.get("status") == "done" and record.get("stop_reason") in _ENDS
    return ended and isinstance(progress, dict) and progress.get("steps_done") == step


def _asks_for_no_more(record: Mapping[str, Any], budget: Budget) -> bool:
    """Return whether a run that had ended would end again at once."""
    limits = {name: value for name, value in vars(budget).items() if value is not None}
    return record.get("budget") == limits or budget.exhausted_by(Progress(**record["progress"])) is not None
