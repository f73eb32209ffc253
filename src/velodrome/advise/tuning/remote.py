"""A bench in a process of its own: its threads, its memory, and whatever it breaks.

The two speak in lines of JSON. What the recipe's code prints goes elsewhere, and Ctrl-C reaches only the process that tunes, which ends
the others; they end themselves when it is gone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any

from velodrome.advise.tuning.facts import BenchFacts, Round
from velodrome.advise.tuning.rehearsal import Rehearsal
from velodrome.errors import VelodromeError

if TYPE_CHECKING:
    from velodrome.advise.tuning.setup import Setup

__all__ = ["RemoteBench", "TrialError"]

_GRACE_S = 2.0


class TrialError(VelodromeError):
    """A configuration cannot run here, or does not come to an end in time; with the exit code of the error behind it."""

    def __init__(self, message: str, *, kind: str, code: int = VelodromeError.exit_code) -> None:
        super().__init__(message, kind=kind)
        self.exit_code = code  # pyright: ignore[reportAttributeAccessIssue, reportIncompatibleVariableOverride]


class RemoteBench:
    """A configuration in another process.

    Args:
        setup: what to run.
        timeout_s: how long each answer may take.
    """

    def __init__(self, setup: Setup, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.name = f"the trial of {setup.change}" if setup.change.fields else "the trial of the recipe as it is"
        """for messages"""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._unread = b""
        # What this process can import its children can: a recipe may name code that stands anywhere on this path.
        path = os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in ["", *sys.path]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "velodrome.advise.tuning.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
        self._setup = {"recipe": setup.recipe, "overrides": setup.all_overrides}
        self._send("start", setup=self._setup)  # two that are made one after the other get ready side by side

    def start(self) -> BenchFacts:
        """Build it and train the first steps."""
        return BenchFacts(**self._answer())

    def round(self, seconds: float) -> Round:
        """Train for about so long."""
        return Round(**self._ask("round", seconds=seconds))

    def rehearse(self, *, steps: int, val_samples: int | None) -> Rehearsal:
        """See `rehearsal.rehearse`."""
        return Rehearsal(**self._ask("rehearse", setup=self._setup, steps=steps, val_samples=val_samples))

    def close(self) -> None:
        """End the process, and those that it started."""
        import signal

        process = self._process
        if process.poll() is None:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, self._errors):
            with suppress(OSError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        self._send(call, **arguments)
        return self._answer()

    def _send(self, call: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone: reading says why
            self._process.stdin.write(json.dumps({"call": call, **arguments}).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        answer = json.loads(self._read_line())
        if "error" in answer:
            message = f"{self.name[0].upper()}{self.name[1:]} failed. {answer['error']}"
            raise TrialError(message, kind=answer["kind"], code=answer["exit_code"])
        return answer["answer"]

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        number, deadline = self._process.stdout.fileno(), perf_counter() + self._timeout_s
        while b"\n" not in self._unread:
            left = deadline - perf_counter()
            if left <= 0 or not select.select([number], [], [], left)[0]:
                raise TrialError(
                    f"{self.name[0].upper()}{self.name[1:]} was not done after {self._timeout_s:.0f} s, and was ended. Give it more --minutes, "
                    f"or see with `velodrome train` what takes so long.",
                    kind="timeout",
                )
            part = os.read(number, 1 << 16)
            if not part:
                raise TrialError(self._why_it_ended(), kind="ended")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _why_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        code = self._process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        said = f"; the last that it said: {lines[-1]}" if lines else ""
        return f"{self.name[0].upper()}{self.name[1:]} ended, its process {how}{said}."


def encode(answer: BenchFacts | Round | Rehearsal) -> str:
    """Return an answer as a line."""
    return json.dumps({"answer": asdict(answer)})
