"""The proof of exact resume on somebody's own training: a run that was killed and went on against one that nothing disturbed.

```text
straight    the command, from its beginning to its end
killed      the same command; SIGKILL to it and its workers, inside an epoch, after a checkpoint
resumed     the same command again
compared    every checkpoint that both have, every row, the best epoch: the first state that differs is named
```

All in fresh processes and in a folder that goes away again. The kill comes from outside, as that of a system that is out of memory
does: nothing in the training knows of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.checkpoint.scan import find_checkpoints
from velodrome.errors import RecipeError, RefusedError, VelodromeError
from velodrome.linux import read_family
from velodrome.recorded_runs.state_comparison import StateComparison, compare_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Proof", "likely_causes", "prove_resume"]

_KILLS_TRIED = 3
_POLL_S = 0.001
_NO_REASON = "it gave no reason"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was proved, or what stands against it.

    Args:
        steps: updates of the straight run.
        resumed_from: the step of the checkpoint that the killed run went on from.
        comparison: of the two runs.
        warnings: what the resumed run said about itself.
        seconds: that all of it took.
    """

    steps: int
    resumed_from: int
    comparison: StateComparison
    warnings: tuple[str, ...]
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs."""
        return not self.comparison.differences

    @property
    def differs_before_the_kill(self) -> bool:
        """Whether the two runs are different ones already before anything was resumed."""
        step = self.comparison.step
        return step is not None and step <= self.resumed_from


def prove_resume(
    command: Callable[[Path, str], Sequence[str]],
    *,
    steps_per_epoch: int | None = None,
    say: Callable[[str], Any] = print,
) -> Proof:
    """Run a training straight, then killed and resumed, and compare the two.

    Args:
        command: gives the command line of a run of a name in a folder that holds runs. It must begin the run, or go on with it where it
            is there, and save every few steps.
        steps_per_epoch: the kill avoids the end of an epoch; None where it is not known.
        say: gets lines about how far the proof is.
    Raises:
        RecipeError, RefusedError, VelodromeError: a run failed, with its own message; or each run ended before it could be killed.
        CheckpointError: the runs left no checkpoints to compare.
    """
    if not hasattr(signal, "SIGKILL"):
        raise RefusedError(
            f"A process cannot be killed by SIGKILL on {sys.platform}. The proof needs that; make it on Linux or macOS."
        )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="velodrome-proof-") as name:
        folder = Path(name)
        say("1 of 3: a run that nothing disturbs ...")
        straight = folder / "straight"
        _run(command(folder, "straight"), what="The straight run")
        steps = _steps_done(straight)
        say(f"2 of 3: the same run, to be killed after about {steps // 2} of its {steps} steps ...")
        killed, resumed_from = _run_and_kill(command, folder, steps=steps, steps_per_epoch=steps_per_epoch)
        say(f"3 of 3: the same command again, from the checkpoint of step {resumed_from} ...")
        _run(command(folder, killed.name), what="The run that was resumed")
        comparison = compare_runs(straight, killed)
        warnings = _warnings_of(killed)
    return Proof(
        steps=steps,
        resumed_from=resumed_from,
        comparison=comparison,
        warnings=warnings,
        seconds=time.perf_counter() - began,
    )


def likely_causes(proof: Proof) -> list[str]:
    """Return what usually makes the first state differ that does, the likeliest first; nothing for a proof that holds."""
    differences = proof.comparison.differences
    if not differences:
        return []
    if proof.differs_before_the_kill:
        return [
            "numbers from a generator that no seed reaches: numpy.random.default_rng(), random.Random(), torch.Generator() without a "
            "seed, os.urandom; give it a seed that follows from the sample's index or the recipe's seed",
            "the order of a set, of a folder's files, or of hash(); sort it",
            "the time, the process id or a temporary path among the inputs",
            "kernels that do not add in the same order each time: on a GPU try train.deterministic=true where the recipe has it; on a CPU "
            "OMP_NUM_THREADS=1",
        ]
    kinds = {each.kind for each in differences}
    if "random state" in kinds:
        return [
            "something draws random numbers when a run begins and not when it goes on, or the other way round: code at import, in the "
            "data's __iter__, in a callback's on_fit_start",
            "random augmentation in worker processes, which begin anew in the middle of an epoch; draw from a generator that is made from "
            "the sample's index instead",
            "an iterable that counts its own passes: give it state_dict() and load_state_dict()",
        ]
    if kinds <= {"row", "metric sums", "best epoch", "callback"}:
        return [
            "a metric object without state_dict(): it counts only what comes after the resume",
            "a callback that remembers something: give it state_dict() and load_state_dict()",
        ]
    return [
        "the model, the loss or a layer keeps a number or a list of its own that decides what it computes: make it a buffer "
        "(self.register_buffer), or keep it in get_extra_state()",
        "the dataset or a transform remembers what came before: a counter, a cache, a generator of its own; make a sample follow from its "
        "index alone, or give the loader state_dict() and load_state_dict()",
        "a callback that changes weights or learning rates and has no state_dict()",
        "kernels that do not add in the same order each time, which most runs of the straight half happened not to show",
    ]


def _run_and_kill(
    command: Callable[[Path, str], Sequence[str]], folder: Path, *, steps: int, steps_per_epoch: int | None
) -> tuple[Path, int]:
    """Begin the run and kill it once a checkpoint past its half is there; return its folder and the checkpoint's step."""
    for attempt in range(_KILLS_TRIED):
        run_dir = folder / f"killed-{attempt + 1}"
        least = steps // 2 ** (attempt + 1)  # a run that was too quick is killed earlier the next time

        def is_reached(run_dir: Path = run_dir, least: int = least) -> bool:
            step = _newest_step(run_dir)
            at_end = steps_per_epoch is not None and steps_per_epoch > 1 and step % steps_per_epoch == 0
            return step >= max(least, 1) and (not at_end or step > least + (steps_per_epoch or 0))

        with _started(command(folder, run_dir.name), folder) as (process, output):
            while process.poll() is None and not is_reached():
                time.sleep(_POLL_S)
            was_killed = process.poll() is None
            _kill(process)
            if not was_killed and process.returncode:
                raise _failure("The run that was to be killed", process.returncode, output)
        if was_killed and _newest_step(run_dir) < steps:
            return run_dir, _newest_step(run_dir)
    raise VelodromeError(
        f"The run of {steps} steps ended {_KILLS_TRIED} times before it could be killed. A proof needs one that lasts longer: give more "
        f"steps with --steps {10 * steps}."
    )


def _run(command: Sequence[str], *, what: str) -> None:
    with tempfile.TemporaryDirectory(prefix="velodrome-proof-") as folder, _started(command, Path(folder)) as started:
        process, output = started
        process.wait()
        if process.returncode:
            raise _failure(what, process.returncode, output)


@contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a command as the head of a group of processes; whatever happens, none of the group is left behind."""
    output = folder / "output"
    # What this process can import its children can: a recipe may name code that stands anywhere on this path.
    path = os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in ["", *sys.path]))
    with output.open("wb") as stdout, (folder / "errors").open("wb") as stderr:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    try:
        yield process, output
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started; nothing where it has ended by itself.

    The processes of `--processes` are no members of its group, as torch's launcher gives each a session of its own.
    """
    if process.poll() is None:  # it is ours until it was waited for, so that its number is nobody else's
        family = read_family(process.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in family:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each.pid, signal.SIGKILL)
    process.wait()


def _failure(what: str, code: int, output: Path) -> VelodromeError:
    """Return the error of a run, with its own message and of the same exit code."""
    message = _NO_REASON
    with suppress(OSError, ValueError, KeyError, TypeError):
        message = json.loads(output.read_text("utf-8", "replace"))["error"]["message"]
    if message is _NO_REASON:
        with suppress(OSError):
            lines = output.with_name("errors").read_text("utf-8", "replace").strip().splitlines()
            message = lines[-1] if lines else message
    if code == RecipeError.exit_code:
        return RecipeError(message, problems=())
    how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
    text = f"{what} ended {how}: {message}"
    return RefusedError(text) if code == RefusedError.exit_code else VelodromeError(text)


def _newest_step(run_dir: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 where there is none yet."""
    return max((each.step for each in find_checkpoints(run_dir / "checkpoints") if not each.problem), default=0)


def _steps_done(run_dir: Path) -> int:
    record = json.loads((run_dir / "run.json").read_text("utf-8"))
    return int(record["progress"]["steps_done"])


def _warnings_of(run_dir: Path) -> tuple[str, ...]:
    """Return the warnings in a run's log, each once."""
    try:
        lines = (run_dir / "log.txt").read_text("utf-8").splitlines()
    except OSError:
        return ()
    return tuple(dict.fromkeys(line.partition("warning: ")[2] for line in lines if "warning: " in line))
