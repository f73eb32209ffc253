"""What must answer at once, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import velodrome as package

VERBS = [
    "train",
    "resume",
    "replay",
    "eval",
    "predict",
    "export",
    "recipes",
    "data",
    "doctor",
    "init",
    "eject",
    "verify",
    "runs",
    "show",
    "report",
    "compare",
    "import",
]


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, **environment},
        encoding="utf-8",
        check=False,
        timeout=60,
    )


def run_and_list_modules(*arguments):
    return (
        "import sys\n"
        "from velodrome.cli.main import run\n"
        f"code = run({list(arguments)!r})\n"
        "print('heavy:', sorted({'torch', 'numpy', 'rich', 'pandas'} & sys.modules.keys()))\n"
        "sys.exit(code)"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["recipes"],
        ["recipes", "show", "mnist-mlp"],
        ["data"],
        *([v, "--help"] for v in VERBS),
    ],
)
def test_answers_without_heavy_imports(arguments):
    done = python(run_and_list_modules(*arguments))
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout


def test_help_lists_every_verb_and_no_colour():
    out = python(run_and_list_modules("--help")).stdout
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert "\x1b" not in out


def test_version(velodrome):
    assert velodrome("--version").out == f"velodrome {package.__version__}\n"


def test_ascii_terminal_shows_escapes_and_does_not_fail():
    code = "from velodrome.cli.main import main\nmain(['train', 'gr\\u00f6\\u00dfe.toml'])"
    done = python(code, PYTHONIOENCODING="ascii", LANG="C", LC_ALL="C")
    assert done.returncode == 2
    assert "no recipe file gr\\xf6\\xdfe.toml" in done.stderr
