"""What the disk, the system and other people can do to a folder of checkpoints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

import velodrome as vd
from support.programs import environment
from velodrome.checkpoint.files import Files
from velodrome.checkpoint.manifest import read_manifest
from velodrome.checkpoint.read import find_last, read_state, read_tensors
from velodrome.checkpoint.scan import read_best
from velodrome.checkpoint.store import CheckpointStore
from velodrome.checkpoint.tensors import decode_tensors
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


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
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment(), check=False)
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


# -- row 40: sizes are limited before anything is parsed


def make_sparse(path: Path, *, start: bytes = b"") -> None:
    """Make a file of 4 GB that takes no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(4 << 30)


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_json_of_4_gb_is_refused_without_reading_it(tmp_path, name):
    store = CheckpointStore(tmp_path, run_id="a")
    save(store, 1)
    folder = tmp_path / "step-00000001"
    make_sparse(folder / name, start=b"{")
    if name == "state.json":  # its manifest says so, too: what is hostile agrees with itself
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["files"][name] = {"bytes": 4 << 30, "sha256": "0" * 64}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=rf"{name} has 4294967296 bytes. At most \d+ are read"):
        read_state(folder, verify=False)


def test_best_mark_of_4_gb_is_refused_without_reading_it(tmp_path):
    make_sparse(tmp_path / "best.json")
    with pytest.raises(CheckpointError, match=r"best\.json has 4294967296 bytes. At most 65536 are read"):
        read_best(tmp_path)


def test_tensor_file_with_a_header_of_4_gb_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "x.safetensors"
    make_sparse(path, start=(4_000_000_000).to_bytes(8, "little"))
    with pytest.raises(CheckpointError, match=r"announce a header of 4000000000. At most 100000000"):
        decode_tensors(path)


def test_manifest_of_more_files_than_fit_is_refused(tmp_path):
    record = {"bytes": 1, "sha256": "0" * 64}
    files = {f"file-{number}": record for number in range(20_000)}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "run_id": "a", "step": 1, "files": files}))
    with pytest.raises(CheckpointError, match=r"manifest\.json has \d+ bytes. At most 1048576 are read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("depth", [101, 3_000, 100_000])
def test_json_that_is_nested_deep_is_refused_and_never_a_recursion_error(tmp_path, depth):
    store = CheckpointStore(tmp_path, run_id="a")
    save(store, 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_bytes(b'{"resume": ' + b"[" * depth + b"]" * depth + b"}")
    data = path.read_bytes()
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged: it is nested more than 100 deep"):
        read_state(path.parent)


def test_brackets_inside_of_texts_do_not_count_as_depth(tmp_path):
    store = CheckpointStore(tmp_path, run_id="a")
    store.save(1, {"model": {"w": torch.ones(1)}}, {"text": '[{"' * 500 + "\\"})
    assert read_state(store.latest())["text"] == '[{"' * 500 + "\\"


def test_state_that_is_too_large_to_be_read_back_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"state\.json would have \d+ bytes. At most 67108864 are read back"):
        CheckpointStore(tmp_path, run_id="a").save(1, {"model": {}}, {"text": "x" * (1 << 26)})
    assert list(tmp_path.iterdir()) == []


# -- rows 5 and 8: a limit on the size of files, by a real system


def test_file_size_limit_of_the_system_is_a_failed_save_and_training_goes_on(tmp_path):
    program = """
import resource, sys, torch, velodrome as vd
torch.manual_seed(0)
x, y = torch.randn(24, 64), torch.randint(0, 3, (24,))
class Lift(vd.Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
trainer = vd.Trainer(torch.nn.Linear(64, 300), "adam", lr=0.01, loss="cross_entropy", run_dir=sys.argv[1], device="cpu", progress=False,
                     checkpoint=vd.Checkpointing(every="2 steps", background=sys.argv[2] == "background"), callbacks=[Lift()], loggers=[])
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
print(trainer.fit((x, y), batch_size=4, epochs=1).stop_reason)
"""
    for kind in ("foreground", "background"):
        folder = tmp_path / kind
        command = [sys.executable, "-c", program, str(folder), kind]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "All epochs are done." in done.stdout
        assert "The checkpoint of step 2 could not be saved: File too large (errno 27)" in done.stderr
        assert "Training goes on; the next save tries again." in done.stderr
        assert find_last(folder / "checkpoints").name == "step-00000006"  # written after the limit was lifted
        assert not list((folder / "checkpoints").glob(".tmp*"))


# -- rows 44 and 56: whose checkpoints these are, and where they lie


def test_row_44_checkpoints_of_another_run_are_neither_removed_nor_counted(tmp_path):
    for step in (10, 20):
        save(CheckpointStore(tmp_path, run_id="theirs"), step)
    mine = CheckpointStore(tmp_path, run_id="mine")
    for step in (1, 2, 3, 4):
        save(mine, step)
        mine.prune(keep_last=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{step:08d}" for step in (3, 4, 10, 20)]


def train(folder: Path, *, epochs: int) -> vd.FitResult:
    torch.manual_seed(0)
    data = torch.randn(8, 4), torch.randint(0, 3, (8,))
    trainer = vd.Trainer(
        torch.nn.Linear(4, 3), "adam", lr=0.01, loss="cross_entropy", run_dir=folder, resume="auto", device="cpu", progress=False, loggers=[],
        seed=0,
    )  # fmt: skip
    return trainer.fit(data, batch_size=4, epochs=epochs)


@pytest.mark.parametrize("how", ["moved", "copied", "linked"])
def test_row_56_run_directory_that_was_moved_copied_or_linked_goes_on(tmp_path, how):
    straight = train(tmp_path / "straight", epochs=4)
    train(tmp_path / "run", epochs=2)
    elsewhere = tmp_path / "else where" / "run"
    elsewhere.parent.mkdir()
    if how == "moved":
        (tmp_path / "run").rename(elsewhere)
    elif how == "copied":
        shutil.copytree(tmp_path / "run", elsewhere)
    else:
        elsewhere.symlink_to(tmp_path / "run")
    result = train(elsewhere, epochs=4)
    assert [row["train/loss"] for row in result.history] == [row["train/loss"] for row in straight.history]
    assert find_last(elsewhere / "checkpoints").name == "step-00000008"


def test_row_56_checkpoint_folder_alone_says_all_about_itself(tmp_path):
    train(tmp_path / "run", epochs=1)
    alone = tmp_path / "somewhere" / "my favourite"
    shutil.copytree(find_last(tmp_path / "run" / "checkpoints"), alone)
    shutil.rmtree(tmp_path / "run")
    model = vd.load_model(alone, torch.nn.Linear(4, 3))
    assert torch.equal(model.weight, read_tensors(alone)["weight"])
    assert read_state(alone)["progress"]["steps_done"] == 2
    texts = b"".join(path.read_bytes() for path in alone.iterdir())
    assert os.fsencode(tmp_path) not in texts  # no path of the machine is in it
