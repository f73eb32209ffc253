"""The process behind a `RemoteBench`: reads calls from its input, answers each with one line."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from velodrome.advise.tuning.setup import Setup

__all__ = ["main"]


def main() -> None:
    """Answer calls until the input ends, or the process that asks is gone."""
    from velodrome.advise.tuning.orphans import end_without

    end_without(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the recipe's code prints is no answer
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)


def serve(calls: Iterable[str], answers: Any) -> None:  # Any: a text stream
    """Answer each call with one line; an error is an answer too."""
    from velodrome.advise.tuning.bench import Bench
    from velodrome.advise.tuning.rehearsal import rehearse
    from velodrome.advise.tuning.remote import encode

    bench: Any = None
    for line in calls:
        call = json.loads(line)
        try:
            match call["call"]:
                case "start":
                    bench = Bench(_setup(call["setup"]))
                    answer = encode(bench.start())
                case "round":
                    answer = encode(bench.round(call["seconds"]))
                case _:
                    answer = encode(
                        rehearse(_setup(call["setup"]), steps=call["steps"], val_samples=call["val_samples"])
                    )
        except Exception as error:  # whatever it is, the process that tunes has to know, and to go on without this one
            kind, code = type(error).__name__, getattr(error, "exit_code", 1)
            answer = json.dumps({"error": _describe(error), "kind": kind, "exit_code": code})
        gc.collect()
        answers.write(answer + "\n")
        answers.flush()


def _describe(error: Exception) -> str:
    """Return what happened, and where in the recipe's code, if it was there."""
    from velodrome.errors import VelodromeError

    message = error.message if isinstance(error, VelodromeError) else f"{type(error).__name__}: {error}"
    origin: BaseException = error
    while origin.__cause__ is not None:
        origin = origin.__cause__
    ours = str(Path(__file__).parents[2])
    for frame in reversed(traceback.extract_tb(origin.__traceback__)):
        if not frame.filename.startswith((ours, "<")) and "site-packages" not in frame.filename:
            return f"{message.rstrip('.')} ({frame.filename}:{frame.lineno})."
    return message


def _setup(given: dict[str, Any]) -> Setup:
    from velodrome.advise.tuning.setup import Setup

    return Setup(recipe=given["recipe"], overrides=tuple(given["overrides"]))


if __name__ == "__main__":
    main()
