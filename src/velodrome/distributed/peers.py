"""The other processes of a world: are they alive, how far are they, and what did they say before they went?

Each process writes into the store that torch's rendezvous made: who it is, a heartbeat every second, and how it left. When a
collective fails, the others' notes tell why: an error left behind, a process that is gone, or one that is late.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from velodrome.errors import WorldError
from velodrome.linux import boot_id, pid_space, read_process

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Peers"]

_BEAT_S = 1.0
_SILENT_S = 5.0
"""without a heartbeat for so long a process whose collective failed counts as gone"""
_ABORT_S = 15.0
"""without a heartbeat for so long the collectives of NCCL, which notices nothing itself, are given up"""
_POLL_S = 0.05
_GRACE_S = 5.0
_MAX_CHARACTERS = 2000


class Peers:
    """What is known about the other processes.

    Args:
        rank, size: of this process, of the world.
        abort: makes collectives under way fail, where a lost peer does not do so by itself; None where it does.
    """

    def __init__(self, rank: int, size: int, *, abort: Callable[[], None] | None) -> None:
        from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
        from torch.distributed.distributed_c10d import _get_default_store

        self.num_collectives = 0
        self.noted: BaseException | None = None
        """the error that the others are told when this process ends now"""
        self._rank = rank
        self._others = [other for other in range(size) if other != rank]
        self._abort = abort
        store: Any = _get_default_store()  # Any: the stubs do not know clone()
        self._store = PrefixStore("velodrome", store)
        # A connection of its own: a heartbeat shall not wait for the main thread's use of the store.
        self._beat_store = PrefixStore("velodrome", store.clone())
        self._store.set(f"who/{rank}", json.dumps(_own_identity()))
        self._identities: dict[int, dict[str, Any]] = {}
        self._over = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._beat_on, name="velodrome-heartbeat", daemon=True)
        self._thread.start()

    def explain(self, error: BaseException, what: str) -> WorldError:
        """Return what a failed collective means: who is gone, failed or late.

        Cost: a few milliseconds where a process on this machine is gone or left a message; at most 7 seconds.
        """
        _hold_off_termination()
        first_line = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        try:
            found = self._find_fault()
        except RuntimeError as lost:
            found = (
                None,
                f"The store of the process group cannot be reached either ({_first_line(lost)}): its process is gone, which is rank 0 or the launcher",
            )
        rank, fact = found
        message = f"{fact}. Rank {self._rank} cannot go on alone; {what} failed. Look at the output of the process named here, then start the run again. [{first_line}]"
        return WorldError(message, rank=rank)

    def close(self) -> None:
        """Tell the others how this process leaves, and stop the heartbeat."""
        self._over.set()
        error, key, note = self.noted, f"left/{self._rank}", "{}"
        if error is not None and not isinstance(error, SystemExit):
            key = f"error/{self._rank}"
            culprit = error.fields.get("rank") if isinstance(error, WorldError) else None
            text = f"{type(error).__name__}: {error}"[:_MAX_CHARACTERS]
            note = json.dumps({"text": text, "culprit": culprit if culprit != self._rank else None})
        with suppress(RuntimeError):  # the store went first
            self._store.set(key, note)
        self._thread.join(timeout=2 * _BEAT_S)

    # -- whose fault it is ------------------------------------------------------------------------------------------

    def _find_fault(self) -> tuple[int | None, str]:
        """Return the rank at fault, where one can be named, and what happened to it."""
        first_beats = {other: self._read(f"beat/{other}") for other in self._others}
        end = monotonic() + _SILENT_S
        while True:
            for other in self._others:
                note = self._read(f"error/{other}")
                if note is not None:
                    told = json.loads(note)
                    if told["culprit"] is None:
                        return other, f"Rank {other} failed: {told['text']}"
            gone = [other for other in self._others if self._is_gone(other)]
            # A process that was told the fault by its own failure, and left, is gone too: it is not the first one.
            silent = [other for other in gone if self._read(f"error/{other}") is None]
            left = [other for other in silent if self._read(f"left/{other}") is not None]
            killed = [other for other in silent if other not in left]
            if killed:
                names = " and ".join(f"rank {other} (pid {self._identity(other).get('pid')})" for other in killed)
                verb = "is" if len(killed) == 1 else "are"
                return killed[0], f"R{names[1:]} {verb} gone without a message: killed, out of memory or crashed"
            if left:
                return (
                    left[0],
                    f"Rank {left[0]} ended its program while others still need it: all processes must make the same calls",
                )
            if monotonic() >= end:
                break
            sleep(_POLL_S)
        secondary = [note for other in self._others if (note := self._read(f"error/{other}")) is not None]
        if secondary:
            told = json.loads(secondary[0])
            return told["culprit"], f"Another process reported: {told['text']}"
        silent = [other for other in self._others if self._read(f"beat/{other}") == first_beats[other]]
        if silent:
            return (
                silent[0],
                f"Rank {silent[0]} has given no sign of life for {_SILENT_S:.0f} seconds: its machine or its network is gone",
            )
        behind = self._behind()
        if behind is not None:
            other, count = behind
            return (
                other,
                f"Rank {other} is alive, but has only come to exchange {count} of {self.num_collectives}: all processes must make the same calls",
            )
        return (
            None,
            "Every process is alive, but they did not agree on what to exchange: they must run the same code on the same model",
        )

    def _behind(self) -> tuple[int, int] | None:
        """Return the process that has begun the fewest collectives, when it is behind this one."""
        counts = []
        for other in self._others:
            beat = self._read(f"beat/{other}")
            if beat is not None:
                counts.append((int(beat.split()[1]), other))
        if not counts or min(counts)[0] >= self.num_collectives:
            return None
        count, other = min(counts)
        return other, count

    def _is_gone(self, other: int) -> bool:
        """Return whether the process is known not to run any more; one on another machine is not known about."""
        identity = self._identity(other)
        if not identity or identity["machine"] != _machine():
            return False
        return not _is_running(int(identity["pid"]))

    def _identity(self, other: int) -> dict[str, Any]:
        if other not in self._identities:
            note = self._read(f"who/{other}")
            self._identities[other] = {} if note is None else json.loads(note)
        return self._identities[other]

    def _read(self, key: str) -> str | None:
        """Return a note from the store, or None; waits for nobody to write it."""
        return self._store.get(key).decode() if self._store.check([key]) else None

    # -- heartbeat --------------------------------------------------------------------------------------------------

    def _beat(self, number: int) -> None:
        self._beat_store.set(f"beat/{self._rank}", f"{number} {self.num_collectives}")

    def _beat_on(self) -> None:
        """Give a sign of life every second; where lost peers are not noticed otherwise, look for theirs."""
        seen: dict[int, tuple[bytes, float]] = {}
        number = 0
        while not self._over.wait(_BEAT_S):
            number += 1
            try:
                self._beat(number)
                if self._abort is not None and self._has_lost_a_peer(seen):
                    self._abort()
                    self._abort = None
            except RuntimeError:
                return  # the store is gone; the next collective will say so

    def _has_lost_a_peer(self, seen: dict[int, tuple[bytes, float]]) -> bool:
        now = monotonic()
        for other in self._others:
            if self._beat_store.check([f"error/{other}"]):
                return True
            if self._beat_store.check([f"left/{other}"]) or not self._beat_store.check([f"beat/{other}"]):
                continue
            beat = self._beat_store.get(f"beat/{other}")
            if other not in seen or seen[other][0] != beat:
                seen[other] = beat, now
            elif now - seen[other][1] > _ABORT_S:
                return True
        return False


def _own_identity() -> dict[str, Any]:
    return {"pid": os.getpid(), "machine": _machine()}


def _machine() -> str:
    """Return what tells apart places whose process ids mean different processes."""
    return f"{socket.gethostname()} {boot_id()} {pid_space()}"


def _is_running(pid: int) -> bool:
    """Return whether a process runs; one that ended, and that nobody has asked for its exit code, does not."""
    process = read_process(pid)
    if process is not None:
        return process.is_running
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _hold_off_termination() -> None:
    """Put off SIGTERM by five seconds: the launcher sends it as soon as it sees the dead process, before the error is told."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        return  # a handler of the user's own knows better

    def terminate_later(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        timer = threading.Timer(_GRACE_S, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, terminate_later)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
