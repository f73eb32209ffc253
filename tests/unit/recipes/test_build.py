from __future__ import annotations

import json
import sys

import pytest
import torch

from velodrome.errors import DataError, RecipeError
from velodrome.recipes.build import build, try_out
from velodrome.recipes.read import load_recipe
from velodrome.recipes.sizes import resolve_sizes
from velodrome.recipes.tables import check_same_preparation
from velodrome.recipes.trained_model import find_run, load_model, load_run_recipe, read_notes

MODULE = """\
import torch

from velodrome.data.sources.splits import Splits


def tensors(num=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, 8, generator=generator)
    return (x, x.flatten(1)[:, :3].argmax(1)), (x[:10], x[:10].flatten(1)[:, :3].argmax(1))


def splits():
    train, val = tensors()
    return Splits(
        train=train, val=val, origin="Made up.", class_names=("a", "b", "c"), preprocessing={"means": [0.5, 1.5]}
    )


def without_val():
    return tensors()[0], None


def batches():
    x, y = tensors()[0]
    return [(x[:20], y[:20]), (x[20:], y[20:])], None


class Pairs(torch.utils.data.Dataset):
    reads = 0

    def __init__(self, tensors, change=0):
        self.tensors, self.change = tensors, change

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, index):
        Pairs.reads += 1
        return tuple(tensor[index] for tensor in self.tensors)


def pairs():
    train, val = tensors()
    return Pairs(train), Pairs(val)


def empty_samples():
    return (torch.zeros(5, 0), torch.zeros(5, dtype=torch.int64)), None


def leaves():
    raise SystemExit(0)


def talks(say):
    say("Made up.")
    return splits()


def share(output, target):
    return (output.argmax(1) == target).float()


class Constant:
    def update(self, output, target):
        pass

    def compute(self):
        return 0.25

    def reset(self):
        pass


class Needy:
    def __init__(self, classes):
        self.classes = classes


def needs(width):
    raise TypeError("from inside")
"""


@pytest.fixture
def load(recipe_file):
    (recipe_file.parent / "shelf_for_build_tests.py").write_text(MODULE)

    def call(function, *overrides, **options):
        changes = [f"data.name=shelf_for_build_tests:{function}", *overrides]
        return load_recipe(recipe_file, changes, **options)

    return call


def test_build_seed_decides_the_weights(load):
    first, second = (build(load("tensors")).model.state_dict() for _ in range(2))
    other = build(load("tensors", "train.seed=1")).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_build_loaders_follow_the_recipe(load):
    ready = build(load("tensors", "train.batch_size=16", "train.eval_batch_size=4", "train.shuffle=false"))
    x = ready.data.train[0]
    assert [len(batch[0]) for batch in ready.train] == [16, 16, 8]
    assert [len(batch[0]) for batch in ready.val] == [4, 4, 2]
    assert torch.equal(next(iter(ready.train))[0], x[:16])


def test_build_auto_size_is_measured_and_resolved(load):
    ready = build(load("tensors", 'model.sizes=["auto",4,3]'))
    assert ready.recipe.model.arguments["sizes"] == [16, 4, 3]  # 2 x 8 numbers a sample


def test_build_auto_size_of_an_iterable_asks_for_the_number(load):
    with pytest.raises(RecipeError, match="Write the number"):
        build(load("batches", 'model.sizes=["auto",3]'))


def test_build_auto_size_of_empty_samples_is_refused(load):
    with pytest.raises(DataError, match=r"shape \(1, 0\), which holds no number"):
        build(load("empty_samples", 'model.sizes=["auto",3]'))


def test_resolve_sizes_leaves_numbers_alone(load):
    recipe = load("tensors").recipe
    assert resolve_sizes(recipe, None) is recipe


def test_build_own_iterable_of_batches_is_used_as_it_is(load):
    ready = build(load("batches"))
    assert isinstance(ready.train, list)
    assert try_out(ready) is None  # trying a generator would use it up
    assert ready.make_trainer(progress=False).fit(ready.train, steps=2).metrics["step"] == 2


def test_try_out_changes_neither_the_model_nor_the_order(load):
    tried, untried = build(load("tensors")), build(load("tensors"))
    trial = try_out(tried)
    assert trial is not None
    assert trial.val["accuracy"] <= 1
    results = [r.make_trainer(progress=False).fit(r.train, r.val, **r.fit_arguments) for r in (tried, untried)]
    assert results[0].metrics["train/loss"] == results[1].metrics["train/loss"]


def test_try_out_without_validation_data(load):
    trial = try_out(build(load("without_val")))
    assert trial is not None
    assert trial.val == {}


def test_build_error_inside_user_code_names_the_callable_and_keeps_the_error(load):
    message = r'data\.name="shelf_for_build_tests:needs" failed when it was called: TypeError: from inside \(shelf_for'
    with pytest.raises(RecipeError, match=message) as caught:
        build(load("needs", "data.width=3"))
    assert isinstance(caught.value.__cause__, TypeError)


def test_build_user_code_that_leaves_python_is_an_error(load):
    with pytest.raises(RecipeError, match=r"it called sys\.exit\(0\)"):
        build(load("leaves"))


def test_build_error_of_our_own_keeps_its_class(load):
    with pytest.raises(DataError, match="does not exist"):
        build(load("tensors", "data.name=csv", "data.path=no.csv", "data.train_rows=2"))


def test_load_recipe_missing_argument_of_user_code(load):
    with pytest.raises(RecipeError, match=r"data\.width is missing: shelf_for_build_tests:needs has no default for it"):
        load("needs")


@pytest.mark.parametrize("table", ["model", "data", "loss", "optimizer"])
def test_untrusted_recipe_is_refused_before_anything_is_loaded(recipe_file, table):
    loaded = load_recipe(recipe_file, [f"{table}.name=no_such_module:thing"], trusted=False)
    with pytest.raises(RecipeError, match=f'{table}.name="no_such_module:thing" stands in a recipe inside a run'):
        build(loaded)


def test_run_keeps_recipe_and_preprocessing_and_the_model_comes_back(load, tmp_path):
    ready = build(load("splits"))
    run = tmp_path / "run"
    result = ready.make_trainer(run_dir=run, progress=False, loggers=()).fit(ready.train, ready.val, epochs=1)
    assert result.run_dir == run
    assert load_run_recipe(run).recipe == ready.recipe
    notes = read_notes(run / "checkpoints")  # anywhere inside the run
    assert (notes.class_names, notes.preprocessing) == (("a", "b", "c"), {"means": [0.5, 1.5]})
    assert json.loads((run / "preprocessing.json").read_text())["class_names"] == ["a", "b", "c"]
    x = ready.data.val[0]
    restored = load_model(run, weights="last")
    assert not restored.training
    assert torch.equal(restored(x), ready.model.eval()(x))
    assert torch.equal(load_model(run, model=build(load("splits")).model, weights="last")(x), restored(x))


def test_load_run_recipe_without_a_recipe_says_what_to_give(tmp_path):
    assert find_run(tmp_path) is None
    with pytest.raises(RecipeError, match=r"no recipe\.toml in .*model= in Python, --recipe"):
        load_run_recipe(tmp_path)
    assert read_notes(tmp_path).class_names == ()


@pytest.mark.parametrize("function", ["talks", "splits"])
def test_build_origin_is_said_once(load, function):
    lines = []
    build(load(function), say=lines.append)
    assert lines == ["Made up."]


def test_build_metrics_of_the_users_own(load):
    shelf = "shelf_for_build_tests"
    ready = build(load("tensors", f'train.metrics=["accuracy", "{shelf}:share", "{shelf}:Constant"]'))
    found = ready.make_trainer(progress=False).evaluate(ready.val)
    assert found["share"] == found["accuracy"]
    assert found["constant"] == 0.25


def test_build_metric_that_cannot_be_made_is_named_by_its_field(load):
    with pytest.raises(
        RecipeError, match=r'^train\.metrics="shelf_for_build_tests:Needy" refused its arguments: .*classes'
    ):
        build(load("tensors", 'train.metrics=["shelf_for_build_tests:Needy"]'))


def test_build_metric_of_an_untrusted_recipe_is_refused(recipe_file):
    loaded = load_recipe(recipe_file, ['train.metrics=["no_such_module:thing"]'], trusted=False)
    with pytest.raises(RecipeError, match='train.metrics="no_such_module:thing" stands in a recipe inside a run'):
        build(loaded)


def test_build_gpt_is_measured_by_the_text_and_resolved(recipe_file):
    (recipe_file.parent / "mine.txt").write_text("to be or not to be " * 80)  # to_bern: 7 different characters
    ready = build(load_recipe("char-gpt", ["data.path=mine.txt", "data.window=12"]), say=str)
    found = ready.recipe.model.arguments
    assert (found["vocab_size"], found["context"]) == (7, 12)
    assert ready.model.tokens.weight.shape == (7, 128)
    assert ready.model.positions.weight.shape == (12, 128)
    # Left out is the same as "auto".
    recipe_file.write_text(
        '[model]\nname = "gpt"\n[data]\nname = "text"\npath = "mine.txt"\n[loss]\nname = "cross_entropy"\n[train]\nsteps = 1\n'
    )
    assert build(load_recipe(recipe_file), say=str).recipe.model.arguments == {"vocab_size": 7, "context": 128}


def test_build_gpt_on_data_that_do_not_count_their_tokens_asks_for_the_number(load):
    with pytest.raises(RecipeError, match=r'vocab_size is "auto", and data\.name=.* does not say how many tokens'):
        build(load("tensors", "model.name=gpt"))


def test_run_on_a_text_refuses_another_text(recipe_file, tmp_path):
    text = recipe_file.parent / "mine.txt"
    text.write_text("to be or not to be " * 20)
    changes = ["data.path=mine.txt", "data.window=8", "train.epochs=1", "model.num_layers=1", "model.width=8"]
    ready = build(load_recipe("char-gpt", changes), say=str)
    run = tmp_path / "run"
    trainer = ready.make_trainer(run_dir=run, progress=False, loggers=())
    trainer.fit(ready.train, ready.val, epochs=1)
    notes = read_notes(run)
    check_same_preparation(ready.data, notes)
    restored = load_model(run, weights="last")
    assert torch.equal(restored(ready.data.val[0]), ready.model.eval()(ready.data.val[0]))
    text.write_text("to be, or not to be " * 20)  # one more character: every id after it is another letter's
    other = build(load_recipe("char-gpt", changes), say=str)
    with pytest.raises(DataError, match=r"8 different characters where the run was trained on 7; ',' is one that"):
        check_same_preparation(other.data, notes)


def test_data_in_memory_are_read_once_and_trained_on_to_the_same_bits(load):
    weights = []
    said = []
    for change in ("train.in_memory=false", "train.in_memory=true"):
        ready = build(load("pairs", change), say=said.append)
        pairs = sys.modules["shelf_for_build_tests"].Pairs
        ready.make_trainer(progress=False).fit(ready.train, ready.val, epochs=3)
        weights.append(ready.model.state_dict())
    assert sum("read into memory in" in line for line in said) == 1
    # 40 and 10 samples: one each for the shape, all, and all again; not three epochs of them.
    assert pairs.reads == 3 * (40 + 10) + 2 * (40 + 10) + 2
    assert all(torch.equal(one, other) for one, other in zip(weights[0].values(), weights[1].values(), strict=True))


def test_batches_of_ones_own_are_not_kept_in_memory(load):
    with pytest.raises(RecipeError, match=r"train\.in_memory keeps the samples of a dataset.*Leave it out"):
        build(load("batches", "train.in_memory=true"), say=lambda line: None)


def test_threads_are_set_before_anything_is_computed():
    threads = torch.get_num_threads()
    try:
        build(load_recipe("mnist-mlp", [f"train.threads={threads + 1}"]), say=lambda line: None)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
