"""What the dispatch knows of a sparse kernel for GPUs: a new kernel implements this and enters `sparse_kernels`.

    kernel.takes(problem, torch.float16, gpu)
    for launch in kernel.best_launches(problem, gpu, 6): kernel.seconds(problem, launch, gpu)
    pattern = kernel.packer(mask, problem, None)(*launch.packed()).to(device)     # the mask's places, once
    y = op(x, *pattern.fill(weight).arguments(), bias, residual, …)         # the weights, at every call

Several kernels may take one dtype: by the model or by measuring, the fastest one runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.ops.cuda.cost_model import CostModel
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.packed_filter import FilterHeader, FilterPattern, PackedFilter
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch


class SparseKernel(ABC):
    """One kernel: which convolutions it takes, how they may be cut, what a cut is expected to take, and its filters.

    Its op is `torch.ops.prunekit.<name>_conv2d(x, header, *filter, bias, residual, stride, padding, dilation,
    activation, negative_slope, launch)`.

    Attributes:
        name: for reports, the cache and the op.
        architectures: by dtype the least compute capability, for example 80.
        source: "cuda" where the compiled extension has it, or "triton" (`Gpu.sources`).
        cost: its model of time.
        problem_type: of the model's convolutions.
        filter_type: of its packed filters.
        largest_launch_number: no number of a cut is larger, which a damaged file may claim.
    """

    name: ClassVar[str]
    architectures: ClassVar[Mapping[torch.dtype, int]]
    source: ClassVar[str] = "cuda"
    cost: ClassVar[CostModel]
    problem_type: ClassVar[type[ConvProblem]]
    filter_type: ClassVar[type[PackedFilter]]
    largest_launch_number: ClassVar[int] = 4096

    @property
    def launch_type(self) -> type[KernelLaunch]:
        """Of its cuts, which are integers only."""
        return self.cost.launch_type

    def runs_on(self, dtype: torch.dtype, gpu: Gpu) -> bool:
        """Tell whether the kernel is there for this dtype on this device."""
        least = self.architectures.get(dtype)
        return self.source in gpu.sources and least is not None and gpu.capability >= least

    def takes(self, problem: ConvProblem, dtype: torch.dtype, gpu: Gpu) -> bool:
        """Tell whether the kernel runs such a convolution on this device."""
        return self.runs_on(dtype, gpu) and self.takes_sizes(problem)

    def takes_sizes(self, problem: ConvProblem) -> bool:
        """Tell whether the kernel's filters hold such a weight; the dispatch has checked what all of them need."""
        del problem
        return True

    def best_launches(self, problem: ConvProblem, gpu: Gpu, count: int) -> Sequence[Any]:
        """Return the `count` cuts of least modeled time that fit the device, best first."""
        return self.cost.best_launches(self.problem_type.of(problem), gpu, count)

    def seconds(self, problem: ConvProblem, launch: Any, gpu: Gpu) -> float:
        """Return the modeled time of the kernel alone; inf where no block fits."""
        return float(self.cost.modeled_seconds(self.problem_type.of(problem), launch, gpu))

    @abstractmethod
    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:
        """Return (launches, bytes moved) of `FilterPattern.fill`."""

    @abstractmethod
    def knows(self, problem: Any, launch: Any, gpu: Gpu) -> bool:
        """Tell whether the kernel knows this cut of a problem of its own class on the device."""

    def is_possible(self, problem: ConvProblem, launch: Any, gpu: Gpu, header: FilterHeader | None = None) -> bool:
        """Tell whether the kernel knows this cut and a block of it fits the device.

        Args:
            problem: the convolution.
            launch: its cut.
            gpu: the device.
            header: of the packed filter; None expects what is usual.
        """
        here, longest = self.problem_type.of(problem), () if header is None else header.longest_run
        if not self.knows(here, launch, gpu):
            return False
        return bool(self.cost.shared_bytes(here, launch, *longest) <= gpu.shared_bytes)

    @abstractmethod
    def packer(self, mask: Tensor, problem: ConvProblem, sources: Tensor | None) -> Callable[..., FilterPattern]:
        """Return what packs a mask, on the CPU, for the numbers of `KernelLaunch.packed`; common work is done once.

        Args:
            mask: bool [K, C / groups, R, S] on the CPU, True = kept.
            problem: the convolution.
            sources: int64 of mask's shape, the element of the weight that belongs there; None: that of the same place.
        """

    def launch_of(self, numbers: Sequence[int]) -> Any:
        """Undo `KernelLaunch.numbers`.

        Raises:
            ValueError: they are no cut.
        """
        most = self.largest_launch_number
        if not all(isinstance(number, int) and 0 < number <= most for number in numbers):
            raise ValueError(f"{numbers!r} is no cut of the {self.name} kernel")
        try:
            return self.launch_type(*numbers)
        except TypeError as error:
            raise ValueError(f"{numbers!r} is no cut of the {self.name} kernel") from error


def cuda_op(kernel: str) -> Callable[..., Tensor]:
    """Return the op of the kernel of that name."""
    op: Callable[..., Tensor] = getattr(torch.ops.prunekit, f"{kernel}_conv2d")
    return op
