"""What the dispatch knows of a sparse kernel for GPUs: a new kernel implements this and enters `sparse_kernels`.

    kernel.takes(problem, torch.float16, gpu)
    for launch in kernel.best_launches(problem, gpu, 6): kernel.seconds(problem, launch, gpu)
    pattern = kernel.packer(mask, problem, None)(launch).to(device)         # the mask's places, once
    y = op(x, *pattern.fill(weight).arguments(), bias, residual, …)         # the weights, at every call

Several kernels may take one dtype: by the model or by measuring, the fastest one runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from prunekit.ops.cuda.conv_problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.filter_header import FilterHeader
from prunekit.ops.cuda.gpus import Gpu

if TYPE_CHECKING:
    from typing_extensions import Self


class PackedFilter(Protocol):
    """A filter with its weights."""

    @property
    def header(self) -> FilterHeader:
        """What launches need to know."""
        ...

    def arguments(self) -> tuple[object, ...]:
        """Return the op's arguments between x and the bias: the header's words, then the tensors."""
        ...

    def weight(self) -> Tensor:
        """Return the weight [K, C / groups, R, S], with zeros where dropped; for files, so slow."""
        ...


class FilterPattern(Protocol):
    """A filter without its weights: what the mask alone decides."""

    @property
    def header(self) -> FilterHeader:
        """What launches need to know."""
        ...

    def fill(self, weight: Tensor) -> PackedFilter:
        """Gather `weight`, of the mask's shape and on the pattern's device, into its places; waits for nothing."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the pattern with its tensors on `device`."""
        ...


class SparseKernel(ABC):
    """One kernel: which convolutions it takes, how they may be cut, what a cut is expected to take, and its filters.

    Its op is `torch.ops.prunekit.<name>_conv2d(x, header, *filter, bias, residual, stride, padding, dilation,
    activation, negative_slope, launch)`.

    Attributes:
        name: for reports, the cache and the op.
        architectures: by dtype the least compute capability, for example 80.
        launch_type: of its cuts, which are integers only.
        largest_launch_number: no number of a cut is larger, which a damaged file may claim.
    """

    name: ClassVar[str]
    architectures: ClassVar[Mapping[torch.dtype, int]]
    launch_type: ClassVar[type[KernelLaunch]]
    largest_launch_number: ClassVar[int] = 4096

    def takes(self, problem: ConvProblem, dtype: torch.dtype, gpu: Gpu) -> bool:
        """Tell whether the kernel runs such a convolution on this device."""
        least = self.architectures.get(dtype)
        return least is not None and gpu.capability >= least and self.takes_sizes(problem)

    def takes_sizes(self, problem: ConvProblem) -> bool:
        """Tell whether the kernel's filters hold such a weight; the dispatch has checked what all of them need."""
        del problem
        return True

    @abstractmethod
    def best_launches(self, problem: ConvProblem, gpu: Gpu, count: int) -> Sequence[Any]:
        """Return the `count` cuts of least modeled time that fit the device, best first."""

    @abstractmethod
    def seconds(self, problem: ConvProblem, launch: Any, gpu: Gpu) -> float:
        """Return the modeled time of the kernel alone; inf where no block fits."""

    @abstractmethod
    def fill_cost(self, problem: ConvProblem, launch: Any) -> tuple[int, float]:
        """Return (launches, bytes moved) of `FilterPattern.fill`."""

    @abstractmethod
    def is_possible(self, problem: ConvProblem, launch: Any, gpu: Gpu, header: Any = None) -> bool:
        """Tell whether the kernel knows this cut and a block of it fits the device.

        Args:
            problem: the convolution.
            launch: its cut.
            gpu: the device.
            header: of the packed filter; None expects what is usual.
        """

    @abstractmethod
    def pattern_key(self, launch: Any) -> tuple[int, ...]:
        """Return what of a cut is packed into the filter: cuts of equal keys share a pattern."""

    @abstractmethod
    def packer(self, mask: Tensor, problem: ConvProblem, sources: Tensor | None) -> Callable[[Any], FilterPattern]:
        """Return what packs a mask for a cut, on the CPU; what its cuts have in common is done once.

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
