"""Masked convolution on a fragment filter: the float16 and bfloat16 op of NVIDIA GPUs, on tensor cores.

    packed = pack_fragments(weight, mask, groups, chunk_channels)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = condensed_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/condensed/conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has
no gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda.condensed.cost import MAX_WARPS, MODEL, CondensedProblem
from prunekit.ops.cuda.condensed.filter import MAX_CHANNELS, STEP_COLUMNS, FragmentFilter, fragment_packer
from prunekit.ops.cuda.cost_model import CostModel
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.filter_op import define_conv2d
from prunekit.ops.cuda.packed_filter import FilterPattern, PackedFilter
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.sparse_kernel import SparseKernel

# Four launches; of a weight its two indices, itself read, gathered and made plain, and written; of a step's element the
# pattern's read and written.
_FILL_LAUNCHES, _FILL_BYTES, _STEP_BYTES = 4, 28, 2 * 2 * 16 * STEP_COLUMNS

condensed_conv2d_reference = define_conv2d("condensed", FragmentFilter)


class CondensedKernel(SparseKernel):
    """See csrc/cuda/condensed/conv2d.cuh; kernels with other steps in the same blocks derive from it.

    Attributes:
        warp_units: units of 8 pixels that a warp may sum.
    """

    name = "condensed"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 75, torch.bfloat16: 80}
    cost: ClassVar[CostModel] = MODEL
    problem_type = CondensedProblem
    filter_type: ClassVar[type[PackedFilter]] = FragmentFilter
    warp_units: ClassVar[tuple[int, ...]] = (4, 8)

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return problem.group_channels * problem.groups < MAX_CHANNELS

    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:  # noqa: D102
        here = CondensedProblem.of(problem)
        runs = here.groups * here.num_row_groups * -(-here.group_channels // launch.chunk_channels)
        kept = problem.density * problem.num_weights
        return _FILL_LAUNCHES, _FILL_BYTES * kept + _STEP_BYTES * runs * here.steps(launch.chunk_channels)

    def knows(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> bool:  # noqa: D102
        del problem, gpu
        return (
            launch.warp_units in self.warp_units
            and launch.tile_h * launch.units_w <= launch.warp_units * launch.pixel_warps
            and launch.buffers <= 2
            and launch.warps <= MAX_WARPS
        )

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[..., FilterPattern]:
        return fragment_packer(mask, problem.groups, sources)
