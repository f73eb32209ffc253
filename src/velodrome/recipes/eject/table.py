"""A table: columns standardised with the training rows, categories as one column each, and the target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from velodrome.recipes.eject.code import Part, assign
from velodrome.recipes.eject.refuse import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from velodrome.recipes.loaded_data import LoadedData

__all__ = ["table_part"]

_READ = '''\
def read_rows(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file{without}."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, skipinitialspace=True)
        {result}
'''
_RESULT = "return [row for row in rows if any(map(str.strip, row))]"
_RESULT_WITHOUT_NAMES = "return [row for row in rows if any(map(str.strip, row))][1:]"
_LOAD = '''\
def load_data(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs and targets for training, and both for validation."""
    rows = read_rows(path)
{split}
    columns = []
{columns}
    x = torch.from_numpy(np.stack(columns, axis=1).astype("float32"))
{target}
    return x[train], y[train], x[val], y[val]
'''
_TRAIN_ROWS = ["train, val = slice(None, TRAIN_ROWS), slice(TRAIN_ROWS, None)"]
_VAL_FRACTION = [
    "order = torch.randperm(",
    "    len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED)",
    ").tolist()",
    "num_val = round(len(rows) * VAL_FRACTION)",
    "train, val = sorted(order[num_val:]), sorted(order[:num_val])",
]
_NUMERIC = [
    "for index in NUMERIC:  # shifted and scaled by the training rows",
    "    values = np.array([float(row[index]) for row in rows])",
    "    columns.append((values - values[train].mean()) / values[train].std())",
]
_CATEGORICAL = [
    "for index in CATEGORICAL:  # one column for each value that training rows have",
    "    cells = np.array([row[index].strip() for row in rows])",
    "    columns += [(cells == value).astype(float) for value in np.unique(cells[train])]",
]


def table_part(arguments: Mapping[str, Any], data: LoadedData) -> Part:
    """Return the functions that read the table and prepare its columns.

    Raises:
        RecipeError: it validates on a table of its own, or a column is scaled in a way that is not written out here.
    """
    if arguments.get("val_path") is not None:
        raise refusal(
            "data.val_path",
            arguments["val_path"],
            "Put the rows into one table, and say data.train_rows or data.val_fraction.",
        )
    notes = data.preprocessing
    names = _column_names(data)
    for name, fitted in notes["numeric"].items():
        if not 1e-100 < abs(fitted["std"]) < 1e100 or _is_constant(data, name):
            raise refusal(
                "data.numeric",
                name,
                "Its training rows all hold one number, or huge or tiny ones. Leave the column out.",
            )
    numeric = [names.index(name) for name in notes["numeric"]]
    categorical = [names.index(name) for name in notes["categorical"]]
    by_rows = arguments.get("train_rows") is not None
    constants = [
        *([f"TRAIN_ROWS = {arguments['train_rows']}  # the first rows train, the rest validates"] if by_rows else []),
        *([] if by_rows else [f"VAL_FRACTION = {arguments['val_fraction']!r}  # of the rows, drawn at random"]),
        *([] if by_rows else [f"SPLIT_SEED = {arguments.get('seed', 0)}  # of that draw"]),
        *([_columns("NUMERIC", numeric, "Columns of numbers.")] if numeric else []),
        *([_columns("CATEGORICAL", categorical, "Columns of names.")] if categorical else []),
        f"TARGET = {notes['target_position']}  # the column to predict",
    ]
    target, more = _target(notes)
    load = _LOAD.format(
        split=_indented(_TRAIN_ROWS if by_rows else _VAL_FRACTION),
        columns=_indented([*(_NUMERIC if numeric else []), *(_CATEGORICAL if categorical else [])]),
        target=_indented(target),
    )
    read = _READ.format(
        without=", without the line of names" if notes["has_names"] else "",
        result=_RESULT_WITHOUT_NAMES if notes["has_names"] else _RESULT,
    )
    return Part(imports=("import csv", "import numpy as np"), constants=(*constants, *more), definitions=(read, load))


def _target(notes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the lines that make y, and the constants that they need."""
    if notes["task"] == "regression":
        lines = [
            "y = np.array([float(row[TARGET]) for row in rows])",
            'y = torch.from_numpy(y.astype("float32")).unsqueeze(1)',
        ]
        return lines, []
    classes = notes["class_names"]
    numbers = _as_numbers(classes)
    cell = "row[TARGET].strip()" if numbers is None else "float(row[TARGET])"
    constants = []
    if numbers == [float(index) for index in range(len(classes))]:
        position = "int(float(row[TARGET]))"
    else:
        constants.append(assign("CLASSES", classes if numbers is None else numbers, "In the order of their numbers."))
        position = f"CLASSES.index({cell})"
    if notes["task"] == "multiclass":
        return [f"y = torch.tensor([{position} for row in rows])"], constants
    lines = [f"labels = [[{position}] for row in rows]", "y = torch.tensor(labels, dtype=torch.float32)"]
    return lines, constants


def _columns(name: str, positions: list[int], comment: str) -> str:
    first, last = positions[0], positions[-1]
    if positions == list(range(first, last + 1)):
        return f"{name} = range({first}, {last + 1})  # {comment[0].lower()}{comment[1:-1]}"
    return assign(name, positions, comment)


def _as_numbers(classes: list[str]) -> list[float] | None:
    try:
        return [float(name) for name in classes]
    except ValueError:
        return None


def _is_constant(data: LoadedData, name: str) -> bool:
    column = data.train[0][:, list(data.preprocessing["numeric"]).index(name)]
    return bool((column == column[0]).all()) and math.isclose(data.preprocessing["numeric"][name]["std"], 1.0)


def _column_names(data: LoadedData) -> list[str]:
    from velodrome.data.sources.csv_file import read_table

    return read_table(data.files[0], header=data.preprocessing["has_names"]).names


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
