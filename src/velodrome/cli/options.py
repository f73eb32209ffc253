"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from velodrome.record.watch import parse_batches


def _check_batches(steps: str | None) -> str | None:
    parse_batches(steps, name="--profile-steps")
    return steps


Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the answer.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", metavar="DEVICE")]
Processes = Annotated[
    int,
    typer.Option(
        "--processes", help="Train in so many processes, on a GPU each where there are any.", metavar="N", min=1
    ),
]
StopAfter = Annotated[
    str | None,
    typer.Option(
        "--stop-after",
        help="Save and end after so long, wherever the run is: 50m, 8h, 90s. It can go on.",
        metavar="TIME",
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Trace a few training batches with torch's profiler, into the run's profile/.")
]
ProfileSteps = Annotated[
    str | None,
    typer.Option(
        "--profile-steps",
        callback=_check_batches,
        help="Trace these batches instead: FIRST:LAST, or how many from the 11th on.",
        metavar="STEPS",
    ),
]
FindSyncs = Annotated[
    bool,
    typer.Option(
        "--find-syncs", help="Name the lines of your code that make the loop wait for the device, in a few batches."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, such as optimizer.lr=0.01.", metavar="KEY=VALUE"),
]
Run = Annotated[
    Path, typer.Argument(help="A run directory, a checkpoint folder or a .safetensors file.", metavar="RUN")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Use this recipe instead of the run's own; needed when it names your own code.",
        metavar="RECIPE",
    ),
]


class Which(StrEnum):
    """Which weights of a run."""

    best = "best"
    last = "last"


Weights = Annotated[Which, typer.Option("--weights", help="Which weights of a run directory.")]


class WeightsKind(StrEnum):
    """Which kind of weights, where their average was saved beside them."""

    auto = "auto"
    raw = "raw"
    averaged = "averaged"


Kind = Annotated[
    WeightsKind,
    typer.Option("--kind", help="Raw or averaged (EMA, SWA) weights; auto: the ones that the run evaluated."),
]
