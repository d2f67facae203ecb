"""What the classifiers are made of: normalized pixels, convolutions with batch normalization, starting weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# ImageNet's, which serve for other photos as well: the first convolution learns the rest.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_IMAGE = 64  # pixels: up to this side a network starts at full resolution, as is usual on CIFAR and Tiny-ImageNet


class Normalize(nn.Module):
    """Pixels [N, 3, H, W] in [0, 1] less the mean, over the standard deviation; both are saved with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized pixels."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


def normalization(normalized: bool) -> nn.Module:
    """Return what a network does to its pixels first; nothing for benchmarks of the layers behind it."""
    return Normalize() if normalized else nn.Identity()


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Return a convolution that keeps H and W up to its stride, and its batch normalization."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return conv, nn.BatchNorm2d(out_channels)


def scaled(channels: int, width: float) -> int:
    """Return a share of some channels, at least one."""
    return max(1, round(channels * width))


def initialize(net: nn.Module) -> None:
    """Draw weights under which activations keep their size from layer to layer."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
