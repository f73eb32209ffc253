"""The settings that decide the numbers of a run, and how they differ from those of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from velodrome.step.optimizer_state import group_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from velodrome.resume.run_state import SavedState
    from velodrome.run.run import Run
    from velodrome.step.updates import Updates

__all__ = ["changed_options", "compare", "setting_changes", "settings_of"]


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


def changed_options(saved: SavedState, run: Run) -> list[tuple[str, int, dict[str, Any]]]:
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
