"""GPUs as the kernels' models know them: a few by name, others by what torch tells of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


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
        l2_gb_per_s: Bandwidth of that cache.
        shared_bytes: Shared memory that one block may have.
        shared_bytes_multiprocessor: Shared memory of a multiprocessor.
        max_warps: Warps of a multiprocessor.
        tensor_lanes: float16 multiply-adds with float32 sums a cycle and multiprocessor.
        sources: Whose kernels run there: "cuda" are those of the compiled extension, "triton" those in Triton.
    """

    name: str
    capability: int
    multiprocessors: int
    clock_ghz: float
    fma_lanes: int
    memory_gb_per_s: float
    l2_bytes: int
    l2_gb_per_s: float
    shared_bytes: int
    shared_bytes_multiprocessor: int
    max_warps: int
    tensor_lanes: int
    sources: frozenset[str] = frozenset({"cuda"})

    @property
    def l2_bytes_per_cycle(self) -> float:
        """Bytes that a multiprocessor gets from the second-level cache in a cycle while all of them ask."""
        return self.l2_gb_per_s / self.clock_ghz / self.multiprocessors

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
#: As commonly published, boost clocks; not checked against data sheets. The second-level caches' bandwidths are rough:
#: the first is that of a T4, the same chip (Jia et al., arXiv:1903.07486), at this clock, the others as commonly told.
GPUS = {
    "rtx-2070-super": Gpu(
        "NVIDIA GeForce RTX 2070 SUPER", 75, 40, 1.770, 64, 448, 4 << 20, 1410, 64 * _KB, 64 * _KB, 32, 256
    ),
    "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 89, 128, 2.520, 128, 1008, 72 << 20, 5000, 99 * _KB, 100 * _KB, 48, 256),
    "a100": Gpu("NVIDIA A100", 80, 108, 1.410, 64, 1555, 40 << 20, 7200, 163 * _KB, 164 * _KB, 64, 1024),
    "h100": Gpu("NVIDIA H100", 90, 132, 1.830, 128, 3350, 50 << 20, 7000, 227 * _KB, 228 * _KB, 64, 2048),
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
        l2_gb_per_s=20 * getattr(properties, "clock_rate", 1_500_000) / 1e6 * properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        shared_bytes_multiprocessor=properties.shared_memory_per_multiprocessor,
        max_warps=properties.max_threads_per_multi_processor // 32,
        tensor_lanes=_TENSOR_LANES.get(capability, 256),
    )
