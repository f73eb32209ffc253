"""Averages of the weights: kept beside the model, and carried by it while it is evaluated.

The average is a `torch.optim.swa_utils.AveragedModel`, and the arithmetic is torch's (`get_ema_multi_avg_fn`,
`get_swa_multi_avg_fn`). Its `update_parameters` is not called: it copies a counter to the device for every group of tensors, which
waits (law 5), and it treats all buffers alike. Here buffers are told apart:

- statistics (float buffers called `running_...`, as those of BatchNorm and InstanceNorm) are averaged by an EMA like the weights:
  they are means over the last batches themselves, so the mean of both belongs together. An SWA copies them, and recomputes them
  over the training data (`step/batch_norm.py`), since weights from far apart have no statistics in common;
- all others (counters, masks, tables) are copied: a mean of counts means nothing, and that of a mask with -inf is NaN.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]  (what torch's update_bn looks for)
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from velodrome.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["NO_AVERAGING", "Averaging", "AveragingRule", "Counts", "NoAveraging"]

_Place = tuple[dict[str, Any], str]
"""Where a module holds a buffer. Kept rather than the buffer: a model may assign a new tensor to the name."""


class Counts(Protocol):
    """How far the run is."""

    @property
    def steps_done(self) -> int:
        """Updates done."""
        ...

    @property
    def epochs_done(self) -> int:
        """Whole epochs done."""
        ...


class AveragingRule(Protocol):
    """When to average and how: `velodrome.EMA` and `velodrome.SWA`."""

    @property
    def kind(self) -> str:
        """What it is called in records: "ema" or "swa"."""
        ...

    @property
    def evaluates_averaged(self) -> bool:
        """Whether evaluations use the average once there is one."""
        ...

    @property
    def averages_statistics(self) -> bool:
        """Whether running statistics are averaged; else they are recomputed."""
        ...

    @property
    def steps_between(self) -> int | None:
        """Updates between two averagings; None when it averages at the end of epochs."""
        ...

    @property
    def epochs_between(self) -> int | None:
        """Epochs between two averagings; None when it averages after updates."""
        ...

    def find_start(self, *, epochs: int | None, steps: int | None) -> tuple[int, int]:
        """Return how many steps and epochs are done before averaging begins, in a run of this budget."""
        ...

    def function(self, num_averaged: int) -> Callable[[list[Tensor], list[Tensor], int], None]:
        """Return torch's function that moves the averages towards the weights, in place."""
        ...

    def weight_of_newest(self) -> float:
        """Return the smallest share that the newest weights may have in the average; 0 when it is not known before."""
        ...


class NoAveraging:
    """No average: the weights themselves are evaluated and saved."""

    num_averaged = 0
    """averagings done"""
    last_step = -1
    """the updates that were done at the last one"""
    evaluates = "raw"
    """which weights an evaluation uses now: "raw" or "averaged" """

    def begin(self, *, epochs: int | None = None, steps: int | None = None) -> None:
        """Get ready for a run of this budget."""

    def after_update(self) -> None:
        """Tell of an update that really happened, not one that fp16 skipped; waits for nothing."""

    def after_epoch(self, epoch: int) -> bool:
        """Tell that an epoch's training is over; return whether statistics must be recomputed now."""
        return False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model carry the averaged weights and buffers inside, if there is an average yet."""
        yield

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Let the model carry its own weights inside, also within `applied()`."""
        yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the model carry the weights inside that evaluations use."""
        yield

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds besides the model: `{"ema": {...}}` once there is an average."""
        return {}

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """Return the averaged parameters by name."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged model's state by the model's own names; empty before the first averaging."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from a saved average.

        Raises:
            ArgumentError: there is a state, and nothing here averages.
        """
        if state:
            raise ArgumentError(
                f"An average of {notes['num_averaged']} weights is to be loaded, and this trainer has none. Give it ema=EMA(...) or "
                f"SWA(...)."
            )

    def describe(self) -> dict[str, object]:
        """Return what it is, for the records."""
        return {}

    def calls(self) -> dict[str, list[tuple[str, Any]]]:
        """Return what is done after an update, after an epoch's training and for an evaluation: for `Trainer.explain`."""
        return {}


NO_AVERAGING = NoAveraging()


class Averaging(NoAveraging):
    """Keeps the average of a model's weights.

    Args:
        model: the one that is trained; wrapped by `torch.compile` or for several processes, the model inside is meant.
        rule: when and how.
        counts: how far the run is.
    Cost: memory for a second copy of the model; an EMA adds one read and one write of all weights to each update.
    """

    def __init__(self, model: nn.Module, rule: AveragingRule, counts: Counts) -> None:
        self.num_averaged = 0
        self.last_step = -1
        self._model = _unwrap(model)
        self._rule = rule
        self._counts = counts
        self._average: AveragedModel | None = None
        self._start = (0, 0)
        self._num_updates = 0
        self._is_applied = False
        self._swapped: list[tuple[_Place, Tensor, Tensor]] = []
        self._parameters: list[tuple[Tensor, Tensor]] = []
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []
        self._buffers: list[tuple[_Place, _Place]] = []
        self._statistics: list[tuple[_Place, _Place]] = []
        self._copied: list[tuple[_Place, _Place]] = []

    @property
    def evaluates(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  (a constant in the null object)
        """Which weights an evaluation uses now: "raw" or "averaged"."""
        return "averaged" if self.num_averaged and self._rule.evaluates_averaged else "raw"

    def begin(self, *, epochs: int | None = None, steps: int | None = None) -> None:
        """Find where averaging starts, and make the copy, so that a model that cannot be copied is refused before it trains.

        Raises:
            ArgumentError: it would start after the run's end, the model cannot be copied, or its numbers are too short.
        """
        self._start = self._rule.find_start(epochs=epochs, steps=steps)
        if not any(map(is_lazy, self._model.parameters())):  # else the first batch gives them their shape
            self._prepare()

    def after_update(self) -> None:
        """Average, if it is time; waits for nothing."""
        self._num_updates += 1
        steps_between = self._rule.steps_between
        if steps_between is None:
            return
        first_step, first_epoch = self._start
        done = self._num_updates - first_step
        if done > 0 and done % steps_between == 0 and self._counts.epochs_done >= first_epoch:
            self._average_now()

    def after_epoch(self, epoch: int) -> bool:
        """Average, if it is time; the second call after the same update does nothing.

        Args:
            epoch: its number, counted from 1.
        """
        epochs_between = self._rule.epochs_between
        steps_done = self._counts.steps_done
        first_step, first_epoch = self._start
        if epochs_between is None or steps_done == self.last_step or steps_done <= first_step:
            return False
        if epoch <= first_epoch or (epoch - first_epoch) % epochs_between:
            return False
        self._average_now()
        return any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in self._model.modules())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model carry the averaged weights and buffers inside, if there is an average yet.

        Model and average exchange their storages: nothing is copied, and afterwards, an error or not, every tensor has its own
        storage back, bit for bit. What evaluation writes into buffers stays with the average.
        """
        with self._carrying(averaged=self.num_averaged > 0):
            yield

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Let the model carry its own weights inside, also within `applied()`."""
        with self._carrying(averaged=False):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the model carry the weights inside that evaluations use."""
        with self._carrying(averaged=self.evaluates == "averaged"):
            yield

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds besides the model: `{"ema": {...}}` once there is an average."""
        return {"ema": self.state_dict()} if self.num_averaged else {}

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """Return the averaged parameters by name; empty before the first averaging."""
        if self._average is None or not self.num_averaged:
            return []
        with self.raw():
            return [(name, parameter.data) for name, parameter in self._average.module.named_parameters()]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged model's state by the model's own names: views, as of any state; empty before the first averaging."""
        if self._average is None or not self.num_averaged:
            return {}
        with self.raw():  # the tensors returned are views of the storages that the average has now
            return self._average.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from a saved average.

        Args:
            state: what `state_dict` gave.
            notes: what `describe` gave, and `last_step`, for a run that goes on within an epoch.
        Raises:
            ArgumentError: names or shapes are not those of the model.
        """
        if state:  # else it was saved before the first averaging
            average = self._prepare()
            with self.raw():
                try:
                    average.module.load_state_dict(state)
                except RuntimeError as error:
                    raise ArgumentError(f"The saved average does not fit the model. {error}") from error
            average.n_averaged.fill_(notes["num_averaged"])
        self.num_averaged, self._num_updates = notes["num_averaged"], notes["num_updates"]
        self.last_step = notes.get("last_step", -1)

    def describe(self) -> dict[str, object]:
        """Return what it is, how many weights went into it and how many updates there were, for the records."""
        return {"kind": self._rule.kind, "num_averaged": self.num_averaged, "num_updates": self._num_updates}

    def calls(self) -> dict[str, list[tuple[str, Any]]]:
        """Return what is done after an update, after an epoch's training and for an evaluation: for `Trainer.explain`."""
        name, every = self._rule.kind.upper(), self._rule.steps_between or self._rule.epochs_between
        often = "" if every == 1 else f", every {every} times"
        found: dict[str, list[tuple[str, Any]]] = {}
        if self._rule.steps_between is not None:
            found["update"] = [(f"update the {name} of the weights{often}", self.after_update)]
        else:
            found["epoch"] = [(f"update the {name} of the weights{often}", self.after_epoch)]
        if self._rule.evaluates_averaged:
            found["evaluation"] = [(f"let the model carry the {name}, once there is one", self.evaluating)]
        return found

    # -- inner works ------------------------------------------------------------------------------------------------

    def _prepare(self) -> AveragedModel:
        """Make the copy unless it is there, and pair its tensors with the model's."""
        if self._average is None:
            self._refuse_short_numbers()
            try:
                self._average = AveragedModel(self._model).requires_grad_(False)
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                raise ArgumentError(
                    f"{type(self._model).__name__} cannot be copied, which an average of its weights needs: {error}. "
                    f"Make it work with copy.deepcopy, or train without ema."
                ) from error
            for module in self._average.modules():
                if isinstance(module, nn.RNNBase):
                    module.flatten_parameters()  # one piece of memory, as cuDNN wants it; a copy is in several
        self._pair(self._average.module)
        return self._average

    def _pair(self, copy: nn.Module) -> None:
        mine, theirs = dict(self._model.named_parameters()), dict(copy.named_parameters())
        if {name: value.shape for name, value in mine.items()} != {name: value.shape for name, value in theirs.items()}:
            changed = sorted(
                name
                for name in mine.keys() | theirs.keys()
                if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
            )
            raise ArgumentError(
                f"The model has changed since its weights were first averaged: {', '.join(changed[:4])}. The average belongs to the "
                f"model as it was: make a new Trainer."
            )
        self._parameters = [(mine[name], theirs[name]) for name in mine]
        groups: dict[tuple[object, ...], tuple[list[Tensor], list[Tensor]]] = {}
        for raw, averaged in self._parameters:
            if raw.is_floating_point() or raw.is_complex():
                group = groups.setdefault((raw.device, raw.dtype), ([], []))
                group[0].append(averaged)
                group[1].append(raw)
        self._groups = list(groups.values())
        places = dict(_places(copy))
        self._buffers = [(place, places[name]) for name, place in _places(self._model) if name in places]
        averaged = [self._rule.averages_statistics and _is_statistic(place) for place, _ in self._buffers]
        self._statistics = [pair for pair, is_averaged in zip(self._buffers, averaged, strict=True) if is_averaged]
        self._copied = [pair for pair, is_averaged in zip(self._buffers, averaged, strict=True) if not is_averaged]

    @torch.no_grad()
    def _average_now(self) -> None:
        if self._is_applied:  # an evaluation loop was left, and its iterator is still alive
            with self.raw():
                self._average_now()
            return
        average = self._average if self._average is not None and self._parameters else self._prepare()
        if not self.num_averaged:
            # As AveragedModel does: the first average is the weights themselves.
            for raw, averaged in self._parameters:
                averaged.copy_(raw)
            _copy_buffers(self._buffers)
        else:
            function = self._rule.function(self.num_averaged)
            for averaged, raw in self._groups:
                function(averaged, raw, self.num_averaged)
            if self._statistics:
                function(
                    [target[key] for _, (target, key) in self._statistics],
                    [source[key] for (source, key), _ in self._statistics],
                    self.num_averaged,
                )
            _copy_buffers(self._copied)
        self.num_averaged += 1
        average.n_averaged += 1
        self.last_step = self._counts.steps_done

    @contextmanager
    def _carrying(self, *, averaged: bool) -> Iterator[None]:
        before = self._is_applied
        self._carry(averaged)
        try:
            yield
        finally:
            self._carry(before)

    def _carry(self, averaged: bool) -> None:
        """Exchange the storages, unless the model carries what is asked for."""
        if averaged == self._is_applied:
            return
        for raw, mean in self._parameters:
            raw.data, mean.data = mean.data, raw.data
        if averaged:
            self._swapped = [(place, place[0][place[1]], other[0][other[1]]) for place, other in self._buffers]
        for (owner, key), raw, mean in self._swapped:
            raw.data, mean.data = mean.data, raw.data
            owner[key] = raw  # evaluation may have assigned another tensor to the name
        self._is_applied = averaged
        torch.clear_autocast_cache()  # it may hold the other weights in half precision

    def _refuse_short_numbers(self) -> None:
        share = self._rule.weight_of_newest()
        for name, parameter in self._model.named_parameters():
            if parameter.is_floating_point() and 0 < share < torch.finfo(parameter.dtype).eps:
                dtype = str(parameter.dtype).removeprefix("torch.")
                raise ArgumentError(
                    f"The weight {name!r} is {dtype}, whose smallest step is {torch.finfo(parameter.dtype).eps:g} of a number. The average "
                    f"moves by {share:g} of the difference an update (1 - decay): rounding would lose it. Keep the weights in float32 and "
                    f'compute in half precision (precision="bf16"), or give a smaller decay.'
                )


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of what `torch.compile` and data parallelism put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _places(model: nn.Module) -> Iterator[tuple[str, _Place]]:
    """Yield where each buffer of a model is held, by name; a buffer with two names comes once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():  # pyright: ignore[reportPrivateUsage]  (the place, see `_Place`)
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield f"{prefix}.{key}", (module._buffers, key)  # pyright: ignore[reportPrivateUsage]


def _is_statistic(place: _Place) -> bool:
    owner, key = place
    return key.startswith("running_") and owner[key].is_floating_point()


def _copy_buffers(pairs: Iterable[tuple[_Place, _Place]]) -> None:
    targets, sources = [], []
    for (source, key), (target, _) in pairs:
        if target[key].shape == source[key].shape:
            targets.append(target[key])
            sources.append(source[key])
        else:  # a queue or a cache that grows
            target[key] = source[key].detach().clone()
    if targets:
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]  (as torch's optimizers do)
