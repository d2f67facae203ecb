"""A command's options from the fields of a configuration: what one means and what it is by default is said there."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from prunekit.pipeline.config import MachineChoices, ScoringChoices, SharedChoices, TrainingChoices

# Flags that have another name for "no", and options with a second name.
_NAMES = {
    "augment": ("--augment/--no-augment",),
    "optimize_scores": ("--optimize-scores/--one-shot",),
    "train_batch_size": ("--train-batch-size", "--batch-size"),
}
_PANELS = {"Machine": MachineChoices, "Training": TrainingChoices, "Scoring": ScoringChoices}

Command = Callable[[dict[str, Any], bool], None]


def takes(config: type[SharedChoices]) -> Callable[[Command], Callable[..., None]]:
    """Make a function of (choices by field, verbose) a command with an option for each of the configuration's fields.

    The function checks the choices itself: what is wrong with them is one sentence, like any other bad input.
    """

    def make(command: Command) -> Callable[..., None]:
        @wraps(command)
        def with_options(*, verbose: bool, **choices: Any) -> None:
            command(choices, verbose)

        parameters = [_parameter(config, name) for name in _most_particular_first(config)]
        parameters.sort(key=lambda parameter: parameter.default is not parameter.empty)
        shown = typer.Option("--verbose", "-v", help="Show tracebacks of errors.")
        parameters.append(_keyword("verbose", Annotated[bool, shown], False))
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return make


def _parameter(config: type[SharedChoices], name: str) -> inspect.Parameter:
    field = config.model_fields[name]
    kind = _kind(field)
    names = _NAMES.get(name, (f"--{name.replace('_', '-')}",) if kind is bool else ())
    if name == "train_batch_size" and "batch_size" in config.model_fields:
        names = ()
    panel = next((title for title, part in _PANELS.items() if name in inspect.get_annotations(part)), None)
    option = typer.Option(*names, help=field.description, rich_help_panel=panel)
    default = inspect.Parameter.empty if field.is_required() else _as_typed(field.default)
    return _keyword(name, Annotated[kind, option], default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kind(field: FieldInfo) -> Any:
    """Return what the command line turns the typed text into: several values and names stay text until checked."""
    annotation: Any = field.annotation
    alternatives = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kind = next(choice for choice in alternatives if choice is not types.NoneType)
    if kind == tuple[str, ...] and field.default == ():
        return list[str]  # repeatable
    return kind if kind in (bool, int, float, Path) else str


def _as_typed(default: Any) -> Any:
    """Return a default as one would type it."""
    if not isinstance(default, tuple) or not default:
        return default
    return ",".join(value if isinstance(value, str) else f"{value:g}" for value in default)


def _most_particular_first(config: type[SharedChoices]) -> list[str]:
    """Return the fields' names: the configuration's own, then those that it shares."""
    declared = [name for part in config.__mro__ for name in inspect.get_annotations(part)]
    return [name for name in dict.fromkeys(declared) if name in config.model_fields]
