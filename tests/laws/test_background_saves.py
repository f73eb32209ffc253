"""Saves in the background: what is written is the state of its step, whatever training does meanwhile; and a save that fails is told."""

from __future__ import annotations

import errno
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import velodrome as vd
from velodrome.checkpoint import snapshot
from velodrome.checkpoint.files import Files
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.scan import find_checkpoints, read_best

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (22,), generator=torch.Generator().manual_seed(1))
GROUPS = ("model", "optimizer", "window", "rng-rank0", "sums-rank0", "callbacks", "ema")
BACKGROUND = vd.Checkpointing(every="every step", keep_last=50, background=True)


class Gate(Files):
    """A disk that takes nothing until somebody opens it, at the first file of each checkpoint of a step."""

    def __init__(self) -> None:
        self.is_open, self.has_arrived = threading.Event(), threading.Event()

    def open_new(self, path: Path) -> int:
        if threading.current_thread() is not threading.main_thread():
            self.has_arrived.set()
            assert self.is_open.wait(20)
        return super().open_new(path)


class Broken(Files):
    """A disk that is full for the first so many checkpoints."""

    def __init__(self, times: int) -> None:
        self.times = times

    def mkdir(self, path: Path) -> None:
        if path.name.startswith(".tmp") and self.times > 0:
            self.times -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().mkdir(path)


@pytest.fixture
def use_files(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes all checkpoints of the test go through these files."""
    return lambda files: monkeypatch.setattr("velodrome.checkpoint.store.Files", lambda: files)


class Watch(vd.Callback):
    """Remembers when it was told of which checkpoint, and calls what it was given after each step."""

    def __init__(self, after_step: Any = lambda trainer: None) -> None:
        self.after_step = after_step
        self.told: list[tuple[int, int]] = []  # the step of the checkpoint, and the step when it was told

    def on_step_end(self, trainer: vd.Trainer) -> None:
        self.after_step(trainer)

    def on_checkpoint(self, trainer: vd.Trainer, path: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert (path / "manifest.json").exists()
        self.told.append((int(path.name.removeprefix("step-")), trainer.progress.steps_done))


def make_trainer(
    folder: Path | None, *, checkpoint: Any = BACKGROUND, callbacks: Any = (), **changes: Any
) -> vd.Trainer:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    arguments: dict[str, Any] = {
        "optimizer": "adam", "lr": 0.02, "loss": "cross_entropy", "metrics": ["accuracy"], "seed": 5, "run_dir": folder, "device": "cpu",
        "checkpoint": checkpoint, "callbacks": list(callbacks), "loggers": ["csv"], "progress": False, "accumulate": 2, "ema": 0.9,
        "log_every": "4 steps",
    }  # fmt: skip
    return vd.Trainer(model, **{**arguments, **changes})


def train(trainer: vd.Trainer, epochs: int = 2) -> vd.FitResult:
    return trainer.fit((X, Y), (X[:10] * 1.1, Y[:10]), batch_size=4, epochs=epochs)  # 6 micro-batches, 3 steps an epoch


def content(folder: Path) -> dict[int, Any]:
    """Return all that the checkpoints of a run hold, times aside, by step."""
    found = {}
    for one in find_checkpoints(folder / "checkpoints"):
        assert not one.problem
        state = read_state(one.path)
        text = json.dumps(without_times(state), sort_keys=True)
        groups = [name for name in GROUPS if (one.path / f"{name}.safetensors").exists()]
        found[one.step] = text, {name: read_tensors(one.path, name) for name in groups}
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        times = ("seconds", "samples_per_s", "journal_bytes")  # the journal holds times as texts of any length
        return {key: without_times(each) for key, each in value.items() if key not in times}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def assert_same(a: dict[int, Any], b: dict[int, Any], *, skip: tuple[str, ...] = ()) -> None:
    assert a.keys() == b.keys()
    for step, (text, groups) in a.items():
        assert text == b[step][0]
        for group in groups.keys() - set(skip):
            assert groups[group].keys() == b[step][1][group].keys()
            for name, tensor in groups[group].items():
                assert torch.equal(tensor, b[step][1][group][name]), f"step {step}, {group}, {name}"


def test_background_checkpoints_hold_what_foreground_ones_hold(tmp_path):
    straight, beside = Watch(), Watch()
    foreground = vd.Checkpointing(every="every step", keep_last=50)
    train(make_trainer(tmp_path / "a", checkpoint=foreground, callbacks=[straight]))
    train(make_trainer(tmp_path / "b", callbacks=[beside]))
    assert sorted(content(tmp_path / "a")) == [1, 2, 3, 4, 5, 6]
    assert_same(content(tmp_path / "a"), content(tmp_path / "b"))
    assert [step for step, _ in beside.told] == [step for step, _ in straight.told]
    assert read_best(tmp_path / "a" / "checkpoints") == read_best(tmp_path / "b" / "checkpoints")


def save_while_training_goes_on(folder: Path, use_files: Any, *, steps_meanwhile: int) -> Watch:
    """Train with a disk that takes the checkpoint of step 1 only when training has done some more steps."""
    gate = Gate()
    use_files(gate)

    def after_step(trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == 2:
            assert gate.has_arrived.wait(20)
        if trainer.progress.steps_done == 1 + steps_meanwhile:
            gate.is_open.set()

    watch = Watch(after_step)
    policy = vd.Checkpointing(every="100 steps", keep_last=50, background=True)
    trainer = make_trainer(folder, checkpoint=policy, callbacks=[watch], accumulate=1)
    trainer._run.keeping.is_due_after_step = lambda progress: progress.steps_done == 1
    train(trainer)
    return watch


def test_background_save_holds_its_step_while_training_goes_on(tmp_path, use_files):
    train(
        make_trainer(tmp_path / "straight", checkpoint=vd.Checkpointing(every="every step", keep_last=50), accumulate=1)
    )
    watch = save_while_training_goes_on(tmp_path / "run", use_files, steps_meanwhile=4)
    assert_same({1: content(tmp_path / "run")[1]}, {1: content(tmp_path / "straight")[1]})
    step, told_at = watch.told[0]
    assert step == 1
    assert told_at >= 5  # the disk had taken nothing before the fifth step


def test_background_control_without_a_copy_the_checkpoint_is_of_no_step(tmp_path, use_files, monkeypatch):
    train(
        make_trainer(tmp_path / "straight", checkpoint=vd.Checkpointing(every="every step", keep_last=50), accumulate=1)
    )
    monkeypatch.setattr(snapshot.Snapshot, "take", lambda self, content: (content, lambda: None))
    save_while_training_goes_on(tmp_path / "run", use_files, steps_meanwhile=4)
    with pytest.raises(AssertionError, match="step 1, "):
        assert_same({1: content(tmp_path / "run")[1]}, {1: content(tmp_path / "straight")[1]})


class Cut(Exception):
    """Stands for whatever kills a run."""


@pytest.mark.parametrize("cut_at", range(1, 6))
def test_background_saves_are_gone_on_from_like_others(tmp_path, cut_at):
    train(make_trainer(tmp_path / "straight"))

    def cut(trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == cut_at + 1:
            raise Cut

    with pytest.raises(Cut):
        train(make_trainer(tmp_path / "run", callbacks=[Watch(cut)]))
    assert max(content(tmp_path / "run")) == cut_at  # the save that was under way was finished
    result = train(make_trainer(tmp_path / "run", resume="auto", callbacks=[Watch()]))
    assert result.stop_reason is vd.StopReason.EPOCHS
    # Callbacks have no state here. The others hold the very same.
    assert_same(content(tmp_path / "run"), content(tmp_path / "straight"))
    assert read_best(tmp_path / "run" / "checkpoints") == read_best(tmp_path / "straight" / "checkpoints")


def test_background_save_that_fails_is_told_within_a_step_and_the_next_one_tries_again(tmp_path, use_files, capsys):
    files = Broken(1)
    use_files(files)
    said: list[tuple[int, str]] = []

    def look(trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done in (2, 3):
            trainer._run.files.checkpoints._saver.wait()  # whatever the disk does, it has done it before this batch is over
        said.append((trainer.progress.steps_done, capsys.readouterr().err))

    policy = vd.Checkpointing(every="2 steps", keep_last=50, background=True)
    train(make_trainer(tmp_path, checkpoint=policy, callbacks=[Watch(look)], accumulate=1), epochs=1)
    told = [step for step, text in said if "The checkpoint of step 2 could not be saved: No space left" in text]
    assert told == [4]  # told when the batch of step 3 was over: seen here by the next look
    assert sorted(content(tmp_path)) == [4, 6]
    assert "the next save tries again" in (tmp_path / "log.txt").read_text()


def test_background_save_is_finished_before_the_run_is_over(tmp_path, use_files):
    gate = Gate()
    use_files(gate)
    watch = Watch()
    policy = vd.Checkpointing(every="every epoch", keep_last=50, background=True)
    threading.Timer(0.2, gate.is_open.set).start()
    train(make_trainer(tmp_path, checkpoint=policy, callbacks=[watch]), epochs=1)
    assert [step for step, _ in watch.told] == [3]
    assert read_best(tmp_path / "checkpoints").step == 3
    assert json.loads((tmp_path / "run.json").read_bytes())["saved_step"] == 3


def test_second_save_waits_for_the_first_and_says_so_once(tmp_path, use_files, capsys):
    class Slow(Files):
        def mkdir(self, path: Path) -> None:
            if path.name.startswith(".tmp"):
                threading.Event().wait(0.15)
            super().mkdir(path)

    use_files(Slow())
    train(make_trainer(tmp_path))
    text = (tmp_path / "log.txt").read_text()
    assert text.count("waited") == 1
    assert "for the one before it" in text
    assert sorted(content(tmp_path)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("background", [False, True])
def test_max_failures_stops_the_run_and_says_why(tmp_path, use_files, background, capsys):
    use_files(Broken(1000))
    policy = vd.Checkpointing(every="every step", background=background, max_failures=3)
    result = train(make_trainer(tmp_path, checkpoint=policy, accumulate=1), epochs=50)
    assert result.stop_reason is vd.StopReason.NOT_SAVED
    # In the background the third failure is known when the fourth save waits for it, at the latest.
    assert 3 <= result.metrics["step"] <= 6
    record = json.loads((tmp_path / "run.json").read_bytes())
    assert record["status"] == "stopped"
    assert record["stop_reason"] == "Too many saves in a row failed."
    told = capsys.readouterr().err
    assert "It is failure 2 in a row, and the run stops at 3." in told
    assert "are NOT on the disk; there is no checkpoint" in told


def test_failures_that_are_not_in_a_row_do_not_stop_the_run(tmp_path, use_files, capsys):
    class Every2nd(Files):
        count = 0

        def mkdir(self, path: Path) -> None:
            if path.name.startswith(".tmp"):
                self.count += 1
                if self.count % 2:
                    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
            super().mkdir(path)

    use_files(Every2nd())
    policy = vd.Checkpointing(every="every step", max_failures=2, keep_last=50)
    result = train(make_trainer(tmp_path, checkpoint=policy))
    assert result.stop_reason is vd.StopReason.EPOCHS
    assert sorted(content(tmp_path)) == [
        2,
        3,
        5,
        6,
    ]  # 1 fails, 2 is saved, 3 fails and is saved as the epoch's best, 4 fails, ...


def test_run_stopped_for_failed_saves_goes_on_when_there_is_room_again(tmp_path, use_files, capsys):
    broken = Broken(0)
    use_files(broken)

    def fill(trainer: vd.Trainer) -> None:
        broken.times = 1 if trainer.progress.steps_done == 4 else 0

    policy = vd.Checkpointing(every="every step", keep_last=50, max_failures=1)
    result = train(make_trainer(tmp_path, checkpoint=policy, callbacks=[Watch(fill)]))
    assert result.stop_reason is vd.StopReason.NOT_SAVED
    assert max(content(tmp_path)) == 4  # there was room again when the run ended
    use_files(Files())
    result = train(make_trainer(tmp_path, checkpoint=policy, resume="auto", callbacks=[Watch()]))
    assert result.stop_reason is vd.StopReason.EPOCHS
    assert [row["epoch"] for row in result.history][-1] == 2


def test_save_by_hand_is_on_the_disk_when_it_returns_also_with_background(tmp_path):
    paths = []

    def save(trainer: vd.Trainer) -> None:
        if trainer.progress.steps_done == 2:
            paths.append(trainer.save())
            assert (paths[0] / "manifest.json").exists()

    train(
        make_trainer(
            tmp_path, checkpoint=vd.Checkpointing(every=None, background=True, keep_last=9), callbacks=[Watch(save)]
        )
    )
    assert paths[0].name == "step-00000002"
    assert read_state(paths[0])["resume"]  # written again when the batch was over


def test_threads_are_gone_when_nothing_is_saved(tmp_path):
    train(make_trainer(tmp_path))
    assert not [thread for thread in threading.enumerate() if thread.name == "velodrome-save"]
