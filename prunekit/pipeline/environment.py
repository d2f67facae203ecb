"""What the numbers were measured on: versions, processor, threads, instruction sets, native kernels."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from prunekit.nn import native_status

PACKAGES = ("prunekit", "torch", "numpy", "pillow", "pycocotools", "safetensors", "triton", "captum")
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


def installed_version(package: str) -> str | None:
    """Return an installed distribution's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Return the facts that environment.json keeps; call it after the number of threads is set."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: installed_version(package) for package in PACKAGES},
        "processor": asdict(processor()),
        "threads": torch.get_num_threads(),
        "native_kernels": asdict(native_status()),
        "torch_cuda": torch.version.cuda,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_build": torch.__config__.show().splitlines(),
    }
