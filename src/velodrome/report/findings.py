"""What a bill means: sentences that name what takes the time, and what to try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["find_bottlenecks"]

# Fractions of the wall time from which a part is worth a sentence.
_DATA, _TRANSFER, _OPTIMIZER, _EVALUATION = 0.2, 0.15, 0.25, 0.4
_CALLBACK, _LOGGING, _SAVING = 0.05, 0.1, 0.1
_LONG, _LEAST_LONG_S = 0.15, 0.5  # a first batch, for which much is made ready, is no news in a run of a second
_FUSE = "Try it by name, which makes it fused where torch can, or larger batches."
# Where the switch is, for those who call Python and those who write recipes.
_SAVE = "Try Checkpointing(background=True), in a recipe checkpoint.background=true, or save less often."
_IN_BACKGROUND = "They are written in the background already: save less often."
_OF_WHAT = "of a DataLoader (train.num_workers in a recipe)"
_PICKLABLE = (
    "define dataset, collate_fn and worker_init_fn at the top of a module, without lambdas, open files or locks in them"
)
_KEEP = "keep the samples in memory as tensors (train.in_memory=true in a recipe)"


class BillLike(Protocol):
    """Where the wall time of a run went."""

    @property
    def wall_s(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def callbacks(self) -> Mapping[str, float]: ...
    @property
    def batches(self) -> int: ...
    @property
    def num_long(self) -> int: ...
    @property
    def long_s(self) -> float: ...
    @property
    def dataset(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...

    def fraction(self, part: str) -> float:
        """Return the fraction of a part."""
        ...


def find_bottlenecks(bill: BillLike, waits: Iterable[str] = ()) -> list[str]:
    """Return what stands out about a run, the most expensive first; then the lines that were seen to wait for the device.

    Args:
        bill: of the run.
        waits: a sentence a line of the user's code.
    """
    if bill.wall_s <= 0 or not bill.batches:
        return list(waits)
    found = sorted((*_of_the_batches(bill), *_of_the_rest(bill)), reverse=True)
    return [*(sentence for _, sentence in found), *waits]


def _of_the_batches(bill: BillLike) -> Iterator[tuple[float, str]]:
    fraction = bill.fraction("data_wait")
    if fraction >= _DATA:
        each = _time(bill.parts["data_wait"] / bill.batches)
        yield (
            fraction,
            f"{fraction:.0%} of the time is waiting for data: {bill.dataset} lets the loop wait {each} a batch. {_faster(bill.facts)}",
        )
    fraction = bill.fraction("transfer")
    if fraction >= _TRANSFER:
        each = _time(bill.parts["transfer"] / bill.batches)
        yield (
            fraction,
            f"{fraction:.0%} of the time is moving batches of {bill.dataset} to the device, {each} a batch. Try smaller values, such as uint8 pixels "
            f"that become floats on the device, or data that fit into its memory as tensors.",
        )
    fraction = bill.long_s / bill.wall_s
    if fraction >= _LONG and bill.long_s >= _LEAST_LONG_S:
        is_one = bill.num_long == 1
        which = "one batch" if is_one else f"{bill.num_long} batches"
        remedy = (
            "The first ones compile the model, which pays in long runs only: leave compile out of short ones."
            if bill.facts.get("compiled")
            else "Look what your code does there that it does not do in every batch: printing, plotting, writing or reading files."
        )
        yield fraction, f"{fraction:.0%} of the time is what {which} took longer than usual. {remedy}"
    fraction = bill.fraction("optimizer")
    if fraction >= _OPTIMIZER:
        is_fused = bill.facts.get("fused_optimizer")
        remedy = "It is fused already: try larger batches, which need fewer updates." if is_fused else _FUSE
        what = "the optimizer"
        if bill.facts.get("processes", 1) > 1:
            what = f"the optimizer, where the {bill.facts['processes']} processes wait for the slowest of them and add up their gradients"
            remedy = "The line on what a step took by itself in each rank tells which one that is; larger batches need fewer sums."
        yield fraction, f"{fraction:.0%} of the time is {what}. {remedy}"


def _of_the_rest(bill: BillLike) -> Iterator[tuple[float, str]]:
    for name, seconds in bill.callbacks.items():
        fraction = seconds / bill.wall_s
        if fraction >= _CALLBACK:
            yield (
                fraction,
                f"{fraction:.0%} of the time is the callback {name}, {_time(seconds)}. Do less in it, or do it less often.",
            )
    fraction = bill.fraction("evaluation")
    if fraction >= _EVALUATION:
        yield (
            fraction,
            f"{fraction:.0%} of the time is evaluation. Try a larger eval_batch_size, fewer samples, or evaluate less often.",
        )
    fraction = bill.fraction("saving")
    if fraction >= _SAVING:
        remedy = _IN_BACKGROUND if bill.facts.get("saves_in_background") else _SAVE
        yield fraction, f"{fraction:.0%} of the time is saving checkpoints. {remedy}"
    fraction = bill.fraction("logging")
    if fraction >= _LOGGING:
        yield (
            fraction,
            f"{fraction:.0%} of the time is logging and metrics. Try a larger log_every, or fewer metrics and loggers.",
        )


def _faster(facts: Mapping[str, Any]) -> str:
    """Return what to try about data that come late: nothing that is done already, or has no switch."""
    workers, cores = facts.get("workers", 0), facts.get("cores", 1)
    if facts.get("transform"):
        return f"The function {facts['transform']} changes every batch: do less in it, or use velodrome.transforms, which work on whole batches."
    if facts.get("in_memory"):
        return "They are in memory already: try larger batches, or a transform that works on whole batches."
    if facts.get("is_stream"):
        return "It is a stream, where the number of workers decides the order: do less for each sample."
    if not facts.get("takes_workers", True):
        return "Its batches are made in the training process: do less for each, or give a Dataset, which worker processes can read."
    readers = f"{workers} worker{'s' * (workers != 1)}" if workers else "no workers"
    if facts.get("workers_failed") == "start":
        return f"No worker could be started: make what they are sent picklable ({_PICKLABLE}), or {_KEEP}."
    if facts.get("workers_failed"):
        return f'The workers that num_workers="auto" tried failed, and the line "train: no workers" says why: mend that, or {_KEEP}.'
    if facts.get("workers_are_measured"):
        limit = ", and tries no more than there are cores" if workers >= cores else ""
        more = f" {_more(workers)}" if limit else ""
        return f'num_workers="auto" took {readers}, as far as it has measured{limit}: do less for each sample, or {_KEEP}.{more}'
    if workers >= cores:
        return f"{readers} and the loop share {_cores(cores)}: do less for each sample, or do it once and {_KEEP}. {_more(workers)}"
    if workers:
        return f"Try num_workers={min(cores, 2 * workers)} instead of {workers}, or do less for each sample."
    if cores > 1:
        return f"It is read in the training process: try num_workers={min(cores, 4)} {_OF_WHAT}, or {_KEEP}."
    return f"There is one core only: do less for each sample, or {_KEEP}. {_more(1)}"


def _more(workers: int) -> str:
    """Return what is left to try where every core has a worker: those that wait use none."""
    return f"Where a sample mostly waits (for a disk or a network), more workers than cores help: try num_workers={2 * workers}."


def _cores(number: int) -> str:
    return f"{number} core{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
