"""How the tensor-core kernel is cut into blocks, and what a cut is expected to cost: the documented model.

A block is `tile_h` lines of `units_w` units of 8 pixels, for `row_groups` groups of 16 output channels, and `slices`
shares of each group's steps (docs/gpu.md). The model counts instructions and shared-memory cycles per step, as they
stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from prunekit.ops.cuda.condensed.filter import ROWS, STEP_COLUMNS
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch, crossed, least

UNIT_PIXELS = 8
MAX_WARPS = 8  # of a block (csrc/cuda/condensed/launch.h)


@dataclass(frozen=True)
class CondensedLaunch(KernelLaunch):
    """One cut: of the filter into chunks and slices, of the output into blocks.

    Attributes:
        chunk_channels: input channels that a block stages at once.
        warp_units: units of 8 pixels that a warp sums, 4 or 8.
        tile_h: lines of a block.
        units_w: units side by side.
        pixel_warps: warps over the pixels.
        row_groups: groups of 16 output channels in a block.
        slices: warps that share a row group's steps.
        buffers: 2 copies the next chunk while one is read.
    """

    chunk_channels: int
    warp_units: int
    tile_h: int
    units_w: int
    pixel_warps: int
    row_groups: int
    slices: int
    buffers: int

    def __str__(self) -> str:
        blocks = f"{self.tile_h}×{self.units_w} units of {UNIT_PIXELS}, {ROWS * self.row_groups} channels"
        return f"{blocks}, {self.chunk_channels} a chunk, {self.slices} slices, {self.buffers} buffers"


@dataclass(frozen=True)
class CondensedProblem(ConvProblem):
    """A convolution as the tensor-core kernel's model sees it."""

    ROWS: ClassVar[int] = ROWS

    @property
    def kept_columns(self) -> float:
        """The share of taps that some row of a group keeps, where the mask is random."""
        return 1 - (1 - self.density) ** min(ROWS, self.out_channels // self.groups)

    @property
    def is_one_line(self) -> bool:
        """Whether images are taken for one long line each (`join_lines` of csrc/cuda/condensed/launch.h)."""
        is_plain = self.stride == (1, 1) and self.padding == (0, 0)
        return self.kernel_size == (1, 1) and is_plain

    @property
    def lines(self) -> tuple[int, int]:
        """(P, Q) as the kernel runs them."""
        return (1, self.size[0] * self.size[1]) if self.is_one_line else self.size

    def steps(self, chunk_channels: int) -> float:
        """Expected steps of a run of so many channels: its columns come in sixteens."""
        taps = chunk_channels * math.prod(self.kernel_size)
        columns = taps * self.kept_columns
        expected = (columns / STEP_COLUMNS + 15 / 32) * (1 - math.exp(-columns))
        return min(expected, -(-taps // STEP_COLUMNS))

    @property
    def staging(self) -> tuple[int, int]:
        """(instructions, loads) of one thread that stages one unit of a channel at all tap columns.

        Counted in the compiled loops, but for one line's: an estimate for units at any 4 bytes.
        """
        wide = {1: (111, 10), 2: (170, 17)}
        if self.kernel_size[1] == 3 and self.dilation[1] == 1 and self.stride[1] in wide:
            return wide[self.stride[1]]
        if self.is_one_line:
            return 45, 4
        return 98 * self.kernel_size[1], 8 * self.kernel_size[1]


#: Instructions of one step beside its products and one address and load for two units:
#: tests/gpu_checks/test_cuda_compiles.py.
STEP_INSTRUCTIONS = 12
# From one step of a warp to the next, beside the products: loads of taps and of matrices one after the other (30 and
# 33 cycles), address and jump. An assumption, as commonly told of these GPUs; none measured.
STEP_LATENCY = 75
# Of the tensor cores' peak, what products reach at best: assumed; on 9.0 the peak needs wgmma, which is not used.
_MMA_SHARE, _MMA_SHARE_90 = 0.85, 0.55
_MAX_RESIDENT_WARPS = {4: 24, 8: 16}  # of a multiprocessor, by the kernels' registers
_BLOCK_INSTRUCTIONS = 600  # what a warp does once
_STORE_INSTRUCTIONS = 14  # an element
_TAP_INSTRUCTIONS = 20  # turning 32 columns into places
_CHUNK_CYCLES = 80  # two barriers
_COPY_LATENCY = 450  # of loads that mostly come from the second-level cache
_LAUNCH_SECONDS = 1.5e-6  # of a kernel in a CUDA graph: start, first copies, drain


def mma_share(gpu: Gpu) -> float:
    """Return what products reach of the tensor cores' peak at best."""
    return _MMA_SHARE_90 if gpu.capability == 90 else _MMA_SHARE


def bank_conflicts(kept_columns: float) -> float:
    """Cycles of a load of eight units in place of one: as counted in packed random filters (tests)."""
    return 1 + 1.2 * (1 - kept_columns)


def shared_bytes(problem: CondensedProblem, launch: CondensedLaunch, longest: int | None = None) -> int:
    """Return a block's shared memory in bytes, as csrc/cuda/condensed/launch.h computes it.

    Args:
        problem: the convolution.
        launch: its cut.
        longest: steps of the longest run of the packed filter; None expects four standard deviations above the mean.
    """
    return int(_shared_bytes(problem, launch, longest))


def _shared_bytes(problem: CondensedProblem, launch: Any, longest: Any = None) -> Any:
    """Compute it for one cut or for columns of them."""
    taps_h, taps_w = problem.kernel_size
    plane_h = (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    inputs = 16 * (plane_h * launch.units_w | 1) * taps_w * launch.chunk_channels
    if longest is None:
        taps = launch.chunk_channels * taps_h * taps_w
        kept = problem.kept_columns
        columns = np.minimum(taps * kept + 4 * np.sqrt(taps * kept * (1 - kept)), taps)
        longest = np.ceil(columns / STEP_COLUMNS)
    sums = 4 * 4 * launch.warp_units * 32 * (launch.warps - launch.warps // launch.slices)
    step_bytes = (2 * ROWS + 4) * STEP_COLUMNS
    return np.maximum(launch.buffers * (inputs + step_bytes * longest * launch.row_groups), sums)


def modeled_seconds(problem: CondensedProblem, launch: CondensedLaunch, gpu: Gpu) -> float:
    """Return the modeled time of one convolution in float16.

    A wave of blocks takes as long as the slowest of: instructions at one a cycle and scheduler, products on tensor
    cores, shared memory, and a warp's copies and steps one after the other; memory's bytes are a floor below it all.
    """
    return float(_modeled_seconds(problem, launch, gpu))


def _modeled_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    """Compute it for one cut or for columns of them."""
    p, q = problem.lines
    tiles = problem.batch * -(-p // launch.tile_h) * -(-q // (launch.units_w * UNIT_PIXELS))
    blocks = tiles * problem.groups * -(-problem.num_row_groups // launch.row_groups)
    bytes_shared, units = _shared_bytes(problem, launch), launch.warp_units
    most_warps = np.where(units == 8, *(min(_MAX_RESIDENT_WARPS[n], gpu.max_warps) for n in (8, 4)))
    resident = np.minimum(gpu.shared_bytes_multiprocessor // (bytes_shared + 1024), most_warps // launch.warps)
    fits = (resident >= 1) & (bytes_shared <= gpu.shared_bytes)
    resident = np.maximum(resident, 1)
    chunks = np.ceil(problem.group_channels / launch.chunk_channels)
    run = _steps(problem, launch)
    steps = run / launch.slices + (launch.slices - 1) / (2 * launch.slices)  # of the slice that has most, about
    products = units * (1 if gpu.capability >= 80 else 2)
    lanes = gpu.tensor_lanes * mma_share(gpu) / 4  # of a scheduler
    product_cycles = units * ROWS * STEP_COLUMNS * UNIT_PIXELS / lanes
    # What a thread stages in a chunk.
    taps_h = problem.kernel_size[0]
    plane_h = (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    threads = 32 * launch.warps
    staged = np.ceil(plane_h * launch.units_w * launch.chunk_channels / threads)
    instructions, loads = problem.staging
    copied = run * launch.row_groups * 32 / threads  # 16 bytes each
    issue = steps * (STEP_INSTRUCTIONS + units + products) + staged * instructions
    issue = issue + copied * (8 + _TAP_INSTRUCTIONS / 2)
    matrices = units / 2 * 4 * bank_conflicts(problem.kept_columns)
    shared = steps * (4 + 1 + matrices) + staged * (4 * loads + 4 * problem.kernel_size[1]) + 8 * copied
    latency = steps * (STEP_LATENCY + matrices + product_cycles) + staged * _COPY_LATENCY
    store = 4 * units * _STORE_INSTRUCTIONS / launch.slices + 8 * units * (launch.slices > 1)
    seconds: Any = 0.0
    full, rest = np.divmod(blocks, gpu.multiprocessors * resident)
    for waves, here in ((full, resident), (rest > 0, -(-rest // gpu.multiprocessors))):
        warps = here * launch.warps
        busiest = -(-warps // 4)  # warps of a scheduler
        throughput = np.maximum(np.maximum(issue * busiest, steps * product_cycles * busiest), shared * warps)
        cycles = chunks * (np.maximum(throughput, latency) + _CHUNK_CYCLES) + (store + _BLOCK_INSTRUCTIONS) * busiest
        seconds = seconds + waves * cycles / (gpu.clock_ghz * 1e9)
    return np.where(fits, np.maximum(seconds, _memory_seconds(problem, launch, run, gpu)) + _LAUNCH_SECONDS, math.inf)


def _steps(problem: CondensedProblem, launch: Any) -> Any:
    """Steps of a run, of one cut or of columns of them."""
    if isinstance(launch.chunk_channels, int):
        return problem.steps(launch.chunk_channels)
    chunks, places = np.unique(launch.chunk_channels, return_inverse=True)
    return np.array([problem.steps(int(chunk)) for chunk in chunks])[places]


def memory_seconds(problem: CondensedProblem, launch: CondensedLaunch, gpu: Gpu) -> float:
    """Return the time that the steps, the input and the output take at the memory's full bandwidth."""
    return float(_memory_seconds(problem, launch, problem.steps(launch.chunk_channels), gpu))


def _memory_seconds(problem: CondensedProblem, launch: Any, run: Any, gpu: Gpu) -> Any:
    chunks = problem.group_channels / launch.chunk_channels
    steps = problem.groups * problem.num_row_groups * chunks * run
    inputs, outputs = problem.num_pixels
    return (36 * STEP_COLUMNS * steps + 2 * inputs + 2 * outputs) / (gpu.memory_gb_per_s * 1e9)


def launches(problem: CondensedProblem, max_shared_bytes: int) -> Iterator[CondensedLaunch]:
    """Yield the cuts worth comparing."""
    cuts = _cuts(problem)
    fit = _shared_bytes(problem, CondensedLaunch.columns(cuts)) <= max_shared_bytes
    yield from (CondensedLaunch(*numbers) for numbers in cuts[fit].tolist())


def _cuts(problem: CondensedProblem) -> np.ndarray[Any, Any]:
    """Return int64 [cuts, fields of `CondensedLaunch`]."""
    return _all_cuts(problem.lines, problem.num_row_groups, min(128, max(4, problem.group_channels)))


@lru_cache(maxsize=512)
def _all_cuts(lines: tuple[int, int], num_row_groups: int, most_channels: int) -> np.ndarray[Any, Any]:
    chunks = crossed([n for n in (4, 8, 16, 32, 64, 128) if n <= most_channels], (1, 2))
    parts = []
    for warp_units, pixel_warps in ((units, warps) for units in (4, 8) for warps in range(1, MAX_WARPS + 1)):
        shares = [
            (g, s)
            for g in (1, 2, 4, 8)
            for s in (1, 2, 3, 4, 6, 8)
            if g <= num_row_groups and 2 <= pixel_warps * g * s <= MAX_WARPS
        ]
        tiles = tile_choices(lines, warp_units * pixel_warps)
        parts.append(crossed([warp_units], tiles, [pixel_warps], shares, chunks) if shares and tiles else _NO_CUTS)
    units, tile_h, units_w, pixels, row_groups, slices, chunk_channels, buffers = np.concatenate(parts).T
    return np.stack([chunk_channels, units, tile_h, units_w, pixels, row_groups, slices, buffers], 1)


_NO_CUTS = np.empty((0, 8), np.int64)


def tile_choices(lines: tuple[int, int], units: int) -> list[tuple[int, int]]:
    """Return (lines, units side by side) that cut the output evenly and hold at most `units`, most of them used."""
    p, units_q = lines[0], -(-lines[1] // UNIT_PIXELS)
    found = set()
    for cuts in range(1, min(units_q, 12) + 1):
        units_w = min(-(-units_q // cuts), units)
        rows = min(units // units_w, p)
        tile_h = -(-p // -(-p // rows))
        if 4 * tile_h * units_w >= 3 * units:
            found.add((tile_h, units_w))
    return sorted(found)


def choose_launch(problem: CondensedProblem, gpu: Gpu) -> tuple[CondensedLaunch, float] | None:
    """Return the cut of least modeled time and that time in seconds, or None where no block fits the device."""
    best = best_launches(problem, gpu, 1)
    return (best[0], modeled_seconds(problem, best[0], gpu)) if best else None


@lru_cache(maxsize=4096)
def best_launches(problem: CondensedProblem, gpu: Gpu, count: int) -> tuple[CondensedLaunch, ...]:
    """Return the `count` cuts of least modeled time, best first: what measuring on the device chooses among."""
    cuts = _cuts(problem)
    seconds = _modeled_seconds(problem, CondensedLaunch.columns(cuts), gpu)
    return tuple(CondensedLaunch(*cuts[place].tolist()) for place in least(seconds, count))
