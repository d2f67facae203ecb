"""Classifiers with the layer shapes of torchvision's ResNet-50, VGG-16 and MobileNetV2, in plain torch, for timing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Channels inside the blocks of a stage, blocks of a stage; the output of a block is EXPANSION times as wide.
_RESNET50_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
_EXPANSION = 4
# Channels of the convolutions between two poolings.
_VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG_HIDDEN, _VGG_GRID = 4096, 7
# Expansion, channels, blocks, stride of the first block.
_MOBILENETV2_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_MOBILENETV2_STEM, _MOBILENETV2_LAST = 32, 1280


def resnet50(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    """Build ResNet-50 with random weights: 53 convolutions, 3×3 ones at stride 2 as in torchvision."""
    return ResNet50(num_classes, width)


def vgg16(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    """Build VGG-16 without BatchNorm, with random weights: 13 convolutions, then three linear layers."""
    return VGG16(num_classes, width)


def mobilenetv2(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    """Build MobileNetV2 with random weights: 17 inverted residuals, each around a depthwise 3×3 convolution."""
    return MobileNetV2(num_classes, width)


class ResNet50(nn.Module):
    """Stem, four stages of bottlenecks, mean over the image, one linear layer."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = _scaled(64, width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = []
        for stage, (inner, count) in enumerate(_RESNET50_STAGES):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(channels, _scaled(inner, width), stride))
                channels = _scaled(inner, width) * _EXPANSION
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        features: Tensor = self.blocks(self.pool(self.stem(x)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.body = nn.Sequential(
            *_convolution(in_channels, channels, 1, 1),
            nn.ReLU(),
            *_convolution(channels, channels, 3, stride),
            nn.ReLU(),
            *_convolution(channels, out_channels, 1, 1),
        )
        is_same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*_convolution(in_channels, out_channels, 1, stride))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, 4 · channels, H / stride, W / stride]."""
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


class VGG16(nn.Module):
    """Five stages of 3×3 convolutions, each followed by pooling; three linear layers."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _VGG16_STAGES:
            for out_channels in (_scaled(out, width) for out in stage):
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        hidden = _scaled(_VGG_HIDDEN, width)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_VGG_GRID))
        self.classifier = nn.Sequential(
            nn.Linear(channels * _VGG_GRID**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, a 1×1 convolution, mean over the image, one linear layer."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = _scaled(_MOBILENETV2_STEM, width)
        self.stem = nn.Sequential(*_convolution(3, channels, 3, 2), nn.ReLU6())
        blocks = []
        for expansion, out_channels, count, first_stride in _MOBILENETV2_STAGES:
            for block in range(count):
                stride = first_stride if block == 0 else 1
                blocks.append(InvertedResidual(channels, _scaled(out_channels, width), expansion, stride))
                channels = _scaled(out_channels, width)
        self.blocks = nn.Sequential(*blocks)
        last = _scaled(_MOBILENETV2_LAST, width)
        self.last = nn.Sequential(*_convolution(channels, last, 1, 1), nn.ReLU6())
        self.head = nn.Linear(last, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        features: Tensor = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """A 1×1 convolution to more channels, a depthwise 3×3 one, a 1×1 one back; added to the input where shapes fit."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        wide = (*_convolution(in_channels, hidden, 1, 1), nn.ReLU6()) if expansion > 1 else ()
        self.body = nn.Sequential(
            *wide, *_convolution(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(),
            *_convolution(hidden, out_channels, 1, 1),
        )  # fmt: skip
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, out_channels, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.is_residual else y


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return conv, nn.BatchNorm2d(out_channels)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _initialize(net: nn.Module) -> None:
    """Draw weights under which activations keep their size from layer to layer."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
