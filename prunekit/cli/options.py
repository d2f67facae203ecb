"""A command's options from the settings of a configuration: what one means and what it is by default is said there."""

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

from prunekit.cli.ending import Verbose, user_errors
from prunekit.config import Config, read_settings
from prunekit.evaluation.corruptions.config import CorruptionConfig
from prunekit.evaluation.patch import PatchOptions
from prunekit.evaluation.smoothing import CertificationConfig
from prunekit.pipeline.choices import MachineChoices, SharedChoices, TrainingChoices
from prunekit.pipeline.scoring import ScoreConfig
from prunekit.pipeline.training_options import TrainingOption, over_file, training_options
from prunekit.training.config import ScoreTraining
from prunekit.training.objective import NoiseConfig, VerifiedConfig

# Flags that have another name for "no", and options with a second name.
_NAMES = {
    "augment": ("--augment/--no-augment",),
    "certify": ("--certify/--no-certify",),
    "optimize_scores": ("--optimize-scores/--one-shot",),
    "train_batch_size": ("--train-batch-size", "--batch-size"),
}
_PANELS = {
    "Machine": MachineChoices, "Training": TrainingChoices, "Scoring": ScoreConfig, "Objective": VerifiedConfig,
    "Noise": NoiseConfig, "Certification": CertificationConfig, "Corruptions": CorruptionConfig,
    "Patch": PatchOptions,
}  # fmt: skip

Command = Callable[[dict[str, Any], bool], None]


def takes(config: type[SharedChoices]) -> Callable[[Command], Callable[..., None]]:
    """Make a function of (choices by name, verbose) a command with an option for each of the configuration's settings.

    The choices are those of --config's file, and over them what was typed. The function checks them itself: what is
    wrong with them is one sentence, like any other bad input.
    """

    def make(command: Command) -> Callable[..., None]:
        @wraps(command)
        def with_options(*, context: typer.Context, verbose: bool, config: Any, **choices: Any) -> None:
            typed = {name: value for name, value in choices.items() if _is_typed(context, name)}
            command(over_file(config or {}, typed), verbose)

        parameters = [*_settings(config), *_of_trainings(config)]
        parameters.sort(key=lambda parameter: parameter.default is not parameter.empty)
        parameters.append(_keyword("config", Annotated[Path | None, _CONFIG], None))
        parameters.append(_keyword("verbose", Verbose, False))
        parameters.append(_keyword("context", typer.Context, inspect.Parameter.empty))
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return make


def option_help(name: str) -> str:
    """Return the help of an option that a command without a configuration shares with the others."""
    return str(SharedChoices.model_fields[name].description)


def _read(context: typer.Context, path: Path | None) -> dict[str, Any] | None:
    """Return the settings of --config's file; an option that must be given need not be typed if it is in there."""
    if path is None:
        return None
    with user_errors(verbose=False):
        settings = read_settings(path)
    context.default_map = {name: settings[name] for name in ("model", "weights", "data", "out") if name in settings}
    return settings


_CONFIG = typer.Option(
    help="read settings from a YAML file, such as the config.yaml of an earlier --out; options given here win",
    callback=_read,
    is_eager=True,
)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _settings(config: type[SharedChoices]) -> list[inspect.Parameter]:
    fields = {name: config.model_fields[name] for name in config.names()}
    return [
        _parameter(config, name, field, str(field.description), _panel(name))
        for name, field in fields.items()
        if not isinstance(field.default, Config)
    ]


def _of_trainings(config: type[SharedChoices]) -> list[inspect.Parameter]:
    return [
        _parameter(config, name, _field(config, option), option.description, "Training")
        for name, option in training_options(config).items()
    ]


def _field(config: type[SharedChoices], option: TrainingOption) -> FieldInfo:
    """Return a training's setting as if it were the configuration's."""
    field = ScoreTraining.model_fields[option.setting]
    default = getattr(config.model_fields[option.sections[0]].default, option.setting)
    if option.setting == "augmentation":
        return FieldInfo(annotation=bool, default=True)
    return FieldInfo(annotation=field.annotation, default=default)


def _parameter(
    config: type[SharedChoices], name: str, field: FieldInfo, description: str, panel: str | None
) -> inspect.Parameter:
    kind = _kind(field)
    names = _NAMES.get(name, (f"--{name.replace('_', '-')}",) if kind is bool else ())
    if name == "train_batch_size" and "batch_size" in config.model_fields:
        names = ()
    option = typer.Option(*names, help=description, rich_help_panel=panel, show_default="(default: " not in description)
    default = inspect.Parameter.empty if field.is_required() else _as_typed(field.default)
    return _keyword(name, Annotated[kind, option], default)


def _panel(name: str) -> str | None:
    return next((title for title, part in _PANELS.items() if name in inspect.get_annotations(part)), None)


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
