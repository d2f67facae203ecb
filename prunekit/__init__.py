"""prunekit: prune a vision model robustly, then make it really faster."""

from prunekit import detection, nn
from prunekit.errors import InputError
from prunekit.nn import accelerate
from prunekit.nn.saving import load, save
from prunekit.ops import masked_conv2d

__version__ = "0.1.0"

__all__ = ["InputError", "accelerate", "detection", "load", "masked_conv2d", "nn", "save"]
