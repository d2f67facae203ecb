"""Masked convolution on a semi-structured filter: the float16 and bfloat16 op of sparse tensor cores.

    packed = pack_semi_structured(weight, mask, groups, chunk_channels, fragments)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual
      = semi_structured_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/semi_structured_conv2d.cuh is the kernel, for NVIDIA GPUs of architecture 8.0 and newer. Elsewhere the
reference unpacks the filter: slow, for judging. The op has no gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from torch import Tensor

from prunekit.ops.cuda.filter_op import empty_output, unpacked_output
from prunekit.ops.cuda.semi_structured_filter import (
    SemiStructuredFilter,
    SemiStructuredHeader,
    unpack_semi_structured,
)
from prunekit.ops.library import define, fake, fallback

define(
    "semi_structured_conv2d(Tensor x, int[] header, Tensor starts, Tensor columns, Tensor fragments, "
    "Tensor metadata, Tensor rows, Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, "
    "str activation, float negative_slope, int[] launch) -> Tensor"
)


@fallback("semi_structured_conv2d")
def semi_structured_conv2d_reference(
    x: Tensor,
    header: list[int],
    starts: Tensor,
    columns: Tensor,
    fragments: Tensor,
    metadata: Tensor,
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
    read = SemiStructuredHeader.read(header)
    unpacked = unpack_semi_structured(SemiStructuredFilter(read, starts, columns, fragments, metadata, rows))
    end = stride, padding, dilation, activation, negative_slope
    return unpacked_output(x, unpacked, read.groups, bias, residual, *end)


@fake("semi_structured_conv2d")
def _(
    x: Tensor,
    header: list[int],
    starts: Tensor,
    columns: Tensor,
    fragments: Tensor,
    metadata: Tensor,
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
    return empty_output(x, SemiStructuredHeader.read(header).shape, stride, padding, dilation)
