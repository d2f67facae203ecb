"""Masked convolution on a fragment filter: the float16 and bfloat16 op of NVIDIA GPUs, on tensor cores.

    packed = pack_fragments(weight, mask, groups, chunk_channels)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = condensed_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/condensed_conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has
no gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from torch import Tensor

from prunekit.ops.cuda.filter_op import empty_output, unpacked_output
from prunekit.ops.cuda.fragment_filter import FragmentFilter, FragmentHeader, unpack_fragments
from prunekit.ops.library import define, fake, fallback

define(
    "condensed_conv2d(Tensor x, int[] header, Tensor starts, Tensor columns, Tensor fragments, Tensor rows, "
    "Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, str activation, "
    "float negative_slope, int[] launch) -> Tensor"
)


@fallback("condensed_conv2d")
def condensed_conv2d_reference(
    x: Tensor,
    header: list[int],
    starts: Tensor,
    columns: Tensor,
    fragments: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str,
    negative_slope: float,
    launch: list[int],
) -> Tensor:
    """Unpack and run the masked reference in float32; `launch` cuts the kernel's work and has no part in the result."""
    read = FragmentHeader.read(header)
    unpacked = unpack_fragments(FragmentFilter(read, starts, columns, fragments, rows))
    end = stride, padding, dilation, activation, negative_slope
    return unpacked_output(x, unpacked, read.groups, bias, residual, *end)


@fake("condensed_conv2d")
def _(
    x: Tensor,
    header: list[int],
    starts: Tensor,
    columns: Tensor,
    fragments: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str,
    negative_slope: float,
    launch: list[int],
) -> Tensor:
    return empty_output(x, FragmentHeader.read(header).shape, stride, padding, dilation)
