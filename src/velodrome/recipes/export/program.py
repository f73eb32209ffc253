"""A model as a program of torch.export: traced in eval mode for any number of samples, saved as a .pt2 file, read back."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TYPE_CHECKING, Any

import torch

from velodrome.errors import RefusedError
from velodrome.recipes.export.comparing import flatten, is_plain, to_plain
from velodrome.recipes.export.metadata import METADATA_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from velodrome.recipes.export.example import Example

_OWN_OPERATORS = {"aten", "prim", "prims", "_operator", "higher_order"}

__all__ = ["first_reason", "foreign_operators", "quiet_torch", "read_program", "save_program", "trace"]


def trace(model: nn.Module, example: Example, *, instead: str) -> ExportedProgram:
    """Return the program of a model in eval mode, which takes any number of samples.

    It holds neither the example, which is somebody's data, nor the file names and lines of the code that was traced.

    Args:
        model: on the CPU, in eval mode.
        example: of several samples.
        instead: a command that needs no program.
    Raises:
        RefusedError: the model cannot be traced, or only for this very number of samples; says the first reason that torch gives.
    """
    batch = torch.export.Dim("batch")
    opened = {key: {0: batch} if key in example.batched else None for key in example.inputs}
    args = [spec for key, spec in opened.items() if isinstance(key, int)]
    named = {key: spec for key, spec in opened.items() if isinstance(key, str)}
    shapes = dict(inspect.signature(model.forward).bind(*args, **named).arguments)
    try:
        with _plain_outputs(model, example), torch.no_grad():
            program = _export(model, example, shapes)
    except (
        Exception
    ) as error:  # torch has no common class for what it cannot trace, and the model's own errors come out, too
        raise RefusedError(
            f"This {type(model).__name__} cannot be exported as a program that takes any number of samples: {first_reason(error)} "
            f"Its weights can be exported: {instead}"
        ) from error
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def foreign_operators(program: ExportedProgram) -> list[str]:
    """Return the operators in a program that are not torch's own: whoever runs it imports the package that registers them."""
    found = set()
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _OWN_OPERATORS:
                found.add(str(node.target))
    return sorted(found)


def save_program(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Write a .pt2 archive, with the metadata as an extra file in it.

    Raises:
        OSError: the disk is full, say. torch's own writer would end the process there, so it writes into memory.
    """
    archive = io.BytesIO()
    with quiet_torch():
        torch.export.save(program, archive, extra_files={METADATA_NAME: metadata})
    path.write_bytes(archive.getbuffer())


def read_program(path: Path) -> tuple[Callable[[Example], dict[str, Tensor]], str]:
    """Return what runs a .pt2 archive, and the metadata in it."""
    extra: dict[str, Any] = {METADATA_NAME: ""}
    with quiet_torch():
        module = torch.export.load(path, extra_files=extra).module()
    return lambda example: flatten(example.run(module)), extra[METADATA_NAME]


def first_reason(error: Exception) -> str:
    """Return one sentence of what torch says, and the line of the model's code that it is about.

    >>> first_reason(RuntimeError("cannot trace this\\nFor more information, run with TORCH_LOGS"))
    'cannot trace this.'
    """
    text = str(error)
    bullets = re.findall(r"^\s*- (.+)$", text, re.MULTILINE) if text.startswith("Constraints violated") else []
    line = bullets[0] if bullets else next((line.strip() for line in text.splitlines() if line.strip()), "")
    sentence = re.split(r"(?<=[a-z0-9)])\.\s", line or type(error).__name__, maxsplit=1)[0].rstrip(". ")
    place = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(\S.*)', text)
    if place:
        file, number, code = place[-1]
        sentence += f" (line {number} of {file.replace(chr(92), '/').rpartition('/')[2]}: {code.strip()})"
    return sentence[:400] + "."


def _export(model: nn.Module, example: Example, shapes: dict[str, Any]) -> ExportedProgram:
    def attempt(*, strict: bool) -> ExportedProgram:
        with quiet_torch():
            return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes, strict=strict)

    try:
        return attempt(strict=False)
    except Exception:
        # Reading the code, rather than running it, takes longer, and understands some that asks for the number itself: `len(x)`.
        with suppress(Exception):
            return attempt(strict=True)
        raise


@contextmanager
def _plain_outputs(model: nn.Module, example: Example) -> Iterator[None]:
    """Let the model return dicts, lists and tuples, instead of a class of some package's that would be wanted where the file is loaded."""
    if is_plain(example.run(model)):
        yield
        return
    hook = model.register_forward_hook(lambda module, args, output: to_plain(output))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep what torch logs, warns of and prints to itself: it is for those who work on torch, and what comes out is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # a graph that breaks off is printed there
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
