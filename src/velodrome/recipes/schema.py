"""The tables of a recipe. What a recipe may say is exactly what stands here.

`[model] [data] [loss] [optimizer]` carry a `name` and that name's own arguments, which `check.py` compares with the
signature behind the name; the other tables are closed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from velodrome.recipes.problems import Origins, Problem, from_validation

Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML gives lists; a frozen model keeps tuples


class Table(BaseModel):
    """A closed table: unknown fields are mistakes, "5" is no number, and NaN is no learning rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NamedTable(Table):
    """A table whose `name` decides which other fields it may have."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)

    @property
    def arguments(self) -> dict[str, Any]:  # Any: whatever TOML can hold
        """Return the fields that belong to the name."""
        return dict(self.model_extra or {})


class ModelTable(NamedTable):
    """Which model: "mlp" or "package.module:callable", and its arguments."""


class DataTable(NamedTable):
    """Which data: "fashion-mnist", "mnist", "csv" or "package.module:callable", and its arguments."""


class LossTable(NamedTable):
    """Which loss: a name such as "cross_entropy", or "package.module:callable", and its arguments."""


class OptimizerTable(NamedTable):
    """Which optimizer: a name such as "adam", or "package.module:callable"; its learning rate and arguments."""

    name: str = Field(default="adam", min_length=1)
    lr: PositiveFloat | None = None  # left out: the optimizer's own default


class TrainTable(Table):
    """How long and how: exactly one of epochs, steps and seconds."""

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    batch_size: PositiveInt = 64
    eval_batch_size: PositiveInt = 1000  # evaluation keeps no activations, so it can take bigger bites
    metrics: Names = ()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # the range that numpy's seed accepts too
    device: str = "auto"
    shuffle: bool = True
    drop_last: bool = False
    num_workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_length(self) -> TrainTable:
        given = [name for name in DURATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) if given else "none of them"
            raise ValueError(f"needs exactly one of epochs, steps and seconds; got {got}.")
        return self


class CheckpointTable(Table):
    """What is kept of the weights while training."""

    every: str = "every epoch"  # a duration ("every 100 steps") or "never"
    keep_last: Annotated[int, Field(ge=2)] = 2  # with one, a torn newest checkpoint would leave none to load
    keep_best: Annotated[int, Field(ge=0)] = 1
    monitor: str | None = None  # left out: "val/loss"
    mode: Literal["auto", "min", "max"] = "auto"


class LoggingTable(Table):
    """What is written down and shown while training."""

    every: str = "50 steps"
    tensorboard: bool = True
    curves: bool = True
    progress: bool = True


class Recipe(Table):
    """A whole recipe."""

    model: ModelTable
    data: DataTable
    loss: LossTable
    optimizer: OptimizerTable = OptimizerTable()
    train: TrainTable
    checkpoint: CheckpointTable = CheckpointTable()
    logging: LoggingTable = LoggingTable()

    def to_tables(self) -> dict[str, dict[str, Any]]:  # Any: whatever TOML can hold
        """Return plain tables that give this recipe again: everything but the fields left out."""
        return self.model_dump(mode="json", exclude_none=True)


NEVER = "never"  # instead of a duration: do not do it
DURATIONS = ("epochs", "steps", "seconds")
NAMED_TABLES = ("model", "data", "loss", "optimizer")
KNOWN_FIELDS: dict[str, tuple[str, ...]] = {
    "": tuple(Recipe.model_fields),
    **{
        name: tuple(field.annotation.model_fields)
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    },
}


def validate(tables: dict[str, Any], origins: Origins) -> tuple[Recipe | None, list[Problem]]:
    """Return the recipe and no problems, or None and every problem that the schema alone can see."""
    try:
        return Recipe.model_validate(tables), []
    except ValidationError as error:
        return None, from_validation(error, origins=origins, known=KNOWN_FIELDS)
