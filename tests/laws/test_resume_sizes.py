"""A run that goes on with another batch size: every sample of the epoch exactly once, whatever gives the batches."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, get_worker_info

import velodrome as vd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

N = 43
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N)


class Cut(Exception):
    """Stands for whatever kills a run."""


class CutAt(vd.Callback):
    """Ends the run as soon as the checkpoint of a step is on the disk."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        if trainer.progress.steps_done == self.step:
            raise Cut


class Stream(IterableDataset):
    """Every worker reads a part of its own."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(first, N, step):
            yield X[index], Y[index]


class SizedStream(Stream):
    def __len__(self) -> int:
        return N


class InOrder(torch.utils.data.Sampler):
    def __iter__(self) -> Any:
        return iter(torch.randperm(N).tolist())

    def __len__(self) -> int:
        return N


def batches_of(size: int) -> list[list[int]]:
    return [list(range(begin, min(begin + size, N))) for begin in range(0, N, size)]


DATA: dict[str, Any] = {
    "memory": lambda size: vd.DataLoader((X, Y), size, shuffle=True),
    "sampler": lambda size: vd.DataLoader(torch.utils.data.TensorDataset(X, Y), size, sampler=InOrder()),
    "batch sampler": lambda size: vd.DataLoader((X, Y), batch_sampler=batches_of(size)),
    "stream": lambda size: vd.DataLoader(Stream(), size),
    "sized stream": lambda size: vd.DataLoader(SizedStream(), size),
    "stream of workers": lambda size: vd.DataLoader(Stream(), size, num_workers=2),
}


def train(folder: Path, data: Any, seen: list[int], *, cut_at: int | None = None, **budget: Any) -> vd.Trainer:
    def step_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.extend(batch[1].tolist())
        return nn.functional.cross_entropy(model(batch[0]), batch[1] % 3)

    torch.manual_seed(0)
    trainer = vd.Trainer(
        nn.Linear(4, 3), step_fn=step_fn, run_dir=folder, checkpoint="every step", progress=False, seed=0, device="cpu", resume="auto",
        accept_changes=True, callbacks=[] if cut_at is None else [CutAt(cut_at)],
    )  # fmt: skip
    trainer.fit(data, **(budget or {"epochs": 2}))
    return trainer


@pytest.mark.parametrize("sizes", [(10, 7, 4), (7, 10, 10), (10, 32, 9), (10, 10, 7)])
@pytest.mark.parametrize("kind", DATA)
def test_every_sample_is_given_once_an_epoch(
    kind: str, sizes: tuple[int, int, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cut after 2 batches, and again after one of another size."""
    seen: list[int] = []
    for size, step in zip(sizes, (2, 3), strict=False):
        with pytest.raises(Cut):
            train(tmp_path / "run", DATA[kind](size), seen, cut_at=step)
    trainer = train(tmp_path / "run", DATA[kind](sizes[2]), seen)

    assert Counter(seen) == dict.fromkeys(range(N), 2)
    assert Counter(seen[:N]) == dict.fromkeys(range(N), 1)
    assert trainer.progress.samples_done == 2 * N
    assert trainer.progress.epochs_done == 2
    assert "announced" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", [kind for kind in DATA if kind not in ("stream", "stream of workers")])
def test_an_epoch_whose_last_step_is_that_of_the_budget_is_whole(kind: str, tmp_path: Path) -> None:
    """20 samples in 2 batches of 10, and 23 in 4 of 7; of the batch sampler's batch of samples 14 to 20 one is left, and 22 after it."""
    seen: list[int] = []
    with pytest.raises(Cut):
        train(tmp_path / "run", DATA[kind](10), seen, cut_at=2, steps=99)
    steps = 2 + (5 if kind == "batch sampler" else 4)
    assert train(tmp_path / "run", DATA[kind](7), seen, steps=steps).progress.epochs_done == 1
    assert sorted(seen) == list(range(N))


def test_a_length_that_is_wrong_is_told_as_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Short(SizedStream):
        def __len__(self) -> int:
            return N + 20

    seen: list[int] = []
    with pytest.raises(Cut):
        train(tmp_path / "run", vd.DataLoader(Short(), 10), seen, cut_at=2, epochs=1)
    train(tmp_path / "run", vd.DataLoader(Short(), 7), seen, epochs=1)
    assert "announced 9 batches; epoch 1 had 6" in capfd.readouterr().err  # 2 of 10; then 43 in 7 of 7, and 23 in 4


def test_another_number_of_workers_is_refused_within_an_epoch(tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(Cut):
        train(tmp_path / "run", DATA["stream of workers"](10), seen, cut_at=3)
    with pytest.raises(
        vd.errors.DataError, match=r"2 workers read \(20 and 10 items\).*Give num_workers=2 until the epoch is over"
    ):
        train(tmp_path / "run", DATA["stream"](10), seen)


@pytest.mark.parametrize(("size", "is_told"), [(10, False), (7, True)])
def test_ready_batches_of_another_size_are_told_with_the_numbers(
    size: int, is_told: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's loader of a stream is used as it is, batch by batch."""
    seen: list[int] = []
    with pytest.raises(Cut):
        train(tmp_path / "run", torch.utils.data.DataLoader(Stream(), 10), seen, cut_at=2)
    train(tmp_path / "run", torch.utils.data.DataLoader(Stream(), size), seen)
    line = "The 2 batches that were left out had 14 samples, and the run had done 20 in as many"
    assert (line in capfd.readouterr().err) is is_told
    assert (Counter(seen) == dict.fromkeys(range(N), 2)) is not is_told
