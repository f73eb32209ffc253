"""What a recipe's training switches come to: the Trainer's arguments, and nothing for what is left out."""

from __future__ import annotations

import pytest
import torch

from velodrome.errors import RecipeError
from velodrome.recipes.build import build
from velodrome.recipes.read import builtin_names, load_recipe
from velodrome.recipes.switches import early_stopping, loader_switches, training_switches
from velodrome.recipes.toml_writer import to_toml

MODULE = """\
import torch


def batches():
    x = torch.rand(8, 16)
    return [(x, torch.zeros(8, dtype=torch.int64))], None


def tensors(num=40):
    x = torch.rand(num, 16)
    return (x, torch.zeros(num, dtype=torch.int64)), None


def schedule(optimizer, power=1):
    return torch.optim.lr_scheduler.PolynomialLR(optimizer, power=power)
"""


@pytest.fixture
def load(recipe_file):
    (recipe_file.parent / "shelf_for_switch_tests.py").write_text(MODULE)
    return lambda *changes: load_recipe(recipe_file, changes)


def switches(loaded):
    return training_switches(loaded.recipe)


@pytest.mark.parametrize("name", builtin_names())
def test_recipe_passes_on_what_it_switches_on_and_nothing_else(name):
    loaded = load_recipe(name)
    expected = {
        "mnist-cnn": {"scheduler": "cosine"},
        "fashion-mnist-speedrun": {"scheduler": "one_cycle", "precision": "bf16"},
        "mnist-speedrun": {"scheduler": "one_cycle"},
    }
    assert switches(loaded) == expected.get(name, {})
    assert early_stopping(loaded.recipe) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("train.precision=bf16", {"precision": "bf16"}),
        ("train.accumulate=4", {"accumulate": 4}),
        ("train.engine=eager", {"engine": "eager"}),
        ("train.channels_last=auto", {"channels_last": "auto"}),
        ("train.clip_norm=1", {"clip_norm": 1.0}),
        ("train.clip_value=0.5", {"clip_value": 0.5}),
        ("train.compile=true", {"compile": True}),
        ("train.compile=false", {"compile": False}),
        ("train.compile=reduce-overhead", {"compile": "reduce-overhead"}),
        ('train.freeze=["features.*"]', {"freeze": ("features.*",)}),
        ('train.gradient_checkpointing=["blocks.*"]', {"gradient_checkpointing": ("blocks.*",)}),
        ("train.grad_norms=true", {"grad_norms": True}),
        ("train.on_oom=split", {"on_oom": "split"}),
        ("scheduler.name=cosine", {"scheduler": "cosine"}),
        (
            'optimizer.groups={"*.bias" = {weight_decay = 0.0, lr = 0.1}}',
            {"parameter_groups": {"*.bias": {"weight_decay": 0.0, "lr": 0.1}}},
        ),
    ],
)
def test_switch_becomes_an_argument_of_the_trainer(load, change, expected):
    assert switches(load(change)) == expected


def test_where_data_lie_is_told_to_the_loader(load):
    assert loader_switches(load().recipe) == {}
    assert loader_switches(load("train.resident=auto").recipe) == {"resident": "auto"}
    assert loader_switches(load("train.resident=false").recipe) == {"resident": False}
    pinned = loader_switches(load("train.pin_memory=true").recipe)
    assert pinned == {"pin_memory": torch.accelerator.is_available()}


def test_scheduler_passes_on_its_arguments_rhythm_and_monitor(load):
    loaded = load(
        "scheduler.name=plateau", "scheduler.factor=0.5", "scheduler.interval=2 epochs", "scheduler.monitor=val/loss"
    )
    assert switches(loaded) == {
        "scheduler": "plateau",
        "scheduler_args": {"factor": 0.5},
        "scheduler_every": "2 epochs",
        "scheduler_monitor": "val/loss",
    }


def test_scheduler_own_every_is_the_time_between_two_drops(load):
    found = switches(load("scheduler.name=step", "scheduler.every=30 epochs", "scheduler.interval=epoch"))
    assert (found["scheduler_args"], found["scheduler_every"]) == ({"every": "30 epochs"}, "epoch")


def test_scheduler_of_torch_is_judged_with_the_recipe_s_optimizer(load):
    cycle = ["scheduler.name=onecyclelr", "scheduler.max_lr=0.1", "scheduler.total_steps=10"]
    load(*cycle)  # Adam's betas are momentum enough
    with pytest.raises(RecipeError, match=r"scheduler\.total_steps is refused: .*momentum"):
        load(*cycle, "optimizer.name=adagrad")


def test_average_is_built_from_its_table(load):
    averages = pytest.importorskip("velodrome.averages")
    changes = ["ema.decay=0.9", "ema.every=5", "ema.start=2 epochs", "ema.evaluate=raw"]
    assert switches(load(*changes)) == {"ema": averages.EMA(0.9, every=5, start="2 epochs", evaluate="raw")}
    assert switches(load("ema.kind=swa", "ema.start=1")) == {"ema": averages.SWA(start=1)}
    with pytest.raises(RecipeError, match="ema is refused: .*fortnight"):
        load("ema.every=fortnight")


def test_early_stopping_is_built_from_its_table(load, recipe_file):
    pytest.importorskip("velodrome.callbacks.early_stopping")
    recipe = load("early_stopping.patience=7", "early_stopping.monitor=val/accuracy").recipe
    (callback,) = early_stopping(recipe)
    assert (callback.patience, callback.restore_best) == (7, False)
    recipe_file.write_text(to_toml(recipe.to_tables()))
    assert load_recipe(recipe_file).recipe == recipe
    with pytest.raises(RecipeError, match="early_stopping is refused: .*beauty"):
        load("early_stopping.monitor=val/beauty")


def test_scheduler_of_the_users_own_is_the_callable(load):
    found = switches(load("scheduler.name=shelf_for_switch_tests:schedule", "scheduler.power=2"))
    assert found["scheduler"].__name__ == "schedule"
    assert found["scheduler_args"] == {"power": 2}
    with pytest.raises(RecipeError, match='scheduler.name=.* names "schedul".* Did you mean "schedule"'):
        load("scheduler.name=shelf_for_switch_tests:schedul")


def test_scheduler_of_an_untrusted_recipe_is_not_imported(recipe_file):
    loaded = load_recipe(recipe_file, ["scheduler.name=no_such_module:thing"], trusted=False)
    with pytest.raises(RecipeError, match='scheduler.name="no_such_module:thing" stands in a recipe inside a run'):
        build(loaded)


def test_micro_batch_cuts_the_loader_and_accumulates(load):
    ready = build(
        load("data.name=shelf_for_switch_tests:tensors", "train.batch_size=16", "train.micro_batch=4"), say=str
    )
    assert ready.trainer_arguments["accumulate"] == 4  # 16 / 4
    assert [len(x) for x, _ in ready.train] == [4] * 10
    assert "micro_batch" not in ready.trainer_arguments | ready.fit_arguments
    # As many samples as an update has: one micro-batch, nothing to accumulate over.
    assert switches(load("train.batch_size=16", "train.micro_batch=16")) == {"accumulate": 1}


def test_micro_batch_on_batches_that_come_as_they_are_is_refused(load):
    with pytest.raises(RecipeError, match=r"micro_batch=4 cuts tensors .* gives a list of batches .*train\.accumulate"):
        build(load("data.name=shelf_for_switch_tests:batches", "train.micro_batch=4"), say=str)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (
            ["train.batch_size=250", "train.micro_batch=24"],
            r"train\.micro_batch=24 does not divide batch_size=250, .* \(250 % 24 = 10\)\. Use 10 or 25\. \[command line: train",
        ),
        (["train.micro_batch=48"], r"batch_size=32, .* \(32 % 48 = 32\)\. Use 32\."),
        (
            ["train.micro_batch=8", "train.accumulate=2"],
            r"micro_batch=8 was given together with accumulate=2.* Leave one",
        ),
        (["train.micro_batch=0"], "micro_batch=0 must be greater than 0"),
        (["train.accumulate=0"], "accumulate=0 must be greater than 0"),
        (["train.clip_norm=0"], "clip_norm=0 must be greater than 0"),
        (["train.clip_value=-1"], "clip_value=-1 must be greater than 0"),
        (["train.clip_nrom=1"], 'Did you mean "clip_norm"'),
        (["train.precision=fp8"], "must be 'fp32', 'tf32', 'bf16' or 'fp16'"),
        (["train.compile=fast"], r'train\.compile="fast" must be true or false or \'default\', \'reduce-overhead\''),
        (["train.freeze=layer"], r"train\.freeze=\"layer\" must be a list"),
        (["scheduler.factor=2"], r"scheduler\.name is missing"),
        (["scheduler.name=cosine", "scheduler.interval=3"], r"scheduler\.interval=3 must be a text in quotes"),
        (["scheduler.name=cosin"], r'scheduler\.name="cosin" is no known schedule\. Did you mean "cosine"'),
        (["scheduler.name=cosine", "scheduler.warmpu=5"], r"scheduler\.warmpu=5 is refused.* Did you mean \"warmup\""),
        (["scheduler.name=exponential"], r"scheduler is refused: .* needs 'gamma'"),
        (
            ["scheduler.name=cosine", "scheduler.interval=fortnight"],
            r"scheduler\.interval=\"fortnight\" is refused: .* how often",
        ),
        (["scheduler.name=cosine", "scheduler.monitor=val/loss"], r"scheduler\.monitor=\"val/loss\" is refused"),
        (["ema.decay=1.0"], r"ema\.decay=1\.0 must be less than 1"),
        (["ema.deccay=0.9"], 'is not a field of .ema.. Did you mean "decay"'),
        (["ema.every=0"], r"ema\.every=0 must be greater than 0 or a text in quotes"),
        (["ema.evaluate=mean"], "must be 'averaged' or 'raw'"),
        (["ema.kind=swa", "ema.decay=0.9"], r'ema decay goes with kind="ema".* Leave it out'),
        (["early_stopping.patience=0"], r"early_stopping\.patience=0 must be greater than 0"),
        (["early_stopping.min_delta=-1"], "greater than or equal to 0"),
        (["early_stoping.patience=3"], 'Did you mean "early_stopping"'),
        (["optimizer.groups=3"], r"optimizer\.groups=3 must be a table"),
        (['optimizer.groups={"*.bias" = 3}'], r"optimizer\.groups=3 must be a table"),
        (
            ['optimizer.groups={"*.bias" = {weight_decy = 0.0}}'],
            r'optimizer\.groups\."\*\.bias"=.* has no argument \'weight_decy\'\. Did you mean "weight_decay"',
        ),
        (['optimizer.groups={"*.bias" = {lr = -1}}'], r"Invalid learning rate: -1"),
    ],
)
def test_switch_out_of_range_is_refused_with_the_rule(load, changes, rule):
    with pytest.raises(RecipeError, match=rule):
        load(*changes)


def test_recipe_with_every_switch_is_written_and_read_again(load, recipe_file):
    loaded = load(
        "train.micro_batch=8",
        "train.precision=bf16",
        "train.clip_norm=1.0",
        "train.compile=default",
        'train.freeze=["a.*", "b"]',
        'optimizer.groups={"*.bias" = {weight_decay = 0.0}, "head.*" = {lr = 0.1}}',
        "scheduler.name=cosine",
        "scheduler.warmup=10 steps",
        "ema.decay=0.99",
        'ema.start="2 epochs"',
        "ema.every=5",
    )
    recipe_file.write_text(to_toml(loaded.recipe.to_tables()))
    again = load_recipe(recipe_file).recipe
    assert again == loaded.recipe
    assert again.ema is not None
    assert (again.ema.decay, again.ema.every, again.ema.start) == (0.99, 5, "2 epochs")
    assert list(again.optimizer.groups or {}) == ["*.bias", "head.*"]


def test_override_of_a_name_drops_the_arguments_of_the_old_one(load, recipe_file):
    tables = '[scheduler]\nname = "step"\ngamma = 0.5\nevery = "2 epochs"\n[ema]\ndecay = 0.9\nevery = 2\n'
    recipe_file.write_text(recipe_file.read_text() + tables)
    kept = load_recipe(recipe_file, ["scheduler.gamma=0.1"]).recipe
    assert kept.scheduler is not None
    assert kept.scheduler.arguments == {"gamma": 0.1, "every": "2 epochs"}
    changed = load_recipe(recipe_file, ["scheduler.name=cosine", "ema.kind=swa"]).recipe
    assert changed.scheduler is not None
    assert changed.scheduler.arguments == {}
    assert changed.ema is not None
    assert changed.ema.model_dump(exclude_none=True) == {"kind": "swa"}
