"""Masked convolution on a record filter: the float32 op of NVIDIA GPUs.

    packed = pack_records(weight, mask, groups, window_taps(kernel_size, stride, dilation), chunk_channels, slices)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = record_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/record_conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has no
gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

from torch import Tensor

from prunekit.ops.cuda.filter_op import empty_output, unpacked_output
from prunekit.ops.cuda.record_filter import RecordFilter, RecordHeader, unpack_records
from prunekit.ops.library import define, fake, fallback

define(
    "record_conv2d(Tensor x, int[] header, Tensor starts, Tensor records, Tensor rows, Tensor? bias, "
    "Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, str activation, float negative_slope, "
    "int[] launch) -> Tensor"
)


@fallback("record_conv2d")
def record_conv2d_reference(
    x: Tensor,
    header: list[int],
    starts: Tensor,
    records: Tensor,
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
    """Unpack and run the masked reference; `launch` cuts the kernel's work and has no part in the result."""
    read = RecordHeader.read(header)
    unpacked = unpack_records(RecordFilter(read, starts, records, rows))
    end = stride, padding, dilation, activation, negative_slope
    return unpacked_output(x, unpacked, read.groups, bias, residual, *end)


@fake("record_conv2d")
def _(
    x: Tensor,
    header: list[int],
    starts: Tensor,
    records: Tensor,
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
    return empty_output(x, RecordHeader.read(header).shape, stride, padding, dilation)
