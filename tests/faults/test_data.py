"""Data that fail, die, hang, are empty, short, odd or used up: said at once, with the sample and the way out. FAULTS.md rows 16 to 23 and 46."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, IterableDataset, Sampler, Subset, get_worker_info

import velodrome as vd
from velodrome.data.workers import _explain_death
from velodrome.errors import ArgumentError, DataError, FetchError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

X = torch.linspace(-1, 1, 66).reshape(22, 3)
Y = torch.arange(22) % 3


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


class Faulty(Dataset[Any]):
    """Samples of which one does something else."""

    def __init__(self, fault: Any = None, at: int = 13) -> None:
        self.fault, self.at = fault, at

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Any:
        if index == self.at and self.fault is not None:
            self.fault()
        return X[index], int(Y[index])


class FaultyBatches(Faulty):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class FaultyStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(X[:9], Y[:9], strict=True)
        raise ValueError("planted: line 10 is torn")


def planted() -> None:
    raise ValueError("planted: it is broken")


def unpicklable() -> None:
    raise Unpicklable(1, 2)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bus_error() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(7)


def hang_in_here() -> None:
    time.sleep(300)


def fit(data: Any, **arguments: Any) -> vd.FitResult:
    model = arguments.pop("model", None) or nn.Linear(3, 3)
    arguments = {"loss": "cross_entropy", "epochs": 1, "device": "cpu", "progress": False, **arguments}
    return vd.fit(model, data, **arguments)


# -- row 16: the dataset raises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"num_workers": 2}, {"num_workers": 1, "persistent_workers": True}], ids=str)
def test_an_exception_of_the_dataset_names_sample_worker_and_keeps_its_traceback(arguments: dict[str, Any]) -> None:
    with pytest.raises(FetchError) as caught:
        fit(vd.DataLoader(Faulty(planted), 4, **arguments))
    error: Any = caught.value
    # Samples 12 to 15 are the fourth batch, which the second of two workers reads.
    worker = {0: None, 1: 0, 2: 1}[arguments.get("num_workers", 0)]
    assert (error.index, error.indices, error.worker, error.exit_code) == (13, [13], worker, 1)
    where = "" if worker is None else f" in worker {worker}"
    assert str(error).startswith(
        f"Reading sample 13 of Faulty failed{where}: ValueError: planted: it is broken (test_data.py, line "
    )
    assert str(error).endswith("in planted). Check that sample, or leave it out of the dataset.")
    assert isinstance(error, DataError)
    assert isinstance(error.__cause__, ValueError)
    assert "in __getitem__\n    self.fault()" in error.traceback
    if worker is not None:
        assert "in planted" in str(error.__cause__.__cause__)


def test_an_error_that_cannot_be_sent_still_names_the_sample() -> None:
    with pytest.raises(
        FetchError, match="Reading sample 13 of Faulty failed in worker 1: Unpicklable: 1 and 2"
    ) as caught:
        list(vd.DataLoader(Faulty(unpicklable), 4, num_workers=2))
    assert "raise Unpicklable(1, 2)" in str(caught.value.__cause__)


def test_a_sample_of_a_subset_is_named_as_that_of_the_whole_too() -> None:
    parts = Subset(Subset(Faulty(planted), list(range(10, 22))), [0, 3])
    with pytest.raises(FetchError, match=r"Reading sample 1 of Subset \(sample 13 of Faulty\) failed: ValueError"):
        list(vd.DataLoader(parts, 2))


def unequal() -> list[Any]:
    return [(X[0], 0), (X[1, :2], 1), (X[2], 2)]


@pytest.mark.parametrize(
    ("data", "arguments", "message", "indices"),
    [
        (FaultyBatches(planted), {}, r"FaultyBatches\.__getitems__ of samples 12, 13, 14 and 15 failed: ValueError: planted", [12, 13, 14, 15]),
        (unequal(), {}, r"Making a batch of samples 0, 1 and 2 failed: RuntimeError: stack expects each tensor to be equal size.*must have the same shapes", [0, 1, 2]),
        (Faulty(), {"collate_fn": lambda samples: 1 / 0}, r"Making a batch of samples 0, 1, 2 and 3 failed: ZeroDivisionError", [0, 1, 2, 3]),
        (Faulty(), {"transform": lambda x: x @ x}, r"transform of samples 0, 1, 2 and 3 failed: RuntimeError: .*transform= is given whole batches", [0, 1, 2, 3]),
        ((X, Y), {"transform": lambda x: x @ x, "shuffle": True, "seed": 3}, r"transform of samples \d+, \d+, \d+ and \d+ failed", None),
        (Faulty(), {"transform": lambda x: x @ x[:1], "sampler": [9, 8, 7]}, r"transform of samples 9, 8 and 7 failed", [9, 8, 7]),
    ],
)  # fmt: skip
def test_what_fails_for_a_batch_names_its_samples(
    data: Any, arguments: dict[str, Any], message: str, indices: Any
) -> None:
    loader = vd.DataLoader(data, 4, **arguments)
    with pytest.raises(FetchError, match=message) as caught:
        list(loader)
    if indices is None:
        order = [int(index) for batch in vd.DataLoader(torch.arange(22), 4, shuffle=True, seed=3) for index in batch]
        indices = order[:4]
    assert caught.value.indices == indices


def test_an_error_that_says_what_to_do_already_is_left_as_it_is() -> None:
    def refuse() -> None:
        raise DataError("The file is torn. Fetch it again.")

    with pytest.raises(DataError, match="^The file is torn. Fetch it again.$"):
        list(vd.DataLoader(Faulty(refuse), 4))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_exception_of_a_stream_says_after_how_many_batches(num_workers: int) -> None:
    with pytest.raises(FetchError, match=r"Reading FaultyStream failed after 2 batches: ValueError: .*") as caught:
        list(vd.DataLoader(FaultyStream(), 4, num_workers=num_workers))
    assert "planted: line 10 is torn" in caught.value.traceback
    assert isinstance(caught.value.__cause__, ValueError)


def test_cuda_in_forked_workers_is_told_with_the_remedy() -> None:
    def use_cuda() -> None:  # what torch says there
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use 'spawn'"
        )

    with pytest.raises(
        FetchError, match=r'Keep the dataset on the CPU .* or start the workers with multiprocessing_context="spawn"'
    ):
        list(vd.DataLoader(Faulty(use_cuda), 4))


def test_too_many_open_files_are_told_with_the_remedy() -> None:
    def exhaust() -> None:
        raise OSError(24, "Too many open files")

    with pytest.raises(FetchError, match=r"ulimit -n 65536"):
        list(vd.DataLoader(Faulty(exhaust), 4))


def test_a_loader_of_pytorch_that_is_used_as_it_is_keeps_the_type_of_its_errors() -> None:
    class Own(TorchDataLoader[Any]):
        pass

    with pytest.raises(ValueError, match="planted: it is broken"):
        fit(Own(Faulty(planted), 4))


# -- row 17: a worker dies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "name", "message"),
    [
        (kill, "SIGKILL", r"was killed by SIGKILL\. The kernel does that when memory is used up \([\d.]+ [MG]iB are free now.* Use num_workers=1, a smaller batch_size"),
        (bus_error, "SIGBUS", r"was killed by SIGBUS\. Batches come through shared memory.*: /dev/shm has [\d.]+ [MG]iB, [\d.]+ [MG]iB of it free.*--shm-size"),
        (crash, "SIGSEGV", r"was killed by SIGSEGV\. Native code .* crashed\. Use num_workers=0 and `python -X faulthandler`"),
        (leave, None, r"ended itself with exit code 7\. .* Use num_workers=0 to see where"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_that_dies_is_told_by_its_signal_and_likely_cause(
    fault: Any, name: str, message: str, persistent: bool
) -> None:
    before = time.monotonic()
    with pytest.raises(FetchError, match=message) as caught:
        fit(vd.DataLoader(Faulty(fault), 4, num_workers=2, persistent_workers=persistent))
    assert time.monotonic() - before < 60  # no hang
    error: Any = caught.value
    assert (error.worker, error.signal) == (1, name)
    assert str(error).startswith(f"Worker 1 (pid {error.pid}) of the 2 that read Faulty ")


class DiesWhenTold(Faulty):
    """Its fifth sample, in the second worker, waits to be told and dies."""

    def __init__(self) -> None:
        super().__init__(self._die, at=5)
        self.told = multiprocessing.get_context("fork").Event()

    def _die(self) -> None:
        self.told.wait()
        kill()


def test_a_worker_that_dies_while_the_training_process_is_busy_is_told_when_a_batch_is_wanted() -> None:
    """PyTorch raises wherever the training process is: in the middle of an update, say."""
    busy, dataset = [], DiesWhenTold()
    with pytest.raises(FetchError, match="was killed by SIGKILL"):
        for _ in vd.DataLoader(dataset, 4, num_workers=2, multiprocessing_context="fork"):
            dataset.told.set()
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                time.sleep(0.01)  # raises here without our care
            busy.append("whole")
    assert busy == ["whole"]


class SlowOrder(Sampler[int]):
    """Its first indices take so long that workers which end at once have ended by then."""

    def __iter__(self) -> Iterator[int]:
        for index in range(22):
            time.sleep(0.05 if index < 8 else 0)
            yield index

    def __len__(self) -> int:
        return 22


def end_at_once(worker_id: int) -> None:
    os._exit(7)


@pytest.mark.parametrize("dataset", [Faulty(), FaultyStream()], ids=["samples", "stream"])
def test_workers_that_die_before_their_first_batch_is_asked_for_are_told_too(dataset: Any) -> None:
    """PyTorch raises wherever the training process is: here in the middle of the sampler, or of handing out the first indices."""
    order = {} if isinstance(dataset, FaultyStream) else {"sampler": SlowOrder()}
    loader = vd.DataLoader(dataset, 4, num_workers=2, worker_init_fn=end_at_once, **order)
    for _ in range(2):
        with pytest.raises(FetchError, match=r"Worker [01] .* ended itself with exit code 7"):
            list(loader)


def fail_at_start(worker_id: int) -> None:
    raise OSError(5, "no such shard")


@pytest.mark.parametrize("dataset", [Faulty(), FaultyStream()], ids=["samples", "stream"])
def test_a_worker_init_fn_that_raises_is_named(dataset: Any) -> None:
    loader = vd.DataLoader(dataset, 4, num_workers=2, worker_init_fn=fail_at_start)
    for _ in range(2):
        with pytest.raises(
            FetchError, match=r"worker_init_fn failed in worker 0 of the 2 that read \w+: .*no such shard"
        ) as caught:
            list(loader)
    assert "fail_at_start" in str(caught.value.fields["traceback"])


def linger_and_die() -> None:
    time.sleep(0.8)
    kill()


def test_the_death_of_a_worker_is_not_raised_in_other_code_that_runs_meanwhile() -> None:
    """A handler of the user's, here; a destructor, which would print and forget it."""
    raised: list[BaseException] = []

    def tick(number: int, frame: Any) -> None:
        try:
            time.sleep(1.5)
        except RuntimeError as error:
            raised.append(error)

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(FetchError, match="was killed by SIGKILL"):
            list(vd.DataLoader(Faulty(linger_and_die, at=4), 4, num_workers=2))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised == []


def test_a_loader_whose_workers_died_can_be_iterated_over_again() -> None:
    dataset = Faulty(kill)
    loader = vd.DataLoader(dataset, 4, num_workers=1, persistent_workers=True)
    with pytest.raises(FetchError):
        list(loader)
    dataset.at = -1
    assert len(list(loader)) == 6


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-signal.SIGTERM, "was killed by SIGTERM. Somebody ended it from outside"),
        (-99, "was killed by signal 99"),
        (0, "exit code 0"),
    ],
)
def test_other_ends_of_workers_are_told_too(code: int, message: str) -> None:
    assert message in str(_explain_death(0, 77, code, what="Faulty", num_workers=1))


# -- row 18: a worker hangs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "persistent", "timeout"),
    [("fork", False, 2), ("fork", True, 2), pytest.param("spawn", False, 20, marks=pytest.mark.long)],
)
def test_a_worker_that_hangs_ends_the_run_with_the_stacks_of_all(method: str, persistent: bool, timeout: int) -> None:
    loader = vd.DataLoader(
        Faulty(hang_in_here), 4, num_workers=2, timeout=timeout, persistent_workers=persistent, multiprocessing_context=method,
    )  # fmt: skip
    with pytest.raises(
        FetchError, match=r"No batch came from the 2 workers that read Faulty for \d+ seconds, so they were ended"
    ) as caught:
        list(loader)
    text = str(caught.value)
    assert "in hang_in_here" in text  # the worker that hangs
    assert "index_queue.get" in text or "in _worker_loop" in text  # the one that waits
    assert "test_a_worker_that_hangs_ends_the_run_with_the_stacks_of_all" in text  # the training process
    assert "a larger timeout= of the loader waits longer" in text
    assert text.endswith(caught.value.stacks)


def test_threads_at_the_fork_are_named_as_a_likely_cause() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(
            FetchError, match=r"forked from a process of \d+ Python threads.*multiprocessing_context=\"forkserver\""
        ):
            list(vd.DataLoader(Faulty(hang_in_here), 4, num_workers=1, timeout=2, multiprocessing_context="fork"))
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("timeout", [-1, "long", True])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    with pytest.raises(ArgumentError, match=r"is not a time\. It must be a number of seconds, or 0 for no end"):
        vd.DataLoader(Faulty(), 4, num_workers=2, timeout=timeout)


def slowly() -> None:
    time.sleep(1.2)  # longer than one look after the workers


def test_slow_samples_are_waited_for() -> None:
    assert len(list(vd.DataLoader(Faulty(slowly), 4, num_workers=1, timeout=0))) == 6
    assert len(list(vd.DataLoader(Faulty(slowly), 4, num_workers=1, timeout=30))) == 6


class SlowStream(IterableDataset[Any]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __iter__(self) -> Any:
        for x, y in zip(X, Y, strict=True):
            time.sleep(self.seconds)
            yield x, y


def test_a_stream_that_is_entered_far_from_its_start_has_time_to_get_there() -> None:
    """What a worker reads and leaves out takes longer than any batch may: it is alive all the same."""
    context: Any = {"num_workers": 1, "multiprocessing_context": "fork", "seed": 0}
    quick = vd.DataLoader(SlowStream(0), 4, **context)
    batches = iter(quick)
    for _ in range(5):
        next(batches)
    other_size = vd.DataLoader(SlowStream(0), 1, **context)  # its batches begin after the 20th item
    other_size.load_state_dict(quick.state_dict())
    next(iter(other_size))
    slow = vd.DataLoader(SlowStream(0.2), 1, **context, timeout=2)
    slow.load_state_dict(other_size.state_dict())
    assert [batch[0].tolist() for batch in slow] == [X[21:].tolist()]


class Seen(Faulty):
    """Notes what the worker was shown."""

    opened = False

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        return torch.tensor([self.opened, info is not None and info.dataset is self])


def open_dataset(worker_id: int) -> None:
    get_worker_info().dataset.opened = True  # type: ignore[union-attr]


def test_worker_init_fn_sees_the_users_own_dataset() -> None:
    assert all(batch.all() for batch in vd.DataLoader(Seen(), 4, num_workers=2, worker_init_fn=open_dataset))


# -- rows 19 to 23: empty, odd and used up ------------------------------------------------------------------------------------


def test_an_empty_dataset_and_one_smaller_than_a_batch_are_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"The dataset has 0 samples\. Training needs at least one"):
        fit(vd.DataLoader(Subset(Faulty(), []), 4))
    with pytest.raises(
        DataError, match=r"the dataset has 22 samples, fewer than batch_size=32\. Use a batch_size of at most 22"
    ):
        fit(TorchDataLoader(Faulty(), 32, drop_last=True))
    with pytest.raises(DataError, match=r"gave 0 batches in epoch 1"):
        fit([])


@pytest.mark.parametrize("data", [lambda: vd.DataLoader(Faulty(), 7), lambda: TorchDataLoader(Faulty(), 7)])
def test_a_last_batch_of_one_sample_under_batch_norm_is_told_with_the_remedy(data: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))  # 22 = 3 * 7 + 1
    with pytest.raises(
        DataError, match=r"has one sample, and BatchNorm cannot train on one\. Use another batch_size.*drop_last=True"
    ):
        fit(data(), model=model)
    assert fit(
        vd.DataLoader(Faulty(), 7, drop_last=True), model=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ).history


class Lying(IterableDataset[Any]):
    """Announces another number of samples than it has."""

    def __init__(self, announced: int) -> None:
        self.announced = announced

    def __len__(self) -> int:
        return self.announced

    def __iter__(self) -> Any:
        return zip(X, Y, strict=True)


@pytest.mark.parametrize("announced", [40, 8])
@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")
def test_a_stream_of_another_length_than_it_announced_is_said_and_trained_on(announced: int, capsys: Any) -> None:
    result = fit(vd.DataLoader(Lying(announced), 4))
    assert result.history[0]["samples"] == 22
    assert f"announced {announced // 4} batches; epoch 1 had 6" in capsys.readouterr().err


class Nameless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return zip(X, Y, strict=True)


def test_a_stream_of_unknown_length_is_trained_on() -> None:
    assert fit(vd.DataLoader(Nameless(), 4), epochs=2).history[-1]["samples"] == 44


class Once(IterableDataset[Any]):
    """Gives its samples once, whoever asks."""

    def __init__(self) -> None:
        self.samples = iter(list(zip(X, Y, strict=True)))

    def __iter__(self) -> Any:
        return self.samples


def test_data_that_are_used_up_in_the_second_epoch_are_an_error() -> None:
    with pytest.raises(DataError, match=r"The generator given as data is exhausted: epoch 2 has 0 batches"):
        fit(((X, Y) for _ in range(3)), epochs=2)
    with pytest.raises(DataError, match=r"The training data gave 0 batches in epoch 2"):
        fit(vd.DataLoader(Once(), 4), epochs=2)


# -- row 46: workers that cannot be started ------------------------------------------------------------------------------------


def test_a_dataset_that_cannot_be_sent_to_workers_is_told_with_the_remedy() -> None:
    class Local(Faulty):
        pass

    with pytest.raises(
        FetchError, match=r"Local cannot be sent to worker processes that are started by spawn: .*num_workers=0"
    ):
        list(vd.DataLoader(Local(), 4, num_workers=1, multiprocessing_context="spawn"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_samples_on_a_gpu_are_not_given_to_forked_workers() -> None:
    class OnGpu(Faulty):
        def __init__(self) -> None:
            super().__init__()
            self.x = X.cuda()

        def __getitem__(self, index: int) -> Any:
            return self.x[index], int(Y[index])

    with pytest.raises(DataError, match=r"OnGpu holds a tensor on cuda:0 \(x\), which forked workers cannot read"):
        fit(vd.DataLoader(OnGpu(), 4, num_workers=1, multiprocessing_context="fork"))
