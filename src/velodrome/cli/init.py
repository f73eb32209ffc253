"""`velodrome init`: a recipe and a script to start from, both of which run as they are."""

# ruff: noqa: TC001  (typer reads the annotations)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velodrome.cli.options import Json, Verbose
from velodrome.cli.screen import Screen

RECIPE = """\
# A recipe to start from. Run it: velodrome train recipe.toml

[model]
name = "mlp"                    # or your own: "package.module:callable"
sizes = [784, 64, 10]           # inputs, hidden layers, classes

[data]
name = "mnist"                  # or fashion-mnist, csv, or your own "package.module:callable"
source = "embedded"             # the 10,000 digits that come along; "auto" brings all 70,000

[loss]
name = "cross_entropy"

[optimizer]
name = "adam"                   # any torch.optim class in lower case
lr = 0.001

[train]
epochs = 2                      # or steps = ..., or seconds = ...
batch_size = 64
metrics = ["accuracy"]
seed = 0                        # weights and order follow from it
"""

SCRIPT = '''\
"""A training script to start from: the loop is yours. Run it: python train.py"""

import torch.nn.functional as F
from torch import nn

import velodrome as vd
from velodrome.data.sources import load_mnist

data = load_mnist(source="embedded")  # the 10,000 digits that come along; source="auto" brings all 70,000
train = vd.DataLoader(data.train, batch_size=64, shuffle=True)
val = vd.DataLoader(data.val, batch_size=1000)

vd.seed_everything(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
trainer = vd.Trainer(model, "adam", lr=1e-3, seed=0)  # run_dir="runs/mine" keeps records and weights

for epoch in trainer.epochs(2):
    for x, y in epoch.train(train):
        logits = trainer.model(x)
        loss = F.cross_entropy(logits, y)
        trainer.step(loss)  # backward, update, zero the gradients
        trainer.log(accuracy=(logits.argmax(1) == y).float())
    for x, y in epoch.evaluate(val):  # eval mode and no gradients, both put back afterwards
        logits = trainer.model(x)
        trainer.log(loss=F.cross_entropy(logits, y), accuracy=(logits.argmax(1) == y).float())

print(trainer.result.metrics)
'''


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write.", metavar="DIR")] = Path("."),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a starter recipe and script.

    The recipe (recipe.toml) and the script (train.py, with your own loop) both run as they are.
    """
    from velodrome.errors import RefusedError

    texts = {folder / "recipe.toml": RECIPE, folder / "train.py": SCRIPT}
    taken = [path for path in texts if path.exists() or path.is_symlink()]
    if taken:
        names = " and ".join(str(path) for path in taken)
        raise RefusedError(f"{names} exists already, so nothing was written. Give another folder: velodrome init DIR.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8", newline="\n") as file:  # "x": never over a file made meanwhile
                file.write(text)
    except OSError as error:
        raise RefusedError(
            f"{folder} cannot be written to: {error.strerror}. Give another folder.", path=folder
        ) from error
    recipe, script = texts
    Screen(as_json=json).answer(
        f"Wrote {recipe} and {script}.\nRun one: velodrome train {recipe}    or    python {script}",
        {"recipe": str(recipe), "script": str(script)},
    )
