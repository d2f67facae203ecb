"""prunekit: prune a vision model robustly, then make it really faster."""

from prunekit import detection, nn
from prunekit.compaction import carry_optimizer, compact, load, save
from prunekit.errors import InputError
from prunekit.nn import accelerate
from prunekit.ops import masked_conv2d

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "accelerate",
    "carry_optimizer",
    "compact",
    "detection",
    "load",
    "masked_conv2d",
    "nn",
    "save",
]
