"""The command line in processes of its own that begin with torch imported: a start takes 50 ms instead of seconds.

They are forked from a process that has imported and done nothing else. For tests that kill them; what an interpreter does at its start
and its end, a signal's exit code for example, is for `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess
    from pathlib import Path

# torch._dynamo: the first optimizer imports it.
_PRELOAD = ["velodrome.cli.main", "velodrome.cli.train", "velodrome.trainer", "torch._dynamo", "support.forked"]


def start_command_line(arguments: Sequence[str], folder: Path) -> BaseProcess:
    """Start `velodrome ARGUMENTS` in a folder, whose modules it can import; what it says is thrown away."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    process = context.Process(target=_run, args=(list(arguments), str(folder)))
    process.start()
    return process


def _run(arguments: list[str], folder: str) -> NoReturn:
    import torch

    from velodrome.cli.main import main

    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    main(arguments)
