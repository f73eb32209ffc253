"""Tables: a CSV file becomes standardised inputs and targets, and new rows are prepared in exactly the same way.

Numeric columns are standardised with the mean and standard deviation of the training rows; categorical ones become one
column for each value seen in training. Cells must be filled: a NaN is refused with its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy
import torch
from torch import Tensor

from velodrome.data.sources.csv_file import Table, is_number, read_table
from velodrome.data.sources.splits import Splits
from velodrome.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Task", "load_csv", "prepare_csv_rows"]

Task = Literal["auto", "binary", "multiclass", "regression"]
_TASKS = ("auto", "binary", "multiclass", "regression")
_MAX_AUTO_CLASSES = 20


def load_csv(
    path: str | Path,
    *,
    target: str | int = -1,
    numeric: Sequence[str | int] | None = None,
    categorical: Sequence[str | int] = (),
    header: bool | None = None,
    val_fraction: float | None = None,
    train_rows: int | None = None,
    val_path: str | Path | None = None,
    seed: int = 0,
    task: Task = "auto",
    say: Callable[[str], object] = print,
) -> Splits:
    """Read a table for training and validation.

    Args:
        path: a CSV file, UTF-8, one row a sample.
        target: the column to predict, by name or position; negative positions count from the end.
        numeric: the columns that are numbers; every one that is neither target nor categorical when left out.
        categorical: the columns that are names of things; they become one input for each value seen in training.
        header: whether the first row holds names; None finds out: it does when one of its cells is a word and the cells
            below it are numbers. Where that does not tell, as with no numbers at all, it must be said.
        val_fraction: this share of the rows, drawn with `seed`, validates.
        train_rows: the first so many rows train, the rest validates.
        val_path: the rows of this file validate.
        seed: of the draw for `val_fraction`.
        task: "binary" gives targets float32 (N, 1) of 0 and 1, "multiclass" class indices int64 (N,), "regression" float32
            (N, 1); classes that are numbers are told apart by value: 1, 1.0 and 01 are one; "auto" is binary for two values, multiclass for words or up to 20 whole numbers, and regression otherwise.
        say: gets lines for people.
    Returns:
        Inputs float32 (N, features), and in `preprocessing` what `prepare_csv_rows` needs.
    Raises:
        DataError: a missing or empty file, ragged rows, an unknown column, cells that are empty or no numbers, too few rows.
        ArgumentError: not exactly one way to split was given, or it is out of range.
    """
    if task not in _TASKS:
        raise ArgumentError(f"task={task!r} is unknown. It is one of {', '.join(_TASKS)}.")
    ways = {"val_fraction": val_fraction, "train_rows": train_rows, "val_path": val_path}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise ArgumentError(
            f"{' and '.join(given) or 'No split'} was given. Say once what validates: val_fraction=0.2, train_rows=700 or val_path=..."
        )
    _check_arguments(val_fraction=val_fraction, seed=seed, header=header, numeric=numeric, categorical=categorical)
    table = read_table(path, header=header)
    train_table = val_table = table
    if val_path is None:
        train_index, val_index = _split(table, val_fraction, train_rows, seed)
        train_table, val_table = table.rows_at(train_index), table.rows_at(val_index)
    target_name = table.column_name(target)
    categorical_names = [table.column_name(column) for column in categorical]
    if numeric is None:
        numeric_names = [name for name in table.names if name != target_name and name not in categorical_names]
    else:
        numeric_names = [table.column_name(column) for column in numeric]
    inputs_used = [*numeric_names, *categorical_names]
    if target_name in inputs_used or len(set(inputs_used)) < len(inputs_used) or not inputs_used:
        raise ArgumentError(
            f"The columns do not fit together: target {target_name!r}, numeric {numeric_names}, categorical {categorical_names}. "
            f"Each column has one part, the target is none of the inputs, and there is at least one input."
        )
    preprocessing = {
        "kind": "csv",
        "header": header,
        "target": target_name,
        "target_position": table.names.index(target_name),
        "num_columns": len(table.names),
        "has_names": table.has_names,
        "numeric": _fit_numeric(train_table, numeric_names),
        "categorical": {name: sorted(set(train_table.texts(name))) for name in categorical_names},
        **_fit_target(table if val_path is None else train_table, target_name, task),
    }
    if val_path is not None:
        val_table = _read_like_training(val_path, preprocessing, say)
    train = (_inputs(train_table, preprocessing, say), _targets(train_table, preprocessing))
    val = (_inputs(val_table, preprocessing, say), _targets(val_table, preprocessing))
    origin = f"{Path(path).name}: {len(train[0]):,} + {len(val[0]):,} rows, {train[0].shape[1]} inputs, target {target_name} ({preprocessing['task']})"
    say(origin)
    return Splits(
        train=train,
        val=val,
        origin=origin,
        class_names=tuple(preprocessing["class_names"]),
        preprocessing=preprocessing,
        files=tuple(Path(file) for file in (path, val_path) if file is not None),
    )


def prepare_csv_rows(
    path: str | Path, preprocessing: Mapping[str, Any], *, say: Callable[[str], object] = print
) -> Tensor:
    """Return the inputs of new rows, prepared as the training rows were: float32 (N, features).

    Args:
        path: a table with the same columns; the target's may be missing.
        preprocessing: of `Splits`, also after a trip through JSON.
    Raises:
        DataError: as `load_csv`; or a column of the training table is missing.
    """
    return _inputs(_read_like_training(path, preprocessing, say), preprocessing, say)


def _read_like_training(path: str | Path, preprocessing: Mapping[str, Any], say: Callable[[str], object]) -> Table:
    """Read a table with the columns of the training table: by name when that had names, by position otherwise."""
    inputs = [*preprocessing["numeric"], *preprocessing["categorical"]]
    if preprocessing["has_names"]:
        table = read_table(path, header=True)
        if not set(inputs) & set(table.names):
            raise DataError(
                f"The first row of {table.path} ({', '.join(table.names[:5])}) holds none of the names of the training table. "
                f"Put these above the columns, in their order: {', '.join(inputs)}.",
                path=table.path,
            )
        return table
    table = read_table(path, header=False)
    table = table.with_names(_positional_names(table, preprocessing))
    words = [not is_number(table.rows[0][table.names.index(name)]) for name in preprocessing["numeric"]]
    if words and all(words) and len(table.rows) > 1:
        say(f"{table.path.name}: the first row holds no number and counts as names: {', '.join(table.rows[0][:5])}")
        table = table.rows_at(range(1, len(table.rows)))
    return table


def _check_arguments(
    *, val_fraction: object, seed: object, header: object, numeric: object, categorical: object
) -> None:
    if val_fraction is not None and (isinstance(val_fraction, bool) or not isinstance(val_fraction, int | float)):
        raise ArgumentError(f"val_fraction={val_fraction!r} is no number. It must lie between 0 and 1, such as 0.2.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ArgumentError(f"seed={seed!r} is no seed. It must be a whole number from 0 to 2^64 - 1.")
    if header not in (None, True, False):
        raise ArgumentError(f"header={header!r} is not known. It is True, False, or None to find out.")
    for name, columns in {"numeric": numeric, "categorical": categorical}.items():
        if columns is not None and (isinstance(columns, str) or not isinstance(columns, Sequence)):
            raise ArgumentError(f"{name}={columns!r} is no list of columns. Write {name}=[{columns!r}].")


def _positional_names(table: Table, preprocessing: Mapping[str, Any]) -> list[str]:
    """Return the names that the columns of a table without a header had in training, where the target may be missing."""
    total, target = preprocessing["num_columns"], preprocessing["target_position"]
    names = [f"column {index}" for index in range(total)]
    if len(table.names) == total - 1:
        names.pop(target)
    if len(table.names) != len(names):
        raise DataError(
            f"{table.path} has {len(table.names)} columns. The training table had {total}, its target included. Give the same columns."
        )
    return names


def _split(table: Table, val_fraction: float | None, train_rows: int | None, seed: int) -> tuple[list[int], list[int]]:
    total = len(table.rows)
    if train_rows is not None:
        if isinstance(train_rows, bool) or not isinstance(train_rows, int) or train_rows < 1:
            raise ArgumentError(
                f"train_rows={train_rows!r} is not a number of rows. It must be a whole number of at least 1."
            )
        if train_rows >= total:
            raise DataError(
                f"train_rows={train_rows} leaves nothing to validate: {table.path} has {total} rows. Use fewer than {total}."
            )
        return list(range(train_rows)), list(range(train_rows, total))
    assert val_fraction is not None
    num_val = round(total * val_fraction) if 0 < val_fraction < 1 else 0
    if not 0 < num_val < total:
        raise ArgumentError(
            f"val_fraction={val_fraction} of the {total} rows of {table.path} is {num_val}. "
            f"It must lie between 0 and 1 and leave rows on both sides."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()  # SYNC: on the CPU
    return sorted(order[num_val:]), sorted(order[:num_val])


def _fit_numeric(table: Table, names: Sequence[str]) -> dict[str, dict[str, float]]:
    fitted = {}
    for name in names:
        values = table.numbers(name)
        # A column that never changes tells nothing: it becomes 0 instead of a division by zero. Its computed deviation may
        # be a rounding error above zero, so it is the values that are compared.
        is_constant = values.min() == values.max()
        with numpy.errstate(over="ignore", invalid="ignore"):
            mean, std = float(values.mean()), float(values.std())  # SYNC: none, these are NumPy's
        if not (0 < std < math.inf and math.isfinite(mean)) and not is_constant:
            # Squares of tiny values vanish and those of huge ones overflow: compute in another unit.
            scale = numpy.abs(values).max()
            mean, std = float((values / scale).mean() * scale), float((values / scale).std() * scale) or 1.0
        fitted[name] = {"mean": float(values[0]) if is_constant else mean, "std": 1.0 if is_constant else std}
    return fitted


def _fit_target(table: Table, name: str, task: Task) -> dict[str, Any]:
    is_numeric = table.is_numeric(name)
    texts = sorted({_class_name(text) if is_numeric else text for text in table.texts(name)})
    if task == "auto":
        few_whole = is_numeric and len(texts) <= _MAX_AUTO_CLASSES and all(float(text).is_integer() for text in texts)
        task = "binary" if len(texts) == 2 else "multiclass" if few_whole or not is_numeric else "regression"
    if task == "regression":
        table.numbers(name)  # refuses cells that are no numbers
        return {"task": task, "class_names": []}
    if task == "binary" and len(texts) != 2:
        raise DataError(
            f'The target {name!r} has {len(texts)} values ({", ".join(texts[:5])}). A binary target has two: use task="multiclass" or "regression".'
        )
    if len(texts) < 2:
        raise DataError(
            f"The target {name!r} is {texts[0]!r} in all {len(table.rows)} rows. There is nothing to learn: check the column."
        )
    if is_numeric:
        texts.sort(key=float)
    return {"task": task, "class_names": texts}


def _inputs(table: Table, preprocessing: Mapping[str, Any], say: Callable[[str], object]) -> Tensor:
    columns = []
    for name, fitted in preprocessing["numeric"].items():
        with numpy.errstate(all="ignore"):
            columns.append((table.numbers(name) - fitted["mean"]) / fitted["std"])
    for name, known in preprocessing["categorical"].items():
        texts = table.texts(name)
        unseen = sorted(set(texts) - set(known))
        if unseen:
            say(
                f"warning: column {name!r} of {table.path.name} has values that training never saw ({', '.join(unseen[:5])}); they count as none of the known ones."
            )
        columns.extend(numpy.array([text == value for text in texts], dtype=numpy.float64) for value in known)
    values = numpy.stack(columns, axis=1)
    _check_range(table, numpy.abs(values).max(axis=1), "an input")
    return torch.from_numpy(values.astype(numpy.float32))


def _check_range(table: Table, largest: numpy.ndarray, what: str) -> None:
    """Refuse numbers that float32 would turn into infinity.

    Raises:
        DataError: names the first row.
    """
    bad = numpy.flatnonzero(~(largest <= numpy.finfo(numpy.float32).max))
    if len(bad):
        raise DataError(
            f"{table.path}, line {table.lines[bad[0]]} gives {what} of {largest[bad[0]]:g}; {len(bad)} of {len(largest)} rows do so. "
            f"Float32 ends at 3.4e38: correct them, or write the column in another unit.",
            path=table.path,
            line=table.lines[bad[0]],
            count=len(bad),
        )


def _class_name(text: str) -> str:
    """Return how a number is called as a class: 1, 1.0 and 01 are one class."""
    try:
        return str(int(text))  # exact, however long
    except ValueError:
        value = float(text)
        return str(int(value)) if value.is_integer() else repr(value)


def _targets(table: Table, preprocessing: Mapping[str, Any]) -> Tensor:
    name, classes = preprocessing["target"], preprocessing["class_names"]
    if preprocessing["task"] == "regression":
        values = table.numbers(name)
        _check_range(table, numpy.abs(values), "a target")
        return torch.from_numpy(values.astype(numpy.float32)).unsqueeze(1)
    index = {text: position for position, text in enumerate(classes)}
    texts = table.texts(name)
    if all(map(is_number, classes)):
        texts = [_class_name(text) if is_number(text) else text for text in texts]
    for row, text in enumerate(texts):
        if text not in index:
            raise DataError(
                f"{table.place(row, name)} holds {text!r}, which is none of the classes {', '.join(classes[:10])}. Correct or drop the row."
            )
    positions = torch.tensor([index[text] for text in texts], dtype=torch.int64)
    return positions if preprocessing["task"] == "multiclass" else positions.to(torch.float32).unsqueeze(1)
