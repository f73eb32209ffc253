"""The benchmarks run from start to record, and their arms train the same weights. No time is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_benchmark(name: str, records: Path, *arguments: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--records", str(records), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((records / f"{name}.json").read_text(encoding="utf-8"))


def test_overhead_compares_loops_that_train_the_same_weights(tmp_path: Path) -> None:
    record = run_benchmark("overhead", tmp_path, "--steps", "20", "--rounds", "1")

    assert record["results"]["largest_weight_difference"] == {
        "raw": 0,
        "raw_again": 0,
        "fit": 0,
        "fit_metrics": 0,
        "fit_recorded": 0,
        "fit_default": 0,
        "explicit": 0,
    }
    assert set(record["results"]["added_us"]) == set(record["results"]["largest_weight_difference"]) - {"raw"}
    assert set(record["results"]["fit_default"]) == {"each_step_us", "once_a_run_ms"}
    assert record["environment"]["versions"]["torch"]


def test_peers_that_are_not_installed_are_left_out_and_said(tmp_path: Path) -> None:
    record = run_benchmark("peers", tmp_path, "--steps", "20", "--rounds", "1", "--only", "Nobody")

    assert record["results"]["largest_weight_difference"] == {
        "raw": 0,
        "raw again": 0,
        "raw over a loader": 0,
        "velodrome.fit": 0,
    }
    assert "Lightning" in record["results"]["left_out"]


def test_a_recipes_job_runs_every_arm_in_a_process_of_its_own(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, and " * 196, encoding="utf-8")
    small = ["model.width=16", "model.num_heads=2", "model.num_layers=1", "data.window=32", f'data.path="{text}"']
    command = [sys.executable, str(ROOT / "benchmarks" / "recipe_jobs.py"), "--job", "gpt", "--records", str(tmp_path)]
    command += ["--rounds", "1", "--threads", "1", "--only", "fit", "--change", *small]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "char_gpt.json").read_text(encoding="utf-8"))
    assert record["environment"]["threads"] == 1
    assert set(record["results"]["arms"]) == {"tutorial", "fit"}
    assert record["results"]["arms"]["fit"]["weights_equal"]


def test_startup_times_whole_processes(tmp_path: Path) -> None:
    record = run_benchmark("startup", tmp_path, "--rounds", "1")

    assert record["results"]["import_torch_s"]["median"] > record["results"]["bare_python_s"]["median"]


def test_saving_compares_arms_whose_checkpoints_load_the_same_weights(tmp_path: Path) -> None:
    record = run_benchmark("saving", tmp_path, "--small", "--rounds", "1", "--folder", str(tmp_path))

    results = record["results"]["small"]
    assert set(results["loads_the_same_weights"].values()) == {True}
    assert results["num_weights"] == 16 * 8 + 8 + 8 * 4 + 4
    assert set(results["stall_ms"]) == set(results["added_ms_per_save"]) | {"no save"}


def test_data_paths_hand_out_the_same_batches(tmp_path: Path) -> None:
    record = run_benchmark("data_paths", tmp_path, "--samples", "640", "--rounds", "1")

    results = record["results"]
    assert set(results) == {"fixed", "augmented", "slow dataset"}
    assert {bits for group in results.values() for bits in group["equal_bits"].values()} == {True}
    assert set(results["augmented"]["speedup"]) == {"by batch, in memory", "by batch, read one by one"}


def test_the_tutorial_benchmark_names_the_missing_files(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tutorial_loop.py"), "--data-root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "no FashionMNIST file train-images-idx3-ubyte" in done.stderr
    assert "--data-root" in done.stderr


def test_recipes_below_their_target_are_said_to_be(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "recipes_accuracy.py"), "char-gpt", "--records", str(tmp_path)]
    small = ["train.epochs=1", "model.width=8", "model.num_layers=1", "data.window=256", "train.batch_size=64"]
    done = subprocess.run([*command, "--seeds", "3", "4", "--set", *small], capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    assert "Did not reach the target: char-gpt" in done.stderr  # 25 steps of a network of 2,000 weights
    results = json.loads((tmp_path / "recipes_accuracy.json").read_text(encoding="utf-8"))["char-gpt"]["results"]
    assert [run["seed"] for run in results["runs"]] == [3, 4]
    assert results["mean"] == sum(run["last"] for run in results["runs"]) / 2
    assert 2.4 < results["target"] < 2.5 < results["min"]  # the bigram model's loss
    assert not results["reached"]


@pytest.mark.slow
def test_tuning_compares_what_tune_finds_with_what_is_set_by_hand(tmp_path: Path) -> None:
    small = ["--set", "train.epochs=1", "data.source=embedded", "--seeds", "0", "--combinations", "1"]
    command = ["mnist-mlp", "--minutes", "0.02", "--seconds", "0.05", "--rounds", "1", *small]
    script = [sys.executable, str(ROOT / "benchmarks" / "tuning.py"), "--records", str(tmp_path), *command]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "Not reached" in done.stderr, done.stderr  # no time is judged here

    one = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))["results"]["mnist-mlp"]
    assert one["tune"]["budget_s"] == 1.2
    assert len(one["combinations"]) == 1
    assert one["accuracy"]["key"] == "val/accuracy"
    assert set(one["accepted"]) == {"speed", "time", "accuracy"}


def test_step_switches_measures_steps_that_end_at_the_same_loss(tmp_path: Path) -> None:
    record = run_benchmark("step_switches", tmp_path, "--rounds", "1", "--steps", "2")

    for name, arms in record["results"].items():
        assert {"loop", "fused", "bf16 autocast", "bf16 copies"} <= set(arms), name
        losses = [row["loss"] for row in arms.values()]
        assert max(losses) - min(losses) < 0.02, name


def test_freed_memory_compares_processes_that_train_the_same_weights(tmp_path: Path) -> None:
    record = run_benchmark("freed_memory", tmp_path, "--rounds", "1", "--steps", "2", "--jobs", "MLP, fp32")

    arms = record["results"]["MLP, fp32"]
    assert set(arms) == {"as glibc has it", "again", "kept"}
    assert all(each["weights_equal"] for each in arms.values())
    assert not arms["again"]["kept"]
