"""Tables between markers are written from records, and stale ones are found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_tables.py"
RECORD = {
    "environment": {
        "cpu": "Some CPU",
        "cores": 2,
        "date": "2026-01-02",
        "rounds": 11,
        "versions": {"torch": "2.13.0"},
    },
    "results": {
        "import_torch_s": {"median": 1.5},
        "added_by_velodrome_ms": {"median": 42.4},
        "help_s": {"median": 0.314},
    },
}
PAGE = "before\n<!-- table: startup -->\nold\n<!-- end table -->\nafter\n"


@pytest.fixture
def make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_is_written_between_its_markers(make_tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "startup.json").write_text(json.dumps(RECORD), encoding="utf-8")

    page = make_tables.filled(PAGE, tmp_path)

    assert page.startswith("before\n<!-- table: startup -->\n|  | median |\n| --- | ---: |\n")
    assert "| `import velodrome; velodrome.Trainer` adds | 42 ms |" in page
    assert "Some CPU, 2 cores, torch 2.13.0, 2026-01-02." in page
    assert page.endswith("\n<!-- end table -->\nafter\n")
    assert "old" not in page
    assert make_tables.filled(page, tmp_path) == page


def test_recipes_show_their_mean_worst_seed_and_target(make_tables: ModuleType, tmp_path: Path) -> None:
    common = {"n": 3, "epochs": 5, "data": "8 + 2"}
    accuracy = {"key": "val/accuracy", "mean": 0.98, "sd": 0.001, "min": 0.979, "max": 0.981, "target": 0.975}
    loss = {"key": "val/loss", "mean": 1.5, "sd": 0.01, "min": 1.49, "max": 1.51, "target": 2.446}
    record = {
        name: {"results": {**common, **results}, "environment": {**RECORD["environment"], "threads": 1}}
        for name, results in {"digits": accuracy, "letters": loss}.items()
    }
    (tmp_path / "recipes_accuracy.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "recipes_accuracy"), tmp_path)

    assert "| `digits` | **98.00%** | 0.10% | 97.90% | 97.5% | 5 |" in page
    assert "| `letters` | **1.500** nats a character | 0.010 | 1.510 | below 2.446, a bigram model | 5 |" in page
    assert "means over 3 seeds. `digits`: 8 + 2; `letters`: 8 + 2. Some CPU, 2 cores, 1 thread, torch 2.13.0" in page


def test_a_table_without_a_record_says_that_it_was_not_measured(make_tables: ModuleType, tmp_path: Path) -> None:
    assert "Not measured yet: run `make bench`." in make_tables.filled(PAGE, tmp_path)


def one(value: float) -> dict[str, float]:
    return {"median": value}


def test_trainers_are_sorted_by_their_time_with_what_they_learned(make_tables: ModuleType, tmp_path: Path) -> None:
    def arm(seconds: float, **more: object) -> dict[str, object]:
        ran = ranged(seconds, 0.9 * seconds, 2 * seconds)
        return {"seconds": ran, "times_ours": one(seconds / 2), "peak_rss_mb": 1234.0, **more}

    learned = {"accuracy": 0.65, "weights_equal": True, "largest_weight_difference": 0.0}
    record = {
        "environment": {**RECORD["environment"], "epochs": 5, "switches": {"precision": "bf16"}},
        "results": {
            "arms": {
                "Ignite": arm(3.0, **learned),
                "Keras": arm(6.0, **learned),
                "velodrome.fit, switches": arm(1.5, **learned),
                "velodrome.fit": arm(2.0, **learned),
                "floor: bare steps": arm(1.0),
                "floor: bare steps, freed memory kept": arm(1.6),
                "raw over a loader": arm(2.5, **learned),
            },
            "best_peer": one(1.5),
            "median_peer": one(2.5),
            "times_floor": one(1.05),
            "times_kept_floor": one(1.25),
            "noise": one(1.01),
        },
    }  # fmt: skip
    record["environment"]["versions"]["pytorch-ignite"] = "0.5"
    (tmp_path / "end_to_end.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "end_to_end"), tmp_path)

    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines[2] == "| floor: bare steps |  | 1.0 | 0.50 | 0.9 |  |  | 1,234 |"
    assert lines[5] == "| **`velodrome.fit`** |  | 2.0 | 1.00 | 1.8 | 65.00% | 0 | 1,234 |"
    assert lines[7] == "| Ignite | 0.5 | 3.0 | 1.50 | 2.7 | 65.00% | 0 | 1,234 |"
    # 2.7 / 1.8 and 5.4 / 1.8 of Ignite and Keras, and 1.8 / 1.44
    assert (
        "best of the others takes 1.50 times as long as `fit`, their median 2.25 times, and `fit` 1.25 times as long as the bare"
        in page
    )
    assert "The best of the other trainers takes 1.50 times as long as `fit`, the median 2.50 times." in page
    assert "1.05 times what the bare steps alone take on one ready batch, and 1.25 times what they take" in page
    assert "Switches: `precision='bf16'`." in page


def ranged(median: float, low: float, high: float) -> dict[str, float]:
    return {"n": 3, "median": median, "min": low, "max": high}


def test_the_tutorial_rows_have_a_range_each(make_tables: ModuleType, tmp_path: Path) -> None:
    results: dict[str, object] = {
        "weights_equal": True,
        "recipe_weights_equal": True,
        "noise": ranged(1.01, 0.97, 1.05),
    }
    fastest = {"tutorial": 9.0, "velodrome": 3.0, "recipe": 4.5, "switches": 2.0}
    for name, prefix in (("tutorial", ""), ("velodrome", ""), ("recipe", "recipe_"), ("switches", "switches_")):
        results |= {
            f"{name}_s": ranged(10.0, fastest[name], 12.0),
            f"{name}_accuracy": [0.1, 0.65],
            f"{name}_test_loss": [2.0, 1.5],
        }
        results |= {f"{prefix}speedup": ranged(3.0 + len(prefix), 2.5, 3.5 + len(prefix))}
    facts = {**RECORD["environment"], "epochs": 5, "recipe_switches": ["train.precision=bf16"]}
    (tmp_path / "tutorial_loop.json").write_text(
        json.dumps({"environment": facts, "results": results}), encoding="utf-8"
    )

    page = make_tables.filled(PAGE.replace("startup", "tutorial_loop"), tmp_path)

    assert "| `velodrome.fit` | 10.0 | **3.00** (2.50 to 3.50) | 3.0 | 65.00% | 1.500000 |" in page
    assert (
        "| the recipe with `train.precision=bf16` | 10.0 | **12.00** (2.50 to 12.50) | 2.0 | 65.00% | 1.500000 |"
        in page
    )
    assert "`fit` is 3.00 times as fast as that loop, the recipe 2.00 times and with the switch 4.50 times." in page
    assert "gives 1.01 (0.97 to 1.05)" in page
    assert "but for the last row, whose switch was set by hand" in page


def test_default_settings_are_divided_into_each_step_and_once(make_tables: ModuleType, tmp_path: Path) -> None:
    added = {"raw_again": one(0.5), "fit": one(-20.0), "fit_default": one(40.0)}
    divided = {"each_step_us": one(2.25), "once_a_run_ms": one(188.0)}
    results = {"raw_step_us": one(150.0), "added_us": added, "fit_default": divided}
    record = {"environment": {**RECORD["environment"], "steps": 5000}, "results": results}
    (tmp_path / "overhead.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "overhead"), tmp_path)

    assert "default settings: TensorBoard, curves, the report and progress, too | +40.0 |" in page
    assert "+2.2 microseconds belong to each step, and 188 ms to the run" in page


def test_ways_of_data_are_compared_with_the_first_of_their_group(make_tables: ModuleType, tmp_path: Path) -> None:
    group = {"batch_us": {"PyTorch": one(1000.0), "in memory": one(50.0)}, "speedup": {"in memory": one(20.0)}}
    record = {
        "environment": {**RECORD["environment"], "samples": 20_000, "batch_size": 64},
        "results": {"fixed": {**group, "equal_bits": {"in memory": True}}},
    }
    (tmp_path / "data_paths.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "data_paths"), tmp_path)

    assert "| fixed: PyTorch | 1,000 | 1 |  |" in page
    assert "| fixed: in memory | 50 | 20.00 | the same bits |" in page


def test_kept_memory_shows_its_page_faults_and_bits(make_tables: ModuleType, tmp_path: Path) -> None:
    arm = {"step_us": one(1400.0), "part": ranged(0.7, 0.65, 0.75), "page_faults": one(1.0), "peak_mb": one(335.0)}
    record = {"environment": RECORD["environment"], "results": {"MLP": {"kept": {**arm, "weights_equal": True}}}}
    (tmp_path / "freed_memory.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "freed_memory"), tmp_path)

    assert "| MLP: kept | 1,400 | 0.70 (0.65 to 0.75) | 1 | 335 | the same bits |" in page


def test_switches_of_a_step_show_what_the_chip_has(make_tables: ModuleType, tmp_path: Path) -> None:
    arm = {"us": one(2000.0), "of fused": ranged(0.7, 0.6, 0.8), "loss": 2.25}
    facts = {**RECORD["environment"], "steps": 40, "freed_memory_kept": True}
    chip = {"cpu_name": "x", "avx512_f": True, "amx_bf16": False}
    record = {"environment": facts, "chip": chip, "results": {"mlp, sgd": {"bf16 autocast": arm}}}
    (tmp_path / "step_switches.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "step_switches"), tmp_path)

    assert "| mlp, sgd: bf16 autocast | 2,000 | 0.70 (0.60 to 0.80) | 2.2500 |" in page
    assert "Instructions of the chip: avx512_f. Memory that a step frees is kept." in page


def test_speedruns_show_how_many_seeds_reached_the_target(make_tables: ModuleType, tmp_path: Path) -> None:
    results = {"n": 10, "reached": 9, "target": 0.9, "accuracy": {"mean": 0.9012, "sd": 0.001}, "epochs": 2}
    results |= {"seconds": {"mean": 6.25, "sd": 0.5}, "steps": 938, "precision": "fp32"}
    record = {"some-run": {"results": results, "environment": RECORD["environment"]}}
    (tmp_path / "speedruns.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "speedruns"), tmp_path)

    assert "| `some-run` | 90.0% | 10 | 9 | **90.12%** ± 0.10% | **6.2** ± 0.5 | 2 | 938 | fp32 |" in page


def test_steps_on_a_device_show_waits_and_tests(make_tables: ModuleType, tmp_path: Path) -> None:
    arm = {"step_us": one(71.25), "times_raw": one(4.5), "times_tutorial": one(40.0), "largest_loss_difference": 1e-6}
    waits = {"captured, fp32": {"added": 0}, "control: .item() a step": {"added": 80}}
    results = {"mlp": {"arms": {"captured, fp32": {**arm, "peak_allocated_mb": 250.0}}, "waits": waits}}
    facts = {**RECORD["environment"], "device": "Some GPU", "rows": 60_000}
    record = {"environment": facts, "results": results, "tests": "passed: 9 passed"}
    (tmp_path / "gpu.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled(PAGE.replace("startup", "gpu"), tmp_path)

    assert "| MLP, **`fit`**, captured, fp32 | 71.2 | 4.50 | 40.0 | 1e-06 | 250 |" in page
    assert "captured, fp32 (MLP) 0, control: .item() a step (MLP) 80." in page
    assert "tests/gpu: passed: 9 passed. Some GPU" in page


@pytest.mark.parametrize(("name", "command"), [("gpu", "make bench-gpu"), ("speedruns", "make speedruns")])
def test_a_table_without_a_record_names_what_makes_it(
    make_tables: ModuleType, tmp_path: Path, name: str, command: str
) -> None:
    assert f"run `{command}`" in make_tables.filled(PAGE.replace("startup", name), tmp_path)


def test_an_unknown_table_is_refused_with_the_known_names(make_tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"no table 'speed'. Known: char_gpt, .*overhead, peers, .*startup, .*tutorial_loop"
    ):
        make_tables.filled(PAGE.replace("startup", "speed"), tmp_path)


def test_check_finds_a_stale_page_and_changes_nothing(
    make_tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(make_tables, "ROOT", tmp_path)
    monkeypatch.setattr(make_tables, "pages", lambda: [page])
    monkeypatch.setattr("sys.argv", ["make_tables.py", "--check"])

    with pytest.raises(SystemExit, match=r"do not match benchmarks/records: README.md. Run: make tables"):
        make_tables.main()

    assert page.read_text(encoding="utf-8") == PAGE


def test_tune_is_shown_beside_the_best_by_hand(make_tables: ModuleType, tmp_path: Path) -> None:
    runs = {"recipe": [{}, {}], "tuned": [{}, {}]}
    good = {
        "tune": {
            "best": {"train.precision": "bf16", "train.channels_last": True},
            "verified": {"faster": True, "as_good": True, "speed_up": 1.5},
            "seconds": 170.4,
            "budget_s": 180.0,
        },
        "best_by_hand": {"fields": {"train.threads": 2}, "speed": 1.02},
        "share_of_best": 0.98,
        "noise": 0.012,
        "accuracy": {"key": "val/accuracy", "epochs": 2, "mean": {"recipe": 0.9, "tuned": 0.901}, "runs": runs},
    }
    nothing = {
        **good,
        "tune": {"best": None, "verified": None, "seconds": 60.0, "budget_s": 180.0},
        "accuracy": {"key": "val/loss", "epochs": 1, "mean": {"recipe": 1.5, "tuned": 1.5}, "runs": runs},
    }
    record = {"environment": RECORD["environment"], "results": {"cnn": good, "gpt": nothing}}
    (tmp_path / "tuning.json").write_text(json.dumps(record), encoding="utf-8")

    page = make_tables.filled("<!-- table: tuning -->\n<!-- end table -->\n", tmp_path)

    assert (
        "| `cnn` | `train.precision=bf16`, `train.channels_last=true` | 1.50 times | `train.threads=2` | **98%** | 170 s of 180 s | "
        "90.00% after 2 epochs | 90.10% |"
    ) in page
    assert (
        "| `gpt` | the recipe as it is |  | `train.threads=2` | **98%** | 60 s of 180 s | 1.5000 after 1 epoch | 1.5000 |"
        in page
    )
    assert "lie 1.2%, 1.2% apart" in page
    assert "means over 2 seeds" in page
