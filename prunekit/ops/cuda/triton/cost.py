"""What a cut of the Triton kernel is expected to take: a rough model, as its compiler decides what the code is.

A block sums 16 output channels at `block_n` pixels. Step by step it gathers the inputs at `block_k` columns out of the
caches, with an address and tests of bounds for each, and multiplies them. As what Triton 3.7.1 compiles shows,
in float32 the inputs of later steps are under way meanwhile from 8.0 on; in halves only their columns and weights are,
since no asynchronous copy takes single halves. Nothing in the model was measured: it is to rank the kernel, and where
kernels are measured on the device its cuts are measured like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.cost_model import SECTOR_BYTES, BlockPart, CostModel, Cuts, sectors
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import KernelLaunch
from prunekit.ops.cuda.triton.filter import ROWS

#: (block_n, block_k, num_warps, num_stages): those of `prunekit_kernels.condensed_conv2d.CUTS`.
CUTS = (
    (64, 16, 2, 3), (64, 32, 4, 3), (128, 16, 4, 3), (128, 32, 4, 3), (128, 32, 4, 4), (256, 16, 4, 3), (256, 32, 8, 3),
)  # fmt: skip
# Assumptions. Of an input: its address, four tests of bounds, its load, and whether it is finite.
_GATHER_INSTRUCTIONS = 14
_STEP_INSTRUCTIONS = 40  # of a warp, beside inputs and products
_STEP_LATENCY = 450  # a column's tap, then the inputs there, out of the second-level cache
_SHARE_OF_PEAK = 0.5  # of tensor cores or multiply-adds, what products reach at best
_ENDS = BlockPart(chain=1200, instructions=300, code=600)
_STORE_INSTRUCTIONS = 16  # an output of a thread
# Warps of a multiprocessor: 250 registers a thread were compiled where it gathers 32 inputs a step; half is assumed for
# half as many.
_WARPS, _MANY_INPUTS_WARPS, _MANY_INPUTS = 16, 8, 32


@dataclass(frozen=True)
class TritonLaunch(KernelLaunch):
    """One cut (`prunekit_kernels.condensed_conv2d.Cut`).

    Attributes:
        block_n: pixels of a block.
        block_k: columns of a step.
        num_warps: of a block.
        num_stages: steps whose loads are under way.
    """

    PACKED = ()

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return f"{self.block_n} pixels, {self.block_k} columns, {self.num_warps} warps, {self.num_stages} stages"

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.num_warps


class TritonProblem(CondensedProblem):
    """A convolution as the Triton kernel's model sees it."""

    @property
    def columns(self) -> float:
        """Columns of a row group: those of its taps that some row keeps."""
        return self.group_channels * math.prod(self.kernel_size) * self.kept_columns


class TritonModel(CostModel):
    """The model for elements of `itemsize` bytes: 2 on tensor cores, 4 on multiply-adds."""

    launch_type = TritonLaunch

    def __init__(self, itemsize: int) -> None:
        """Model the kernel for elements of so many bytes."""
        self.itemsize = itemsize

    def cuts(self, problem: TritonProblem) -> Cuts:  # noqa: D102
        del problem
        return np.array(CUTS, np.int64)

    def shared_bytes(self, problem: TritonProblem, launch: Any, *longest: int) -> Any:  # noqa: D102
        del problem, longest
        return self.itemsize * launch.num_stages * launch.block_k * (launch.block_n + ROWS)

    def most_warps(self, problem: TritonProblem, launch: Any) -> Any:  # noqa: D102
        del problem
        inputs = launch.block_n * launch.block_k // (32 * launch.num_warps)
        return np.where(inputs >= _MANY_INPUTS, _MANY_INPUTS_WARPS, _WARPS)[()]

    def blocks(self, problem: TritonProblem, launch: Any) -> Any:  # noqa: D102
        pixels = problem.batch * math.prod(problem.size)
        return -(-pixels // launch.block_n) * problem.groups * problem.num_row_groups

    def wave(self, problem: TritonProblem, launch: Any, gpu: Gpu) -> Callable[[Any], Any]:  # noqa: D102
        steps, inputs = np.ceil(problem.columns / launch.block_k), launch.block_k * launch.block_n
        lanes = gpu.tensor_lanes if self.itemsize == 2 else gpu.fma_lanes
        products = ROWS * inputs / (lanes * _SHARE_OF_PEAK)
        waits_shared = launch.num_stages - 1 if self.itemsize == 4 and gpu.capability >= 80 else 1
        # On multiply-adds each product is an instruction's lane, too.
        multiplied = 0 if self.itemsize == 2 else ROWS * inputs / 32 / launch.num_warps
        gathered = inputs * _GATHER_INSTRUCTIONS / 32 / launch.num_warps
        step = BlockPart(_STEP_LATENCY / waits_shared, gathered + multiplied + _STEP_INSTRUCTIONS)
        line = np.minimum(launch.block_n, problem.size[1])
        fetched = SECTOR_BYTES * launch.block_k * launch.block_n / line * sectors(line, self.itemsize)
        outputs = ROWS * launch.block_n / 32
        stores = BlockPart(0, _STORE_INSTRUCTIONS * outputs / launch.num_warps)

        def cycles(blocks: Any) -> Any:
            computed = np.maximum(step.cycles(blocks, launch.num_warps), products * blocks)
            together = np.maximum(computed, fetched * blocks / gpu.l2_bytes_per_cycle)
            ends = sum(part.cycles(blocks, launch.num_warps) for part in (_ENDS, stores))
            return steps * together + ends

        return cycles

    def code(self, problem: TritonProblem, launch: Any) -> tuple[Any, Any]:  # noqa: D102
        del problem, launch
        return 0, _ENDS.code

    def memory_seconds(self, problem: TritonProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        del launch
        columns = problem.groups * problem.num_row_groups * problem.columns
        moved = (self.itemsize * ROWS + 4) * columns + self.itemsize * sum(problem.num_pixels)
        return moved / (gpu.memory_gb_per_s * 1e9)


HALF_MODEL, FLOAT32_MODEL = TritonModel(2), TritonModel(4)
