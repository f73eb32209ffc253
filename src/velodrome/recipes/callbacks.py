"""What a recipe's run keeps beside its records: the recipe itself, and how its data were prepared."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from velodrome.callbacks.base import Callback
from velodrome.recipes.toml_writer import to_toml
from velodrome.record.atomic import replace_file
from velodrome.record.reading import MAX_RECORD_BYTES, read_limited
from velodrome.record.run_directory import add_event
from velodrome.report.differences import find_differences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from velodrome.recipes.build import Ready
    from velodrome.trainer import Trainer

RECIPE_FILE = "recipe.toml"
PREPROCESSING_FILE = "preprocessing.json"


class SaveRecipe(Callback):
    """Writes `recipe.toml` (resolved, can be run again) and `preprocessing.json` into the run directory.

    Evaluation and prediction read them later, to rebuild the model and to prepare new rows as the training rows were.
    """

    def __init__(self, ready: Ready) -> None:
        data = ready.data
        self._tables = ready.recipe.to_tables()
        self._texts = {
            RECIPE_FILE: f"# The recipe of this run, with every default written out.\n\n{to_toml(self._tables)}",
            PREPROCESSING_FILE: json.dumps(
                {"class_names": list(data.class_names), "data": dict(data.preprocessing)}, indent=2, ensure_ascii=False
            )
            + "\n",
        }

    def on_fit_start(self, trainer: Trainer) -> None:
        """Write both files; a recipe that is not the one which the run had is an event, with what was changed."""
        if trainer.run_dir is None:
            return
        changes = _changes(trainer.run_dir / RECIPE_FILE, self._tables)
        if changes:
            add_event(trainer.run_dir, {"event": "recipe_changed", "changes": changes})
        for name, text in self._texts.items():
            replace_file(trainer.run_dir / name, text.encode())


def _changes(file: Path, tables: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what is otherwise than in the recipe that the run had, before and now; nothing where there was none to read."""
    try:
        before = tomllib.loads(read_limited(file, MAX_RECORD_BYTES).decode())
    except (OSError, ValueError, RecursionError):  # TOMLDecodeError is a ValueError
        return {}
    return {each.name: list(each.values) for each in find_differences([before, tables])}
