"""docs/recipes.md names every field of the schema in the row of its table, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from velodrome import transforms
from velodrome.recipes.named_transforms import FIXED, TRANSFORMS
from velodrome.recipes.schema import KNOWN_FIELDS

PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")


def fields_of(table: str) -> set[str]:
    """Return what stands in code in the rows of a table: words that are no values in quotes."""
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `[{table}]`")]
    return set(re.findall(r"`([a-z][a-z_]*)`", " ".join(row.split("|", 2)[2] for row in rows)))


@pytest.mark.parametrize("table", [name for name in KNOWN_FIELDS if name])
def test_every_field_of_a_table_is_named_and_no_other(table: str) -> None:
    assert fields_of(table) - {"true", "false"} == set(KNOWN_FIELDS[table])


def test_every_table_has_a_row() -> None:
    assert set(KNOWN_FIELDS[""]) == {name for name in KNOWN_FIELDS if name}
    assert all(fields_of(name) for name in KNOWN_FIELDS[""])


def test_every_transform_is_named() -> None:
    section = PAGE.partition("## Transforms")[2].partition("\n## ")[0]
    random, fixed = section.partition("Random ones")[2].split("Fixed ones")
    assert set(re.findall(r"`([a-z_]+)`", random)) == set(TRANSFORMS) - set(FIXED)
    assert set(re.findall(r"`([a-z_]+)`", fixed.partition(".")[0])) == set(FIXED)


def test_every_batched_transform_can_be_named() -> None:
    assert set(TRANSFORMS.values()) == set(transforms.__all__) - {"Compose", "Draws", "Transform"}
