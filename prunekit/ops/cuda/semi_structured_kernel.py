"""The kernel on sparse tensor cores, float16 and bfloat16, as the dispatch sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda import semi_structured_launch
from prunekit.ops.cuda.condensed_launch import MAX_WARPS, CondensedProblem
from prunekit.ops.cuda.conv_problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.fragment_filter import MAX_CHANNELS, ROWS
from prunekit.ops.cuda.gpus import Gpu
from prunekit.ops.cuda.semi_structured_filter import (
    SPARSE_STEP_COLUMNS,
    SemiStructuredPattern,
    semi_structured_packer,
)
from prunekit.ops.cuda.semi_structured_launch import RESIDENT_WARPS, SemiStructuredLaunch, expected_steps, shared_bytes
from prunekit.ops.cuda.sparse_kernel import FilterPattern, SparseKernel

# Four launches; of a weight its two indices, itself read, gathered and made plain, and written; of a fragment's element
# the pattern's read and written.
_FILL_LAUNCHES, _FILL_BYTES, _FRAGMENT_BYTES = 4, 28, 2 * 2 * ROWS * SPARSE_STEP_COLUMNS // 2


class SemiStructuredKernel(SparseKernel):
    """See csrc/cuda/semi_structured_conv2d.cuh."""

    name: ClassVar[str] = "semi_structured"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 80, torch.bfloat16: 80}
    launch_type: ClassVar[type[KernelLaunch]] = SemiStructuredLaunch

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return problem.group_channels * problem.groups < MAX_CHANNELS

    def best_launches(self, problem: ConvProblem, gpu: Gpu, count: int) -> Sequence[SemiStructuredLaunch]:  # noqa: D102
        return semi_structured_launch.best_launches(CondensedProblem.of(problem), gpu, count)

    def seconds(self, problem: ConvProblem, launch: SemiStructuredLaunch, gpu: Gpu) -> float:  # noqa: D102
        return semi_structured_launch.modeled_seconds(CondensedProblem.of(problem), launch, gpu)

    def fill_cost(self, problem: ConvProblem, launch: SemiStructuredLaunch) -> tuple[int, float]:  # noqa: D102
        here = CondensedProblem.of(problem)
        row_groups = math.ceil(here.out_channels // here.groups / (ROWS * launch.fragments))
        runs = here.groups * row_groups * math.ceil(here.group_channels / launch.chunk_channels)
        fragments = launch.fragments * runs * float(expected_steps(here, launch.chunk_channels, launch.fragments))
        return _FILL_LAUNCHES, _FILL_BYTES * problem.density * problem.num_weights + _FRAGMENT_BYTES * fragments

    def is_possible(  # noqa: D102
        self, problem: ConvProblem, launch: SemiStructuredLaunch, gpu: Gpu, header: Any = None
    ) -> bool:
        return (
            gpu.capability >= 80
            and (launch.fragments, launch.warp_units) in RESIDENT_WARPS
            and launch.tile_h * launch.units_w <= launch.warp_units * launch.pixel_warps
            and launch.buffers <= 2
            and launch.warps <= MAX_WARPS
            and shared_bytes(CondensedProblem.of(problem), launch, None if header is None else header.longest)
            <= gpu.shared_bytes
        )

    def pattern_key(self, launch: SemiStructuredLaunch) -> tuple[int, ...]:  # noqa: D102
        return launch.chunk_channels, launch.fragments

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[[SemiStructuredLaunch], FilterPattern]:
        pack = semi_structured_packer(mask, problem.groups, sources)

        def pack_cut(launch: SemiStructuredLaunch) -> SemiStructuredPattern:
            return pack(launch.chunk_channels, launch.fragments)

        return pack_cut
