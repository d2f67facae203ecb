"""What the ops on packed filters have in common: their slow reference, and their output's shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.cuda.epilogue import finish
from prunekit.ops.masked_conv2d import masked_conv2d_reference
from prunekit.ops.memory_format import conv_memory_format


def unpacked_output(
    x: Tensor,
    unpacked: tuple[Tensor, Tensor],
    groups: int,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Run the masked reference on an unpacked filter's (weight, mask), halves in float32; the result is as x is."""
    weight, mask = unpacked
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide_bias, wide_residual = (None if t is None else t.to(dtype) for t in (bias, residual))
    y = masked_conv2d_reference(x.to(dtype), weight.to(dtype), mask, wide_bias, stride, padding, dilation, groups)
    y = finish(y, wide_residual, activation, negative_slope)
    return y.to(x.dtype).contiguous(memory_format=conv_memory_format(x))


def empty_output(x: Tensor, shape: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Return an uninitialized output of a filter of `shape` [K, C / groups, R, S] for x."""
    size = conv_output_size(x.shape, shape, stride, padding, dilation)
    return torch.empty(
        (x.shape[0], shape[0], *size), dtype=x.dtype, device=x.device, memory_format=conv_memory_format(x)
    )
