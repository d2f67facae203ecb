"""Accelerated models as files: what `prunekit.save` wrote, `prunekit.load` runs in any process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from prunekit import documents
from prunekit.documents import Content
from prunekit.engine.artifact import GPU_FORMAT, SAVED_MODEL
from prunekit.engine.gpu_artifact import gpu_model_content, load_on_current_gpu
from prunekit.engine.gpu_program import GpuModel
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError


def save(model: nn.Module, path: str | Path) -> None:
    """Write an accelerated model to one safetensors file, under a temporary name and then renamed.

    The file holds the graph, the kept weights and how the convolutions were cut: no pickle, no Python code, no report.

    Args:
        model: that `accelerate` put on the engine as a whole (an `AcceleratedModel`), or on a GPU (a `GpuModel`).
        path: the file; missing folders are made, a file of that name is replaced.

    Raises:
        InputError: the model is of another kind, or no file can be written at `path`.
    """
    if not isinstance(model, (AcceleratedModel, GpuModel)):
        raise InputError(
            "save: Expected a model that prunekit.accelerate put on its engine as a whole, "
            f"got {type(model).__name__}; for one that keeps its own class, report.notes says why."
        )
    with checked_path(path):
        if isinstance(model, GpuModel):
            documents.write(path, *gpu_model_content(model, model.signature.to_text()))
        else:
            model.save(path)


@contextmanager
def checked_path(path: str | Path) -> Iterator[None]:
    """Turn a folder in a file's place, and what keeps the block from writing it, into an InputError."""
    if Path(path).is_dir():
        raise InputError(f"save: expected a file to write, got a folder: {path}.")
    try:
        yield
    except OSError as error:
        raise InputError(f"save: expected a place for a file, but {path} cannot be written ({error}).") from error


def load(path: str | Path) -> nn.Module:
    """Read a model that `save` wrote, ready to run on this machine with torch's threads.

    Cuts that were chosen for vectors of another width are replaced by the rule of thumb. `report` is None. A model of a
    GPU is loaded onto the current one and packed for it; on another GPU than it was saved from, kernels are chosen by
    what was measured there before or by the model.

    Raises:
        InputError: there is no such file, or it is another one, or damaged; or it is of a GPU, and there is none here
            or neither the CUDA kernels nor Triton.
        RuntimeError: prunekit's compiled extension is not there.
    """
    return load_content(documents.read(path, SAVED_MODEL), path)


def load_content(content: Content, path: object) -> nn.Module:
    """Build the accelerated model of a file that was read; `path` is what messages call it.

    Raises:
        InputError: as `load`.
        RuntimeError: as `load`.
    """
    if content.format != GPU_FORMAT:
        return AcceleratedModel.of_content(content, path)
    return load_on_current_gpu(content, path)
