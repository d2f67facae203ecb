"""Which processor this is."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

# The flags of /proc/cpuinfo that decide how fast a convolution can be, x86 and Arm.
_VECTOR_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "avx_vnni",
    "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "sve", "sve2", "bf16",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """The CPU: its name and the vector instruction sets that it reports."""

    name: str
    instruction_sets: tuple[str, ...]


def processor() -> Processor:
    """Read the processor from /proc/cpuinfo; elsewhere only what Python's platform module knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return Processor(name, tuple(flag for flag in _VECTOR_FLAGS if flag in flags))
