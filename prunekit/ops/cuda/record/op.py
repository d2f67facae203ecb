"""Masked convolution on a record filter: the float32 op of NVIDIA GPUs.

    packed = pack_records(weight, mask, groups, window_taps(kernel_size, stride, dilation), chunk_channels, slices)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = record_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/record/conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has no
gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda.cost_model import CostModel
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.filter_op import define_conv2d
from prunekit.ops.cuda.packed_filter import FilterPattern
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.record.cost import MODEL, RECORD_COSTS, RecordProblem
from prunekit.ops.cuda.record.filter import RecordFilter, pack_pattern
from prunekit.ops.cuda.sparse_kernel import SparseKernel

_FILL_LAUNCHES, _FILL_BYTES = 3, 44  # a weight's record read and written, its two indices, itself

record_conv2d_reference = define_conv2d("record", RecordFilter)


class RecordKernel(SparseKernel):
    """See csrc/cuda/record/conv2d.cuh."""

    name = "record"
    architectures: ClassVar[Mapping[torch.dtype, int]] = {torch.float32: 75}
    cost: ClassVar[CostModel] = MODEL
    problem_type = RecordProblem
    filter_type = RecordFilter

    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:  # noqa: D102
        del launch
        return _FILL_LAUNCHES, _FILL_BYTES * problem.density * problem.num_weights

    def knows(self, problem: RecordProblem, launch: Any, gpu: Gpu) -> bool:  # noqa: D102
        taps, stride = problem.kernel
        cost = RECORD_COSTS.get((taps, stride, launch.tile_h))
        return (
            cost is not None
            and launch.warps <= min(cost.max_warps, gpu.max_warps)
            and launch.chunk_channels % (2 if taps == 2 else 1) == 0
        )

    def packer(  # noqa: D102
        self, mask: Tensor, problem: ConvProblem, sources: Tensor | None
    ) -> Callable[..., FilterPattern]:
        here = RecordProblem.of(problem)

        def pack(chunk_channels: int, slices: int) -> FilterPattern:
            return pack_pattern(mask, problem.groups, here.window_taps, chunk_channels, slices, sources)

        return pack
