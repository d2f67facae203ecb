"""The tensor-core kernel on condensed columns, float16 and bfloat16, as the dispatch sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda import condensed_launch
from prunekit.ops.cuda.condensed_launch import MAX_WARPS, CondensedLaunch, CondensedProblem, shared_bytes
from prunekit.ops.cuda.conv_problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.fragment_filter import MAX_CHANNELS, STEP_COLUMNS, FragmentPattern, fragment_packer
from prunekit.ops.cuda.gpus import Gpu
from prunekit.ops.cuda.sparse_kernel import FilterPattern, SparseKernel

# Four launches; of a weight its two indices, itself read, gathered and made plain, and written; of a step's element the
# pattern's read and written.
_FILL_LAUNCHES, _FILL_BYTES, _STEP_BYTES = 4, 28, 2 * 2 * 16 * STEP_COLUMNS


class CondensedKernel(SparseKernel):
    """See csrc/cuda/condensed_conv2d.cuh."""

    name: ClassVar[str] = "condensed"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 75, torch.bfloat16: 80}
    launch_type: ClassVar[type[KernelLaunch]] = CondensedLaunch

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return problem.group_channels * problem.groups < MAX_CHANNELS

    def best_launches(self, problem: ConvProblem, gpu: Gpu, count: int) -> Sequence[CondensedLaunch]:  # noqa: D102
        return condensed_launch.best_launches(CondensedProblem.of(problem), gpu, count)

    def seconds(self, problem: ConvProblem, launch: CondensedLaunch, gpu: Gpu) -> float:  # noqa: D102
        return condensed_launch.modeled_seconds(CondensedProblem.of(problem), launch, gpu)

    def fill_cost(self, problem: ConvProblem, launch: CondensedLaunch) -> tuple[int, float]:  # noqa: D102
        here = CondensedProblem.of(problem)
        runs = here.groups * here.num_row_groups * -(-here.group_channels // launch.chunk_channels)
        kept = problem.density * problem.num_weights
        return _FILL_LAUNCHES, _FILL_BYTES * kept + _STEP_BYTES * runs * here.steps(launch.chunk_channels)

    def is_possible(  # noqa: D102
        self, problem: ConvProblem, launch: CondensedLaunch, gpu: Gpu, header: Any = None
    ) -> bool:
        here = CondensedProblem.of(problem)
        return (
            launch.warp_units in (4, 8)
            and launch.tile_h * launch.units_w <= launch.warp_units * launch.pixel_warps
            and launch.buffers <= 2
            and launch.warps <= MAX_WARPS
            and shared_bytes(here, launch, None if header is None else header.longest) <= gpu.shared_bytes
        )

    def pattern_key(self, launch: CondensedLaunch) -> tuple[int, ...]:  # noqa: D102
        return (launch.chunk_channels,)

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[[CondensedLaunch], FilterPattern]:
        pack = fragment_packer(mask, problem.groups, sources)

        def pack_cut(launch: CondensedLaunch) -> FragmentPattern:
            return pack(launch.chunk_channels)

        return pack_cut
