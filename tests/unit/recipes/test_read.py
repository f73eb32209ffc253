from __future__ import annotations

import os

import pytest

from velodrome.errors import RecipeError
from velodrome.recipes.read import LARGEST_RECIPE_BYTES, builtin_names, builtin_summary, load_recipe


def problems_of(*arguments):
    with pytest.raises(RecipeError) as caught:
        load_recipe(*arguments)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", builtin_names())
def test_load_recipe_builtin_is_valid_and_says_what_it_is(name):
    loaded = load_recipe(name)
    assert loaded.name == name
    assert loaded.recipe.train.epochs
    assert len(builtin_summary(name)) > 20


def test_load_recipe_every_builtin_named_in_the_design_exists():
    images = {"fashion-mnist-mlp", "fashion-mnist-tutorial", "fashion-mnist-cnn", "mnist-mlp", "mnist-cnn"}
    speedruns = {"fashion-mnist-speedrun", "mnist-speedrun"}
    assert images | speedruns | {"diabetes-mlp", "char-gpt"} == set(builtin_names())


def test_load_recipe_tutorial_is_the_pytorch_quickstart():
    recipe = load_recipe("fashion-mnist-tutorial").recipe
    assert recipe.model.arguments["sizes"] == [784, 512, 512, 10]
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.arguments) == ("sgd", 1e-3, {})
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.shuffle) == (64, 5, False)


def test_load_recipe_file_gives_name_and_tables(recipe_file):
    loaded = load_recipe(recipe_file)
    assert (loaded.name, loaded.origin) == ("run", "run.toml")
    assert loaded.recipe.optimizer.lr == 0.01
    assert loaded.recipe.train.metrics == ("accuracy",)


def test_load_recipe_many_mistakes_reports_all_at_once_with_origin_and_nearest_name(recipe_file):
    text = recipe_file.read_text()
    recipe_file.write_text(text.replace("lr = 0.01", "lr = -1").replace("epochs = 2", "epoch = 2"))
    found = problems_of(
        recipe_file,
        [
            "model.size=[1,2]",
            "loss.name=cross_entropi",
            "optimizer.momentun=0.9",
            'train.metrics=["acuracy"]',
            "train.device=gpu",
            "checkpoint.every=evry epoch",
            "modle.x=1",
        ],
    )
    expected = [
        ("optimizer.lr=-1 must be greater than 0.", "[run.toml: optimizer.lr]"),
        ('train.epoch=2 is not a field of [train]. Did you mean "epochs"?', "[run.toml: train.epoch]"),
        ('Did you mean "sizes"?', "[command line: model.size]"),
        ('loss.name="cross_entropi" is no known loss. Did you mean "cross_entropy"?', "[command line: loss.name]"),
        ("optimizer 'adam' has no argument 'momentun'", "[command line: optimizer.momentun]"),
        ('train.metrics="acuracy" is no known metric. Did you mean "accuracy"?', "[command line: train.metrics]"),
        ("device='gpu' is not a device", "[command line: train.device]"),
        ("is not a duration", "[command line: checkpoint.every]"),
        ('tables of these names only. Did you mean "model"?', "modle]"),
    ]
    for rule, origin in expected:
        assert [line for line in found if rule in line and line.endswith(origin)], (rule, found)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("train.batch_size=0", "must be greater than 0"),
        ("train.batch_size=2.5", "must be a whole number"),
        ("train.seed=true", "must be a whole number"),
        ("train.shuffle=True", "must be true or false"),
        ("optimizer.lr=nan", "must be a finite number"),
        ("optimizer.name=adm", 'is no known optimizer. Did you mean "adam"?'),
        ("model.name=mlpp", 'is no known model. Did you mean "mlp"?'),
        ("data.name=mnits", 'is no known data. Did you mean "mnist"?'),
        ("data.source=web", "must be 'auto', 'local', 'system', 'download' or 'embedded'"),
        ("model.sizes=[16]", "at least 2 items"),
        ('model.sizes=[16, "x", 3]', "must be a whole number or 'auto'"),
        ("model.activation=rel", "must be 'relu'"),
        ("loss.reduction=sum", "is no mean"),
        ("checkpoint.monitor=val/beauty", "does not say whether smaller is better"),
        ("checkpoint.keep_last=1", "greater than or equal to 2"),
        ("schedule.name=cosine", 'tables of these names only. Did you mean "scheduler"?'),
    ],
)
def test_load_recipe_wrong_value_says_the_rule(recipe_file, override, rule):
    assert rule in " ".join(problems_of(recipe_file, [override]))


def test_load_recipe_optimizer_arguments_are_judged_together(recipe_file):
    load_recipe(recipe_file, ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.nesterov=true"])
    assert "Nesterov" in problems_of(recipe_file, ["optimizer.name=sgd", "optimizer.nesterov=true"])[0]


def test_load_recipe_no_length_asks_for_one(recipe_file):
    recipe_file.write_text(recipe_file.read_text().replace("epochs = 2\n", ""))
    assert "exactly one of epochs, steps and seconds; got none" in problems_of(recipe_file)[0]


def test_load_recipe_missing_table_is_named(recipe_file):
    recipe_file.write_text("[train]\nepochs = 1\n")
    found = " ".join(problems_of(recipe_file))
    assert all(f"{table} is missing" in found for table in ("model", "data", "loss"))


def test_load_recipe_unknown_builtin_shows_nearest_and_how_to_list():
    with pytest.raises(RecipeError, match=r'Did you mean "mnist-mlp"\?.*`velodrome recipes` lists'):
        load_recipe("mnst-mlp")


def test_load_recipe_missing_file(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe file .*nothing\.toml.*velodrome init"):
        load_recipe(tmp_path / "nothing.toml")


def test_load_recipe_folder_points_at_the_recipe_inside(recipe_file):
    recipe_file.rename(recipe_file.with_name("recipe.toml"))
    with pytest.raises(RecipeError, match=r"is a folder, not a recipe\. Give the file: .*recipe\.toml"):
        load_recipe(recipe_file.parent)


def test_load_recipe_not_utf8(recipe_file):
    recipe_file.write_bytes(b"[model]\nname = \xff\n")
    with pytest.raises(RecipeError, match=r"not UTF-8 text: byte 15 is 0xff"):  # 8 + 7 bytes come before it
        load_recipe(recipe_file)


def test_load_recipe_syntax_error_names_the_line(recipe_file):
    recipe_file.write_text('[model]\nname = "mlp\n')
    with pytest.raises(RecipeError, match=r"Not valid TOML.*\[run\.toml: line 2\]"):
        load_recipe(recipe_file)


def test_load_recipe_too_large_is_not_parsed(recipe_file):
    recipe_file.write_bytes(b"#" * (LARGEST_RECIPE_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than 1,000,000 bytes"):
        load_recipe(recipe_file)


def test_load_recipe_nested_too_deeply(recipe_file):
    recipe_file.write_text("a = " + "[" * 100_000 + "]" * 100_000)
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(recipe_file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_load_recipe_reads_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")  # reading it would wait for ever
    with pytest.raises(RecipeError, match=r"pipe\.toml is not a regular file"):
        load_recipe(tmp_path / "pipe.toml")


@pytest.mark.parametrize(
    "text", ["a." * 5000 + "b = 1", "x = " + "[" * 60 + "]" * 60, "x = " + "{a = " * 60 + "1" + "}" * 60]
)
def test_load_recipe_nested_too_deeply_is_refused(tmp_path, text):
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(tmp_path / "deep.toml")


@pytest.mark.parametrize("override", ["model." + "a." * 5000 + "b=1", "model.x=" + "[" * 5000 + "]" * 5000])
def test_load_recipe_override_nested_too_deeply_is_refused(recipe_file, override):
    with pytest.raises(RecipeError, match="is nested more than 50 levels deep"):
        load_recipe(recipe_file, [override])


def test_load_recipe_list_and_whole_number_in_toml_words(recipe_file):
    with pytest.raises(RecipeError, match=r'must be a list, such as \["accuracy"\]'):
        load_recipe(recipe_file, ["train.metrics=accuracy"])
    with pytest.raises(RecipeError, match=r"train\.epochs=1000\.0 must be a whole number"):
        load_recipe(recipe_file, ["train.epochs=1e3"])


def test_load_recipe_misspelled_name_does_not_hide_the_other_mistakes_of_its_table(recipe_file):
    changes = ["model.name=mpl", 'model.sizes=[16,"x"]', "model.activatoin=relu"]
    changes += ["optimizer.name=adm", "optimizer.beta=1", "data.name=mnits", "data.sauce=x", "loss.name=ms", "loss.x=1"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, changes)
    fields = {problem.field for problem in caught.value.fields["problems"]}
    assert {"model.name", "model.activatoin", "optimizer.name", "optimizer.beta", "data.name", "data.sauce"} <= fields
    assert {"loss.name", "loss.x"} <= fields


def test_load_recipe_metric_of_the_users_own_is_looked_up(recipe_file):
    (recipe_file.parent / "metric_for_read_tests.py").write_text("def share(output, target):\n    return output\n")
    assert load_recipe(recipe_file, ['train.metrics=["metric_for_read_tests:share"]']).recipe.train.metrics
    with pytest.raises(RecipeError, match='Did you mean "share"'):
        load_recipe(recipe_file, ['train.metrics=["metric_for_read_tests:shar"]'])
    load_recipe(recipe_file, ['train.metrics=["no_such_module:share"]'], trusted=False)  # nothing is imported
