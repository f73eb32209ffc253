"""One checkpoint of several processes: all take part, rank 0 writes.

```text
agreed      at a log point: that a save is due, and that every process is inside of its training loop
met         when the batch is over: whether rank 0 can write, and whether a process has left its loop meanwhile
gathered    what each process has of its own
written     by rank 0; a disk that fails is its affair, nobody waits
```

A process whose data are used up takes part in the updates of the others and does not know where their batches end. A save that is
due then waits for the end of the training data, where all meet. So does one that a process left its loop before.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from velodrome.checkpoint.nested import split
from velodrome.errors import CheckpointError
from velodrome.resume.own_state import OwnState, collect_own
from velodrome.resume.run_state import callback_states

if TYPE_CHECKING:
    from velodrome.run.run import Run

__all__ = ["SavingTogether"]


class SavingTogether:
    """Gathers what each process has of its own.

    Args:
        run: of this process.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.waits = False
        """a save is due, and is made where all processes meet: at the end of the training data"""
        self.inside: list[bool] = []
        """by rank: whether a process was in the loop over its batches at the last log point"""
        self._parts: list[OwnState | str] = []

    def due(self) -> bool:
        """Return whether a save that has just become due can be made when the batch is over; else it waits."""
        self.waits = not all(self.inside)
        if self.waits and any(self.inside):
            self._run.notices.warn_all(
                "A checkpoint is due while a process has no training data left: it is made when nobody has any. Give all processes data "
                "of equal length, or let velodrome.DataLoader divide them."
            )
        return not self.waits

    def meet(self, *, can_save: bool) -> bool:
        """Gather the parts of a checkpoint; every process calls this. Return whether this one is to write it now.

        Args:
            can_save: this process can; of rank 0 it is believed.
        Cost: two exchanges of objects.
        """
        run = self._run
        self.waits, self._parts = False, []
        states, digest = _callbacks(run)
        told = run.consensus.agree({}, can_save=can_save, has_left=run.position.is_in_batch, callbacks=digest).wishes
        if any(each["has_left"] for each in told):
            self.waits = True
            return False
        if not told[0]["can_save"]:
            return False
        try:
            own: OwnState | str = collect_own(run, callbacks=states if digest != told[0]["callbacks"] else {}).to_cpu()
        except CheckpointError as error:
            own = error.message
        # Told as a pair: that one has a state and another a reason why not is no sign that they are at different places.
        self._parts = [part for (part,) in run.world.gather((own,))]
        return run.world.is_main

    @property
    def is_made(self) -> bool:
        """Whether what all processes have was gathered, and rank 0 writes it."""
        return bool(self._parts)

    def take(self) -> list[OwnState]:
        """Return what `meet` has gathered, once.

        Raises:
            CheckpointError: a process has a state that no checkpoint can hold; or they did not meet.
        """
        parts, self._parts = self._parts, []
        for rank, part in enumerate(parts):
            if isinstance(part, str):
                raise CheckpointError(f"{part} [rank {rank}]")
        if not parts:
            raise CheckpointError("the loop was left, and the other processes did not save their part")
        return [part for part in parts if not isinstance(part, str)]


def _callbacks(run: Run) -> tuple[dict[str, Any], str]:
    """Return the states of this process's callbacks, and a digest that is another one where they are."""
    noted = run.position.callbacks  # within an evaluation, those before it
    states, tensors = callback_states(run) if noted is None else dict(noted), {}
    if not states:
        return states, ""
    try:
        plain = json.dumps(split(states, tensors, place="callbacks"), sort_keys=True)
    except CheckpointError:
        return states, "no checkpoint can hold them"  # rank 0 says so
    digest = hashlib.sha256(plain.encode())
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()  # SYNC: a checkpoint of several processes
        digest.update(f"{name} {tuple(host.shape)} {host.dtype}".encode())
        if host.numel():
            digest.update(host.view(-1).view(torch.uint8).numpy().tobytes())
    return states, digest.hexdigest()
