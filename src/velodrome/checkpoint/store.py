"""Saving: a checkpoint is written beside its place, flushed, hashed, and renamed into it; pruning comes last.

```text
mkdir  checkpoints/.tmp-step-00000938-<run>-<rand>/   in the target's own folder: never across disks
write  model.safetensors ... state.json               each one flushed
write  manifest.json                                  sizes and SHA-256; last, flushed
flush  the folder; rename it to step-00000938; flush its parent
check  manifest and sizes, read again
write  latest.json                                    a hint; `latest()` trusts a scan instead
```
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.files import Files, make_folder, remove_tree, write_atomically, write_new
from velodrome.checkpoint.manifest import MANIFEST_NAME, Describer, FileRecord, Manifest, read_manifest
from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.read import STATE_NAME, find_last
from velodrome.checkpoint.scan import BEST_NAME, Best, Found, check_files, find_checkpoints, read_best
from velodrome.checkpoint.space import free_bytes
from velodrome.checkpoint.state import encode_state
from velodrome.checkpoint.tensor_file import TensorFile, gather
from velodrome.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch import Tensor

__all__ = ["CheckpointStore", "Content"]

LATEST_NAME = "latest.json"
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_-]{0,99}")
_PARAMETER_GROUPS = ("model", "optimizer", "ema")

# What a network disk reports when it is slow or its server was changed. The whole save is repeated into a new
# folder: after a failed fsync the kernel may have dropped the pages, so repeating the fsync alone would prove
# nothing.
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR}
_ADVICE = {
    errno.ENOSPC: "Free some space on that volume",
    errno.EDQUOT: "Free some of your quota",
    errno.EROFS: "Choose a run directory on a disk that can be written",
    errno.EACCES: "Choose a run directory that you may write to",
    errno.EPERM: "Choose a run directory that you may write to",
}


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one checkpoint will hold.

    Args:
        step: updates done.
        files: of tensors, by name.
        state: the content of `state.json`.
    """

    step: int
    files: Mapping[str, TensorFile]
    state: bytes


class CheckpointStore:
    """The checkpoints of one run in one folder. Other runs' checkpoints there are neither used nor touched.

    Args:
        directory: the folder that holds them; created by the first save.
        run_id: written into each manifest; what bears it is this run's.
        files: where the changes to the disk go.
        retry_pauses_s: how long to wait before each further try when the disk reports a passing error.
        warn: is told what did not work and does no harm; a Python warning when left out.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str,
        files: Files | None = None,
        retry_pauses_s: tuple[float, ...] = (0.1, 0.5),
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(run_id, str) or not 0 < len(run_id) <= 200:
            raise ArgumentError(
                f"run_id={run_id!r} cannot name a run. It is a text of 1 to 200 characters. Give one.",
                argument="run_id",
            )
        self.directory = Path(directory)
        self.run_id = run_id
        self._last_saved: int | None = None
        self._files = files or Files()
        self._retry_pauses_s = retry_pauses_s
        self._tag = hashlib.sha256(run_id.encode()).hexdigest()[:8]
        self._swept = False
        self._warn = warn or _warn

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write one checkpoint and return its folder once it would survive a power cut: `prepare` and `write`.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are as they were.
        """
        return self.write(self.prepare(step, tensors, state))

    def prepare(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Content:
        """Return what a checkpoint will hold, checked but not copied: the tensors must not change before it is written.

        Args:
            step: updates done.
            tensors: named groups of named tensors: {"model": {...}, "optimizer": {...}}.
            state: everything else, as JSON holds it.
        Raises:
            CheckpointError: something cannot be saved; names it.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ArgumentError(
                f"step={step!r} is not a count of updates. It is a whole number from 0 up.", argument="step"
            )
        files: dict[str, TensorFile] = {}
        for group, named in tensors.items():
            if not _GROUP_NAME.fullmatch(group):
                raise ArgumentError(
                    f"The group {group!r} cannot name a file. A name is lower-case letters, digits, '-' and "
                    f"'_'. "
                    f"Rename it.",
                    argument="tensors",
                )
            clean = clean_names(named) if group in _PARAMETER_GROUPS else {name: name for name in named}
            files[f"{group}.safetensors"] = gather({clean[name]: tensor for name, tensor in named.items()})
        return Content(step=step, files=files, state=encode_state(state))

    def write(self, content: Content) -> Path:
        """Write what was prepared and return its folder once it would survive a power cut.

        A checkpoint of the same step is replaced; until the new one is in place, the old one stays loadable.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are as they were.
        Cost: see `TensorFile.chunks`; a flush per file.
        """
        step = content.step
        target = self.directory / f"step-{step:08d}"
        for pause_s in (*self._retry_pauses_s, None):
            try:
                self._refuse_foreign(target)
                self._write(target, content)
                break
            except OSError as error:
                if pause_s is None or error.errno not in _PASSING:
                    raise self._failure(f"The checkpoint of step {step} could not be saved", error) from error
                time.sleep(pause_s)
        self._last_saved = step
        self._write_hint(step)
        return target

    def mark_best(self, step: int, *, monitor: str, value: float) -> None:
        """Record in `best.json` that this step's checkpoint is the best so far; it is then never pruned.

        Raises:
            CheckpointError: there is no such checkpoint, or the disk failed.
        """
        if math.isnan(value):
            raise ArgumentError(
                f"{monitor} = nan cannot be the best value. NaN is never better. Mark another step.",
                argument="value",
            )
        if step not in {found.step for found in self._own() if not found.problem}:
            raise CheckpointError(
                f"{self.directory} has no whole checkpoint of step {step} by this run. Only a saved one can "
                f"be the "
                f"best. Save it first.",
                path=self.directory,
                step=step,
            )
        best = Best(step=step, monitor=monitor, value=float(value))
        try:
            write_atomically(self.directory / BEST_NAME, best.to_bytes(), files=self._files, tag=self._tag)
        except OSError as error:
            raise self._failure(f"The mark for the best step, {step}, could not be written", error) from error

    def best(self) -> Path | None:
        """Return the best checkpoint, or None when none was marked; a warning says so when it is lost."""
        best = read_best(self.directory)
        if best is None:
            return None
        found = next((one for one in self._own() if one.step == best.step and not one.problem), None)
        if found is None:
            warnings.warn(
                f"The best checkpoint of {self.directory}, step {best.step}, is missing or damaged.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return found.path

    def latest(self) -> Path | None:
        """Return this run's newest checkpoint whose hashes agree, or None when there is none at all.

        A warning names every newer one that was skipped, and why.

        Raises:
            CheckpointError: there are checkpoints of this run, or what is left of them, and none can be
                loaded.
        Cost: reads the newest checkpoint once, to hash it.
        """
        if not any(one.manifest is None or one.manifest.run_id == self.run_id for one in self._all()):
            return None
        return find_last(self.directory, run_id=self.run_id)

    def prune(self, *, keep_last: int = 2, keep: Collection[int] = ()) -> list[Path]:
        """Remove this run's old checkpoints and return which.

        Kept are the newest `keep_last` whole ones (never fewer than two), the one saved last, the best one, and the
        steps of `keep`. Damaged ones stay for someone to look at, and so does everything that this run did not write.

        Raises:
            CheckpointError: the disk failed; each checkpoint is there whole or gone.
        """
        best = read_best(self.directory)
        whole = [one for one in self._own() if not one.problem and not one.set_aside]
        kept = {one.step for one in whole[: max(keep_last, 2)]} | set(keep) | ({best.step} if best else set())
        if self._last_saved is not None:  # lower than the newest steps after a return to an earlier one
            kept.add(self._last_saved)
        removed = []
        try:
            for found in reversed(whole):
                if found.step not in kept:
                    self._discard(found.path)
                    removed.append(found.path)
        except OSError as error:
            self._swept = False
            raise self._failure("Old checkpoints could not be removed", error) from error
        return removed

    # -- how it is done

    def _write(self, target: Path, content: Content) -> None:
        make_folder(self._files, self.directory)
        self._sweep()
        folder = self._private_name(".tmp", target)
        records: dict[str, FileRecord] = {}
        try:
            self._files.mkdir(folder)
            for name, file in content.files.items():
                records[name] = self._add(folder / name, file.chunks())
            records[STATE_NAME] = self._add(folder / STATE_NAME, [content.state])
            manifest = Manifest(run_id=self.run_id, step=content.step, files=records)
            write_new(self._files, folder / MANIFEST_NAME, [manifest.to_bytes()])
            self._files.fsync_dir(folder)
            self._publish(folder, target, manifest)
        except BaseException:  # also KeyboardInterrupt; a killed process leaves the folder to the next sweep
            try:
                remove_tree(self._files, folder)
            except OSError:
                self._swept = False
            raise

    def _add(self, path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
        describer = Describer()
        write_new(self._files, path, describer.watch(chunks))
        return describer.record

    def _publish(self, folder: Path, target: Path, manifest: Manifest) -> None:
        aside = None
        try:
            if os.path.lexists(target):
                aside = self._private_name(".old" if _is_whole(target) else ".unreadable", target)
                self._files.replace(target, aside)  # a scan still finds it under this name
                self._files.fsync_dir(self.directory)
            self._files.replace(folder, target)
            self._files.fsync_dir(self.directory)
            self._read_again(target, manifest, folder)
        except BaseException:
            if aside is not None and not os.path.lexists(target):
                with suppress(OSError):
                    self._files.replace(aside, target)
            raise
        if aside is not None and aside.name.startswith(".old"):
            try:
                self._discard(aside)
            except OSError:  # the new one is in place; the next sweep tries again
                self._swept = False

    def _read_again(self, target: Path, manifest: Manifest, folder: Path) -> None:
        """Check what the disk gives back; what is not as it was written leaves its place again."""
        try:
            if read_manifest(target) != manifest:
                raise CheckpointError(f"{target} does not hold the manifest that was written. Check the disk.")
            check_files(target, manifest, hashes=False)
        except CheckpointError:
            self._files.replace(target, folder)
            raise

    def _write_hint(self, step: int) -> None:
        data = (json.dumps({"step": step}) + "\n").encode()
        try:
            write_atomically(self.directory / LATEST_NAME, data, files=self._files, durable=False, tag=self._tag)
        except OSError as error:
            self._warn(
                f"{self.directory / LATEST_NAME} could not be replaced: {error.strerror}. The checkpoint of step {step} is saved; this "
                f"file is only a hint."
            )

    def sweep(self) -> None:
        """Clear what this run left behind when it was killed, or could not remove; a disk that fails now is asked again by a save."""
        with suppress(OSError):
            if self.directory.is_dir():
                self._sweep()

    def _sweep(self) -> None:
        """Clear what was left behind: before the first save, and after each time that something could not be removed."""
        if self._swept:
            return
        private = re.compile(rf"\.(tmp|old)-.*-{self._tag}-[0-9a-f]{{8}}")
        for path in sorted(self.directory.iterdir()):
            if not (match := private.fullmatch(path.name)):
                continue
            target = self.directory / path.name.removeprefix(".old-")[: -len(f"-{self._tag}-01234567")]
            if match[1] == "old" and not _is_whole(target):
                if not os.path.lexists(target) and _is_whole(path):
                    self._files.replace(path, target)  # killed between the two renames of a replacement
                    self._files.fsync_dir(self.directory)
                continue
            remove_tree(self._files, path)
        self._swept = True

    def _discard(self, path: Path) -> None:
        """Take a checkpoint out of sight in one rename, then remove it: it is never seen half removed."""
        name = path.name.removeprefix(".old-").split("-", 2)
        hidden = self._private_name(".tmp", path.with_name("-".join(name[:2])))
        self._files.replace(path, hidden)
        remove_tree(self._files, hidden)

    def _private_name(self, prefix: str, target: Path) -> Path:
        return self.directory / f"{prefix}-{target.name}-{self._tag}-{secrets.token_hex(4)}"

    def _all(self) -> list[Found]:
        return find_checkpoints(self.directory)

    def _own(self) -> list[Found]:
        return [one for one in self._all() if one.manifest is not None and one.manifest.run_id == self.run_id]

    def _refuse_foreign(self, target: Path) -> None:
        try:
            owner = read_manifest(target).run_id if os.path.lexists(target) else self.run_id
        except CheckpointError:
            return  # not a checkpoint that anyone could load; it is set aside, not removed
        if owner != self.run_id:
            raise CheckpointError(
                f"{target} belongs to run {owner}. A run replaces only its own checkpoints, and this one is "
                f"{self.run_id}. Choose another run directory.",
                path=target,
                run_id=owner,
            )

    def _failure(self, what: str, error: OSError) -> CheckpointError:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else self.directory
        num_free = free_bytes(self.directory)
        free = "an unknown amount" if num_free is None else f"{num_free / 1e9:.1f} GB"
        advice = _ADVICE.get(error.errno or 0, "Check the disk and the path")
        return CheckpointError(
            f"{what}: {error.strerror} (errno {error.errno}) at {path}. Earlier checkpoints are untouched, "
            f"and that "
            f"volume has {free} free. {advice}, then save again.",
            path=path,
            errno=error.errno,
            free_bytes=num_free,
        )


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=4)


def _is_whole(folder: Path) -> bool:
    try:
        check_files(folder, read_manifest(folder), hashes=False)
    except CheckpointError:
        return False
    return True
