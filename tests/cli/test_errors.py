"""Exit codes, messages, and that a refusal leaves nothing behind."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, ""),
        (["tran"], 2, "Did you mean 'train'?"),
        (["train"], 2, "Missing argument"),
        (["train", "mine.toml", "--lo"], 2, "No such option: --lo"),
        (["train", "fashion-mnist-mpl"], 2, 'Did you mean "fashion-mnist-mlp"?'),
        (["train", "nothing.toml"], 2, "There is no recipe file nothing.toml"),
        (["train", "mine.toml", "optimizer.lr=fast"], 2, 'optimizer.lr="fast" must be a number'),
        (["train", "mine.toml", "loss.name=cross_entropi"], 2, 'Did you mean "cross_entropy"?'),
        (["train", "mine.toml", "--device", "gpu"], 2, "device='gpu' is not a device"),
        (["train", "mine.toml", "data.name=shelf_for_cli_tests:shape"], 2, 'Did you mean "shapes"?'),
        (["train", "mine.toml", "data.labels=5"], 2, "out of range"),
        (["train", "mine.toml", "data.num=0"], 2, "0 samples"),
        (["train", "mine.toml", "train.drop_last=true", "train.batch_size=101"], 2, "drop_last leaves no batch"),
        (["train", "mine.toml", "data.name=shelf_for_cli_tests:net"], 2, "It must return (train, val)"),
        (["train", "mine.toml", "model.name=shelf_for_cli_tests:shapes"], 2, "It must return a torch.nn.Module"),
        (
            ["train", "mine.toml", "data.name=shelf_for_cli_tests:failing"],
            2,
            "failed when it was called: ZeroDivisionError: the user's own mistake (shelf_for_cli_tests.py, line ",
        ),
        (
            ["train", "mine.toml", "model.name=shelf_for_cli_tests:Breaking"],
            1,
            "ZeroDivisionError: the user's own mistake",
        ),
        (["train", "mine.toml", "model.name=shelf_for_cli_tests:net", "model.width=-3"], 2, 'net" failed when it was'),
        (["train", "mine.toml", "optimizer.name=sparseadam"], 2, "needs sparse gradients"),
        (["train", "mine.toml", "train.device=meta"], 2, "holds shapes and no numbers"),
        (["recipes", "show", "mnist"], 2, 'Did you mean "mnist-mlp"?'),
        (["data", "fetch", "minst"], 2, 'Did you mean "mnist"?'),
        (["eval", "mine.toml", "--weights", "worst"], 2, "Invalid value for '--weights'"),
    ],
)
def test_wrong_command_line_says_why_and_writes_nothing(project, velodrome, arguments, code, message):
    before = sorted(path.name for path in project.iterdir() if path.name != "__pycache__")
    answer = velodrome(*arguments)
    assert (answer.code, message in answer.err) == (code, True), answer.err
    assert ("Traceback" in answer.err) == (code == 1)
    assert sorted(path.name for path in project.iterdir() if path.name != "__pycache__") == before


def test_error_as_json_is_one_object_with_the_problems(project, velodrome):
    answer = velodrome("train", "mine.toml", "train.epoch=1", "optimizer.lr=-1", "--json")
    error = answer.json["error"]
    assert (answer.code, error["type"], error["exit_code"], len(error["problems"])) == (2, "RecipeError", 2, 2)
    assert answer.err == ""


def test_usage_error_as_json(velodrome):
    assert velodrome("train", "--json").json["error"]["type"] == "UsageError"


def test_verbose_shows_the_traceback_of_an_error_on_purpose(project, velodrome):
    assert "Traceback" not in velodrome("train", "mine.toml", "train.epoch=1").err
    answer = velodrome("train", "mine.toml", "train.epoch=1", "-v")
    assert answer.code == 2
    assert "Traceback" in answer.err


def test_traceback_begins_at_the_verb(project, velodrome):
    err = velodrome("train", "mine.toml", "model.name=shelf_for_cli_tests:Breaking").err
    assert "typer" not in err
    assert "shelf_for_cli_tests.py" in err


def test_verbose_shows_the_traceback_of_the_users_own_error(project, velodrome):
    answer = velodrome("train", "mine.toml", "data.name=shelf_for_cli_tests:failing", "-v")
    assert answer.code == 2
    assert 'raise ZeroDivisionError("the user\'s own mistake")' in answer.err


def test_users_code_that_leaves_python_while_training_is_an_error(project, velodrome):
    (project / "leaves_for_cli_tests.py").write_text("def loss(output, target):\n    raise SystemExit(0)\n")
    answer = velodrome("train", "mine.toml", "loss.name=leaves_for_cli_tests:loss")
    assert (answer.code, "left by sys.exit(0) in code of your own, before train was done" in answer.err) == (1, True)


def test_out_is_a_file_is_refused(project, velodrome):
    answer = velodrome("train", "mine.toml", "--out", "mine.toml")
    assert (answer.code, "mine.toml is a file" in answer.err) == (3, True)


def test_interrupt_is_130(project, velodrome):
    (project / "interrupts_for_cli_tests.py").write_text("def data():\n    raise KeyboardInterrupt\n")
    answer = velodrome("train", "mine.toml", "data.name=interrupts_for_cli_tests:data")
    assert (answer.code, answer.err) == (130, "Interrupted.\n")
