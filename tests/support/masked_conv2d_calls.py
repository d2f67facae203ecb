"""The masked convolution and the dense one that it must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit
from tests.support.conv_cases import ConvCase

Function = Callable[..., Tensor]


def both(case: ConvCase) -> tuple[Function, Function]:
    """Return the masked convolution and what it must equal, as functions of x, weight and bias."""

    def masked(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return prunekit.masked_conv2d(x, weight, case.mask, bias, *case.geometry)

    def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, torch.where(case.mask, weight, 0), bias, *case.geometry)

    return masked, dense


def pruned_conv(dtype: torch.dtype = torch.float32, **arguments: Any) -> nn.Conv2d:
    conv = nn.Conv2d(4, 6, 3, dtype=dtype, **arguments)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.4)
    return conv
