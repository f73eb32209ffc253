"""Compares a recipe's names and arguments with what stands behind them, before anything is built.

Losses, optimizers and metrics import torch, so this is called only by verbs that need torch anyway.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_type_hints

from velodrome.errors import ArgumentError, RecipeError, nearest
from velodrome.recipes import registry
from velodrome.recipes.named_transforms import check_transforms
from velodrome.recipes.problems import Origins, Problem, from_validation
from velodrome.recipes.schema import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn
    from torch.optim import Optimizer

# What the builder passes itself, by position or by name: not for a recipe to give.
_GIVEN_BY_US = {"model": frozenset(), "data": frozenset({"say"})}
_NUM_POSITIONAL = {"model": 0, "data": 0, "loss": 2, "optimizer": 1}  # loss(output, target), optimizer(params)


def check_names(tables: Mapping[str, Any], origins: Origins, *, import_user_code: bool = True) -> list[Problem]:
    """Return every name that nothing stands behind, and every argument that it does not take.

    Works on raw tables, so that these problems are found together with those of the schema.

    Args:
        tables: the recipe as read.
        origins: who gave which field.
        import_user_code: False leaves "package.module:callable" alone: a recipe found inside a run directory
            is data, and data must not decide what is imported.
    """
    problems: list[Problem] = []
    for table in ("model", "data", "loss", "optimizer"):
        section = tables.get(table)
        if not isinstance(section, dict):
            continue
        name = section.get("name", "adam" if table == "optimizer" else None)
        if not isinstance(name, str) or not name:
            continue  # the schema has said so
        own = ("name", "transforms") if table == "data" else ("name", "lr", "groups")
        arguments = {key: value for key, value in section.items() if key not in own}
        try:
            if not registry.is_user_code(name):
                problems += _check_known(table, name, arguments, origins)
            elif import_user_code:
                problems += _check_user(table, name, arguments, origins)
        except RecipeError as error:
            field = f"{table}.name"
            cause = error.__cause__
            problems.append(Problem(field=field, rule=error.message, value=name, origin=origins.of(field), cause=cause))
            # The other mistakes of the table are found as well, when it is clear which name was meant.
            for meant in get_close_matches(name.lower(), _known_names(table), n=1, cutoff=0.6):
                problems += _check_known(table, meant, arguments, origins)
    problems += _check_groups(tables, origins)
    problems += check_transforms(tables, origins)
    problems += _check_scheduler(tables, origins, import_user_code=import_user_code)
    problems += _check_objects(tables, origins)
    problems += _check_sparse(tables, origins)
    problems += _check_metrics(tables, origins, import_user_code=import_user_code)
    problems += _check_durations(tables, origins)
    problems += _check_monitor(tables, origins)
    problems += _check_device(tables, origins)
    return problems


def _check_known(table: str, name: str, arguments: dict[str, Any], origins: Origins) -> list[Problem]:
    if table == "loss":
        return _check_loss(name, arguments, origins)
    if table == "optimizer":
        return _check_optimizer(name, arguments, origins)
    return _check_builtin(table, name, arguments, origins)


def _known_names(table: str) -> list[str]:
    from velodrome.step import losses, optimizers

    if table in ("loss", "optimizer"):
        return losses.known_names() if table == "loss" else optimizers.known_names()
    return sorted(registry.BUILTIN_MODELS if table == "model" else registry.BUILTIN_DATA)


def _check_builtin(table: str, name: str, arguments: dict[str, Any], origins: Origins) -> list[Problem]:
    """Check arguments of our own callables by name and type: their annotations are the rules."""
    from pydantic import ConfigDict, ValidationError, create_model

    target = registry.resolve_model(name) if table == "model" else registry.resolve_data(name)
    named = _named_parameters(target, skip=_GIVEN_BY_US[table])
    hints = get_type_hints(target, localns=_NAMES_IN_RETURN_TYPES, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints[key], ... if parameter.default is parameter.empty else parameter.default)
        for key, parameter in named.items()
    }
    model = create_model("Arguments", __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        model.model_validate(arguments)
    except ValidationError as error:
        return from_validation(error, origins=origins, known={table: ["name", *named]}, prefix=table)
    return []


_NAMES_IN_RETURN_TYPES = {"Splits": Any}  # imported for type checkers only


def _check_user(table: str, name: str, arguments: dict[str, Any], origins: Origins) -> list[Problem]:
    """Check arguments of the user's own callable by name: its annotations may mean anything."""
    target = registry.import_callable(name)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []  # written in C without a signature: the call itself will say what is wrong
    named = _named_parameters(target, skip=frozenset())
    if not (table == "loss" and inspect.isclass(target)):
        named = dict(list(named.items())[_NUM_POSITIONAL[table] :])
    takes_anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    problems = [
        Problem(
            field=f"{table}.{key}",
            rule=f"is no argument of {name}. {nearest(key, named)}",
            value=value,
            origin=origins.of(f"{table}.{key}"),
        )
        for key, value in arguments.items()
        if key not in named and not takes_anything
    ]
    problems += [
        Problem(
            field=f"{table}.{key}",
            rule=f"is missing: {name} has no default for it.",
            has_value=False,
            origin=origins.of(f"{table}.{key}"),
        )
        for key, parameter in named.items()
        if parameter.default is parameter.empty and key not in arguments and key not in ("lr", "say")
    ]
    return problems


def _check_loss(name: str, arguments: dict[str, Any], origins: Origins) -> list[Problem]:
    from velodrome.step.losses import known_names, resolve_loss

    if name not in known_names():
        raise RecipeError(
            f'is no known loss. {nearest(name, known_names())} Or name your own as "package.module:callable".'
        )
    return _refusals("loss", arguments, lambda given: resolve_loss(name, given), origins)


def _check_optimizer(name: str, arguments: dict[str, Any], origins: Origins) -> list[Problem]:
    from velodrome.step.optimizers import known_names, resolve_optimizer

    if name not in known_names():
        raise RecipeError(
            f'is no known optimizer. {nearest(name, known_names())} Or name your own as "package.module:callable".'
        )
    model = _one_matrix()
    return _refusals("optimizer", arguments, lambda given: resolve_optimizer(name, model, arguments=given), origins)


def _one_matrix() -> nn.Module:
    """Return one weight matrix: enough for torch to judge momentum, betas and the rest. Nothing is drawn to make it."""
    import torch
    from torch import nn

    return nn.ParameterDict({"weight": nn.Parameter(torch.zeros(2, 2))})


def _check_groups(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    """Check the options of each pattern as the optimizer's own; `lr` is one of them here."""
    from velodrome.step.optimizers import known_names, resolve_optimizer

    optimizer = tables.get("optimizer")
    groups = optimizer.get("groups") if isinstance(optimizer, dict) else None
    if not isinstance(optimizer, dict) or not isinstance(groups, dict):
        return []
    name = optimizer.get("name", "adam")
    if name not in known_names():
        return []  # the user's own, or said already
    model = _one_matrix()
    problems = []
    for pattern, options in groups.items():
        if not isinstance(options, dict):
            continue  # the schema has said so
        message = _message(lambda given: resolve_optimizer(name, model, arguments=given), options)
        if message:
            field = f'optimizer.groups."{pattern}"'
            rule = f"is refused: {message}"
            problems.append(Problem(field=field, rule=rule, value=options, origin=origins.of("optimizer.groups")))
    return problems


def _check_scheduler(tables: Mapping[str, Any], origins: Origins, *, import_user_code: bool) -> list[Problem]:
    """Check name and arguments of a schedule; what depends on the run's length is the trainer's to judge."""
    from velodrome.step.schedules.resolve import known_schedules, resolve_scheduler

    section = tables.get("scheduler")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(name, str) or not name:
        return []  # the schema has said so
    try:
        if registry.is_user_code(name):
            if import_user_code:
                registry.import_callable(name)
            return []
        if name.lower() not in known_schedules():
            raise RecipeError(
                f'is no known schedule. {nearest(name, known_schedules())} Or name your own as "package.module:callable".'
            )
    except RecipeError as error:
        origin, cause = origins.of("scheduler.name"), error.__cause__
        return [Problem(field="scheduler.name", rule=error.message, value=name, origin=origin, cause=cause)]

    def attempt(arguments: dict[str, Any], **how: Any) -> None:  # Any: TOML
        resolve_scheduler(name, _small_optimizer(tables), arguments=arguments, **how)

    arguments = {key: value for key, value in section.items() if key not in ("name", "interval", "monitor")}
    problems = _refusals("scheduler", arguments, attempt, origins)
    for field, argument in (("interval", "every"), ("monitor", "monitor")):
        value = section.get(field)
        if isinstance(value, str) and not problems:
            message = _message(lambda given: attempt(arguments, **given), {argument: value})
            if message:
                origin = origins.of(f"scheduler.{field}")
                problems.append(
                    Problem(field=f"scheduler.{field}", rule=f"is refused: {message}", value=value, origin=origin)
                )
    return problems


def _check_objects(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    """Check what becomes an object of its own, whose constructor knows more rules than the schema: durations, monitors."""
    from pydantic import ValidationError

    from velodrome.recipes.schema import EarlyStoppingTable, EMATable
    from velodrome.recipes.switches import make_average, make_early_stopping

    makers: dict[str, Callable[[Any], object]] = {  # Any: the table as read
        "ema": lambda given: make_average(EMATable.model_validate(given)),
        "early_stopping": lambda given: make_early_stopping(EarlyStoppingTable.model_validate(given)),
    }
    problems = []
    for table in makers.keys() & tables.keys():
        try:
            makers[table](tables[table])
        except ValidationError:
            continue  # the schema has said so
        except ArgumentError as error:
            rule = f"is refused: {error.message}"
            problems.append(Problem(field=table, rule=rule, has_value=False, origin=origins.of(table)))
    return problems


def _small_optimizer(tables: Mapping[str, Any]) -> Optimizer:
    """Return the recipe's optimizer over one weight matrix, or a common one where it is wrong or the user's own."""
    from velodrome.step.optimizers import resolve_optimizer

    section = tables.get("optimizer", {})
    given = dict(section) if isinstance(section, dict) else {}
    name, lr = given.pop("name", "adam"), given.pop("lr", None)
    given.pop("groups", None)
    model = _one_matrix()
    try:
        return resolve_optimizer(name, model, lr=lr, arguments=given)
    except (ArgumentError, TypeError, ValueError):
        return resolve_optimizer("sgd", model, lr=0.1, arguments={"momentum": 0.9})


def _check_sparse(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    """Refuse SparseAdam for our own models: torch raises at the first step when a gradient is dense."""
    optimizer, model = tables.get("optimizer"), tables.get("model")
    if not isinstance(optimizer, dict) or not isinstance(model, dict) or optimizer.get("name") != "sparseadam":
        return []
    if registry.is_user_code(str(model.get("name"))):
        return []  # it may hold nothing but nn.Embedding(sparse=True)
    rule = 'needs sparse gradients, which only nn.Embedding(sparse=True) gives; this model has dense ones. Use "adam".'
    return [Problem(field="optimizer.name", rule=rule, value="sparseadam", origin=origins.of("optimizer.name"))]


def _refusals(
    table: str, arguments: dict[str, Any], attempt: Callable[[dict[str, Any]], object], origins: Origins
) -> list[Problem]:
    """Return the arguments that are unknown one by one, and what is wrong with the rest taken together."""
    messages = {key: _message(attempt, {key: value}) for key, value in arguments.items()}
    unknown = {key: message for key, message in messages.items() if message and "has no argument" in message}
    problems = [
        Problem(
            field=f"{table}.{key}",
            rule=f"is refused: {message}",
            value=arguments[key],
            origin=origins.of(f"{table}.{key}"),
        )
        for key, message in unknown.items()
    ]
    together = _message(attempt, {key: value for key, value in arguments.items() if key not in unknown})
    if together:
        culprits = [key for key, message in messages.items() if message and key not in unknown]
        field = f"{table}.{culprits[0]}" if len(culprits) == 1 else table
        problems.append(Problem(field=field, rule=f"is refused: {together}", has_value=False, origin=origins.of(field)))
    return problems


def _message(attempt: Callable[[dict[str, Any]], object], given: dict[str, Any]) -> str | None:
    try:
        attempt(given)
    except ArgumentError as error:
        return error.message
    except (TypeError, ValueError) as error:
        return f"{error}."
    return None


def _named_parameters(target: Callable[..., Any], *, skip: frozenset[str]) -> dict[str, inspect.Parameter]:
    return {
        key: parameter
        for key, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and key not in skip
    }


def _check_metrics(tables: Mapping[str, Any], origins: Origins, *, import_user_code: bool) -> list[Problem]:
    from velodrome.metrics.named import Labels, known_names, named_metric

    train = tables.get("train")
    names = train.get("metrics", ()) if isinstance(train, dict) else ()
    problems = []
    for name in names if isinstance(names, (list, tuple)) else ():
        if not isinstance(name, str):
            continue  # the schema has said so
        try:
            if not registry.is_user_code(name):
                named_metric(name, Labels())  # "top3" is known though only "top5" is listed
            elif import_user_code:
                registry.import_callable(name)
        except RecipeError as error:
            origin, cause = origins.of("train.metrics"), error.__cause__
            problem = Problem(field="train.metrics", rule=error.message, value=name, origin=origin, cause=cause)
            problems.append(problem)
        except ArgumentError:
            rule = f'is no known metric. {nearest(name, known_names())} Or name your own as "package.module:callable".'
            problems.append(Problem(field="train.metrics", rule=rule, value=name, origin=origins.of("train.metrics")))
    return problems


def _check_durations(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    from velodrome.loop.durations import parse_duration

    problems = []
    for table, key in (("checkpoint", "every"), ("checkpoint", "keep_every"), ("logging", "every")):
        section = tables.get(table)
        every = section.get(key) if isinstance(section, dict) else None
        if not isinstance(every, str) or (key == "every" and every == NEVER):
            continue
        field = f"{table}.{key}"
        try:
            parse_duration(every, name=field)
        except ArgumentError as error:
            problems.append(_refused(field, every, error, origins))
    return problems


def _check_monitor(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    from velodrome.checkpoint.policy import Checkpointing

    section = tables.get("checkpoint")
    monitor = section.get("monitor") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(monitor, str) or section.get("mode", "auto") != "auto":
        return []
    try:
        Checkpointing(monitor=monitor)
    except ArgumentError as error:
        return [_refused("checkpoint.monitor", monitor, error, origins)]
    return []


def _check_device(tables: Mapping[str, Any], origins: Origins) -> list[Problem]:
    from velodrome.devices import resolve_device

    train = tables.get("train")
    device = train.get("device", "auto") if isinstance(train, dict) else "auto"
    if not isinstance(device, str):
        return []  # the schema has said so
    try:
        if resolve_device(device).type == "meta":
            raise ArgumentError(f'device="{device}" holds shapes and no numbers. Use device="auto" or device="cpu".')
    except ArgumentError as error:
        return [_refused("train.device", device, error, origins)]
    return []


def _refused(field: str, value: object, error: ArgumentError, origins: Origins) -> Problem:
    return Problem(field=field, rule=f"is refused: {error.message}", value=value, origin=origins.of(field))
