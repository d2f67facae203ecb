"""Tensors in one safetensors file with a description as JSON in its header: what training states and detectors are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit import documents
from prunekit.errors import InputError


def save_described(
    path: str | Path, tensors: Mapping[str, Tensor], file_format: str, description: Mapping[str, Any]
) -> None:
    """Write tensors and their description atomically.

    Args:
        path: The safetensors file.
        tensors: By name, on any device.
        file_format: What the file holds, with the number of its layout: "prunekit detector 1".
        description: JSON-able.
    """
    documents.write(path, tensors, {"format": file_format, **description})


def read_description(path: str | Path, file_format: str, what: str) -> dict[str, Any]:
    """Return a file's description without reading its tensors.

    Args:
        path: The safetensors file.
        file_format: The one it was saved with.
        what: What the message says was expected: "a training state".

    Raises:
        InputError: When the file is missing, damaged, or none of that format that prunekit wrote.
    """
    return _of_format(documents.read_document(path, what), file_format, what, path)


def read_described(path: str | Path, file_format: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's description and its tensors by name; arguments and errors are `read_description`'s."""
    content = documents.read(path, what)
    return _of_format(content.document, file_format, what, path), content.tensors


def _of_format(description: dict[str, Any], file_format: str, what: str, path: str | Path) -> dict[str, Any]:
    if description.get("format") != file_format:
        raise InputError(f"Expected {what} at {path}, but the file is none that prunekit wrote.")
    return description
