"""Everything that can be wrong with a run directory or a checkpoint, found without changing anything and without running any of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.manifest import MANIFEST_NAME, read_manifest
from velodrome.checkpoint.read import STATE_NAME, read_state
from velodrome.checkpoint.scan import check_file, find_checkpoints, read_best
from velodrome.checkpoint.tensors import decode_tensors
from velodrome.errors import CheckpointError, RefusedError, VelodromeError
from velodrome.record.journal import read_rows
from velodrome.record.reading import find_links, read_record
from velodrome.record.run_lock import Holder, find_holder
from velodrome.resume.finding import find_resumption

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["CheckedCheckpoint", "CheckedRun", "verify_checkpoint", "verify_run"]


@dataclass(frozen=True, kw_only=True)
class CheckedCheckpoint:
    """What a checkpoint folder holds, and what is wrong with it."""

    path: Path
    step: int
    run_id: str = ""
    num_files: int = 0
    num_bytes: int = 0
    is_resumable: bool = False
    """whether a run can go on from it; else it holds weights only"""
    why_not: str = ""
    journal_bytes: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """What a run directory holds, what is wrong with it, and what is worth knowing."""

    path: Path
    record: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON
    holder: Holder | None = None
    checkpoints: tuple[CheckedCheckpoint, ...] = ()
    best_step: int | None = None
    num_rows: int = 0
    last_row_step: int | None = None
    resume_from: Path | None = None
    is_refused: bool = False
    """no run goes on here before the problems are mended"""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all_problems(self) -> list[str]:
        """Those of the run and those of its checkpoints."""
        return [*self.problems, *(problem for each in self.checkpoints for problem in each.problems)]

    @property
    def status(self) -> str:
        """What `run.json` says, "under way" while somebody writes, and "killed" for a run that never said how it ended."""
        if self.holder is not None:
            return "under way"
        said = self.record.get("status")
        return "killed" if said == "running" else said if isinstance(said, str) else "unknown"


def verify_checkpoint(path: Path) -> CheckedCheckpoint:
    """Check sizes, hashes and contents of all files of a checkpoint folder.

    Cost: reads every file twice; host memory for the largest one.
    """
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return CheckedCheckpoint(path=path, step=_step_of(path), problems=(error.message,))
    problems = [f"{link} is a link. Put a copy of the file in its place." for link in _links(path)]
    damaged: set[str] = set()
    for name, record in manifest.files.items():
        try:
            check_file(path / name, record, hashes=True)
        except CheckpointError as error:
            problems.append(error.message)
            damaged.add(name)
    unlisted = sorted({entry.name for entry in path.iterdir()} - manifest.files.keys() - {MANIFEST_NAME})
    if unlisted:
        problems.append(f"{path} holds {', '.join(unlisted)}, which its manifest does not list: no run put it there.")
    state, found = _read_state(path, damaged)
    problems += found
    for name in manifest.files.keys() - damaged:
        if name.endswith(".safetensors"):
            try:
                decode_tensors(path / name)
            except CheckpointError as error:
                problems.append(error.message)
    resume = state.get("resume")
    journal_bytes = resume.get("journal_bytes") if isinstance(resume, dict) else None
    return CheckedCheckpoint(
        path=path,
        step=manifest.step,
        run_id=manifest.run_id,
        num_files=len(manifest.files),
        num_bytes=sum(record.num_bytes for record in manifest.files.values()),
        is_resumable=isinstance(resume, dict) and not problems,
        why_not="" if isinstance(resume, dict) else str(state.get("not_resumable") or "it holds weights only"),
        journal_bytes=journal_bytes if isinstance(journal_bytes, int) else None,
        problems=tuple(problems),
    )


def verify_run(path: Path) -> CheckedRun:
    """Check everything in a run directory: its record, its checkpoints, its journal, and which checkpoint a run would go on from.

    Cost: that of `verify_checkpoint` for each, and once more the hashes of the newest.
    """
    problems, notes = [], []
    record: Mapping[str, Any] = {}
    holder = None
    try:
        holder = find_holder(path)
        record = read_record(path)
    except RefusedError as error:
        problems.append(error.message)
    links = [link for link in find_links(path) if link.parent.parent.name != "checkpoints"]
    problems += [f"{link} is a link. Put a copy of the file in its place." for link in links]
    checkpoints: list[CheckedCheckpoint] = []
    try:
        for found in find_checkpoints(path / "checkpoints"):
            checked = verify_checkpoint(found.path)
            if (
                found.problem and found.manifest is not None and not checked.problems
            ):  # such as a folder of another step's name
                checked = CheckedCheckpoint(path=found.path, step=found.step, problems=(found.problem,))
            checkpoints.append(checked)
            if record and checked.run_id and checked.run_id != record["id"]:
                notes.append(f"{found.path} belongs to run {checked.run_id}, not to this one ({record['id']}).")
    except CheckpointError as error:
        problems.append(error.message)
    best_step, found_problems = _check_best(path, checkpoints)
    problems += found_problems
    own = [each for each in checkpoints if record and each.run_id == record["id"] and not each.problems]
    num_rows, last_step, found_problems = _check_journal(path, own)
    problems += found_problems
    leftovers = sum(1 for each in _names(path / "checkpoints") if each.startswith((".tmp-", ".unreadable-")))
    if leftovers and holder is None:
        notes.append(
            f"{leftovers} leftovers of saves that were cut short lie in checkpoints/; the next save clears its own."
        )
    resume_from, is_refused = None, not record or bool(links)
    if record and not links and holder is None:
        try:
            resume_from = find_resumption("auto", path)[2].checkpoint
        except VelodromeError as error:
            is_refused = True
            known = " ".join([*problems, *(problem for each in checkpoints for problem in each.problems)])
            if error.message not in known:
                notes.append(error.message)
    return CheckedRun(
        path=path,
        record=record,
        holder=holder,
        checkpoints=tuple(checkpoints),
        best_step=best_step,
        num_rows=num_rows,
        last_row_step=last_step,
        resume_from=resume_from,
        is_refused=is_refused,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _read_state(path: Path, damaged: set[str]) -> tuple[Mapping[str, Any], list[str]]:
    if STATE_NAME in damaged:
        return {}, []
    try:
        return read_state(path, verify=False), []
    except CheckpointError as error:
        return {}, [error.message]


def _check_best(path: Path, checkpoints: list[CheckedCheckpoint]) -> tuple[int | None, list[str]]:
    try:
        best = read_best(path / "checkpoints")
    except CheckpointError as error:
        return None, [error.message]
    if best is None or any(each.step == best.step for each in checkpoints):
        return None if best is None else best.step, []
    return best.step, [
        f"The best checkpoint, step {best.step}, is not there. Ask for the last weights instead (--weights last)."
    ]


def _check_journal(path: Path, own: list[CheckedCheckpoint]) -> tuple[int, int | None, list[str]]:
    """Return the number of rows, the step of the last one, and what is wrong."""
    file = path / "metrics.jsonl"
    longest = max((each.journal_bytes or 0 for each in own), default=0)
    if not file.is_file():
        missing = f"{file} is missing, and a checkpoint says that it had {longest:,} bytes. The history is lost; a run can go on."
        return 0, None, [missing] if longest else []
    try:
        rows = read_rows(file)
    except CheckpointError as error:
        return 0, None, [error.message]
    problems = []
    size = file.stat().st_size
    if size < longest:
        problems.append(
            f"{file} has {size:,} bytes, and had {longest:,} when a checkpoint was made: rows are missing. A run can go on without them."
        )
    steps = [row["step"] for row in rows if isinstance(row.get("step"), int)]
    back = next((b for a, b in pairwise(steps) if b < a), None)
    if back is not None:
        problems.append(f"{file} goes back to step {back} after a later one: two runs wrote into it, or it was edited.")
    return len(rows), steps[-1] if steps else None, problems


def _links(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_symlink())


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _step_of(path: Path) -> int:
    digits = path.name.removeprefix(".old-").removeprefix("step-").split("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else -1
