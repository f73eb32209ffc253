"""`data.transforms`: the transforms that a recipe can name, in the order in which they are applied.

Random ones change the training data only. Fixed ones (normalize, to_float, resize) belong to all data alike, those to evaluate and to predict
included, and stand where they are needed: a crop that fills with black comes before `normalize`, noise after it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from velodrome.errors import ArgumentError, nearest
from velodrome.recipes.problems import Origins, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIXED = {"normalize": "Normalize", "to_float": "ToFloat", "resize": "Resize"}
TRANSFORMS = {
    "random_crop": "RandomCrop",
    "random_resized_crop": "RandomResizedCrop",
    "random_translate": "RandomTranslate",
    "random_rotation": "RandomRotation",
    "random_affine": "RandomAffine",
    "random_horizontal_flip": "RandomHorizontalFlip",
    "random_vertical_flip": "RandomVerticalFlip",
    "cutout": "Cutout",
    "random_erasing": "RandomErasing",
    "color_jitter": "ColorJitter",
    "gaussian_noise": "GaussianNoise",
    "mixup": "MixUp",
    "cutmix": "CutMix",
    **FIXED,
}
_FIELD = "data.transforms"


def make_transform(
    tables: Sequence[Mapping[str, Any]] | None, *, training: bool
) -> Any:  # Any: a Transform, of torch; None without tables
    """Return the transform of a loader; None where a recipe names none.

    Args:
        tables: of the recipe, one a transform.
        training: all of them; else those that belong to all data.
    Raises:
        ArgumentError: a name is not known, or its arguments are refused.
    """
    wanted = [table for table in tables or () if training or table.get("name") in FIXED]
    if not wanted:
        return None
    from velodrome import transforms

    return transforms.Compose([_make(table) for table in wanted])


def change_sample(tables: Sequence[Mapping[str, Any]] | None, sample: Any) -> Any:  # Any: tensors
    """Return a batch after the transforms that belong to all data: what a model is given."""
    transform = make_transform(tables, training=False)
    if transform is None:
        return sample
    import torch

    from velodrome.transforms import Draws

    return transform(sample.clone(), Draws(torch.zeros(len(sample), dtype=torch.int64), torch.zeros(len(sample), 0)))


def check_transforms(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    """Return what is wrong with the names and arguments in `data.transforms`; its shape is the schema's matter."""
    data = tables.get("data")
    given = data.get("transforms") if isinstance(data, dict) else None
    problems = []
    given = given if isinstance(given, list) else []
    names = [table.get("name") for table in given if isinstance(table, dict)]
    if isinstance(data, dict) and data.get("normalize") is True and "normalize" in names:
        rule = 'normalises once more what data.normalize = true has normalised. Leave one of them out; "normalize" in the list says when.'
        problems.append(Problem(field=_FIELD, rule=rule, value="normalize", origin=origins.of(_FIELD)))
    for table in given:
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
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise ArgumentError(
            f"name={name!r} is no known transform. {nearest(str(name), TRANSFORMS)} Your own is written into the loader, in Python."
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
