"""The benchmark harness takes turns, keeps rounds together, and writes what a reader needs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "harness.py"


@pytest.fixture
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_harness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FOLDER = SCRIPT.parent
PARSING = sorted(path.stem for path in FOLDER.glob("*.py") if "ArgumentParser(" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PARSING)
def test_every_benchmark_describes_itself_in_whole_sentences(script, monkeypatch, capsys, name: str) -> None:
    module = script(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.partition("\n\n")[2].partition("\n\n")[0].split())
    assert shown[-1] in ".:?", shown
    assert shown.startswith(" ".join(module.__doc__.splitlines()[0].split()[:5]))


@pytest.mark.parametrize(
    "name", [each for each in PARSING if "add_common_options(" in (FOLDER / f"{each}.py").read_text(encoding="utf-8")]
)
@pytest.mark.parametrize("rounds", ["0", "-1", "two"])
def test_no_rounds_are_refused(script, monkeypatch, capsys, name: str, rounds: str) -> None:
    module = script(name)
    monkeypatch.setattr(sys, "argv", [name, "--rounds", rounds])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 2
    assert f"argument --rounds: '{rounds}' is not a whole number of at least 1." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("overhead", ["--steps", "0"], "argument --steps: '0' is not a whole number of at least 1."),
        ("freed_memory", ["--steps", "-1"], "argument --steps: '-1' is not a whole number of at least 0."),
        ("recipes_accuracy", ["--seeds", "0"], "a standard deviation needs at least two different seeds"),
        ("tuning", ["--minutes", "0"], "argument --minutes: '0' is not a number above 0."),
        ("tuning", ["--seconds", "nan"], "argument --seconds: 'nan' is not a number above 0."),
        ("tuning", ["--seconds", "soon"], "argument --seconds: 'soon' is not a number above 0."),
    ],
)
def test_other_numbers_that_measure_nothing_are_refused(script, monkeypatch, capsys, name, arguments, message) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as left:
        script(name).main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_numbers_that_measure_something_are_taken(harness: ModuleType) -> None:
    assert (harness.at_least_one("1"), harness.zero_or_more("0"), harness.above_zero("0.5")) == (1, 0, 0.5)


def test_arms_take_turns_and_the_order_turns_round(harness: ModuleType) -> None:
    order: list[str] = []

    def arm(name: str) -> int:
        order.append(name)
        return len(order)

    results = harness.interleave({"a": lambda: arm("a"), "b": lambda: arm("b")}, rounds=3, say=False)

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_ratios_are_taken_within_a_round(harness: ModuleType) -> None:
    assert harness.ratios([10.0, 9.0], [2.0, 3.0]) == [5.0, 3.0]


def test_summary_gives_median_and_range(harness: ModuleType) -> None:
    assert harness.summary([3.0, 1.0, 8.0]) == {"n": 3, "median": 3.0, "min": 1.0, "max": 8.0}


def test_environment_names_versions_processor_and_date(harness: ModuleType) -> None:
    facts = harness.environment(threads=2)

    assert facts["threads"] == 2
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["versions"]["torch"]
    assert len(facts["date"]) == 10


def test_a_record_is_json_under_its_name(
    harness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = harness.write_record("speed", {"results": {"x": 1.5}}, tmp_path / "records")

    assert path == tmp_path / "records" / "speed.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {"results": {"x": 1.5}}
    assert "Wrote" in capsys.readouterr().out
