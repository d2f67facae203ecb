"""How the record kernel is cut into blocks, and what a cut is expected to cost: the documented model behind the choice.

A block is `lanes_h × lanes_w` lanes of `tile_h × 2` pixels, for `row_groups` groups of 8 output channels, and `slices`
shares of each group's records (docs/gpu.md). The model counts instructions and shared-memory cycles per record, as they
stand in the compiled code; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from prunekit.ops.conv_problem import ConvProblem, KernelLaunch, crossed, least
from prunekit.ops.record_filter import ROWS, WINDOW_CHANNELS, window_taps

TILE_W = 2


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
        tensor_lanes: float16 multiply-adds with float32 sums a cycle and multiprocessor.
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
    tensor_lanes: int

    @property
    def tensor_peak_gflops(self) -> float:
        """10^9 float16 operations a second on tensor cores, multiply-adds counted as two."""
        return 2 * self.tensor_lanes * self.multiprocessors * self.clock_ghz

    @property
    def fma_peak_gflops(self) -> float:
        """10^9 float32 operations a second, multiply-adds counted as two."""
        return 2 * self.fma_lanes * self.multiprocessors * self.clock_ghz

    @property
    def tf32_lanes(self) -> int:
        """tf32 multiply-adds a cycle and multiprocessor: half as many as of float16 from 8.0 on, none before."""
        return self.tensor_lanes // 2 if self.capability >= 80 else 0

    @property
    def tf32_peak_gflops(self) -> float:
        """10^9 tf32 operations a second, multiply-adds counted as two."""
        return 2 * self.tf32_lanes * self.multiprocessors * self.clock_ghz


_KB = 1024
_TENSOR_LANES = {80: 1024, 90: 2048, 100: 2048}  # of the large chips; others have 256
#: As commonly published, boost clocks; not checked against data sheets.
GPUS = {
    "rtx-2070-super": Gpu(
        "NVIDIA GeForce RTX 2070 SUPER", 75, 40, 1.770, 64, 448, 4 << 20, 64 * _KB, 64 * _KB, 32, 256
    ),
    "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 89, 128, 2.520, 128, 1008, 72 << 20, 99 * _KB, 100 * _KB, 48, 256),
    "a100": Gpu("NVIDIA A100", 80, 108, 1.410, 64, 1555, 40 << 20, 163 * _KB, 164 * _KB, 64, 1024),
    "h100": Gpu("NVIDIA H100", 90, 132, 1.830, 128, 3350, 50 << 20, 227 * _KB, 228 * _KB, 64, 2048),
}


def gpu_of(properties: Any) -> Gpu:
    """Return what the model needs of a device, from `torch.cuda.get_device_properties`.

    A device of the table keeps the table's figures; of others, what torch does not tell is taken to be modest.
    """
    for known in GPUS.values():
        if known.name in properties.name:
            return replace(known, multiprocessors=properties.multi_processor_count)
    capability = 10 * properties.major + properties.minor
    width, rate = getattr(properties, "memory_bus_width", 256), getattr(properties, "memory_clock_rate", 7_000_000)
    return Gpu(
        name=properties.name,
        capability=capability,
        multiprocessors=properties.multi_processor_count,
        clock_ghz=getattr(properties, "clock_rate", 1_500_000) / 1e6,
        fma_lanes=64 if capability in (75, 80) else 128,
        memory_gb_per_s=2 * rate * 1e3 * width / 8 / 1e9,
        l2_bytes=properties.L2_cache_size,
        shared_bytes=properties.shared_memory_per_block_optin,
        shared_bytes_multiprocessor=properties.shared_memory_per_multiprocessor,
        max_warps=properties.max_threads_per_multi_processor // 32,
        tensor_lanes=_TENSOR_LANES.get(capability, 256),
    )


@dataclass(frozen=True)
class RecordLaunch(KernelLaunch):
    """One cut: of the filter into chunks and slices, of the output into blocks.

    Attributes:
        chunk_channels: input channels that a block stages at once.
        slices: warps that share a row group.
        tile_h: rows of a lane's tile of pixels, which is 2 wide.
        lanes_h: lanes one above the other.
        lanes_w: lanes side by side.
        row_groups: groups of 8 output channels in a block.
        buffers: 2 copies the next chunk while one is read.
    """

    chunk_channels: int
    slices: int
    tile_h: int
    lanes_h: int
    lanes_w: int
    row_groups: int
    buffers: int

    def __str__(self) -> str:
        blocks = f"{self.lanes_h}×{self.lanes_w} lanes of {self.tile_h}×{TILE_W}, {8 * self.row_groups} channels"
        return f"{blocks}, {self.chunk_channels} a chunk, {self.slices} slices, {self.buffers} buffers"

    def words(self) -> list[int]:
        """What the op is told; the rest is packed into the filter."""
        return [self.tile_h, self.lanes_h, self.lanes_w, self.row_groups, self.buffers]

    @property
    def pixel_warps(self) -> int:
        """Warps side by side over the pixels."""
        return -(-self.lanes_h * self.lanes_w // 32)


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
        """(taps of a window, the stride that its kernel is compiled for; 0 is any): see csrc/cuda/record_launch.h."""
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
    """Instructions of one record, as tests/test_cuda_compiles.py counts them in the compiled kernels.

    Attributes:
        dispatch: around a slot's multiply-adds.
        load: of one LOAD_WINDOW, loads included.
        load_cycles: of shared memory, for one LOAD_WINDOW of a warp.
        max_warps: of a multiprocessor, by the kernel's registers.
    """

    dispatch: int
    load: int
    load_cycles: int
    max_warps: int


#: By (window taps, stride, tile_h).
RECORD_COSTS = {
    (9, 1, 6): RecordCost(7, 33, 32, 12),
    (9, 1, 4): RecordCost(7, 27, 24, 16),
    (9, 2, 4): RecordCost(7, 36, 72, 12),
    (2, 1, 6): RecordCost(7, 33, 24, 12),
    (2, 1, 4): RecordCost(7, 25, 16, 16),
    (1, 0, 4): RecordCost(7, 29, 16, 16),
}
#: Cycles from issue to result, and from a jump to its target's first instruction: assumptions, figures commonly told of
#: Turing, none measured (docs/gpu.md).
LATENCIES = {"LDS": 23, "LDC": 29, "jump": 14, "other": 5}
#: From one record to the next of the same warp, without its multiply-adds: tests/test_cuda_compiles.py issues the
#: compiled instructions in order with these latencies.
RECORD_LATENCY = 67
_STAGE_INSTRUCTIONS = 4  # an element of the tile: copy, two additions, loop
_BLOCK_INSTRUCTIONS = 600  # what a warp does once
_STORE_INSTRUCTIONS = 12  # a pixel of a row
_CHUNK_CYCLES = 80  # two barriers, and the wait for copies where other warps do not fill it
_COPY_LATENCY = 450  # of loads that mostly come from the second-level cache
_COPY_BATCH = 16  # loads of a thread under way together (csrc/cuda/record_conv2d.cuh)
_RECORD_BATCH = 4  # pairs of records likewise
_LAUNCH_SECONDS = 1.5e-6  # of a kernel in a CUDA graph: start, first copies, drain


def record_cost(problem: RecordProblem, tile_h: int) -> RecordCost:
    """Return what a record costs in the kernel that runs the problem with this tile."""
    taps, stride = problem.kernel
    return RECORD_COSTS[taps, stride, tile_h]


def shared_bytes(problem: RecordProblem, launch: RecordLaunch, longest: float | None = None) -> int:
    """Return a block's shared memory in bytes, as csrc/cuda/record_launch.h computes it.

    Args:
        problem: the convolution.
        launch: its cut.
        longest: records of the longest run of the packed filter; None expects four standard deviations above the mean.
    """
    return int(_shared_bytes(problem, launch, longest))


def _shared_bytes(problem: RecordProblem, launch: Any, longest: Any = None) -> Any:
    """Compute it for one cut or for columns of them."""
    tile = 4 * _plane(problem, launch) * launch.chunk_channels
    if longest is None:
        longest = _longest_run(problem, launch)
    sums = 4 * (launch.slices - 1) * launch.tile_h * TILE_W * 32 * launch.pixel_warps * launch.row_groups
    starts = 4 * (launch.row_groups * -(-problem.group_channels // launch.chunk_channels) * launch.slices + 1)
    return -(-starts // 16) * 16 + np.maximum(launch.buffers * (tile + 8 * launch.row_groups * longest), sums)


def _plane(problem: RecordProblem, launch: Any) -> Any:
    """Return the elements of the haloed tile of one channel."""
    taps_h, taps_w = problem.kernel_size
    plane_h = (launch.lanes_h * launch.tile_h - 1) * problem.stride[0] + problem.dilation[0] * (taps_h - 1) + 1
    plane_w = (launch.lanes_w * TILE_W - 1) * problem.stride[1] + problem.dilation[1] * (taps_w - 1) + 1
    return plane_h * (-(-plane_w // 4) * 4)


def _longest_run(problem: RecordProblem, launch: Any) -> Any:
    """Return the records of the longest run that a random mask is expected to have."""
    mean = (problem.slots + problem.loads) * launch.chunk_channels
    return np.ceil((mean + 4 * np.sqrt(mean)) / 2 + 2 * launch.slices) * 2


def _copy_rounds(problem: RecordProblem, launch: Any, capability: int) -> Any:
    """Return how often a thread waits for memory in a chunk, one wait after the other.

    Before architecture 8.0 it waits for each batch of loads; later for all copies together, with two buffers for none.
    """
    if capability >= 80:
        return 2 - launch.buffers
    batches = -(-_plane(problem, launch) // (32 * launch.warps)) * -(-launch.chunk_channels // _COPY_BATCH)
    parts = launch.pixel_warps * launch.slices
    return batches + np.ceil(_longest_run(problem, launch) / (64 * parts * _RECORD_BATCH))


def modelled_seconds(problem: RecordProblem, launch: RecordLaunch, gpu: Gpu) -> float:
    """Return the modelled time of one convolution.

    A wave of blocks takes as long as the slowest of: instructions at one a cycle and scheduler, multiply-adds, shared
    memory, and the latency of a warp's records one after the other; the memory's bytes are a floor below it all.
    """
    return float(_modelled_seconds(problem, launch.tile_h, launch, gpu))


def _modelled_seconds(problem: RecordProblem, tile_h: int, launch: Any, gpu: Gpu) -> Any:
    """Compute it for one cut or for columns of them, all of this tile."""
    cost = record_cost(problem, tile_h)
    pixels = tile_h * TILE_W
    p, q = problem.size
    tiles = problem.batch * -(-p // (launch.lanes_h * tile_h)) * -(-q // (launch.lanes_w * TILE_W))
    blocks = tiles * problem.groups * -(-problem.num_row_groups // launch.row_groups)
    bytes_shared = _shared_bytes(problem, launch)
    resident = np.minimum(
        gpu.shared_bytes_multiprocessor // (bytes_shared + 1024),
        min(cost.max_warps, gpu.max_warps) // launch.warps,
    )
    fits = (resident >= 1) & (bytes_shared <= gpu.shared_bytes)
    resident = np.maximum(resident, 1)
    chunks = np.ceil(problem.group_channels / launch.chunk_channels)
    # A warp's share of a chunk, and how much more the slowest warp of the block has: runs of row groups differ.
    slots = problem.slots * launch.chunk_channels / launch.slices
    loads = problem.loads * launch.chunk_channels / launch.slices + (launch.slices > 1)
    run = (problem.slots + problem.loads) * launch.chunk_channels
    slowest = 1 + _EXPECTED_MAXIMA[launch.row_groups] / np.sqrt(run) + launch.slices / (2 * run)
    staged = bytes_shared / launch.buffers / 4 / (32 * launch.warps)
    store = ROWS * pixels * (_STORE_INSTRUCTIONS / launch.slices + 4 * (launch.slices > 1))
    issue = slots * (cost.dispatch + pixels) + (loads + 2) * cost.load + staged * _STAGE_INSTRUCTIONS
    shared = loads * (cost.load_cycles + 1) + slots + 2 + 2 * staged
    latency = (slots + loads + 2) * RECORD_LATENCY + slots * pixels * 128 / gpu.fma_lanes + loads * cost.load
    exposed = _COPY_LATENCY * _copy_rounds(problem, launch, gpu.capability)
    seconds: Any = 0.0
    full, rest = np.divmod(blocks, gpu.multiprocessors * resident)
    for waves, here in ((full, resident), (rest > 0, -(-rest // gpu.multiprocessors))):
        warps = here * launch.warps
        busiest = -(-warps // 4)  # warps of a scheduler
        throughput = np.maximum(
            np.maximum(issue * busiest, slots * pixels * 32 / gpu.fma_lanes * warps), shared * warps
        )
        cycles = chunks * (np.maximum(throughput, latency * slowest + exposed) + _CHUNK_CYCLES)
        cycles = cycles + (store + _BLOCK_INSTRUCTIONS) * busiest
        seconds = seconds + waves * cycles / (gpu.clock_ghz * 1e9)
    return np.where(fits, np.maximum(seconds, memory_seconds(problem, gpu)) + _LAUNCH_SECONDS, math.inf)


#: Of so many normal deviates, the expected largest: row groups of a block.
_EXPECTED_MAXIMUM = {
    1: 0.0,
    2: 0.56,
    3: 0.85,
    4: 1.03,
    5: 1.16,
    6: 1.27,
    8: 1.42,
    10: 1.54,
    12: 1.63,
    16: 1.77,
}
_EXPECTED_MAXIMA = np.interp(np.arange(17), list(_EXPECTED_MAXIMUM), list(_EXPECTED_MAXIMUM.values()))


def memory_seconds(problem: RecordProblem, gpu: Gpu) -> float:
    """Return the time that the records, the input and the output take at the memory's full bandwidth."""
    records = problem.groups * problem.num_row_groups * problem.group_channels * (problem.slots + problem.loads)
    inputs, outputs = problem.num_pixels
    return (8 * records + 4 * inputs + 4 * outputs) / (gpu.memory_gb_per_s * 1e9)


def launches(problem: RecordProblem, max_shared_bytes: int) -> Iterator[RecordLaunch]:
    """Yield the cuts worth comparing."""
    for tile_h in problem.tile_heights:
        cuts = _cuts(problem, tile_h)
        fit = _shared_bytes(problem, RecordLaunch.columns(cuts)) <= max_shared_bytes
        yield from (RecordLaunch(*numbers) for numbers in cuts[fit].tolist())


def _cuts(problem: RecordProblem, tile_h: int) -> np.ndarray[Any, Any]:
    """Return int64 [cuts, fields of `RecordLaunch`]."""
    (p, q), is_paired = problem.size, problem.window_taps == WINDOW_CHANNELS
    tiles = -(-p // tile_h), -(-q // TILE_W)
    limits = problem.num_row_groups, record_cost(problem, tile_h).max_warps
    return _all_cuts(tile_h, tiles, limits, WINDOW_CHANNELS if is_paired else 1, min(64, problem.group_channels))


@lru_cache(maxsize=512)
def _all_cuts(
    tile_h: int, tiles: tuple[int, int], limits: tuple[int, int], least_chunk: int, channels: int
) -> np.ndarray[Any, Any]:
    num_row_groups, max_warps = limits
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n >= least_chunk and n <= max(least_chunk, channels)]
    chunks = crossed(sizes, (1, 2))
    parts = []
    for pixel_warps in (1, 2, 3, 4, 6):
        shares = [(g, s) for g, s in _WARPS if g <= num_row_groups and pixel_warps * g * s <= max_warps]
        parts.append(crossed(_lane_grids(*tiles, 32 * pixel_warps), shares, chunks))
    lanes_h, lanes_w, row_groups, slices, chunk_channels, buffers = np.concatenate(parts).T
    return np.stack([chunk_channels, slices, np.full_like(slices, tile_h), lanes_h, lanes_w, row_groups, buffers], 1)


_WARPS = [(row_groups, slices) for row_groups in (1, 2, 3, 4, 5, 6, 8, 12, 16) for slices in (1, 2, 3, 4, 5, 6, 8, 12)]


def _lane_grids(tiles_h: int, tiles_w: int, lanes: int) -> list[tuple[int, int]]:
    """Return grids of at most `lanes` lanes that cut the tiles evenly, small ones too, for narrow memories."""
    grids = {(1, 1), (2, 2)}
    for cuts in (1, 2, 3, 4, 6, 8, 16, 32):
        lanes_w = min(-(-tiles_w // cuts), lanes)
        rows = min(max(1, lanes // lanes_w), tiles_h)
        grids.add((-(-tiles_h // -(-tiles_h // rows)), lanes_w))
    return sorted(grids, reverse=True)


def choose_launch(problem: RecordProblem, gpu: Gpu) -> tuple[RecordLaunch, float] | None:
    """Return the cut of least modelled time and that time in seconds, or None where no block fits the device."""
    best = best_launches(problem, gpu, 1)
    return (best[0], modelled_seconds(problem, best[0], gpu)) if best else None


@lru_cache(maxsize=4096)
def best_launches(problem: RecordProblem, gpu: Gpu, count: int) -> tuple[RecordLaunch, ...]:
    """Return the `count` cuts of least modelled time, best first: what measuring on the device chooses among."""
    tables = {tile_h: _cuts(problem, tile_h) for tile_h in problem.tile_heights}
    seconds = [_modelled_seconds(problem, h, RecordLaunch.columns(cuts), gpu) for h, cuts in tables.items()]
    cuts = np.concatenate(list(tables.values()))
    return tuple(RecordLaunch(*cuts[place].tolist()) for place in least(np.concatenate(seconds), count))
