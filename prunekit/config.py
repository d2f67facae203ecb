"""What configurations have in common: pydantic checks them, what is wrong is one sentence, and YAML files hold them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prunekit.errors import InputError
from prunekit.files import write_text

#: What a folder calls the file of the configuration that it was made with.
CONFIG = "config.yaml"
Self = TypeVar("Self", bound="Config")


class Config(BaseModel):
    """Base of all configurations: frozen, without unknown settings; InputError says in one sentence what is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise InputError(self._sentence(error.errors()[0], settings)) from None

    # pydantic builds configurations inside of others without this method, and so knows where in the whole they are.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: Any) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (annotation, *typing.get_args(annotation)):
            raise ValueError(
                f"must be neither true nor false, got {value}"
            )  # which YAML also calls yes, on, no and off
        return value

    def updated(self: Self, **settings: Any) -> Self:
        """Return a copy with other values of these settings, checked like any configuration."""
        return type(self)(**{**dict(self), **settings})

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the settings: the class's own, then those that it inherits."""
        declared = [name for part in cls.__mro__ for name in inspect.get_annotations(part)]
        return [name for name in dict.fromkeys(declared) if name in cls.model_fields]

    @classmethod
    def name_of(cls, where: Sequence[int | str], given: Mapping[str, Any]) -> str:
        """Return what messages call a setting: finetune.epochs.

        Args:
            where: Its keys, from the outermost configuration inwards.
            given: What the outermost one was built from.
        """
        return ".".join(part for part in where if isinstance(part, str))

    @classmethod
    def _sentence(cls, problem: Any, given: Mapping[str, Any]) -> str:
        where, message = problem["loc"], str(problem["msg"]).removeprefix("Value error, ")
        if message.startswith("--") or not where:  # it says itself which setting is wrong, or which ones together
            return f"{message.rstrip('.')}."
        name = cls.name_of(where, given)
        if problem["type"] == "missing":
            return f"{name}: expected a value, got none."
        if problem["type"] == "extra_forbidden":
            return f"Expected no setting {'.'.join(map(str, where))}, got {problem['input']!r}."
        if problem["type"] == "literal_error":  # 'sgd' or 'adamw'
            known = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            message = f"must be one of {known}"
        found = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
        return f"{name}: {message[0].lower()}{message[1:]}{found}."


class BatchConfig(Config):
    """How many images are looked at together where nothing trains, and what decides everything random."""

    batch_size: int = Field(8, ge=1, description="batch size for scoring, evaluation and attacks")
    seed: int = Field(0, ge=0, description="random seed")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, such as `write_settings` writes.

    Raises:
        InputError: When there is no such file, or it holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError:
        raise InputError(f"Expected a configuration as YAML, but {path} is not a file that can be read.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" (line {line + 1})"
        raise InputError(f"Expected a configuration as YAML, but {path} is no YAML{where}.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"Expected settings by name in {path}, got {type(content).__name__}.")
    return content


def write_settings(path: Path, config: Config) -> None:
    """Write a configuration as YAML, its own settings before those that it shares with others."""
    settings = config.model_dump(mode="json")
    ordered = {name: settings[name] for name in config.names()}
    write_text(path, yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120))
