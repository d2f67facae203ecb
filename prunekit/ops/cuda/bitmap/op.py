"""Masked convolution on a bitmap filter: the float16 and bfloat16 op of NVIDIA GPUs, on tensor cores.

    packed = pack_bitmaps(weight, mask, groups, chunk_channels)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = bitmap_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/bitmap/conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has
no gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda.bitmap import cost
from prunekit.ops.cuda.bitmap.cost import WARP_UNITS, BitmapLaunch, shared_bytes, takes_chunks
from prunekit.ops.cuda.bitmap.filter import ALIGNMENT, MOST_TAP_ROWS, BitmapFilter, bitmap_packer
from prunekit.ops.cuda.condensed.cost import MAX_WARPS, CondensedProblem
from prunekit.ops.cuda.condensed.filter import MAX_CHANNELS
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.filter_op import define_conv2d
from prunekit.ops.cuda.packed_filter import FilterPattern
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.sparse_kernel import CostModel, SparseKernel

# One gather: of a value its index and itself read, and written; a run is filled up by half of ALIGNMENT, about.
_VALUE_BYTES = 12

bitmap_conv2d_reference = define_conv2d("bitmap", BitmapFilter)


class BitmapKernel(SparseKernel):
    """See csrc/cuda/bitmap/conv2d.cuh."""

    name = "bitmap"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 75, torch.bfloat16: 80}
    cost: ClassVar[CostModel] = cost
    problem_type = CondensedProblem
    launch_type = BitmapLaunch
    filter_type = BitmapFilter

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return problem.group_channels * problem.groups < MAX_CHANNELS and problem.kernel_size[0] <= MOST_TAP_ROWS

    def fill_cost(self, problem: ConvProblem, launch: BitmapLaunch) -> tuple[int, float]:  # noqa: D102
        here = CondensedProblem.of(problem)
        runs = here.groups * here.num_row_groups * -(-here.group_channels // launch.chunk_channels)
        return 1, _VALUE_BYTES * (problem.density * problem.num_weights + ALIGNMENT / 2 * runs)

    def is_possible(  # noqa: D102
        self, problem: ConvProblem, launch: BitmapLaunch, gpu: Gpu, header: Any = None
    ) -> bool:
        here = CondensedProblem.of(problem)
        longest = (None, None) if header is None else (header.longest, header.longest_aligned)
        return (
            launch.warp_units in WARP_UNITS
            and launch.tile_h * launch.units_w <= launch.warp_units * launch.pixel_warps
            and launch.buffers <= 2
            and launch.warps <= MAX_WARPS
            and launch.cuts <= -(-here.group_channels // launch.chunk_channels)
            and takes_chunks(here, launch.chunk_channels)
            and shared_bytes(here, launch, *longest) <= gpu.shared_bytes
        )

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[..., FilterPattern]:
        return bitmap_packer(mask, problem.groups, sources)
