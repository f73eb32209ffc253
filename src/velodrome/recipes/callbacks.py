"""What a recipe's run keeps beside its records: the recipe itself, and how its data were prepared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from velodrome.callbacks.base import Callback
from velodrome.recipes.toml_writer import to_toml
from velodrome.record.atomic import replace_file

if TYPE_CHECKING:
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
        self._texts = {
            RECIPE_FILE: f"# The recipe of this run, with every default written out.\n\n{to_toml(ready.recipe.to_tables())}",
            PREPROCESSING_FILE: json.dumps(
                {"class_names": list(data.class_names), "data": dict(data.preprocessing)}, indent=2, ensure_ascii=False
            )
            + "\n",
        }

    def on_fit_start(self, trainer: Trainer) -> None:
        """Write both files."""
        if trainer.run_dir is None:
            return
        for name, text in self._texts.items():
            replace_file(trainer.run_dir / name, text.encode())
