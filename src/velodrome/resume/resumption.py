"""What a run goes on from: whether it fits, and in which order its parts come back.

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

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

from velodrome.checkpoint.matching import copy_into_model
from velodrome.checkpoint.names import clean_names
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.errors import RefusedError
from velodrome.loop.progress import Progress
from velodrome.resume.own_state import clean_parameters, load_buffers
from velodrome.resume.run_state import SavedState, load_trainer_state
from velodrome.resume.settings import changed_options, setting_changes
from velodrome.resume.sound_state import check_sound
from velodrome.step.optimizer_state import differences, parameter_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from velodrome.run.run import Run

__all__ = ["Resumption"]

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
        changed = changed_options(saved, run)
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
            if name in weights and not is_lazy(value) and weights[name].shape != value.shape
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
