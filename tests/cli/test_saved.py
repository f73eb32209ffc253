"""What `train` says about weights is what lies on the disk."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from velodrome.cli.saved import find_saved_weights


@pytest.fixture
def trained(project, velodrome):
    assert velodrome("train", "mine.toml", "--name", "first", "-q").code == 0  # 2 epochs of 4 steps
    return project / "runs" / "first"


def test_saved_weights_of_a_whole_run(trained):
    best_step = json.loads((trained / "checkpoints" / "best.json").read_text())["step"]
    found = find_saved_weights(trained, last_step=8, best_step=best_step)
    assert found.problems == ()
    assert found.last == trained / "checkpoints" / "step-00000008" / "model.safetensors"
    assert found.best == trained / "checkpoints" / f"step-{best_step:08}" / "model.safetensors"


def test_saved_weights_of_an_earlier_step_are_told_and_not_shown_as_the_best(trained):
    best_step = json.loads((trained / "checkpoints" / "best.json").read_text())["step"]
    found = find_saved_weights(trained, last_step=12, best_step=12)
    assert found.best is None
    assert [line.removesuffix(" The warnings above and log.txt say why.") for line in found.problems] == [
        "The weights of step 12 are NOT on disk (last saved: step 8).",
        f"The best weights, of step 12, are NOT on disk (the best one on disk is step {best_step}).",
    ]


def test_saved_weights_of_no_steps(tmp_path):
    assert find_saved_weights(tmp_path, last_step=0, best_step=None).problems == ()


@pytest.mark.parametrize("options", [[], ["--json"], ["-q"]])
def test_train_whose_weights_could_not_be_saved_shows_the_metrics_and_fails(project, velodrome, options):
    (project / "blocking_for_cli_tests.py").write_text(
        "import pathlib\nimport torch\n\n\ndef loss(output, target):\n"
        "    blocked = pathlib.Path('runs/first/checkpoints')\n"
        "    if blocked.parent.is_dir() and not blocked.exists():\n        blocked.write_text('not a folder')\n"
        "    return torch.nn.functional.cross_entropy(output, target)\n"
    )
    answer = velodrome("train", "mine.toml", "loss.name=blocking_for_cli_tests:loss", "--name", "first", *options)
    assert (answer.code, "Traceback" in answer.err) == (1, False), answer.err
    assert "Error: The weights of step 8 are NOT on disk" in answer.err
    if options == ["--json"]:
        assert answer.json["metrics"]["epoch"] == 2
        assert len(answer.json["problems"]) == 1
        assert "best_weights" not in answer.json["files"]
    elif not options:
        assert "Final metrics" in answer.out
        assert "Best weights" not in answer.out


def test_train_that_keeps_no_best_weights_names_the_last(project, velodrome):
    answer = velodrome("train", "mine.toml", "checkpoint.keep_best=0")
    assert answer.code == 0, answer.err
    assert "Last weights" in answer.out
    run_the_next(answer, velodrome)


@pytest.mark.parametrize("changes", [[], ["model.name=shelf_for_cli_tests:net", "model.width=5"]])
def test_next_command_of_a_run_with_the_users_code_works_as_printed(project, velodrome, changes):
    answer = velodrome("train", "mine.toml", *changes)
    assert ("--recipe mine.toml" in answer.out) == (not changes)
    run_the_next(answer, velodrome)


def run_the_next(answer, velodrome):
    line = re.search(r"Next +velodrome (eval .*)    velodrome (predict .*)", answer.out)
    assert line is not None
    for command in line.groups():
        done = velodrome(*shlex.split(command))
        assert done.code == 0, done.err


def test_message_about_the_last_weights_names_the_flag(trained, velodrome):
    (trained / "checkpoints" / "best.json").unlink()
    answer = velodrome("eval", trained, "--recipe", "mine.toml")
    assert "(--weights last)" in answer.err
    assert velodrome("eval", trained, "--recipe", "mine.toml", "--weights", "last").code == 0
