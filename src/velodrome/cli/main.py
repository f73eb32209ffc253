"""The `velodrome` command: its verbs, its exit codes, and how errors are shown.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | training failed, or an unexpected error (its traceback is shown) |
| 2 | a recipe, argument, option or the data is wrong |
| 3 | refused, because going on could lose something |
| 130 | interrupted (SIGINT); a run under way was saved |
| 143 | told to end (SIGTERM, SIGUSR1) or out of time (--stop-after, the job's end); a run under way was saved |
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import velodrome
from velodrome.cli import (
    compare,
    data,
    doctor,
    eject,
    evaluate,
    export,
    import_weights,
    init,
    predict,
    recipes,
    replay,
    report,
    resume,
    runs,
    train,
    tune,
    verify,
)
from velodrome.cli.processes import RankError, is_launched, is_main
from velodrome.cli.screen import Screen, silence, to_json, write_quietly
from velodrome.cli.stopping import StoppedRun
from velodrome.errors import VelodromeError
from velodrome.stopping.interruption import Terminated

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = 2
INTERRUPTED = 130
_FLAGS = {'(weights="last")': "(--weights last)", "accept_changes=True": "velodrome resume --accept-changes"}
"""arguments that errors name, and what they are called here"""
# typer shows only the youngest of click's errors: BadParameter < UsageError < ClickException. It carries click along
# since 0.20 or so, therefore the family is taken from here and not from click.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]

# Plain help text: it reads the same in a terminal, a file and an ASCII locale, and costs no import of rich.
app = typer.Typer(
    name="velodrome",
    help="Train PyTorch models from recipes: fast, exact, and readable.",
    epilog="Start with: velodrome train fashion-mnist-mlp",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("resume")(resume.resume)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("replay")(replay.replay)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)
app.command("eject")(eject.eject)
app.add_typer(verify.app, name="verify")
app.command("runs")(runs.runs)
app.command("show")(runs.show)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("tune")(tune.tune)
app.command("import")(import_weights.import_weights)


def _show_version(wanted: bool) -> None:
    if wanted:
        Screen().answer(f"velodrome {velodrome.__version__}", {})
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        Screen(answer_matters=False).answer(context.get_help(), {})
        raise typer.Exit(_USAGE)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _occupy_closed_streams()
    _never_fail_on_a_letter()
    code = run(given)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            silence(stream)  # what mattered has been flushed, and judged, before
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors on purpose are one message on stderr."""
    # Looked up in the raw arguments, because a usage error comes before any option has been read.
    as_json = "--json" in arguments
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        code = app(args=list(arguments), prog_name="velodrome", standalone_mode=False)
        if code == INTERRUPTED:  # newer versions of typer turn the exception into this number, older ones into Abort
            raise KeyboardInterrupt
    except StoppedRun as stopped:
        return _show_stopped(stopped, as_json)
    except VelodromeError as error:
        if verbose:
            _print_traceback(error)
        fields: dict[str, object] = {}
        problems = error.fields.get("problems")
        if isinstance(problems, tuple) and problems:
            fields["problems"] = [str(problem) for problem in problems]
        message = error.message
        for argument, flag in _FLAGS.items():
            message = message.replace(argument, flag)
        kind = error.kind if isinstance(error, RankError) else type(error).__name__
        if kind == "Stopped" and not as_json:
            return error.exit_code  # the process that ended has said it
        _show_error(kind, message, error.exit_code, as_json, **fields)
        return error.exit_code
    except _USAGE_ERROR as error:
        usage: Any = error  # one of click's, which typer does not export
        message = usage.format_message()
        context = getattr(usage, "ctx", None)
        hint = "" if context is None else f"\nTry: {context.command_path} --help"
        _show_error("UsageError", f"{message}{hint}" if message else "A command is missing.", _USAGE, as_json)
        return _USAGE
    except (KeyboardInterrupt, typer.Abort):
        _show_error("Interrupted", "Interrupted.", INTERRUPTED, as_json)
        return INTERRUPTED
    except Terminated as leaving:  # while the recipe was tried out
        return _show_stopped(StoppedRun("Nothing was trained.", code=int(str(leaving.code))), as_json)
    except SystemExit as leaving:  # click's way out when a help text meets a closed pipe; or the user's code
        if isinstance(leaving.__context__, BrokenPipeError):
            silence(sys.stdout)
            return 0
        message = (
            f"The program was left by sys.exit({leaving.code!r}) in code of your own, before {arguments[0]} was done."
        )
        _show_error("SystemExit", message, 1, as_json)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and _is_from_echo(error):  # a help text
            silence(sys.stdout)
            write_quietly(f"Error: The answer could not be written: {error.strerror}.", sys.stderr)
            return 1
        _print_traceback(error)
        if as_json or is_launched():
            _show_error(type(error).__name__, str(error), 1, as_json)
        return 1
    return code if isinstance(code, int) else 0


def _show_stopped(stopped: StoppedRun, as_json: bool) -> int:
    """Say how to go on, at once and from one process; the launcher of several ones learns the exit code."""
    if is_main() and not as_json:
        write_quietly(stopped.message, sys.stderr)
    if is_launched() or (is_main() and as_json):
        _show_error("Stopped", stopped.message, stopped.exit_code, as_json, **stopped.fields)
    return stopped.exit_code


def _show_error(kind: str, message: str, exit_code: int, as_json: bool, **fields: object) -> None:
    if is_launched():
        from velodrome.distributed.launch import leave_failure

        if leave_failure(kind, message, exit_code, **fields):
            return
    if as_json:
        error = {"type": kind, "message": message, "exit_code": exit_code, **fields}
        write_quietly(to_json({"error": error}), sys.stdout)
    else:
        write_quietly(message if kind == "Interrupted" else f"Error: {message}", sys.stderr)


def _print_traceback(error: Exception) -> None:
    """Print the traceback from the verb on: the ten frames of option parsing above it explain nothing."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None and not _is_a_verb(frames.tb_frame.f_globals):
        frames = frames.tb_next
    write_quietly("".join(traceback.format_exception(type(error), error, frames)).rstrip(), sys.stderr)


def _is_a_verb(module: dict[str, object]) -> bool:
    name = str(module.get("__name__"))
    return name.startswith("velodrome.cli.") and name not in (__name__, "velodrome.cli.main")


def _never_fail_on_a_letter() -> None:
    """Escape what the terminal's encoding cannot show (LANG=C), instead of dying on it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _occupy_closed_streams() -> None:
    """Open nowhere in the place of a closed stdin, stdout or stderr: the next file opened would get its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def _is_from_echo(error: OSError) -> bool:
    """Return whether typer failed to print."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_name == "echo" and str(frame.f_globals.get("__name__")).endswith("click.utils")
