"""Masked convolution in Triton, for anyone's project: imports torch, numpy and triton only.

filter = condense(weight, mask)                      # once
y = condensed_conv2d(x, filter, bias, padding=1)     # float16, bfloat16, float32 (tf32 or full)
"""

from prunekit_kernels.condensed_conv2d import condensed_conv2d, condensed_conv2d_reference
from prunekit_kernels.condensed_filter import CondensedFilter, condense, uncondense

__all__ = ["CondensedFilter", "condense", "condensed_conv2d", "condensed_conv2d_reference", "uncondense"]
