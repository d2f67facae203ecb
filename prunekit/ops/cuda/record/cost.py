"""How the record kernel is cut into blocks, and what a cut is expected to cost: the documented model behind the choice.

A block is `lanes` lanes of `tile_h × 2` pixels, for `row_groups` groups of 8 output channels, and `slices` shares of
each group's records (docs/gpu.md). The model counts instructions and shared-memory cycles per record, as they
stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import lru_cache, reduce
from typing import Any, ClassVar

import numpy as np

from prunekit.ops.cuda.cost_model import CostModel, Cuts
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch, crossed
from prunekit.ops.cuda.record.filter import ROWS, WINDOW_CHANNELS, window_taps

TILE_W = 2


@dataclass(frozen=True)
class RecordLaunch(KernelLaunch):
    """One cut: of the filter into chunks and slices, of the output into blocks.

    Attributes:
        chunk_channels: input channels that a block stages at once.
        slices: warps that share a row group.
        tile_h: rows of a lane's tile of pixels, which is 2 wide.
        lanes: tiles of a block, one after the other, line by line, in a band of the output.
        lanes_w: tiles in a line of a band.
        row_groups: groups of 8 output channels in a block.
        buffers: 2 copies the next chunk while one is read.
    """

    PACKED = ("chunk_channels", "slices")

    chunk_channels: int
    slices: int
    tile_h: int
    lanes: int
    lanes_w: int
    row_groups: int
    buffers: int

    def __str__(self) -> str:
        lanes = f"{self.lanes} lanes, {self.lanes_w} in a line, of {self.tile_h}×{TILE_W}"
        blocks = f"{lanes}, {8 * self.row_groups} channels"
        return f"{blocks}, {self.chunk_channels} a chunk, {self.slices} slices, {self.buffers} buffers"

    @property
    def pixel_warps(self) -> int:
        """Warps side by side over the pixels."""
        return -(-self.lanes // 32)


@dataclass(frozen=True)
class RecordProblem(ConvProblem):
    """A convolution as the record kernel's model sees it."""

    ROWS: ClassVar[int] = ROWS

    @property
    def window_taps(self) -> int:
        """Taps that one load brings."""
        return window_taps(self.kernel_size, self.stride, self.dilation)

    @property
    def kernel(self) -> tuple[int, int]:
        """(taps of a window, the stride that its kernel is compiled for; 0 is any): see csrc/cuda/record/launch.h."""
        return self.window_taps, {9: self.stride[0], WINDOW_CHANNELS: 1, 1: 0}[self.window_taps]

    @property
    def tile_heights(self) -> tuple[int, ...]:
        """Rows of pixels that a lane may keep."""
        return (6, 4) if self.kernel[1] == 1 else (4,)

    @property
    def slots(self) -> float:
        """Kept weights of a row group and input channel."""
        rows = self.out_channels / self.groups / self.num_row_groups
        return rows * math.prod(self.kernel_size) * self.density

    @property
    def loads(self) -> float:
        """Windows that a row group loads in an input channel, where the mask is random."""
        windows = math.prod(self.kernel_size) / self.window_taps
        return windows * (1 - (1 - self.density) ** (ROWS * self.window_taps))


@dataclass(frozen=True)
class RecordCost:
    """Instructions of one record, as tests/gpu_checks/test_cuda_compiles.py counts them; numbers or columns of them.

    Attributes:
        dispatch: around a slot's multiply-adds.
        load: of one LOAD_WINDOW, loads included.
        load_cycles: of shared memory, for one LOAD_WINDOW of a warp.
        max_warps: of a multiprocessor, by the kernel's registers.
    """

    dispatch: Any
    load: Any
    load_cycles: Any
    max_warps: Any


#: By (window taps, stride, tile_h).
RECORD_COSTS = {
    (9, 1, 6): RecordCost(7, 32, 32, 12),
    (9, 1, 4): RecordCost(7, 26, 24, 16),
    (9, 2, 4): RecordCost(7, 53, 54, 16),
    (2, 1, 6): RecordCost(7, 32, 24, 12),
    (2, 1, 4): RecordCost(7, 24, 16, 16),
    (1, 0, 4): RecordCost(7, 28, 16, 16),
}
#: Cycles from issue to result, and from a jump to its target's first instruction: assumptions, figures commonly told of
#: Turing, none measured (docs/gpu.md).
LATENCIES = {"LDS": 23, "LDC": 29, "jump": 14, "other": 5}
#: From one record to the next of the same warp, without its multiply-adds: tests/gpu_checks/test_cuda_compiles.py
#: issues the compiled instructions in order with these latencies.
RECORD_LATENCY = 67
_STAGE_INSTRUCTIONS = {True: 4.5, False: 5.5}  # an element of the tile, copied asynchronously or loaded and stored
_PLACE_INSTRUCTIONS = 60  # a place of the tile, before its channels
_CHUNK_INSTRUCTIONS = 110  # a chunk, before its places
_RECORD_INSTRUCTIONS = 1  # a word of a record; 16 bytes are copied together
_BLOCK_INSTRUCTIONS = 400  # what a warp does once
_BLOCK_WAITS = 3  # for where runs begin, the channels' numbers and their biases
# The end of a block as it was before csrc/cuda/record/store.cuh: docs/gpu.md has the account of both.
_STORE_INSTRUCTIONS, _ADD_INSTRUCTIONS = 18, 3  # a pixel of a row, once and for each slice
_ADD_CYCLES = 80  # of a row that slices add: two barriers, and shared memory between them
_CHUNK_CYCLES = 80  # two barriers, and the wait for copies where other warps do not fill it
_COPY_LATENCY = 236  # of loads that mostly come from the second-level cache
COPY_BATCH, _COPY_REST = 24, 8  # loads of a thread under way together (csrc/cuda/record/conv2d.cuh)
_RECORD_BATCH = 2  # pairs of records likewise
_ROW_BYTES = 16  # of shared memory for an output channel (csrc/cuda/record/launch.h)


def record_cost(problem: RecordProblem, tile_h: Any) -> RecordCost:
    """Return what a record costs in the kernel that runs the problem with this tile, or these tiles."""
    taps, stride = problem.kernel
    costs = [astuple(RECORD_COSTS[taps, stride, height]) for height in problem.tile_heights]
    is_tallest = tile_h == problem.tile_heights[0]
    return RecordCost(*(np.where(is_tallest, *of_heights) for of_heights in zip(costs[0], costs[-1], strict=True)))


def _touched_lines(problem: RecordProblem, launch: Any) -> Any:
    """Return how many lines of lanes a block touches at most: csrc/cuda/record/launch.h has the same."""
    lines = -(-problem.size[0] // launch.tile_h)
    first = np.where(lines * launch.lanes_w <= launch.lanes, 0, launch.lanes_w - np.gcd(launch.lanes, launch.lanes_w))
    return np.minimum(lines, -(-(first + launch.lanes) // launch.lanes_w))


def tile_layout(problem: RecordProblem, launch: Any) -> tuple[Any, Any, Any, Any]:
    """Return (lines, pitch, skew, plane) of the haloed tile of one channel, in floats.

    A line of lanes begins `skew` floats behind the lines before it, so that the lanes of a warp load from different
    banks of shared memory: csrc/cuda/record/launch.h has the same.
    """
    taps_h, taps_w = problem.kernel_size
    (_, stride), tile_lines = problem.kernel, launch.tile_h * problem.stride[0]
    touched = _touched_lines(problem, launch)
    lines = (touched * launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    width = (launch.lanes_w * TILE_W - 1) * problem.stride[1] + problem.dilation[1] * (taps_w - 1) + 1
    step = 2 if stride == 1 else 4
    pitches = -(-np.asarray(width) // step) * step + step * np.arange(8).reshape(8, *(1,) * np.ndim(width))
    skews = (2 * launch.lanes_w - tile_lines * pitches) % 32 if stride else 0 * pitches
    planes = -(-(lines * pitches + (lines - 1) // tile_lines * skews) // 4) * 4
    least = planes.argmin(0)[None]
    pitch, skew, plane = (np.take_along_axis(table, least, 0)[0] for table in (pitches, skews, planes))
    return lines, pitch, skew, plane


def _longest_run(problem: RecordProblem, launch: Any) -> Any:
    """Return the records of the longest run that a random mask is expected to have."""
    mean = (problem.slots + problem.loads) * launch.chunk_channels
    return np.ceil((mean + 4 * np.sqrt(mean)) / 2 + 2 * launch.slices) * 2


def _copy_rounds(problem: RecordProblem, launch: Any, capability: int) -> Any:
    """Return how often a thread waits for memory in a chunk, one wait after the other.

    Before architecture 8.0 it waits for each batch of loads, where the first of records is under way with the first of
    the tile; later for all copies together, with two buffers for none.
    """
    if capability >= 80:
        return 2 - launch.buffers
    lines, pitch, _, _ = tile_layout(problem, launch)
    columns = -(-lines * pitch // (32 * launch.warps))
    parts = np.maximum(1, 32 * launch.warps // (lines * pitch))
    together = np.where((2 * launch.chunk_channels > COPY_BATCH) | (parts > 1), 1, 2)
    batches, rest = np.divmod(-(-launch.chunk_channels // parts), COPY_BATCH // together)
    tile = -(-columns // together) * (batches + rest // _COPY_REST + rest % _COPY_REST)
    sharing = launch.pixel_warps * launch.slices
    return tile + np.ceil(_longest_run(problem, launch) / (64 * sharing * _RECORD_BATCH)) - 1


@dataclass(frozen=True)
class _ChunkWork:
    """What a warp does in a chunk, in numbers or columns: first its copies, then, between barriers, its records."""

    copy_instructions: Any
    copy_waits: Any  # cycles that nothing hides
    copied_words: Any
    issue: Any
    multiplied: Any  # cycles of the multiply-add lanes, all of the multiprocessor
    shared: Any  # cycles of shared memory likewise
    latency: Any  # of the warp's records one after the other, the slowest warp of a block
    fetched: Any  # cycles of the second-level cache, for a block's copies

    @classmethod
    def of(cls, problem: RecordProblem, launch: Any, gpu: Gpu) -> _ChunkWork:
        cost, pixels, threads = record_cost(problem, launch.tile_h), launch.tile_h * TILE_W, 32 * launch.warps
        lines, pitch, _, plane = tile_layout(problem, launch)
        tile = plane * launch.chunk_channels / threads
        records = 2 * launch.row_groups * _longest_run(problem, launch) / threads
        copies = tile * _STAGE_INSTRUCTIONS[gpu.capability >= 80] + records * _RECORD_INSTRUCTIONS
        slots = problem.slots * launch.chunk_channels / launch.slices
        loads = problem.loads * launch.chunk_channels / launch.slices + (launch.slices > 1)
        latency = (slots + loads + 2) * RECORD_LATENCY + slots * pixels * 128 / gpu.fma_lanes + loads * cost.load
        # Runs of row groups differ, and so do slices of a run.
        run = (problem.slots + problem.loads) * launch.chunk_channels
        slowest = 1 + _EXPECTED_MAXIMA[launch.row_groups] / np.sqrt(run) + launch.slices / (2 * run)
        return cls(
            copy_instructions=copies + -(-lines * pitch // threads) * _PLACE_INSTRUCTIONS + _CHUNK_INSTRUCTIONS,
            copy_waits=_COPY_LATENCY * _copy_rounds(problem, launch, gpu.capability),
            copied_words=tile + records,
            issue=slots * (cost.dispatch + pixels) + (loads + 2) * cost.load,
            multiplied=slots * pixels * 32 / gpu.fma_lanes,
            shared=loads * (cost.load_cycles + 1) + slots + 2,
            latency=latency * slowest,
            fetched=4 * (tile + records) * threads / gpu.l2_bytes_per_cycle,
        )

    def cycles(self, launch: Any, blocks: Any, is_overlapped: Any) -> Any:
        """Return the cycles of a chunk with so many blocks on a multiprocessor."""
        warps = blocks * launch.warps
        together = _largest(
            (self.issue + self.copy_instructions) * -(-warps // 4),
            self.multiplied * warps,
            (self.shared + 2 * self.copied_words) * warps,
            self.fetched * blocks,
        )
        # What one block takes, however idle the multiprocessor is.
        records = _largest(
            self.latency, self.issue * -(-launch.warps // 4), self.multiplied * launch.warps, self.shared * launch.warps
        )
        copies = self.copy_instructions * -(-launch.warps // 4) + self.copy_waits
        alone = np.where(is_overlapped, copies, np.maximum(copies, self.fetched)) + records
        return np.maximum(together, alone) + _CHUNK_CYCLES


def _largest(*cycles: Any) -> Any:
    return reduce(np.maximum, cycles)


#: Of so many normal deviates, the expected largest: row groups of a block.
_EXPECTED_MAXIMUM = {1: 0.0, 2: 0.56, 3: 0.85, 4: 1.03, 5: 1.16, 6: 1.27, 8: 1.42, 10: 1.54, 12: 1.63, 16: 1.77}
_EXPECTED_MAXIMA = np.interp(np.arange(17), list(_EXPECTED_MAXIMUM), list(_EXPECTED_MAXIMUM.values()))


@lru_cache(maxsize=512)
def _all_cuts(
    tile_h: int, tiles: tuple[int, int], limits: tuple[int, int], least_chunk: int, channels: int
) -> np.ndarray[Any, Any]:
    num_row_groups, max_warps = limits
    sizes = [n for n in _CHUNKS if n % least_chunk == 0 and n <= max(least_chunk, channels)]
    chunks = crossed(sizes, (1, 2))
    parts = []
    for pixel_warps in range(1, 9):
        shares = [(g, s) for g, s in _WARPS if g <= num_row_groups and pixel_warps * g * s <= max_warps]
        parts.append(crossed(_runs_of_lanes(*tiles, 32 * pixel_warps), shares, chunks))
    lanes, lanes_w, row_groups, slices, chunk_channels, buffers = np.concatenate(parts).T
    cuts = np.stack([chunk_channels, slices, np.full_like(slices, tile_h), lanes, lanes_w, row_groups, buffers], 1)
    return np.unique(cuts, axis=0)


_CHUNKS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
_WARPS = [(row_groups, slices) for row_groups in range(1, 17) for slices in range(1, 13) if row_groups * slices <= 16]


def _runs_of_lanes(tiles_h: int, tiles_w: int, lanes: int) -> list[tuple[int, int]]:
    """Return (lanes of a block, of a line of its band): whole lines, runs over their ends, and a few small ones."""
    runs = {(1, 1), (4, 2)}
    for bands in (*range(1, 14), 16, 32):
        lanes_w = min(-(-tiles_w // bands), lanes)
        lines = min(max(1, lanes // lanes_w), tiles_h)
        runs.add((-(-tiles_h // -(-tiles_h // lines)) * lanes_w, lanes_w))
        lanes_w = -(-tiles_w // bands)
        band = tiles_h * lanes_w
        if 2 * band > lanes:
            runs.add((min(lanes, band), lanes_w))
            runs.add((-(-band // -(-band // lanes)), lanes_w))
    return sorted(runs, reverse=True)


class RecordModel(CostModel):
    """The record kernel's.

    A wave of blocks takes as long as the slowest of: instructions at one a cycle and scheduler, multiply-adds, shared
    memory, the second-level cache, and one block's copies and a warp's records one after the other; the memory's bytes
    are a floor below it all.
    """

    launch_type = RecordLaunch

    def cuts(self, problem: RecordProblem) -> Cuts:  # noqa: D102
        (p, q), (taps, stride) = problem.size, problem.kernel
        is_paired = taps == WINDOW_CHANNELS
        least, channels = WINDOW_CHANNELS if is_paired else 1, min(64, problem.group_channels)
        tables = []
        for tile_h in problem.tile_heights:
            limits = problem.num_row_groups, RECORD_COSTS[taps, stride, tile_h].max_warps
            tables.append(_all_cuts(tile_h, (-(-p // tile_h), -(-q // TILE_W)), limits, least, channels))
        return np.concatenate(tables)

    def shared_bytes(self, problem: RecordProblem, launch: Any, *longest: int) -> Any:  # noqa: D102
        tile = 4 * tile_layout(problem, launch)[3] * launch.chunk_channels
        (records,) = longest or (_longest_run(problem, launch),)
        row_sums = 32 * launch.warps * 4 * launch.tile_h * TILE_W
        starts = 4 * (launch.row_groups * -(-problem.group_channels // launch.chunk_channels) * launch.slices + 1)
        staged = launch.buffers * (tile + 8 * launch.row_groups * records)
        return _ROW_BYTES * ROWS * launch.row_groups + -(-starts // 16) * 16 + np.maximum(staged, row_sums)

    def most_warps(self, problem: RecordProblem, launch: Any) -> Any:  # noqa: D102
        return record_cost(problem, launch.tile_h).max_warps

    def blocks(self, problem: RecordProblem, launch: Any) -> Any:  # noqa: D102
        p, q = problem.size
        runs = -(-(-(-p // launch.tile_h) * launch.lanes_w) // launch.lanes)
        tiles = problem.batch * runs * -(-q // (launch.lanes_w * TILE_W))
        return tiles * problem.groups * -(-problem.num_row_groups // launch.row_groups)

    def wave(self, problem: RecordProblem, launch: Any, gpu: Gpu) -> Callable[[Any], Any]:  # noqa: D102
        chunks, has_slices = np.ceil(problem.group_channels / launch.chunk_channels), launch.slices > 1
        work, is_overlapped = _ChunkWork.of(problem, launch, gpu), (gpu.capability >= 80) & (launch.buffers == 2)
        stores = ROWS * launch.tile_h * TILE_W * (_STORE_INSTRUCTIONS / launch.slices + _ADD_INSTRUCTIONS * has_slices)
        waits = _BLOCK_WAITS * _COPY_LATENCY + _ADD_CYCLES * ROWS * has_slices

        def cycles(blocks: Any) -> Any:
            ends = (stores + _BLOCK_INSTRUCTIONS) * -(-blocks * launch.warps // 4)
            return chunks * work.cycles(launch, blocks, is_overlapped) + ends + waits

        return cycles

    def memory_seconds(self, problem: RecordProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        del launch
        records = problem.groups * problem.num_row_groups * problem.group_channels * (problem.slots + problem.loads)
        inputs, outputs = problem.num_pixels
        return (8 * records + 4 * inputs + 4 * outputs) / (gpu.memory_gb_per_s * 1e9)


MODEL = RecordModel()
