"""Masked convolution on a record filter: the float32 op of NVIDIA GPUs.

    packed = pack_records(weight, mask, groups, window_taps(kernel_size, stride, dilation), chunk_channels, slices)
    y = activation(masked_conv2d(x, weight, mask, bias, …)) + residual = record_conv2d(x, packed's parts, bias, …)

With the activation "leaky_relu_last" it is activation(masked_conv2d(…) + residual).

csrc/cuda/record_conv2d.cuh is the kernel. Elsewhere the reference unpacks the filter: slow, for judging. The op has no
gradients: a module that trains uses `masked_conv2d`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.epilogue import finish
from prunekit.ops.library import define, fake, fallback
from prunekit.ops.masked_conv2d import masked_conv2d_reference
from prunekit.ops.record_filter import RecordFilter, RecordHeader, unpack_records

define(
    "record_conv2d(Tensor x, int[] header, Tensor starts, Tensor records, Tensor rows, Tensor? bias, "
    "Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, str activation, float negative_slope, "
    "int[] launch) -> Tensor"
)


def output_format(x: Tensor) -> torch.memory_format:
    """Return channels-last for an x that is, else contiguous."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


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
    weight, mask = unpack_records(RecordFilter(read, starts, records, rows))
    y = masked_conv2d_reference(x, weight, mask, bias, stride, padding, dilation, read.groups)
    y = finish(y, residual, activation, negative_slope)
    return y.contiguous(memory_format=output_format(x))


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
    shape = RecordHeader.read(header).shape
    size = conv_output_size(x.shape, shape, stride, padding, dilation)
    return torch.empty((x.shape[0], shape[0], *size), dtype=x.dtype, device=x.device, memory_format=output_format(x))
