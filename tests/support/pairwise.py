"""Tables in which every pair of settings occurs: few rows instead of every combination."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def covering_rows(factors: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Return few rows in which every pair of settings of two factors occurs, found greedily and always the same."""
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in range(len(factors[a]))
        for y in range(len(factors[b]))
    }
    rows = []
    while missing:
        (a, x), (b, y) = min(missing)
        row = {a: x, b: y}
        for name in names:
            if name not in row:
                gains = []
                for choice in range(len(factors[name])):
                    pairs = {tuple(sorted(((name, choice), pair), key=lambda p: names.index(p[0]))) for pair in row.items()}  # fmt: skip
                    gains.append((len(pairs & missing), -choice, choice))
                row[name] = max(gains)[2]
        missing -= {((p, row[p]), (q, row[q])) for p, q in itertools.combinations(names, 2)}
        rows.append({name: factors[name][row[name]] for name in names})
    return rows


def missing_pairs(
    factors: Mapping[str, tuple[Any, ...]], rows: list[dict[str, Any]]
) -> list[tuple[str, Any, str, Any]]:
    """Return the pairs of settings that no row has: looked for one by one, as a check of the above."""
    return [
        (a, x, b, y)
        for (a, xs), (b, ys) in itertools.combinations(factors.items(), 2)
        for x, y in itertools.product(xs, ys)
        if not any(row[a] == x and row[b] == y for row in rows)
    ]


def name_of(row: dict[str, Any]) -> str:
    """Return what a row is called in the list of tests."""
    return "-".join(f"{value}" for value in row.values())
