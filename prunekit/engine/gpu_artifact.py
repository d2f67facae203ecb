"""An accelerated model of a GPU as a file: the graph, the weights without their zeros, and what was chosen; no pickle.

What is packed is not in the file: loading packs anew for the device that is there, by the choices of the file where it
is such a device as they were made on, else by what is known of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunekit import documents
from prunekit.documents import Content
from prunekit.engine.artifact import GPU_FORMAT, check_format, damage_told, graph_content, read_graph
from prunekit.engine.gpu_nodes import LayerKernel
from prunekit.engine.gpu_program import GpuModel, GpuProgram, choose_layers
from prunekit.engine.graph import Graph
from prunekit.errors import InputError
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.choice import KernelChoice
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.dispatch import CudaDevice, device_of, kernel_cache
from prunekit.ops.cuda.registry import SPARSE_KERNELS
from prunekit.ops.cuda.sources import missing_kernels


def gpu_model_content(model: GpuModel, signature: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON document of a model's file; `signature` is its signature's text."""
    program = model.program
    gpu = program.gpu
    return graph_content(
        replace(_compressed(program), output_spec=signature),
        GPU_FORMAT,
        {
            "example": [[shape, str(dtype).removeprefix("torch."), is_last] for shape, dtype, is_last in model.example],
            "gpu": None if gpu is None else _identity(gpu),
            "choices": {name: _words(kernel) for name, kernel in program.kernels.items()},
        },
    )


def _compressed(program: GpuProgram) -> Graph:
    """Return the graph on the CPU, weights of packed filters unpacked."""
    graph = program.graph
    constants = {name: tensor.detach().cpu() for name, tensor in graph.constants.items()}
    for node in graph.convolutions():
        packed = program.kernels[node.name].filter
        if packed is not None:
            constants[node.attributes["weight"]] = packed.weight().cpu()
    here = replace(graph, constants=constants, weights={})
    here.compress()
    return here


def _identity(gpu: Gpu) -> list[Any]:
    return [gpu.name, gpu.capability, gpu.multiprocessors]


def _words(kernel: LayerKernel) -> list[Any]:
    """What JSON holds of a choice; without a packed filter it is dense, whatever was hoped for."""
    choice = kernel.choice
    is_sparse = kernel.plan is not None and choice.launch is not None
    sparse = choice.sparse_seconds if math.isfinite(choice.sparse_seconds) else None
    numbers = kernel.plan.launch.numbers() if is_sparse and kernel.plan is not None else None
    return [choice.kernel if is_sparse else "dense", numbers, sparse, choice.dense_seconds, choice.is_measured]


def _choice(words: list[Any]) -> KernelChoice:
    """Undo `_words`.

    Raises:
        ValueError: they are none.
    """
    name, numbers, sparse, dense, is_measured = words
    if (name == "dense") != (numbers is None):
        raise ValueError(f"{words!r} is no choice")
    launch = None if numbers is None else SPARSE_KERNELS[name].launch_of(numbers)
    seconds = math.inf if sparse is None else float(sparse)
    return KernelChoice(name, launch, seconds, float(dense), bool(is_measured), "as the model was saved")


def load_gpu_model(
    content: Content, path: object, device: CudaDevice, where: torch.device, cache: KernelCache
) -> GpuModel:
    """Build the model of a file that `gpu_model_content` describes, and pack it for a device.

    Args:
        content: of the file.
        path: what messages call it.
        device: what the dispatch needs of it.
        where: its tensors.
        cache: of measurements, for a device that the file's choices are not for.

    Raises:
        InputError: it is another file, or damaged, or this torch lacks one of its operators.
    """
    document = content.document
    check_format(content, GPU_FORMAT, path)
    with damage_told(path):
        graph, _ = read_graph(content, lambda rows: [shape for shape, _, _ in rows])
        choices = {name: _choice(words) for name, words in document["choices"].items()}
        are_ours = document["gpu"] == _identity(device.gpu)
        examples = [_example(shape, dtype, is_last, where) for shape, dtype, is_last in document["example"]]
        constants = {name: tensor.to(where) for name, tensor in graph.constants.items()}
        for name, weight in graph.weights.items():
            constants[name] = weight.dense().to(where, weight.values.dtype)
        here = replace(graph, constants=constants, weights={})
        known = choices if are_ours else {}
        kernels = choose_layers(here, examples, device, cache, 0.0, lambda done, total: None, known)
        program = GpuProgram(here, kernels, device.ops, device.gpu)
        return GpuModel(program, examples, captures=where.type == "cuda")


def _example(shape: list[int], dtype: str, is_channels_last: bool, where: torch.device) -> Tensor:
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{dtype!r} is no dtype")
    x = torch.empty([int(size) for size in shape], dtype=found, device=where)
    return x.contiguous(memory_format=torch.channels_last) if is_channels_last else x


def load_on_current_gpu(content: Content, path: object) -> GpuModel:
    """Build the model of a file for the GPU that torch uses now; `path` is what messages call the file.

    Raises:
        InputError: there is no GPU here, or neither the CUDA kernels nor Triton, or as `load_gpu_model`.
    """
    if not torch.cuda.is_available():
        raise InputError(f"the model in {path} was accelerated for an NVIDIA GPU, but torch finds none here.")
    if reason := missing_kernels():
        raise InputError(f"the model in {path} needs prunekit's CUDA kernels or Triton, but {reason}.")
    where = torch.device("cuda", torch.cuda.current_device())
    device = device_of(torch.empty(0, device=where))
    assert device is not None, "the kernels are there"
    return load_gpu_model(content, path, device, where, kernel_cache())


def of_bytes(data: bytes) -> GpuModel:
    """Undo the pickling of a model."""
    return load_on_current_gpu(documents.read(data, "a pickled accelerated GPU model"), "the pickled data")
