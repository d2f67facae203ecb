"""What the kernels' models of time have in common: the best cuts, and the time of the waves that blocks come in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import KernelLaunch, least

LAUNCH_SECONDS = 1.5e-6  # of a kernel in a CUDA graph: start, first copies, drain

SECTOR_BYTES = 32  # what memory and its caches move at least
#: Code that is larger is fetched anew by each wave of blocks: what microbenchmarks find of the cache that a
#: multiprocessor's four partitions share (Jia et al., arXiv:1903.07486).
INSTRUCTION_CACHE_BYTES = 128 << 10
INSTRUCTION_BYTES = 16
#: What an instruction takes to come from beyond the instruction caches, beside its issue. It accounts for what a cycle
#: simulator found at the ends of blocks, beyond waits and stores (tests/ops/test_simulated_cycles.py).
FETCH_CYCLES = 1.5

Cuts = np.ndarray[Any, np.dtype[np.int64]]


def sectors(elements: Any, itemsize: int) -> Any:
    """Return the sectors that a run of so many elements touches on average, if it begins anywhere."""
    here = SECTOR_BYTES // itemsize
    return (elements + here - 1) / here


@dataclass(frozen=True)
class BlockPart:
    """What a block does once, as counted where its PTX is executed: numbers, or columns of them for many cuts.

    Attributes:
        chain: Cycles of its slowest thread alone, waits included.
        instructions: Of a warp.
        sectors: That the block stores, one a cycle.
        code: Instructions, each counted once however often it runs.
    """

    chain: Any
    instructions: Any
    sectors: Any = 0
    code: Any = 0

    def cycles(self, blocks: Any, warps: Any) -> Any:
        """Return the cycles of so many blocks of so many warps each, all at it together."""
        issued = self.instructions * -(-blocks * warps // 4)
        return np.maximum(self.chain, issued) + self.sectors * blocks


class CostModel(ABC):
    """How a kernel is cut into blocks, and what a cut is expected to cost; problems are of the kernel's own class.

    Whatever takes a launch takes columns of them as well (`KernelLaunch.columns`), and then returns an array.

    Attributes:
        launch_type: of its cuts.
    """

    launch_type: ClassVar[type[KernelLaunch]]

    @abstractmethod
    def cuts(self, problem: Any) -> Cuts:
        """Return the cuts worth comparing, int64 [cuts, fields of `launch_type`]."""

    @abstractmethod
    def shared_bytes(self, problem: Any, launch: Any, *longest: int) -> Any:
        """Return a block's shared memory in bytes, as the kernel's launch.h computes it.

        Args:
            problem: the convolution.
            launch: its cut.
            longest: `FilterHeader.longest_run` of the packed filter; none expects four standard deviations above the
                mean.
        """

    @abstractmethod
    def most_warps(self, problem: Any, launch: Any) -> Any:
        """Return the warps that a multiprocessor holds, by the kernel's registers."""

    @abstractmethod
    def blocks(self, problem: Any, launch: Any) -> Any:
        """Return the blocks of the grid."""

    @abstractmethod
    def wave(self, problem: Any, launch: Any, gpu: Gpu) -> Callable[[Any], Any]:
        """Return what gives the cycles of a wave by its blocks on a multiprocessor."""

    @abstractmethod
    def memory_seconds(self, problem: Any, launch: Any, gpu: Gpu) -> Any:
        """Return the time that the filter, the input and the output take at the memory's full bandwidth."""

    def code(self, problem: Any, launch: Any) -> tuple[Any, Any]:
        """Return (bytes of the kernel's code, instructions of it that a block goes through once, loops left out)."""
        del problem, launch
        return 0, 0

    def floor_seconds(self, problem: Any, launch: Any, gpu: Gpu) -> Any:
        """Return what all waves together take at least, by the bytes that are moved."""
        return self.memory_seconds(problem, launch, gpu)

    def modeled_seconds(self, problem: Any, launch: Any, gpu: Gpu) -> Any:
        """Return the modeled time of one convolution; inf where no block fits the device."""
        bytes_shared, most_warps = self.shared_bytes(problem, launch), self.most_warps(problem, launch)
        resident = np.minimum(
            gpu.shared_bytes_multiprocessor // (bytes_shared + 1024),
            np.minimum(most_warps, gpu.max_warps) // launch.warps,
        )
        fits = (resident >= 1) & (bytes_shared <= gpu.shared_bytes)
        resident, wave = np.maximum(resident, 1), self.wave(problem, launch, gpu)
        full, rest = np.divmod(self.blocks(problem, launch), gpu.multiprocessors * resident)
        cycles = full * wave(resident) + (rest > 0) * wave(-(-rest // gpu.multiprocessors))
        code_bytes, instructions = self.code(problem, launch)
        fetches = np.where(np.asarray(code_bytes) > INSTRUCTION_CACHE_BYTES, full + (rest > 0), 1)
        cycles = cycles + FETCH_CYCLES * instructions * fetches
        seconds = np.maximum(cycles / (gpu.clock_ghz * 1e9), self.floor_seconds(problem, launch, gpu)) + LAUNCH_SECONDS
        return np.where(fits, seconds, math.inf)[()]

    def launches(self, problem: Any, max_shared_bytes: int) -> Iterator[Any]:
        """Yield the cuts worth comparing that take no more shared memory."""
        cuts = self.cuts(problem)
        fit = self.shared_bytes(problem, self.launch_type.columns(cuts)) <= max_shared_bytes
        yield from (self.launch_type(*numbers) for numbers in cuts[fit].tolist())

    def best_launches(self, problem: Any, gpu: Gpu, count: int) -> tuple[Any, ...]:
        """Return the `count` cuts of least modeled time that fit, best first: what measuring chooses among."""
        return _best_launches(self, problem, gpu, count)

    def choose_launch(self, problem: Any, gpu: Gpu) -> tuple[Any, float] | None:
        """Return the cut of least modeled time and that time in seconds, or None where no block fits the device."""
        best = self.best_launches(problem, gpu, 1)
        return (best[0], float(self.modeled_seconds(problem, best[0], gpu))) if best else None


@lru_cache(maxsize=4096)
def _best_launches(model: CostModel, problem: Any, gpu: Gpu, count: int) -> tuple[Any, ...]:
    cuts = model.cuts(problem)
    if not len(cuts):
        return ()
    cuts = cuts[model.shared_bytes(problem, model.launch_type.columns(cuts)) <= gpu.shared_bytes]
    seconds = model.modeled_seconds(problem, model.launch_type.columns(cuts), gpu)
    return tuple(model.launch_type(*cuts[place].tolist()) for place in least(seconds, count))
