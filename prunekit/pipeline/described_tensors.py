"""Tensors in one safetensors file with a description as JSON in its header: what training states and detectors are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.errors import InputError
from prunekit.files import atomic_path, copied_tensors

_KEY = "prunekit"


def save_described(
    path: str | Path, tensors: Mapping[str, Tensor], file_format: str, description: Mapping[str, Any]
) -> None:
    """Write tensors and their description atomically.

    Args:
        path: The safetensors file.
        tensors: By name, contiguous, on the CPU, none sharing another's memory.
        file_format: What the file holds, with the number of its layout: "prunekit detector 1".
        description: JSON-able.
    """
    header = {_KEY: json.dumps({"format": file_format, **description})}
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata=header)


def read_description(path: str | Path, file_format: str, what: str) -> dict[str, Any]:
    """Return a file's description without reading its tensors.

    Args:
        path: The safetensors file.
        file_format: The one it was saved with.
        what: What the message says was expected: "a training state".

    Raises:
        InputError: When the file is missing, damaged, or none of that format that prunekit wrote.
    """
    return _read(Path(path), file_format, what, with_tensors=False)[0]


def read_described(path: str | Path, file_format: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's description and its tensors by name; arguments and errors are `read_description`'s."""
    return _read(Path(path), file_format, what, with_tensors=True)


def _read(path: Path, file_format: str, what: str, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY, "null")
            tensors = copied_tensors(file) if with_tensors else {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected {what} at {path}, but reading it failed: {error}") from None
    try:
        description = json.loads(header)
    except ValueError:
        description = None
    if not isinstance(description, dict) or description.get("format") != file_format:
        raise InputError(f"expected {what} at {path}, but the file is none that prunekit wrote")
    return description, tensors
