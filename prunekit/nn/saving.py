"""Accelerated models as files: what `prunekit.save` wrote, `prunekit.load` runs in any process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prunekit.engine.artefact import format_of
from prunekit.engine.gpu_artefact import GPU_FORMAT, load_gpu_model, save_gpu_model
from prunekit.engine.gpu_program import GpuModel
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError
from prunekit.ops.cuda.masked_conv2d_cuda import device_of, kernel_cache
from prunekit.ops.native import cuda_status


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
    if Path(path).is_dir():
        raise InputError(f"save: expected a file to write, found a folder: {path}.")
    try:
        if isinstance(model, GpuModel):
            save_gpu_model(model, path)
        else:
            model.save(path)
    except OSError as error:
        raise InputError(f"save: expected a place for a file, but {path} cannot be written ({error}).") from error


def load(path: str | Path) -> nn.Module:
    """Read a model that `save` wrote, ready to run on this machine with torch's threads.

    Cuts that were chosen for vectors of another width are replaced by the rule of thumb. `report` is None. A model of a
    GPU is loaded onto the current one and packed for it; on another GPU than it was saved from, kernels are chosen by
    what was measured there before or by the model.

    Raises:
        InputError: there is no such file, or it is another one, or damaged; or it is of a GPU, and there is none here
            or the CUDA kernels were not built.
        RuntimeError: prunekit's compiled extension is not there.
    """
    if format_of(path) != GPU_FORMAT:
        return AcceleratedModel.load(path)
    if not torch.cuda.is_available():
        raise InputError(f"the model in {path} was accelerated for an NVIDIA GPU, but torch finds none here.")
    if not cuda_status().available:
        raise InputError(f"the model in {path} needs prunekit's CUDA kernels, but {cuda_status().reason}.")
    where = torch.device("cuda", torch.cuda.current_device())
    device = device_of(torch.empty(0, device=where))
    assert device is not None, "the kernels are there"
    return load_gpu_model(path, device, where, kernel_cache())
