"""Compacted models for other runtimes: ONNX, and torch's own exported program."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.compaction.program import export_any_size
from prunekit.errors import InputError
from prunekit.files import atomic_path, write_bytes
from prunekit.graph.calls import Call

#: What `export` can write, and the suffix of the file.
EXPORTS = {"onnx": ".onnx", "torch": ".pt2"}


def export(model: nn.Module, example: Sequence[Tensor], kind: str, path: str | Path) -> None:
    """Write a model in eval mode for another runtime, atomically; for any image size, where its forward allows it.

    Args:
        model: Any module, such as a compaction's `result.model`.
        example: The forward's positional arguments.
        kind: "onnx", or "torch" for a program that torch.export.load reads.
        path: The file.

    Raises:
        InputError: The kind is unknown, a package for it is missing, or the model cannot be exported.
    """
    if kind not in EXPORTS:
        raise InputError(f"Expected one of {', '.join(EXPORTS)} to export to, got {kind!r}.")
    program, _ = export_any_size(model, Call.of(model, tuple(example)))
    if kind == "torch":
        with atomic_path(path) as temporary:
            torch.export.save(program, temporary)
        return
    write_bytes(path, _onnx(program))


def _onnx(program: torch.export.ExportedProgram) -> bytes:
    """Convert without the exporter's remarks on packages that the model has no use for."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(program, (), dynamo=True, verbose=False)
    except ImportError as error:
        raise InputError(
            f"Exporting to ONNX needs onnx and onnxscript (pip install 'prunekit[peers]'): {error}."
        ) from error
    finally:
        log.setLevel(level)
    assert converted is not None
    serialized: bytes = converted.model_proto.SerializeToString()
    return serialized
