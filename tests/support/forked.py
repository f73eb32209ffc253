"""The command line, and scripts, in processes of its own that begin with torch imported: a start takes 50 ms instead of seconds.

They are forked from a process that has imported and done nothing else. For tests that kill them; what an interpreter does at its start
and its end, a signal's exit code for example, is for `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess
    from pathlib import Path

# torch._dynamo: the first optimizer imports it.
_PRELOAD = ["velodrome.cli.main", "velodrome.cli.train", "velodrome.trainer", "torch._dynamo", "support.forked"]


def start_command_line(arguments: Sequence[str], folder: Path) -> BaseProcess:
    """Start `velodrome ARGUMENTS` in a folder, whose modules it can import; what it says is thrown away."""
    process = _context().Process(target=_run, args=(list(arguments), str(folder)))
    process.start()
    return process


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _run(arguments: list[str], folder: str) -> NoReturn:
    import torch

    from velodrome.cli.main import main

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    main(arguments)


class Script:
    """A script that was started, and the files that it says things into.

    Args:
        path: the script.
        arguments: its `sys.argv[1:]`.
        folder: where it runs, and where its two files are.
    """

    def __init__(self, path: Path, arguments: Sequence[str], folder: Path) -> None:
        number = len(list(folder.glob("said-*.out")))
        self.out, self.err = folder / f"said-{number}.out", folder / f"said-{number}.err"
        self.out.touch()
        files = (str(self.out), str(self.err))
        self._process = _context().Process(target=_run_script, args=(str(path), list(arguments), str(folder), files))
        self._process.start()
        self.pid = self._process.pid

    def wait_for(self, text: str) -> None:
        """Wait until it has said something."""
        while text not in self.out.read_text():
            assert self._process.is_alive(), self.err.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float) -> int | None:
        """Return its exit code; None after so many seconds."""
        self._process.join(timeout)
        return self._process.exitcode


def _run_script(path: str, arguments: list[str], folder: str, files: tuple[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    for number, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
