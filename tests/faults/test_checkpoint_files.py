"""What the disk, the system and other people can do to a folder of checkpoints."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from velodrome.checkpoint.files import Files
from velodrome.checkpoint.read import read_state
from velodrome.checkpoint.store import CheckpointStore
from velodrome.errors import CheckpointError


def save(store: CheckpointStore, step: int) -> None:
    store.save(step, {"model": {"w": torch.full((4,), float(step))}}, {"step": step})


class FailingFsync(Files):
    """Report this error at the first so many flushes of a file."""

    def __init__(self, code: int, times: int) -> None:
        self.code, self.times = code, times

    def fsync(self, descriptor):
        if self.times > 0:
            self.times -= 1
            raise OSError(self.code, os.strerror(self.code))
        super().fsync(descriptor)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_or_quota_says_where_and_how_much_is_free_and_the_next_save_works(tmp_path, code):
    store = CheckpointStore(tmp_path / "checkpoints", run_id="a", files=FailingFsync(code, 1))
    message = rf"step 1 could not be saved: .*\(errno {code}\) at .*model\.safetensors.*GB free\. Free some"
    with pytest.raises(CheckpointError, match=message) as caught:
        save(store, 1)
    assert caught.value.errno == code
    assert caught.value.free_bytes > 0
    assert list(store.directory.iterdir()) == []  # what was half written no longer takes room
    save(store, 1)
    assert read_state(store.latest()) == {"step": 1}


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_passing_error_of_a_network_disk_is_tried_again_a_bounded_number_of_times(tmp_path, code):
    pauses_s = (0.0, 0.0)
    once = CheckpointStore(tmp_path / "a", run_id="a", files=FailingFsync(code, 2), retry_pauses_s=pauses_s)
    save(once, 1)
    assert read_state(once.latest()) == {"step": 1}
    always = CheckpointStore(tmp_path / "b", run_id="a", files=FailingFsync(code, 10**6), retry_pauses_s=pauses_s)
    with pytest.raises(CheckpointError, match=r"Check the disk and the path, then save again"):
        save(always, 1)


def test_folder_without_permission_is_said(tmp_path):
    class Forbidden(Files):
        def mkdir(self, path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(CheckpointError, match=r"Permission denied.*that you may write to"):
        save(CheckpointStore(tmp_path / "checkpoints", run_id="a", files=Forbidden()), 1)


def test_disk_that_gives_back_something_else_is_noticed_and_the_old_one_stays(tmp_path):
    save(CheckpointStore(tmp_path / "checkpoints", run_id="a"), 1)
    before = (tmp_path / "checkpoints" / "step-00000001" / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"state\.json has 0 bytes"):
        CheckpointStore(tmp_path / "checkpoints", run_id="a", files=LosingFiles()).save(
            1, {"model": {"w": torch.zeros(9)}}, {"step": 100}
        )
    assert read_state(CheckpointStore(tmp_path / "checkpoints", run_id="a").latest()) == {"step": 1}
    assert (tmp_path / "checkpoints" / "step-00000001" / "manifest.json").read_bytes() == before


class LosingFiles(Files):
    """Lose a file's bytes while the new checkpoint is renamed into its place."""

    def replace(self, source, target):
        super().replace(source, target)
        if source.name.startswith(".tmp") and target.name == "step-00000001":
            (target / "state.json").write_bytes(b"")


@pytest.mark.slow
def test_process_killed_in_the_middle_of_a_save_leaves_the_old_one_and_the_next_save_sweeps(tmp_path):
    program = """
import os, sys, torch
from pathlib import Path
from velodrome.checkpoint.files import Files
from velodrome.checkpoint.store import CheckpointStore

class Dies(Files):
    count = 0
    def fsync(self, descriptor):
        Dies.count += 1
        if Dies.count == 5:  # three files of the first save, then the state of the second
            os.kill(os.getpid(), 9)
        super().fsync(descriptor)

store = CheckpointStore(Path(sys.argv[1]), run_id="a", files=Dies())
for step in (1, 2):
    store.save(step, {"model": {"w": torch.ones(3)}}, {"step": step})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -9
    store = CheckpointStore(tmp_path, run_id="a")
    assert read_state(store.latest()) == {"step": 1}
    assert list(tmp_path.glob(".tmp-step-00000002-*"))
    save(store, 3)
    assert not list(tmp_path.glob(".tmp-*"))


def test_sweep_leaves_the_private_folders_of_another_run(tmp_path):
    theirs = tmp_path / ".tmp-step-00000009-ffffffff-01234567"
    theirs.mkdir()
    save(CheckpointStore(tmp_path, run_id="a"), 1)
    assert theirs.is_dir()


def test_run_directory_that_is_a_link_works(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(CheckpointStore(tmp_path / "link" / "checkpoints", run_id="a"), 1)
    assert CheckpointStore(tmp_path / "real" / "checkpoints", run_id="a").latest() is not None


def test_folder_deleted_during_the_run_is_made_again(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints", run_id="a")
    save(store, 1)
    for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "run").rmdir()
    save(store, 2)
    assert read_state(store.latest()) == {"step": 2}


def test_hint_that_cannot_be_written_is_a_warning_not_a_failed_save(tmp_path):
    class NoHint(Files):
        def replace(self, source, target):
            if target.name == "latest.json":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().replace(source, target)

    store = CheckpointStore(tmp_path, run_id="a", files=NoHint())
    with pytest.warns(RuntimeWarning, match=r"latest\.json could not be replaced.*step 1 is saved"):
        save(store, 1)
    assert read_state(store.latest()) == {"step": 1}
