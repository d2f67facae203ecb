"""The ops on packed filters: one declaration of their arguments, their slow reference, and their output's shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunekit.ops.conv_arguments import conv_output_size
from prunekit.ops.cuda.packed_filter import PackedFilter
from prunekit.ops.library import define, fake, fallback
from prunekit.ops.masked_conv2d import masked_conv2d_reference
from prunekit.ops.memory_format import conv_memory_format
from prunekit.ops.packed_conv2d import activate

#: The ops' activations; the number is csrc/cuda/epilogue.h's ActivationPlace. "leaky_relu" comes before the residual is
#: added, as in darknet, "leaky_relu_last" after it, as in ResNets. A slope of 0 is ReLU.
EPILOGUES = ("none", "leaky_relu", "leaky_relu_last")
#: What every op is told after its filter (csrc/cuda/conv_op.h).
_END = (
    "Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, str activation, "
    "float negative_slope, int[] launch"
)


def define_conv2d(kernel: str, filter: type[PackedFilter]) -> Callable[..., Tensor]:
    """Define `<kernel>_conv2d(x, header, the filter's tensors, bias, residual, …, launch)`; return its reference.

    The reference unpacks the filter and runs the masked reference, halves in float32; `launch` cuts the kernel's work
    and has no part in the result.

    Args:
        kernel: its name.
        filter: its packed filter, whose tensors are the op's.
    """
    name, tensors = f"{kernel}_conv2d", filter.tensor_names()
    define(f"{name}(Tensor x, int[] header, {', '.join(f'Tensor {tensor}' for tensor in tensors)}, {_END}) -> Tensor")

    @fallback(name)
    def reference(x: Tensor, header: list[int], *arguments: Any) -> Tensor:
        packed = filter.read(header, *arguments[: len(tensors)])
        return unpacked_output(x, packed, *arguments[len(tensors) : -1])

    @fake(name)
    def _(x: Tensor, header: list[int], *arguments: Any) -> Tensor:
        _, _, *geometry = arguments[len(tensors) : -3]
        shape = filter.HEADER.read(header).shape
        size = conv_output_size(x.shape, shape, *geometry)
        shape_of_y, layout = (x.shape[0], shape[0], *size), conv_memory_format(x)
        return torch.empty(shape_of_y, dtype=x.dtype, device=x.device, memory_format=layout)

    return reference


def unpacked_output(
    x: Tensor, packed: PackedFilter, bias: Tensor | None, residual: Tensor | None, *arguments: Any
) -> Tensor:
    """Run the masked reference on an unpacked filter, halves in float32; the result is as x is."""
    (weight, mask), groups = packed.unpack(), packed.header.groups
    *geometry, activation, negative_slope = arguments
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide_bias, wide_residual = (None if t is None else t.to(dtype) for t in (bias, residual))
    y = masked_conv2d_reference(x.to(dtype), weight.to(dtype), mask, wide_bias, *geometry, groups)
    y = finish(y, wide_residual, activation, negative_slope)
    return y.to(x.dtype).contiguous(memory_format=conv_memory_format(x))


def finish(y: Tensor, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """Return activation(y) + residual, or with "leaky_relu_last" activation(y + residual).

    Args:
        y: the convolution with its bias.
        residual: of y's shape, or None.
        activation: one of `EPILOGUES`.
        negative_slope: of it.
    """
    is_last = activation == "leaky_relu_last"
    if not is_last:
        y = activate(y, activation, negative_slope)
    y = y if residual is None else y + residual
    return activate(y, "leaky_relu", negative_slope) if is_last else y
