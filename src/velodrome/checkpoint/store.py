"""The checkpoints of one run: written whole or not at all, found by scan, pruned last.

```text
checkpoints/
  step-00000938/   model.safetensors, state.json, manifest.json (sizes and hashes, written last)
  latest.json      a hint for people; a scan for valid manifests is what counts
  best.json        {"step", "monitor", "value"}
```
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.files import Files, make_folder, remove_tree, write_atomically, write_new
from velodrome.checkpoint.manifest import MANIFEST_NAME, Manifest, describe, parse_json, read_limited, read_manifest
from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.tensors import encode_tensors
from velodrome.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["BEST_NAME", "CheckpointStore", "find_steps", "read_best_step", "step_folder"]

BEST_NAME = "best.json"
LATEST_NAME = "latest.json"
MAX_NOTE_BYTES = 1 << 16

_STEP = re.compile(r"step-(\d{8,18})")


class CheckpointStore:
    """Writes, finds and prunes the checkpoints in one folder.

    Args:
        directory: the folder `checkpoints`; made by the first save.
        run_id: written into every manifest; only checkpoints that carry it are ever removed.
        files: where the disk operations go; the real disk when left out.
    """

    def __init__(self, directory: Path, *, run_id: str, files: Files | None = None) -> None:
        self.directory = directory
        self.run_id = run_id
        self._files = files or Files()
        self._has_swept = False

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and return its folder; when this returns, it survives a power cut.

        Args:
            step: updates done; a checkpoint of the same step is replaced.
            tensors: by file ("model", "optimizer") and name; prefixes of wrappers are taken off the names.
            state: JSON values.
        Raises:
            CheckpointError: the disk refused; everything that was there before is there still.
        """
        contents = {}
        for part, named in tensors.items():
            clean = clean_names(named)
            contents[f"{part}.safetensors"] = encode_tensors({clean[name]: tensor for name, tensor in named.items()})
        contents["state.json"] = (json.dumps(dict(state), indent=1, sort_keys=True) + "\n").encode()
        manifest = Manifest(
            run_id=self.run_id, step=step, files={name: describe(data) for name, data in contents.items()}
        )
        target = step_folder(self.directory, step)
        temporary = self.directory / f".tmp-{target.name}-{self.run_id}-{secrets.token_hex(4)}"
        try:
            make_folder(self._files, self.directory)
            self._sweep()
            self._files.mkdir(temporary)
            for name, data in contents.items():
                write_new(self._files, temporary / name, data)
            write_new(self._files, temporary / MANIFEST_NAME, manifest.to_bytes())
            self._files.fsync_dir(temporary)
            self._put_in_place(temporary, target)
            self._files.fsync_dir(self.directory)
            _check_sizes(target, manifest)
            self._note(LATEST_NAME, {"step": step, "folder": target.name})
        except OSError as error:
            with suppress(OSError):
                remove_tree(self._files, temporary)
            raise self._refusal(target, error) from error
        return target

    def mark_best(self, step: int, *, monitor: str, value: float) -> None:
        """Note that this step is the best so far.

        Raises:
            CheckpointError: the disk refused; the note of before is there still.
        """
        try:
            self._note(BEST_NAME, {"step": step, "monitor": monitor, "value": value})
        except OSError as error:
            raise self._refusal(self.directory / BEST_NAME, error) from error

    def latest(self) -> Path | None:
        """Return the newest checkpoint with a valid manifest and files of the right sizes, or None."""
        return next((path for _, path in reversed(find_steps(self.directory))), None)

    def best(self) -> Path | None:
        """Return the checkpoint marked as best, or None when none is, or it is not valid any more."""
        step = read_best_step(self.directory)
        return None if step is None else dict(find_steps(self.directory)).get(step)

    def prune(self, *, keep_last: int, keep: Collection[int] = ()) -> None:
        """Remove this run's old checkpoints; two valid ones, the last ones and those in `keep` always stay.

        A checkpoint that cannot be removed is left for the next time.
        """
        valid = find_steps(self.directory)
        num_last = max(2, keep_last)
        for step, path in valid[:-num_last]:
            if step not in keep and self._is_own(path):
                with suppress(OSError):
                    # Renamed first: a removal that is cut short must not leave a folder that looks like a checkpoint.
                    doomed = self.directory / f".tmp-{path.name}-{self.run_id}-{secrets.token_hex(4)}"
                    self._files.replace(path, doomed)
                    remove_tree(self._files, doomed)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        """Rename the new folder to its name; an old one of that name steps aside for the moment of the rename.

        A folder cannot be replaced in one operation, so a kill exactly between the two leaves the older steps to be found,
        and the old folder beside its place under a temporary name.
        """
        if target.exists():
            aside = self.directory / f".tmp-{target.name}-{self.run_id}-{secrets.token_hex(4)}"
            self._files.replace(target, aside)
            try:
                self._files.replace(temporary, target)
            except OSError:
                self._files.replace(aside, target)
                raise
            with suppress(OSError):
                remove_tree(self._files, aside)
        else:
            self._files.replace(temporary, target)

    def _sweep(self) -> None:
        """Remove what a killed process of this run left behind, once."""
        if self._has_swept:
            return
        self._has_swept = True
        for path in self.directory.glob(f".tmp-*-{self.run_id}-*"):
            with suppress(OSError):
                remove_tree(self._files, path)

    def _note(self, name: str, content: Mapping[str, object]) -> None:
        data = (json.dumps(content) + "\n").encode()
        write_atomically(self.directory / name, data, files=self._files, tag=self.run_id)

    def _is_own(self, path: Path) -> bool:
        try:
            return read_manifest(path).run_id == self.run_id
        except CheckpointError:
            return False

    def _refusal(self, path: Path, error: OSError) -> CheckpointError:
        reason = error.strerror or str(error)
        return CheckpointError(
            f"{path} could not be saved: {reason}{_free_space(self.directory)}. The checkpoints before it are untouched. "
            f"Free some space or check the disk.",
            path=path,
            errno=error.errno,
        )


def step_folder(directory: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return directory / f"step-{step:08d}"


def find_steps(directory: Path, say: Callable[[str], object] | None = None) -> list[tuple[int, Path]]:
    """Return the valid checkpoints of a folder by step: a manifest that can be read, and every file of its size.

    Args:
        directory: the folder `checkpoints`; one that does not exist holds none.
        say: gets a line for each folder that looks like a checkpoint and is none.
    """
    found = []
    with suppress(OSError):
        for path in sorted(directory.iterdir()):
            match = _STEP.fullmatch(path.name)
            if match is None or not path.is_dir():
                continue
            try:
                _check_sizes(path, read_manifest(path))
            except (CheckpointError, OSError) as error:
                if say is not None:
                    say(f"warning: {path.name} is skipped: {error}")
                continue
            found.append((int(match[1]), path))
    return sorted(found)


def read_best_step(directory: Path) -> int | None:
    """Return the step that `best.json` names, or None when there is no such note or it cannot be read."""
    path = directory / BEST_NAME
    if not path.exists():
        return None
    try:
        note = parse_json(read_limited(path, MAX_NOTE_BYTES), origin=str(path), limit=MAX_NOTE_BYTES, allow_nan=True)
    except CheckpointError:
        return None
    step = note.get("step") if isinstance(note, dict) else None
    return step if type(step) is int and step >= 0 else None


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder whose files are not as large as its manifest says.

    Raises:
        CheckpointError: names the file and both sizes.
    """
    for name, record in manifest.files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as error:
            raise CheckpointError(
                f"{path} is missing ({error.strerror}). Use another checkpoint.", path=path
            ) from error
        if found != record.num_bytes:
            raise CheckpointError(
                f"{path} has {found} bytes, its manifest says {record.num_bytes}. Use another checkpoint.", path=path
            )


def _free_space(directory: Path) -> str:
    for folder in (directory, *directory.parents):
        with suppress(OSError):
            return f" ({shutil.disk_usage(os.fspath(folder)).free / 1e6:,.0f} MB are free)"
    return ""
