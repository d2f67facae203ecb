"""How the tensor-core kernel is cut into blocks, and what a cut is expected to cost: the documented model.

A block is `tile_h` lines of `units_w` units of 8 pixels, for `row_groups` groups of 16 output channels, and `slices`
shares of each group's steps (docs/gpu-kernels.md). The model counts instructions and shared-memory cycles per step, as
they stand in the compiled code, and what a block does at its start and end, as its executed PTX counts it
(tests/gpu_checks/test_block_accounts.py). Nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from prunekit.ops.cuda.condensed.filter import ROWS, STEP_COLUMNS
from prunekit.ops.cuda.cost_model import SECTOR_BYTES, BlockPart, CostModel, Cuts, sectors
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch, crossed

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
        """The share of taps that some row of a group keeps: the mask's own, or what a random one leaves."""
        if self.shared_columns is not None:
            return self.shared_columns
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

    def steps(self, chunk_channels: Any) -> Any:
        """Expected steps of a run of so many channels: its columns come in sixteens."""
        taps = chunk_channels * math.prod(self.kernel_size)
        columns = taps * self.kept_columns
        expected = (columns / STEP_COLUMNS + 15 / 32) * (1 - np.exp(-columns))
        return np.minimum(expected, -(-taps // STEP_COLUMNS))

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
_RESIDENT_WARPS = {4: 24, 8: 16}  # of a multiprocessor, by units of a warp: the kernels' registers allow so many
_START = BlockPart(chain=770, instructions=280, code=290)
# The end of a block: cycles of a thread alone and instructions of a warp, once and for each of its sums that is stored;
# what each sum of a further slice takes, which one slice adds while the others wait; and sectors of an element, as
# lanes store their pixels one by one.
_END_CYCLES, _STORE_CYCLES, _ADD_CYCLES = 620, 122, 30
_END_INSTRUCTIONS, _STORE_INSTRUCTIONS, _ADD_INSTRUCTIONS = 60, 34, 2
_STORED_SECTORS = 0.4
# Instructions of it that each sum has in the code, and those of the copies of a chunk.
_SUM_CODE, _COPY_CODE = 42, 290
TAP_INSTRUCTIONS = 20  # turning 32 columns into places
_CHUNK_CYCLES = 80  # two barriers
_STEP_BYTES = (2 * ROWS + 4) * STEP_COLUMNS  # weights, and places of columns
COPY_LATENCY = 450  # of loads that mostly come from the second-level cache


def mma_share(gpu: Gpu) -> float:
    """Return what products reach of the tensor cores' peak at best."""
    return _MMA_SHARE_90 if gpu.capability == 90 else _MMA_SHARE


def bank_conflicts(kept_columns: float) -> float:
    """Cycles of a load of eight units in place of one: as counted in packed random filters (tests)."""
    return 1 + 1.2 * (1 - kept_columns)


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


def plane_h(problem: CondensedProblem, launch: Any) -> Any:
    """Lines of inputs that a block stages."""
    return (launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (problem.kernel_size[0] - 1) + 1


def num_tiles(problem: CondensedProblem, launch: Any) -> Any:
    """Tiles of all images."""
    p, q = problem.lines
    return problem.batch * -(-p // launch.tile_h) * -(-q // (launch.units_w * UNIT_PIXELS))


def longest_steps(problem: CondensedProblem, launch: Any) -> Any:
    """Steps of the longest run that a random mask is expected to have."""
    taps, kept = launch.chunk_channels * math.prod(problem.kernel_size), problem.kept_columns
    columns = np.minimum(taps * kept + 4 * np.sqrt(taps * kept * (1 - kept)), taps)
    return np.ceil(columns / STEP_COLUMNS)


def chunk_choices(problem: CondensedProblem) -> tuple[tuple[int, int], ...]:
    """Return (channels a chunk, buffers) worth comparing."""
    most = max(4, problem.group_channels)
    return tuple((chunk, buffers) for chunk in (4, 8, 16, 32, 64, 128) if chunk <= most for buffers in (1, 2))


@lru_cache(maxsize=512)
def block_cuts(
    lines: tuple[int, int],
    kernels: tuple[tuple[tuple[int, ...], int], ...],
    chunks: tuple[tuple[int, ...], ...],
    pixel_warps: Sequence[int] = range(1, MAX_WARPS + 1),
    slices: tuple[int, ...] = (1, 2, 3, 4, 6, 8),
) -> Cuts:
    """Return int64 [cuts, numbers of a launch]: channels a chunk, a kernel's, tile, warps, row groups, slices, others.

    Args:
        lines: (P, Q).
        kernels: (numbers that it is compiled for, the last of them the units of a warp; row groups of one conv group).
        chunks: (channels a chunk, what else belongs to it).
        pixel_warps: worth comparing.
        slices: likewise.
    """
    rows = [
        (*kernel, *tile, warps, groups, shares)
        for kernel, row_groups in kernels
        for warps in pixel_warps
        for tile in tile_choices(lines, kernel[-1] * warps)
        for groups in (1, 2, 4, 8)
        for shares in slices
        if groups <= row_groups and 2 <= warps * groups * shares <= MAX_WARPS
    ]
    if not rows or not chunks:
        return np.empty((0, 0), np.int64)
    cuts, at = crossed(rows, chunks), len(rows[0])
    return cuts[:, [at, *range(at), *range(at + 1, cuts.shape[1])]]


class CondensedModel(CostModel):
    """The condensed kernel's; those of kernels with other steps in the same blocks derive from it.

    A wave of blocks starts, copies inputs and multiplies chunk after chunk, and ends. Each of these takes as long as
    the slowest of what bounds it: a warp's instructions one after the other with their waits, instructions at one a
    cycle and scheduler, products on tensor cores, shared memory. The sectors that copies bring from the second-level
    cache come on top of a warp's own waits, and memory's bytes are a floor below it all.
    """

    launch_type: ClassVar[type[KernelLaunch]] = CondensedLaunch

    def cuts(self, problem: CondensedProblem) -> Cuts:  # noqa: D102
        kernels = tuple(((units,), problem.num_row_groups) for units in (4, 8))
        return block_cuts(problem.lines, kernels, chunk_choices(problem))

    def shared_bytes(self, problem: CondensedProblem, launch: Any, *longest: int) -> Any:  # noqa: D102
        inputs = 16 * (plane_h(problem, launch) * launch.units_w | 1) * problem.kernel_size[1] * launch.chunk_channels
        runs = self.run_bytes(problem, launch, *longest) * launch.row_groups
        warps_adding = launch.warps - launch.warps // launch.slices
        sums = 4 * 4 * self.fragments(launch) * launch.warp_units * 32 * warps_adding
        return np.maximum(launch.buffers * (inputs + runs), sums)

    def run_bytes(self, problem: CondensedProblem, launch: Any, *longest: int) -> Any:
        """Return the bytes of the longest run; see `shared_bytes`."""
        return _STEP_BYTES * (longest[0] if longest else longest_steps(problem, launch))

    def fragments(self, launch: Any) -> Any:
        """Return how many groups of 16 output channels share a step's columns."""
        del launch
        return 1

    def steps(self, problem: CondensedProblem, launch: Any) -> Any:
        """Return the expected steps of a run."""
        return problem.steps(launch.chunk_channels)

    def most_warps(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        del problem
        return np.where(launch.warp_units == 8, _RESIDENT_WARPS[8], _RESIDENT_WARPS[4])

    def row_groups(self, problem: CondensedProblem, launch: Any) -> Any:
        """Return the row groups of one conv group."""
        return -(-(problem.out_channels // problem.groups) // (ROWS * self.fragments(launch)))

    def blocks(self, problem: CondensedProblem, launch: Any) -> Any:  # noqa: D102
        return num_tiles(problem, launch) * problem.groups * -(-self.row_groups(problem, launch) // launch.row_groups)

    def chunks(self, problem: CondensedProblem, launch: Any) -> Any:
        """Return the chunks that a block goes through."""
        return np.ceil(problem.group_channels / launch.chunk_channels)

    def wave(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Callable[[Any], Any]:  # noqa: D102
        run, units = self.steps(problem, launch), self.fragments(launch) * launch.warp_units
        steps = run / launch.slices + (launch.slices - 1) / (2 * launch.slices)  # of the slice that has most, about
        lanes = gpu.tensor_lanes * mma_share(gpu) / 4  # of a scheduler
        products = steps * units * ROWS * STEP_COLUMNS * UNIT_PIXELS / lanes
        # What a thread stages in a chunk.
        staged = np.ceil(plane_h(problem, launch) * launch.units_w * launch.chunk_channels / (32 * launch.warps))
        instructions, loads = problem.staging
        issue, shared, latency = self.step_cycles(problem, launch, gpu, run, steps)
        staging = BlockPart(chain=staged * COPY_LATENCY, instructions=staged * instructions)
        inputs, run_bytes = self._input_sectors(problem, launch), self._mean_run_bytes(problem, launch)
        fetched = (SECTOR_BYTES * inputs + run_bytes * launch.row_groups) / gpu.l2_bytes_per_cycle
        staged_shared = staged * (4 * loads + 4 * problem.kernel_size[1])
        parts = _START, self.end(problem, launch)

        def cycles(blocks: Any) -> Any:
            warps = blocks * launch.warps
            copies = np.maximum(staging.cycles(blocks, launch.warps) + fetched * blocks, staged_shared * warps)
            throughput = np.maximum(np.maximum(issue, products) * -(-warps // 4), shared * warps)
            chunk = copies + np.maximum(throughput, latency + products) + _CHUNK_CYCLES
            ends = sum(part.cycles(blocks, launch.warps) for part in parts)
            return self.chunks(problem, launch) * chunk + ends

        return cycles

    def _input_sectors(self, problem: CondensedProblem, launch: Any) -> Any:
        """Return the sectors of a chunk's inputs; lines that several loads read come once."""
        (p, q), stride = problem.lines, problem.stride
        lines = np.minimum(plane_h(problem, launch), p * stride[0])
        width = np.minimum(launch.units_w * UNIT_PIXELS, q) * stride[1] + problem.kernel_size[1] - 1
        return launch.chunk_channels * lines * sectors(width, 2)

    def _mean_run_bytes(self, problem: CondensedProblem, launch: Any) -> Any:
        chunks = problem.group_channels / launch.chunk_channels
        return self.filter_bytes(problem, launch) / (problem.groups * self.row_groups(problem, launch) * chunks)

    def end(self, problem: CondensedProblem, launch: Any) -> BlockPart:
        """Return what a block does after its last chunk: one slice adds the others' sums, and stores."""
        sums, others = 4 * self.fragments(launch) * launch.warp_units, launch.slices - 1
        adding = _STORE_INSTRUCTIONS + _ADD_INSTRUCTIONS * others
        pixels = problem.batch * problem.size[0] * problem.size[1] / num_tiles(problem, launch)
        return BlockPart(
            chain=_END_CYCLES + sums * (_STORE_CYCLES + _ADD_CYCLES * others),
            instructions=_END_INSTRUCTIONS + sums * adding / launch.slices,
            sectors=_STORED_SECTORS * ROWS * self.fragments(launch) * launch.row_groups * pixels,
            code=_SUM_CODE * sums,
        )

    def code(self, problem: CondensedProblem, launch: Any) -> tuple[Any, Any]:  # noqa: D102
        return 0, _COPY_CODE + _START.code + self.end(problem, launch).code

    def step_cycles(
        self, problem: CondensedProblem, launch: Any, gpu: Gpu, run: Any, steps: Any
    ) -> tuple[Any, Any, Any]:
        """Return what a warp's steps and the copies of them take in a chunk, beside products and inputs.

        Args:
            problem: the convolution.
            launch: its cut.
            gpu: the device.
            run: steps of a run.
            steps: of these a slice's.

        Returns:
            (instructions, cycles of shared memory, cycles one after the other).
        """
        units = launch.warp_units
        products = units * (1 if gpu.capability >= 80 else 2)
        copied = run * launch.row_groups / launch.warps  # 16 bytes each
        issue = steps * (STEP_INSTRUCTIONS + units + products) + copied * (8 + TAP_INSTRUCTIONS / 2)
        matrices = units / 2 * 4 * bank_conflicts(problem.kept_columns)
        return issue, steps * (4 + 1 + matrices) + 8 * copied, steps * (STEP_LATENCY + matrices)

    def memory_seconds(self, problem: CondensedProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        moved = self.filter_bytes(problem, launch) + 2 * sum(problem.num_pixels)
        return moved / (gpu.memory_gb_per_s * 1e9)

    def filter_bytes(self, problem: CondensedProblem, launch: Any) -> Any:
        """Return the bytes of all steps."""
        runs = problem.groups * problem.num_row_groups * problem.group_channels / launch.chunk_channels
        return _STEP_BYTES * runs * self.steps(problem, launch)


MODEL = CondensedModel()
