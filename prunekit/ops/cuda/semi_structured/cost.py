"""How the kernel on sparse tensor cores is cut into blocks, and what a cut is expected to cost: the documented model.

Blocks, staging and constants are those of the dense tensor cores' kernel (prunekit/ops/cuda/condensed/cost.py); what
differs is a step: 32 columns, of which a row of 16, 32 or 64 output channels stores two of four. Nothing in it was
measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from prunekit.ops.cuda.condensed.cost import (
    _BLOCK_INSTRUCTIONS,
    _CHUNK_CYCLES,
    _COPY_LATENCY,
    _LAUNCH_SECONDS,
    _STORE_INSTRUCTIONS,
    _TAP_INSTRUCTIONS,
    MAX_WARPS,
    STEP_LATENCY,
    UNIT_PIXELS,
    CondensedProblem,
    mma_share,
    tile_choices,
)
from prunekit.ops.cuda.condensed.filter import ROWS
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import KernelLaunch, crossed, least
from prunekit.ops.cuda.semi_structured.filter import FRAGMENTS, SPARSE_STEP_COLUMNS

#: (fragments, units of a warp) that the kernel is compiled for, and the warps of a multiprocessor that its registers
#: allow (tests/gpu_checks/cuda_budgets.json).
RESIDENT_WARPS = {(1, 8): 16, (2, 4): 16, (4, 8): 8}
#: Instructions of a step beside its products, its loads, and an address a unit:
#: tests/gpu_checks/test_semi_structured_compiles.py.
STEP_INSTRUCTIONS = 13
#: By fragments, of random masks as packed (tests/ops/test_semi_structured_launch.py): density; columns that come again,
#: as a share of the taps; cycles of a load of eight units in place of one.
_PACKED = {
    1: (
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        (0.0, 0.0, 0.001, 0.003, 0.01, 0.021, 0.042, 0.145, 0.295, 0.61, 0.985),
        (1.95, 1.53, 1.29, 1.18, 1.12, 1.16, 1.26, 1.42, 1.63, 1.98, 1.0),
    ),
    2: (
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        (0.0, 0.0, 0.001, 0.006, 0.02, 0.045, 0.097, 0.257, 0.425, 0.69, 0.985),
        (1.85, 1.3, 1.11, 1.06, 1.13, 1.24, 1.36, 1.66, 1.96, 2.27, 1.0),
    ),
    4: (
        (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0),
        (0.0, 0.0, 0.002, 0.012, 0.04, 0.105, 0.195, 0.384, 0.525, 0.735, 0.985),
        (1.65, 1.1, 1.03, 1.1, 1.25, 1.41, 1.61, 1.98, 2.22, 2.43, 1.0),
    ),
}


@dataclass(frozen=True)
class SemiStructuredLaunch(KernelLaunch):
    """One cut: of the filter into chunks, row groups and slices, of the output into blocks.

    Attributes:
        chunk_channels: input channels that a block stages at once.
        fragments: groups of 16 output channels that share their columns: 1, 2 or 4.
        warp_units: units of 8 pixels that a warp sums: 8, or 4 with 2 fragments.
        tile_h: lines of a block.
        units_w: units side by side.
        pixel_warps: warps over the pixels.
        row_groups: groups of `fragments` times 16 output channels in a block.
        slices: warps that share a row group's steps.
        buffers: 2 copies the next chunk while one is read.
    """

    PACKED = ("chunk_channels", "fragments")

    chunk_channels: int
    fragments: int
    warp_units: int
    tile_h: int
    units_w: int
    pixel_warps: int
    row_groups: int
    slices: int
    buffers: int

    def __str__(self) -> str:
        rows = ROWS * self.fragments
        blocks = f"{self.tile_h}×{self.units_w} units of {UNIT_PIXELS}, {self.row_groups} × {rows} channels"
        return f"{blocks}, {self.chunk_channels} a chunk, {self.slices} slices, {self.buffers} buffers"


def step_bytes(fragments: Any) -> Any:
    """Bytes of a step: weights, places of columns, metadata (csrc/cuda/semi_structured/launch.h)."""
    return 16 * (32 * fragments + SPARSE_STEP_COLUMNS // 4 + 4 * fragments)


def _by_fragments(problem: CondensedProblem, fragments: Any, of: str) -> Any:
    """Look up of a random mask: "columns" that a run takes as a share of its taps, or bank "conflicts"."""
    found = []
    for each in FRAGMENTS:
        densities, repeated, conflicts = _PACKED[each]
        if of == "conflicts":
            found.append(float(np.interp(problem.density, densities, conflicts)))
        else:
            rows = min(ROWS * each, problem.out_channels // problem.groups)
            kept = 1 - (1 - problem.density) ** rows
            found.append(kept + float(np.interp(problem.density, densities, repeated)))
    return np.select([np.asarray(fragments) == each for each in FRAGMENTS], found)


def expected_steps(problem: CondensedProblem, chunk_channels: Any, fragments: Any) -> Any:
    """Expected steps of a run of so many channels, of a random mask: its columns come in 32s."""
    taps = chunk_channels * math.prod(problem.kernel_size)
    columns = taps * _by_fragments(problem, fragments, "columns")
    expected = (columns / SPARSE_STEP_COLUMNS + 31 / 64) * (1 - np.exp(-columns))
    # Columns that all stand once fill no more steps than the taps do.
    return np.where(columns <= taps, np.minimum(expected, np.ceil(taps / SPARSE_STEP_COLUMNS)), expected)


def _num_row_groups(problem: CondensedProblem, fragments: Any) -> Any:
    """Row groups of one conv group."""
    return -(-(problem.out_channels // problem.groups) // (ROWS * fragments))


def shared_bytes(problem: CondensedProblem, launch: SemiStructuredLaunch, longest: int | None = None) -> int:
    """Return a block's shared memory in bytes, as csrc/cuda/condensed/launch.h computes it.

    Args:
        problem: the convolution.
        launch: its cut.
        longest: steps of the longest run of the packed filter; None expects four standard deviations above the mean.
    """
    return int(_shared_bytes(problem, launch, longest))


def _shared_bytes(problem: CondensedProblem, launch: Any, longest: Any = None) -> Any:
    inputs = 16 * (_plane_h(problem, launch) * launch.units_w | 1) * problem.kernel_size[1] * launch.chunk_channels
    if longest is None:
        taps = launch.chunk_channels * math.prod(problem.kernel_size)
        share = _by_fragments(problem, launch.fragments, "columns")
        spread = np.sqrt(taps * np.maximum(share * (1 - share), 0.01))
        columns = np.where(
            share < 1,
            np.minimum(taps * share + 4 * spread, np.maximum(taps, taps * share + spread)),
            taps * share + 2 * spread,
        )
        longest = np.ceil(columns / SPARSE_STEP_COLUMNS)
    sums = 4 * 4 * launch.fragments * launch.warp_units * 32 * (launch.warps - launch.warps // launch.slices)
    return np.maximum(launch.buffers * (inputs + step_bytes(launch.fragments) * longest * launch.row_groups), sums)


def _plane_h(problem: CondensedProblem, launch: Any) -> Any:
    """Lines of inputs that a block stages."""
    return (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (problem.kernel_size[0] - 1) + 1


def modeled_seconds(problem: CondensedProblem, launch: SemiStructuredLaunch, gpu: Gpu) -> float:
    """Return the modeled time of one convolution in float16; inf where the GPU cannot run it.

    A wave of blocks takes as long as the slowest of: instructions at one a cycle and scheduler, products on tensor
    cores, shared memory, and a warp's copies and steps one after the other; memory's bytes are a floor below it all.
    """
    return float(_modeled_seconds(problem, launch, gpu))


def _modeled_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    """Compute it for one cut or for columns of them."""
    if gpu.capability < 80:
        return np.full(np.shape(launch.fragments), math.inf)
    p, q = problem.lines
    fragments, units = launch.fragments, launch.warp_units
    tiles = problem.batch * -(-p // launch.tile_h) * -(-q // (launch.units_w * UNIT_PIXELS))
    blocks = tiles * problem.groups * -(-_num_row_groups(problem, fragments) // launch.row_groups)
    bytes_shared = _shared_bytes(problem, launch)
    most_warps = np.select([(fragments == f) & (units == u) for f, u in RESIDENT_WARPS], list(RESIDENT_WARPS.values()))
    most_warps = np.minimum(most_warps, gpu.max_warps)
    resident = np.minimum(gpu.shared_bytes_multiprocessor // (bytes_shared + 1024), most_warps // launch.warps)
    fits = (resident >= 1) & (bytes_shared <= gpu.shared_bytes)
    resident = np.maximum(resident, 1)
    chunks = np.ceil(problem.group_channels / launch.chunk_channels)
    run = expected_steps(problem, launch.chunk_channels, fragments)
    steps = run / launch.slices + (launch.slices - 1) / (2 * launch.slices)  # of the slice that has most, about
    lanes = gpu.tensor_lanes * mma_share(gpu) / 4  # of a scheduler
    # A product of 32 columns takes as long as one of 16 dense ones.
    product_cycles = fragments * units * ROWS * (SPARSE_STEP_COLUMNS // 2) * UNIT_PIXELS / lanes
    # What a thread stages in a chunk.
    threads = 32 * launch.warps
    staged = np.ceil(_plane_h(problem, launch) * launch.units_w * launch.chunk_channels / threads)
    instructions, loads = problem.staging
    steps_a_warp = run * launch.row_groups * 32 / threads
    copied = steps_a_warp * fragments * 1.125  # 16 bytes each
    step_loads = 1 + fragments + np.ceil(fragments / 2)
    issue = steps * (STEP_INSTRUCTIONS + 2 * units + step_loads + fragments * units) + staged * instructions
    issue = issue + 8 * copied + steps_a_warp * _TAP_INSTRUCTIONS
    matrices = 4 * units * _by_fragments(problem, fragments, "conflicts")
    shared = steps * (4 * fragments + 1 + np.ceil(fragments / 2) + matrices)
    shared = shared + staged * (4 * loads + 4 * problem.kernel_size[1]) + 8 * copied
    latency = steps * (STEP_LATENCY + matrices + product_cycles) + staged * _COPY_LATENCY
    sums = 4 * fragments * units
    store = sums * _STORE_INSTRUCTIONS / launch.slices + 2 * sums * (launch.slices > 1)
    seconds: Any = 0.0
    full, rest = np.divmod(blocks, gpu.multiprocessors * resident)
    for waves, here in ((full, resident), (rest > 0, -(-rest // gpu.multiprocessors))):
        warps = here * launch.warps
        busiest = -(-warps // 4)  # warps of a scheduler
        throughput = np.maximum(np.maximum(issue, steps * product_cycles) * busiest, shared * warps)
        cycles = chunks * (np.maximum(throughput, latency) + _CHUNK_CYCLES) + (store + _BLOCK_INSTRUCTIONS) * busiest
        seconds = seconds + waves * cycles / (gpu.clock_ghz * 1e9)
    seconds = np.maximum(seconds, _memory_seconds(problem, launch, gpu)) + _LAUNCH_SECONDS
    return np.where(fits, seconds, math.inf)


def memory_seconds(problem: CondensedProblem, launch: SemiStructuredLaunch, gpu: Gpu) -> float:
    """Return the time that the steps, the input and the output take at the memory's full bandwidth."""
    return float(_memory_seconds(problem, launch, gpu))


def _memory_seconds(problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:
    chunks = problem.group_channels / launch.chunk_channels
    run = expected_steps(problem, launch.chunk_channels, launch.fragments)
    steps = problem.groups * _num_row_groups(problem, launch.fragments) * chunks * run
    inputs, outputs = problem.num_pixels
    return (step_bytes(launch.fragments) * steps + 2 * inputs + 2 * outputs) / (gpu.memory_gb_per_s * 1e9)


def _launches(problem: CondensedProblem) -> np.ndarray[Any, Any]:
    """Return the cuts worth comparing, int64 [cuts, numbers of a SemiStructuredLaunch]."""
    group_rows = problem.out_channels // problem.groups
    return _all_cuts(problem.lines, group_rows, min(128, max(4, problem.group_channels)))


@lru_cache(maxsize=512)
def _all_cuts(lines: tuple[int, int], group_rows: int, most_channels: int) -> np.ndarray[Any, Any]:
    chunks = crossed([n for n in (4, 8, 16, 32, 64, 128) if n <= most_channels], (1, 2))
    parts = []
    for fragments, warp_units in RESIDENT_WARPS:
        if fragments > 1 and ROWS * fragments >= 2 * group_rows:
            continue  # half of the rows would be empty
        for pixel_warps in range(1, MAX_WARPS + 1):
            shares = [
                (rows, slices)
                for rows in (1, 2, 4, 8)
                for slices in (1, 2, 3, 4, 6, 8)
                if rows <= -(-group_rows // (ROWS * fragments)) and 2 <= pixel_warps * rows * slices <= MAX_WARPS
            ]
            tiles = tile_choices(lines, warp_units * pixel_warps)
            if shares and tiles:
                parts.append(crossed([(fragments, warp_units)], tiles, [pixel_warps], shares, chunks))
    if not parts:
        return np.empty((0, 9), np.int64)
    fragments, units, tile_h, units_w, pixels, row_groups, slices, chunk_channels, buffers = np.concatenate(parts).T
    return np.stack([chunk_channels, fragments, units, tile_h, units_w, pixels, row_groups, slices, buffers], 1)


@lru_cache(maxsize=4096)
def _best(problem: CondensedProblem, gpu: Gpu, count: int) -> tuple[tuple[SemiStructuredLaunch, float], ...]:
    cuts = _launches(problem)
    seconds = _modeled_seconds(problem, SemiStructuredLaunch.columns(cuts), gpu)
    return tuple((SemiStructuredLaunch(*cuts[at].tolist()), float(seconds[at])) for at in least(seconds, count))


def choose_launch(problem: CondensedProblem, gpu: Gpu) -> tuple[SemiStructuredLaunch, float] | None:
    """Return the cut of least modeled time and that time in seconds, or None where the device runs none."""
    best = _best(problem, gpu, 1)
    return best[0] if best else None


def best_launches(problem: CondensedProblem, gpu: Gpu, count: int) -> tuple[SemiStructuredLaunch, ...]:
    """Return the `count` cuts of least modeled time, best first: what measuring on the device chooses among."""
    return tuple(launch for launch, _ in _best(problem, gpu, count))
