"""What a bill means: sentences that name what takes the time, and what to try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["find"]

# Fractions of the wall time from which a part is worth a sentence.
_DATA, _TRANSFER, _OPTIMIZER, _EVALUATION = 0.2, 0.15, 0.25, 0.4
_CALLBACK, _LOGGING, _SAVING = 0.05, 0.1, 0.1
_FUSE = "Try it by name, which makes it fused where torch can, or larger batches."


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
    def dataset(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...

    def share(self, part: str) -> float:
        """Return the fraction of a part."""
        ...


def find(bill: BillLike, waits: Iterable[str] = ()) -> list[str]:
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
    share = bill.share("data_wait")
    if share >= _DATA:
        each = _time(bill.parts["data_wait"] / bill.batches)
        yield (
            share,
            f"{share:.0%} of the time is waiting for data: {bill.dataset} lets the loop wait {each} a batch. {_faster(bill.facts)}",
        )
    share = bill.share("transfer")
    if share >= _TRANSFER:
        each = _time(bill.parts["transfer"] / bill.batches)
        yield (
            share,
            f"{share:.0%} of the time is moving batches of {bill.dataset} to the device, {each} a batch. Try pin_memory=True, or data that "
            f"fit into the device's memory as tensors.",
        )
    share = bill.share("optimizer")
    if share >= _OPTIMIZER:
        is_fused = bill.facts.get("fused_optimizer")
        remedy = "It is fused already: try larger batches, which need fewer updates." if is_fused else _FUSE
        yield share, f"{share:.0%} of the time is the optimizer. {remedy}"


def _of_the_rest(bill: BillLike) -> Iterator[tuple[float, str]]:
    for name, seconds in bill.callbacks.items():
        share = seconds / bill.wall_s
        if share >= _CALLBACK:
            yield (
                share,
                f"{share:.0%} of the time is the callback {name}, {_time(seconds)}. Do less in it, or do it less often.",
            )
    share = bill.share("evaluation")
    if share >= _EVALUATION:
        yield (
            share,
            f"{share:.0%} of the time is evaluation. Try a larger eval_batch_size, fewer samples, or evaluate less often.",
        )
    share = bill.share("saving")
    if share >= _SAVING:
        yield (
            share,
            f"{share:.0%} of the time is saving checkpoints. Try Checkpointing(background=True), or save less often.",
        )
    share = bill.share("logging")
    if share >= _LOGGING:
        yield (
            share,
            f"{share:.0%} of the time is logging and metrics. Try a larger log_every, or fewer metrics and loggers.",
        )


def _faster(facts: Mapping[str, Any]) -> str:
    """Return what to try about data that come late."""
    workers, cores = facts.get("workers", 0), facts.get("cores", 1)
    if facts.get("in_memory"):
        return "They are in memory already: try larger batches, or a transform that works on whole batches."
    if workers >= cores:
        return f"{workers} workers share {cores} cores: do less for each sample, or do it once and keep the tensors in memory."
    if workers:
        return f"Try num_workers={min(cores, 2 * workers)} instead of {workers}, or do less for each sample."
    if cores > 1:
        return f"It is read in the training process: try num_workers={min(cores, 4)}, or keep the samples in memory as tensors."
    return "There is one core only: do less for each sample, or keep the samples in memory as tensors."


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
