"""The machine under the numbers: its name, its versions, and how fast it computes and reads memory right now."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import prunekit
from prunekit.environment import describe_environment, installed_version
from prunekit.nn import native_status
from prunekit.ops import native
from prunekit.processor import processor

_PACKAGES = ("prunekit", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
_FAST_ROOMS = ("ops", "engine", "nn")  # whose code runs in an accelerated model, or chooses what does
# A product of square matrices of this side keeps a few cores busy; more cores want a larger one.
_MATRIX_SIDE, _LARGE_MATRIX_SIDE, _FEW_THREADS = 1024, 2048, 4
_STREAM_BYTES = 1 << 28  # more than last-level caches hold
_SECONDS, _MIN_RUNS = 0.15, 3
# Two units of 16 or 8 float32 lanes, a multiply-add is two: a loop that seems to do more was optimized away.
_FLOPS_A_CYCLE = {"avx512": 64, "avx2": 32}
_LARGEST_GHZ = 6.5


@dataclass(frozen=True)
class Machine:
    """What must be equal for two measurements to be compared.

    Attributes:
        system: operating system, architecture and number of cores.
        cpu: the processor's name.
        instruction_set: what the compiled kernels use, or None.
        versions: of Python and of the packages that compute; absent ones are left out.
        kernels: digest of the code that decides prunekit's speed, so that a rebuilt one counts as new.
        matrix_unit: whether the processor multiplies matrices of int8 in a unit of its own (AMX).
    """

    system: str
    cpu: str
    instruction_set: str | None
    versions: dict[str, str]
    kernels: str
    matrix_unit: bool = False

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        versions = {package: version for package in _PACKAGES if (version := installed_version(package)) is not None}
        return cls(
            system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            cpu=describe_environment()["processor"]["name"],
            instruction_set=native_status().instruction_set,
            versions={"python": platform.python_version(), **versions},
            kernels=_digest_of_kernels(),
            matrix_unit="amx_int8" in processor().instruction_sets,
        )


@dataclass(frozen=True)
class Peak:
    """What the machine gave at most, with the threads that torch had.

    Attributes:
        peak_gflops: the rate that percentages are of, in 10⁹ floating-point operations a second (two a multiply-add).
        peak_kind: "fma" for a loop of nothing but multiply-adds; "dense_gemm" for the largest matrix product, where the
            compiled extension has no such loop.
        dense_gemm_gflops: the rate of the matrix product, for comparison.
        stream_gb_per_s: 10⁹ bytes a second read from memory.
        shared_write_ns: nanoseconds a cache line takes to be written after another core has read it; None with one
            thread, or without the compiled extension.
    """

    peak_gflops: float
    peak_kind: str
    dense_gemm_gflops: float
    stream_gb_per_s: float
    shared_write_ns: float | None = None

    @classmethod
    def measure(cls) -> Peak:
        """Measure now."""
        gemm = _gemm_gflops(torch.get_num_threads())
        fma = _fma_gflops()
        return cls(
            peak_gflops=gemm if fma is None else max(fma, gemm),  # whatever was reached is no more than the peak
            peak_kind="dense_gemm" if fma is None else "fma",
            dense_gemm_gflops=gemm,
            stream_gb_per_s=_stream_gb_per_s(),
            shared_write_ns=native.shared_write_ns() if native.is_available() and torch.get_num_threads() > 1 else None,
        )

    def best(self, other: Peak) -> Peak:
        """Return the larger of each rate: others on the machine only ever make a measurement smaller.

        Of shared writes the slower: cores of a virtual machine move, and a run had both.
        """
        shared = [cost for cost in (self.shared_write_ns, other.shared_write_ns) if cost is not None]
        return Peak(
            max(self.peak_gflops, other.peak_gflops),
            self.peak_kind,
            max(self.dense_gemm_gflops, other.dense_gemm_gflops),
            max(self.stream_gb_per_s, other.stream_gb_per_s),
            max(shared, default=None),
        )


def _digest_of_kernels() -> str:
    root = Path(prunekit.__file__).parent
    files = sorted([*root.glob("_native*"), *(file for room in _FAST_ROOMS for file in root.glob(f"{room}/*.py"))])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _fma_gflops() -> float | None:
    """Return the rate of the compiled extension's loop, on torch's threads; None without one that can be believed."""
    try:
        measure: Any = getattr(importlib.import_module("prunekit._native"), "fma_peak_gflops", None)
    except ImportError:
        return None
    rate = None if measure is None else float(measure())
    flops_a_cycle = _FLOPS_A_CYCLE.get(native_status().instruction_set or "", float("inf"))
    is_possible = rate is not None and rate <= flops_a_cycle * _LARGEST_GHZ * torch.get_num_threads()
    return rate if is_possible else None


def _gemm_gflops(threads: int) -> float:
    side = _MATRIX_SIDE if threads <= _FEW_THREADS else _LARGE_MATRIX_SIDE
    a, b = torch.ones(2, side, side)
    out = torch.empty(side, side)
    return 2 * side**3 / _fastest(lambda: torch.mm(a, b, out=out)) / 1e9


def _stream_gb_per_s() -> float:
    words = torch.zeros(_STREAM_BYTES // 4)
    return _STREAM_BYTES / _fastest(words.sum) / 1e9


def _fastest(call: Callable[[], Tensor]) -> float:
    """Return the seconds of the fastest of some calls."""
    call()
    seconds: list[float] = []
    while len(seconds) < _MIN_RUNS or np.sum(seconds) < _SECONDS:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
