"""The table of faults names tests that exist, and leaves no case out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS / "faults" / "README.md"
NUM_CASES = 56


def cases_of(text):
    """Return, by its number, the tests that a table names for each case (file and function), and what it says."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("|") and cells[0].isdigit():
            assert int(cells[0]) not in found, f"case {cells[0]} stands there twice"
            file, tests = "", []
            for name in re.findall(r"`([^`]+)`", cells[-1]):
                file, tests = (name, tests) if name.endswith(".py") else (file, [*tests, (file, name)])
            found[int(cells[0])] = (tests, " ".join(cells[1:]))
    return found


@cache
def names_in(path):
    """Return the names of a file's test functions."""
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def mistakes_in(text, root=TESTS):
    """Return what is wrong with a table: cases that are missing, or say nothing, and tests that do not exist."""
    cases = cases_of(text)
    wrong = [f"case {number} is missing" for number in range(1, NUM_CASES + 1) if number not in cases]
    for number, (tests, said) in cases.items():
        if not tests and "cannot be tested" not in said.lower():
            wrong.append(f"case {number} names no test and no reason")
        wrong += [
            f"case {number}: {file}::{name} does not exist" for file, name in tests if name not in names_in(root / file)
        ]
    return wrong


def test_every_case_has_tests_that_exist_or_a_reason():
    assert mistakes_in(TABLE.read_text("utf-8")) == []


def test_negative_control_a_missing_case_a_renamed_test_and_an_empty_row_are_found():
    whole = TABLE.read_text("utf-8")
    without = "\n".join(line for line in whole.splitlines() if not line.startswith("| 14 |"))
    assert "case 14 is missing" in mistakes_in(without)
    renamed = whole.replace("`test_prune_touches_only_its_own_run`", "`test_prune_touches_everything`")
    assert "case 44: unit/checkpoint/test_store.py::test_prune_touches_everything does not exist" in mistakes_in(
        renamed
    )
    assert "case 99 names no test and no reason" in mistakes_in(f"{whole}\n| 99 | x | y | none |")
    assert "case 98 names no test and no reason" not in mistakes_in(
        f"{whole}\n| 98 | x | Cannot be tested: no such disk | none |"
    )
