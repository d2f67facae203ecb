"""Masked convolution in Triton, for anyone's project: imports torch, numpy and triton only.

filter = condense(weight, mask)                      # once
y = condensed_conv2d(x, filter, bias, padding=1)     # float16, bfloat16, float32 (tf32 or full)

Packing needs no triton, which is imported at the first use of a kernel: prunekit's CUDA kernels pack with it too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunekit_kernels.condensed_filter import CondensedFilter, condense, uncondense

if TYPE_CHECKING:
    from prunekit_kernels.condensed_conv2d import condensed_conv2d, condensed_conv2d_reference

__all__ = ["CondensedFilter", "condense", "condensed_conv2d", "condensed_conv2d_reference", "uncondense"]


def __getattr__(name: str) -> Any:
    if name not in ("condensed_conv2d", "condensed_conv2d_reference"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kernels = import_module("prunekit_kernels.condensed_conv2d")
    # Importing has put the module in the function's place: they share a name.
    globals().update({here: getattr(kernels, here) for here in ("condensed_conv2d", "condensed_conv2d_reference")})
    return globals()[name]
