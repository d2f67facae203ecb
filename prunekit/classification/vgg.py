"""VGG-16 (Simonyan and Zisserman 2014), with batch normalization as it is trained today, or without as published."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.classification.blocks import initialize, normalization, scaled

# Channels of the convolutions between two poolings.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Of the linear layers: their channels, and the side of the grid that the first one reads.
_HIDDEN, _GRID = 4096, 7
_SMALL_HIDDEN, _SMALL_GRID = 256, 2


def vgg16_bn(
    num_classes: int = 1000, width: float = 1.0, small_images: bool = False, normalized: bool = True
) -> nn.Module:
    """Build VGG-16 with batch normalization: 13 convolutions, then three linear layers.

    On small images as in benchmarks of robust pruning: no pooling behind the last stage, linear layers of 256.
    """
    return VGG16(num_classes, width, small_images, normalized, batch_norm=True)


def vgg16(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    """Build VGG-16 without batch normalization and without normalized pixels, for timing."""
    return VGG16(num_classes, width, small_images=False, normalized=False, batch_norm=False)


class VGG16(nn.Module):
    """Five stages of 3×3 convolutions with pooling between them; three linear layers."""

    def __init__(self, num_classes: int, width: float, small_images: bool, normalized: bool, batch_norm: bool) -> None:
        super().__init__()
        self.normalize = normalization(normalized)
        layers: list[nn.Module] = []
        channels = 3
        for stage in _STAGES:
            for out_channels in (scaled(out, width) for out in stage):
                layers += _convolution(channels, out_channels, batch_norm)
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        hidden, grid = (_SMALL_HIDDEN, _SMALL_GRID) if small_images else (_HIDDEN, _GRID)
        hidden = scaled(hidden, width)
        self.features = nn.Sequential(*(layers[:-1] if small_images else layers), nn.AdaptiveAvgPool2d(grid))
        self.classifier = nn.Sequential(
            nn.Linear(channels * grid**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(self.normalize(x)), 1))
        return logits


def _convolution(in_channels: int, out_channels: int, batch_norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not batch_norm)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()] if batch_norm else [conv, nn.ReLU()]
