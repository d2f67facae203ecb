"""Masked convolution on a bitmap filter: the float16 and bfloat16 op of NVIDIA GPUs, on tensor cores.

    packed = pack_bitmaps(weight, mask, groups, chunk_channels)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = bitmap_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/bitmap/conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has
no gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from prunekit.ops.cuda.bitmap.cost import MODEL, WARP_UNITS, takes_chunks
from prunekit.ops.cuda.bitmap.filter import ALIGNMENT, MOST_TAP_ROWS, BitmapFilter, bitmap_packer
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.condensed.op import CondensedKernel
from prunekit.ops.cuda.cost_model import CostModel
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.filter_op import define_conv2d
from prunekit.ops.cuda.packed_filter import FilterPattern
from prunekit.ops.cuda.problem import ConvProblem

# One gather: of a value its index and itself read, and written; a run is filled up by half of ALIGNMENT, about.
_VALUE_BYTES = 12

bitmap_conv2d_reference = define_conv2d("bitmap", BitmapFilter)


class BitmapKernel(CondensedKernel):
    """See csrc/cuda/bitmap/conv2d.cuh."""

    name = "bitmap"
    cost: ClassVar[CostModel] = MODEL
    filter_type = BitmapFilter
    warp_units = WARP_UNITS

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return super().takes_sizes(problem) and problem.kernel_size[0] <= MOST_TAP_ROWS

    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:  # noqa: D102
        here = CondensedProblem.of(problem)
        runs = here.groups * here.num_row_groups * -(-here.group_channels // launch.chunk_channels)
        return 1, _VALUE_BYTES * (problem.density * problem.num_weights + ALIGNMENT / 2 * runs)

    def knows(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> bool:  # noqa: D102
        has_chunks = launch.cuts <= -(-problem.group_channels // launch.chunk_channels)
        return super().knows(problem, launch, gpu) and has_chunks and takes_chunks(problem, launch.chunk_channels)

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[..., FilterPattern]:
        return bitmap_packer(mask, problem.groups, sources)
