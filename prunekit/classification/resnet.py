"""Residual networks: ResNet-18, -20 and -50 (He et al. 2015) and WRN-28-4 (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from prunekit.classification.blocks import conv_norm, initialize, normalization, scaled

# Channels inside the blocks of a stage, blocks of a stage.
_RESNET18_STAGES = ((64, 2), (128, 2), (256, 2), (512, 2))
_RESNET20_STAGES = ((16, 3), (32, 3), (64, 3))
_RESNET50_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
_WRN28_4_STAGES = ((64, 4), (128, 4), (256, 4))
_WRN_STEM = 16


def resnet18(
    num_classes: int = 1000, width: float = 1.0, small_images: bool = False, normalized: bool = True
) -> nn.Module:
    """Build ResNet-18: two 3×3 convolutions a block; on small images a 3×3 stem without pooling."""
    return ResNet(num_classes, BasicBlock, _RESNET18_STAGES, width, small_images, normalized)


def resnet20(
    num_classes: int = 10, width: float = 1.0, small_images: bool = True, normalized: bool = True
) -> nn.Module:
    """Build CIFAR's ResNet-20, three stages of 16, 32 and 64 channels; shortcuts that change shape are convolutions."""
    return ResNet(num_classes, BasicBlock, _RESNET20_STAGES, width, small_images, normalized)


def resnet50(
    num_classes: int = 1000, width: float = 1.0, small_images: bool = False, normalized: bool = True
) -> nn.Module:
    """Build ResNet-50: 53 convolutions, 3×3 ones at stride 2 as in torchvision."""
    return ResNet(num_classes, Bottleneck, _RESNET50_STAGES, width, small_images, normalized)


def wrn28_4(num_classes: int = 10, width: float = 1.0, small_images: bool = True, normalized: bool = True) -> nn.Module:
    """Build WRN-28-4: 28 layers, four times as wide as ResNet's for CIFAR, activations before convolutions."""
    return WideResNet(num_classes, width, small_images, normalized)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(in_channels, channels, 3, stride), nn.ReLU(), *conv_norm(channels, channels, 3)
        )
        self.shortcut = _shortcut(in_channels, channels, stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, channels, H / stride, W / stride]."""
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.body = nn.Sequential(
            *conv_norm(in_channels, channels, 1),
            nn.ReLU(),
            *conv_norm(channels, channels, 3, stride),
            nn.ReLU(),
            *conv_norm(channels, out_channels, 1),
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, 4 · channels, H / stride, W / stride]."""
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """Stem, stages of blocks, mean over the image, one linear layer.

    Attributes:
        block_counts: How many blocks each stage has.
    """

    def __init__(
        self,
        num_classes: int,
        block: type[BasicBlock | Bottleneck],
        stages: Sequence[tuple[int, int]],
        width: float,
        small_images: bool,
        normalized: bool,
    ) -> None:
        super().__init__()
        self.block_counts = [count for _, count in stages]
        self.normalize = normalization(normalized)
        channels = scaled(stages[0][0], width)
        self.stem = nn.Sequential(_stem(channels, small_images), nn.BatchNorm2d(channels), nn.ReLU())
        self.pool = _pool(small_images)
        blocks, channels = _blocks(block, channels, stages, width, block.expansion)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        features: Tensor = self.blocks(self.pool(self.stem(self.normalize(x))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class WideBlock(nn.Module):
    """Twice batch normalization, ReLU and a 3×3 convolution; a convolution beside them begins behind the first ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.body = nn.Sequential(
            *conv_norm(in_channels, channels, 3, stride), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        )
        is_same = stride == 1 and in_channels == channels
        self.shortcut = None if is_same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, channels, H / stride, W / stride]."""
        activated = self.before(x)
        y: Tensor = self.body(activated) + (x if self.shortcut is None else self.shortcut(activated))
        return y


class WideResNet(nn.Module):
    """Stem, stages of blocks that begin with their activation, batch normalization, mean, one linear layer."""

    def __init__(self, num_classes: int, width: float, small_images: bool, normalized: bool) -> None:
        super().__init__()
        self.normalize = normalization(normalized)
        channels = scaled(_WRN_STEM, width)
        self.stem = _stem(channels, small_images)
        self.pool = _pool(small_images)
        blocks, channels = _blocks(WideBlock, channels, _WRN28_4_STAGES, width, 1)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        features: Tensor = self.last(self.blocks(self.pool(self.stem(self.normalize(x)))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _stem(channels: int, small_images: bool) -> nn.Module:
    size, stride = (3, 1) if small_images else (7, 2)
    return nn.Conv2d(3, channels, size, stride, padding=size // 2, bias=False)


def _pool(small_images: bool) -> nn.Module:
    return nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)


def _blocks(
    block: Callable[[int, int, int], nn.Module],
    channels: int,
    stages: Sequence[tuple[int, int]],
    width: float,
    expansion: int,
) -> tuple[list[nn.Module], int]:
    """Return the blocks of all stages, and the channels of the last one's output."""
    blocks = []
    for stage, (inner, count) in enumerate(stages):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(block(channels, scaled(inner, width), stride))
            channels = scaled(inner, width) * expansion
    return blocks, channels


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    is_same = stride == 1 and in_channels == out_channels
    return nn.Identity() if is_same else nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))
