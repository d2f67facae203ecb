"""Which kernel runs a masked convolution on a GPU: by a model, or by what was measured on the device before.

    choice = choose_kernel(problem, torch.float32, GPUS["a100"], allow_tf32=True)
    choice.kernel, choice.launch, choice.reason

A sparse kernel is chosen only where it is expected to be faster than the dense convolution at its best: an implicit
GEMM at 70 % of the peak, Winograd's algorithm where it applies, tf32 on tensor cores where torch is allowed to use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import WrongOutputError
from prunekit.ops.kernel_cache import KernelCache, KernelKey, KernelTimes
from prunekit.ops.record_launch import (
    RECORD_COSTS,
    Gpu,
    RecordLaunch,
    RecordProblem,
    best_launches,
    memory_seconds,
    modelled_seconds,
    shared_bytes,
)

DENSE_SHARE_OF_PEAK = 0.7
#: Winograd's F(2×2, 3×3) multiplies 2.25 times less; transforms and memory are taken to leave this much of it.
WINOGRAD_GAIN = 1.6
#: The sparse kernel of each dtype; a kernel for half precision on tensor cores takes its place here.
SPARSE_KERNELS = {torch.float32: "record"}
#: Cuts that are measured: the model's best ones.
MEASURED_CUTS = 6
_MAX_RELATIVE_RMS = 1e-4
_LEAST_DENSITY = 1e-3  # the model has no notion of a filter without weights


@dataclass(frozen=True)
class KernelChoice:
    """What runs a convolution.

    Attributes:
        kernel: "record" or "dense".
        launch: how the record kernel is cut, None for "dense".
        sparse_seconds: of the record kernel, modelled or measured; inf where it cannot run.
        dense_seconds: of the dense convolution, likewise.
        is_measured: on this device, now or in an earlier run; else it is the model's word.
        reason: why, in a phrase.
    """

    kernel: str
    launch: RecordLaunch | None
    sparse_seconds: float
    dense_seconds: float
    is_measured: bool
    reason: str

    @property
    def seconds(self) -> float:
        """Of the chosen kernel."""
        return self.dense_seconds if self.launch is None else self.sparse_seconds

    @classmethod
    def between(
        cls, launch: RecordLaunch | None, seconds: float, dense_seconds: float, is_measured: bool
    ) -> KernelChoice:
        """Choose the faster of the record kernel and the dense convolution; dense where they tie."""
        word = "measured" if is_measured else "modelled"
        if launch is None:
            reason = "no block of the record kernel fits this device"
            return cls("dense", None, math.inf, dense_seconds, is_measured, reason)
        pair = f"record {1e6 * seconds:.1f} µs, dense {1e6 * dense_seconds:.1f} µs {word}"
        if seconds < dense_seconds:
            return cls("record", launch, seconds, dense_seconds, is_measured, pair)
        return cls("dense", None, seconds, dense_seconds, is_measured, f"below break-even: {pair}")


def dense_seconds(problem: RecordProblem, gpu: Gpu, *, by_winograd: bool = True, allow_tf32: bool = False) -> float:
    """Return the modelled time of the same convolution with all weights, as cuDNN may run it.

    Args:
        problem: its density has no part in it.
        gpu: the device.
        by_winograd: where it applies, to 3×3 kernels of stride 1; False is the plain implicit GEMM.
        allow_tf32: tensor cores may round the inputs to tf32.
    """
    p, q = problem.size
    taps = math.prod(problem.kernel_size)
    macs = problem.batch * problem.out_channels * problem.group_channels * taps * p * q
    gemm = 2 * macs / (DENSE_SHARE_OF_PEAK * gpu.fma_peak_gflops * 1e9)
    is_plain = problem.kernel_size == (3, 3) and problem.stride == (1, 1) and problem.dilation == (1, 1)
    compute = [gemm / WINOGRAD_GAIN if by_winograd and is_plain and problem.groups == 1 else gemm]
    if allow_tf32 and gpu.tf32_lanes:
        compute.append(2 * macs / (DENSE_SHARE_OF_PEAK * gpu.tf32_peak_gflops * 1e9))
    return max(min(compute), _dense_memory_seconds(problem, gpu))


def _dense_memory_seconds(problem: RecordProblem, gpu: Gpu) -> float:
    """Return the time that all weights, the input and the output take at the memory's full bandwidth."""
    p, q = problem.size
    inputs = problem.groups * problem.group_channels * p * problem.stride[0] * q * problem.stride[1]
    weights = problem.out_channels * problem.group_channels * math.prod(problem.kernel_size)
    elements = weights + problem.batch * (inputs + problem.out_channels * p * q)
    return 4 * elements / (gpu.memory_gb_per_s * 1e9)


def floor_seconds(problem: RecordProblem, gpu: Gpu) -> float:
    """Return what no float32 kernel passes: the kept multiply-adds at the peak, or the fewer of both formats' bytes."""
    p, q = problem.size
    kept = problem.out_channels * problem.group_channels * math.prod(problem.kernel_size) * problem.density
    compute = 2 * problem.batch * kept * p * q / (gpu.fma_peak_gflops * 1e9)
    return max(compute, min(memory_seconds(problem, gpu), _dense_memory_seconds(problem, gpu)))


def rounded(problem: RecordProblem) -> RecordProblem:
    """Return the problem with its density to two digits, so that nearly equal masks share a choice."""
    return replace(problem, density=max(_LEAST_DENSITY, float(f"{problem.density:.2g}")))


def is_possible(problem: RecordProblem, launch: RecordLaunch, gpu: Gpu, longest: float | None = None) -> bool:
    """Tell whether the record kernel knows this cut and a block of it fits the device.

    Args:
        problem: the convolution.
        launch: its cut.
        gpu: the device.
        longest: records of the longest run of the packed filter; None expects what is usual.
    """
    taps, stride = problem.kernel
    cost = RECORD_COSTS.get((taps, stride, launch.tile_h))
    return (
        cost is not None
        and launch.warps <= min(cost.max_warps, gpu.max_warps)
        and launch.chunk_channels % (2 if taps == 2 else 1) == 0
        and shared_bytes(problem, launch, longest) <= gpu.shared_bytes
    )


def key_of(problem: RecordProblem, dtype: torch.dtype, gpu: Gpu, allow_tf32: bool, direction: str) -> KernelKey:
    """Return the cache's key; `direction` is `RecordJob`'s."""
    return KernelKey(gpu.name, gpu.capability, gpu.multiprocessors, str(dtype), allow_tf32, direction, rounded(problem))


def choose_kernel(
    problem: RecordProblem,
    dtype: torch.dtype,
    gpu: Gpu,
    *,
    allow_tf32: bool,
    dense: float | None = None,
    extra: float = 0.0,
    direction: str = "forward",
    cache: KernelCache | None = None,
) -> KernelChoice:
    """Choose between the sparse kernel of `dtype` and the dense convolution.

    Args:
        problem: sizes and density.
        dtype: of input, weight and output.
        gpu: the device's figures.
        allow_tf32: whether the dense convolution may use tf32.
        dense: seconds of the dense one, where `problem` does not tell; None: `dense_seconds`.
        extra: seconds that the sparse one takes beside its kernel.
        direction: `RecordJob`'s.
        cache: measurements of earlier runs, which win over the model.
    """
    slow = dense_seconds(problem, gpu, allow_tf32=allow_tf32) if dense is None else dense
    if dtype not in SPARSE_KERNELS:
        return KernelChoice("dense", None, math.inf, slow, False, f"no sparse kernel for {_name(dtype)}")
    measured = cache.get(key_of(problem, dtype, gpu, allow_tf32, direction)) if cache is not None else None
    if measured is not None and (measured.launch is None or is_possible(rounded(problem), measured.launch, gpu)):
        return KernelChoice.between(measured.launch, measured.seconds, measured.dense_seconds, True)
    best = best_launches(rounded(problem), gpu, 1)
    seconds = modelled_seconds(rounded(problem), best[0], gpu) + extra if best else math.inf
    return KernelChoice.between(best[0] if best else None, seconds, slow, False)


def is_tf32_allowed() -> bool:
    """Tell whether torch lets cuDNN's convolutions round to tf32, by whichever of its two settings was used."""
    cudnn: Any = torch.backends.cudnn
    try:
        return bool(cudnn.allow_tf32)
    except RuntimeError:  # convolutions and RNNs were set apart, which the older setting cannot say
        return bool(cudnn.conv.fp32_precision == "tf32")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep cuDNN from rounding to tf32, for what kernels and models are compared with."""
    if not is_tf32_allowed():
        yield
        return
    cudnn: Any = torch.backends.cudnn
    try:
        cudnn.allow_tf32 = False
        has_older_setting = not cudnn.allow_tf32
    except RuntimeError:
        has_older_setting = False
    try:
        if not has_older_setting:
            cudnn.conv.fp32_precision = "ieee"
        yield
    finally:
        if has_older_setting:
            cudnn.allow_tf32 = True
        else:
            cudnn.conv.fp32_precision = "tf32"


def measure_kernel(
    candidates: Iterator[tuple[RecordLaunch, Callable[[], Tensor]]],
    dense: Callable[[], Tensor],
    seconds_of: Callable[[Callable[[], Tensor]], float],
) -> tuple[KernelTimes, KernelChoice]:
    """Time cuts of the record kernel and the dense convolution; only what computes the same is timed.

    Args:
        candidates: cuts with what runs them.
        dense: the convolution with zeros where weights are dropped.
        seconds_of: times a call on the device.

    Raises:
        WrongOutputError: a cut's output differs by more than 1e-4 relative RMS from the dense one.
    """
    with exact_float32():
        expected = dense().double()
    scale = expected.square().mean().sqrt().clamp(min=1e-30)
    best: tuple[float, RecordLaunch | None] = math.inf, None
    for launch, call in candidates:
        difference = float((call().double() - expected).square().mean().sqrt() / scale)
        if not difference <= _MAX_RELATIVE_RMS:
            raise WrongOutputError(
                f"the record kernel with {launch} differs from the dense convolution by {difference:.3g} relative RMS; "
                f"expected at most {_MAX_RELATIVE_RMS:g}."
            )
        best = min(best, (seconds_of(call), launch), key=lambda pair: pair[0])
    times = KernelTimes(best[1], best[0], seconds_of(dense))
    return times, KernelChoice.between(times.launch, times.seconds, times.dense_seconds, True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
