"""A masked convolution, or the gradient to its input, made ready for the record kernel.

    job = forward_job(x.shape, mask, stride, padding, dilation, groups)     # or input_grad_job(…)
    plan = job.pack(gpu, job.choose(gpu, allow_tf32=False, cache=None))     # None: dense
    y = plan.run(record_conv2d, x, weight, bias)

The mask alone is packed; `run` gathers the weights into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.kernel_cache import KernelCache
from prunekit.ops.kernel_choice import (
    MEASURED_CUTS,
    KernelChoice,
    choose_kernel,
    dense_seconds,
    is_possible,
    key_of,
    measure_kernel,
    rounded,
)
from prunekit.ops.record_filter import MAX_KERNEL, MAX_WEIGHTS, RecordFilter, RecordPattern, pack_pattern
from prunekit.ops.record_launch import Gpu, RecordLaunch, RecordProblem, best_launches
from prunekit.ops.transposed_conv import TransposedConv

_PACKINGS = 4  # cuts to try where the longest run of a packed filter is longer than a random mask's would be
_MAX_STRIDE = 4096
_FILL_SECONDS, _FILL_BYTES = 4.5e-6, 44  # three launches; a weight's record read and written, its two indices, itself


@dataclass(frozen=True)
class RecordPlan:
    """A mask packed for one cut of the kernel and one geometry.

    Attributes:
        pattern: of the mask, on the device.
        launch: the cut.
        geometry: stride, padding and dilation that the kernel runs with; a transposed convolution sets the padding.
        transposed: for the gradient to the input, else None.
        x_shape: of that gradient, else of the input.
    """

    pattern: RecordPattern
    launch: RecordLaunch
    geometry: tuple[list[int], list[int], list[int]]
    transposed: TransposedConv | None
    x_shape: tuple[int, ...]

    def run(
        self,
        record_conv2d: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor | RecordFilter,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        negative_slope: float = 0.0,
    ) -> Tensor:
        """Run the kernel: activation(convolution + bias) + residual, or for a gradient the convolution alone.

        Args:
            record_conv2d: the op of that name, or what stands for it.
            x: the input [N, C, H, W]; for a gradient dL/dy [N, K, P, Q].
            weight: [K, C / groups, R, S] of the mask's shape, or the pattern filled with it.
            bias: [K] or None.
            residual: of the output's shape, or None.
            activation: "none" or "leaky_relu".
            negative_slope: of the activation.
        """
        packed = weight if isinstance(weight, RecordFilter) else self.pattern.fill(weight)
        filter_words = packed.header.words(), packed.starts, packed.records, packed.rows
        stride, padding, dilation = self.geometry

        def convolve(padding: Sequence[int]) -> Tensor:
            end = list(padding), dilation, activation, negative_slope, self.launch.words()
            return record_conv2d(x, *filter_words, bias, residual, stride, *end)

        if self.transposed is None:
            return convolve(padding)
        return self.transposed.run(convolve, self.x_shape, x)


@dataclass(frozen=True)
class RecordJob:
    """What is to be computed.

    Attributes:
        direction: "forward", "input_grad", or "inference": a convolution whose weights are filled in once for all.
        problem: of the convolution that the record kernel would run.
        mask: bool, of that convolution's filter, on the CPU.
        sources: which weight stands where, for a transposed filter, else None.
        geometry: stride, padding and dilation.
        transposed: for "input_grad".
        x_shape: of the input.
        dense_problem: of the convolution itself.
    """

    direction: str
    problem: RecordProblem
    mask: Tensor
    sources: Tensor | None
    geometry: tuple[list[int], list[int], list[int]]
    transposed: TransposedConv | None
    x_shape: tuple[int, ...]
    dense_problem: RecordProblem

    def choose(
        self, gpu: Gpu, *, allow_tf32: bool, cache: KernelCache | None, dtype: torch.dtype = torch.float32
    ) -> KernelChoice:
        """Choose by what the cache has of the device, else by the model."""
        dense = dense_seconds(self.dense_problem, gpu, allow_tf32=allow_tf32)
        return choose_kernel(
            self.problem,
            dtype,
            gpu,
            allow_tf32=allow_tf32,
            dense=dense,
            extra=extra_seconds(self.direction, self.problem, self.dense_problem, gpu),
            direction=self.direction,
            cache=cache,
        )

    def pack(self, gpu: Gpu, choice: KernelChoice, device: torch.device) -> RecordPlan | None:
        """Pack the mask for a choice, or for the next best cut where its longest run does not fit; None: run dense."""
        if choice.launch is None:
            return None
        others = best_launches(rounded(self.problem), gpu, _PACKINGS)
        return next(self._packed(gpu, [choice.launch, *others], device), None)

    def measure(
        self,
        gpu: Gpu,
        device: torch.device,
        run: Callable[[RecordPlan], Tensor],
        dense: Callable[[], Tensor],
        seconds_of: Callable[[Callable[[], Tensor]], float],
        cache: KernelCache,
        allow_tf32: bool,
        cuts: int = MEASURED_CUTS,
    ) -> tuple[KernelChoice, RecordPlan | None]:
        """Time the model's best cuts and the dense convolution, and remember what came out.

        Args:
            gpu: the device's figures.
            device: where the tensors are.
            run: runs a plan.
            dense: runs the dense convolution.
            seconds_of: times a call.
            cache: takes the result.
            allow_tf32: whether the dense one may use tf32.
            cuts: how many of the model's best to time.

        Raises:
            WrongOutputError: the two compute different things.
        """
        plans: dict[RecordLaunch, RecordPlan] = {}

        def candidates() -> Iterator[tuple[RecordLaunch, Callable[[], Tensor]]]:
            for plan in self._packed(gpu, best_launches(rounded(self.problem), gpu, cuts), device):
                plans[plan.launch] = plan
                yield plan.launch, lambda plan=plan: run(plan)  # type: ignore[misc]

        fastest, choice = measure_kernel(candidates(), dense, seconds_of)
        cache.put(key_of(self.problem, torch.float32, gpu, allow_tf32, self.direction), fastest)
        return choice, plans[choice.launch] if choice.launch is not None else None

    def _packed(self, gpu: Gpu, launches: Sequence[RecordLaunch], device: torch.device) -> Iterator[RecordPlan]:
        """Yield a plan for each cut that fits; cuts with the same chunks and slices share a packing."""
        patterns: dict[tuple[int, int], RecordPattern] = {}
        for launch in launches:
            cut = launch.chunk_channels, launch.slices
            if cut not in patterns:
                groups, taps = self.problem.groups, self.problem.window_taps
                patterns[cut] = pack_pattern(self.mask, groups, taps, *cut, self.sources).to(device)
            if is_possible(self.problem, launch, gpu, patterns[cut].header.longest):
                yield RecordPlan(patterns[cut], launch, self.geometry, self.transposed, self.x_shape)


def extra_seconds(direction: str, problem: RecordProblem, dense_problem: RecordProblem, gpu: Gpu) -> float:
    """Model what is done beside the kernel: filling in the weights, and bringing the phases of a gradient home.

    Args:
        direction: `RecordJob`'s.
        problem: of the convolution that the kernel runs.
        dense_problem: of the convolution itself.
        gpu: the device's figures.
    """
    seconds, moved = 0.0, 0.0
    if direction != "inference":
        kept = problem.density * problem.out_channels * problem.group_channels * math.prod(problem.kernel_size)
        seconds, moved = _FILL_SECONDS, _FILL_BYTES * kept
    if direction == "input_grad" and dense_problem.stride != (1, 1):
        p, q = problem.size
        moved += 8 * problem.batch * problem.out_channels * p * q
    return seconds + moved / (gpu.memory_gb_per_s * 1e9)


def input_grad_problem(forward: RecordProblem, transposed: TransposedConv, x_size: Sequence[int]) -> RecordProblem:
    """Return the problem of the transposed convolution, with the same kept weights in a larger filter.

    Args:
        forward: of the convolution.
        transposed: its transposed one.
        x_size: height and width of its input.
    """
    out_channels = forward.group_channels * forward.groups * transposed.num_phases
    group_channels = forward.out_channels // forward.groups
    weights = forward.out_channels * forward.group_channels * math.prod(forward.kernel_size)
    return replace(
        forward,
        out_channels=out_channels,
        group_channels=group_channels,
        kernel_size=transposed.kernel_size,
        density=forward.density * weights / (out_channels * group_channels * math.prod(transposed.kernel_size)),
        size=transposed.output_size(x_size, forward.size),
        stride=(1, 1),
        dilation=transposed.dilation,
    )


def forward_job(
    x_shape: Sequence[int],
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> RecordJob | None:
    """Return the job of the convolution itself, or None where the record kernel does not take its sizes."""
    size = conv_output_size(x_shape, mask.shape, stride, padding, dilation)
    kernel = (mask.shape[2], mask.shape[3])
    numbers = [*stride, *padding, *dilation]
    if not 0 < mask.numel() < MAX_WEIGHTS or max(kernel) > MAX_KERNEL or max(numbers) >= _MAX_STRIDE:
        return None
    if x_shape[0] == 0 or 0 in size:
        return None
    here = mask.cpu()
    density = float(here.float().mean())
    problem = RecordProblem(
        mask.shape[0],
        mask.shape[1],
        kernel,
        groups,
        density,
        x_shape[0],
        size,
        (stride[0], stride[1]),
        (dilation[0], dilation[1]),
    )
    geometry = list(stride), list(padding), list(dilation)
    return RecordJob("forward", problem, here, None, geometry, None, tuple(x_shape), problem)


def input_grad_job(
    x_shape: Sequence[int],
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> RecordJob | None:
    """Return the job of the gradient to the input, or None where the record kernel does not take its sizes."""
    forward = forward_job(x_shape, mask, stride, padding, dilation, groups)
    if forward is None:
        return None
    transposed = TransposedConv.of(mask.shape[2:], stride, padding, dilation, groups)
    sources = transposed.sources(mask.shape)
    kept = (sources >= 0) & forward.mask.flatten()[sources.clamp(min=0)]
    if kept.numel() >= MAX_WEIGHTS:
        return None
    problem = input_grad_problem(forward.problem, transposed, x_shape[2:])
    geometry = [1, 1], [0, 0], list(transposed.dilation)
    return RecordJob("input_grad", problem, kept, sources, geometry, transposed, tuple(x_shape), forward.problem)


def inference_job(
    x_shape: Sequence[int],
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> RecordJob | None:
    """Return the job of a convolution whose weights stay, or None where the record kernel does not take its sizes."""
    job = forward_job(x_shape, mask, stride, padding, dilation, groups)
    return None if job is None else replace(job, direction="inference")
