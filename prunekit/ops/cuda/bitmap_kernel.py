"""The tensor-core kernels on bitmap filters, float16 and bfloat16, as the dispatch sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda import bitmap_launch
from prunekit.ops.cuda.bitmap_filter import ALIGNMENT, MOST_TAP_ROWS, BitmapPattern, bitmap_packer
from prunekit.ops.cuda.bitmap_launch import WARP_UNITS, BitmapLaunch, shared_bytes, takes_chunks
from prunekit.ops.cuda.condensed_launch import MAX_WARPS, CondensedProblem
from prunekit.ops.cuda.conv_problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.fragment_filter import MAX_CHANNELS
from prunekit.ops.cuda.gpus import Gpu
from prunekit.ops.cuda.sparse_kernel import FilterPattern, SparseKernel

# One gather: of a value its index and itself read, and written; a run is filled up by half of ALIGNMENT, about.
_VALUE_BYTES = 12


class BitmapKernel(SparseKernel):
    """See csrc/cuda/bitmap_conv2d.cuh."""

    name: ClassVar[str] = "bitmap"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float16: 75, torch.bfloat16: 80}
    launch_type: ClassVar[type[KernelLaunch]] = BitmapLaunch

    def takes_sizes(self, problem: ConvProblem) -> bool:  # noqa: D102
        return problem.group_channels * problem.groups < MAX_CHANNELS and problem.kernel_size[0] <= MOST_TAP_ROWS

    def best_launches(self, problem: ConvProblem, gpu: Gpu, count: int) -> Sequence[BitmapLaunch]:  # noqa: D102
        return bitmap_launch.best_launches(CondensedProblem.of(problem), gpu, count)

    def seconds(self, problem: ConvProblem, launch: BitmapLaunch, gpu: Gpu) -> float:  # noqa: D102
        return bitmap_launch.modeled_seconds(CondensedProblem.of(problem), launch, gpu)

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

    def pattern_key(self, launch: BitmapLaunch) -> tuple[int, ...]:  # noqa: D102
        return (launch.chunk_channels,)

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[[BitmapLaunch], FilterPattern]:
        pack = bitmap_packer(mask, problem.groups, sources)

        def pack_cut(launch: BitmapLaunch) -> BitmapPattern:
            return pack(launch.chunk_channels)

        return pack_cut
