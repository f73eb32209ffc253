"""Going on with a run: which checkpoint, whether it fits, and in which order its parts come back.

```text
found       the newest checkpoint that can be gone on from
compared    settings and model, before anything is changed
loaded      weights, optimizers, schedules, scalers, counters, average
cut back    the journal, to its length at the checkpoint
told        on_fit_start; callbacks get their state
positioned  the loader, before its iterator is made
random      put back after the iterator exists, before the first batch is fetched
```
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.manifest import MANIFEST_NAME
from velodrome.checkpoint.matching import copy_into_model
from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.scan import check_files, find_checkpoints
from velodrome.errors import ArgumentError, CheckpointError, RefusedError, VelodromeError
from velodrome.loop.progress import Progress
from velodrome.own_state import clean_parameters, load_buffers
from velodrome.record.reading import read_record, refuse_links
from velodrome.run_state import SavedState, load_trainer_state
from velodrome.sound_state import check_sound
from velodrome.step.optimizer_state import differences, group_options, parameter_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from velodrome.distributed.world import World
    from velodrome.run.run import Run
    from velodrome.step.updates import Updates

__all__ = ["Resumption", "find_resumption", "find_together", "settings_of"]

_SHOWN = 5


class Resumption:
    """What a trainer goes on from, if anything.

    Args:
        checkpoint: the folder, or None to begin.
        skipped: newer checkpoints that cannot be gone on from, with the reasons.
        accept_changes: go on although settings differ, where that is possible.
    """

    def __init__(
        self, checkpoint: Path | None = None, skipped: Sequence[str] = (), *, accept_changes: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.skipped = list(skipped)
        self.accept_changes = accept_changes

    def load(self, run: Run, data: Mapping[str, Any]) -> tuple[SavedState, list[str]]:
        """Load everything that is not random and no position; nothing is changed when it does not fit.

        Args:
            run: that is to go on.
            data: what is known of its training data; nothing in a loop of one's own, which has not shown them yet.
        Returns:
            The saved state, and lines about what was accepted although it differs.
        Raises:
            RefusedError: model or settings differ.
            CheckpointError: the checkpoint is damaged.
        """
        assert self.checkpoint is not None
        whole = read_state(self.checkpoint)
        saved = SavedState.read(self.checkpoint, whole, rank=run.world.rank, size=run.world.size)
        check_sound(saved, whole)
        weights = read_tensors(self.checkpoint, "model")
        self._refuse_other_model(run, weights, saved)
        changes = setting_changes(saved, run, data)
        self.refuse(changes)
        if saved.state["settings"]["average"] is not None and "kind" not in whole["averaging"]:
            raise KeyError("averaging/kind")
        missing = [each.name for each in fields(Progress) if each.name not in whole["progress"]]
        if missing:
            raise KeyError(f"progress/{missing[0]}")
        for name, each in saved.state["settings"]["optimizers"].items():
            for options, was in zip(saved.state["optimizers"][name]["options"], each["groups"], strict=True):
                if lost := was.keys() - options.keys():
                    raise KeyError(f"optimizers/{name}/options/{min(lost)}")
        averaged = read_tensors(self.checkpoint, "ema") if whole["averaging"].get("num_averaged") else {}
        notes = {**whole["averaging"], "last_step": saved.state["last_averaged_step"]}
        if whole["averaging"].get("kind") == run.averaging.describe().get("kind") and whole["averaging"]:
            run.averaging.load_state_dict(averaged, notes)
        copy_into_model(run.model, weights, origin=self.checkpoint)
        load_buffers(run, saved.owns)
        changed = _changed_options(saved, run)
        load_trainer_state(run, saved, whole["progress"])
        for name, index, options in changed:
            run.windows.by_name[name].optimizer.param_groups[index].update(options)
        return saved, changes

    def refuse(self, changes: Sequence[str]) -> None:
        """Refuse what differs, unless that was accepted.

        Raises:
            RefusedError: lists the differences.
        """
        if changes and not self.accept_changes:
            shown = "; ".join(changes[:_SHOWN]) + (f"; {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
            raise RefusedError(
                f"The run to go on with was made with other settings: {shown}. With these it would be another run, so nothing was "
                f"changed. Put them back, accept them with accept_changes=True, or begin a new run in another run_dir.",
                changes=list(changes),
            )

    def _refuse_other_model(self, run: Run, weights: Mapping[str, Any], saved: SavedState) -> None:
        state = {name: value for name, value in run.model.state_dict().items() if hasattr(value, "shape")}
        clean = clean_names(state)
        mine = {clean[name]: value for name, value in state.items()}
        parts = [f"{name} is missing in the checkpoint" for name in mine if name not in weights]
        parts += [f"{name} is missing in the model" for name in weights if name not in mine]
        parts += [
            f"{name} was {tuple(weights[name].shape)} and is {tuple(value.shape)}"
            for name, value in mine.items()
            if name in weights and not _is_lazy(value) and weights[name].shape != value.shape
        ]
        if parts:
            shown = "; ".join(parts[:_SHOWN]) + (f"; {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else "")
            raise RefusedError(
                f"The model is not the one of {self.checkpoint}: {shown}. Nothing was changed. Build the model of that run, or begin "
                f"a new run in another run_dir."
            )
        optimizers, named = saved.get("optimizer", "optimizers"), clean_parameters(run.model)
        if optimizers.keys() != run.windows.by_name.keys():
            raise RefusedError(
                f"The run had the optimizers {sorted(optimizers)}, and this trainer has {sorted(run.windows.by_name)}. Nothing was "
                f"changed. Give the optimizers of that run."
            )
        kinds = saved.state["settings"]["optimizers"]
        for name, updates in run.windows.by_name.items():
            own = run.settings["optimizers"][name]
            for what in ("type", "scheduler"):
                if own[what] != kinds[name][what]:
                    raise RefusedError(
                        f"The {'optimizer' if what == 'type' else what} was {kinds[name][what]} and is {own[what]}: the state of one "
                        f"means nothing to the other. Nothing was changed. Give that of the run, or begin a new run from its weights."
                    )
            problem = differences(optimizers[name]["names"], parameter_names(updates.optimizer, named))
            if problem:
                raise RefusedError(
                    f"The optimizer's parameters are not those of the checkpoint: {problem}. Nothing was changed. Train the same "
                    f"parameters, or begin a new run from its weights."
                )


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
        raise CheckpointError(f"{folder} holds no checkpoint yet. There is nothing to go on from: train it anew.")
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


def setting_changes(saved: SavedState, run: Run, data: Mapping[str, Any]) -> list[str]:
    """Return what differs from the settings of the run, but for the number of processes, which may.

    With another number of processes batches may be cut otherwise, as `micro_batch` does it: what counts are the samples an update.
    """
    before, now = dict(saved.state["settings"]), dict(run.settings)
    own = saved.owns[min(run.world.rank, saved.num_processes - 1) if saved.num_processes == run.world.size else 0]
    data_before = {} if own is None else own.get("data")
    if before.pop("processes", 1) != now.pop("processes", 1):
        sizes = [facts.get("batch size") for facts in (data_before, data)]
        if None not in sizes and all(
            each["accumulate"] * sizes[0] == now["optimizers"][name]["accumulate"] * sizes[1]
            for name, each in before["optimizers"].items()
        ):
            before["optimizers"] = {
                name: {**each, "accumulate": now["optimizers"][name]["accumulate"]}
                for name, each in before["optimizers"].items()
            }
            data_before = {**data_before, "batch size": sizes[1]}
    changes = compare(before, now)
    return changes + (compare(data_before, data, name="data") if data else [])


def _newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole and says how to go on, and why newer ones are not."""
    skipped: list[str] = []
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
        reason = state.get("not_resumable") or "an older release saved it"
        skipped.append(f"{found.path} holds weights only: {reason}.")
    if skipped:
        raise CheckpointError(
            f"{folder} holds no checkpoint that can be gone on from. {' '.join(skipped)} Begin a new run in another run_dir; weights "
            f"that are whole can be loaded with velodrome.load_model."
        )
    return None, []


def settings_of(run: Run, *, seed: int | None, precision: str) -> dict[str, Any]:
    """Return the settings that decide the numbers, as plain values."""
    return {
        "model": type(_unwrapped(run.model)).__name__,
        "seed": seed,
        "precision": precision,
        "processes": run.world.size,
        "average": run.averaging.describe().get("kind"),
        "optimizers": {name: _describe_updates(each) for name, each in run.windows.by_name.items()},
    }


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of what `torch.compile` and `DistributedDataParallel` make of it: the one whose names are saved."""
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and set(model._modules) == {"module"} and not model._parameters and not model._buffers:
            inner = model._modules["module"]
        if inner is None:
            return model
        model = inner


def _describe_updates(updates: Updates) -> dict[str, Any]:
    return {
        "type": type(updates.optimizer).__name__,
        "accumulate": updates.accumulate,
        "scheduler": updates.schedule.state_dict().get("kind", "none"),
        "groups": [_plain(options) for options in group_options(updates.optimizer)],
    }


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is numbers, texts or None among a group's options; a learning rate may be a tensor."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            value = value.item()  # SYNC: once a run
        if isinstance(value, (list, tuple)):
            value = list(value)
        if (
            value is None
            or isinstance(value, (bool, int, float, str))
            or (isinstance(value, list) and all(isinstance(each, (bool, int, float, str)) for each in value))
        ):
            plain[name] = value
    return plain


def compare(saved: Any, now: Any, *, name: str = "") -> list[str]:
    """Return "name: 1 -> 2" for each setting that differs."""
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = [*saved, *(key for key in now if key not in saved)]
        if name == "data" and not ("content" in saved and "content" in now):
            keys = [key for key in keys if key != "content"]  # known of data in memory only
        return [
            line
            for key in keys
            for line in compare(saved.get(key), now.get(key), name=f"{name}.{key}" if name else str(key))
        ]
    both = [saved, now]
    if all(isinstance(each, list) and all(isinstance(one, dict) for one in each) for each in both) and len(
        saved
    ) == len(now):
        return [
            line
            for index, (a, b) in enumerate(zip(saved, now, strict=True))
            for line in compare(a, b, name=f"{name}[{index}]" if len(saved) > 1 else name)
        ]
    return [] if saved == now or (saved != saved and now != now) else [f"{name}: {saved!r} -> {now!r}"]


def _changed_options(saved: SavedState, run: Run) -> list[tuple[str, int, dict[str, Any]]]:
    """Return the options that differ from the saved run's, by optimizer and group: they were accepted, and are to hold."""
    changed = []
    for name in run.windows.by_name:
        before = saved.state["settings"]["optimizers"][name]["groups"]
        now = run.settings["optimizers"][name]["groups"]
        for index, (a, b) in enumerate(zip(before, now, strict=True)):
            options = {key: value for key, value in b.items() if a.get(key) != value}
            if options:
                changed.append((name, index, options))
    return changed


def _is_lazy(value: Any) -> bool:
    from torch.nn.parameter import is_lazy

    return is_lazy(value)
