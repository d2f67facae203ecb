"""How the record kernel is cut into blocks, and what a cut is expected to cost: the documented model behind the choice.

A block is `lanes_h × lanes_w` lanes of `tile_h × 4` pixels, for `row_groups` groups of 8 output channels, and `slices`
shares of the input channels (docs/gpu.md). The model counts instructions and shared-memory cycles per record, as they
stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from prunekit.ops.record_filter import ROWS, SLICE_CHOICES, RecordHeader

TILE_W = 4
MAX_WARPS = 12


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a device.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, for example 75.
        multiprocessors: Streaming multiprocessors.
        clock_ghz: Boost clock in GHz.
        fma_lanes: float32 multiply-adds a cycle and multiprocessor.
        memory_gb_per_s: Bandwidth of the device's memory.
        l2_bytes: Size of its second-level cache.
        shared_bytes: Shared memory that one block may have.
        shared_bytes_multiprocessor: Shared memory of a multiprocessor.
        max_warps: Warps of a multiprocessor.
    """

    name: str
    capability: int
    multiprocessors: int
    clock_ghz: float
    fma_lanes: int
    memory_gb_per_s: float
    l2_bytes: int
    shared_bytes: int
    shared_bytes_multiprocessor: int
    max_warps: int

    @property
    def fma_peak_gflops(self) -> float:
        """10^9 float32 operations a second, multiply-adds counted as two."""
        return 2 * self.fma_lanes * self.multiprocessors * self.clock_ghz


_KB = 1024
#: From the vendor's data sheets; boost clocks.
GPUS = {
    "rtx-2070-super": Gpu("NVIDIA GeForce RTX 2070 SUPER", 75, 40, 1.770, 64, 448, 4 << 20, 64 * _KB, 64 * _KB, 32),
    "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 89, 128, 2.520, 128, 1008, 72 << 20, 99 * _KB, 100 * _KB, 48),
    "a100": Gpu("NVIDIA A100", 80, 108, 1.410, 64, 1555, 40 << 20, 163 * _KB, 164 * _KB, 64),
    "h100": Gpu("NVIDIA H100", 90, 132, 1.830, 128, 3350, 50 << 20, 227 * _KB, 228 * _KB, 64),
}


@dataclass(frozen=True)
class RecordLaunch:
    """One cut into blocks."""

    tile_h: int
    lanes_h: int
    lanes_w: int
    row_groups: int
    slices: int

    def words(self) -> list[int]:
        """Flatten for the op."""
        return [self.tile_h, self.lanes_h, self.lanes_w, self.row_groups, self.slices]

    @property
    def pixel_warps(self) -> int:
        """Warps side by side over the pixels."""
        return -(-self.lanes_h * self.lanes_w // 32)

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.pixel_warps * self.row_groups * self.slices


@dataclass(frozen=True)
class RecordProblem:
    """A convolution as the model sees it."""

    header: RecordHeader
    batch: int
    size: tuple[int, int]  # P, Q
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def kernel(self) -> tuple[int, int]:
        """(taps of a window, the stride that its kernel is compiled for; 0 is any): see csrc/cuda/record_launch.h."""
        header = self.header
        if header.window_taps == 9:
            return 9, self.stride[0]
        return 1, int((header.kernel_h, header.kernel_w) == (1, 1) and self.stride == (1, 1))

    @property
    def tile_heights(self) -> tuple[int, ...]:
        """Rows of pixels that a lane may keep."""
        return (3, 2) if self.kernel[1] == 1 else (2,)


@dataclass(frozen=True)
class RecordCost:
    """Instructions of one record, as counted in the compiled kernels by tests/test_cuda_compiles.py.

    Attributes:
        dispatch: around a slot's multiply-adds.
        load: of one LOAD_WINDOW, loads included.
        load_cycles: of shared memory, for one LOAD_WINDOW of a warp.
        latency: cycles from one record to the next of the same warp, without the multiply-adds: an assumption.
    """

    dispatch: int
    load: int
    load_cycles: int
    latency: int = 75


#: By (window taps, stride, tile_h).
RECORD_COSTS = {
    (9, 1, 3): RecordCost(12, 30, 40),
    (9, 1, 2): RecordCost(12, 27, 32),
    (9, 2, 2): RecordCost(12, 35, 80),
    (1, 1, 3): RecordCost(12, 20, 12),
    (1, 1, 2): RecordCost(12, 19, 8),
    (1, 0, 2): RecordCost(12, 37, 16),
}
_STAGE_INSTRUCTIONS = 4  # an element of the tile: copy, two additions, loop
_BLOCK_INSTRUCTIONS = 600  # what a warp does once
_STORE_INSTRUCTIONS = 12  # a pixel of a row
_CHUNK_CYCLES = 60  # two barriers and the wait for a chunk's copies, where other warps do not fill it


def shared_bytes(problem: RecordProblem, launch: RecordLaunch) -> int:
    """Return a block's shared memory in bytes, as csrc/cuda/record_launch.h computes it."""
    header = problem.header
    plane_h = (launch.lanes_h * launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (header.kernel_h - 1) + 1
    plane_w = (launch.lanes_w * TILE_W - 1) * problem.stride[1] + problem.dilation[1] * (header.kernel_w - 1) + 1
    tile = 4 * plane_h * (-(-plane_w // 4) * 4) * header.channel_block * launch.slices
    records = 8 * launch.row_groups * header.longest[SLICE_CHOICES.index(launch.slices)]
    sums = 4 * (launch.slices - 1) * launch.tile_h * TILE_W * 32 * launch.pixel_warps * launch.row_groups
    return max(2 * (tile + records), sums)


def modelled_seconds(problem: RecordProblem, launch: RecordLaunch, gpu: Gpu) -> float:
    """Return the modelled time of one convolution: the slowest of issue, multiply-adds, shared memory and latency.

    Bytes that memory must give are a floor of their own.
    """
    header, cost = problem.header, RECORD_COSTS[(*problem.kernel, launch.tile_h)]
    pixels = launch.tile_h * TILE_W
    p, q = problem.size
    tiles = problem.batch * -(-p // (launch.lanes_h * launch.tile_h)) * -(-q // (launch.lanes_w * TILE_W))
    blocks = tiles * header.groups * -(-header.num_row_groups // launch.row_groups)
    # Of an average warp: its slots, loads and ends.
    warp_share = header.groups * header.num_row_groups * launch.slices
    slots = header.nnz / warp_share
    others = (header.num_records - header.nnz) / warp_share
    bytes_shared = shared_bytes(problem, launch)
    chunks = math.ceil(header.num_channel_blocks / launch.slices)
    staged = bytes_shared / 8 / (32 * launch.warps) * chunks
    store = ROWS * pixels * (_STORE_INSTRUCTIONS + 3 * (launch.slices > 1)) / launch.slices
    issue = (
        slots * (cost.dispatch + pixels)
        + others * cost.load
        + staged * _STAGE_INSTRUCTIONS
        + store
        + _BLOCK_INSTRUCTIONS
    )
    fma = slots * pixels * 32 / gpu.fma_lanes  # cycles of the multiprocessor
    shared = others * cost.load_cycles + slots + 2 * staged
    latency = (slots + others) * cost.latency + slots * pixels * 128 / gpu.fma_lanes + chunks * _CHUNK_CYCLES
    resident = min(
        gpu.shared_bytes_multiprocessor // (bytes_shared + 1024),
        MAX_WARPS // launch.warps,
        gpu.max_warps // launch.warps,
    )
    if resident < 1 or bytes_shared > gpu.shared_bytes:
        return math.inf
    seconds = 0.0
    full, rest = divmod(blocks, gpu.multiprocessors * resident)
    for waves, here in ((full, resident), (1 if rest else 0, -(-rest // gpu.multiprocessors))):
        warps = here * launch.warps
        # Four schedulers issue one instruction a cycle each; the largest share of warps decides.
        busiest = -(-warps // 4)
        cycles = max(issue * busiest, fma * warps, shared * warps, latency + store)
        seconds += waves * cycles / (gpu.clock_ghz * 1e9)
    return max(seconds, memory_seconds(problem, gpu))


def memory_seconds(problem: RecordProblem, gpu: Gpu) -> float:
    """Return the time that the records, the input and the output take at the memory's full bandwidth."""
    p, q = problem.size
    header = problem.header
    inputs = problem.batch * header.groups * header.group_channels * p * problem.stride[0] * q * problem.stride[1]
    outputs = problem.batch * header.out_channels * p * q
    return (8 * header.num_records + 4 * inputs + 4 * outputs) / (gpu.memory_gb_per_s * 1e9)


def launches(problem: RecordProblem, max_shared_bytes: int) -> Iterator[RecordLaunch]:
    """Yield the cuts worth comparing."""
    p, q = problem.size
    for tile_h in problem.tile_heights:
        tiles_h, tiles_w = -(-p // tile_h), -(-q // TILE_W)
        for pixel_warps in (1, 2, 3, 4, 6):
            for lanes_h, lanes_w in _lane_grids(tiles_h, tiles_w, 32 * pixel_warps):
                for slices in SLICE_CHOICES:
                    for row_groups in (1, 2, 3, 4, 6, 8, 12):
                        launch = RecordLaunch(tile_h, lanes_h, lanes_w, row_groups, slices)
                        is_filled = slices <= problem.header.num_channel_blocks and (
                            row_groups == 1 or row_groups <= problem.header.num_row_groups
                        )
                        fits = launch.warps <= MAX_WARPS and shared_bytes(problem, launch) <= max_shared_bytes
                        if is_filled and fits:
                            yield launch


def _lane_grids(tiles_h: int, tiles_w: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Yield grids of at most `lanes` lanes that cut the tiles evenly; the last ones are small, for narrow memories."""
    seen = set()
    for cuts in (1, 2, 3, 4, 6, 8, 16, 32):
        lanes_w = min(-(-tiles_w // cuts), lanes)
        rows = min(max(1, lanes // lanes_w), tiles_h)
        even = -(-tiles_h // -(-tiles_h // rows))
        seen.add((even, lanes_w))
    seen |= {(1, 1), (2, 2)}
    yield from sorted(seen, reverse=True)


@lru_cache(maxsize=4096)
def choose_launch(problem: RecordProblem, gpu: Gpu) -> tuple[RecordLaunch, float] | None:
    """Return the cut of least modelled time and that time in seconds, or None where no block fits the device."""
    costs = [(modelled_seconds(problem, launch, gpu), launch) for launch in launches(problem, gpu.shared_bytes)]
    best = min(costs, key=lambda pair: pair[0], default=(math.inf, None))
    return None if best[1] is None or math.isinf(best[0]) else (best[1], best[0])
