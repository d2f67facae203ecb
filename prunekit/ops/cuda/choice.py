"""Which kernel runs a masked convolution on a GPU: by a model, or by what was measured on the device before.

    choice = choose_kernel(problem, torch.float16, GPUS["rtx-4090"], allow_tf32=True)
    choice.kernel, choice.launch, choice.reason

A sparse kernel is chosen only where it is expected to be faster than the dense convolution at its best: an implicit
GEMM at 70 % of the peak, Winograd's algorithm where it applies, tf32 on tensor cores where torch is allowed to use it;
in half precision on tensor cores. Which kernels there are, `sparse_kernels` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunekit.comparison import check_within
from prunekit.ops.cuda.cache import KernelCache, KernelKey, KernelTimes
from prunekit.ops.cuda.cost_model import LAUNCH_SECONDS
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.registry import SPARSE_KERNELS, has_sparse_kernel, kernels_for
from prunekit.ops.cuda.sparse_kernel import SparseKernel

DENSE_SHARE_OF_PEAK = 0.7
#: Winograd's F(2×2, 3×3) multiplies 2.25 times less; transforms and memory are taken to leave this much of it.
WINOGRAD_GAIN = 1.6
#: Cuts that are measured: the model's best ones, of each kernel.
MEASURED_CUTS = 6
#: What the rounding of sums explains, in relative RMS: in half precision two results that are each rounded once.
MAX_RELATIVE_RMS = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_LEAST_DENSITY = 1e-3  # the models have no notion of a filter without weights


@dataclass(frozen=True)
class Candidate:
    """A sparse kernel with a cut, and the modeled seconds of all that is done for it."""

    kernel: SparseKernel
    launch: KernelLaunch
    seconds: float


@dataclass(frozen=True)
class KernelChoice:
    """What runs a convolution.

    Attributes:
        kernel: "dense", or a name of `sparse_kernels`.
        launch: how that one is cut, None for "dense".
        sparse_seconds: of the fastest sparse kernel, modeled or measured; inf where none can run.
        dense_seconds: of the dense convolution, likewise.
        is_measured: on this device, now or in an earlier run; else it is the model's word.
        reason: why, in a phrase.
    """

    kernel: str
    launch: KernelLaunch | None
    sparse_seconds: float
    dense_seconds: float
    is_measured: bool
    reason: str

    @property
    def seconds(self) -> float:
        """Of the chosen kernel."""
        return self.dense_seconds if self.launch is None else self.sparse_seconds

    @classmethod
    def between(cls, times: KernelTimes, is_measured: bool) -> KernelChoice:
        """Choose the faster of the sparse kernel and the dense convolution; dense where they tie."""
        word, dense = "measured" if is_measured else "modeled", times.dense_seconds
        if times.kernel is None or times.launch is None:
            reason = "no block of a sparse kernel fits this output and device"
            return cls("dense", None, math.inf, dense, is_measured, reason)
        pair = f"{times.kernel} {1e6 * times.seconds:.1f} µs, dense {1e6 * dense:.1f} µs {word}"
        if times.seconds < dense:
            return cls(times.kernel, times.launch, times.seconds, dense, is_measured, pair)
        return cls("dense", None, times.seconds, dense, is_measured, f"below break-even: {pair}")


def dense_seconds(
    problem: ConvProblem,
    gpu: Gpu,
    *,
    by_winograd: bool = True,
    allow_tf32: bool = False,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return the modeled time of the same convolution with all weights, as cuDNN may run it.

    Args:
        problem: its density has no part in it.
        gpu: the device.
        by_winograd: in float32 where it applies, to 3×3 kernels of stride 1; False is the plain implicit GEMM.
        allow_tf32: tensor cores may round float32 inputs to tf32.
        dtype: float32, or float16 or bfloat16, which run on tensor cores and are summed in float32.
    """
    operations = 2 * problem.macs
    if dtype.itemsize == 2:
        compute = [operations / (DENSE_SHARE_OF_PEAK * gpu.tensor_peak_gflops * 1e9)]
    else:
        gemm = operations / (DENSE_SHARE_OF_PEAK * gpu.fma_peak_gflops * 1e9)
        is_plain = problem.kernel_size == (3, 3) and problem.stride == (1, 1) and problem.dilation == (1, 1)
        compute = [gemm / WINOGRAD_GAIN if by_winograd and is_plain and problem.groups == 1 else gemm]
        if allow_tf32 and gpu.tf32_lanes:
            compute.append(operations / (DENSE_SHARE_OF_PEAK * gpu.tf32_peak_gflops * 1e9))
    elements = problem.num_weights + sum(problem.num_pixels)
    return max(min(compute), dtype.itemsize * elements / (gpu.memory_gb_per_s * 1e9))


def floor_seconds(problem: ConvProblem, gpu: Gpu, dtype: torch.dtype = torch.float32) -> float:
    """Return what no kernel passes: the kept multiply-adds at the dtype's peak, or the bytes that must be moved.

    Those are the input's, the output's, and of the weights all or the kept ones with a bit for each place.
    """
    peak = gpu.fma_peak_gflops if dtype.itemsize == 4 else gpu.tensor_peak_gflops
    compute = 2 * problem.macs * problem.density / (peak * 1e9)
    kept, weights, size = problem.density * problem.num_weights, problem.num_weights, dtype.itemsize
    moved = size * sum(problem.num_pixels) + min(size * weights, size * kept + weights / 8)
    return max(compute, moved / (gpu.memory_gb_per_s * 1e9))


def rounded(problem: ConvProblem) -> ConvProblem:
    """Return the problem with its shares to two digits, so that nearly equal masks share a choice."""
    density, shared = _two_digits(problem.density), problem.shared_columns
    return replace(problem, density=density, shared_columns=None if shared is None else _two_digits(shared))


def _two_digits(share: float) -> float:
    return max(_LEAST_DENSITY, float(f"{share:.2g}"))


def candidates(
    problem: ConvProblem,
    dtype: torch.dtype,
    gpu: Gpu,
    count: int,
    direction: str = "inference",
    dense_problem: ConvProblem | None = None,
) -> list[Candidate]:
    """Return the `count` best cuts of each kernel that runs the convolution, those of least modeled time first.

    What is done beside the kernel counts: filling in the weights, and bringing the phases of a gradient home. For the
    arguments see `choose_kernel`.
    """
    here, found, brought_home = rounded(problem), [], 0
    if direction == "input_grad" and (dense_problem or problem).stride != (1, 1):
        brought_home = 2 * dtype.itemsize * problem.num_pixels[1]
    for kernel in kernels_for(here, dtype, gpu):
        for launch in kernel.best_launches(here, gpu, count):
            launches, moved = (0, 0.0) if direction == "inference" else kernel.fill_cost(problem, launch)
            extra = launches * LAUNCH_SECONDS + (moved + brought_home) / (gpu.memory_gb_per_s * 1e9)
            found.append(Candidate(kernel, launch, kernel.seconds(here, launch, gpu) + extra))
    return sorted(found, key=lambda candidate: candidate.seconds)


def key_of(problem: ConvProblem, dtype: torch.dtype, gpu: Gpu, allow_tf32: bool, direction: str) -> KernelKey:
    """Return the cache's key; `direction` is `ConvJob`'s. Half precision does not ask for tf32."""
    kernels = tuple(kernel.name for kernel in kernels_for(problem, dtype, gpu))
    device, is_tf32 = (gpu.name, gpu.capability, gpu.multiprocessors), allow_tf32 and dtype == torch.float32
    return KernelKey(*device, str(dtype), is_tf32, direction, kernels, rounded(problem))


def choose_kernel(
    problem: ConvProblem,
    dtype: torch.dtype,
    gpu: Gpu,
    *,
    allow_tf32: bool,
    direction: str = "inference",
    dense_problem: ConvProblem | None = None,
    cache: KernelCache | None = None,
) -> KernelChoice:
    """Choose between the sparse kernels of `dtype` and the dense convolution.

    Args:
        problem: sizes and density.
        dtype: of input, weight and output.
        gpu: the device's figures.
        allow_tf32: whether the dense convolution may use tf32.
        direction: `ConvJob`'s.
        dense_problem: of the dense one, where that is another, as for gradients; None: `problem`.
        cache: measurements of earlier runs, which win over the model.
    """
    slow = dense_seconds(dense_problem or problem, gpu, allow_tf32=allow_tf32, dtype=dtype)
    if not has_sparse_kernel(dtype, gpu):
        reason = f"no sparse kernel for {str(dtype).removeprefix('torch.')} on this device"
        return KernelChoice("dense", None, math.inf, slow, False, reason)
    measured = cache.get(key_of(problem, dtype, gpu, allow_tf32, direction)) if cache is not None else None
    if measured is not None and _is_possible(measured, problem, gpu):
        return KernelChoice.between(measured, True)
    best = candidates(problem, dtype, gpu, 1, direction, dense_problem)
    if not best:
        return KernelChoice.between(KernelTimes(None, None, math.inf, slow), False)
    return KernelChoice.between(KernelTimes(best[0].kernel.name, best[0].launch, best[0].seconds, slow), False)


def _is_possible(times: KernelTimes, problem: ConvProblem, gpu: Gpu) -> bool:
    return times.kernel is None or SPARSE_KERNELS[times.kernel].is_possible(rounded(problem), times.launch, gpu)


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
    runs: Iterator[tuple[str, KernelLaunch, Callable[[], Tensor]]],
    dense: Callable[[], Tensor],
    seconds_of: Callable[[Callable[[], Tensor]], float],
) -> tuple[KernelTimes, KernelChoice]:
    """Time cuts of sparse kernels and the dense convolution; only what computes the same is timed.

    Args:
        runs: names of kernels and cuts, with what runs them.
        dense: the convolution with zeros where weights are dropped.
        seconds_of: times a call on the device.

    Raises:
        WrongOutputError: a cut's output differs from the dense one by more than its dtype's rounding explains.
    """
    with exact_float32():
        expected = dense()
    best: tuple[float, str | None, KernelLaunch | None] = math.inf, None, None
    for kernel, launch, call in runs:
        what, most = f"the {kernel} kernel with {launch}", MAX_RELATIVE_RMS[expected.dtype]
        check_within(expected, call(), what, most, "the dense convolution")
        best = min(best, (seconds_of(call), kernel, launch), key=lambda one: one[0])
    times = KernelTimes(best[1], best[2], best[0], seconds_of(dense))
    return times, KernelChoice.between(times, True)
