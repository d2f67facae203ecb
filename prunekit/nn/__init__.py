"""Modules: MaskedConv2d, and whole models made fast by it."""

from prunekit.comparison import MAX_RELATIVE_RMS
from prunekit.errors import WrongOutputError
from prunekit.nn.accelerate import accelerate
from prunekit.nn.acceleration_report import AccelerationReport, LayerReport
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.ops import NativeStatus, native_status

__all__ = [
    "MAX_RELATIVE_RMS",
    "AccelerationReport",
    "LayerReport",
    "MaskedConv2d",
    "NativeStatus",
    "WrongOutputError",
    "accelerate",
    "native_status",
]
