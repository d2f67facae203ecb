"""Which layers pruning touches."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_FROZEN = {"weight", "bias", "running_mean", "running_var"}  # the buffers of a frozen batch normalization


def prunable_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the layers that pruning touches: every `nn.Conv2d`, stem and heads included, as in HYDRA."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def conv_groups(model: nn.Module) -> dict[str, int]:
    """Return the groups of each prunable convolution, for `MaskRule`: no block of weights crosses them."""
    return {name: conv.groups for name, conv in prunable_layers(model).items()}


def channels_normalized(module: nn.Module) -> int | None:
    """Return how many channels a normalization scales and shifts, each by itself; None for another module.

    That can be a frozen one, such as torchvision.ops.FrozenBatchNorm2d: not torch's class, and all of it buffers.
    """
    if isinstance(module, _NormBase):
        return module.num_features
    return len(module.get_buffer("weight")) if module._buffers.keys() >= _FROZEN else None
