"""FAULTS 43: one writer a run directory, whatever way a run ends, and without hand work after a process was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import velodrome
from support.forked import Script
from support.programs import environment
from velodrome.callbacks.base import Callback
from velodrome.errors import RefusedError
from velodrome.record import run_lock, shared_locks
from velodrome.record.run_directory import RunDirectory
from velodrome.record.run_lock import Holder, RunLock, find_holder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals and flock")]

SOURCE = str(Path(velodrome.__file__).parents[1])
SLOW = """
import sys, time
import torch
import velodrome as vd

class Slow(vd.Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 6 and sys.argv[2] != "go":
            print("under way", flush=True)
            if sys.argv[2] == "exit":
                sys.exit(7)
            time.sleep(60 if sys.argv[2] == "hang" else 1)

class Doubled(torch.utils.data.Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        return torch.full((2,), float(index)), torch.full((1,), 2.0 * index)

torch.manual_seed(0)
trainer = vd.Trainer(torch.nn.Linear(2, 1), "sgd", lr=1e-5, loss="mse", device="cpu", run_dir=sys.argv[1], resume="auto", seed=1,
                     checkpoint="every 2 steps", callbacks=[Slow()], progress=False, loggers=["csv"])
data = vd.DataLoader(Doubled(), 4, num_workers=int(sys.argv[3]) if len(sys.argv) > 3 else 0)
trainer.fit(data, epochs=2)
print("done", trainer.progress.steps_done, flush=True)
"""


def start(tmp_path, run, how, *arguments):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    if how != "wait" and not arguments:  # a signal's exit code, and workers, are those of an interpreter of its own
        forked = Script(script, [str(run), how, *arguments], tmp_path)
        if how != "go":
            forked.wait_for("under way\n")
        return forked
    command = [sys.executable, str(script), str(run), how, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n", process.communicate()
    return process


def end_of(process):
    if isinstance(process, subprocess.Popen):
        process.communicate(timeout=60)
        return process.returncode
    return process.wait(timeout=60)


def finish(tmp_path, run):
    process = start(tmp_path, run, "go")
    return process.wait(timeout=60), process.out.read_text(), process.err.read_text()


def trainer_for(run, **arguments):
    arguments = {"loss": "mse", "device": "cpu", "progress": False, "loggers": ["csv"], **arguments}
    return velodrome.Trainer(nn.Linear(2, 1), "sgd", lr=1e-5, run_dir=run, **arguments)


DATA = (torch.zeros(8, 2), torch.zeros(8, 1))


def test_a_second_run_is_refused_while_the_first_is_under_way_and_goes_on_after_it_was_killed(tmp_path):
    run = tmp_path / "run"
    first = start(tmp_path, run, "hang")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    code, _, err = finish(tmp_path, run)
    assert code == 1
    assert f"is being written to by process {first.pid} on " in err
    assert ", since 20" in err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert json.loads((run / "lock.json").read_text())["pid"] == first.pid

    first.kill()
    end_of(first)
    assert (run / "lock.json").exists()
    code, out, err = finish(tmp_path, run)
    assert (code, out) == (0, "done 16\n"), err
    assert f"The lock of this run was left behind by process {first.pid} on " in (run / "log.txt").read_text()
    assert not (run / "lock.json").exists()


def test_worker_processes_that_outlive_a_killed_run_do_not_hold_its_lock(tmp_path):
    run = tmp_path / "run"
    first = start(tmp_path, run, "hang", "2")
    first.kill()
    end_of(first)

    code, out, err = finish(tmp_path, run)  # at once: workers notice after seconds that their parent is gone
    assert (code, out) == (0, "done 16\n"), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_lock_that_needs_hand_work(tmp_path, number):
    run = tmp_path / "run"
    first = start(tmp_path, run, "wait")
    first.send_signal(number)
    assert end_of(first) in (143, -signal.SIGINT)

    assert find_holder(run) is None
    code, out, err = finish(tmp_path, run)
    assert (code, out) == (0, "done 16\n"), err


def test_sys_exit_in_a_callback_gives_the_lock_back(tmp_path):
    run = tmp_path / "run"
    first = start(tmp_path, run, "exit")
    assert end_of(first) == 7
    assert not (run / "lock.json").exists()


class Looking(Callback):
    """Notes who holds the lock while the run is under way."""

    def __init__(self, fails=False):
        self.fails = fails
        self.seen = []

    def on_step_end(self, trainer):
        self.seen.append(find_holder(trainer.run_dir))
        if self.fails:
            raise ZeroDivisionError("planted")


def test_the_lock_is_held_from_begin_to_end_only(tmp_path):
    looking = Looking()
    trainer = trainer_for(tmp_path / "run", callbacks=[looking])
    assert find_holder(tmp_path / "run") is None  # making a trainer takes nothing

    trainer.fit(DATA, batch_size=4, epochs=1)

    assert [holder.pid for holder in looking.seen] == [os.getpid()] * 2
    assert not (tmp_path / "run" / "lock.json").exists()
    trainer.fit(DATA, batch_size=4, epochs=2)
    assert len(looking.seen) == 4
    assert not (tmp_path / "run" / "lock.json").exists()


def test_an_exception_gives_the_lock_back_and_a_break_too(tmp_path):
    trainer = trainer_for(tmp_path / "failed", callbacks=[Looking(fails=True)])
    with pytest.raises(ZeroDivisionError, match="planted"):
        trainer.fit(DATA, batch_size=4, epochs=1)
    assert not (tmp_path / "failed" / "lock.json").exists()

    trainer = trainer_for(tmp_path / "left")
    for epoch in trainer.epochs(3):
        for x, y in epoch.train(DATA, batch_size=4):
            trainer.step(nn.functional.mse_loss(trainer.model(x), y))
            assert find_holder(tmp_path / "left") is not None
            break
        break
    assert not (tmp_path / "left" / "lock.json").exists()


def test_a_run_that_is_refused_before_its_first_step_leaves_no_lock_and_no_folder(tmp_path):
    trainer = trainer_for(tmp_path / "run")
    with pytest.raises(velodrome.errors.DataError):
        trainer.fit((torch.full((8, 2), float("nan")), DATA[1]), batch_size=4, epochs=1)
    assert not (tmp_path / "run").exists()


def test_two_trainers_of_one_process_are_two_writers(tmp_path):
    trainer_for(tmp_path / "run").fit(DATA, batch_size=4, epochs=1)
    first, second = (trainer_for(tmp_path / "run", resume="auto") for _ in range(2))
    for epoch in first.epochs(2):
        for x, y in epoch.train(DATA, batch_size=4):
            first.step(nn.functional.mse_loss(first.model(x), y))
            with pytest.raises(RefusedError, match=r"\(this very process\), since 20"):
                trainer_for(tmp_path / "run", resume="auto")
            with pytest.raises(RefusedError, match=r"\(this very process\), since 20"):
                second.fit(DATA, batch_size=4, epochs=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    # It was made before the first one went on, so that what it would go on from is old.
    with pytest.raises(RefusedError, match="was written to by another process since this trainer was made"):
        second.fit(DATA, batch_size=4, epochs=3)

    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_copy_of_a_run_that_is_under_way_is_free_and_a_moved_run_ends_well(tmp_path):
    run, copy, moved = tmp_path / "run", tmp_path / "copy", tmp_path / "moved"
    trainer = trainer_for(run, checkpoint="every 1 step", seed=0)
    for epoch in trainer.epochs(2):
        for x, y in epoch.train(DATA, batch_size=4):
            trainer.step(nn.functional.mse_loss(trainer.model(x), y))
            if trainer.progress.steps_done == 2:
                shutil.copytree(run, copy)
                assert find_holder(run) is not None
                assert find_holder(copy) is None
    other = trainer_for(copy, resume="auto", seed=0)
    other.fit(DATA, batch_size=4, epochs=2)
    assert other.progress.steps_done == 4
    assert not (copy / "lock.json").exists()

    run.rename(moved)
    again = trainer_for(moved, resume="auto", seed=0)
    again.fit(DATA, batch_size=4, epochs=3)
    assert again.progress.steps_done == 6


def test_a_run_directory_that_is_moved_while_the_run_is_under_way_can_be_gone_on_with_there(tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    lock = RunLock(run)
    run.mkdir()
    lock.acquire()
    run.rename(moved)
    assert find_holder(moved) is not None  # the lock goes with its file
    lock.release()
    assert RunLock(moved).acquire() is not None


def write_lock(folder, **changes):
    folder.mkdir(exist_ok=True)
    note = {**vars(Holder.of_this_process()), **changes}
    (folder / "lock.json").write_text(json.dumps(note))


def test_the_lock_of_another_machine_is_refused_with_the_command_that_removes_it(tmp_path, monkeypatch):
    run = tmp_path / "my run"
    write_lock(run, host="gpu3", boot="other", pid=4711)
    monkeypatch.setattr(run_lock, "locks_are_seen_by_all", lambda path: False)

    with pytest.raises(RefusedError, match='process 4711 on "gpu3", since 20.*another machine') as caught:
        RunLock(run).acquire()

    assert f"rm '{run}/lock.json'" in str(caught.value)
    assert (caught.value.exit_code, caught.value.pid) == (3, 4711)
    assert json.loads((run / "lock.json").read_text())["pid"] == 4711


def test_the_lock_of_another_machine_is_taken_over_where_it_would_be_seen(tmp_path, monkeypatch):
    write_lock(tmp_path / "run", host="gpu3", boot="other", pid=4711)
    monkeypatch.setattr(run_lock, "locks_are_seen_by_all", lambda path: True)
    lock = RunLock(tmp_path / "run")
    assert lock.acquire().pid == 4711
    assert lock.is_held
    lock.release()


def test_the_lock_from_before_this_machine_was_started_again_is_taken_over(tmp_path, monkeypatch):
    write_lock(tmp_path / "run", boot="before", pid=os.getpid())
    monkeypatch.setattr(run_lock, "locks_are_seen_by_all", lambda path: False)
    assert RunLock(tmp_path / "run").acquire().boot == "before"


@pytest.mark.parametrize(
    ("mount", "answer"),
    [
        ("25 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw", True),
        ("25 1 0:9 / / rw - nfs4 srv:/x rw,vers=4.2,local_lock=none", True),
        ("25 1 0:9 / / rw - nfs srv:/x rw,vers=3,local_lock=all", False),
        ("25 1 0:9 / / rw - lustre x@tcp:/scratch rw,flock", True),
        ("25 1 0:9 / / rw - lustre x@tcp:/scratch rw", False),
        ("25 1 0:9 / / rw - fuse.sshfs x rw", False),
        ("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n26 25 0:9 / /srv/my\\040runs rw - fuse.sshfs x rw", False),
        ("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n26 25 0:9 / /srv/my rw - fuse.sshfs x rw", True),
        ("nonsense", False),
    ],
)
def test_how_far_locks_reach_is_read_from_the_mounts(tmp_path, monkeypatch, mount, answer):
    (tmp_path / "mountinfo").write_text(mount + "\n")
    monkeypatch.setattr(shared_locks, "_MOUNTS", tmp_path / "mountinfo")
    assert shared_locks.locks_are_seen_by_all(Path("/srv/my runs/a/lock.json")) is answer


def test_a_file_system_without_locks_goes_by_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "try_lock", lambda descriptor: shared_locks.Grip.UNKNOWN)
    monkeypatch.setattr(run_lock, "look_at_lock", lambda descriptor: shared_locks.Grip.UNKNOWN)
    write_lock(tmp_path / "run")  # this very process runs
    with pytest.raises(RefusedError, match=r"this very process"):
        RunLock(tmp_path / "run").acquire()
    assert find_holder(tmp_path / "run") is not None

    write_lock(tmp_path / "run", start="1")  # a number that was used again
    assert find_holder(tmp_path / "run") is None
    assert RunLock(tmp_path / "run").acquire() is not None


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": "4711"}', "[" * 4096, '{"pid": ' + "9" * 4000 + "}"])
def test_a_note_that_says_nothing_is_taken_over(tmp_path, note):
    (tmp_path / "lock.json").write_text(note)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    lock.release()
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused(tmp_path, kind):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.write_text("mine")
    make = {"link": lambda path: path.symlink_to(outside), "pipe": os.mkfifo, "folder": os.mkdir}[kind]
    make(run / "lock.json")
    with pytest.raises(RefusedError, match=r"The lock of a run is a plain file .*rm "):
        RunLock(run).acquire()
    assert outside.read_text() == "mine"


def test_looking_at_a_lock_at_the_same_moment_does_not_get_in_the_way(tmp_path):
    looker = f"import time\nfrom pathlib import Path\nfrom velodrome.record.run_lock import find_holder\nend = time.time() + 3\nprint('ready', flush=True)\nwhile time.time() < end: find_holder(Path({str(tmp_path)!r}))"  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", looker], env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    (tmp_path / "lock.json").write_text("{}")
    for _ in range(300):
        lock = RunLock(tmp_path)
        lock.acquire()
        lock.release()
    process.kill()
    process.communicate()


def test_many_processes_at_once_get_the_lock_one_at_a_time(tmp_path):
    body = f"""
import os, time
from pathlib import Path
from velodrome.errors import RefusedError
from velodrome.record.run_lock import RunLock
folder, got = Path({str(tmp_path)!r}), 0
end = time.time() + 30
while got < 40 and time.time() < end:
    lock = RunLock(folder)
    try:
        lock.acquire()
    except RefusedError:
        continue
    os.mkdir(folder / "inside")  # fails when somebody else is inside
    os.rmdir(folder / "inside")
    lock.release()
    got += 1
print(got)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", body], env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["40\n"] * 3
    assert os.listdir(tmp_path) == []


def test_an_open_of_a_run_under_way_is_refused_before_anything_is_read(tmp_path):
    first = RunDirectory.create(tmp_path / "run")
    first.start()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RefusedError, match="is being written to by process"):
        RunDirectory.open(tmp_path / "run")
    first.release()


def test_reading_a_run_that_is_under_way_needs_no_lock(tmp_path):
    began = time.monotonic()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert find_holder(tmp_path).pid == os.getpid()
    assert find_holder(tmp_path / "nothing here") is None
    assert time.monotonic() - began < 60
    lock.release()
