"""`data.transforms`: the random transforms of the training data that a recipe can name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest
from velodrome.recipes.problems import Origins, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Random ones only: what is fixed belongs to all data alike, those to predict included, and to what [data] names.
TRANSFORMS = {
    "random_crop": "RandomCrop",
    "random_translate": "RandomTranslate",
    "random_horizontal_flip": "RandomHorizontalFlip",
    "random_vertical_flip": "RandomVerticalFlip",
    "cutout": "Cutout",
    "random_erasing": "RandomErasing",
    "color_jitter": "ColorJitter",
    "gaussian_noise": "GaussianNoise",
}
_FIXED = {"to_float", "normalize", "ToFloat", "Normalize"}
_FIELD = "data.transforms"


def make_transform(
    tables: Sequence[Mapping[str, Any]] | None,
) -> Any:  # Any: a Transform, of torch; None without tables
    """Return the transform of a training loader; None where a recipe names none.

    Raises:
        ArgumentError: a name is not known, or its arguments are refused.
    """
    if not tables:
        return None
    from velodrome import transforms

    return transforms.Compose([_make(table) for table in tables])


def check_transforms(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    """Return what is wrong with the names and arguments in `data.transforms`; its shape is the schema's matter."""
    data = tables.get("data")
    given = data.get("transforms") if isinstance(data, dict) else None
    problems = []
    for table in given if isinstance(given, list) else []:
        if isinstance(table, dict):
            try:
                _make(table)
            except (ArgumentError, TypeError, ValueError) as error:
                message = error.message if isinstance(error, ArgumentError) else str(error)
                problems.append(
                    Problem(field=_FIELD, rule=f"is refused: {message}", value=dict(table), origin=origins.of(_FIELD))
                )
    return problems


def _make(table: Mapping[str, Any]) -> Any:  # Any: a Transform
    from velodrome import transforms

    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    name = arguments.pop("name", None)
    if name in _FIXED:
        raise ArgumentError(
            f"{name!r} is not random. All data, those to predict too, need it alike: have what data.name names do it (normalize = true)."
        )
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise ArgumentError(
            f"name={name!r} is no known random transform. {nearest(str(name), TRANSFORMS)} Your own is written into the loader, in Python."
        )
    kind = getattr(transforms, TRANSFORMS[name])
    known = inspect.signature(kind).parameters
    for key in arguments:
        if key not in known:
            raise ArgumentError(f"{name} has no argument {key!r}. {nearest(key, known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ArgumentError(f"{name} needs {key}.")
    return kind(**arguments)
