"""masked_conv2d's dispatch as on a GPU, with the CUDA kernel emulated: the op on CPU tensors becomes that of CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prunekit.ops.cuda import dispatch as cuda
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.devices import GPUS, Gpu
from prunekit.ops.cuda.registry import SPARSE_KERNELS
from prunekit.ops.cuda.sparse_kernel import cuda_op
from prunekit.ops.memory_format import conv_memory_format
from tests.support.emulated_kernels import Build, Convolution, FilterCase, emulate


def emulated_conv2d(kernel: str, x: Tensor, header: list[int], *arguments: Any) -> Tensor:
    """The op of a sparse kernel, by the emulated one."""
    *filter, bias, residual, stride, padding, dilation, activation, slope, launch = arguments
    is_channels_last = conv_memory_format(x) == torch.channels_last
    if residual is not None:
        residual = residual.contiguous(memory_format=conv_memory_format(x))
    geometry = tuple(stride), tuple(padding), tuple(dilation)
    conv = Convolution(x.detach(), bias, residual, *geometry, activation, slope, is_channels_last)
    case = FilterCase(kernel, conv, SPARSE_KERNELS[kernel].filter_type.read(header, *filter), launch)
    return emulate([case], Build(750 if kernel == "record" else 800))[0]


@dataclass
class EmulatedGpu:
    """A device of which the figures are given, and what ran on it."""

    gpu: Gpu = field(default_factory=lambda: GPUS["rtx-2070-super"])
    allow_tf32: bool = False
    is_capturing: bool = False
    is_emulated: bool = True
    launches: list[list[str | int]] = field(default_factory=list)
    epilogues: list[str] = field(default_factory=list)
    residuals: list[bool] = field(default_factory=list)

    def conv2d(self, kernel: str, *arguments: Any) -> Tensor:
        *_, residual, _, _, _, activation, _, launch = arguments
        self.launches.append([kernel, *launch])
        self.epilogues.append(activation)
        self.residuals.append(residual is not None)
        if self.is_emulated:
            return emulated_conv2d(kernel, *arguments)
        return cuda_op(kernel)(*arguments)

    def ops(self, kernel: str) -> Callable[..., Tensor]:
        return partial(self.conv2d, kernel)

    def device(self, _: Tensor) -> cuda.CudaDevice:
        return cuda.CudaDevice(self.gpu, self.ops, lambda call: 1e-6, self.allow_tf32, self.is_capturing)


@contextmanager
def dispatched(gpu: EmulatedGpu, patch: pytest.MonkeyPatch, cache: KernelCache | None = None) -> Iterator[None]:
    """Let CPU tensors go where CUDA tensors would, within the block."""
    library = torch.library.Library("prunekit", "IMPL")  # type: ignore[no-untyped-call]
    known = cache or KernelCache(None)
    with patch.context() as scope:
        scope.setattr(cuda, "device_of", gpu.device)
        scope.setattr(cuda, "kernel_cache", lambda: known)
        for name in ("masked_conv2d", "masked_conv2d_input_grad"):
            function = getattr(cuda, f"{name}_cuda")
            library.impl(name, function, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            library._destroy()  # type: ignore[no-untyped-call]
