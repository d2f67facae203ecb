"""The record kernel, float32 on CUDA cores, as the dispatch sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda import record_launch
from prunekit.ops.cuda.conv_problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.gpus import Gpu
from prunekit.ops.cuda.record_filter import RecordPattern, pack_pattern
from prunekit.ops.cuda.record_launch import RECORD_COSTS, RecordLaunch, RecordProblem, shared_bytes
from prunekit.ops.cuda.sparse_kernel import FilterPattern, SparseKernel

_FILL_LAUNCHES, _FILL_BYTES = 3, 44  # a weight's record read and written, its two indices, itself


class RecordKernel(SparseKernel):
    """See csrc/cuda/record_conv2d.cuh."""

    name: ClassVar[str] = "record"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float32: 75}
    launch_type: ClassVar[type[KernelLaunch]] = RecordLaunch

    def best_launches(self, problem: ConvProblem, gpu: Gpu, count: int) -> Sequence[RecordLaunch]:  # noqa: D102
        return record_launch.best_launches(RecordProblem.of(problem), gpu, count)

    def seconds(self, problem: ConvProblem, launch: RecordLaunch, gpu: Gpu) -> float:  # noqa: D102
        return record_launch.modeled_seconds(RecordProblem.of(problem), launch, gpu)

    def fill_cost(self, problem: ConvProblem, launch: RecordLaunch) -> tuple[int, float]:  # noqa: D102
        del launch
        return _FILL_LAUNCHES, _FILL_BYTES * problem.density * problem.num_weights

    def is_possible(  # noqa: D102
        self, problem: ConvProblem, launch: RecordLaunch, gpu: Gpu, header: Any = None
    ) -> bool:
        here = RecordProblem.of(problem)
        taps, stride = here.kernel
        cost = RECORD_COSTS.get((taps, stride, launch.tile_h))
        return (
            cost is not None
            and launch.warps <= min(cost.max_warps, gpu.max_warps)
            and launch.chunk_channels % (2 if taps == 2 else 1) == 0
            and shared_bytes(here, launch, None if header is None else header.longest) <= gpu.shared_bytes
        )

    def pattern_key(self, launch: RecordLaunch) -> tuple[int, ...]:  # noqa: D102
        return launch.chunk_channels, launch.slices

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[[RecordLaunch], FilterPattern]:
        taps = RecordProblem.of(problem).window_taps

        def pack(launch: RecordLaunch) -> RecordPattern:
            return pack_pattern(mask, problem.groups, taps, launch.chunk_channels, launch.slices, sources)

        return pack
