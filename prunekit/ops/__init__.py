"""prunekit's ops: one file each, with the slow reference beside the schema. Importing loads the compiled kernels."""

from prunekit.ops import (
    native,
    packed_conv2d,  # noqa: F401  # registers its op, which saved programs may call
)
from prunekit.ops.cuda import dispatch  # noqa: F401  # registers the ops of GPUs
from prunekit.ops.masked_conv2d import masked_conv2d
from prunekit.ops.native import NativeStatus, native_status

__all__ = ["NativeStatus", "masked_conv2d", "native", "native_status"]
