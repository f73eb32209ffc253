from __future__ import annotations

import csv
import resource
import shutil
import sys

import pytest


@pytest.fixture
def trained(project, velodrome):
    """The run directory of a short run."""
    answer = velodrome("train", "mine.toml", "--name", "first", "-q")
    assert (answer.code, answer.out) == (0, ""), answer.err
    return project / "runs" / "first"


def test_train_says_what_it_does_and_where_everything_is(project, velodrome):
    answer = velodrome("train", "mine.toml", "--out", "out", "--name", "My Run!")
    assert answer.code == 0, answer.err
    run = project / "out" / "my-run"
    for line in ("Recipe: mine", "Model: mlp 16-8-3, 163 parameters", "Device: ", "val/accuracy", "Best weights"):
        assert line in answer.out  # 16*8+8 + 8*3+3 = 163
    assert all((run / name).is_file() for name in ("run.json", "recipe.toml", "metrics.jsonl", "metrics.csv"))
    assert not (run / "tb").exists()  # the recipe switched it off


def test_train_default_name_begins_with_the_recipe(project, velodrome):
    assert velodrome("train", "mine.toml", "train.steps=1").code == 0
    (run,) = (project / "runs").iterdir()
    assert run.name.startswith("mine-")


def test_train_json_answers_with_metrics_and_files(project, velodrome):
    answer = velodrome("train", "mine.toml", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["epoch"] == 2
    assert answer.json["files"]["best_weights"].endswith("model.safetensors")
    assert "Recipe: mine" in answer.err


def test_train_same_seed_gives_the_same_metrics(project, velodrome):
    first, second = (velodrome("train", "mine.toml", "--json").json["metrics"] for _ in range(2))
    assert first["val/loss"] == second["val/loss"]
    other = velodrome("train", "mine.toml", "train.seed=1", "--json").json["metrics"]
    assert other["val/loss"] != first["val/loss"]


def test_train_never_writes_over_a_run(trained, velodrome):
    before = (trained / "metrics.jsonl").read_bytes()
    answer = velodrome("train", "mine.toml", "--name", "first")
    assert (answer.code, "exists already" in answer.err) == (3, True)
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_dry_run_prints_the_plan_and_writes_nothing(project, velodrome):
    answer = velodrome("train", "mine.toml", "--dry-run")
    assert answer.code == 0, answer.err
    assert "2 epochs; 4 steps an epoch, 8 in all" in answer.out  # 100 samples / 32
    assert not (project / "runs").exists()
    plan = velodrome("train", "mine.toml", "--dry-run", "--json").json["plan"]
    assert (plan["total_steps"], plan["evaluation_batches"], plan["num_parameters"]) == (8, 1, 163)


def test_saved_recipe_runs_again_to_the_same_numbers(trained, velodrome):
    first = velodrome("eval", trained, "--recipe", "mine.toml", "--json").json["metrics"]
    assert "sizes = [16, 8, 3]" in (trained / "recipe.toml").read_text()
    assert velodrome("train", trained / "recipe.toml", "--name", "again", "-q").code == 0
    again = trained.parent / "again"
    assert velodrome("eval", again, "--recipe", "mine.toml", "--json").json["metrics"] == first


def test_eval_of_a_run_never_imports_what_its_recipe_names(trained, velodrome):
    answer = velodrome("eval", trained)
    assert answer.code == 2
    assert "Code is imported only when your own command or recipe names it" in answer.err


def test_eval_best_equals_the_history(trained, velodrome):
    rows = list(csv.DictReader((trained / "metrics.csv").read_text().splitlines()))
    found = velodrome("eval", trained, "--recipe", "mine.toml", "--json").json["metrics"]
    assert found["loss"] == pytest.approx(min(float(row["val/loss"]) for row in rows if row["val/loss"]), rel=1e-6)


def test_eval_missing_weights_says_which(project, velodrome):
    answer = velodrome("eval", "nowhere", "--recipe", "mine.toml")
    assert (answer.code, "nowhere" in answer.err) == (3, True)


def test_predict_writes_a_row_a_sample_with_probabilities_that_sum_to_one(trained, velodrome):
    answer = velodrome("predict", trained, "--recipe", "mine.toml", "--out", "p.csv", "--json")
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((trained.parents[1] / "p.csv").read_text().splitlines()))
    assert (len(rows), [*rows[0]]) == (20, ["index", "predicted", "p_0", "p_1", "p_2"])
    for row in rows:
        probabilities = [float(row[f"p_{c}"]) for c in range(3)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert int(row["predicted"]) == probabilities.index(max(probabilities))


def test_predict_never_writes_over_a_file_unless_forced(trained, velodrome):
    arguments = ["predict", trained, "--recipe", "mine.toml", "--out", "p.csv"]
    assert velodrome(*arguments).code == 0
    answer = velodrome(*arguments)
    assert (answer.code, "p.csv exists already" in answer.err) == (3, True)
    assert velodrome(*arguments, "--force").code == 0


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_table_for_a_run_on_other_data_is_refused(trained, velodrome, verb):
    answer = velodrome(verb, trained, "--recipe", "mine.toml", "--data", "rows.csv")
    assert (answer.code, "is a table, but this run was trained on" in answer.err) == (2, True)


def test_run_directory_can_be_moved(trained, velodrome):
    moved = trained.parents[1] / "elsewhere"
    shutil.move(trained, moved)
    assert velodrome("eval", moved, "--recipe", "mine.toml").code == 0


def test_dry_run_counts_updates_and_not_micro_batches(project, velodrome):
    changes = ["train.batch_size=40", "train.micro_batch=8", "train.epochs=2"]
    answer = velodrome("train", "mine.toml", *changes, "--dry-run", "--json")
    assert answer.code == 0, answer.err
    # 100 samples: 13 micro-batches of 8, five of which make an update: 2.6, so 3 an epoch.
    assert answer.json["plan"]["steps_per_epoch"] == 3
    assert answer.json["plan"]["total_steps"] == 6
    trained = velodrome("train", "mine.toml", *changes, "--json")
    assert trained.json["metrics"]["step"] == 6


def test_explain_prints_the_calls_and_writes_nothing(project, velodrome):
    answer = velodrome("train", "mine.toml", "train.clip_norm=0.5", "train.accumulate=2", "--explain")
    as_json = velodrome("train", "mine.toml", "train.clip_norm=0.5", "--explain", "--json")

    assert answer.code == 0, answer.err
    assert "clip to norm 0.5" in answer.out
    assert "velodrome.recipes.callbacks.SaveRecipe.on_fit_start" in answer.out
    assert "save every epoch, or when val/loss is the best so far" in answer.out
    assert any("clip to norm 0.5" in line for line in as_json.json["calls"])
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (["scheduler.name=cosine", "scheduler.warmup=100000"], "warmup"),
        (["ema.decay=0.9", "ema.start='100 epochs'"], "start"),
    ],
)
def test_dry_run_refuses_what_does_not_fit_into_the_run(project, velodrome, changes, fragment):
    answer = velodrome("train", "mine.toml", *changes, "--dry-run")
    assert answer.code == 2, answer
    assert fragment in answer.err


@pytest.mark.skipif(sys.platform != "linux", reason="files are kept from growing by a limit of Linux's")
@pytest.mark.parametrize("has_saved", [True, False])
def test_run_that_stopped_because_its_saves_failed_is_no_success_and_says_what_is_next(project, velodrome, has_saved):
    recipe = project / "mine.toml"
    text = recipe.read_text().replace('["auto", 8, 3]', '["auto", 4000, 3]')
    recipe.write_text(f'{text}\n[checkpoint]\nevery = "every step"\nmax_failures = 2\n')
    if has_saved:
        assert velodrome("train", "mine.toml", "--name", "run", "train.steps=3").code == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # as on a full disk: the weights are 320 kB
    try:
        stopped = velodrome("train", "mine.toml", "--name", "run", "--resume", "auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert stopped.code == 1
    assert "Too many saves in a row failed." in stopped.out
    assert "Free room on the disk of runs/run, then" in stopped.err
    if has_saved:
        assert "go on with: velodrome resume runs/run --recipe mine.toml" in stopped.err
        again = velodrome("resume", "runs/run", "--recipe", "mine.toml")
    else:
        assert "train anew with the same command: there is no checkpoint" in stopped.err
        again = velodrome("train", "mine.toml", "--name", "run", "--resume", "auto")
    assert again.code == 0, again.err
