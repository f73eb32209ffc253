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


def test_an_unknown_table_is_refused_with_the_known_names(make_tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"no table 'speed'. Known: overhead, peers, recipes_accuracy, saving, startup, tutorial_loop"
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
