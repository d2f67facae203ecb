"""A masked convolution, or the gradient to its input, made ready for the sparse kernels.

    job = forward_job(x.shape, mask, stride, padding, dilation, groups)     # or input_grad_job(…)
    plan = job.pack(gpu, job.choose(gpu, dtype, allow_tf32=False, cache=None), device, dtype)   # None: dense
    y = plan.run(op, x, weight, bias)

The mask alone is packed; `run` gathers the weights into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.choice import (
    MEASURED_CUTS,
    KernelChoice,
    candidates,
    choose_kernel,
    key_of,
    measure_kernel,
)
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.packed_filter import FilterPattern, PackedFilter
from prunekit.ops.cuda.problem import ConvProblem, KernelLaunch
from prunekit.ops.cuda.record.filter import MAX_KERNEL, MAX_WEIGHTS
from prunekit.ops.cuda.registry import SPARSE_KERNELS
from prunekit.ops.cuda.sparse_kernel import SparseKernel, cuda_op
from prunekit.ops.cuda.transposed_conv import TransposedConv

_PACKINGS = 4  # cuts to try where the longest run of a packed filter is longer than a random mask's would be
_MAX_STRIDE = 4096
# A mask has its own share of columns in the models where so many filters keep fewer than this share of a random one's.
_SHARING_ROWS, _CLEARLY_FEWER = 16, 0.9

#: From a kernel's name to its op, or what stands for it.
Ops = Callable[[str], Callable[..., Tensor]]


@dataclass(frozen=True)
class ConvPlan:
    """A mask packed for one cut of a kernel and one geometry.

    Attributes:
        kernel: that runs it.
        pattern: of the mask, on the device.
        launch: the cut.
        geometry: stride, padding and dilation that the kernel runs with; a transposed convolution sets the padding.
        transposed: for the gradient to the input, else None.
        x_shape: of that gradient, else of the input.
    """

    kernel: SparseKernel
    pattern: FilterPattern
    launch: KernelLaunch
    geometry: tuple[list[int], list[int], list[int]]
    transposed: TransposedConv | None
    x_shape: tuple[int, ...]

    def run(
        self,
        x: Tensor,
        weight: Tensor | PackedFilter,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        negative_slope: float = 0.0,
        ops: Ops = cuda_op,
    ) -> Tensor:
        """Run the kernel: the epilogue's activation and residual, or for a gradient the convolution alone.

        Args:
            x: the input [N, C, H, W]; for a gradient dL/dy [N, K, P, Q].
            weight: [K, C / groups, R, S] of the mask's shape, or the pattern filled with it.
            bias: [K] or None.
            residual: of the output's shape, or None.
            activation: one that the op knows.
            negative_slope: of the activation.
            ops: gives the kernel's op.
        """
        packed = self.pattern.fill(weight) if isinstance(weight, Tensor) else weight
        op, (stride, padding, dilation) = ops(self.kernel.name), self.geometry

        def convolve(padding: Sequence[int]) -> Tensor:
            end = list(padding), dilation, activation, negative_slope, self.launch.words()
            return op(x, *packed.arguments(), bias, residual, stride, *end)

        if self.transposed is None:
            return convolve(padding)
        return self.transposed.run(convolve, self.x_shape, x)


@dataclass(frozen=True)
class ConvJob:
    """What is to be computed.

    Attributes:
        direction: "forward", "input_grad", or "inference": a convolution whose weights are filled in once for all.
        problem: of the convolution that a sparse kernel would run.
        mask: bool, of that convolution's filter, on the CPU.
        sources: which weight stands where, for a transposed filter, else None.
        geometry: stride, padding and dilation.
        transposed: for "input_grad".
        x_shape: of the input.
        dense_problem: of the convolution itself.
    """

    direction: str
    problem: ConvProblem
    mask: Tensor
    sources: Tensor | None
    geometry: tuple[list[int], list[int], list[int]]
    transposed: TransposedConv | None
    x_shape: tuple[int, ...]
    dense_problem: ConvProblem

    def choose(self, gpu: Gpu, dtype: torch.dtype, *, allow_tf32: bool, cache: KernelCache | None) -> KernelChoice:
        """Choose by what the cache has of the device, else by the model."""
        return choose_kernel(
            self.problem,
            dtype,
            gpu,
            allow_tf32=allow_tf32,
            direction=self.direction,
            dense_problem=self.dense_problem,
            cache=cache,
        )

    def takes(self, choice: KernelChoice, dtype: torch.dtype, gpu: Gpu) -> bool:
        """Tell whether a choice that was made elsewhere can run here."""
        if choice.launch is None:
            return True
        kernel = SPARSE_KERNELS[choice.kernel]
        return kernel.takes(self.problem, dtype, gpu) and kernel.is_possible(self.problem, choice.launch, gpu)

    def pack(self, gpu: Gpu, choice: KernelChoice, device: torch.device, dtype: torch.dtype) -> ConvPlan | None:
        """Pack the mask for a choice, or for the next best cut where its longest run does not fit; None: run dense."""
        if choice.launch is None:
            return None
        first = SPARSE_KERNELS[choice.kernel], choice.launch
        return next(self._packed(gpu, [first, *self._best(gpu, dtype, _PACKINGS)], device), None)

    def measure(
        self,
        gpu: Gpu,
        device: torch.device,
        dtype: torch.dtype,
        run: Callable[[ConvPlan], Tensor],
        dense: Callable[[], Tensor],
        seconds_of: Callable[[Callable[[], Tensor]], float],
        cache: KernelCache,
        allow_tf32: bool,
        cuts: int = MEASURED_CUTS,
    ) -> tuple[KernelChoice, ConvPlan | None]:
        """Time the models' best cuts and the dense convolution, and remember what came out.

        Args:
            gpu: the device's figures.
            device: where the tensors are.
            dtype: of the tensors.
            run: runs a plan.
            dense: runs the dense convolution.
            seconds_of: times a call.
            cache: takes the result.
            allow_tf32: whether the dense one may use tf32.
            cuts: how many of the model's best to time, of each kernel.

        Raises:
            WrongOutputError: the two compute different things.
        """
        plans: dict[tuple[str, KernelLaunch], ConvPlan] = {}

        def runs() -> Iterator[tuple[str, KernelLaunch, Callable[[], Tensor]]]:
            for plan in self.plans(gpu, dtype, device, cuts):
                plans[plan.kernel.name, plan.launch] = plan
                yield plan.kernel.name, plan.launch, lambda plan=plan: run(plan)  # type: ignore[misc]

        fastest, choice = measure_kernel(runs(), dense, seconds_of)
        cache.put(key_of(self.problem, dtype, gpu, allow_tf32, self.direction), fastest)
        return choice, None if choice.launch is None else plans[choice.kernel, choice.launch]

    def plans(self, gpu: Gpu, dtype: torch.dtype, device: torch.device, cuts: int) -> Iterator[ConvPlan]:
        """Yield plans of the models' best cuts, so many of each kernel, those of least modeled time first."""
        return self._packed(gpu, self._best(gpu, dtype, cuts), device)

    def _best(self, gpu: Gpu, dtype: torch.dtype, count: int) -> list[tuple[SparseKernel, KernelLaunch]]:
        found = candidates(self.problem, dtype, gpu, count, self.direction, self.dense_problem)
        return [(candidate.kernel, candidate.launch) for candidate in found]

    def _packed(
        self, gpu: Gpu, cuts: Sequence[tuple[SparseKernel, KernelLaunch]], device: torch.device
    ) -> Iterator[ConvPlan]:
        """Yield a plan for each cut that fits; cuts that are packed alike share a pattern."""
        packers: dict[str, Callable[..., FilterPattern]] = {}
        patterns: dict[tuple[str, tuple[int, ...]], FilterPattern] = {}
        for kernel, launch in cuts:
            if kernel.name not in packers:
                packers[kernel.name] = kernel.packer(self.mask, self.problem, self.sources)
            key = kernel.name, launch.packed()
            if key not in patterns:
                patterns[key] = packers[kernel.name](*launch.packed()).to(device)
            if kernel.is_possible(self.problem, launch, gpu, patterns[key].header):
                yield ConvPlan(kernel, patterns[key], launch, self.geometry, self.transposed, self.x_shape)


def input_grad_problem(forward: ConvProblem, transposed: TransposedConv, x_size: Sequence[int]) -> ConvProblem:
    """Return the problem of the transposed convolution, with the same kept weights in a larger filter.

    Args:
        forward: of the convolution.
        transposed: its transposed one.
        x_size: height and width of its input.
    """
    out_channels = forward.group_channels * forward.groups * transposed.num_phases
    group_channels = forward.out_channels // forward.groups
    places = out_channels * group_channels * math.prod(transposed.kernel_size)
    return replace(
        forward,
        out_channels=out_channels,
        group_channels=group_channels,
        kernel_size=transposed.kernel_size,
        density=forward.density * forward.num_weights / places,
        size=transposed.output_size(x_size, forward.size),
        stride=(1, 1),
        padding=transposed.paddings(x_size, forward.size),
        dilation=transposed.dilation,
        shared_columns=None,  # filters and channels have changed places
    )


def shared_columns(mask: Tensor, groups: int) -> float | None:
    """Return the share of columns that 16 consecutive filters keep between them, where that is clearly few.

    Args:
        mask: bool [K, C / groups, R, S].
        groups: Of the convolution.

    Returns:
        None unless blocks of filters share their columns: at random, masks leave more of them to each other.
    """
    rows = mask.reshape(groups, -1, mask[0].numel())  # masks come in any memory format
    parts = torch.split(rows, _SHARING_ROWS, dim=1)
    kept = float(torch.stack([part.any(dim=1).float().mean() for part in parts]).mean())
    at_random = 1 - (1 - float(mask.float().mean())) ** min(_SHARING_ROWS, rows.shape[1])
    return kept if kept < _CLEARLY_FEWER * at_random else None


def forward_job(x_shape: Sequence[int], mask: Tensor, *geometry: Any) -> ConvJob | None:
    """Return the job of the convolution itself, or None where no sparse kernel takes its sizes.

    Args:
        x_shape: of the input.
        mask: bool [K, C / groups, R, S].
        geometry: stride, padding, dilation, groups.
    """
    stride, padding, dilation, groups = geometry
    size = conv_output_size(x_shape, mask.shape, stride, padding, dilation)
    kernel = (mask.shape[2], mask.shape[3])
    numbers = [*stride, *padding, *dilation]
    if not 0 < mask.numel() < MAX_WEIGHTS or max(kernel) > MAX_KERNEL or max(numbers) >= _MAX_STRIDE:
        return None
    if x_shape[0] == 0 or 0 in size:
        return None
    here = mask.cpu()
    density, shared = float(here.float().mean()), shared_columns(here, groups)
    pairs = [(pair[0], pair[1]) for pair in (stride, padding, dilation)]
    problem = ConvProblem(
        mask.shape[0], mask.shape[1], kernel, groups, density, x_shape[0], size, pairs[0], pairs[1], pairs[2], shared
    )
    lists = list(stride), list(padding), list(dilation)
    return ConvJob("forward", problem, here, None, lists, None, tuple(x_shape), problem)


def input_grad_job(x_shape: Sequence[int], mask: Tensor, *geometry: Any) -> ConvJob | None:
    """Return the job of the gradient to the input; see `forward_job`."""
    forward = forward_job(x_shape, mask, *geometry)
    if forward is None:
        return None
    stride, padding, dilation, groups = geometry
    transposed = TransposedConv.of(mask.shape[2:], stride, padding, dilation, groups)
    sources = transposed.sources(mask.shape)
    kept = (sources >= 0) & forward.mask.flatten()[sources.clamp(min=0)]
    if kept.numel() >= MAX_WEIGHTS:
        return None
    problem = input_grad_problem(forward.problem, transposed, x_shape[2:])
    lists = [1, 1], [0, 0], list(transposed.dilation)
    return ConvJob("input_grad", problem, kept, sources, lists, transposed, tuple(x_shape), forward.problem)


def inference_job(x_shape: Sequence[int], mask: Tensor, *geometry: Any) -> ConvJob | None:
    """Return the job of a convolution whose weights stay; see `forward_job`."""
    job = forward_job(x_shape, mask, *geometry)
    return None if job is None else replace(job, direction="inference")
