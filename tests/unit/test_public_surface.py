"""The public names, their arguments, and what `import velodrome` costs. A change here is a change for users."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import velodrome as vd

NAMES = {
    "BestCheckpoint",
    "Callback",
    "Checkpointing",
    "DataLoader",
    "FitResult",
    "StopReason",
    "Trainer",
    "errors",
    "evaluate",
    "fit",
    "load_model",
    "predict",
    "seed_everything",
}
TRAINER_ARGUMENTS = [
    "lr",
    "optimizer_args",
    "loss",
    "step_fn",
    "metrics",
    "device",
    "seed",
    "run_dir",
    "checkpoint",
    "callbacks",
    "loggers",
    "progress",
    "log_every",
]
HEAVY = (
    "tensorboard",
    "matplotlib",
    "pandas",
    "pydantic",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "rich",
    "typer",
)


def arguments_of(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # pyright: ignore


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert set(vd.__all__) - {"__version__"} == NAMES


def test_every_public_name_is_there_and_is_listed() -> None:
    assert [name for name in vd.__all__ if not hasattr(vd, name)] == []
    assert set(vd.__all__) <= set(dir(vd))


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="fitt"):
        _ = vd.fitt  # pyright: ignore[reportAttributeAccessIssue]


def test_trainer_takes_these_arguments() -> None:
    assert arguments_of(vd.Trainer.__init__) == ["model", "optimizer", *TRAINER_ARGUMENTS]
    assert arguments_of(vd.Trainer.fit) == [
        "train",
        "val",
        "epochs",
        "steps",
        "seconds",
        "batch_size",
        "eval_batch_size",
    ]
    assert arguments_of(vd.Trainer.evaluate) == ["data", "batch_size"]
    assert arguments_of(vd.Trainer.predict) == ["data", "batch_size"]


def test_the_calls_take_these_arguments() -> None:
    durations = ["epochs", "steps", "seconds", "batch_size", "eval_batch_size"]
    assert arguments_of(vd.fit)[: 3 + len(durations)] == ["model", "train", "val", *durations]
    assert arguments_of(vd.evaluate) == ["model", "data", "loss", "metrics", "batch_size", "device"]
    assert arguments_of(vd.predict) == ["model", "data", "batch_size", "device"]
    assert arguments_of(vd.load_model) == ["path", "model", "weights"]


def test_data_loader_begins_like_the_one_of_pytorch() -> None:
    assert arguments_of(vd.DataLoader.__init__)[1:7] == [
        "batch_size",
        "shuffle",
        "drop_last",
        "num_workers",
        "transform",
        "seed",
    ]


def test_import_of_velodrome_alone_does_not_import_torch() -> None:
    assert run_python("import sys, velodrome; print('torch' in sys.modules)") == "False\n"


def test_the_trainer_brings_no_heavy_extra() -> None:
    code = (
        "import json, sys, torch; before = set(sys.modules); import velodrome; velodrome.Trainer\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in set(sys.modules) - before]))"
    )

    assert json.loads(run_python(code)) == []


def test_importing_everything_public_never_initialises_cuda() -> None:
    code = (
        "import torch, velodrome\n"
        "for name in velodrome.__all__: getattr(velodrome, name)\n"
        "print(torch.cuda.is_initialized())"
    )

    assert run_python(code) == "False\n"
