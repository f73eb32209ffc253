"""The public names, their arguments, and what `import velodrome` costs. A change here is a change for users."""

from __future__ import annotations

import inspect
import json
import operator
import subprocess
import sys

import pytest

import velodrome as vd

NAMES = {
    "EMA",
    "SWA",
    "BatchSizes",
    "BestCheckpoint",
    "EarlyStopping",
    "Callback",
    "Checkpointing",
    "DataLoader",
    "FitResult",
    "LRCurve",
    "LRFinder",
    "StopReason",
    "Trainer",
    "errors",
    "evaluate",
    "find_batch_size",
    "find_lr",
    "fit",
    "load_model",
    "predict",
    "replay",
    "seed_everything",
    "transforms",
}
# Positional arguments first, then keywords; renaming one breaks somebody's script.
SIGNATURES = {
    "Trainer": "model optimizer lr optimizer_args loss loss_args step_fn metrics parameter_groups freeze"
    " gradient_checkpointing scheduler scheduler_args scheduler_every scheduler_monitor precision"
    " scaler_args accumulate clip_norm clip_value compile engine channels_last grad_norms ema device strategy seed deterministic run_dir resume"
    " accept_changes checkpoint on_nonfinite"
    " callbacks loggers progress log_every on_oom stop_after profile find_syncs",
    "Trainer.fit": "train val epochs steps seconds batch_size micro_batch eval_batch_size shuffle",
    "Trainer.evaluate": "data batch_size name",
    "Trainer.predict": "data batch_size",
    "Trainer.epochs": "epochs steps seconds",
    "Trainer.forward": "batch",
    "Trainer.step": "loss items optimizer",
    "Trainer.measure": "outcome",
    "Trainer.log": "values",
    "fit": "model train val epochs steps seconds batch_size micro_batch eval_batch_size shuffle trainer_arguments",
    "LRFinder": "lowest highest steps smoothing diverged_at",
    "find_batch_size": "model train largest seconds_each memory_share loader_args trainer_arguments",
    "find_lr": "model train lowest highest steps batch_size shuffle trainer_arguments",
    "evaluate": "model data loss metrics step_fn batch_size device progress",
    "predict": "model data batch_size device progress",
    "replay": "bundle model loss loss_args step_fn precision device",
    "DataLoader": "dataset batch_size shuffle drop_last num_workers transform resident seed sampler batch_sampler collate_fn"
    " generator torch_arguments",
    "load_model": "path model weights kind",
    "EMA": "decay every start warmup evaluate",
    "SWA": "start every evaluate",
    "EarlyStopping": "monitor mode patience min_delta restore_best",
    "BestCheckpoint": "monitor mode keep",
    "Trainer.stop": "reason",
    "Trainer.say": "line",
    "seed_everything": "seed",
    "transforms.Compose": "transforms",
    "transforms.ToFloat": "",
    "transforms.Normalize": "mean std",
    "transforms.RandomCrop": "size padding fill padding_mode",
    "transforms.RandomTranslate": "pixels fill padding_mode",
    "transforms.RandomHorizontalFlip": "p",
    "transforms.RandomVerticalFlip": "p",
    "transforms.Cutout": "size fill p",
    "transforms.RandomErasing": "p scale ratio value",
    "transforms.ColorJitter": "brightness contrast saturation hue",
    "transforms.RandomRotation": "degrees interpolation fill",
    "transforms.RandomAffine": "degrees translate scale shear interpolation fill",
    "transforms.Resize": "size",
    "transforms.RandomResizedCrop": "size scale ratio",
    "transforms.MixUp": "num_classes alpha p",
    "transforms.CutMix": "num_classes alpha p",
    "transforms.GaussianNoise": "std",
    "transforms.Draws.normal": "shape",
}
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


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert set(vd.__all__) - {"__version__"} == NAMES


def test_every_public_name_is_there_and_is_listed() -> None:
    assert [name for name in vd.__all__ if not hasattr(vd, name)] == []
    assert set(vd.__all__) <= set(dir(vd))


def test_the_batched_transforms_are_these() -> None:
    frozen = {name.split(".")[1] for name in SIGNATURES if name.startswith("transforms.")}
    assert set(vd.transforms.__all__) == frozen | {"Transform"}


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="fitt"):
        _ = vd.fitt  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("dotted_name", sorted(SIGNATURES))
def test_the_arguments_are_these(dotted_name: str) -> None:
    called = operator.attrgetter(dotted_name)(vd)
    names = [name for name in inspect.signature(called).parameters if name != "self"]

    assert names == SIGNATURES[dotted_name].split()


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
