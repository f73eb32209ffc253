from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

from support.programs import environment
from velodrome.cli.doctor import try_to_write
from velodrome.recipes.read import builtin_names


def test_recipes_lists_and_shows(velodrome):
    listed = velodrome("recipes", "--json").json["recipes"]
    assert [item["name"] for item in listed] == builtin_names()
    shown = velodrome("recipes", "show", "mnist-mlp")
    assert tomllib.loads(shown.out)["model"]["sizes"] == [784, 128, 64, 10]
    assert velodrome("recipes", "list").out == velodrome("recipes").out


def test_data_lists_what_can_be_fetched(velodrome):
    assert {"fashion-mnist", "mnist", "diabetes"} <= {item["name"] for item in velodrome("data", "--json").json["data"]}


def test_doctor_gathers_and_leaves_nothing_behind(project, velodrome):
    before = sorted(project.iterdir())
    facts = velodrome("doctor", "--json").json
    assert facts["devices"][-1] == "cpu"
    assert facts["write_error"] is None
    assert sorted(project.iterdir()) == before
    assert "Write test" in velodrome("doctor").out


def test_doctor_says_where_it_cannot_write(project, velodrome):
    answer = velodrome("doctor", "--out", "nowhere")
    assert answer.code == 0
    assert "FAILED: No such file or directory (nowhere)" in answer.out
    assert try_to_write(project / "mine.toml") == f"Not a directory ({project / 'mine.toml'})"


def test_doctor_imports_extras_and_says_why_one_fails(project, velodrome, monkeypatch):
    for name, text in {"pandas": "", "matplotlib": "raise ImportError('libwheel.so is missing')\n"}.items():
        (project / "shelf" / name).mkdir(parents=True)
        (project / "shelf" / name / "__init__.py").write_text(text)
    (project / "pandas.py").write_text("raise ImportError('a file of mine')\n")  # the current folder holds no packages
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project / "shelf"), *sys.path]))
    monkeypatch.syspath_prepend(project / "shelf")
    monkeypatch.setattr("velodrome.cli.doctor.EXTRAS", {"plots": ("matplotlib",), "pandas": ("pandas",), "no": ("nö",)})
    answer = velodrome("doctor")
    assert "FAILED: ImportError: libwheel.so is missing" in answer.out
    assert 'missing: pip install "velodrome[no]"' in answer.out
    facts = velodrome("doctor", "--json").json
    assert (facts["extras"]["plots"], facts["extras"]["pandas"] is None) == (None, False)
    assert facts["extra_errors"] == {"plots": "ImportError: libwheel.so is missing"}


def test_init_never_writes_over_a_file(project, velodrome):
    (project / "train.py").write_text("mine")
    answer = velodrome("init")
    assert (answer.code, "train.py exists already, so nothing was written" in answer.err) == (3, True)
    assert (project / "train.py").read_text() == "mine"
    assert not (project / "recipe.toml").exists()


def test_init_into_a_file_is_refused(project, velodrome):
    answer = velodrome("init", "mine.toml")
    assert (answer.code, "cannot be written to" in answer.err) == (3, True)


@pytest.mark.slow
def test_init_recipe_and_script_run_as_they_are(project, velodrome):
    assert velodrome("init", "start").code == 0
    assert velodrome("train", "start/recipe.toml", "-q").code == 0
    script = subprocess.run(
        [sys.executable, "train.py"],
        cwd=project / "start",
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert script.returncode == 0, script.stderr
    assert "val/accuracy" in script.stdout


def test_data_fetch_brings_what_comes_along(project, velodrome):
    found = velodrome("data", "fetch", "mnist", "--source", "embedded", "--json")
    assert (found.code, found.json["name"]) == (0, "mnist")


def test_data_fetch_unknown_source(project, velodrome):
    answer = velodrome("data", "fetch", "mnist", "--source", "embeded")
    assert (answer.code, 'Did you mean "embedded"?' in answer.err) == (2, True)
