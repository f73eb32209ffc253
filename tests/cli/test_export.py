"""`velodrome export`: one file, used with torch alone, that says the same as `velodrome predict`."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from support.programs import environment
from support.recipes import NO_PICTURES, recipe_text
from velodrome.cli.main import run

# Twelve rows: two numbers, three classes; the class is the sum, rounded.
TABLE = "a,b,class\n" + "".join(f"{n % 4},{n % 3},{'xyz'[(n % 4 + n % 3) // 2]}\n" for n in range(48))

MODELS = """\
import torch
from torch import nn


class OneWay(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.layer(x)
        return -self.layer(x)


class Dice(OneWay):
    def forward(self, x):
        return self.layer(x) + torch.rand(1)
"""

# What a user does who has the file and torch, and no velodrome.
PROGRAM = """\
import json, sys, warnings
import torch

warnings.simplefilter("ignore")  # of torch 2.11, about buffers of its own
extra = {"velodrome.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
metadata = json.loads(extra["velodrome.json"])
rows = torch.tensor(json.loads(sys.argv[2]))
kept = metadata["preparation"]["data"]["numeric"]
mean = torch.tensor([each["mean"] for each in kept.values()])
std = torch.tensor([each["std"] for each in kept.values()])
probabilities = program(((rows - mean) / std).float()).softmax(1)
assert not probabilities.requires_grad
assert "velodrome" not in sys.modules
print(json.dumps([[metadata["classes"][row.argmax()], row.tolist()] for row in probabilities]))
"""

# The data of a recipe that are read while a run under way marks another checkpoint as its best.
MOVING = """\
import json
from pathlib import Path

import torch


def moving():
    best = Path("moving/moving/checkpoints/best.json")
    if Path("is-moving").exists():
        was = json.loads(best.read_text())
        others = {int(each.name[5:]) for each in best.parent.glob("step-*")} - {was["step"]}
        best.write_text(json.dumps({**was, "step": others.pop()}))
    x = torch.rand(24, 2, generator=torch.Generator().manual_seed(0))
    return (x, torch.arange(24) % 3), (x, torch.arange(24) % 3)
"""

# A module that has the process told to end at the fifth run: the first one of the file that was made.
ENDING = """\
import os, signal
import torch
from torch import nn

_calls = []


@torch.library.custom_op("shelf_for_export::same", mutates_args=())
def same(x: torch.Tensor) -> torch.Tensor:
    _calls.append(len(x))
    if len(_calls) == 5:
        assert [name for name in os.listdir() if name.startswith(".tmp-")]
        os.kill(os.getpid(), getattr(signal, os.environ["TOLD"]))
    return x.clone()


same.register_fake(torch.empty_like)


class Ending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x) if self.training else same(self.layer(x))
"""


class Plain(nn.Module):
    """The recipe's network as anybody would write it, with the names of the PyTorch quickstart."""

    def __init__(self):
        super().__init__()
        self.linear_relu_stack = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.linear_relu_stack(x)


def recipe(model='name = "mlp"\nsizes = ["auto", 8, 3]', train='metrics = ["accuracy"]', tables="", data=""):
    return recipe_text(
        model=model,
        data=f'name = "csv"\npath = "table.csv"\nval_fraction = 0.25\n{data}',
        train=train,
        batch_size=8,
        tables=NO_PICTURES + tables,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two runs of one recipe: one with an average of the weights, both of two epochs."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "table.csv").write_text(TABLE)
    (folder / "mine.toml").write_text(recipe())
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert run(["train", "mine.toml", "ema.decay=0.9", "train.precision=bf16", "--name", "mine", "--quiet"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A folder of its own for each test, with the run beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "runs").symlink_to(trained / "runs")
    (tmp_path / "shelf_for_export.py").write_text(MODELS)
    monkeypatch.delitem(sys.modules, "shelf_for_export", raising=False)
    return tmp_path


@pytest.fixture
def moving(here, velodrome):
    """A run whose best checkpoint is another one each time that its data are read; the name of its recipe."""
    (here / "shelf_for_export.py").write_text(MOVING)
    (here / "moving.toml").write_text(
        recipe_text(
            model='name = "mlp"\nsizes = ["auto", 8, 3]',
            data='name = "shelf_for_export:moving"',
            train='metrics = ["accuracy"]',
            tables=NO_PICTURES,
        )
    )
    assert velodrome("train", "moving.toml", "train.epochs=2", "--name", "moving", "--out", "moving", "-q").code == 0
    assert len(list((here / "moving/moving/checkpoints").glob("step-*"))) == 2
    (here / "is-moving").touch()
    return "moving.toml"


def test_a_program_holds_the_weights_of_the_step_that_it_says(here, velodrome, moving):
    answer = velodrome("export", "moving/moving", "--recipe", moving, "--json")
    assert answer.code == 0, answer.err
    said = answer.json
    assert f"step-{said['step']:08d}" in said["weights"]
    best = json.loads((here / "moving/moving/checkpoints/best.json").read_text())
    assert best["step"] != said["step"]  # it did move
    held = torch.export.load(said["path"]).state_dict
    saved = load_file(said["weights"])
    assert held.keys() == saved.keys()
    assert all(held[name].equal(saved[name]) for name in saved)


def test_eval_and_predict_use_the_weights_that_they_say(here, velodrome, moving):
    answer = velodrome("eval", "moving/moving", "--recipe", moving, "--json")
    assert answer.code == 0, answer.err
    by_file = velodrome("eval", answer.json["weights"], "--recipe", moving, "--json")
    assert answer.json == by_file.json
    answer = velodrome("predict", "moving/moving", "--recipe", moving, "--out", "run.csv", "--json")
    assert answer.code == 0, answer.err
    assert velodrome("predict", answer.json["weights"], "--recipe", moving, "--out", "file.csv").code == 0
    assert (here / "run.csv").read_text() == (here / "file.csv").read_text()


def test_the_run_of_a_file_is_the_one_that_it_lies_in(here, velodrome, moving):
    """A run of a script, which has no recipe, in a project that has one: name and metrics are the run's, the recipe nobody's."""
    os.rename("moving/moving", "script")
    os.rename("script/recipe.toml", "recipe.toml")
    answer = velodrome("export", "script", "--format", "safetensors", "--weights", "last", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["path"] == "script.safetensors"
    with safe_open("script.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["velodrome.json"])
    assert metadata["weights_kind"] == "raw"
    assert "val/loss" in metadata["metrics"]
    assert "recipe" not in metadata
    program = velodrome("export", "script")
    assert program.code == 2
    assert "There is no recipe.toml in the run" in program.err
    alone = velodrome("export", "script.safetensors", "--out", "alone.safetensors", "--json")  # a recipe.toml beside it
    assert (alone.code, alone.json["step"]) == (0, None)


@pytest.mark.parametrize(("told", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_an_export_that_is_told_to_end_leaves_nothing(here, velodrome, told, code):
    (here / "shelf_for_export.py").write_text(ENDING)
    (here / "ending.toml").write_text(recipe(model='name = "shelf_for_export:Ending"', train=""))
    (here / "weights").mkdir()
    layer = {"layer.weight": torch.ones(3, 2), "layer.bias": torch.zeros(3)}
    save_file(layer, "weights/ending.safetensors")
    command = ["export", "weights/ending.safetensors", "--recipe", "ending.toml"]
    done = subprocess.run(
        [sys.executable, "-c", f"from velodrome.cli.main import main; main({command!r})"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**environment(here), "TOLD": told},
    )
    assert done.returncode == code, done.stderr
    assert [path.name for path in here.iterdir() if "ending.pt2" in path.name] == []
    if told != "SIGINT":
        assert done.stderr.endswith("Told to end; nothing was put at ending.pt2.\n")


def test_weights_load_into_the_plain_module(here, velodrome):
    answer = velodrome("export", "runs/mine", "--format", "safetensors", "--weights", "last", "--json")
    assert answer.code == 0, answer.err
    data = (here / "mine.safetensors").read_bytes()
    said = answer.json
    assert said["path"] == "mine.safetensors"
    assert (said["bytes"], said["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert said["step"] == 10  # 36 rows train, in 5 batches of 8, twice
    assert said["weights_kind"] == "averaged"
    assert said["largest_difference"] == 0
    plain = Plain()
    plain.load_state_dict(load_file("mine.safetensors"))  # strict
    with safe_open("mine.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["velodrome.json"])
    rows = [json.loads(line) for line in (here / "runs/mine/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "epoch"][-1]
    assert metadata["metrics"]["val/loss"] == last["val/loss"]
    assert metadata["classes"] == ["x", "y", "z"]
    assert metadata["recipe"].startswith("[model]\n")
    assert stat.S_IMODE((here / "mine.safetensors").stat().st_mode) == stat.S_IMODE((here / "table.csv").stat().st_mode)


def test_a_program_gives_the_predictions_of_predict_without_velodrome(here, velodrome):
    rows = [[0.0, 2.0], [3.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 0.0]]
    (here / "new.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in rows))
    assert velodrome("predict", "runs/mine", "--data", "new.csv", "--out", "p.csv").code == 0
    answer = velodrome("export", "runs/mine", "--out", "model.pt2")
    assert answer.code == 0, answer.err
    assert "Input x: float32 (batch, 2)" in answer.out
    assert "Output output: float32 (batch, 3): logits; softmax over dimension 1" in answer.out
    assert "numeric ones minus their mean, divided by their std" in answer.out
    assert "The run computed in bf16; the file computes in the precision of the saved weights." in answer.out
    assert "run on 4, 1 and 3 samples (the first validation samples)" in answer.out
    assert answer.out.endswith("Use it: torch.export.load('model.pt2').module()(x)\n")
    (here / "use.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-I", "use.py", "model.pt2", json.dumps(rows)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    predicted = list(csv.DictReader((here / "p.csv").read_text().splitlines()))
    for (label, probabilities), row in zip(json.loads(done.stdout), predicted, strict=True):
        assert label == row["label"]
        assert probabilities == pytest.approx([float(row[f"p_{name}"]) for name in "xyz"], rel=1e-5)


def test_a_program_holds_no_sample_no_pickle_and_no_line_of_code(here, velodrome):
    answer = velodrome("export", "runs/mine", "--kind", "raw", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["inputs"][0]["shape"] == ["batch", 2]
    assert answer.json["largest_difference"] <= answer.json["tolerance"]
    with zipfile.ZipFile("mine.pt2") as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        assert archive.getinfo(names["data/sample_inputs/model.pt"]).file_size == 0
        assert not [name for name in names if name.endswith((".pkl", ".pickle"))]
        graph = archive.read(names["models/model.json"]).decode()
    assert "stack_trace" not in graph
    assert os.fspath(here) not in graph
    assert "site-packages" not in graph


def test_a_table_that_is_gone_is_not_needed(here, velodrome):
    (here / "table.csv").unlink()
    answer = velodrome("export", "runs/mine")
    assert answer.code == 0, answer.err
    assert "The shapes that the run noted are enough: inputs are drawn." in answer.out
    assert "4, 1 and 3 samples (drawn ones)" in answer.out


def test_the_kind_of_weights_is_chosen_as_elsewhere(here, velodrome):
    for kind in ("raw", "averaged"):
        assert velodrome("export", "runs/mine", "--kind", kind, "--out", f"{kind}.safetensors").code == 0
    raw, averaged = load_file("raw.safetensors"), load_file("averaged.safetensors")
    assert raw.keys() == averaged.keys()
    assert not any(raw[name].equal(averaged[name]) for name in raw)
    checkpoint = sorted((here / "runs/mine/checkpoints").glob("step-*"))[-1]
    assert velodrome("export", checkpoint, "--out", "of-folder.safetensors", "--kind", "raw", "--quiet").code == 0


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
@pytest.mark.parametrize("ending", ["pt2", "safetensors"])
def test_a_disk_that_is_full_is_told_and_leaves_nothing(here, velodrome, ending):
    import resource

    before, limits = sorted(os.listdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        answer = velodrome("export", "runs/mine", "--out", f"full.{ending}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer.code == 3
    assert f"full.{ending} cannot be written" in answer.err
    assert "File too large" in answer.err
    assert sorted(os.listdir()) == before


def test_an_existing_file_stays_unless_forced(here, velodrome):
    (here / "mine.safetensors").write_text("mine")
    answer = velodrome("export", "runs/mine", "--format", "safetensors")
    assert answer.code == 3
    assert "mine.safetensors exists already. Give another --out, or --force" in answer.err
    assert (here / "mine.safetensors").read_text() == "mine"
    assert velodrome("export", "runs/mine", "--format", "safetensors", "--force").code == 0
    again = velodrome("export", "mine.safetensors", "--out", "mine.safetensors", "--force")
    assert again.code == 3
    assert "is the file that is exported. Give another --out." in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--out", "a.pt"],
            2,
            "--out a.pt ends in .pt. It must end in one of .pt2, .onnx, .safetensors, which says the format.",
        ),
        (["--out", "a.onnx", "--format", "pt2"], 2, "It must end in .pt2, as --format says."),
        (["--out", "nowhere/a.pt2"], 3, "there is no folder nowhere. Make it, or give another --out."),
        (["--out", "runs"], 2, "--out runs ends in nothing"),
        (["--format", "tflite"], 2, "Invalid value for '--format'"),
    ],
)
def test_what_cannot_be_written_is_refused_first(here, velodrome, arguments, code, message):
    answer = velodrome("export", "runs/mine", *arguments)
    assert answer.code == code
    assert message in answer.err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "OneWay",
            "if x.sum() > 0:). Its weights can be exported: velodrome export runs/odd --format safetensors --weights last",
        ),
        ("Dice", "The file that was made does not give what the model gives. With 4 samples: output differs by"),
    ],
)
def test_a_model_that_is_no_program_is_refused_with_the_next_command(here, velodrome, model, message):
    (here / "odd.toml").write_text(recipe(model=f'name = "shelf_for_export:{model}"'))
    assert velodrome("train", "odd.toml", "--name", "odd", "--out", "odd", "--quiet").code == 0
    os.rename("odd/odd", "odd-run")
    answer = velodrome("export", "odd-run", "--recipe", "odd.toml", "--out", "odd.pt2", "--weights", "last")
    assert answer.code == 3, answer.err
    assert message.replace("runs/odd", "odd-run") in answer.err
    assert [path.name for path in here.iterdir() if "pt2" in path.name] == []  # no temporary file either
    assert (
        velodrome("export", "odd-run", "--format", "safetensors", "--weights", "last").code == 0
    )  # needs no code of the user's
    os.rename("odd-run/recipe.toml", "moved.toml")  # as the run of a script, which has none
    assert velodrome("export", "odd-run", "--out", "script.safetensors").code == 0
    assert (here / "script.safetensors").stat().st_size < (
        here / "odd-run.safetensors"
    ).stat().st_size  # no recipe in it


def test_a_run_that_names_code_wants_the_trusted_recipe(here, velodrome):
    (here / "odd.toml").write_text(recipe(model='name = "shelf_for_export:OneWay"'))
    assert velodrome("train", "odd.toml", "--name", "odd", "--out", "odd", "--quiet").code == 0
    answer = velodrome("export", "odd/odd")
    assert answer.code == 2
    assert "--recipe" in answer.err


def test_onnx_without_its_packages_names_the_extra(here, velodrome, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    answer = velodrome("export", "runs/mine", "--format", "onnx")
    assert answer.code == 2
    assert 'onnxruntime: not installed. Run: pip install "velodrome[onnx]"' in answer.err


def test_inputs_by_name_are_shown_as_they_are_given(here, velodrome):
    (here / "shelf_for_export.py").write_text(
        MODELS
        + """

class Masked(OneWay):
    def forward(self, x, mask):
        return self.layer(x) * mask


def named():
    x = torch.rand(24, 2)
    table = {"mask": torch.ones(24, 1), "x": x, "label": torch.arange(24) % 3}
    return table, table
"""
    )
    text = recipe_text(
        model='name = "shelf_for_export:Masked"', data='name = "shelf_for_export:named"', tables=NO_PICTURES
    )
    (here / "named.toml").write_text(text)
    assert velodrome("train", "named.toml", "--name", "named", "--out", "own", "--quiet").code == 0
    answer = velodrome("export", "own/named", "--recipe", "named.toml")
    assert answer.code == 0, answer.err
    assert answer.out.endswith("Use it: torch.export.load('named.pt2').module()(x=x, mask=mask)\n")
    assert "as shelf_for_export:named gives them." in answer.out


def test_onnx_gives_what_the_program_gives(here, velodrome):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    answer = velodrome("export", "runs/mine", "--out", "model.onnx", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["largest_difference"] <= answer.json["tolerance"]
    session = onnxruntime.InferenceSession("model.onnx")
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("x", ["batch", 2])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("output", ["batch", 3])]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["velodrome.json"])
    assert metadata["classes"] == ["x", "y", "z"]
    assert velodrome("export", "runs/mine", "--format", "safetensors").code == 0
    plain = Plain()
    plain.load_state_dict(load_file("mine.safetensors"))
    x = torch.linspace(-1, 1, 14).reshape(7, 2)
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    torch.testing.assert_close(found, plain(x).detach(), rtol=1e-4, atol=1e-5)
