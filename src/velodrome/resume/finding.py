"""Which checkpoint a run goes on from: the newest that is whole and says how, the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from velodrome.checkpoint.manifest import MANIFEST_NAME
from velodrome.checkpoint.read import read_state
from velodrome.checkpoint.scan import check_files, find_checkpoints
from velodrome.errors import ArgumentError, CheckpointError, RefusedError, VelodromeError
from velodrome.record.reading import read_record, refuse_links
from velodrome.resume.resumption import Resumption

if TYPE_CHECKING:
    from velodrome.distributed.world import World

__all__ = ["find_resumption", "find_together"]


def find_resumption(
    resume: str | Path, run_dir: str | Path | None, *, accept_changes: bool = False
) -> tuple[str | Path | None, bool, Resumption]:
    """Decide what to go on from.

    Args:
        resume: "never", "auto" or the path of a run directory or of a checkpoint in one.
        run_dir: the trainer's.
        accept_changes: see `Resumption`.
    Returns:
        The run directory; whether it holds a run that is gone on with; and from what.
    Raises:
        ArgumentError: no such path, or "auto" without a run_dir.
        CheckpointError: there are checkpoints, and none can be gone on from.
        RefusedError: an older checkpoint was named, and newer ones stand beside it; files of the run are links, or its `run.json` is
            damaged.
    """
    if resume == "never":
        return run_dir, False, Resumption()
    if resume == "auto":
        if run_dir is None:
            raise ArgumentError(
                'resume="auto" looks for the run in run_dir, and there is none. Give run_dir="runs/mine", say.'
            )
        folder = Path(run_dir).expanduser()
        if not (folder / "run.json").exists():
            return run_dir, False, Resumption()
        found, skipped = _newest(folder)
        return run_dir, True, Resumption(found, skipped, accept_changes=accept_changes)
    path = Path(resume).expanduser().absolute()
    is_checkpoint = (path / MANIFEST_NAME).is_file()
    folder = path.parent.parent if is_checkpoint else path
    if not (folder / "run.json").is_file():
        raise ArgumentError(
            f'resume={str(resume)!r} holds no run. Give "auto", "never", a run directory (with run.json), or a checkpoint folder in one.'
        )
    if run_dir is not None and Path(run_dir).expanduser().absolute() != folder:
        raise ArgumentError(
            f"run_dir={str(run_dir)!r} and resume={str(resume)!r} are two runs. A run goes on in its own folder: leave run_dir out."
        )
    found, skipped = _newest(folder)
    if is_checkpoint and found is not None and found != path:
        raise RefusedError(
            f"{path} is not the newest checkpoint of its run, which is {found}. Going on from an older one would leave two futures in "
            f"one folder; nothing was changed. Copy the run directory and remove the newer checkpoints there."
        )
    if found is None:
        raise CheckpointError(
            f"{folder} holds no checkpoint yet that can be gone on from. {' '.join(skipped)}{' ' if skipped else ''}There is nothing to "
            f'lose: resume="auto" begins it anew in the same folder.'
        )
    return folder, True, Resumption(found, skipped, accept_changes=accept_changes)


def find_together(
    world: World, resume: str | Path, run_dir: str | Path | None, *, accept_changes: bool
) -> tuple[str | Path | None, bool, Resumption]:
    """Decide what to go on from, the same in every process: rank 0 looks, and the others read what it found.

    Raises:
        as `find_resumption`, in every process; CheckpointError: a process does not see the files that rank 0 sees.
    """
    if world.size == 1 or resume == "never":
        return find_resumption(resume, run_dir, accept_changes=accept_changes)
    found: tuple[str | Path | None, bool, Resumption] = run_dir, False, Resumption()
    error: VelodromeError | None = None
    if world.is_main:
        try:
            found = find_resumption(resume, run_dir, accept_changes=accept_changes)
        except VelodromeError as problem:
            error = problem
    _, goes_on, resumption = found
    path = None if resumption.checkpoint is None else str(resumption.checkpoint.absolute())
    told = world.gather(_Found(path=path, goes_on=goes_on, error=error))[0]
    if told.error is not None:
        raise told.error
    if not world.is_main:
        resumption = Resumption(None if told.path is None else Path(told.path), accept_changes=accept_changes)
    sees = told.path is None or (Path(told.path) / MANIFEST_NAME).is_file()
    blind = [rank for rank, each in enumerate(world.gather(sees)) if not each]
    if blind:
        raise CheckpointError(
            f"{told.path} is not there for rank {', '.join(map(str, blind))} of {world.size}. Every process reads the checkpoint itself: put "
            f"run_dir on a file system that all machines share, under the same path."
        )
    return (run_dir if not world.is_main else found[0]), told.goes_on and world.is_main, resumption


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What rank 0 found, or why nothing."""

    path: str | None
    goes_on: bool
    error: VelodromeError | None


def _newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole and says how to go on, and why newer ones are not.

    There is none yet where the run was left within a batch before its first whole checkpoint: then it begins anew.

    Raises:
        CheckpointError: there are others, and all of them are damaged or say nothing.
    """
    skipped: list[str] = []
    num_within_batch = 0
    refuse_links(folder)
    run_id = read_record(folder)["id"]
    for found in find_checkpoints(folder / "checkpoints"):
        if found.manifest is None or found.problem:
            skipped.append(found.problem)
            continue
        if found.manifest.run_id != run_id:
            continue
        try:
            check_files(found.path, found.manifest, hashes=True)
            state = read_state(found.path, verify=False)
        except CheckpointError as error:
            skipped.append(error.message)
            continue
        if isinstance(state.get("resume"), dict):
            return found.path, skipped
        num_within_batch += state.get("is_within_batch") is True
        reason = state.get("not_resumable") or "an older release saved it"
        skipped.append(f"{found.path} holds weights only: {reason}.")
    if len(skipped) > num_within_batch:
        raise CheckpointError(
            f"{folder} holds no checkpoint that can be gone on from. {' '.join(skipped)} Begin a new run in another run_dir; weights "
            f"that are whole can be loaded with velodrome.load_model."
        )
    return None, skipped
