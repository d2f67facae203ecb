"""Modules: MaskedConv2d and whole models made fast by it."""

from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.ops import native_status

__all__ = ["MaskedConv2d", "native_status"]
