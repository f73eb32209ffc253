"""`velodrome eject`: the script prints the losses that the recipe's run records, bit for bit, without Velodrome."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import pytest

from velodrome.cli.main import run as velodrome_main
from velodrome.data.sources.idx import read_idx, write_idx
from velodrome.data.sources.places import embedded_folder
from velodrome.recipes.read import builtin_names, load_recipe

QUIET = ["logging.tensorboard=false", "logging.curves=false", "train.device=cpu"]
FILES = {"train-images": (150, 3), "train-labels": (150, 1), "t10k-images": (70, 3), "t10k-labels": (70, 1)}
SENTENCE = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


def write_data(folder):
    """Write a little of each kind of data: digits, a table with names, a text."""
    (folder / "digits").mkdir()
    for name, (num, num_dims) in FILES.items():
        file = f"{name}-idx{num_dims}-ubyte.gz"
        write_idx(folder / "digits" / file, read_idx(embedded_folder("mnist") / file, num_dims=num_dims)[:num].copy())
    rows = [f"{(7 * i) % 11 / 3},{i % 5},{'red' if i % 3 else 'blue'},{i % 2},{i % 3}" for i in range(90)]
    (folder / "table.csv").write_text("x,z,colour,yes,kind\n" + "\n".join(rows) + "\n")
    text = "".join(SENTENCE[i % 40 :] for i in range(60))
    (folder / "text.txt").write_text(text)


# Random transforms of whole batches have no few lines of PyTorch that draw the same numbers: eject says so by name.
PLAIN = [name for name in builtin_names() if not load_recipe(name).recipe.data.transforms]


def small_data(name, folder):
    """Return the overrides that make a built-in recipe read the little data."""
    data = load_recipe(name).recipe.data.name
    if data == "csv":
        return [
            f"data.path={folder / 'table.csv'}",
            "data.target=yes",
            'data.categorical=["colour"]',
            "data.train_rows=70",
        ]
    if data == "text":
        return [f"data.path={folder / 'text.txt'}", "data.window=16"]
    return [f"data.root={folder / 'digits'}", "data.source=local"]


def test_the_recipes_that_are_not_ejected_are_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert [name for name in builtin_names() if name not in PLAIN] == ["mnist-speedrun"]
    assert velodrome_main(["eject", "mnist-speedrun", "--output", "script.py"]) == 2
    assert "data.transforms" in capsys.readouterr().err
    assert not (tmp_path / "script.py").exists()


def rows_of_run(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "train/top3", "val/top3")
    return [{"epoch": row["epoch"]} | {k: row[k] for k in names if k in row} for row in rows if row["kind"] == "epoch"]


def rows_of_output(text):
    rows = []
    for line in text.splitlines():
        pairs = (entry.split(" ") for entry in line.split("  "))
        rows.append({name: int(value) if name == "epoch" else float(value) for name, value in pairs})
    return rows


def train_and_eject(recipe, changes, name):
    assert velodrome_main(["train", str(recipe), *changes, *QUIET, "--name", name, "-q"]) == 0
    assert velodrome_main(["eject", str(recipe), *changes, *QUIET, "--output", f"{name}.py"]) == 0


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    """Train every built-in recipe for two epochs, eject it, and run all scripts in one process that has no velodrome."""
    folder = tmp_path_factory.mktemp("built-in")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in PLAIN:
            train_and_eject(name, [*small_data(name, folder), "train.epochs=2"], name)
    code = (
        "import runpy, sys\n"
        "sys.modules['velodrome'] = None\n"  # where it is installed beside the tests: any import of it fails
        "for name in sys.argv[1:]:\n"
        "    print('---', name)\n"
        "    sys.argv[1:] = []\n"
        "    runpy.run_path(name + '.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *PLAIN], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outputs = {}
    for part in done.stdout.split("--- ")[1:]:
        name, _, text = part.partition("\n")
        outputs[name] = text
    return folder, outputs


@pytest.mark.parametrize("name", PLAIN)
def test_the_script_of_a_built_in_recipe_prints_the_losses_of_its_run(built_in, name):
    folder, outputs = built_in

    expected = rows_of_run(folder / "runs" / name)

    assert rows_of_output(outputs[name]) == expected
    assert len(expected) == 2
    assert all(len(row) == 5 for row in expected)  # epoch, loss and accuracy of both splits


@pytest.mark.parametrize("name", PLAIN)
def test_the_script_of_a_built_in_recipe_is_plain_short_and_formatted(built_in, name):
    folder, _ = built_in
    text = (folder / f"{name}.py").read_text()

    assert "import velodrome" not in text
    assert "from velodrome" not in text
    assert len(text.splitlines()) <= 220
    for command in (["format", "--diff"], ["check", "--select", "E,F,I,W", "--ignore", "E501"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", f"{name}.py"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # what PYTHONPATH is for a script of one's own modules
    write_data(tmp_path)
    return tmp_path


def run_script(path, capfd, monkeypatch, *options):
    """Run a script in this process; nothing of velodrome may be imported by it."""
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    capfd.readouterr()
    runpy.run_path(str(path), run_name="__main__")
    return rows_of_output(capfd.readouterr().out)


DIGITS = ["data.root=digits", "data.source=local"]
TABLE = ["data.path=table.csv", "data.train_rows=70", "train.epochs=2"]
VARIANTS = {
    "accumulate, clip, cosine, bf16, ema": (
        "mnist-mlp",
        [
            *DIGITS,
            "train.epochs=2",
            "train.batch_size=32",
            "train.accumulate=3",
            "train.clip_norm=0.5",
            "train.precision=bf16",
            "scheduler.name=cosine",
            "scheduler.warmup=2",
            "scheduler.min_factor=0.1",
            "ema.decay=0.9",
        ],
        ["LambdaLR", "bfloat16", "clip_grad_norm_", "AveragedModel", "ACCUMULATE = 3"],
    ),
    "tokens, accumulate, wsd, steps": (
        "char-gpt",
        [
            "data.path=text.txt",
            "data.window=16",
            "train.steps=14",
            "model.dropout=0.1",
            "train.accumulate=3",
            "scheduler.name=wsd",
            "scheduler.shape=sqrt",
            "scheduler.warmup=2",
            "data.stride=8",
            "train.clip_norm=1.0",
        ],
        ["(loss * y.numel()).backward()", "STEPS = 14", "STRIDE = 8"],
    ),
    "batch norm, micro-batches, one cycle, ema": (
        "mnist-cnn",
        [
            *DIGITS,
            "train.epochs=2",
            "train.micro_batch=16",
            "model.batch_norm=true",
            "scheduler.name=one_cycle",
            "train.clip_value=0.01",
            "ema.decay=0.8",
            "ema.every=2",
            "ema.start=1",
        ],
        ["use_buffers=True", "clip_grad_value_", "averaged.n_averaged > 0"],
    ),
    "fp16, plateau, smoothing, swa": (
        "fashion-mnist-mlp",
        [
            *DIGITS,
            "train.epochs=3",
            "train.precision=fp16",
            "train.accumulate=2",
            "loss.label_smoothing=0.1",
            "scheduler.name=plateau",
            "scheduler.patience=0",
            "ema.kind=swa",
            "ema.start=1",
            "train.clip_norm=1.0",
        ],
        ["GradScaler", "ReduceLROnPlateau", "nn.CrossEntropyLoss(label_smoothing=0.1)", "get_swa_multi_avg_fn"],
    ),
    "fp16, torch's schedule, file order, drop_last, top3": (
        "fashion-mnist-tutorial",
        [
            *DIGITS,
            "train.steps=3",
            "train.precision=fp16",
            "train.drop_last=true",
            'train.metrics=["accuracy","top3"]',
            "scheduler.name=steplr",
            "scheduler.step_size=1",
            "scheduler.interval=step",
        ],
        ["torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)", "torch.arange(len(train_x))", "topk(3, dim=1)"],
    ),
    "early stopping": (
        "mnist-mlp",
        [
            *DIGITS,
            "train.epochs=8",
            "early_stopping.patience=1",
            "early_stopping.monitor=val/accuracy",
            "early_stopping.min_delta=0.2",
            "scheduler.name=exponential",
            "scheduler.gamma=0.9",
            'train.freeze=["linear_relu_stack.0"]',
        ],
        ["PATIENCE = 1", "GAMMA", 'FROZEN = ["linear_relu_stack.0.weight", "linear_relu_stack.0.bias"]'],
    ),
    "multiclass table": (
        "diabetes-mlp",
        [
            *TABLE,
            "data.target=kind",
            'data.categorical=["colour"]',
            'model.sizes=["auto",4,3]',
            "model.output=none",
            "loss.name=cross_entropy",
            "scheduler.name=step",
            "scheduler.milestones=[3,9]",
        ],
        ["DROPS = [3, 9]"],
    ),
    "words as classes, drawn rows": (
        "diabetes-mlp",
        [
            "data.path=words.csv",
            "data.val_fraction=0.2",
            "data.train_rows=",
            "train.epochs=2",
            "scheduler.name=polynomial",
            "scheduler.power=2",
        ],
        ['CLASSES = ["blue", "red"]', "SPLIT_SEED = 0"],
    ),
    "regression": (
        "diabetes-mlp",
        [
            *TABLE,
            "data.target=x",
            'data.numeric=["z","yes"]',
            "data.task=regression",
            "model.output=none",
            "loss.name=mse",
            "train.metrics=[]",
            "scheduler.name=linear",
            "optimizer.name=adamw",
            "optimizer.betas=[0.8,0.9]",
        ],
        ["betas=(0.8, 0.9)", "F.mse_loss(output, y)"],
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_script_of_a_recipe_with_switches_prints_the_losses_of_its_run(project, capfd, monkeypatch, variant):
    name, changes, expected_lines = VARIANTS[variant]
    rows = [f"{i % 7},{(3 * i) % 5},{'red' if i % 2 else 'blue'}" for i in range(50)]
    (project / "words.csv").write_text("a,b,c\n" + "\n".join(rows) + "\n")
    if "data.train_rows=" in changes:  # an override cannot take a field away; a file can
        text = "\n".join(line for line in builtin_text_of(name).splitlines() if not line.startswith("train_rows"))
        (project / "own.toml").write_text(text)
        name, changes = "own.toml", [change for change in changes if change != "data.train_rows="]
    train_and_eject(name, changes, "it")
    script = (project / "it.py").read_text()

    printed = run_script(project / "it.py", capfd, monkeypatch)

    assert printed == rows_of_run(project / "runs" / "it")
    assert printed
    assert [line for line in expected_lines if line not in script] == []
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--diff", "--isolated", "--no-cache", "it.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def builtin_text_of(name):
    from velodrome.recipes.read import builtin_text

    return builtin_text(name)


def test_another_seed_gives_other_losses(project, capfd, monkeypatch):
    """The negative control: equality above is not that of numbers which never change."""
    train_and_eject("mnist-mlp", [*DIGITS, "train.epochs=1"], "it")
    other = (project / "it.py").read_text().replace("SEED = 0 ", "SEED = 1 ")
    (project / "other.py").write_text(other)

    one = run_script(project / "it.py", capfd, monkeypatch)
    two = run_script(project / "other.py", capfd, monkeypatch)

    assert one[0]["train/loss"] != two[0]["train/loss"]


def test_data_and_save_are_options_of_the_script(project, capfd, monkeypatch):
    import torch

    train_and_eject("mnist-mlp", [*DIGITS, "train.epochs=1"], "it")
    (project / "digits").rename(project / "moved")

    printed = run_script(project / "it.py", capfd, monkeypatch, "--data", "moved", "--save", "weights.pt")

    assert printed == rows_of_run(project / "runs" / "it")
    weights = torch.load("weights.pt", weights_only=True)
    assert weights["linear_relu_stack.0.weight"].shape == (128, 784)


OWN = """\
import torch
from torch import nn
from torch.nn import functional


def shapes(num=90):
    x = torch.randn(num, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return (x[:70], y[:70]), (x[70:], y[70:])


def no_val():
    return shapes()[0], None


def net(width=8, names=("a",)):
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(0.5), nn.ReLU(), nn.Linear(width, 3))


class WithBuffers(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
        self.register_buffer("table", torch.ones(3))

    def forward(self, x):
        return self.layers(x) * self.table


def loss(output, target, power=1.0):
    return functional.cross_entropy(output, target) ** power


def optimizer(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, nesterov=True, momentum=0.9)


def always(output, target):
    return torch.ones(len(output))


def batches():
    return [shapes()[0]], [shapes()[1]]
"""
OWN_RECIPE = """\
[model]
name = "shelf_for_eject:net"
width = 16

[data]
name = "shelf_for_eject:shapes"

[loss]
name = "shelf_for_eject:loss"
power = 1.5

[optimizer]
name = "shelf_for_eject:optimizer"
lr = 0.1

[train]
epochs = 2
batch_size = 16
metrics = ["accuracy"]
"""


@pytest.fixture
def own(project):
    (project / "shelf_for_eject.py").write_text(OWN)
    (project / "own.toml").write_text(OWN_RECIPE)
    return project


@pytest.mark.parametrize("data", ["shapes", "no_val"])
def test_code_of_the_users_own_is_imported_by_the_script(own, capfd, monkeypatch, data):
    train_and_eject("own.toml", [f"data.name=shelf_for_eject:{data}"], "it")

    printed = run_script(own / "it.py", capfd, monkeypatch)

    assert printed == rows_of_run(own / "runs" / "it")
    assert ("val/loss" in printed[-1]) is (data == "shapes")
    script = (own / "it.py").read_text()
    assert "from shelf_for_eject import net as make_model" in script
    assert "`velodrome train own.toml data.name=" in script
    assert "put this file beside them" in script


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.seconds=5"], "train.seconds=5.0 cannot be ejected. The clock decides"),
        (["train.in_memory=true"], "train.in_memory=True cannot be ejected. A plain script reads its data"),
        (["train.in_memory=true"], "Leave it out, or give train.in_memory=false."),
        (["train.resident=true"], "train.resident=True cannot be ejected. A plain script moves"),
        (["train.resident=true"], "Leave it out, or give train.resident=false."),
        (["train.pin_memory=true"], "train.pin_memory=True cannot be ejected. A plain script moves"),
        (["train.pin_memory=true"], "Leave it out, or give train.pin_memory=false."),
        (["train.channels_last=true"], "Leave it out, or give train.channels_last=false."),
        (["train.engine=compiled"], "Leave it out, or give train.engine=auto; train.compile=true is written out."),
        (["train.on_oom=split"], "Leave it out, or give train.on_oom=stop."),
        (["train.on_nonfinite=skip"], "Leave it out, or give train.on_nonfinite=stop."),
        (['train.gradient_checkpointing=["0"]'], "Leave it out, or give 'train.gradient_checkpointing=[]'."),
        (["train.threads=2"], "No override turns it off: take its line out of the recipe"),
        (['train.metrics=["shelf_for_eject:always"]'], "train.metrics='shelf_for_eject:always' cannot be ejected"),
        (["data.name=shelf_for_eject:batches"], "Its train data are a list"),
        (
            ["train.on_oom=split"],
            "train.on_oom='split' cannot be ejected. No plain script is written for it",
        ),
        (
            ['train.gradient_checkpointing=["0"]'],
            "train.gradient_checkpointing=('0',) cannot be ejected. No plain script is written for it",
        ),
        (["scheduler.name=shelf_for_eject:optimizer"], "scheduler.name='shelf_for_eject:optimizer' cannot be ejected"),
        (["scheduler.name=cosine", "scheduler.interval=epoch"], "scheduler.interval='epoch' cannot be ejected"),
        (["scheduler.name=cosine", "scheduler.min_lr=0.001"], "Give scheduler.min_factor"),
        (["scheduler.name=plateau", "scheduler.warmup=3"], "scheduler.warmup=3 cannot be ejected"),
        (
            ["scheduler.name=onecyclelr", "scheduler.max_lr=1.0", "scheduler.total_steps=3"],
            "The run has 10: leave it out",
        ),
        (["scheduler.name=steplr", "scheduler.step_size=1", "scheduler.interval=2 epochs"], 'Use "step" or "epoch"'),
        (["ema.decay=0.9", "ema.warmup=true"], "ema.warmup=True cannot be ejected"),
        (["ema.decay=0.9", "ema.every=2", "train.precision=fp16"], "ema.every=2 cannot be ejected. With fp16"),
        (["ema.decay=0.9", "model.name=shelf_for_eject:WithBuffers"], "The model's buffer 'table' is copied"),
        (["early_stopping.restore_best=true"], "early_stopping.restore_best=True cannot be ejected"),
        (["loss.name=cross_entropy", "loss.weight=[1.0,2.0,3.0]"], "loss.weight=[1.0, 2.0, 3.0] cannot be ejected"),
    ],
)
def test_what_no_script_can_say_is_refused_by_its_name(own, velodrome, changes, words):
    if any(change.startswith("loss.name") for change in changes):
        (own / "own.toml").write_text(OWN_RECIPE.replace("power = 1.5\n", ""))

    answer = velodrome("eject", "own.toml", *changes)

    assert answer.code == 2
    assert words in answer.err
    assert answer.out == ""


def test_a_switch_that_is_off_is_ejected_although_the_recipe_names_it(own, velodrome):
    plain = velodrome("eject", "own.toml")
    off = velodrome(
        "eject", "own.toml", "train.in_memory=false", "train.resident=false", "train.pin_memory=false",
        "train.channels_last=false", "train.engine=eager", "train.on_oom=stop", "train.on_nonfinite=stop",
        "train.gradient_checkpointing=[]", "train.grad_norms=false", "train.compile=false",
    )  # fmt: skip
    also = velodrome("eject", "own.toml", "train.resident=auto", "train.engine=auto")

    assert (plain.code, off.code, also.code) == (0, 0, 0), off.err + also.err
    for answer in (off, also):  # but for the first lines, which say how it was made
        assert answer.out.partition("import argparse")[2] == plain.out.partition("import argparse")[2]


def test_what_the_recipe_alone_refuses_is_refused_before_data_are_read(own, velodrome):
    (own / "noisy_for_eject.py").write_text(
        "from shelf_for_eject import shapes\n\n\ndef data():\n    open('read', 'w').close()\n    return shapes()\n"
    )

    refused = velodrome("eject", "own.toml", "data.name=noisy_for_eject:data", "train.in_memory=true")
    was_read = (own / "read").exists()
    velodrome("eject", "own.toml", "data.name=noisy_for_eject:data")

    assert (refused.code, was_read) == (2, False)
    assert (own / "read").exists()  # where nothing is refused


def test_more_that_is_refused(project, velodrome):
    files = ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"]
    import gzip

    (project / "digits" / files[0]).write_bytes(gzip.decompress((project / "digits" / f"{files[0]}.gz").read_bytes()))
    (project / "digits" / f"{files[0]}.gz").unlink()
    (project / "flat.csv").write_text("a,b,c\n" + "".join(f"1,{i},{i % 2}\n" for i in range(20)))
    (project / "val.csv").write_text("a,b,c\n" + "".join(f"1,{i},{i % 2}\n" for i in range(20)))
    text = "\n".join(line for line in builtin_text_of("diabetes-mlp").splitlines() if not line.startswith("train_rows"))
    (project / "own.toml").write_text(text)

    mixed = velodrome("eject", "mnist-mlp", *DIGITS)
    constant = velodrome("eject", "diabetes-mlp", "data.path=flat.csv", "data.train_rows=15")
    two_files = velodrome("eject", "own.toml", "data.path=flat.csv", "data.val_path=val.csv")
    statistics = velodrome("eject", "mnist-cnn", *["data.source=embedded", "model.batch_norm=true", "ema.kind=swa"])
    scaled = velodrome(
        "eject", "char-gpt", "data.path=text.txt", "data.window=16", "train.precision=fp16", "train.accumulate=2"
    )

    assert (mixed.code, constant.code, two_files.code, statistics.code, scaled.code) == (2, 2, 2, 2, 2)
    assert "gzipped and some are not" in mixed.err
    assert "data.numeric='a' cannot be ejected" in constant.err
    assert "data.val_path='val.csv' cannot be ejected" in two_files.err
    assert "BatchNorm" in statistics.err
    assert "accumulation over tokens" in scaled.err


def test_the_script_goes_to_the_screen_alone_or_into_a_new_file(project, velodrome):
    shown = velodrome("eject", "mnist-mlp", *DIGITS)
    as_json = velodrome("eject", "mnist-mlp", *DIGITS, "--json")
    written = velodrome("eject", "mnist-mlp", *DIGITS, "--output", "it.py")
    again = velodrome("eject", "mnist-mlp", *DIGITS, "--output", "it.py")
    nowhere = velodrome("eject", "mnist-mlp", *DIGITS, "--output", "no/such/folder.py")

    assert shown.out == (project / "it.py").read_text() == as_json.json["script"]
    assert "Data: MNIST: 150 + 70 images" in shown.err
    assert "Run it: python it.py" in written.out
    assert (again.code, nowhere.code) == (3, 3)
    assert "exists already" in again.err
    assert "cannot be written" in nowhere.err


def test_compilation_is_one_line_and_not_said_to_be_exact(project, velodrome):
    answer = velodrome("eject", "mnist-mlp", *DIGITS, "train.compile=reduce-overhead")

    assert '    model.compile(mode="reduce-overhead")\n' in answer.out
    assert "but for rounding" in answer.out
    assert "to the last bit" not in answer.out
