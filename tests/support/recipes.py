"""The recipe that tests of recipes and of the command line train."""

from __future__ import annotations

NO_PICTURES = """
[logging]
tensorboard = false
curves = false
report = false
"""


def recipe_text(
    *, model: str, data: str, train: str = 'metrics = ["accuracy"]', batch_size: int = 32, tables: str = ""
) -> str:
    """Return a classifier's recipe: two epochs of Adam on the cross entropy.

    Args:
        model: the lines of `[model]`.
        data: the lines of `[data]`.
        train: lines that `[train]` has beside epochs and the size of batches.
        batch_size: of training.
        tables: more tables.
    """
    return f"""\
[model]
{model}

[data]
{data}

[loss]
name = "cross_entropy"

[optimizer]
name = "adam"
lr = 0.01

[train]
epochs = 2
batch_size = {batch_size}
{train}
{tables}"""
