"""How the bitmap kernels are cut into blocks, and what a cut is expected to cost: the documented model.

Blocks are those of the condensed kernel (prunekit/ops/cuda/condensed/cost.py), whose problem this model takes as well;
`cuts` blocks share the chunks of one output, and a second kernel adds what they summed. The model counts instructions
and shared-memory cycles per step, as they stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from prunekit.ops.cuda.bitmap.filter import ALIGNMENT, MOST_PLANES, MOST_VALUES, RECORD_WORDS
from prunekit.ops.cuda.condensed.cost import (
    COPY_LATENCY,
    UNIT_PIXELS,
    CondensedLaunch,
    CondensedModel,
    CondensedProblem,
    bank_conflicts,
    block_cuts,
    longest_steps,
    num_tiles,
)
from prunekit.ops.cuda.condensed.filter import ROWS
from prunekit.ops.cuda.cost_model import LAUNCH_SECONDS, BlockPart, Cuts
from prunekit.ops.cuda.devices import Gpu

#: Units of 8 pixels that a warp may sum.
WARP_UNITS = (8, 14)


@dataclass(frozen=True)
class BitmapLaunch(CondensedLaunch):
    """One cut: of the filter into chunks and slices, of the output and of the chunks into blocks.

    Attributes:
        chunk_channels, tile_h, units_w, pixel_warps, row_groups, slices, buffers: as of a CondensedLaunch.
        warp_units: units of 8 pixels that a warp sums, 8 or 14.
        cuts: blocks that share the chunks of one output.
    """

    cuts: int


#: Instructions of one step beside its products and one address and load for two units, decoding included:
#: tests/gpu_checks/test_bitmap_compiles.py.
STEP_INSTRUCTIONS = 67
#: Loads from shared memory of one step, beside those of inputs; of these, loads of values.
STEP_LOADS, VALUE_LOADS = 11, 8
# From one step of a warp to the next, beside the products: the loads of matrices (33 cycles), of the next step's
# bitmap and of its values one after the other (30 each), the count of bits and arithmetic between them (22). The
# condensed kernel's assumptions; none measured.
STEP_LATENCY = 115
_MAX_RESIDENT_WARPS = 16  # of a multiprocessor, by the kernels' 128 registers
_SUM_INSTRUCTIONS = 8 / 4  # a sum of a cut, written
_COPY_BYTES = 16
# What a multiprocessor reads of the second-level cache in a cycle. An assumption, of the order that microbenchmarks of
# a T4 found (Jia et al., arXiv:1903.07486).
_L2_BYTES_PER_CYCLE = 20
_L2_SHARE = 0.5  # of the second-level cache, what the sums of all cuts may take to be there still when they are added
_CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


def takes_chunks(problem: CondensedProblem, chunk_channels: int) -> bool:
    """Tell whether a bitmap filter takes chunks of so many channels, whatever of them is kept."""
    channels = min(chunk_channels, problem.group_channels)
    taps_h, taps_w = problem.kernel_size
    return ROWS * channels * taps_h * taps_w < MOST_VALUES and channels * taps_w <= MOST_PLANES


def _run_values(problem: CondensedProblem, chunk_channels: Any) -> Any:
    """Kept weights of 16 output channels in a chunk."""
    rows = min(ROWS, problem.out_channels // problem.groups)
    return rows * chunk_channels * math.prod(problem.kernel_size) * problem.density


class BitmapModel(CondensedModel):
    """The model of the bitmap kernels, both of them.

    A wave of blocks takes as long as in the condensed kernel's model; the bytes of the second-level cache are a floor
    below it all, too. Of several cuts, a second launch and its bytes come on top.
    """

    launch_type = BitmapLaunch

    def cuts(self, problem: CondensedProblem) -> Cuts:  # noqa: D102
        most = max(4, problem.group_channels)
        chunks = tuple(
            (chunk, buffers, cuts)
            for chunk in (4, 8, 16, 32, 64)
            for cuts in _CUTS
            for buffers in (1, 2)
            if chunk <= most
            and takes_chunks(problem, chunk)
            and cuts + buffers <= -(-problem.group_channels // chunk) + 1
        )
        kernels = tuple(((units,), problem.num_row_groups) for units in WARP_UNITS)
        return block_cuts(problem.lines, kernels, chunks, pixel_warps=(1, 2, 3, 4, 6, 8), slices=(1, 2, 4))

    def run_bytes(self, problem: CondensedProblem, launch: Any, *longest: int) -> Any:  # noqa: D102
        steps, aligned = longest or (longest_steps(problem, launch), _longest_aligned(problem, launch))
        return 4 * RECORD_WORDS * steps + 2 * ALIGNMENT * aligned

    def most_warps(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        del problem, launch
        return _MAX_RESIDENT_WARPS

    def blocks(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        return super().blocks(problem, launch) * launch.cuts

    def chunks(self, problem: CondensedProblem, launch: Any) -> Any:
        """Return the chunks of the cut that has most."""
        return np.ceil(super().chunks(problem, launch) / launch.cuts)

    def step_cycles(  # noqa: D102
        self, problem: CondensedProblem, launch: Any, gpu: Gpu, run: Any, steps: Any
    ) -> tuple[Any, Any, Any]:
        units = launch.warp_units
        products = units * (1 if gpu.capability >= 80 else 2)
        step_values = _run_values(problem, launch.chunk_channels) / np.where(run > 0, run, 1)
        run_bytes = run * (4 * RECORD_WORDS + 2 * step_values) + ALIGNMENT
        copied = run_bytes * launch.row_groups / _COPY_BYTES / (32 * launch.warps)
        # The first step of a chunk is decoded before the loop.
        issue = steps * (STEP_INSTRUCTIONS + units + products) + STEP_INSTRUCTIONS + copied * 12
        matrices = units / 2 * 4 * bank_conflicts(problem.kept_columns)
        # A load of values reads neighbors: a cycle for each 128 bytes that a step's values span.
        values = VALUE_LOADS * np.maximum(1.0, step_values / 64)
        shared = (steps + 1) * (STEP_LOADS - VALUE_LOADS + values) + steps * matrices + 8 * copied
        latency = steps * (STEP_LATENCY + matrices) + STEP_LATENCY
        return issue, shared, latency if gpu.capability >= 80 else latency + np.ceil(copied) * COPY_LATENCY

    def end(self, problem: CondensedProblem, launch: Any) -> BlockPart:  # noqa: D102
        whole, sums = super().end(problem, launch), 4 * launch.warp_units
        # A cut's sums are float32 in the order of lanes: four with one store, and no line ends within.
        written = BlockPart(
            _SUM_INSTRUCTIONS * sums, _SUM_INSTRUCTIONS * sums, launch.row_groups * launch.pixel_warps * sums * 4
        )
        pairs = zip(astuple(written), astuple(whole), strict=True)
        return BlockPart(*(np.where(launch.cuts > 1, cut, all_of_it) for cut, all_of_it in pairs))

    def modeled_seconds(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        return super().modeled_seconds(problem, launch, gpu) + self.adding_seconds(problem, launch, gpu)

    def adding_seconds(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
        """Return the time of the second kernel: a launch, the latency of a sum after the other, and the sums' bytes."""
        # Four loads of a thread are under way together (csrc/cuda/bitmap/conv2d.cuh), then bias and residual.
        latency = (np.ceil(launch.cuts / 4) + 1) * COPY_LATENCY / (gpu.clock_ghz * 1e9)
        return np.where(launch.cuts > 1, LAUNCH_SECONDS + latency + _sum_seconds(problem, launch, gpu), 0.0)

    def floor_seconds(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        return np.maximum(self.memory_seconds(problem, launch, gpu), self.cache_seconds(problem, launch, gpu))

    def filter_bytes(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        runs = problem.groups * problem.num_row_groups * problem.group_channels / launch.chunk_channels
        records = 4 * RECORD_WORDS * self.steps(problem, launch) + ALIGNMENT
        return runs * records + 2 * problem.num_weights * problem.density

    def cache_seconds(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
        """Return the time that all blocks' inputs and sums take at the second-level cache's bandwidth, or memory's."""
        inputs = 2 * problem.num_pixels[0] * -(-problem.num_row_groups // launch.row_groups)
        return inputs / _cache_bytes_per_s(gpu) + _sum_seconds(problem, launch, gpu)


MODEL = BitmapModel()


def _longest_aligned(problem: CondensedProblem, launch: Any) -> Any:
    values = _run_values(problem, launch.chunk_channels)
    most = ROWS * launch.chunk_channels * math.prod(problem.kernel_size)
    return np.ceil(np.minimum(values + 4 * np.sqrt(values), most) / ALIGNMENT)


def _cache_bytes_per_s(gpu: Gpu) -> float:
    return _L2_BYTES_PER_CYCLE * gpu.multiprocessors * gpu.clock_ghz * 1e9


def _sum_bytes(problem: CondensedProblem, launch: Any) -> Any:
    """Bytes of the workspace."""
    rows = problem.groups * -(-problem.num_row_groups // launch.row_groups) * launch.row_groups
    units = num_tiles(problem, launch) * rows * launch.pixel_warps * launch.warp_units
    return np.where(launch.cuts > 1, launch.cuts * units * 4 * ROWS * UNIT_PIXELS, 0)


def _sum_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    """Time of writing or reading all sums once: in the second-level cache where they stay there."""
    sums = _sum_bytes(problem, launch)
    is_kept = sums <= _L2_SHARE * gpu.l2_bytes
    return sums / np.where(is_kept, _cache_bytes_per_s(gpu), gpu.memory_gb_per_s * 1e9)
