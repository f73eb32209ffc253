"""Law 3 with several processes: another number of them goes on with the same samples, and whatever happens to one, nobody waits.

In float64, without dropout: then sums in another order are all that differs, and the run that goes on with another number of
processes ends like the one that one process made alone, to a relative 1e-12. `test_resume_table.py` has as many processes as
before, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import velodrome as vd
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.distributed.world import join_world
from velodrome.testing.torchvision_cpu import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SAMPLES, BATCH, EPOCHS = 22, 6, 3
TOLERANCE = {"rtol": 1e-12, "atol": 1e-13}
X = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(0, 2, (SAMPLES,), generator=torch.Generator().manual_seed(1)).double()


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    """Ends the run in every process, in the batch after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done > self.step:
            raise Cut


class Model(nn.Module):
    """A probability, and a head that another optimizer trains."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.body, self.head = nn.Linear(4, 1), nn.Linear(1, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.body(x)).squeeze(1)


def my_rank() -> int:
    return join_world(torch.device("cpu")).rank


def make(folder: str, *, cut_at: int | None = None, **arguments: Any) -> vd.Trainer:
    with contextlib.suppress(ImportError):
        import_torchvision()
    from torchmetrics.classification import BinaryAUROC

    callbacks = [*arguments.pop("callbacks", []), *([] if cut_at is None else [CutAt(cut_at)])]
    defaults: dict[str, Any] = {
        "optimizer": "sgd", "lr": 0.3, "optimizer_args": {"momentum": 0.9}, "loss": "bce", "resume": "auto", "seed": 3,
        "metrics": {"accuracy": accuracy, "auroc": BinaryAUROC()}, "checkpoint": "every step", "log_every": "3 steps", "loggers": [],
    }  # fmt: skip
    run_dir = f"{folder}/run"
    return vd.Trainer(
        Model(), **{**defaults, **arguments}, callbacks=callbacks, run_dir=run_dir, device="cpu", progress=False
    )


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output > 0.5) == (target > 0.5)).double()


class Samples(Dataset[Any]):
    """The same data, fetched sample by sample."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


def fit(
    folder: str, kind: str, cut_at: int | None = None
) -> tuple[list[torch.Tensor], list[dict[str, Any]], int] | None:
    """Train with `fit`; None when the run was cut."""
    trainer = make(folder, cut_at=cut_at, **({"accumulate": 2} if kind == "windows" else {}))
    data = {"tensors": (X, Y), "windows": (X, Y), "samples": Samples()}.get(kind)
    if kind == "batches":
        data = list(zip(X.split(1), Y.split(1), strict=True))[:18]  # dealt out one by one: rounds of two and of three
    try:
        trainer.fit(data, (X, Y), batch_size=None if kind == "batches" else BATCH, eval_batch_size=5, epochs=EPOCHS)
    except Cut:
        return None
    return facts(trainer)


def loop(
    folder: str, kind: str, cut_at: int | None = None
) -> tuple[list[torch.Tensor], list[dict[str, Any]], int] | None:
    """Train with two optimizers: the window of the second is open where checkpoints are made, with what is logged since."""
    del kind
    trainer = make(
        folder, cut_at=cut_at, optimizer={"body": "sgd", "head": "adam"}, optimizer_args={}, accumulate=2, metrics=[]
    )
    model = trainer.model
    try:
        for epoch in trainer.epochs(EPOCHS):
            for x, y in epoch.train((X, Y), batch_size=BATCH):
                hidden = model(x)
                trainer.step(F.binary_cross_entropy(hidden, y), optimizer="body")
                if trainer.progress.micro_batches_done % 3 != 2:
                    rest = torch.sigmoid(model.head(hidden.detach()[:, None]))[:, 0]
                    trainer.step(F.binary_cross_entropy(rest, y), optimizer="head")
                trainer.log(hidden=hidden.mean(), each=hidden.detach())
            for x, y in epoch.evaluate((X, Y), batch_size=5):
                trainer.log(loss=F.binary_cross_entropy(model(x), y))
    except Cut:
        return None
    return facts(trainer)


def facts(trainer: vd.Trainer) -> tuple[list[torch.Tensor], list[dict[str, Any]], int]:
    rows = [
        {name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")}
        for row in trainer.result.history
    ]
    return [parameter.detach().clone() for parameter in trainer.model.parameters()], rows, trainer.progress.samples_done


def assert_same(got: Any, expected: Any, what: str) -> None:
    torch.testing.assert_close(got[0], expected[0], **TOLERANCE, msg=lambda text: f"{what}: {text}")
    assert len(got[1]) == len(expected[1]), what
    for row, wanted in zip(got[1], expected[1], strict=True):
        assert row == pytest.approx(wanted, rel=1e-12, abs=1e-13), what
    assert got[2] == expected[2], what


@pytest.fixture(scope="module")
def run_in(two: Any, three: Any) -> Any:
    """Run a function in so many processes; return what rank 0 returned, and check that the others agree."""

    def run(size: int, function: Any, *arguments: Any) -> Any:
        if size == 1:
            return function(*arguments)
        first, *others = {2: two, 3: three}[size].run(function, *arguments)
        if isinstance(first, tuple):
            for other in others:
                assert_same(other, first, "the other ranks")
        return first

    return run


@pytest.mark.parametrize("kind", ["tensors", "windows", "samples", "batches", "two optimizers"])
@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (2, 3), (3, 2, 1)], ids=str)
def test_another_number_of_processes_goes_on_with_the_same_samples(
    counts: tuple[int, ...], kind: str, run_in: Any, tmp_path: Path
) -> None:
    function = loop if kind == "two optimizers" else fit
    # Of batches that are dealt out each process has one of its own a step: there are other steps with other numbers.
    steps = {"windows": (1, 3), "two optimizers": (3, 7), "batches": (1, 2)}.get(kind, (2, 6))
    if kind == "batches":
        last = run_in(counts[0], fit, str(tmp_path), kind, 6 // counts[0])
        for size in counts[1:]:
            last = run_in(size, fit, str(tmp_path), kind)
        assert last[2] == 18 * EPOCHS
        return
    expected = function(str(tmp_path / "straight"), kind)
    for size, step in zip(counts, steps, strict=False):
        assert run_in(size, function, str(tmp_path), kind, step) is None
    got = run_in(counts[-1], function, str(tmp_path), kind)

    assert_same(got, expected, f"{kind} {counts}")
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"not bit for bit: {counts[-2]} -> {counts[-1]} processes" in said


class LooksAtWindows(vd.Callback):
    """Remembers how many micro-batches make an update."""

    def on_fit_end(self, trainer: vd.Trainer) -> None:
        self.accumulate = next(iter(trainer._windows.by_name.values())).accumulate


def split_batches(folder: str, cut_at: int | None) -> Any:
    looks = LooksAtWindows()
    trainer = make(folder, cut_at=cut_at, callbacks=[looks])
    try:
        trainer.fit((X, Y), (X, Y), batch_size=6, micro_batch=3, eval_batch_size=5, epochs=2)
    except Cut:
        return None
    return (*facts(trainer)[:2], looks.accumulate)


def test_a_batch_in_micro_batches_is_cut_otherwise_by_another_number_of_processes(run_in: Any, tmp_path: Path) -> None:
    expected = split_batches(str(tmp_path / "straight"), None)
    assert (
        expected[2] == 2
    )  # 6 samples an update in one process: two micro-batches of 3; in two processes one of 3 each
    assert run_in(1, split_batches, str(tmp_path), 2) is None
    got = run_in(2, split_batches, str(tmp_path), None)

    assert got[2] == 1
    torch.testing.assert_close(got[0], expected[0], **TOLERANCE)


# -- saving --------------------------------------------------------------------------------------------------------------------


class SaveAlone(vd.Callback):
    """One process asks for a checkpoint, which the others do not know of."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step
        self.told: list[int] = []

    def on_step_end(self, trainer: vd.Trainer) -> None:
        if my_rank() == self.rank and trainer.progress.steps_done == self.step:
            assert trainer.save() is None

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        self.told.append(trainer.progress.steps_done)


def save_alone(folder: str, rank: int, log_every: str) -> list[int]:
    saving = SaveAlone(rank, 2)
    trainer = make(folder, callbacks=[saving], checkpoint=None, log_every=log_every)
    trainer.fit((X, Y), batch_size=BATCH, epochs=2)
    return saving.told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_save_that_one_process_asks_for_is_made_by_all_at_the_next_log_point(
    rank: int, two: Any, tmp_path: Path
) -> None:
    first, second = two.run(save_alone, str(tmp_path), rank, "3 steps")
    assert (first, second) == ([3, 4, 8], [])  # 4 and 8: the epochs are the best so far
    last = read_state(tmp_path / "run" / "checkpoints" / "step-00000008")
    assert len(last["resume"]["ranks"]) == 2

    assert two.run(save_alone, str(tmp_path / "late"), rank, "50 steps")[0] == [
        4,
        4,
        8,
    ]  # the end of the epoch's training, and of the epoch


class Shard:
    """Batches that a process has for itself."""

    is_sharded = True

    def __init__(self, num_batches: int) -> None:
        self.batches = list(zip(X.split(2), Y.split(2), strict=True))[:num_batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def fit_shards(folder: str, lengths: list[int], cut_at: int | None = None) -> Any:
    trainer = make(folder, cut_at=cut_at, metrics=[])
    try:
        trainer.fit(Shard(lengths[my_rank()]), epochs=2)
    except Cut:
        return None
    return facts(trainer)


def test_a_save_waits_for_the_end_of_the_data_where_a_process_has_none_left(two: Any, tmp_path: Path) -> None:
    lengths = [5, 2]
    expected = two.run(fit_shards, str(tmp_path / "straight"), lengths)
    for step in (1, 3, 6, 8):
        folder = str(tmp_path / str(step))
        assert two.run(fit_shards, folder, lengths, step) == [None, None]
        saved = {path.name for path in (tmp_path / str(step) / "run" / "checkpoints").glob("step-*")}
        # Rank 1 has two batches an epoch, so steps 3, 4 and 8, 9 have no checkpoint of their own.
        assert saved == {1: {"step-00000001"}, 3: {"step-00000001", "step-00000002"}, 6: {"step-00000005", "step-00000006"}, 8: {"step-00000005", "step-00000006", "step-00000007"}}[step]  # fmt: skip
        again = two.run(fit_shards, folder, lengths)
        for got, wanted in zip(again, expected, strict=True):
            assert all(map(torch.equal, got[0], wanted[0]))
            assert got[1:] == wanted[1:]
    assert (
        "A checkpoint is due while a process has no training data left"
        in (tmp_path / "8" / "run" / "log.txt").read_text()
    )


def test_data_that_divide_themselves_cannot_be_divided_again_within_an_epoch(two: Any, tmp_path: Path) -> None:
    two.run(fit_shards, str(tmp_path), [4, 4], 2)

    with pytest.raises(vd.errors.RefusedError, match="Start 2 processes until the epoch is over"):
        fit_shards(str(tmp_path), [4])


class SayWhere:
    """A metric whose state in one process cannot be saved."""

    def __init__(self) -> None:
        self.reset()

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.count += len(output)

    def compute(self) -> float:
        return float(self.count)

    def reset(self) -> None:
        self.count = 0

    def merge_state(self, other: SayWhere) -> None:
        self.count += other.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "odd": object() if my_rank() else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def fit_odd(folder: str) -> int:
    trainer = make(folder, metrics={"seen": SayWhere()})
    trainer.fit((X, Y), batch_size=BATCH, epochs=1)
    return int(trainer.result.metrics["train/seen"])


def test_a_state_that_cannot_be_saved_in_one_process_leaves_weights_and_says_which(two: Any, tmp_path: Path) -> None:
    assert two.run(fit_odd, str(tmp_path)) == [SAMPLES] * 2

    assert "phase/metrics/stateful/seen/odd is a object" in (tmp_path / "run" / "log.txt").read_text()
    last = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    assert "[rank 1]" in read_state(last).get("not_resumable", "") or "resume" in read_state(last)  # the epoch was over


def fit_on_a_full_disk(folder: str) -> Any:
    trainer = make(folder)

    class Fill(vd.Callback):
        def on_step_end(self, trainer: vd.Trainer) -> None:
            if trainer.progress.steps_done == 2 and my_rank() == 0:
                for path in (trainer.run_dir / "checkpoints").glob("step-*"):
                    os.rename(path, path.with_name("gone"))
                os.rename(trainer.run_dir / "checkpoints", trainer.run_dir / "elsewhere")
                (trainer.run_dir / "checkpoints").write_text("no folder any more")
            if trainer.progress.steps_done == 6 and my_rank() == 0:
                (trainer.run_dir / "checkpoints").unlink()

    trainer._run.callbacks.append(Fill())
    trainer.fit((X, Y), batch_size=BATCH, epochs=2)
    return facts(trainer)


def test_a_save_that_fails_in_rank_0_keeps_nobody_waiting(two: Any, tmp_path: Path) -> None:
    first, second = two.run(fit_on_a_full_disk, str(tmp_path))

    assert all(map(torch.equal, first[0], second[0]))
    assert "Training goes on; the next save tries again" in (tmp_path / "run" / "log.txt").read_text()
    assert len(read_state(tmp_path / "run" / "checkpoints" / "step-00000008")["resume"]["ranks"]) == 2


def leave(folder: str, how: str) -> int:
    """Leave a loop, in every process or in one, in the batch of a step that is saved."""
    trainer = make(folder, metrics=[])
    for epoch in trainer.epochs(2):
        for done, (x, y) in enumerate(epoch.train((X, Y), batch_size=BATCH)):
            trainer.step(F.binary_cross_entropy(trainer.model(x), y))
            if done == 1 and (how == "all" or my_rank() == 1) and epoch.index == 0:
                break
    return trainer.progress.steps_done


@pytest.mark.parametrize(("how", "steps"), [("all", 2 + 4), ("one", 4 + 4)])
def test_a_loop_that_is_left_where_a_save_is_due_is_saved_at_its_end(
    how: str, steps: int, two: Any, tmp_path: Path
) -> None:
    assert two.run(leave, str(tmp_path), how) == [steps, steps]
    last = read_state(tmp_path / "run" / "checkpoints" / f"step-{steps:08d}")
    assert len(last["resume"]["ranks"]) == 2


# -- going on ------------------------------------------------------------------------------------------------------------------


class Own(vd.Callback):
    """Remembers what is not the same in every process."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, trainer: vd.Trainer) -> None:
        self.seen.append(10 * trainer.progress.steps_done + my_rank())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


class Counting(Model):
    """A model with a buffer that each process moves by itself, and that its outputs depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drift", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.drift += 0.1 * (1 + my_rank())
        return torch.sigmoid(self.body(x)).squeeze(1) * 0.9 + 0.01 * torch.sin(self.drift)


def fit_own(folder: str, cut_at: int | None = None) -> Any:
    own = Own()
    trainer = vd.Trainer(
        Counting(), "sgd", lr=0.3, loss="bce", callbacks=[own, *([] if cut_at is None else [CutAt(cut_at)])], resume="auto",
        checkpoint="every step", seed=3, run_dir=f"{folder}/run", loggers=[], device="cpu", progress=False,
    )  # fmt: skip
    try:
        trainer.fit((X, Y), batch_size=BATCH, epochs=2)
    except Cut:
        return None
    return own.seen, trainer.model.state_dict()


def test_callbacks_and_buffers_that_differ_between_processes_come_back_to_each(two: Any, tmp_path: Path) -> None:
    expected = two.run(fit_own, str(tmp_path / "straight"))
    assert expected[1][0] == [11, 21, 31, 41, 51, 61, 71, 81]
    for step in (2, 6):
        folder = tmp_path / str(step)
        two.run(fit_own, str(folder), step)
        saved = folder / "run" / "checkpoints" / f"step-{step:08d}"
        # Rank 1 adds 0.2 a batch; at the end of an epoch it gets the 0.4 that rank 0 has by then.
        assert read_tensors(saved, "sums-rank1")["buffers/drift"] == pytest.approx({2: 0.4, 6: 0.8}[step])
        again = two.run(fit_own, str(folder))
        for (seen, state), (wanted, wanted_state) in zip(again, expected, strict=True):
            assert seen == wanted
            assert all(map(torch.equal, state.values(), wanted_state.values()))


def complain(folder: str, arguments: dict[str, Any]) -> str:
    try:
        fit_again = make(folder, **arguments)
        fit_again.fit((X, Y), batch_size=BATCH, epochs=4)
    except vd.errors.VelodromeError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_every_process_refuses_with_the_same_words(two: Any, tmp_path: Path) -> None:
    two.run(fit, str(tmp_path), "tensors")
    for arguments, words in (
        ({"lr": 0.2}, "RefusedError: The run to go on with was made with other settings: optimizers.optimizer.groups.lr: 0.3 -> 0.2"),
        ({"resume": str(tmp_path / "nowhere")}, "ArgumentError: resume="),
    ):  # fmt: skip
        first, second = two.run(complain, str(tmp_path), arguments)
        assert first == second
        assert first.startswith(words)


def test_a_finished_run_does_nothing_in_every_process_and_has_its_history(two: Any, tmp_path: Path) -> None:
    expected = two.run(fit, str(tmp_path), "tensors")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = two.run(fit, str(tmp_path), "tensors")

    assert "is done already, after 12 steps" in (tmp_path / "run" / "log.txt").read_text()
    for got, wanted in zip(again, expected, strict=True):
        assert all(map(torch.equal, got[0], wanted[0]))
        assert got[1:] == wanted[1:]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
