"""torch.autocast for prunekit's ops: what it does to `F.conv2d`, it does to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Device type → the dispatch key that torch runs first under autocast.
DEVICE_TYPES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def cast_dtype(t: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution reads t: autocast's inside `torch.autocast`, unless t is float64."""
    device_type = t.device.type
    if device_type not in DEVICE_TYPES or not torch.is_autocast_enabled(device_type):
        return t.dtype
    is_cast = t.is_floating_point() and t.dtype != torch.float64
    return torch.get_autocast_dtype(device_type) if is_cast else t.dtype


def cast_for_autocast(t: Tensor) -> Tensor:
    """Cast one of a convolution's arguments as the current autocast does, if there is one."""
    dtype = cast_dtype(t)
    return t if t.dtype == dtype else t.to(dtype)  # `to` would stay in a trace, and hold a later half() back


def under_autocast(device_type: str) -> Callable[..., Tensor]:
    """Return the kernel of masked_conv2d for calls of the op itself under autocast on this type of device."""

    def cast_and_call(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        x, weight = cast_for_autocast(x), cast_for_autocast(weight)
        bias = None if bias is None else cast_for_autocast(bias)
        with torch.autocast(device_type, enabled=False):
            y: Tensor = torch.ops.prunekit.masked_conv2d(x, weight, mask, bias, *geometry)
        return y

    return cast_and_call
