"""A model of the user's own, as options name it: --model package.module:factory, --model-args k=v, --task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prunekit.errors import InputError
from prunekit.task import name_factory

# What a saved model's description holds beside the arguments, and what the data say.
_RESERVED = ("format", "model", "drops_filters", "num_classes")


def name_own_model(model: str | None, task: str | None, model_args: Iterable[str]) -> None:
    """Import the factory that --model names, if it names one.

    Raises:
        InputError: It is none, or there is a --task without one; the sentence begins with the option.
    """
    if model is None or ":" not in model:
        if task is not None:
            raise InputError(f"--task: expected with --model package.module:factory, got with {model or 'none'}.")
        return
    try:
        name_factory(model, task, model_arguments(model_args))
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith("--") else f"--model: {text[0].lower()}{text[1:]}") from error


def model_arguments(texts: Iterable[str]) -> Mapping[str, Any]:
    """Return keyword arguments from texts such as "depth=20"; a value is JSON, or text where it is none."""
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in _RESERVED or name in arguments:
            raise InputError(
                f"--model-args: expected name=value, each name once and none of {_RESERVED}, got {text!r}."
            )
        arguments[name] = _value(value)
    return arguments


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity, which JSON does not have
