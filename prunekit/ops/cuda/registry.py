"""The sparse kernels for GPUs that the dispatch chooses among: a new one is one more entry."""

from __future__ import annotations

from dataclasses import fields

import torch

from prunekit.ops import native
from prunekit.ops.cuda.bitmap.op import BitmapKernel
from prunekit.ops.cuda.condensed.op import CondensedKernel
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.record.op import RecordKernel
from prunekit.ops.cuda.semi_structured.op import SemiStructuredKernel
from prunekit.ops.cuda.sparse_kernel import SparseKernel
from prunekit.ops.cuda.triton.op import TritonFloat32Kernel, TritonKernel

#: By name.
SPARSE_KERNELS: dict[str, SparseKernel] = {
    kernel.name: kernel
    for kernel in (
        RecordKernel(),
        CondensedKernel(),
        BitmapKernel(),
        SemiStructuredKernel(),
        TritonKernel(),
        TritonFloat32Kernel(),
    )
}


def signature(kernel: SparseKernel) -> str:
    """Return the names of the words of a kernel's op: of the filter's header, its tensors and the launch, in order."""
    header = (field.name.upper() for field in fields(kernel.filter_type.HEADER))
    words = "header", *header, "tensors", *kernel.filter_type.tensor_names(), "launch", *kernel.launch_type.word_names()
    return " ".join((f"{kernel.name}_conv2d", *words))


def compiled_signatures() -> set[str]:
    """Return those of the ops that the compiled extension has."""
    return {signature(kernel) for kernel in SPARSE_KERNELS.values() if kernel.source == "cuda"}


native.compare_cuda_signatures(compiled_signatures())


def has_sparse_kernel(dtype: torch.dtype, gpu: Gpu) -> bool:
    """Tell whether any kernel takes this dtype on the device."""
    return any(kernel.runs_on(dtype, gpu) for kernel in SPARSE_KERNELS.values())


def kernels_for(problem: ConvProblem, dtype: torch.dtype, gpu: Gpu) -> list[SparseKernel]:
    """Return the kernels that run such a convolution on the device."""
    return [kernel for kernel in SPARSE_KERNELS.values() if kernel.takes(problem, dtype, gpu)]
