"""What a verb says: lines for people, or one JSON object for programs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Where lines go: stdout; with `--json` stderr, because stdout then holds the answer alone; nowhere with `-q`."""

    as_json: bool = False
    quiet: bool = False

    def say(self, line: str = "") -> None:
        """Show a line of news."""
        if not self.quiet:
            print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def say_data(self, line: str) -> None:
        """Show a line about the data: where they came from, and what is wrong with them."""
        self.say(line if line.startswith("warning: ") else f"Data: {line}")

    def answer(self, lines: str, data: Mapping[str, object]) -> None:
        """Show what was asked for: the lines, or with `--json` the data. Not silenced by `-q`."""
        if self.as_json:
            print_json(data)
        else:
            print(lines, flush=True)


def print_json(data: Mapping[str, object]) -> None:
    """Print one JSON object; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_finite(data), indent=2, ensure_ascii=True, default=str), flush=True)


def table(rows: list[tuple[str, str]]) -> str:
    """Return two columns, the first one as wide as its widest entry."""
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:<{width}}  {right}".rstrip() for left, right in rows)


def show_metrics(metrics: Mapping[str, object]) -> str:
    """Return `val/loss 0.3412, val/accuracy 0.8790` for the numbers among the metrics."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return ", ".join(
        f"{key} {value:.4g}" if abs(value) < 1e-3 else f"{key} {value:.4f}" for key, value in numbers.items()
    )


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
