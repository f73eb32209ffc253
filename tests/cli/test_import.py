"""`velodrome import`: weights of torch.save become a .safetensors file, and a run starts from them."""

from __future__ import annotations

import collections
import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import velodrome as vd


def weights():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(file, expected):
    found = load_file(file)
    return found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def test_a_state_dict_becomes_a_file_of_the_same_numbers(folder, velodrome):
    torch.save(weights(), "w.pt")
    answer = velodrome("import", "w.pt", "--json")
    assert answer.code == 0, answer.err
    data = (folder / "w.safetensors").read_bytes()
    # 16 * 8 + 8 + 8 * 3 + 3 = 163 numbers
    assert answer.json == {
        "weights": "w.safetensors", "tensors": 4, "numbers": 163, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert same("w.safetensors", weights())


@pytest.mark.parametrize(
    "document",
    [
        lambda w: {"state_dict": w, "epoch": 3, "args": {"lr": 0.1}},
        lambda w: {"model": w, "optimizer": {"state": {}, "param_groups": []}},
        lambda w: collections.OrderedDict(w),
        lambda w: {f"module.{name}": value for name, value in w.items()},
        lambda w: {"model_state_dict": {f"module._orig_mod.{name}": value for name, value in w.items()}},
    ],
)
def test_the_usual_wrappings_are_taken_off(folder, velodrome, document):
    torch.save(document(weights()), "w.pth")
    assert velodrome("import", "w.pth").code == 0
    assert same("w.safetensors", weights())


def test_files_of_before_torch_1_6_are_read(folder, velodrome):
    torch.save(weights(), "w.pt", _use_new_zipfile_serialization=False)
    assert velodrome("import", "w.pt").code == 0
    assert same("w.safetensors", weights())


def test_a_key_and_a_prefix_can_be_named(folder, velodrome):
    named = {f"net.{name}": value for name, value in weights().items()}
    torch.save({"model": {"a": torch.zeros(1)}, "state_dict": named, "deep": {"er": named}}, "w.ckpt")

    answer = velodrome("import", "w.ckpt")
    assert answer.code == 2
    assert "holds several sets of weights: state_dict, model. Choose one with --key" in answer.err
    assert velodrome("import", "w.ckpt", "--key", "deep.er", "--strip", "net.").code == 0
    assert same("w.safetensors", weights())

    assert "there is no 'deeq'" in velodrome("import", "w.ckpt", "--key", "deeq", "--force").err
    assert "--strip 'x.' is not in front of 4 names" in velodrome("import", "w.ckpt", "--key", "state_dict", "--strip", "x.", "--to", "y.safetensors").err  # fmt: skip
    assert "is a Tensor. It must be a table" in velodrome("import", "w.ckpt", "--key", "model.a", "--to", "y.safetensors").err  # fmt: skip


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (torch.zeros(3), "one tensor without a name"),
        ([torch.zeros(3)], "holds a list. Weights are a table of tensors by name"),
        ({}, "is empty"),
        ({"w": torch.zeros(1), "lr": 0.1}, "holds 1 entries that are no tensors, the first of them 'lr' (a float)"),
        (
            {"best": {"w": torch.zeros(1)}, "last": {"w": torch.zeros(1)}},
            "Choose the entry that holds them with --key: best, last",
        ),
        (nn.Linear(2, 2), "it names torch.nn.modules.linear.Linear"),
        ({"w": torch.eye(3).to_sparse()}, "cannot be saved|Only dense tensors"),
    ],
)
def test_what_is_no_table_of_tensors_is_refused(folder, velodrome, document, words):
    import re

    torch.save(document, "w.pt")
    answer = velodrome("import", "w.pt")
    assert answer.code == 3
    assert re.search(words if "|" in words else re.escape(words), answer.err)
    assert answer.err.count("\n") == 1
    assert not (folder / "w.safetensors").exists()


def test_nothing_is_written_over(folder, velodrome):
    torch.save(weights(), "w.pt")
    (folder / "w.safetensors").write_text("mine")
    assert velodrome("import", "w.pt").code == 3
    assert (folder / "w.safetensors").read_text() == "mine"
    assert velodrome("import", "w.pt", "--force").code == 0
    assert "Give another --to" in velodrome("import", "w.safetensors", "--force").err  # onto itself
    assert "does not end in .safetensors" in velodrome("import", "w.pt", "--to", "x.pt").err
    assert "cannot be read: No such file" in velodrome("import", "nowhere.pt").err


def test_python_loads_them_into_a_model_and_says_what_does_not_fit(folder, velodrome):
    torch.save(weights(), "w.pt")
    velodrome("import", "w.pt")
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    assert all(
        value.equal(weights()[name]) for name, value in vd.load_model("w.safetensors", model).state_dict().items()
    )
    with pytest.raises(vd.errors.CheckpointError, match=r"3\.weight \(3, 8\) -> \(4, 8\)"):
        vd.load_model("w.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)))


def own_model(project):
    """A recipe whose model has the names of `weights`."""
    text = (
        (project / "mine.toml")
        .read_text()
        .replace('name = "mlp"\nsizes = ["auto", 8, 3]', 'name = "shelf_for_cli_tests:net"')
    )
    (project / "own.toml").write_text(text.replace("lr = 0.01", "lr = 1e-12"))


def test_a_run_starts_from_them(project, velodrome):
    own_model(project)
    torch.save(weights(), "w.pt")
    velodrome("import", "w.pt")
    answer = velodrome("train", "own.toml", "--weights", "w.safetensors", "--name", "a", "-q")
    assert answer.code == 0, answer.err
    trained = vd.load_model(
        "runs/a", nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    ).state_dict()
    assert all(torch.allclose(trained[name], value, atol=1e-6) for name, value in weights().items())
    assert 'weights = "w.safetensors"' in (project / "runs" / "a" / "recipe.toml").read_text()

    # It goes on, and is evaluated, when that file is gone.
    (project / "w.safetensors").unlink()
    assert velodrome("resume", "runs/a", "train.epochs=3", "--recipe", "own.toml", "-q").code == 0
    assert velodrome("eval", "runs/a", "--recipe", "runs/a/recipe.toml").code == 0
    again = velodrome(
        "train", "own.toml", "train.epochs=4", "--weights", "w.safetensors", "--name", "a", "--resume", "auto", "-q"
    )
    assert again.code == 0, again.err
    assert velodrome("train", "own.toml", "--weights", "w.safetensors", "--name", "b").code == 3


def test_weights_that_do_not_fit_are_refused_before_there_is_a_run(project, velodrome):
    own_model(project)
    torch.save({"3.weight": torch.zeros(5, 8)}, "w.pt")
    velodrome("import", "w.pt")
    answer = velodrome("train", "own.toml", "train.weights=w.safetensors", "--json")
    assert answer.code == 3
    assert "3.weight (5, 8) -> (3, 8)" in json.loads(answer.out)["error"]["message"]
    assert not (project / "runs").exists()


def test_a_script_that_starts_from_weights_is_refused_by_the_field(project, velodrome):
    text = (project / "mine.toml").read_text().replace('sizes = ["auto", 8, 3]', "sizes = [784, 8, 10]")
    (project / "e.toml").write_text(
        text.replace('"shelf_for_cli_tests:shapes"', '"fashion-mnist"\nsource = "embedded"')
    )
    assert velodrome("train", "e.toml", "train.epochs=1", "--name", "a", "-q").code == 0
    answer = velodrome("eject", "e.toml", "train.weights=runs/a")
    assert answer.code == 2
    assert "train.weights='runs/a' cannot be ejected" in answer.err
