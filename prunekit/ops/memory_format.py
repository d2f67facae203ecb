"""The memory format that a convolution answers in: torch's rule, for ops with kernels of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def conv_memory_format(x: Tensor, weight: Tensor | None = None) -> torch.memory_format:
    """Return the format of `F.conv2d`'s output: channels_last if x or the weight is, else contiguous."""
    is_last = is_channels_last(x) or (weight is not None and is_channels_last(weight))
    return torch.channels_last if is_last else torch.contiguous_format


def is_channels_last(t: Tensor) -> bool:
    """Return whether the strides of t [N, C, H, W] order its memory as N, H, W, C.

    As torch's own rule does (`Tensor::suggest_memory_format`), it goes by strides alone: a 1x1 filter is contiguous in
    both formats, and its strides say which was meant.
    """
    size, stride = t.shape, t.stride()
    if len(size) != 4 or stride[1] == 0:
        return False
    smallest = 0
    for dim in (1, 3, 2, 0):
        if size[dim] == 0 or stride[dim] < smallest:
            return False
        if dim == 0 and smallest == stride[1]:  # N, 1, 1, 1: ambiguous, taken for contiguous
            return False
        smallest = stride[dim] * size[dim]
    return True
