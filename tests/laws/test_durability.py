"""Law 4: a checkpoint is whole or absent, is verified before it is trusted, and a good one always loads.

Each file operation of a save fails in turn, in every way; then the power is cut after each one; then every
file of a checkpoint is damaged. Each of the three has a negative control: a store without the precaution must
be caught.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch

from velodrome.checkpoint import scan
from velodrome.checkpoint.files import Files
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

RUN = "run-a"
OPERATIONS = ("open_new", "write", "fsync", "close", "fsync_dir", "mkdir", "replace", "unlink", "rmdir")


class Killed(BaseException):
    """The process died here: the store never sees this, and nothing after it reaches the disk."""


class FaultyFiles(Files):
    """The real disk, until operation number `fail_at` goes wrong in the way that `mode` says."""

    def __init__(self, fail_at: int = 0, mode: str = "") -> None:
        self.fail_at, self.mode = fail_at, mode
        self.count = 0
        self.dead = False


def _make_faulty(name: str):
    real = getattr(Files, name)

    def operation(self: FaultyFiles, *arguments):
        if self.dead:
            if name == "close":  # the system closes a dead process's files
                real(self, *arguments)
            raise Killed
        self.count += 1
        if self.count != self.fail_at:
            broken = self.mode == "full disk from here" and self.count > self.fail_at > 0
            if broken and name in ("open_new", "write", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(self, *arguments)
        if self.mode in ("killed before", "killed after"):
            self.dead = True
            if self.mode == "killed after" or name == "close":
                real(self, *arguments)
            raise Killed
        if self.mode == "short write":
            if name == "write" and len(arguments[1]) > 1:
                return real(self, arguments[0], arguments[1][: len(arguments[1]) // 2])
            return real(self, *arguments)
        if self.mode == "torn write, then killed":
            self.dead = True
            if name == "write":
                real(self, arguments[0], arguments[1][: len(arguments[1]) // 2])
            if name == "close":
                real(self, *arguments)
            raise Killed
        if self.mode == "interrupted after" or name == "close":
            real(self, *arguments)
        if self.mode.startswith("interrupted"):
            raise KeyboardInterrupt
        code = errno.EIO if self.mode == "EIO" else errno.ENOSPC
        raise OSError(code, os.strerror(code))

    return operation


for _name in OPERATIONS:
    setattr(FaultyFiles, _name, _make_faulty(_name))

MODES = (
    "ENOSPC",
    "EIO",
    "full disk from here",
    "short write",
    "interrupted before",
    "interrupted after",
    "killed before",
    "killed after",
    "torn write, then killed",
)


def make_store(folder: Path, files: Files | None = None, store: type[CheckpointStore] = CheckpointStore):
    return store(folder / "checkpoints", run_id=RUN, files=files, retry_pauses_s=())


def save(store: CheckpointStore, step: int, value: float) -> None:
    tensors = {"model": {"w": torch.full((3,), value)}, "optimizer": {"w/exp_avg": torch.full((3,), -value)}}
    store.save(step, tensors, {"value": value})


def load(folder: Path) -> float | None:
    """Return the value that the newest checkpoint holds, all its files agreeing; None when there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        latest = make_store(folder).latest()
    if latest is None:
        return None
    value = read_state(latest)["value"]
    assert torch.equal(read_tensors(latest)["w"], torch.full((3,), value))
    assert torch.equal(read_tensors(latest, "optimizer")["w/exp_avg"], torch.full((3,), -value))
    return value


def count_operations(folder: Path, *, step: int) -> int:
    save(make_store(folder), 1, 1.0)
    files = FaultyFiles()
    save(make_store(folder, files), step, 2.0)
    return files.count


@pytest.mark.parametrize("step", [2, 1], ids=["a later step", "the same step again"])
@pytest.mark.parametrize("mode", MODES)
def test_durability_any_operation_fails_old_or_new_loads_whole(tmp_path, mode, step):
    num_operations = count_operations(tmp_path / "count", step=step)
    assert num_operations >= 4 * 4 + 5  # four files opened, written, flushed, closed; a folder made, flushed, renamed
    for fail_at in range(1, num_operations + 1):
        folder = tmp_path / str(fail_at)
        save(make_store(folder), 1, 1.0)
        returned = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # the hint alone could not be written
                save(make_store(folder, FaultyFiles(fail_at, mode)), step, 2.0)
            returned = True
        except (CheckpointError, KeyboardInterrupt, Killed):
            pass
        assert load(folder) in ((2.0,) if returned else (1.0, 2.0)), f"operation {fail_at}"
        # The next process needs no hand work, and leaves no litter of the dead one.
        save(make_store(folder), 3, 3.0)
        assert load(folder) == 3.0
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert names <= {"step-00000001", "step-00000002", "step-00000003", "latest.json"}, f"{fail_at}: {names}"


@pytest.mark.parametrize("mode", MODES)
def test_durability_prune_fails_anywhere_two_newest_load(tmp_path, mode):
    for fail_at in range(1, 13):
        folder = tmp_path / str(fail_at)
        for step in (1, 2, 3):
            save(make_store(folder), step, float(step))
        with contextlib.suppress(CheckpointError, KeyboardInterrupt, Killed):
            make_store(folder, FaultyFiles(fail_at, mode)).prune(keep_last=2)
        assert load(folder) == 3.0
        found = scan.find_checkpoints(folder / "checkpoints")
        assert [one.step for one in found][:2] == [3, 2]
        assert not any(one.problem for one in found)  # the third is whole or out of sight


# -- power loss


@dataclass
class Inode:
    """A file or a folder: what a reader sees now, and what is on the disk itself."""

    is_folder: bool
    seen: bytes = b""
    flushed: bytes = b""
    entries: dict[str, Inode] = field(default_factory=dict)
    flushed_entries: dict[str, Inode] = field(default_factory=dict)


class RecordingFiles(Files):
    """The real disk, and beside it a model of what a power cut would leave."""

    def __init__(self, root: Path, *, ignore: tuple[str, ...] = ()) -> None:
        self.root, self.ignore = root, ignore
        self.tree = Inode(is_folder=True)
        self.by_descriptor: dict[int, Inode] = {}
        self.cuts: list[Inode] = []  # the model after each operation

    def _at(self, path: Path) -> Inode:
        node = self.tree
        for part in path.relative_to(self.root).parts:
            node = node.entries[part]
        return node

    def _done(self) -> None:
        self.cuts.append(_copy(self.tree, {}))

    def open_new(self, path):
        descriptor = super().open_new(path)
        self.by_descriptor[descriptor] = self._at(path.parent).entries[path.name] = Inode(is_folder=False)
        self._done()
        return descriptor

    def write(self, descriptor, data):
        written = super().write(descriptor, data)
        self.by_descriptor[descriptor].seen += bytes(data[:written])
        self._done()
        return written

    def fsync(self, descriptor):
        if "fsync" not in self.ignore:
            node = self.by_descriptor[descriptor]
            node.flushed = node.seen
        self._done()

    def fsync_dir(self, path):
        if "fsync_dir" not in self.ignore:
            node = self._at(path)
            node.flushed_entries = dict(node.entries)
        self._done()

    def mkdir(self, path):
        super().mkdir(path)
        self._at(path.parent).entries[path.name] = Inode(is_folder=True)
        self._done()

    def replace(self, source, target):
        super().replace(source, target)
        assert source.parent == target.parent, "a rename across folders is not one operation after a power cut"
        entries = self._at(source.parent).entries
        entries[target.name] = entries.pop(source.name)
        self._done()

    def unlink(self, path):
        super().unlink(path)
        del self._at(path.parent).entries[path.name]
        self._done()

    def rmdir(self, path):
        super().rmdir(path)
        del self._at(path.parent).entries[path.name]
        self._done()


def _copy(node: Inode, memo: dict[int, Inode]) -> Inode:
    if id(node) not in memo:
        memo[id(node)] = copied = Inode(node.is_folder, node.seen, node.flushed)
        copied.entries = {name: _copy(inner, memo) for name, inner in node.entries.items()}
        copied.flushed_entries = {name: _copy(inner, memo) for name, inner in node.flushed_entries.items()}
    return memo[id(node)]


def write_remains(node: Inode, path: Path, *, data_kept: bool, names_kept: tuple[bool, bool], depth: int = 0) -> None:
    """Write what a cut may leave: unflushed data kept or lost, unflushed names kept or lost by depth."""
    if not node.is_folder:
        path.write_bytes(node.seen if data_kept else node.flushed)
        return
    path.mkdir()
    entries = node.entries if names_kept[min(depth, 2) > 1] else node.flushed_entries
    for name, inner in entries.items():
        write_remains(inner, path / name, data_kept=data_kept, names_kept=names_kept, depth=depth + 1)


def cut_power_everywhere(tmp_path: Path, *, second_step: int, ignore: tuple[str, ...] = ()) -> list[str]:
    """Save twice, cut the power after each operation in each way, and return what was lost."""
    root = tmp_path / "disk"
    root.mkdir()
    files = RecordingFiles(root, ignore=ignore)
    promised: list[float | None] = []  # the value that a save had returned for, after each operation
    store = make_store(root, files)
    save(store, 1, 1.0)
    promised += [None] * len(files.cuts)
    promised[-1] = 1.0
    before = len(files.cuts)
    save(store, second_step, 2.0)
    promised += [1.0] * (len(files.cuts) - before)
    promised[-1] = 2.0
    losses = []
    ways = list(itertools.product([False, True], repeat=3))
    for number, (tree, value) in enumerate(zip(files.cuts, promised, strict=True)):
        for way, (data_kept, *names_kept) in enumerate(ways):
            remains = tmp_path / f"cut-{number}-{way}"
            write_remains(tree, remains, data_kept=data_kept, names_kept=(names_kept[0], names_kept[1]))
            try:
                loaded = load(remains)
            except CheckpointError as error:
                loaded = None
                if value is None:
                    losses.append(f"after operation {number}: a checkpoint that cannot be loaded: {error}")
            allowed = {None: (None, 1.0), 1.0: (1.0, 2.0), 2.0: (2.0,)}[value]
            if loaded not in allowed:
                losses.append(f"after operation {number}: {loaded} instead of {allowed}")
    return losses


@pytest.mark.parametrize("second_step", [2, 1], ids=["a later step", "the same step again"])
def test_durability_power_cut_anywhere_keeps_what_a_save_returned_for(tmp_path, second_step):
    assert cut_power_everywhere(tmp_path, second_step=second_step) == []


@pytest.mark.parametrize("ignore", ["fsync", "fsync_dir"])
def test_durability_control_power_cut_without_flushing_is_caught(tmp_path, ignore):
    assert cut_power_everywhere(tmp_path, second_step=2, ignore=(ignore,))


class WritesInPlace(CheckpointStore):
    """A store that removes the old checkpoint before the new one is in place."""

    def _write(self, target, content):
        if target.exists():
            self._discard(target)
        super()._write(target, content)


def test_durability_control_removing_before_writing_is_caught(tmp_path):
    lost = 0
    for fail_at in range(1, 12):
        folder = tmp_path / str(fail_at)
        save(make_store(folder), 1, 1.0)
        with pytest.raises(Killed):
            save(make_store(folder, FaultyFiles(fail_at, "killed after"), WritesInPlace), 1, 2.0)
        lost += load(folder) is None
    assert lost


# -- damage


def damage_every_file(tmp_path: Path) -> list[str]:
    """Damage each file of the newer of two checkpoints, bit by bit and by length; return what got through."""
    save(make_store(tmp_path), 1, 1.0)
    save(make_store(tmp_path), 2, 2.0)
    trusted = []
    newest = tmp_path / "checkpoints" / "step-00000002"
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        places = sorted({*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1})
        damages = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in places]
        damages += [whole[:at] for at in places] + [whole + b"\0"]
        for number, damaged in enumerate(damages):
            path.write_bytes(damaged)
            try:
                loaded = load(tmp_path)
                # White space in the manifest may change without changing what it says.
                if loaded != 1.0 and not (path.name == "manifest.json" and loaded == 2.0):
                    trusted.append(f"{path.name}, damage {number}: {loaded}")
            except (CheckpointError, AssertionError, KeyError) as error:
                trusted.append(f"{path.name}, damage {number}: {error}")
        path.write_bytes(whole)
    assert load(tmp_path) == 2.0
    return trusted


def test_durability_any_damage_falls_back_to_the_older_checkpoint(tmp_path):
    assert damage_every_file(tmp_path) == []


def test_durability_control_without_hashes_damage_is_trusted(tmp_path, monkeypatch):
    real = scan.check_file
    for module in ("scan", "read"):
        monkeypatch.setattr(
            f"velodrome.checkpoint.{module}.check_file",
            lambda path, record, hashes: real(path, record, hashes=False),
        )
    assert damage_every_file(tmp_path)
