"""Measurements of earlier runs on GPUs, on disk: keyed by device, dtype, direction, sizes and density."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from prunekit.measurements import MeasurementCache
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.registry import SPARSE_KERNELS


@dataclass(frozen=True)
class KernelKey:
    """What a measurement holds for.

    Attributes:
        gpu: the device's name.
        capability: its compute capability, for example 75.
        multiprocessors: how many it has.
        dtype: of input, weight and output.
        allow_tf32: whether the dense convolution could use tf32.
        direction: "forward", "input_grad" or "inference".
        kernels: those that were compared with the dense convolution.
        problem: sizes, and the density to two digits.
    """

    gpu: str
    capability: int
    multiprocessors: int
    dtype: str
    allow_tf32: bool
    direction: str
    kernels: tuple[str, ...]
    problem: ConvProblem

    def __str__(self) -> str:
        return json.dumps({**asdict(self), "torch": torch.__version__}, sort_keys=True)


@dataclass(frozen=True)
class KernelTimes:
    """What was measured.

    Attributes:
        kernel: the fastest sparse one, or None where no cut of any fits.
        launch: its cut, likewise.
        seconds: of that.
        dense_seconds: of the dense convolution.
    """

    kernel: str | None
    launch: KernelLaunch | None
    seconds: float
    dense_seconds: float


class KernelCache(MeasurementCache[KernelKey, KernelTimes]):
    """What runs each convolution fastest."""

    NAME, FILE = "kernel cache", "gpu_kernels.json"

    def encode(self, value: KernelTimes) -> list[Any]:  # noqa: D102
        return [value.kernel, value.launch and value.launch.numbers(), value.seconds, value.dense_seconds]

    def decode(self, written: Any) -> KernelTimes:  # noqa: D102
        kernel, launch, seconds, dense_seconds = written
        are_times = all(isinstance(t, float) and t > 0 for t in (seconds, dense_seconds))
        if not are_times or (kernel is None) != (launch is None) or kernel not in (None, *SPARSE_KERNELS):
            raise ValueError(f"{written!r} is no measurement")
        cut = None if kernel is None else SPARSE_KERNELS[kernel].launch_of(launch)
        return KernelTimes(kernel, cut, seconds, dense_seconds)
