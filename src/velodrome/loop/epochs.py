"""Epochs: a `for` loop over training batches and one over evaluation batches, with all that surrounds them."""

from __future__ import annotations

import math
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import ref

from velodrome.errors import ArgumentError, DataError
from velodrome.loop.host import NO_BATCH, LeftAtOnce, length_of
from velodrome.loop.modes import evaluation_mode, fetch_outside_of_inference_mode, training_mode
from velodrome.loop.progress import StopReason

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from velodrome.loop.host import BatchSource, LoopHost, PhaseLike
    from velodrome.loop.progress import Budget

__all__ = ["Epoch", "evaluation_batches", "run_epochs"]

_SECONDS_BETWEEN_DRAWS = 0.1


def run_epochs(host: LoopHost, budget: Budget) -> Iterator[Epoch]:
    """Yield epochs until the budget is used up or somebody asks to stop; open the records before, close them after."""
    budget = host.begin_run(budget)
    reason = StopReason.LEFT  # holds when the user's loop breaks, or an error passes through it
    try:
        while (stop := _reason_to_stop(host, budget)) is None:
            host.begin_epoch()
            epoch = Epoch(host, budget)
            yield epoch
            epoch.close_loops()
            if host.leaving is not None:
                continue
            epoch.check_trained()
            host.progress.epochs_done += epoch.is_whole
            host.end_epoch()
        reason = stop
    except GeneratorExit:
        raise
    except BaseException as error:
        host.note(error)
        raise
    finally:
        host.end_run(reason)


def _reason_to_stop(host: LoopHost, budget: Budget) -> StopReason | None:
    """Return why no epoch comes; one that was interrupted is brought to its end, whatever the budget says."""
    host.heed_time(perf_counter())
    if host.leaving is not None:
        return host.leave()
    return None if host.is_inside_epoch else host.stop_requested or budget.exhausted_by(host.progress)


class Epoch:
    """One pass: hands out training batches and evaluation batches, in the right mode and on the right device."""

    def __init__(self, host: LoopHost, budget: Budget) -> None:
        self.index = host.progress.epochs_done
        """which epoch it is, counted from 0"""
        self.is_whole = True
        """False once a budget or a request to stop cut training short; leaving your own loop early is your decision"""
        self._host = host
        self._budget = budget
        self._batches_done = 0
        self._loops: list[ref[Generator[Any, None, None]]] = []
        self._micro_batches_before = host.progress.micro_batches_done

    def train(self, data: Any, *, batch_size: int | None = None, shuffle: bool = True) -> Iterator[Any]:
        """Yield the training batches, on the device; the model is in training mode meanwhile.

        Args:
            data: a loader, an iterable of batches, or a dataset or tensors together with `batch_size`.
            batch_size: samples a batch, for a dataset or tensors.
            shuffle: draw a new order every epoch, for a dataset or tensors.
        Raises:
            DataError: the data hold no batch.
        """
        loop = self._train(data, batch_size=batch_size, shuffle=shuffle)
        self._loops.append(ref(loop))
        return loop

    def _train(self, data: Any, *, batch_size: int | None, shuffle: bool) -> Generator[Any, None, None]:
        host, progress, budget = self._host, self._host.progress, self._budget
        host.finish_left_phase()
        if host.leaving is not None:
            host.leave()
            return
        source = host.source(data, role="train", batch_size=batch_size, shuffle=shuffle)
        place = host.placer(source)
        start = host.enter_data(source, self.index)
        if start is None:  # a run that goes on: this loop was over
            self.is_whole = host.position.is_whole
            return
        total = length_of(source)
        max_steps = math.inf if budget.steps is None else budget.steps
        host.tick()
        deadline = math.inf if budget.seconds is None else perf_counter() + budget.seconds - progress.seconds
        is_used_up = progress.steps_done >= max_steps or host.stop_requested is not None
        if is_used_up:  # by this epoch's first train(), or just before the run was interrupted
            self.is_whole = start == total
            if not start:
                return
            host.pass_over_data()
        next_draw = 0.0
        batches_done, batches_skipped = start, 0
        with suppress(LeftAtOnce), host.training(source) as phase, training_mode(host.model):
            phase.batches_done, phase.is_whole, phase.told = start, self.is_whole or not is_used_up, []
            advance, position = phase.display.advance, host.position
            for batch, samples in () if is_used_up else host.watched(host.batches(source), place):
                if samples == NO_BATCH:
                    batches_skipped += 1
                    host.skip_batch()
                else:
                    phase.batch_samples = samples
                    progress.samples_done += samples
                    progress.samples_in_epoch += samples
                    position.is_in_batch, position.batch = True, batch
                    yield batch
                    position.is_in_batch = False
                    if host.phase is not phase:
                        raise _interleaved(phase, host.phase)
                batches_done += 1
                phase.batches_done = batches_done
                if host.save_is_due:
                    host.save_if_due()
                now = perf_counter()
                if now >= next_draw:
                    advance(batches_done, progress.samples_in_epoch)
                    next_draw = now + _SECONDS_BETWEEN_DRAWS
                    host.heed_time(now)
                if host.leaving is not None:
                    host.leave()
                    raise LeftAtOnce
                if progress.steps_done >= max_steps or now >= deadline or host.stop_requested is not None:
                    total = length_of(source) if start else total
                    self.is_whole = phase.is_whole = batches_done == total
                    break
            else:
                # Of an epoch entered in the middle, maybe with another batch size, it is known once what is left was laid out.
                total = length_of(source) if start else total
                if total is not None and 0 < batches_done != total and not is_used_up:
                    host.warn(
                        f"The training data announced {total} batches; epoch {self.index + 1} had {batches_done}."
                    )
            if not batches_done and host.is_alone:
                raise _no_batches(progress.epoch)
            advance(batches_done, progress.samples_in_epoch)
        self._batches_done += batches_done - batches_skipped - start
        if host.leaving is not None and not phase.told:
            self.is_whole = False
            return
        if not any(batches for batches, _ in phase.told):
            raise _no_batches(progress.epoch)
        self.is_whole = all(is_whole for _, is_whole in phase.told)

    def evaluate(self, data: Any, *, batch_size: int | None = None, name: str = "val") -> Iterator[Any]:
        """Yield the evaluation batches, on the device; eval mode and inference mode hold meanwhile and are put back.

        What is logged or measured inside becomes `<name>/...` in the epoch's row. Within the training loop, where it may be called
        again and again, each evaluation has a row of its own too, and the epoch's row the last one. No data, no batches.

        Raises:
            ArgumentError: the name was evaluated here before, or is taken.
        """
        if data is None:
            return
        host = self._host
        host.finish_left_phase()
        within = host.claim_name(name)
        # Within a batch the run is left when that is over, like after any other batch.
        if host.leaving is not None and not within:
            host.leave()
            return
        source = host.source(data, role=name, batch_size=batch_size)
        with suppress(LeftAtOnce), host.evaluation(name, source) as phase:
            yield from evaluation_batches(host, phase, source, may_leave=not within)
        if host.leaving is not None and not within:
            host.leave()

    def close_loops(self) -> None:
        """End loops over training batches that were left and whose iterator is still held somewhere: in a variable, say."""
        for reference in self._loops:
            loop = reference()
            if loop is not None:
                loop.close()

    def check_trained(self) -> None:
        """Refuse an epoch that handed out batches and was given no loss."""
        if self._batches_done and self._host.progress.micro_batches_done == self._micro_batches_before:
            raise ArgumentError(
                f"Epoch {self.index + 1} handed out {self._batches_done} training batches, but trainer.step(loss) was never called. "
                f"Nothing was trained: call it once a batch."
            )


def evaluation_batches(
    host: LoopHost, phase: PhaseLike, source: BatchSource, *, may_leave: bool = False
) -> Iterator[Any]:
    """Yield the batches of one evaluation; the display is told how far it is.

    Args:
        host, phase, source: of the evaluation.
        may_leave: give it up when the run is to be left. Of several processes those that know it stop here and wait for the others at
            the end, where all learn it: their parts have different lengths, so that they cannot meet before.
    """
    place = host.placer(source)
    source.set_epoch(0)
    next_draw = 0.0
    batches_done = samples_done = 0
    with evaluation_mode(host.model):
        for raw_batch in fetch_outside_of_inference_mode(source):
            batch, samples = place(raw_batch)
            batches_done += 1
            if samples == NO_BATCH:
                continue
            phase.batch_samples = samples
            yield batch
            if host.phase is not phase:
                raise _interleaved(phase, host.phase)
            samples_done += samples
            if (now := perf_counter()) >= next_draw:
                phase.display.advance(batches_done, samples_done)
                next_draw = now + _SECONDS_BETWEEN_DRAWS
                host.heed_time(now)
            if may_leave and host.wants_to_leave is not None:
                break
    told = phase.others.gather((batches_done, host.wants_to_leave if may_leave else None))
    host.heed_others([wish for _, wish in told])
    if may_leave and host.leaving is not None:
        raise LeftAtOnce
    if not any(batches for batches, _ in told):
        raise DataError(
            f"The {phase.name} data gave 0 batches. Evaluation needs at least one: check the dataset, or leave it out."
        )
    phase.display.advance(batches_done, samples_done)


def _no_batches(epoch: int) -> DataError:
    return DataError(
        f"The training data gave 0 batches in epoch {epoch}. Training needs at least one: check the dataset and its filters."
    )


def _interleaved(phase: PhaseLike, other: PhaseLike) -> ArgumentError:
    return ArgumentError(
        f"The {phase.name!r} loop went on while the {other.name!r} loop inside of it was not finished. "
        f"Run through one loop before the other goes on; do not zip them."
    )
