"""How the record kernel is cut into blocks, and what a cut is expected to cost: the documented model behind the choice.

A block is `lanes` lanes of `tile_h × 2` pixels, for `row_groups` groups of 8 output channels, and `slices` shares of
each group's records (docs/gpu-kernels.md). The model counts instructions and shared-memory cycles per record, as they
stand in the compiled code, and what else a block does, as its executed PTX counts it. It agrees with a cycle simulator
of 7.5 within 15 % (tests/ops/test_simulated_cycles.py); nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from prunekit.ops.cuda.cost_model import SECTOR_BYTES, BlockPart, CostModel, Cuts, sectors
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.record.cuts import block_cuts
from prunekit.ops.cuda.record.ends import runs, shared_ends
from prunekit.ops.cuda.record.filter import ROWS, TILE_W, WINDOW_CHANNELS, window_taps

#: What a block does before its first chunk and after its last, by the convolution, the cut, and the bytes staged.
BlockEnds = Callable[[ConvProblem, Any, Any], tuple[BlockPart, BlockPart]]


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
#: Turing, none measured (docs/gpu-kernels.md), but for a jump, set to what makes the simulated records come out.
LATENCIES = {"LDS": 23, "LDC": 29, "jump": 9, "other": 5}
#: From one record to the next of the same warp, without its multiply-adds: tests/gpu_checks/test_cuda_compiles.py
#: issues the compiled instructions in order with these latencies.
RECORD_LATENCY = 57
_STAGE_INSTRUCTIONS = {True: 4.5, False: 5.5}  # an element of the tile, copied asynchronously or loaded and stored
_PLACE_INSTRUCTIONS = 60  # a place of the tile, beside its channels
_CHUNK_INSTRUCTIONS = 110  # a chunk, before its places
_RECORD_INSTRUCTIONS = 1  # a word of a record; 16 bytes are copied together
_CHUNK_CYCLES = 80  # two barriers, and the wait for copies where other warps do not fill it
_COPY_LATENCY = 236  # of loads that mostly come from the second-level cache
# A thread's copies of a chunk one after the other, as counted (tests/gpu_checks/test_block_accounts.py). Before
# architecture 8.0: once, and each round of loads, with the instructions around it. Later, without the latency: once,
# for each place of the tile, and for each of its channels.
_LOADING_CYCLES, _ROUND_CYCLES = 600, _COPY_LATENCY + 94
_ASYNC_CYCLES, _PLACE_CYCLES, _ELEMENT_CYCLES = 457, 200, 11
COPY_BATCH, _COPY_REST = 24, 8  # loads of a thread under way together (csrc/cuda/record/conv2d.cuh)
_RECORD_BATCH = 2  # pairs of records likewise
_COPY_CODE = 320  # instructions of copies that a block goes through
_CODE_BYTES = 42 << 10  # of the largest kernel
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
    if not np.ndim(launch.lanes):
        return _lay_out(problem, launch)
    # Thousands of cuts have a few hundred tiles between them.
    tiles = launch.tile_h << 40 | launch.lanes << 20 | launch.lanes_w
    _, first, of_cut = np.unique(tiles, return_index=True, return_inverse=True)
    tile = replace(launch, tile_h=launch.tile_h[first], lanes=launch.lanes[first], lanes_w=launch.lanes_w[first])
    lines, pitch, skew, plane = (of_tile[of_cut] for of_tile in _lay_out(problem, tile))
    return lines, pitch, skew, plane


def _lay_out(problem: RecordProblem, launch: Any) -> tuple[Any, Any, Any, Any]:
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


def copy_chain(problem: RecordProblem, launch: Any, capability: int) -> Any:
    """Return the cycles of a thread's copies of a chunk, one after the other, with its waits for memory.

    Before architecture 8.0 it waits for each batch of loads, where the first of records is under way with the first of
    the tile; later for all copies together, with two buffers for none.
    """
    lines, pitch, _, _ = tile_layout(problem, launch)
    return _copy_chain(problem, launch, lines * pitch, capability)


def _copy_chain(problem: RecordProblem, launch: Any, places: Any, capability: int) -> Any:
    columns = -(-places // (32 * launch.warps))
    parts = np.maximum(1, 32 * launch.warps // places)
    if capability >= 80:
        copied = columns * (_PLACE_CYCLES + _ELEMENT_CYCLES * -(-launch.chunk_channels // parts))
        return _ASYNC_CYCLES + copied + _COPY_LATENCY * (launch.buffers == 1)
    together = np.where((2 * launch.chunk_channels > COPY_BATCH) | (parts > 1), 1, 2)
    batches, rest = np.divmod(-(-launch.chunk_channels // parts), COPY_BATCH // together)
    tile = -(-columns // together) * (batches + rest // _COPY_REST + rest % _COPY_REST)
    sharing = launch.pixel_warps * launch.slices
    rounds = tile + np.ceil(_longest_run(problem, launch) / (64 * sharing * _RECORD_BATCH)) - 1
    return _LOADING_CYCLES + _ROUND_CYCLES * rounds


def _copied_sectors(problem: RecordProblem, launch: Any, lines: Any) -> Any:
    """Return the sectors of a block's chunk: its records, and of the tile's lines what lies inside the image."""
    (p, q), (stride_h, stride_w) = problem.size, problem.stride
    bands = -(-q // (launch.lanes_w * TILE_W))
    halo_h, halo_w = (d * (taps - 1) for d, taps in zip(problem.dilation, problem.kernel_size, strict=True))
    # A run that ends within a line of lanes shares that line with the next.
    shared = launch.tile_h * stride_h * (launch.lanes % launch.lanes_w > 0)
    inside = np.minimum(lines, p * stride_h / runs(problem, launch) + halo_h + shared)
    tile = np.minimum(inside, p * stride_h) * sectors((q * stride_w + (bands - 1) * halo_w) / bands, 4)
    records = 8 * launch.row_groups * (problem.slots + problem.loads) / SECTOR_BYTES
    return launch.chunk_channels * (tile + records)


@dataclass(frozen=True)
class _ChunkWork:
    """What a warp does in a chunk, in numbers or columns: first its copies, then, between barriers, its records."""

    copy_instructions: Any
    copy_chain: Any  # cycles of a thread alone, waits included
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
        # Runs of row groups differ by their weights, which are drawn one by one, and so do slices of a run.
        run = (problem.slots + problem.loads) * launch.chunk_channels
        spread = np.sqrt(problem.slots * launch.chunk_channels * (1 - problem.density))
        slowest = 1 + (_EXPECTED_MAXIMA[launch.row_groups] * spread + launch.slices / 2) / run
        moved = _copied_sectors(problem, launch, lines)
        return cls(
            copy_instructions=copies + -(-lines * pitch // threads) * _PLACE_INSTRUCTIONS + _CHUNK_INSTRUCTIONS,
            copy_chain=_copy_chain(problem, launch, lines * pitch, gpu.capability),
            copied_words=tile + records,
            issue=slots * (cost.dispatch + pixels) + (loads + 2) * cost.load,
            multiplied=slots * pixels * 32 / gpu.fma_lanes,
            shared=loads * (cost.load_cycles + 1) + slots + 2,
            latency=latency * slowest,
            fetched=SECTOR_BYTES * moved / gpu.l2_bytes_per_cycle,
        )

    def cycles(self, launch: Any, blocks: Any, is_overlapped: Any) -> tuple[Any, Any]:
        """Return the cycles of (copies, records) of a chunk with so many blocks on a multiprocessor.

        The blocks of a wave begin together and have about the same to do, so that all of them copy, and then all of
        them multiply: simulated blocks do not fill one another's waits. A thread's next loads go out when the last
        ones have come, so the cycles of the second-level cache add to its own.
        """
        warps, fetched = blocks * launch.warps, self.fetched * blocks
        records = _largest(self.latency, self.issue * -(-warps // 4), self.multiplied * warps, self.shared * warps)
        copies = _largest(
            self.copy_chain + np.where(is_overlapped, 0, fetched),
            self.copy_instructions * -(-warps // 4),
            2 * self.copied_words * warps,
        )
        return np.maximum(copies, fetched - records) + _CHUNK_CYCLES, records


@dataclass(frozen=True)
class WaveAccount:
    """Cycles of a wave of blocks, by what they do: before the first chunk, in all chunks, and after the last."""

    start: Any
    copies: Any
    records: Any
    end: Any

    @property
    def cycles(self) -> Any:
        """Of all of it."""
        return self.start + self.copies + self.records + self.end


def _largest(*cycles: Any) -> Any:
    return reduce(np.maximum, cycles)


#: Of so many normal deviates, the expected largest: row groups of a block.
_EXPECTED_MAXIMUM = {1: 0.0, 2: 0.56, 3: 0.85, 4: 1.03, 5: 1.16, 6: 1.27, 8: 1.42, 10: 1.54, 12: 1.63, 16: 1.77}
_EXPECTED_MAXIMA = np.interp(np.arange(17), list(_EXPECTED_MAXIMUM), list(_EXPECTED_MAXIMUM.values()))


class RecordModel(CostModel):
    """The record kernel's.

    A wave of blocks starts, copies and multiplies chunk after chunk, and ends. Each of these takes as long as the
    slowest of what bounds it: a thread's instructions one after the other with their waits, instructions at one a cycle
    and scheduler, multiply-adds, shared memory, the second-level cache. The memory's bytes are a floor below it all.
    """

    launch_type = RecordLaunch

    def __init__(self, ends: BlockEnds = shared_ends, code_bytes: int = _CODE_BYTES) -> None:
        """Model the kernel, or one with other ends of blocks, for example an earlier one.

        Args:
            ends: what a block does before its first chunk and after its last.
            code_bytes: of the kernel's machine code.
        """
        self._ends, self._code_bytes = ends, code_bytes

    def cuts(self, problem: RecordProblem) -> Cuts:  # noqa: D102
        (p, q), (taps, stride) = problem.size, problem.kernel
        is_paired = taps == WINDOW_CHANNELS
        least, channels = WINDOW_CHANNELS if is_paired else 1, min(64, problem.group_channels)
        tables = []
        for tile_h in problem.tile_heights:
            limits = problem.num_row_groups, RECORD_COSTS[taps, stride, tile_h].max_warps
            tables.append(block_cuts(tile_h, (-(-p // tile_h), -(-q // TILE_W)), limits, least, channels))
        return np.concatenate(tables)

    def shared_bytes(self, problem: RecordProblem, launch: Any, *longest: int) -> Any:  # noqa: D102
        row_sums = 32 * launch.warps * 4 * launch.tile_h * TILE_W
        starts = 4 * (launch.row_groups * -(-problem.group_channels // launch.chunk_channels) * launch.slices + 1)
        staged = self.staged_bytes(problem, launch, *longest)
        return _ROW_BYTES * ROWS * launch.row_groups + -(-starts // 16) * 16 + np.maximum(staged, row_sums)

    def staged_bytes(self, problem: RecordProblem, launch: Any, *longest: int) -> Any:
        """Return the shared memory of a block's tiles and records; for the arguments see `shared_bytes`."""
        tile = 4 * tile_layout(problem, launch)[3] * launch.chunk_channels
        (records,) = longest or (_longest_run(problem, launch),)
        return launch.buffers * (tile + 8 * launch.row_groups * records)

    def most_warps(self, problem: RecordProblem, launch: Any) -> Any:  # noqa: D102
        return record_cost(problem, launch.tile_h).max_warps

    def blocks(self, problem: RecordProblem, launch: Any) -> Any:  # noqa: D102
        bands = -(-problem.size[1] // (launch.lanes_w * TILE_W))
        tiles = problem.batch * runs(problem, launch) * bands
        return tiles * problem.groups * -(-problem.num_row_groups // launch.row_groups)

    def copied_sectors(self, problem: RecordProblem, launch: Any) -> Any:
        """Return the sectors that a block copies for a chunk."""
        return _copied_sectors(problem, launch, tile_layout(problem, launch)[0])

    def wave(self, problem: RecordProblem, launch: Any, gpu: Gpu) -> Callable[[Any], Any]:  # noqa: D102
        account = self.wave_account(problem, launch, gpu)
        return lambda blocks: account(blocks).cycles

    def wave_account(self, problem: RecordProblem, launch: Any, gpu: Gpu) -> Callable[[Any], WaveAccount]:
        """Return what tells, by its blocks on a multiprocessor, what a wave spends its cycles on."""
        start, end = self._ends(problem, launch, self.staged_bytes(problem, launch))
        work, is_overlapped = _ChunkWork.of(problem, launch, gpu), (gpu.capability >= 80) & (launch.buffers == 2)
        chunks = np.ceil(problem.group_channels / launch.chunk_channels)

        def account(blocks: Any) -> WaveAccount:
            copies, records = work.cycles(launch, blocks, is_overlapped)
            first, last = (part.cycles(blocks, launch.warps) for part in (start, end))
            return WaveAccount(first, chunks * copies, chunks * records, last)

        return account

    def code(self, problem: RecordProblem, launch: Any) -> tuple[Any, Any]:  # noqa: D102
        parts = self._ends(problem, launch, 1)  # how much is staged has no part in it
        return self._code_bytes, _COPY_CODE + sum(part.code for part in parts)

    def memory_seconds(self, problem: RecordProblem, launch: Any, gpu: Gpu) -> Any:  # noqa: D102
        del launch
        records = problem.groups * problem.num_row_groups * problem.group_channels * (problem.slots + problem.loads)
        inputs, outputs = problem.num_pixels
        return (8 * records + 4 * inputs + 4 * outputs) / (gpu.memory_gb_per_s * 1e9)


MODEL = RecordModel()
