"""The tables of a recipe. What a recipe may say is exactly what stands here.

`[model] [data] [loss] [optimizer] [scheduler]` carry a `name` and that name's own arguments, which `check.py` compares
with the signature behind the name; the other tables are closed.

A field that is None was left out: the trainer's own default holds, and nothing is passed on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from velodrome.errors import nearest_divisors
from velodrome.recipes.problems import Origins, Problem, from_validation

Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML gives lists; a frozen model keeps tuples
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


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
    """Which model: "mlp", "cnn", "gpt" or "package.module:callable", and its arguments."""


class DataTable(NamedTable):
    """Which data: "fashion-mnist", "mnist", "csv", "text" or "package.module:callable", and its arguments."""

    transforms: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] | None = None  # in order; Any: TOML


class LossTable(NamedTable):
    """Which loss: a name such as "cross_entropy", or "package.module:callable", and its arguments."""


class OptimizerTable(NamedTable):
    """Which optimizer: a name such as "adam", or "package.module:callable"; its learning rate and arguments."""

    name: str = Field(default="adam", min_length=1)
    lr: PositiveFloat | None = None  # left out: the optimizer's own default
    groups: dict[str, dict[str, Any]] | None = None  # pattern of parameter names -> options of their own; Any: TOML


class SchedulerTable(NamedTable):
    """How the learning rate changes: a name such as "cosine", or "package.module:callable", and its arguments."""

    # Not called "every", as the trainer does: that is an argument of "step" and "exponential", the time between two drops.
    interval: str | None = None  # how often it moves on: "step" (an update), "epoch", or so many of them
    monitor: str | None = None  # the value that it watches, such as "val/loss"


class TrainTable(Table):
    """How long and how: exactly one of epochs, steps and seconds."""

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    stop_after: Annotated[str, Field(min_length=1)] | None = (
        None  # a time after which it saves and ends, wherever it is
    )
    batch_size: PositiveInt = 64
    eval_batch_size: PositiveInt = 1000  # evaluation keeps no activations, so it can take bigger bites
    metrics: Names = ()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # the range that numpy's seed accepts too
    device: str = "auto"
    shuffle: bool = True
    drop_last: bool = False
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = 0  # "auto" measures whether worker processes pay
    in_memory: bool | None = None  # read a dataset once and keep its samples, where nothing about them is random
    resident: bool | Literal["auto"] | None = None  # data in memory are kept on the GPU
    pin_memory: bool | None = None  # samples that are read one by one go to the GPU from pinned memory
    threads: PositiveInt | None = None  # of the arithmetic on the CPU, in each process; left out: torch's own choice
    precision: Literal["fp32", "tf32", "bf16", "fp16"] | None = None  # of the arithmetic; weights stay fp32
    accumulate: PositiveInt | None = None  # batches an update
    micro_batch: PositiveInt | None = None  # samples a forward and backward; batch_size is then those of an update
    clip_norm: PositiveFloat | None = None  # largest norm of all gradients together
    clip_value: PositiveFloat | None = None  # largest size of one number of a gradient
    compile: bool | CompileMode | None = None  # true is "default"
    engine: Literal["auto", "eager", "compiled", "captured"] | None = None  # what runs the steps
    channels_last: bool | Literal["auto"] | None = None  # weights of convolutions in another order
    freeze: Names | None = None  # patterns of parameters that are not trained
    gradient_checkpointing: Names | None = None  # patterns of modules that compute again instead of remembering
    grad_norms: bool | None = None  # record the norm of each layer's gradient
    on_oom: Literal["stop", "split"] | None = None  # when a batch does not fit into memory
    weights: Annotated[str, Field(min_length=1)] | None = (
        None  # to start from: a .safetensors file, a run or a checkpoint
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] | None = None  # when a loss or gradient is NaN or infinite

    @field_validator("micro_batch")
    @classmethod
    def _micro_batch_divides(cls, micro_batch: int | None, info: ValidationInfo) -> int | None:
        if micro_batch is None:
            return None
        if info.data.get("accumulate") is not None:
            raise ValueError(
                f"was given together with accumulate={info.data['accumulate']}, which it decides itself (batch_size / micro_batch). "
                "Leave one of them out."
            )
        batch_size = info.data.get("batch_size")  # absent when it is wrong itself
        if batch_size is not None and batch_size % micro_batch:
            raise ValueError(
                f"does not divide batch_size={batch_size}, the samples of an update "
                f"({batch_size} % {micro_batch} = {batch_size % micro_batch}). Use {' or '.join(map(str, nearest_divisors(batch_size, micro_batch)))}."
            )
        return micro_batch

    @property
    def loader_batch_size(self) -> int:
        """Samples a batch that the training loader gives."""
        return self.micro_batch or self.batch_size

    @model_validator(mode="after")
    def _one_length(self) -> TrainTable:
        given = [name for name in DURATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) if given else "none of them"
            raise ValueError(f"needs exactly one of epochs, steps and seconds; got {got}.")
        return self


class EMATable(Table):
    """An average of the weights, kept beside them: exponential, or the mean of the last epochs' weights (SWA)."""

    kind: Literal["ema", "swa"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None  # share of the average that an update leaves
    warmup: bool | None = None  # begin with a smaller decay, so that the first weights are soon forgotten
    every: PositiveInt | Annotated[str, Field(min_length=1)] | None = None  # steps (ema) or epochs (swa) between two
    start: Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)] | None = None  # what is done before
    evaluate: Literal["averaged", "raw"] | None = None  # which weights evaluations use

    @model_validator(mode="after")
    def _decay_is_for_ema(self) -> EMATable:
        given = [name for name in ("decay", "warmup") if getattr(self, name) is not None]
        if self.kind == "swa" and given:
            raise ValueError(
                f'{" and ".join(given)} goes with kind="ema", and kind="swa" is a plain mean. Leave it out.'
            )
        return self


class EarlyStoppingTable(Table):
    """End the run when a value has not become better for a while."""

    monitor: str | None = None  # such as "val/loss"
    mode: Literal["auto", "min", "max"] | None = None  # what better means
    patience: PositiveInt | None = None  # epochs without an improvement
    min_delta: Annotated[float, Field(ge=0)] | None = None  # the least that counts as one
    restore_best: bool | None = None  # give the model its best weights back at the end


class CheckpointTable(Table):
    """What is kept of the weights while training."""

    every: str = "every epoch"  # a duration ("every 100 steps") or "never"
    keep_last: Annotated[int, Field(ge=2)] = 2  # with one, a torn newest checkpoint would leave none to load
    keep_best: Annotated[int, Field(ge=0)] = 1
    monitor: str | None = None  # left out: "val/loss"
    mode: Literal["auto", "min", "max"] = "auto"
    keep_every: str | None = None  # a duration: each time so much is done, the next checkpoint is kept for good
    background: bool = False  # write while training goes on
    max_failures: Annotated[int, Field(ge=1)] | None = None  # saves in a row that may fail; left out: any number


class LoggingTable(Table):
    """What is written down and shown while training."""

    every: str = "50 steps"
    tensorboard: bool = True
    curves: bool = True
    report: bool = True
    progress: bool = True
    profile: bool | PositiveInt | str | None = None  # batches to trace: true, a number, or "FIRST:LAST"
    find_syncs: bool | PositiveInt | str | None = None  # the same, to find the lines that wait for the device


class Recipe(Table):
    """A whole recipe."""

    model: ModelTable
    data: DataTable
    loss: LossTable
    optimizer: OptimizerTable = OptimizerTable()
    scheduler: SchedulerTable | None = None
    train: TrainTable
    ema: EMATable | None = None
    early_stopping: EarlyStoppingTable | None = None
    checkpoint: CheckpointTable = CheckpointTable()
    logging: LoggingTable = LoggingTable()

    def to_tables(self) -> dict[str, dict[str, Any]]:  # Any: whatever TOML can hold
        """Return plain tables that give this recipe again: everything but the fields left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def named_tables(self) -> dict[str, NamedTable]:
        """Return the tables that carry a name, which may be that of the user's code."""
        found = {name: getattr(self, name) for name in NAMED_TABLES}
        return {name: table for name, table in found.items() if table is not None}


NEVER = "never"  # instead of a duration: do not do it
DURATIONS = ("epochs", "steps", "seconds")
NAMED_TABLES = ("model", "data", "loss", "optimizer", "scheduler")
KNOWN_FIELDS: dict[str, tuple[str, ...]] = {
    "": tuple(Recipe.model_fields),
    **{
        name: tuple(kind.model_fields)
        for name, field in Recipe.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))  # "X | None" for tables that may be left out
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    },
}


def validate(tables: dict[str, Any], origins: Origins) -> tuple[Recipe | None, list[Problem]]:
    """Return the recipe and no problems, or None and every problem that the schema alone can see."""
    try:
        return Recipe.model_validate(tables), []
    except ValidationError as error:
        return None, from_validation(error, origins=origins, known=KNOWN_FIELDS)
