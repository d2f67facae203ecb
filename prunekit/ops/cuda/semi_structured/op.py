"""Masked convolution on a semi-structured filter: the float16 and bfloat16 op of sparse tensor cores.

    packed = pack_semi_structured(weight, mask, groups, chunk_channels, fragments)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual
      = semi_structured_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/semi_structured/conv2d.cuh is the kernel, for NVIDIA GPUs of architecture 8.0 and newer. Elsewhere the
reference unpacks the filter: slow, for judging. The op has no gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.condensed.filter import ROWS
from prunekit.ops.cuda.condensed.op import CondensedKernel
from prunekit.ops.cuda.cost_model import CostModel
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.filter_op import define_conv2d
from prunekit.ops.cuda.packed_filter import FilterPattern
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.semi_structured.cost import MODEL, RESIDENT_WARPS, expected_steps
from prunekit.ops.cuda.semi_structured.filter import (
    SPARSE_STEP_COLUMNS,
    SemiStructuredFilter,
    semi_structured_packer,
)

# Four launches; of a weight its two indices, itself read, gathered and made plain, and written; of a fragment's element
# the pattern's read and written.
_FILL_LAUNCHES, _FILL_BYTES, _FRAGMENT_BYTES = 4, 28, 2 * 2 * ROWS * SPARSE_STEP_COLUMNS // 2

semi_structured_conv2d_reference = define_conv2d("semi_structured", SemiStructuredFilter)


class SemiStructuredKernel(CondensedKernel):
    """See csrc/cuda/semi_structured/conv2d.cuh."""

    name = "semi_structured"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 80, torch.bfloat16: 80}
    cost: ClassVar[CostModel] = MODEL
    filter_type = SemiStructuredFilter

    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:  # noqa: D102
        here = CondensedProblem.of(problem)
        row_groups = math.ceil(here.out_channels // here.groups / (ROWS * launch.fragments))
        runs = here.groups * row_groups * math.ceil(here.group_channels / launch.chunk_channels)
        fragments = launch.fragments * runs * float(expected_steps(here, launch.chunk_channels, launch.fragments))
        return _FILL_LAUNCHES, _FILL_BYTES * problem.density * problem.num_weights + _FRAGMENT_BYTES * fragments

    def knows(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> bool:  # noqa: D102
        is_compiled = (launch.fragments, launch.warp_units) in RESIDENT_WARPS
        return super().knows(problem, launch, gpu) and gpu.capability >= 80 and is_compiled

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[..., FilterPattern]:
        return semi_structured_packer(mask, problem.groups, sources)
