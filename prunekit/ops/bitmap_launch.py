"""How the bitmap kernels are cut into blocks, and what a cut is expected to cost: the documented model.

Blocks are those of the condensed kernel (prunekit/ops/condensed_launch.py), whose problem this model takes as well;
`cuts` blocks share the chunks of one output, and a second kernel adds what they summed. The model counts instructions
and shared-memory cycles per step, as they stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from prunekit.ops import condensed_launch
from prunekit.ops.bitmap_filter import ALIGNMENT, RECORD_WORDS
from prunekit.ops.condensed_launch import MAX_WARPS, UNIT_PIXELS, CondensedLaunch, CondensedProblem, bank_conflicts
from prunekit.ops.fragment_filter import ROWS, STEP_COLUMNS
from prunekit.ops.record_launch import Gpu

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

    def words(self) -> list[int]:
        """What the op is told; chunks are packed into the filter."""
        return [*super().words(), self.cuts]


#: Instructions of one step beside its products and one address and load for two units, decoding included:
#: tests/test_bitmap_compiles.py.
STEP_INSTRUCTIONS = 67
#: Loads from shared memory of one step, beside those of inputs; of these, loads of values.
STEP_LOADS, VALUE_LOADS = 11, 8
# From one step of a warp to the next, beside the products: the loads of matrices (33 cycles), of the next step's
# bitmap and of its values one after the other (30 each), the count of bits and arithmetic between them (22). The
# condensed kernel's assumptions; none measured.
STEP_LATENCY = 115
_MAX_RESIDENT_WARPS = 16  # of a multiprocessor, by the kernels' 128 registers
_BLOCK_INSTRUCTIONS = 600  # what a warp does once
_STORE_INSTRUCTIONS = 14  # an element
_SUM_INSTRUCTIONS = 8  # a unit of a cut, written
_CHUNK_CYCLES = 80  # two barriers
_COPY_LATENCY = 450  # of loads that mostly come from the second-level cache
_COPY_BYTES = 16
_LAUNCH_SECONDS = 1.5e-6  # of a kernel in a CUDA graph: start, first copies, drain
# What a multiprocessor reads of the second-level cache in a cycle. An assumption, of the order that microbenchmarks of
# a T4 found (Jia et al., arXiv:1903.07486).
_L2_BYTES_PER_CYCLE = 20
_L2_SHARE = 0.5  # of the second-level cache, what the sums of all cuts may take to be there still when they are added
_CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
_MOST_VALUES = 1 << 16  # of a run (prunekit/ops/bitmap_filter.py)


def _run_values(problem: CondensedProblem, chunk_channels: int) -> float:
    """Kept weights of 16 output channels in a chunk."""
    rows = min(ROWS, problem.out_channels // problem.groups)
    return rows * chunk_channels * math.prod(problem.kernel_size) * problem.density


def shared_bytes(
    problem: CondensedProblem, launch: BitmapLaunch, longest: int | None = None, longest_aligned: int | None = None
) -> int:
    """Return a block's shared memory in bytes, as csrc/cuda/bitmap_launch.h computes it.

    Args:
        problem: the convolution.
        launch: its cut.
        longest: steps of the longest run of the packed filter; None expects four standard deviations above the mean.
        longest_aligned: values of the run that has most, in eights; None likewise.
    """
    taps_h, taps_w = problem.kernel_size
    plane_h = (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    inputs = 16 * (plane_h * launch.units_w | 1) * taps_w * launch.chunk_channels
    taps = launch.chunk_channels * taps_h * taps_w
    if longest is None:
        kept = problem.kept_columns
        columns = min(taps * kept + 4 * math.sqrt(taps * kept * (1 - kept)), taps)
        longest = math.ceil(columns / STEP_COLUMNS)
    if longest_aligned is None:
        values = _run_values(problem, launch.chunk_channels)
        longest_aligned = math.ceil(min(values + 4 * math.sqrt(values), ROWS * taps) / ALIGNMENT)
    sums = 4 * 4 * launch.warp_units * 32 * (launch.warps - launch.warps // launch.slices)
    run = 4 * RECORD_WORDS * longest + 2 * ALIGNMENT * longest_aligned
    return max(launch.buffers * (inputs + run * launch.row_groups), sums)


def modelled_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the modelled time of one convolution in float16, both kernels.

    A wave of blocks takes as long as the slowest of: instructions at one a cycle and scheduler, products on tensor
    cores, shared memory, and a warp's copies and steps one after the other; the bytes of memory and of the
    second-level cache are a floor below it all. Of several cuts, a second launch and its bytes come on top.
    """
    p, q = problem.lines
    tiles = problem.batch * -(-p // launch.tile_h) * -(-q // (launch.units_w * UNIT_PIXELS))
    row_blocks = problem.groups * -(-problem.num_row_groups // launch.row_groups)
    blocks = tiles * row_blocks * launch.cuts
    bytes_shared = shared_bytes(problem, launch)
    resident = min(
        gpu.shared_bytes_multiprocessor // (bytes_shared + 1024),
        min(_MAX_RESIDENT_WARPS, gpu.max_warps) // launch.warps,
    )
    if resident < 1 or bytes_shared > gpu.shared_bytes:
        return math.inf
    # Of the cut that has most.
    chunks = math.ceil(math.ceil(problem.group_channels / launch.chunk_channels) / launch.cuts)
    units, run = launch.warp_units, problem.steps(launch.chunk_channels)
    steps = run / launch.slices + (launch.slices - 1) / (2 * launch.slices)  # of the slice that has most, about
    products = units * (1 if gpu.capability >= 80 else 2)
    lanes = gpu.tensor_lanes * condensed_launch.mma_share(gpu) / 4  # of a scheduler
    product_cycles = units * ROWS * STEP_COLUMNS * UNIT_PIXELS / lanes
    # What a thread stages in a chunk.
    taps_h = problem.kernel_size[0]
    plane_h = (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    threads = 32 * launch.warps
    staged = math.ceil(plane_h * launch.units_w * launch.chunk_channels / threads)
    instructions, loads = problem.staging
    step_values = _run_values(problem, launch.chunk_channels) / run if run else 0.0
    run_bytes = run * (4 * RECORD_WORDS + 2 * step_values) + ALIGNMENT
    copied = run_bytes * launch.row_groups / _COPY_BYTES / threads
    # The first step of a chunk is decoded before the loop.
    issue = steps * (STEP_INSTRUCTIONS + units + products) + STEP_INSTRUCTIONS
    issue += staged * instructions + copied * 12
    matrices = units / 2 * 4 * bank_conflicts(problem.kept_columns)
    # A load of values reads neighbours: a cycle for each 128 bytes that a step's values span.
    values = VALUE_LOADS * max(1.0, step_values / 64)
    shared = (steps + 1) * (STEP_LOADS - VALUE_LOADS + values) + steps * matrices
    shared += staged * (4 * loads + 4 * problem.kernel_size[1]) + 8 * copied
    latency = steps * (STEP_LATENCY + matrices + product_cycles) + STEP_LATENCY + staged * _COPY_LATENCY
    if gpu.capability < 80:
        latency += math.ceil(copied) * _COPY_LATENCY
    unit_store = 4 * _STORE_INSTRUCTIONS if launch.cuts == 1 else _SUM_INSTRUCTIONS
    store = units * unit_store / launch.slices + 8 * units * (launch.slices > 1)
    seconds = 0.0
    full, rest = divmod(blocks, gpu.multiprocessors * resident)
    for waves, here in ((full, resident), (int(rest > 0), -(-rest // gpu.multiprocessors))):
        warps = here * launch.warps
        busiest = -(-warps // 4)  # warps of a scheduler
        throughput = max(issue * busiest, steps * product_cycles * busiest, shared * warps)
        cycles = chunks * (max(throughput, latency) + _CHUNK_CYCLES) + (store + _BLOCK_INSTRUCTIONS) * busiest
        seconds += waves * cycles / (gpu.clock_ghz * 1e9)
    floor = max(memory_seconds(problem, launch, gpu), cache_seconds(problem, launch, gpu))
    return max(seconds, floor) + _LAUNCH_SECONDS + adding_seconds(problem, launch, gpu)


def _sum_bytes(problem: CondensedProblem, launch: BitmapLaunch) -> int:
    """Bytes of the workspace."""
    p, q = problem.lines
    tiles = problem.batch * -(-p // launch.tile_h) * -(-q // (launch.units_w * UNIT_PIXELS))
    rows = problem.groups * -(-problem.num_row_groups // launch.row_groups) * launch.row_groups
    units = tiles * rows * launch.pixel_warps * launch.warp_units
    return launch.cuts * units * 4 * ROWS * UNIT_PIXELS if launch.cuts > 1 else 0


def _sums_bandwidth(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Bytes a second at which sums are written and read."""
    if _sum_bytes(problem, launch) > _L2_SHARE * gpu.l2_bytes:
        return gpu.memory_gb_per_s * 1e9
    return _L2_BYTES_PER_CYCLE * gpu.multiprocessors * gpu.clock_ghz * 1e9


def adding_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the time of the second kernel: a launch, the latency of a sum after the other, and the sums' bytes."""
    if launch.cuts == 1:
        return 0.0
    # Four loads of a thread are under way together (csrc/cuda/bitmap_conv2d.cuh), then bias and residual.
    latency = (math.ceil(launch.cuts / 4) + 1) * _COPY_LATENCY / (gpu.clock_ghz * 1e9)
    return _LAUNCH_SECONDS + latency + _sum_bytes(problem, launch) / _sums_bandwidth(problem, launch, gpu)


def memory_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the time that the steps, the input and the output take at the memory's full bandwidth."""
    chunks = problem.group_channels / launch.chunk_channels
    runs = problem.groups * problem.num_row_groups * chunks
    filter_bytes = runs * (4 * RECORD_WORDS * problem.steps(launch.chunk_channels) + ALIGNMENT)
    filter_bytes += 2 * problem.out_channels * problem.group_channels * math.prod(problem.kernel_size) * problem.density
    (p, q), channels = problem.size, problem.groups * problem.group_channels
    inputs = problem.batch * channels * p * problem.stride[0] * q * problem.stride[1]
    outputs = problem.batch * problem.out_channels * p * q
    return (filter_bytes + 2 * inputs + 2 * outputs) / (gpu.memory_gb_per_s * 1e9)


def cache_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the time that all blocks' inputs and sums take at the second-level cache's bandwidth, or memory's."""
    row_blocks = -(-problem.num_row_groups // launch.row_groups)
    (p, q), channels = problem.size, problem.groups * problem.group_channels
    inputs = 2 * problem.batch * channels * p * problem.stride[0] * q * problem.stride[1] * row_blocks
    cache = _L2_BYTES_PER_CYCLE * gpu.multiprocessors * gpu.clock_ghz * 1e9
    return inputs / cache + _sum_bytes(problem, launch) / _sums_bandwidth(problem, launch, gpu)


def launches(problem: CondensedProblem, max_shared_bytes: int) -> Iterator[BitmapLaunch]:
    """Yield the cuts worth comparing."""
    most = max(4, problem.group_channels)
    chunk_choices = [n for n in (4, 8, 16, 32, 64) if n <= most and _run_values(problem, n) < 0.9 * _MOST_VALUES]
    for warp_units, pixel_warps in itertools.product(WARP_UNITS, (1, 2, 3, 4, 6, 8)):
        tiles = condensed_launch.tile_choices(problem.lines, warp_units * pixel_warps)
        for tile, row_groups, slices in itertools.product(tiles, (1, 2, 4, 8), (1, 2, 4)):
            warps = pixel_warps * row_groups * slices
            if row_groups > problem.num_row_groups or not 2 <= warps <= MAX_WARPS:
                continue
            for chunk, cuts in itertools.product(chunk_choices, _CUTS):
                chunks = -(-problem.group_channels // chunk)
                for buffers in (1, 2)[: 1 + (chunks > cuts)]:
                    block = warp_units, *tile, pixel_warps, row_groups, slices, buffers
                    launch = BitmapLaunch(chunk, *block, cuts)
                    if cuts <= chunks and shared_bytes(problem, launch) <= max_shared_bytes:
                        yield launch


def choose_launch(problem: CondensedProblem, gpu: Gpu) -> tuple[BitmapLaunch, float] | None:
    """Return the cut of least modelled time and that time in seconds, or None where no block fits the device."""
    best = best_launches(problem, gpu, 1)
    return (best[0], modelled_seconds(problem, best[0], gpu)) if best else None


@lru_cache(maxsize=4096)
def best_launches(problem: CondensedProblem, gpu: Gpu, count: int) -> tuple[BitmapLaunch, ...]:
    """Return the `count` cuts of least modelled time, best first: what measuring on the device chooses among."""
    timed = ((modelled_seconds(problem, launch, gpu), launch) for launch in launches(problem, gpu.shared_bytes))
    best = heapq.nsmallest(count, (pair for pair in timed if math.isfinite(pair[0])), key=lambda pair: pair[0])
    return tuple(launch for _, launch in best)
