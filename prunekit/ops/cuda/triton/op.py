"""Masked convolution on a condensed filter in Triton: what runs on GPUs where the CUDA extension was not built.

    pattern = condensed_pattern(mask, groups)
    packed = pattern.fill(weight)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = triton_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

kernels/prunekit_kernels/condensed_conv2d.py is the kernel; triton is imported when it first runs. Float32 is multiplied
in full, not as tf32. Elsewhere the reference unpacks the filter: slow, for judging. The ops have no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.filter_op import define_conv2d
from prunekit.ops.cuda.packed_filter import FilterPattern, PackedFilter
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.sparse_kernel import SparseKernel
from prunekit.ops.cuda.triton.cost import CUTS, FLOAT32_MODEL, HALF_MODEL, TritonLaunch, TritonModel, TritonProblem
from prunekit.ops.cuda.triton.filter import MAX_CHANNELS, ROWS, TritonFilter, condensed_pattern
from prunekit.ops.library import kernel
from prunekit.ops.memory_format import conv_memory_format

# Four launches; of a weight its two indices, itself read, gathered and made plain, and written; of a column the blank
# values written.
_FILL_LAUNCHES, _FILL_BYTES = 4, 28


def run_triton(x: Tensor, header: Sequence[int], *arguments: Any) -> Tensor:
    """Run the kernel on x's device; the arguments are the op's.

    Args:
        x: [N, C, H, W], contiguous or channels-last.
        header: the filter's words.
        arguments: the filter's tensors, bias, residual, stride, padding, dilation, activation, negative slope, launch.
    """
    from prunekit_kernels.condensed_conv2d import Cut, condensed_conv2d  # imports triton

    *tensors, bias, residual, stride, padding, dilation, activation, negative_slope, launch = arguments
    packed = TritonFilter.read(header, *tensors)
    geometry: tuple[Any, Any, Any] = (tuple(stride), tuple(padding), tuple(dilation))
    shape = x.shape[0], packed.header.out_channels, *conv_output_size(x.shape, packed.header.shape, *geometry)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=conv_memory_format(x))
    return condensed_conv2d(
        x, packed.condensed(), bias, residual, *geometry, activation, negative_slope, out=y, cut=Cut(*launch)
    )


class TritonKernel(SparseKernel):
    """Halves on tensor cores: see kernels/prunekit_kernels/condensed_conv2d.py."""

    name = "triton"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 80, torch.bfloat16: 80}
    source = "triton"
    cost: ClassVar[TritonModel] = HALF_MODEL
    problem_type = TritonProblem
    filter_type: ClassVar[type[PackedFilter]] = TritonFilter

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return problem.group_channels * problem.groups < MAX_CHANNELS

    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:  # noqa: D102
        del launch
        here = TritonProblem.of(problem)
        blanks = ROWS * here.groups * here.num_row_groups * here.columns
        return _FILL_LAUNCHES, _FILL_BYTES * problem.density * problem.num_weights + self.cost.itemsize * blanks

    def knows(self, problem: TritonProblem, launch: TritonLaunch, gpu: Gpu) -> bool:  # noqa: D102
        del problem, gpu
        return tuple(launch.numbers()) in CUTS

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[..., FilterPattern]:
        pattern = condensed_pattern(mask, problem.groups, sources)
        return lambda: pattern


class TritonFloat32Kernel(TritonKernel):
    """float32 on multiply-adds, in the same kernel."""

    name = "triton_float32"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float32: 75}
    cost: ClassVar[TritonModel] = FLOAT32_MODEL


for _kernel in (TritonKernel, TritonFloat32Kernel):
    define_conv2d(_kernel.name, TritonFilter)
    kernel(f"{_kernel.name}_conv2d", "CUDA")(run_triton)
