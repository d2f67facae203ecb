"""How the bitmap kernels are cut into blocks, and what a cut is expected to cost: the documented model.

Blocks are those of the condensed kernel (prunekit/ops/cuda/condensed/cost.py), whose problem this model takes as well;
`cuts` blocks share the chunks of one output, and a second kernel adds what they summed. The model counts instructions
and shared-memory cycles per step, as they stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from prunekit.ops.cuda.bitmap.filter import ALIGNMENT, MOST_PLANES, MOST_VALUES, RECORD_WORDS
from prunekit.ops.cuda.condensed import cost as condensed_cost
from prunekit.ops.cuda.condensed.cost import (
    MAX_WARPS,
    UNIT_PIXELS,
    CondensedLaunch,
    CondensedProblem,
    _steps,
    bank_conflicts,
)
from prunekit.ops.cuda.condensed.filter import ROWS, STEP_COLUMNS
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import crossed, least

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


def takes_chunks(problem: CondensedProblem, chunk_channels: int) -> bool:
    """Tell whether a bitmap filter takes chunks of so many channels, whatever of them is kept."""
    channels = min(chunk_channels, problem.group_channels)
    taps_h, taps_w = problem.kernel_size
    return ROWS * channels * taps_h * taps_w < MOST_VALUES and channels * taps_w <= MOST_PLANES


def _run_values(problem: CondensedProblem, chunk_channels: Any) -> Any:
    """Kept weights of 16 output channels in a chunk."""
    rows = min(ROWS, problem.out_channels // problem.groups)
    return rows * chunk_channels * math.prod(problem.kernel_size) * problem.density


def shared_bytes(
    problem: CondensedProblem, launch: BitmapLaunch, longest: int | None = None, longest_aligned: int | None = None
) -> int:
    """Return a block's shared memory in bytes, as csrc/cuda/bitmap/launch.h computes it.

    Args:
        problem: the convolution.
        launch: its cut.
        longest: steps of the longest run of the packed filter; None expects four standard deviations above the mean.
        longest_aligned: values of the run that has most, in eights; None likewise.
    """
    return int(_shared_bytes(problem, launch, longest, longest_aligned))


def _shared_bytes(problem: CondensedProblem, launch: Any, longest: Any = None, longest_aligned: Any = None) -> Any:
    """Compute it for one cut or for columns of them."""
    taps_h, taps_w = problem.kernel_size
    plane_h = (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    inputs = 16 * (plane_h * launch.units_w | 1) * taps_w * launch.chunk_channels
    taps = launch.chunk_channels * taps_h * taps_w
    if longest is None:
        kept = problem.kept_columns
        columns = np.minimum(taps * kept + 4 * np.sqrt(taps * kept * (1 - kept)), taps)
        longest = np.ceil(columns / STEP_COLUMNS)
    if longest_aligned is None:
        values = _run_values(problem, launch.chunk_channels)
        longest_aligned = np.ceil(np.minimum(values + 4 * np.sqrt(values), ROWS * taps) / ALIGNMENT)
    sums = 4 * 4 * launch.warp_units * 32 * (launch.warps - launch.warps // launch.slices)
    run = 4 * RECORD_WORDS * longest + 2 * ALIGNMENT * longest_aligned
    return np.maximum(launch.buffers * (inputs + run * launch.row_groups), sums)


def modeled_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the modeled time of one convolution in float16, both kernels.

    A wave of blocks takes as long as the slowest of: instructions at one a cycle and scheduler, products on tensor
    cores, shared memory, and a warp's copies and steps one after the other; the bytes of memory and of the
    second-level cache are a floor below it all. Of several cuts, a second launch and its bytes come on top.
    """
    return float(_modeled_seconds(problem, launch, gpu))


def _tiles(problem: CondensedProblem, launch: Any) -> Any:
    """Tiles of all images."""
    p, q = problem.lines
    return problem.batch * -(-p // launch.tile_h) * -(-q // (launch.units_w * UNIT_PIXELS))


def _modeled_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    """Compute it for one cut or for columns of them."""
    row_blocks = problem.groups * -(-problem.num_row_groups // launch.row_groups)
    blocks = _tiles(problem, launch) * row_blocks * launch.cuts
    bytes_shared = _shared_bytes(problem, launch)
    most_warps = min(_MAX_RESIDENT_WARPS, gpu.max_warps)
    resident = np.minimum(gpu.shared_bytes_multiprocessor // (bytes_shared + 1024), most_warps // launch.warps)
    fits = (resident >= 1) & (bytes_shared <= gpu.shared_bytes)
    resident = np.maximum(resident, 1)
    # Of the cut that has most.
    chunks = np.ceil(np.ceil(problem.group_channels / launch.chunk_channels) / launch.cuts)
    units, run = launch.warp_units, _steps(problem, launch)
    steps = run / launch.slices + (launch.slices - 1) / (2 * launch.slices)  # of the slice that has most, about
    products = units * (1 if gpu.capability >= 80 else 2)
    lanes = gpu.tensor_lanes * condensed_cost.mma_share(gpu) / 4  # of a scheduler
    product_cycles = units * ROWS * STEP_COLUMNS * UNIT_PIXELS / lanes
    # What a thread stages in a chunk.
    taps_h = problem.kernel_size[0]
    plane_h = (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    threads = 32 * launch.warps
    staged = np.ceil(plane_h * launch.units_w * launch.chunk_channels / threads)
    instructions, loads = problem.staging
    step_values = _run_values(problem, launch.chunk_channels) / np.where(run > 0, run, 1)
    run_bytes = run * (4 * RECORD_WORDS + 2 * step_values) + ALIGNMENT
    copied = run_bytes * launch.row_groups / _COPY_BYTES / threads
    # The first step of a chunk is decoded before the loop.
    issue = steps * (STEP_INSTRUCTIONS + units + products) + STEP_INSTRUCTIONS
    issue = issue + staged * instructions + copied * 12
    matrices = units / 2 * 4 * bank_conflicts(problem.kept_columns)
    # A load of values reads neighbors: a cycle for each 128 bytes that a step's values span.
    values = VALUE_LOADS * np.maximum(1.0, step_values / 64)
    shared = (steps + 1) * (STEP_LOADS - VALUE_LOADS + values) + steps * matrices
    shared = shared + staged * (4 * loads + 4 * problem.kernel_size[1]) + 8 * copied
    latency = steps * (STEP_LATENCY + matrices + product_cycles) + STEP_LATENCY + staged * _COPY_LATENCY
    if gpu.capability < 80:
        latency = latency + np.ceil(copied) * _COPY_LATENCY
    unit_store = np.where(launch.cuts == 1, 4 * _STORE_INSTRUCTIONS, _SUM_INSTRUCTIONS)
    store = units * unit_store / launch.slices + 8 * units * (launch.slices > 1)
    seconds: Any = 0.0
    full, rest = np.divmod(blocks, gpu.multiprocessors * resident)
    for waves, here in ((full, resident), (rest > 0, -(-rest // gpu.multiprocessors))):
        warps = here * launch.warps
        busiest = -(-warps // 4)  # warps of a scheduler
        throughput = np.maximum(np.maximum(issue, steps * product_cycles) * busiest, shared * warps)
        cycles = chunks * (np.maximum(throughput, latency) + _CHUNK_CYCLES) + (store + _BLOCK_INSTRUCTIONS) * busiest
        seconds = seconds + waves * cycles / (gpu.clock_ghz * 1e9)
    floor = np.maximum(_memory_seconds(problem, launch, run, gpu), _cache_seconds(problem, launch, gpu))
    seconds = np.maximum(seconds, floor) + _LAUNCH_SECONDS + _adding_seconds(problem, launch, gpu)
    return np.where(fits, seconds, math.inf)


def _sum_bytes(problem: CondensedProblem, launch: Any) -> Any:
    """Bytes of the workspace."""
    rows = problem.groups * -(-problem.num_row_groups // launch.row_groups) * launch.row_groups
    units = _tiles(problem, launch) * rows * launch.pixel_warps * launch.warp_units
    return np.where(launch.cuts > 1, launch.cuts * units * 4 * ROWS * UNIT_PIXELS, 0)


def _sum_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    """Time of writing or reading all sums once: in the second-level cache where they stay there."""
    sums, cache = _sum_bytes(problem, launch), _L2_BYTES_PER_CYCLE * gpu.multiprocessors * gpu.clock_ghz * 1e9
    return sums / np.where(sums > _L2_SHARE * gpu.l2_bytes, gpu.memory_gb_per_s * 1e9, cache)


def adding_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the time of the second kernel: a launch, the latency of a sum after the other, and the sums' bytes."""
    return float(_adding_seconds(problem, launch, gpu))


def _adding_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    # Four loads of a thread are under way together (csrc/cuda/bitmap/conv2d.cuh), then bias and residual.
    latency = (np.ceil(launch.cuts / 4) + 1) * _COPY_LATENCY / (gpu.clock_ghz * 1e9)
    return np.where(launch.cuts > 1, _LAUNCH_SECONDS + latency + _sum_seconds(problem, launch, gpu), 0.0)


def memory_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the time that the steps, the input and the output take at the memory's full bandwidth."""
    return float(_memory_seconds(problem, launch, problem.steps(launch.chunk_channels), gpu))


def _memory_seconds(problem: CondensedProblem, launch: Any, run: Any, gpu: Gpu) -> Any:
    chunks = problem.group_channels / launch.chunk_channels
    runs = problem.groups * problem.num_row_groups * chunks
    filter_bytes = runs * (4 * RECORD_WORDS * run + ALIGNMENT) + 2 * problem.num_weights * problem.density
    return (filter_bytes + 2 * sum(problem.num_pixels)) / (gpu.memory_gb_per_s * 1e9)


def cache_seconds(problem: CondensedProblem, launch: BitmapLaunch, gpu: Gpu) -> float:
    """Return the time that all blocks' inputs and sums take at the second-level cache's bandwidth, or memory's."""
    return float(_cache_seconds(problem, launch, gpu))


def _cache_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    inputs = 2 * problem.num_pixels[0] * -(-problem.num_row_groups // launch.row_groups)
    cache = _L2_BYTES_PER_CYCLE * gpu.multiprocessors * gpu.clock_ghz * 1e9
    return inputs / cache + _sum_seconds(problem, launch, gpu)


def launches(problem: CondensedProblem, max_shared_bytes: int) -> Iterator[BitmapLaunch]:
    """Yield the cuts worth comparing."""
    cuts = _cuts(problem)
    fit = _shared_bytes(problem, BitmapLaunch.columns(cuts)) <= max_shared_bytes
    yield from (BitmapLaunch(*numbers) for numbers in cuts[fit].tolist())


def _cuts(problem: CondensedProblem) -> np.ndarray[Any, Any]:
    """Return int64 [cuts, fields of `BitmapLaunch`]."""
    most = max(4, problem.group_channels)
    chunks = tuple(
        (chunk, buffers, cuts)
        for chunk in (4, 8, 16, 32, 64)
        for cuts in _CUTS
        for buffers in (1, 2)
        if chunk <= most and takes_chunks(problem, chunk) and cuts + buffers <= -(-problem.group_channels // chunk) + 1
    )
    return _all_cuts(problem.lines, problem.num_row_groups, chunks)


@lru_cache(maxsize=256)
def _all_cuts(
    lines: tuple[int, int], num_row_groups: int, chunks: tuple[tuple[int, int, int], ...]
) -> np.ndarray[Any, Any]:
    parts = [np.empty((0, 9), np.int64)]
    for warp_units, pixel_warps in ((units, warps) for units in WARP_UNITS for warps in (1, 2, 3, 4, 6, 8)):
        shares = [
            (g, s)
            for g in (1, 2, 4, 8)
            for s in (1, 2, 4)
            if g <= num_row_groups and 2 <= pixel_warps * g * s <= MAX_WARPS
        ]
        tiles = condensed_cost.tile_choices(lines, warp_units * pixel_warps)
        if shares and tiles and chunks:
            parts.append(crossed([warp_units], tiles, [pixel_warps], shares, chunks))
    units, tile_h, units_w, pixels, row_groups, slices, chunk_channels, buffers, cuts = np.concatenate(parts).T
    return np.stack([chunk_channels, units, tile_h, units_w, pixels, row_groups, slices, buffers, cuts], 1)


def choose_launch(problem: CondensedProblem, gpu: Gpu) -> tuple[BitmapLaunch, float] | None:
    """Return the cut of least modeled time and that time in seconds, or None where no block fits the device."""
    best = best_launches(problem, gpu, 1)
    return (best[0], modeled_seconds(problem, best[0], gpu)) if best else None


@lru_cache(maxsize=4096)
def best_launches(problem: CondensedProblem, gpu: Gpu, count: int) -> tuple[BitmapLaunch, ...]:
    """Return the `count` cuts of least modeled time, best first: what measuring on the device chooses among."""
    cuts = _cuts(problem)
    seconds = _modeled_seconds(problem, BitmapLaunch.columns(cuts), gpu)
    return tuple(BitmapLaunch(*cuts[place].tolist()) for place in least(seconds, count))
